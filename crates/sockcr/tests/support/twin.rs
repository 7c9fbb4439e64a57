//! What a socket does, tried on an untouched socket and on a restored one, and the hands for it.

use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SendFlags, sendto};
use sockcr::{Checkpoint, RestoreOptions, json};

use super::socket::{self, IP, set_int};

pub const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
pub const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// The loopback address of IPv4, of IPv6, and of an IPv6 socket that speaks IPv4.
pub const HERES: [IpAddr; 3] = [
    IpAddr::V4(HERE),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
    IpAddr::V6(HERE.to_ipv6_mapped()),
];
pub const PORT: u16 = 4321;
pub const SO_REUSEADDR: i32 = 2;
pub const SO_BROADCAST: i32 = 6;
pub const SO_REUSEPORT: i32 = 15;
pub const IP_TTL: i32 = 2;
pub const IP_RECVTTL: i32 = 12;
pub const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
pub const IP_ADD_MEMBERSHIP: i32 = 35;

pub fn exactly() -> RestoreOptions {
    RestoreOptions {
        verify: true,
        ..RestoreOptions::default()
    }
}

pub fn lossy() -> RestoreOptions {
    RestoreOptions {
        lossy: true,
        ..RestoreOptions::default()
    }
}

/// Dumps the socket, closes it, and restores it from the bytes of the image.
pub fn restored(original: OwnedFd) -> OwnedFd {
    let image = Checkpoint::dump(&original).unwrap().to_bytes().unwrap();
    drop(original);
    let checkpoint = Checkpoint::from_bytes(&image).unwrap();
    checkpoint.restore(&exactly()).unwrap().fd
}

/// Dumps, closes and restores a socket, and sees that image and JSON say it all, and that a dump
/// changes nothing.
pub fn identical(original: OwnedFd) -> OwnedFd {
    let checkpoint = Checkpoint::dump(&original).unwrap();
    let report = &checkpoint.report;
    assert!(report.is_exact(), "{:?}", report.not_carried);
    assert!(
        Checkpoint::dump(&original).unwrap() == checkpoint,
        "a dump changes it"
    );
    drop(original);
    let text = json::to_json(std::slice::from_ref(&checkpoint)).to_string();
    assert!(
        json::from_json(&text).unwrap() == [checkpoint.clone()],
        "JSON says less"
    );
    let image = checkpoint.to_bytes().unwrap();
    let restored = Checkpoint::from_bytes(&image).unwrap().restore(&exactly());
    let restored = restored.unwrap_or_else(|why| panic!("{why}")).fd;
    let now = Checkpoint::dump(&restored).unwrap().canonical();
    let before = checkpoint.canonical();
    let differences = sockcr::diff::diff(&before, &now);
    assert!(differences.is_empty(), "{differences:#?}");
    assert!(
        now.to_bytes().unwrap() == before.to_bytes().unwrap(),
        "not the same bytes"
    );
    restored
}

/// Observes a socket that `make` made, then the restored twin of another one.
pub fn same<T: PartialEq + Debug>(
    make: impl Fn() -> OwnedFd,
    observe: impl Fn(&OwnedFd) -> T,
) -> T {
    let untouched = {
        let socket = make();
        observe(&socket)
    };
    let twin = restored(make());
    let again = observe(&twin);
    assert_eq!(untouched, again, "untouched, restored");
    again
}

pub fn to(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// No address of the family of another one.
pub fn any_like(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => ANY.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

pub fn send_to(
    socket: &OwnedFd,
    data: &[u8],
    address: impl Into<IpAddr>,
    port: u16,
) -> io::Result<()> {
    sendto(socket, data, SendFlags::NOSIGNAL, &to(address, port))?;
    Ok(())
}

/// A fresh socket bound somewhere, with these options of four bytes.
pub fn with(address: (impl Into<IpAddr>, u16), options: &[(i32, i32, i32)]) -> OwnedFd {
    let address = (address.0.into(), address.1);
    let socket = fresh_for(address.0);
    for (level, name, value) in options {
        set_int(&socket, *level, *name, *value).unwrap();
    }
    socket::bind(&socket, address).unwrap();
    socket
}

/// A fresh socket of the family of an address.
pub fn fresh_for(address: IpAddr) -> OwnedFd {
    let family = match address {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    socket::of_family(family).unwrap()
}

/// The seven ways to an address.
pub const WAYS: [&str; 7] = [
    "address and port",
    "any address and port, connected",
    "address, port 0",
    "address, port 0, connected",
    "connected only",
    "sent only",
    "address, no port",
];

pub fn made(way: &str, here: IpAddr) -> OwnedFd {
    let socket = fresh_for(here);
    let connect = |socket: &OwnedFd| socket::connect(socket, (here, 9)).unwrap();
    match way {
        "address and port" => socket::bind(&socket, (here, PORT)).unwrap(),
        "any address and port, connected" => {
            socket::bind(&socket, (any_like(here), PORT)).unwrap();
            connect(&socket);
        }
        "address, port 0" => socket::bind(&socket, (here, 0)).unwrap(),
        "address, port 0, connected" => {
            socket::bind(&socket, (here, 0)).unwrap();
            connect(&socket);
        }
        "connected only" => connect(&socket),
        "sent only" => send_to(&socket, b"", here, 9).unwrap(),
        "address, no port" => {
            set_int(&socket, IP, IP_BIND_ADDRESS_NO_PORT, 1).unwrap();
            socket::bind(&socket, (here, 0)).unwrap();
        }
        other => panic!("{other}"),
    }
    socket
}

/// `struct ip_mreqn`
pub fn join_request(group: Ipv4Addr, address: Ipv4Addr, index: u32) -> Vec<u8> {
    [group.octets(), address.octets(), index.to_ne_bytes()].concat()
}

pub fn change_group(socket: &OwnedFd, name: i32, group: Ipv4Addr, index: u32) {
    socket::set(socket, IP, name, &join_request(group, ANY, index)).unwrap();
}

pub const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 1, 1);
pub const OTHER_GROUP: Ipv4Addr = Ipv4Addr::new(239, 2, 2, 2);
