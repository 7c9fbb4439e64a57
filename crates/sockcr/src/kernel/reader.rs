//! The hidden state of one socket of which we hold a descriptor, in one bpf(2) call.
//!
//! The program is of type SYSCALL: `BPF_PROG_TEST_RUN` runs it on the calling thread, and its
//! context is memory that goes in and comes back. So there is no map and no lock: threads, and
//! processes after fork(2), read side by side. It goes from the calling task through its file
//! table to the `struct sock`, makes sure on the way that the file is a socket, copies the whole
//! structure into the context and lists the multicast memberships. Meaning is given to the copy
//! here, by the offsets that the kernel tells.
//!
//! Every step is `bpf_probe_read_kernel`, which fails instead of faulting. No lock of the socket
//! is taken: what a running owner changes at the same moment may be seen half done.

use std::ffi::c_int;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use sockcr_sys::bpf;

use super::btf::Field;
use super::gather::Gatherer;
use super::inet6::{Hidden6, Part as Ipv6Part};
use super::layout::{Functions, Layout, layout};
use super::program::{
    MEMBERSHIP_SIZE, MEMBERSHIPS, MODE_BYTES, MODE_SOCKET, context, list, program, window,
};
use super::walk::Walk;
use super::{Unavailable, load};

/// The tries to list the memberships while the owner joins and leaves.
const LIST_ATTEMPTS: usize = 8;
/// The looks at who holds a socket.
const LOOKS: usize = 3;
/// The bytes of a kernel pointer: BPF knows 64 bits only.
const POINTER: usize = size_of::<u64>();
const INET6: u64 = rustix::net::AddressFamily::INET6.as_raw() as u64;
const DATAGRAM: u64 = rustix::net::SocketType::DGRAM.as_raw() as u64;
/// `IPPROTO_UDP`
const UDP: u64 = 17;
/// `IPPROTO_UDPLITE`
const UDP_LITE: u64 = 136;

/// How much of [`Hidden`] the kind of socket has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// `struct sock` alone: neither IPv4 nor IPv6. Addresses, ports and memberships are empty.
    Sock,
    /// `struct inet_sock`, or one for raw sockets: nothing corked by UDP, no encapsulation.
    Inet,
    /// `struct udp_sock`: everything.
    Udp,
}

/// A membership as the socket asked for it (`struct ip_mreqn`, `struct ipv6_mreq`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The group, or the anycast address.
    pub group: IpAddr,
    /// It is an anycast address (IPV6_JOIN_ANYCAST), not a group.
    pub anycast: bool,
    /// The address given in place of an interface; 0.0.0.0 when none was.
    pub address: Ipv4Addr,
    /// The interface's index, also of one that is gone.
    pub interface: u32,
}

