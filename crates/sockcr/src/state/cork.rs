//! The datagram that UDP_CORK or MSG_MORE holds back, read by BPF and put together again.

use super::endpoint::Failure;
use super::filter;
use super::interfaces::Interfaces;
use super::meanwhile::{self, Buffer, Meanwhile};
use crate::kernel::{self, Corked, Hidden};
use crate::option::{self, Options, Value};
use crate::report::Report;
use rustix::io::Errno;
use sockcr_sys::message::{Outgoing, add_control, send_many};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::BorrowedFd;

const SOL_SOCKET: i32 = 1;
const SO_REUSEADDR: i32 = 2;
const SO_DONTROUTE: i32 = 5;
const SO_BROADCAST: i32 = 6;
const SO_PRIORITY: i32 = 12;
const SO_REUSEPORT: i32 = 15;
const SO_MARK: i32 = 36;
const SO_TIMESTAMPING: i32 = 37;
const SO_BINDTOIFINDEX: i32 = 62;
const SCM_TXTIME: i32 = 61;
const IPPROTO_IP: i32 = 0;
const IP_TOS: i32 = 1;
const IP_TTL: i32 = 2;
const IP_RETOPTS: i32 = 7;
const IP_PKTINFO: i32 = 8;
const IP_MTU_DISCOVER: i32 = 10;
const IPPROTO_IPV6: i32 = 41;
const IPV6_FLOWINFO: i32 = 11;
const IPV6_MTU_DISCOVER: i32 = 23;
const IPV6_MTU: i32 = 24;
const IPV6_PKTINFO: i32 = 50;
const IPV6_HOPLIMIT: i32 = 52;
const IPV6_DONTFRAG: i32 = 62;
const IPV6_TCLASS: i32 = 67;
const LOOPBACK: u32 = 1;
/// The options that say which extension headers all datagrams have, and their numbers.
const STICKY: [(&str, u8); 4] = [
    ("IPV6_HOPOPTS", 54),
    ("IPV6_RTHDRDSTOPTS", 55),
    ("IPV6_RTHDR", 57),
    ("IPV6_DSTOPTS", 59),
];
const PMTUDISC_WANT: i32 = 1;
const PMTUDISC_OMIT: i32 = 5;
const SOL_UDP: i32 = 17;
const UDP_SEGMENT: i32 = 103;
const MSG_DONTROUTE: i32 = 0x4;
const MSG_DONTWAIT: i32 = 0x40;
const MSG_NOSIGNAL: i32 = 0x4000;
const MSG_MORE: i32 = 0x8000;
/// More than one datagram takes.
const ROOM: i32 = 1 << 20;

/// Reads it. A time stamp that is wanted of it is reported, and not in what is answered.
pub(crate) fn dump(
    fd: BorrowedFd<'_>,
    hidden: Option<&Hidden>,
    report: &mut Report,
) -> Option<Corked> {
    let hidden = hidden.filter(|hidden| hidden.pending)?;
    let corked = kernel::reader()
        .map_err(io::Error::other)
        .and_then(|reader| reader.cork(fd));
    let mut corked = corked.unwrap_or_else(|error| {
        // udp_sock.len counts the UDP header of 8 bytes too.
        let payload = hidden.pending_bytes.saturating_sub(8);
        let why = crate::error::reason(&error);
        report.lose("corked data", format!("{payload} bytes: {why}"));
        None
    })?;
    if std::mem::take(&mut corked.stamped) {
        report.lose(
            "corked data: time stamp",
            "the owner wants one when it is sent",
        );
    }
    Some(corked)
}

/// The bytes of memory that datagrams take while they are with a device; nothing brings them back.
pub(crate) fn in_flight(fd: BorrowedFd<'_>, hidden: Option<&Hidden>, report: &mut Report) -> u32 {
    let Some(hidden) = hidden.filter(|hidden| hidden.sent > 0) else {
        return 0;
    };
    let read = kernel::reader()
        .map_err(io::Error::other)
        .and_then(|reader| reader.in_flight(fd));
    read.unwrap_or_else(|error| {
        let why = crate::error::reason(&error);
        report.assume(
            "nothing more on its way out",
            format!("{} bytes: {why}", hidden.sent),
        );
        0
    })
}

