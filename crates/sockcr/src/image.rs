//! A checkpoint as the message of an image, and back.

mod queue;

use self::queue::Waiting;
use crate::checkpoint::{Checkpoint, UnknownAttribute};
use crate::error::{Error, ErrorKind};
use crate::option::value::printable;
use crate::option::{self, Options, Row, Value, Wire, wire};
use crate::protocol::{self, Protocol};
use crate::report::{Note, Report};
use crate::state::descriptor::{Descriptor, Owner};
use crate::state::endpoint::Endpoint;
use crate::state::errors::Errors;
use crate::state::filter::{Filter, Program};
use crate::state::flow_labels::FlowLabel;
use crate::state::interfaces::Interfaces;
use crate::state::locks::BufferLocks;
use crate::state::membership::Membership;
use crate::state::shutdown::Shutdown;
use sockcr_image::Error as ImageError;
use sockcr_image::attribute::{Attribute, Attributes, Writer, attributes};
use sockcr_image::file::{self, Command, Message};
use sockcr_image::number;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

pub(crate) use self::queue::MOST_RECEIVED;
pub use sockcr_image::looks_like_image;

/// No image is larger, in bytes.
pub const MAX_IMAGE: u64 = file::MAX_IMAGE as u64;

const SS_UNCONNECTED: u32 = 1;
const SS_CONNECTED: u32 = 3;

/// Writes an image that holds these sockets.
pub fn encode(checkpoints: &[Checkpoint]) -> Result<Vec<u8>, Error> {
    let mut all = Vec::with_capacity(checkpoints.len());
    for (checkpoint, socket) in checkpoints.iter().zip(1..) {
        all.extend(messages(checkpoint, socket)?);
    }
    Ok(file::encode(&all)?)
}

/// A socket as the messages of an image, in which it is number `socket`: the DUMP, and a QUEUE for each thing
/// that waits in it.
pub fn messages(checkpoint: &Checkpoint, socket: u32) -> Result<Vec<Message>, Error> {
    let message = |command, attributes| Message {
        command,
        socket,
        attributes,
    };
    let dump = message(Command::Dump, to_attributes(checkpoint)?);
    let queue = waiting(checkpoint).map(|piece| Ok(message(Command::Queue, piece?)));
    std::iter::once(Ok(dump)).chain(queue).collect()
}

/// What waits in a socket, in the order of [`queue::Waiting`].
fn waiting(checkpoint: &Checkpoint) -> impl Iterator<Item = Result<Vec<u8>, ImageError>> {
    let received = checkpoint.receive_queue.iter().map(queue::from_datagram);
    let corked = checkpoint.cork.iter().map(queue::from_cork);
    let errors = checkpoint.errors.queue.iter().map(queue::from_error);
    received.chain(corked).chain(errors)
}

/// Reads an image: verified as a whole before anything of it is used.
pub fn decode(image: &[u8]) -> Result<Vec<Checkpoint>, Error> {
    let mut checkpoints: Vec<Checkpoint> = Vec::new();
    for message in file::decode(image)? {
        let wrong = |why: String| {
            let socket = format!("image: socket {}", message.socket);
            Error::new(ErrorKind::BadInput, socket, why)
        };
        match (message.command, checkpoints.last_mut()) {
            (Command::Dump, _) => {
                checkpoints.push(from_attributes(message.attributes).map_err(wrong)?);
            }
            (Command::Queue, Some(last)) => {
                let waiting = queue::read(message.attributes).map_err(wrong)?;
                add(last, waiting).map_err(wrong)?;
            }
            _ => return Err(wrong("asks for a restore; an image holds dumps".into())),
        }
    }
    Ok(checkpoints)
}

fn add(checkpoint: &mut Checkpoint, waiting: Waiting) -> Result<(), String> {
    let late = !checkpoint.errors.queue.is_empty();
    match waiting {
        Waiting::Error(entry) => checkpoint.errors.queue.push(entry),
        Waiting::Corked(corked) if !late && checkpoint.cork.is_none() => {
            checkpoint.cork = Some(corked);
        }
        Waiting::Received(datagram) if !queue::can_have_come(&datagram, checkpoint.protocol) => {
            return Err("a queued datagram that cannot be".into());
        }
        Waiting::Received(datagram) if !late && checkpoint.cork.is_none() => {
            checkpoint.receive_queue.push(datagram);
        }
        _ => return Err("a QUEUE message stands out of order".into()),
    }
    Ok(())
}

