//! Sockets that share a port and members of multicast groups: what they hear, untouched and
//! restored, must be the same.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};

use sockcr::{Checkpoint, restore_all};

use support::place::{self, isolated};
use support::socket::{self, IP, SOCKET};
use support::twin::{
    ANY, GROUP, HERE, HERES, IP_ADD_MEMBERSHIP, IP_RECVTTL, IP_TTL, OTHER_GROUP, PORT,
    SO_REUSEADDR, SO_REUSEPORT, change_group, exactly, join_request, same, send_to, with,
};
use support::{Outcome, reader, skip};

const IP_MULTICAST_IF: i32 = 32;
const IP_MULTICAST_TTL: i32 = 33;
const IP_MULTICAST_LOOP: i32 = 34;
const IP_DROP_MEMBERSHIP: i32 = 36;
const IP_BLOCK_SOURCE: i32 = 38;
const IP_ADD_SOURCE_MEMBERSHIP: i32 = 39;
const IP_MULTICAST_ALL: i32 = 49;

/// Five members of one group, bound in this order; one that came between them has left.
fn group(here: IpAddr) -> Vec<OwnedFd> {
    let mut members: Vec<OwnedFd> = (0..6)
        .map(|_| with((here, PORT), &[(SOCKET, SO_REUSEPORT, 1)]))
        .collect();
    members.remove(2);
    members
}

fn places(members: &[OwnedFd]) -> Vec<Option<u32>> {
    let reader = reader().unwrap();
    members
        .iter()
        .map(|member| reader.read(member.as_fd()).unwrap().reuseport_index)
        .collect()
}

/// How many of the datagrams from 300 ports each member gets.
fn shares(members: &[OwnedFd], from: IpAddr) -> Vec<usize> {
    for port in 20_000..20_300 {
        let sender = with((from, port), &[]);
        send_to(&sender, &port.to_be_bytes(), from, PORT).unwrap();
    }
    let mut shares = vec![0; members.len()];
    while shares.iter().sum::<usize>() < 300 {
        for (member, share) in members.iter().zip(&mut shares) {
            *share += socket::receive_now(member).unwrap().len();
        }
    }
    shares
}

#[test]
fn a_reuseport_group_keeps_its_order_and_its_shares() -> Outcome {
    if let Err(why) = reader() {
        return skip(&why);
    }
    isolated(|| {
        // An IPv6 group hears IPv4 too.
        let any = Ipv6Addr::UNSPECIFIED.into();
        let both = [(any, HERE.into()), (any, Ipv6Addr::LOCALHOST.into())];
        for (at, from) in HERES.map(|here| (here, here)).into_iter().chain(both) {
            keeps_order_and_shares(at, from)?;
        }
        Ok(())
    })
}

fn keeps_order_and_shares(at: IpAddr, from: IpAddr) -> Outcome {
    let members = group(at);
    let (order, before) = (places(&members), shares(&members, from));
    assert!(order.iter().all(Option::is_some) && before.iter().all(|share| *share > 0));
    let checkpoints: Result<Vec<_>, _> = members.iter().map(Checkpoint::dump).collect();
    drop(members);
    let restored = restore_all(&checkpoints?, &exactly())?;
    let members: Vec<OwnedFd> = restored.into_iter().map(|restored| restored.fd).collect();
    assert_eq!(places(&members), order);
    assert_eq!(shares(&members, from), before, "{at} from {from}");
    Ok(())
}

/// Sends to a group by this device, from an address.
fn multicast(data: &[u8], from: Ipv4Addr, index: u32, group: Ipv4Addr) {
    let sender = with((from, 0), &[]);
    socket::set(&sender, IP, IP_MULTICAST_IF, &join_request(ANY, ANY, index)).unwrap();
    send_to(&sender, data, group, PORT).unwrap();
}

#[test]
fn multicast_is_looped_back_or_not() -> Outcome {
    isolated(|| {
        let [device, _] = place::devices()?;
        for looped in [0, 1] {
            let make = || {
                let socket = with(
                    (device.address, 99),
                    &[(IP, IP_MULTICAST_LOOP, looped), (IP, IP_MULTICAST_TTL, 5)],
                );
                socket::set(
                    &socket,
                    IP,
                    IP_MULTICAST_IF,
                    &join_request(ANY, ANY, device.index),
                )
                .unwrap();
                socket
            };
            let first = same(make, |socket| {
                let receiver = with((ANY, PORT), &[(IP, IP_RECVTTL, 1)]);
                change_group(&receiver, IP_ADD_MEMBERSHIP, GROUP, device.index);
                send_to(socket, b"mine", GROUP, PORT).unwrap();
                multicast(b"marker", device.address, device.index, GROUP);
                let message = socket::receive_message(&receiver).unwrap();
                (message.data, message.control[&(IP, IP_TTL)])
            });
            let expected = if looped == 1 {
                (b"mine".to_vec(), 5)
            } else {
                (b"marker".to_vec(), 1)
            };
            assert_eq!(first, expected);
        }
        Ok(())
    })
}

#[test]
fn a_group_left_is_not_heard() -> Outcome {
    isolated(|| {
        let [device, _] = place::devices()?;
        let make = || {
            let socket = with(
                (ANY, PORT),
                &[(IP, IP_MULTICAST_ALL, 0), (SOCKET, SO_REUSEADDR, 1)],
            );
            change_group(&socket, IP_ADD_MEMBERSHIP, GROUP, device.index);
            change_group(&socket, IP_ADD_MEMBERSHIP, OTHER_GROUP, device.index);
            change_group(&socket, IP_DROP_MEMBERSHIP, GROUP, device.index);
            socket
        };
        let member = with((HERE, 0), &[]);
        change_group(&member, IP_ADD_MEMBERSHIP, GROUP, device.index);
        let first = same(make, |socket| {
            multicast(b"left", device.address, device.index, GROUP);
            multicast(b"joined", device.address, device.index, OTHER_GROUP);
            socket::receive(socket).unwrap()
        });
        assert_eq!(first, b"joined");
        Ok(())
    })
}

/// A way to join a group.
type Joining<'a> = &'a dyn Fn(&OwnedFd);

#[test]
fn a_source_filter_filters() -> Outcome {
    isolated(|| {
        let [one, other] = place::devices()?;
        let source = [GROUP.octets(), one.address.octets(), other.address.octets()].concat();
        let except = |socket: &OwnedFd| {
            change_group(socket, IP_ADD_MEMBERSHIP, GROUP, one.index);
            socket::set(socket, IP, IP_BLOCK_SOURCE, &source).unwrap();
        };
        let only =
            |socket: &OwnedFd| socket::set(socket, IP, IP_ADD_SOURCE_MEMBERSHIP, &source).unwrap();
        let joins: [(Joining<'_>, &[u8]); 2] = [(&except, b"one"), (&only, b"other")];
        for (join, heard) in joins {
            let make = || {
                let socket = with((ANY, PORT), &[(IP, IP_MULTICAST_ALL, 0)]);
                join(&socket);
                socket
            };
            let first = same(make, |socket| {
                // The one that is filtered comes first.
                let mut senders = [(&b"one"[..], one.address), (&b"other"[..], other.address)];
                senders.sort_by_key(|(data, _)| *data == heard);
                for (data, from) in senders {
                    multicast(data, from, one.index, GROUP);
                }
                socket::receive(socket).unwrap()
            });
            assert_eq!(first, heard);
        }
        Ok(())
    })
}
