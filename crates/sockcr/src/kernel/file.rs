//! Who else has the open file of a socket: what no list of descriptors tells.

use std::io;
use std::os::fd::BorrowedFd;

use super::btf::Field;
use super::copier::{Copier, Sock};
use super::layout::File;
use super::reader::{Reader, damaged};
use super::walk::{View, WalkPage};

/// More registrations than this are a list that changes while it is followed.
const MOST_REGISTRATIONS: usize = 1 << 20;

/// What the kernel itself knows of the users of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Users {
    /// The references to its open file: one for each table and number that it is at, one for each message
    /// on its way that carries it (SCM_RIGHTS), for each ring of io_uring that has it registered, and one
    /// for each call that waits in it, of a process with several threads (`file->f_ref`, before 6.13
    /// `f_count`).
    pub references: u64,
    /// How often it is registered in epoll instances (`file->f_ep`).
    pub registrations: usize,
}

/// Where the kernel has an open file (`struct file`).
#[derive(Clone, Copy, Debug)]
pub struct OpenFile(u64);

/// What the kernel remembers of the moment in which a socket was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The number of the control group that it was made in; 0: the kernel has none.
    pub group: u64,
    /// The user and the group of whoever made it, for whom firewalls ask (`file->f_cred`).
    pub maker: (u32, u32),
}

impl Reader {
    /// Who uses the open file of a socket that we hold. Nothing of it is changed.
    ///
    /// `Unsupported`: this kernel does not tell. References come and go while its owners run.
    pub fn users(&self, socket: BorrowedFd<'_>) -> io::Result<Users> {
        let sock = self.sock(socket)?;
        self.users_of(self.open_file(&sock)?)
    }

    /// The same of an open file.
    pub fn users_of(&self, OpenFile(file): OpenFile) -> io::Result<Users> {
        let layout = self.file_layout()?;
        let raw = self.bytes(file, layout.extent())?;
        let count = layout.references.value(&raw).ok_or_else(damaged)?;
        let list = layout.watchers.value(&raw).ok_or_else(damaged)?;
        Ok(Users {
            references: match layout.counts_from_zero {
                true => count.wrapping_add(1),
                false => count,
            },
            registrations: self.registrations(list)?,
        })
    }

    /// Whether a part of the kernel keeps data of its own with a socket: a tunnel, a BPF map (`sk_user_data`).
    pub fn is_kernels(&self, sock: &Sock) -> io::Result<bool> {
        let data = self.layout.sock.user_data.value(&sock.raw);
        Ok(data.ok_or_else(damaged)? != 0)
    }

    /// Where a socket was made, and by whom.
    ///
    /// `Unsupported`: this kernel does not tell.
    pub fn origin(&self, socket: BorrowedFd<'_>) -> io::Result<Origin> {
        let layout = self.file_layout()?;
        let sock = self.sock(socket)?;
        Ok(Origin {
            group: self.group(&sock.raw, layout)?,
            maker: self.maker(self.open_file(&sock)?, layout)?,
        })
    }

    fn file_layout(&self) -> io::Result<&'static File> {
        self.layout.file.as_ref().map_err(|error| {
            let why = format!("the users of a file: {error}");
            io::Error::new(io::ErrorKind::Unsupported, why)
        })
    }

    /// The open file of a socket, which stays the same as long as it is open.
    pub fn open_file(&self, sock: &Sock) -> io::Result<OpenFile> {
        let socket = self
            .layout
            .sock
            .socket
            .value(&sock.raw)
            .ok_or_else(damaged)?;
        self.pointer(socket, self.layout.path.socket_file)
            .map(OpenFile)
    }

    fn maker(&self, OpenFile(file): OpenFile, layout: &File) -> io::Result<(u32, u32)> {
        let credentials = self.pointer(file, layout.credentials)?;
        let number = |field| self.member(credentials, field);
        Ok((
            number(layout.user)? as u32,
            number(layout.user_group)? as u32,
        ))
    }

    /// A member of what is at an address.
    pub(super) fn member(&self, address: u64, field: Field) -> io::Result<u64> {
        let raw = self.bytes(address.wrapping_add(field.offset as u64), field.size)?;
        let field = Field { offset: 0, ..field };
        field.value(&raw).ok_or_else(damaged)
    }

    fn group(&self, raw: &[u8], layout: &File) -> io::Result<u64> {
        let Some([group, node, number]) = layout.group else {
            return Ok(0);
        };
        let group = raw.get(group..).and_then(|rest| rest.first_chunk());
        let group = u64::from_ne_bytes(*group.ok_or_else(damaged)?);
        match group {
            0 => Ok(0),
            group => self.pointer(self.pointer(group, node)?, number),
        }
    }

    /// The length of a list of `epitem.fllink`, whose first word is the next one.
    fn registrations(&self, list: u64) -> io::Result<usize> {
        let mut count = 0;
        let mut at = match list {
            0 => 0,
            list => self.pointer(list, 0)?,
        };
        while at != 0 && count < MOST_REGISTRATIONS {
            count += 1;
            at = self.pointer(at, 0)?;
        }
        Ok(count)
    }

    /// What tells the datagrams that wait in a UDP socket from all others that are in the kernel, in their
    /// order: the same one that several sockets got has the same in each (`skb->head`).
    pub fn identities(&self, socket: BorrowedFd<'_>) -> io::Result<Vec<u64>> {
        super::copier::steady(|| {
            let layout = self.buffers()?;
            let heads = self.waiting(socket)?;
            let copier = Copier::new(self)?;
            let mut page = WalkPage::new(layout);
            let mut identities = Vec::new();
            for head in &heads {
                let (mut at, mut left) = (head.first, head.length);
                while at != head.address && left > 0 {
                    copier.walk(&mut page, at, head.address, View::Headers)?;
                    for buffer in page.buffers(layout)? {
                        identities.push(buffer.get(layout.skb.head)?);
                        left = left.saturating_sub(1);
                    }
                    at = page.next()?;
                }
            }
            let after = self.waiting(socket)?;
            let mut pairs = after.iter().zip(&heads);
            let same = pairs.all(|(after, before)| after.extends(before));
            Ok(same.then_some(identities))
        })
    }
}

impl File {
    /// The bytes from the beginning that hold all of the fields.
    fn extent(&self) -> usize {
        [self.references, self.watchers]
            .iter()
            .map(|field| field.offset + field.size)
            .max()
            .unwrap_or(0)
    }
}
