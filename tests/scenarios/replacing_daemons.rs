//! Real daemons, unmodified, whose sockets are replaced under load.

use crate::replacing::{RATE, replace, replace_each, replace_with, times};
use anyhow::{Context, ensure};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use sockcr_scenarios::link::Neighbour;
use sockcr_scenarios::load::{Echo, Kind, Lines, Load};
use sockcr_scenarios::need::Need;
use sockcr_scenarios::process::{Orphan, Process, program, run};
use sockcr_scenarios::remains::Still;
use sockcr_scenarios::socket::{echoes, local};
use sockcr_scenarios::takeover::{Socket, socket_at, sockets};
use sockcr_scenarios::{Outcome, Scenario, dns, wait};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;

pub const ALL: &[Scenario] = &[
    Scenario::new("replacing::dnsmasq_answers", DNSMASQ, dnsmasq_answers),
    Scenario::new("replacing::unbound_answers", UNBOUND, unbound_answers),
    Scenario::new("replacing::socat_hears_all", SOCAT, socat_hears_all),
    Scenario::new(
        "replacing::openvpn_keeps_going",
        OPENVPN,
        openvpn_keeps_going,
    ),
    Scenario::new("replacing::mosh_keeps_going", MOSH, mosh_keeps_going),
    Scenario::new("replacing::dnsmasq_moves", NEIGHBOUR, dnsmasq_moves),
];

const DNSMASQ: &[Need] = &[Need::Root, Need::Program("dnsmasq")];
const UNBOUND: &[Need] = &[Need::Root, Need::Program("unbound")];
const SOCAT: &[Need] = &[Need::Root, Need::Program("socat")];
const NEIGHBOUR: &[Need] = &[
    Need::Root,
    Need::Program("dnsmasq"),
    Need::Program("ip"),
    Need::Program("nsenter"),
];
const OPENVPN: &[Need] = &[
    Need::Root,
    Need::Program("openvpn"),
    Need::Program("openssl"),
    Need::Program("ip"),
    Need::Program("nsenter"),
];
const MOSH: &[Need] = &[
    Need::Root,
    Need::Program("mosh-server"),
    Need::Program("mosh-client"),
    Need::Program("script"),
    Need::Program("setpriv"),
];

const QUESTIONS: u32 = 5_000;

fn dnsmasq(addresses: &[&str]) -> anyhow::Result<Process> {
    let daemon = Process::start(&mut dns::dnsmasq(5353, addresses))?;
    dns::ask(local(5353))?;
    Ok(daemon)
}

/// Replaces sockets of a daemon while it is asked there.
fn answers(daemon: &Process, places: &[(Socket, SocketAddr)], usual: u32) -> Outcome {
    let pids = [daemon.pid()];
    let before = sockets(daemon)?.len();
    let loads = places
        .iter()
        .map(|(_, server)| Load::start(*server, Kind::Dns, QUESTIONS));
    let loads: Vec<Load> = loads.collect();
    let fds = |socket: &Socket| -> anyhow::Result<i32> {
        let fd = socket.target.rsplit_once(':').context("no descriptor")?.1;
        Ok(fd.parse()?)
    };
    let fds: anyhow::Result<Vec<i32>> = places.iter().map(|(socket, _)| fds(socket)).collect();
    let fds = fds?;
    for _ in 0..times(usual) {
        for (socket, _) in places {
            replace(&socket.target)?;
        }
    }
    let mut all = Vec::new();
    for load in loads {
        let answers = load.stop()?;
        eprintln!("{answers:?}");
        all.push(answers);
    }
    for (answers, (socket, _)) in all.into_iter().zip(places) {
        answers.are_all(100).with_context(|| socket.local.clone())?;
    }
    ensure!(
        sockets(daemon)?.len() == before,
        "has other sockets: {:?}",
        sockets(daemon)?
    );
    let still = Still::now(&pids, &fds)?;
    for (socket, _) in places {
        replace(&socket.target)?;
    }
    still.is(&Still::now(&pids, &fds)?)
}

