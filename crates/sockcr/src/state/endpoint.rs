//! Where a socket is bound and connected to, and which of it stays when it disconnects.
//!
//! The kernel sets the address and port locks as a side effect of how a socket came to its
//! address; so restore goes the same way again:
//!
//! | address lock | port lock | way |
//! |---|---|---|
//! | yes | yes | bind(address, port) |
//! | no | yes | bind(any, port) |
//! | yes | no | IP_LOCAL_PORT_RANGE to just this port, bind(address, 0) |
//! | yes | no port | IP_BIND_ADDRESS_NO_PORT, bind(address, 0) |
//! | no | no | IP_LOCAL_PORT_RANGE to just this port, a connect() that fails |
//!
//! and then connect(peer). Before all of them a former peer is connected to and left.
//!
//! An identifier of a ping socket comes from no range: where it is not locked, the
//! kernel is asked for the next one until it is the turn of this one (`ping_get_port`). A raw socket has no
//! port, and nothing of it is ever locked (`raw_bind`, `rawv6_bind`): bind(address, 0).
//!
//! The address of an IPv6 socket is V6 always, v4-mapped where it speaks IPv4;
//! no scope travels with it: the device of a link-local address is that of SO_BINDTODEVICE, which
//! bind(2) and connect(2) to such an address set (`__inet6_bind`, `__ip6_datagram_connect`).

use crate::kernel::Hidden;
use crate::netns;
use crate::option::{self, Options, Value};
use crate::protocol::Protocol;
use crate::report::Report;
use crate::state::interfaces::Interfaces;
use crate::state::meanwhile::{self, Meanwhile};
use crate::target::parse_address;
use rustix::io::Errno;
use rustix::net::{SocketAddrAny, SocketAddrUnix};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::BorrowedFd;

const SOL_SOCKET: i32 = 1;
const SO_REUSEADDR: i32 = 2;
const SO_REUSEPORT: i32 = 15;
const SO_BINDTOIFINDEX: i32 = 62;
const IPPROTO_IP: i32 = 0;
const IPPROTO_IPV6: i32 = 41;
const IPV6_V6ONLY: i32 = 26;
const IPV6_FREEBIND: i32 = 78;
const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
const IP_MULTICAST_IF: i32 = 32;
const IP_UNICAST_IF: i32 = 50;
const IP_LOCAL_PORT_RANGE: i32 = 51;
const IPV6_FLOWINFO_SEND: i32 = 33;
const LOOPBACK_INDEX: u32 = 1;
/// `TCP_ESTABLISHED`: connected.
pub(crate) const ESTABLISHED: u8 = 1;

/// The addresses of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// As getsockname(2) tells it; `0.0.0.0:0` or `[::]:0` when unbound. A raw socket has port 0.
    pub local: SocketAddr,
    /// As getpeername(2) tells it, if connected; its port can be 0.
    pub peer: Option<SocketAddr>,
    /// `SOCK_BINDADDR_LOCK`: disconnecting keeps the local address.
    pub address_locked: bool,
    /// `SOCK_BINDPORT_LOCK`: disconnecting keeps the local port.
    pub port_locked: bool,
    /// `inet_saddr`, where datagrams of a connected socket come from, when it is not `local`.
    pub source: Option<IpAddr>,
    /// The former peer of an AF_INET6 socket: since it was disconnected it hears nobody else by IPv6
    /// (`__udp_disconnect` leaves `sk_v6_daddr`).
    pub heard: Option<IpAddr>,
}

impl Endpoint {
    /// That of a new socket.
    pub fn unbound(protocol: &Protocol) -> Endpoint {
        Endpoint {
            local: SocketAddr::new(protocol.any(), 0),
            peer: None,
            address_locked: false,
            port_locked: false,
            source: None,
            heard: None,
        }
    }

    /// Reads the addresses, and the locks by BPF or by the likeliest guess.
    pub(crate) fn dump(
        fd: BorrowedFd<'_>,
        protocol: &Protocol,
        hidden: Option<&Hidden>,
        report: &mut Report,
    ) -> io::Result<Endpoint> {
        if protocol.is_raw() && own_number(fd)? == 0 {
            // `__udp_disconnect` takes it out of the table, and nothing puts it back.
            report.lose(
                "disconnected",
                "the kernel gives it nothing to receive any more",
            );
        }
        if let Some(hidden) = hidden {
            return Ok(Endpoint::from_kernel(hidden, protocol));
        }
        let peer = match rustix::net::getpeername(fd) {
            Ok(peer) => peer.map(plain).transpose()?,
            Err(Errno::NOTCONN) => None,
            Err(error) => return Err(error.into()),
        };
        let mut endpoint = Endpoint {
            local: local(fd, protocol)?,
            peer,
            ..Endpoint::unbound(protocol)
        };
        match protocol.is_raw() {
            true if peer.is_none() => report.assume("peer none", "with port 0 only BPF sees one"),
            true => {}
            false => endpoint.guess(fd, protocol, report),
        }
        Ok(endpoint)
    }

