//! The option tables: one row says everything about one option, and everything else follows from
//! it: the dump, the restore, `sockcr options`, docs/options.md, the JSON names and one generated
//! test each.

pub mod icmp;
pub mod ip;
pub mod ipv6;
pub mod raw;
pub mod socket;
#[cfg(test)]
mod tests;
mod text;
pub mod udp;
pub(crate) mod value;
pub(crate) mod wire;

pub use text::bytes;
pub use value::{Kind, Order, Unit, Value};

use crate::error::{Error, ErrorKind};
use crate::kernel::Hidden;
use crate::netns;
use crate::protocol::Protocol;
use crate::state::interfaces::Interfaces;
use crate::state::locks::BufferLocks;
use rustix::fd::AsFd;
use rustix::io::Errno;
use sockcr_image::number;
use std::io;
use std::os::fd::BorrowedFd;

/// The level of an option, as the second argument of setsockopt(2) names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// `SOL_SOCKET`
    Socket,
    /// `IPPROTO_IP`
    Ip,
    /// `IPPROTO_IPV6`
    Ipv6,
    /// `SOL_UDP`
    Udp,
    /// `SOL_RAW`
    Raw,
    /// `SOL_ICMPV6`
    Icmpv6,
}

impl Level {
    /// All of them.
    pub const ALL: [Level; 6] = [
        Level::Socket,
        Level::Ip,
        Level::Ipv6,
        Level::Udp,
        Level::Raw,
        Level::Icmpv6,
    ];

    /// The number in the system call.
    pub fn number(self) -> i32 {
        match self {
            Level::Socket => 1,
            Level::Ip => 0,
            Level::Ipv6 => 41,
            Level::Udp => 17,
            Level::Raw => 255,
            Level::Icmpv6 => 58,
        }
    }

    /// The name in the header files.
    pub fn name(self) -> &'static str {
        match self {
            Level::Socket => "SOL_SOCKET",
            Level::Ip => "IPPROTO_IP",
            Level::Ipv6 => "IPPROTO_IPV6",
            Level::Udp => "SOL_UDP",
            Level::Raw => "SOL_RAW",
            Level::Icmpv6 => "SOL_ICMPV6",
        }
    }

    const fn base(self) -> u16 {
        match self {
            Level::Socket => number::option(number::Level::Socket, 0),
            Level::Ip => number::option(number::Level::Ip, 0),
            Level::Ipv6 => number::option(number::Level::Ipv6, 0),
            Level::Udp => number::option(number::Level::Udp, 0),
            Level::Raw => number::option(number::Level::Raw, 0),
            Level::Icmpv6 => number::option(number::Level::Icmpv6, 0),
        }
    }
}

/// How a value lies in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// One of the RFC's flags: present is on, absent is off.
    Flag,
    /// One byte.
    U8,
    /// Four bytes in the writer's order; absent is not known.
    U32,
    /// A name in 16 bytes, filled with NULs; absent is none.
    Name,
    /// The bytes of the kernel; absent is not known.
    Kernel,
    /// The RFC's `in_addr`, and the index beside it when it is not 0.
    MulticastInterface,
}

/// When restore writes an option.
///
/// Everything that decides what the socket receives is in place before it is bound, so that no
/// datagram ever comes in under another option than it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// On the new, unbound socket.
    BeforeBind,
    /// Still unbound, but with its queue, which it would treat as what comes in.
    AfterQueue,
    /// After bind(2) and connect(2), which it would change.
    AfterConnect,
    /// When nothing is written any more.
    Last,
}

impl Stage {
    /// As the table prints it.
    pub fn name(self) -> &'static str {
        match self {
            Stage::BeforeBind => "before bind",
            Stage::AfterQueue => "before bind, after the queue",
            Stage::AfterConnect => "after connect",
            Stage::Last => "last",
        }
    }
}

