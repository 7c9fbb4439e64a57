//! Changing live sockets, all or nothing, while their owner runs on.
//!
//! Everything that can be known before is: names, values, devices, memberships. What is to be written is
//! written to a fresh socket of the same kind and place first, there and back: that tells what this
//! process may not do, and what could not be put back. Then a process that outlives us watches over the
//! sockets ([`Guard`]), so that all of them have all of the new values in the end or all of the old
//! ones, whenever this one is killed. Left groups are joined again in that case, as the last ones. What
//! cannot be taken back is written last of all, when everything else is done and seen.

use crate::error::{Error, ErrorKind};
use crate::kernel::{self, Hidden};
use crate::netns;
use crate::option::{self, Access, Field, Kind, Row, Value};
use crate::protocol::{self, Protocol};
use crate::state::interfaces::Interfaces;
use crate::state::membership;
use rustix::io::Errno;
use serde::Serialize;
use sockcr_sys::guard::{Guard, Step};
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;

const SOL_SOCKET: i32 = 1;
const SO_BUF_LOCK: i32 = 72;
const IP_ADD_MEMBERSHIP: i32 = 35;
const IP_DROP_MEMBERSHIP: i32 = 36;
const IPV6_ADD_MEMBERSHIP: i32 = 20;
const IPV6_DROP_MEMBERSHIP: i32 = 21;
const MCAST_MSFILTER: i32 = 48;

/// What is to be changed: `NAME=VALUE`, `join=GROUP@DEVICE` or `leave=GROUP@DEVICE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An option, and its value as `sockcr options NAME` describes it.
    Option(&'static Row, String),
    /// A multicast group is joined on a device.
    Join(IpAddr, String),
    /// A multicast group is left on a device.
    Leave(IpAddr, String),
}

/// What was changed, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// `SO_RCVBUF`, `membership`.
    pub name: String,
    /// What it was.
    pub old: String,
    /// What it is.
    pub new: String,
}

impl FromStr for Change {
    type Err = Error;

    fn from_str(text: &str) -> Result<Change, Error> {
        let bad = |why: &str| Error::new(ErrorKind::BadInput, text, why);
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| bad("is not NAME=VALUE"))?;
        if let "join" | "leave" = name {
            let place = value.split_once('@').and_then(|(group, device)| {
                let group: IpAddr = group.parse().ok()?;
                let fits = group.is_multicast() && (1..16).contains(&device.len());
                fits.then(|| (group, device.to_owned()))
            });
            let wrong = "is no GROUP@DEVICE, such as 239.1.1.1@eth0";
            let (group, device) = place.ok_or_else(|| bad(wrong))?;
            return Ok(match name {
                "join" => Change::Join(group, device),
                _ => Change::Leave(group, device),
            });
        }
        let list = "`sockcr options` lists them";
        let row = option::find(name).ok_or_else(|| bad("no such option").help(list))?;
        let why = match row.access {
            _ if row.carried() => return Ok(Change::Option(row, value.into())),
            Access::Carried(_) => "is carried",
            Access::State(_) => "is more than a value",
            Access::Alias(other) => return Err(bad(&format!("is another name of {other}"))),
            Access::ReadOnly(why) | Access::SetOnly(why) | Access::NotRead(why) => why,
        };
        Err(bad(&format!("cannot be set: {why}")))
    }
}

