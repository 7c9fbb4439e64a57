//! A restore killed at any moment leaves nothing behind: not in the kernel, not in its network
//! namespace, not in anybody's socket. Then a second try succeeds.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

#[path = "support/message.rs"]
mod message;
#[path = "support/remains.rs"]
mod remains;
mod support;

use std::error::Error;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use remains::Place;
use rustix::fs::{MemfdFlags, memfd_create};
use sockcr::{Checkpoint, RestoreOptions};
use support::Outcome;
use support::inject::*;
use support::place::{Device, sysctl};
use support::socket::{self, IP, IPV6, SOCKET, set_int};

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Both at once, each in a network namespace of its own: most of the time the kernel waits for
/// all processors.
const LANES: [Family; 2] = [Family::Ipv4, Family::Ipv6];
const SERIES: u32 = 5;
/// The kills of one series: 200 in all.
const KILLS: u32 = 200 / LANES.len() as u32 / SERIES;
/// The moments are spread evenly over a whole restore and half as much of what follows it, each at
/// random within its part.
const BEYOND: f64 = 1.5;
/// The datagrams that wait: more than fit into three calls.
const WAITING: usize = 800;
/// The file with the image; set in the process that restores it.
const IMAGE: &str = "SOCKCR_KILLED_IMAGE";
const STARTED: &str = "started\n";
const DONE: &str = "done\n";

#[test]
#[ignore = "run by the test below in a process of its own"]
fn restore_and_wait() -> Outcome {
    let mut image = Vec::new();
    File::open(std::env::var(IMAGE)?)?.read_to_end(&mut image)?;
    let mut out = std::io::stdout();
    out.write_all(STARTED.as_bytes())?;
    out.flush()?;
    let restored = Checkpoint::from_bytes(&image)?.restore(&RestoreOptions::default())?;
    out.write_all(DONE.as_bytes())?;
    out.flush()?;
    // Until it is killed, or nobody is left to do so.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    drop(restored);
    Ok(())
}

