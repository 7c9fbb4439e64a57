//! The program of the reader: from a descriptor of the calling thread to a copy of its socket.
//!
//! It runs with the context as its only memory besides the stack. Throughout, R6 is the context
//! and R7 the kernel address at hand.

use rustix::io::Errno;

use super::assembler::{AssembleError, Assembler, Condition, Helper, Label, Register, Width};
use super::btf::Field;
use super::layout::{Functions, Layout};
use super::{Reason, Unavailable};

/// Places in the context. The window begins behind them, the memberships behind the window.
pub mod context {
    /// u32: what to do.
    pub const MODE: usize = 0;
    /// u32: the descriptor to start from.
    pub const DESCRIPTOR: usize = 4;
    /// u64: the kernel address to copy from; the program writes that of the sock.
    pub const ADDRESS: usize = 8;
    /// u32: the bytes to copy; the program writes how many a sock has.
    pub const SIZE: usize = 16;
    /// u32: the memberships to pass over.
    pub const SKIP: usize = 20;
    /// u64: the program writes how many memberships it listed.
    pub const COUNT: usize = 24;
    /// u64: the program writes whether there are more: not zero.
    pub const MORE: usize = 32;
    /// The copy.
    pub const WINDOW: usize = 40;
}

/// From a descriptor to its sock.
pub const MODE_SOCKET: u32 = 0;
/// Any kernel address.
pub const MODE_BYTES: u32 = 1;

/// Places on the program's stack, from its end.
mod stack {
    /// Room for one pointer or number.
    pub const SLOT: i32 = -8;
    /// `struct bpf_iter_num`.
    pub const COUNTER: i32 = -16;
    /// One piece of the copy, or one membership.
    pub const PIECE: i32 = -(16 + super::PIECE as i32);
}

/// The bytes copied at once through the stack, which has 512.
pub const PIECE: usize = 256;
/// Structures beyond this are none that we know.
const WINDOW_LIMIT: usize = 8192;
/// The memberships listed in one call; a socket may have 20 unless the sysctl was raised.
pub const MEMBERSHIPS: usize = 32;
/// The bytes of one membership in the context: group, address, interface.
pub const MEMBERSHIP_SIZE: usize = 12;
const INET: i32 = rustix::net::AddressFamily::INET.as_raw() as i32;
const INET6: i32 = rustix::net::AddressFamily::INET6.as_raw() as i32;
const DATAGRAM: i32 = rustix::net::SocketType::DGRAM.as_raw() as i32;
const RAW: i32 = rustix::net::SocketType::RAW.as_raw() as i32;
/// `IPPROTO_UDP`.
const UDP: i32 = 17;
/// `IPPROTO_UDPLITE`.
const UDP_LITE: i32 = 136;

/// The program for the kernel of `layout`, with the kernel functions that it may call.
pub fn program(
    layout: &Layout,
    window: usize,
    functions: &Functions,
) -> Result<Vec<u8>, AssembleError> {
    Writer::new(layout, window, functions).write()
}

/// The window needed by the structures of this kernel, in whole pieces.
pub fn window(layout: &Layout) -> Result<usize, Unavailable> {
    let sizes = [layout.udp.size, layout.raw_size, layout.inet.size];
    let inet6 = layout.inet6.as_ref();
    let inet6 = inet6.map_or([0; 2], |inet6| [inet6.udp_size, inet6.raw_size]);
    let window = sizes.into_iter().chain(inet6).max().unwrap_or(0);
    let window = window.next_multiple_of(PIECE);
    if window > WINDOW_LIMIT || layout.membership.extent() > PIECE {
        return Err(Reason::Other("the kernel's sockets are too big".to_owned()).into());
    }
    Ok(window)
}

/// Where the memberships begin in the context.
pub fn list(window: usize) -> usize {
    context::WINDOW + window
}

/// Writes the program.
struct Writer<'a> {
    layout: &'a Layout,
    functions: &'a Functions,
    window: usize,
    code: Assembler,
    fault: Label,
    bad_descriptor: Label,
    no_socket: Label,
    copy: Label,
    leave: Label,
}