/// Changes sockets, all of them or none; answers what became of each.
///
/// Needs what setsockopt(2) needs of this process for each value: each row of
/// [`option`] names its capability.
pub fn set(sockets: &[BorrowedFd<'_>], changes: &[Change]) -> Result<Vec<Vec<Changed>>, Error> {
    for (at, change) in changes.iter().enumerate() {
        if changes.iter().take(at).any(|other| change.meets(other)) {
            let what = change.name();
            return Err(Error::new(ErrorKind::BadInput, what, "is there twice"));
        }
    }
    // One option of one socket is set or not: only more needs a way back.
    let single = sockets.len() == 1 && matches!(changes, [Change::Option(..)]);
    let plans: Result<Vec<Plan<'_>>, Error> = sockets
        .iter()
        .map(|fd| Plan::new(*fd, changes, single))
        .collect();
    let plans = plans?;
    let undo = plans.iter().flat_map(|plan| {
        let steps = plan.undo.iter().cloned();
        steps.map(|step| (plan.fd, step))
    });
    let guard = Guard::new(undo.collect())
        .map_err(|error| Error::system("watch over the sockets", error))?;
    let mut stay = Vec::new();
    if let Err(error) = carry_out(&plans, &mut stay) {
        return Err(undone(guard, &plans, &stay, error));
    }
    guard
        .keep()
        .map_err(|error| Error::system("stop watching over the sockets", error))?;
    plans.into_iter().map(Plan::told).collect()
}

/// Changes all sockets; what cannot be taken back is the last, and named in `stay` when it is done.
fn carry_out(plans: &[Plan<'_>], stay: &mut Vec<&'static str>) -> Result<(), Error> {
    for plan in plans {
        plan.write_options(plan.fd, false)?;
        plan.change_groups()?;
        plan.check(false)?;
    }
    for plan in plans {
        for setting in plan.settings.iter().filter(|setting| setting.last) {
            setting.write(plan.fd)?;
            stay.push(setting.row.name);
        }
        plan.check(true)?;
    }
    Ok(())
}

/// Puts all back, and says what is not as it was.
fn undone(guard: Guard<'_>, plans: &[Plan<'_>], stay: &[&'static str], error: Error) -> Error {
    let back = guard.put_back();
    let other = plans.iter().flat_map(Plan::otherwise);
    let other: BTreeSet<String> = stay
        .iter()
        .map(|name| name.to_string())
        .chain(other)
        .collect();
    let names = Vec::from_iter(other).join(", ");
    // What was not written yet may refuse to be put back: what is there counts.
    match (names.is_empty(), back) {
        (true, _) => error.help("nothing was changed"),
        (false, Ok(())) => error.help(format!("changed all the same: {names}")),
        (false, Err(why)) => {
            let why = crate::error::reason(&why);
            error.help(format!(
                "changed all the same, and not to be put back: {names}: {why}"
            ))
        }
    }
}

impl Change {
    fn name(&self) -> String {
        match self {
            Change::Option(row, _) => row.name.into(),
            Change::Join(group, device) | Change::Leave(group, device) => {
                format!("{group}@{device}")
            }
        }
    }

    /// Whether both are about the same thing.
    fn meets(&self, other: &Change) -> bool {
        self.name() == other.name()
    }
}

/// One option of one socket.
struct Setting {
    row: &'static Row,
    /// None: what the socket has without one of its own.
    value: Option<Value>,
    steps: Vec<Step>,
    /// It cannot be taken back.
    last: bool,
}

/// An option as it was: changed, or one that the kernel changes with another.
struct Before {
    row: &'static Row,
    value: Option<Value>,
    last: bool,
}

/// A group that is joined or left.
struct Membering {
    group: IpAddr,
    device: String,
    index: u32,
    joins: bool,
}

impl Membering {
    fn name(&self) -> String {
        format!("{}@{}", self.group, self.device)
    }

    fn told(&self) -> Changed {
        let (old, new) = match self.joins {
            true => ("not joined", "joined"),
            false => ("joined", "left"),
        };
        Changed {
            name: self.name(),
            old: old.into(),
            new: new.into(),
        }
    }
}

/// What is to happen to one socket.
struct Plan<'a> {
    fd: BorrowedFd<'a>,
    /// A fresh socket of the same kind, in the same place.
    stage: OwnedFd,
    settings: Vec<Setting>,
    before: Vec<Before>,
    /// Joining and leaving, and the way back in the reverse order.
    groups: Vec<Membering>,
    groups_back: Vec<Step>,
    undo: Vec<Step>,
}

impl<'a> Plan<'a> {
    fn new(fd: BorrowedFd<'a>, changes: &[Change], single: bool) -> Result<Plan<'a>, Error> {
        let protocol = protocol::of(fd)?;
        let stage =
            netns::within(fd, || crate::restore::new_socket(protocol)).map_err(|error| {
                let error = Error::system(format!("open a {protocol} socket"), error);
                error.help("in another network namespace it needs CAP_SYS_ADMIN")
            })?;
        let mut plan = Plan {
            fd,
            stage,
            settings: Vec::new(),
            before: Vec::new(),
            groups: Vec::new(),
            groups_back: Vec::new(),
            undo: Vec::new(),
        };
        let hidden = hidden(fd);
        for change in changes {
            match change {
                Change::Option(row, text) => {
                    plan.add_option(protocol, row, text, hidden.as_ref())?;
                }
                Change::Join(group, device) => plan.join(*group, device)?,
                Change::Leave(group, device) => plan.leave(*group, device)?,
            }
        }
        // In the order in which restore writes them.
        plan.settings.sort_by_key(|setting| place(setting.row));
        plan.before.sort_by_key(Before::order);
        match single {
            true => plan.undo = plan.way_back().unwrap_or_default(),
            false => {
                plan.see_all(hidden.as_ref())?;
                plan.undo = plan.way_back()?;
            }
        }
        plan.rehearse(single)?;
        plan.undo.extend(plan.groups_back.drain(..).rev());
        plan.locks_back()?;
        Ok(plan)
    }

    /// What nobody sees cannot be put back.
    fn see_all(&self, hidden: Option<&Hidden>) -> Result<(), Error> {
        let unseen = self
            .before
            .iter()
            .find(|before| before.row.hidden.is_some());
        match unseen.filter(|before| hidden.is_none() && !before.last) {
            None => Ok(()),
            Some(before) => {
                let why =
                    "cannot be set together with others: only BPF sees what it is, to put it back";
                Err(Error::new(ErrorKind::Refused, before.row.name, why))
            }
        }
    }

    /// What makes the options as they were, in the order in which restore writes them. A device that
    /// is named restricts others, and so goes first; a time stamp that is off switches others off, and
    /// so comes before those that are on.
    fn way_back(&self) -> Result<Vec<Step>, Error> {
        let mut undo = Vec::new();
        let before = self.before.iter().filter(|before| !before.last);
        if let Some(device) = before.clone().find(|b| b.row.name == "SO_BINDTODEVICE") {
            undo.extend(steps(device.row, None).unwrap_or_default());
        }
        for before in before {
            undo.extend(self.steps_back(before)?);
        }
        Ok(undo)
    }

    /// A size may be above the limit that counts for those who may not force it.
    fn steps_back(&self, before: &Before) -> Result<Vec<Step>, Error> {
        let wrong = |why| Error::new(ErrorKind::System, before.row.name, why);
        let mut back = steps(before.row, before.value.as_ref()).map_err(wrong)?;
        let Some(force) = before.row.force.map(i32::from) else {
            return Ok(back);
        };
        for step in &mut back {
            let stage = self.stage.as_fd();
            if sockcr_sys::sockopt::set(stage, step.level, force, &step.value).is_ok() {
                step.name = force;
            }
        }
        Ok(back)
    }

    /// Setting a size sets its lock, so the locks follow.
    fn locks_back(&mut self) -> Result<(), Error> {
        if self.before.iter().any(|before| before.row.force.is_some()) {
            let locks = Step::now(self.fd, SOL_SOCKET, SO_BUF_LOCK);
            self.undo
                .push(locks.map_err(|error| Error::system("SO_BUF_LOCK", error))?);
        }
        Ok(())
    }

    fn add_option(
        &mut self,
        protocol: &Protocol,
        row: &'static Row,
        text: &str,
        hidden: Option<&Hidden>,
    ) -> Result<(), Error> {
        let bad =
            |why: String| Error::new(ErrorKind::BadInput, format!("{}={text}", row.name), why);
        if !protocol.carries(row) {
            return Err(bad(format!("{protocol} sockets have no such option")));
        }
        let mut interfaces = Interfaces::default();
        let value = match text {
            "default" if row.only_when_set() => None,
            _ => Some(row.kind.parse(text, &mut interfaces).map_err(bad)?),
        };
        let failed = |error| Error::system(format!("{}={text}", row.name), error);
        let localize = |value| row.kind.localize(&value, self.fd, &interfaces);
        let value = value.map(localize).transpose().map_err(failed)?;
        // SO_TXTIME with its first clock reads as off, and is on.
        let says = |value: &Value| row.hidden == Some(Field::Txtime) || !row.says_nothing(value);
        let value = value.filter(says);
        if let Some(value) = &value {
            row.kind.check(value).map_err(bad)?;
        }
        let steps = steps(row, value.as_ref()).map_err(bad)?;
        let old = option::read_whole(row, self.fd, hidden).map_err(failed)?;
        let last = is_final(row, value.as_ref(), old.as_ref());
        self.settings.push(Setting {
            row,
            value,
            steps,
            last,
        });
        for other in protocol.carried() {
            let disturbed =
                other.disturbed_by == Some(row.name) || is_stamp(row) && is_stamp(other);
            if other == row || disturbed {
                self.remember(other, last && other == row, hidden)
                    .map_err(failed)?;
            }
        }
        Ok(())
    }

    fn remember(
        &mut self,
        row: &'static Row,
        last: bool,
        hidden: Option<&Hidden>,
    ) -> io::Result<()> {
        if let Some(known) = self.before.iter_mut().find(|before| before.row == row) {
            known.last |= last;
            return Ok(());
        }
        let value = option::read_whole(row, self.fd, hidden)?;
        self.before.push(Before { row, value, last });
        Ok(())
    }

    fn device(&self, device: &str) -> Result<u32, Error> {
        sockcr_sys::interface::index(self.fd, device)
            .map_err(|error| Error::system(format!("device {device}"), error))
    }

    fn member(&self, group: IpAddr, index: u32) -> Result<Option<membership::Membership>, Error> {
        membership::read(self.fd, index, group)
            .map_err(|error| Error::system(format!("membership of {group}"), error))
    }

    fn join(&mut self, group: IpAddr, device: &str) -> Result<(), Error> {
        let index = self.device(device)?;
        if self.member(group, index)?.is_some() {
            let what = format!("join={group}@{device}");
            return Err(Error::new(ErrorKind::BadInput, what, "is a member already"));
        }
        self.groups.push(Membering {
            group,
            device: device.into(),
            index,
            joins: true,
        });
        self.groups_back.push(request(false, group, index));
        Ok(())
    }

    fn leave(&mut self, group: IpAddr, device: &str) -> Result<(), Error> {
        let index = self.device(device)?;
        let Some(member) = self.member(group, index)? else {
            let what = format!("leave={group}@{device}");
            return Err(Error::new(ErrorKind::BadInput, what, "is no member"));
        };
        self.groups.push(Membering {
            group,
            device: device.into(),
            index,
            joins: false,
        });
        if member.include || !member.sources.is_empty() {
            self.groups_back.push(Step {
                level: membership::level(group),
                name: MCAST_MSFILTER,
                value: membership::group_filter(index, group, member.include, &member.sources),
                already: None,
            });
        }
        self.groups_back.push(request(true, group, index));
        Ok(())
    }

    /// Writes all to the stage: as it is, as it is to be, and back.
    fn rehearse(&self, single: bool) -> Result<(), Error> {
        let stage = self.stage.as_fd();
        if !single {
            self.step_back(stage)?;
        }
        self.write_options(stage, false)?;
        if !single {
            self.step_back(stage)?;
            if let Some(name) = self.otherwise_on(stage).first() {
                let why = "cannot be set together with others: it could not be put back";
                return Err(Error::new(ErrorKind::Refused, *name, why));
            }
        }
        self.write_options(stage, true)
    }

    fn step_back(&self, stage: BorrowedFd<'_>) -> Result<(), Error> {
        self.undo.iter().try_for_each(|step| {
            sockcr_sys::sockopt::set(stage, step.level, step.name, &step.value).map_err(|error| {
                let same = |row: &Row| {
                    let numbers = [Some(row.number), row.force].map(|n| n.map(i32::from));
                    row.level.number() == step.level && numbers.contains(&Some(step.name))
                };
                let row = self.before.iter().find(|before| same(before.row));
                let name = row.map_or("option", |before| before.row.name);
                let error = Error::system(format!("{name}: see whether it can be put back"), error);
                error.help("set it alone")
            })
        })
    }

    fn write_options(&self, fd: BorrowedFd<'_>, last: bool) -> Result<(), Error> {
        let settings = self.settings.iter();
        let mut now = settings.filter(|setting| setting.last == last);
        now.try_for_each(|setting| setting.write(fd))
    }

    fn change_groups(&self) -> Result<(), Error> {
        self.groups.iter().try_for_each(|membering| {
            let step = request(membering.joins, membering.group, membering.index);
            sockcr_sys::sockopt::set(self.fd, step.level, step.name, &step.value)
                .map_err(membership::limits)
                .map_err(|error| Error::system(membering.name(), error))
        })
    }

    /// Sees that the options are as asked.
    fn check(&self, last: bool) -> Result<(), Error> {
        let hidden = hidden(self.fd);
        let settings = self.settings.iter();
        let mut done = settings.filter(|setting| setting.last == last);
        done.try_for_each(|setting| setting.check(self.fd, hidden.as_ref()))
    }

    /// What is not as it was, of what can be taken back.
    fn otherwise(&self) -> Vec<String> {
        let options = self.otherwise_on(self.fd).into_iter().map(String::from);
        let is_otherwise = |one: &&Membering| {
            let member = self.member(one.group, one.index);
            !member.is_ok_and(|member| member.is_none() == one.joins)
        };
        let groups = self.groups.iter().filter(is_otherwise);
        options.chain(groups.map(Membering::name)).collect()
    }

    fn otherwise_on(&self, fd: BorrowedFd<'_>) -> Vec<&'static str> {
        let hidden = hidden(fd);
        let is_otherwise = |before: &&Before| {
            let now = option::read_whole(before.row, fd, hidden.as_ref());
            !overwritten(before.row) && now.ok().as_ref() != Some(&before.value)
        };
        let before = self.before.iter().filter(|before| !before.last);
        before
            .filter(is_otherwise)
            .map(|before| before.row.name)
            .collect()
    }

    /// What is otherwise now, in the order of the rows; what was asked for is told in any case.
    fn told(self) -> Result<Vec<Changed>, Error> {
        let hidden = hidden(self.fd);
        let mut all = Vec::new();
        for Before { row, value, .. } in &self.before {
            let now = option::read_whole(row, self.fd, hidden.as_ref())
                .map_err(|error| Error::system(row.name, error))?;
            let asked = self.settings.iter().any(|setting| setting.row == *row);
            if asked || now != *value {
                all.push(Changed {
                    name: row.name.into(),
                    old: words(self.fd, row, value.as_ref()),
                    new: words(self.fd, row, now.as_ref()),
                });
            }
        }
        all.extend(self.groups.iter().map(Membering::told));
        Ok(all)
    }
}

fn hidden(fd: BorrowedFd<'_>) -> Option<Hidden> {
    kernel::reader().ok()?.read(fd).ok()
}

fn place(row: &Row) -> Option<usize> {
    option::rows().position(|have| have == row)
}

impl Setting {
    fn what(&self, fd: BorrowedFd<'_>) -> String {
        let value = words(fd, self.row, self.value.as_ref());
        format!("{}={value}", self.row.name)
    }

    fn write(&self, fd: BorrowedFd<'_>) -> Result<(), Error> {
        let written = match &self.value {
            Some(value) => self.row.write(fd, value),
            None => self.steps.iter().try_for_each(|step| {
                sockcr_sys::sockopt::set(fd, step.level, step.name, &step.value)
            }),
        };
        written.map_err(|error| {
            let refused = matches!(
                Errno::from_io_error(&error),
                Some(Errno::PERM | Errno::ACCESS)
            );
            let error = Error::system(self.what(fd), error);
            match self.row.capability {
                Some(capability) if refused => error.help(format!("needs {capability}")),
                _ => error,
            }
        })
    }

    fn check(&self, fd: BorrowedFd<'_>, hidden: Option<&Hidden>) -> Result<(), Error> {
        let now = option::read_whole(self.row, fd, hidden)
            .map_err(|error| Error::system(self.what(fd), error))?;
        // Only BPF tells whether the socket has one of its own; a time is rounded to the clock.
        let unseen = self.row.hidden.is_some_and(|field| !field.told(hidden));
        // The kernel adds the device of an address.
        let device = match (self.row.kind, &self.value, &now) {
            (Kind::MulticastInterface, Some(Value::Pair(a, 0)), Some(Value::Pair(b, _))) => a == b,
            _ => false,
        };
        let changes = self.row.kind.may_change() || overwritten(self.row);
        if now == self.value || unseen || device || changes {
            return Ok(());
        }
        let why = format!(
            "the kernel made {} of it",
            words(fd, self.row, now.as_ref())
        );
        Err(Error::new(ErrorKind::Refused, self.what(fd), why))
    }
}

/// A value for a person; the devices have their names.
fn words(fd: BorrowedFd<'_>, row: &Row, value: Option<&Value>) -> String {
    let Some(value) = value else {
        return "default".into();
    };
    let mut interfaces = Interfaces::default();
    if let Some(index) = row.kind.interface(value) {
        interfaces.learn(fd, index, &mut crate::report::Report::default());
    }
    row.kind.show(value, &interfaces)
}

impl Before {
    /// In the order in which restore writes them, time stamps that are on after those that are off.
    fn order(&self) -> (bool, Option<usize>) {
        let on = self.value.as_ref().is_some_and(|value| !value.is_empty());
        (is_stamp(self.row) && on, place(self.row))
    }
}

/// Whether setting one of them changes the others (`sock_set_timestamp`, `sock_set_timestamping`).
fn is_stamp(row: &Row) -> bool {
    row.name.starts_with("SO_TIMESTAMP")
}

/// Every datagram of a connected socket changes it (`sk_incoming_cpu_update`).
fn overwritten(row: &Row) -> bool {
    row.name == "SO_INCOMING_CPU"
}

/// Whether this change cannot be taken back: a lock, what is sent or thrown away by it, a counter that
/// begins anew.
fn is_final(row: &Row, new: Option<&Value>, old: Option<&Value>) -> bool {
    const OPT_ID: i64 = 1 << 7;
    let on = |value: Option<&Value>| value.is_some_and(|value| !value.is_empty());
    match (row.name, old) {
        ("SO_TXTIME" | "UDP_ENCAP", _) => true,
        // No value takes its being set away again.
        ("IPV6_AUTOFLOWLABEL", None) => true,
        ("SO_LOCK_FILTER", _) => on(new),
        ("UDP_CORK" | "IP_RECVERR" | "IPV6_RECVERR", old) => on(old) && !on(new),
        (_, Some(Value::Pair(flags, _))) => is_stamp(row) && flags & OPT_ID != 0,
        _ => false,
    }
}

/// What writes a value, or takes it away.
fn steps(row: &Row, value: Option<&Value>) -> Result<Vec<Step>, String> {
    let step = |name: i32, value: Vec<u8>| Step {
        level: row.level.number(),
        name,
        value,
        already: None,
    };
    let number = i32::from(row.number);
    if let Some(value) = value {
        let encoded = row.kind.encode(value).into_iter();
        return Ok(encoded.map(|bytes| step(number, bytes)).collect());
    }
    match row.hidden {
        Some(Field::UnicastTtl | Field::UnicastHops) => {
            Ok(vec![step(number, (-1_i32).to_ne_bytes().into())])
        }
        Some(Field::BusyPollBudget | Field::FragmentSize) => Ok(vec![step(number, vec![0; 4])]),
        Some(Field::StickyPacketInfo) => Ok(vec![step(number, vec![0; 20])]),
        Some(Field::Txtime | Field::AutoFlowLabel) => {
            Err("cannot be taken back once it was set".into())
        }
        _ => Ok(vec![step(number, vec![0])]),
    }
}

/// A `struct ip_mreqn`. Who is a member cannot join, and who is none cannot leave.
fn request(joins: bool, group: IpAddr, index: u32) -> Step {
    let already = match joins {
        true => Errno::ADDRINUSE,
        false => Errno::ADDRNOTAVAIL,
    };
    let (name, value) = match group {
        IpAddr::V4(group) => {
            let names = [IP_DROP_MEMBERSHIP, IP_ADD_MEMBERSHIP];
            let value = [group.octets(), [0; 4], index.to_ne_bytes()].concat();
            (names[usize::from(joins)], value)
        }
        IpAddr::V6(group) => {
            let names = [IPV6_DROP_MEMBERSHIP, IPV6_ADD_MEMBERSHIP];
            let value = [&group.octets()[..], &index.to_ne_bytes()].concat();
            (names[usize::from(joins)], value)
        }
    };
    Step {
        already: Some(already.raw_os_error()),
        level: membership::level(group),
        name,
        value,
    }
}