#[test]
fn killed_at_any_moment_a_restore_leaves_nothing() -> Outcome {
    thread::scope(|scope| {
        let spawn = |family: Family| scope.spawn(move || privileged(|| many_kills(family)));
        let lanes = LANES.map(spawn);
        lanes.into_iter().try_for_each(|lane| {
            lane.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

fn many_kills(family: Family) -> Outcome {
    let [m0, m1] = strict()?;
    let scene = Scene::new(family, &m0, &m1)?;
    let mut unfinished = 0;
    for _ in 0..SERIES {
        // Measured anew: the machine may be busier now, or less.
        let whole = scene.whole()?;
        unfinished += one_series(&scene, whole.mul_f64(BEYOND / f64::from(KILLS)))?;
    }
    println!("{unfinished} were killed before the end");
    assert!(unfinished >= SERIES * KILLS / 4, "{unfinished}");
    scene.unborn()?;
    scene.nothing_is_left()
}

/// Kills one restore in each of so many parts of time; answers how many were not done by then.
fn one_series(scene: &Scene, part: Duration) -> Fallible<u32> {
    let mut unfinished = 0;
    for round in 0..KILLS {
        let moment = part.mul_f64(f64::from(round) + random());
        let finished = scene.killed(moment)?;
        unfinished += u32::from(!finished);
        scene
            .nothing_is_left()
            .map_err(|why| format!("killed after {moment:?}, done: {finished}: {why}"))?;
        scene.second_try()?;
    }
    Ok(unfinished)
}

/// From 0 to 1.
fn random() -> f64 {
    let number = RandomState::new().build_hasher().finish();
    number as f64 / u64::MAX as f64
}

/// A place with an image and with sockets that must not hear of it.
struct Scene {
    image: OwnedFd,
    canonical: Vec<u8>,
    others: Vec<OwnedFd>,
    capture: Capture,
    before: Place,
}

impl Scene {
    fn new(family: Family, m0: &Device, m1: &Device) -> Fallible<Self> {
        sysctl("net.ipv4.ip_local_port_range", "40000 40100")?;
        let checkpoint = loaded(family, m0)?;
        let image = memfd_create("image", MemfdFlags::CLOEXEC)?;
        File::from(image.try_clone()?).write_all(&checkpoint.to_bytes()?)?;
        // The members of the group of its port, and of its multicast group.
        let mut others = bystanders(family, m0)?;
        others.push(socket::bound((ANY, PORT + 2))?);
        let capture = Capture::on(m1)?;
        Ok(Self {
            image,
            canonical: checkpoint.canonical().to_bytes()?,
            others,
            capture,
            before: Place::now()?,
        })
    }

    /// A process that is about to restore the image.
    fn restorer(&self) -> std::io::Result<Child> {
        let own = format!("/proc/{}/fd/{}", std::process::id(), self.image.as_raw_fd());
        Command::new(std::env::current_exe()?)
            .args(["restore_and_wait", "--exact", "--ignored", "--nocapture"])
            .env(IMAGE, own)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
    }

    /// How long a restore takes when nobody disturbs it.
    fn whole(&self) -> Fallible<Duration> {
        let mut child = self.restorer()?;
        let mut said = Said::of(&mut child);
        said.wait_for(STARTED)?;
        let began = Instant::now();
        said.wait_for(DONE)?;
        let took = began.elapsed();
        kill(child)?;
        self.nothing_is_left()?;
        Ok(took)
    }

    /// Kills a restore at a moment after its start; answers whether it was done by then.
    fn killed(&self, moment: Duration) -> Fallible<bool> {
        let mut child = self.restorer()?;
        let mut said = Said::of(&mut child);
        said.wait_for(STARTED)?;
        thread::sleep(moment);
        kill(child)?;
        Ok(said.rest()?.contains(DONE))
    }

    /// Kills one that may not even have begun to run.
    fn unborn(&self) -> Outcome {
        kill(self.restorer()?)
    }

    fn nothing_is_left(&self) -> Outcome {
        self.before.again()?;
        heard_nothing(&self.others)?;
        assert_eq!(self.capture.packets()?, Vec::<Vec<u8>>::new());
        Ok(())
    }

    /// The same image, restored by this process.
    fn second_try(&self) -> Outcome {
        let mut image = Vec::new();
        let path = format!("/proc/self/fd/{}", self.image.as_raw_fd());
        File::open(path)?.read_to_end(&mut image)?;
        let restored = Checkpoint::from_bytes(&image)?.restore(&RestoreOptions::default())?;
        let now = Checkpoint::dump(&restored.fd)?.canonical().to_bytes()?;
        assert!(now == self.canonical, "the second try is not the same");
        heard_nothing(&self.others).map_err(Into::into)
    }
}

/// A member of a multicast group and of a SO_REUSEPORT group with a long queue.
fn loaded(family: Family, device: &Device) -> Fallible<Checkpoint> {
    let socket = family.talkative()?;
    set_int(&socket, SOCKET, SO_RCVBUFFORCE, 1 << 24)?;
    set_int(&socket, SOCKET, SO_REUSEPORT, 1)?;
    socket::bind(&socket, (family.any(), PORT + 1))?;
    family.join(&socket, device.index)?;
    let sender = family.udp()?;
    let by_device = match family {
        Family::Ipv6 => socket::set(&sender, IPV6, 17, &device.index.to_ne_bytes()),
        _ => {
            let by = [[0; 4], [0; 4], device.index.to_ne_bytes()].concat();
            socket::set(&sender, IP, 32, &by)
        }
    };
    by_device.map_err(std::io::Error::from_raw_os_error)?;
    let own = match family {
        Family::Ipv6 => IpAddr::from(device.address6),
        _ => device.address.into(),
    };
    for number in 0..WAITING {
        let to = [family.here(), own, family.group()][number % 3];
        let data = vec![number as u8; number * 7 % 1400];
        message::send(&sender, SocketAddr::new(to, PORT + 1), &data, &[], 0)?;
    }
    let checkpoint = Checkpoint::dump(&socket)?;
    assert!(checkpoint.report.is_exact(), "{:?}", checkpoint.report);
    assert_eq!(checkpoint.receive_queue.len(), WAITING);
    Ok(checkpoint)
}

fn kill(mut child: Child) -> Outcome {
    child.kill()?;
    let status = child.wait()?;
    match status.code() {
        None => Ok(()),
        Some(_) => Err(format!("it ended by itself: {status}").into()),
    }
}

/// What the other process says.
struct Said(BufReader<ChildStdout>);

impl Said {
    fn of(child: &mut Child) -> Self {
        Self(BufReader::new(child.stdout.take().unwrap()))
    }

    fn wait_for(&mut self, wanted: &str) -> Outcome {
        let mut line = String::new();
        while self.0.read_line(&mut line)? > 0 {
            if line.ends_with(wanted) {
                return Ok(());
            }
            line.clear();
        }
        Err(format!("it never said {wanted:?}").into())
    }

    fn rest(mut self) -> std::io::Result<String> {
        let mut text = String::new();
        self.0.read_to_string(&mut text)?;
        Ok(text)
    }
}
