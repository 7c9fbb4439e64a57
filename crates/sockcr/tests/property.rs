//! Sockets drawn at random: each must come back the same, to the bit.
//!
//! `SOCKCR_CASES` says how many are drawn.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

#[path = "support/feed.rs"]
mod feed;
#[path = "support/message.rs"]
mod message;
mod support;
#[path = "support/waits.rs"]
mod waits;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{FileFailurePersistence, TestCaseError, TestRunner};

use message::Message;
use rustix::net::{SendFlags, Shutdown};
use sockcr::kernel::Hidden;
use sockcr::option::{Kind, Row, Value};
use sockcr::protocol::{self, Protocol};
use sockcr::{Checkpoint, ErrorKind, RestoreOptions, json};
use sockcr_sys::descriptor;

use support::place::{self, Device, isolated};
use support::socket::{self, IP, IPV6, Instruction, SOCKET, UDP, instruction};
use support::values;
use support::{Outcome, reader, skip};
use waits::Waits;

/// How a socket comes to its address.
#[derive(Clone, Debug)]
enum Way {
    Unbound,
    /// A send() without a destination.
    Autobind,
    /// bind(2), with port 0 for one of the kernel's choice.
    Bind(SocketAddr),
    /// IP_BIND_ADDRESS_NO_PORT and bind(address, 0).
    AddressOnly(SocketAddr),
}

/// What happens after that.
#[derive(Clone, Debug)]
enum Then {
    Nothing,
    Connect(SocketAddr),
    /// connect(2) and then connect(AF_UNSPEC).
    Disconnect(SocketAddr),
    /// Two connections: the first one's source address stays.
    Reconnect(SocketAddr, SocketAddr),
}

impl Then {
    /// A raw socket of IPv6 takes a peer of IPv4, and then neither sends to it nor hears it.
    fn for_kind(self, protocol: &Protocol) -> Then {
        let deaf = |peer: SocketAddr| peer.is_ipv6() && peer.ip().to_canonical().is_ipv4();
        let peers = match self {
            Then::Nothing => [None, None],
            Then::Connect(peer) | Then::Disconnect(peer) => [Some(peer), None],
            Then::Reconnect(first, second) => [Some(first), Some(second)],
        };
        match protocol.is_raw() && peers.into_iter().flatten().any(deaf) {
            true => Then::Nothing,
            false => self,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Mode {
    Any,
    Except,
    Only,
}

/// What is joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Ipv4,
    Ipv6,
    Anycast,
}

#[derive(Clone, Debug)]
struct Join {
    what: What,
    group: u16,
    /// 0 is lo.
    device: usize,
    by_address: bool,
    mode: Mode,
    sources: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Flags {
    status: i32,
    close_on_exec: bool,
    owner: bool,
    signal: i32,
}

#[derive(Clone)]
struct Plan {
    protocol: &'static Protocol,
    way: Way,
    then: Then,
    shutdown: Option<u8>,
    /// Options in the order in which they are set; true: after the address.
    options: Vec<(&'static Row, bool, Value)>,
    /// What SO_BUF_LOCK is set to in the end.
    buffer_locks: Option<i32>,
    joins: Vec<Join>,
    filter: Vec<Instruction>,
    flags: Flags,
    waits: Waits,
}

/// Rows and protocols by their names.
impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = self.options.iter();
        let options = options.map(|(row, late, value)| (row.name, *late, value));
        f.debug_struct(self.protocol.name)
            .field("way", &self.way)
            .field("then", &self.then)
            .field("shutdown", &self.shutdown)
            .field("options", &options.collect::<Vec<_>>())
            .field("buffer_locks", &self.buffer_locks)
            .field("joins", &self.joins)
            .field("filter", &self.filter)
            .field("flags", &self.flags)
            .field("waits", &self.waits)
            .finish()
    }
}

const SIGNALS: [i32; 5] = [0, libc::SIGIO, libc::SIGUSR1, 34, 64];

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![1u16..1024, 1024u16..32_768, 32_768u16..=65_535]
}

/// The address of an IPv6 socket that speaks IPv4.
fn mapped(address: Ipv4Addr) -> SocketAddr {
    SocketAddr::new(address.to_ipv6_mapped().into(), 0)
}

fn scoped(address: Ipv6Addr, scope: u32) -> SocketAddr {
    SocketAddrV6::new(address, 0, 0, scope).into()
}

fn local(ipv6: bool, devices: &[Device]) -> BoxedStrategy<SocketAddr> {
    if !ipv6 {
        let local = local4(devices);
        return local.prop_map(|to| SocketAddr::new(to.into(), 0)).boxed();
    }
    let device = |of: fn(&Device) -> SocketAddr| select(devices.iter().map(of).collect::<Vec<_>>());
    let group = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 3, 2, 1);
    prop_oneof![
        3 => Just(scoped(Ipv6Addr::UNSPECIFIED, 0)),
        3 => Just(scoped(Ipv6Addr::LOCALHOST, 0)),
        2 => device(|device| scoped(device.address6, 0)),
        2 => device(|device| scoped(device.link_local, device.index)),
        1 => Just(scoped(group, 0)),
        1 => device(|device| scoped(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 3, 2, 1), device.index)),
        3 => local4(devices).prop_map(mapped),
    ]
    .boxed()
}

