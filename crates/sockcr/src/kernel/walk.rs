//! The program that follows a list of buffers.
//!
//! It works on the context alone, as the reader does, so that there is no map and no lock. The
//! verifier wants fixed places in the context, at most 32 KiB from its beginning: therefore the
//! loop is written out.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use sockcr_sys::bpf;

use super::assembler::{AssembleError, Assembler, Condition, Label, Register, Width};
use super::buffer::{Buffer, Buffers};
use super::program::PIECE;
use super::reader::damaged;
use super::{Reason, Unavailable, load};

/// The window of each buffer: from its network header on, or from its data on.
const WINDOW: usize = PIECE;
/// The buffers copied in one run.
const SLOTS: usize = 24;

/// Places in the context of the walk.
mod context {
    /// u64: the first buffer.
    pub const START: usize = 0;
    /// u64: the address that ends the list; a null pointer does so too.
    pub const END: usize = 8;
    /// u32: what the window shows, a [`super::View`].
    pub const VIEW: usize = 16;
    /// u64: the program writes how many buffers it copied.
    pub const COUNT: usize = 24;
    /// u64: the program writes the buffer that comes next.
    pub const NEXT: usize = 32;
    /// The copies.
    pub const SLOTS: usize = 40;
}

/// Places on the stack.
mod stack {
    /// The address of the window.
    pub const BASE: i32 = -8;
    /// What is being copied.
    pub const PIECE: i32 = -(8 + super::PIECE as i32);
}

/// What the window of a buffer shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum View {
    /// From the network header on.
    Headers = 0,
    /// From `data` on: buffers that may have no network header.
    Data = 1,
}

/// The program.
#[derive(Debug)]
pub struct Walk {
    program: OwnedFd,
}

impl Walk {
    /// Loads it.
    pub fn load(layout: &Buffers) -> Result<Self, Unavailable> {
        if layout.skb.extent > PIECE || layout.shared.extent > PIECE {
            return Err(Reason::Other("the kernel's buffers are too big".to_owned()).into());
        }
        let offsets = [layout.skb.end, layout.skb.network_header].map(|field| field.size);
        if offsets != [4, 2] {
            return Err(Reason::Other("the kernel's buffers have no offsets".to_owned()).into());
        }
        Ok(Self {
            program: load(bpf::Kind::Syscall, "sockcr_walk", &walk(layout)?)?,
        })
    }

    /// Copies the buffers from `start` on into `page`, as many as fit, until `end`.
    pub fn run(&self, page: &mut WalkPage, start: u64, end: u64, view: View) -> io::Result<()> {
        page.put(context::START, &start.to_ne_bytes())?;
        page.put(context::END, &end.to_ne_bytes())?;
        page.put(context::VIEW, &(view as u32).to_ne_bytes())?;
        let result = bpf::run(self.program.as_fd(), &mut page.bytes)?;
        if result == 0 {
            Ok(())
        } else {
            Err(Errno::FAULT.into())
        }
    }
}

fn slot_size(layout: &Buffers) -> usize {
    layout.skb.extent + layout.shared.extent + WINDOW
}

/// R6 is the context, R7 the buffer, R9 the view; R8 first the number of the slot, then the
/// address of `skb_shared_info`.
fn walk(layout: &Buffers) -> Result<Vec<u8>, AssembleError> {
    let mut code = Assembler::new();
    let (end, fault) = (code.label(), code.label());
    code.copy(Register::R6, Register::R1);
    code.load(Width::Double, Register::R7, Register::R6, context::START);
    code.load(Width::Word, Register::R9, Register::R6, context::VIEW);
    for index in 0..SLOTS {
        code.set(Register::R8, index as i32);
        code.jump_if(Register::R7, Condition::Equal, 0, end);
        code.load(Width::Double, Register::R1, Register::R6, context::END);
        code.jump_if_register(Register::R7, Condition::Equal, Register::R1, end);
        let place = context::SLOTS + index * slot_size(layout);
        copy_buffer(&mut code, layout, place, fault);
    }
    code.set(Register::R8, SLOTS as i32);
    code.place(end);
    code.store(Width::Double, Register::R6, context::COUNT, Register::R8);
    code.store(Width::Double, Register::R6, context::NEXT, Register::R7);
    code.set(Register::R0, 0);
    code.exit();
    code.place(fault);
    code.set(Register::R0, 1);
    code.exit();
    code.finish()
}

