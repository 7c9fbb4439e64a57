//! `sockcr demo`: the whole story on a real socket, in a network namespace of its own.

use crate::output::{FAINT, GOOD, STRONG, line, styled};
use crate::{Outcome, output, show, source};
use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use sockcr::{Checkpoint, Target, deliver, diff, find, image, option, sandbox};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 1), 5353);
const ELSEWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 2), 5353);
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 83, 67, 82);

/// Run the whole story on a real socket: a server in a network of its own is listed, shown, dumped,
/// killed, and its socket restored into another process; no privilege needed where user namespaces
/// are allowed
#[derive(clap::Args)]
pub struct Arguments {
    /// Be the server of the story
    #[arg(long, hide = true)]
    serve: Option<Role>,
}

/// Where the server has its socket from.
#[derive(Clone, Copy, ValueEnum)]
enum Role {
    /// It opens one.
    Opens,
    /// It is given one.
    Receives,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    match arguments.serve {
        Some(Role::Opens) => serve(&open()?),
        Some(Role::Receives) => {
            let (_, socket) = deliver::received()?
                .pop()
                .context("LISTEN_FDS: nothing came")?;
            serve(&UdpSocket::from(socket))
        }
        None => story(),
    }
}

fn story() -> anyhow::Result<Outcome> {
    sandbox::enter()?;
    let folder = Scratch::new()?;
    let image = folder.0.join("server.skc");

    say("A server opens a UDP socket, sets options, joins a group, and answers.")?;
    let mut first = Server::start(command(&["demo", "--serve", "opens"]))?;
    ask(SERVER, &mut first)?;

    say("sockcr sees it from outside, what differs from a fresh socket first:")?;
    let target = Target::Process(first.pid());
    let before = dump(&target)?;
    for text in show::page(&before, &Checkpoint::fresh(before.protocol)?, true) {
        line(format_args!("  {text}"))?;
    }

    say("Its socket is dumped into an image; the server goes on answering.")?;
    let bytes = image::encode(std::slice::from_ref(&before))?;
    output::write(&image.to_string_lossy(), &bytes)?;
    line(format_args!("  {} bytes", bytes.len()))?;
    ask(SERVER, &mut first)?;

    say("The server is killed, and with it its socket.")?;
    first.kill()?;
    ensure!(request(SERVER).is_err(), "a dead server answered");
    line("  nobody answers")?;

    say("`sockcr restore IMAGE -- COMMAND` starts another process with the socket.")?;
    let mut second = Server::start(restore(&image, &[]))?;
    ask(SERVER, &mut second)?;
    let after = dump(&Target::Process(second.pid()))?;
    compare(&before, &after)?;
    second.kill()?;

    say("`--map` restores it at another address.")?;
    let map = format!("{}={}", SERVER.ip(), ELSEWHERE.ip());
    let mut third = Server::start(restore(&image, &["--map", &map]))?;
    ask(ELSEWHERE, &mut third)?;
    let moved = dump(&Target::Process(third.pid()))?;
    for change in diff::diff(&before, &moved) {
        let side = |value: Option<String>| value.unwrap_or_default();
        line(format_args!(
            "  {}: {} → {}",
            change.what,
            side(change.a),
            side(change.b)
        ))?;
    }
    third.kill()?;
    line(format_args!(
        "\n{}",
        styled(GOOD, "The socket outlived its process, with nothing lost.")
    ))?;
    Ok(Outcome::Done)
}

fn say(text: &str) -> anyhow::Result<()> {
    line(format_args!("\n{}", styled(STRONG, text)))
}

/// The one UDP socket of a server.
fn dump(target: &Target) -> anyhow::Result<Checkpoint> {
    let mut checkpoints = source::dump(&find::find(target)?)?;
    match (checkpoints.pop(), checkpoints.len()) {
        (Some(checkpoint), 0) => Ok(checkpoint),
        _ => bail!("{target}: has more than one socket"),
    }
}

fn compare(before: &Checkpoint, after: &Checkpoint) -> anyhow::Result<()> {
    let [a, b] = [before, after].map(|c| c.clone().canonical().to_bytes());
    let (a, b) = (a?, b?);
    ensure!(
        a == b,
        "the restored socket differs: {:?}",
        diff::diff(before, after)
    );
    let text = format!("  both dumps are the same {} bytes", a.len());
    line(styled(GOOD, text))
}

/// Asks the server, and sees that this process answers.
fn ask(at: SocketAddrV4, server: &mut Server) -> anyhow::Result<()> {
    let answer = request(at)?;
    ensure!(
        answer == format!("answered by process {}", server.pid()),
        "another process: {answer}"
    );
    line(format_args!("  {at}: {}", styled(FAINT, answer)))
}

fn request(at: SocketAddrV4) -> anyhow::Result<String> {
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    client.set_read_timeout(Some(Duration::from_secs(5)))?;
    client.connect(at)?;
    client.send(b"who are you?")?;
    let mut answer = [0; 64];
    let length = client.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// The server's own socket, set up as servers do.
fn open() -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind(SERVER)?;
    socket.join_multicast_v4(&GROUP, &Ipv4Addr::LOCALHOST)?;
    socket.set_multicast_loop_v4(false)?;
    socket.set_broadcast(true)?;
    socket.set_ttl(9)?;
    socket.set_read_timeout(Some(Duration::from_millis(2500)))?;
    for (name, text) in [
        ("SO_RCVBUF", "100000"),
        ("IP_MTU_DISCOVER", "IP_PMTUDISC_DO"),
        ("IP_TOS", "16"),
        ("IP_PKTINFO", "on"),
        ("IP_MULTICAST_IF", "127.0.0.1"),
    ] {
        option::write(&socket, name, text)?;
    }
    Ok(socket)
}

/// Answers every datagram, for as long as the story runs.
fn serve(socket: &UdpSocket) -> anyhow::Result<Outcome> {
    line("ready")?;
    let answer = format!("answered by process {}", std::process::id());
    let mut question = [0; 64];
    loop {
        match socket.recv_from(&mut question) {
            Ok((_, from)) => drop(socket.send_to(answer.as_bytes(), from)?),
            // The read timeout of its own socket: an orphan ends by it.
            Err(_) if orphaned() => return Ok(Outcome::Done),
            Err(_) => {}
        }
    }
}

fn orphaned() -> bool {
    rustix::process::getppid().is_none_or(|parent| parent.is_init())
}

/// This program again, with other arguments.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("sockcr").args(arguments);
    command
}

fn restore(image: &Path, arguments: &[&str]) -> Command {
    let mut command = command(&["restore"]);
    command.args(arguments).arg(image).arg("--");
    command.args(["/proc/self/exe", "demo", "--serve", "receives"]);
    command
}

/// A running server; killed with the story.
struct Server(Child);

impl Server {
    fn start(mut command: Command) -> anyhow::Result<Server> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut server = Server(child.context("start the server")?);
        let stdout = server.0.stdout.take().context("the server's output")?;
        let mut ready = String::new();
        BufReader::new(stdout).read_line(&mut ready)?;
        ensure!(ready == "ready\n", "the server did not start");
        Ok(server)
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already dead and waited for when the story went well.
        let _ = self.kill();
    }
}

/// A folder for the image, gone with the story.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Scratch> {
        let name = format!("sockcr-demo-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        Ok(Scratch(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
