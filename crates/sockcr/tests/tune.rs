//! A live socket is changed to what setsockopt(2) would have made of it: all of it, or nothing,
//! also when whoever changes it is killed.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

mod support;

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sockcr::ErrorKind;
use sockcr::tune::{self, Change, Changed};
use support::Outcome;
use support::place::{self, isolated, sysctl};
use support::socket::{self, IP, SOCKET, fresh, get_int, set_int, udp};
use support::values::{apply, samples, spellings};

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 1, 1);
const SO_PRIORITY: i32 = 12;
const SO_MARK: i32 = 36;
const SO_BUF_LOCK: i32 = 72;
const IP_TTL: i32 = 2;
const PATIENCE: Duration = Duration::from_secs(20);

fn changes(texts: &[&str]) -> Vec<Change> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn set(socket: &OwnedFd, texts: &[&str]) -> Result<Vec<Changed>, sockcr::Error> {
    let all = tune::set(&[socket.as_fd()], &changes(texts))?;
    Ok(all.into_iter().flatten().collect())
}

/// Sets what must be refused; nothing may be otherwise then.
fn refused(socket: &OwnedFd, texts: &[&str], why: &str) -> sockcr::Error {
    let before = (socket::sweep(socket), get_int(socket, SOCKET, SO_BUF_LOCK));
    let error = set(socket, texts).expect_err("done");
    assert!(error.to_string().contains(why), "{error}");
    let after = (socket::sweep(socket), get_int(socket, SOCKET, SO_BUF_LOCK));
    assert_eq!(
        socket::differences(&before.0, &after.0),
        Vec::<String>::new()
    );
    assert_eq!(before.1.unwrap(), after.1.unwrap());
    error
}

#[test]
fn every_value_of_every_row_is_set() -> Outcome {
    isolated(|| {
        let mut cases = 0;
        let kinds = sockcr::protocol::ALL.iter().copied();
        let all = kinds.flat_map(|protocol| protocol.rows().map(move |row| (protocol, row)));
        for (protocol, row) in all.filter(|(protocol, row)| protocol.carries(row)) {
            for value in samples(row, &[]) {
                let by_hand = fresh(protocol)?;
                if apply(&by_hand, row, &value).is_err() {
                    continue;
                }
                for text in spellings(row.kind, &value) {
                    let socket = fresh(protocol)?;
                    let told = set(&socket, &[&format!("{}={text}", row.name)])?;
                    let differences =
                        socket::differences(&socket::sweep(&by_hand), &socket::sweep(&socket));
                    assert!(
                        differences.is_empty(),
                        "{}={text}: {differences:?}",
                        row.name
                    );
                    assert!(told.iter().any(|changed| changed.name == row.name));
                    cases += 1;
                }
            }
        }
        println!("{cases} cases");
        assert!(cases > 200);
        Ok(())
    })
}

#[test]
fn old_and_new_are_told_with_what_goes_along() -> Outcome {
    isolated(|| {
        let socket = udp()?;
        set_int(&socket, SOCKET, SO_PRIORITY, 5)?;
        let told = set(&socket, &["IP_TTL=9", "IP_TOS=16", "SO_RCVBUF=8K"])?;
        let told: Vec<_> = told
            .iter()
            .map(|one| (&*one.name, &*one.old, &*one.new))
            .collect();
        let expected = [
            ("IP_TOS", "0", "16"),
            ("IP_TTL", "default", "9"),
            ("SO_RCVBUF", "212992 B (208 KiB)", "8192 B (8 KiB)"),
            ("SO_PRIORITY", "5", "6"),
        ];
        for one in expected {
            assert!(told.contains(&one), "{one:?} of {told:?}");
        }
        assert_eq!(told.len(), expected.len());
        assert_eq!(get_int(&socket, SOCKET, SO_BUF_LOCK)?, 2);
        sysctl("net.ipv4.ip_default_ttl", "77")?;
        set(&socket, &["IP_TTL=default"])?;
        assert_eq!(get_int(&socket, IP, IP_TTL)?, 77);
        Ok(())
    })
}

#[test]
fn bad_words_touch_nothing() -> Outcome {
    isolated(|| {
        let socket = udp()?;
        for (text, why) in [
            ("SO_NONE=1", "no such option"),
            ("SO_MARK", "is not NAME=VALUE"),
            ("IP_MTU=1500", "cannot be set: belongs to the route"),
            ("SO_TYPE=2", "cannot be set"),
            ("SO_ATTACH_BPF=3", "cannot be set"),
            ("join=10.0.0.1@lo", "is no GROUP@DEVICE"),
            ("leave=239.1.1.1", "is no GROUP@DEVICE"),
            ("join=239.1.1.1@", "is no GROUP@DEVICE"),
        ] {
            let error = text.parse::<Change>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::BadInput, "{text}");
            assert!(error.to_string().contains(why), "{error}");
        }
        for (text, why) in [
            ("IP_TTL=300", "300 is not between 1 and 255"),
            ("SO_RCVTIMEO=soon", "SO_RCVTIMEO=soon"),
            ("SO_BINDTODEVICE=none9", "no such device"),
            ("join=239.1.1.1@none9", "no such device"),
            ("leave=239.1.1.1@lo", "is no member"),
            ("IP_TOS=2", "is there twice"),
        ] {
            refused(&socket, &["SO_RCVBUF=8K", "IP_TOS=16", text], why);
        }
        Ok(())
    })
}

