//! Network namespaces of a test's own, with devices.

use std::any::type_name_of_val;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, socket};

use super::{Outcome, skip};

/// Set in a child that is alone in its user namespace.
const INSIDE: &str = "SOCKCR_TEST_INSIDE";

/// Runs a test in a network namespace of its own, whose loopback device is up.
///
/// A plain user gets one by way of a user namespace, which only a process with one thread can
/// enter: the test binary runs once more for it.
pub fn isolated<F: FnOnce() -> Outcome + Send>(body: F) -> Outcome {
    let test = test_name(type_name_of_val(&body));
    let inside = std::env::var_os(INSIDE).is_some();
    let entered = std::thread::scope(|scope| {
        let thread = scope.spawn(|| match sockcr_sys::netns::unshare(libc::CLONE_NEWNET) {
            Ok(()) => Some(ready().map_err(Into::into).and_then(|()| body())),
            Err(_) => None,
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    match entered {
        Some(outcome) => outcome,
        None if inside => skip("no network namespace of its own, not even as its root"),
        None => in_user_namespace(&test),
    }
}

/// Runs a test as root of a user namespace and a network namespace of its own, whose loopback
/// device is up: with every capability there, and without BPF.
pub fn rootless<F: FnOnce() -> Outcome>(body: F) -> Outcome {
    match std::env::var_os(INSIDE) {
        Some(_) => {
            assert!(sockcr::kernel::reader().is_err(), "BPF in a user namespace");
            ready()?;
            body()
        }
        None => in_user_namespace(&test_name(type_name_of_val(&body))),
    }
}

/// `rows::live_sweep` of `rows::live_sweep::{{closure}}`, without the name of the binary.
pub fn test_name(of: &str) -> String {
    let path = of.split("::{{").next().unwrap_or_default();
    path.split_once("::")
        .map_or(path, |(_, name)| name)
        .to_owned()
}

fn in_user_namespace(test: &str) -> Outcome {
    let mut child = Command::new(std::env::current_exe()?);
    child
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, "1");
    sockcr_sys::netns::in_user_namespace(&mut child);
    let output = match child.output() {
        Ok(output) => output,
        Err(why) => {
            return skip(&format!(
                "no network namespace and no user namespace: {why}"
            ));
        }
    };
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    match output.status.success() && text.contains("1 passed") {
        true => Ok(()),
        false => Err(format!("{test}: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

fn control() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::INET, SocketType::DGRAM, None)?)
}

/// The loopback device up, and ping sockets for the group of root.
fn ready() -> io::Result<()> {
    sysctl("net.ipv4.ping_group_range", "0 0")?;
    up("lo")
}

/// Brings a device of this namespace up.
pub fn up(device: &str) -> io::Result<()> {
    sockcr_sys::interface::bring_up(control()?.as_fd(), device)
}

/// The index of a device of this namespace.
pub fn index(device: &str) -> io::Result<u32> {
    sockcr_sys::interface::index(control()?.as_fd(), device)
}

/// Writes a sysctl of this network namespace.
pub fn sysctl(name: &str, value: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/{}", name.replace('.', "/")), value)
}

/// A device, with its addresses.
#[derive(Clone, Debug)]
pub struct Device {
    pub name: &'static str,
    pub index: u32,
    pub address: Ipv4Addr,
    /// Of everywhere.
    pub address6: Ipv6Addr,
    /// Of this device's cable.
    pub link_local: Ipv6Addr,
}

/// Two devices besides lo, up, at the two ends of one cable: m0 is 10.9.0.1/24, fd00:9::1/64 and
/// fe80::9:0/64, m1 10.9.1.1/24, fd00:9:0:1::1/64 and fe80::9:1/64.
pub fn devices() -> io::Result<[Device; 2]> {
    veth("m0", "m1")?;
    let devices = [device("m0", 0)?, device("m1", 1)?];
    devices.iter().try_for_each(routed)?;
    Ok(devices)
}

/// Waits until IPv6 has its routes: it makes them when the kernel has noticed that the cable is plugged
/// in (`addrconf_notify`), and those of its own addresses some time after it has got them
/// (`addrconf_dad_work`).
fn routed(device: &Device) -> io::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(20);
    let end = Instant::now() + PATIENCE;
    let own = [device.address6, device.link_local];
    let routes = own.map(|address| format!("{:032x} 80 ", u128::from(address)));
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    loop {
        let table = fs::read_to_string("/proc/thread-self/net/ipv6_route")?;
        let probe = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
        let group = probe.connect(SocketAddrV6::new(all_nodes, 9, 0, device.index));
        match group.is_ok() && routes.iter().all(|route| table.contains(route)) {
            true => return Ok(()),
            false if Instant::now() > end => return Err(io::ErrorKind::TimedOut.into()),
            false => std::thread::yield_now(),
        }
    }
}

fn device(name: &'static str, number: u8) -> io::Result<Device> {
    // No link-local address of its own making.
    sysctl(&format!("net.ipv6.conf.{name}.addr_gen_mode"), "1")?;
    let device = Device {
        name,
        index: index(name)?,
        address: Ipv4Addr::new(10, 9, number, 1),
        address6: Ipv6Addr::new(0xfd00, 9, 0, number.into(), 0, 0, 0, 1),
        link_local: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 9, number.into()),
    };
    set_address(name, device.address.into())?;
    set_address(name, device.address6.into())?;
    set_address(name, device.link_local.into())?;
    up(name)?;
    Ok(device)
}

const REQUEST_ACK_EXCL_CREATE: u16 = 0x1 | 0x4 | 0x200 | 0x400;

/// Gives a device an address, with a network of 24 or 64 bits, by rtnetlink; one of IPv6 may be used
/// at once.
fn set_address(device: &str, address: IpAddr) -> io::Result<()> {
    const RTM_NEWADDR: u16 = 20;
    const ADDRESS: u16 = 1;
    const LOCAL: u16 = 2;
    const BROADCAST: u16 = 4;
    const NODAD: u8 = 2;
    // `struct ifaddrmsg`: the family, the bits of the network, the flags, the scope of everywhere.
    let (head, addresses) = match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            let own = address.octets();
            let broadcast = attribute(BROADCAST, &[a, b, c, 255]);
            let addresses = [attribute(LOCAL, &own), attribute(ADDRESS, &own), broadcast];
            ([2, 24, 0, 0], addresses.concat())
        }
        IpAddr::V6(address) => ([10, 64, NODAD, 0], attribute(ADDRESS, &address.octets())),
    };
    let head = [head, index(device)?.to_ne_bytes()].concat();
    ask_kernel(RTM_NEWADDR, &[head, addresses].concat())
}

