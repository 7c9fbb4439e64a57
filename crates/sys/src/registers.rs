//! The registers of a stopped thread: how a system call is made by them, and how one that was
//! interrupted by the stop goes on as if there had been none.
//!
//! The kernel restarts an interrupted call itself when the result says so (`-ERESTARTSYS` and its kin,
//! which no program ever sees), and decides at the very last moment, with the signals that came in
//! the meantime (`arch_do_signal_or_restart`). A few calls answer `-EINTR` instead, even when no signal came
//! (signal(7)). Such a result is replaced by `-ERESTARTNOHAND`: the kernel then restarts the call unless a
//! handler is to run, and only in that case the program sees its EINTR.

pub use arch::{CALL, GOES_ON_FROM_EXIT, Raw, Waiting};

/// Restart unless a handler runs (`include/linux/errno.h` of the kernel).
#[cfg(target_arch = "x86_64")]
const ERESTARTNOHAND: i64 = 514;
/// Go on by restart_syscall(2), with the time that is left.
#[cfg(target_arch = "x86_64")]
const ERESTART_RESTARTBLOCK: i64 = 516;

/// The registers of a stopped thread.
#[derive(Clone, Copy)]
pub struct Registers(pub Raw);

/// The calls that answer EINTR at a mere stop and can be made again: they have done nothing yet.
/// (close(2) is none of them: its descriptor is gone by then.)
fn can_be_made_again(number: i64) -> bool {
    #[cfg(target_arch = "x86_64")]
    if number == libc::SYS_epoll_wait {
        return true;
    }
    [
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_recvmmsg,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_sendmmsg,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_connect,
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_rt_sigtimedwait,
        libc::SYS_semop,
        libc::SYS_semtimedop,
        libc::SYS_io_getevents,
        libc::SYS_io_uring_enter,
    ]
    .contains(&number)
}

/// Whether a recvmmsg(2) with these arguments had some datagrams when it was disturbed, and waited for more: it
/// answers those, and what disturbed it becomes the error of its socket (`do_recvmmsg`).
fn is_cut_short(answer: i64, length: u64, flags: u64) -> bool {
    const WAITS_NOT: i32 = libc::MSG_WAITFORONE | libc::MSG_DONTWAIT;
    let length = length as u32;
    answer > 0 && answer < i64::from(length) && flags as i32 & WAITS_NOT == 0
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use super::{ERESTART_RESTARTBLOCK, ERESTARTNOHAND, Registers};
    use super::{can_be_made_again, is_cut_short};

    /// As the kernel hands them out.
    pub type Raw = libc::user_regs_struct;
    /// The instruction that makes a system call.
    pub const CALL: &[u8] = &[0x0f, 0x05];
    /// Whether the registers of the call that a thread was interrupted in may be put back at the end of another one. A
    /// thread that is let go looks for signals before it leaves the kernel (`ptrace_signal_wake_up`), and what decides
    /// then whether the call is made again are the registers alone (`arch_do_signal_or_restart`).
    pub const GOES_ON_FROM_EXIT: bool = true;

    /// What has to be known of a thread before it is stopped: nothing.
    #[derive(Clone, Copy, Debug, Default)]
    pub struct Waiting;

    impl Waiting {
        /// Looks at a running thread.
        pub fn of(_tid: i32) -> Waiting {
            Waiting
        }
    }

    impl Registers {
        /// Where the thread goes on.
        pub fn address(&self) -> u64 {
            self.0.rip
        }

        /// Lets the thread go on there.
        pub fn go_on_at(&mut self, address: u64) {
            self.0.rip = address;
        }

        /// The end of what the stack holds.
        pub fn stack(&self) -> u64 {
            self.0.rsp
        }

        /// Where the instruction is that made the call that the thread was in.
        pub fn call_address(&self) -> Option<u64> {
            let in_a_call = (self.0.orig_rax as i64) >= 0;
            in_a_call.then(|| self.0.rip.wrapping_sub(CALL.len() as u64))
        }

        /// These, but about to make a system call by the instruction at this address; no earlier
        /// call is restarted then (`orig_rax`).
        pub fn calling(&self, at: u64, number: i64, arguments: [u64; 6]) -> Registers {
            let mut raw = self.0;
            raw.rip = at;
            raw.rax = number as u64;
            raw.orig_rax = u64::MAX;
            [raw.rdi, raw.rsi, raw.rdx, raw.r10, raw.r8, raw.r9] = arguments;
            Registers(raw)
        }

        /// What the call answered.
        pub fn answer(&self) -> i64 {
            self.0.rax as i64
        }

        /// The socket of a recvmmsg(2) that has answered less than it would have.
        pub fn cut_short(&self, _before: &Waiting) -> Option<i32> {
            let cut = self.0.orig_rax as i64 == libc::SYS_recvmmsg
                && is_cut_short(self.answer(), self.0.rdx, self.0.r10);
            cut.then_some(self.0.rdi as i32)
        }

        /// Takes back what only the stop has caused: an EINTR, or that a seccomp filter would see
        /// restart_syscall(2), which the program has never called. Says whether there was such a thing.
        pub fn take_back_interruption(
            &mut self,
            _before: &Waiting,
            is_filtered: impl FnOnce() -> bool,
        ) -> bool {
            const INTERRUPTED: i64 = -(libc::EINTR as i64);
            const TO_BE_RESUMED: i64 = -ERESTART_RESTARTBLOCK;
            let number = self.0.orig_rax as i64;
            let again = match self.answer() {
                INTERRUPTED => can_be_made_again(number),
                // It waits its whole time once more.
                TO_BE_RESUMED => number >= 0 && is_filtered(),
                _ => false,
            };
            if again {
                self.0.rax = (-ERESTARTNOHAND) as u64;
            }
            again
        }
    }
}