impl Checkpoint {
    /// As an image of one socket.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        encode(std::slice::from_ref(self))
    }

    /// From an image of one socket.
    pub fn from_bytes(image: &[u8]) -> Result<Checkpoint, Error> {
        let mut checkpoints = decode(image)?;
        match (checkpoints.pop(), checkpoints.len()) {
            (Some(checkpoint), 0) => Ok(checkpoint),
            (_, more) => {
                let why = format!("holds {} sockets, not one", more + 1);
                Err(Error::new(ErrorKind::BadInput, "image", why).help("use image::decode"))
            }
        }
    }
}

/// Attributes on their way into a message, to be written in the order of their numbers.
#[derive(Default)]
struct Pieces(Vec<(u16, Piece)>);

enum Piece {
    Plain(Vec<u8>),
    Nested(Vec<u8>),
}

impl Pieces {
    fn plain(&mut self, number: u16, payload: impl Into<Vec<u8>>) {
        self.0.push((number, Piece::Plain(payload.into())));
    }

    fn word(&mut self, number: u16, word: u32) {
        self.plain(number, word.to_ne_bytes());
    }

    fn flag(&mut self, number: u16, on: bool) {
        if on {
            self.plain(number, []);
        }
    }

    fn nested(&mut self, number: u16, inner: Writer) {
        self.0.push((number, Piece::Nested(inner.finish())));
    }

    fn write(mut self) -> Result<Vec<u8>, ImageError> {
        self.0.sort_by_key(|(number, _)| *number);
        let mut writer = Writer::new();
        for (number, piece) in self.0 {
            match piece {
                Piece::Plain(payload) => writer.put(number, &payload)?,
                Piece::Nested(payload) => writer.put_nested(number, &payload)?,
            }
        }
        Ok(writer.finish())
    }
}

/// The attributes of the message, in the order of their numbers.
fn to_attributes(checkpoint: &Checkpoint) -> Result<Vec<u8>, ImageError> {
    let mut pieces = Pieces::default();
    if let Some(inode) = checkpoint.inode {
        pieces.word(number::INODE, inode);
    }
    if let Some(fd) = checkpoint.fd {
        pieces.word(number::SOCK_FD, fd);
    }
    let protocol = checkpoint.protocol;
    pieces.word(number::SOCK_TYPE, protocol.socket_type);
    pieces.word(number::FAMILY, protocol.family);
    pieces.word(number::PROTOCOL, protocol.number);
    put_endpoint(&mut pieces, checkpoint);
    pieces.flag(number::SOCKOPT_SNDBUF_ULOCK, checkpoint.buffer_locks.send);
    pieces.flag(
        number::SOCKOPT_RCVBUF_ULOCK,
        checkpoint.buffer_locks.receive,
    );
    for (row, value) in checkpoint.options.iter() {
        put_option(&mut pieces, row, value);
    }
    put_memberships(&mut pieces, &checkpoint.memberships)?;
    if !checkpoint.flow_labels.is_empty() {
        let leases = checkpoint.flow_labels.iter().map(lease_bytes);
        pieces.plain(number::FLOW_LABELS, leases.flatten().collect::<Vec<u8>>());
    }
    for (filter, classic, extended) in [
        (&checkpoint.filter, number::FILTER, number::FILTER_PROGRAM),
        (
            &checkpoint.reuseport_program,
            number::REUSEPORT_FILTER,
            number::REUSEPORT_PROGRAM,
        ),
    ] {
        match filter {
            Some(Filter::Classic(code)) => pieces.plain(classic, code.concat()),
            Some(Filter::Program(program)) => pieces.plain(extended, program_bytes(program)),
            None => {}
        }
    }
    if checkpoint.errors.pending != 0 {
        pieces.word(number::PENDING_ERROR, checkpoint.errors.pending as u32);
    }
    if let Some(descriptor) = &checkpoint.descriptor {
        put_descriptor(&mut pieces, descriptor);
    }
    if let Some(shutdown) = checkpoint.shutdown {
        pieces.plain(number::SHUTDOWN, [shutdown.bits()]);
    }
    put_interfaces(&mut pieces, &checkpoint.interfaces)?;
    put_notes(
        &mut pieces,
        number::NOT_CARRIED,
        &checkpoint.report.not_carried,
    )?;
    put_notes(&mut pieces, number::ASSUMED, &checkpoint.report.assumed)?;
    if let Some(index) = checkpoint.reuseport_index {
        pieces.word(number::REUSEPORT_INDEX, index);
    }
    if checkpoint.in_flight != 0 {
        pieces.word(number::IN_FLIGHT, checkpoint.in_flight);
    }
    if checkpoint.drops != 0 {
        pieces.plain(number::DROPS, checkpoint.drops.to_ne_bytes());
    }
    for unknown in &checkpoint.unknown {
        let payload = unknown.payload.clone();
        let piece = match unknown.nested {
            true => Piece::Nested(payload),
            false => Piece::Plain(payload),
        };
        pieces.0.push((unknown.number, piece));
    }
    pieces.write()
}