    /// As `inet_getname` tells it, and more: it answers ENOTCONN for a socket connected to port 0.
    fn from_kernel(hidden: &Hidden, protocol: &Protocol) -> Endpoint {
        let connected = hidden.state == ESTABLISHED;
        let address = match hidden.bound_address.is_unspecified() {
            true => hidden.source_address,
            false => hidden.bound_address,
        };
        // `ping_lookup` asks for no peer, and a raw socket that left one hears nobody.
        let left = Some(hidden.peer_address).filter(|_| !connected && protocol.has_ports());
        Endpoint {
            local: SocketAddr::new(
                address,
                match protocol.is_raw() {
                    true => 0,
                    false => hidden.bound_port,
                },
            ),
            peer: connected.then(|| peer_of(hidden)),
            address_locked: hidden.address_locked,
            port_locked: hidden.port_locked,
            source: Some(hidden.source_address).filter(|source| connected && *source != address),
            heard: left.filter(|peer| !peer.is_unspecified()),
        }
    }

    fn guess(&mut self, fd: BorrowedFd<'_>, protocol: &Protocol, report: &mut Report) {
        if self.local.port() == 0 && self.local.ip().is_unspecified() {
            return;
        }
        let ephemeral = protocol.is_ping() || ephemeral_ports(fd).contains(&self.local.port());
        self.port_locked = self.local.port() != 0 && !ephemeral;
        // Without a peer, only bind(2) can have set an address.
        self.address_locked = self.peer.is_none() && !self.local.ip().is_unspecified();
        let mut what = Vec::new();
        if ephemeral {
            what.push("port chosen by the kernel");
        }
        if self.peer.is_some() {
            what.push("address chosen by the route");
        }
        if !what.is_empty() {
            report.assume(what.join(", "), "only BPF sees whether bind(2) chose it");
        }
        if self.peer.is_none() && self.local.is_ipv6() {
            let why = "only BPF sees whom a socket hears alone that was connected once";
            report.assume("no former peer", why);
        }
    }

    /// Gives it another local address. Without a peer only bind(2) can have given it one, and locked
    /// it: nothing else can be restored. On a raw socket there is no lock.
    pub(crate) fn move_to(&mut self, address: IpAddr, protocol: &Protocol) {
        if self.peer.is_none() && self.local.ip() != address && !protocol.is_raw() {
            self.address_locked = !address.is_unspecified();
        }
        self.local.set_ip(address);
    }

    /// Takes the peer away, and the address that only connect(2) had given, as the kernel does. Of a raw
    /// socket nobody knows whether it did.
    fn disconnect(&mut self, protocol: &Protocol) {
        self.peer = None;
        (self.source, self.heard) = (None, None);
        if !self.address_locked && !protocol.is_raw() {
            self.local.set_ip(any(self.local));
        }
    }

    /// Changes the local address or the peer as a person says it; what is given anew is locked, as
    /// bind(2) does. Answers the device that a link-local address names.
    pub(crate) fn edit(
        &mut self,
        name: &str,
        text: &str,
        protocol: &Protocol,
    ) -> Result<Option<String>, String> {
        let mut device = None;
        let address = match text {
            "none" => None,
            text => {
                let form = match self.local.is_ipv6() {
                    true => "[ADDR]:PORT",
                    false => "ADDR:PORT",
                };
                let wrong = || format!("{text:?} is neither {form} nor none");
                let (address, named) = parse_address(text).ok_or_else(wrong)?;
                device = named;
                let fits = address.is_ipv6() == self.local.is_ipv6();
                Some(address).filter(|_| fits).ok_or_else(wrong).map(Some)?
            }
        };
        match (name, address) {
            ("peer", Some(peer)) => (self.peer, self.heard) = (Some(peer), None),
            ("peer", None) => self.disconnect(protocol),
            (_, None) if self.peer.is_some() => {
                return Err("a connected socket has a local address: peer=none first".into());
            }
            (_, None) => {
                self.local = SocketAddr::new(any(self.local), 0);
                (self.address_locked, self.port_locked) = (false, false);
            }
            (_, Some(local)) if protocol.is_raw() && local.port() != 0 => {
                return Err("a raw socket has no port: ADDR:0".into());
            }
            (_, Some(local)) => {
                if self.local.port() != local.port() {
                    self.port_locked = local.port() != 0;
                }
                self.move_to(local.ip(), protocol);
                self.local.set_port(local.port());
            }
        }
        Ok(device)
    }

