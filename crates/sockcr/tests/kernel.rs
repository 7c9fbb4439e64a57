//! What only BPF shows, on sockets of this process. Loopback and ports nobody else uses; where BPF
//! may not be used each test says so and passes.

use std::error::Error;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketType, recv, send, sendto, socket, sockopt,
};
use sockcr::kernel::{self, Extent, Hidden, Joined, Reader, SocketFile};

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
/// The loopback device is the first of every network namespace.
const LOOPBACK: u32 = 1;
const PATIENCE: Duration = Duration::from_secs(10);

mod option {
    pub const SOL_SOCKET: i32 = 1;
    pub const IPPROTO_IP: i32 = 0;
    pub const IP_TTL: i32 = 2;
    pub const IP_RECVERR: i32 = 11;
    pub const SO_RCVBUF: i32 = 8;
    pub const SO_COOKIE: i32 = 57;
    pub const SO_TXTIME: i32 = 61;
    pub const SO_BUSY_POLL_BUDGET: i32 = 70;
    pub const SO_NETNS_COOKIE: i32 = 71;
}

/// The reader, or None after a line that says why there is none; where everything should be there,
/// that is a failure.
fn available() -> Option<&'static Reader> {
    let strict = std::env::var("CI").as_deref() == Ok("true");
    kernel::reader()
        .inspect_err(|why| {
            assert!(!strict, "skipped where nothing may be: {why}");
            println!("skipped: {why}");
        })
        .ok()
}

fn datagram() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::INET, SocketType::DGRAM, None)?)
}

fn bound() -> io::Result<UdpSocket> {
    UdpSocket::bind((LOCALHOST, 0))
}

fn set(socket: &impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    sockcr_sys::sockopt::set(socket.as_fd(), level, name, &value.to_ne_bytes())
}

fn get_long(socket: &impl AsFd, name: i32) -> io::Result<u64> {
    let mut value = [0; 8];
    sockcr_sys::sockopt::get(socket.as_fd(), option::SOL_SOCKET, name, &mut value)?;
    Ok(u64::from_ne_bytes(value))
}

/// Reads until the socket looks as wanted: a datagram on loopback may take a moment.
fn until(
    reader: &Reader,
    socket: BorrowedFd<'_>,
    wanted: impl Fn(&Hidden) -> bool,
) -> io::Result<Hidden> {
    let end = Instant::now() + PATIENCE;
    loop {
        let hidden = reader.read(socket)?;
        if wanted(&hidden) {
            return Ok(hidden);
        }
        assert!(Instant::now() < end, "never came: {hidden:?}");
        thread::yield_now();
    }
}

/// Binds to a port of our choice, outside the ephemeral ones.
fn bind_port(address: Ipv4Addr) -> io::Result<UdpSocket> {
    let start = 2000 + (std::process::id() % 20_000) as u16;
    (start..32_000)
        .find_map(|port| UdpSocket::bind((address, port)).ok())
        .ok_or_else(|| io::ErrorKind::AddrInUse.into())
}

/// Whether the address and the port are locked.
fn locks(reader: &Reader, socket: &impl AsFd) -> io::Result<(bool, bool)> {
    let hidden = reader.read(socket.as_fd())?;
    Ok((hidden.address_locked, hidden.port_locked))
}

#[test]
fn locks_of_each_way_of_binding() -> Outcome {
    let Some(reader) = available() else {
        return Ok(());
    };
    let peer = bound()?.local_addr()?;
    assert_eq!(locks(reader, &datagram()?)?, (false, false));
    assert_eq!(locks(reader, &bind_port(LOCALHOST)?)?, (true, true));
    assert_eq!(locks(reader, &bind_port(ANY)?)?, (false, true));
    assert_eq!(locks(reader, &bound()?)?, (true, false));
    assert_eq!(locks(reader, &UdpSocket::bind((ANY, 0))?)?, (false, false));
    let connected = datagram()?;
    rustix::net::connect(&connected, &peer)?;
    assert_eq!(locks(reader, &connected)?, (false, false));
    let sent = datagram()?;
    sendto(&sent, b"", SendFlags::empty(), &peer)?;
    assert_eq!(locks(reader, &sent)?, (false, false));
    assert_ne!(reader.read(sent.as_fd())?.bound_port, 0);
    Ok(())
}

