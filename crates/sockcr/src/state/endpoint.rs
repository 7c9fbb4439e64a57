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
//! and then connect(peer).

use crate::kernel::Hidden;
use crate::netns;
use crate::option::{self, Options, Value};
use crate::report::Report;
use crate::state::interfaces::Interfaces;
use rustix::io::Errno;
use rustix::net::SocketAddrAny;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::BorrowedFd;

const IPPROTO_IP: i32 = 0;
const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
const IP_MULTICAST_IF: i32 = 32;
const IP_UNICAST_IF: i32 = 50;
const IP_LOCAL_PORT_RANGE: i32 = 51;
const LOOPBACK_INDEX: u32 = 1;
const ESTABLISHED: u8 = 1;

/// The addresses of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// As getsockname(2) tells it; 0.0.0.0:0 when unbound.
    pub local: SocketAddrV4,
    /// As getpeername(2) tells it, if connected; its port can be 0.
    pub peer: Option<SocketAddrV4>,
    /// `SOCK_BINDADDR_LOCK`: disconnecting keeps the local address.
    pub address_locked: bool,
    /// `SOCK_BINDPORT_LOCK`: disconnecting keeps the local port.
    pub port_locked: bool,
    /// `inet_saddr`, where datagrams of a connected socket come from, when it is not `local`.
    pub source: Option<Ipv4Addr>,
}

impl Default for Endpoint {
    fn default() -> Endpoint {
        Endpoint {
            local: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0),
            peer: None,
            address_locked: false,
            port_locked: false,
            source: None,
        }
    }
}

impl Endpoint {
    /// Reads the addresses, and the locks by BPF or by the likeliest guess.
    pub(crate) fn dump(
        fd: BorrowedFd<'_>,
        hidden: Option<&Hidden>,
        report: &mut Report,
    ) -> io::Result<Endpoint> {
        if let Some(hidden) = hidden {
            return Ok(Endpoint::from_kernel(hidden));
        }
        let peer = match rustix::net::getpeername(fd) {
            Ok(peer) => peer.map(v4).transpose()?,
            Err(Errno::NOTCONN) => None,
            Err(error) => return Err(error.into()),
        };
        let mut endpoint = Endpoint {
            local: v4(rustix::net::getsockname(fd)?)?,
            peer,
            ..Endpoint::default()
        };
        endpoint.guess(fd, report);
        Ok(endpoint)
    }

    /// As `inet_getname` tells it, and more: it answers ENOTCONN for a socket connected to port 0.
    fn from_kernel(hidden: &Hidden) -> Endpoint {
        let connected = hidden.state == ESTABLISHED;
        let address = match hidden.bound_address.is_unspecified() {
            true => hidden.source_address,
            false => hidden.bound_address,
        };
        Endpoint {
            local: SocketAddrV4::new(address, hidden.bound_port),
            peer: connected.then(|| SocketAddrV4::new(hidden.peer_address, hidden.peer_port)),
            address_locked: hidden.address_locked,
            port_locked: hidden.port_locked,
            source: Some(hidden.source_address).filter(|source| connected && *source != address),
        }
    }

    fn guess(&mut self, fd: BorrowedFd<'_>, report: &mut Report) {
        if self.local.port() == 0 && self.local.ip().is_unspecified() {
            return;
        }
        let ephemeral = ephemeral_ports(fd).contains(&self.local.port());
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
    }

    /// Gives it another local address. Without a peer only bind(2) can have given it one, and locked
    /// it: nothing else can be restored.
    pub(crate) fn move_to(&mut self, address: Ipv4Addr) {
        if self.peer.is_none() && *self.local.ip() != address {
            self.address_locked = !address.is_unspecified();
        }
        self.local.set_ip(address);
    }

    /// Takes the peer away, and the address that only connect(2) had given, as the kernel does.
    fn disconnect(&mut self) {
        self.peer = None;
        self.source = None;
        if !self.address_locked {
            self.local.set_ip(Ipv4Addr::UNSPECIFIED);
        }
    }