    /// Binds and connects a new socket.
    pub(crate) fn restore(
        &self,
        fd: BorrowedFd<'_>,
        protocol: &Protocol,
        options: &Options,
        interfaces: &Interfaces,
    ) -> Result<(), Failure> {
        if let Some(heard) = self.heard.filter(|_| protocol.has_ports()) {
            let directions = Directions::to(heard, fd, options, interfaces);
            directions.leave(heard)?;
        }
        let mut place = *self;
        // An address that it was bound to and one that connect(2) gave it are the same to it.
        let bindable = can_be_bound(self.local.ip(), self.peer);
        place.address_locked |= protocol.is_raw() && bindable;
        place.bind(fd, protocol, options)?;
        let Some(peer) = self.peer else {
            return match self.port_locked {
                true => Ok(()),
                false => self.check(fd, protocol),
            };
        };
        let directions = Directions::to(peer.ip(), fd, options, interfaces);
        if let Err(failure) = place.connect(fd, peer, &directions) {
            let detour = (directions.any() || needs_device(peer.ip()))
                .then(|| place.connect_undirected(fd, peer, &directions));
            detour.and_then(Result::ok).ok_or(failure)?;
        }
        self.check(fd, protocol)
    }

    fn connect(
        &self,
        fd: BorrowedFd<'_>,
        peer: SocketAddr,
        directions: &Directions<'_>,
    ) -> Result<(), Failure> {
        if !self.address_locked || self.source.is_some() {
            self.choose_source(fd)?;
            directions
                .put_multicast_back()
                .map_err(|error| Failure::at("IP_MULTICAST_IF", error))?;
        }
        let before = bound_device(fd);
        connect(fd, peer)?;
        // That of IPV6_MULTICAST_IF stays the device of the socket (`__ip6_datagram_connect`).
        match bound_device(fd) == before {
            true => Ok(()),
            false => directions
                .again("SO_BINDTODEVICE", &Value::Text(String::new()))
                .map_err(|error| Failure::at("SO_BINDTODEVICE", error)),
        }
    }