fn dnsmasq_answers() -> Outcome {
    let daemon = dnsmasq(&["127.0.0.1", "127.0.0.2"])?;
    let at = |place: &str| -> anyhow::Result<(Socket, SocketAddr)> {
        Ok((socket_at(&daemon, place)?, place.parse()?))
    };
    answers(&daemon, &[at("127.0.0.1:5353")?, at("127.0.0.2:5353")?], 15)?;
    drop(daemon);
    let daemon = dnsmasq(&[])?;
    let ipv4 = (socket_at(&daemon, "0.0.0.0:5353")?, local(5353));
    let ipv6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 5353);
    answers(
        &daemon,
        &[ipv4, (socket_at(&daemon, "[::]:5353")?, ipv6)],
        15,
    )
}

fn unbound_answers() -> Outcome {
    let server = format!(
        "  interface: 127.0.0.1
  interface: ::1
  port: 5353
  access-control: 127.0.0.0/8 allow
  num-threads: 2
  local-zone: \"{}.\" redirect",
        dns::NAME
    );
    let daemon = Process::start(&mut dns::unbound(&server)?)?;
    dns::ask(local(5353))?;
    // Its threads share a port, so that there are several sockets there.
    let mut places = Vec::new();
    for socket in sockets(&daemon)? {
        if let Ok(at) = socket.local.parse::<SocketAddr>() {
            places.push((socket, at));
        }
    }
    ensure!(places.len() >= 2, "{:?}", sockets(&daemon)?);
    answers(&daemon, &places, 10)
}

/// A program that writes down what comes to a group.
fn socat_hears_all() -> Outcome {
    const PORT: u16 = 7900;
    let group = Ipv4Addr::new(239, 1, 2, 3);
    let from = format!("UDP4-RECV:{PORT},rcvbuf=4000000,ip-add-membership={group}:127.0.0.1");
    let receiver = Process::start(program("socat").args(["-u", &from, "CREATE:heard"]))?;
    let place = format!("0.0.0.0:{PORT}");
    let target = wait::until("its socket", || {
        Ok(socket_at(&receiver, &place)
            .ok()
            .map(|socket| socket.target))
    })?;
    let sender = UdpSocket::bind(local(0))?;
    rustix::net::sockopt::set_ip_multicast_if(&sender, &Ipv4Addr::LOCALHOST)?;
    let lines = Lines::start(sender, SocketAddr::new(group.into(), PORT), QUESTIONS);
    let mut reordered = 0;
    for _ in 0..times(20) {
        reordered += replace(&target)?;
    }
    let sent = lines.stop()?;
    let due: String = (0..sent).map(Lines::line).collect();
    wait::until("all that was sent", || {
        Ok((std::fs::metadata("heard")?.len() >= due.len() as u64).then_some(()))
    })?;
    let heard = std::fs::read_to_string("heard")?;
    let mut sorted: Vec<&str> = heard.lines().collect();
    let disordered = sorted.windows(2).filter(|pair| pair[0] > pair[1]).count() as u64;
    sorted.sort_unstable();
    ensure!(
        sorted.iter().eq(&due.lines().collect::<Vec<_>>()),
        "heard {} of {sent}",
        sorted.len()
    );
    ensure!(
        disordered <= reordered,
        "{disordered} out of order, {reordered} told"
    );
    eprintln!("heard {sent}, {reordered} reordered");
    Ok(())
}