fn local4(devices: &[Device]) -> impl Strategy<Value = Ipv4Addr> + use<> {
    let own: Vec<Ipv4Addr> = devices.iter().map(|device| device.address).collect();
    let special = [
        Ipv4Addr::new(239, 3, 2, 1),
        Ipv4Addr::new(10, 9, 0, 255),
        Ipv4Addr::BROADCAST,
    ];
    prop_oneof![
        4 => any::<(u8, u8, u8)>().prop_map(|(b, c, d)| Ipv4Addr::new(127, b, c, d | 1)),
        2 => Just(Ipv4Addr::UNSPECIFIED),
        2 => select(own),
        1 => select(special.to_vec()),
    ]
}

fn peer(ipv6: bool, devices: &[Device]) -> BoxedStrategy<SocketAddr> {
    let peer = match ipv6 {
        true => peer6(devices),
        false => peer4().prop_map(|to| SocketAddr::new(to.into(), 0)).boxed(),
    };
    let port = prop_oneof![9 => port(), 1 => Just(0)];
    (peer, port).prop_map(at).boxed()
}

fn at((mut address, port): (SocketAddr, u16)) -> SocketAddr {
    address.set_port(port);
    address
}

fn peer6(devices: &[Device]) -> BoxedStrategy<SocketAddr> {
    let there = [
        Ipv6Addr::LOCALHOST,
        Ipv6Addr::UNSPECIFIED,
        Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 2),
        Ipv6Addr::new(0xfd00, 9, 0, 1, 0, 0, 0, 2),
        Ipv6Addr::new(0xff05, 0, 0, 0, 0, 1, 1, 1),
    ];
    let on = |address: Ipv6Addr| {
        let device = devices.iter().map(|device| scoped(address, device.index));
        select(device.collect::<Vec<_>>())
    };
    prop_oneof![
        3 => select(there.map(|address| scoped(address, 0)).to_vec()),
        1 => on(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 9, 9)),
        1 => on(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 1, 1)),
        2 => peer4().prop_map(mapped),
    ]
    .boxed()
}

fn peer4() -> impl Strategy<Value = Ipv4Addr> {
    let others = [
        Ipv4Addr::new(10, 9, 0, 2),
        Ipv4Addr::new(10, 9, 1, 2),
        Ipv4Addr::new(10, 9, 0, 255),
        Ipv4Addr::new(239, 1, 1, 1),
        Ipv4Addr::UNSPECIFIED,
    ];
    let loopback = any::<(u8, u8)>().prop_map(|(c, d)| Ipv4Addr::new(127, 0, c, d | 1));
    prop_oneof![2 => loopback, 1 => select(others.to_vec())]
}

fn way(ipv6: bool, devices: &[Device]) -> impl Strategy<Value = Way> + use<> {
    let local = || local(ipv6, devices);
    prop_oneof![
        1 => Just(Way::Unbound),
        1 => Just(Way::Autobind),
        2 => local().prop_map(Way::Bind),
        3 => (local(), port()).prop_map(|to| Way::Bind(at(to))),
        1 => local().prop_map(Way::AddressOnly),
    ]
}

