//! The process that has the rights, one for each client: it takes requests that were read by somebody else, and
//! descriptors, and gives descriptors and what it has read of sockets.

use crate::fill::{self, Said};
use crate::message::{Command, flags};
use crate::metrics::{Counter, Metrics, Verb};
use crate::packet::{Receiver, decode, line, send, take_leave};
use crate::parser;
use crate::policy::{Act, Standing, Verdict, judge};
use crate::request::{Ask, Request};
use crate::restorer::{self, How};
use crate::session::{Session, fault, nothing};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::process::{
    DumpableBehavior, Signal, WaitId, WaitIdOptions, pidfd_send_signal, set_dumpable_behavior,
    waitid,
};
use sockcr::check::{Feature, of_sockets};
use sockcr::kernel::inject::Injector;
use sockcr::{Error, kernel};
use sockcr_image::attribute::Writer;
use sockcr_image::{Error as ImageError, number};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// A client that takes nothing for so long is let go.
const PATIENCE: Duration = Duration::from_secs(10);
/// No restore takes longer.
const LONGEST_RESTORE: Duration = Duration::from_secs(30);
/// What fills sockets stays so long for the next one: it is in the way of all that passes the loopback device.
const READY: Duration = Duration::from_secs(1);

/// Serves one client until it has closed, or `stop` is closed.
pub fn run(
    connection: OwnedFd,
    metrics: Metrics,
    service: &OwnedFd,
    stop: &OwnedFd,
) -> io::Result<()> {
    // Whoever has rights in the user namespace that a restorer enters could look into it from then on
    // (`__ptrace_may_access`).
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    set_socket_timeout(&connection, Timeout::Send, Some(PATIENCE))?;
    let client = match Session::new(connection.try_clone()?, metrics, service.as_fd()) {
        Ok(client) => client,
        Err(error) => {
            warn!(%error, "turned away");
            let (errno, text) = fault(&error);
            metrics.answered(Verb::Wrong, errno, Duration::ZERO);
            let told = nothing().error(errno, &text, None);
            let sent = send(connection.as_fd(), &told, &[]);
            take_leave(connection.as_fd());
            return sent;
        }
    };
    drop(connection);
    let peer = &client.peer;
    info!(
        pid = peer.pid,
        uid = peer.user,
        administers = client.administers,
        "client"
    );
    let (ours, theirs) = line()?;
    let parser = sockcr_sys::process::spawn(None, || {
        // What it ends with tells nobody anything: the connection ends.
        u8::from(parser::run(&client.connection, &theirs).is_err())
    })?;
    drop(theirs);
    let served = Broker {
        client: &client,
        line: ours,
        injector: None,
        used: Instant::now(),
    }
    .serve(stop.as_fd());
    // It may wait for a client that sends nothing.
    pidfd_send_signal(&parser, Signal::KILL).or_else(gone)?;
    waitid(WaitId::PidFd(parser.as_fd()), WaitIdOptions::EXITED)?;
    take_leave(client.connection.as_fd());
    info!(pid = client.peer.pid, "client is gone");
    served
}

fn gone(error: Errno) -> Result<(), Errno> {
    match error {
        Errno::SRCH => Ok(()),
        error => Err(error),
    }
}

/// What a child has said last; `None`: it ended without.
type Outcome = Result<restorer::Done, Option<Error>>;

struct Broker<'a> {
    client: &'a Session,
    line: OwnedFd,
    injector: Option<Injector>,
    /// When that was needed last.
    used: Instant,
}

