//! What the program at the device knows of one datagram: its true headers, receive time, mark.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{Carries, Datagram, Notice};

/// The datagrams that can be on their way at once; a TOS byte tells them apart.
pub const RECORDS: usize = 256;

/// `struct iphdr` without options.
pub const HEADER: usize = 20;
/// `struct ipv6hdr`
pub const HEADER6: usize = 40;
/// The most bytes of IP options.
pub const OPTIONS_LIMIT: usize = 40;
/// The most bytes of extension headers: what the reader's window shows of a datagram (`walk`).
pub const EXTENSIONS_LIMIT: usize = 208;
/// `struct udphdr`
pub const UDP_HEADER_SIZE: usize = 8;

/// The places in a record.
pub const IP_HEADER: usize = 0;
/// With room for what a mask lets the program write (`Headers::options_mask`).
pub const UDP_HEADER: usize = IP_HEADER + HEADER6 + 248;
pub const OPTIONS_LENGTH: usize = UDP_HEADER + UDP_HEADER_SIZE;
pub const MARK: usize = OPTIONS_LENGTH + 4;
/// Written by the program: the packet came and was given to the socket.
pub const SEEN: usize = MARK + 4;
pub const TIME: usize = SEEN + 4;
pub const PRIORITY: usize = TIME + 8;
/// Who gets it: [`ANYBODY`], [`ASSIGNED`] or [`KNOWN`].
pub const GOES_TO: usize = PRIORITY + 4;
pub const SIZE: usize = GOES_TO + 4;

/// Whom the kernel finds.
pub const ANYBODY: u32 = 0;
/// The socket of the map, wherever it was sent to.
pub const ASSIGNED: u32 = 1;
/// Whom the kernel finds and whose filter knows our packets.
pub const KNOWN: u32 = 2;

const VERSION: u8 = 0x40;
const VERSION6: u32 = 6 << 28;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const UDP: u8 = 17;
const UDP_LITE: u8 = 136;
const DO_NOT_FRAGMENT: [u8; 2] = [0x40, 0];
/// IPOPT_NOP, harmless wherever a packet passes on its way to the program.
pub const NO_OPERATION: u8 = 1;

/// `IPOPT_RR` of `linux/ip.h`.
const RECORD_ROUTE: u8 = 7;
/// `IPOPT_TIMESTAMP`
const TIMESTAMP: u8 = 68;

/// What a record is made of.
struct Parts {
    /// The IP header, and how many of its bytes are options.
    header: Vec<u8>,
    options: usize,
    /// The first bytes behind the IP header.
    head: [u8; UDP_HEADER_SIZE],
    mark: u32,
    received_at: i64,
    priority: u32,
    goes_to: u32,
}

/// Whether a datagram of IPv6 has a checksum. One that was verified is told by IP_CHECKSUM
/// (`__skb_checksum_complete`, `ip_cmsg_recv_checksum`), and without one it is for those who ask for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    Made,
    None,
}

/// The record of a datagram, as the program reads it.
pub fn encode(datagram: &Datagram<'_>, sum: Sum) -> io::Result<[u8; SIZE]> {
    let parts = parts(datagram, sum).ok_or(io::ErrorKind::InvalidInput)?;
    fill(&parts)
}

fn parts(datagram: &Datagram<'_>, sum: Sum) -> Option<Parts> {
    let options = padded_options(datagram)?;
    let mut head = [0; UDP_HEADER_SIZE];
    let (protocol, size) = match datagram.carries {
        Carries::Data => {
            let size = UDP_HEADER_SIZE + datagram.payload.len();
            let third = u16::try_from(size).ok()?;
            head = match sum == Sum::Made && datagram.destination.is_ipv6() {
                true => summed_header(datagram, UDP, third),
                false => udp_header(datagram.source, datagram.destination, third),
            };
            (UDP, size)
        }
        Carries::Lite { .. } => {
            // Covered as a whole, whatever was: that suits every receiver.
            head = summed_header(datagram, UDP_LITE, 0);
            (UDP_LITE, UDP_HEADER_SIZE + datagram.payload.len())
        }
        Carries::Message(protocol) => (protocol, datagram.payload.len()),
        Carries::Packet => (0, 0),
    };
    if !datagram.has_ports() {
        head.iter_mut()
            .zip(datagram.body())
            .for_each(|(to, from)| *to = *from);
    }
    let made = IpHeader {
        source: datagram.source.ip(),
        destination: datagram.destination.ip(),
        ttl: datagram.ttl,
        tos: datagram.tos,
        flow_label: datagram.flow_label,
        protocol,
        options: &options,
        size,
    };
    Some(Parts {
        header: match datagram.carries {
            Carries::Packet => {
                let own = datagram.payload.get(..datagram.own_header())?;
                (own.len() == HEADER + options.len()).then(|| own.to_vec())?
            }
            _ => made.bytes()?,
        },
        options: made.options_size(),
        head,
        mark: datagram.mark,
        received_at: datagram.received_at,
        priority: datagram.priority,
        goes_to: match datagram.carries {
            Carries::Data => ASSIGNED,
            _ => KNOWN,
        },
    })
}

