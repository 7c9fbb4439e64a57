//! Packets and descriptors between the processes of the service, and to its clients.

use crate::message::MAX_MESSAGE;
use crate::request::Passed;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, MMsgHdr, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, recv,
    recvmsg, sendmmsg, sendmsg, shutdown, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Two ends of a line between processes.
pub fn line() -> io::Result<(OwnedFd, OwnedFd)> {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    Ok(socketpair(AddressFamily::UNIX, kind, flags, None)?)
}

/// Sends one packet, and descriptors beside it.
pub fn send(to: BorrowedFd<'_>, packet: &[u8], passed: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !passed.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(passed)) {
        return Err(Errno::INVAL.into());
    }
    let sent = sendmsg(
        to,
        &[IoSlice::new(packet)],
        &mut beside,
        SendFlags::NOSIGNAL,
    )?;
    match sent == packet.len() {
        true => Ok(()),
        false => Err(Errno::MSGSIZE.into()),
    }
}

/// Nothing more is taken from the other side, which reads what was sent to it before: what it has sent and nobody read
/// would be told it first, as ECONNRESET (`unix_release_sock`).
pub fn take_leave(of: BorrowedFd<'_>) {
    // It may have gone before us.
    let _ = shutdown(of, Shutdown::Read);
    let mut byte = [0];
    let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
    while recv(of, &mut byte, flags).is_ok_and(|(_, length)| length > 0) {}
}

/// Sends packets, in order, many by one call.
pub fn send_all(to: BorrowedFd<'_>, packets: &[Vec<u8>]) -> io::Result<()> {
    const MOST: usize = 64;
    for packets in packets.chunks(MOST) {
        let parts: Vec<[IoSlice<'_>; 1]> = packets.iter().map(|p| [IoSlice::new(p)]).collect();
        let mut beside: Vec<SendAncillaryBuffer<'_, '_, '_>> = packets
            .iter()
            .map(|_| SendAncillaryBuffer::default())
            .collect();
        let each = parts.iter().zip(&mut beside);
        let mut headers: Vec<MMsgHdr<'_>> = each.map(|(p, b)| MMsgHdr::new(p, b)).collect();
        let mut left = &mut headers[..];
        while !left.is_empty() {
            // What blocked for too long is told by the next call.
            let sent = sendmmsg(to, left, SendFlags::NOSIGNAL)?;
            left = left.get_mut(sent..).unwrap_or_default();
        }
    }
    Ok(())
}

/// Receives packets of at most [`MAX_MESSAGE`] bytes; of a longer one it tells one byte more.
#[derive(Debug)]
pub struct Receiver {
    room: Vec<u8>,
}

impl Default for Receiver {
    fn default() -> Receiver {
        Receiver {
            room: vec![0; MAX_MESSAGE + 1],
        }
    }
}

/// A packet that came, and what came beside it: two descriptors at most, others are closed.
#[derive(Debug)]
pub struct Packet<'a> {
    /// Its bytes; empty when the other side has closed.
    pub bytes: &'a [u8],
    /// The descriptors.
    pub descriptors: Vec<OwnedFd>,
    /// How many there were.
    pub passed: Passed,
}

impl Packet<'_> {
    /// The one descriptor beside it; `None` where there are more or fewer.
    pub fn descriptor(self) -> Option<OwnedFd> {
        let mut descriptors = self.descriptors.into_iter();
        descriptors.next().filter(|_| self.passed == Passed::One)
    }
}

impl Receiver {
    /// The next packet.
    pub fn receive(&mut self, from: BorrowedFd<'_>) -> io::Result<Packet<'_>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let mut room = [IoSliceMut::new(&mut self.room)];
        let told = loop {
            match recvmsg(from, &mut room, &mut beside, flags) {
                Err(Errno::INTR) => {}
                told => break told?,
            }
        };
        let descriptors = descriptors(&mut beside);
        // What had no room the kernel has not given to us (`scm_detach_fds`).
        let passed = match (told.flags.contains(ReturnFlags::CTRUNC), descriptors.len()) {
            (false, 0) => Passed::None,
            (false, 1) => Passed::One,
            _ => Passed::Many,
        };
        Ok(Packet {
            bytes: self.room.get(..told.bytes).unwrap_or_default(),
            descriptors,
            passed,
        })
    }
}

fn descriptors(beside: &mut RecvAncillaryBuffer<'_>) -> Vec<OwnedFd> {
    let rights = beside.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    rights.flatten().collect()
}

/// Writes a value down for another process of the service.
pub fn encode(value: &impl Serialize) -> io::Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(io::Error::other)
}

/// Reads one.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    postcard::from_bytes(bytes).map_err(io::Error::other)
}
