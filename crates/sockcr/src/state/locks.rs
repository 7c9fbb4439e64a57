//! The locks on the buffer sizes: a size that the owner chose is not tuned by the kernel.

use crate::kernel::Hidden;
use crate::report::Report;
use std::io;
use std::os::fd::BorrowedFd;

const SOL_SOCKET: i32 = 1;
const SO_BUF_LOCK: i32 = 72;

/// `SOCK_SNDBUF_LOCK` and `SOCK_RCVBUF_LOCK` of `sock.sk_userlocks`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BufferLocks {
    /// SO_SNDBUF was set.
    pub send: bool,
    /// SO_RCVBUF was set.
    pub receive: bool,
}

impl BufferLocks {
    /// Takes them from BPF, or reads them (`SO_BUF_LOCK`, since 5.15).
    pub(crate) fn dump(
        fd: BorrowedFd<'_>,
        hidden: Option<&Hidden>,
        report: &mut Report,
    ) -> BufferLocks {
        if let Some(hidden) = hidden {
            return BufferLocks {
                send: hidden.send_buffer_locked,
                receive: hidden.receive_buffer_locked,
            };
        }
        match read(fd) {
            Ok(locks) => locks,
            Err(error) => {
                let why = format!("SO_BUF_LOCK: {}", crate::error::reason(&error));
                report.assume("buffer locks off", why);
                BufferLocks::default()
            }
        }
    }

    /// Puts them back on a new socket, of which `written` is locked: setting a buffer locks it.
    pub(crate) fn restore(self, fd: BorrowedFd<'_>, written: BufferLocks) -> io::Result<()> {
        if written == self {
            return Ok(());
        }
        let bits = u32::from(self.send) | u32::from(self.receive) << 1;
        sockcr_sys::sockopt::set(fd, SOL_SOCKET, SO_BUF_LOCK, &bits.to_ne_bytes())
    }
}

fn read(fd: BorrowedFd<'_>) -> io::Result<BufferLocks> {
    let mut bits = [0; 4];
    sockcr_sys::sockopt::get(fd, SOL_SOCKET, SO_BUF_LOCK, &mut bits)?;
    let bits = u32::from_ne_bytes(bits);
    Ok(BufferLocks {
        send: bits & 1 != 0,
        receive: bits & 2 != 0,
    })
}