/// State of a socket that getsockopt(2) does not show, or not without changing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// What the socket has; the rest is zero, false or empty.
    pub extent: Extent,
    /// The address family (`AF_...`).
    pub family: u16,
    /// The protocol (`IPPROTO_...`).
    pub protocol: u16,
    /// The address was bound, not chosen: disconnecting keeps it (SOCK_BINDADDR_LOCK).
    pub address_locked: bool,
    /// The port was bound, not chosen: disconnecting keeps it (SOCK_BINDPORT_LOCK).
    pub port_locked: bool,
    /// The send buffer was set and grows no more by itself (SOCK_SNDBUF_LOCK).
    pub send_buffer_locked: bool,
    /// The receive buffer was set and grows no more by itself (SOCK_RCVBUF_LOCK).
    pub receive_buffer_locked: bool,
    /// The state as in `enum tcp_state`: 1 is connected, 7 is not (`sk_state`).
    pub state: u8,
    /// The peer, 0.0.0.0 or :: when not connected (`inet_daddr`, `sk_v6_daddr`).
    pub peer_address: IpAddr,
    /// The peer's port, 0 when not connected (`inet_dport`).
    pub peer_port: u16,
    /// The address datagrams are received for (`inet_rcv_saddr`, `sk_v6_rcv_saddr`).
    pub bound_address: IpAddr,
    /// The address datagrams are sent from (`inet_saddr`, `ipv6_pinfo.saddr`).
    pub source_address: IpAddr,
    /// The own port, 0 when there is none (`inet_num`). A raw socket has its protocol here.
    pub bound_port: u16,
    /// The TTL that was set; None: none was, the sysctl counts (`uc_ttl`).
    pub unicast_ttl: Option<u8>,
    /// The source of multicast datagrams, of IP_MULTICAST_IF (`mc_addr`).
    pub multicast_address: Ipv4Addr,
    /// The interface of multicast datagrams, of IP_MULTICAST_IF, 0 for none (`mc_index`).
    pub multicast_index: u32,
    /// The groups joined, oldest first: of IPv4 (`mc_list`), of IPv6 (`ipv6_mc_list`), and the anycast
    /// addresses (`ipv6_ac_list`).
    pub memberships: Vec<Joined>,
    /// SO_BUSY_POLL_BUDGET, in datagrams; 0: the default (`sk_busy_poll_budget`).
    pub busy_poll_budget: u16,
    /// SO_TXTIME was used; it cannot be undone, and reading it back tells not all (SOCK_TXTIME).
    pub txtime: bool,
    /// The datagrams that wait for the owner: `sk_receive_queue` and UDP's `reader_queue`.
    pub receive_queue: u32,
    /// The pieces of what is being put together to be sent (`sk_write_queue`): UDP has `pending` too.
    pub write_queue: u32,
    /// Whether UDPLITE_SEND_CSCOV and UDPLITE_RECV_CSCOV were set, if only to 0 (`udp_flags`, since 6.7).
    pub coverage: Option<[bool; 2]>,
    /// The entries of the error queue (`sk_error_queue`).
    pub error_queue: u32,
    /// A datagram is being put together, by UDP_CORK or MSG_MORE (`udp_sock.pending`).
    pub pending: bool,
    /// The payload bytes of that datagram so far, its UDP header counted too (`udp_sock.len`).
    pub pending_bytes: u32,
    /// The error that the next call will report, as `errno`; reading SO_ERROR would clear it
    /// (`sk_err`).
    pub pending_error: i32,
    /// 1: receiving was shut down, 2: sending, 3: both (`sk_shutdown`).
    pub shutdown: u8,
    /// IPsec policies of the socket itself, in and out (`sk_policy`).
    pub policies: [bool; 2],
    /// The place in its SO_REUSEPORT group, where there is one (`sk_reuseport_cb->socks`).
    pub reuseport_index: Option<u32>,
    /// A program chooses within the SO_REUSEPORT group (`sk_reuseport_cb->prog`).
    pub reuseport_program: bool,
    /// The number the next time stamp with SOF_TIMESTAMPING_OPT_ID gets (`sk_tskey`).
    pub timestamp_key: u32,
    /// The number the next MSG_ZEROCOPY send gets (`sk_zckey`).
    pub zerocopy_key: u32,
    /// BPF programs keep something with it (`sk_bpf_storage`).
    pub storage: bool,
    /// UDP_ENCAP, 0 for none (`encap_type`).
    pub encapsulated: u8,
    /// The memory of datagrams on their way out: corked, or still with a device
    /// (`sk_wmem_alloc`).
    pub sent: u32,
    /// The datagrams dropped so far (`sk_drops`, or the counters that newer kernels have).
    pub drops: u64,
    /// What an AF_INET6 socket has besides; None: it is of another family, or was not read.
    pub ipv6: Option<Hidden6>,
}

/// The reader of this process. It can be used from several threads at once.
#[derive(Debug)]
pub struct Reader {
    program: OwnedFd,
    pub(super) layout: &'static Layout,
    pub(super) window: usize,
    /// For the queues: loaded when the first one is not empty.
    pub(super) walk: OnceLock<Result<Walk, Unavailable>>,
    /// The same, when the first datagram is long: small ones do without.
    pub(super) gatherer: OnceLock<Result<Gatherer, Unavailable>>,
    /// Whether the program can pass over memberships listed before.
    skips: bool,
}

/// The reader of this process: built at the first call.
///
/// It needs Linux 5.14 with `CONFIG_DEBUG_INFO_BTF`, and CAP_BPF with CAP_PERFMON in the initial
/// user namespace; [`Unavailable`] says what is missing. Since 6.2 the way from the descriptor to
/// the socket is under RCU, since 6.4 a socket may have more than 32 memberships.
pub fn reader() -> Result<&'static Reader, &'static Unavailable> {
    static READER: OnceLock<Result<Reader, Unavailable>> = OnceLock::new();
    READER.get_or_init(Reader::build).as_ref()
}

