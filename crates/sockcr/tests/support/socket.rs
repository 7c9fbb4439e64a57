//! Sockets by hand.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use sockcr::protocol::Protocol;
use sockcr_sys::{bpf, descriptor, message, sockopt};

/// One instruction of classic BPF.
pub use sockcr_sys::sockopt::Instruction;

/// `SOL_SOCKET`
pub const SOCKET: i32 = 1;
/// `IPPROTO_IP`
pub const IP: i32 = 0;
/// `IPPROTO_IPV6`
pub const IPV6: i32 = 41;
/// `SOL_UDP`
pub const UDP: i32 = 17;
/// `SOL_UDPLITE`, another name of `SOL_UDP`.
pub const UDPLITE: i32 = 136;
/// `SOL_RAW`
pub const RAW: i32 = 255;
/// `SOL_ICMPV6`
pub const ICMPV6: i32 = 58;
/// All of them.
pub const LEVELS: [i32; 6] = [SOCKET, IP, IPV6, UDP, RAW, ICMPV6];
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
const IPV6_MTU: i32 = 24;
const IPV6_PATHMTU: i32 = 61;

/// What names one socket, counts, is cleared by reading it, or belongs to the route that happens to
/// be cached; and the filter, whose length is not in bytes.
pub const NOT_SWEPT: [(i32, i32); 8] = [
    (IP, IP_MTU),
    (IPV6, IPV6_MTU),
    (IPV6, IPV6_PATHMTU),
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

/// A fresh UDP socket of a family.
pub fn of_family(family: AddressFamily) -> io::Result<OwnedFd> {
    let kind = SocketType::DGRAM;
    Ok(socket_with(family, kind, SocketFlags::CLOEXEC, None)?)
}

/// A fresh socket of this kind.
pub fn fresh(protocol: &Protocol) -> io::Result<OwnedFd> {
    let family = AddressFamily::from_raw(protocol.family as u16);
    let kind = SocketType::from_raw(protocol.socket_type);
    let number = std::num::NonZeroU32::new(protocol.number).map(rustix::net::Protocol::from_raw);
    Ok(socket_with(family, kind, SocketFlags::CLOEXEC, number)?)
}

/// The loopback address of a kind of sockets.
pub fn loopback(protocol: &Protocol) -> IpAddr {
    match protocol.family_name {
        "inet6" => Ipv6Addr::LOCALHOST.into(),
        _ => Ipv4Addr::LOCALHOST.into(),
    }
}

/// A UDP socket bound to `address`.
pub fn bound(address: (Ipv4Addr, u16)) -> io::Result<OwnedFd> {
    let socket = udp()?;
    bind(&socket, address)?;
    Ok(socket)
}

pub fn bind(socket: &impl AsFd, (address, port): (impl Into<IpAddr>, u16)) -> io::Result<()> {
    Ok(rustix::net::bind(
        socket,
        &SocketAddr::new(address.into(), port),
    )?)
}

pub fn connect(socket: &impl AsFd, (address, port): (impl Into<IpAddr>, u16)) -> io::Result<()> {
    Ok(rustix::net::connect(
        socket,
        &SocketAddr::new(address.into(), port),
    )?)
}

/// Binds to an address that may have a scope.
pub fn bind_to(socket: &impl AsFd, to: SocketAddr) -> io::Result<()> {
    Ok(rustix::net::bind(socket, &to)?)
}

/// Connects to an address that may have a scope.
pub fn connect_to(socket: &impl AsFd, to: SocketAddr) -> io::Result<()> {
    Ok(rustix::net::connect(socket, &to)?)
}

/// Where a socket is bound.
pub fn local(socket: &impl AsFd) -> io::Result<SocketAddr> {
    Ok(SocketAddr::try_from(rustix::net::getsockname(socket)?)?)
}

/// Where a socket is connected to.
pub fn peer(socket: &impl AsFd) -> Option<SocketAddr> {
    let peer = rustix::net::getpeername(socket).ok().flatten()?;
    SocketAddr::try_from(peer).ok()
}

fn errno(error: io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EINVAL)
}

/// getsockopt(2) with this much room; the error is the errno.
pub fn get(socket: &impl AsFd, level: i32, name: i32, room: usize) -> Result<Vec<u8>, i32> {
    assert_ne!(
        (level, name),
        (SOCKET, SO_ATTACH_FILTER),
        "its length is not in bytes"
    );
    let mut value = vec![0u8; room];
    let length = sockopt::get(socket.as_fd(), level, name, &mut value).map_err(errno)?;
    value.truncate(length);
    Ok(value)
}

