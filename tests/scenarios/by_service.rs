//! What the service does for the command, for a client in the library and for one in plain Python.

use anyhow::{Context, ensure};
use rustix::fd::AsFd;
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::getpid;
use sockcr::{Checkpoint, RestoreOptions, Target, control_group, kernel, option};
use sockcr_scenarios::command::{Ran, sockcr};
use sockcr_scenarios::need::Need;
use sockcr_scenarios::process::{Process, program};
use sockcr_scenarios::{Outcome, Scenario, actor, dns, wait};
use sockcr_service::Client;
use sockcr_sys::descriptor;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

pub const ALL: &[Scenario] = &[
    Scenario::new(
        "by_service::the_command_prints_the_same",
        &[Need::Root, Need::Program("dnsmasq")],
        the_command_prints_the_same,
    ),
    Scenario::new(
        "by_service::plain_python",
        &[Need::Root, Need::Program("python3")],
        plain_python,
    ),
    Scenario::new(
        "by_service::what_waits_comes_back",
        &[Need::Root],
        what_waits_comes_back,
    ),
    Scenario::new(
        "by_service::signals_go_to_the_client",
        &[Need::Root],
        signals_go_to_the_client,
    ),
    Scenario::new(
        "by_service::a_service_without_rights",
        &[Need::Root, Need::LookIntoOwnProcesses],
        a_service_without_rights,
    ),
    Scenario::new(
        "by_service::control_group_of_the_client",
        &[Need::Root, Need::ControlGroups],
        control_group_of_the_client,
    ),
];

const PATH: &str = "service";
const DNS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5353);

fn serve() -> anyhow::Result<(Process, Client)> {
    let service = sockcr(["serve", "--socket", PATH, "--log", "error"]).start()?;
    let client = wait::until("the service", || Ok(Client::connect(Path::new(PATH)).ok()))?;
    Ok((service, client))
}

fn dnsmasq() -> anyhow::Result<Process> {
    let daemon = Process::start(&mut dns::dnsmasq(DNS.port(), &["127.0.0.1"]))?;
    dns::ask(DNS)?;
    Ok(daemon)
}

fn the_command_prints_the_same() -> Outcome {
    let (_service, _client) = serve()?;
    let daemon = dnsmasq()?;
    let pid = &daemon.pid().to_string();
    sockcr(["dump", pid, "-o", "image"]).run()?.done()?;
    let listed = sockcr(["list", "--pid", pid, "--json"])
        .run()?
        .done()?
        .json()?;
    let inode = format!("inode:{}", listed["sockets"][0]["inode"]);
    let sockets = listed["sockets"].as_array().context("no sockets")?;
    let tcp = sockets.iter().find(|socket| socket["checkpoint"] == false);
    let tcp = tcp.context("dnsmasq has no TCP socket")?;
    let (tcp, tcp_inode) = (
        format!("{pid}:{}", tcp["holders"][0]["fd"]),
        format!("inode:{}", tcp["inode"]),
    );
    let told: &[&[&str]] = &[
        &["list"],
        &["list", "--json"],
        &["list", "sport = :5353 and not dst 1.2.3.4"],
        &["list", "--pid", pid],
        &["show", pid],
        &["show", "udp:127.0.0.1:5353", "--json"],
        &["show", &inode, "--changed"],
        &["show", "image"],
        &["dump", pid, &inode, "-o", "-"],
        &["dump", "udp:*:5353", "--canonical", "-o", "-"],
        // Of a kind that is not carried: refused alone, left out of several, and told once.
        &["show", &tcp],
        &["show", &tcp_inode],
        &["dump", &tcp, "-o", "-"],
        &["dump", &tcp, &inode, "-o", "-"],
        &["dump", pid, pid, &tcp, "-o", "-"],
        &["check"],
        &["check", "--json"],
        // Refused: the address is in use.
        &["restore", "image"],
        &["show", "inode:1"],
        &["show", "9999999"],
        &["show", "9999999:1"],
        &["show", &format!("{pid}:0")],
        &["show", &format!("{pid}:999")],
    ];
    for words in told {
        same(words)?;
    }
    daemon.kill()?;
    for words in [
        &["restore", "image"][..],
        &["restore", "image", "--map", "127.0.0.1=127.0.0.9"],
        &["restore", "image", "--map", "10.0.0.1=127.0.0.9"],
        &[
            "restore",
            "image",
            "--",
            "/bin/sh",
            "-c",
            "echo $LISTEN_FDS $LISTEN_FDNAMES",
        ],
    ] {
        same(words)?;
    }
    let metrics = by_service(&["metrics"])?.done()?;
    metrics.prints(&[
        "sockcr_requests_total{command=\"dump\"}",
        "sockcr_failures_total{errno=\"2\"}",
    ])?;
    by_service(&["dump", pid, "--stop", "-o", "x"])?.misused()?;
    by_service(&["set", pid, "SO_PRIORITY=1"])?.misused()?;
    sockcr(["metrics"]).run()?.misused()?;
    std::fs::write("precious", "text")?;
    let file = sockcr(["serve", "--socket", "precious"]).run()?.refused()?;
    file.says(&["listen at precious"])?.helps("is no socket")?;
    ensure!(
        std::fs::read("precious")? == b"text",
        "the file is another one"
    );
    let none = sockcr(["list", "--service", "nowhere"]).run()?.refused()?;
    none.helps("sockcr serve --socket nowhere")?;
    Ok(())
}

