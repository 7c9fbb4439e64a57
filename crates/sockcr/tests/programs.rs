//! The programs that are attached to a socket travel as far as they exist: classic ones anywhere,
//! eBPF ones on the host where they are loaded.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

mod support;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use sockcr::state::filter::Filter;
use sockcr::{Checkpoint, RestoreOptions, restore_all};
use sockcr_sys::bpf;
use sockcr_sys::sockopt::{Place, attach_filter};
use support::Outcome;
use support::inject::privileged;
use support::socket::{self, SOCKET, instruction, set_int, udp};
use support::twin::{HERE, PORT, exactly, identical, lossy, send_to};

type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const SO_REUSEPORT: i32 = 15;
const SO_ATTACH_BPF: i32 = 50;
const SO_ATTACH_REUSEPORT_EBPF: i32 = 52;

/// `r0 = number; exit`: a filter that keeps so many bytes, or the number of a group's member.
fn program(number: i32) -> Fallible<OwnedFd> {
    let mut code = vec![0xb7, 0, 0, 0];
    code.extend(number.to_ne_bytes());
    code.extend([0x95, 0, 0, 0, 0, 0, 0, 0]);
    Ok(bpf::load(
        bpf::Kind::SocketFilter,
        "sockcr_test",
        &code,
        &mut [],
    )?)
}

fn group(members: usize) -> Fallible<Vec<OwnedFd>> {
    let mut all = Vec::new();
    for _ in 0..members {
        let socket = udp()?;
        set_int(&socket, SOCKET, SO_REUSEPORT, 1)?;
        socket::bind(&socket, (HERE, PORT))?;
        all.push(socket);
    }
    Ok(all)
}

/// Who of a group hears what is sent to it.
fn hears(group: &[impl AsFd]) -> Fallible<usize> {
    send_to(&udp()?, b"who?", HERE, PORT)?;
    for (at, socket) in group.iter().enumerate() {
        if !socket::receive_now(socket)?.is_empty() {
            return Ok(at);
        }
    }
    Err("nobody heard it".into())
}

#[test]
fn an_ebpf_filter_is_attached_again() -> Outcome {
    privileged(|| {
        let nothing = program(0)?;
        let socket = socket::bound((HERE, PORT))?;
        set_int(&socket, SOCKET, SO_ATTACH_BPF, nothing.as_raw_fd())?;
        let restored = identical(socket);
        send_to(&udp()?, b"filtered", HERE, PORT)?;
        assert_eq!(socket::receive_now(&restored)?, Vec::<Vec<u8>>::new());
        assert_eq!(socket::filter(&restored), Err(libc::EACCES));
        Ok(())
    })
}

#[test]
fn an_ebpf_program_that_is_gone_or_elsewhere_is_named() -> Outcome {
    privileged(|| {
        let short = program(2)?;
        let socket = socket::bound((HERE, PORT))?;
        set_int(&socket, SOCKET, SO_ATTACH_BPF, short.as_raw_fd())?;
        let checkpoint = Checkpoint::dump(&socket)?;
        drop(socket);
        let Some(Filter::Program(program)) = &checkpoint.filter else {
            return Err("no program in the checkpoint".into());
        };
        assert_eq!(program.name, "sockcr_test");
        let mut elsewhere = program.clone();
        elsewhere.boot[0] ^= 1;
        let mut another = program.clone();
        another.tag[0] ^= 1;
        let mut gone = program.clone();
        gone.id = i32::MAX as u32;
        for (program, why) in [
            (elsewhere, "another host"),
            (another, "another tag"),
            (gone, "not there any more"),
        ] {
            let filter = Some(Filter::Program(program.clone()));
            let checkpoint = Checkpoint {
                filter,
                ..checkpoint.clone()
            };
            let refused = checkpoint.restore(&exactly()).unwrap_err().to_string();
            let name = format!("eBPF program {} sockcr_test", program.id);
            assert!(
                refused.contains(why) && refused.contains(&name),
                "{refused}"
            );
            let restored = checkpoint.restore(&lossy())?;
            assert_eq!(restored.report.not_carried.len(), 1);
            send_to(&udp()?, b"unfiltered", HERE, PORT)?;
            assert_eq!(socket::receive(&restored.fd)?, b"unfiltered");
        }
        Ok(())
    })
}

