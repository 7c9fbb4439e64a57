//! sendmsg(2) and recvmsg(2) with any ancillary data, as C programs use them.
#![allow(dead_code, reason = "shared by tests that use parts of it")]

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use sockcr_sys::message::{self, Outgoing, add_control, control_messages, send_many};

/// One control message: level, type, data.
pub type Control = (i32, i32, Vec<u8>);

/// What one recvmsg(2) gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub name: Option<SocketAddr>,
    pub data: Vec<u8>,
    pub controls: Vec<Control>,
    pub flags: i32,
}

impl Message {
    /// The data of a control message.
    pub fn control(&self, level: i32, kind: i32) -> Option<&[u8]> {
        let mut controls = self.controls.iter();
        controls
            .find(|control| (control.0, control.1) == (level, kind))
            .map(|control| control.2.as_slice())
    }

    /// A word in a control message; 0 when there is none.
    pub fn word(&self, level: i32, kind: i32, at: usize) -> u32 {
        let data = self.control(level, kind).and_then(|data| data.get(at..));
        let word = data.and_then(|data| data.first_chunk());
        word.map_or(0, |word| u32::from_ne_bytes(*word))
    }
}

/// Receives one message without waiting; None: there is none.
pub fn receive(socket: &impl AsFd, flags: i32) -> io::Result<Option<Message>> {
    let (mut data, mut control) = (vec![0; 70_000], vec![0; 2048]);
    let flags = flags | libc::MSG_DONTWAIT;
    let received = match message::receive(socket.as_fd(), &mut data, &mut control, flags) {
        Ok(received) => received,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error),
    };
    data.truncate(received.length);
    control.truncate(received.control_length);
    let controls = control_messages(&control);
    Ok(Some(Message {
        name: received.source,
        data,
        controls: controls
            .map(|message| (message.level, message.kind, message.payload.to_vec()))
            .collect(),
        flags: received.flags,
    }))
}

/// Sends one message with control messages.
pub fn send(
    socket: &impl AsFd,
    to: SocketAddr,
    data: &[u8],
    controls: &[Control],
    flags: i32,
) -> io::Result<()> {
    let mut control = Vec::new();
    for (level, kind, data) in controls {
        add_control(&mut control, *level, *kind, data);
    }
    let one = Outgoing {
        to,
        control: &control,
        parts: [data, &[]],
    };
    send_many(socket.as_fd(), &[one], flags).map(drop)
}

/// Switches an offload of a device on or off (`ETHTOOL_S...`).
pub fn offload(device: &str, command: u32, value: u32) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    sockcr_sys::interface::set_offload(socket.as_fd(), device, command, value)
}
