//! bpf(2): loading a program, running it once, reading what an iterator program writes, and
//! putting one before a device, with the maps it uses.
//!
//! Only the commands that sockcr uses. Every descriptor the kernel returns here is
//! close-on-exec already. The commands need CAP_BPF, and CAP_PERFMON for programs that read
//! kernel memory; without them [`load`] gives `EPERM`.

use std::ffi::{CString, c_void};
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `enum bpf_cmd` of `linux/bpf.h`.
mod command {
    pub const MAP_CREATE: libc::c_long = 0;
    pub const MAP_LOOKUP_ELEM: libc::c_long = 1;
    pub const MAP_UPDATE_ELEM: libc::c_long = 2;
    pub const MAP_DELETE_ELEM: libc::c_long = 3;
    pub const PROG_LOAD: libc::c_long = 5;
    pub const PROG_TEST_RUN: libc::c_long = 10;
    pub const PROG_GET_NEXT_ID: libc::c_long = 11;
    pub const MAP_GET_NEXT_ID: libc::c_long = 12;
    pub const PROG_GET_FD_BY_ID: libc::c_long = 13;
    pub const MAP_GET_FD_BY_ID: libc::c_long = 14;
    pub const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    pub const PROG_QUERY: libc::c_long = 16;
    pub const LINK_CREATE: libc::c_long = 28;
    pub const ITER_CREATE: libc::c_long = 33;
}

const PROG_TYPE_SOCKET_FILTER: u32 = 1;
const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_SOCKMAP: u32 = 15;
const PROG_TYPE_SCHED_CLS: u32 = 3;
const PROG_TYPE_TRACING: u32 = 26;
const PROG_TYPE_SYSCALL: u32 = 31;
const ATTACH_TYPE_TRACE_ITER: u32 = 28;
const ATTACH_TYPE_TCX_INGRESS: u32 = 46;
/// `BPF_F_BEFORE`: with nothing named, before all others.
const FLAG_BEFORE: u32 = 1 << 3;
/// `BPF_F_MMAPABLE`
const FLAG_MAPPABLE: u32 = 1 << 10;
/// `BPF_F_SLEEPABLE`: a SYSCALL program must be loaded with it.
const FLAG_SLEEPABLE: u32 = 1 << 4;

/// The licence told to the kernel: the helpers that read kernel memory want a GPL-compatible one.
const LICENCE: &std::ffi::CStr = c"Dual MIT/GPL";

/// The bytes of one instruction.
pub const INSTRUCTION_SIZE: usize = 8;

/// The bytes of a context that [`run`] accepts at most: the kernel's own limit.
pub const CONTEXT_LIMIT: usize = u16::MAX as usize;

/// Tries of a load that a signal interrupts, the number libbpf uses.
const LOAD_ATTEMPTS: usize = 5;

/// The type information of the running kernel, readable by everybody.
pub const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";

/// Memory of the kernel that this process sees, for reading.
#[derive(Debug)]
struct Mapping {
    start: *const u8,
    size: usize,
}

// SAFETY: the memory stays mapped at the same place as long as the value lives, on every thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing in it changes the value itself.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn of(file: BorrowedFd<'_>, size: usize, flags: libc::c_int) -> io::Result<Self> {
        // SAFETY: a new read-only mapping at a place of the kernel's choice disturbs no other
        // memory.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ,
                flags,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start: start.cast_const().cast(),
            size,
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `of`, and no borrow of it outlives `self`.
        unsafe { libc::munmap(self.start.cast_mut().cast::<c_void>(), self.size) };
    }
}

/// The bytes of [`KERNEL_TYPES`], mapped (Linux 6.16): nothing is copied.
#[derive(Debug)]
pub struct KernelTypes(Mapping);

impl KernelTypes {
    /// Maps the file. Kernels that cannot do this give `ENODEV`; it may then be read.
    pub fn map() -> io::Result<Self> {
        let file = File::open(KERNEL_TYPES)?;
        let size = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        Mapping::of(file.as_fd(), size, libc::MAP_PRIVATE).map(Self)
    }
}

impl Deref for KernelTypes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is the beginning of a mapping of `size` bytes that lives as long as
        // `self`. The kernel refuses to map the file writable and never changes its contents.
        unsafe { std::slice::from_raw_parts(self.0.start, self.0.size) }
    }
}

