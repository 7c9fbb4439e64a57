//! The program at the devices: a packet of ours becomes the datagram it stands for.

use std::os::fd::BorrowedFd;

use crate::kernel::assembler::{
    AssembleError, Assembler, Condition, Helper, Label, Register, Width,
};

use super::record::{self, HEADER, HEADER6, RECORDS};

/// What the IP header of a packet of ours says it carries ("for experimentation", RFC 3692): no
/// UDP socket can ever get one that did not become a datagram again.
pub const TRANSIT_PROTOCOL: u8 = 253;

const UDP: i32 = 17;
/// `TCX_NEXT`: not ours.
const NEXT: i32 = -1;
/// `TCX_PASS`: on to the socket, past all other programs of the device.
const PASS: i32 = 0;
/// `TCX_DROP`
const DROP: i32 = 2;

/// Members of `struct __sk_buff`.
mod context {
    pub const MARK: usize = 8;
    pub const PRIORITY: usize = 32;
    pub const TIME: usize = 152;
}

/// What differs between the two protocols.
struct Headers {
    /// The first four bits.
    version: i32,
    /// The bytes of the header without options.
    size: usize,
    /// Where it says what it carries.
    protocol: i32,
    /// Where a packet that is sent in segments has the number of its record.
    number: i32,
    /// For the verifier: the bytes that options may take, never beyond the record.
    options_mask: i32,
}

/// `struct iphdr`, whose number is in the TOS.
const IPV4: Headers = Headers {
    version: 0x40,
    size: HEADER,
    protocol: 9,
    number: 1,
    options_mask: 0x3c,
};

/// `struct ipv6hdr`, whose number is the hop limit.
const IPV6: Headers = Headers {
    version: 0x60,
    size: HEADER6,
    protocol: 6,
    number: 7,
    options_mask: 0xf8,
};

/// Places on the stack.
const KEY: i32 = -4;
/// The UDP header of a packet of ours: the number of its record, and the secret.
const TAG: i32 = -16;
const FRONT: i32 = -64;
/// The bytes of a UDP header.
const UDP_SIZE: usize = 8;

/// What the program is made for.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// For packets of IPv6.
    pub ipv6: bool,
    /// Where the IP header begins in packets at this device.
    pub base: i32,
    /// What nobody else knows, positive.
    pub secret: i32,
    /// The port from which and to which we send what is segmented; only we have it.
    pub port: u16,
    /// The records.
    pub records: BorrowedFd<'a>,
    /// The socket.
    pub target: BorrowedFd<'a>,
}

impl Plan<'_> {
    fn headers(&self) -> &'static Headers {
        if self.ipv6 { &IPV6 } else { &IPV4 }
    }
}

const SKB: Register = Register::R6;
/// The number of the record, later the socket.
const NUMBER: Register = Register::R7;
const RECORD: Register = Register::R8;
/// The length of the IP header, later whether the socket took the packet.
const LENGTH: Register = Register::R9;

/// The places the program goes to.
struct Exits {
    next: Label,
    drop: Label,
}

/// Assembles the program.
pub fn program(plan: Plan<'_>) -> Result<Vec<u8>, AssembleError> {
    let mut code = Assembler::new();
    let exits = Exits {
        next: code.label(),
        drop: code.label(),
    };
    code.copy(SKB, Register::R1);
    recognise(&mut code, &plan, &exits);
    find_record(&mut code, &plan, &exits);
    rewrite(&mut code, &plan, &exits);
    assign(&mut code, &plan, &exits);
    for (label, verdict) in [(exits.drop, DROP), (exits.next, NEXT)] {
        code.place(label);
        code.set(Register::R0, verdict);
        code.exit();
    }
    code.finish()
}

/// Finds the number of the record, or lets the packet go its way.
fn recognise(code: &mut Assembler, plan: &Plan<'_>, exits: &Exits) {
    let (tagged, found) = (code.label(), code.label());
    let headers = plan.headers();
    code.set(Register::R2, plan.base);
    load_bytes(code, FRONT, (headers.size + UDP_SIZE) as i32, exits.next);
    let first = Register::R1;
    code.load_at(Width::Byte, first, Register::Frame, FRONT);
    code.mask(first, 0xf0);
    code.jump_if(first, Condition::Different, headers.version, exits.next);
    let protocol = Register::R1;
    code.load_at(
        Width::Byte,
        protocol,
        Register::Frame,
        FRONT + headers.protocol,
    );
    code.jump_if(
        protocol,
        Condition::Equal,
        i32::from(TRANSIT_PROTOCOL),
        tagged,
    );
    code.jump_if(protocol, Condition::Different, UDP, exits.next);
    segmented(code, plan, exits);
    code.jump(found);
    code.place(tagged);
    read_tag(code, plan, exits);
    code.place(found);
}

/// From our port to our port nobody else sends.
fn segmented(code: &mut Assembler, plan: &Plan<'_>, exits: &Exits) {
    let headers = plan.headers();
    for place in [headers.size, headers.size + 2] {
        let value = i32::from(u16::from_ne_bytes(plan.port.to_be_bytes()));
        let place = FRONT + place as i32;
        code.load_at(Width::Half, Register::R1, Register::Frame, place);
        code.jump_if(Register::R1, Condition::Different, value, exits.next);
    }
    let number = FRONT + headers.number;
    code.load_at(Width::Byte, NUMBER, Register::Frame, number);
}

