//! The process that accepts: it counts its clients, and has one process for each.

use crate::broker;
use crate::metrics::{Counter, Metrics};
use crate::packet::{send, take_leave};
use crate::peer;
use crate::session::nothing;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, chmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use sd_notify::NotifyState;
use sockcr::{Error, ErrorKind, kernel};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Where the service listens unless it is told otherwise.
pub const DEFAULT_PATH: &str = "/run/sockcr/socket";
/// No more clients are served at a time.
pub const MOST_CLIENTS: usize = 256;
/// No more of one user.
pub const MOST_OF_ONE: usize = 16;
/// At its end the service waits so long for what its clients have asked for.
const LAST_REQUESTS: Duration = Duration::from_secs(30);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 256;

/// A client that is being served.
#[derive(Debug)]
struct Served {
    user: u32,
    broker: OwnedFd,
}

/// The service, ready to be run.
#[derive(Debug)]
pub struct Server {
    listener: OwnedFd,
    /// Removed at the end, if device and inode are those; `None`: the socket is not of our making.
    path: Option<(PathBuf, (u64, u64))>,
    signals: OwnedFd,
    metrics: Metrics,
    network: OwnedFd,
    /// What is written to the second, and never read, ends every broker after the request that it is at.
    stop: (OwnedFd, OwnedFd),
    clients: Vec<Served>,
}

impl Server {
    /// Listens at a path, or at the socket that the service manager has passed (`LISTEN_FDS`).
    ///
    /// Every user may connect; what a client may do is judged for each request. The process must have one thread.
    pub fn new(path: Option<&Path>) -> Result<Server, Error> {
        let (listener, path) = match (inherited()?, path) {
            (Some(listener), None) => (listener, None),
            (_, path) => {
                let path = path.unwrap_or(Path::new(DEFAULT_PATH));
                let listener = listen_at(path)?;
                let made = std::fs::symlink_metadata(path).map_err(|error| {
                    Error::system(format!("listen at {}", path.display()), error)
                })?;
                (listener, Some((path.to_owned(), (made.dev(), made.ino()))))
            }
        };
        let failed = |what: &'static str| move |error| Error::system(what, error);
        let signals = [Signal::TERM, Signal::INT].map(Signal::as_raw);
        warm_up();
        Ok(Server {
            listener,
            path,
            signals: sockcr_sys::signal::by_descriptor(&signals)
                .map_err(failed("block signals"))?,
            metrics: Metrics::new().map_err(failed("make room for the figures"))?,
            network: std::fs::File::open("/proc/self/ns/net")
                .map_err(failed("open the network namespace"))?
                .into(),
            stop: pipe_with(PipeFlags::CLOEXEC)
                .map_err(|error| Error::system("make a pipe", error.into()))?,
            clients: Vec::new(),
        })
    }

    /// Serves until SIGTERM or SIGINT; then it ends when what was asked for has been answered.
    pub fn run(mut self) -> Result<(), Error> {
        let told = sd_notify::notify(false, &[NotifyState::Ready]);
        told.map_err(|error| Error::system("tell the service manager", error))?;
        info!(path = ?self.path.as_ref().map(|(path, _)| path), "serves");
        let served = self.serve();
        let ended = self.end();
        served
            .and(ended)
            .map_err(|error| Error::system("serve", error))
    }

    fn serve(&mut self) -> io::Result<()> {
        loop {
            let mut wait = vec![
                PollFd::new(&self.signals, PollFlags::IN),
                PollFd::new(&self.listener, PollFlags::IN),
            ];
            wait.extend(
                self.clients
                    .iter()
                    .map(|c| PollFd::new(&c.broker, PollFlags::IN)),
            );
            poll(&mut wait, None)?;
            let ready = |end: &PollFd<'_>| !end.revents().is_empty();
            let is_ready: Vec<bool> = wait.iter().map(ready).collect();
            drop(wait);
            self.collect(is_ready.get(2..).unwrap_or_default())?;
            if is_ready.first() == Some(&true)
                && let Some(signal) = sockcr_sys::signal::next(self.signals.as_fd())?
            {
                info!(signal, "ends");
                return Ok(());
            }
            if is_ready.get(1) == Some(&true) {
                self.accept()?;
            }
        }
    }