impl<'a> Writer<'a> {
    fn new(layout: &'a Layout, window: usize, functions: &'a Functions) -> Self {
        let mut code = Assembler::new();
        Self {
            layout,
            functions,
            window,
            fault: code.label(),
            bad_descriptor: code.label(),
            no_socket: code.label(),
            copy: code.label(),
            leave: code.label(),
            code,
        }
    }

    /// Throughout: R6 is the context, R7 the address at hand, R9 the result at the end.
    fn write(mut self) -> Result<Vec<u8>, AssembleError> {
        self.begin();
        self.find_file();
        self.find_sock();
        self.choose_size();
        self.copy_window();
        self.list_memberships();
        self.finish()
    }

    fn begin(&mut self) {
        let code = &mut self.code;
        code.copy(Register::R6, Register::R1);
        for piece in 0..PIECE / 8 {
            let slot = stack::PIECE + 8 * piece as i32;
            code.store_value_at(Width::Double, Register::Frame, slot, 0);
        }
        if let Some((lock, _)) = self.functions.rcu {
            code.call_function(lock);
        }
        code.load(Width::Double, Register::R7, Register::R6, context::ADDRESS);
        code.load(Width::Word, Register::R8, Register::R6, context::SIZE);
        code.load(Width::Word, Register::R9, Register::R6, context::MODE);
        code.jump_if(Register::R9, Condition::Different, 0, self.copy);
    }

    /// `current->files->fdt->fd[descriptor]` into R7.
    fn find_file(&mut self) {
        let (code, path) = (&mut self.code, &self.layout.path);
        let slot = stack::SLOT;
        code.load(Width::Word, Register::R8, Register::R6, context::DESCRIPTOR);
        code.call(Helper::GetCurrentTask);
        code.copy(Register::R7, Register::R0);
        code.follow(Register::R7, path.task_files, slot, self.fault);
        code.follow(Register::R7, path.files_table, slot, self.fault);
        code.probe(slot, 4, Register::R7, path.table_limit, self.fault);
        code.load_at(Width::Word, Register::R1, Register::Frame, slot);
        code.jump_if_register(
            Register::R1,
            Condition::AtMost,
            Register::R8,
            self.bad_descriptor,
        );
        code.follow(Register::R7, path.table_files, slot, self.fault);
        code.shift_left(Register::R8, 3);
        code.add_register(Register::R7, Register::R8);
        code.follow(Register::R7, 0, slot, self.fault);
        code.jump_if(Register::R7, Condition::Equal, 0, self.bad_descriptor);
    }

    /// From the file in R7 to its `struct sock`. What `private_data` of another kind of file
    /// points to does not point back to the file.
    fn find_sock(&mut self) {
        let (code, path) = (&mut self.code, &self.layout.path);
        let slot = stack::SLOT;
        code.copy(Register::R9, Register::R7);
        code.follow(Register::R7, path.file_private, slot, self.fault);
        code.probe(slot, 8, Register::R7, path.socket_file, self.no_socket);
        code.load_at(Width::Double, Register::R1, Register::Frame, slot);
        code.jump_if_register(
            Register::R1,
            Condition::Different,
            Register::R9,
            self.no_socket,
        );
        code.copy(Register::R9, Register::R7);
        code.follow(Register::R7, path.socket_sock, slot, self.no_socket);
        code.probe(
            slot,
            8,
            Register::R7,
            self.layout.sock.socket.offset,
            self.no_socket,
        );
        code.load_at(Width::Double, Register::R1, Register::Frame, slot);
        code.jump_if_register(
            Register::R1,
            Condition::Different,
            Register::R9,
            self.no_socket,
        );
        code.store(Width::Double, Register::R6, context::ADDRESS, Register::R7);
    }

