//! Datagrams as JSON, in the words of `sockcr show --json`: as sent, and as read.

use crate::{Outcome, wait};
use anyhow::{Context, ensure};
use rustix::net::SocketType;
use serde_json::{Map, Value as Json, json};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

const SOL_SOCKET: i32 = 1;
const SO_TIMESTAMPNS: i32 = 35;
const IPPROTO_IP: i32 = 0;
const IP_PKTINFO: i32 = 8;
const IP_RECVTTL: i32 = 12;
const IP_TTL: i32 = 2;
const IP_RECVTOS: i32 = 13;
const IP_TOS: i32 = 1;
const IP_ORIGDSTADDR: i32 = 20;
const IPPROTO_IPV6: i32 = 41;
const IPV6_UNICAST_HOPS: i32 = 16;
const IPV6_MULTICAST_HOPS: i32 = 18;
const IPV6_RECVPKTINFO: i32 = 49;
const IPV6_PKTINFO: i32 = 50;
const IPV6_RECVHOPLIMIT: i32 = 51;
const IPV6_HOPLIMIT: i32 = 52;
const IPV6_RECVTCLASS: i32 = 66;
const IPV6_TCLASS: i32 = 67;
const IPV6_ORIGDSTADDR: i32 = 74;
const MSG_DONTWAIT: i32 = 0x40;

/// The most that one datagram holds.
pub const LONGEST: usize = 65_507;
/// Time that was not taken at arrival.
const NEVER: &str = "0.000000000";

/// Somebody who sends to a socket under test.
#[derive(Debug)]
pub struct Sender {
    /// Its socket, bound.
    pub socket: UdpSocket,
    /// Where it sends to.
    pub to: SocketAddr,
    /// The device that this arrives on.
    pub arrives_on: &'static str,
}

impl Sender {
    /// Sends, waits until this is in the queue of the socket that the command calls `target`, and
    /// says what must be read there.
    ///
    /// Datagrams that arrive on several devices have no order before they are in the queue.
    pub fn send(&self, payload: &[u8], target: &str) -> anyhow::Result<Json> {
        let sent = self.socket.send_to(payload, self.to)?;
        ensure!(sent == payload.len(), "only {sent} bytes were sent");
        let expected = self.expected(payload)?;
        let what = format!("the arrival of {} at {target}", brief(&expected));
        wait::until(&what, || {
            let queue = crate::command::queue(target)?;
            Ok(queue.iter().any(|one| agrees(&expected, one)).then_some(()))
        })?;
        Ok(expected)
    }

    fn expected(&self, payload: &[u8]) -> anyhow::Result<Json> {
        let option = |level, name| {
            let mut value = [0; 4];
            sockcr_sys::sockopt::get(self.socket.as_fd(), level, name, &mut value)?;
            anyhow::Ok(i32::from_ne_bytes(value))
        };
        let (ttl, tos) = match (self.to.is_ipv6(), self.to.ip().is_multicast()) {
            (false, true) => (
                self.socket.multicast_ttl_v4()? as i32,
                option(IPPROTO_IP, IP_TOS)?,
            ),
            (false, false) => (self.socket.ttl()? as i32, option(IPPROTO_IP, IP_TOS)?),
            (true, group) => {
                let hops = if group {
                    IPV6_MULTICAST_HOPS
                } else {
                    IPV6_UNICAST_HOPS
                };
                (
                    option(IPPROTO_IPV6, hops)?,
                    option(IPPROTO_IPV6, IPV6_TCLASS)?,
                )
            }
        };
        Ok(json!({
            "from": as_it_came(self.socket.local_addr()?),
            "to": as_it_came(self.to),
            "ttl": ttl,
            "tos": tos,
            "interface": self.arrives_on,
            "payload": hex(payload),
        }))
    }
}

/// All that is said of one datagram is said of the other too, and is the same.
fn agrees(expected: &Json, told: &Json) -> bool {
    let said = expected.as_object().into_iter().flatten();
    said.into_iter()
        .all(|(key, value)| told.get(key) == Some(value))
}

/// The datagrams that were read are these, in this order, and no other.
pub fn ensure_same(expected: &[Json], read: &[Json]) -> Outcome {
    for (at, (expected, read)) in expected.iter().zip(read).enumerate() {
        ensure!(
            agrees(expected, read),
            "datagram {at}: {} was due, {} was read",
            brief(expected),
            brief(read)
        );
    }
    let (due, count) = (expected.len(), read.len());
    ensure!(due == count, "{due} datagrams were due, {count} were read");
    Ok(())
}

/// What `read` will say of a datagram that the command shows in a queue.
pub fn as_read(shown: &Json) -> anyhow::Result<Json> {
    let shown = shown.as_object().context("no datagram")?;
    let told = ["from", "to", "ttl", "tos", "interface", "local", "payload"];
    let timed = shown.get("received_at") != Some(&NEVER.into());
    let keys = told.into_iter().chain(timed.then_some("received_at"));
    let parts = keys.map(|key| Some((key.to_owned(), shown.get(key)?.clone())));
    let parts: Option<Map<String, Json>> = parts.collect();
    parts
        .map(Json::Object)
        .with_context(|| format!("not all is shown: {shown:?}"))
}