fn then(ipv6: bool, devices: &[Device]) -> impl Strategy<Value = Then> + use<> {
    let peer = || peer(ipv6, devices);
    prop_oneof![
        3 => Just(Then::Nothing),
        3 => peer().prop_map(Then::Connect),
        1 => peer().prop_map(Then::Disconnect),
        1 => (peer(), peer()).prop_map(|(first, second)| Then::Reconnect(first, second)),
    ]
}

/// A legal value of a row.
fn value(row: &'static Row, devices: &[Device]) -> BoxedStrategy<Value> {
    let sample = select(values::samples(row, devices));
    match row.kind {
        Kind::Int(min, max, _) => prop_oneof![(min..=max).prop_map(Value::Int), sample].boxed(),
        Kind::U64(_) => prop_oneof![any::<i64>().prop_map(Value::Int), sample].boxed(),
        // Odd requests and those below the minimum included: the kernel doubles and raises them.
        Kind::Buffer(_) => {
            prop_oneof![(0..1i64 << 22).prop_map(|n| Value::Int(2 * n)), sample].boxed()
        }
        Kind::Timeval => (0..1i64 << 30, 0..1_000_000i64)
            .prop_map(|(s, us)| Value::Pair(s, us))
            .boxed(),
        Kind::Linger => (0..2i64, 0..=i64::from(i32::MAX))
            .prop_map(|(on, s)| Value::Pair(on, s))
            .boxed(),
        Kind::PortRange => (any::<u16>(), any::<u16>())
            .prop_map(|(a, b)| Value::Pair(a.min(b).into(), a.max(b).into()))
            .boxed(),
        // All but those that need one another or hardware.
        Kind::Timestamping(_) => (0..1i64 << 19)
            .prop_map(|bits| Value::Pair((bits | 1 << 7 | 1 << 11) & !(1 << 15), 0))
            .boxed(),
        _ => sample.boxed(),
    }
}

/// A subset of the carried options, in any order.
fn options(
    protocol: &Protocol,
    devices: &[Device],
) -> impl Strategy<Value = Vec<(&'static Row, bool, Value)>> + use<> {
    let rows = protocol.carried();
    let each: Vec<_> = rows
        .map(|row| {
            let setting = (Just(row), any::<bool>(), value(row, devices));
            proptest::option::weighted(0.25, setting).boxed()
        })
        .collect();
    each.prop_map(|drawn| drawn.into_iter().flatten().collect::<Vec<_>>())
        .prop_shuffle()
}

fn join(ipv6: bool) -> impl Strategy<Value = Join> {
    let what = match ipv6 {
        true => vec![What::Ipv4, What::Ipv6, What::Ipv6, What::Anycast],
        false => vec![What::Ipv4],
    };
    let mode = select(vec![Mode::Any, Mode::Except, Mode::Only]);
    let sources = proptest::collection::vec(any::<u8>(), 1..=10);
    (
        select(what),
        any::<u16>(),
        0..3usize,
        any::<bool>(),
        mode,
        sources,
    )
        .prop_map(|(what, group, device, by_address, mode, sources)| Join {
            what,
            group,
            device,
            by_address,
            mode,
            sources,
        })
}

/// Loads of the packet, arithmetic, and one return at the end: what the kernel's check lets pass.
fn filter() -> impl Strategy<Value = Vec<Instruction>> {
    let code = prop_oneof![
        (0u32..64).prop_map(|k| instruction(0x20, k)),
        any::<u32>().prop_map(|k| instruction(0x00, k)),
        any::<u32>().prop_map(|k| instruction(0x04, k)),
        any::<u32>().prop_map(|k| instruction(0x54, k)),
    ];
    let body = proptest::collection::vec(code, 0..200);
    (body, any::<u32>()).prop_map(|(mut body, k)| {
        body.push(instruction(0x06, k));
        body
    })
}

fn flags() -> impl Strategy<Value = Flags> {
    let status = select(vec![
        0,
        libc::O_NONBLOCK,
        libc::O_ASYNC,
        libc::O_NONBLOCK | libc::O_ASYNC,
    ]);
    (
        status,
        any::<bool>(),
        any::<bool>(),
        select(SIGNALS.to_vec()),
    )
        .prop_map(|(status, close_on_exec, owner, signal)| Flags {
            status,
            close_on_exec,
            owner,
            signal,
        })
}