    /// Changes the local address or the peer as a person says it; what is given anew is locked, as
    /// bind(2) does.
    pub(crate) fn edit(&mut self, name: &str, text: &str) -> Result<(), String> {
        let address = match text {
            "none" => None,
            text => {
                let wrong = |_| format!("{text:?} is neither ADDR:PORT nor none");
                Some(text.parse::<SocketAddrV4>().map_err(wrong)?)
            }
        };
        match (name, address) {
            ("peer", Some(peer)) => self.peer = Some(peer),
            ("peer", None) => self.disconnect(),
            (_, None) if self.peer.is_some() => {
                return Err("a connected socket has a local address: peer=none first".into());
            }
            (_, None) => *self = Endpoint::default(),
            (_, Some(local)) => {
                if self.local.port() != local.port() {
                    self.port_locked = local.port() != 0;
                }
                self.move_to(*local.ip());
                self.local.set_port(local.port());
            }
        }
        Ok(())
    }

    /// Binds and connects a new socket.
    pub(crate) fn restore(
        &self,
        fd: BorrowedFd<'_>,
        options: &Options,
        interfaces: &Interfaces,
    ) -> Result<(), Failure> {
        self.bind(fd)?;
        let Some(peer) = self.peer else {
            return match self.port_locked {
                true => Ok(()),
                false => self.check(fd),
            };
        };
        let directions = Directions {
            fd,
            options,
            interfaces,
        };
        if let Err(failure) = self.connect(fd, peer, &directions) {
            let detour = directions
                .any()
                .then(|| self.connect_undirected(fd, peer, &directions));
            detour.and_then(Result::ok).ok_or(failure)?;
        }
        self.check(fd)
    }

    fn connect(
        &self,
        fd: BorrowedFd<'_>,
        peer: SocketAddrV4,
        directions: &Directions<'_>,
    ) -> Result<(), Failure> {
        if !self.address_locked || self.source.is_some() {
            self.choose_source(fd)?;
            directions
                .multicast()
                .map_err(|error| Failure::at("IP_MULTICAST_IF", error))?;
        }
        connect(fd, peer)
    }

    /// Connects a socket whose owner gave it a device only after it was connected, to a peer that
    /// is not reached by that device from its address: by way of the loopback device. The filter
    /// of a socket that is not connected yet lets nothing in meanwhile (`restore.rs`).
    fn connect_undirected(
        &self,
        fd: BorrowedFd<'_>,
        peer: SocketAddrV4,
        directions: &Directions<'_>,
    ) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::at("connect without a device", error);
        directions.to_loopback().map_err(failed)?;
        if !self.address_locked || self.source.is_some() {
            self.choose_source(fd)?;
        }
        connect(fd, peer)?;
        directions.put_back().map_err(failed)
    }

    fn bind(&self, fd: BorrowedFd<'_>) -> Result<(), Failure> {
        let address = match self.address_locked || self.peer.is_none() {
            true => *self.local.ip(),
            false => Ipv4Addr::UNSPECIFIED,
        };
        let port = self.local.port();
        let bind = |port: u16| {
            let to = SocketAddrV4::new(address, port);
            rustix::net::bind(fd, &to)
                .map_err(|error| Failure::at(format!("bind to {}", self.local), error.into()))
        };
        match (self.address_locked, self.port_locked, port) {
            (_, true, port) => bind(port),
            (true, false, 0) => with_option(fd, IP_BIND_ADDRESS_NO_PORT, 1, || bind(0)),
            (true, false, port) => with_option(fd, IP_LOCAL_PORT_RANGE, only(port), || bind(0)),
            (false, false, 0) => Ok(()),
            (false, false, port) => {
                with_option(fd, IP_LOCAL_PORT_RANGE, only(port), || autobind(fd, port))
            }
        }
    }

    /// Gives the connected socket its source address without locking it, whatever the route would
    /// choose: to a multicast peer, `__ip4_datagram_connect` takes the source from
    /// IP_MULTICAST_IF, and a second connect keeps it. Nothing can come in meanwhile, because no
    /// datagram comes from a multicast address; 224.0.0.1 is not routed.
    fn choose_source(&self, fd: BorrowedFd<'_>) -> Result<(), Failure> {
        let source = self.source.unwrap_or(*self.local.ip());
        if source.is_unspecified() {
            return Ok(());
        }
        // The loopback device takes any source address; when it is down, the device of the address.
        let device = bound_device(fd).max(LOOPBACK_INDEX);
        take_source(fd, source, device)
            .or_else(|error| take_source(fd, source, 0).map_err(|_| error))
            .map_err(|error| Failure::at(format!("take source address {source}"), error))
    }

    /// The kernel chooses in silence when it cannot do as asked.
    fn check(&self, fd: BorrowedFd<'_>) -> Result<(), Failure> {
        let got = rustix::net::getsockname(fd).map_err(io::Error::from);
        let got = got
            .and_then(v4)
            .map_err(|e| Failure::at("getsockname", e))?;
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

fn take_source(fd: BorrowedFd<'_>, source: Ipv4Addr, device: u32) -> io::Result<()> {
    let request = [
        Ipv4Addr::UNSPECIFIED.octets(),
        source.octets(),
        device.to_ne_bytes(),
    ];
    let all_hosts = SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 1), 9);
    sockcr_sys::sockopt::set(fd, IPPROTO_IP, IP_MULTICAST_IF, &request.concat())?;
    Ok(rustix::net::connect(fd, &all_hosts)?)
}