/// The tag is where the UDP header will be, behind the options of IPv4; behind the header of IPv6.
fn read_tag(code: &mut Assembler, plan: &Plan<'_>, exits: &Exits) {
    if plan.ipv6 {
        code.set(Register::R2, plan.base + HEADER6 as i32);
    } else {
        code.load_at(Width::Byte, Register::R2, Register::Frame, FRONT);
        code.mask(Register::R2, 0x0f);
        code.multiply(Register::R2, size_of::<u32>());
        code.add(Register::R2, plan.base);
    }
    load_bytes(code, TAG, 8, exits.next);
    code.load_at(Width::Word, Register::R1, Register::Frame, TAG + 4);
    code.jump_if(Register::R1, Condition::Different, plan.secret, exits.next);
    code.load_at(Width::Word, NUMBER, Register::Frame, TAG);
}

/// Copies bytes of the packet, from the offset in R2, to the stack.
fn load_bytes(code: &mut Assembler, slot: i32, size: i32, failed: Label) {
    code.copy(Register::R1, SKB);
    code.copy(Register::R3, Register::Frame);
    code.add(Register::R3, slot);
    code.set(Register::R4, size);
    code.call(Helper::SkbLoadBytes);
    code.jump_if(Register::R0, Condition::Different, 0, failed);
}

fn find_record(code: &mut Assembler, plan: &Plan<'_>, exits: &Exits) {
    let inside = code.label();
    let last = i32::try_from(RECORDS - 1).unwrap_or(0);
    code.jump_if(NUMBER, Condition::AtMost, last, inside);
    code.jump(exits.next);
    code.place(inside);
    code.look_up(plan.records, KEY, exits.drop);
    code.copy(RECORD, Register::R0);
    code.multiply(NUMBER, record::SIZE);
    code.add_register(RECORD, NUMBER);
}

/// Gives the packet its true headers, receive time and mark. Its length does not change.
fn rewrite(code: &mut Assembler, plan: &Plan<'_>, exits: &Exits) {
    let headers = plan.headers();
    code.load(Width::Word, LENGTH, RECORD, record::OPTIONS_LENGTH);
    code.mask(LENGTH, headers.options_mask);
    code.advance(LENGTH, headers.size);
    code.set(Register::R2, plan.base);
    store_bytes(code, record::IP_HEADER, LENGTH, exits);
    code.set(Register::R2, plan.base);
    code.add_register(Register::R2, LENGTH);
    code.set(LENGTH, 8);
    store_bytes(code, record::UDP_HEADER, LENGTH, exits);
    code.load(Width::Word, Register::R1, RECORD, record::MARK);
    code.store(Width::Word, SKB, context::MARK, Register::R1);
    code.load(Width::Word, Register::R1, RECORD, record::PRIORITY);
    code.store(Width::Word, SKB, context::PRIORITY, Register::R1);
    code.load(Width::Double, Register::R1, RECORD, record::TIME);
    code.store(Width::Double, SKB, context::TIME, Register::R1);
}

/// Writes a part of the record to the offset in R2 of the packet. The checksum that the device
/// may have verified is not touched: that of UDP is then 0, none.
fn store_bytes(code: &mut Assembler, from: usize, length: Register, exits: &Exits) {
    code.copy(Register::R1, SKB);
    code.copy(Register::R3, RECORD);
    code.advance(Register::R3, from);
    code.copy(Register::R4, length);
    code.set(Register::R5, 0);
    code.call(Helper::SkbStoreBytes);
    code.jump_if(Register::R0, Condition::Different, 0, exits.drop);
}

/// `bpf_sk_assign`: no lookup by address will be made (`inet_steal_sock`). The hash is what the filter
/// of the socket knows our packets by ([`super::target`]).
fn assign(code: &mut Assembler, plan: &Plan<'_>, exits: &Exits) {
    let pass = code.label();
    code.load(Width::Word, Register::R1, RECORD, record::GOES_TO);
    code.jump_if(Register::R1, Condition::Equal, record::ANYBODY as i32, pass);
    code.copy(Register::R1, SKB);
    code.set(Register::R2, plan.secret);
    code.call(Helper::SetHash);
    code.load(Width::Word, Register::R1, RECORD, record::GOES_TO);
    code.jump_if(Register::R1, Condition::Equal, record::KNOWN as i32, pass);
    code.look_up(plan.target, KEY, exits.drop);
    code.copy(NUMBER, Register::R0);
    code.copy(Register::R1, SKB);
    code.copy(Register::R2, NUMBER);
    code.set(Register::R3, 0);
    code.call(Helper::SockAssign);
    code.copy(LENGTH, Register::R0);
    code.copy(Register::R1, NUMBER);
    code.call(Helper::SockRelease);
    code.jump_if(LENGTH, Condition::Different, 0, exits.drop);
    code.place(pass);
    code.set(Register::R1, 1);
    code.store(Width::Word, RECORD, record::SEEN, Register::R1);
    code.set(Register::R0, PASS);
    code.exit();
}
