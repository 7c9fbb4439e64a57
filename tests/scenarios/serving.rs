//! The service: who may do what, and what becomes of it with clients that mean it no good.

use anyhow::{Context, ensure};
use rustix::process::Signal;
use serde_json::json;
use sockcr_scenarios::command::done;
use sockcr_scenarios::guest::Guest;
use sockcr_scenarios::need::Need;
use sockcr_scenarios::process::{Process, program};
use sockcr_scenarios::service::{SOCKET, Service};
use sockcr_scenarios::socket::{local, of_process, target};
use sockcr_scenarios::{Outcome, Scenario, harness};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

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
];

const ROOT: &[Need] = &[Need::Root];
const PID_NAMESPACE: &[Need] = &[Need::Root, Need::Program("unshare")];

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

use Who::{CheckpointRestore, Container, NetAdmin, Nothing, Other, RootOfItsOwn, Same};

impl Who {
    fn orders(self) -> Vec<String> {
        let orders: &[&str] = match self {
            Same => &["be 4001"],
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
            RootOfItsOwn | Container => {
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
const DUMPS: [(Who, Place, [i32; 3]); 21] = [
    (Same, Own, [OK, OK, OK]),
    (Same, Child, [ENOENT, OK, OK]),
    (Same, Foreign, [ENOENT, ENOENT, ENOENT]),
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