    /// Takes note of the brokers that have ended.
    fn collect(&mut self, ended: &[bool]) -> io::Result<()> {
        for at in (0..ended.len()).rev() {
            if ended.get(at) == Some(&true) {
                let client = self.clients.swap_remove(at);
                waitid(WaitId::PidFd(client.broker.as_fd()), WaitIdOptions::EXITED)?;
                self.metrics.gone();
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        let connection = match accept_with(&self.listener, SocketFlags::CLOEXEC) {
            // It has gone, or there is no room for it now.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return Ok(()),
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                // Nothing tells when there is room again.
                warn!(%error, "accept");
                std::thread::sleep(Duration::from_millis(10));
                return Ok(());
            }
            accepted => accepted?,
        };
        let [_, user, _] = peer::numbers(connection.as_fd())?;
        let of_one = self.clients.iter().filter(|client| client.user == user);
        // Who has many users keeps out others, and not that of the service.
        let own = user == rustix::process::geteuid().as_raw();
        let full = self.clients.len() >= MOST_CLIENTS && !own;
        if full || of_one.count() >= MOST_OF_ONE {
            self.turn_away(connection.as_fd(), Errno::USERS, "too many clients");
            return Ok(());
        }
        let client = connection.as_fd();
        let started = sockcr_sys::process::spawn(None, || self.broker(client));
        match started {
            Ok(broker) => {
                self.clients.push(Served { user, broker });
                self.metrics.add(Counter::Clients, 1);
                self.metrics.add(Counter::Connected, 1);
            }
            Err(error) => {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                self.turn_away(connection.as_fd(), errno, &error.to_string());
            }
        }
        Ok(())
    }

    fn turn_away(&self, connection: BorrowedFd<'_>, errno: Errno, why: &str) {
        self.metrics.add(Counter::TurnedAway, 1);
        warn!(why, "turned away");
        let answer = nothing().error(errno.raw_os_error(), why, None);
        // It may have gone; a fresh connection has room for it.
        let _ = send(connection, &answer, &[]);
        take_leave(connection);
    }

    /// What the process of a client does.
    fn broker(&mut self, connection: BorrowedFd<'_>) -> u8 {
        // What is for all clients is not for the processes of one.
        self.clients.clear();
        let mut closed = || -> io::Result<()> {
            for end in [&mut self.listener, &mut self.signals, &mut self.stop.1] {
                *end = self.stop.0.try_clone()?;
            }
            Ok(())
        };
        let served = closed()
            .and_then(|()| connection.try_clone_to_owned())
            .and_then(|own| broker::run(own, self.metrics, &self.network, &self.stop.0));
        match served {
            Ok(()) => 0,
            Err(error) => {
                warn!(%error, "client");
                1
            }
        }
    }

    /// Lets the clients end.
    fn end(&mut self) -> io::Result<()> {
        let removed = self.remove();
        let end = Instant::now() + LAST_REQUESTS;
        rustix::io::write(&self.stop.1, b".")?;
        let brokers = std::mem::take(&mut self.clients).into_iter();
        for Served { broker, .. } in brokers {
            let left = end.saturating_duration_since(Instant::now());
            let left = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut wait = [PollFd::new(&broker, PollFlags::IN)];
            if poll(&mut wait, Some(&left))? == 0 {
                pidfd_send_signal(&broker, Signal::KILL)?;
            }
            waitid(WaitId::PidFd(broker.as_fd()), WaitIdOptions::EXITED)?;
        }
        removed
    }

    /// Removes the socket, unless another service has its place by now.
    fn remove(&self) -> io::Result<()> {
        let Some((path, own)) = &self.path else {
            return Ok(());
        };
        match std::fs::symlink_metadata(path) {
            Ok(now) if (now.dev(), now.ino()) == *own => std::fs::remove_file(path),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The one socket that the service manager has passed.
fn inherited() -> Result<Option<OwnedFd>, Error> {
    let failed = |error| Error::system("take the socket of the service manager", error);
    let mut passed = sd_notify::listen_fds().map_err(failed)?;
    let (Some(number), more) = (passed.next(), passed.next()) else {
        return Ok(None);
    };
    let wrong = |why: &str| Error::new(ErrorKind::BadInput, "LISTEN_FDS", why);
    if more.is_some() {
        return Err(wrong("is more than one socket"));
    }
    let socket = sockcr_sys::descriptor::duplicate(number).map_err(failed)?;
    let is = |kind: Result<SocketType, Errno>| kind == Ok(SocketType::SEQPACKET);
    if !is(rustix::net::sockopt::socket_type(&socket)) {
        return Err(wrong("is no SOCK_SEQPACKET socket").help("ListenSequentialPacket= makes one"));
    }
    Ok(Some(socket))
}

fn listen_at(path: &Path) -> Result<OwnedFd, Error> {
    let failed = |error: io::Error| Error::system(format!("listen at {}", path.display()), error);
    let address = SocketAddrUnix::new(path).map_err(|error| failed(error.into()))?;
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let open = || {
        let flags = SocketFlags::CLOEXEC;
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
    };
    let made = || -> Result<OwnedFd, Errno> {
        let listener = open()?;
        match bind(&listener, &address) {
            // What another one left behind answers nobody.
            Err(Errno::ADDRINUSE)
                if is_socket(path) && connect(open()?, &address) == Err(Errno::CONNREFUSED) =>
            {
                rustix::fs::unlink(path)?;
                bind(&listener, &address)?;
            }
            bound => bound?,
        }
        chmod(path, Mode::from_raw_mode(0o666))?;
        listen(&listener, BACKLOG)?;
        Ok(listener)
    };
    made().map_err(|error| {
        let failed = failed(error.into());
        match error {
            Errno::ADDRINUSE if is_socket(path) => {
                failed.help("another service listens there: --socket names another path")
            }
            Errno::ADDRINUSE => {
                failed.help("there is a file that is no socket: it is left as it is")
            }
            _ => failed,
        }
    })
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket())
}

/// Has everything loaded that each process of a client needs, once for all of them.
fn warm_up() {
    let looked = match kernel::reader() {
        Ok(_) => kernel::warm_up(),
        Err(error) => Err(io::Error::other(error)),
    };
    if let Err(error) = looked {
        warn!(%error, "without BPF: capabilities of clients count for nothing, and what waits in a socket is looked at only");
    }
}
