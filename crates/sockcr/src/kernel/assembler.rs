//! A small eBPF assembler: readable names, labels, bytes at the end.
//!
//! Jumps name a [`Label`], placed before or after them; [`Assembler::finish`] fills in the
//! distances.

use std::os::fd::{AsRawFd, BorrowedFd};

use sockcr_sys::bpf::INSTRUCTION_SIZE;

/// A register of the eBPF machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Register {
    /// The result of calls and of the program.
    R0,
    /// First argument; lost in calls.
    R1,
    /// Second argument; lost in calls.
    R2,
    /// Third argument; lost in calls.
    R3,
    /// Fourth argument; lost in calls.
    R4,
    /// Fifth argument; lost in calls.
    R5,
    /// Kept over calls.
    R6,
    /// Kept over calls.
    R7,
    /// Kept over calls.
    R8,
    /// Kept over calls.
    R9,
    /// The end of the stack, which grows down; read only.
    Frame,
}

/// The width of a load or store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// One byte.
    Byte,
    /// Two bytes.
    Half,
    /// Four bytes.
    Word,
    /// Eight bytes.
    Double,
}

impl Width {
    /// The width of a member of so many bytes.
    pub fn of(size: usize) -> Option<Self> {
        match size {
            1 => Some(Self::Byte),
            2 => Some(Self::Half),
            4 => Some(Self::Word),
            8 => Some(Self::Double),
            _ => None,
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Word => 0x00,
            Self::Half => 0x08,
            Self::Byte => 0x10,
            Self::Double => 0x18,
        }
    }
}

/// When a conditional jump is taken: unsigned, on 64 bits, unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// `==`
    Equal,
    /// `!=`
    Different,
    /// `<=`
    AtMost,
    /// `<=`, signed
    SignedAtMost,
}

impl Condition {
    fn code(self) -> u8 {
        match self {
            Self::Equal => 0x10,
            Self::Different => 0x50,
            Self::AtMost => 0xb0,
            Self::SignedAtMost => 0xd0,
        }
    }
}

/// A helper of the kernel, by its number in `linux/bpf.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Helper {
    /// `bpf_map_lookup_elem(map, key)`: the place of an element, or null.
    MapLookup = 1,
    /// `bpf_set_hash(skb, hash)`: says what the packet's hash is.
    SetHash = 48,
    /// `bpf_skb_store_bytes(skb, offset, from, size, flags)`: writes into a packet.
    SkbStoreBytes = 9,
    /// `bpf_skb_load_bytes(skb, offset, to, size)`: fails on a packet too short.
    SkbLoadBytes = 26,
    /// `bpf_sk_release(sock)`: gives back what a lookup has taken.
    SockRelease = 86,
    /// `bpf_sk_assign(skb, sock, flags)`: the packet is for this socket.
    SockAssign = 124,
    /// `bpf_probe_read_kernel(dst, size, address)`: copies, or fails on a bad address.
    ProbeReadKernel = 113,
    /// `bpf_get_current_task()`: `struct task_struct` of the caller, as a number.
    GetCurrentTask = 35,
    /// `bpf_seq_write(seq, data, size)`: gives bytes to the reader of an iterator.
    SeqWrite = 127,
    /// `bpf_sock_from_file(file)`: its `struct socket`, or null.
    SockFromFile = 162,
}

/// A place in the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// Why a program could not be assembled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// A jump to a label that was never placed.
    #[error("a jump leads nowhere")]
    Unplaced,
    /// A jump or an offset beyond 16 bits, or a constant beyond 32.
    #[error("a distance does not fit into the instruction")]
    TooFar,
}

/// A program being written.
#[derive(Debug, Default)]
pub struct Assembler {
    code: Vec<[u8; INSTRUCTION_SIZE]>,
    /// Where each label stands.
    labels: Vec<Option<usize>>,
    /// Jumps: the instruction and its label.
    jumps: Vec<(usize, usize)>,
    /// The first number that did not fit, told by `finish`.
    overflow: bool,
}

impl Assembler {
    /// An empty program.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a label, to be placed later.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Places a label before the next instruction.
    pub fn place(&mut self, label: Label) {
        let here = self.code.len();
        if let Some(place) = self.labels.get_mut(label.0) {
            *place = Some(here);
        }
    }

    /// `to = from`
    pub fn copy(&mut self, to: Register, from: Register) {
        self.emit(0xbf, to as u8, from as u8, 0, 0);
    }

