//! Others that have an address that a socket is to get.

use crate::netns;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;

/// A socket of UDP in the table of the kernel.
struct Entry {
    local: SocketAddr,
    connected: bool,
    inode: u64,
}

/// The socket, but for the one with this inode, that has this address and is not connected, if there is one, in
/// the network namespace of `socket`. Sockets of the other family are not compared, and devices are not
/// known.
pub(super) fn has(socket: BorrowedFd<'_>, local: SocketAddr, own: u64) -> io::Result<Option<u64>> {
    let name = match local.is_ipv6() {
        true => "udp6",
        false => "udp",
    };
    // That of this thread, which may be in another namespace than the process.
    let table = netns::within(socket, || {
        std::fs::read_to_string(format!("/proc/thread-self/net/{name}"))
    })?;
    let mut entries = table.lines().skip(1).filter_map(Entry::parse);
    let others = |entry: &Entry| entry.inode != own && !entry.connected;
    let found = entries.find(|entry| others(entry) && overlap(entry.local, local));
    Ok(found.map(|entry| entry.inode))
}

/// Whether a datagram can be for both.
pub(super) fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    let any = a.is_unspecified() || b.is_unspecified();
    one.port() == other.port() && (a == b || any)
}

impl Entry {
    /// `  42: 0100007F:1389 00000000:0000 07 00000000:00000000 00:00000000 00000000  0  0 4711 2 ...`
    fn parse(line: &str) -> Option<Entry> {
        let mut fields = line.split_ascii_whitespace();
        let local = address(fields.nth(1)?)?;
        let peer = address(fields.next()?)?;
        let inode = fields.nth(6)?.parse().ok()?;
        Some(Entry {
            local,
            connected: peer.port() != 0,
            inode,
        })
    }
}

/// An address in words of 32 bits as they are in memory, and a port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let words: Option<Vec<u32>> = ip
        .as_bytes()
        .chunks(8)
        .map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok())
        .collect();
    let bytes: Vec<u8> = words?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let ip: IpAddr = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        _ => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table() {
        let line = " 1405: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000 \
                    101        0 16420 2 00000000e1ad27b4 0";
        let entry = Entry::parse(line).unwrap();
        assert_eq!(entry.local, "127.0.0.53:53".parse().unwrap());
        assert_eq!((entry.connected, entry.inode), (false, 16420));
        let line = " 1: 00000000000000000000000001000000:1389 00000000000000000000000001000000:0035 01 \
                    00000000:00000000 00:00000000 00000000     0        0 7 2 0 0";
        let entry = Entry::parse(line).unwrap();
        assert_eq!(entry.local, "[::1]:5001".parse().unwrap());
        assert!(entry.connected);
    }

    #[test]
    fn addresses_that_meet() {
        let meet = |a: &str, b: &str| overlap(a.parse().unwrap(), b.parse().unwrap());
        assert!(meet("127.0.0.1:53", "127.0.0.1:53"));
        assert!(meet("0.0.0.0:53", "127.0.0.1:53"));
        assert!(meet("[::ffff:127.0.0.1]:53", "127.0.0.1:53"));
        assert!(!meet("127.0.0.1:53", "127.0.0.2:53"));
        assert!(!meet("127.0.0.1:53", "127.0.0.1:54"));
    }
}
