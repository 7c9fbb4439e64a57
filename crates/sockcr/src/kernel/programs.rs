//! The BPF programs that are attached to a socket.

use std::io;
use std::os::fd::BorrowedFd;

use super::btf::Field;
use super::layout::Program;
use super::reader::{Reader, damaged};
use crate::state::filter::Instruction;

/// `BPF_OBJ_NAME_LEN`, `BPF_TAG_SIZE`
const NAME: usize = 16;
const TAG: usize = 8;
/// `BPF_MAXINSNS`: a classic program is no longer.
const LONGEST: usize = 4096;

/// A program as the kernel keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attached {
    /// A classic one, as it was given.
    Classic(Vec<Instruction>),
    /// An eBPF program.
    Extended {
        /// Its number until it is unloaded.
        id: u32,
        /// The hash of its instructions.
        tag: [u8; 8],
        /// Its name, perhaps empty.
        name: String,
    },
}

impl Reader {
    /// The filter of a socket (`sock.sk_filter`).
    pub fn filter(&self, socket: BorrowedFd<'_>) -> io::Result<Option<Attached>> {
        let layout = self.program_layout()?;
        let filter = self.pointer_in_sock(socket, self.layout.sock.filter)?;
        match filter {
            0 => Ok(None),
            filter => self.attached(layout, self.pointer(filter, layout.of_filter)?),
        }
    }

    /// The program that chooses within the SO_REUSEPORT group of a socket
    /// (`sock_reuseport.prog`).
    pub fn group_program(&self, socket: BorrowedFd<'_>) -> io::Result<Option<Attached>> {
        let layout = self.program_layout()?;
        let group = self.pointer_in_sock(socket, self.layout.sock.reuseport.offset)?;
        match group {
            0 => Ok(None),
            group => {
                let program = self.pointer(group, self.layout.reuseport.program.offset)?;
                self.attached(layout, program)
            }
        }
    }

    /// How many sockets the SO_REUSEPORT group of a socket has (`sock_reuseport.num_socks`).
    pub fn group_size(&self, socket: BorrowedFd<'_>) -> io::Result<u64> {
        let group = self.pointer_in_sock(socket, self.layout.sock.reuseport.offset)?;
        if group == 0 {
            return Ok(0);
        }
        let count = self.layout.reuseport.count;
        let raw = self.bytes(group.wrapping_add(count.offset as u64), count.size)?;
        let count = Field { offset: 0, ..count };
        count.value(&raw).ok_or_else(damaged)
    }

    fn program_layout(&self) -> io::Result<&'static Program> {
        let layout = self.layout.program.as_ref();
        layout.map_err(|error| io::Error::new(io::ErrorKind::Unsupported, error.clone()))
    }

    fn pointer_in_sock(&self, socket: BorrowedFd<'_>, offset: usize) -> io::Result<u64> {
        let sock = self.sock(socket)?;
        let raw = sock.raw.get(offset..).and_then(|rest| rest.first_chunk());
        raw.map(|raw| u64::from_ne_bytes(*raw)).ok_or_else(damaged)
    }

    pub(super) fn pointer(&self, address: u64, offset: usize) -> io::Result<u64> {
        let raw = self.bytes(address.wrapping_add(offset as u64), size_of::<u64>())?;
        let raw = raw.first_chunk().ok_or_else(damaged)?;
        Ok(u64::from_ne_bytes(*raw))
    }

    fn attached(&self, layout: &Program, program: u64) -> io::Result<Option<Attached>> {
        if program == 0 {
            return Ok(None);
        }
        let raw = self.bytes(program, layout.extent)?;
        let original = layout.original.value(&raw).ok_or_else(damaged)?;
        if original != 0 {
            return self.classic(layout, original).map(Some);
        }
        let aux = layout.aux.value(&raw).ok_or_else(damaged)?;
        let id = self.bytes(aux.wrapping_add(layout.id.offset as u64), layout.id.size)?;
        let name = self.bytes(aux.wrapping_add(layout.name as u64), NAME)?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let tag: Option<&[u8; TAG]> = raw.get(layout.tag..).and_then(|rest| rest.first_chunk());
        let id: &[u8; 4] = id.first_chunk().ok_or_else(damaged)?;
        Ok(Some(Attached::Extended {
            id: u32::from_ne_bytes(*id),
            tag: *tag.ok_or_else(damaged)?,
            name: String::from_utf8_lossy(name).into_owned(),
        }))
    }

    /// `struct sock_fprog_kern`, kept for SO_GET_FILTER.
    fn classic(&self, layout: &Program, original: u64) -> io::Result<Attached> {
        let raw = self.bytes(original, layout.original_extent)?;
        let length = layout.original_length.value(&raw).ok_or_else(damaged)? as usize;
        let code = layout.original_code.value(&raw).ok_or_else(damaged)?;
        if length > LONGEST {
            return Err(damaged());
        }
        let code = self.bytes(code, length * size_of::<Instruction>())?;
        let (instructions, _) = code.as_chunks::<8>();
        Ok(Attached::Classic(instructions.to_vec()))
    }
}
