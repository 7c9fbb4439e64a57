//! What cannot be restored exactly is told, and what is told is so.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

mod support;

use sockcr::option::Value;
use sockcr::state::descriptor::Owner;
use sockcr::{Checkpoint, ErrorKind, Mapping, RestoreOptions, image, json};
use std::net::{Ipv4Addr, SocketAddr};
use support::Outcome;
use support::place::{devices, isolated};
use support::socket::{SOCKET, bind, bound, connect, get_int, local, peer, set_int, udp};

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const PORT: u16 = 4321;
const SO_REUSEPORT: i32 = 15;
const SO_BROADCAST: i32 = 6;

fn lossy() -> RestoreOptions {
    RestoreOptions {
        lossy: true,
        ..RestoreOptions::default()
    }
}

fn refusal(checkpoint: &Checkpoint) -> String {
    let error = checkpoint.restore(&RestoreOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(error.next_step().unwrap().contains("--lossy"));
    error.to_string()
}

#[test]
fn the_owner_of_another_place_gets_no_signals() -> Outcome {
    isolated(|| {
        let mut checkpoint = Checkpoint::dump(&bound((HERE, PORT))?)?;
        for owner in [Owner::Process(1), Owner::Thread(1), Owner::Group(1)] {
            let mut descriptor = checkpoint.descriptor.unwrap();
            (descriptor.owner, descriptor.signal) = (owner, 9);
            (descriptor.nonblock, descriptor.asynchronous) = (true, true);
            checkpoint.descriptor = Some(descriptor);
            assert!(refusal(&checkpoint).contains("owner"));
            let restored = checkpoint.restore(&lossy())?;
            let now = Checkpoint::dump(&restored.fd)?.descriptor.unwrap();
            assert_eq!(now.owner, Owner::Nobody);
            assert!(now.nonblock && now.asynchronous, "the other flags are kept");
        }
        Ok(())
    })
}

#[test]
fn the_holder_gets_its_signals_again() -> Outcome {
    isolated(|| {
        let mut checkpoint = Checkpoint::dump(&bound((HERE, PORT))?)?;
        let mut descriptor = checkpoint.descriptor.unwrap();
        (descriptor.owner, descriptor.signal) = (Owner::Holder, 34);
        checkpoint.descriptor = Some(descriptor);
        let restored = checkpoint.restore(&RestoreOptions::default())?;
        let (kind, id) = sockcr_sys::descriptor::owner(std::os::fd::AsFd::as_fd(&restored.fd))?;
        assert_eq!((kind, id), (1, std::process::id() as i32));
        Ok(())
    })
}

#[test]
fn a_time_that_the_clock_cannot_hold_is_refused() -> Outcome {
    isolated(|| {
        let mut checkpoint = Checkpoint::dump(&bound((HERE, PORT))?)?;
        checkpoint.edit("SO_RCVTIMEO", "4321us")?;
        assert!(refusal(&checkpoint).contains("SO_RCVTIMEO 4321 µs"));
        let restored = checkpoint.restore(&lossy())?;
        assert!(
            restored.report.not_carried[0]
                .what
                .starts_with("SO_RCVTIMEO")
        );
        Ok(())
    })
}

#[test]
fn two_addresses_and_two_devices_change_places() -> Outcome {
    isolated(|| {
        let [a, b] = devices()?;
        let socket = bound((Ipv4Addr::new(127, 0, 0, 2), PORT))?;
        connect(&socket, (HERE, 9))?;
        let mut checkpoint = Checkpoint::dump(&socket)?;
        drop(socket);
        checkpoint.edit("IP_UNICAST_IF", a.name)?;
        checkpoint.edit("IP_MULTICAST_IF", b.name)?;
        let map = |old: &str, new: &str| format!("{old}={new}").parse::<Mapping>();
        let options = RestoreOptions {
            map: vec![
                map("127.0.0.1", "127.0.0.2")?,
                map("127.0.0.2", "127.0.0.1")?,
                map(a.name, b.name)?,
                map(b.name, a.name)?,
            ],
            verify: true,
            ..RestoreOptions::default()
        };
        let restored = checkpoint.restore(&options)?;
        let now = Checkpoint::dump(&restored.fd)?;
        assert_eq!(local(&restored.fd)?, SocketAddr::new(HERE.into(), PORT));
        assert_eq!(
            peer(&restored.fd).unwrap().ip(),
            Ipv4Addr::new(127, 0, 0, 2)
        );
        assert_eq!(
            now.options.get("IP_UNICAST_IF"),
            Some(&Value::Int(b.index.into()))
        );
        // Without BPF nobody sees the device of IP_MULTICAST_IF.
        if support::reader().is_ok() {
            let multicast = now.options.get("IP_MULTICAST_IF");
            assert_eq!(multicast, Some(&Value::Pair(0, a.index.into())));
        }
        Ok(())
    })
}

#[test]
fn a_broadcast_peer_stays_without_the_right_to_broadcast() -> Outcome {
    isolated(|| {
        let [device, _] = devices()?;
        let network = u32::from(device.address);
        let everybody = Ipv4Addr::from(network | 0xff);
        let socket = udp()?;
        set_int(&socket, SOCKET, SO_BROADCAST, 1)?;
        bind(&socket, (device.address, PORT))?;
        connect(&socket, (everybody, 9))?;
        set_int(&socket, SOCKET, SO_BROADCAST, 0)?;
        let checkpoint = Checkpoint::dump(&socket)?;
        drop(socket);
        let restored = checkpoint.restore(&RestoreOptions::default())?;
        assert_eq!(
            peer(&restored.fd),
            Some(SocketAddr::new(everybody.into(), 9))
        );
        assert_eq!(get_int(&restored.fd, SOCKET, SO_BROADCAST)?, 0);
        Ok(())
    })
}

#[test]
fn a_group_left_by_its_flag_alone_is_told() -> Outcome {
    if let Err(why) = support::reader() {
        return support::skip(&why);
    }
    isolated(|| {
        let member = || -> std::io::Result<_> {
            let socket = udp()?;
            set_int(&socket, SOCKET, SO_REUSEPORT, 1)?;
            bind(&socket, (HERE, PORT))?;
            Ok(socket)
        };
        let (_first, second) = (member()?, member()?);
        set_int(&second, SOCKET, SO_REUSEPORT, 0)?;
        let report = Checkpoint::dump(&second)?.report;
        let told = report
            .not_carried
            .iter()
            .any(|note| note.what == "SO_REUSEPORT group");
        assert!(told, "{report:?}");
        Ok(())
    })
}

#[test]
fn a_clock_of_number_0_can_be_chosen_and_taken_away() -> Outcome {
    isolated(|| {
        let mut checkpoint = Checkpoint::dump(&bound((HERE, PORT))?)?;
        checkpoint.edit("SO_TXTIME", "CLOCK_REALTIME")?;
        assert_eq!(
            checkpoint.options.get("SO_TXTIME"),
            Some(&Value::Pair(0, 0))
        );
        let again = Checkpoint::from_bytes(&checkpoint.to_bytes()?)?;
        assert_eq!(again, checkpoint);
        checkpoint.edit("SO_TXTIME", "default")?;
        assert_eq!(checkpoint.options.get("SO_TXTIME"), None);
        Ok(())
    })
}

#[test]
fn text_from_a_stranger_cannot_write_on_the_terminal() -> Outcome {
    isolated(|| {
        let checkpoint = Checkpoint::dump(&bound((HERE, PORT))?)?;
        let text = json::to_json(&[checkpoint]).to_string();
        let forged = [
            (
                "\"not_carried\":[]",
                r#""not_carried":[{"what":"\u001b]0;x\u0007","reason":"y"}]"#,
            ),
            (
                "\"interfaces\":[]",
                r#""interfaces":[{"index":3,"name":"a\nb"}]"#,
            ),
            (
                "\"SO_DEBUG\":0",
                r#""SO_DEBUG":0,"SO_BINDTODEVICE":"\u001b[2J""#,
            ),
        ];
        for (old, new) in forged {
            assert!(text.contains(old), "{old} is not in {text}");
            let error = json::from_json(&text.replacen(old, new, 1)).unwrap_err();
            assert!(!error.to_string().contains(char::is_control), "{error:?}");
        }
        assert!(image::decode(&[]).is_err());
        Ok(())
    })
}
