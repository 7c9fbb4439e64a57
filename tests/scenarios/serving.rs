//! The service: who may do what, and what becomes of it with clients that mean it no good.

use anyhow::{Context, bail, ensure};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use rustix::process::{Pid, PidfdFlags, Signal, Uid, kill_process, pidfd_open};
use rustix::thread::set_thread_res_uid;
use serde_json::json;
use sockcr::Checkpoint;
use sockcr_image::attribute::Writer;
use sockcr_image::number;
use sockcr_scenarios::command::{NOBODY, done};
use sockcr_scenarios::guest::Guest;
use sockcr_scenarios::need::Need;
use sockcr_scenarios::process::{Process, children, program};
use sockcr_scenarios::service::{self, Raw, SOCKET, Service, by_inode, header};
use sockcr_scenarios::socket::{self, local, of_process, target};
use sockcr_scenarios::{Outcome, Scenario, dns, harness, remains, wait};
use sockcr_service::message::{Command, MAX_MESSAGE, flags};
use sockcr_service::{MOST_CLIENTS, MOST_OF_ONE};
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

pub const ALL: &[Scenario] = &[
    Scenario::new("serving::who_may_dump_what", ROOT, who_may_dump_what),
    Scenario::new("serving::who_may_restore_what", ROOT, who_may_restore_what),
    Scenario::new(
        "serving::becoming_somebody_else",
        ROOT,
        becoming_somebody_else,
    ),
    Scenario::new(
        "serving::changed_before_it_is_served",
        ROOT,
        changed_before_it_is_served,
    ),
    Scenario::new(
        "serving::a_number_that_is_used_again",
        PID_NAMESPACE,
        a_number_that_is_used_again,
    ),
    Scenario::new("serving::half_a_request", ROOT, half_a_request),
    Scenario::new("serving::wrong_lengths", ROOT, wrong_lengths),
    Scenario::new("serving::thousands_of_clients", ROOT, thousands_of_clients),
    Scenario::new(
        "serving::descriptors_by_the_hundred",
        ROOT,
        descriptors_by_the_hundred,
    ),
    Scenario::new("serving::one_that_never_reads", ROOT, one_that_never_reads),
    Scenario::new("serving::garbage", ROOT, garbage),
    Scenario::new(
        "serving::killed_while_it_answers",
        ROOT,
        killed_while_it_answers,
    ),
    Scenario::new(
        "serving::killed_while_it_restores",
        ROOT,
        killed_while_it_restores,
    ),
    Scenario::new("serving::killed_at_the_root", ROOT, killed_at_the_root),
    Scenario::new("serving::dnsmasq_from_inside", DNSMASQ, dnsmasq_from_inside),
    Scenario::new(
        "serving::ends_when_it_has_answered",
        ROOT,
        ends_when_it_has_answered,
    ),
    Scenario::new(
        "serving::started_by_its_socket",
        ROOT,
        started_by_its_socket,
    ),
];

const ROOT: &[Need] = &[Need::Root];
const PID_NAMESPACE: &[Need] = &[Need::Root, Need::Program("unshare")];
const DNSMASQ: &[Need] = &[
    Need::Root,
    Need::Program("dnsmasq"),
    Need::Program("nsenter"),
];

const OK: i32 = 0;
const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EACCES: i32 = 13;
/// EOPNOTSUPP: the kernel does not let the client set all that is in it.
const INEXACT: i32 = 95;

/// Whose the sockets are.
const OWNER: &str = "4001";

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// The user whose the sockets are.
    Same,
    /// The same user, root of a user namespace of its own: a sandbox.
    Sandboxed,
    /// Another user.
    Other,
    /// Another user, root of a user namespace of its own; in a network namespace that is not of it.
    RootOfItsOwn,
    /// The same in a network namespace of it.
    Container,
    /// Another user with CAP_NET_ADMIN alone.
    NetAdmin,
    /// Another user with CAP_CHECKPOINT_RESTORE alone.
    CheckpointRestore,
    /// User 0 without any capability.
    Nothing,
}

use Who::{CheckpointRestore, Container, NetAdmin, Nothing, Other, RootOfItsOwn, Same, Sandboxed};

impl Who {
    fn orders(self) -> Vec<String> {
        let orders: &[&str] = match self {
            Same => &["be 4001"],
            Sandboxed => &["be 4001", "unshare user"],
            Other => &["be 4002"],
            RootOfItsOwn => &["be 4002", "unshare user"],
            Container => &["be 4002", "unshare both"],
            NetAdmin => &["be 4002 net_admin"],
            CheckpointRestore => &["be 4002 checkpoint_restore"],
            Nothing => &["be 0 -"],
        };
        orders.iter().map(|order| (*order).to_owned()).collect()
    }