fn lease_bytes(lease: &FlowLabel) -> [u8; 24] {
    let mut bytes = [0; 24];
    let parts = [&lease.label.to_ne_bytes()[..], &lease.to.octets()].concat();
    let rest = [&lease.linger.to_ne_bytes()[..], &[lease.share, 0]].concat();
    for (to, from) in bytes.iter_mut().zip(parts.into_iter().chain(rest)) {
        *to = from;
    }
    bytes
}

fn program_bytes(program: &Program) -> Vec<u8> {
    let mut bytes = program.id.to_ne_bytes().to_vec();
    bytes.extend(program.tag);
    bytes.extend(program.boot);
    bytes.extend(program.name.as_bytes());
    bytes
}

fn put_endpoint(pieces: &mut Pieces, checkpoint: &Checkpoint) {
    let endpoint = &checkpoint.endpoint;
    let (bind, peer_number) = match checkpoint.protocol.is_ipv6() {
        true => (number::BIND6, number::PEER6),
        false => (number::UDP_BIND, number::UDP_PEER),
    };
    let state = match endpoint.peer {
        Some(_) => SS_CONNECTED,
        None => SS_UNCONNECTED,
    };
    pieces.word(number::SOCK_STATE, state);
    if endpoint.local != Endpoint::unbound(checkpoint.protocol).local {
        pieces.plain(bind, sockaddr(endpoint.local));
    }
    pieces.flag(number::UDP_BIND_ADDR_ULOCK, endpoint.address_locked);
    pieces.flag(number::UDP_BIND_PORT_ULOCK, endpoint.port_locked);
    if let Some(peer) = endpoint.peer {
        pieces.plain(peer_number, sockaddr(peer));
    }
    if let Some(source) = endpoint.source {
        pieces.plain(number::SOURCE, octets(source));
    }
    if let Some(heard) = endpoint.heard {
        pieces.plain(number::HEARD, octets(heard));
    }
}

fn put_option(pieces: &mut Pieces, row: &Row, value: &Value) {
    if let Some(payload) = wire::payload(row, value) {
        pieces.plain(row.attribute, payload);
    }
    if let (Wire::MulticastInterface, Value::Pair(_, index)) = (row.wire, value)
        && *index != 0
    {
        pieces.word(number::MULTICAST_IFINDEX, *index as u32);
    }
}

