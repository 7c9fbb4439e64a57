//! Sockets by hand.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// `SOL_SOCKET`
pub const SOCKET: i32 = 1;
/// `IPPROTO_IP`
pub const IP: i32 = 0;
/// `SOL_UDP`
pub const UDP: i32 = 17;
/// The highest number of an option that is tried.
pub const HIGHEST: i32 = 120;
/// Longer than this nothing may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

const SO_ERROR: i32 = 4;
const SO_ATTACH_FILTER: i32 = 26;
const SO_MEMINFO: i32 = 55;
const SO_INCOMING_NAPI_ID: i32 = 56;
const SO_COOKIE: i32 = 57;
const IP_MTU: i32 = 14;

/// What names one socket, counts, is cleared by reading it, or belongs to the route that happens to
/// be cached; and the filter, whose length is not in bytes.
pub const NOT_SWEPT: [(i32, i32); 6] = [
    (IP, IP_MTU),
    (SOCKET, SO_ERROR),
    (SOCKET, SO_ATTACH_FILTER),
    (SOCKET, SO_MEMINFO),
    (SOCKET, SO_INCOMING_NAPI_ID),
    (SOCKET, SO_COOKIE),
];

/// A fresh UDP socket.
pub fn udp() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        flags,
        None,
    )?)
}

/// A UDP socket bound to `address`.
pub fn bound(address: (Ipv4Addr, u16)) -> io::Result<OwnedFd> {
    let socket = udp()?;
    bind(&socket, address)?;
    Ok(socket)
}

pub fn bind(socket: &impl AsFd, (address, port): (Ipv4Addr, u16)) -> io::Result<()> {
    Ok(rustix::net::bind(
        socket,
        &SocketAddrV4::new(address, port),
    )?)
}

pub fn connect(socket: &impl AsFd, (address, port): (Ipv4Addr, u16)) -> io::Result<()> {
    Ok(rustix::net::connect(
        socket,
        &SocketAddrV4::new(address, port),
    )?)
}

/// Where a socket is bound.
pub fn local(socket: &impl AsFd) -> io::Result<SocketAddrV4> {
    Ok(SocketAddrV4::try_from(rustix::net::getsockname(socket)?)?)
}

/// Where a socket is connected to.
pub fn peer(socket: &impl AsFd) -> Option<SocketAddrV4> {
    let peer = rustix::net::getpeername(socket).ok().flatten()?;
    SocketAddrV4::try_from(peer).ok()
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// getsockopt(2) with this much room; the error is the errno.
pub fn get(socket: &impl AsFd, level: i32, name: i32, room: usize) -> Result<Vec<u8>, i32> {
    assert_ne!(
        (level, name),
        (SOCKET, SO_ATTACH_FILTER),
        "its length is not in bytes"
    );
    let mut value = vec![0u8; room];
    let mut length = room as libc::socklen_t;
    // SAFETY: value has room for `length` bytes, and for every other option the kernel counts in
    // bytes.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if done < 0 {
        return Err(errno());
    }
    value.truncate(length as usize);
    Ok(value)
}

/// setsockopt(2); the error is the errno.
pub fn set(socket: &impl AsFd, level: i32, name: i32, value: &[u8]) -> Result<(), i32> {
    assert_ne!(
        (level, name),
        (SOCKET, SO_ATTACH_FILTER),
        "its value holds a pointer"
    );
    // SAFETY: value is readable for its length; those with a pointer inside are refused above, or
    // are longer than anything a test passes.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    if done < 0 { Err(errno()) } else { Ok(()) }
}

/// Sets an option of four bytes.
pub fn set_int(socket: &impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    set(socket, level, name, &value.to_ne_bytes()).map_err(io::Error::from_raw_os_error)
}

/// Reads an option of four bytes.
pub fn get_int(socket: &impl AsFd, level: i32, name: i32) -> io::Result<i32> {
    let bytes = get(socket, level, name, 4).map_err(io::Error::from_raw_os_error)?;
    let bytes = bytes.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(i32::from_ne_bytes(bytes))
}