#[test]
fn addresses_ports_and_state() -> Outcome {
    let Some(reader) = available() else {
        return Ok(());
    };
    let (one, two) = (bind_port(LOCALHOST)?, bound()?);
    let ports = (one.local_addr()?.port(), two.local_addr()?.port());
    let before = reader.read(one.as_fd())?;
    assert_eq!((before.state, before.peer_port), (7, 0));
    one.connect(two.local_addr()?)?;
    let after = reader.read(one.as_fd())?;
    assert_eq!((after.extent, after.family), (Extent::Udp, 2));
    assert_eq!((after.protocol, after.state), (17, 1));
    assert_eq!((after.bound_port, after.peer_port), ports);
    assert_eq!(after.bound_address, LOCALHOST);
    assert_eq!(after.peer_address, LOCALHOST);
    assert_eq!(after.source_address, LOCALHOST);
    assert_eq!((after.policies, after.encapsulated), ([false; 2], 0));
    Ok(())
}

#[test]
fn an_explicit_ttl_is_told_from_the_default() -> Outcome {
    let Some(reader) = available() else {
        return Ok(());
    };
    let socket = datagram()?;
    let ttl = || Ok::<_, io::Error>(reader.read(socket.as_fd())?.unicast_ttl);
    assert_eq!(ttl()?, None);
    for value in [64, 1, 255] {
        set(&socket, option::IPPROTO_IP, option::IP_TTL, value)?;
        assert_eq!(ttl()?, u8::try_from(value).ok());
    }
    set(&socket, option::IPPROTO_IP, option::IP_TTL, -1)?;
    assert_eq!(ttl()?, None);
    Ok(())
}

#[test]
fn buffers_budget_and_shutdown() -> Outcome {
    let Some(reader) = available() else {
        return Ok(());
    };
    let socket = datagram()?;
    let before = reader.read(socket.as_fd())?;
    assert!(!before.receive_buffer_locked && !before.send_buffer_locked);
    set(&socket, option::SOL_SOCKET, option::SO_RCVBUF, 10_000)?;
    set(&socket, option::SOL_SOCKET, option::SO_BUSY_POLL_BUDGET, 5)?;
    rustix::net::connect(&socket, &SocketAddr::new(LOCALHOST.into(), 9))?;
    rustix::net::shutdown(&socket, rustix::net::Shutdown::Read)?;
    let after = reader.read(socket.as_fd())?;
    assert!(after.receive_buffer_locked && !after.send_buffer_locked);
    assert_eq!((after.busy_poll_budget, after.shutdown), (5, 1));
    Ok(())
}

#[test]
fn the_interface_and_address_of_multicast() -> Outcome {
    let Some(reader) = available() else {
        return Ok(());
    };
    let socket = datagram()?;
    let source = Ipv4Addr::new(127, 1, 2, 3);
    assert_eq!(reader.read(socket.as_fd())?.multicast_index, 0);
    sockopt::set_ip_multicast_if_with_ifindex(&socket, &ANY, &source, LOOPBACK)?;
    let hidden = reader.read(socket.as_fd())?;
    assert_eq!(hidden.multicast_index, LOOPBACK);
    assert_eq!(hidden.multicast_address, source);
    Ok(())
}

/// Joins groups in an order that is not that of the numbers.
fn join(socket: &impl AsFd, count: u16) -> io::Result<Vec<Joined>> {
    (0..count)
        .map(|index| {
            let [high, low] = ((u32::from(index) * 7919 % 1009) as u16).to_be_bytes();
            let group = Ipv4Addr::new(239, 7, high, low);
            let joined = Joined {
                group: group.into(),
                anycast: false,
                address: Ipv4Addr::new(10, 0, high, low),
                interface: LOOPBACK,
            };
            sockopt::set_ip_add_membership_with_ifindex(socket, &group, &joined.address, LOOPBACK)?;
            Ok(joined)
        })
        .collect()
}