/// What an option is to a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read, carried, and written at this stage.
    Carried(Stage),
    /// Read and shown; its state is carried by the file of `state/` named here.
    State(&'static str),
    /// Another name of the state that this row carries.
    Alias(&'static str),
    /// Can be read; says nothing that a restore could write, for this reason.
    ReadOnly(&'static str),
    /// Can be written, never read, for this reason.
    SetOnly(&'static str),
    /// Is not read, because that would change the socket.
    NotRead(&'static str),
}

/// Sockets on which an option is something else than on all others that answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// Raw sockets.
    Raw,
    /// Sockets of UDP-Lite.
    Lite,
}

impl Special {
    /// As the table prints it.
    pub fn name(self) -> &'static str {
        match self {
            Special::Raw => "raw sockets",
            Special::Lite => "UDP-Lite",
        }
    }
}

/// A value that getsockopt(2) does not tell, or not whole, and BPF does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `inet_sock.uc_ttl`: whether the ttl is the socket's own or follows the sysctl.
    UnicastTtl,
    /// `inet_sock.mc_index`.
    MulticastIndex,
    /// `sock.sk_busy_poll_budget`.
    BusyPollBudget,
    /// `SOCK_TXTIME` of `sock.sk_flags`.
    Txtime,
    /// `ipv6_pinfo.hop_limit`: whether the hop limit is the socket's own.
    UnicastHops,
    /// `ipv6_pinfo.frag_size`.
    FragmentSize,
    /// `ipv6_pinfo.sticky_pktinfo`.
    StickyPacketInfo,
    /// `AUTOFLOWLABEL_SET` of `inet_sock.inet_flags`: whether the socket has a choice of its own.
    AutoFlowLabel,
    /// A bit of `udp_sock.udp_flags`: whether UDPLITE_SEND_CSCOV was set.
    SendCoverage,
    /// The same of UDPLITE_RECV_CSCOV.
    ReceiveCoverage,
}

impl Field {
    /// The kernel's name of the field.
    pub fn name(self) -> &'static str {
        match self {
            Field::UnicastTtl => "inet_sock.uc_ttl",
            Field::MulticastIndex => "inet_sock.mc_index",
            Field::BusyPollBudget => "sock.sk_busy_poll_budget",
            Field::Txtime => "sock.sk_flags",
            Field::UnicastHops => "ipv6_pinfo.hop_limit",
            Field::FragmentSize => "ipv6_pinfo.frag_size",
            Field::StickyPacketInfo => "ipv6_pinfo.sticky_pktinfo",
            Field::AutoFlowLabel => "inet_sock.inet_flags",
            Field::SendCoverage | Field::ReceiveCoverage => "udp_sock.udp_flags",
        }
    }

    /// Whether it is among what BPF told.
    pub(crate) fn told(self, hidden: Option<&Hidden>) -> bool {
        match self {
            Field::UnicastHops
            | Field::FragmentSize
            | Field::StickyPacketInfo
            | Field::AutoFlowLabel => hidden.is_some_and(|hidden| hidden.ipv6.is_some()),
            Field::SendCoverage | Field::ReceiveCoverage => {
                hidden.is_some_and(|hidden| hidden.coverage.is_some())
            }
            Field::UnicastTtl | Field::MulticastIndex | Field::BusyPollBudget | Field::Txtime => {
                hidden.is_some()
            }
        }
    }

    /// Whether a socket may have no value of its own.
    fn optional(self) -> bool {
        self != Field::MulticastIndex
    }
}

/// What a fresh socket has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// This number, wherever the socket is made.
    Number(i64),
    /// The first number on sockets of AF_INET, the second one on those of AF_INET6.
    ByFamily(i64, i64),
    /// The first number on sockets of UDP and UDP-Lite, the second one on raw and ping sockets.
    ByPort(i64, i64),
    /// The number that stands beside its protocol; the other one on sockets of all others.
    ByProtocol(&'static [(u32, i64)], i64),
    /// Nothing: no bytes, an empty name, zeroes.
    Empty,
    /// What a sysctl says at that moment.
    Sysctl(&'static str),
    /// There is no meaning in a default.
    None,
}

/// One option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The name in the header files: `SO_RCVBUF`.
    pub name: &'static str,
    /// Its level.
    pub level: Level,
    /// Its number at that level.
    pub number: u16,
    /// The attribute that carries it in an image.
    pub attribute: u16,
    /// How it lies in that attribute.
    pub wire: Wire,
    /// What its value is.
    pub kind: Kind,
    /// What a fresh socket has.
    pub default: Default,
    /// Read, write, and when.
    pub access: Access,
    /// The same on some sockets, where it differs.
    pub special: Option<(Special, Access)>,
    /// What only BPF knows of it.
    pub hidden: Option<Field>,
    /// The number that writes it whatever the limits are, for those who may (`SO_RCVBUFFORCE`).
    pub force: Option<u16>,
    /// Writing the option named here changes this one too, so it is written after it in any case.
    pub disturbed_by: Option<&'static str>,
    /// The capability that writing it needs, and when.
    pub capability: Option<&'static str>,
    /// The first kernel that has it.
    pub since: &'static str,
    /// File and function of the kernel.
    pub source: &'static str,
}