/// The record of an ICMP message with this body.
pub fn encode_notice(notice: &Notice<'_>, body: &[u8]) -> io::Result<[u8; SIZE]> {
    let mut head = [0; UDP_HEADER_SIZE];
    let [kind, code, _, _, rest @ ..] = &mut head;
    (*kind, *code) = (notice.kind, notice.code);
    rest.copy_from_slice(&notice.rest);
    let size = UDP_HEADER_SIZE + body.len();
    let before = match notice.local {
        // That of ICMP covers the message alone.
        IpAddr::V4(_) => Vec::new(),
        IpAddr::V6(_) => pseudo_header([notice.source, notice.local], ICMPV6, size),
    };
    let sum = checksum_of(&[&before, &head, body]).to_be_bytes();
    let [_, _, high, low, ..] = &mut head;
    [*high, *low] = sum;
    let header = IpHeader {
        source: notice.source,
        destination: notice.local,
        ttl: notice.ttl,
        tos: notice.tos,
        flow_label: notice.flow_label,
        protocol: match notice.local {
            IpAddr::V4(_) => ICMP,
            IpAddr::V6(_) => ICMPV6,
        },
        options: &[],
        size,
    };
    let header = header.bytes().ok_or(io::ErrorKind::InvalidInput)?;
    fill(&Parts {
        header,
        options: 0,
        head,
        mark: 0,
        received_at: notice.received_at,
        priority: 0,
        goes_to: ANYBODY,
    })
}

/// What a checksum covers besides; the sum is the same whatever the order of the words.
fn pseudo_header(addresses: [IpAddr; 2], protocol: u8, size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for address in addresses {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes.extend((size as u32).to_be_bytes());
    bytes.extend(u32::from(protocol).to_be_bytes());
    bytes
}

fn fill(parts: &Parts) -> io::Result<[u8; SIZE]> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let length = parts.options as u32;
    let places: [(usize, &[u8]); 7] = [
        (IP_HEADER, &parts.header),
        (UDP_HEADER, &parts.head),
        (OPTIONS_LENGTH, &length.to_ne_bytes()),
        (MARK, &parts.mark.to_ne_bytes()),
        (TIME, &parts.received_at.to_ne_bytes()),
        (PRIORITY, &parts.priority.to_ne_bytes()),
        (GOES_TO, &parts.goes_to.to_ne_bytes()),
    ];
    let mut record = [0; SIZE];
    for (at, part) in places {
        let place = record.get_mut(at..at + part.len()).ok_or_else(invalid)?;
        place.copy_from_slice(part);
    }
    Ok(record)
}

/// Whether the program has met the packet of a record.
pub fn was_seen(record: &[u8]) -> bool {
    let seen = record.get(SEEN..TIME);
    seen.is_some_and(|seen| seen != [0; 4])
}

/// The options, to a multiple of four bytes; of IPv6 the extension headers behind the kind of the
/// first. None: too many, or no whole ones.
pub fn padded_options(datagram: &Datagram<'_>) -> Option<Vec<u8>> {
    let IpAddr::V4(here) = datagram.destination.ip() else {
        let headers = datagram.ip_options.len().saturating_sub(1);
        let whole = headers.is_multiple_of(8) && (headers != 0) != datagram.ip_options.is_empty();
        return (whole && headers <= EXTENSIONS_LIMIT).then(|| datagram.ip_options.to_vec());
    };
    let mut options = before_arrival(datagram.ip_options, here);
    options.resize(options.len().next_multiple_of(4), 0);
    (options.len() <= OPTIONS_LIMIT).then_some(options)
}

