use super::*;
use crate::kernel::{Hidden6, reader};
use rustix::net::{AddressFamily, SocketType, socket};
use std::net::Ipv6Addr;

const HIDDEN: [&str; 4] = [
    "IPV6_UNICAST_HOPS",
    "IPV6_MTU",
    "IPV6_PKTINFO",
    "IPV6_AUTOFLOWLABEL",
];

fn read_all(fd: BorrowedFd<'_>, hidden: Option<&Hidden>) -> [Option<Value>; 4] {
    HIDDEN.map(|name| read_whole(find(name).unwrap(), fd, hidden).unwrap())
}

#[test]
fn without_bpf_only_what_no_sysctl_says_is_seen() {
    let socket = socket(AddressFamily::INET6, SocketType::DGRAM, None).unwrap();
    let fd = socket.as_fd();
    assert_eq!(read_all(fd, None), [None, None, None, None]);
    let label = find("IPV6_AUTOFLOWLABEL").unwrap();
    let Value::Int(default) = label.by_sysctl(fd) else {
        panic!("no number");
    };
    let other = Value::Int(1 - default);
    label.write(fd, &other).unwrap();
    let hops = find("IPV6_UNICAST_HOPS").unwrap();
    hops.write(fd, &Value::Int(7)).unwrap();
    let seen = [Some(Value::Int(7)), None, None, Some(other)];
    assert_eq!(read_all(fd, None), seen);
}

#[test]
fn what_bpf_tells_counts() {
    let reader = match reader() {
        Ok(reader) => reader,
        Err(why) => return println!("skipped: {why}"),
    };
    let socket = socket(AddressFamily::INET6, SocketType::DGRAM, None).unwrap();
    let fd = socket.as_fd();
    let mut hidden = reader.read(fd).unwrap();
    let told = |unicast_hops, fragment_size, sticky_interface, auto_flow_label_set| Hidden6 {
        unicast_hops,
        fragment_size,
        sticky_address: Ipv6Addr::UNSPECIFIED,
        sticky_interface,
        auto_flow_label_set,
        flow_information: 0,
        path_mtu: false,
        flow_labels: false,
    };
    hidden.ipv6 = Some(told(None, 0, 0, false));
    assert_eq!(read_all(fd, Some(&hidden)), [None, None, None, None]);
    hidden.ipv6 = Some(told(Some(64), 1400, 1, true));
    let label = find("IPV6_AUTOFLOWLABEL").unwrap().read(fd).unwrap();
    let whole = [
        Some(Value::Int(64)),
        Some(Value::Int(1400)),
        Some(Value::Scoped(Ipv6Addr::UNSPECIFIED, 1)),
        label,
    ];
    assert_eq!(read_all(fd, Some(&hidden)), whole);
}