/// Makes a pair of devices by rtnetlink.
fn veth(one: &str, other: &str) -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const IFNAME: u16 = 3;
    const LINKINFO: u16 = 18;
    const INFO_KIND: u16 = 1;
    const INFO_DATA: u16 = 2;
    const PEER: u16 = 1;
    let anything = vec![0u8; 16];
    let peer = [anything.clone(), attribute(IFNAME, other.as_bytes())].concat();
    let data = attribute(INFO_DATA, &attribute(PEER, &peer));
    let info = [attribute(INFO_KIND, b"veth"), data].concat();
    let name = attribute(IFNAME, one.as_bytes());
    let body = [anything, name, attribute(LINKINFO, &info)];
    ask_kernel(RTM_NEWLINK, &body.concat())
}

fn attribute(number: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = ((payload.len() + 4) as u16).to_ne_bytes().to_vec();
    bytes.extend(number.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Sends one netlink message and reads whether it was done.
fn ask_kernel(kind: u16, body: &[u8]) -> io::Result<()> {
    use rustix::net::{RecvFlags, SendFlags, recv, send};
    let mut message = ((body.len() + 16) as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(REQUEST_ACK_EXCL_CREATE.to_ne_bytes());
    message.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    message.extend(body);
    let netlink = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    send(&netlink, &message, SendFlags::empty())?;
    let mut answer = [0u8; 4096];
    recv(&netlink, &mut answer, RecvFlags::empty())?;
    // `struct nlmsgerr` behind the header: first the error.
    let error = answer.get(16..).and_then(|rest| rest.first_chunk());
    match i32::from_ne_bytes(*error.ok_or(io::ErrorKind::InvalidData)?) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}