fn put_memberships(pieces: &mut Pieces, memberships: &[Membership]) -> Result<(), ImageError> {
    if memberships.is_empty() {
        return Ok(());
    }
    let mut inner = Writer::new();
    for membership in memberships {
        let interface = membership.interface.to_ne_bytes();
        match membership.group {
            IpAddr::V4(group) => {
                let mreqn = [group.octets(), membership.address.octets(), interface];
                inner.put(number::IPOPT_MREQ, &mreqn.concat())?;
            }
            IpAddr::V6(group) => {
                let anycast = u32::from(membership.anycast).to_ne_bytes();
                let mreq = [&group.octets()[..], &interface, &anycast];
                inner.put(number::MREQ6, &mreq.concat())?;
            }
        }
        if membership.include || !membership.sources.is_empty() {
            let mut filter = u32::from(membership.include).to_ne_bytes().to_vec();
            filter.extend(membership.sources.iter().flat_map(|source| octets(*source)));
            inner.put(number::MEMBERSHIP_FILTER, &filter)?;
        }
    }
    pieces.nested(number::IPOPT_MEMBERSHIP, inner);
    Ok(())
}

fn put_descriptor(pieces: &mut Pieces, descriptor: &Descriptor) {
    let (kind, id) = descriptor.owner.to_numbers();
    let owner = [kind.to_ne_bytes(), id.to_ne_bytes()];
    pieces.word(number::DESCRIPTOR_FLAGS, descriptor.bits());
    pieces.plain(number::OWNER, owner.concat());
    pieces.word(number::SIGNAL, descriptor.signal as u32);
}

fn put_interfaces(pieces: &mut Pieces, interfaces: &Interfaces) -> Result<(), ImageError> {
    let mut inner = Writer::new();
    for (index, name) in interfaces.iter() {
        let entry = [&index.to_ne_bytes(), name.as_bytes()].concat();
        inner.put(number::INTERFACE, &entry)?;
    }
    if interfaces.iter().next().is_some() {
        pieces.nested(number::INTERFACES, inner);
    }
    Ok(())
}

fn put_notes(pieces: &mut Pieces, number: u16, notes: &[Note]) -> Result<(), ImageError> {
    for note in notes {
        let mut inner = Writer::new();
        inner.str(number::WHAT, &note.what)?;
        inner.str(number::REASON, &note.reason)?;
        pieces.nested(number, inner);
    }
    Ok(())
}