/// setsockopt(2); the error is the errno.
pub fn set(socket: &impl AsFd, level: i32, name: i32, value: &[u8]) -> Result<(), i32> {
    assert_ne!(
        (level, name),
        (SOCKET, SO_ATTACH_FILTER),
        "its value holds a pointer"
    );
    sockopt::set(socket.as_fd(), level, name, value).map_err(errno)
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

/// Asks a socket everything that can be compared with another one's, of what its kind knows.
pub fn sweep(socket: &impl AsFd) -> Sweep {
    let names = known(socket);
    let answers = names
        .iter()
        .map(|name| (*name, get(socket, name.0, name.1, 256)));
    answers.collect()
}

/// Levels and numbers of options.
type Names = Arc<Vec<(i32, i32)>>;

/// The options that the first socket of this kind knew.
fn known(socket: &impl AsFd) -> Names {
    static KNOWN: Mutex<BTreeMap<Vec<i32>, Names>> = Mutex::new(BTreeMap::new());
    let ask = |name| get_int(socket, SOCKET, name).unwrap_or(0);
    let kind = [39, 3, 38].map(ask);
    let mut known = KNOWN.lock().unwrap_or_else(|gone| gone.into_inner());
    let names = known.entry(kind.to_vec()).or_insert_with(|| {
        let absent = [libc::ENOPROTOOPT, libc::EOPNOTSUPP].map(Err);
        let names = LEVELS
            .into_iter()
            .flat_map(|level| (0..=HIGHEST).map(move |n| (level, n)))
            .filter(|name| !NOT_SWEPT.contains(name))
            .filter(|(level, name)| !absent.contains(&get(socket, *level, *name, 256)));
        Arc::new(names.collect())
    });
    names.clone()
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

/// An instruction with no jumps.
pub fn instruction(code: u16, k: u32) -> Instruction {
    let [c0, c1] = code.to_ne_bytes();
    let [k0, k1, k2, k3] = k.to_ne_bytes();
    [c0, c1, 0, 0, k0, k1, k2, k3]
}

/// Attaches a classic filter.
pub fn attach(socket: &impl AsFd, code: &[Instruction]) -> io::Result<()> {
    sockopt::attach_filter(socket.as_fd(), sockopt::Place::Filter, code)
}

/// Reads the filter back.
pub fn filter(socket: &impl AsFd) -> Result<Vec<Instruction>, i32> {
    sockopt::filter(socket.as_fd()).map_err(errno)
}

/// Attaches an eBPF filter that lets everything pass.
pub fn attach_ebpf(socket: &impl AsFd) -> io::Result<()> {
    const SO_ATTACH_BPF: i32 = 50;
    // r0 = 0x7fffffff; exit
    let code = [0x7fff_ffff_0000_00b7_u64, 0x95].map(u64::to_ne_bytes);
    let program = bpf::load(
        bpf::Kind::SocketFilter,
        "pass",
        code.as_flattened(),
        &mut [],
    )?;
    set_int(socket, SOCKET, SO_ATTACH_BPF, program.as_raw_fd())
}

/// Everything fcntl(2) tells of a socket: flags, close-on-exec, owner, signal.
pub fn fcntl_view(socket: &impl AsFd) -> io::Result<[i32; 5]> {
    let socket = socket.as_fd();
    let (kind, id) = descriptor::owner(socket)?;
    let flags = descriptor::status_flags(socket)?;
    let close_on_exec = descriptor::close_on_exec(socket)?.into();
    let signal = descriptor::signal(socket)?;
    Ok([flags, close_on_exec, kind, id, signal])
}

/// Lets no signal of a socket end the test.
pub fn ignore_signals() -> io::Result<()> {
    let signals = [
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGIO,
        libc::SIGRTMIN(),
        libc::SIGRTMAX(),
    ];
    signals.into_iter().try_for_each(sockcr_sys::signal::ignore)
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

/// Whether anything waits to be received.
pub fn poll_in(socket: &impl AsFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    Ok(poll(&mut fds, Some(&Timespec::default()))? != 0)
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
    pub from: SocketAddr,
    /// By level and type, the first four bytes at most.
    pub control: BTreeMap<(i32, i32), i32>,
}

/// Receives one datagram with its control messages.
pub fn receive_message(socket: &impl AsFd) -> io::Result<Message> {
    wait_for(socket, PollFlags::IN)?;
    let mut data = vec![0u8; 65536];
    let mut control = [0u8; 512];
    let received = message::receive(socket.as_fd(), &mut data, &mut control, 0)?;
    data.truncate(received.length);
    let control = message::control_messages(&control[..received.control_length]);
    Ok(Message {
        data,
        from: received.source.ok_or(io::ErrorKind::InvalidData)?,
        control: control
            .map(|message| ((message.level, message.kind), first_word(message.payload)))
            .collect(),
    })
}

/// The first four bytes, with zeroes for those that are not there.
fn first_word(payload: &[u8]) -> i32 {
    let mut value = [0u8; 4];
    let pairs = value.iter_mut().zip(payload);
    pairs.for_each(|(to, from)| *to = *from);
    i32::from_ne_bytes(value)
}