    /// The size of the sock in R7, by its family, type and protocol, into R8.
    fn choose_size(&mut self) {
        let (inet, inet6, chosen) = (self.code.label(), self.code.label(), self.code.label());
        let (layout, sock) = (self.layout, &self.layout.sock);
        self.set_size(sock.size);
        self.short(sock.family);
        self.code
            .jump_if(Register::R1, Condition::Equal, INET, inet);
        self.code
            .jump_if(Register::R1, Condition::Equal, INET6, inet6);
        self.code.jump(chosen);
        self.code.place(inet);
        let (udp, raw, other) = (layout.udp.size, layout.raw_size, layout.inet.size);
        self.choose_kind([udp, raw, other], chosen);
        self.code.place(inet6);
        if let Some(inet6) = &layout.inet6 {
            self.choose_kind([inet6.udp_size, inet6.raw_size, inet6.raw_size], chosen);
        } else {
            self.choose_kind([udp, raw, other], chosen);
        }
        self.code.place(chosen);
        self.code
            .store(Width::Word, Register::R6, context::SIZE, Register::R8);
    }

    /// The size of a UDP socket, a raw one, or another one of datagrams; `struct inet_sock` for all
    /// others.
    fn choose_kind(&mut self, [udp, raw, datagram]: [usize; 3], chosen: Label) {
        let (is_udp, datagrams) = (self.code.label(), self.code.label());
        let sock = &self.layout.sock;
        self.short(sock.kind);
        self.set_size(raw);
        self.code
            .jump_if(Register::R1, Condition::Equal, RAW, chosen);
        self.code
            .jump_if(Register::R1, Condition::Equal, DATAGRAM, datagrams);
        self.set_size(self.layout.inet.size);
        self.code.jump(chosen);
        self.code.place(datagrams);
        self.short(sock.protocol);
        self.code
            .jump_if(Register::R1, Condition::Equal, UDP, is_udp);
        self.code
            .jump_if(Register::R1, Condition::Equal, UDP_LITE, is_udp);
        self.set_size(datagram);
        self.code.jump(chosen);
        self.code.place(is_udp);
        self.set_size(udp);
        self.code.jump(chosen);
    }

    /// `window` has made sure that sizes are small.
    fn set_size(&mut self, size: usize) {
        self.code.set(Register::R8, 0);
        self.code.advance(Register::R8, size);
    }

    /// A member of two bytes of the sock in R7, into R1.
    fn short(&mut self, field: Field) {
        let code = &mut self.code;
        code.probe(stack::SLOT, 2, Register::R7, field.offset, self.fault);
        code.load_at(Width::Half, Register::R1, Register::Frame, stack::SLOT);
    }

    /// Copies R8 bytes at R7 into the window, piece by piece through the stack: a helper may not
    /// write to the context.
    fn copy_window(&mut self) {
        self.code.place(self.copy);
        let done = self.code.label();
        for piece in 0..self.window / PIECE {
            self.copy_piece(context::WINDOW + piece * PIECE, done);
        }
        self.code.place(done);
        self.code.set(Register::R9, 0);
        self.code
            .load(Width::Word, Register::R1, Register::R6, context::MODE);
        self.code
            .jump_if(Register::R1, Condition::Different, 0, self.leave);
    }

    fn copy_piece(&mut self, to: usize, done: Label) {
        let code = &mut self.code;
        let short = code.label();
        code.jump_if(Register::R8, Condition::SignedAtMost, 0, done);
        code.copy(Register::R2, Register::R8);
        code.jump_if(Register::R2, Condition::AtMost, PIECE as i32, short);
        code.set(Register::R2, PIECE as i32);
        code.place(short);
        code.copy(Register::R1, Register::Frame);
        code.add(Register::R1, stack::PIECE);
        code.copy(Register::R3, Register::R7);
        code.call(Helper::ProbeReadKernel);
        code.jump_if(Register::R0, Condition::Different, 0, self.fault);
        for word in 0..PIECE / 8 {
            let slot = stack::PIECE + 8 * word as i32;
            code.load_at(Width::Double, Register::R1, Register::Frame, slot);
            code.store(Width::Double, Register::R6, to + 8 * word, Register::R1);
        }
        code.add(Register::R7, PIECE as i32);
        code.add(Register::R8, -(PIECE as i32));
    }