/// Sends it again with MSG_MORE: all that its first sendmsg(2) fixed comes by control messages, so
/// that options changed since do not count.
pub(crate) fn restore(
    fd: BorrowedFd<'_>,
    corked: &Corked,
    options: &Options,
    interfaces: &Interfaces,
    report: &mut Report,
) -> Result<(), Failure> {
    let device = interfaces.local(fd, corked.device).unwrap_or_else(|error| {
        report.lose("corked data: device", crate::error::reason(&error));
        0
    });
    let mut control = Vec::new();
    let to = match corked.destination {
        SocketAddr::V6(to) if to.ip().to_ipv4_mapped().is_none() => {
            control_ipv6(corked, device, &mut control);
            SocketAddrV6::new(*to.ip(), to.port(), 0, scope(to.ip(), device)).into()
        }
        to => {
            control_ipv4(corked, device, options, &mut control);
            to
        }
    };
    control_socket(corked, options, &mut control);
    let mut meanwhile = Meanwhile::new(fd);
    let sent = with_headers(fd, corked, options, interfaces, || {
        let one = Outgoing {
            to,
            control: &control,
            parts: [&corked.payload, &[]],
        };
        in_fragments(fd, corked, options, || {
            send_somehow(fd, corked, &one, &mut meanwhile)
        })
    });
    let back = meanwhile.put_back();
    sent.and(back).map_err(|error| {
        let step = format!("corked data: send it to {}", corked.destination);
        Failure::at(step, error)
    })?;
    check(fd, corked, device, report);
    Ok(())
}

/// What became other than it was is told: a connect(2) after the data gave it a destination and a
/// source that no sendmsg(2) gives (`__ip4_datagram_connect`), or another route leads there now.
fn check(fd: BorrowedFd<'_>, corked: &Corked, device: u32, report: &mut Report) {
    let read = kernel::reader()
        .map_err(io::Error::other)
        .and_then(|reader| reader.cork(fd));
    let now = match read {
        Ok(Some(now)) => now,
        Ok(None) => return report.lose("corked data", "are not there"),
        Err(why) => {
            let why = crate::error::reason(&why);
            return report.assume("corked data put back as they were", why);
        }
    };
    let wanted = Corked {
        device,
        ..corked.clone()
    };
    let before = words(&wanted);
    let pairs = before.iter().zip(words(&now));
    for ((name, wanted), (_, now)) in pairs.filter(|((_, a), (_, b))| a != b) {
        report.lose(
            format!("corked data: {name}"),
            format!("{wanted} became {now}"),
        );
    }
    if corked.payload != now.payload {
        report.lose("corked data: payload", "became another one");
    }
}

