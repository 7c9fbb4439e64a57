//! From `struct page` to the address of its bytes.
//!
//! The kernel maps all memory from `page_offset_base` on and keeps the array of all
//! `struct page` at `vmemmap_base`; it tells neither. Both are multiples of 1 GiB, and only one
//! number is unknown: where the page described at a known place of the array lies. It is tried
//! out and proved: a message of random bytes to ourselves, in page fragments, must be found word
//! for word at the address computed, and the page computed back from the address of our sock must
//! belong to the slab cache that `sk->sk_prot_creator->slab` names. When no number does so, there
//! is an error and no guess.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

use super::buffer::Buffers;
use super::copier::{Copier, Head, Sock};
use super::reader::{Reader, damaged};
use super::walk::{View, WalkPage};

/// What `page_offset_base` and `vmemmap_base` are multiples of.
const ALIGNMENT: u64 = 1 << 30;
/// The numbers tried: so many GiB of memory, holes included.
const CANDIDATES: u64 = 1 << 14;
/// The message: more than what goes into a buffer without fragments (`SKB_MAX_ALLOC`, 16 KiB).
const MESSAGE: usize = 48 << 10;
/// The bytes compared while searching.
const SAMPLE: usize = 64;

/// The translation of this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// A place in the array of `struct page`.
    origin: u64,
    /// The bytes of the page described there.
    base: u64,
    /// The bytes of a page.
    size: u64,
    /// The bytes of a `struct page`.
    entry: u64,
}

impl Pages {
    /// The address of the bytes of a page. None: that is no `struct page`.
    pub fn address(&self, page: u64) -> Option<u64> {
        let distance = page.wrapping_sub(self.origin).cast_signed();
        let entry = self.entry.cast_signed();
        if distance % entry != 0 {
            return None;
        }
        let pages = distance / entry;
        Some(
            self.base
                .wrapping_add((pages * self.size.cast_signed()).cast_unsigned()),
        )
    }

    /// The `struct page` of an address.
    fn page(&self, address: u64) -> u64 {
        let distance = address.wrapping_sub(self.base).cast_signed();
        let pages = distance.div_euclid(self.size.cast_signed());
        self.origin
            .wrapping_add((pages * self.entry.cast_signed()).cast_unsigned())
    }
}

/// The translation, searched at the first call in this process.
pub fn pages(reader: &Reader) -> io::Result<Pages> {
    static PAGES: OnceLock<Result<Pages, (io::ErrorKind, String)>> = OnceLock::new();
    PAGES
        .get_or_init(|| search(reader).map_err(|error| (error.kind(), error.to_string())))
        .clone()
        .map_err(|(kind, why)| io::Error::new(kind, why))
}

fn unverified(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        format!("data in page fragments cannot be read: {what}"),
    )
}

fn search(reader: &Reader) -> io::Result<Pages> {
    let mut message = vec![0; MESSAGE];
    File::open("/dev/urandom")?.read_exact(&mut message)?;
    let receiver = sent(&message)?;
    let scratch = Scratch::of(reader, &receiver)?;
    let sock = reader.sock(receiver.as_fd())?;
    for pages in scratch.candidates(&sock, &message)? {
        if scratch.proves(&pages, &message)? && confirmed(reader, &pages, &sock)? {
            return Ok(pages);
        }
    }
    Err(unverified(
        "no address of page_offset_base and vmemmap_base could be verified",
    ))
}

/// A socket in whose queue the message waits.
fn sent(message: &[u8]) -> io::Result<OwnedFd> {
    let kind = SocketType::DGRAM;
    let (sender, receiver) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    let length = send(&sender, message, SendFlags::DONTWAIT)?;
    if length == message.len() {
        Ok(receiver)
    } else {
        Err(unverified("a message to ourselves was cut"))
    }
}

/// Our own message as the kernel keeps it.
struct Scratch<'r> {
    copier: Copier<'r>,
    layout: &'static Buffers,
    /// The bytes of the message before the first fragment.
    linear: usize,
    /// Page, offset, length.
    fragments: Vec<(u64, u64, usize)>,
}

impl<'r> Scratch<'r> {
    fn of(reader: &'r Reader, receiver: &OwnedFd) -> io::Result<Self> {
        let layout = reader.buffers()?;
        let sock = reader.sock(receiver.as_fd())?;
        let head = Head::of(layout, &sock.raw, sock.address, layout.heads.receive)?;
        let copier = Copier::new(reader)?;
        let mut page = WalkPage::new(layout);
        copier.walk(&mut page, head.first, head.address, View::Data)?;
        let buffers = page.buffers(layout)?;
        let buffer = buffers.first().ok_or_else(damaged)?;
        let count = buffer.shared(layout.shared.fragments)? as usize;
        let fragments = copier.pieces(buffer, count)?;
        Ok(Self {
            linear: buffer.linear()?.ok_or_else(damaged)?,
            copier,
            layout,
            fragments,
        })
    }