/// Copies the buffer in R7 with its shared information and its window to `place`; R7 becomes the
/// next one.
fn copy_buffer(code: &mut Assembler, layout: &Buffers, place: usize, fault: Label) {
    let skb = &layout.skb;
    let slot = |offset: usize| stack::PIECE + offset as i32;
    copy_piece(code, skb.extent, Register::R7, place, fault);
    let mut member = |width, register, offset| {
        code.load_at(width, register, Register::Frame, slot(offset));
    };
    member(Width::Double, Register::R7, skb.next.offset);
    member(Width::Double, Register::R8, skb.head.offset);
    member(Width::Double, Register::R1, skb.data.offset);
    member(Width::Half, Register::R2, skb.network_header.offset);
    member(Width::Word, Register::R3, skb.end.offset);
    let chosen = code.label();
    code.jump_if(Register::R9, Condition::Different, 0, chosen);
    code.copy(Register::R1, Register::R8);
    code.add_register(Register::R1, Register::R2);
    code.place(chosen);
    code.store_at(Width::Double, Register::Frame, stack::BASE, Register::R1);
    code.add_register(Register::R8, Register::R3);
    let shared = place + skb.extent;
    copy_piece(code, layout.shared.extent, Register::R8, shared, fault);
    code.load_at(Width::Double, Register::R1, Register::Frame, stack::BASE);
    let window = shared + layout.shared.extent;
    copy_piece(code, WINDOW, Register::R1, window, fault);
}

/// Copies whole words at the address in a register to a place in the context, through the stack:
/// a helper may not write to the context. Behind the data of a buffer lies its
/// `skb_shared_info`, so that a window may end beyond the data and still be mapped.
fn copy_piece(code: &mut Assembler, size: usize, from: Register, place: usize, fault: Label) {
    code.probe(stack::PIECE, size as i32, from, 0, fault);
    copy_out(code, size, place);
}

fn copy_out(code: &mut Assembler, size: usize, place: usize) {
    for word in (0..size).step_by(8) {
        let slot = stack::PIECE + word as i32;
        code.load_at(Width::Double, Register::R1, Register::Frame, slot);
        code.store(Width::Double, Register::R6, place + word, Register::R1);
    }
}

/// The context of the walk.
#[derive(Debug)]
pub struct WalkPage {
    bytes: Vec<u8>,
}

impl WalkPage {
    /// An empty one.
    pub fn new(layout: &Buffers) -> Self {
        let size = context::SLOTS + SLOTS * slot_size(layout);
        Self {
            bytes: vec![0; size],
        }
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        put(&mut self.bytes, at, bytes)
    }

    /// How many buffers were copied.
    pub fn count(&self) -> io::Result<usize> {
        Ok(long(&self.bytes, context::COUNT)? as usize)
    }

    /// The buffer after the last one copied; what ends the list when there is none.
    pub fn next(&self) -> io::Result<u64> {
        long(&self.bytes, context::NEXT)
    }

    /// The buffers copied, in order.
    pub fn buffers<'a>(&'a self, layout: &'a Buffers) -> io::Result<Vec<Buffer<'a>>> {
        let mut address = long(&self.bytes, context::START)?;
        let headers = long(&self.bytes, context::VIEW)? as u32 == View::Headers as u32;
        let mut buffers = Vec::with_capacity(self.count()?);
        for index in 0..self.count()? {
            let buffer = self.buffer(layout, index, address, headers)?;
            address = buffer.next()?;
            buffers.push(buffer);
        }
        Ok(buffers)
    }

    fn buffer<'a>(
        &'a self,
        layout: &'a Buffers,
        index: usize,
        address: u64,
        headers: bool,
    ) -> io::Result<Buffer<'a>> {
        let size = slot_size(layout);
        let at = context::SLOTS + index * size;
        let slot = self.bytes.get(at..at + size).ok_or_else(damaged)?;
        let (skb, rest) = slot
            .split_at_checked(layout.skb.extent)
            .ok_or_else(damaged)?;
        let (shared, window) = rest
            .split_at_checked(layout.shared.extent)
            .ok_or_else(damaged)?;
        let mut buffer = Buffer {
            layout,
            address,
            skb,
            shared,
            window,
            base: 0,
        };
        buffer.base = if headers {
            let offset = buffer.get(layout.skb.network_header)?;
            buffer.get(layout.skb.head)?.wrapping_add(offset)
        } else {
            buffer.get(layout.skb.data)?
        };
        Ok(buffer)
    }
}

fn put(page: &mut [u8], at: usize, bytes: &[u8]) -> io::Result<()> {
    let place = page.get_mut(at..at + bytes.len()).ok_or_else(damaged)?;
    place.copy_from_slice(bytes);
    Ok(())
}

fn long(page: &[u8], at: usize) -> io::Result<u64> {
    let bytes = page.get(at..).and_then(|rest| rest.first_chunk());
    bytes
        .map(|bytes| u64::from_ne_bytes(*bytes))
        .ok_or_else(damaged)
}
