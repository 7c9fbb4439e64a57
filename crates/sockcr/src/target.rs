//! How a socket is named.

use crate::error::{Error, ErrorKind};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// The name of one socket, or of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `PID:FD`: a descriptor of a process, or of a thread with its own table.
    Descriptor(i32, i32),
    /// `PID`: every socket of a process.
    Process(i32),
    /// `inode:N`
    Inode(u64),
    /// `cookie:N`, as SO_COOKIE and `ss -e` give it.
    Cookie(u64),
    /// `udp:ADDR:PORT`; `*` is any address.
    Local {
        /// `udp`
        protocol: String,
        /// The local address, `None` for any.
        address: Option<Ipv4Addr>,
        /// The local port.
        port: u16,
    },
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Target, Error> {
        parse(text).ok_or_else(|| {
            let error = Error::new(ErrorKind::BadInput, text, "names no socket");
            match text.contains('[') {
                true => error.help("IPv6 sockets are not carried yet"),
                false => error.help("PID:FD, PID, inode:N, cookie:N, udp:ADDR:PORT or udp:*:PORT"),
            }
        })
    }
}

fn parse(text: &str) -> Option<Target> {
    let Some((head, rest)) = text.split_once(':') else {
        return text
            .parse()
            .ok()
            .filter(|pid| *pid > 0)
            .map(Target::Process);
    };
    match head {
        "inode" => rest.parse().ok().map(Target::Inode),
        "cookie" => cookie(rest).map(Target::Cookie),
        "udp" => local(head, rest),
        pid => {
            let (pid, fd) = (pid.parse().ok()?, rest.parse().ok()?);
            (pid > 0 && fd >= 0).then_some(Target::Descriptor(pid, fd))
        }
    }
}

fn cookie(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn local(protocol: &str, text: &str) -> Option<Target> {
    let (address, port) = text.rsplit_once(':')?;
    Some(Target::Local {
        protocol: protocol.into(),
        address: match address {
            "*" => None,
            address => Some(address.parse().ok()?),
        },
        port: port.parse().ok()?,
    })
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Descriptor(pid, fd) => write!(f, "process {pid}, descriptor {fd}"),
            Target::Process(pid) => write!(f, "process {pid}"),
            Target::Inode(inode) => write!(f, "inode {inode}"),
            Target::Cookie(cookie) => write!(f, "cookie {cookie}"),
            Target::Local {
                protocol,
                address,
                port,
            } => match address {
                Some(address) => write!(f, "{protocol}:{address}:{port}"),
                None => write!(f, "{protocol}:*:{port}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_name_a_socket() {
        let udp = |address, port| Target::Local {
            protocol: "udp".into(),
            address,
            port,
        };
        for (text, target) in [
            ("12:3", Target::Descriptor(12, 3)),
            ("12", Target::Process(12)),
            ("inode:4711", Target::Inode(4711)),
            ("cookie:0x1f", Target::Cookie(31)),
            ("udp:127.0.0.1:53", udp(Some(Ipv4Addr::LOCALHOST), 53)),
            ("udp:*:53", udp(None, 53)),
        ] {
            assert_eq!(text.parse::<Target>().unwrap(), target, "{text}");
        }
    }

    #[test]
    fn what_names_nothing_says_what_would() {
        for text in [
            "",
            "x",
            "0",
            "-1",
            "1:-1",
            "1:x",
            "inode:",
            "udp:53",
            "udp:1.2.3:53",
            "udp:*:70000",
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadInput, "{text}");
            assert!(error.next_step().unwrap().contains("inode:N"), "{text}");
        }
    }
}
