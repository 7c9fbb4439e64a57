//! An injector before its first datagram and after many sockets.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

mod support;

use std::os::fd::AsFd;
use std::thread;

use sockcr::kernel::inject::{Datagram, Injected, Injector};
use sockcr_sys::bpf::ingress_count;
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
        let at = [LOOPBACK, m0.index, m1.index];
        assert_eq!(at.map(|device| ingress_count(device).unwrap()), [1; 3]);
        drop(injector);
        assert_eq!(at.map(|device| ingress_count(device).unwrap()), [0; 3]);
        Ok(())
    })
}