#[test]
fn memberships_in_the_order_of_joining() -> Outcome {
    let Some(reader) = available() else {
        return Ok(());
    };
    let socket = datagram()?;
    let mut joined = join(&socket, 20)?;
    assert_eq!(reader.read(socket.as_fd())?.memberships, joined);
    let left = joined.remove(7).group;
    let std::net::IpAddr::V4(left) = left else {
        panic!("{left} is no IPv4 group")
    };
    sockopt::set_ip_drop_membership_with_ifindex(&socket, &left, &ANY, LOOPBACK)?;
    assert_eq!(reader.read(socket.as_fd())?.memberships, joined);
    Ok(())
}

/// Lists of more than one page, around the places where a page ends. The limit of 20 is raised in
/// a network namespace of this thread alone.
#[test]
fn long_lists_of_memberships() -> Outcome {
    let Some(reader) = available() else {
        return Ok(());
    };
    // Whoever has the reader may have a network namespace of its own.
    sockcr_sys::netns::unshare(libc::CLONE_NEWNET)?;
    fs::write("/proc/sys/net/ipv4/igmp_max_memberships", "1000")?;
    for count in [31, 32, 33, 63, 64, 65, 500] {
        let socket = datagram()?;
        let joined = join(&socket, count)?;
        assert_eq!(reader.read(socket.as_fd())?.memberships, joined);
    }
    Ok(())
}

#[test]
fn a_corked_datagram() -> Outcome {
    let Some(reader) = available() else {
        return Ok(());
    };
    let (socket, peer) = (bound()?, bound()?);
    socket.connect(peer.local_addr()?)?;
    assert!(!reader.read(socket.as_fd())?.pending);
    send(&socket, b"half", SendFlags::MORE)?;
    send(&socket, b" and half", SendFlags::MORE)?;
    let hidden = reader.read(socket.as_fd())?;
    assert!(hidden.pending);
    assert_eq!(hidden.pending_bytes, 8 + 13);
    send(&socket, b"", SendFlags::empty())?;
    assert!(!reader.read(socket.as_fd())?.pending);
    assert_eq!(peer.recv(&mut [0; 32])?, 13);
    Ok(())
}

#[test]
fn the_receive_queue_in_both_of_its_parts() -> Outcome {
    let Some(reader) = available() else {
        return Ok(());
    };
    let (socket, peer) = (bound()?, bound()?);
    let queue = |length| {
        until(reader, socket.as_fd(), |hidden| {
            hidden.receive_queue == length
        })
    };
    queue(0)?;
    for _ in 0..3 {
        peer.send_to(b"early", socket.local_addr()?)?;
    }
    queue(3)?;
    recv(&socket, &mut [0_u8; 8], RecvFlags::PEEK)?;
    queue(3)?;
    peer.send_to(b"", socket.local_addr()?)?;
    peer.send_to(b"late", socket.local_addr()?)?;
    queue(5)?;
    recv(&socket, &mut [0_u8; 8], RecvFlags::empty())?;
    queue(4)?;
    Ok(())
}

#[test]
fn drops_are_counted() -> Outcome {
    let Some(reader) = available() else {
        return Ok(());
    };
    let (socket, peer) = (bound()?, bound()?);
    set(&socket, option::SOL_SOCKET, option::SO_RCVBUF, 1)?;
    for _ in 0..100 {
        peer.send_to(&[0; 1000], socket.local_addr()?)?;
    }
    let hidden = until(reader, socket.as_fd(), |hidden| {
        hidden.drops + u64::from(hidden.receive_queue) == 100
    })?;
    assert!(hidden.drops > 50);
    Ok(())
}

