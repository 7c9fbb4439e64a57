//! What a client is answered that is read here and now: the family, dumps, lists, figures.

use crate::message::{self, Command, flags};
use crate::metrics::Counter;
use crate::policy::{Standing, Verdict};
use crate::reach::unseen;
use crate::request::{Ask, Request, What};
use crate::session::Session;
use rustix::io::Errno;
use sockcr::find::{self, Found, Listed};
use sockcr::{Checkpoint, Error, ErrorKind, Target, image, protocol};
use sockcr_image::attribute::Writer;
use sockcr_image::{Error as ImageError, number};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

impl Session {
    fn dump(
        &self,
        request: &Request,
        what: &What,
        passed: Option<OwnedFd>,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let target = match what {
            What::Inode(inode) => Target::Inode((*inode).into()),
            What::Named(name) => name.parse()?,
            What::Passed => return self.dump_passed(request, passed),
        };
        let found = self.find(&target)?;
        let mut answer = Vec::new();
        for socket in &found {
            match protocol::of(socket.socket.as_fd()) {
                Ok(_) => {
                    add_messages(&mut answer, request, &socket.dump()?)?;
                    self.metrics.add(Counter::Dumped, 1);
                    self.tell_begun(&mut answer)?;
                }
                Err(error) if error.kind() == ErrorKind::NotSupported && found.len() > 1 => {
                    answer.push(self.left_out(request, socket)?);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(answer)
    }

    /// Sends what there is of an answer, if it is much: the queues of many sockets are not kept at once.
    fn tell_begun(&self, answer: &mut Vec<Vec<u8>>) -> Result<(), Error> {
        const MUCH: usize = 1 << 20;
        if answer.iter().map(Vec::len).sum::<usize>() < MUCH {
            return Ok(());
        }
        let told = self.send_all(answer);
        answer.clear();
        told.map_err(|error| Error::system("answer", error))
    }

    /// A socket of a kind that is not carried, of several.
    fn left_out(&self, request: &Request, socket: &Found) -> Result<Vec<u8>, Error> {
        let listed = find::list(Some(socket.holder.tid))?;
        let mut listed = listed.sockets.into_iter();
        let listed = listed.find(|listed| listed.inode == socket.inode);
        let listed = listed.ok_or_else(|| unseen(&Target::Inode(socket.inode)))?;
        self.listed(request, &listed)
    }

    fn dump_passed(
        &self,
        request: &Request,
        passed: Option<OwnedFd>,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let missing = || Error::new(ErrorKind::BadInput, "dump", "no descriptor came with it");
        let socket = passed.ok_or_else(missing)?;
        protocol::of(socket.as_fd())?;
        let inode =
            rustix::fs::fstat(&socket).map_err(|error| Error::system("dump", error.into()))?;
        let target = Target::Inode(inode.st_ino);
        self.permit(&target, socket.as_fd(), Standing::Bearer)?;
        let checkpoint = Checkpoint::dump_passed(&socket, self.peer.pid)?;
        let mut answer = Vec::new();
        add_messages(&mut answer, request, &checkpoint)?;
        self.metrics.add(Counter::Dumped, 1);
        Ok(answer)
    }

    fn list(&self, request: &Request, process: Option<i32>) -> Result<Vec<Vec<u8>>, Error> {
        let of = match process {
            None => None,
            Some(called) => {
                let target = Target::Process(called);
                Some(self.peer.thread(called).ok_or_else(|| unseen(&target))?)
            }
        };
        let listing = find::list(of)?;
        let mut hidden = listing.hidden;
        let mut answer = Vec::new();
        for socket in &listing.sockets {
            // Of one process also those are meant that it has elsewhere.
            match self.may_see(socket, of.is_some()) {
                Verdict::Allowed => answer.push(self.listed(request, socket)?),
                Verdict::Forbidden => hidden += 1,
                Verdict::Unseen => {}
            }
        }
        let mut writer = Writer::new();
        writer.u32(number::HIDDEN, hidden as u32)?;
        answer.push(
            request
                .header
                .family(Command::List, flags::MULTI, &writer.finish()),
        );
        Ok(answer)
    }

    fn listed(&self, request: &Request, socket: &Listed) -> Result<Vec<u8>, Error> {
        let attributes = self.attributes(socket)?;
        Ok(request
            .header
            .family(Command::List, flags::MULTI, &attributes))
    }

    fn attributes(&self, socket: &Listed) -> Result<Vec<u8>, ImageError> {
        let mut writer = Writer::new();
        // sockfs numbers its inodes with 32 bits (`get_next_ino`).
        writer.u32(number::INODE, socket.inode as u32)?;
        writer.u32(number::SOCK_TYPE, socket.socket_type)?;
        writer.u32(number::FAMILY, socket.family)?;
        writer.u32(number::PROTOCOL, socket.number)?;
        if socket.cookie != 0 {
            writer.u64(number::COOKIE, socket.cookie)?;
        }
        writer.u64(number::NETNS, socket.netns)?;
        for holder in &socket.holders {
            let names = [holder.pid, holder.tid].map(|thread| self.peer.name_of(thread));
            if let [Some(pid), Some(tid)] = names {
                let numbers = [pid, tid, holder.fd].map(i32::to_ne_bytes);
                writer.put(number::HOLDER, numbers.as_flattened())?;
            }
        }
        writer.put(number::LOCAL, &address(&socket.local))?;
        writer.put(number::PEER, &address(&socket.peer))?;
        writer.u32(number::RECEIVE_BYTES, socket.receive_bytes)?;
        Ok(writer.finish())
    }

    /// The messages that answer a request that is no restore and no check.
    pub fn answer(
        &self,
        request: &Request,
        passed: Option<OwnedFd>,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let header = &request.header;
        match &request.ask {
            Ask::Family { all } => {
                let flags = if *all { flags::MULTI } else { 0 };
                let family =
                    header.controller(message::controller::NEW_FAMILY, flags, &message::family());
                Ok(vec![family])
            }
            Ask::Dump { what, .. } => self.dump(request, what, passed),
            Ask::List { process } => self.list(request, *process),
            Ask::Metrics if self.may_see_figures => {
                let mut writer = Writer::new();
                writer.str(number::TEXT, &self.metrics.text())?;
                Ok(vec![header.family(Command::Metrics, 0, &writer.finish())])
            }
            Ask::Metrics => {
                let why = "only the user of the service, and who administers its network namespace, may have them";
                Err(Error::new(ErrorKind::NotPermitted, "metrics", why))
            }
            Ask::Check | Ask::Restore { .. } | Ask::Wrong { .. } => Ok(Vec::new()),
        }
    }
}

/// struct sockaddr_in, sockaddr_in6.
fn address(address: &SocketAddr) -> Vec<u8> {
    const AF_INET: u16 = 2;
    const AF_INET6: u16 = 10;
    let port = address.port().to_be_bytes();
    match address {
        SocketAddr::V4(address) => {
            let ip = address.ip().octets();
            [&AF_INET.to_ne_bytes()[..], &port, &ip, &[0; 8]].concat()
        }
        SocketAddr::V6(address) => {
            let (ip, scope) = (address.ip().octets(), address.scope_id().to_ne_bytes());
            let flow = address.flowinfo().to_be_bytes();
            [&AF_INET6.to_ne_bytes()[..], &port, &flow, &ip, &scope].concat()
        }
    }
}

fn add_messages(
    answer: &mut Vec<Vec<u8>>,
    request: &Request,
    checkpoint: &Checkpoint,
) -> Result<(), Error> {
    for message in image::messages(checkpoint, 1)? {
        let command = match message.command {
            sockcr_image::file::Command::Queue => Command::Queue,
            _ => Command::Dump,
        };
        let packet = request
            .header
            .family(command, flags::MULTI, &message.attributes);
        if packet.len() > message::MAX_MESSAGE {
            let why = format!("a message of it would have {} bytes", packet.len());
            return Err(Error::system(why, Errno::MSGSIZE.into()));
        }
        answer.push(packet);
    }
    Ok(())
}
