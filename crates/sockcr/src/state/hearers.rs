//! Who else would get what is put back into a raw or ping socket: the kernel gives each packet to every
//! raw socket that matches (`raw_local_deliver`, `raw6_local_deliver`), and then to the protocol itself.

use super::receive_queue::Datagram;
use crate::netns;
use crate::protocol::Protocol;
use std::io;
use std::os::fd::BorrowedFd;

const ICMP: u32 = 1;
const ICMPV6: u32 = 58;
/// Protocols that the kernel has handlers for, some of them in modules (`inet_add_protocol`,
/// `inet6_add_protocol`): extension headers, IGMP, tunnels, transports, IPsec, PIM. Those of ICMP are
/// told apart by their type.
const HANDLED: [u32; 24] = [
    0, 2, 4, 6, 8, 17, 33, 41, 43, 44, 46, 47, 50, 51, 55, 60, 97, 103, 108, 115, 132, 135, 136,
    137,
];

/// The sockets that are in the way, whatever the packet.
pub(crate) fn others(fd: BorrowedFd<'_>, protocol: &Protocol) -> io::Result<Option<&'static str>> {
    let inode = rustix::fs::fstat(fd)?.st_ino;
    let [raw, ping] = match protocol.is_ipv6() {
        true => ["raw6", "icmp6"],
        false => ["raw", "icmp"],
    };
    let number = protocol.number as u16;
    let heard = |table: &str, port: Option<u16>| -> io::Result<bool> {
        let text = netns::within(fd, || table_of(table))?;
        let other = |entry: &Entry| entry.inode != inode && port.is_none_or(|p| p == entry.port);
        Ok(entries(&text).any(|entry| other(&entry)))
    };
    if heard(raw, Some(number))? {
        return Ok(Some(
            "another raw socket of this protocol would hear them too",
        ));
    }
    let pings = match (protocol.is_ping(), protocol.number) {
        (true, _) => heard(ping, Some(own_port(fd)?))?,
        // A reply goes to the ping socket of its identifier; of ICMP it does not come so far.
        (false, ICMPV6) => heard(ping, None)?,
        _ => false,
    };
    Ok(pings.then_some("another ping socket could hear them too"))
}

/// What the kernel would do about a packet besides.
pub(crate) fn act(
    fd: BorrowedFd<'_>,
    protocol: &Protocol,
    packet: &Datagram,
) -> Option<&'static str> {
    const ACTS: &str = "the kernel itself would act on them";
    let kind = |at: usize| packet.payload.get(at).copied();
    match (protocol.is_ping(), protocol.is_ipv6(), protocol.number) {
        (true, false, _) => (kind(0) != Some(0)).then_some(ACTS),
        (true, true, _) => (kind(0) != Some(129)).then_some(ACTS),
        (_, false, ICMP) => {
            let header = usize::from(kind(0)? & 0x0f) * 4;
            icmp_acts(fd, kind(header)).then_some(ACTS)
        }
        (_, true, ICMPV6) => icmpv6_acts(kind(0)).then_some(ACTS),
        (.., number) => HANDLED.contains(&number).then_some(ACTS),
    }
}

/// What is for many `icmp_rcv` throws away, but for extended echoes, which it looks at before, and
/// echoes and time stamps where a sysctl says so.
fn icmp_acts(fd: BorrowedFd<'_>, kind: Option<u8>) -> bool {
    match kind {
        Some(8 | 13) => {
            let ignore = netns::sysctl(fd, "net/ipv4/icmp_echo_ignore_broadcasts");
            !ignore.is_ok_and(|ignore| ignore.trim() == "1")
        }
        Some(42 | 43) => true,
        _ => false,
    }
}

/// `icmpv6_rcv` does nothing about these: an echo reply that no ping socket wants, node information, and
/// what is for routers.
fn icmpv6_acts(kind: Option<u8>) -> bool {
    !matches!(kind, None | Some(129 | 139 | 140 | 144..=147 | 200 | 201))
}

fn own_port(fd: BorrowedFd<'_>) -> io::Result<u16> {
    let name = std::net::SocketAddr::try_from(rustix::net::getsockname(fd)?)?;
    Ok(name.port())
}

/// A table of this thread's network namespace, empty where the kernel has none.
fn table_of(name: &str) -> io::Result<String> {
    match std::fs::read_to_string(format!("/proc/thread-self/net/{name}")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        table => table,
    }
}

/// A line of such a table.
struct Entry {
    /// The identifier of a ping socket, the protocol of a raw one.
    port: u16,
    inode: u64,
}

/// `raw_sock_seq_show`, `ping_v4_format_sock`, `__ip6_dgram_sock_seq_show`.
fn entries(table: &str) -> impl Iterator<Item = Entry> {
    let entry = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (_, port) = words.get(1)?.rsplit_once(':')?;
        Some(Entry {
            port: u16::from_str_radix(port, 16).ok()?,
            inode: words.get(9)?.parse().ok()?,
        })
    };
    table.lines().skip(1).filter_map(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n    \
            1: 00000000:0001 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 6513 2 ffff8880 0\n";
        let read: Vec<_> = entries(table).map(|e| (e.port, e.inode)).collect();
        assert_eq!(read, [(1, 6513)]);
        assert!(entries("").next().is_none());
    }
}
