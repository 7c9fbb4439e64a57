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
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{FileFailurePersistence, TestCaseError, TestRunner};

use message::Message;
use rustix::net::{SendFlags, Shutdown};
use sockcr::kernel::Hidden;
use sockcr::option::{Kind, Row, Value};
use sockcr::{Checkpoint, RestoreOptions, json};
use sockcr_sys::descriptor;

use support::place::{self, Device, isolated};
use support::socket::{self, IP, Instruction, SOCKET, UDP, instruction, udp};
use support::values::{self, IP_OPTIONS};
use support::{Outcome, reader, skip};
use waits::Waits;

/// How a socket comes to its address.
#[derive(Clone, Debug)]
enum Way {
    Unbound,
    /// A send() without a destination.
    Autobind,
    /// bind(2), with port 0 for one of the kernel's choice.
    Bind(Ipv4Addr, u16),
    /// IP_BIND_ADDRESS_NO_PORT and bind(address, 0).
    AddressOnly(Ipv4Addr),
}

/// What happens after that.
#[derive(Clone, Debug)]
enum Then {
    Nothing,
    Connect(Ipv4Addr, u16),
    /// connect(2) and then connect(AF_UNSPEC).
    Disconnect(Ipv4Addr, u16),
    /// Two connections: the first one's source address stays.
    Reconnect((Ipv4Addr, u16), (Ipv4Addr, u16)),
}

#[derive(Clone, Copy, Debug)]
enum Mode {
    Any,
    Except,
    Only,
}

#[derive(Clone, Debug)]
struct Join {
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

#[derive(Clone, Debug)]
struct Plan {
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

const SIGNALS: [i32; 5] = [0, libc::SIGIO, libc::SIGUSR1, 34, 64];

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![1u16..1024, 1024u16..32_768, 32_768u16..=65_535]
}

fn local(devices: &[Device]) -> impl Strategy<Value = Ipv4Addr> + use<> {
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

fn peer() -> impl Strategy<Value = (Ipv4Addr, u16)> {
    let others = [
        Ipv4Addr::new(10, 9, 0, 2),
        Ipv4Addr::new(10, 9, 1, 2),
        Ipv4Addr::new(10, 9, 0, 255),
        Ipv4Addr::new(239, 1, 1, 1),
        Ipv4Addr::UNSPECIFIED,
    ];
    let loopback = any::<(u8, u8)>().prop_map(|(c, d)| Ipv4Addr::new(127, 0, c, d | 1));
    let address = prop_oneof![2 => loopback, 1 => select(others.to_vec())];
    (address, prop_oneof![9 => port(), 1 => Just(0)])
}

fn way(devices: &[Device]) -> impl Strategy<Value = Way> + use<> {
    prop_oneof![
        1 => Just(Way::Unbound),
        1 => Just(Way::Autobind),
        2 => local(devices).prop_map(|address| Way::Bind(address, 0)),
        3 => (local(devices), port()).prop_map(|(address, port)| Way::Bind(address, port)),
        1 => local(devices).prop_map(Way::AddressOnly),
    ]
}

fn then() -> impl Strategy<Value = Then> {
    prop_oneof![
        3 => Just(Then::Nothing),
        3 => peer().prop_map(|(address, port)| Then::Connect(address, port)),
        1 => peer().prop_map(|(address, port)| Then::Disconnect(address, port)),
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
        Kind::Bytes(_) => select(
            IP_OPTIONS
                .iter()
                .map(|bytes| Value::Bytes(bytes.to_vec()))
                .collect::<Vec<_>>(),
        )
        .boxed(),
        _ => sample.boxed(),
    }
}

/// A subset of the carried options, in any order.
fn options(devices: &[Device]) -> impl Strategy<Value = Vec<(&'static Row, bool, Value)>> + use<> {
    let rows = sockcr::protocol::ALL[0].carried();
    let each: Vec<_> = rows
        .map(|row| {
            let setting = (Just(row), any::<bool>(), value(row, devices));
            proptest::option::weighted(0.25, setting).boxed()
        })
        .collect();
    each.prop_map(|drawn| drawn.into_iter().flatten().collect::<Vec<_>>())
        .prop_shuffle()
}

fn join() -> impl Strategy<Value = Join> {
    let mode = select(vec![Mode::Any, Mode::Except, Mode::Only]);
    let sources = proptest::collection::vec(any::<u8>(), 1..=10);
    (any::<u16>(), 0..3usize, any::<bool>(), mode, sources).prop_map(
        |(group, device, by_address, mode, sources)| Join {
            group,
            device,
            by_address,
            mode,
            sources,
        },
    )
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

fn plan(devices: &[Device]) -> impl Strategy<Value = Plan> + use<> {
    let few = proptest::collection::vec(join(), 0..=20);
    let joins = prop_oneof![3 => Just(Vec::new()), 2 => few];
    let filter = prop_oneof![2 => Just(Vec::new()), 1 => filter()];
    let buffer_locks = proptest::option::weighted(0.3, 0..4i32);
    let shutdown = proptest::option::weighted(0.2, 0..3u8);
    let address = (way(devices), then(), shutdown);
    (
        address,
        options(devices),
        buffer_locks,
        joins,
        filter,
        (flags(), waits::strategy()),
    )
        .prop_map(
            |((way, then, shutdown), options, buffer_locks, joins, filter, (flags, waits))| Plan {
                way,
                then,
                shutdown,
                options,
                buffer_locks,
                joins,
                filter,
                flags,
                waits,
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
    let socket = udp().unwrap();
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
    let group = plan
        .joins
        .first()
        .map_or(0, |join| join.group)
        .to_be_bytes();
    let group = Ipv4Addr::new(239, 7, group[0], group[1]);
    plan.waits.come(&socket, group, devices, &mut done);
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
        Way::Bind(address, port) => tally.count("bind", socket::bind(socket, (address, port))),
        Way::AddressOnly(address) => {
            socket::set_int(socket, IP, BIND_ADDRESS_NO_PORT, 1).unwrap();
            tally.count("bind", socket::bind(socket, (address, 0)));
        }
    }
}

fn connect(socket: &OwnedFd, then: &Then, tally: &mut Tally) {
    let mut to = |(address, port)| tally.count("connect", socket::connect(socket, (address, port)));
    match *then {
        Then::Nothing => {}
        Then::Connect(address, port) => to((address, port)),
        Then::Disconnect(address, port) => {
            to((address, port));
            rustix::net::connect_unspec(socket).unwrap();
        }
        Then::Reconnect(first, second) => {
            to(first);
            to(second);
        }
    }
}

fn join_group(socket: &OwnedFd, join: &Join, devices: &[Device], tally: &mut Tally) {
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
    // everybody; counters that the owner is told.
    let known = [
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
    lines.all(|line| {
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
    for (level, name) in EVERYTHING {
        socket::set_int(socket, level, name, 1).map_err(fail)?;
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