/// A map of bytes that programs write and this process reads, with no system call in between
/// (`BPF_F_MMAPABLE`, Linux 5.5).
#[derive(Debug)]
pub struct Window {
    map: Map,
    memory: Mapping,
}

impl Window {
    /// Makes the map, of so many bytes.
    pub fn new(size: u32, name: &str) -> io::Result<Self> {
        let map = Map::new(Content::Window(size), name)?;
        let memory = Mapping::of(map.as_fd(), size as usize, libc::MAP_SHARED)?;
        Ok(Self { map, memory })
    }

    /// Appends `length` bytes from the place `at` on. Whoever calls this sees to it that no
    /// program writes there meanwhile, or gets a mixture.
    pub fn append(&self, at: usize, length: usize, to: &mut Vec<u8>) -> io::Result<()> {
        if at
            .checked_add(length)
            .is_none_or(|end| end > self.memory.size)
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let from = self.memory.start.wrapping_add(at);
        to.reserve(length);
        let end = to.spare_capacity_mut().as_mut_ptr().cast();
        // SAFETY: `from` has `length` readable bytes, as checked above; `end` is where `length`
        // more bytes of the vector have been reserved, which nobody else refers to.
        unsafe { std::ptr::copy_nonoverlapping(from, end, length) };
        // SAFETY: so many bytes are reserved, and all of them were just written.
        unsafe { to.set_len(to.len() + length) };
        Ok(())
    }
}

impl AsFd for Window {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

/// What a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `BPF_PROG_TYPE_SYSCALL`, sleepable, run by [`run`] (Linux 5.14).
    Syscall,
    /// `BPF_PROG_TYPE_TRACING` with `BPF_TRACE_ITER` (Linux 5.8).
    Iterator {
        /// The BTF id of the function `bpf_iter_...` in vmlinux.
        function: u32,
    },
    /// `BPF_PROG_TYPE_SOCKET_FILTER`, for `SO_ATTACH_BPF` (Linux 3.19).
    SocketFilter,
    /// `BPF_PROG_TYPE_SCHED_CLS`, put before a device by [`link_ingress`].
    Classifier,
}

/// A kind of BPF object that the kernel numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// A program; a link holds one.
    Program,
    /// A map.
    Map,
}

/// The numbers and names of all objects of a kind in the kernel (CAP_SYS_ADMIN, Linux 4.15).
pub fn objects(kind: Object) -> io::Result<Vec<(u32, String)>> {
    // Where the name stands in struct bpf_prog_info and struct bpf_map_info.
    let (next, open, name_at) = match kind {
        Object::Program => (command::PROG_GET_NEXT_ID, command::PROG_GET_FD_BY_ID, 64),
        Object::Map => (command::MAP_GET_NEXT_ID, command::MAP_GET_FD_BY_ID, 24),
    };
    let (mut found, mut number) = (Vec::new(), 0);
    loop {
        let mut attributes = [number, 0, 0, 0];
        // SAFETY: the attributes of this command hold no address.
        if unsafe { call(next, &mut attributes) }.is_err() {
            return Ok(found);
        }
        number = attributes[1];
        // Gone meanwhile.
        let Ok(object) = by_number(open, number) else {
            continue;
        };
        let info = info(object.as_fd())?;
        let name = &info[name_at..name_at + 16];
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        found.push((number, String::from_utf8_lossy(name).into_owned()));
    }
}

/// The program with this number, and the hash of its instructions (CAP_SYS_ADMIN, Linux 4.13).
/// `ENOENT`: there is none, or not any more.
pub fn program_of_number(number: u32) -> io::Result<(OwnedFd, [u8; 8])> {
    // Where the tag stands in struct bpf_prog_info.
    const TAG: usize = 8;
    let program = by_number(command::PROG_GET_FD_BY_ID, number)?;
    let info = info(program.as_fd())?;
    let tag = info[TAG..].first_chunk().copied().unwrap_or_default();
    Ok((program, tag))
}

/// More than the beginning of struct bpf_prog_info and struct bpf_map_info that is of interest.
const INFO: usize = 256;

fn by_number(open: libc::c_long, number: u32) -> io::Result<OwnedFd> {
    // SAFETY: the attributes of this command hold no address.
    unsafe { call(open, &mut [number, 0, 0, 0]) }.and_then(owned)
}