fn connect(fd: BorrowedFd<'_>, peer: SocketAddrV4) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::at(format!("connect to {peer}"), error);
    match rustix::net::connect(fd, &peer) {
        // A broadcast peer, and SO_BROADCAST taken away after it was connected.
        Err(Errno::ACCESS) => connect_broadcast(fd, peer).map_err(failed),
        done => done.map_err(|error| failed(error.into())),
    }
}

fn connect_broadcast(fd: BorrowedFd<'_>, peer: SocketAddrV4) -> io::Result<()> {
    rustix::net::sockopt::set_socket_broadcast(fd, true)?;
    rustix::net::connect(fd, &peer)?;
    Ok(rustix::net::sockopt::set_socket_broadcast(fd, false)?)
}

/// The options that say by which device to send.
struct Directions<'a> {
    fd: BorrowedFd<'a>,
    options: &'a Options,
    interfaces: &'a Interfaces,
}

impl Directions<'_> {
    fn any(&self) -> bool {
        let names = ["SO_BINDTODEVICE", "IP_UNICAST_IF", "IP_MULTICAST_IF"];
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

    fn multicast(&self) -> io::Result<()> {
        self.again("IP_MULTICAST_IF", &Value::Pair(0, 0))
    }

    /// From whatever address to whatever peer: on the loopback device there is always a route.
    fn to_loopback(&self) -> io::Result<()> {
        if bound_device(self.fd) != 0 {
            self.put("SO_BINDTODEVICE", &Value::Text(String::new()))?;
        }
        let unicast = LOOPBACK_INDEX.to_be_bytes();
        let multicast = [[0; 4], [0; 4], LOOPBACK_INDEX.to_ne_bytes()].concat();
        sockcr_sys::sockopt::set(self.fd, IPPROTO_IP, IP_UNICAST_IF, &unicast)?;
        sockcr_sys::sockopt::set(self.fd, IPPROTO_IP, IP_MULTICAST_IF, &multicast)
    }

    /// SO_BINDTODEVICE last: it restricts the others, and makes the socket forget the route.
    fn put_back(&self) -> io::Result<()> {
        self.multicast()?;
        self.again("IP_UNICAST_IF", &Value::Int(0))?;
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

fn v4(address: SocketAddrAny) -> io::Result<SocketAddrV4> {
    Ok(SocketAddrV4::try_from(address)?)
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

/// A connect to an address of another family fails, but binds the socket first
/// (`inet_dgram_connect`). A send without a destination would too, and throw away corked data that
/// may not be sent any more.
pub(crate) fn bind_to_any(fd: BorrowedFd<'_>) -> io::Result<()> {
    let other = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0);
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
