//! Follows lists of buffers and copies what they hold, wherever the bytes lie.
//!
//! A buffer has bytes at `data`, in page fragments, and in further buffers on its `frag_list`.
//! Nothing is locked. So each run of buffers is read a second time after its contents were
//! copied: one that changed meanwhile makes the whole try void.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::buffer::{Buffer, Buffers};
use super::gather::{Gatherer, Span};
use super::pages::pages;
use super::reader::{Reader, damaged};
use super::walk::{View, Walk, WalkPage};

/// The tries to read a queue while its owner uses it.
const ATTEMPTS: usize = 16;
/// No buffer of a datagram holds more: the kernel's own limit is 64 KiB and headers.
const LENGTH_LIMIT: usize = 1 << 18;
/// Lists of buffers in buffers: the kernel makes one level, GRO over fragments two.
const DEPTH_LIMIT: usize = 4;
/// Datagrams that may arrive while a queue is read, besides as many as there are.
const ARRIVALS: usize = 1 << 16;
/// The most fragments that a kernel may be built with (`CONFIG_MAX_SKB_FRAGS`).
const FRAGMENTS_LIMIT: usize = 45;

/// The head of a queue, `struct sk_buff_head`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its own address, which ends the list.
    pub address: u64,
    pub first: u64,
    pub last: u64,
    pub length: usize,
}

impl Head {
    /// Reads the head at `offset` in the copy of a sock.
    pub fn of(layout: &Buffers, raw: &[u8], sock: u64, offset: usize) -> io::Result<Self> {
        let heads = &layout.heads;
        let raw = raw.get(offset..).and_then(|rest| rest.get(..heads.extent));
        let raw = raw.ok_or_else(damaged)?;
        Ok(Self {
            address: sock.wrapping_add(offset as u64),
            first: heads.first.value(raw).ok_or_else(damaged)?,
            last: heads.last.value(raw).ok_or_else(damaged)?,
            length: heads.length.value(raw).ok_or_else(damaged)? as usize,
        })
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.first == self.address
    }

    /// Whether what stood in `before` stands here still, in front of what came since.
    pub fn extends(&self, before: &Self) -> bool {
        self == before
            || (before.is_empty() && before.length == 0)
            || (self.first == before.first && self.length >= before.length)
    }
}

/// What a try gives: None when the kernel changed the queue meanwhile.
pub type Tried<T> = io::Result<Option<T>>;

/// Tries until nothing moves. What is read while a buffer is given back may look like anything:
/// therefore an error counts only when it stays.
pub fn steady<T>(mut attempt: impl FnMut() -> Tried<T>) -> io::Result<T> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match attempt() {
            Ok(Some(result)) => return Ok(result),
            Ok(None) => last = None,
            Err(error) => last = Some(error).filter(|error| !is_fault(error)),
        }
    }
    Err(last.unwrap_or_else(|| {
        io::Error::new(
            io::ErrorKind::WouldBlock,
            "the queue changes faster than it can be read; its owner must hold still (`dump --stop`)",
        )
    }))
}

/// Memory that went away while it was read.
fn is_fault(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::FAULT.raw_os_error())
}

/// The copy of a sock and its address.
#[derive(Debug)]
pub struct Sock {
    pub(super) raw: Vec<u8>,
    pub(super) address: u64,
}

impl Sock {
    /// Its bytes, which sending, receiving and reading all change.
    pub fn bytes(&self) -> &[u8] {
        &self.raw
    }
}

impl Reader {
    /// The sock as it is now.
    pub fn sock(&self, socket: BorrowedFd<'_>) -> io::Result<Sock> {
        let page = self.page(socket.as_raw_fd().unsigned_abs(), 0)?;
        Ok(Sock {
            raw: page.raw(self.window)?.to_vec(),
            address: page.address()?,
        })
    }

    /// The layout of buffers, where this kernel tells it.
    pub(super) fn buffers(&self) -> io::Result<&'static Buffers> {
        self.layout.buffers.as_ref().map_err(unsupported)
    }

    /// Does now what takes long at the first queue that is not empty, some 10 ms: loads the programs.
    pub fn get_ready(&self) -> io::Result<()> {
        self.walk()?;
        self.gatherer().map(drop)
    }

    /// The same without what copies its bytes by memory of its own: two processes that share that would read each
    /// other's.
    pub(super) fn warm_up(&self) -> io::Result<()> {
        self.walk().map(drop)
    }

    fn walk(&self) -> io::Result<&Walk> {
        let walk = self
            .walk
            .get_or_init(|| Walk::load(self.layout.buffers.as_ref().map_err(Clone::clone)?));
        walk.as_ref().map_err(unsupported)
    }

    fn gatherer(&self) -> io::Result<&Gatherer> {
        let gatherer = self.gatherer.get_or_init(Gatherer::load);
        gatherer.as_ref().map_err(unsupported)
    }
}