/// The IP header of a packet.
pub struct IpHeader<'a> {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ttl: u8,
    pub tos: u8,
    pub flow_label: u32,
    pub protocol: u8,
    /// As [`padded_options`] gives them.
    pub options: &'a [u8],
    /// The bytes behind the header and its options.
    pub size: usize,
}

impl IpHeader<'_> {
    /// None: the packet would be too long, or its addresses are not of one family.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        match (self.source, self.destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => self.ipv4(from, to),
            (IpAddr::V6(from), IpAddr::V6(to)) => self.ipv6([from.octets(), to.octets()]),
            _ => None,
        }
    }

    /// The bytes that the options take.
    fn options_size(&self) -> usize {
        match self.destination {
            IpAddr::V4(_) => self.options.len(),
            IpAddr::V6(_) => self.options.len().saturating_sub(1),
        }
    }

    fn ipv4(&self, from: Ipv4Addr, to: Ipv4Addr) -> Option<Vec<u8>> {
        let length = HEADER + self.options.len();
        let total = u16::try_from(length + self.size).ok()?;
        let mut header = vec![VERSION | (length / 4) as u8, self.tos];
        header.extend(total.to_be_bytes());
        header.extend([0, 0]);
        header.extend(DO_NOT_FRAGMENT);
        header.extend([self.ttl, self.protocol, 0, 0]);
        header.extend(from.octets());
        header.extend(to.octets());
        header.extend(self.options);
        let sum = checksum(&header).to_be_bytes();
        header.get_mut(10..12)?.copy_from_slice(&sum);
        Some(header)
    }

    fn ipv6(&self, addresses: [[u8; 16]; 2]) -> Option<Vec<u8>> {
        let (next, extensions) = match self.options.split_first() {
            Some((first, rest)) => (*first, rest),
            None => (self.protocol, &[][..]),
        };
        let total = u16::try_from(extensions.len() + self.size).ok()?;
        let word = VERSION6 | u32::from(self.tos) << 20 | self.flow_label & 0xf_ffff;
        let mut header = word.to_be_bytes().to_vec();
        header.extend(total.to_be_bytes());
        header.extend([next, self.ttl]);
        header.extend(addresses.as_flattened());
        header.extend(extensions);
        Some(header)
    }
}

/// The checksum is 0: none was made, none will be verified.
pub fn udp_header(from: SocketAddr, to: SocketAddr, total: u16) -> [u8; UDP_HEADER_SIZE] {
    let [a, b] = from.port().to_be_bytes();
    let [c, d] = to.port().to_be_bytes();
    let [e, f] = total.to_be_bytes();
    [a, b, c, d, e, f, 0, 0]
}

/// The header of a datagram, with the third of its fields. Without a checksum it would be thrown away by IPv6
/// (`udp6_csum_init`) and by UDP-Lite (`udplite_checksum_init`).
fn summed_header(datagram: &Datagram<'_>, protocol: u8, third: u16) -> [u8; UDP_HEADER_SIZE] {
    let (from, to) = (datagram.source, datagram.destination);
    let mut head = udp_header(from, to, third);
    let size = UDP_HEADER_SIZE + datagram.payload.len();
    let before = pseudo_header([from.ip(), to.ip()], protocol, size);
    let sum = match checksum_of(&[&before, &head, datagram.payload]) {
        0 => u16::MAX,
        sum => sum,
    };
    let [.., high, low] = &mut head;
    [*high, *low] = sum.to_be_bytes();
    head
}