/// `struct sockaddr_in` or `sockaddr_in6`.
fn sockaddr(address: SocketAddr) -> Vec<u8> {
    let family: u16 = if address.is_ipv6() { 10 } else { 2 };
    let mut bytes = family.to_ne_bytes().to_vec();
    bytes.extend(address.port().to_be_bytes());
    match address {
        SocketAddr::V4(address) => {
            bytes.extend(address.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(address) => {
            bytes.extend(address.flowinfo().to_be_bytes());
            bytes.extend(address.ip().octets());
            bytes.extend([0; 4]);
        }
    }
    bytes
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

/// Reads the attributes of a message.
///
/// Only what [`to_attributes`] would write is accepted, so that an image is the same whoever
/// wrote it.
fn from_attributes(bytes: &[u8]) -> Result<Checkpoint, String> {
    let mut read = Reading::default();
    let mut last = 0;
    for attribute in attributes(bytes) {
        let attribute = attribute.map_err(|error| error.to_string())?;
        let number = attribute.number;
        if number < last {
            return Err(format!(
                "attribute {number} stands after {last}, out of order"
            ));
        }
        let repeats = [number::NOT_CARRIED, number::ASSUMED].contains(&number);
        if number == last && !repeats {
            return Err(format!("attribute {number} is there twice"));
        }
        last = number;
        read.attribute(&attribute)
            .map_err(|error| error.to_string())?;
    }
    let checkpoint = read.finish()?;
    match to_attributes(&checkpoint) {
        Ok(again) if again == bytes => Ok(checkpoint),
        _ => Err("says something twice over, or against itself".into()),
    }
}

#[derive(Default)]
struct Reading {
    inode: Option<u32>,
    fd: Option<u32>,
    state: Option<u32>,
    socket_type: Option<u32>,
    family: Option<u32>,
    protocol: Option<u32>,
    values: Vec<(&'static Row, Value)>,
    multicast_index: u32,
    locks: BufferLocks,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    source: Option<IpAddr>,
    heard: Option<IpAddr>,
    address_locked: bool,
    port_locked: bool,
    flow_labels: Vec<FlowLabel>,
    memberships: Vec<Membership>,
    filter: Option<Filter>,
    reuseport_program: Option<Filter>,
    pending_error: i32,
    in_flight: u32,
    drops: u64,
    descriptor: Descriptor,
    descriptor_parts: u32,
    shutdown: Option<Shutdown>,
    interfaces: Interfaces,
    reuseport_index: Option<u32>,
    report: Report,
    unknown: Vec<UnknownAttribute>,
}

impl Reading {
    fn attribute(&mut self, attribute: &Attribute<'_>) -> Result<(), ImageError> {
        match attribute.number {
            number::INODE => self.inode = Some(attribute.as_u32()?),
            number::SOCK_FD => self.fd = Some(attribute.as_u32()?),
            number::SOCK_STATE => self.state = Some(attribute.as_u32()?),
            number::SOCK_TYPE => self.socket_type = Some(attribute.as_u32()?),
            number::FAMILY => self.family = Some(attribute.as_u32()?),
            number::PROTOCOL => self.protocol = Some(attribute.as_u32()?),
            number::UDP_BIND | number::BIND6 => self.local = Some(address(attribute)?),
            number::UDP_PEER | number::PEER6 => self.peer = Some(peer(attribute)?),
            number::UDP_BIND_ADDR_ULOCK => {
                attribute.as_flag()?;
                self.address_locked = true;
            }
            number::UDP_BIND_PORT_ULOCK => {
                attribute.as_flag()?;
                self.port_locked = true;
            }
            number::SOURCE => self.source = Some(ip(attribute)?),
            number::HEARD => self.heard = Some(ip(attribute)?),
            number::SOCKOPT_SNDBUF_ULOCK => {
                attribute.as_flag()?;
                self.locks.send = true;
            }
            number::SOCKOPT_RCVBUF_ULOCK => {
                attribute.as_flag()?;
                self.locks.receive = true;
            }
            number::FLOW_LABELS => self.flow_labels = leases(attribute)?,
            number::IPOPT_MEMBERSHIP => self.memberships = memberships(attribute)?,
            number::MULTICAST_IFINDEX => self.multicast_index = attribute.as_u32()?,
            number::INTERFACES => self.interfaces = interfaces(attribute)?,
            number::FILTER => self.filter = Some(filter(attribute)?),
            number::FILTER_PROGRAM => self.filter = Some(program(attribute)?),
            number::REUSEPORT_FILTER if attribute.payload.is_empty() => {
                return Err(attribute.invalid("holds no instruction"));
            }
            number::REUSEPORT_FILTER => self.reuseport_program = Some(filter(attribute)?),
            number::REUSEPORT_PROGRAM => self.reuseport_program = Some(program(attribute)?),
            number::PENDING_ERROR => self.pending_error = attribute.as_u32()? as i32,
            number::IN_FLIGHT => self.in_flight = attribute.as_u32()?,
            number::DROPS => self.drops = u64::from_ne_bytes(attribute.as_array()?),
            number::SHUTDOWN => {
                self.shutdown = Some(Shutdown::from_bits(attribute.as_u8()?));
            }
            number::DESCRIPTOR_FLAGS | number::OWNER | number::SIGNAL => {
                self.descriptor_parts += 1;
                descriptor(&mut self.descriptor, attribute)?;
            }
            number::NOT_CARRIED => self.report.not_carried.push(note(attribute)?),
            number::ASSUMED => self.report.assumed.push(note(attribute)?),
            number::REUSEPORT_INDEX => self.reuseport_index = Some(attribute.as_u32()?),
            number => match option::rows().find(|r| r.attribute == number && r.carried()) {
                Some(row) => self.values.push((row, wire::value(row, attribute)?)),
                None => self.unknown.push(UnknownAttribute {
                    number,
                    nested: attribute.nested,
                    payload: attribute.payload.to_vec(),
                }),
            },
        }
        Ok(())
    }

    fn finish(self) -> Result<Checkpoint, String> {
        let protocol = self.protocol()?;
        if self.state.is_none() {
            return Err("SOCK_STATE (attribute 2) is missing".into());
        }
        Ok(Checkpoint {
            inode: self.inode,
            fd: self.fd,
            protocol,
            options: self.options(protocol),
            buffer_locks: self.locks,
            endpoint: self.endpoint(protocol)?,
            flow_labels: self.flow_labels,
            memberships: self.memberships,
            filter: self.filter,
            reuseport_program: self.reuseport_program,
            receive_queue: Vec::new(),
            cork: None,
            errors: Errors {
                pending: self.pending_error,
                queue: Vec::new(),
            },
            descriptor: (self.descriptor_parts == 3).then_some(self.descriptor),
            shutdown: self.shutdown,
            interfaces: self.interfaces,
            reuseport_index: self.reuseport_index,
            in_flight: self.in_flight,
            drops: self.drops,
            report: self.report,
            unknown: self.unknown,
        })
    }

    /// Every address is of the family of the socket.
    fn endpoint(&self, protocol: &Protocol) -> Result<Endpoint, String> {
        let ips = [self.local, self.peer].into_iter().flatten();
        let ips = ips.map(|address| address.ip());
        let mut ips = ips.chain(self.source).chain(self.heard);
        if !ips.all(|ip| ip.is_ipv6() == protocol.is_ipv6()) {
            return Err("has an address of another family than the socket".into());
        }
        if protocol.is_raw()
            && (self.local.is_some_and(|local| local.port() != 0) || self.port_locked)
        {
            return Err("has a port, and is a raw socket".into());
        }
        if self.heard.is_some() && self.peer.is_some() {
            return Err("has a peer and a former one".into());
        }
        if self.heard.is_some() && !protocol.is_ipv6() {
            return Err("has a former peer, and does not speak IPv6".into());
        }
        let unbound = Endpoint::unbound(protocol);
        Ok(Endpoint {
            local: self.local.unwrap_or(unbound.local),
            peer: self.peer,
            address_locked: self.address_locked,
            port_locked: self.port_locked,
            source: self.source,
            heard: self.heard,
        })
    }

    fn protocol(&self) -> Result<&'static Protocol, String> {
        let missing = |number: u16| format!("attribute {number} is missing");
        let family = self.family.ok_or_else(|| missing(number::FAMILY))?;
        let kind = self.socket_type.ok_or_else(|| missing(number::SOCK_TYPE))?;
        let number = self.protocol.ok_or_else(|| missing(number::PROTOCOL))?;
        protocol::find(family, kind, number).ok_or_else(|| {
            let kind = protocol::describe(family, kind, number);
            format!("is of a kind that is not carried yet: {kind}")
        })
    }

    /// In the order of the rows; a flag of the RFC that is absent is off.
    fn options(&self, protocol: &Protocol) -> Options {
        let mut options = Options::default();
        for row in protocol.carried() {
            let found = self.values.iter().find(|(have, _)| *have == row);
            let value = match (found, row.wire) {
                (Some((_, Value::Pair(address, _))), Wire::MulticastInterface) => {
                    Some(Value::Pair(*address, self.multicast_index.into()))
                }
                (Some((_, value)), _) => Some(value.clone()),
                (None, Wire::Flag) => Some(Value::Int(0)),
                (None, _) => None,
            };
            if let Some(value) = value {
                options.push(row, value);
            }
        }
        options
    }
}

/// The peer alone has a flow label.
fn address(attribute: &Attribute<'_>) -> Result<SocketAddr, ImageError> {
    match peer(attribute)? {
        SocketAddr::V6(v6) if v6.flowinfo() != 0 => Err(attribute.invalid("has a flow label")),
        address => Ok(address),
    }
}

fn peer(attribute: &Attribute<'_>) -> Result<SocketAddr, ImageError> {
    let read = || match *attribute.payload {
        [_, _, p0, p1, a, b, c, d, _, _, _, _, _, _, _, _] => {
            let port = u16::from_be_bytes([p0, p1]);
            Some(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), port))
        }
        [_, _, p0, p1, f0, f1, f2, f3, ref rest @ ..] => {
            let (ip, scope) = rest.split_first_chunk::<16>()?;
            let flow = u32::from_be_bytes([f0, f1, f2, f3]);
            let (ip, port) = (Ipv6Addr::from(*ip), u16::from_be_bytes([p0, p1]));
            (scope.len() == 4).then(|| SocketAddrV6::new(ip, port, flow, 0).into())
        }
        _ => None,
    };
    read()
        .filter(|address| sockaddr(*address) == attribute.payload)
        .ok_or_else(|| attribute.invalid("is no IP address and port"))
}

fn ip(attribute: &Attribute<'_>) -> Result<IpAddr, ImageError> {
    match attribute.payload.len() {
        4 => Ok(attribute.as_array::<4>()?.into()),
        _ => Ok(attribute.as_array::<16>()?.into()),
    }
}

fn nested<'a>(attribute: &Attribute<'a>) -> Result<Attributes<'a>, ImageError> {
    match attribute.nested {
        true => Ok(attribute.nested()),
        false => Err(attribute.invalid("does not say that it holds attributes")),
    }
}