    fn start(self) -> anyhow::Result<Guest> {
        let orders = self.orders();
        Guest::start(&orders.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// How somebody comes into a network namespace below: of a user namespace that this one has made; that it is in; or
    /// that is below the one where it has its capability.
    fn child(self, guest: &Guest) -> [String; 2] {
        let orders = match self {
            Same => ["be 4001", "unshare both"],
            Other => ["be 4002", "unshare both"],
            Nothing => ["be 0", "unshare both"],
            NetAdmin | CheckpointRestore => ["be 4003", "unshare both"],
            RootOfItsOwn | Container | Sandboxed => {
                return [format!("user-of {}", guest.pid()), "unshare net".into()];
            }
        };
        orders.map(str::to_owned)
    }
}

/// The network namespace of the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// That of the client.
    Own,
    /// One of a user namespace that the client has made, is in, or has its capability above of.
    Child,
    /// One that the user namespace of the machine owns, like that of the service.
    Foreign,
}

use Place::{Child, Foreign, Own};

/// What is answered to a dump by INODE, by TARGET `PID:FD`, and by PASSED.
const DUMPS: [(Who, Place, [i32; 3]); 24] = [
    (Same, Own, [OK, OK, OK]),
    (Same, Child, [ENOENT, OK, OK]),
    (Same, Foreign, [ENOENT, ENOENT, ENOENT]),
    (Sandboxed, Own, [EPERM, EPERM, OK]),
    (Sandboxed, Child, [ENOENT, OK, OK]),
    (Sandboxed, Foreign, [ENOENT, ENOENT, ENOENT]),
    (Other, Own, [EPERM, EPERM, OK]),
    (Other, Child, [ENOENT, OK, OK]),
    (Other, Foreign, [ENOENT, ENOENT, ENOENT]),
    (RootOfItsOwn, Own, [EPERM, EPERM, OK]),
    (RootOfItsOwn, Child, [ENOENT, OK, OK]),
    (RootOfItsOwn, Foreign, [ENOENT, ENOENT, ENOENT]),
    (Container, Own, [OK, OK, OK]),
    (Container, Child, [ENOENT, OK, OK]),
    (Container, Foreign, [ENOENT, ENOENT, ENOENT]),
    (NetAdmin, Own, [OK, OK, OK]),
    (NetAdmin, Child, [ENOENT, OK, OK]),
    (NetAdmin, Foreign, [ENOENT, OK, OK]),
    (CheckpointRestore, Own, [OK, OK, OK]),
    (CheckpointRestore, Child, [ENOENT, OK, OK]),
    (CheckpointRestore, Foreign, [ENOENT, OK, OK]),
    (Nothing, Own, [EPERM, EPERM, OK]),
    (Nothing, Child, [ENOENT, OK, OK]),
    (Nothing, Foreign, [ENOENT, ENOENT, ENOENT]),
];

/// A process of somebody with a socket.
struct Held {
    guest: Guest,
    fd: i64,
    inode: i64,
}

impl Held {
    fn start(orders: &[&str]) -> anyhow::Result<Held> {
        let mut guest = Guest::start(orders)?;
        let facts = guest.tell("hold 127.0.0.1:0")?;
        let fd = facts["fd"].as_i64().context("no descriptor")?;
        Ok(Held {
            fd,
            inode: facts["inode"].as_i64().context("no inode")?,
            guest,
        })
    }
}

fn who_may_dump_what() -> Outcome {
    let service = Service::start()?;
    let here = Held::start(&[&format!("be {OWNER}")])?;
    let foreign = Held::start(&["unshare net", &format!("be {OWNER}")])?;
    let mut wrong = Vec::new();
    for (who, place, expected) in DUMPS {
        let mut client = who.start()?;
        let target = match place {
            // The network namespace that a container made is its own.
            Own if who == Container => {
                let pid = client.pid();
                &Held::start(&[&format!("net {pid}"), &format!("be {OWNER}")])?
            }
            Own => &here,
            Child => {
                let [first, second] = who.child(&client);
                &Held::start(&[&first, &second])?
            }
            Foreign => &foreign,
        };
        client.tell(&format!("connect {SOCKET}"))?;
        let asked = [
            format!("inode {}", target.inode),
            format!("target {}:{}", target.guest.pid(), target.fd),
            "passed".to_owned(),
        ];
        for (ask, expected) in asked.iter().zip(expected) {
            if ask == "passed" {
                // Not before: who has a descriptor of it holds it, and may name it in any way.
                client.give(&of_process(target.guest.pid(), target.fd)?)?;
            }
            let told = client.tell(ask)?;
            if told["errno"] != expected {
                wrong.push(format!(
                    "{who:?} {place:?} {ask}: {expected} was due: {told}"
                ));
            }
        }
        client.kill()?;
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    service.idle()
}

/// What is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Plain,
    Mark,
    Transparent,
    Port53,
    LargeBuffer,
    Waiting,
}

const WHAT: [What; 6] = [
    What::Plain,
    What::Mark,
    What::Transparent,
    What::Port53,
    What::LargeBuffer,
    What::Waiting,
];

/// What is answered to a restore of each.
const RESTORES: [(Who, [i32; 6]); 7] = [
    (Same, [OK, INEXACT, INEXACT, EACCES, INEXACT, EPERM]),
    (Other, [OK, INEXACT, INEXACT, EACCES, INEXACT, EPERM]),
    (RootOfItsOwn, [OK, INEXACT, INEXACT, EACCES, INEXACT, EPERM]),
    // The limit of buffers is that of the machine.
    (Container, [OK, OK, OK, OK, INEXACT, OK]),
    (NetAdmin, [OK, OK, OK, EACCES, OK, OK]),
    (
        CheckpointRestore,
        [OK, INEXACT, INEXACT, EACCES, INEXACT, OK],
    ),
    (Nothing, [OK, INEXACT, INEXACT, EACCES, INEXACT, EPERM]),
];

const MARK: i32 = 7;
/// More than the kernel gives to who asks without a right (`net.core.rmem_max`).
const BUFFER: i32 = 32 << 20;

impl What {
    /// The image of such a socket, which is closed again.
    fn image(self) -> anyhow::Result<(String, UdpSocket)> {
        const SOL_SOCKET: i32 = 1;
        const SO_RCVBUFFORCE: i32 = 33;
        const SO_MARK: i32 = 36;
        const IP_TRANSPARENT: i32 = 19;
        let port = match self {
            What::Port53 => 53,
            _ => 7080,
        };
        let socket = UdpSocket::bind(local(port))?;
        let set = |level, name, value: i32| {
            sockcr_sys::sockopt::set(socket.as_fd(), level, name, &value.to_ne_bytes())
        };
        let sender = UdpSocket::bind(local(7081))?;
        match self {
            What::Plain | What::Port53 => {}
            What::Mark => set(SOL_SOCKET, SO_MARK, MARK)?,
            What::Transparent => set(0, IP_TRANSPARENT, 1)?,
            What::LargeBuffer => set(SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)?,
            What::Waiting => {
                sender.send_to(b"it waits", local(port))?;
            }
        }
        let image = format!("{self:?}.skc");
        done(["dump", &target(&socket), "-o", &image])?.quiet()?;
        std::fs::set_permissions(&image, PermissionsExt::from_mode(0o644))?;
        Ok((image, socket))
    }