    /// Connects a socket whose owner gave it a device only after it was connected, to a peer that
    /// is not reached by that device from its address: by way of the loopback device. The filter
    /// of a socket that is not connected yet lets nothing in meanwhile (`restore.rs`).
    fn connect_undirected(
        &self,
        fd: BorrowedFd<'_>,
        peer: SocketAddr,
        directions: &Directions<'_>,
    ) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::at("connect without a device", error);
        directions.to_loopback().map_err(failed)?;
        if !self.address_locked || self.source.is_some() {
            self.choose_source(fd)?;
        }
        directions.connect(peer)?;
        directions.put_back().map_err(failed)
    }

    fn bind(
        &self,
        fd: BorrowedFd<'_>,
        protocol: &Protocol,
        options: &Options,
    ) -> Result<(), Failure> {
        let address = match self.address_locked || self.peer.is_none() {
            true => self.local.ip(),
            false => any(self.local),
        };
        let port = self.local.port();
        let bind = |port: u16| {
            let to = SocketAddr::new(address, port);
            let mut bound = rustix::net::bind(fd, &to);
            let mut place = to;
            if let (Err(Errno::INVAL), SocketAddr::V6(to)) = (bound, &mut place) {
                // A ping socket wants the device told that it has already (`ping_check_bind_addr`).
                to.set_scope_id(bound_device(fd));
                bound = rustix::net::bind(fd, to);
            }
            let bound = match bound {
                Err(Errno::ADDRNOTAVAIL) if address.is_ipv6() => bind_elsewhere(fd, place),
                Err(Errno::INVAL) if needs_device(address) && bound_device(fd) == 0 => {
                    bind_without_device(fd, to)
                }
                done => done.map_err(io::Error::from),
            };
            bound.map_err(|error| Failure::at(format!("bind to {}", self.local), error))
        };
        let range = || with_option(fd, IP_LOCAL_PORT_RANGE, only(port), || autobind(fd, port));
        if let Some(only_ipv6) = changed_v6only(address, options)
            && !self.port_locked
            && protocol.has_ports()
        {
            set_v6only(fd, false)?;
            with_option(fd, IP_BIND_ADDRESS_NO_PORT, 1, || bind(0))?;
            set_v6only(fd, only_ipv6)?;
            return if port == 0 { Ok(()) } else { range() };
        }
        match (self.address_locked, self.port_locked, port) {
            (true, false, 0) if protocol.is_raw() => bind(0),
            (true, false, port) if protocol.is_ping() => take_identifier(fd, port, || bind(0)),
            (false, false, 1..) if protocol.is_ping() => {
                take_identifier(fd, port, || autobind(fd, port))
            }
            (_, true, port) => bind(port),
            (true, false, 0) => with_option(fd, IP_BIND_ADDRESS_NO_PORT, 1, || bind(0)),
            (true, false, port) => with_option(fd, IP_LOCAL_PORT_RANGE, only(port), || bind(0)),
            (false, false, 0) => Ok(()),
            (false, false, _) => range(),
        }
    }

    /// Gives the connected socket its source address without locking it, whatever the route would
    /// choose: a first connect takes it, and a second one keeps it.
    fn choose_source(&self, fd: BorrowedFd<'_>) -> Result<(), Failure> {
        let source = self.source.unwrap_or(self.local.ip());
        if source.to_canonical().is_unspecified() {
            return Ok(());
        }
        match (source, source.to_canonical()) {
            (_, IpAddr::V4(address)) => take_ipv4(fd, address, source.is_ipv6()),
            (_, IpAddr::V6(address)) => take_ipv6(fd, address),
        }
        .map_err(|error| Failure::at(format!("take source address {source}"), error))
    }

    /// The kernel chooses in silence when it cannot do as asked.
    fn check(&self, fd: BorrowedFd<'_>, protocol: &Protocol) -> Result<(), Failure> {
        let got = local(fd, protocol).map_err(|e| Failure::at("getsockname", e))?;
        if got == self.local {
            return Ok(());
        }
        let why = match got.port() == self.local.port() {
            true => format!("the kernel gave {got} instead"),
            false => format!(
                "port {} cannot be taken without locking it: it is not in \
                 net.ipv4.ip_local_port_range",
                self.local.port()
            ),
        };
        let step = format!("bind to {}", self.local);
        Err(Failure::at(step, io::Error::other(why)))
    }
}

/// Binds a socket that has a device to an address of another one, which its owner can only have given
/// it before the device: IPV6_FREEBIND does not ask where the address is (`__inet6_bind`), so it is asked
/// here whether it is anywhere.
fn bind_elsewhere(fd: BorrowedFd<'_>, to: SocketAddr) -> io::Result<()> {
    if bound_device(fd) == 0 {
        return Err(Errno::ADDRNOTAVAIL.into());
    }
    is_somewhere(fd, to.ip())?;
    bind_freely(fd, to)
}

/// Binds to an address of one device a socket whose device its owner has taken away since: at the
/// loopback device meanwhile, by which it hears no more than afterwards.
fn bind_without_device(fd: BorrowedFd<'_>, to: SocketAddr) -> io::Result<()> {
    is_somewhere(fd, to.ip())?;
    bind_freely(fd, scoped(to))?;
    meanwhile::set(fd, SOL_SOCKET, SO_BINDTOIFINDEX, 0)
}

fn is_somewhere(fd: BorrowedFd<'_>, address: IpAddr) -> io::Result<()> {
    match address {
        IpAddr::V6(address) if address.is_multicast() => Ok(()),
        IpAddr::V6(address) if needs_device(address.into()) => device_of(fd, address).map(drop),
        _ => netns::within(fd, || {
            UdpSocket::bind(SocketAddr::new(address, 0)).map(drop)
        }),
    }
}

fn bind_freely(fd: BorrowedFd<'_>, to: SocketAddr) -> io::Result<()> {
    let mut meanwhile = Meanwhile::new(fd);
    meanwhile.set(IPPROTO_IPV6, IPV6_FREEBIND, 1)?;
    let bound = rustix::net::bind(fd, &to).map_err(io::Error::from);
    bound.and(meanwhile.put_back())
}