impl Row {
    const fn new(level: Level, number: u16, name: &'static str, kind: Kind) -> Row {
        Row {
            name,
            level,
            number,
            attribute: level.base() + number,
            wire: kind.wire(),
            kind,
            default: kind.default(),
            access: Access::Carried(Stage::BeforeBind),
            special: None,
            hidden: None,
            force: None,
            disturbed_by: None,
            capability: None,
            since: "2.2",
            source: match level {
                Level::Socket => "net/core/sock.c sk_setsockopt",
                Level::Ip => "net/ipv4/ip_sockglue.c do_ip_setsockopt",
                Level::Ipv6 => "net/ipv6/ipv6_sockglue.c do_ipv6_setsockopt",
                Level::Udp => "net/ipv4/udp.c udp_lib_setsockopt",
                Level::Raw => "net/ipv4/raw.c do_raw_setsockopt",
                Level::Icmpv6 => "net/ipv6/raw.c rawv6_seticmpfilter",
            },
        }
    }

    const fn rfc(mut self, attribute: u16, wire: Wire) -> Row {
        self.attribute = attribute;
        self.wire = wire;
        self
    }

    const fn default(mut self, default: Default) -> Row {
        self.default = default;
        self
    }

    const fn access(mut self, access: Access) -> Row {
        self.access = access;
        self
    }

    const fn stage(self, stage: Stage) -> Row {
        self.access(Access::Carried(stage))
    }

    /// Carried on these sockets only.
    const fn only_on(mut self, special: Special) -> Row {
        self.special = Some((special, Access::Carried(Stage::BeforeBind)));
        self
    }

    const fn hidden(mut self, field: Field) -> Row {
        self.hidden = Some(field);
        self
    }

    const fn force(mut self, number: u16) -> Row {
        self.force = Some(number);
        self
    }

    const fn disturbed_by(mut self, name: &'static str) -> Row {
        self.disturbed_by = Some(name);
        self
    }

    const fn needs(mut self, capability: &'static str) -> Row {
        self.capability = Some(capability);
        self
    }

    const fn since(mut self, version: &'static str) -> Row {
        self.since = version;
        self
    }

    const fn source(mut self, source: &'static str) -> Row {
        self.source = source;
        self
    }

    /// When restore writes it, on the sockets whose checkpoints hold a value for it.
    pub fn written(&self) -> Option<Stage> {
        let special = self.special.map(|(_, access)| access);
        [Some(self.access), special]
            .into_iter()
            .find_map(|access| match access {
                Some(Access::Carried(stage)) => Some(stage),
                _ => None,
            })
    }

    /// Whether a checkpoint of some kind of socket holds a value for it.
    pub fn carried(&self) -> bool {
        self.written().is_some()
    }

    /// Whether `value` is what a fresh socket has; `None` when that depends on the socket, or on a
    /// sysctl.
    pub fn is_default(&self, value: &Value) -> Option<bool> {
        match self.default {
            Default::Number(number) => Some(*value == Value::Int(number)),
            Default::Empty => Some(self.kind.is_empty(value)),
            Default::ByFamily(..)
            | Default::ByPort(..)
            | Default::ByProtocol(..)
            | Default::Sysctl(_)
            | Default::None => None,
        }
    }

    /// Whether the option is left out of a checkpoint when the socket has none of its own:
    /// its absence then means what a fresh socket does.
    pub fn only_when_set(&self) -> bool {
        self.hidden.is_some_and(Field::optional) || matches!(self.wire, Wire::Name)
    }

    /// Whether leaving the option out says this value.
    pub(crate) fn says_nothing(&self, value: &Value) -> bool {
        self.only_when_set() && self.is_default(value) == Some(true)
    }

    /// What sockets answer that have no value of their own, in the network namespace of this one.
    fn by_sysctl(&self, fd: BorrowedFd<'_>) -> Value {
        let read = |path: &str| {
            let text = netns::sysctl(fd, path).ok()?;
            text.trim().parse::<i64>().ok()
        };
        Value::Int(match self.hidden {
            // 0 is off, 1 on unless a socket does not want it, 2 the other way round, 3 on.
            Some(Field::AutoFlowLabel) => read("net/ipv6/auto_flowlabels").unwrap_or(1) & 1,
            Some(Field::UnicastHops) => read("net/ipv6/conf/all/hop_limit").unwrap_or(64),
            _ => read("net/ipv4/ip_default_ttl").unwrap_or(64),
        })
    }