/// A tunnel between two network namespaces, through which questions go and their answers come back.
fn openvpn_keeps_going() -> Outcome {
    const HERE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
    const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 2);
    let mut neighbour = Neighbour::start(1)?;
    neighbour.link("v0", HERE, &[Ipv4Addr::new(10, 1, 0, 2)])?;
    let (ours, theirs) = (certificate("server")?, certificate("client")?);
    let here = HERE.to_string();
    let mut server = openvpn(program("openvpn"), "server", &theirs)?;
    server.args(["--local", &here, "--port", "1194", "--dh", "none"]);
    server.args(["--server", "10.8.0.0", "255.255.255.0"]);
    server.args(["--topology", "subnet", "--keepalive", "1", "10"]);
    let server = Process::start(&mut server)?;
    says("server.log", "Initialization Sequence Completed")?;
    let mut client = openvpn(neighbour.program("openvpn"), "client", &ours)?;
    client.args(["--client", "--remote", &here, "1194", "--nobind"]);
    let client = Process::start(&mut client)?;
    // The last line of each that is due to the session.
    says("client.log", "Protocol options: ")?;
    says("server.log", "Protocol options: ")?;
    let inside = SocketAddr::new(INSIDE.into(), 7);
    let echo = Echo::start(neighbour.socket(inside)?);
    echoes(inside)?;
    let logs = || -> anyhow::Result<String> {
        Ok(std::fs::read_to_string("server.log")? + &std::fs::read_to_string("client.log")?)
    };
    let before = logs()?;
    let targets = [&server, &client].map(|end| -> anyhow::Result<String> {
        let [socket] = &sockets(end)?[..] else {
            anyhow::bail!("not one socket: {:?}", sockets(end)?)
        };
        Ok(socket.target.clone())
    });
    let targets = targets.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let load = Load::start(inside, Kind::Echo, RATE);
    for _ in 0..times(20) {
        replace_each(&targets)?;
    }
    let answers = load.stop()?;
    eprintln!("{answers:?}");
    answers.are_all(100)?;
    echo.stop()?;
    // They tell of each error, and of each session that begins or ends.
    let after = logs()?;
    ensure!(before == after, "{after}");
    Ok(())
}

/// One end of a tunnel, that knows the other one by its fingerprint.
fn openvpn(mut command: Command, name: &str, peer: &str) -> anyhow::Result<Command> {
    command.args(["--dev", "tun0", "--proto", "udp4", "--disable-dco"]);
    command.args(["--cert", &format!("{name}.crt")]);
    command.args(["--key", &format!("{name}.key")]);
    command.args(["--peer-fingerprint", peer, "--verb", "3"]);
    command.args(["--log", &format!("{name}.log")]);
    if !Path::new("/dev/net/tun").exists() {
        let node = std::env::current_dir()?.join("tun");
        if !node.exists() {
            let kind = FileType::CharacterDevice;
            mknodat(CWD, &node, kind, Mode::RUSR | Mode::WUSR, makedev(10, 200))?;
        }
        command.arg("--dev-node").arg(node);
    }
    Ok(command)
}

/// Makes a key and a certificate; says its fingerprint.
fn certificate(name: &str) -> anyhow::Result<String> {
    let (key, file) = (format!("{name}.key"), format!("{name}.crt"));
    let subject = format!("/CN={name}");
    let curve = "ec_paramgen_curve:prime256v1";
    let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", curve, "-nodes"];
    let to = ["-subj", &subject, "-keyout", &key, "-out", &file];
    run("openssl", &[&new[..], &to].concat())?;
    let mut asked = program("openssl");
    asked.args(["x509", "-in", &file, "-noout", "-fingerprint", "-sha256"]);
    let told = String::from_utf8(asked.output()?.stdout)?;
    let print = told.trim().rsplit_once('=').context("no fingerprint")?.1;
    Ok(print.to_owned())
}

fn says(log: &str, words: &str) -> Outcome {
    let said = wait::until(words, || {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        Ok(text.contains(words).then_some(()))
    });
    said.with_context(|| std::fs::read_to_string(log).unwrap_or_default())
}