impl Reader {
    fn build() -> Result<Self, Unavailable> {
        let layout = layout()?;
        let window = window(layout)?;
        match Self::with(layout, window, &layout.functions) {
            Err(error) if !error.is_privilege() => {
                Self::with(layout, window, &Functions::default()).map_err(|_| error)
            }
            result => result,
        }
    }

    fn with(
        layout: &'static Layout,
        window: usize,
        functions: &Functions,
    ) -> Result<Self, Unavailable> {
        let code = program(layout, window, functions)?;
        Ok(Self {
            program: load(bpf::Kind::Syscall, "sockcr_read", &code)?,
            layout,
            window,
            walk: OnceLock::new(),
            gatherer: OnceLock::new(),
            skips: functions.count.is_some(),
        })
    }

    /// Reads what the kernel knows of the socket behind `socket`: one bpf(2) call, and a few more
    /// when it is in a SO_REUSEPORT group or has more than 32 memberships.
    ///
    /// `ENOTSOCK`: the descriptor is no socket. Nothing of the socket is changed or consumed.
    pub fn read(&self, socket: BorrowedFd<'_>) -> io::Result<Hidden> {
        let descriptor = socket.as_raw_fd().unsigned_abs();
        let page = self.page(descriptor, 0)?;
        let decoder = Decoder {
            layout: self.layout,
            raw: page.raw(self.window)?,
            address: page.address()?,
        };
        let mut hidden = decoder.hidden()?;
        hidden.memberships = self.memberships(descriptor, &page)?;
        if let Some(part) = decoder.ipv6()? {
            part.fill(&mut hidden)?;
            if part.has_memberships()? {
                hidden.memberships.extend(self.ipv6_memberships(socket)?);
            }
        }
        self.drops(&decoder, &mut hidden)?;
        self.reuseport(&decoder, &mut hidden)?;
        Ok(hidden)
    }

    /// How many hold the `struct sock` (`sk_refcnt`), the least of a few looks: who looks a socket up
    /// holds it for a moment. `None`: this kernel does not tell.
    pub(crate) fn references(&self, socket: BorrowedFd<'_>) -> io::Result<Option<u64>> {
        let mut least = None;
        for _ in 0..LOOKS {
            let page = self.page(socket.as_raw_fd().unsigned_abs(), 0)?;
            let Some(field) = self.layout.sock.references else {
                return Ok(None);
            };
            let now = field.value(page.raw(self.window)?).ok_or_else(damaged)?;
            least = Some(least.map_or(now, |least: u64| least.min(now)));
        }
        Ok(least)
    }

    /// Runs the program from a descriptor, listing memberships after the first `skip`.
    pub(super) fn page(&self, descriptor: u32, skip: u32) -> io::Result<Page> {
        let mut page = Page::new(self.window);
        page.set(context::MODE, MODE_SOCKET)?;
        page.set(context::DESCRIPTOR, descriptor)?;
        page.set(context::SKIP, skip)?;
        page.run(self.program.as_fd())?;
        Ok(page)
    }

    /// Copies kernel memory. `EFAULT`: nothing is mapped there.
    pub(super) fn bytes(&self, address: u64, size: usize) -> io::Result<Vec<u8>> {
        let mut copy = Vec::with_capacity(size);
        while copy.len() < size {
            let part = (size - copy.len()).min(self.window);
            let from = address.wrapping_add(number(copy.len())?);
            let mut page = Page::new(self.window);
            page.set(context::MODE, MODE_BYTES)?;
            page.set(context::SIZE, number(part)?)?;
            page.set_long(context::ADDRESS, from)?;
            page.run(self.program.as_fd())?;
            copy.extend_from_slice(page.slice(context::WINDOW, part)?);
        }
        Ok(copy)
    }

    /// All memberships, oldest first. `first` is the page that is there already.
    fn memberships(&self, descriptor: u32, first: &Page) -> io::Result<Vec<Joined>> {
        let mut joined = first.joined(self.window)?;
        if first.has_more()? {
            joined = self.long_list(descriptor)?;
        }
        joined.reverse();
        Ok(joined)
    }