fn unsupported<E: std::error::Error + Clone + Send + Sync + 'static>(error: &E) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, error.clone())
}

/// Copies buffers.
pub struct Copier<'r> {
    reader: &'r Reader,
    /// Nobody takes a buffer away meanwhile.
    still: bool,
    layout: &'static Buffers,
    walk: &'r Walk,
}

impl<'r> Copier<'r> {
    /// With the programs of `reader`, loading them when they are not.
    pub fn new(reader: &'r Reader) -> io::Result<Self> {
        Ok(Self {
            reader,
            still: false,
            layout: reader.buffers()?,
            walk: reader.walk()?,
        })
    }

    /// The same for queues that nobody takes anything from: what is copied need not be looked at again.
    pub fn of_still(reader: &'r Reader) -> io::Result<Self> {
        let copier = Copier::new(reader)?;
        Ok(Copier {
            still: true,
            ..copier
        })
    }

    /// Gives every buffer of a queue with its contents to `each`, oldest first.
    pub fn queue(
        &self,
        head: &Head,
        view: View,
        each: impl FnMut(&Buffer<'_>, Vec<u8>) -> io::Result<()>,
    ) -> Tried<()> {
        let count = self.queue_from(head, (head.first, head.address), view, each)?;
        Ok(count.filter(|count| *count >= head.length).map(drop))
    }

    /// The same from a buffer on, behind the one that is before it; answers how many there were.
    pub fn queue_from(
        &self,
        head: &Head,
        (mut at, mut previous): (u64, u64),
        view: View,
        mut each: impl FnMut(&Buffer<'_>, Vec<u8>) -> io::Result<()>,
    ) -> Tried<usize> {
        let (mut page, mut again) = (WalkPage::new(self.layout), WalkPage::new(self.layout));
        let limit = head.length.saturating_mul(2).saturating_add(ARRIVALS);
        let mut count = 0;
        while at != head.address {
            self.walk.run(&mut page, at, head.address, view)?;
            let buffers = page.buffers(self.layout)?;
            if !linked(&buffers, previous)? || count > limit {
                return Ok(None);
            }
            let Some(contents) = self.contents(&buffers, DEPTH_LIMIT)? else {
                return Ok(None);
            };
            if !self.still {
                self.walk.run(&mut again, at, head.address, view)?;
                if !same(&buffers, &again.buffers(self.layout)?)? {
                    return Ok(None);
                }
            }
            for (buffer, contents) in buffers.iter().zip(contents) {
                each(buffer, contents)?;
            }
            count += buffers.len();
            previous = buffers.last().map_or(previous, |buffer| buffer.address);
            at = page.next()?;
        }
        Ok(Some(count))
    }

    /// Copies the buffers from `start` to `end`, as many as fit on `page`.
    pub fn walk(&self, page: &mut WalkPage, start: u64, end: u64, view: View) -> io::Result<()> {
        self.walk.run(page, start, end, view)
    }

    /// The contents of a list that a null pointer ends, one after the other.
    fn list(&self, first: u64, depth: usize) -> Tried<Vec<u8>> {
        let (mut page, mut at, mut all) = (WalkPage::new(self.layout), first, Vec::new());
        while at != 0 && depth > 0 && all.len() <= LENGTH_LIMIT {
            self.walk.run(&mut page, at, 0, View::Data)?;
            let buffers = page.buffers(self.layout)?;
            let Some(contents) = self.contents(&buffers, depth)? else {
                return Ok(None);
            };
            all.extend(contents.into_iter().flatten());
            at = page.next()?;
        }
        Ok((at == 0).then_some(all))
    }

    /// What each buffer holds.
    pub fn contents(&self, buffers: &[Buffer<'_>], depth: usize) -> Tried<Vec<Vec<u8>>> {
        let mut contents = Vec::with_capacity(buffers.len());
        let (mut missing, mut owners) = (Vec::new(), Vec::new());
        for (index, buffer) in buffers.iter().enumerate() {
            let Some(spans) = self.spans(buffer)? else {
                return Ok(None);
            };
            owners.resize(owners.len() + spans.len(), index);
            missing.extend(spans);
            let mut whole = Vec::with_capacity(buffer.length()?);
            whole.extend_from_slice(buffer.seen()?);
            contents.push(whole);
        }
        self.gather(&missing, &owners, &mut contents)?;
        for (buffer, whole) in buffers.iter().zip(&mut contents) {
            if !self.complete(buffer, whole, depth)? {
                return Ok(None);
            }
        }
        Ok(Some(contents))
    }

    /// Adds what the buffers on its list hold; false when the length is then not the one told.
    fn complete(&self, buffer: &Buffer<'_>, whole: &mut Vec<u8>, depth: usize) -> io::Result<bool> {
        let list = buffer.shared(self.layout.shared.list)?;
        if list != 0 {
            let Some(tail) = self.list(list, depth - 1)? else {
                return Ok(false);
            };
            whole.extend_from_slice(&tail);
        }
        Ok(whole.len() == buffer.length()?)
    }

    /// Where the bytes of a buffer lie that its window does not show, without its list.
    fn spans(&self, buffer: &Buffer<'_>) -> Tried<Vec<Span>> {
        let Some(linear) = buffer.linear()? else {
            return Ok(None);
        };
        if buffer.length()? > LENGTH_LIMIT {
            return Ok(None);
        }
        if buffer.optional(self.layout.skb.unreadable)? != 0 {
            return Err(unreadable());
        }
        let mut spans = Vec::new();
        let seen = buffer.seen()?.len();
        if seen < linear {
            let data = buffer.get(self.layout.skb.data)?;
            spans.push((data.wrapping_add(seen as u64), linear - seen));
        }
        let fragments = buffer.shared(self.layout.shared.fragments)? as usize;
        if fragments > FRAGMENTS_LIMIT {
            return Ok(None);
        }
        if fragments > 0 && !self.fragments(buffer, fragments, &mut spans)? {
            return Ok(None);
        }
        Ok(Some(spans))
    }

    /// Adds the page fragments of a buffer; false when they cannot be.
    fn fragments(
        &self,
        buffer: &Buffer<'_>,
        count: usize,
        spans: &mut Vec<Span>,
    ) -> io::Result<bool> {
        let pages = pages(self.reader)?;
        for (page, offset, length) in self.pieces(buffer, count)? {
            if page & 1 != 0 {
                return Err(unreadable());
            }
            let Some(address) = pages.address(page) else {
                return Ok(false);
            };
            if length > LENGTH_LIMIT {
                return Ok(false);
            }
            spans.push((address.wrapping_add(offset), length));
        }
        Ok(true)
    }

    /// The array of page fragments: page, offset, length.
    pub fn pieces(&self, buffer: &Buffer<'_>, count: usize) -> io::Result<Vec<(u64, u64, usize)>> {
        let (layout, fragment) = (self.layout, &self.layout.fragment);
        let end = buffer.get(layout.skb.end)? + layout.shared.array as u64;
        let array = buffer.get(layout.skb.head)?.wrapping_add(end);
        let raw = self.reader.bytes(array, count * fragment.size)?;
        raw.chunks_exact(fragment.size)
            .map(|raw| {
                let get = |field: super::btf::Field| field.value(raw).ok_or_else(damaged);
                let length = get(fragment.length)? as usize;
                Ok((get(fragment.page)?, get(fragment.offset)?, length))
            })
            .collect()
    }

    /// Appends the bytes of each span to the one of `contents` that owns it.
    fn gather(&self, spans: &[Span], owners: &[usize], contents: &mut [Vec<u8>]) -> io::Result<()> {
        if spans.is_empty() {
            return Ok(());
        }
        self.reader.gatherer()?.run(spans, |number, piece| {
            let owner = owners
                .get(number)
                .and_then(|owner| contents.get_mut(*owner));
            let piece = piece.ok_or(Errno::FAULT)?;
            piece.append(owner.ok_or_else(damaged)?)
        })
    }

    /// Copies all of `spans`, one behind the other.
    pub fn together(&self, spans: &[Span]) -> io::Result<Vec<u8>> {
        let mut whole = [Vec::with_capacity(spans.iter().map(|span| span.1).sum())];
        self.gather(spans, &vec![0; spans.len()], &mut whole)?;
        let [whole] = whole;
        Ok(whole)
    }

    /// For each address whether `wanted` is there.
    pub fn find(&self, addresses: &[u64], wanted: &[u8]) -> io::Result<Vec<bool>> {
        let spans: Vec<Span> = addresses.iter().map(|at| (*at, wanted.len())).collect();
        let (mut found, mut there) = (Vec::with_capacity(spans.len()), Vec::new());
        self.reader.gatherer()?.run(&spans, |_, piece| {
            there.clear();
            let mapped = piece.is_some();
            piece.map_or(Ok(()), |piece| piece.append(&mut there))?;
            found.push(mapped && there == wanted);
            Ok(())
        })?;
        Ok(found)
    }
}

fn unreadable() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "a datagram lies in the memory of a device, which cannot be read",
    )
}

/// Whether each buffer points back to the one before.
fn linked(buffers: &[Buffer<'_>], mut previous: u64) -> io::Result<bool> {
    for buffer in buffers {
        if buffer.get(buffer.layout.skb.previous)? != previous {
            return Ok(false);
        }
        previous = buffer.address;
    }
    Ok(!buffers.is_empty())
}

/// Whether the buffers are there unchanged, perhaps with more behind them.
fn same(before: &[Buffer<'_>], after: &[Buffer<'_>]) -> io::Result<bool> {
    for (one, other) in before.iter().zip(after) {
        if one.address != other.address || !one.is(other)? {
            return Ok(false);
        }
    }
    Ok(before.len() <= after.len())
}