/// The answer to every getsockopt(2) there is.
pub type Sweep = BTreeMap<(i32, i32), Result<Vec<u8>, i32>>;

/// Asks a socket everything that can be compared with another one's.
pub fn sweep(socket: &impl AsFd) -> Sweep {
    let names = [SOCKET, IP, UDP]
        .into_iter()
        .flat_map(|level| (0..=HIGHEST).map(move |n| (level, n)));
    names
        .filter(|name| !NOT_SWEPT.contains(name))
        .map(|(level, name)| ((level, name), get(socket, level, name, 256)))
        .collect()
}

/// Where two sweeps differ, in words.
pub fn differences(a: &Sweep, b: &Sweep) -> Vec<String> {
    let differing = a
        .iter()
        .filter(|(name, answer)| b.get(name) != Some(answer));
    differing
        .map(|((level, name), answer)| {
            let other = b.get(&(*level, *name));
            format!("level {level} option {name}: {answer:?} became {other:?}")
        })
        .collect()
}

/// One instruction of classic BPF.
pub type Instruction = [u8; 8];

/// An instruction with no jumps.
pub fn instruction(code: u16, k: u32) -> Instruction {
    let [c0, c1] = code.to_ne_bytes();
    let [k0, k1, k2, k3] = k.to_ne_bytes();
    [c0, c1, 0, 0, k0, k1, k2, k3]
}

#[repr(C)]
struct Program {
    length: u16,
    code: *const Instruction,
}

/// Attaches a classic filter.
pub fn attach(socket: &impl AsFd, code: &[Instruction]) -> io::Result<()> {
    let aligned: Vec<u64> = code
        .iter()
        .map(|bytes| u64::from_ne_bytes(*bytes))
        .collect();
    let program = Program {
        length: code.len() as u16,
        code: aligned.as_ptr().cast(),
    };
    // SAFETY: the value is a sock_fprog whose instructions outlive the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            SOCKET,
            SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<Program>() as libc::socklen_t,
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Reads the filter back; the length counts instructions.
pub fn filter(socket: &impl AsFd) -> Result<Vec<Instruction>, i32> {
    let mut code = vec![[0u8; 8]; 4096];
    let mut count = code.len() as libc::socklen_t;
    // SAFETY: there is room for as many instructions as a filter may have at most.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            SOCKET,
            SO_ATTACH_FILTER,
            code.as_mut_ptr().cast(),
            &raw mut count,
        )
    };
    if done < 0 {
        return Err(errno());
    }
    code.truncate(count as usize);
    Ok(code)
}

/// Attaches an eBPF filter that lets everything pass.
pub fn attach_ebpf(socket: &impl AsFd) -> io::Result<()> {
    const PROG_LOAD: libc::c_long = 5;
    const SOCKET_FILTER: u32 = 1;
    const SO_ATTACH_BPF: i32 = 50;
    // r0 = 0x7fffffff; exit
    let code: [u64; 2] = [0x7fff_ffff_0000_00b7, 0x95];
    let mut attributes = [0u64; 16];
    attributes[0] = u64::from(SOCKET_FILTER) | (code.len() as u64) << 32;
    attributes[1] = code.as_ptr() as u64;
    attributes[2] = c"GPL".as_ptr() as u64;
    let size = size_of_val(&attributes);
    // SAFETY: PROG_LOAD reads `size` bytes, and the instructions and the licence they point to.
    let program = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, attributes.as_ptr(), size) };
    if program < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel made this descriptor for us; nobody else owns it.
    let program = unsafe { OwnedFd::from_raw_fd(program as RawFd) };
    set_int(socket, SOCKET, SO_ATTACH_BPF, program.as_raw_fd())
}

/// fcntl(2) with a number.
pub fn fcntl(socket: &impl AsFd, command: i32, argument: i32) -> io::Result<i32> {
    // SAFETY: the commands used take an int or nothing.
    let answer = unsafe { libc::fcntl(socket.as_fd().as_raw_fd(), command, argument) };
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(answer)
    }
}

