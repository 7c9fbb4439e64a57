//! Every socket of every process, by the BPF iterator over open files.
//!
//! The kernel walks the tasks and their file tables itself (threads that share the table of their
//! process are passed over) and calls our program for each file, which writes one record for each
//! socket. This sees sockets that were never bound, which sock_diag does not, and needs no look
//! into /proc.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use sockcr_sys::bpf;

use super::assembler::{AssembleError, Assembler, Condition, Helper, Label, Register, Width};
use super::btf::{BtfError, Field};
use super::layout::{Iterator, Layout, layout};
use super::{Unavailable, load};

/// Places in a record, which is made on the program's stack.
mod record {
    pub const PID: usize = 0;
    pub const TID: usize = 4;
    pub const DESCRIPTOR: usize = 8;
    pub const LOCAL_ADDRESS: usize = 12;
    pub const PEER_ADDRESS: usize = 16;
    pub const RECEIVED: usize = 20;
    pub const INODE: usize = 24;
    pub const COOKIE: usize = 32;
    pub const NET_COOKIE: usize = 40;
    pub const FAMILY: usize = 48;
    pub const KIND: usize = 50;
    pub const PROTOCOL: usize = 52;
    pub const LOCAL_PORT: usize = 54;
    pub const PEER_PORT: usize = 56;
    pub const STATE: usize = 58;
    /// The device it is bound to.
    pub const DEVICE: usize = 60;
    pub const LOCAL_ADDRESS_V6: usize = 64;
    pub const PEER_ADDRESS_V6: usize = 80;
    /// The bytes of a record.
    pub const SIZE: usize = 96;
}

/// Places on the stack below the record.
mod stack {
    pub const RECORD: i32 = -(super::record::SIZE as i32);
    pub const SLOT: i32 = RECORD - 8;
    /// `struct seq_file` of the reader.
    pub const SEQUENCE: i32 = RECORD - 16;
    /// Where the number of a task lies in its `struct pid`.
    pub const NUMBER: i32 = RECORD - 24;
}

const INET: u16 = rustix::net::AddressFamily::INET.as_raw();
const INET6: u16 = rustix::net::AddressFamily::INET6.as_raw();
const RAW: u16 = rustix::net::SocketType::RAW.as_raw() as u16;
/// `TCP_ESTABLISHED`, which every connected socket is in.
const CONNECTED: u8 = 1;
/// Nowhere.
const NONE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// One descriptor of one process (or of a thread with its own file table) that is a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketFile {
    /// The process, in the pid namespace of the caller.
    pub pid: u32,
    /// The thread whose file table it is; the process's first thread where they share one.
    pub tid: u32,
    /// The descriptor's number there.
    pub fd: u32,
    /// The inode, as in `socket:[inode]`.
    pub inode: u64,
    /// SO_COOKIE; 0: nobody has asked for it yet.
    pub cookie: u64,
    /// The address family (`AF_...`).
    pub family: u16,
    /// The type (`SOCK_...`).
    pub socket_type: u16,
    /// The protocol (`IPPROTO_...`).
    pub protocol: u16,
    /// SO_NETNS_COOKIE of its network namespace; 0: nobody has asked for it yet (before 5.14).
    pub netns_cookie: u64,
    /// The state as in `enum tcp_state`: 1 is connected, 7 is not.
    pub state: u8,
    /// Own address and port as getsockname(2) tells them, of the socket's family; 0.0.0.0:0 for
    /// other families than AF_INET and AF_INET6. The identifier of a ping socket is its port; a raw
    /// socket has port 0, its protocol is `protocol`.
    pub local: SocketAddr,
    /// The peer; the unspecified address and port 0 when not connected, and for other families.
    pub peer: SocketAddr,
    /// The bytes of memory that received data takes, as counted against SO_RCVBUF
    /// (`sk_rmem_alloc`).
    pub receive_bytes: u32,
}

/// All sockets of all processes that the caller's pid namespace shows, or those of one process
/// (none where there is no such process).
///
/// It needs Linux 5.14 with `CONFIG_DEBUG_INFO_BTF`, and CAP_BPF with CAP_PERFMON in the initial
/// user namespace; else the error holds an [`Unavailable`]. Before 6.1 the sockets of one process
/// take as long as all. A process that opens and closes files meanwhile may be seen half way.
pub fn sockets(pid: Option<u32>) -> io::Result<Vec<SocketFile>> {
    let program = program().map_err(Unavailable::io)?;
    list(program.as_fd(), pid)
}