#[test]
fn the_program_of_a_group_chooses_again() -> Outcome {
    privileged(|| {
        let second = program(1)?;
        for extended in [true, false] {
            let sockets = group(3)?;
            match extended {
                true => {
                    let number = second.as_raw_fd();
                    set_int(&sockets[0], SOCKET, SO_ATTACH_REUSEPORT_EBPF, number)?;
                }
                false => attach_filter(sockets[2].as_fd(), Place::Group, &[instruction(6, 1)])?,
            }
            for _ in 0..9 {
                assert_eq!(hears(&sockets)?, 1);
            }
            let checkpoints: Result<Vec<_>, _> = sockets.iter().map(Checkpoint::dump).collect();
            let checkpoints = checkpoints?;
            drop(sockets);
            let image = sockcr::image::encode(&checkpoints)?;
            let again = sockcr::image::decode(&image)?;
            assert!(again == checkpoints);
            let json = sockcr::json::to_json(&again).to_string();
            assert!(sockcr::json::from_json(&json)? == checkpoints);
            let restored = restore_all(&again, &exactly())?;
            let sockets: Vec<OwnedFd> = restored.into_iter().map(|restored| restored.fd).collect();
            for (socket, wanted) in sockets.iter().zip(&checkpoints) {
                let now = Checkpoint::dump(socket)?;
                assert!(now.reuseport_program.is_some());
                assert_eq!(now.reuseport_index, wanted.reuseport_index);
            }
            for _ in 0..9 {
                assert_eq!(hears(&sockets)?, 1);
            }
        }
        Ok(())
    })
}

#[test]
fn a_group_program_and_a_queue() -> Outcome {
    privileged(|| {
        let first = program(0)?;
        let sockets = group(1)?;
        set_int(
            &sockets[0],
            SOCKET,
            SO_ATTACH_REUSEPORT_EBPF,
            first.as_raw_fd(),
        )?;
        send_to(&udp()?, b"waits", HERE, PORT)?;
        let socket = sockets.into_iter().next().ok_or("none")?;
        let restored = identical(socket);
        assert_eq!(socket::receive(&restored)?, b"waits");
        Ok(())
    })
}

#[test]
fn a_program_in_an_unbound_group_and_one_without_its_flag() -> Outcome {
    privileged(|| {
        let socket = udp()?;
        set_int(&socket, SOCKET, SO_REUSEPORT, 1)?;
        attach_filter(socket.as_fd(), Place::Group, &[instruction(6, 0)])?;
        identical(socket);
        let sockets = group(1)?;
        attach_filter(sockets[0].as_fd(), Place::Group, &[instruction(6, 0)])?;
        set_int(&sockets[0], SOCKET, SO_REUSEPORT, 0)?;
        let checkpoint = Checkpoint::dump(&sockets[0])?;
        drop(sockets);
        let refused = checkpoint.restore(&RestoreOptions::default()).unwrap_err();
        assert!(
            refused.to_string().contains("SO_REUSEPORT program"),
            "{refused}"
        );
        Ok(())
    })
}

/// Others that are in the group already keep what chooses among them.
#[test]
fn a_foreign_group_is_not_touched() -> Outcome {
    privileged(|| {
        let sockets = group(1)?;
        attach_filter(sockets[0].as_fd(), Place::Group, &[instruction(6, 1)])?;
        let checkpoint = Checkpoint::dump(&sockets[0])?;
        drop(sockets);
        let others = group(2)?;
        let before: Vec<_> = others
            .iter()
            .map(Checkpoint::dump)
            .collect::<Result<_, _>>()?;
        let refused = checkpoint.restore(&exactly()).unwrap_err();
        assert!(
            refused.to_string().contains("the group has others here"),
            "{refused}"
        );
        let lossy = checkpoint.restore(&lossy())?;
        drop(lossy);
        let alone = RestoreOptions {
            alone: true,
            ..RestoreOptions::default()
        };
        let refused = checkpoint.restore(&alone).unwrap_err();
        assert!(
            refused.to_string().contains("the address is in use"),
            "{refused}"
        );
        let after: Vec<_> = others
            .iter()
            .map(Checkpoint::dump)
            .collect::<Result<_, _>>()?;
        assert_eq!(before, after);
        drop(others);
        checkpoint.restore(&alone)?;
        Ok(())
    })
}