#[test]
fn what_fails_in_the_middle_is_undone() -> Outcome {
    isolated(|| {
        sysctl("net.ipv4.igmp_max_memberships", "1")?;
        let socket = udp()?;
        set_int(&socket, SOCKET, SO_PRIORITY, 5)?;
        set_int(&socket, IP, IP_TTL, 33)?;
        let all = [
            "IP_TOS=16",
            "IP_TTL=default",
            "SO_RCVBUF=8K",
            "SO_LINGER=4",
            "SO_BINDTODEVICE=lo",
            "IP_OPTIONS=01010100",
            "IP_MULTICAST_IF=lo",
            "join=239.1.1.1@lo",
            "join=239.1.1.2@lo",
        ];
        let parsed = all.map(|text| text.parse::<Change>());
        assert!(parsed.iter().all(Result::is_ok), "{parsed:?}");
        let error = refused(&socket, &all, "igmp_max_memberships");
        assert_eq!(error.next_step(), Some("nothing was changed"));
        let joined = std::fs::read_to_string("/proc/thread-self/net/igmp")?;
        assert!(!joined.contains("010101EF"), "{joined}");
        Ok(())
    })
}

/// Joining one group too many fails when all options are set.
fn undone(before: &[&str], changed: &[&str]) -> Outcome {
    let socket = udp()?;
    for text in before {
        set(&socket, &[text])?;
    }
    let all = [changed, &["join=239.1.1.1@lo"]].concat();
    let error = refused(&socket, &all, "igmp_max_memberships");
    assert_eq!(
        error.next_step(),
        Some("nothing was changed"),
        "{changed:?}"
    );
    Ok(())
}

#[test]
fn options_that_change_each_other_are_undone() -> Outcome {
    isolated(|| {
        place::devices()?;
        sysctl("net.ipv4.igmp_max_memberships", "0")?;
        for (before, changed) in [
            (&[][..], &["UDP_CORK=on"][..]),
            (&["SO_TIMESTAMP=on"], &["SO_TIMESTAMPNS=on"]),
            (
                &["SO_TIMESTAMPNS=on"],
                &["SO_TIMESTAMPNS=off", "SO_TIMESTAMP=on"],
            ),
            (&["SO_TIMESTAMPNS_NEW=on"], &["SO_TIMESTAMPNS=on"]),
            (&["SO_TIMESTAMPING_OLD=0x18"], &["SO_TIMESTAMPING_NEW=0x10"]),
            (&["IP_TOS=16", "SO_PRIORITY=3"], &["IP_TOS=8"]),
            (
                &["IP_MULTICAST_IF=m0"],
                &["IP_MULTICAST_IF=lo", "SO_BINDTODEVICE=lo"],
            ),
            (
                &["SO_BINDTODEVICE=m0", "IP_MULTICAST_IF=m0"],
                &["SO_BINDTODEVICE=m1"],
            ),
            (&["SO_LINGER=7"], &["SO_LINGER=off"]),
            (&["SO_SNDBUF=64K"], &["SO_SNDBUF=1M", "SO_RCVBUF=2M"]),
            (&[], &["SO_LOCK_FILTER=on", "SO_MARK=4"]),
            (&[], &["SO_TXTIME=CLOCK_TAI", "UDP_ENCAP=2"]),
        ] {
            undone(before, changed)?;
        }
        Ok(())
    })
}

#[test]
fn errors_that_wait_are_thrown_away_only_in_the_end() -> Outcome {
    isolated(|| {
        sysctl("net.ipv4.igmp_max_memberships", "0")?;
        let socket = udp()?;
        set(&socket, &["IP_RECVERR=on"])?;
        socket::connect(&socket, (Ipv4Addr::LOCALHOST, 9))?;
        rustix::net::send(&socket, b"?", rustix::net::SendFlags::empty())?;
        socket::wait_for(&socket, rustix::event::PollFlags::ERR)?;
        get_int(&socket, SOCKET, 4)?;
        refused(
            &socket,
            &["IP_RECVERR=off", "join=239.1.1.1@lo"],
            "igmp_max_memberships",
        );
        let flags = rustix::net::RecvFlags::ERRQUEUE;
        let (length, _) = rustix::net::recv(&socket, &mut [0u8; 8][..], flags)?;
        assert_eq!(length, 1, "the error waits still");
        Ok(())
    })
}

