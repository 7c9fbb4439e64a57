//! ICMP messages about datagrams that a socket sent once.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::Instant;

use super::filling::PATIENCE;
use super::record;
use super::{Injector, Notice};

const UDP: u8 = 17;
const TTL: u8 = 64;

impl Injector {
    /// Lets the socket that has this port, which nobody else has, hear an ICMP message about a
    /// datagram that it seems to have sent: `__udp4_lib_err` looks for who has the port.
    ///
    /// The socket has IP_RECVERR, hears at the loopback device, and its error queue has one entry
    /// more afterwards. A raw socket that hears ICMP hears this message too.
    pub fn notify(
        &mut self,
        socket: BorrowedFd<'_>,
        port: u16,
        notice: &Notice<'_>,
    ) -> io::Result<()> {
        let before = self.reader.read(socket)?.error_queue;
        let body = quoted(port, notice).ok_or(io::ErrorKind::InvalidInput)?;
        self.write(record::encode_notice(notice, &body)?.to_vec())?;
        let ipv6 = notice.local.is_ipv6();
        self.channel(ipv6)?;
        self.sender(ipv6)?.send_tagged(notice.device, &body)?;
        let end = Instant::now() + PATIENCE;
        while self.reader.read(socket)?.error_queue == before {
            if Instant::now() > end {
                return Err(self.unheard());
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    fn unheard(&self) -> io::Error {
        io::Error::other(match self.seen(1) {
            0 => {
                "the ICMP message was dropped before the loopback device: a firewall rule for what goes out?"
            }
            _ => {
                "the ICMP message did not reach the socket: a firewall rule for what comes in, \
                  or net.ipv4.ip_no_pmtu_disc?"
            }
        })
    }
}

/// The datagram as the message quotes it: its headers and the beginning of its data. Only from no address
/// does the device of the socket bind the route of which `ip6_update_pmtu` is told
/// (`ip6_route_output_flags_noref`).
fn quoted(port: u16, notice: &Notice<'_>) -> Option<Vec<u8>> {
    let size = record::UDP_HEADER_SIZE + notice.payload.len();
    let here = match notice.destination.is_ipv6() {
        true => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        false => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let header = record::IpHeader {
        source: here,
        destination: notice.destination.ip(),
        ttl: TTL,
        tos: 0,
        flow_label: 0,
        protocol: UDP,
        options: &[],
        size,
    };
    let source = SocketAddr::new(here, port);
    let udp = record::udp_header(source, notice.destination, u16::try_from(size).ok()?);
    Some([&header.bytes()?, &udp[..], notice.payload].concat())
}