    /// A list that fills more than one page, newest first. An owner that joins or leaves
    /// meanwhile shows in the overlap of the pages; then the list is read anew.
    fn long_list(&self, descriptor: u32) -> io::Result<Vec<Joined>> {
        if !self.skips {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel shows no more than 32 multicast memberships of a socket",
            ));
        }
        for _ in 0..LIST_ATTEMPTS {
            if let Some(joined) = self.try_long_list(descriptor)? {
                return Ok(joined);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "the multicast memberships of the socket changed while they were read",
        ))
    }

    fn try_long_list(&self, descriptor: u32) -> io::Result<Option<Vec<Joined>>> {
        let mut joined: Vec<Joined> = Vec::new();
        loop {
            let overlap = joined.pop();
            let page = self.page(descriptor, number(joined.len())?)?;
            let part = page.joined(self.window)?;
            if overlap.is_some() && part.first() != overlap.as_ref() {
                return Ok(None);
            }
            joined.extend(part);
            if !page.has_more()? {
                return Ok(Some(joined));
            }
        }
    }

    /// `sk_drops_read()`: newer kernels keep the drops of some sockets in counters that
    /// `sk_drop_counters` points to, which are a part of the same socket.
    fn drops(&self, decoder: &Decoder<'_>, hidden: &mut Hidden) -> io::Result<()> {
        let counters = decoder.optional(self.layout.sock.drop_counters)?;
        let Some(layout) = self.layout.drop_counters.as_ref().filter(|_| counters != 0) else {
            return Ok(());
        };
        let inside = usize::try_from(counters.wrapping_sub(decoder.address)).ok();
        let inside = inside.and_then(|at| decoder.raw.get(at..)?.get(..layout.size));
        let part = |field: Field, raw| field.value(raw).ok_or_else(damaged);
        let sum = |raw| Ok::<u64, io::Error>(part(layout.first, raw)? + part(layout.second, raw)?);
        hidden.drops = match inside {
            Some(raw) => sum(raw)?,
            None => sum(&self.bytes(counters, layout.size)?)?,
        };
        Ok(())
    }

    /// The SO_REUSEPORT group. An index counts only if the sock itself stands there, so that a
    /// group replaced meanwhile is never believed.
    fn reuseport(&self, decoder: &Decoder<'_>, hidden: &mut Hidden) -> io::Result<()> {
        let group = decoder.sock(self.layout.sock.reuseport)?;
        if group == 0 {
            return Ok(());
        }
        let layout = &self.layout.reuseport;
        let head = self.bytes(group, layout.members)?;
        let field = |field: Field| field.value(&head).ok_or_else(damaged);
        let count = usize::from(field(layout.count)? as u16);
        let members = self.bytes(group.wrapping_add(number(layout.members)?), count * POINTER)?;
        let own = decoder.address.to_ne_bytes();
        let index = members
            .chunks_exact(POINTER)
            .position(|member| member == own);
        hidden.reuseport_index = index.map(number).transpose()?;
        hidden.reuseport_program = index.is_some() && field(layout.program)? != 0;
        Ok(())
    }
}

/// The context of one run.
pub(super) struct Page(Vec<u8>);

impl Page {
    fn new(window: usize) -> Self {
        Self(vec![0; list(window) + MEMBERSHIPS * MEMBERSHIP_SIZE])
    }

    fn run(&mut self, program: BorrowedFd<'_>) -> io::Result<()> {
        let result = bpf::run(program, &mut self.0)?;
        match c_int::try_from(result) {
            Ok(0) => Ok(()),
            Ok(code) => Err(io::Error::from_raw_os_error(code)),
            Err(_) => Err(damaged()),
        }
    }

    fn set(&mut self, at: usize, value: u32) -> io::Result<()> {
        self.put(at, &value.to_ne_bytes())
    }

    fn set_long(&mut self, at: usize, value: u64) -> io::Result<()> {
        self.put(at, &value.to_ne_bytes())
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        let place = self.0.get_mut(at..at + bytes.len()).ok_or_else(damaged)?;
        place.copy_from_slice(bytes);
        Ok(())
    }

    fn slice(&self, at: usize, size: usize) -> io::Result<&[u8]> {
        self.0.get(at..at + size).ok_or_else(damaged)
    }

