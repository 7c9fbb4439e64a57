//! Sockets of UDP with one and the same address, by SO_REUSEADDR: the kernel gives what is for one to the first
//! that it finds (`udp4_lib_lookup2`), and /proc/net/udp has another order.

use std::io;
use std::os::fd::BorrowedFd;

use super::btf::Field;
use super::copier::Sock;
use super::reader::{Reader, damaged};

/// More are a list that changes while it is followed.
const MOST: usize = 4096;
const ESTABLISHED: u64 = 1;

/// Whom the kernel looks at beside a socket that has the same address, port, device and network namespace and no
/// peer, and is not of its SO_REUSEPORT group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rivals {
    /// There is one that is found first.
    pub before: bool,
    /// There is one that is found later.
    pub after: bool,
}

impl Reader {
    /// The rivals of a bound socket of UDP. They come and go while it is looked.
    pub fn rivals(&self, socket: BorrowedFd<'_>) -> io::Result<Rivals> {
        let sock = self.sock(socket)?;
        let node = self.layout.sock.address_node;
        let is_rival = |reader: &Reader, of: &Sock| -> io::Result<Option<bool>> {
            let other = reader.bytes(of.address, sock.raw.len())?;
            reader.compare(&sock, &other)
        };
        let mut rivals = Rivals::default();
        // struct hlist_node: the next one, and where the one before points to this one, which is its beginning.
        for (word, found) in [(0, &mut rivals.after), (8, &mut rivals.before)] {
            let mut at = sock.address;
            for _ in 0..MOST {
                let next = self.pointer(at, node + word)?;
                if next == 0 || *found {
                    break;
                }
                at = next.wrapping_sub(node as u64);
                let raw = Vec::new();
                match is_rival(self, &Sock { raw, address: at }) {
                    Ok(Some(rival)) => *found = rival,
                    // The head of the list is no socket.
                    Ok(None) => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(rivals)
    }

    /// Whether the other is a rival; `None`: it is no socket of UDP.
    fn compare(&self, sock: &Sock, other: &[u8]) -> io::Result<Option<bool>> {
        let layout = &self.layout.sock;
        let value = |field: Field, raw: &[u8]| field.value(raw).ok_or_else(damaged);
        let same =
            |field: Field| Ok::<_, io::Error>(value(field, &sock.raw)? == value(field, other)?);
        if !(same(layout.kind)?
            && same(layout.protocol)?
            && value(layout.net, other)? >> 48 == 0xffff)
        {
            return Ok(None);
        }
        let wide = |field: Field| {
            let bytes = field.offset..field.offset + 16;
            sock.raw.get(bytes.clone()) == other.get(bytes)
        };
        let fields = [
            layout.family,
            layout.port,
            layout.bound_address,
            layout.device,
            layout.net,
        ];
        let mut equal = layout.bound_address_v6.is_none_or(wide);
        for field in fields {
            equal &= same(field)?;
        }
        let group = value(layout.reuseport, &sock.raw)?;
        let together = group != 0 && same(layout.reuseport)?;
        let connected = value(layout.state, other)? == ESTABLISHED;
        Ok(Some(equal && !together && !connected))
    }
}