    /// Walks `mc_list`, R7 being the entry and R8 the entries so far.
    fn list_memberships(&mut self) {
        let (sock, inet) = (&self.layout.sock, &self.layout.inet);
        let (end, walk) = (self.code.label(), self.code.label());
        let code = &mut self.code;
        code.load(Width::Double, Register::R7, Register::R6, context::ADDRESS);
        self.short(sock.family);
        let code = &mut self.code;
        code.jump_if(Register::R1, Condition::Equal, INET, walk);
        code.jump_if(Register::R1, Condition::Different, INET6, self.leave);
        code.place(walk);
        code.follow(
            Register::R7,
            inet.memberships.offset,
            stack::SLOT,
            self.fault,
        );
        self.skip_memberships();
        for index in 0..MEMBERSHIPS {
            self.code.set(Register::R8, index as i32);
            self.code.jump_if(Register::R7, Condition::Equal, 0, end);
            self.list_membership(list(self.window) + index * MEMBERSHIP_SIZE);
        }
        let code = &mut self.code;
        code.set(Register::R8, MEMBERSHIPS as i32);
        code.place(end);
        code.store(Width::Double, Register::R6, context::COUNT, Register::R8);
        code.store(Width::Double, Register::R6, context::MORE, Register::R7);
    }

    fn list_membership(&mut self, to: usize) {
        let (code, entry) = (&mut self.code, &self.layout.membership);
        let piece = |field: Field| stack::PIECE + field.offset as i32;
        code.probe(
            stack::PIECE,
            entry.extent() as i32,
            Register::R7,
            0,
            self.fault,
        );
        for (index, field) in [entry.group, entry.address, entry.interface]
            .into_iter()
            .enumerate()
        {
            code.load_at(Width::Word, Register::R1, Register::Frame, piece(field));
            code.store(Width::Word, Register::R6, to + 4 * index, Register::R1);
        }
        code.load_at(
            Width::Double,
            Register::R7,
            Register::Frame,
            piece(entry.next),
        );
    }

    /// Passes over as many entries as the context says, by the kernel's own counting loop.
    fn skip_memberships(&mut self) {
        let Some((new, next, destroy)) = self.functions.count else {
            return;
        };
        let next_entry = self.layout.membership.next.offset;
        let (again, end, broken) = (self.code.label(), self.code.label(), self.code.label());
        let code = &mut self.code;
        code.set(Register::R9, 0);
        code.load(Width::Word, Register::R3, Register::R6, context::SKIP);
        code.set(Register::R2, 0);
        self.counter(new);
        self.code.place(again);
        self.counter(next);
        let code = &mut self.code;
        code.jump_if(Register::R0, Condition::Equal, 0, end);
        code.jump_if(Register::R7, Condition::Equal, 0, end);
        code.follow(Register::R7, next_entry, stack::SLOT, broken);
        code.jump(again);
        code.place(broken);
        code.set(Register::R9, Errno::FAULT.raw_os_error());
        code.place(end);
        self.counter(destroy);
        self.code
            .jump_if(Register::R9, Condition::Different, 0, self.leave);
    }

    fn counter(&mut self, function: u32) {
        let code = &mut self.code;
        code.copy(Register::R1, Register::Frame);
        code.add(Register::R1, stack::COUNTER);
        code.call_function(function);
    }

    fn finish(mut self) -> Result<Vec<u8>, AssembleError> {
        let code = &mut self.code;
        code.set(Register::R9, 0);
        code.jump(self.leave);
        for (label, error) in [
            (self.fault, Errno::FAULT),
            (self.bad_descriptor, Errno::BADF),
            (self.no_socket, Errno::NOTSOCK),
        ] {
            code.place(label);
            code.set(Register::R9, error.raw_os_error());
            code.jump(self.leave);
        }
        code.place(self.leave);
        if let Some((_, unlock)) = self.functions.rcu {
            code.call_function(unlock);
        }
        code.copy(Register::R0, Register::R9);
        code.exit();
        self.code.finish()
    }
}