fn memberships(attribute: &Attribute<'_>) -> Result<Vec<Membership>, ImageError> {
    let mut memberships: Vec<Membership> = Vec::new();
    for inner in nested(attribute)? {
        let inner = inner?;
        match (inner.number, memberships.last_mut()) {
            (number::IPOPT_MREQ, _) => memberships.push(membership(&inner)?),
            (number::MREQ6, _) => memberships.push(membership6(&inner)?),
            (number::MEMBERSHIP_FILTER, Some(last)) => sources(last, &inner)?,
            _ => return Err(inner.invalid("has no place among memberships")),
        }
    }
    Ok(memberships)
}

fn membership(attribute: &Attribute<'_>) -> Result<Membership, ImageError> {
    let bytes = attribute.as_array::<12>()?;
    let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
    let interface = u32::from_ne_bytes([i, j, k, l]);
    Ok(Membership {
        address: [e, f, g, h].into(),
        ..Membership::of(interface, IpAddr::from([a, b, c, d]))
    })
}

fn membership6(attribute: &Attribute<'_>) -> Result<Membership, ImageError> {
    let bytes = attribute.as_array::<24>()?;
    let (group, rest) = bytes.split_first_chunk::<16>().unwrap_or((&[0; 16], &[]));
    let words = rest
        .as_chunks::<4>()
        .0
        .iter()
        .map(|word| u32::from_ne_bytes(*word));
    match words.collect::<Vec<_>>()[..] {
        [interface, anycast @ (0 | 1)] => Ok(Membership {
            anycast: anycast == 1,
            ..Membership::of(interface, IpAddr::from(*group))
        }),
        _ => Err(attribute.invalid("is no membership")),
    }
}