fn words(corked: &Corked) -> [(&'static str, String); 14] {
    let given = |value: Option<u8>| value.map_or("the socket's".into(), |value| value.to_string());
    [
        ("destination", corked.destination.to_string()),
        ("source", corked.source.to_string()),
        ("device", corked.device.to_string()),
        ("gateway", corked.gateway.to_string()),
        ("flow label", corked.flow_label.to_string()),
        ("IPV6_DONTFRAG", corked.dont_fragment.to_string()),
        ("ttl", given(corked.ttl)),
        ("tos", given(corked.tos)),
        ("mark", corked.mark.to_string()),
        ("priority", corked.priority.to_string()),
        ("segment size", corked.segment_size.to_string()),
        ("fragment size", corked.fragment_size.to_string()),
        ("transmit time", corked.transmit_time.to_string()),
        ("options", crate::hex::encode(&corked.ip_options)),
    ]
}

/// The same on an unbound socket, which is unbound again afterwards. Nothing can come in meanwhile,
/// and the port that it takes for a moment is shared with nobody.
pub(crate) fn restore_unbound(
    fd: BorrowedFd<'_>,
    corked: &Corked,
    options: &Options,
    interfaces: &Interfaces,
    report: &mut Report,
) -> Result<(), Failure> {
    let failed = |error| Failure::at("corked data: before binding", error);
    filter::block(fd).map_err(failed)?;
    let mut meanwhile = Meanwhile::new(fd);
    let prepared = (|| {
        meanwhile.set(SOL_SOCKET, SO_REUSEADDR, 0)?;
        meanwhile.set(SOL_SOCKET, SO_REUSEPORT, 0)?;
        // __udp_disconnect takes it away.
        meanwhile.keep(SOL_SOCKET, SO_BINDTOIFINDEX)
    })();
    let corked = match prepared {
        Ok(_) => restore(fd, corked, options, interfaces, report),
        Err(error) => Err(failed(error)),
    };
    let left = rustix::net::connect_unspec(fd).map_err(io::Error::from);
    let back = meanwhile.put_back();
    let done = left.and(back).and(filter::unblock(fd)).map_err(failed);
    corked.and(done)
}

/// A send that fails leaves nothing behind, and may be tried with what it lacked.
fn send_somehow(
    fd: BorrowedFd<'_>,
    corked: &Corked,
    one: &Outgoing<'_>,
    meanwhile: &mut Meanwhile<'_>,
) -> io::Result<()> {
    // An IPv6 one takes no notice.
    let mut route = MSG_DONTROUTE;
    if corked.gateway {
        route = 0;
        meanwhile.set(SOL_SOCKET, SO_DONTROUTE, 0)?;
    }
    // To be cut into fragments may have been forbidden since: that would be an error in the queue.
    // What the route or the device takes is the measure again (`ip_sk_use_pmtu`).
    match corked.destination.ip().to_canonical() {
        IpAddr::V4(_) if corked.fragment_size != 0 => {
            meanwhile.set(IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_WANT)?;
        }
        IpAddr::V4(_) => meanwhile.set(IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_OMIT)?,
        IpAddr::V6(_) => meanwhile.set(IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_OMIT)?,
    }
    let mut tries = 0;
    loop {
        let error = match send(fd, one, route) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        tries += 1;
        match Errno::from_io_error(&error) {
            _ if tries > 3 => return Err(error),
            // What the buffer held once may be more than its owner allows now.
            Some(Errno::AGAIN | Errno::NOBUFS) => meanwhile.room(Buffer::Send, ROOM)?,
            // To everybody, and SO_BROADCAST was taken away since.
            Some(Errno::ACCESS) => meanwhile.set(SOL_SOCKET, SO_BROADCAST, 1)?,
            // Without a gateway, but not as one of a directly connected network.
            Some(Errno::NETUNREACH) if route != 0 => route = 0,
            _ => return Err(error),
        }
    }
}

fn send(fd: BorrowedFd<'_>, one: &Outgoing<'_>, route: i32) -> io::Result<()> {
    let flags = MSG_MORE | MSG_DONTWAIT | MSG_NOSIGNAL | route;
    send_many(fd, std::slice::from_ref(one), flags).map(drop)
}

/// The device of a link-local destination.
fn scope(to: &Ipv6Addr, device: u32) -> u32 {
    match kernel::needs_scope(to) {
        true => device,
        false => 0,
    }
}

/// Sends with the extension headers of the data as the socket's own: a control message takes none away,
/// and not every routing header (`ip6_datagram_send_ctl`).
fn with_headers(
    fd: BorrowedFd<'_>,
    corked: &Corked,
    options: &Options,
    interfaces: &Interfaces,
    send: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let ipv6 = corked.destination.ip().to_canonical().is_ipv6();
    let sticky = STICKY.iter().any(|(name, _)| options.has(name));
    if !ipv6 || (corked.ip_options.is_empty() && !sticky) {
        return send();
    }
    let none = Value::Bytes(Vec::new());
    let put = |name: &str, value: &Value| option::put(fd, name, value, interfaces);
    let mut own = headers(&corked.ip_options);
    let set = STICKY.iter().try_for_each(|(name, number)| {
        let header = own.remove(number);
        put(name, &Value::Bytes(header.unwrap_or_default()))
    });
    let sent = set.and_then(|()| send());
    let names = STICKY.iter().map(|(name, _)| *name);
    let back = names.map(|name| put(name, options.get(name).unwrap_or(&none)));
    back.fold(sent, Result::and)
}

/// Sends with the size of the fragments as IPV6_MTU, whatever gave it them (`ip6_setup_cork`). Reading
/// IPV6_MTU tells the route's: the checkpoint knows what it was.
fn in_fragments(
    fd: BorrowedFd<'_>,
    corked: &Corked,
    options: &Options,
    send: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let own = options.get("IPV6_MTU").and_then(Value::number);
    let (own, size) = (own.unwrap_or(0) as u32, corked.fragment_size);
    if corked.destination.ip().to_canonical().is_ipv4() || size == own {
        return send();
    }
    let set = |size: u32| meanwhile::set(fd, IPPROTO_IPV6, IPV6_MTU, size as i32);
    set(size)?;
    let sent = send();
    sent.and(set(own))
}

/// The headers of a cork by the numbers of their options.
fn headers(mut rest: &[u8]) -> BTreeMap<u8, Vec<u8>> {
    let mut all = BTreeMap::new();
    while let [number, header @ ..] = rest {
        let length = header
            .get(1)
            .map_or(0, |length| (usize::from(*length) + 1) * 8);
        let (header, others) = header.split_at_checked(length).unwrap_or((header, &[]));
        all.insert(*number, header.to_vec());
        rest = others;
    }
    all
}

fn control_ipv4(corked: &Corked, device: u32, options: &Options, control: &mut Vec<u8>) {
    let mut add = |level, kind, data: &[u8]| add_control(control, level, kind, data);
    let source = match corked.source.to_canonical() {
        IpAddr::V4(source) => source.octets(),
        IpAddr::V6(_) => [0; 4],
    };
    let from = [device.to_ne_bytes(), source, [0; 4]];
    add(IPPROTO_IP, IP_PKTINFO, from.as_flattened());
    if let Some(tos) = corked.tos {
        add(IPPROTO_IP, IP_TOS, &i32::from(tos).to_ne_bytes());
    }
    if let Some(ttl) = corked.ttl {
        add(IPPROTO_IP, IP_TTL, &i32::from(ttl).to_ne_bytes());
    }
    if options.has("IP_OPTIONS") || !corked.ip_options.is_empty() {
        add(IPPROTO_IP, IP_RETOPTS, &corked.ip_options);
    }
}

/// The route that leads to an address of this host is found without a device: it is that of another one
/// than the loopback device, by which it leaves (`ip6_rt_get_dev_rcu`).
fn control_ipv6(corked: &Corked, device: u32, control: &mut Vec<u8>) {
    let mut add = |kind, data: &[u8]| add_control(control, IPPROTO_IPV6, kind, data);
    let source = match corked.source {
        IpAddr::V6(source) => source,
        IpAddr::V4(_) => Ipv6Addr::UNSPECIFIED,
    };
    let device = if device == LOOPBACK { 0 } else { device };
    let from = [&source.octets()[..], &device.to_ne_bytes()].concat();
    add(IPV6_PKTINFO, &from);
    for (kind, value) in [(IPV6_TCLASS, corked.tos), (IPV6_HOPLIMIT, corked.ttl)] {
        if let Some(value) = value {
            add(kind, &i32::from(value).to_ne_bytes());
        }
    }
    add(
        IPV6_DONTFRAG,
        &i32::from(corked.dont_fragment).to_ne_bytes(),
    );
    if corked.flow_label != 0 {
        add(IPV6_FLOWINFO, &corked.flow_label.to_be_bytes());
    }
}

/// What is said at the level of the socket, and of UDP.
fn control_socket(corked: &Corked, options: &Options, control: &mut Vec<u8>) {
    let mut add = |level, kind, data: &[u8]| add_control(control, level, kind, data);
    // None of the time stamps that the owner wants now.
    add(SOL_SOCKET, SO_TIMESTAMPING, &[0; 4]);
    let own = |name: &str| options.get(name).and_then(Value::number).unwrap_or(0);
    if i64::from(corked.mark) != own("SO_MARK") {
        add(SOL_SOCKET, SO_MARK, &corked.mark.to_ne_bytes());
    }
    // A priority comes with the TOS of IPv4 (ip_cmsg_send).
    let ipv4 = corked.destination.ip().to_canonical().is_ipv4();
    let given = corked.tos.filter(|_| ipv4).map(priority_of);
    if given.unwrap_or_else(|| own("SO_PRIORITY")) != i64::from(corked.priority) {
        add(SOL_SOCKET, SO_PRIORITY, &corked.priority.to_ne_bytes());
    }
    if i64::from(corked.segment_size) != own("UDP_SEGMENT") {
        add(SOL_UDP, UDP_SEGMENT, &corked.segment_size.to_ne_bytes());
    }
    if corked.transmit_time != 0 {
        add(SOL_SOCKET, SCM_TXTIME, &corked.transmit_time.to_ne_bytes());
    }
}

/// `rt_tos2priority`
fn priority_of(tos: u8) -> i64 {
    const BULK: i64 = 2;
    const INTERACTIVE_BULK: i64 = 4;
    const INTERACTIVE: i64 = 6;
    match tos >> 3 & 3 {
        0 => 0,
        1 => BULK,
        2 => INTERACTIVE,
        _ => INTERACTIVE_BULK,
    }
}
