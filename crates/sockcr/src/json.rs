//! Checkpoints as JSON, and back: each other's inverse.
//!
//! docs/format.md describes the shape. Option names are the kernel's, values in the kernel's unit.

mod queue;

use self::queue::{CorkJson, DatagramJson, ErrorJson, is_default};
use crate::checkpoint::{Checkpoint, UnknownAttribute};
use crate::error::{Error, ErrorKind};
use crate::hex;
use crate::option::{self, Options};
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
use crate::target::parse_address;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    sockets: Vec<Socket>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Socket {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inode: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fd: Option<u32>,
    family: String,
    #[serde(rename = "type")]
    socket_type: String,
    protocol: String,
    state: String,
    endpoint: EndpointJson,
    buffer_locks: LocksJson,
    options: Map<String, Json>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    flow_labels: Vec<FlowLabel>,
    memberships: Vec<MembershipJson>,
    filter: Option<FilterJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reuseport_program: Option<FilterJson>,
    #[serde(default)]
    receive_queue: Vec<DatagramJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cork: Option<CorkJson>,
    #[serde(default, skip_serializing_if = "is_default")]
    pending_error: i32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    error_queue: Vec<ErrorJson>,
    descriptor: Option<DescriptorJson>,
    shutdown: Option<Shutdown>,
    interfaces: Vec<InterfaceJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reuseport_index: Option<u32>,
    #[serde(default, skip_serializing_if = "is_default")]
    in_flight: u32,
    #[serde(default, skip_serializing_if = "is_default")]
    drops: u64,
    not_carried: Vec<Note>,
    assumed: Vec<Note>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unknown: Vec<UnknownJson>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EndpointJson {
    local: String,
    peer: Option<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    peer_flow: u32,
    address_locked: bool,
    port_locked: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    heard: Option<IpAddr>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LocksJson {
    send: bool,
    receive: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MembershipJson {
    group: IpAddr,
    interface: Json,
    address: Ipv4Addr,
    mode: String,
    sources: Vec<IpAddr>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum FilterJson {
    Classic(Vec<String>),
    Program(ProgramJson),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProgramJson {
    program: u32,
    name: String,
    tag: String,
    boot: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DescriptorJson {
    nonblock: bool,
    #[serde(rename = "async")]
    asynchronous: bool,
    close_on_exec: bool,
    owner: String,
    signal: i32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InterfaceJson {
    index: u32,
    name: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnknownJson {
    attribute: u16,
    nested: bool,
    data: String,
}

/// The JSON of these sockets.
pub fn to_json(checkpoints: &[Checkpoint]) -> Json {
    let sockets: Vec<Socket> = checkpoints.iter().map(to_socket).collect();
    json!(Document { format: 1, sockets })
}

/// Reads what [`to_json`] wrote, or a person changed.
pub fn from_json(text: &str) -> Result<Vec<Checkpoint>, Error> {
    let bad = |why: String| Error::new(ErrorKind::BadInput, "JSON", why);
    let document: Document = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
    if document.format != 1 {
        return Err(bad(format!(
            "format {} is not known, only 1",
            document.format
        )));
    }
    let sockets = document.sockets.into_iter().zip(1..);
    let checkpoints = sockets.map(|(socket, ordinal)| {
        from_socket(socket)
            .and_then(fits)
            .map_err(|why| bad(format!("socket {ordinal}: {why}")))
    });
    checkpoints.collect()
}

/// A number that is too large for its attribute would be cut when it is written.
fn fits(checkpoint: Checkpoint) -> Result<Checkpoint, String> {
    let again = checkpoint
        .to_bytes()
        .and_then(|image| Checkpoint::from_bytes(&image))
        .map_err(|error| error.to_string())?;
    if again == checkpoint {
        return Ok(checkpoint);
    }
    match crate::diff::diff(&checkpoint, &again).first() {
        Some(difference) => Err(format!("{}: does not fit", difference.what)),
        None => Ok(checkpoint),
    }
}

fn to_socket(checkpoint: &Checkpoint) -> Socket {
    let interfaces = &checkpoint.interfaces;
    let options = checkpoint.options.iter().map(|(row, value)| {
        let json = row.kind.to_json(value, interfaces);
        (row.name.to_owned(), json)
    });
    let endpoint = checkpoint.endpoint;
    Socket {
        inode: checkpoint.inode,
        fd: checkpoint.fd,
        family: checkpoint.protocol.family_name.into(),
        socket_type: checkpoint.protocol.type_name.into(),
        protocol: checkpoint.protocol.to_string(),
        state: state(&endpoint).into(),
        endpoint: EndpointJson {
            local: checkpoint.shown(&endpoint.local),
            peer: endpoint.peer.map(|peer| checkpoint.shown(&peer)),
            peer_flow: flow(endpoint.peer),
            address_locked: endpoint.address_locked,
            port_locked: endpoint.port_locked,
            source: endpoint.source,
            heard: endpoint.heard,
        },
        buffer_locks: LocksJson {
            send: checkpoint.buffer_locks.send,
            receive: checkpoint.buffer_locks.receive,
        },
        options: options.collect(),
        flow_labels: checkpoint.flow_labels.clone(),
        memberships: checkpoint
            .memberships
            .iter()
            .map(|membership| to_membership(membership, interfaces))
            .collect(),
        filter: checkpoint.filter.as_ref().map(to_filter),
        reuseport_program: checkpoint.reuseport_program.as_ref().map(to_filter),
        receive_queue: checkpoint
            .receive_queue
            .iter()
            .map(|datagram| queue::to_datagram(datagram, interfaces))
            .collect(),
        cork: checkpoint
            .cork
            .as_ref()
            .map(|corked| queue::to_cork(corked, interfaces)),
        pending_error: checkpoint.errors.pending,
        error_queue: checkpoint
            .errors
            .queue
            .iter()
            .map(|entry| queue::to_error(entry, interfaces))
            .collect(),
        descriptor: checkpoint.descriptor.as_ref().map(to_descriptor),
        shutdown: checkpoint.shutdown,
        interfaces: interfaces
            .iter()
            .map(|(index, name)| InterfaceJson {
                index,
                name: name.into(),
            })
            .collect(),
        reuseport_index: checkpoint.reuseport_index,
        in_flight: checkpoint.in_flight,
        drops: checkpoint.drops,
        not_carried: checkpoint.report.not_carried.clone(),
        assumed: checkpoint.report.assumed.clone(),
        unknown: checkpoint.unknown.iter().map(to_unknown).collect(),
    }
}

fn state(endpoint: &Endpoint) -> &'static str {
    match endpoint.peer {
        Some(_) => "connected",
        None => "unconnected",
    }
}

fn to_membership(membership: &Membership, interfaces: &Interfaces) -> MembershipJson {
    MembershipJson {
        group: membership.group,
        interface: interfaces.to_json(membership.interface),
        address: membership.address,
        mode: match (membership.anycast, membership.include) {
            (true, _) => "anycast",
            (false, true) => "include",
            (false, false) => "exclude",
        }
        .into(),
        sources: membership.sources.clone(),
    }
}

fn to_descriptor(descriptor: &Descriptor) -> DescriptorJson {
    DescriptorJson {
        nonblock: descriptor.nonblock,
        asynchronous: descriptor.asynchronous,
        close_on_exec: descriptor.close_on_exec,
        owner: match descriptor.owner {
            Owner::Nobody => "nobody".into(),
            Owner::Holder => "holder".into(),
            Owner::Process(id) => format!("process {id}"),
            Owner::Thread(id) => format!("thread {id}"),
            Owner::Group(id) => format!("group {id}"),
        },
        signal: descriptor.signal,
    }
}

fn to_unknown(unknown: &UnknownAttribute) -> UnknownJson {
    UnknownJson {
        attribute: unknown.number,
        nested: unknown.nested,
        data: hex::encode(&unknown.payload),
    }
}

fn from_socket(socket: Socket) -> Result<Checkpoint, String> {
    let kind = [&*socket.family, &*socket.socket_type, &*socket.protocol];
    let [family, socket_type, name] = kind;
    let protocol = protocol::named(family, socket_type, name)
        .ok_or_else(|| format!("a socket of {kind:?} is not carried"))?;
    let interfaces = from_interfaces(&socket.interfaces)?;
    let options = from_options(&socket.options, protocol, &interfaces)?;
    let address = |text: &String| {
        let (address, device) =
            parse_address(text).ok_or_else(|| format!("{text:?}: no address"))?;
        let bound = options.get("SO_BINDTODEVICE");
        match device.map(option::Value::Text) {
            Some(device) if bound != Some(&device) => {
                Err(format!("{text}: another device than SO_BINDTODEVICE"))
            }
            _ => Ok(address),
        }
    };
    let peer = socket.endpoint.peer.as_ref().map(address).transpose()?;
    let endpoint = Endpoint {
        local: address(&socket.endpoint.local)?,
        peer: with_flow(peer, socket.endpoint.peer_flow),
        address_locked: socket.endpoint.address_locked,
        port_locked: socket.endpoint.port_locked,
        source: socket.endpoint.source,
        heard: socket.endpoint.heard,
    };
    if socket.state != state(&endpoint) {
        return Err(format!("state {:?} does not fit the peer", socket.state));
    }
    let memberships = socket.memberships.iter();
    let unknown = socket.unknown.iter();
    Ok(Checkpoint {
        inode: socket.inode,
        fd: socket.fd,
        protocol,
        options,
        buffer_locks: BufferLocks {
            send: socket.buffer_locks.send,
            receive: socket.buffer_locks.receive,
        },
        endpoint,
        flow_labels: socket.flow_labels,
        memberships: memberships
            .map(|membership| from_membership(membership, &interfaces))
            .collect::<Result<_, _>>()?,
        filter: socket.filter.map(from_filter).transpose()?,
        reuseport_program: socket.reuseport_program.map(from_filter).transpose()?,
        receive_queue: socket
            .receive_queue
            .iter()
            .map(|datagram| queue::from_datagram(datagram, &interfaces))
            .collect::<Result<_, _>>()?,
        cork: socket
            .cork
            .map(|corked| queue::from_cork(&corked, &interfaces))
            .transpose()?,
        errors: Errors {
            pending: socket.pending_error,
            queue: socket
                .error_queue
                .iter()
                .map(|entry| queue::from_error(entry, &interfaces))
                .collect::<Result<_, _>>()?,
        },
        descriptor: socket.descriptor.map(from_descriptor).transpose()?,
        shutdown: socket.shutdown,
        interfaces,
        reuseport_index: socket.reuseport_index,
        in_flight: socket.in_flight,
        drops: socket.drops,
        report: Report {
            not_carried: socket.not_carried,
            assumed: socket.assumed,
        },
        unknown: unknown.map(from_unknown).collect::<Result<_, _>>()?,
    })
}

/// The flow label and traffic class of a connected socket, which no text of an address has.
fn flow(address: Option<SocketAddr>) -> u32 {
    match address {
        Some(SocketAddr::V6(address)) => address.flowinfo(),
        _ => 0,
    }
}

fn with_flow(address: Option<SocketAddr>, flow: u32) -> Option<SocketAddr> {
    address.map(|address| match address {
        SocketAddr::V6(v6) => SocketAddrV6::new(*v6.ip(), v6.port(), flow, v6.scope_id()).into(),
        v4 => v4,
    })
}

fn from_interfaces(entries: &[InterfaceJson]) -> Result<Interfaces, String> {
    let mut interfaces = Interfaces::default();
    for entry in entries {
        if entry.index == 0 || entry.name.len() > 15 || !interfaces.insert(entry.index, &entry.name)
        {
            return Err(format!(
                "interface {} {:?} is wrong",
                entry.index, entry.name
            ));
        }
    }
    Ok(interfaces)
}

fn from_options(
    options: &Map<String, Json>,
    protocol: &Protocol,
    interfaces: &Interfaces,
) -> Result<Options, String> {
    let mut read = Options::default();
    if let Some(name) = options
        .keys()
        .find(|name| !protocol.carried().any(|row| row.name == *name))
    {
        return Err(format!("{name} is no option that is carried"));
    }
    for row in protocol.carried() {
        if let Some(json) = options.get(row.name) {
            let value = row.kind.from_json(json, interfaces);
            let value = value.map_err(|why| format!("{}: {why}", row.name))?;
            read.push(row, value);
        } else if row.wire == option::Wire::Flag {
            read.push(row, option::Value::Int(0));
        }
    }
    Ok(read)
}

fn from_membership(json: &MembershipJson, interfaces: &Interfaces) -> Result<Membership, String> {
    let wrong = |what: &dyn std::fmt::Display| format!("membership {}: {what}", json.group);
    Ok(Membership {
        group: json.group,
        interface: interfaces.parse_json(&json.interface).ok_or_else(|| {
            wrong(&format!(
                "interface {} is not among interfaces",
                json.interface
            ))
        })?,
        address: json.address,
        anycast: json.mode == "anycast",
        include: match &*json.mode {
            "include" => true,
            "exclude" | "anycast" => false,
            mode => {
                return Err(wrong(&format!(
                    "mode {mode:?} is none of include, exclude, anycast"
                )));
            }
        },
        sources: json.sources.clone(),
    })
}

fn to_filter(filter: &Filter) -> FilterJson {
    match filter {
        Filter::Classic(code) => FilterJson::Classic(code.iter().map(|i| hex::encode(i)).collect()),
        Filter::Program(program) => FilterJson::Program(ProgramJson {
            program: program.id,
            name: program.name.clone(),
            tag: hex::encode(&program.tag),
            boot: hex::encode(&program.boot),
        }),
    }
}

fn from_filter(json: FilterJson) -> Result<Filter, String> {
    match json {
        FilterJson::Classic(code) => {
            let instruction = |text: &String| hex::decode(text)?.try_into().ok();
            let code: Option<Vec<[u8; 8]>> = code.iter().map(instruction).collect();
            code.map(Filter::Classic)
                .ok_or_else(|| "filter: an instruction is not 16 digits".into())
        }
        FilterJson::Program(json) => {
            let tag = hex::decode(&json.tag).and_then(|tag| tag.try_into().ok());
            let boot = hex::decode(&json.boot).and_then(|boot| boot.try_into().ok());
            Ok(Filter::Program(Program {
                id: json.program,
                tag: tag.ok_or("filter: tag is not 16 digits")?,
                boot: boot.ok_or("filter: boot is not 32 digits")?,
                name: json.name,
            }))
        }
    }
}

fn from_descriptor(json: DescriptorJson) -> Result<Descriptor, String> {
    let owner = match json.owner.split_once(' ') {
        None if json.owner == "nobody" => Some(Owner::Nobody),
        None if json.owner == "holder" => Some(Owner::Holder),
        Some(("process", id)) => id.parse().ok().map(Owner::Process),
        Some(("thread", id)) => id.parse().ok().map(Owner::Thread),
        Some(("group", id)) => id.parse().ok().map(Owner::Group),
        _ => None,
    };
    Ok(Descriptor {
        nonblock: json.nonblock,
        asynchronous: json.asynchronous,
        close_on_exec: json.close_on_exec,
        owner: owner.ok_or_else(|| format!("owner {:?} is wrong", json.owner))?,
        signal: json.signal,
    })
}

fn from_unknown(json: &UnknownJson) -> Result<UnknownAttribute, String> {
    let payload = hex::decode(&json.data);
    let wrong = || format!("attribute {}: data is not hexadecimal", json.attribute);
    Ok(UnknownAttribute {
        number: json.attribute,
        nested: json.nested,
        payload: payload.ok_or_else(wrong)?,
    })
}