impl Broker<'_> {
    fn serve(&mut self, stop: BorrowedFd<'_>) -> io::Result<()> {
        let mut receiver = Receiver::default();
        loop {
            let mut wait = [
                PollFd::new(&self.line, PollFlags::IN),
                PollFd::from_borrowed_fd(stop, PollFlags::IN),
            ];
            let most = self.injector.as_ref().map(|_| timespec(READY));
            poll(&mut wait, most.as_ref())?;
            if self.used.elapsed() >= READY {
                self.injector = None;
            }
            match wait.map(|end| !end.revents().is_empty()) {
                // What was asked for before is answered first.
                [true, _] => {}
                [false, true] => return Ok(()),
                [false, false] => continue,
            }
            let packet = receiver.receive(self.line.as_fd())?;
            if packet.bytes.is_empty() {
                return Ok(());
            }
            let request: Request = decode(packet.bytes)?;
            if !self.one(&request, packet.descriptor())? {
                self.client.metrics.add(Counter::LetGo, 1);
                return Ok(());
            }
        }
    }

    /// Answers one request; answers whether the client stays.
    fn one(&mut self, request: &Request, passed: Option<OwnedFd>) -> io::Result<bool> {
        let begun = Instant::now();
        let verb = verb(&request.ask);
        let (errno, stays) = match (&request.ask, passed) {
            (
                Ask::Wrong {
                    errno,
                    text,
                    offset,
                    last,
                },
                _,
            ) => {
                self.client.refuse(request, *errno, text, *offset)?;
                (*errno, !last)
            }
            (
                Ask::Restore {
                    lossy,
                    alone,
                    waiting,
                },
                Some(image),
            ) => {
                let how = How {
                    lossy: *lossy,
                    alone: *alone,
                };
                let errno = self.restore(request, image, how, *waiting)?;
                send(self.line.as_fd(), b".", &[])?;
                (errno, true)
            }
            (Ask::Check, _) => (self.check(request)?, true),
            (_, passed) => (self.answer(request, passed)?, true),
        };
        let took = begun.elapsed();
        self.client.metrics.answered(verb, errno, took);
        let command = verb.name();
        let micros = took.as_micros() as u64;
        match errno {
            0 => debug!(pid = self.client.peer.pid, command, micros, "answered"),
            errno => debug!(
                pid = self.client.peer.pid,
                command, micros, errno, "refused"
            ),
        }
        Ok(stays)
    }

    fn answer(&self, request: &Request, passed: Option<OwnedFd>) -> io::Result<i32> {
        let client = self.client;
        let mut answer = match client.answer(request, passed) {
            Ok(answer) => answer,
            Err(error) => {
                let (errno, text) = fault(&error);
                let offset = match &request.ask {
                    Ask::Dump { offset, .. } => Some(*offset),
                    _ => None,
                };
                client.refuse(request, errno, &text, offset)?;
                return Ok(errno);
            }
        };
        let multipart = match &request.ask {
            Ask::Family { all } => *all,
            ask => matches!(verb(ask), Verb::Of(command) if command.is_multipart()),
        };
        if multipart {
            answer.push(request.header.done());
        } else if request.header.wants_ack() {
            answer.push(request.header.ack());
        }
        client.send_all(&answer)?;
        Ok(0)
    }

    fn restore(
        &mut self,
        request: &Request,
        image: OwnedFd,
        how: How,
        waiting: bool,
    ) -> io::Result<i32> {
        let client = self.client;
        let size = rustix::fs::fstat(&image)?.st_size;
        client
            .metrics
            .add(Counter::Received, u64::try_from(size).unwrap_or(0));
        let (act, standing) = match (waiting, client.administers, client.sends) {
            (false, ..) => (Act::RestoreEmpty, Standing::Stranger),
            (true, true, _) => (Act::RestoreWaiting, Standing::Administrator),
            (true, false, true) => (Act::RestoreWaiting, Standing::Sender),
            (true, false, false) => (Act::RestoreWaiting, Standing::Stranger),
        };
        if judge(act, standing) != Verdict::Allowed {
            let text = "restore: what waits in it comes from any address: that needs CAP_NET_RAW";
            client.refuse(request, Errno::PERM.raw_os_error(), text, None)?;
            return Ok(Errno::PERM.raw_os_error());
        }
        if waiting && let Ok(reader) = kernel::reader() {
            // The child may use programs, and may not load them. What fails here fails there, and is told.
            let _ = reader.get_ready();
        }
        let done = self.in_child(waiting, |line| restorer::restore(client, image, how, line))?;
        match done {
            Ok((Said::Restored(attributes), Some(fd))) => {
                client.give(request, &attributes, fd.as_fd())?;
                client.metrics.add(Counter::Restored, 1);
                Ok(0)
            }
            done => self.refuse(request, "restore", done),
        }
    }

    fn check(&mut self, request: &Request) -> io::Result<i32> {
        let done = self.in_child(false, |_| Ok((Said::Able(of_sockets()), None)))?;
        let features = match done {
            Ok((Said::Able(features), None)) => features,
            done => return self.refuse(request, "check", done),
        };
        let header = &request.header;
        let mut answer = Vec::new();
        for feature in &features {
            let attributes = ability(feature).map_err(io::Error::other)?;
            answer.push(header.family(Command::Check, flags::MULTI, &attributes));
        }
        answer.push(header.done());
        self.client.send_all(&answer)?;
        Ok(0)
    }

    /// Tells that a child has failed, or has not said what it was asked.
    fn refuse(&self, request: &Request, what: &str, done: Outcome) -> io::Result<i32> {
        let early = "the process that did it has ended before its time";
        let (errno, text) = match done {
            Ok((Said::Failed(errno, text), _)) => (errno, text),
            Ok(_) | Err(None) => (Errno::IO.raw_os_error(), format!("{what}: {early}")),
            Err(Some(error)) => fault(&error),
        };
        self.client.refuse(request, errno, &text, None)?;
        Ok(errno)
    }

    /// Has a child in the client's control group, which becomes the client, do something, and fills its sockets if
    /// something waits in them. What it has said last counts, or that it said nothing.
    fn in_child(
        &mut self,
        fills: bool,
        work: impl FnOnce(&OwnedFd) -> Result<restorer::Done, Error>,
    ) -> io::Result<Outcome> {
        let client = self.client;
        let (ours, theirs) = line()?;
        set_socket_timeout(&ours, Timeout::Send, Some(PATIENCE))?;
        let group = client.peer.control_group.as_ref().map(AsFd::as_fd);
        let child = sockcr_sys::process::spawn(group, || {
            restorer::as_client(client, &theirs, || work(&theirs))
        });
        drop(theirs);
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                let what = "start a process in the control group of the client";
                return Ok(Err(Some(Error::system(what, error))));
            }
        };
        let said = self.hear(ours.as_fd(), fills);
        pidfd_send_signal(&child, Signal::KILL).or_else(gone)?;
        waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED)?;
        if !matches!(said, Ok(Ok(_))) {
            warn!(pid = client.peer.pid, ?said, "a child failed");
        }
        said
    }

    /// Fulfils the wishes of a child until it says what has come of its task.
    fn hear(&mut self, line: BorrowedFd<'_>, fills: bool) -> io::Result<Outcome> {
        let end = Instant::now() + LONGEST_RESTORE;
        let mut receiver = Receiver::default();
        loop {
            let left = timespec(end.saturating_duration_since(Instant::now()));
            let mut wait = [PollFd::from_borrowed_fd(line, PollFlags::IN)];
            if poll(&mut wait, Some(&left))? == 0 {
                let error = Error::system("restore", Errno::TIME.into());
                return Ok(Err(Some(error)));
            }
            let packet = receiver.receive(line)?;
            if packet.bytes.is_empty() {
                return Ok(Err(None));
            }
            match decode(packet.bytes)? {
                Said::Wish if fills => {
                    fill::answer(line, packet.descriptors, &mut self.injector)?;
                    self.used = Instant::now();
                }
                Said::Wish => return Ok(Err(None)),
                said => return Ok(Ok((said, packet.descriptor()))),
            }
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs() as i64,
        tv_nsec: duration.subsec_nanos().into(),
    }
}

fn ability(feature: &Feature) -> Result<Vec<u8>, ImageError> {
    let mut writer = Writer::new();
    writer.str(number::WHAT, &feature.what)?;
    if let Some(missing) = &feature.missing {
        writer.str(number::REASON, missing)?;
    }
    writer.str(number::WITHOUT, &feature.without)?;
    Ok(writer.finish())
}

fn verb(ask: &Ask) -> Verb {
    match ask {
        Ask::Family { .. } => Verb::Family,
        Ask::Dump { .. } => Verb::Of(Command::Dump),
        Ask::Restore { .. } => Verb::Of(Command::Restore),
        Ask::List { .. } => Verb::Of(Command::List),
        Ask::Check => Verb::Of(Command::Check),
        Ask::Metrics => Verb::Of(Command::Metrics),
        Ask::Wrong { .. } => Verb::Wrong,
    }
}