fn by_service(words: &[&str]) -> anyhow::Result<Ran> {
    sockcr([&["--service", PATH], words].concat()).run()
}

fn same(words: &[&str]) -> Outcome {
    let here = sockcr(words).run()?;
    let there = by_service(words)?;
    let told = |ran: &Ran| (ran.code, ran.bytes.clone(), ran.errors.clone());
    ensure!(told(&here) == told(&there), "not the same:\n{here}{there}");
    ensure!(
        !here.bytes.is_empty() || !here.errors.is_empty(),
        "says nothing: {here}"
    );
    Ok(())
}

fn plain_python() -> Outcome {
    let (_service, _client) = serve()?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/client.py");
    let mut python = program("python3");
    let output = python.args([script, PATH]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success()
            && text.starts_with("family 32: 127.0.0.1:")
            && text.contains("'not lost' in it"),
        "{output:?}"
    );
    Ok(())
}

/// Has the service restore a socket that was closed; it is the same.
fn there_and_back(client: &mut Client, socket: OwnedFd) -> anyhow::Result<OwnedFd> {
    let before = Checkpoint::dump(&socket)?.canonical().to_bytes()?;
    let target = Target::Descriptor(getpid().as_raw_pid(), socket.as_raw_fd());
    let dumped = client
        .dump(&target)?
        .sockets
        .pop()
        .context("nothing was dumped")?;
    let passed = client.dump_passed(&socket)?.canonical();
    ensure!(
        passed.to_bytes()? == before,
        "the socket that was passed is another one"
    );
    drop(socket);
    let options = RestoreOptions {
        alone: true,
        ..RestoreOptions::default()
    };
    let restored = client.restore_all(std::slice::from_ref(&dumped), &options)?;
    let [restored] = <[_; 1]>::try_from(restored)
        .ok()
        .context("one socket was due")?;
    let after = Checkpoint::dump(&restored.fd)?.canonical();
    ensure!(after.to_bytes()? == before, "is another one: {after:?}");
    Ok(restored.fd)
}

fn what_waits_comes_back() -> Outcome {
    let (_service, mut client) = serve()?;
    let sender = UdpSocket::bind("127.0.0.1:0")?;

    let socket = UdpSocket::bind("127.0.0.1:0")?;
    option::write(&socket, "IP_TTL", "7")?;
    let sent: Vec<Vec<u8>> = (0..100).map(|at| vec![at; usize::from(at) * 10]).collect();
    for payload in &sent {
        sender.send_to(payload, socket.local_addr()?)?;
    }
    let socket = UdpSocket::from(there_and_back(&mut client, socket.into())?);
    let mut payload = vec![0; 65536];
    for expected in &sent {
        let (length, from) = socket.recv_from(&mut payload)?;
        ensure!(
            payload.get(..length) == Some(expected),
            "a datagram of {length} bytes"
        );
        ensure!(from == sender.local_addr()?, "came from {from}");
    }

    // An error that waits, of a port where nobody is.
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    option::write(&socket, "IP_RECVERR", "on")?;
    let nobody = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
    socket.send_to(b"to nobody", nobody)?;
    let socket = UdpSocket::from(there_and_back(&mut client, socket.into())?);
    let told = socket
        .recv(&mut payload)
        .err()
        .and_then(|error| error.raw_os_error());
    ensure!(
        told == Some(rustix::io::Errno::CONNREFUSED.raw_os_error()),
        "told {told:?}"
    );

    // What is corked leaves as one datagram.
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(sender.local_addr()?)?;
    rustix::net::send(&socket, b"be", SendFlags::MORE)?;
    let socket = there_and_back(&mut client, socket.into())?;
    rustix::net::send(&socket, b"hind", SendFlags::empty())?;
    let (length, _) = rustix::net::recv(&sender, &mut payload[..], RecvFlags::empty())?;
    ensure!(
        payload.get(..length) == Some(b"behind"),
        "{length} bytes came"
    );
    Ok(())
}