    fn word(&self, at: usize) -> io::Result<u32> {
        let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk());
        bytes
            .map(|bytes| u32::from_ne_bytes(*bytes))
            .ok_or_else(damaged)
    }

    fn long(&self, at: usize) -> io::Result<u64> {
        let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk());
        bytes
            .map(|bytes| u64::from_ne_bytes(*bytes))
            .ok_or_else(damaged)
    }

    pub(super) fn address(&self) -> io::Result<u64> {
        self.long(context::ADDRESS)
    }

    /// The copy of the sock, as long as this kind of socket is.
    pub(super) fn raw(&self, window: usize) -> io::Result<&[u8]> {
        let size = self.word(context::SIZE)? as usize;
        self.slice(context::WINDOW, size.min(window))
    }

    fn has_more(&self) -> io::Result<bool> {
        Ok(self.long(context::MORE)? != 0)
    }

    /// The memberships on this page, newest first.
    fn joined(&self, window: usize) -> io::Result<Vec<Joined>> {
        let count = usize::try_from(self.long(context::COUNT)?).map_err(|_| damaged())?;
        (0..count.min(MEMBERSHIPS))
            .map(|index| {
                let at = list(window) + index * MEMBERSHIP_SIZE;
                Ok(Joined {
                    group: address(self.word(at)?).into(),
                    anycast: false,
                    address: address(self.word(at + 4)?),
                    interface: self.word(at + 8)?,
                })
            })
            .collect()
    }
}

/// An address that the kernel keeps in network order.
pub(super) fn address(raw: u32) -> Ipv4Addr {
    Ipv4Addr::from(raw.to_ne_bytes())
}

pub(super) fn number<T: TryFrom<usize>>(value: usize) -> io::Result<T> {
    T::try_from(value).map_err(|_| damaged())
}

pub(super) fn damaged() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the kernel's answer does not fit its own description",
    )
}

/// Gives meaning to the copy of a sock.
struct Decoder<'a> {
    layout: &'static Layout,
    raw: &'a [u8],
    address: u64,
}

impl Decoder<'_> {
    fn hidden(&self) -> io::Result<Hidden> {
        let mut hidden = self.common()?;
        if hidden.extent != Extent::Sock {
            self.inet(&mut hidden)?;
        }
        if hidden.extent == Extent::Udp {
            self.udp(&mut hidden)?;
        }
        Ok(hidden)
    }

    /// A member that every socket has.
    fn sock(&self, field: Field) -> io::Result<u64> {
        field.value(self.raw).ok_or_else(damaged)
    }

    /// A member that some kernels have; 0 where there is none.
    fn optional(&self, field: Option<Field>) -> io::Result<u64> {
        field.map_or(Ok(0), |field| self.sock(field))
    }

    fn ip(&self, field: Field) -> io::Result<Ipv4Addr> {
        Ok(address(self.sock(field)? as u32))
    }

    /// As the program has chosen the size.
    fn extent(&self) -> io::Result<Extent> {
        let sock = &self.layout.sock;
        let is_udp = self.sock(sock.kind)? == DATAGRAM
            && matches!(self.sock(sock.protocol)?, UDP | UDP_LITE);
        Ok(match self.raw.len() >= self.layout.inet.size {
            true if is_udp => Extent::Udp,
            true => Extent::Inet,
            false => Extent::Sock,
        })
    }

    /// Where the IPv6 part of the socket lies in the copy, which has it behind all else.
    fn ipv6(&self) -> io::Result<Option<Ipv6Part<'_>>> {
        match &self.layout.inet6 {
            Some(layout) if self.sock(self.layout.sock.family)? == INET6 => {
                layout.part(self.raw, self.address)
            }
            _ => Ok(None),
        }
    }

    fn common(&self) -> io::Result<Hidden> {
        let sock = &self.layout.sock;
        let locks = self.sock(sock.locks)?;
        let flags = self.sock(sock.flags)?;
        Ok(Hidden {
            extent: self.extent()?,
            family: self.sock(sock.family)? as u16,
            protocol: self.sock(sock.protocol)? as u16,
            send_buffer_locked: locks & 1 != 0,
            receive_buffer_locked: locks & 2 != 0,
            address_locked: locks & 4 != 0,
            port_locked: locks & 8 != 0,
            state: self.sock(sock.state)? as u8,
            peer_address: Ipv4Addr::UNSPECIFIED.into(),
            peer_port: 0,
            bound_address: Ipv4Addr::UNSPECIFIED.into(),
            source_address: Ipv4Addr::UNSPECIFIED.into(),
            bound_port: 0,
            unicast_ttl: None,
            multicast_address: Ipv4Addr::UNSPECIFIED,
            multicast_index: 0,
            memberships: Vec::new(),
            busy_poll_budget: self.optional(sock.busy_poll_budget)? as u16,
            txtime: sock.txtime.is_some_and(|bit| flags >> (bit & 63) & 1 != 0),
            receive_queue: self.sock(sock.receive_queue)? as u32,
            write_queue: self.sock(sock.write_queue)? as u32,
            coverage: None,
            error_queue: self.sock(sock.error_queue)? as u32,
            pending: false,
            pending_bytes: 0,
            pending_error: self.sock(sock.error)? as i32,
            shutdown: self.sock(sock.shutdown)? as u8,
            policies: self.policies()?,
            reuseport_index: None,
            reuseport_program: false,
            timestamp_key: self.optional(sock.timestamp_key)? as u32,
            zerocopy_key: self.optional(sock.zerocopy_key)? as u32,
            storage: self.optional(sock.storage)? != 0,
            encapsulated: 0,
            sent: (self.sock(sock.sent)? as u32).saturating_sub(1),
            drops: self.sock(sock.drops)? & u64::from(u32::MAX),
            ipv6: None,
        })
    }

    fn inet(&self, hidden: &mut Hidden) -> io::Result<()> {
        let (sock, inet) = (&self.layout.sock, &self.layout.inet);
        hidden.peer_address = self.ip(sock.peer_address)?.into();
        hidden.peer_port = u16::from_be(self.sock(sock.peer_port)? as u16);
        hidden.bound_address = self.ip(sock.bound_address)?.into();
        hidden.source_address = self.ip(inet.source_address)?.into();
        hidden.bound_port = self.sock(sock.port)? as u16;
        hidden.unicast_ttl = u8::try_from(self.sock(inet.unicast_ttl)? as i16).ok();
        hidden.multicast_address = self.ip(inet.multicast_address)?;
        hidden.multicast_index = self.sock(inet.multicast_index)? as u32;
        Ok(())
    }

    fn udp(&self, hidden: &mut Hidden) -> io::Result<()> {
        let udp = &self.layout.udp;
        hidden.receive_queue += self.optional(udp.reader_queue)? as u32;
        hidden.pending = self.sock(udp.pending)? != 0;
        hidden.pending_bytes = self.sock(udp.length)? as u32;
        hidden.encapsulated = self.sock(udp.encapsulation)? as u8;
        if let Some((flags, bits)) = udp.coverage {
            let flags = self.sock(flags)?;
            hidden.coverage = Some(bits.map(|bit| flags >> (bit & 63) & 1 != 0));
        }
        Ok(())
    }

    fn policies(&self) -> io::Result<[bool; 2]> {
        let Some(field) = self.layout.sock.policies else {
            return Ok([false; 2]);
        };
        let policy = |index| {
            let field = Field {
                offset: field.offset + index * POINTER,
                size: POINTER,
                bits: None,
            };
            Ok::<bool, io::Error>(self.sock(field)? != 0)
        };
        Ok([policy(0)?, policy(1)?])
    }
}

