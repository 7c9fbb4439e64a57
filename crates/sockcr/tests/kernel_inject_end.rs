//! However an injection ends, nothing of it stays.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

mod support;

use std::io;
use std::os::fd::AsFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use sockcr::kernel::inject::{Datagram, Injected, Injector, inject};
use sockcr_sys::bpf::Object;
use support::Outcome;
use support::inject::*;
use support::socket;

#[test]
fn no_loopback_device_is_told() -> Outcome {
    privileged(|| {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                sockcr_sys::netns::unshare(libc::CLONE_NEWNET)?;
                let target = socket::udp()?;
                inject(target.as_fd(), &[plain(b"x")])
            });
            let error = inside.join().map_err(|_| "a panic")?.err();
            let error = error.ok_or("nothing was noticed")?.to_string();
            assert!(error.contains("loopback"), "{error}");
            Ok(())
        })
    })
}

#[test]
fn one_injector_for_many() -> Outcome {
    privileged(|| {
        let [m0, m1] = strict()?;
        let mut injector = Injector::new()?;
        for round in 0..50_u32 {
            // Another port each round: a child of another test, forked and not yet another
            // program, may still hold the socket of the last one.
            let port = PORT + round as u16;
            let target = talkative()?;
            let device = if round % 2 == 0 { m0.index } else { m1.index };
            let name = round.to_ne_bytes();
            let group = Datagram {
                destination: at(GROUP, port),
                interface: device,
                ..plain(&name)
            };
            let injected = injector.inject(target.as_fd(), &[plain(&name), group])?;
            assert_eq!(injected, Injected::default());
            socket::bind(&target, (ANY, port))?;
            assert_eq!(socket::receive_now(&target)?, [name, name]);
        }
        Ok(())
    })
}

/// The numbers of the objects in the kernel that have our name.
fn ours(kind: Object) -> io::Result<Vec<u32>> {
    let names = ["sockcr_inject", "sockcr_queue", "sockcr_target"];
    let all = sockcr_sys::bpf::objects(kind)?.into_iter();
    Ok(all
        .filter(|(_, name)| names.contains(&name.as_str()))
        .map(|(number, _)| number)
        .collect())
}

/// Programs (a link holds one) and maps.
fn left() -> io::Result<[Vec<u32>; 2]> {
    Ok([ours(Object::Program)?, ours(Object::Map)?])
}

/// Waits until what is there now of this or another test is gone.
fn nothing_stays() -> Outcome {
    let now = left()?;
    let end = Instant::now() + PATIENCE;
    loop {
        let [programs, maps] = left()?;
        let stays = now[0].iter().any(|id| programs.contains(id))
            || now[1].iter().any(|id| maps.contains(id));
        if !stays {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("left in the kernel: {programs:?} {maps:?}").into());
        }
        thread::sleep(Duration::from_millis(10));
    }
}

const CHILD: &str = "SOCKCR_INJECT_FOREVER";

/// What the child does: the devices are those of its parent.
#[test]
fn forever() -> Outcome {
    let Ok(device) = std::env::var(CHILD) else {
        return Ok(());
    };
    let device: u32 = device.parse()?;
    let group = Datagram {
        destination: at(GROUP, PORT),
        interface: device,
        ..plain(b"group")
    };
    let datagrams = [
        plain(b"x"),
        group,
        Datagram {
            interface: 0,
            ..group
        },
    ]
    .repeat(200);
    println!("started");
    loop {
        let target = socket::udp()?;
        inject(target.as_fd(), &datagrams)?;
    }
}

#[test]
fn killed_it_leaves_nothing() -> Outcome {
    privileged(|| {
        let [m0, m1] = strict()?;
        let capture = Capture::on(&m1)?;
        let others = bystanders(&m0)?;
        for round in 0..40_u64 {
            let mut child = Command::new(std::env::current_exe()?)
                .args(["forever", "--exact"])
                .env(CHILD, m0.index.to_string())
                .stdout(std::process::Stdio::null())
                .spawn()?;
            // Any moment of the start, of loading, of sending.
            thread::sleep(Duration::from_micros(5_000 + round * round * 250));
            child.kill()?;
            let status = child.wait()?;
            assert_eq!(status.code(), None, "it ended by itself");
        }
        nothing_stays()?;
        heard_nothing(&others)?;
        assert_eq!(capture.packets()?, Vec::<Vec<u8>>::new());
        let target = talkative()?;
        inject(target.as_fd(), &[plain(b"again")])?;
        assert_eq!(socket::receive(&target)?, b"again");
        Ok(())
    })
}
