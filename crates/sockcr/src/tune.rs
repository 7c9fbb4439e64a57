//! Changing live sockets, all or nothing, while their owner runs on.
//!
//! Everything that can be known before is: names, values, devices, memberships; and the options are
//! written to a fresh socket of the same kind and place first, which tells what this process may not
//! do. Then a process that outlives us watches over each socket ([`Guard`]), so that it has all of
//! the new values in the end or all of the old ones, whenever this one is killed. Left groups are
//! joined again in that case, as the last ones. What cannot be taken back is written last.

use crate::error::{Error, ErrorKind};
use crate::kernel::{self, Hidden};
use crate::netns;
use crate::option::{self, Access, Field, Row, Stage, Value};
use crate::protocol::{self, Protocol};
use crate::state::interfaces::Interfaces;
use crate::state::membership;
use rustix::io::Errno;
use serde::Serialize;
use sockcr_sys::guard::{Guard, Step};
use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;

const SOL_SOCKET: i32 = 1;
const SO_BUF_LOCK: i32 = 72;
const IPPROTO_IP: i32 = 0;
const IP_TTL: i32 = 2;
const IP_ADD_MEMBERSHIP: i32 = 35;
const IP_DROP_MEMBERSHIP: i32 = 36;
const MCAST_MSFILTER: i32 = 48;

/// What is to be changed: `NAME=VALUE`, `join=GROUP@DEVICE` or `leave=GROUP@DEVICE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An option, and its value as `sockcr options NAME` describes it.
    Option(&'static Row, String),
    /// A multicast group is joined on a device.
    Join(Ipv4Addr, String),
    /// A multicast group is left on a device.
    Leave(Ipv4Addr, String),
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
                let group: Ipv4Addr = group.parse().ok()?;
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
            Access::Carried(_) => return Ok(Change::Option(row, value.into())),
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
    let plans: Result<Vec<Plan<'_>>, Error> =
        sockets.iter().map(|fd| Plan::new(*fd, changes)).collect();
    let plans = plans?;
    let watched = sockets.iter().zip(&plans);
    let guards: io::Result<Vec<Guard<'_>>> = watched
        .map(|(fd, plan)| Guard::new(*fd, plan.undo.clone()))
        .collect();
    let guards = guards.map_err(|error| Error::system("watch over the socket", error))?;
    if let Some(error) = plans.iter().find_map(|plan| plan.carry_out().err()) {
        return Err(undo(guards, &plans, error));
    }
    for guard in guards {
        guard
            .keep()
            .map_err(|error| Error::system("stop watching over the socket", error))?;
    }
    plans.into_iter().map(Plan::told).collect()
}