/// A socket whose peer said that nobody listens.
fn refused(error_queue: bool) -> Result<UdpSocket, Box<dyn Error + Send + Sync>> {
    let socket = bound()?;
    let error_queue = i32::from(error_queue);
    set(&socket, option::IPPROTO_IP, option::IP_RECVERR, error_queue)?;
    socket.connect((Ipv4Addr::new(127, 66, 66, 66), 1))?;
    socket.send(b"anybody?")?;
    let patience = Timespec::try_from(PATIENCE)?;
    let mut wait = [PollFd::new(&socket, PollFlags::ERR)];
    assert_eq!(poll(&mut wait, Some(&patience))?, 1);
    Ok(socket)
}

#[test]
fn a_pending_error_is_seen_and_stays() -> Outcome {
    let Some(reader) = available() else {
        return Ok(());
    };
    let expected = rustix::io::Errno::CONNREFUSED;
    let socket = refused(false)?;
    for _ in 0..2 {
        let hidden = reader.read(socket.as_fd())?;
        assert_eq!(hidden.pending_error, expected.raw_os_error());
        assert_eq!(hidden.error_queue, 0);
    }
    assert_eq!(sockopt::socket_error(&socket)?, Err(expected));
    assert_eq!(reader.read(socket.as_fd())?.pending_error, 0);
    assert_eq!(reader.read(refused(true)?.as_fd())?.error_queue, 1);
    Ok(())
}

#[test]
fn transmit_time_is_seen() -> Outcome {
    let Some(reader) = available() else {
        return Ok(());
    };
    let socket = datagram()?;
    assert!(!reader.read(socket.as_fd())?.txtime);
    // struct sock_txtime: CLOCK_REALTIME, no flags.
    let (level, name) = (option::SOL_SOCKET, option::SO_TXTIME);
    sockcr_sys::sockopt::set(socket.as_fd(), level, name, &[0; 8])?;
    assert!(reader.read(socket.as_fd())?.txtime);
    Ok(())
}

/// A SO_REUSEPORT group in the order of joining.
fn group(count: usize) -> io::Result<Vec<UdpSocket>> {
    let mut address = SocketAddr::new(Ipv4Addr::new(127, 9, 9, 9).into(), 0);
    (0..count)
        .map(|_| {
            let socket = datagram()?;
            sockopt::set_socket_reuseport(&socket, true)?;
            rustix::net::bind(&socket, &address)?;
            let socket = UdpSocket::from(socket);
            address.set_port(socket.local_addr()?.port());
            Ok(socket)
        })
        .collect()
}

#[test]
fn the_place_in_a_reuseport_group() -> Outcome {
    let Some(reader) = available() else {
        return Ok(());
    };
    // 5 as most have; 400 take more than one window and make the kernel enlarge the group.
    for count in [5, 400] {
        let mut group = group(count)?;
        for (index, socket) in (0..).zip(&group) {
            let hidden = reader.read(socket.as_fd())?;
            assert_eq!(hidden.reuseport_index, Some(index));
            assert!(!hidden.reuseport_program);
        }
        // The last one takes the place of one that goes.
        group.remove(1);
        let last = group.last().ok_or("no group")?;
        assert_eq!(reader.read(last.as_fd())?.reuseport_index, Some(1));
    }
    assert_eq!(reader.read(bound()?.as_fd())?.reuseport_index, None);
    Ok(())
}