/// As many sockets of IPv6 as of IPv4; of the other kinds together as many as of these. Raw sockets of ICMPv6
/// hear at any time what the kernel tells its neighbours, and have their own tests.
fn plan(devices: &[Device]) -> impl Strategy<Value = Plan> + use<> {
    let quiet = |kind: &&&Protocol| !(kind.is_raw() && kind.number == u32::from(IPPROTO_ICMPV6));
    let others = protocol::ALL[2..].iter().filter(quiet);
    let others = others.map(|protocol| plan_of(protocol, devices).boxed());
    prop_oneof![
        plan_of(protocol::ALL[0], devices),
        plan_of(protocol::ALL[1], devices),
        proptest::strategy::Union::new(others),
    ]
}

fn plan_of(protocol: &'static Protocol, devices: &[Device]) -> impl Strategy<Value = Plan> + use<> {
    let ipv6 = protocol.is_ipv6();
    let few = proptest::collection::vec(join(ipv6), 0..=20);
    let joins = prop_oneof![3 => Just(Vec::new()), 2 => few];
    let filter = prop_oneof![2 => Just(Vec::new()), 1 => filter()];
    let buffer_locks = proptest::option::weighted(0.3, 0..4i32);
    let shutdown = proptest::option::weighted(0.2, 0..3u8);
    let address = (way(ipv6, devices), then(ipv6, devices), shutdown);
    (
        address,
        options(protocol, devices),
        buffer_locks,
        joins,
        filter,
        (flags(), waits::strategy()),
    )
        .prop_map(
            move |((way, then, shutdown), options, buffer_locks, joins, filter, (flags, waits))| {
                Plan {
                    protocol,
                    way,
                    then: then.for_kind(protocol),
                    shutdown,
                    options,
                    buffer_locks,
                    joins,
                    filter,
                    flags,
                    waits: match (protocol.is_udp(), ipv6) {
                        (true, false) => waits,
                        (true, true) => waits.queue_only(),
                        (false, _) => Waits::nothing(),
                    },
                }
            },
        )
}

/// What the kernel took and what it refused, by name.
#[derive(Default)]
struct Tally {
    taken: u32,
    refused: BTreeMap<String, u32>,
}

impl Tally {
    fn count<E>(&mut self, what: &str, done: Result<(), E>) {
        match done {
            Ok(()) => self.taken += 1,
            Err(_) => *self.refused.entry(what.into()).or_default() += 1,
        }
    }
}

fn build(plan: &Plan, devices: &[Device], tally: &mut Tally) -> OwnedFd {
    let socket = socket::fresh(plan.protocol).unwrap();
    if !plan.filter.is_empty() {
        tally.count("filter", socket::attach(&socket, &plan.filter));
    }
    set_options(&socket, plan, false, tally);
    for join in &plan.joins {
        join_group(&socket, join, devices, tally);
    }
    take_address(&socket, &plan.way, tally);
    let mut done = Vec::new();
    plan.waits.cork(&socket, true, &mut done);
    connect(&socket, &plan.then, tally);
    plan.waits.cork(&socket, false, &mut done);
    let group = |what: What| {
        let mut joins = plan.joins.iter();
        let first = joins.find(|join| join.what == what);
        first.map_or(0, |join| join.group)
    };
    let [high, low] = group(What::Ipv4).to_be_bytes();
    let groups = (Ipv4Addr::new(239, 7, high, low), group6(group(What::Ipv6)));
    if plan.protocol.is_udp() {
        plan.waits.come(&socket, groups, devices, &mut done);
    }
    for (what, done) in done {
        tally.count(what, done);
    }
    set_options(&socket, plan, true, tally);
    if let Some(bits) = plan.buffer_locks {
        tally.count("SO_BUF_LOCK", socket::set_int(&socket, SOCKET, 72, bits));
    }
    let how = [Shutdown::Read, Shutdown::Write, Shutdown::Both];
    if let Some(how) = plan.shutdown.and_then(|at| how.get(usize::from(at))) {
        // ENOTCONN is answered after it is done.
        let _ = rustix::net::shutdown(&socket, *how);
    }
    set_flags(&socket, &plan.flags);
    socket
}