/// An address as the headers have it: of IPv4 without the mapping, of IPv6 without a scope.
fn as_it_came(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Reads all that waits in a socket, with every control message that tells something.
///
/// IP_PKTINFO alone is as it was: the kernel notes the device at arrival (ipv4_pktinfo_prepare()),
/// so that it is told only by a socket that had asked for it then.
pub fn read_all(socket: BorrowedFd<'_>) -> anyhow::Result<Vec<Json>> {
    let on = 1_i32.to_ne_bytes();
    sockcr_sys::sockopt::set(socket, SOL_SOCKET, SO_TIMESTAMPNS, &on)?;
    let ipv6 = SocketAddr::try_from(rustix::net::getsockname(socket)?)?.is_ipv6();
    let raw = rustix::net::sockopt::socket_type(socket)? == SocketType::RAW;
    // Raw sockets of IPv6 have no options of IPPROTO_IP.
    let names = [IP_RECVTTL, IP_RECVTOS, IP_ORIGDSTADDR].into_iter();
    for name in names.filter(|_| !(raw && ipv6)) {
        sockcr_sys::sockopt::set(socket, IPPROTO_IP, name, &on)?;
    }
    if ipv6 {
        for name in [
            IPV6_RECVPKTINFO,
            IPV6_RECVHOPLIMIT,
            IPV6_RECVTCLASS,
            IPV6_ORIGDSTADDR,
        ] {
            sockcr_sys::sockopt::set(socket, IPPROTO_IPV6, name, &on)?;
        }
    }
    let mut all = Vec::new();
    while let Some(datagram) = read(socket)? {
        all.push(datagram);
    }
    Ok(all)
}

fn read(socket: BorrowedFd<'_>) -> anyhow::Result<Option<Json>> {
    let (mut payload, mut control) = (vec![0; LONGEST], [0; 512]);
    let received =
        match sockcr_sys::message::receive(socket, &mut payload, &mut control, MSG_DONTWAIT) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            received => received?,
        };
    let mut told = json!({
        "from": received.source.map(as_it_came),
        "payload": hex(&payload[..received.length]),
    });
    let control = &control[..received.control_length];
    for message in sockcr_sys::message::control_messages(control) {
        let place = (message.level, message.kind);
        tell(&mut told, socket, place, message.payload)
            .with_context(|| format!("control message {message:?}"))?;
    }
    Ok(Some(told))
}

fn tell(told: &mut Json, socket: BorrowedFd<'_>, place: (i32, i32), payload: &[u8]) -> Outcome {
    match place {
        (IPPROTO_IP, IP_TTL) => told["ttl"] = payload.first().context("empty")?.to_owned().into(),
        (IPPROTO_IP, IP_TOS) => told["tos"] = payload.first().context("empty")?.to_owned().into(),
        (IPPROTO_IP, IP_PKTINFO) => {
            let index = u32::from_ne_bytes(part(payload, 0)?);
            told["interface"] = sockcr_sys::interface::name(socket.as_fd(), index)?.into();
            told["local"] = address(part(payload, 4)?).into();
        }
        (IPPROTO_IP, IP_ORIGDSTADDR) => {
            let port = u16::from_be_bytes(part(payload, 2)?);
            told["to"] = format!("{}:{port}", address(part(payload, 4)?)).into();
        }
        (IPPROTO_IPV6, IPV6_HOPLIMIT) => {
            told["ttl"] = payload.first().context("empty")?.to_owned().into();
        }
        (IPPROTO_IPV6, IPV6_TCLASS) => {
            told["tos"] = payload.first().context("empty")?.to_owned().into();
        }
        (IPPROTO_IPV6, IPV6_PKTINFO) => {
            let index = u32::from_ne_bytes(part(payload, 16)?);
            let ip = IpAddr::from(part::<16>(payload, 0)?).to_canonical();
            if ip.is_ipv6() {
                told["interface"] = sockcr_sys::interface::name(socket.as_fd(), index)?.into();
                told["local"] = json!(ip);
            }
        }
        (IPPROTO_IPV6, IPV6_ORIGDSTADDR) => {
            let port = u16::from_be_bytes(part(payload, 2)?);
            let ip = IpAddr::from(part::<16>(payload, 8)?);
            told["to"] = json!(SocketAddr::new(ip, port));
        }
        (SOL_SOCKET, SO_TIMESTAMPNS) => {
            let seconds = i64::from_ne_bytes(part(payload, 0)?);
            let nanoseconds = i64::from_ne_bytes(part(payload, 8)?);
            told["received_at"] = format!("{seconds}.{nanoseconds:09}").into();
        }
        // What the program under test had asked for besides.
        _ => {}
    }
    Ok(())
}

/// A datagram for people, who read the start of a long one.
fn brief(datagram: &Json) -> String {
    const SHOWN: usize = 80;
    let mut datagram = datagram.clone();
    let payload = datagram["payload"].as_str().unwrap_or_default();
    if let Some((start, rest)) = payload.split_at_checked(SHOWN)
        && !rest.is_empty()
    {
        let bytes = payload.len() / 2;
        datagram["payload"] = format!("{start}... ({bytes} bytes)").into();
    }
    datagram.to_string()
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> anyhow::Result<[u8; N]> {
    let part = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    part.copied().context("is too short")
}

fn address(bytes: [u8; 4]) -> String {
    std::net::Ipv4Addr::from(bytes).to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