/// A session of mosh, where somebody types lines and sees them come back.
fn mosh_keeps_going() -> Outcome {
    // It writes down each line, and shows it alone.
    const SESSION: &str = r"
        stty -echo
        printf '\033[2J\033[Hready'
        while read -r line; do
            printf '%s\n' $line >>heard
            printf '\033[2J\033[H%s' $line
            [ $line = end ] && break
        done";
    let session = format!("cd {:?}; {SESSION}", std::env::current_dir()?);
    let mut server = program("mosh-server");
    server.args(["new", "-i", "127.0.0.1", "-p", "60001", "--"]);
    server.args(["sh", "-c", &session]).env("LC_ALL", "C.UTF-8");
    // Should nobody be left to end it.
    server.env("MOSH_SERVER_NETWORK_TMOUT", "60");
    let (server, told) = Orphan::left_by(&mut server)?;
    let key = told.split("MOSH CONNECT 60001 ").nth(1);
    let key = key.and_then(|key| key.lines().next());
    let mut client = program("script");
    client.args(["--quiet", "--return", "--flush", "--command"]);
    // With `script`, should that end first: it would wait for the server for a while.
    let ending = "exec setpriv --pdeathsig KILL";
    client.arg(format!(
        "stty rows 24 cols 80; {ending} mosh-client 127.0.0.1 60001"
    ));
    client.arg("/dev/null");
    client.envs([("LC_ALL", "C.UTF-8"), ("TERM", "xterm")]);
    client.env("MOSH_KEY", key.with_context(|| told.clone())?);
    // What it shows has come back.
    client.env("MOSH_PREDICTION_DISPLAY", "never");
    let mut client = Process::start(&mut client)?;
    client.shows("ready")?;
    let mut lines = 0;
    std::thread::scope(|scope| {
        let replace = || replace("udp:127.0.0.1:60001").map(drop);
        let replacing = scope.spawn(move || (0..times(20)).try_for_each(|_| replace()));
        while !replacing.is_finished() || lines < 10 {
            client.tell(&shown(lines))?;
            client.shows(&shown(lines))?;
            lines += 1;
        }
        let ended = replacing.join();
        ended.unwrap_or_else(|_| anyhow::bail!("who replaces ended"))
    })?;
    // What is lost would be sent again, and nobody would notice.
    for name in ["NoPorts", "InErrors", "RcvbufErrors"] {
        ensure!(counted(name)? == 0, "{name}: {}", counted(name)?);
    }
    client.tell("end")?;
    let ended = client.end()?;
    ensure!(ended.success(), "the client: {ended}");
    server.end()?;
    let due: String = (0..lines).map(|line| shown(line) + "\n").collect();
    ensure!(
        std::fs::read_to_string("heard")? == due + "end\n",
        "heard something else"
    );
    eprintln!("{lines} lines");
    Ok(())
}

/// No two of these in a row have a letter in common: what is on the screen alike is not sent.
fn shown(line: u32) -> String {
    let digits = format!("{line:09}");
    let letter = |digit: u8| {
        char::from(if line.is_multiple_of(2) {
            digit
        } else {
            digit - b'0' + b'a'
        })
    };
    digits.bytes().map(letter).collect()
}

/// What the kernel has counted of UDP here under this name.
fn counted(name: &str) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp")?;
    let mut rows = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = rows.next().zip(rows.next()).context("no UDP")?;
    let mut both = names.split(' ').zip(values.split(' '));
    let found = both.find(|(have, _)| *have == name);
    Ok(found.with_context(|| name.to_owned())?.1.parse()?)
}

/// From loopback to an address of another network namespace.
fn dnsmasq_moves() -> Outcome {
    const HERE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
    const THERE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
    let neighbour = Neighbour::start(1)?;
    neighbour.link("v0", HERE, &[THERE])?;
    let daemon = dnsmasq(&["127.0.0.1", "127.0.0.2"])?;
    let socket = socket_at(&daemon, "127.0.0.1:5353")?;
    let namespace = format!("/proc/{}/ns/net", neighbour.pid());
    let map = format!("127.0.0.1={THERE}");
    replace_with(&socket.target, &["--map", &map, "--netns", &namespace])?;
    dns::ask(SocketAddr::new(THERE.into(), 5353))?;
    dns::ask("127.0.0.2:5353".parse()?)?;
    let again = UdpSocket::bind(local(5353)).context("is still at the old address")?;
    drop(again);
    // And back.
    let namespace = format!("/proc/{}/ns/net", std::process::id());
    let map = format!("{THERE}=127.0.0.1");
    replace_with(&socket.target, &["--map", &map, "--netns", &namespace])?;
    dns::ask(local(5353))
}
