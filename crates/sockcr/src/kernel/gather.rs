//! The program that gathers memory from many places.
//!
//! It copies to memory that this process sees: through its stack, as the walk does, a large datagram
//! would be copied five times. That memory is one for the whole process, under a lock.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sockcr_sys::bpf::{self, Window};

use super::assembler::{AssembleError, Assembler, Condition, Helper, Label, Register, Width};
use super::reader::damaged;
use super::{Reason, Unavailable, load};

/// Bytes somewhere in the kernel: address and length.
pub type Span = (u64, usize);

/// The pieces copied in one run. More would save a little for each and cost more to load: the
/// verifier takes 2 to 3 µs for an instruction, a run 1 to 2 µs besides its work.
const PIECES: usize = 64;
/// The bytes of one piece at most.
const PIECE: usize = 32 << 10;
/// The memory they are copied to. More would not stay in the processor's cache.
const ROOM: usize = 256 << 10;
/// The stack of the program: a key of the map.
const KEY: i32 = -4;

/// Places in an entry of the table of pieces, which is the context.
mod entry {
    /// u64: where the piece is.
    pub const ADDRESS: usize = 0;
    /// u32: its length, 0 behind the last one; the program writes whether it failed.
    pub const LENGTH: usize = 8;
    /// u32: where it goes to.
    pub const PLACE: usize = 12;
    pub const SIZE: usize = 16;
}

/// The program with its memory.
#[derive(Debug)]
pub struct Gatherer {
    program: OwnedFd,
    window: Mutex<Window>,
}

impl Gatherer {
    /// Loads it.
    pub fn load() -> Result<Self, Unavailable> {
        let window = Window::new(ROOM as u32, "sockcr_window")
            .map_err(|error| Reason::Other(format!("make a BPF map to read by: {error}")))?;
        Ok(Self {
            program: load(
                bpf::Kind::Syscall,
                "sockcr_gather",
                &gather(window.as_fd())?,
            )?,
            window: Mutex::new(window),
        })
    }

    /// Copies all of `spans`. `take` gets them in order, a long one in pieces, each with the number
    /// of its span; None: nothing is mapped there.
    pub fn run(
        &self,
        spans: &[Span],
        mut take: impl FnMut(usize, Option<Piece<'_>>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut pieces = spans.iter().enumerate().flat_map(split).peekable();
        let mut table = Table::new();
        while pieces.peek().is_some() {
            table.clear();
            while pieces.next_if(|piece| table.add(*piece)).is_some() {}
            let window = self.lock();
            bpf::run(self.program.as_fd(), &mut table.bytes)?;
            for (at, entry) in table.entries.iter().enumerate() {
                let there = !table.failed(at)?;
                take(
                    entry.span,
                    there.then_some(Piece {
                        window: &window,
                        entry,
                    }),
                )?;
            }
        }
        Ok(())
    }

    /// A panic of another thread leaves nothing that the next run does not write anew.
    fn lock(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A piece that was copied.
#[derive(Debug)]
pub struct Piece<'a> {
    window: &'a Window,
    entry: &'a Entry,
}

impl Piece<'_> {
    /// Appends its bytes.
    pub fn append(&self, to: &mut Vec<u8>) -> io::Result<()> {
        self.window.append(self.entry.place, self.entry.length, to)
    }
}

/// One piece in the table.
#[derive(Debug)]
struct Entry {
    span: usize,
    length: usize,
    place: usize,
}

/// A span in pieces, each with its number.
fn split((number, (address, length)): (usize, &Span)) -> impl Iterator<Item = (usize, Span)> {
    (0..*length).step_by(PIECE).map(move |at| {
        let from = address.wrapping_add(at as u64);
        (number, (from, (length - at).min(PIECE)))
    })
}

/// The pieces of one run.
struct Table {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// The room used.
    used: usize,
}

impl Table {
    fn new() -> Self {
        Self {
            bytes: vec![0; PIECES * entry::SIZE],
            entries: Vec::with_capacity(PIECES),
            used: 0,
        }
    }

    fn clear(&mut self) {
        self.bytes.fill(0);
        self.entries.clear();
        self.used = 0;
    }

    /// Adds a piece, if there is room for it.
    fn add(&mut self, (span, (address, length)): (usize, Span)) -> bool {
        let place = self.used;
        let at = self.entries.len() * entry::SIZE;
        let Some(raw) = self.bytes.get_mut(at..at + entry::SIZE) else {
            return false;
        };
        if place + PIECE > ROOM {
            return false;
        }
        raw[entry::ADDRESS..][..8].copy_from_slice(&address.to_ne_bytes());
        raw[entry::LENGTH..][..4].copy_from_slice(&(length as u32).to_ne_bytes());
        raw[entry::PLACE..][..4].copy_from_slice(&(place as u32).to_ne_bytes());
        self.entries.push(Entry {
            span,
            length,
            place,
        });
        self.used = (place + length).next_multiple_of(8);
        true
    }