#[test]
fn every_kind_of_socket_has_its_extent() -> Outcome {
    let Some(reader) = available() else {
        return Ok(());
    };
    let extent = |socket: BorrowedFd<'_>| Ok::<_, io::Error>(reader.read(socket)?.extent);
    let listener = TcpListener::bind((LOCALHOST, 0))?;
    let hidden = reader.read(listener.as_fd())?;
    assert_eq!((hidden.extent, hidden.state), (Extent::Inet, 10));
    assert_eq!(hidden.bound_port, listener.local_addr()?.port());
    let unix = std::os::unix::net::UnixDatagram::unbound()?;
    assert_eq!(extent(unix.as_fd())?, Extent::Sock);
    let six = socket(AddressFamily::INET6, SocketType::DGRAM, None)?;
    assert_eq!(extent(six.as_fd())?, Extent::Udp);
    let netlink = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    assert_eq!(extent(netlink.as_fd())?, Extent::Sock);
    let udp = Some(rustix::net::ipproto::UDP);
    if let Ok(raw) = socket(AddressFamily::INET, SocketType::RAW, udp) {
        assert_eq!(extent(raw.as_fd())?, Extent::Inet);
    }
    Ok(())
}

#[test]
fn other_files_are_refused() -> Outcome {
    let Some(reader) = available() else {
        return Ok(());
    };
    let (pipe, other_end) = rustix::pipe::pipe()?;
    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC)?;
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
    let process = rustix::process::pidfd_open(
        rustix::process::getpid(),
        rustix::process::PidfdFlags::empty(),
    )?;
    let mut files = vec![pipe, other_end, epoll, event, process];
    for path in ["/dev/null", "/", "/proc/self/status", "/sys/kernel"] {
        files.push(fs::File::open(path)?.into());
    }
    for file in files {
        let error = reader.read(file.as_fd()).err().ok_or("no error")?;
        let expected = rustix::io::Errno::NOTSOCK.raw_os_error();
        assert_eq!(error.raw_os_error(), Some(expected), "{file:?}");
    }
    Ok(())
}

#[test]
fn many_threads_read_at_once() -> Outcome {
    let Some(reader) = available() else {
        return Ok(());
    };
    let work = || -> Outcome {
        let socket = bound()?;
        let port = socket.local_addr()?.port();
        for _ in 0..2000 {
            assert_eq!(reader.read(socket.as_fd())?.bound_port, port);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| "a thread failed")?)
    })
}

/// What the iterator says of a descriptor of this process.
fn listed(socket: &impl AsFd) -> io::Result<Vec<SocketFile>> {
    let descriptor = socket.as_fd().as_raw_fd().unsigned_abs();
    let mut files = kernel::sockets(Some(std::process::id()))?;
    files.retain(|file| file.fd == descriptor && file.tid == file.pid);
    Ok(files)
}

fn inode(socket: &impl AsFd) -> io::Result<u64> {
    let copy = socket.as_fd().try_clone_to_owned()?;
    Ok(fs::File::from(copy).metadata()?.ino())
}

#[test]
fn the_iterator_sees_sockets_that_were_never_bound() -> Outcome {
    if available().is_none() {
        return Ok(());
    }
    let socket = datagram()?;
    let files = listed(&socket)?;
    let [file] = files.as_slice() else {
        return Err(format!("{files:?}").into());
    };
    assert_eq!(file.pid, std::process::id());
    assert_eq!(file.inode, inode(&socket)?);
    assert_eq!((file.family, file.socket_type, file.protocol), (2, 2, 17));
    assert_eq!((file.cookie, file.state), (0, 7));
    let nowhere = SocketAddr::new(ANY.into(), 0);
    assert_eq!((file.local, file.peer), (nowhere, nowhere));
    let namespace = get_long(&socket, option::SO_NETNS_COOKIE)?;
    let cookie = get_long(&socket, option::SO_COOKIE)?;
    let all = kernel::sockets(None)?;
    let again = all.iter().find(|file| file.cookie == cookie);
    assert_eq!(again.map(|file| file.netns_cookie), Some(namespace));
    Ok(())
}

#[test]
fn the_iterator_tells_addresses_and_what_waits() -> Outcome {
    let Some(reader) = available() else {
        return Ok(());
    };
    let (socket, peer) = (bound()?, bound()?);
    socket.connect(peer.local_addr()?)?;
    peer.send_to(&[0; 100], socket.local_addr()?)?;
    until(reader, socket.as_fd(), |hidden| hidden.receive_queue == 1)?;
    let files = listed(&socket)?;
    let file = files.first().ok_or("not listed")?;
    assert_eq!(file.local, socket.local_addr()?);
    assert_eq!(file.peer, peer.local_addr()?);
    assert_eq!(file.state, 1);
    assert!(file.receive_bytes >= 100);
    Ok(())
}

