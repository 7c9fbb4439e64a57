//! getsockopt(2) and setsockopt(2) by number, on raw bytes.

use crate::check;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Reads an option into `value`; answers the length the kernel reports, at most `value.len()`.
///
/// Do not use it for `SO_GET_FILTER`, whose length counts instructions: see [`filter`].
pub fn get(fd: BorrowedFd<'_>, level: i32, name: i32, value: &mut [u8]) -> io::Result<usize> {
    if holds_pointer(level, name) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut length = value.len().min(i32::MAX as usize) as libc::socklen_t;
    // SAFETY: value is writable for `length` bytes, and apart from the options refused above the
    // kernel writes at most `length` of them, and nowhere else.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &mut length,
        )
    })?;
    Ok((length as usize).min(value.len()))
}

/// Writes an option.
///
/// Options whose value holds a pointer are refused: see [`attach_filter`].
pub fn set(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    if holds_pointer(level, name) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: value is readable for its length; the options that carry a pointer inside the value
    // are refused above.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// Options whose value holds a pointer that the kernel follows, or whose length counts something
/// else than bytes.
fn holds_pointer(level: i32, name: i32) -> bool {
    const IPT_SO_SET_REPLACE: i32 = 64;
    const IP6T_SO_SET_REPLACE: i32 = 64;
    const ARPT_SO_SET_REPLACE: i32 = 96;
    const TCP_ZEROCOPY_RECEIVE: i32 = 35;
    matches!(
        (level, name),
        (
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER | libc::SO_ATTACH_REUSEPORT_CBPF
        ) | (libc::IPPROTO_IP, IPT_SO_SET_REPLACE | ARPT_SO_SET_REPLACE)
            | (libc::IPPROTO_IPV6, IP6T_SO_SET_REPLACE)
            | (libc::IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE)
    )
}

/// One instruction of classic BPF: `struct sock_filter` as it lies in memory.
pub type Instruction = [u8; 8];

/// Reads the classic filter of a socket, empty when it has none.
///
/// `EACCES`: the filter is an eBPF program (`sk_get_filter`, net/core/filter.c).
pub fn filter(fd: BorrowedFd<'_>) -> io::Result<Vec<Instruction>> {
    let mut count: libc::socklen_t = 0;
    // SAFETY: with a length of 0 the kernel writes nothing but the number of instructions.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            std::ptr::null_mut(),
            &mut count,
        )
    })?;
    if count == 0 {
        return Ok(Vec::new());
    }
    let mut program = vec![[0u8; 8]; count as usize];
    // SAFETY: the length counts instructions, and program has room for `count` of 8 bytes each; a
    // longer program that came in between is answered with EINVAL.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            program.as_mut_ptr().cast(),
            &mut count,
        )
    })?;
    program.truncate(count as usize);
    Ok(program)
}

/// Where a classic program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It says what the socket hears: `SO_ATTACH_FILTER`.
    Filter,
    /// It says who of the SO_REUSEPORT group does: `SO_ATTACH_REUSEPORT_CBPF` (Linux 4.5).
    Group,
}

/// Attaches a classic program.
pub fn attach_filter(fd: BorrowedFd<'_>, place: Place, program: &[Instruction]) -> io::Result<()> {
    let name = match place {
        Place::Filter => libc::SO_ATTACH_FILTER,
        Place::Group => libc::SO_ATTACH_REUSEPORT_CBPF,
    };
    let length = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let code: Vec<libc::sock_filter> = program.iter().map(instruction).collect();
    let program = libc::sock_fprog {
        len: length,
        filter: code.as_ptr().cast_mut(),
    };
    // SAFETY: the value is a sock_fprog whose pointer is to `len` instructions that outlive the
    // call; the kernel only reads them.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    })?;
    Ok(())
}

fn instruction(bytes: &Instruction) -> libc::sock_filter {
    let [c0, c1, jt, jf, k0, k1, k2, k3] = *bytes;
    libc::sock_filter {
        code: u16::from_ne_bytes([c0, c1]),
        jt,
        jf,
        k: u32::from_ne_bytes([k0, k1, k2, k3]),
    }
}