    /// Whether a piece could not be copied, after the run.
    fn failed(&self, index: usize) -> io::Result<bool> {
        let at = index * entry::SIZE + entry::LENGTH;
        let result = self.bytes.get(at..at + 4).ok_or_else(damaged)?;
        Ok(result != [0; 4])
    }
}

/// R6 is the table, R7 the memory.
fn gather(window: BorrowedFd<'_>) -> Result<Vec<u8>, AssembleError> {
    let mut code = Assembler::new();
    let end = code.label();
    code.copy(Register::R6, Register::R1);
    code.look_up(window, KEY, end);
    code.copy(Register::R7, Register::R0);
    for index in 0..PIECES {
        piece(&mut code, index * entry::SIZE, end);
    }
    code.place(end);
    code.set(Register::R0, 0);
    code.exit();
    code.finish()
}

/// Copies the piece of the entry at `at`. What is compared is so already: the verifier wants to see
/// that no piece goes beyond the memory.
fn piece(code: &mut Assembler, at: usize, end: Label) {
    let (short, inside) = (code.label(), code.label());
    code.load(Width::Word, Register::R2, Register::R6, at + entry::LENGTH);
    code.jump_if(Register::R2, Condition::Equal, 0, end);
    code.jump_if(Register::R2, Condition::AtMost, PIECE as i32, short);
    code.jump(end);
    code.place(short);
    code.load(Width::Word, Register::R1, Register::R6, at + entry::PLACE);
    code.jump_if(
        Register::R1,
        Condition::AtMost,
        (ROOM - PIECE) as i32,
        inside,
    );
    code.jump(end);
    code.place(inside);
    code.add_register(Register::R1, Register::R7);
    code.load(
        Width::Double,
        Register::R3,
        Register::R6,
        at + entry::ADDRESS,
    );
    code.call(Helper::ProbeReadKernel);
    code.store(Width::Word, Register::R6, at + entry::LENGTH, Register::R0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_fit() {
        let mut table = Table::new();
        for number in 0..PIECES {
            assert!(table.add((number, (8, 9))));
        }
        assert!(!table.add((0, (8, 9))), "no entry left");
        table.clear();
        while table.add((0, (8, PIECE - 1))) {}
        assert_eq!(table.entries.len(), ROOM / PIECE);
        let last = table.entries.last().unwrap();
        assert!(last.place + last.length <= ROOM);
    }

    #[test]
    fn long_spans_go_in_pieces() {
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE] {
            let pieces: Vec<_> = split((7, &(u64::MAX, length))).collect();
            assert_eq!(pieces.len(), length.div_ceil(PIECE));
            let lengths = pieces.iter().map(|(_, (_, length))| length);
            assert_eq!(lengths.sum::<usize>(), length);
            assert!(pieces.iter().all(|(number, _)| *number == 7));
        }
    }

    #[test]
    fn in_order_and_no_fault_on_a_bad_address() {
        let reader = match crate::kernel::reader() {
            Ok(reader) => reader,
            Err(why) => {
                let strict = std::env::var("CI").is_ok_and(|ci| ci == "true");
                assert!(!strict, "skipped where nothing may be: {why}");
                return println!("skipped: {why}");
            }
        };
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let sock = reader.sock(socket.as_fd()).unwrap();
        // The protocol of a socket does not change, nor does anything near it.
        let spans: Vec<Span> = (0..3 * PIECES)
            .map(|number| match number % 5 {
                4 => (8, 8),
                _ => (
                    sock.address + reader.layout.sock.kind.offset as u64,
                    number % 3,
                ),
            })
            .collect();
        let at = reader.layout.sock.kind.offset;
        let mut seen = Vec::new();
        let gatherer = Gatherer::load().unwrap();
        gatherer
            .run(&spans, |number, piece| {
                seen.push(number);
                let mut bytes = Vec::new();
                assert_eq!(piece.is_none(), number % 5 == 4);
                piece.map_or(Ok(()), |piece| piece.append(&mut bytes))?;
                assert!(number % 5 == 4 || bytes == sock.raw[at..at + number % 3]);
                Ok(())
            })
            .unwrap();
        let expected = (0..spans.len()).filter(|number| spans[*number].1 > 0);
        assert!(expected.eq(seen));
    }
}