/// To a multicast peer, `__ip4_datagram_connect` takes the source from IP_MULTICAST_IF. Nothing can
/// come in meanwhile, because no datagram comes from a multicast address; 224.0.0.1 is not routed. The
/// loopback device takes any source address; when it is down, the device of the address. A raw socket of
/// IPv6 has no such option, and hears nothing by IPv4: it connects to the source.
fn take_ipv4(fd: BorrowedFd<'_>, source: Ipv4Addr, mapped: bool) -> io::Result<()> {
    let peer = |address: Ipv4Addr| match mapped {
        true => IpAddr::V6(address.to_ipv6_mapped()),
        false => IpAddr::V4(address),
    };
    let connect = |to: Ipv4Addr| Ok(rustix::net::connect(fd, &SocketAddr::new(peer(to), 9))?);
    if meanwhile::get(fd, IPPROTO_IP, IP_MULTICAST_IF).is_err() {
        let mut meanwhile = Meanwhile::new(fd);
        meanwhile.set(SOL_SOCKET, SO_BINDTOIFINDEX, 0)?;
        let connected = connect(source);
        return connected.and(meanwhile.put_back());
    }
    let take = |device: u32| {
        let request = [
            Ipv4Addr::UNSPECIFIED.octets(),
            source.octets(),
            device.to_ne_bytes(),
        ];
        sockcr_sys::sockopt::set(fd, IPPROTO_IP, IP_MULTICAST_IF, &request.concat())?;
        connect(Ipv4Addr::new(224, 0, 0, 1))
    };
    take(bound_device(fd).max(LOOPBACK_INDEX))
        .or_else(|error: io::Error| take(0).map_err(|_| error))
}

/// To an address of this host, that address is the source that comes first
/// (`IPV6_SADDR_RULE_LOCAL`, net/ipv6/addrconf.c). What it sends itself meanwhile is nothing, and the
/// filter of a socket that is not connected yet lets nothing in (`restore.rs`).
fn take_ipv6(fd: BorrowedFd<'_>, source: Ipv6Addr) -> io::Result<()> {
    let before = bound_device(fd);
    let scope = match source.is_unicast_link_local() {
        true => device_of(fd, source)?,
        false => 0,
    };
    rustix::net::connect(fd, &SocketAddrV6::new(source, 9, 0, scope))?;
    if scope != 0 && before == 0 {
        meanwhile::set(fd, SOL_SOCKET, SO_BINDTOIFINDEX, 0)?;
    }
    let got = plain(rustix::net::getsockname(fd)?)?.ip();
    // A group that it is bound to hides the source.
    match got == source || got.is_multicast() {
        true => Ok(()),
        false => Err(Errno::ADDRNOTAVAIL.into()),
    }
}

/// Whether bind(2) can have given a raw socket its address: to one of IPv6 no IPv4 one (`rawv6_bind`), nor
/// another before it was connected by IPv4.
fn can_be_bound(address: IpAddr, peer: Option<SocketAddr>) -> bool {
    let speaks_ipv4 = |address: IpAddr| address.is_ipv6() && address.to_canonical().is_ipv4();
    let by_ipv4 = speaks_ipv4(address) || peer.is_some_and(|peer| speaks_ipv4(peer.ip()));
    address.is_multicast() || !address.is_unspecified() && !by_ipv4
}

/// Whether an address is of one device alone (`__ipv6_addr_needs_scope_id`).
fn needs_device(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => {
            let [first, ..] = address.segments();
            address.is_unicast_link_local() || matches!(first & 0xff0f, 0xff01 | 0xff02)
        }
    }
}

/// The device that has a link-local address: that of the socket, or the first (`if6_seq_show`).
fn device_of(fd: BorrowedFd<'_>, address: Ipv6Addr) -> io::Result<u32> {
    let table = netns::within(fd, || {
        std::fs::read_to_string("/proc/thread-self/net/if_inet6")
    })?;
    let address = format!("{:032x}", u128::from(address));
    let lines = table.lines().filter_map(|line| line.strip_prefix(&address));
    let devices = lines.filter_map(|line| line.split_whitespace().next());
    let devices = devices.filter_map(|device| u32::from_str_radix(device, 16).ok());
    let bound = bound_device(fd);
    let found = devices.min_by_key(|device| *device != bound);
    found.ok_or_else(|| Errno::ADDRNOTAVAIL.into())
}

/// The peer, of IPv6 with the flow label that it is sent; one of IPv4 is sent none, whatever label is
/// left over (`unread`).
fn peer_of(hidden: &Hidden) -> SocketAddr {
    let flow = hidden.ipv6.as_ref().map_or(0, |ipv6| ipv6.flow_information);
    match hidden.peer_address {
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_none() => {
            SocketAddrV6::new(ip, hidden.peer_port, flow, 0).into()
        }
        ip => SocketAddr::new(ip, hidden.peer_port),
    }
}