#[test]
fn an_address_chooses_its_device() -> Outcome {
    isolated(|| {
        let socket = udp()?;
        let told = set(&socket, &["IP_MULTICAST_IF=127.0.0.1"])?;
        assert_eq!(told.len(), 1);
        for text in [
            "IP_MULTICAST_IF=by route",
            "SO_TIMESTAMPING_NEW=off",
            "IP_OPTIONS=none",
        ] {
            set(&socket, &[text])?;
        }
        Ok(())
    })
}

#[test]
fn several_sockets_all_or_none() -> Outcome {
    isolated(|| {
        let (one, other) = (udp()?, udp()?);
        set(&other, &["join=239.1.1.1@lo"])?;
        let fds = [one.as_fd(), other.as_fd()];
        let before = [&one, &other].map(socket::sweep);
        let error = tune::set(&fds, &changes(&["SO_RCVBUF=8K", "join=239.1.1.1@lo"]));
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("is a member already")
        );
        assert_eq!([&one, &other].map(socket::sweep), before);
        let told = tune::set(&fds, &changes(&["SO_RCVBUF=8K"]))?;
        assert_eq!(told.len(), 2);
        Ok(())
    })
}

#[test]
fn groups_are_joined_and_left() -> Outcome {
    isolated(|| {
        let devices = place::devices()?;
        let socket = socket::bound((Ipv4Addr::UNSPECIFIED, 5000))?;
        let here = format!("{GROUP}@{}", devices[0].name);
        set(&socket, &[&format!("join={here}"), "IP_MULTICAST_ALL=off"])?;
        let sender = udp()?;
        let by = [[0; 4], [0; 4], devices[0].index.to_ne_bytes()].concat();
        socket::set(&sender, IP, 32, &by).map_err(std::io::Error::from_raw_os_error)?;
        support::twin::send_to(&sender, b"heard", GROUP, 5000)?;
        assert_eq!(socket::receive(&socket)?, b"heard");
        set(&socket, &[&format!("leave={here}")])?;
        support::twin::send_to(&sender, b"not heard", GROUP, 5000)?;
        assert_eq!(socket::receive_now(&socket)?, Vec::<Vec<u8>>::new());
        Ok(())
    })
}

/// Set in a child whose standard input is a socket that it changes until it is killed.
const TUNER: &str = "SOCKCR_TEST_TUNER";
const THIS: [&str; 3] = ["SO_MARK=1", "SO_PRIORITY=1", "IP_TTL=11"];
const THAT: [&str; 3] = ["SO_MARK=2", "SO_PRIORITY=2", "IP_TTL=12"];

fn tune_forever() -> Outcome {
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    // What is made once is made now.
    set(&socket, &THAT)?;
    println!("tuning");
    loop {
        set(&socket, &THIS)?;
        set(&socket, &THAT)?;
    }
}

fn tuner(test: &str, socket: &OwnedFd) -> std::io::Result<Child> {
    let mut child = Command::new("/proc/self/exe")
        .args([test, "--exact", "--nocapture"])
        .env(TUNER, "1")
        .stdin(Stdio::from(socket.try_clone()?))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok);
    assert!(lines.any(|line| line.contains("tuning")), "it ended");
    Ok(child)
}

fn values(socket: &OwnedFd) -> std::io::Result<[i32; 3]> {
    Ok([
        get_int(socket, SOCKET, SO_MARK)?,
        get_int(socket, SOCKET, SO_PRIORITY)?,
        get_int(socket, IP, IP_TTL)?,
    ])
}

/// All new or all old, as soon as the process that watches has ended.
#[test]
fn killed_at_any_moment() -> Outcome {
    const ROUNDS: u32 = 100;
    isolated(|| {
        if std::env::var_os(TUNER).is_some() {
            return tune_forever();
        }
        let (mut mixed, mut this) = (0, 0);
        for round in 0..ROUNDS {
            let socket = udp()?;
            set(&socket, &THAT)?;
            let mut child = tuner("killed_at_any_moment", &socket)?;
            let moment = Instant::now() + Duration::from_micros(u64::from(round) * 137 % 5000);
            while Instant::now() < moment {
                std::hint::spin_loop();
            }
            child.kill()?;
            child.wait()?;
            let end = Instant::now() + PATIENCE;
            loop {
                match values(&socket)? {
                    [1, 1, 11] => this += 1,
                    [2, 2, 12] => {}
                    others => {
                        mixed += 1;
                        assert!(Instant::now() < end, "{others:?} was left");
                        std::thread::yield_now();
                        continue;
                    }
                }
                break;
            }
        }
        println!("{this} of {ROUNDS} ended with the one, {mixed} looks saw some of both");
        assert!(this > 0 && this < ROUNDS, "the moments are not spread");
        Ok(())
    })
}