#[cfg(test)]
mod tests {
    use super::super::program::PIECE;
    use super::*;

    /// Kernels before 6.2 have none of the functions that the program calls.
    #[test]
    fn without_kernel_functions_the_same_is_read() {
        let reader = match reader() {
            Ok(reader) => reader,
            Err(why) => return println!("skipped: {why}"),
        };
        let plain = Reader::with(reader.layout, reader.window, &Functions::default()).unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (group, interface) = (Ipv4Addr::new(239, 1, 2, 3), Ipv4Addr::LOCALHOST);
        socket.join_multicast_v4(&group, &interface).unwrap();
        let hidden = plain.read(socket.as_fd()).unwrap();
        assert_eq!(hidden.memberships.len(), 1);
        assert_eq!(hidden, reader.read(socket.as_fd()).unwrap());
    }

    #[test]
    fn bytes_of_any_length_and_no_fault_on_a_bad_address() {
        let reader = match reader() {
            Ok(reader) => reader,
            Err(why) => return println!("skipped: {why}"),
        };
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let page = reader.page(
            number(usize::try_from(socket.as_raw_fd()).unwrap()).unwrap(),
            0,
        );
        let page = page.unwrap();
        let raw = page.raw(reader.window).unwrap();
        let base = reader.layout.sock.family.offset;
        for length in [0, 1, 2, 7, PIECE - 1, PIECE, PIECE + 1, raw.len() - base] {
            let copy = reader
                .bytes(page.address().unwrap() + base as u64, length)
                .unwrap();
            assert_eq!(copy.len(), length);
            assert_eq!(copy.get(..2), raw[base..][..length].get(..2));
        }
        let error = reader.bytes(8, 8).unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(rustix::io::Errno::FAULT.raw_os_error())
        );
    }
}