fn set_options(socket: &OwnedFd, plan: &Plan, late: bool, tally: &mut Tally) {
    for (row, _, value) in plan.options.iter().filter(|(_, when, _)| *when == late) {
        tally.count(row.name, values::apply(socket, row, value));
    }
}

fn take_address(socket: &OwnedFd, way: &Way, tally: &mut Tally) {
    const BIND_ADDRESS_NO_PORT: i32 = 24;
    match *way {
        Way::Unbound => {}
        Way::Autobind => {
            let sent = rustix::net::send(socket, &[], SendFlags::NOSIGNAL);
            assert!(sent.is_err(), "there is no destination");
        }
        Way::Bind(to) => tally.count("bind", socket::bind_to(socket, to)),
        Way::AddressOnly(to) => {
            let wanted = socket::set_int(socket, IP, BIND_ADDRESS_NO_PORT, 1);
            tally.count("IP_BIND_ADDRESS_NO_PORT", wanted);
            tally.count("bind", socket::bind_to(socket, to));
        }
    }
}

fn connect(socket: &OwnedFd, then: &Then, tally: &mut Tally) {
    let mut to = |peer| tally.count("connect", socket::connect_to(socket, peer));
    match *then {
        Then::Nothing => {}
        Then::Connect(peer) => to(peer),
        Then::Disconnect(peer) => {
            to(peer);
            rustix::net::connect_unspec(socket).unwrap();
        }
        Then::Reconnect(first, second) => {
            to(first);
            to(second);
        }
    }
}

/// Of this place, or of the device alone.
fn group6(number: u16) -> Ipv6Addr {
    let scope = if number.is_multiple_of(2) {
        0xff05
    } else {
        0xff02
    };
    Ipv6Addr::new(scope, 0, 0, 0, 0, 0, 7, number)
}

/// `struct sockaddr_in6` in a `struct sockaddr_storage`.
fn storage(address: Ipv6Addr) -> Vec<u8> {
    let mut storage = [10_u16.to_ne_bytes(), [0; 2], [0; 2], [0; 2]].concat();
    storage.extend(address.octets());
    storage.resize(128, 0);
    storage
}

fn join_group6(socket: &OwnedFd, join: &Join, devices: &[Device], tally: &mut Tally) {
    const ADD_MEMBERSHIP: i32 = 20;
    const JOIN_ANYCAST: i32 = 27;
    const BLOCK_SOURCE: i32 = 43;
    const JOIN_SOURCE: i32 = 46;
    let device = join.device.checked_sub(1).and_then(|at| devices.get(at));
    let index = device.map_or(1, |device| device.index);
    let mut set = |what: &str, name: i32, value: &[u8]| {
        tally.count(what, socket::set(socket, IPV6, name, value));
    };
    let group = group6(join.group);
    let request = |address: Ipv6Addr| [&address.octets()[..], &index.to_ne_bytes()].concat();
    if join.what == What::Anycast {
        let device = device.or_else(|| devices.first()).unwrap();
        let mut address = device.address6.segments();
        address[7] = join.group;
        let request = [
            &Ipv6Addr::from(address).octets()[..],
            &device.index.to_ne_bytes(),
        ];
        return set("IPV6_JOIN_ANYCAST", JOIN_ANYCAST, &request.concat());
    }
    if !matches!(join.mode, Mode::Only) {
        set("IPV6_ADD_MEMBERSHIP", ADD_MEMBERSHIP, &request(group));
    }
    for source in &join.sources {
        let source = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, (*source).into());
        let head = [index.to_ne_bytes(), [0; 4]].concat();
        let request = [head, storage(group), storage(source)].concat();
        match join.mode {
            Mode::Any => {}
            Mode::Except => set("MCAST_BLOCK_SOURCE", BLOCK_SOURCE, &request),
            Mode::Only => set("MCAST_JOIN_SOURCE_GROUP", JOIN_SOURCE, &request),
        }
    }
}