    /// `to = value`
    pub fn set(&mut self, to: Register, value: i32) {
        self.emit(0xb7, to as u8, 0, 0, value);
    }

    /// `to += value`
    pub fn add(&mut self, to: Register, value: i32) {
        self.emit(0x07, to as u8, 0, 0, value);
    }

    /// `to += offset`, for the place of a member.
    pub fn advance(&mut self, to: Register, offset: usize) {
        let offset = self.fit(offset);
        self.add(to, offset);
    }

    /// `to += from`
    pub fn add_register(&mut self, to: Register, from: Register) {
        self.emit(0x0f, to as u8, from as u8, 0, 0);
    }

    /// `to *= factor`
    pub fn multiply(&mut self, to: Register, factor: usize) {
        let factor = self.fit(factor);
        self.emit(0x27, to as u8, 0, 0, factor);
    }

    /// `to <<= bits`
    pub fn shift_left(&mut self, to: Register, bits: i32) {
        self.emit(0x67, to as u8, 0, 0, bits);
    }

    /// `to &= mask`
    pub fn mask(&mut self, to: Register, mask: i32) {
        self.emit(0x57, to as u8, 0, 0, mask);
    }

    /// `to = map`: two instructions, of which the kernel makes the map of a descriptor.
    pub fn map(&mut self, to: Register, map: BorrowedFd<'_>) {
        const MAP_DESCRIPTOR: u8 = 1;
        self.emit(0x18, to as u8, MAP_DESCRIPTOR, 0, map.as_raw_fd());
        self.emit(0, 0, 0, 0, 0);
    }

    /// The only element of a map into R0, by way of a word of the stack at `slot`; goes to `missing`
    /// when there is none. R1 to R5 are lost.
    pub fn look_up(&mut self, map: BorrowedFd<'_>, slot: i32, missing: Label) {
        self.store_value_at(Width::Word, Register::Frame, slot, 0);
        self.map(Register::R1, map);
        self.copy(Register::R2, Register::Frame);
        self.add(Register::R2, slot);
        self.call(Helper::MapLookup);
        self.jump_if(Register::R0, Condition::Equal, 0, missing);
    }

    /// `to = *(base + offset)`, zero-extended.
    pub fn load(&mut self, width: Width, to: Register, base: Register, offset: usize) {
        let offset = self.fit(offset);
        self.load_at(width, to, base, offset);
    }

    /// `to = *(base + offset)` with an offset that may be negative: the stack.
    pub fn load_at(&mut self, width: Width, to: Register, base: Register, offset: i32) {
        self.emit(0x61 | width.code(), to as u8, base as u8, offset, 0);
    }

    /// `*(base + offset) = from`
    pub fn store(&mut self, width: Width, base: Register, offset: usize, from: Register) {
        let offset = self.fit(offset);
        self.store_at(width, base, offset, from);
    }

    /// `*(base + offset) = from` with an offset that may be negative: the stack.
    pub fn store_at(&mut self, width: Width, base: Register, offset: i32, from: Register) {
        self.emit(0x63 | width.code(), base as u8, from as u8, offset, 0);
    }

    /// `*(base + offset) = value`
    pub fn store_value_at(&mut self, width: Width, base: Register, offset: i32, value: i32) {
        self.emit(0x62 | width.code(), base as u8, 0, offset, value);
    }

    /// `goto label`
    pub fn jump(&mut self, label: Label) {
        self.jumps.push((self.code.len(), label.0));
        self.emit(0x05, 0, 0, 0, 0);
    }

    /// `if left condition value goto label`
    pub fn jump_if(&mut self, left: Register, condition: Condition, value: i32, label: Label) {
        self.jumps.push((self.code.len(), label.0));
        self.emit(0x05 | condition.code(), left as u8, 0, 0, value);
    }

    /// `if left condition right goto label`
    pub fn jump_if_register(
        &mut self,
        left: Register,
        condition: Condition,
        right: Register,
        label: Label,
    ) {
        self.jumps.push((self.code.len(), label.0));
        self.emit(0x0d | condition.code(), left as u8, right as u8, 0, 0);
    }

    /// Calls a helper: arguments from R1 on, result in R0.
    pub fn call(&mut self, helper: Helper) {
        self.emit(0x85, 0, 0, 0, i32::from(helper as u8));
    }