    /// Reads the option; `None` when this kernel, or this kind of socket, does not have it.
    pub fn read(&self, fd: BorrowedFd<'_>) -> io::Result<Option<Value>> {
        match self.kind.size() {
            size @ 0..=value::SHORT => self.read_into(fd, &mut [0; value::SHORT][..size]),
            size => self.read_into(fd, &mut vec![0; size]),
        }
    }

    fn read_into(&self, fd: BorrowedFd<'_>, room: &mut [u8]) -> io::Result<Option<Value>> {
        match sockcr_sys::sockopt::get(fd, self.level.number(), self.number.into(), room) {
            Ok(length) => {
                let bytes = room.get(..length).unwrap_or_default();
                self.kind.decode(bytes).map(Some).ok_or_else(|| {
                    io::Error::other(format!("{} answered {length} bytes", self.name))
                })
            }
            Err(error) if absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the option, by the steps its kind needs.
    pub fn write(&self, fd: BorrowedFd<'_>, value: &Value) -> io::Result<()> {
        for bytes in self.kind.encode(value) {
            match self.force {
                Some(force) => self.write_forced(fd, force, &bytes, value)?,
                None => self.set(fd, self.number, &bytes)?,
            }
        }
        Ok(())
    }

    fn set(&self, fd: BorrowedFd<'_>, number: u16, bytes: &[u8]) -> io::Result<()> {
        sockcr_sys::sockopt::set(fd, self.level.number(), number.into(), bytes)
    }

    /// The forced form is for CAP_NET_ADMIN of the initial user namespace only; the other one
    /// clamps in silence, so it is asked what became of it.
    fn write_forced(
        &self,
        fd: BorrowedFd<'_>,
        force: u16,
        bytes: &[u8],
        value: &Value,
    ) -> io::Result<()> {
        match self.set(fd, force, bytes) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => {}
            done => return done,
        }
        self.set(fd, self.number, bytes)?;
        match self.read(fd)?.as_ref() == Some(value) {
            true => Ok(()),
            false => Err(io::Error::other(self.kind.clamped(value))),
        }
    }
}

/// Whether the error says that the option does not exist here.
fn absent(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOPROTOOPT | Errno::OPNOTSUPP | Errno::NOTCONN | Errno::NODATA)
    )
}

/// Every row there is, in the order in which restore writes them: IP before SOCKET, because
/// IP_TOS changes SO_PRIORITY and because SO_BINDTODEVICE restricts IP_MULTICAST_IF; IPV6 likewise.
pub fn rows() -> impl Iterator<Item = &'static Row> + Clone {
    [
        ip::ROWS,
        ipv6::ROWS,
        raw::ROWS,
        icmp::ROWS,
        icmp::ROWS6,
        udp::ROWS,
        socket::ROWS,
    ]
    .into_iter()
    .flatten()
}

/// The row of this name.
pub fn find(name: &str) -> Option<&'static Row> {
    rows().find(|row| row.name.eq_ignore_ascii_case(name))
}

/// Sets an option of a socket of this process to the value that `text` says.
///
/// ```
/// let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
/// sockcr::option::write(&socket, "IP_MTU_DISCOVER", "IP_PMTUDISC_DO")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write(socket: &impl AsFd, name: &str, text: &str) -> Result<(), Error> {
    let bad = |why: String| Error::new(ErrorKind::BadInput, format!("{name}={text}"), why);
    let row = find(name)
        .filter(|row| row.carried())
        .ok_or_else(|| bad("no such option, or none that can be set".into()))?;
    let fd = socket.as_fd();
    let mut interfaces = Interfaces::default();
    let value = row.kind.parse(text, &mut interfaces).map_err(bad)?;
    row.kind
        .localize(&value, fd, &interfaces)
        .and_then(|value| row.write(fd, &value))
        .map_err(|error| Error::system(format!("{name}={text}"), error))
}

/// The values of one socket, in the order of the rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(Vec<(&'static Row, Value)>);