fn join_group(socket: &OwnedFd, join: &Join, devices: &[Device], tally: &mut Tally) {
    if join.what != What::Ipv4 {
        return join_group6(socket, join, devices, tally);
    }
    const ADD_MEMBERSHIP: i32 = 35;
    const BLOCK_SOURCE: i32 = 38;
    const ADD_SOURCE_MEMBERSHIP: i32 = 39;
    let [high, low] = join.group.to_be_bytes();
    let group = [239, 7, high, low];
    let (index, address) = match join.device.checked_sub(1).and_then(|at| devices.get(at)) {
        Some(device) => (device.index, device.address),
        None => (1, Ipv4Addr::LOCALHOST),
    };
    let index = if join.by_address { 0 } else { index };
    let request = [group, address.octets(), index.to_ne_bytes()].concat();
    let mut set = |what: &str, name: i32, value: &[u8]| {
        tally.count(what, socket::set(socket, IP, name, value));
    };
    if !matches!(join.mode, Mode::Only) {
        set("IP_ADD_MEMBERSHIP", ADD_MEMBERSHIP, &request);
    }
    for source in &join.sources {
        let request = [group, address.octets(), [10, 0, 0, *source]].concat();
        match join.mode {
            Mode::Any => {}
            Mode::Except => set("IP_BLOCK_SOURCE", BLOCK_SOURCE, &request),
            Mode::Only => set("IP_ADD_SOURCE_MEMBERSHIP", ADD_SOURCE_MEMBERSHIP, &request),
        }
    }
}

fn set_flags(socket: &OwnedFd, flags: &Flags) {
    let socket = socket.as_fd();
    if flags.owner {
        let process = std::process::id() as i32;
        descriptor::set_owner(socket, descriptor::OWNER_PROCESS, process).unwrap();
    }
    descriptor::set_signal(socket, flags.signal).unwrap();
    descriptor::set_status_flags(socket, flags.status).unwrap();
    descriptor::set_close_on_exec(socket, flags.close_on_exec).unwrap();
}

/// Everything that is read of a socket without the library's option tables.
#[derive(Debug, PartialEq)]
struct View {
    sweep: socket::Sweep,
    filter: Result<Vec<Instruction>, i32>,
    fcntl: [i32; 5],
    hidden: Hidden,
}

fn view(socket: &impl AsFd) -> View {
    let mut hidden = reader().unwrap().read(socket.as_fd()).unwrap();
    // The group of SO_REUSEPORT is made by bind(2) and stays when the option is taken away; alone
    // in it or not in it makes no difference.
    hidden.reuseport_index = None;
    // What a ping socket was connected to once, it does not hear alone (`ping_lookup`).
    if hidden.protocol == IPPROTO_ICMPV6 && hidden.state == CLOSED {
        hidden.peer_address = Ipv6Addr::UNSPECIFIED.into();
    }
    // The memory that a cork takes depends on the pieces it came in.
    (hidden.sent, hidden.drops) = (0, 0);
    View {
        sweep: socket::sweep(socket),
        filter: socket::filter(socket),
        fcntl: socket::fcntl_view(socket).unwrap(),
        hidden,
    }
}

fn compare(before: &View, after: &View) -> Result<(), TestCaseError> {
    let differences = socket::differences(&before.sweep, &after.sweep);
    prop_assert!(differences.is_empty(), "{}", differences.join("\n"));
    prop_assert_eq!(&before.filter, &after.filter);
    prop_assert_eq!(before.fcntl, after.fcntl);
    prop_assert_eq!(&before.hidden, &after.hidden);
    Ok(())
}

fn fail(error: impl std::fmt::Display) -> TestCaseError {
    TestCaseError::fail(error.to_string())
}

fn check_json(checkpoint: &Checkpoint) -> Result<(), TestCaseError> {
    let text = json::to_json(std::slice::from_ref(checkpoint)).to_string();
    let again = json::from_json(&text).map_err(fail)?;
    prop_assert_eq!(again.as_slice(), std::slice::from_ref(checkpoint));
    Ok(())
}

/// What a random socket can have that no system call gives a new one.
fn lost(checkpoint: &Checkpoint) -> bool {
    // An address left over from a connection that was undone, on a socket bound to a group or to
    // everybody; a raw socket whose connection was undone; counters that the owner is told.
    let known = [
        "disconnected",
        "source address",
        "drop counter",
        "time stamp counter",
        "corked data: time stamp",
        "receive queue: IP_RECVFRAGSIZE",
        "receive queue: IP_CHECKSUM",
        "error queue: IP_CHECKSUM",
    ];
    let notes = &checkpoint.report.not_carried;
    notes.iter().any(|note| known.contains(&&*note.what))
}