    /// Copies `size` bytes at the kernel address `base + offset` to the stack at `slot`; goes to
    /// `failed` when nothing is mapped there. R0 to R5 are lost.
    pub fn probe(&mut self, slot: i32, size: i32, base: Register, offset: usize, failed: Label) {
        self.copy(Register::R3, base);
        if offset != 0 {
            self.advance(Register::R3, offset);
        }
        self.copy(Register::R1, Register::Frame);
        self.add(Register::R1, slot);
        self.set(Register::R2, size);
        self.call(Helper::ProbeReadKernel);
        self.jump_if(Register::R0, Condition::Different, 0, failed);
    }

    /// `base = *(void **)(base + offset)`, through the stack at `slot`.
    pub fn follow(&mut self, base: Register, offset: usize, slot: i32, failed: Label) {
        self.probe(slot, 8, base, offset, failed);
        self.load_at(Width::Double, base, Register::Frame, slot);
    }

    /// Calls a kernel function by its BTF id.
    pub fn call_function(&mut self, id: u32) {
        self.emit(0x85, 0, 2, 0, id.cast_signed());
    }

    /// Ends the program with R0 as its result.
    pub fn exit(&mut self) {
        self.emit(0x95, 0, 0, 0, 0);
    }

    /// The bytes of the program, for bpf(2).
    pub fn finish(mut self) -> Result<Vec<u8>, AssembleError> {
        for (at, label) in std::mem::take(&mut self.jumps) {
            let target = self.labels.get(label).copied().flatten();
            let target = target.ok_or(AssembleError::Unplaced)?;
            let distance = distance(at, target).ok_or(AssembleError::TooFar)?;
            if let Some([_, _, low, high, ..]) = self.code.get_mut(at) {
                [*low, *high] = distance.to_ne_bytes();
            }
        }
        if self.overflow {
            return Err(AssembleError::TooFar);
        }
        Ok(self.code.concat())
    }

    fn emit(&mut self, operation: u8, to: u8, from: u8, offset: i32, value: i32) {
        let registers = if cfg!(target_endian = "big") {
            to << 4 | from
        } else {
            from << 4 | to
        };
        let [low, high] = i16::try_from(offset)
            .unwrap_or_else(|_| {
                self.overflow = true;
                0
            })
            .to_ne_bytes();
        let [a, b, c, d] = value.to_ne_bytes();
        self.code
            .push([operation, registers, low, high, a, b, c, d]);
    }

    /// A place as a number in an instruction; one too large is told by `finish`.
    fn fit(&mut self, offset: usize) -> i32 {
        i32::try_from(offset).unwrap_or_else(|_| {
            self.overflow = true;
            0
        })
    }
}

/// What a jump adds to the place after it.
fn distance(from: usize, to: usize) -> Option<i16> {
    let to = i64::try_from(to).ok()?;
    let next = i64::try_from(from).ok()?.checked_add(1)?;
    i16::try_from(to.checked_sub(next)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn bytes() {
        let mut program = Assembler::new();
        let (out, again) = (program.label(), program.label());
        program.copy(Register::R6, Register::R1);
        program.place(again);
        program.load(Width::Word, Register::R2, Register::R6, 16);
        program.jump_if(Register::R2, Condition::Equal, -1, out);
        program.store_at(Width::Double, Register::Frame, -8, Register::R2);
        program.call(Helper::ProbeReadKernel);
        program.call_function(0x1_2345);
        program.jump(again);
        program.place(out);
        program.set(Register::R0, 0);
        program.exit();
        let hex: Vec<String> = program
            .finish()
            .unwrap()
            .chunks(INSTRUCTION_SIZE)
            .map(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect())
            .collect();
        assert_eq!(
            hex,
            [
                "bf16000000000000", // r6 = r1
                "6162100000000000", // r2 = *(u32 *)(r6 + 16)
                "15020400ffffffff", // if r2 == -1 goto +4
                "7b2af8ff00000000", // *(u64 *)(r10 - 8) = r2
                "8500000071000000", // call bpf_probe_read_kernel
                "8520000045230100", // call a kernel function
                "0500faff00000000", // goto -6
                "b700000000000000", // r0 = 0
                "9500000000000000", // exit
            ]
        );
    }

    #[test]
    fn errors() {
        let mut program = Assembler::new();
        let label = program.label();
        program.jump(label);
        assert_eq!(program.finish(), Err(AssembleError::Unplaced));
        let mut program = Assembler::new();
        program.load(Width::Byte, Register::R0, Register::R6, 40_000);
        assert_eq!(program.finish(), Err(AssembleError::TooFar));
    }
}
