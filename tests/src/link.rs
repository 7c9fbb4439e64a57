//! A network namespace next door, and cables to it.

use crate::process::{Process, program, run};
use crate::{Outcome, actor};
use anyhow::Context;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

/// Who lives there: what it sends arrives here by a device, and not by loopback.
#[derive(Debug)]
pub struct Neighbour {
    process: Process,
    /// Sockets of that namespace, which is that of a socket for as long as it lives: of IPv4, of IPv6.
    unbound: [Vec<OwnedFd>; 2],
}

impl Neighbour {
    /// Moves in, with this many sockets of each family to be used.
    pub fn start(sockets: usize) -> anyhow::Result<Neighbour> {
        let kinds = [vec!["unbound"; sockets], vec!["unbound6"; sockets]].concat();
        let (process, facts) = actor::start("elsewhere", &kinds)?;
        let held = facts.as_array().context("no sockets")?;
        let take = |socket: &serde_json::Value| {
            let fd = socket["fd"].as_i64().context("no descriptor")?;
            crate::socket::of_process(process.pid(), fd)
        };
        let unbound: anyhow::Result<Vec<OwnedFd>> = held.iter().map(take).collect();
        let mut unbound = unbound?;
        let ipv6 = unbound.split_off(sockets);
        Ok(Neighbour {
            process,
            unbound: [unbound, ipv6],
        })
    }

    /// The process that lives there.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Lays a cable: a device here with an address, and one of the same name there with others.
    pub fn link<A: Into<IpAddr> + Copy>(&self, device: &str, here: A, there: &[A]) -> Outcome {
        let pid = self.process.pid().to_string();
        let words = ["link", "add", device, "type", "veth", "peer"];
        run(
            "ip",
            &[&words[..], &["name", device, "netns", &pid]].concat(),
        )?;
        // No address but those that are asked for.
        let up = ["link", "set", device, "addrgenmode", "none", "up"];
        run("ip", &up)?;
        self.run("ip", &up)?;
        self.addresses(device, here, there)
    }

    /// Gives a device here one address more, and that there others.
    pub fn addresses<A: Into<IpAddr> + Copy>(&self, device: &str, here: A, there: &[A]) -> Outcome {
        run("ip", &add(device, &net(here.into())))?;
        for there in there {
            self.run("ip", &add(device, &net((*there).into())))?;
        }
        Ok(())
    }

    /// Runs a program of the system there.
    fn run(&self, name: &str, arguments: &[&str]) -> Outcome {
        run(
            "nsenter",
            &[&[&self.namespace()[..], name], arguments].concat(),
        )
    }

    /// A program of the system that lives there.
    pub fn program(&self, name: &str) -> Command {
        let mut command = program("nsenter");
        command.args([&self.namespace(), name]);
        command
    }

    fn namespace(&self) -> String {
        format!("--net=/proc/{}/ns/net", self.process.pid())
    }

    /// The index of a device there.
    pub fn index(&self, device: &str) -> anyhow::Result<u32> {
        let socket = self.unbound.iter().flatten().next();
        let socket = socket.context("no socket is left")?;
        Ok(sockcr_sys::interface::index(socket.as_fd(), device)?)
    }

    /// A socket at an address there.
    pub fn socket(&mut self, address: SocketAddr) -> anyhow::Result<UdpSocket> {
        let unbound = &mut self.unbound[usize::from(address.is_ipv6())];
        let socket = unbound.pop().context("no socket is left")?;
        rustix::net::bind(&socket, &address).with_context(|| format!("bind to {address}"))?;
        Ok(socket.into())
    }
}

fn net(address: IpAddr) -> String {
    let bits = if address.is_ipv6() { 64 } else { 24 };
    format!("{address}/{bits}")
}

/// `nodad`: an address of IPv6 can be used at once.
fn add<'a>(device: &'a str, net: &'a str) -> Vec<&'a str> {
    let mut words = vec!["address", "add", net, "dev", device];
    words.extend(net.contains(':').then_some("nodad"));
    words
}
