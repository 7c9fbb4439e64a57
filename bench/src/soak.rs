//! A million requests to the service: what it takes of memory and descriptors at the beginning and at the end.

use crate::service::{Service, request};
use anyhow::ensure;
use sockcr::{Checkpoint, image};
use sockcr_service::message::{Command as Ask, Header, flags};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Instant;

const REQUESTS: usize = 1_000_000;
/// After so many a client connects anew.
const OF_ONE_CLIENT: usize = 50_000;
/// One in so many is a restore.
const RESTORES: usize = 100;

pub fn all() -> anyhow::Result<()> {
    let folder = std::env::temp_dir().join(format!("sockcr-soak-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let soaked = soak(&folder.join("socket"));
    std::fs::remove_dir_all(&folder)?;
    soaked
}

fn soak(path: &Path) -> anyhow::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let target = format!("{}:{}", std::process::id(), socket.as_raw_fd());
    let dump = request(&target)?;
    let nothing = request("inode:1")?;
    let restore = restore_messages()?;
    // This one stays all the time.
    let mut service = Service::start(path)?;
    let begun = Instant::now();
    println!(
        "{:>10} {:>9} {:>13} {:>13}",
        "requests", "seconds", "main", "a broker"
    );
    let mut first = None;
    for round in 0..REQUESTS / OF_ONE_CLIENT {
        let mut client = service.another(path)?;
        for at in 0..OF_ONE_CLIENT {
            match at {
                at if at % RESTORES == 1 => client.restore(&restore)?,
                at if at % 10 == 2 => ensure!(!client.ask(&nothing)?, "there is no inode 1"),
                at if at % 2 == 0 => ensure!(service.ask(&dump)?, "the socket is there"),
                _ => ensure!(client.ask(&dump)?, "the socket is there"),
            }
        }
        drop(client);
        let used = service.used()?;
        let first = *first.get_or_insert(used);
        println!(
            "{:>10} {:>9.1} {:>6} kB {:>2} fd {:>6} kB {:>2} fd",
            (round + 1) * OF_ONE_CLIENT,
            begun.elapsed().as_secs_f64(),
            used[0].0,
            used[0].1,
            used[1].0,
            used[1].1
        );
        for (now, then) in used.iter().zip(first) {
            ensure!(
                now.1 == then.1,
                "descriptors: {} at first, {} now",
                then.1,
                now.1
            );
            ensure!(
                now.0 <= then.0 + 512,
                "memory: {} kB at first, {} kB now",
                then.0,
                now.0
            );
        }
    }
    service.stop()
}

/// The packets that restore a socket.
fn restore_messages() -> anyhow::Result<Vec<Vec<u8>>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let checkpoint = Checkpoint::dump(&socket)?;
    drop(socket);
    let header = Header {
        length: 0,
        kind: 0,
        flags: 0,
        sequence: 2,
        port: 0,
    };
    let mut packets = Vec::new();
    for message in image::messages(&checkpoint, 1)? {
        packets.push(header.family(Ask::Restore, flags::REQUEST, &message.attributes));
    }
    packets.push(header.done());
    Ok(packets)
}