/// What a restore may refuse.
fn refuses_rightly(plan: &Plan, checkpoint: &Checkpoint, refused: &sockcr::Error) -> bool {
    let connected = !matches!(plan.then, Then::Nothing);
    let counts = checkpoint.options.get("SO_RXQ_OVFL") == Some(&Value::Int(1));
    let text = refused.to_string();
    let mut lines = text.lines().skip(1);
    refused.kind() == ErrorKind::Refused
        && lines.all(|line| {
            // connect(2) gives corked data another destination and source, but not another route.
            let strands = line.starts_with("  corked data: ");
            // `Injector::inject` says when one more packet is dropped.
            let drops = line.starts_with("  drop counter: stands at 1 from the start");
            // `Checkpoint::corks` says why.
            let to = checkpoint.cork.as_ref().map(|corked| corked.destination);
            let behind = line == "  pending error: corking the data takes it away";
            let elsewhere = checkpoint.endpoint.peer.is_some_and(|p| Some(p) != to);
            let local = checkpoint
                .errors
                .queue
                .iter()
                .any(|entry| entry.origin == 1);
            let behind = behind && to.is_some() && (elsewhere || local);
            // `tell_statistics` says by what chance.
            let chance = line.starts_with("  error queue: SCM_TIMESTAMPING_OPT_STATS");
            chance
                || behind
                || (strands && connected && plan.waits.corks_early())
                || (drops && counts && !checkpoint.receive_queue.is_empty())
        })
}

fn there_and_back(plan: &Plan, devices: &[Device], tally: &mut Tally) -> Result<(), TestCaseError> {
    let original = build(plan, devices, tally);
    let before = view(&original);
    let checkpoint = Checkpoint::dump(&original).map_err(fail)?;
    compare(&before, &view(&original))?;
    check_json(&checkpoint)?;
    let told = received(&original, &checkpoint)?;
    drop(original);
    let image = checkpoint.to_bytes().map_err(fail)?;
    let decoded = Checkpoint::from_bytes(&image).map_err(fail)?;
    prop_assert_eq!(&decoded, &checkpoint);
    let restored = decoded.restore(&RestoreOptions::default());
    if lost(&checkpoint) {
        prop_assert!(restored.is_err(), "the report says that something is lost");
        return Ok(());
    }
    prop_assert!(
        checkpoint.report.is_exact(),
        "{:?}",
        checkpoint.report.not_carried
    );
    let restored = match restored {
        Err(refused) if refuses_rightly(plan, &checkpoint, &refused) => return Ok(()),
        restored => restored.map_err(fail)?,
    };
    let again = Checkpoint::dump(&restored.fd).map_err(fail)?;
    compare(&before, &view(&restored.fd))?;
    let differences = sockcr::diff::diff(&checkpoint, &again);
    prop_assert!(differences.is_empty(), "{:?}", differences);
    let image = |checkpoint: Checkpoint| checkpoint.canonical().to_bytes().map_err(fail);
    prop_assert!(
        image(checkpoint)? == image(again)?,
        "the images differ, and diff sees nothing"
    );
    let again = received(&restored.fd, &decoded)?;
    prop_assert_eq!(told.len(), again.len());
    for (told, again) in told.iter().zip(&again) {
        prop_assert_eq!(told, again);
    }
    Ok(())
}