fn sources(membership: &mut Membership, attribute: &Attribute<'_>) -> Result<(), ImageError> {
    let wrong = || attribute.invalid("is no mode and addresses");
    let (mode, rest) = attribute.payload.split_first_chunk().ok_or_else(wrong)?;
    let sources: Option<Vec<IpAddr>> = match membership.group {
        IpAddr::V4(_) => addresses::<4>(rest),
        IpAddr::V6(_) => addresses::<16>(rest),
    };
    match (u32::from_ne_bytes(*mode), sources, membership.anycast) {
        (mode @ (0 | 1), Some(sources), false) => {
            membership.include = mode == 1;
            membership.sources = sources;
            Ok(())
        }
        _ => Err(wrong()),
    }
}

fn addresses<const N: usize>(bytes: &[u8]) -> Option<Vec<IpAddr>>
where
    IpAddr: From<[u8; N]>,
{
    let (addresses, rest) = bytes.as_chunks::<N>();
    rest.is_empty()
        .then(|| addresses.iter().map(|address| (*address).into()).collect())
}

fn leases(attribute: &Attribute<'_>) -> Result<Vec<FlowLabel>, ImageError> {
    const MOST: u32 = 0xf_ffff;
    let (leases, rest) = attribute.payload.as_chunks::<24>();
    let read = |bytes: &[u8; 24]| {
        let (label, rest) = bytes.split_first_chunk()?;
        let (to, rest) = rest.split_first_chunk::<16>()?;
        let [l0, l1, share, _] = *rest.first_chunk()?;
        Some(FlowLabel {
            label: u32::from_ne_bytes(*label),
            to: Ipv6Addr::from(*to),
            share,
            linger: u16::from_ne_bytes([l0, l1]),
        })
    };
    let all: Option<Vec<FlowLabel>> = leases.iter().map(read).collect();
    let sound = |all: &Vec<FlowLabel>| !all.is_empty() && all.iter().all(|one| one.label <= MOST);
    all.filter(sound)
        .filter(|_| rest.is_empty())
        .ok_or_else(|| attribute.invalid("is no list of flow labels"))
}

