//! The BPF programs of a socket: its filter, and the one that chooses within its SO_REUSEPORT group.

use crate::kernel::{self, Attached, Hidden};
use crate::report::Report;
use rustix::io::Errno;
use sockcr_sys::bpf;
use sockcr_sys::sockopt::{self, Place};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

pub use sockcr_sys::sockopt::Instruction;

/// A program as it is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Classic BPF; without an instruction it is none.
    Classic(Vec<Instruction>),
    /// An eBPF program, which is not carried but found again.
    Program(Program),
}

/// An eBPF program of a host, known there until it is unloaded or the host starts anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its number.
    pub id: u32,
    /// The hash of its instructions.
    pub tag: [u8; 8],
    /// Which start of which host: `/proc/sys/kernel/random/boot_id`.
    pub boot: [u8; 16],
    /// Its name, perhaps empty.
    pub name: String,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tag = crate::hex::encode(&self.tag);
        write!(f, "eBPF program {} {} tag {tag}", self.id, self.name)
    }
}

const SOL_SOCKET: i32 = 1;
const SO_DETACH_FILTER: i32 = 27;
const SO_ATTACH_BPF: i32 = 50;
const SO_ATTACH_REUSEPORT_EBPF: i32 = 52;

/// Reads the filter (`SO_GET_FILTER`, since 3.8; an eBPF program by BPF), empty when there is none.
pub(crate) fn dump(fd: BorrowedFd<'_>, report: &mut Report) -> Option<Filter> {
    let read = match sockopt::filter(fd) {
        Ok(program) => Ok(Filter::Classic(program)),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::ACCESS) => {
            by_bpf(|reader| reader.filter(fd)).map(Option::unwrap_or_default)
        }
        Err(error) => Err(error),
    };
    let what = "filter";
    read.map_err(|error| report.lose(what, crate::error::reason(&error)))
        .ok()
}

/// Reads the program of the SO_REUSEPORT group.
pub(crate) fn dump_group(
    fd: BorrowedFd<'_>,
    hidden: Option<&Hidden>,
    report: &mut Report,
) -> Option<Filter> {
    hidden.filter(|hidden| hidden.reuseport_program)?;
    let read = by_bpf(|reader| reader.group_program(fd));
    report.known("SO_REUSEPORT program", read).flatten()
}

impl Default for Filter {
    fn default() -> Filter {
        Filter::Classic(Vec::new())
    }
}

fn by_bpf(
    read: impl FnOnce(&kernel::Reader) -> io::Result<Option<Attached>>,
) -> io::Result<Option<Filter>> {
    let reader = kernel::reader()
        .map_err(|why| io::Error::other(format!("an eBPF program, not to be seen here: {why}")))?;
    let attached = read(reader)?;
    attached.map(named).transpose()
}

fn named(attached: Attached) -> io::Result<Filter> {
    Ok(match attached {
        Attached::Classic(program) => Filter::Classic(program),
        Attached::Extended { id, tag, name } => Filter::Program(Program {
            id,
            tag,
            boot: boot()?,
            name,
        }),
    })
}

/// Which start of which host this is.
fn boot() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let boot = crate::hex::decode(&text.trim().replace('-', ""));
    boot.and_then(|boot| boot.try_into().ok())
        .ok_or_else(|| io::Error::other("/proc/sys/kernel/random/boot_id is no UUID"))
}

/// `BPF_RET | BPF_K` with 0: nothing passes.
const NOTHING: Instruction = [0x06, 0, 0, 0, 0, 0, 0, 0];

/// `BPF_RET | BPF_K` with the most: all passes.
const EVERYTHING: Instruction = [0x06, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];

/// Lets nothing in: between bind(2) and connect(2) a socket hears everybody, and what it heard
/// would stay in its queue.
pub(crate) fn block(fd: BorrowedFd<'_>) -> io::Result<()> {
    sockopt::attach_filter(fd, Place::Filter, &[NOTHING])
}

/// Lets in only packets with this hash (`skb->hash`).
pub(crate) fn only_hash(fd: BorrowedFd<'_>, hash: i32) -> io::Result<()> {
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    // `SKF_AD_OFF + SKF_AD_RXHASH`
    let place = -0x1000_i32 + 32;
    let code = |code: u16, otherwise: u8, k: i32| {
        let ([c0, c1], [k0, k1, k2, k3]) = (code.to_ne_bytes(), k.to_ne_bytes());
        [c0, c1, 0, otherwise, k0, k1, k2, k3]
    };
    let program = [
        code(LOAD, 0, place),
        code(JUMP_IF_EQUAL, 1, hash),
        code(RETURN, 0, -1),
        code(RETURN, 0, 0),
    ];
    sockopt::attach_filter(fd, Place::Filter, &program)
}

