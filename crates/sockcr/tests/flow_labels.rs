//! Leases of flow labels, and the label that a connected socket gives its datagrams.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

mod support;

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;

use sockcr::{Checkpoint, Mapping, RestoreOptions};
use support::Outcome;
use support::inject::{Family, privileged};
use support::socket::{self, IPV6, set, set_int};
use support::twin::{exactly, identical, lossy};

const IPV6_FLOWINFO: i32 = 11;
const IPV6_FLOWLABEL_MGR: i32 = 32;
const IPV6_FLOWINFO_SEND: i32 = 33;
const PORT: u16 = 4300;
const HERE: Ipv6Addr = Ipv6Addr::LOCALHOST;

type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// `struct in6_flowlabel_req` that takes a lease, makes it, and lets it linger.
fn lease(socket: &OwnedFd, label: u32, share: u8, linger: u16) -> std::io::Result<()> {
    let mut request = [&HERE.octets()[..], &label.to_be_bytes(), &[0, share, 1, 0]].concat();
    request.extend([&[0; 2][..], &linger.to_ne_bytes(), &[0; 4]].concat());
    set(socket, IPV6, IPV6_FLOWLABEL_MGR, &request).map_err(std::io::Error::from_raw_os_error)
}

fn fresh() -> Fallible<OwnedFd> {
    let socket = Family::Ipv6.udp()?;
    set_int(&socket, support::socket::SOCKET, 2, 1)?;
    Ok(socket)
}

#[test]
fn leases_come_back_in_order() -> Outcome {
    privileged(|| {
        let socket = fresh()?;
        for (label, share, linger) in [(0x54321, 1, 6), (0x12345, 255, 17), (0xfffff, 2, 9)] {
            lease(&socket, label, share, linger)?;
        }
        let leases = Checkpoint::dump(&socket)?.flow_labels;
        let seen: Vec<_> = leases
            .iter()
            .map(|l| (l.label, l.share, l.linger))
            .collect();
        assert_eq!(seen, [(0x54321, 1, 6), (0x12345, 255, 17), (0xfffff, 2, 9)]);
        assert!(leases.iter().all(|lease| lease.to == HERE));
        identical(socket);
        Ok(())
    })
}

/// The lease that lingers is for the old name of its destination: it is waited for.
#[test]
fn a_lease_for_an_address_that_moves() -> Outcome {
    privileged(|| {
        let socket = fresh()?;
        lease(&socket, 0x54321, 255, 6)?;
        let checkpoint = Checkpoint::dump(&socket)?;
        drop(socket);
        let there = "fd00::7".parse()?;
        let options = RestoreOptions {
            map: vec![Mapping::Network(HERE.into(), there, 128)],
            ..exactly()
        };
        let restored = Checkpoint::dump(&checkpoint.restore(&options)?.fd)?;
        let leases = restored.flow_labels.iter();
        let leases: Vec<_> = leases.map(|lease| (lease.label, lease.to)).collect();
        assert_eq!(leases, [(0x54321, "fd00::7".parse()?)]);
        Ok(())
    })
}

/// Connected with a label, sent with it, whether or not it is switched on now.
#[test]
fn a_connected_socket_sends_its_label() -> Outcome {
    privileged(|| {
        let receiver = Family::Ipv6.udp()?;
        set_int(&receiver, IPV6, IPV6_FLOWINFO, 1)?;
        socket::bind(&receiver, (HERE, PORT))?;
        for still_on in [true, false] {
            let socket = fresh()?;
            lease(&socket, 0x54321, 255, 6)?;
            set_int(&socket, IPV6, IPV6_FLOWINFO_SEND, 1)?;
            socket::bind(&socket, (HERE, PORT + 1))?;
            let to = SocketAddrV6::new(HERE, PORT, 0x54321, 0);
            socket::connect_to(&socket, to.into())?;
            set_int(&socket, IPV6, IPV6_FLOWINFO_SEND, still_on.into())?;
            let restored = identical(socket);
            let peer = Checkpoint::dump(&restored)?.endpoint.peer;
            assert!(matches!(peer, Some(SocketAddr::V6(peer)) if peer.flowinfo() == 0x54321));
            rustix::net::send(&restored, b"labelled", rustix::net::SendFlags::empty())?;
            let message = socket::receive_message(&receiver)?;
            assert_eq!(message.data, b"labelled");
            let told = message.control.get(&(IPV6, IPV6_FLOWINFO));
            let told = told.map(|word| u32::from_be_bytes(word.to_ne_bytes()));
            assert_eq!(told, Some(0x54321));
        }
        Ok(())
    })
}

#[test]
fn a_label_that_another_socket_has_is_named() -> Outcome {
    privileged(|| {
        let socket = fresh()?;
        lease(&socket, 0x777, 1, 6)?;
        let checkpoint = Checkpoint::dump(&socket)?;
        let refused = checkpoint.restore(&exactly()).unwrap_err().to_string();
        assert!(refused.contains("flow label 0x00777"), "{refused}");
        assert!(refused.contains("another socket"), "{refused}");
        let restored = checkpoint.restore(&lossy())?;
        assert_eq!(restored.report.not_carried.len(), 1);
        Ok(())
    })
}

/// Whoever compares two sockets is told of each lease, and of the label of the peer.
#[test]
fn each_difference_is_told() -> Outcome {
    privileged(|| {
        let socket = fresh()?;
        lease(&socket, 0x54321, 255, 6)?;
        lease(&socket, 0x12345, 255, 6)?;
        set_int(&socket, IPV6, IPV6_FLOWINFO_SEND, 1)?;
        socket::connect_to(&socket, SocketAddrV6::new(HERE, PORT, 0x54321, 0).into())?;
        let a = Checkpoint::dump(&socket)?;
        let mut b = a.clone();
        b.flow_labels[0].linger = 7;
        assert_eq!(sockcr::diff::diff(&a, &b).len(), 1);
        b.flow_labels.swap(0, 1);
        b.flow_labels[1].linger = 6;
        assert_eq!(sockcr::diff::diff(&a, &b).len(), 2);
        let mut b = a.clone();
        b.endpoint.peer = Some(SocketAddrV6::new(HERE, PORT, 0x12345, 0).into());
        assert_eq!(sockcr::diff::diff(&a, &b).len(), 1);
        Ok(())
    })
}

/// The label stays when the peer is left, or becomes one of IPv4.
#[test]
fn a_label_left_over_is_named_where_somebody_could_see_it() -> Outcome {
    privileged(|| {
        let mapped = SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), PORT);
        for leased in [false, true] {
            for next in [None, Some(mapped)] {
                let socket = fresh()?;
                if leased {
                    lease(&socket, 0x54321, 255, 6)?;
                }
                set_int(&socket, IPV6, IPV6_FLOWINFO_SEND, 1)?;
                socket::connect_to(&socket, SocketAddrV6::new(HERE, PORT, 0x54321, 0).into())?;
                rustix::net::connect_unspec(&socket)?;
                if let Some(next) = next {
                    socket::connect_to(&socket, next)?;
                }
                let checkpoint = Checkpoint::dump(&socket)?;
                drop(socket);
                let seen = leased || next.is_some();
                let notes = &checkpoint.report.not_carried;
                let told = notes.iter().any(|note| note.what == "flow label");
                assert_eq!(told, seen, "{leased} {next:?} {notes:?}");
                let restored = checkpoint.restore(&lossy())?;
                let now = Checkpoint::dump(&restored.fd)?;
                assert_eq!(now.endpoint, checkpoint.endpoint);
            }
        }
        Ok(())
    })
}