/// A flow label is taken over only by a socket that sends one (`__ip6_datagram_connect`).
fn connect(fd: BorrowedFd<'_>, peer: SocketAddr) -> Result<(), Failure> {
    let failed = |error| Failure::at("IPV6_FLOWINFO_SEND", error);
    match peer {
        SocketAddr::V6(v6) if v6.flowinfo() != 0 => {
            let mut meanwhile = Meanwhile::new(fd);
            meanwhile
                .set(IPPROTO_IPV6, IPV6_FLOWINFO_SEND, 1)
                .map_err(failed)?;
            let connected = connect_plain(fd, peer);
            connected.and(meanwhile.put_back().map_err(failed))
        }
        _ => connect_plain(fd, peer),
    }
}

fn connect_plain(fd: BorrowedFd<'_>, peer: SocketAddr) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::at(format!("connect to {peer}"), error);
    match rustix::net::connect(fd, &peer) {
        // A broadcast peer, and SO_BROADCAST taken away after it was connected.
        Err(Errno::ACCESS) => connect_broadcast(fd, peer).map_err(failed),
        done => done.map_err(|error| failed(error.into())),
    }
}

fn connect_broadcast(fd: BorrowedFd<'_>, peer: SocketAddr) -> io::Result<()> {
    rustix::net::sockopt::set_socket_broadcast(fd, true)?;
    rustix::net::connect(fd, &peer)?;
    Ok(rustix::net::sockopt::set_socket_broadcast(fd, false)?)
}

/// What says where an IPv6 peer is, and its values when it says nothing.
static IPV6_DIRECTIONS: [(&str, Value); 4] = [
    ("IPV6_UNICAST_IF", Value::Int(0)),
    ("IPV6_MULTICAST_IF", Value::Int(0)),
    ("IPV6_PKTINFO", Value::Scoped(Ipv6Addr::UNSPECIFIED, 0)),
    ("IPV6_RTHDR", Value::Bytes(Vec::new())),
];

/// What would let the socket share a port, choose it, or not connect to an IPv4 peer.
const ALONE: [(i32, i32); 4] = [
    (SOL_SOCKET, SO_REUSEADDR),
    (SOL_SOCKET, SO_REUSEPORT),
    (IPPROTO_IP, IP_LOCAL_PORT_RANGE),
    (IPPROTO_IPV6, IPV6_V6ONLY),
];

/// A routing header by way of ::1 (`struct ipv6_sr_hdr`: next header, length, type, segments left, last
/// entry, flags, tag).
fn by_this_host() -> Vec<u8> {
    [&[0, 2, 4, 0, 0, 0, 0, 0], &Ipv6Addr::LOCALHOST.octets()[..]].concat()
}

/// The peer, and where it must have one its device: the loopback device.
fn scoped(peer: SocketAddr) -> SocketAddr {
    match peer {
        SocketAddr::V6(mut peer) => {
            peer.set_scope_id(LOOPBACK_INDEX);
            peer.into()
        }
        peer => peer,
    }
}

/// The options that say by which device to send.
struct Directions<'a> {
    /// It is an AF_INET6 socket, whose source may be of another protocol than its peer.
    inet6: bool,
    /// It has options of IPPROTO_IP: raw sockets of IPv6 have none (`rawv6_setsockopt`).
    inet: bool,
    /// The peer speaks IPv6.
    ipv6: bool,
    fd: BorrowedFd<'a>,
    options: &'a Options,
    interfaces: &'a Interfaces,
}

impl<'a> Directions<'a> {
    fn to(
        peer: IpAddr,
        fd: BorrowedFd<'a>,
        options: &'a Options,
        interfaces: &'a Interfaces,
    ) -> Self {
        Self {
            inet6: peer.is_ipv6(),
            inet: meanwhile::get(fd, IPPROTO_IP, IP_UNICAST_IF).is_ok(),
            ipv6: peer.to_canonical().is_ipv6(),
            fd,
            options,
            interfaces,
        }
    }

    fn any(&self) -> bool {
        let names = [
            "SO_BINDTODEVICE",
            "IP_UNICAST_IF",
            "IP_MULTICAST_IF",
            "IPV6_UNICAST_IF",
            "IPV6_MULTICAST_IF",
            "IPV6_PKTINFO",
            "IPV6_RTHDR",
        ];
        let mut values = names.iter().filter_map(|name| self.options.get(name));
        values.any(|value| !value.is_empty())
    }

    fn put(&self, name: &str, value: &Value) -> io::Result<()> {
        option::put(self.fd, name, value, self.interfaces)
    }

    /// Writes an option as the checkpoint has it, or `fresh`.
    fn again(&self, name: &str, fresh: &Value) -> io::Result<()> {
        self.put(name, self.options.get(name).unwrap_or(fresh))
    }