/// Here the kernel rewinds an interrupted call before the stop (`do_signal` of arch/arm64), and
/// forgets which it was: what the thread waits for is looked at while it still runs.
#[cfg(target_arch = "aarch64")]
mod arch {
    use super::{Registers, can_be_made_again, is_cut_short};

    /// As the kernel hands them out.
    pub type Raw = libc::user_regs_struct;
    /// The instruction that makes a system call: `svc #0`.
    pub const CALL: &[u8] = &[0x01, 0x00, 0x00, 0xd4];
    /// Not here: the kernel knows by itself that it is at the end of another call (`syscallno`), and would take its first
    /// argument for the answer.
    pub const GOES_ON_FROM_EXIT: bool = false;

    const NUMBER: usize = 8;

    /// The call that a thread waited in before it was stopped, by /proc/TID/syscall.
    #[derive(Clone, Copy, Debug, Default)]
    pub struct Waiting(Option<Call>);

    #[derive(Clone, Copy, Debug)]
    struct Call {
        number: i64,
        first: u64,
        second: u64,
        stack: u64,
        address: u64,
    }

    impl Waiting {
        /// Looks at a running thread.
        pub fn of(tid: i32) -> Waiting {
            let mut buffer = [0; 256];
            let path = crate::path::Path::new(format_args!("/proc/{tid}/syscall"));
            let text = crate::path::read(path.as_c_str(), &mut buffer);
            Waiting(text.ok().and_then(parse))
        }
    }

    /// `number first ... sixth stack address`, of which the number alone is decimal.
    fn parse(text: &[u8]) -> Option<Call> {
        let mut words = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
        let number = words.next()?.parse().ok()?;
        let mut hex = words.map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16));
        let mut next = || hex.next()?.ok();
        let (first, second) = (next()?, next()?);
        for _third_to_sixth in 0..4 {
            next()?;
        }
        Some(Call {
            number,
            first,
            second,
            stack: next()?,
            address: next()?,
        })
    }

    impl Registers {
        /// Where the thread goes on.
        pub fn address(&self) -> u64 {
            self.0.pc
        }

        /// Lets the thread go on there.
        pub fn go_on_at(&mut self, address: u64) {
            self.0.pc = address;
        }

        /// The end of what the stack holds.
        pub fn stack(&self) -> u64 {
            self.0.sp
        }

        /// Where the instruction may be that made the call that the thread was in.
        pub fn call_address(&self) -> Option<u64> {
            Some(self.0.pc)
        }

        /// These, but about to make a system call by the instruction at this address.
        pub fn calling(&self, at: u64, number: i64, arguments: [u64; 6]) -> Registers {
            let mut raw = self.0;
            raw.pc = at;
            raw.regs[NUMBER] = number as u64;
            raw.regs[..6].copy_from_slice(&arguments);
            Registers(raw)
        }

        /// What the call answered.
        pub fn answer(&self) -> i64 {
            self.0.regs[0] as i64
        }

        /// The socket of a recvmmsg(2) that has answered less than it would have.
        pub fn cut_short(&self, before: &Waiting) -> Option<i32> {
            let [_, _, length, flags, ..] = self.0.regs;
            let call = before.0.filter(|call| {
                call.number == libc::SYS_recvmmsg
                    && call.address == self.0.pc
                    && call.stack == self.0.sp
                    && is_cut_short(self.answer(), length, flags)
            });
            call.map(|call| call.first as i32)
        }

        /// Takes back an EINTR that only the stop has caused, and lets a sleep go on where it was, but
        /// under a seccomp filter, which might not allow that; says whether there was any such thing.
        pub fn take_back_interruption(
            &mut self,
            before: &Waiting,
            is_filtered: impl FnOnce() -> bool,
        ) -> bool {
            let Some(call) = before.0.filter(|call| call.stack == self.0.sp) else {
                return false;
            };
            let behind = call.address == self.0.pc;
            let interrupted = self.answer() == -i64::from(libc::EINTR);
            if behind && interrupted && can_be_made_again(call.number) {
                self.0.pc -= CALL.len() as u64;
                self.0.regs[0] = call.first;
                self.0.regs[NUMBER] = call.number as u64;
                return true;
            }
            // The kernel makes a sleep go on by another call (`setup_restart_syscall`).
            let rewound = call.address == self.0.pc + CALL.len() as u64;
            let relative = call.second & libc::TIMER_ABSTIME as u64 == 0;
            let sleeps = call.number == libc::SYS_nanosleep
                || call.number == libc::SYS_clock_nanosleep && relative;
            let resumes = rewound && sleeps && !is_filtered();
            if resumes {
                self.0.regs[NUMBER] = libc::SYS_restart_syscall as u64;
            }
            resumes
        }
    }
}
