//! A network namespace next door, and cables to it.

use crate::process::{Process, run};
use crate::{Outcome, actor};
use anyhow::Context;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

/// Who lives there: what it sends arrives here by a device, and not by loopback.
#[derive(Debug)]
pub struct Neighbour {
    process: Process,
    /// Sockets of that namespace, which is that of a socket for as long as it lives.
    unbound: Vec<OwnedFd>,
}

impl Neighbour {
    /// Moves in, with this many sockets to be used.
    pub fn start(sockets: usize) -> anyhow::Result<Neighbour> {
        let kinds = vec!["unbound"; sockets];
        let (process, facts) = actor::start("elsewhere", &kinds)?;
        let held = facts.as_array().context("no sockets")?;
        let take = |socket: &serde_json::Value| {
            let fd = socket["fd"].as_i64().context("no descriptor")?;
            crate::socket::of_process(process.pid(), fd)
        };
        let unbound: anyhow::Result<Vec<OwnedFd>> = held.iter().map(take).collect();
        Ok(Neighbour {
            process,
            unbound: unbound?,
        })
    }

    /// Lays a cable: a device here with an address, and one of the same name there with others.
    pub fn link(&self, device: &str, here: Ipv4Addr, there: &[Ipv4Addr]) -> Outcome {
        let pid = self.process.pid().to_string();
        let words = ["link", "add", device, "type", "veth", "peer"];
        run(
            "ip",
            &[&words[..], &["name", device, "netns", &pid]].concat(),
        )?;
        run("ip", &["address", "add", &net(here), "dev", device])?;
        run("ip", &["link", "set", device, "up"])?;
        for there in there {
            self.run("ip", &["address", "add", &net(*there), "dev", device])?;
        }
        self.run("ip", &["link", "set", device, "up"])
    }

    /// Runs a program of the system there.
    fn run(&self, name: &str, arguments: &[&str]) -> Outcome {
        let namespace = format!("--net=/proc/{}/ns/net", self.process.pid());
        run("nsenter", &[&[&namespace, name], arguments].concat())
    }

    /// A socket at an address there.
    pub fn socket(&mut self, address: SocketAddr) -> anyhow::Result<UdpSocket> {
        let socket = self.unbound.pop().context("no socket is left")?;
        rustix::net::bind(&socket, &address).with_context(|| format!("bind to {address}"))?;
        Ok(socket.into())
    }
}

fn net(address: Ipv4Addr) -> String {
    format!("{address}/24")
}