fn info(object: BorrowedFd<'_>) -> io::Result<[u8; INFO]> {
    let mut info = [0_u8; INFO];
    let [low, high] = [0, 32].map(|shift| (info.as_mut_ptr() as u64 >> shift) as u32);
    let mut attributes = [object.as_raw_fd() as u32, INFO as u32, low, high];
    // SAFETY: the kernel writes at most the INFO bytes of `info`, which outlives the call.
    unsafe { call(command::OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(info)
}

/// What a [`Map`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes: `BPF_MAP_TYPE_ARRAY`.
    Bytes(u32),
    /// The same, for [`Window`].
    Window(u32),
    /// A socket, written as its descriptor: `BPF_MAP_TYPE_SOCKMAP` (UDP: Linux 5.8).
    Socket,
}

/// A map of one element, whose key is 0. It is gone when nobody has a descriptor of it.
#[derive(Debug)]
pub struct Map {
    descriptor: OwnedFd,
    size: usize,
}

impl Map {
    /// Makes a map. `EPERM`: no CAP_BPF, or for a socket no CAP_NET_ADMIN.
    pub fn new(content: Content, name: &str) -> io::Result<Self> {
        let (map_type, value_size, flags) = match content {
            Content::Bytes(size) => (MAP_TYPE_ARRAY, size, 0),
            Content::Window(size) => (MAP_TYPE_ARRAY, size, FLAG_MAPPABLE),
            Content::Socket => (MAP_TYPE_SOCKMAP, size(size_of::<RawFd>())?, 0),
        };
        let mut attributes = MapAttributes {
            map_type,
            key_size: size(size_of::<u32>())?,
            value_size,
            element_count: 1,
            flags,
            name: object_name(name)?,
            ..MapAttributes::default()
        };
        // SAFETY: the attributes of this command hold no address.
        let descriptor = unsafe { call(command::MAP_CREATE, &mut attributes) }.and_then(owned)?;
        Ok(Self {
            descriptor,
            size: value_size as usize,
        })
    }

    /// Writes the element, all bytes of it.
    pub fn put(&self, value: &[u8]) -> io::Result<()> {
        let mut value = self.checked(value.to_vec())?;
        self.element(command::MAP_UPDATE_ELEM, &mut value)
    }

    /// Reads the element.
    pub fn get(&self) -> io::Result<Vec<u8>> {
        let mut value = vec![0; self.size];
        self.element(command::MAP_LOOKUP_ELEM, &mut value)?;
        Ok(value)
    }

    /// Puts a socket into a map of [`Content::Socket`]. `EOPNOTSUPP`: it is not bound.
    pub fn put_socket(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.put(&number(socket).to_ne_bytes())
    }

    /// Takes the socket out again.
    pub fn remove(&self) -> io::Result<()> {
        self.element(command::MAP_DELETE_ELEM, &mut [])
    }

    fn checked(&self, value: Vec<u8>) -> io::Result<Vec<u8>> {
        match value.len() == self.size {
            true => Ok(value),
            false => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Runs a command on the element; `value` is as long as one, or not used by the command.
    fn element(&self, command: libc::c_long, value: &mut [u8]) -> io::Result<()> {
        let key = 0_u32;
        let mut attributes = ElementAttributes {
            map: number(self.descriptor.as_fd()),
            key: address(&raw const key),
            ..ElementAttributes::default()
        };
        // Deletion wants none at all (`CHECK_ATTR`).
        if !value.is_empty() {
            attributes.value = address(value.as_mut_ptr());
        }
        // SAFETY: `key` is a key of four bytes, and `value` as long as a value of this map for
        // the commands that read or write one: `put` and `get` see to it, deletion uses none.
        unsafe { call(command, &mut attributes) }.map(drop)
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// `union bpf_attr` for `BPF_MAP_CREATE`.
#[repr(C)]
#[derive(Default)]
struct MapAttributes {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    element_count: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; 16],
}

/// `union bpf_attr` for the commands on one element of a map.
#[repr(C)]
#[derive(Default)]
struct ElementAttributes {
    map: u32,
    /// Zero: it fills the structure up to the alignment of the key.
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` for `BPF_PROG_LOAD`, up to the last field used here.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
    btf: u32,
    function_record_size: u32,
    functions: u64,
    function_count: u32,
    line_record_size: u32,
    lines: u64,
    line_count: u32,
    attach_btf_id: u32,
    attach_program: u32,
    /// `core_relo_cnt`, zero: it fills the structure up to its alignment.
    relocation_count: u32,
}

/// `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct RunAttributes {
    program: u32,
    result: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    /// Zero: it fills the structure up to its alignment.
    padding: u32,
}

/// `union bpf_attr` for `BPF_LINK_CREATE` of an iterator, or with zeroes at its end of TCX.
#[repr(C)]
#[derive(Default)]
struct LinkAttributes {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    information: u64,
    information_size: u32,
    /// Zero: it fills the structure up to its alignment.
    padding: u32,
}

/// `union bpf_iter_link_info`, its `task` part.
#[repr(C)]
#[derive(Default)]
struct TaskInformation {
    thread: u32,
    process: u32,
    process_descriptor: u32,
}

/// `union bpf_attr` for `BPF_PROG_QUERY`, up to the last field used here.
#[repr(C)]
#[derive(Default)]
struct QueryAttributes {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    /// Zero: only their number is asked for.
    programs: u64,
    program_count: u32,
    /// Zero: it fills the structure up to its alignment.
    padding: u32,
}

/// `union bpf_attr` for `BPF_ITER_CREATE`.
#[repr(C)]
#[derive(Default)]
struct IteratorAttributes {
    link: u32,
    flags: u32,
}

/// A structure given to bpf(2): plain integers with no padding, laid out as the kernel wants.
trait Attributes {}
impl Attributes for [u32; 4] {}
impl Attributes for MapAttributes {}
impl Attributes for ElementAttributes {}
impl Attributes for LoadAttributes {}
impl Attributes for RunAttributes {}
impl Attributes for LinkAttributes {}
impl Attributes for IteratorAttributes {}
impl Attributes for QueryAttributes {}

/// Loads a program. `log` receives the verifier's words (NUL-terminated) when it is not empty;
/// an empty one is faster.
///
/// `EPERM`: no CAP_BPF or CAP_PERFMON. `EACCES`, `EINVAL`: the verifier refused the program, or
/// the kernel does not know its type.
pub fn load(kind: Kind, name: &str, instructions: &[u8], log: &mut [u8]) -> io::Result<OwnedFd> {
    let mut attributes = LoadAttributes {
        instruction_count: size(instructions.len() / INSTRUCTION_SIZE)?,
        instructions: address(instructions.as_ptr()),
        licence: address(LICENCE.as_ptr()),
        name: object_name(name)?,
        ..LoadAttributes::default()
    };
    match kind {
        Kind::Syscall => {
            attributes.program_type = PROG_TYPE_SYSCALL;
            attributes.flags = FLAG_SLEEPABLE;
        }
        Kind::Iterator { function } => {
            attributes.program_type = PROG_TYPE_TRACING;
            attributes.expected_attach_type = ATTACH_TYPE_TRACE_ITER;
            attributes.attach_btf_id = function;
        }
        Kind::SocketFilter => attributes.program_type = PROG_TYPE_SOCKET_FILTER,
        Kind::Classifier => attributes.program_type = PROG_TYPE_SCHED_CLS,
    }
    if !log.is_empty() {
        attributes.log_level = 1;
        attributes.log_size = size(log.len())?;
        attributes.log = address(log.as_mut_ptr());
    }
    for _ in 1..LOAD_ATTEMPTS {
        // SAFETY: the addresses in `attributes` are those of `instructions`, `LICENCE` and `log`,
        // which outlive the call, with their sizes; the kernel writes to `log` only, which is
        // borrowed mutably.
        let result = unsafe { call(command::PROG_LOAD, &mut attributes) };
        match result {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            result => return result.and_then(owned),
        }
    }
    // SAFETY: as above.
    unsafe { call(command::PROG_LOAD, &mut attributes) }.and_then(owned)
}

/// Runs a [`Kind::Syscall`] program once on this thread, with `context` as the memory it reads
/// and writes (at most [`CONTEXT_LIMIT`] bytes). Returns the program's own result (`R0`).
pub fn run(program: BorrowedFd<'_>, context: &mut [u8]) -> io::Result<u32> {
    let mut attributes = RunAttributes {
        program: number(program),
        context_size_in: size(context.len())?,
        context_in: address(context.as_mut_ptr()),
        ..RunAttributes::default()
    };
    // SAFETY: `context_in` and its size describe `context`, borrowed mutably for the whole call;
    // the kernel copies it in, and out again to the same place.
    unsafe { call(command::PROG_TEST_RUN, &mut attributes) }?;
    Ok(attributes.result)
}

/// Makes a link of an iterator program over tasks, of one process (its number in the pid
/// namespace of the caller) or of all.
pub fn link_task_iterator(program: BorrowedFd<'_>, process: Option<u32>) -> io::Result<OwnedFd> {
    let information = TaskInformation {
        process: process.unwrap_or(0),
        ..TaskInformation::default()
    };
    let mut attributes = LinkAttributes {
        program: number(program),
        attach_type: ATTACH_TYPE_TRACE_ITER,
        ..LinkAttributes::default()
    };
    if process.is_some() {
        attributes.information = address(&raw const information);
        attributes.information_size = size(size_of::<TaskInformation>())?;
    }
    // SAFETY: `information`, when given, outlives the call and has the size told; the kernel only
    // reads it.
    unsafe { call(command::LINK_CREATE, &mut attributes) }.and_then(owned)
}

/// Lets a [`Kind::Classifier`] program see first what comes in by a device of the network namespace
/// of this thread (TCX, Linux 6.6). Closing the descriptor, also by the end of the process, takes
/// it away again.
///
/// `EINVAL`: the kernel is older. `ENODEV`: there is no such device.
pub fn link_ingress(program: BorrowedFd<'_>, device: u32) -> io::Result<OwnedFd> {
    let mut attributes = LinkAttributes {
        program: number(program),
        target: device,
        attach_type: ATTACH_TYPE_TCX_INGRESS,
        flags: FLAG_BEFORE,
        ..LinkAttributes::default()
    };
    // SAFETY: for TCX the attributes hold no address; the rest of them is zero.
    unsafe { call(command::LINK_CREATE, &mut attributes) }.and_then(owned)
}

/// How many programs see what comes in by a device of the network namespace of this thread (TCX).
pub fn ingress_count(device: u32) -> io::Result<u32> {
    let mut attributes = QueryAttributes {
        target: device,
        attach_type: ATTACH_TYPE_TCX_INGRESS,
        ..QueryAttributes::default()
    };
    // SAFETY: the address in the attributes is null, with a count of 0: the kernel writes the
    // count alone.
    unsafe { call(command::PROG_QUERY, &mut attributes) }?;
    Ok(attributes.program_count)
}

/// Starts one pass of an iterator: read(2) from the descriptor until it gives nothing more.
pub fn create_iterator(link: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = IteratorAttributes {
        link: number(link),
        flags: 0,
    };
    // SAFETY: the attributes of this command hold no address.
    unsafe { call(command::ITER_CREATE, &mut attributes) }.and_then(owned)
}

/// bpf(2) itself.
///
/// # Safety
/// Every address in `attributes` must be valid for what `command` reads and writes there.
unsafe fn call<T: Attributes>(command: libc::c_long, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: `attributes` is a live structure of plain integers with the size given, and the
    // caller vouches for the addresses in it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    RawFd::try_from(result)
        .ok()
        .filter(|result| *result >= 0)
        .ok_or_else(io::Error::last_os_error)
}

/// Takes a descriptor that the kernel has just made.
fn owned(descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the result of a successful bpf(2) that makes an object is a new descriptor, which
    // nothing else knows of.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// A descriptor as bpf(2) wants it. A `BorrowedFd` is never negative.
fn number(descriptor: BorrowedFd<'_>) -> u32 {
    descriptor.as_raw_fd().unsigned_abs()
}

fn address<T>(pointer: *const T) -> u64 {
    pointer as usize as u64
}

fn size(length: usize) -> io::Result<u32> {
    u32::try_from(length).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))
}

/// The name of a program in the kernel: at most 15 letters, digits, `_` and `.`.
fn object_name(name: &str) -> io::Result<[u8; 16]> {
    let name = CString::new(name)?.into_bytes_with_nul();
    let mut field = [0; 16];
    let place = field
        .get_mut(..name.len())
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ENAMETOOLONG))?;
    place.copy_from_slice(&name);
    Ok(field)
}