fn list(program: BorrowedFd<'_>, pid: Option<u32>) -> io::Result<Vec<SocketFile>> {
    let mut link = bpf::link_task_iterator(program, pid);
    if pid.is_some() && link.is_err() {
        link = bpf::link_task_iterator(program, None);
    }
    let iterator = bpf::create_iterator(link?.as_fd())?;
    let records = read_all(File::from(iterator))?;
    let mut sockets: Vec<SocketFile> = records
        .chunks_exact(record::SIZE)
        .filter_map(SocketFile::decode)
        .collect();
    sockets.retain(|socket| pid.is_none_or(|pid| pid == socket.pid));
    Ok(sockets)
}

/// Reads one record a call. The iterator holds each file for a moment, and a file that its owner
/// closes just then is released only when our read(2) returns (`fput`): a long read would keep
/// the owner from its own port.
fn read_all(mut iterator: File) -> io::Result<Vec<u8>> {
    let mut records = Vec::new();
    let mut record = [0; record::SIZE];
    loop {
        match iterator.read(&mut record) {
            Ok(0) => return Ok(records),
            Ok(length) => records.extend_from_slice(record.get(..length).unwrap_or_default()),
            // bpf_seq_read: a million files in one call, and no socket among them.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The program of this process: loaded at the first call.
fn program() -> Result<&'static OwnedFd, &'static Unavailable> {
    static PROGRAM: OnceLock<Result<OwnedFd, Unavailable>> = OnceLock::new();
    PROGRAM.get_or_init(build).as_ref()
}

fn build() -> Result<OwnedFd, Unavailable> {
    load_with(layout()?)
}

fn load_with(layout: &Layout) -> Result<OwnedFd, Unavailable> {
    let iterator = layout.iterator.as_ref().map_err(BtfError::clone)?;
    let code = Writer::new(layout, iterator).write()?;
    let kind = bpf::Kind::Iterator {
        function: iterator.function,
    };
    load(kind, "sockcr_files", &code)
}

impl SocketFile {
    fn decode(raw: &[u8]) -> Option<Self> {
        let socket_type = half(raw, record::KIND)?;
        let state = *raw.get(record::STATE)?;
        // `struct inet_sock` of a raw socket keeps its protocol where others have the port.
        let local_port = match socket_type {
            RAW => 0,
            _ => half(raw, record::LOCAL_PORT)?,
        };
        let peer_port = u16::from_be(half(raw, record::PEER_PORT)?);
        let local = (record::LOCAL_ADDRESS, record::LOCAL_ADDRESS_V6);
        let peer = (record::PEER_ADDRESS, record::PEER_ADDRESS_V6);
        Some(Self {
            pid: word(raw, record::PID)?,
            tid: word(raw, record::TID)?,
            fd: word(raw, record::DESCRIPTOR)?,
            inode: double(raw, record::INODE)?,
            cookie: double(raw, record::COOKIE)?,
            family: half(raw, record::FAMILY)?,
            socket_type,
            protocol: half(raw, record::PROTOCOL)?,
            netns_cookie: double(raw, record::NET_COOKIE)?,
            state,
            local: end(raw, local, local_port)?,
            // `__udp_disconnect` leaves the IPv6 address of the peer behind.
            peer: match state == CONNECTED || peer_port != 0 {
                true => end(raw, peer, peer_port)?,
                false => unspecified(end(raw, peer, 0)?),
            },
            receive_bytes: word(raw, record::RECEIVED)?,
        })
    }
}

/// An address of the family of the socket, which is in one of two places.
fn end(raw: &[u8], (v4, v6): (usize, usize), port: u16) -> Option<SocketAddr> {
    match half(raw, record::FAMILY)? {
        INET => {
            let address = Ipv4Addr::from(word(raw, v4)?.to_ne_bytes());
            Some(SocketAddr::new(address.into(), port))
        }
        INET6 => {
            let address: [u8; 16] = *raw.get(v6..)?.first_chunk()?;
            let address = Ipv6Addr::from(address);
            let scope = match needs_scope(&address) {
                true => word(raw, record::DEVICE)?,
                false => 0,
            };
            Some(SocketAddrV6::new(address, port, 0, scope).into())
        }
        _ => Some(NONE),
    }
}

/// `__ipv6_addr_needs_scope_id`: link-local addresses, and groups of the link or of the host.
pub(crate) fn needs_scope(address: &Ipv6Addr) -> bool {
    let [first, second, ..] = address.octets();
    address.is_unicast_link_local() || (first == 0xff && matches!(second & 0xf, 1 | 2))
}

/// No address, of the same family.
fn unspecified(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => NONE,
        SocketAddr::V6(_) => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
    }
}

fn half(raw: &[u8], at: usize) -> Option<u16> {
    raw.get(at..)?.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

fn word(raw: &[u8], at: usize) -> Option<u32> {
    raw.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

fn double(raw: &[u8], at: usize) -> Option<u64> {
    raw.get(at..)?.first_chunk().map(|b| u64::from_ne_bytes(*b))
}

/// The place of a record's field on the stack.
fn slot(field: usize) -> i32 {
    stack::RECORD + field as i32
}

/// Writes the program.
struct Writer<'a> {
    layout: &'a Layout,
    iterator: &'a Iterator,
    code: Assembler,
    out: Label,
}

impl<'a> Writer<'a> {
    fn new(layout: &'a Layout, iterator: &'a Iterator) -> Self {
        let mut code = Assembler::new();
        Self {
            layout,
            iterator,
            out: code.label(),
            code,
        }
    }

    /// Throughout: R6 is the context, R7 the task, R8 the file, then the socket, R9 the sock.
    fn write(mut self) -> Result<Vec<u8>, Unavailable> {
        self.begin();
        self.find_sock();
        self.sock()?;
        self.inode()?;
        self.net();
        self.numbers();
        Ok(self.finish()?)
    }

    fn begin(&mut self) {
        let (code, iterator) = (&mut self.code, self.iterator);
        code.copy(Register::R6, Register::R1);
        for field in (0..record::SIZE).step_by(8) {
            code.store_value_at(Width::Double, Register::Frame, slot(field), 0);
        }
        code.load(Width::Double, Register::R7, Register::R6, iterator.task);
        code.jump_if(Register::R7, Condition::Equal, 0, self.out);
        code.load(Width::Double, Register::R8, Register::R6, iterator.file);
        code.jump_if(Register::R8, Condition::Equal, 0, self.out);
        code.load(Width::Word, Register::R1, Register::R6, iterator.descriptor);
        let descriptor = slot(record::DESCRIPTOR);
        code.store_at(Width::Word, Register::Frame, descriptor, Register::R1);
        code.load(Width::Double, Register::R1, Register::R6, iterator.meta);
        code.load(Width::Double, Register::R1, Register::R1, iterator.sequence);
        code.store_at(
            Width::Double,
            Register::Frame,
            stack::SEQUENCE,
            Register::R1,
        );
    }

    /// Leaves files that are no sockets, and sockets that are closing.
    fn find_sock(&mut self) {
        let (code, path) = (&mut self.code, &self.layout.path);
        code.copy(Register::R1, Register::R8);
        code.call(Helper::SockFromFile);
        code.jump_if(Register::R0, Condition::Equal, 0, self.out);
        code.copy(Register::R8, Register::R0);
        code.load(Width::Double, Register::R9, Register::R8, path.socket_sock);
        code.jump_if(Register::R9, Condition::Equal, 0, self.out);
    }

    fn sock(&mut self) -> Result<(), BtfError> {
        let sock = &self.layout.sock;
        for (from, to, size) in [
            (sock.bound_address, record::LOCAL_ADDRESS, 4),
            (sock.peer_address, record::PEER_ADDRESS, 4),
            (sock.received, record::RECEIVED, 4),
            (sock.cookie, record::COOKIE, 8),
            (sock.family, record::FAMILY, 2),
            (sock.kind, record::KIND, 2),
            (sock.protocol, record::PROTOCOL, 2),
            (sock.port, record::LOCAL_PORT, 2),
            (sock.peer_port, record::PEER_PORT, 2),
            (sock.state, record::STATE, 1),
            (sock.device, record::DEVICE, 4),
        ] {
            self.member(from, to, size)?;
        }
        for (from, to) in [
            (sock.bound_address_v6, record::LOCAL_ADDRESS_V6),
            (sock.peer_address_v6, record::PEER_ADDRESS_V6),
        ] {
            self.address(from, to);
        }
        Ok(())
    }

    /// Copies an IPv6 address of the sock, of words as the kernel aligns it; a kernel without IPv6
    /// has none.
    fn address(&mut self, from: Option<Field>, to: usize) {
        let Some(from) = from.filter(|from| from.size == 16) else {
            return;
        };
        for word in (0..16).step_by(4) {
            let place = from.offset + word;
            self.code
                .load(Width::Word, Register::R1, Register::R9, place);
            let place = slot(to + word);
            self.code
                .store_at(Width::Word, Register::Frame, place, Register::R1);
        }
    }

    /// Copies a member of the sock into the record.
    fn member(&mut self, from: Field, to: usize, room: usize) -> Result<(), BtfError> {
        let width = Width::of(from.size)
            .filter(|_| from.size <= room && from.bits.is_none())
            .ok_or(BtfError::Damaged("a member of `struct sock`"))?;
        self.code
            .load(width, Register::R1, Register::R9, from.offset);
        self.code
            .store_at(width, Register::Frame, slot(to), Register::R1);
        Ok(())
    }

    fn inode(&mut self) -> Result<(), BtfError> {
        if let Some(inode) = self.layout.sock.inode {
            return self.member(inode, record::INODE, 8);
        }
        let inode = slot(record::INODE);
        self.code
            .probe(inode, 8, Register::R8, self.iterator.socket_inode, self.out);
        Ok(())
    }

    fn net(&mut self) {
        let code = &mut self.code;
        let net = self.layout.sock.net.offset;
        code.load(Width::Double, Register::R1, Register::R9, net);
        code.load(
            Width::Double,
            Register::R1,
            Register::R1,
            self.iterator.net_cookie,
        );
        let cookie = slot(record::NET_COOKIE);
        code.store_at(Width::Double, Register::Frame, cookie, Register::R1);
    }

    /// The numbers of the process and the thread in the pid namespace of whoever reads: the level
    /// of that namespace is that of the current task.
    fn numbers(&mut self) {
        let (code, iterator) = (&mut self.code, self.iterator);
        code.call(Helper::GetCurrentTask);
        code.copy(Register::R8, Register::R0);
        code.follow(Register::R8, iterator.task_pid, stack::SLOT, self.out);
        code.probe(stack::SLOT, 4, Register::R8, iterator.pid_level, self.out);
        code.load_at(Width::Word, Register::R8, Register::Frame, stack::SLOT);
        code.multiply(Register::R8, iterator.number_size);
        code.advance(Register::R8, iterator.pid_numbers + iterator.number);
        code.store_at(Width::Double, Register::Frame, stack::NUMBER, Register::R8);
        code.load(Width::Double, Register::R8, Register::R7, iterator.task_pid);
        self.number(record::TID);
        let code = &mut self.code;
        code.load(
            Width::Double,
            Register::R8,
            Register::R7,
            iterator.task_signal,
        );
        code.follow(Register::R8, iterator.signal_process, stack::SLOT, self.out);
        self.number(record::PID);
    }

    /// The number in the `struct pid` in R8. A task that is just ending has none and is left out.
    fn number(&mut self, to: usize) {
        let code = &mut self.code;
        code.jump_if(Register::R8, Condition::Equal, 0, self.out);
        code.load_at(Width::Double, Register::R3, Register::Frame, stack::NUMBER);
        code.add_register(Register::R3, Register::R8);
        code.copy(Register::R8, Register::R3);
        code.probe(slot(to), 4, Register::R8, 0, self.out);
    }

    fn finish(mut self) -> Result<Vec<u8>, AssembleError> {
        let code = &mut self.code;
        let sequence = stack::SEQUENCE;
        code.load_at(Width::Double, Register::R1, Register::Frame, sequence);
        code.copy(Register::R2, Register::Frame);
        code.add(Register::R2, stack::RECORD);
        code.set(Register::R3, record::SIZE as i32);
        code.call(Helper::SeqWrite);
        code.place(self.out);
        code.set(Register::R0, 0);
        code.exit();
        self.code.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::layout;

    /// Kernels without `sk_ino` keep the number in the inode of the socket.
    #[test]
    fn inodes_are_the_same_without_their_copy_in_the_sock() {
        let mut layout = match layout::read() {
            Ok(layout) => layout,
            Err(why) => return println!("skipped: {why}"),
        };
        layout.sock.inode = None;
        let program = match load_with(&layout) {
            Err(why) if why.is_privilege() => return println!("skipped: {why}"),
            result => result.unwrap(),
        };
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let own = Some(std::process::id());
        let inode = |files: Vec<SocketFile>| {
            let found = files.into_iter().find(|file| file.local.port() == port);
            found.map(|file| file.inode)
        };
        let plain = inode(sockets(own).unwrap());
        assert!(plain.is_some());
        assert_eq!(inode(list(program.as_fd(), own).unwrap()), plain);
    }
}