/// Everything fcntl(2) tells of a socket: flags, close-on-exec, owner, signal.
pub fn fcntl_view(socket: &impl AsFd) -> io::Result<[i32; 5]> {
    const F_GETSIG: i32 = 11;
    const F_GETOWN_EX: i32 = 16;
    let mut owner = [0i32; 2];
    // SAFETY: F_GETOWN_EX writes two ints.
    let done = unsafe { libc::fcntl(socket.as_fd().as_raw_fd(), F_GETOWN_EX, owner.as_mut_ptr()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    let flags = fcntl(socket, libc::F_GETFL, 0)?;
    let close_on_exec = fcntl(socket, libc::F_GETFD, 0)?;
    let signal = fcntl(socket, F_GETSIG, 0)?;
    Ok([flags, close_on_exec, owner[0], owner[1], signal])
}

/// Lets no signal of a socket end the test.
pub fn ignore_signals() {
    for signal in [
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGIO,
        libc::SIGRTMIN(),
        libc::SIGRTMAX(),
    ] {
        // SAFETY: to ignore a signal runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Waits until one of these is true of the socket.
pub fn wait_for(socket: &impl AsFd, events: PollFlags) -> io::Result<()> {
    let mut fds = [PollFd::new(socket, events)];
    let end = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
    match poll(&mut fds, Some(&end))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// Receives one datagram; waits for it no longer than [`PATIENCE`].
pub fn receive(socket: &impl AsFd) -> io::Result<Vec<u8>> {
    Ok(receive_message(socket)?.data)
}

/// Receives what is there already.
pub fn receive_now(socket: &impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    use rustix::net::{RecvFlags, recv};
    let mut all = Vec::new();
    let mut buffer = [0u8; 65536];
    loop {
        match recv(socket, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((length, _)) => all.push(buffer[..length].to_vec()),
            Err(rustix::io::Errno::AGAIN) => return Ok(all),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A datagram and what came with it.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    pub data: Vec<u8>,
    pub from: SocketAddrV4,
    /// By level and type, the first four bytes at most.
    pub control: BTreeMap<(i32, i32), i32>,
}

/// Receives one datagram with its control messages.
pub fn receive_message(socket: &impl AsFd) -> io::Result<Message> {
    wait_for(socket, PollFlags::IN)?;
    let mut data = vec![0u8; 65536];
    let mut control = [0u64; 64];
    // SAFETY: sockaddr_in and msghdr are plain data for which all zeroes is a value.
    let (mut from, mut header): (libc::sockaddr_in, libc::msghdr) = unsafe { std::mem::zeroed() };
    let mut part = libc::iovec {
        iov_base: data.as_mut_ptr().cast(),
        iov_len: data.len(),
    };
    header.msg_name = (&raw mut from).cast();
    header.msg_namelen = size_of_val(&from) as libc::socklen_t;
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    // SAFETY: every pointer of the header is to memory of the length beside it.
    let length = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, 0) };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    data.truncate(length as usize);
    let room: usize = header.msg_controllen as _;
    let bytes: Vec<u8> = control
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .take(room)
        .collect();
    let address = Ipv4Addr::from(from.sin_addr.s_addr.to_ne_bytes());
    Ok(Message {
        data,
        from: SocketAddrV4::new(address, u16::from_be(from.sin_port)),
        control: control_messages(&bytes),
    })
}

/// Reads a list of `struct cmsghdr`.
fn control_messages(mut bytes: &[u8]) -> BTreeMap<(i32, i32), i32> {
    const HEAD: usize = 16;
    let mut found = BTreeMap::new();
    while let Some((head, _)) = bytes.split_first_chunk::<HEAD>() {
        let [l0, l1, l2, l3, _, _, _, _, a, b, c, d, e, f, g, h] = *head;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let key = (
            i32::from_ne_bytes([a, b, c, d]),
            i32::from_ne_bytes([e, f, g, h]),
        );
        let Some(payload) = bytes.get(HEAD..length) else {
            break;
        };
        let mut value = [0u8; 4];
        value
            .iter_mut()
            .zip(payload)
            .for_each(|(to, from)| *to = *from);
        found.insert(key, i32::from_ne_bytes(value));
        bytes = bytes.get(length.next_multiple_of(8)..).unwrap_or_default();
    }
    found
}