#[test]
fn the_iterator_tells_addresses_of_ipv6_as_getsockname_does() -> Outcome {
    if available().is_none() {
        return Ok(());
    }
    // A group of the link belongs to a device; the address that is left of a peer is none.
    for (address, to) in [
        ("[::1]:0", "[::1]:9"),
        ("[::]:0", "[::ffff:127.0.0.1]:9"),
        ("[::ffff:127.0.0.1]:0", "[::ffff:127.0.0.1]:9"),
        ("[ff02::1%1]:0", "[::1]:9"),
    ] {
        let socket = UdpSocket::bind(address.parse::<SocketAddr>()?)?;
        let nowhere = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
        let told = || -> io::Result<_> {
            let file = listed(&socket)?.pop();
            Ok(file.map(|file| (file.local, file.peer)))
        };
        assert_eq!(told()?, Some((socket.local_addr()?, nowhere)), "{address}");
        socket.connect(to.parse::<SocketAddr>()?)?;
        let ends = (socket.local_addr()?, socket.peer_addr()?);
        assert_eq!(told()?, Some(ends), "{address}");
        rustix::net::connect_unspec(&socket)?;
        assert_eq!(told()?, Some((socket.local_addr()?, nowhere)), "{address}");
    }
    Ok(())
}

#[test]
fn a_raw_socket_has_a_protocol_and_no_port() -> Outcome {
    if available().is_none() {
        return Ok(());
    }
    let icmp = Some(rustix::net::ipproto::ICMP);
    let socket = socket(AddressFamily::INET, SocketType::RAW, icmp)?;
    rustix::net::bind(&socket, &SocketAddr::new(LOCALHOST.into(), 0))?;
    let file = listed(&socket)?.pop().ok_or("not listed")?;
    assert_eq!((file.family, file.socket_type, file.protocol), (2, 3, 1));
    assert_eq!(file.local, SocketAddr::new(LOCALHOST.into(), 0));
    Ok(())
}

#[test]
fn nobody_has_no_sockets() -> Outcome {
    if available().is_none() {
        return Ok(());
    }
    // No process has a number beyond PID_MAX_LIMIT.
    assert_eq!(kernel::sockets(Some((1 << 22) + 1))?, []);
    Ok(())
}

/// A thread's own table holds copies of every descriptor, which would keep the sockets of other
/// tests open. So this is done in a process of its own, by the test below.
#[test]
fn a_thread_with_its_own_file_table() -> Outcome {
    if available().is_none() {
        return Ok(());
    }
    let output = Command::new(std::env::current_exe()?)
        .args(["--exact", "own_table", "--ignored", "--nocapture"])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
    Ok(())
}

#[test]
#[ignore = "run by a_thread_with_its_own_file_table in a process of its own"]
fn own_table() -> Outcome {
    let Some(reader) = available() else {
        return Ok(());
    };
    let work = || -> Outcome {
        sockcr_sys::descriptor::own_table()?;
        let socket = bound()?;
        let (inode, port) = (inode(&socket)?, socket.local_addr()?.port());
        assert_eq!(reader.read(socket.as_fd())?.bound_port, port);
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        let pid = std::process::id();
        for files in [kernel::sockets(Some(pid))?, kernel::sockets(None)?] {
            let found: Vec<_> = files
                .iter()
                .filter(|file| file.inode == inode)
                .map(|file| (file.pid, file.tid))
                .collect();
            assert_eq!(found, [(pid, tid.cast_unsigned())]);
        }
        Ok(())
    };
    thread::scope(|scope| scope.spawn(work).join().map_err(|_| "the thread failed")?)
}