    /// What taking an IPv4 source has changed.
    fn put_multicast_back(&self) -> io::Result<()> {
        match self.inet {
            true => self.again("IP_MULTICAST_IF", &Value::Pair(0, 0)),
            false => Ok(()),
        }
    }

    /// From whatever address to whatever peer: on the loopback device there is always a route for IPv4.
    fn to_loopback(&self) -> io::Result<()> {
        self.leave_device()?;
        if self.inet6 {
            let mut fresh = IPV6_DIRECTIONS.iter();
            fresh.try_for_each(|(name, fresh)| self.put(name, fresh))?;
        }
        if !self.inet {
            return Ok(());
        }
        let unicast = LOOPBACK_INDEX.to_be_bytes();
        let multicast = [[0; 4], [0; 4], LOOPBACK_INDEX.to_ne_bytes()].concat();
        sockcr_sys::sockopt::set(self.fd, IPPROTO_IP, IP_UNICAST_IF, &unicast)?;
        sockcr_sys::sockopt::set(self.fd, IPPROTO_IP, IP_MULTICAST_IF, &multicast)
    }

    fn leave_device(&self) -> io::Result<()> {
        match bound_device(self.fd) {
            0 => Ok(()),
            _ => self.put("SO_BINDTODEVICE", &Value::Text(String::new())),
        }
    }

    /// Connects after [`Self::to_loopback`]; by way of this host there is always a route for IPv6
    /// (`fl6_update_dst`).
    fn connect(&self, peer: SocketAddr) -> Result<(), Failure> {
        if self.ipv6 {
            self.put("IPV6_RTHDR", &Value::Bytes(by_this_host()))
                .map_err(|error| Failure::at("IPV6_RTHDR", error))?;
        }
        connect(self.fd, scoped(peer))
    }

    /// Connects the unbound socket and disconnects it, which leaves the peer of IPv6 as the only one that
    /// is heard, and leaves no device (`__udp_disconnect`). It takes a port meanwhile that nobody else has.
    fn leave(&self, peer: IpAddr) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::at(format!("former peer {peer}"), error);
        let mut meanwhile = Meanwhile::new(self.fd);
        for (level, name) in ALONE {
            if level == IPPROTO_IP && !self.inet {
                continue;
            }
            meanwhile.set(level, name, 0).map_err(failed)?;
        }
        self.to_loopback().map_err(failed)?;
        self.connect(SocketAddr::new(peer, 9))?;
        rustix::net::connect_unspec(self.fd).map_err(|error| failed(error.into()))?;
        meanwhile.put_back().map_err(failed)?;
        self.put_back().map_err(failed)
    }

    /// SO_BINDTODEVICE last: it restricts the others, and makes the socket forget the route.
    fn put_back(&self) -> io::Result<()> {
        if self.inet6 {
            // That of connecting to an address of one device.
            self.leave_device()?;
            let mut fresh = IPV6_DIRECTIONS.iter();
            fresh.try_for_each(|(name, fresh)| self.again(name, fresh))?;
        }
        self.put_multicast_back()?;
        if self.inet {
            self.again("IP_UNICAST_IF", &Value::Int(0))?;
        }
        self.again("SO_BINDTODEVICE", &Value::Text(String::new()))
    }
}

/// A step that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub step: String,
    pub error: io::Error,
}

impl Failure {
    pub(crate) fn at(step: impl Into<String>, error: io::Error) -> Failure {
        let step = step.into();
        Failure { step, error }
    }
}

/// Without scope and flow label.
pub(crate) fn plain(address: SocketAddrAny) -> io::Result<SocketAddr> {
    let address = SocketAddr::try_from(address)?;
    Ok(SocketAddr::new(address.ip(), address.port()))
}

/// The address and port of a socket; getsockname(2) tells the protocol of a raw one as its port.
fn local(fd: BorrowedFd<'_>, protocol: &Protocol) -> io::Result<SocketAddr> {
    let mut local = plain(rustix::net::getsockname(fd)?)?;
    if protocol.is_raw() {
        local.set_port(0);
    }
    Ok(local)
}

/// The port as getsockname(2) tells it (`inet_sport`): of a raw socket its protocol, while it is in the
/// table that packets are received by.
pub(super) fn own_number(fd: BorrowedFd<'_>) -> io::Result<u16> {
    Ok(plain(rustix::net::getsockname(fd)?)?.port())
}