/// Lets in only what comes from this address, and from this port unless it is 0, and that `program`
/// lets in too, where that is classic BPF. Bytes are loaded from the UDP header on
/// (`udp_queue_rcv_one_skb`).
pub(crate) fn only_from(
    fd: BorrowedFd<'_>,
    (address, port): (IpAddr, u16),
    program: &Filter,
) -> io::Result<()> {
    const LOAD_WORD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    /// `SKF_NET_OFF`
    const NETWORK: u32 = (-0x10_0000_i32) as u32;
    let (octets, at) = match address.to_canonical() {
        IpAddr::V4(address) => (address.octets().to_vec(), NETWORK + 12),
        IpAddr::V6(address) => (address.octets().to_vec(), NETWORK + 8),
    };
    let mut code = Vec::new();
    for (octets, at) in octets.chunks(4).zip((at..).step_by(4)) {
        let word = octets.try_into().map_or(0, u32::from_be_bytes);
        code.extend(must_be(LOAD_WORD, at, word));
    }
    if port != 0 {
        code.extend(must_be(LOAD_HALF, 0, port.into()));
    }
    match program {
        Filter::Classic(program) if !program.is_empty() => code.extend(program),
        _ => code.push(EVERYTHING),
    }
    sockopt::attach_filter(fd, Place::Filter, &code)
}

/// Goes on where what is loaded has this value; else nothing passes.
fn must_be(load: u16, at: u32, value: u32) -> [Instruction; 3] {
    const JUMP_IF_EQUAL: u16 = 0x15;
    let code = |code: u16, equal: u8, k: u32| {
        let ([c0, c1], [k0, k1, k2, k3]) = (code.to_ne_bytes(), k.to_ne_bytes());
        [c0, c1, equal, 0, k0, k1, k2, k3]
    };
    [code(load, 0, at), code(JUMP_IF_EQUAL, 1, value), NOTHING]
}

/// Takes away the filter of [`block`].
pub(crate) fn unblock(fd: BorrowedFd<'_>) -> io::Result<()> {
    sockopt::set(fd, SOL_SOCKET, SO_DETACH_FILTER, &[0; 4])
}

impl Filter {
    /// Whether it is none.
    pub fn is_empty(&self) -> bool {
        matches!(self, Filter::Classic(program) if program.is_empty())
    }

    /// Attaches it as the filter.
    pub(crate) fn restore(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.attach(fd, Place::Filter, SO_ATTACH_BPF)
    }

    /// Puts it in the place of the filter of [`block`].
    pub(crate) fn replace_block(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        match self.is_empty() {
            true => unblock(fd),
            false => self.restore(fd),
        }
    }

    /// Attaches it to the SO_REUSEPORT group of a bound socket that is alone in it; others may have it
    /// already. A socket with a program could not join (`reuseport_add_sock`), so it is bound first.
    pub(crate) fn restore_group(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let have = by_bpf(|reader| reader.group_program(fd))?;
        if have.as_ref() == Some(self) {
            return Ok(());
        }
        let reader = kernel::reader().map_err(io::Error::other)?;
        match have {
            // An unbound one has no group yet.
            None if reader.group_size(fd)? <= 1 => {
                self.attach(fd, Place::Group, SO_ATTACH_REUSEPORT_EBPF)
            }
            None => Err(io::Error::other(
                "the group has others here, and no program",
            )),
            Some(_) => Err(io::Error::other("the group here has another one")),
        }
    }

    fn attach(&self, fd: BorrowedFd<'_>, place: Place, extended: i32) -> io::Result<()> {
        match self {
            Filter::Classic(program) if program.is_empty() => Ok(()),
            Filter::Classic(program) => sockopt::attach_filter(fd, place, program),
            Filter::Program(program) => {
                let program = program.open()?;
                let number = program.as_raw_fd().to_ne_bytes();
                sockopt::set(fd, SOL_SOCKET, extended, &number)
            }
        }
    }
}

impl Program {
    /// The same program, if it is still there (CAP_SYS_ADMIN).
    fn open(&self) -> io::Result<OwnedFd> {
        let other = |why: &str| io::Error::other(format!("{self}: {why}"));
        if self.boot != boot()? {
            return Err(other("is one of another host, or of before it was started"));
        }
        match bpf::program_of_number(self.id) {
            Ok((program, tag)) if tag == self.tag => Ok(program),
            Ok(_) => Err(other("has another tag here")),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => {
                Err(other("is not there any more"))
            }
            Err(error) => Err(io::Error::new(error.kind(), format!("{self}: {error}"))),
        }
    }
}