impl Options {
    /// The value of the option of this name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        let (_, value) = self.0.iter().find(|(row, _)| row.name == name)?;
        Some(value)
    }

    /// Whether an option is on, or a number other than 0.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !value.is_empty())
    }

    /// Gives an option a value, or takes it away with `None`.
    pub fn set(&mut self, row: &'static Row, value: Option<Value>) {
        self.0.retain(|(have, _)| *have != row);
        let Some(value) = value else { return };
        let before = rows()
            .take_while(|have| *have != row)
            .filter(|have| self.0.iter().any(|(r, _)| r == have))
            .count();
        self.0.insert(before, (row, value));
    }

    /// All of them, in the order of the rows.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Row, &Value)> {
        self.0.iter().map(|(row, value)| (*row, value))
    }

    /// Lets `change` change every device index.
    pub(crate) fn each_interface(&mut self, mut change: impl FnMut(&mut u32)) {
        for (row, value) in &mut self.0 {
            let Some(mut index) = row.kind.interface(value) else {
                continue;
            };
            change(&mut index);
            match value {
                Value::Int(number) | Value::Pair(_, number) => *number = index.into(),
                Value::Scoped(_, number) => *number = index,
                Value::Text(_) | Value::Bytes(_) => {}
            }
        }
    }

    /// Leaves out what getsockopt(2) does not tell of a socket that has these options.
    pub(crate) fn without_hidden(&mut self, fd: BorrowedFd<'_>) {
        self.0.retain_mut(|(row, value)| match row.hidden {
            Some(Field::BusyPollBudget | Field::FragmentSize | Field::StickyPacketInfo) => false,
            Some(Field::UnicastTtl | Field::UnicastHops | Field::AutoFlowLabel) => {
                *value != row.by_sysctl(fd)
            }
            Some(Field::Txtime) => row.is_default(value) != Some(true),
            Some(Field::SendCoverage | Field::ReceiveCoverage) => !value.is_empty(),
            Some(Field::MulticastIndex) => {
                if let Value::Pair(_, index) = value {
                    *index = 0;
                }
                true
            }
            None => true,
        });
    }

    pub(crate) fn push(&mut self, row: &'static Row, value: Value) {
        self.0.push((row, value));
    }
}

