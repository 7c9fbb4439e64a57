//! ICMP messages about datagrams that a socket sent once.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::BorrowedFd;
use std::time::Instant;

use super::filling::PATIENCE;
use super::record;
use super::{Injector, Notice};

const UDP: u8 = 17;
const TTL: u8 = 64;

impl Injector {
    /// Lets this unbound-looking socket hear an ICMP message, as of a datagram that it sent from
    /// `port`, which nobody else has: `__udp4_lib_err` looks for who has it.
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
        self.sender.send_tagged(&body)?;
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

/// The datagram as the message quotes it: its headers and the beginning of its data.
fn quoted(port: u16, notice: &Notice<'_>) -> Option<Vec<u8>> {
    let size = record::UDP_HEADER_SIZE + notice.payload.len();
    let header = record::IpHeader {
        source: Ipv4Addr::LOCALHOST,
        destination: *notice.destination.ip(),
        ttl: TTL,
        tos: 0,
        protocol: UDP,
        options: &[],
        size,
    };
    let source = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    let udp = record::udp_header(source, notice.destination, u16::try_from(size).ok()?);
    Some([&header.bytes()?, &udp[..], notice.payload].concat())
}