fn interfaces(attribute: &Attribute<'_>) -> Result<Interfaces, ImageError> {
    let mut interfaces = Interfaces::default();
    for inner in nested(attribute)? {
        let inner = inner?;
        let entry = inner.payload.split_first_chunk::<4>();
        let entry = entry.and_then(|(index, name)| {
            let name = std::str::from_utf8(name).ok()?;
            let fits = name.len() < 16 && printable(name);
            fits.then(|| (u32::from_ne_bytes(*index), name))
        });
        let wrong = || inner.invalid("is no index and name of a device");
        let (index, name) = entry
            .filter(|_| inner.number == number::INTERFACE)
            .ok_or_else(wrong)?;
        if index == 0 || !interfaces.insert(index, name) {
            return Err(wrong());
        }
    }
    Ok(interfaces)
}

fn filter(attribute: &Attribute<'_>) -> Result<Filter, ImageError> {
    let instructions = attribute.payload.chunks(8).map(<[u8; 8]>::try_from);
    let code: Result<Vec<[u8; 8]>, _> = instructions.collect();
    code.map(Filter::Classic)
        .map_err(|_| attribute.invalid("is no whole number of instructions"))
}

fn program(attribute: &Attribute<'_>) -> Result<Filter, ImageError> {
    let read = || {
        let (id, rest) = attribute.payload.split_first_chunk()?;
        let (tag, rest) = rest.split_first_chunk()?;
        let (boot, name) = rest.split_first_chunk()?;
        let name = std::str::from_utf8(name).ok()?;
        let fits = name.len() < 16 && printable(name);
        fits.then(|| Program {
            id: u32::from_ne_bytes(*id),
            tag: *tag,
            boot: *boot,
            name: name.into(),
        })
    };
    let wrong = || attribute.invalid("is no eBPF program");
    read().map(Filter::Program).ok_or_else(wrong)
}

fn descriptor(descriptor: &mut Descriptor, attribute: &Attribute<'_>) -> Result<(), ImageError> {
    match attribute.number {
        number::DESCRIPTOR_FLAGS => descriptor.set_bits(attribute.as_u32()?),
        number::SIGNAL => descriptor.signal = attribute.as_u32()? as i32,
        _ => {
            let [a, b, c, d, e, f, g, h] = attribute.as_array::<8>()?;
            let kind = u32::from_ne_bytes([a, b, c, d]);
            descriptor.owner = Owner::from_numbers(kind, i32::from_ne_bytes([e, f, g, h]))
                .ok_or_else(|| attribute.invalid("is no kind of owner"))?;
        }
    }
    Ok(())
}

fn note(attribute: &Attribute<'_>) -> Result<Note, ImageError> {
    let mut note = Note::new("", "");
    for inner in nested(attribute)? {
        let inner = inner?;
        match inner.number {
            number::WHAT | number::REASON if !printable(inner.as_str()?) => {
                return Err(inner.invalid("has control characters"));
            }
            number::WHAT => note.what = inner.as_str()?.into(),
            number::REASON => note.reason = inner.as_str()?.into(),
            _ => return Err(inner.invalid("has no place in a note")),
        }
    }
    Ok(note)
}
