//! `dump --stop`: whatever happens, its owner goes on as it was, and gets every signal.

use anyhow::{Context, ensure};
use rustix::process::Signal;
use sockcr_scenarios::command::{self, done, sockcr};
use sockcr_scenarios::need::Need;
use sockcr_scenarios::process::{Process, run};
use sockcr_scenarios::socket::{self, echoes, local};
use sockcr_scenarios::{Outcome, Scenario, actor, wait};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

pub const ALL: &[Scenario] = &[
    Scenario::new("stopping::goes_on", &[], goes_on),
    Scenario::new("stopping::killed_at_any_moment", &[], killed_at_any_moment),
    Scenario::new("stopping::signals_arrive", &[], signals_arrive),
    Scenario::new(
        "stopping::a_stopped_process_stays_stopped",
        &[],
        a_stopped_process_stays_stopped,
    ),
    Scenario::new("stopping::an_ending_process", &[], an_ending_process),
    Scenario::new(
        "stopping::waits_for_the_device",
        &[Need::Root, Need::Program("ip")],
        waits_for_the_device,
    ),
];

/// A process with several threads that answers.
struct Owner {
    process: Process,
    address: SocketAddr,
    target: String,
}

impl Owner {
    fn start(port: u16) -> anyhow::Result<Owner> {
        let address = local(port);
        let (process, facts) = actor::start("echo", &[&address.to_string()])?;
        let target = format!("{}:{}", process.pid(), facts["fd"]);
        Ok(Owner {
            process,
            address,
            target,
        })
    }

    fn dump(&self) -> [&str; 5] {
        ["dump", "--stop", &self.target, "-o", "a.skc"]
    }

    /// Nobody traces it or holds it still, and it answers.
    fn is_free(&self) -> Outcome {
        let tracer = self.process.status("TracerPid")?;
        ensure!(tracer == "0", "is traced by {tracer}");
        let state = self.process.status("State")?;
        ensure!(!state.starts_with(['t', 'T']), "is held still: {state}");
        echoes(self.address)
    }
}

fn goes_on() -> Outcome {
    let owner = Owner::start(7070)?;
    for _ in 0..20 {
        done(owner.dump())?.quiet()?;
        owner.is_free()?;
    }
    let stopped = std::fs::read("a.skc")?;
    done(["dump", &owner.target, "-o", "a.skc"])?;
    ensure!(
        std::fs::read("a.skc")? == stopped,
        "is another image without --stop"
    );
    Ok(())
}

/// How long the command works, to choose moments within.
fn duration(owner: &Owner) -> anyhow::Result<Duration> {
    command::duration(&owner.dump())
}

fn killed_at_any_moment() -> Outcome {
    const ROUNDS: u32 = 200;
    let owner = Owner::start(7071)?;
    let whole = duration(&owner)?;
    let mut killed = 0;
    for round in 0..ROUNDS {
        let moment = whole * round / ROUNDS;
        let dump = sockcr(owner.dump()).start()?;
        killed += u32::from(!dump.ends_within(moment)?);
        dump.kill()?;
        owner.is_free()?;
    }
    ensure!(
        killed > ROUNDS / 10,
        "was killed only {killed} times of {ROUNDS}"
    );
    Ok(())
}

/// Signals come one after the other while the command works, the next as soon as one has arrived:
/// some of them just when their receiver is stopped.
fn signals_arrive() -> Outcome {
    let mut owner = Owner::start(7072)?;
    let whole = duration(&owner)?;
    for round in 0..200 {
        let dump = sockcr(owner.dump()).start()?;
        let killed = round % 4 == 0;
        let moment = Instant::now() + whole * round / 200;
        while !dump.ends_within(Duration::ZERO)? {
            owner.process.signal(Signal::USR1)?;
            let arrived = owner.process.line();
            let line = arrived.with_context(|| format!("a signal is lost in round {round}"))?;
            ensure!(line == "\"signal\"", "{line}");
            if killed && Instant::now() > moment {
                break;
            }
        }
        let status = if killed { dump.kill()? } else { dump.end()? };
        ensure!(killed || status.success(), "a dump failed");
        owner.is_free()?;
    }
    Ok(())
}

fn a_stopped_process_stays_stopped() -> Outcome {
    let owner = Owner::start(7073)?;
    owner.process.signal(Signal::STOP)?;
    let stopped = || {
        Ok(owner
            .process
            .status("State")?
            .starts_with('T')
            .then_some(()))
    };
    wait::until("a stop", stopped)?;
    for _ in 0..20 {
        done(owner.dump())?.quiet()?;
        wait::until("the stop goes on", stopped)?;
    }
    owner.process.signal(Signal::CONT)?;
    echoes(owner.address)?;
    owner.is_free()
}

/// What is told to end while it is held still ends then, and the command with it.
fn an_ending_process() -> Outcome {
    let whole = duration(&Owner::start(7074)?)?;
    for round in 0..20 {
        for signal in [Signal::TERM, Signal::KILL] {
            let owner = Owner::start(7075)?;
            let dump = sockcr(owner.dump()).start()?;
            dump.ends_within(whole * round / 20)?;
            owner.process.signal(signal)?;
            let status = owner.process.end()?;
            use std::os::unix::process::ExitStatusExt;
            ensure!(status.signal() == Some(signal.as_raw()), "{status}");
            let code = dump.end()?.code();
            ensure!(matches!(code, Some(0 | 1)), "the dump ended with {code:?}");
        }
    }
    Ok(())
}

/// A datagram that waits for the hardware address of its next hop is with the device.
fn waits_for_the_device() -> Outcome {
    for words in [
        "link add w0 type veth peer name w1",
        "address add 10.77.0.1/24 dev w0",
        "link set w0 up",
        "link set w1 up",
    ] {
        run("ip", &words.split(' ').collect::<Vec<_>>())?;
    }
    // Nobody answers, for as long as this takes.
    std::fs::write("/proc/sys/net/ipv4/neigh/w0/mcast_solicit", "1000")?;
    let (owner, facts) = actor::start("hold", &["udp:10.77.0.1:7080"])?;
    let fd = facts[0]["fd"].as_i64().context("no descriptor")?;
    let target = format!("{}:{fd}", owner.pid());
    // Who holds the socket is held still too.
    UdpSocket::from(socket::of_process(owner.pid(), fd)?).send_to(b"on its way", "10.77.0.9:9")?;
    done(["dump", &target, "-o", "a.skc"])?.says(&["with a device, on its way out"])?;
    let image = done(["show", "--json", "a.skc"])?.json()?;
    ensure!(
        image["sockets"][0]["in_flight"].as_u64() > Some(0),
        "{image}"
    );
    done(["show", &target])?.prints(&["with a device, on its way out"])?;
    let dump = sockcr(["dump", "--stop", &target, "-o", "a.skc"]).start()?;
    let held = || Ok((owner.status("TracerPid")? != "0").then_some(()));
    wait::until("the owner is held", held)?;
    ensure!(
        !dump.ends_within(Duration::from_millis(200))?,
        "did not wait"
    );
    let words = "neighbour replace 10.77.0.9 lladdr 02:00:00:00:00:09 dev w0";
    run("ip", &words.split(' ').collect::<Vec<_>>())?;
    ensure!(dump.end()?.success(), "the dump failed");
    let image = done(["show", "--json", "a.skc"])?.json()?;
    ensure!(image["sockets"][0]["in_flight"].is_null(), "{image}");
    Ok(())
}