/// What the owner is told, datagrams and errors, when it wants to know everything about them.
fn received(socket: &OwnedFd, of: &Checkpoint) -> Result<Vec<Message>, TestCaseError> {
    if !of.protocol.is_udp() {
        return Ok(Vec::new());
    }
    let ipv6 = of.protocol.is_ipv6();
    let of_ipv6 = EVERYTHING6.iter().filter(|_| ipv6);
    for (level, name) in EVERYTHING.iter().chain(of_ipv6) {
        socket::set_int(socket, *level, *name, 1).map_err(fail)?;
    }
    let mut all = Vec::new();
    let datagrams = of.receive_queue.iter().map(|d| (0, d.received_at));
    let errors = of
        .errors
        .queue
        .iter()
        .map(|e| (libc::MSG_ERRQUEUE, e.received_at));
    for (flags, received_at) in errors.chain(datagrams) {
        // A pending error is told first.
        socket::get_int(socket, SOCKET, SO_ERROR).map_err(fail)?;
        let mut message = message::receive(socket, flags)
            .map_err(fail)?
            .ok_or_else(|| fail("less than was dumped"))?;
        // Of one without a time the kernel tells that of asking.
        if received_at == 0 {
            message
                .controls
                .retain(|(level, kind, _)| *level != SOCKET || !TIMES.contains(kind));
        }
        all.push(message);
    }
    Ok(all)
}

const IPPROTO_ICMPV6: u16 = 58;
/// TCP_CLOSE: not connected.
const CLOSED: u8 = 7;
const SO_ERROR: i32 = 4;
/// SO_TIMESTAMPNS, SO_RCVMARK, SO_RCVPRIORITY; IP_RECVOPTS, IP_RETOPTS, IP_PKTINFO, IP_RECVTTL,
/// IP_RECVTOS, IP_RECVORIGDSTADDR; UDP_GRO.
const EVERYTHING: [(i32, i32); 10] = [
    (SOCKET, 35),
    (SOCKET, 75),
    (SOCKET, 82),
    (IP, 6),
    (IP, 7),
    (IP, 8),
    (IP, 12),
    (IP, 13),
    (IP, 20),
    (UDP, 104),
];
/// IPV6_RECVPKTINFO, IPV6_RECVHOPLIMIT, IPV6_RECVHOPOPTS, IPV6_RECVRTHDR, IPV6_RECVDSTOPTS,
/// IPV6_RECVTCLASS, IPV6_RECVORIGDSTADDR; IPV6_FLOWINFO; their forms of RFC 2292.
const EVERYTHING6: [(i32, i32); 13] = [
    (IPV6, 49),
    (IPV6, 51),
    (IPV6, 53),
    (IPV6, 56),
    (IPV6, 58),
    (IPV6, 66),
    (IPV6, 74),
    (IPV6, 11),
    (IPV6, 2),
    (IPV6, 3),
    (IPV6, 4),
    (IPV6, 5),
    (IPV6, 8),
];
/// SO_TIMESTAMP, SO_TIMESTAMPNS and SO_TIMESTAMPING, old and new.
const TIMES: [i32; 6] = [29, 35, 37, 63, 64, 65];

fn config() -> ProptestConfig {
    let cases = std::env::var("SOCKCR_CASES")
        .ok()
        .and_then(|text| text.parse().ok());
    ProptestConfig {
        cases: cases.unwrap_or(300),
        source_file: Some(file!()),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/property.regressions",
        ))),
        ..ProptestConfig::default()
    }
}

/// So that what was sent has come when the next step begins: each processor has a backlog of its own
/// (`enqueue_to_backlog`).
fn on_one_processor() -> Outcome {
    let mut one = rustix::thread::CpuSet::new();
    one.set(rustix::thread::sched_getcpu());
    Ok(rustix::thread::sched_setaffinity(None, &one)?)
}

#[test]
fn random_sockets_come_back() -> Outcome {
    if let Err(why) = reader() {
        return skip(&why);
    }
    socket::ignore_signals()?;
    isolated(|| {
        let devices = place::devices()?;
        for device in &devices {
            // What comes from the other end of the cable comes from an address of this host.
            place::sysctl(&format!("net.ipv4.conf.{}.accept_local", device.name), "1")?;
        }
        on_one_processor()?;
        let tally = RefCell::new(Tally::default());
        let mut runner = TestRunner::new(config());
        runner.run(&plan(&devices), |plan| {
            there_and_back(&plan, &devices, &mut tally.borrow_mut())
        })?;
        let tally = tally.into_inner();
        let refused: u32 = tally.refused.values().sum();
        println!(
            "{} steps taken, {refused} refused: {:?}",
            tally.taken, tally.refused
        );
        assert!(
            refused < tally.taken / 4,
            "most of what is drawn must take effect"
        );
        Ok(())
    })
}