fn signals_go_to_the_client() -> Outcome {
    let (_service, mut client) = serve()?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let own = getpid().as_raw_pid();
    descriptor::set_owner(socket.as_fd(), descriptor::OWNER_PROCESS, own)?;
    let socket = there_and_back(&mut client, socket.into())?;
    let owner = descriptor::owner(socket.as_fd())?;
    ensure!(
        owner == (descriptor::OWNER_PROCESS, own),
        "the owner is {owner:?}"
    );
    Ok(())
}

fn a_service_without_rights() -> Outcome {
    let path = "nobody/service";
    let as_nobody = |words: &[&str]| -> anyhow::Result<Ran> {
        sockcr([&["--service", path], words].concat())
            .as_nobody()
            .run()
    };
    let _service = sockcr(["serve", "--socket", path, "--log", "error"])
        .as_nobody()
        .start()?;
    wait::until("the service", || Ok(Path::new(path).exists().then_some(())))?;
    let (owner, facts) = actor::start_as_nobody("hold", &["udp:127.0.0.1:7070"])?;
    let inode = facts[0]["inode"].to_string();
    as_nobody(&["list"])?
        .done()?
        .prints(&[&inode, "127.0.0.1:7070"])?;
    as_nobody(&["dump", &format!("inode:{inode}"), "-o", "nobody/image"])?.done()?;
    let other = sockcr(["--service", path, "list"]).run()?.refused()?;
    other.says(&["the client: its network namespace"])?;
    owner.kill()?;
    as_nobody(&["restore", "nobody/image"])?
        .done()?
        .prints(&["can be restored here, exactly"])?;
    Ok(())
}

/// Moves this process to a control group of its own, and back.
struct Group {
    home: std::path::PathBuf,
    folder: std::path::PathBuf,
}

impl Group {
    fn enter() -> anyhow::Result<Group> {
        let root = control_group::mount()?;
        let group = Group {
            home: root.join(control_group::path_of("self")?),
            folder: root.join(format!("sockcr-test-{}", std::process::id())),
        };
        std::fs::create_dir(&group.folder)?;
        group.go(&group.folder)?;
        Ok(group)
    }

    fn go(&self, folder: &Path) -> anyhow::Result<()> {
        let own = std::process::id().to_string();
        std::fs::write(folder.join("cgroup.procs"), own)
            .with_context(|| folder.display().to_string())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = self.go(&self.home) {
            eprintln!("{error:#}");
        }
        if let Err(error) = std::fs::remove_dir(&self.folder) {
            eprintln!("{}: {error}", self.folder.display());
        }
    }
}

fn control_group_of_the_client() -> Outcome {
    let (_service, there) = serve()?;
    drop(there);
    let reader = kernel::reader().map_err(|error| anyhow::anyhow!("{error}"))?;
    let at_home = UdpSocket::bind("127.0.0.1:0")?;
    let group = Group::enter()?;
    let mut client = Client::connect(Path::new(PATH))?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let own = reader.origin(socket.as_fd())?.group;
    ensure!(
        own != reader.origin(at_home.as_fd())?.group,
        "is in no other group"
    );
    let restored = there_and_back(&mut client, socket.into())?;
    let its = reader.origin(restored.as_fd())?.group;
    ensure!(
        its == own,
        "was made in group {its}, and the client is in {own}"
    );
    drop((restored, client));
    drop(group);
    Ok(())
}
