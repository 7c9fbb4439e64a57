//! What this kernel and this user can do, each tried out.

use crate::kernel;
use crate::netns;
use crate::protocol;
use rustix::fd::AsFd;
use rustix::net::SendFlags;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::io;
use std::os::fd::BorrowedFd;

/// One ability.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    /// What can be done.
    pub what: Cow<'static, str>,
    /// Why it cannot be done here, if it cannot.
    pub missing: Option<String>,
    /// What happens instead.
    pub without: Cow<'static, str>,
}

/// Tries every ability out.
pub fn features() -> Vec<Feature> {
    let mut features = of_sockets();
    features.push(delivery());
    features
}

/// Whether sockets can be put into running processes, tried on one that is started for it.
pub fn delivery() -> Feature {
    feature(
        "put sockets into a running process (ptrace, 5.3)",
        crate::deliver::rehearse().map_err(io::Error::other),
        "move and restore --into do not work",
    )
}

fn feature(what: &'static str, result: io::Result<()>, without: &'static str) -> Feature {
    Feature {
        what: what.into(),
        missing: result.err().map(|error| crate::error::reason(&error)),
        without: without.into(),
    }
}

/// Tries out what can be done with sockets, on some of its own.
pub fn of_sockets() -> Vec<Feature> {
    let socket = netns::probe();
    let on_socket = |attempt: fn(BorrowedFd<'_>) -> io::Result<()>| match &socket {
        Ok(socket) => attempt(socket.as_fd()),
        Err(error) => Err(io::Error::other(error.to_string())),
    };
    let set = |level: i32, number: i32, value: u32| {
        let socket = netns::probe()?;
        sockcr_sys::sockopt::set(socket.as_fd(), level, number, &value.to_ne_bytes())
    };
    vec![
        feature(
            "see what no option shows, by BPF (locks, order of joining, explicit ttl)",
            kernel::reader().map(drop).map_err(io::Error::other),
            "a checkpoint says what it assumes",
        ),
        feature(
            "see every socket of every process, by BPF",
            kernel::sockets(Some(std::process::id())).map(drop),
            "/proc is read, and other users' sockets are not seen",
        ),
        feature(
            "look into a running process (pidfd_getfd, 5.6)",
            own_descriptor(),
            "only sockets of our own can be checkpointed",
        ),
        feature(
            "see who else has a socket, by BPF, to replace it",
            on_socket(|socket| {
                let reader = kernel::reader().map_err(io::Error::other)?;
                reader.users(socket).map(drop)
            }),
            "replace does not work",
        ),
        feature(
            "tell network namespaces apart (SO_NETNS_COOKIE, 5.14)",
            on_socket(|socket| netns::cookie(socket).map(drop)),
            "sockets cannot be looked up by address or inode",
        ),
        feature(
            "restore buffer locks (SO_BUF_LOCK, 5.15)",
            set(1, 72, 0),
            "sockets whose owner chose buffer sizes are refused",
        ),
        feature(
            "restore a port without locking it (IP_LOCAL_PORT_RANGE, 6.3)",
            autobind(),
            "sockets whose port the kernel chose are refused, or get a lock with --lossy",
        ),
        feature(
            "restore buffers above net.core.rmem_max and wmem_max (CAP_NET_ADMIN of the host)",
            set(1, 33, 4096),
            "larger buffers are refused",
        ),
        feature(
            "restore SO_MARK, IP_TRANSPARENT and a priority above 6 (CAP_NET_ADMIN)",
            set(1, 36, 1),
            "sockets that have them are refused",
        ),
        feature(
            "restore ports below 1024 (CAP_NET_BIND_SERVICE)",
            low_port(),
            "sockets bound there are refused",
        ),
        feature(
            "restore raw sockets (CAP_NET_RAW)",
            open(2, 3, 1),
            "raw sockets are refused",
        ),
        feature(
            "restore ping sockets (net.ipv4.ping_group_range)",
            open(2, 2, 1),
            "ping sockets are refused",
        ),
        feature(
            "restore sockets of UDP-Lite (in older kernels)",
            open(2, 2, 136),
            "sockets of UDP-Lite are refused",
        ),
    ]
}

/// Opens a socket of the kind with these numbers.
fn open(family: u32, socket_type: u32, number: u32) -> io::Result<()> {
    let protocol = protocol::find(family, socket_type, number).ok_or(io::ErrorKind::NotFound)?;
    crate::restore::new_socket(protocol).map(drop)
}

fn own_descriptor() -> io::Result<()> {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    use std::os::fd::AsRawFd;
    let socket = netns::probe()?;
    let process = pidfd_open(getpid(), PidfdFlags::empty())?;
    pidfd_getfd(process, socket.as_raw_fd(), PidfdGetfdFlags::empty())?;
    Ok(())
}

/// Takes any free port twice: as the kernel chose it, and that same one again.
fn autobind() -> io::Result<()> {
    let port = |socket: &rustix::fd::OwnedFd| -> io::Result<u16> {
        let _ = rustix::net::send(socket, &[], SendFlags::NOSIGNAL);
        let address: std::net::SocketAddrV4 = rustix::net::getsockname(socket)?.try_into()?;
        Ok(address.port())
    };
    let first = netns::probe()?;
    let wanted = port(&first)?;
    drop(first);
    let second = netns::probe()?;
    let range = u32::from(wanted) << 16 | u32::from(wanted);
    sockcr_sys::sockopt::set(second.as_fd(), 0, 51, &range.to_ne_bytes())?;
    match port(&second)? {
        got if got == wanted => Ok(()),
        got => Err(io::Error::other(format!("asked for {wanted}, got {got}"))),
    }
}

/// Whether ports below net.ipv4.ip_unprivileged_port_start may be bound; tried on a busy loopback
/// address, so that nobody's port is taken.
fn low_port() -> io::Result<()> {
    let socket = netns::probe()?;
    let address = std::net::SocketAddrV4::new([127, 83, 67, 82].into(), 1);
    Ok(rustix::net::bind(&socket, &address)?)
}