/// Reads every carried option of a kind; a row that fails is told to `failed` and left out.
pub(crate) fn dump(
    fd: BorrowedFd<'_>,
    protocol: &Protocol,
    hidden: Option<&Hidden>,
    mut failed: impl FnMut(&'static Row, io::Error),
) -> Options {
    let mut options = Options(Vec::with_capacity(64));
    for row in protocol.carried() {
        match read_whole(row, fd, hidden) {
            Ok(Some(value)) => options.push(row, value),
            Ok(None) => {}
            Err(error) => failed(row, error),
        }
    }
    options
}

/// Reads a row, with what BPF knows of it.
pub(crate) fn read_whole(
    row: &'static Row,
    fd: BorrowedFd<'_>,
    hidden: Option<&Hidden>,
) -> io::Result<Option<Value>> {
    let Some(field) = row.hidden else {
        let value = row.read(fd)?;
        return Ok(value.filter(|value| !row.says_nothing(value)));
    };
    let value = match hidden {
        // With its first clock it reads as off, and is on.
        Some(hidden) if field == Field::Txtime && hidden.txtime => return row.read(fd),
        Some(hidden) if field.told(Some(hidden)) => read_hidden(row, field, fd, hidden)?,
        _ => read_seen(row, field, fd)?,
    };
    Ok(value.filter(|value| !row.says_nothing(value)))
}

/// What BPF tells of a row; what it does not is read as ever.
fn read_hidden(
    row: &Row,
    field: Field,
    fd: BorrowedFd<'_>,
    hidden: &Hidden,
) -> io::Result<Option<Value>> {
    let ipv6 = hidden.ipv6.as_ref();
    Ok(match field {
        Field::BusyPollBudget => Some(Value::Int(hidden.busy_poll_budget.into())),
        Field::UnicastTtl => hidden.unicast_ttl.map(|ttl| Value::Int(ttl.into())),
        Field::Txtime => None,
        Field::MulticastIndex => Some(Value::Pair(
            u32::from(hidden.multicast_address).into(),
            hidden.multicast_index.into(),
        )),
        Field::UnicastHops => ipv6
            .and_then(|ipv6| ipv6.unicast_hops)
            .map(|hops| Value::Int(hops.into())),
        Field::FragmentSize => ipv6.map(|ipv6| Value::Int(ipv6.fragment_size.into())),
        Field::StickyPacketInfo => {
            ipv6.map(|ipv6| Value::Scoped(ipv6.sticky_address, ipv6.sticky_interface))
        }
        Field::AutoFlowLabel if ipv6.is_some_and(|ipv6| ipv6.auto_flow_label_set) => {
            row.read(fd)?
        }
        Field::AutoFlowLabel => None,
        Field::SendCoverage | Field::ReceiveCoverage => {
            let [send, receive] = hidden.coverage.unwrap_or_default();
            let set = match field {
                Field::SendCoverage => send,
                _ => receive,
            };
            set.then(|| row.read(fd)).transpose()?.flatten()
        }
    })
}

/// What getsockopt(2) tells of a row that BPF would tell whole: what is as the sysctl says is taken
/// for the sysctl's.
fn read_seen(row: &Row, field: Field, fd: BorrowedFd<'_>) -> io::Result<Option<Value>> {
    Ok(match field {
        Field::BusyPollBudget | Field::FragmentSize | Field::StickyPacketInfo => None,
        Field::UnicastTtl | Field::UnicastHops | Field::AutoFlowLabel => {
            row.read(fd)?.filter(|value| *value != row.by_sysctl(fd))
        }
        Field::SendCoverage | Field::ReceiveCoverage => {
            row.read(fd)?.filter(|value| !value.is_empty())
        }
        Field::MulticastIndex | Field::Txtime => row.read(fd)?,
    })
}

/// Writes one option by its name, whatever it was.
pub(crate) fn put(
    fd: BorrowedFd<'_>,
    name: &str,
    value: &Value,
    interfaces: &Interfaces,
) -> io::Result<()> {
    let row = find(name).ok_or(io::ErrorKind::NotFound)?;
    row.write(fd, &row.kind.localize(value, fd, interfaces)?)
}

/// One option that restore could not write.
pub(crate) struct Refused {
    pub row: &'static Row,
    pub value: Value,
    pub error: io::Error,
}

/// A new socket on its way to what a checkpoint says.
pub(crate) struct Writer<'a> {
    pub fd: BorrowedFd<'a>,
    pub options: &'a Options,
    pub locks: BufferLocks,
    pub interfaces: &'a Interfaces,
    /// The buffers that have been set, and so are locked.
    pub written: BufferLocks,
}

impl Writer<'_> {
    /// Writes what differs from a fresh socket, at this stage.
    pub fn write(&mut self, stage: Stage) -> Vec<Refused> {
        let mut refused = Vec::new();
        for (row, value) in self.options.iter() {
            if row.written() != Some(stage) {
                continue;
            }
            if let Err(error) = self.write_row(row, value) {
                let value = value.clone();
                refused.push(Refused { row, value, error });
            }
        }
        refused
    }

    fn write_row(&mut self, row: &'static Row, value: &Value) -> io::Result<()> {
        if self.is_fresh(row, value)? && !self.is_disturbed(row) {
            return Ok(());
        }
        row.kind.check(value).map_err(io::Error::other)?;
        let value = row.kind.localize(value, self.fd, self.interfaces)?;
        row.write(self.fd, &value)?;
        if row.kind.may_change() && row.read(self.fd)?.as_ref() != Some(&value) {
            return Err(io::Error::other("the kernel made something else of it"));
        }
        match row.name {
            "SO_SNDBUF" => self.written.send = true,
            "SO_RCVBUF" => self.written.receive = true,
            _ => {}
        }
        Ok(())
    }

    /// Whether the new socket has this value by itself.
    fn is_fresh(&self, row: &'static Row, value: &Value) -> io::Result<bool> {
        let locked = match row.name {
            "SO_SNDBUF" => self.locks.send,
            "SO_RCVBUF" => self.locks.receive,
            _ => row.only_when_set(),
        };
        match row.is_default(value) {
            _ if locked && row.kind.check(value).is_ok() => Ok(false),
            Some(fresh) => Ok(fresh),
            None => Ok(row.read(self.fd)?.as_ref() == Some(value)),
        }
    }

    /// Whether another row was written that changes this one.
    fn is_disturbed(&self, row: &'static Row) -> bool {
        let written = |name| self.options.get(name).zip(find(name));
        row.disturbed_by
            .and_then(written)
            .is_some_and(|(value, row)| row.is_default(value) != Some(true))
    }
}