/// Puts all back, and says when that failed too.
fn undo(guards: Vec<Guard<'_>>, plans: &[Plan<'_>], error: Error) -> Error {
    let settings = plans.iter().flat_map(|plan| &plan.settings);
    let stay: BTreeSet<&str> = settings
        .filter(|setting| stays(setting.row))
        .map(|setting| setting.row.name)
        .collect();
    let stay: Vec<&str> = stay.into_iter().collect();
    let back = guards.into_iter().map(Guard::put_back);
    match back.fold(Ok(()), io::Result::and) {
        Ok(()) if stay.is_empty() => error.help("nothing was changed"),
        Ok(()) => {
            let names = stay.join(", ");
            error.help(format!(
                "all is as it was, but perhaps {names}, which stays"
            ))
        }
        Err(why) => {
            let why = crate::error::reason(&why);
            error.help(format!(
                "and what was changed before is not as it was: {why}"
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
}

/// An option as it was: changed, or one that the kernel changes with another.
struct Before {
    row: &'static Row,
    value: Option<Value>,
}

/// What is to happen to one socket.
struct Plan<'a> {
    fd: BorrowedFd<'a>,
    /// A fresh socket of the same kind, in the same place.
    stage: OwnedFd,
    settings: Vec<Setting>,
    before: Vec<Before>,
    /// Joining and leaving, and the way back in the reverse order.
    groups: Vec<(Step, Changed)>,
    groups_back: Vec<Step>,
    undo: Vec<Step>,
}

impl<'a> Plan<'a> {
    fn new(fd: BorrowedFd<'a>, changes: &[Change]) -> Result<Plan<'a>, Error> {
        let protocol = protocol::of(fd)?;
        let stage = netns::within(fd, || crate::restore::new_socket(protocol))
            .map_err(|error| Error::system(format!("open a {} socket", protocol.name), error))?;
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
        // In the order in which restore writes them; what cannot be taken back is the last of all.
        plan.settings
            .sort_by_key(|setting| (is_late(setting.row), place(setting.row)));
        plan.rehearse()?;
        plan.undo = plan.way_back()?;
        Ok(plan)
    }

    /// The options in the order in which restore writes them, the groups, and the locks that sizes
    /// set.
    fn way_back(&mut self) -> Result<Vec<Step>, Error> {
        let failed = |error| Error::system("see what the socket has", error);
        self.before.sort_by_key(|before| place(before.row));
        let mut undo = Vec::new();
        for before in self.before.iter().filter(|before| !stays(before.row)) {
            undo.extend(self.steps_back(before)?);
        }
        undo.extend(self.groups_back.drain(..).rev());
        if self.before.iter().any(|before| before.row.force.is_some()) {
            undo.push(Step::now(self.fd, SOL_SOCKET, SO_BUF_LOCK).map_err(failed)?);
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

    fn add_option(
        &mut self,
        protocol: &Protocol,
        row: &'static Row,
        text: &str,
        hidden: Option<&Hidden>,
    ) -> Result<(), Error> {
        let bad =
            |why: String| Error::new(ErrorKind::BadInput, format!("{}={text}", row.name), why);
        if !protocol.tables.iter().any(|table| table.contains(row)) {
            let why = format!("{} sockets have no such option", protocol.name);
            return Err(bad(why));
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
        value
            .as_ref()
            .map_or(Ok(()), |value| row.kind.check(value))
            .map_err(bad)?;
        let steps = steps(row, value.as_ref()).map_err(bad)?;
        self.settings.push(Setting { row, value, steps });
        let disturbed = option::rows().filter(|other| other.disturbed_by == Some(row.name));
        for row in disturbed.chain([row]).filter(|row| row.carried()) {
            if !self.before.iter().any(|before| before.row == row) {
                let value = option::read_whole(row, self.fd, hidden).map_err(failed)?;
                self.before.push(Before { row, value });
            }
        }
        Ok(())
    }

    fn device(&self, device: &str) -> Result<u32, Error> {
        sockcr_sys::interface::index(self.fd, device)
            .map_err(|error| Error::system(format!("device {device}"), error))
    }

    fn member(&self, group: Ipv4Addr, index: u32) -> Result<Option<membership::Membership>, Error> {
        membership::read(self.fd, index, group)
            .map_err(|error| Error::system(format!("membership of {group}"), error))
    }

    fn join(&mut self, group: Ipv4Addr, device: &str) -> Result<(), Error> {
        let index = self.device(device)?;
        if self.member(group, index)?.is_some() {
            let what = format!("join={group}@{device}");
            return Err(Error::new(ErrorKind::BadInput, what, "is a member already"));
        }
        let told = changed(group, device, "not joined", "joined");
        self.groups
            .push((request(IP_ADD_MEMBERSHIP, group, index), told));
        self.groups_back
            .push(request(IP_DROP_MEMBERSHIP, group, index));
        Ok(())
    }

    fn leave(&mut self, group: Ipv4Addr, device: &str) -> Result<(), Error> {
        let index = self.device(device)?;
        let Some(member) = self.member(group, index)? else {
            let what = format!("leave={group}@{device}");
            return Err(Error::new(ErrorKind::BadInput, what, "is no member"));
        };
        let told = changed(group, device, "joined", "left");
        self.groups
            .push((request(IP_DROP_MEMBERSHIP, group, index), told));
        if member.include || !member.sources.is_empty() {
            self.groups_back.push(Step {
                level: IPPROTO_IP,
                name: MCAST_MSFILTER,
                value: membership::group_filter(index, group, member.include, &member.sources),
                already: None,
            });
        }
        self.groups_back
            .push(request(IP_ADD_MEMBERSHIP, group, index));
        Ok(())
    }

    fn rehearse(&self) -> Result<(), Error> {
        self.write_options(self.stage.as_fd())
    }

    fn write_options(&self, fd: BorrowedFd<'_>) -> Result<(), Error> {
        self.settings
            .iter()
            .try_for_each(|setting| setting.write(fd))
    }

    /// Changes the socket, and sees that it is so.
    fn carry_out(&self) -> Result<(), Error> {
        self.write_options(self.fd)?;
        for (step, told) in &self.groups {
            sockcr_sys::sockopt::set(self.fd, step.level, step.name, &step.value)
                .map_err(membership::limits)
                .map_err(|error| Error::system(&*told.name, error))?;
        }
        let hidden = hidden(self.fd);
        let check = |setting: &Setting| setting.check(self.fd, hidden.as_ref());
        self.settings.iter().try_for_each(check)
    }

    /// What is otherwise now, in the order of the rows; what was asked for is told in any case.
    fn told(self) -> Result<Vec<Changed>, Error> {
        let hidden = hidden(self.fd);
        let mut all = Vec::new();
        for Before { row, value } in &self.before {
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
        all.extend(self.groups.into_iter().map(|(_, told)| told));
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
        let unseen = hidden.is_none() && self.row.hidden.is_some();
        if now == self.value || unseen || self.row.kind.may_change() {
            return Ok(());
        }
        let why = format!(
            "the kernel made {} of it",
            words(fd, self.row, now.as_ref())
        );
        Err(Error::new(ErrorKind::Refused, self.what(fd), why))
    }
}

fn changed(group: Ipv4Addr, device: &str, old: &str, new: &str) -> Changed {
    Changed {
        name: format!("{group}@{device}"),
        old: old.into(),
        new: new.into(),
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

/// Whether it is written when all else is done: what stays, and IP_RECVERR, whose end throws away what
/// waits (`do_ip_setsockopt`).
fn is_late(row: &Row) -> bool {
    stays(row) || row.name == "IP_RECVERR"
}

/// Whether it stays once it is written.
fn stays(row: &Row) -> bool {
    matches!(row.access, Access::Carried(Stage::AfterQueue | Stage::Last))
        || row.hidden == Some(Field::Txtime)
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
        Some(Field::UnicastTtl) => Ok(vec![step(IP_TTL, (-1_i32).to_ne_bytes().into())]),
        Some(Field::BusyPollBudget) => Ok(vec![step(number, vec![0; 4])]),
        Some(Field::Txtime) => Err("cannot be taken back once it was set".into()),
        _ => Ok(vec![step(number, vec![0])]),
    }
}

/// A `struct ip_mreqn`. Who is a member cannot join, and who is none cannot leave.
fn request(name: i32, group: Ipv4Addr, index: u32) -> Step {
    let already = match name {
        IP_ADD_MEMBERSHIP => Errno::ADDRINUSE,
        _ => Errno::ADDRNOTAVAIL,
    };
    Step {
        already: Some(already.raw_os_error()),
        level: IPPROTO_IP,
        name,
        value: [group.octets(), [0; 4], index.to_ne_bytes()].concat(),
    }
}