    /// The translations by which the first fragment begins as the message says. Going up by
    /// 1 GiB in the array goes up by as many GiB as a GiB of `struct page` describes: therefore
    /// one number is all that is unknown.
    fn candidates(&self, sock: &Sock, message: &[u8]) -> io::Result<Vec<Pages>> {
        let (page, offset, length) = *self
            .fragments
            .first()
            .ok_or_else(|| unverified("a message to ourselves has no fragment"))?;
        let sample = message.get(self.linear..).unwrap_or_default();
        let sample = sample.get(..SAMPLE.min(length)).ok_or_else(damaged)?;
        let bases = (0..CANDIDATES)
            .map(|step| aligned(sock.address).wrapping_sub(step.wrapping_mul(ALIGNMENT)));
        let candidates: Vec<Pages> = bases.map(|base| self.candidate(page, base)).collect();
        let addresses: Vec<u64> = candidates
            .iter()
            .map(|pages| pages.address(page).unwrap_or(0).wrapping_add(offset))
            .collect();
        let found = self.copier.find(&addresses, sample)?;
        let pairs = candidates.into_iter().zip(found);
        Ok(pairs
            .filter(|(_, found)| *found)
            .map(|(it, _)| it)
            .collect())
    }

    fn candidate(&self, page: u64, base: u64) -> Pages {
        Pages {
            origin: aligned(page),
            base,
            size: rustix::param::page_size() as u64,
            entry: self.layout.page_size as u64,
        }
    }

    /// Whether every byte in fragments is where the translation says.
    fn proves(&self, pages: &Pages, message: &[u8]) -> io::Result<bool> {
        let mut spans = Vec::new();
        for (page, offset, length) in &self.fragments {
            let Some(address) = pages.address(*page) else {
                return Ok(false);
            };
            spans.push((address.wrapping_add(*offset), *length));
        }
        let copy = self.copier.together(&spans);
        Ok(copy.is_ok_and(|copy| message.get(self.linear..) == Some(&copy)))
    }
}

fn aligned(address: u64) -> u64 {
    address & !(ALIGNMENT - 1)
}

/// Whether the page of the sock belongs to the cache that its protocol names, where the kernel's
/// types tell the way.
fn confirmed(reader: &Reader, pages: &Pages, sock: &Sock) -> io::Result<bool> {
    let Some(layout) = &reader.buffers()?.slab else {
        return Ok(true);
    };
    let pointer = |address: u64| -> io::Result<u64> {
        let raw = reader.bytes(address, size_of::<u64>())?;
        let raw = raw.first_chunk().ok_or_else(damaged)?;
        Ok(u64::from_ne_bytes(*raw))
    };
    let proto = layout.creator.value(&sock.raw).ok_or_else(damaged)?;
    let cache = pointer(proto.wrapping_add(layout.proto_slab as u64))?;
    let page = pages.page(sock.address);
    let head = pointer(page.wrapping_add(layout.compound_head as u64))?;
    let page = if head & 1 == 0 { page } else { head - 1 };
    let named = pointer(page.wrapping_add(layout.slab_cache as u64))?;
    Ok(cache == 0 || named == cache)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let pages = Pages {
            origin: 0xffff_ea00_4000_0000,
            base: 0xffff_8880_0000_0000,
            size: 4096,
            entry: 64,
        };
        for number in [-5_i64, 0, 1, 1 << 20] {
            let page = pages.origin.wrapping_add_signed(number * 64);
            let address = pages.base.wrapping_add_signed(number * 4096);
            assert_eq!(pages.address(page), Some(address));
            assert_eq!(pages.page(address), page);
            assert_eq!(pages.page(address + 4095), page);
        }
        assert_eq!(pages.address(pages.origin + 1), None);
    }

    /// Both proofs tell a wrong translation from the right one, where BPF may be used.
    #[test]
    fn a_wrong_translation_is_not_believed() {
        let reader = match super::super::reader() {
            Ok(reader) => reader,
            Err(why) => return println!("skipped: {why}"),
        };
        let right = pages(reader).unwrap();
        let message: Vec<u8> = (0..MESSAGE).map(|at| (at % 251) as u8).collect();
        let receiver = sent(&message).unwrap();
        let scratch = Scratch::of(reader, &receiver).unwrap();
        let sock = reader.sock(receiver.as_fd()).unwrap();
        assert!(scratch.proves(&right, &message).unwrap());
        assert!(confirmed(reader, &right, &sock).unwrap());
        for step in [-2, -1, 1, 2, 64] {
            let base = right.base.wrapping_add_signed(step << 30);
            let wrong = Pages { base, ..right };
            assert!(!scratch.proves(&wrong, &message).unwrap());
            let believed = confirmed(reader, &wrong, &sock).unwrap_or(false);
            assert!(!believed || reader.buffers().unwrap().slab.is_none());
        }
        if reader.buffers().unwrap().slab.is_none() {
            println!("this kernel's types do not tell of slabs");
        }
    }
}