/// The checksum of these together; all but the last have an even number of bytes.
fn checksum_of(parts: &[&[u8]]) -> u16 {
    let mut whole = parts.concat();
    whole.resize(whole.len().next_multiple_of(2), 0);
    checksum(&whole)
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Options as they were on the wire: arriving here adds this host to a record of the route
/// (`ip_options_compile`), and will do so again.
fn before_arrival(options: &[u8], here: Ipv4Addr) -> Vec<u8> {
    let mut options = options.to_vec();
    if let Some(at) = find(&options, RECORD_ROUTE)
        && let Some(&pointer) = options.get(at + 2)
        && let Some(last) = (at + usize::from(pointer)).checked_sub(5)
        && pointer > 4
        && options.get(last..last + 4) == Some(&here.octets())
        && let Some(place) = options.get_mut(at + 2)
    {
        *place = pointer - 4;
    }
    options
}

/// Whether arriving here once more changes the options: a time is added, or counted as missing; where they
/// stay `as_they_are`, a stop too.
pub fn changes_on_arrival(options: &[u8], as_they_are: bool) -> bool {
    let stop = as_they_are && find(options, RECORD_ROUTE).is_some();
    stop || find(options, TIMESTAMP).is_some()
}

/// Where an option of this kind begins.
fn find(options: &[u8], kind: u8) -> Option<usize> {
    let mut at = 0;
    loop {
        match *options.get(at)? {
            0 => return None,
            found if found == kind => return Some(at),
            NO_OPERATION => at += 1,
            _ => at += usize::from(*options.get(at + 1)?).max(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(payload: &[u8]) -> Datagram<'_> {
        Datagram {
            carries: Carries::Data,
            source: SocketAddr::from(([192, 168, 0, 1], 53)),
            destination: SocketAddr::from(([192, 168, 0, 199], 5353)),
            ttl: 64,
            tos: 0x10,
            flow_label: 0,
            interface: 0,
            local: None,
            received_at: 7,
            mark: 9,
            priority: 0,
            segment_size: 0,
            ip_options: &[],
            payload,
        }
    }

    #[test]
    fn a_record_has_both_headers_with_a_right_checksum() {
        let record = encode(&datagram(b"hello"), Sum::None).unwrap();
        assert_eq!(checksum(&record[..HEADER]), 0);
        assert_eq!(&record[..4], &[0x45, 0x10, 0, 33]);
        assert_eq!(&record[UDP_HEADER..][..8], &[0, 53, 20, 233, 0, 13, 0, 0]);
        assert_eq!(&record[MARK..][..4], &9_u32.to_ne_bytes());
        assert_eq!(&record[TIME..][..8], &7_i64.to_ne_bytes());
        let options = Datagram {
            ip_options: &[148, 4, 0, 0, 1],
            ..datagram(b"")
        };
        let record = encode(&options, Sum::None).unwrap();
        assert_eq!(record[0], 0x47);
        assert_eq!(checksum(&record[..HEADER + 8]), 0);
        assert_eq!(&record[OPTIONS_LENGTH..][..4], &8_u32.to_ne_bytes());
    }

    #[test]
    fn a_checksum_covers_all() {
        let lite = (Carries::Lite { bound: 0 }, UDP_LITE);
        let data = (Carries::Data, UDP);
        for ((carries, protocol), payload, from, to) in [
            (lite, &b"hello"[..], "192.168.0.1:53", "192.168.0.199:5353"),
            (lite, b"", "[2001:db8::1]:53", "[2001:db8::2]:5353"),
            (data, b"hello", "[2001:db8::1]:53", "[2001:db8::2]:5353"),
        ] {
            let (source, destination) = (from.parse().unwrap(), to.parse().unwrap());
            let one = Datagram {
                carries,
                source,
                destination,
                ..datagram(payload)
            };
            let record = encode(&one, Sum::Made).unwrap();
            let head = &record[UDP_HEADER..][..8];
            let size = 8 + payload.len();
            let third = if protocol == UDP { size as u8 } else { 0 };
            assert_eq!(&head[..6], &[0, 53, 20, 233, 0, third]);
            let ends = [source.ip(), destination.ip()];
            let before = pseudo_header(ends, protocol, size);
            assert_eq!(checksum_of(&[&before, head, payload]), 0);
        }
    }

    #[test]
    fn too_long_is_refused() {
        assert!(encode(&datagram(&[0; 65_507]), Sum::None).is_ok());
        assert!(encode(&datagram(&[0; 65_508]), Sum::None).is_err());
        let options = Datagram {
            ip_options: &[1; 41],
            ..datagram(b"")
        };
        assert!(encode(&options, Sum::None).is_err());
    }

    #[test]
    fn a_recorded_route_loses_the_stop_here() {
        let here = Ipv4Addr::new(10, 1, 0, 1);
        let read = [1, 7, 7, 8, 10, 1, 0, 1];
        assert_eq!(before_arrival(&read, here), [1, 7, 7, 4, 10, 1, 0, 1]);
        assert_eq!(before_arrival(&read, Ipv4Addr::LOCALHOST), read);
        for odd in [&[7][..], &[7, 7], &[7, 7, 1], &[7, 7, 255], &[3, 0]] {
            assert_eq!(before_arrival(odd, here), odd);
        }
        assert!(changes_on_arrival(&[1, 68, 8, 5, 0, 0, 0, 0, 0], false));
        assert!(!changes_on_arrival(&read, false));
    }
}