/// No address of this family.
fn any(address: SocketAddr) -> IpAddr {
    match address.is_ipv6() {
        true => Ipv6Addr::UNSPECIFIED.into(),
        false => Ipv4Addr::UNSPECIFIED.into(),
    }
}

/// IPV6_V6ONLY, where it was changed after the socket was bound to this address and to no port: bind(2)
/// to an address of IPv6 sets it, and one of IPv4 does not go with it (`__inet6_bind`).
fn changed_v6only(address: IpAddr, options: &Options) -> Option<bool> {
    let IpAddr::V6(ipv6) = address else {
        return None;
    };
    let mapped = ipv6.to_ipv4_mapped().is_some();
    let only_ipv6 = options.get("IPV6_V6ONLY")?.number()? != 0;
    (!ipv6.is_unspecified() && only_ipv6 == mapped).then_some(only_ipv6)
}

fn set_v6only(fd: BorrowedFd<'_>, on: bool) -> Result<(), Failure> {
    meanwhile::set(fd, IPPROTO_IPV6, IPV6_V6ONLY, on.into())
        .map_err(|error| Failure::at("IPV6_V6ONLY", error))
}

fn only(port: u16) -> u32 {
    u32::from(port) << 16 | u32::from(port)
}

/// Runs `step` with an IPPROTO_IP option set that is 0 before and after.
fn with_option(
    fd: BorrowedFd<'_>,
    name: i32,
    value: u32,
    step: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let set = |value: u32| {
        sockcr_sys::sockopt::set(fd, IPPROTO_IP, name, &value.to_ne_bytes())
            .map_err(|error| Failure::at("bind without a lock", error))
    };
    set(value)?;
    step()?;
    set(0)
}

fn autobind(fd: BorrowedFd<'_>, port: u16) -> Result<(), Failure> {
    bind_to_any(fd).map_err(|error| {
        let error = match Errno::from_io_error(&error) {
            // inet_autobind: the only port of the range is taken, or in ip_local_reserved_ports.
            Some(Errno::AGAIN) => Errno::ADDRINUSE.into(),
            _ => error,
        };
        Failure::at(format!("bind to port {port}"), error)
    })
}

/// Gives a ping socket an identifier that it does not lock, or none, whatever it gets by `take`.
/// The kernel gives out the next one that is free, the same for all network namespaces; leaving one takes the
/// device away (`__udp_disconnect`).
fn take_identifier(
    fd: BorrowedFd<'_>,
    wanted: u16,
    take: impl Fn() -> Result<(), Failure>,
) -> Result<(), Failure> {
    // Twice around, should others take some meanwhile.
    const MOST: u32 = 2 << 16;
    let step = format!("bind to identifier {wanted}");
    let failed = |error: io::Error| Failure::at(step.clone(), error);
    let mut meanwhile = Meanwhile::new(fd);
    meanwhile
        .keep(SOL_SOCKET, SO_BINDTOIFINDEX)
        .map_err(failed)?;
    for _ in 0..MOST {
        take()?;
        if wanted != 0 && own_number(fd).map_err(failed)? == wanted {
            return meanwhile.put_back().map_err(failed);
        }
        rustix::net::connect_unspec(fd).map_err(|error| failed(error.into()))?;
        meanwhile.put_back().map_err(failed)?;
        if wanted == 0 {
            return Ok(());
        }
    }
    Err(failed(Errno::ADDRINUSE.into()))
}

/// A connect to an address of another family fails, but binds the socket first
/// (`inet_dgram_connect`). A send without a destination would too, and throw away corked data that
/// may not be sent any more.
pub(crate) fn bind_to_any(fd: BorrowedFd<'_>) -> io::Result<()> {
    // As long as a sockaddr_in6, which comes to be asked for first.
    let other = SocketAddrUnix::new("an address of another family")?;
    match rustix::net::connect(fd, &other) {
        Ok(()) | Err(Errno::AFNOSUPPORT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The ports the kernel gives out, in the network namespace of this socket.
fn ephemeral_ports(fd: BorrowedFd<'_>) -> std::ops::RangeInclusive<u16> {
    let text = netns::sysctl(fd, "net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ports = text.split_whitespace().map_while(|port| port.parse().ok());
    ports.next().unwrap_or(32768)..=ports.next().unwrap_or(60999)
}

fn bound_device(fd: BorrowedFd<'_>) -> u32 {
    let row = option::find("SO_BINDTOIFINDEX");
    let value = row.and_then(|row| row.read(fd).ok().flatten());
    let index = value.as_ref().and_then(Value::number).unwrap_or(0);
    u32::try_from(index).unwrap_or(0)
}