    /// How the restored one shows that it is this.
    fn shows(self, told: &serde_json::Value) -> Outcome {
        let port = if self == What::Port53 { 53 } else { 7080 };
        ensure!(
            told["local"] == format!("127.0.0.1:{port}"),
            "its address: {told}"
        );
        let waited = match self {
            What::Waiting => json!([["127.0.0.1:7081", "it waits"]]),
            _ => json!([]),
        };
        ensure!(told["waited"] == waited, "what waited: {told}");
        let is = |which: usize, value: i32| told["options"][which] == value;
        ensure!(
            is(0, if self == What::Mark { MARK } else { 0 }),
            "SO_MARK: {told}"
        );
        ensure!(
            is(1, (self == What::Transparent).into()),
            "IP_TRANSPARENT: {told}"
        );
        ensure!(
            is(2, 2 * BUFFER) == (self == What::LargeBuffer),
            "SO_RCVBUF: {told}"
        );
        Ok(())
    }
}

fn who_may_restore_what() -> Outcome {
    let images = WHAT.map(|what| what.image().map(|(image, _closed)| (what, image)));
    let images: anyhow::Result<Vec<(What, String)>> = images.into_iter().collect();
    let images = images?;
    let service = Service::start()?;
    let elsewhere = Guest::start(&["unshare net"])?;
    let mut wrong = Vec::new();
    for (who, expected) in RESTORES {
        for moved in [false, true] {
            let mut orders = who.orders();
            if moved {
                orders.insert(0, format!("net {}", elsewhere.pid()));
            }
            let orders: Vec<&str> = orders.iter().map(String::as_str).collect();
            let mut client = Guest::start(&orders)?;
            client.tell(&format!("connect {SOCKET}"))?;
            for ((what, image), expected) in images.iter().zip(expected) {
                let told = client.tell(&format!("restore {image}"))?;
                let name = format!("{who:?} (moved: {moved}) {what:?}");
                if told["errno"] != expected {
                    wrong.push(format!("{name}: {expected} was due: {told}"));
                } else if expected == OK
                    && let Err(error) = what.shows(&told)
                {
                    wrong.push(format!("{name}: {error}"));
                }
            }
            client.kill()?;
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    service.idle()
}

/// What counts is who connected, whatever that has become since.
fn becoming_somebody_else() -> Outcome {
    let service = Service::start()?;
    let owned = Held::start(&[&format!("be {OWNER}")])?;
    let inode = format!("inode {}", owned.inode);
    let connect = format!("connect {SOCKET}");

    // With all rights, lowered for connect(2) alone.
    let mut lowered = Guest::start(&["lower 4002", &connect, "raise"])?;
    ensure!(lowered.tell("who")?["user"] == 0, "is not root again");
    ensure!(
        lowered.errno(&inode)? == EPERM,
        "root by what it has become"
    );
    lowered.tell(&connect)?;
    ensure!(lowered.errno(&inode)? == OK, "not root by what it is");

    // The same by a program that gives rights to who runs it.
    let rights = std::env::current_dir()?.join("rights");
    std::fs::copy("/proc/self/exe", &rights)?;
    std::fs::set_permissions(&rights, PermissionsExt::from_mode(0o4755))?;
    let mut raised = Guest::start(&["be 4002", &connect])?;
    ensure!(raised.errno(&inode)? == EPERM, "it is not its own");
    raised.tell(&format!("exec {}", rights.display()))?;
    ensure!(
        raised.tell("who")?["user"] == 0,
        "the program gave no right"
    );
    ensure!(raised.errno(&inode)? == EPERM, "root by what it runs");
    raised.tell(&connect)?;
    ensure!(raised.errno(&inode)? == OK, "not root by what it is");

    // What it had it keeps on this connection.
    let mut dropped = Guest::start(&[&connect, "be 4002"])?;
    ensure!(
        dropped.errno(&inode)? == OK,
        "it was root when it connected"
    );
    dropped.tell(&connect)?;
    ensure!(dropped.errno(&inode)? == EPERM, "it is root no more");
    drop((lowered, raised, dropped));
    service.idle()
}

/// Who changes between connect(2) and the service's first look.
fn changed_before_it_is_served() -> Outcome {
    let service = Service::start()?;
    let owned = Held::start(&[&format!("be {OWNER}")])?;
    let elsewhere = Guest::start(&["unshare net"])?;
    let inode = format!("inode {}", owned.inode);
    let connect = format!("connect {SOCKET}");
    let net = format!("net {}", elsewhere.pid());
    let cases: [(&[&str], &[&str], i32); 6] = [
        (&["lower 4002"], &["raise"], EPERM),
        (&[], &["be 4002"], OK),
        (&["be 4001"], &[], OK),
        // The namespaces of another place are nobody's that connected here.
        (&["be 4002"], &["unshare user"], EPERM),
        (&["be 4001"], &["unshare both"], EPERM),
        (&[], &[&net], EPERM),
    ];
    for (before, after, expected) in cases {
        let mut client = Guest::start(before)?;
        service.process.signal(Signal::STOP)?;
        client.tell(&connect)?;
        for order in after {
            client.tell(order)?;
        }
        service.process.signal(Signal::CONT)?;
        let told = client.tell(&inode)?;
        ensure!(
            told["errno"] == expected,
            "{before:?}, then {after:?}: {expected} was due: {told}"
        );
    }
    service.idle()
}

/// Told in a PID namespace of its own, where nobody else takes numbers.
fn a_number_that_is_used_again() -> Outcome {
    let mut command = program("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
    command.arg(std::env::current_exe()?);
    let mut process = Process::start(command.args([harness::ACTOR, "0", "reused"]))?;
    let told = process.facts()?;
    ensure!(told == "ok", "{told}");
    ensure!(process.end()?.success());
    Ok(())
}

/// A client as this user, which this process is for the moment only.
fn client_as(service: &Service, user: u32) -> anyhow::Result<Raw> {
    let be = |user: u32| set_thread_res_uid(Uid::ROOT, Uid::from_raw(user), Uid::ROOT);
    be(user)?;
    let client = service.client();
    be(0)?;
    client
}

/// What a process of the service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Has {
    descriptors: usize,
    /// VmRSS, in KiB.
    memory: u64,
}

fn has(pid: i32) -> anyhow::Result<Has> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let memory = memory.and_then(|text| text.trim().split(' ').next());
    Ok(Has {
        descriptors: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        memory: memory.context("no memory")?.parse()?,
    })
}

/// What its first process has when it has served one and has no client.
fn settled(service: &Service) -> anyhow::Result<Has> {
    serves(&mut service.client()?)?;
    service.idle()?;
    has(service.process.pid())
}

/// More memory than before is allowed, in KiB: what the allocator has not given back.
const SPARE: u64 = 512;

/// Waits until the first process has what it had, and serves.
fn is_back(service: &Service, before: Has) -> Outcome {
    service.idle()?;
    let pid = service.process.pid();
    wait::until("descriptors and memory of before", || {
        let now = has(pid)?;
        let back = now.descriptors == before.descriptors && now.memory <= before.memory + SPARE;
        Ok(back.then_some(()))
    })
    .with_context(|| format!("had {before:?}, has {:?}", has(pid)))?;
    serves(&mut service.client()?)
}

/// It answers a client that means it well.
fn serves(client: &mut Raw) -> Outcome {
    let socket = UdpSocket::bind(local(0))?;
    let told = client.dump_inode(socket::inode(&socket)?)?.done()?;
    ensure!(
        told.sockets()?[0].endpoint.local == socket.local_addr()?,
        "another socket"
    );
    Ok(())
}

/// A socket in which this many datagrams of 60 000 bytes wait.
fn full(datagrams: usize) -> anyhow::Result<UdpSocket> {
    const SO_RCVBUFFORCE: i32 = 33;
    let socket = UdpSocket::bind(local(0))?;
    let size = (64_i32 << 20).to_ne_bytes();
    sockcr_sys::sockopt::set(socket.as_fd(), 1, SO_RCVBUFFORCE, &size)?;
    let sender = UdpSocket::bind(local(0))?;
    for _ in 0..datagrams {
        sender.send_to(&[0x5a; 60_000], socket.local_addr()?)?;
    }
    Ok(socket)
}

/// A request to restore that never ends.
fn half_a_request() -> Outcome {
    const LONGEST: Duration = Duration::from_secs(10);
    let service = Service::start()?;
    let mut other = service.client()?;
    serves(&mut other)?;
    let checkpoint = Checkpoint::from_bytes(&std::fs::read(What::Waiting.image()?.0)?)?;
    let mut halves = Vec::new();
    for many in 1..3 {
        let mut half = service.client()?;
        let packets = service::restore(&half.begin(), &checkpoint)?;
        ensure!(packets.len() == 3, "{} packets", packets.len());
        for packet in &packets[..many] {
            half.send(packet, &[])?;
        }
        halves.push(half);
    }
    let begun = Instant::now();
    let mut served = 0;
    while !halves[0].has_something(Duration::from_millis(1))? {
        ensure!(begun.elapsed() < LONGEST * 2, "it is never let go");
        serves(&mut other)?;
        served += 1;
    }
    ensure!(
        begun.elapsed() >= LONGEST * 9 / 10,
        "let go after {:?}",
        begun.elapsed()
    );
    ensure!(served > 20, "only {served} of another client were served");
    for mut half in halves {
        half.answer()?
            .context("closed without a word")?
            .refused(Errno::TIME)?;
        half.is_closed()?;
    }
    drop(other);
    service.idle()
}

/// Lengths that are wrong, in the header and in attributes.
fn wrong_lengths() -> Outcome {
    let service = Service::start()?;
    let before = settled(&service)?;
    let dump = |attributes: &[u8]| header(2).family(Command::Dump, flags::REQUEST, attributes);
    let says = |length: u32| {
        let mut packet = dump(&by_inode(1).unwrap_or_default());
        packet[..4].copy_from_slice(&length.to_ne_bytes());
        packet
    };
    let attribute = |length: u16| {
        let mut attributes = by_inode(1).unwrap_or_default();
        attributes[..2].copy_from_slice(&length.to_ne_bytes());
        dump(&attributes)
    };
    let valid = says(28);
    // Whether the connection goes on.
    let mut cases = vec![(valid.clone(), Errno::NOENT, true)];
    cases.extend(
        [0, 1, 15, 16, 20, 27, 29, 4096, u32::MAX].map(|length| (says(length), Errno::INVAL, true)),
    );
    cases.extend(
        [0, 1, 3, 4, 7, 9, 12, 100, u16::MAX].map(|length| (attribute(length), Errno::INVAL, true)),
    );
    cases.extend((1..16).map(|length| (valid[..length].to_vec(), Errno::INVAL, false)));
    cases.extend((16..28).map(|length| (valid[..length].to_vec(), Errno::INVAL, true)));
    // Each attribute says that it is larger than the message; the message is larger than any.
    let large = vec![0xff; MAX_MESSAGE - 20];
    cases.push((dump(&large), Errno::INVAL, true));
    cases.push((dump(&[&large[..], &[0]].concat()), Errno::MSGSIZE, true));
    let mut client = service.client()?;
    for (packet, errno, goes_on) in &cases {
        let what = format!(
            "{} bytes: {:02x?}",
            packet.len(),
            &packet[..packet.len().min(32)]
        );
        client.next_is(2);
        client.send(packet, &[])?;
        let told = client
            .answer()?
            .with_context(|| format!("{what}: closed"))?;
        told.refused(*errno).context(what.clone())?;
        if !goes_on {
            client.is_closed().context(what)?;
            client = service.client()?;
        }
    }
    serves(&mut client)?;
    drop(client);
    is_back(&service, before)
}

/// Thousands of connections: of one user, and of many.
fn thousands_of_clients() -> Outcome {
    const THOUSANDS: usize = 3000;
    const FIRST_USER: u32 = 5000;
    let service = Service::start()?;
    let mut other = client_as(&service, 4999)?;
    other_is_served(&mut other)?;
    let main = service.process.pid();
    let before = has(main)?;

    let mut of_one = Vec::new();
    for at in 0..THOUSANDS {
        let mut client = client_as(&service, FIRST_USER)?;
        if at < MOST_OF_ONE {
            // Its broker is there.
            client.dump_inode(0)?.refused(Errno::NOENT)?;
            of_one.push(client);
        } else {
            turned_away(&mut client)?;
        }
    }
    other_is_served(&mut other)?;
    drop(of_one);

    let mut of_many = Vec::new();
    let users = (MOST_CLIENTS - 1).div_ceil(MOST_OF_ONE) as u32;
    'full: for user in (FIRST_USER + 1..).take(users as usize) {
        for _ in 0..MOST_OF_ONE {
            if of_many.len() == MOST_CLIENTS - 1 {
                break 'full;
            }
            let mut client = client_as(&service, user)?;
            // One of before may be on its way.
            let told = wait::until("room for a client", || {
                let told = client.dump_inode(0)?;
                if told.errno() == Errno::USERS.raw_os_error() {
                    client = client_as(&service, user)?;
                    return Ok(None);
                }
                Ok(Some(told))
            })?;
            told.refused(Errno::NOENT)?;
            of_many.push(client);
        }
    }
    ensure!(
        service.brokers()?.len() == MOST_CLIENTS,
        "{} brokers",
        service.brokers()?.len()
    );
    for user in [FIRST_USER, FIRST_USER + 500] {
        turned_away(&mut client_as(&service, user)?)?;
    }
    // That of the service is not kept out by others.
    other_is_served(&mut client_as(&service, 0)?)?;
    other_is_served(&mut other)?;
    drop(of_many);
    wait::until("the end of all but one", || {
        Ok((service.brokers()?.len() == 1).then_some(()))
    })?;
    let after = wait::until("descriptors of before", || {
        let now = has(main)?;
        Ok((now.descriptors == before.descriptors).then_some(now))
    })?;
    ensure!(
        after.memory <= before.memory + SPARE,
        "had {before:?}, has {after:?}"
    );
    other_is_served(&mut other)?;
    drop(other);
    service.idle()
}

fn other_is_served(client: &mut Raw) -> Outcome {
    client.dump_inode(0)?.refused(Errno::NOENT)
}

fn turned_away(client: &mut Raw) -> Outcome {
    let told = client.dump_inode(0)?;
    told.refused(Errno::USERS)?;
    client.is_closed()
}

/// Descriptors by the hundred, beside every kind of message.
fn descriptors_by_the_hundred() -> Outcome {
    const HUNDREDS: usize = 253;
    let service = Service::start()?;
    let socket = UdpSocket::bind(local(0))?;
    let checkpoint = Checkpoint::dump(&socket)?;
    let file = std::fs::File::open("/proc/self/exe")?;
    let mut client = service.client()?;
    serves(&mut client)?;
    let [broker] = service.brokers()?[..] else {
        bail!("one broker was due");
    };
    let [parser] = children(broker)?[..] else {
        bail!("one parser was due");
    };
    let all = [service.process.pid(), broker, parser];
    let count = || -> anyhow::Result<Vec<usize>> {
        all.iter().map(|pid| Ok(has(*pid)?.descriptors)).collect()
    };
    let before = count()?;
    let none: Vec<u8> = Vec::new();
    let inode = by_inode(socket::inode(&socket)?)?;
    let mut passed = Writer::new();
    passed.flag(number::PASSED)?;
    let passed = passed.finish();
    for many in [1, 2, 3, HUNDREDS] {
        let files = vec![file.as_fd(); many];
        for round in 0..100 {
            for (command, attributes) in [
                (Command::Dump, &inode),
                (Command::List, &none),
                (Command::Metrics, &none),
                (Command::Queue, &none),
            ] {
                let told = client.ask(command, attributes, &files)?;
                let errno = if command == Command::Queue {
                    Errno::OPNOTSUPP
                } else {
                    Errno::INVAL
                };
                told.refused(errno)
                    .with_context(|| format!("{command:?} with {many}, {round}"))?;
            }
            let told = client.ask(Command::Dump, &passed, &files)?;
            told.refused(if many == 1 {
                Errno::NOTSOCK
            } else {
                Errno::INVAL
            })?;
            // Beside the first, and beside the last of several.
            for at in [0, 1] {
                let packets = service::restore(&client.begin(), &checkpoint)?;
                for (place, packet) in packets.iter().enumerate() {
                    client.send(packet, if place == at { &files } else { &[] })?;
                }
                client.answer()?.context("closed")?.refused(Errno::INVAL)?;
            }
        }
        serves(&mut client)?;
    }
    let after = count()?;
    ensure!(
        before == after,
        "descriptors of main, broker, parser: had {before:?}, have {after:?}"
    );

    // What was sent by one that did not wait for an answer is not kept either.
    let flood = service.client()?;
    let files = vec![file.as_fd(); HUNDREDS];
    let packet = header(2).family(Command::Metrics, flags::REQUEST, &none);
    for _ in 0..100 {
        match flood.send(&packet, &files) {
            Ok(()) | Err(Errno::TOOMANYREFS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    serves(&mut client)?;
    drop(flood);
    wait::until("the end of the other one", || {
        Ok((service.brokers()?.len() == 1).then_some(()))
    })?;
    let after = count()?;
    ensure!(before == after, "had {before:?}, have {after:?}");
    Ok(())
}

/// One that asks for much, again and again, and reads nothing of it.
fn one_that_never_reads() -> Outcome {
    let service = Service::start()?;
    let socket = full(100)?;
    let before = settled(&service)?;
    let mut greedy = service.client()?;
    let mut other = service.client()?;
    serves(&mut other)?;
    let inode = by_inode(socket::inode(&socket)?)?;
    let request = greedy.begin().family(Command::Dump, flags::REQUEST, &inode);
    let mut asked = 0;
    let begun = Instant::now();
    let (mut served, mut slowest) = (0, Duration::ZERO);
    while !greedy.hung_up()? {
        ensure!(begun.elapsed() < Duration::from_secs(40), "is never let go");
        while greedy.try_send(&request).is_ok() {
            asked += 1;
        }
        let one = Instant::now();
        serves(&mut other)?;
        slowest = slowest.max(one.elapsed());
        served += 1;
        let brokers = service.brokers()?;
        for broker in &brokers {
            // Not as much as it asks for: an answer at a time.
            if let Ok(has) = has(*broker) {
                ensure!(has.memory < 128 << 10, "a broker has {has:?}");
            }
        }
    }
    ensure!(asked > 10, "asked {asked} times only");
    let took = begun.elapsed();
    ensure!(took >= Duration::from_secs(9), "let go after {took:?}");
    ensure!(
        served > 20 && slowest < Duration::from_secs(5),
        "{served} were served, in {slowest:?} at most"
    );
    drop((greedy, other));
    is_back(&service, before)
}

/// What is no message, as fast as it goes.
fn garbage() -> Outcome {
    const ROUNDS: u64 = 300;
    let service = Service::start()?;
    let before = settled(&service)?;
    let mut other = client_as(&service, 4001)?;
    other_is_served(&mut other)?;
    let mut state: u64 = 0x5eed;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut enemies: Vec<Raw> = Vec::new();
    let mut sent = 0_u64;
    for _ in 0..ROUNDS {
        if enemies.len() < 4 {
            enemies.push(service.client()?);
        }
        enemies.retain(|enemy| {
            for _ in 0..50 {
                let length = (next() % 300) as usize;
                let mut packet: Vec<u8> = (0..length).map(|_| next() as u8).collect();
                // Most have a right beginning.
                if !next().is_multiple_of(8) {
                    let command = Command::ALL[(next() % 6) as usize];
                    packet = header(2).family(command, flags::REQUEST, &packet);
                }
                match enemy.try_send(&packet) {
                    Ok(()) => sent += 1,
                    Err(Errno::AGAIN) => break,
                    Err(_) => return false,
                }
            }
            // It reads a little.
            enemy.drain();
            true
        });
        other_is_served(&mut other)?;
    }
    ensure!(sent > 10 * ROUNDS, "only {sent} packets were sent");
    drop((enemies, other));
    is_back(&service, before)
}

/// The children of a broker: the parser, which is filtered, and a restorer.
fn parser_and_restorer(broker: i32) -> anyhow::Result<(Option<i32>, Option<i32>)> {
    let path = format!("/proc/{broker}/task/{broker}/children");
    let (mut parser, mut restorer) = (None, None);
    for child in std::fs::read_to_string(path)?.split_whitespace() {
        // It may have ended.
        let status = std::fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        let child = child.parse()?;
        match status.contains("\nSeccomp:\t2\n") {
            true => parser = Some(child),
            false => restorer = Some(child),
        }
    }
    Ok((parser, restorer))
}

fn only_broker(service: &Service, others: &[i32]) -> anyhow::Result<i32> {
    let mut brokers = service.brokers()?;
    brokers.retain(|broker| !others.contains(broker));
    match brokers[..] {
        [broker] => Ok(broker),
        _ => bail!("one broker was due: {brokers:?}"),
    }
}

fn kill(pid: i32) -> Outcome {
    let pid = Pid::from_raw(pid).context("no process")?;
    Ok(kill_process(pid, Signal::KILL)?)
}

/// What a socket is, as the library sees it.
fn as_dumped(socket: &UdpSocket) -> anyhow::Result<Vec<u8>> {
    Ok(Checkpoint::dump(socket)?.canonical().to_bytes()?)
}

/// A process of the service is killed when a part of a large answer has been read: nothing more comes, or all of it.
fn killed_while_it_answers() -> Outcome {
    let service = Service::start()?;
    let target = full(200)?;
    let before = as_dumped(&target)?;
    let mut other = service.client()?;
    serves(&mut other)?;
    let known = service.brokers()?;
    for round in 0..20 {
        let mut client = service.client()?;
        serves(&mut client)?;
        let broker = only_broker(&service, &known)?;
        let (parser, _) = parser_and_restorer(broker)?;
        let parser = parser.context("no parser")?;
        let request = client.begin().family(
            Command::Dump,
            flags::REQUEST,
            &by_inode(socket::inode(&target)?)?,
        );
        client.send(&request, &[])?;
        for _ in 0..round {
            client.receive()?.context("closed by itself")?;
        }
        kill(if round % 2 == 0 { broker } else { parser })?;
        // A broker that lives ends what it has begun.
        match client.answer()? {
            None => {}
            Some(told) => {
                ensure!(round % 2 == 1, "the broker was killed: {told:?}");
                told.done()?;
            }
        }
        client.is_closed()?;
        wait::until("the end of its processes", || {
            Ok((service.brokers()? == known).then_some(()))
        })?;
        serves(&mut other)?;
    }
    ensure!(as_dumped(&target)? == before, "the target is another one");
    drop(other);
    service.idle()
}

/// A process of the service is killed while a socket is restored, datagram by datagram.
fn killed_while_it_restores() -> Outcome {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Victim {
        Broker,
        Parser,
        Restorer,
    }
    const ROUNDS: u32 = 12;
    let service = Service::start()?;
    let socket = full(300)?;
    let checkpoint = Checkpoint::dump(&socket)?;
    let address = socket.local_addr()?;
    drop(socket);
    let target = full(3)?;
    let before = as_dumped(&target)?;
    let mut other = service.client()?;
    serves(&mut other)?;
    let known = service.brokers()?;
    for victim in [Victim::Broker, Victim::Parser, Victim::Restorer] {
        let mut killed = 0;
        for round in 0..ROUNDS {
            let mut client = service.client()?;
            serves(&mut client)?;
            let broker = only_broker(&service, &known)?;
            for packet in service::restore(&client.begin(), &checkpoint)? {
                client.send(&packet, &[])?;
            }
            let (parser, restorer) = wait::until("a process that restores", || {
                Ok(match parser_and_restorer(broker)? {
                    (Some(parser), Some(restorer)) => Some((parser, restorer)),
                    // It may be done already.
                    _ if client.has_something(Duration::ZERO)? => Some((0, 0)),
                    _ => None,
                })
            })?;
            let pid = match victim {
                Victim::Broker => broker,
                Victim::Parser => parser,
                Victim::Restorer => restorer,
            };
            wait::pause(Duration::from_micros(u64::from(round) * 700))?;
            // It is a child of the broker, which may have waited for it since: then there is none.
            if pid != 0 && kill(pid).is_ok() {
                killed += 1;
            }
            let told = client.answer()?;
            match told {
                None => ensure!(victim != Victim::Restorer, "closed without a word"),
                Some(told) if told.errno() == 0 => {
                    // It was too late: the socket is whole.
                    let socket = told.fd.context("no descriptor")?;
                    ensure!(
                        as_dumped(&socket.into())? == checkpoint.clone().canonical().to_bytes()?,
                        "half a socket"
                    );
                }
                Some(told) => told
                    .refused(Errno::IO)
                    .with_context(|| format!("{victim:?}"))?,
            }
            drop(client);
            wait::until("the end of its processes", || {
                Ok((service.brokers()? == known).then_some(()))
            })?;
            // Nothing has the address.
            drop(UdpSocket::bind(address)?);
            serves(&mut other)?;
        }
        ensure!(
            killed >= ROUNDS / 2,
            "{victim:?} was killed {killed} times only"
        );
    }
    ensure!(as_dumped(&target)? == before, "the target is another one");
    drop(other);
    service.idle()?;
    drop(service);
    remains::none_in_the_kernel()
}

/// The first process is killed: all end, and one that is started at the same place serves on.
fn killed_at_the_root() -> Outcome {
    let target = full(200)?;
    let before = as_dumped(&target)?;
    for round in 0..6 {
        let service = Service::start()?;
        let mut idle = service.client()?;
        serves(&mut idle)?;
        let mut client = service.client()?;
        let request = client.begin().family(
            Command::Dump,
            flags::REQUEST,
            &by_inode(socket::inode(&target)?)?,
        );
        client.send(&request, &[])?;
        for _ in 0..round {
            client.receive()?.context("closed by itself")?;
        }
        let mut all = service.brokers()?;
        for broker in all.clone() {
            all.extend(children(broker)?);
        }
        let ends: Vec<OwnedFd> = all
            .iter()
            .map(|pid| {
                Ok(pidfd_open(
                    Pid::from_raw(*pid).context("no process")?,
                    PidfdFlags::empty(),
                )?)
            })
            .collect::<anyhow::Result<_>>()?;
        service.process.kill()?;
        ensure!(client.answer()?.is_none(), "it answered to the end");
        client.is_closed()?;
        idle.is_closed()?;
        for (end, pid) in ends.iter().zip(all) {
            ensure!(wait::readable(end, wait::PATIENCE)?, "{pid} goes on");
        }
        ensure!(std::fs::exists(SOCKET)?, "who removed it?");
    }
    let service = Service::start()?;
    serves(&mut service.client()?)?;
    ensure!(as_dumped(&target)? == before, "the target is another one");
    drop(service);
    remains::none_in_the_kernel()
}

/// dnsmasq as a user in a network of its own: who is there as that user dumps its socket, and who is not sees none.
fn dnsmasq_from_inside() -> Outcome {
    let service = Service::start()?;
    let inside = Guest::start(&["unshare net"])?;
    let net = format!("--net=/proc/{}/ns/net", inside.pid());
    let mut command = program("nsenter");
    command.args([
        &net,
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file=",
    ]);
    command.args([
        "--user=nobody",
        "--group=nogroup",
        "--no-resolv",
        "--no-hosts",
        "--port=53",
    ]);
    command.arg(format!("--address=/{}/{}", dns::NAME, dns::ADDRESS));
    let daemon = Process::start(&mut command)?;
    let find = || {
        let listed = done(["list", "--json", "--pid", &daemon.pid().to_string()])?.json()?;
        let sockets = listed["sockets"].as_array().context("no list")?;
        let socket = sockets
            .iter()
            .find(|socket| socket["local"] == "0.0.0.0:53" && socket["protocol"] == "udp");
        Ok(socket.cloned())
    };
    let found = wait::until("dnsmasq at its port", find)?;
    // From then on it is another user.
    wait::until("dnsmasq as nobody", || {
        let users = daemon.status("Uid")?;
        Ok(users
            .split_whitespace()
            .all(|user| user == NOBODY.to_string())
            .then_some(()))
    })?;
    let inode = found["inode"].as_u64().context("no inode")?;
    let fd = found["holders"][0]["fd"]
        .as_i64()
        .context("no descriptor")?;
    let connect = format!("connect {SOCKET}");
    let user = format!("be {NOBODY}");
    let mut same = Guest::start(&[&format!("net {}", inside.pid()), &user, &connect])?;
    let told = same.tell(&format!("inode {inode}"))?;
    ensure!(told["errno"] == OK, "{told}");
    let socket = of_process(daemon.pid(), fd)?;
    let expected = Checkpoint::dump(&socket)?.canonical().to_bytes()?;
    same.tell(&format!("save {inode} saved.skc"))?;
    ensure!(
        std::fs::read("nobody/saved.skc")? == expected,
        "the library sees another socket"
    );

    let mut outside = Guest::start(&[&user, &connect])?;
    for ask in [
        format!("inode {inode}"),
        format!("target {}:{fd}", daemon.pid()),
        "target udp:0.0.0.0:53".into(),
    ] {
        let told = outside.tell(&ask)?;
        ensure!(told["errno"] == ENOENT, "{ask}: {told}");
    }
    let mut other = Guest::start(&[
        &format!("net {}", inside.pid()),
        &format!("be {OWNER}"),
        &connect,
    ])?;
    ensure!(
        other.errno(&format!("inode {inode}"))? == EPERM,
        "another user inside"
    );
    daemon.kill()?;
    drop((same, outside, other));
    service.idle()
}

/// It is asked to end while it answers.
fn ends_when_it_has_answered() -> Outcome {
    let service = Service::start()?;
    let target = full(200)?;
    let before = as_dumped(&target)?;
    let mut idle = service.client()?;
    serves(&mut idle)?;
    let mut client = service.client()?;
    let request = client.begin().family(
        Command::Dump,
        flags::REQUEST,
        &by_inode(socket::inode(&target)?)?,
    );
    client.send(&request, &[])?;
    // It has begun, and the answer is larger than what waits between them.
    ensure!(client.has_something(wait::PATIENCE)?, "it answers nothing");
    service.process.signal(Signal::TERM)?;
    idle.is_closed()?;
    ensure!(service.client().is_err(), "it listens still");
    ensure!(!std::fs::exists(SOCKET)?, "its socket is still there");
    let told = client.answer()?.context("closed in the middle")?.done()?;
    ensure!(told.canonical()? == before, "another socket");
    client.is_closed()?;
    let status = service.process.end()?;
    ensure!(status.code() == Some(0), "{status}");
    remains::none_in_the_kernel()
}

/// The service manager has made the socket, and is told when the service is ready.
fn started_by_its_socket() -> Outcome {
    let folder = std::env::current_dir()?;
    let listener = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    bind(&listener, &SocketAddrUnix::new(SOCKET)?)?;
    listen(&listener, 16)?;
    // It connects before there is a service.
    let mut early = Raw::connect(SOCKET.as_ref())?;
    let notify = UnixDatagram::bind("notify")?;
    notify.set_read_timeout(Some(wait::PATIENCE))?;
    let mut command = std::process::Command::new("sh");
    command.args([
        "-c",
        r#"exec 3>&2 2>errors; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@""#,
        "sh",
    ]);
    command
        .arg(std::env::current_exe()?)
        .args(["serve", "--log", "debug"]);
    command.env(harness::BE_SOCKCR, std::process::id().to_string());
    command.env("NOTIFY_SOCKET", folder.join("notify"));
    command.stderr(listener.try_clone()?);
    let process = Process::start(&mut command)?;
    drop(command);
    let mut told = [0; 64];
    let length = notify.recv(&mut told)?;
    ensure!(
        &told[..length] == b"READY=1\n",
        "{:?}",
        String::from_utf8_lossy(&told[..length])
    );
    serves(&mut early)?;
    serves(&mut Raw::connect(SOCKET.as_ref())?)?;
    let status = process.terminate()?;
    ensure!(
        status.code() == Some(0),
        "{status}: {}",
        std::fs::read_to_string("errors")?
    );
    early.is_closed()?;
    // What it did not make it does not remove: the next one serves who connects meanwhile.
    ensure!(
        std::fs::exists(SOCKET)?,
        "the socket of the service manager is gone"
    );
    Raw::connect(SOCKET.as_ref())?;
    Ok(())
}
