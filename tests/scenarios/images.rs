//! Images: written whole, private, the same through JSON, and refused when damaged.

use anyhow::{Context, ensure};
use sockcr_scenarios::command::{self, done, refused, sockcr};
use sockcr_scenarios::socket::{local, target, unbound};
use sockcr_scenarios::{Outcome, Scenario};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

pub const ALL: &[Scenario] = &[
    Scenario::new("images::json_and_back", &[], json_and_back),
    Scenario::new("images::damaged", &[], damaged),
    Scenario::new("images::edited", &[], edited),
    Scenario::new("images::edited_addresses", &[], edited_addresses),
    Scenario::new("images::wrongly_edited", &[], wrongly_edited),
    Scenario::new("images::compared", &[], compared),
    Scenario::new(
        "images::written_whole_and_private",
        &[],
        written_whole_and_private,
    ),
    Scenario::new("images::writer_killed", &[], writer_killed),
    Scenario::new("images::reader_gone", &[], reader_gone),
];

const LOOPBACK: u32 = 1;
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 1, 1);

/// A socket with something of everything.
fn rich(port: u16) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    socket.set_broadcast(true)?;
    socket.set_ttl(9)?;
    socket.set_nonblocking(true)?;
    socket.set_read_timeout(Some(Duration::from_millis(250)))?;
    socket.join_multicast_v4(&GROUP, &Ipv4Addr::LOCALHOST)?;
    let any = Ipv4Addr::UNSPECIFIED;
    rustix::net::sockopt::set_ip_multicast_if_with_ifindex(&socket, &any, &any, LOOPBACK)?;
    Ok(socket)
}

/// An image of these sockets, closed afterwards.
fn dumped(image: &str, sockets: Vec<UdpSocket>) -> Outcome {
    let targets = sockets.iter().map(target);
    let words = ["dump", "-o", image].map(str::to_owned);
    done(words.into_iter().chain(targets))?.quiet().map(drop)
}

fn json_and_back() -> Outcome {
    let bare = UdpSocket::from(unbound()?);
    let connected = UdpSocket::bind(local(7020))?;
    connected.connect(local(7021))?;
    dumped("a.skc", vec![rich(7022)?, bare, connected])?;
    for canonical in [false, true] {
        if canonical {
            let socket = rich(7022)?;
            done(["dump", &target(&socket), "--canonical", "-o", "a.skc"])?;
        }
        let image = std::fs::read("a.skc")?;
        let json = done(["show", "--json", "a.skc"])?.quiet()?;
        std::fs::write("a.json", &json.bytes)?;
        done(["encode", "a.json", "-o", "b.skc"])?.quiet()?;
        ensure!(
            std::fs::read("b.skc")? == image,
            "another image came back: {json}"
        );
        let again = sockcr(["encode", "-o", "-"])
            .input("a.json")?
            .run()?
            .done()?;
        ensure!(again.bytes == image, "another image came out of a pipe");
        done(["diff", "a.skc", "b.skc"])?.quiet()?;
    }
    let shown = sockcr(["show", "-"]).input("a.skc")?.run()?.done()?;
    shown.prints(&["udp 0.0.0.0:7022", "IP_TTL", "239.1.1.1 on lo"])?;
    for (text, why) in [
        ("", "EOF"),
        ("{}", "missing field"),
        (r#"{ "format": 99, "sockets": [] }"#, "format"),
        (r#"{ "format": 1, "sockets": [{}] }"#, "missing field"),
    ] {
        std::fs::write("wrong.json", text)?;
        refused(["encode", "wrong.json", "-o", "c.skc"])?.says(&[why])?;
        ensure!(
            !std::fs::exists("c.skc")?,
            "{text}: an image was written all the same"
        );
    }
    Ok(())
}

/// Each damaged image is refused by each verb with one error; nothing is restored or written.
fn damaged() -> Outcome {
    dumped("good.skc", vec![rich(7023)?, UdpSocket::bind(local(7024))?])?;
    let good = std::fs::read("good.skc")?;
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x04;
        is_refused(&bytes, at % 67 == 0).with_context(|| format!("byte {at} flipped"))?;
    }
    for length in (0..good.len()).step_by(13) {
        let what = || format!("cut to {length} of {} bytes", good.len());
        is_refused(&good[..length], length % 130 == 0).with_context(what)?;
    }
    let longer = [&good[..], &[0]].concat();
    is_refused(&longer, true).context("a byte added")?;
    is_refused(b"not an image at all", true).context("no image")
}

fn is_refused(bytes: &[u8], by_all: bool) -> Outcome {
    std::fs::write("bad.skc", bytes)?;
    refused(["show", "bad.skc"])?.says(&["bad.skc"])?;
    if !by_all {
        return Ok(());
    }
    for words in [
        &["show", "--json", "bad.skc"][..],
        &["restore", "bad.skc"],
        &["restore", "--lossy", "bad.skc", "--", "touch", "restored"],
        &["diff", "bad.skc", "good.skc"],
        &["diff", "good.skc", "bad.skc"],
        &["edit", "bad.skc", "IP_TTL=3"],
        &["edit", "bad.skc", "IP_TTL=3", "-o", "edited.skc"],
    ] {
        refused(words)?.says(&["bad.skc"])?;
    }
    ensure!(std::fs::read("bad.skc")? == bytes, "the image was changed");
    for made in ["restored", "edited.skc"] {
        ensure!(!std::fs::exists(made)?, "{made} was made");
    }
    Ok(())
}

fn edited() -> Outcome {
    dumped("a.skc", vec![UdpSocket::bind(local(7025))?])?;
    let before = std::fs::read("a.skc")?;
    let words = [
        "SO_RCVBUF=8M",
        "IP_TTL=9",
        "local=127.0.0.2:7026",
        "-o",
        "b.skc",
    ];
    done(["edit", "a.skc"].iter().chain(&words))?.says(&["IP_TTL: - → 9", "→ 127.0.0.2:7026"])?;
    ensure!(
        std::fs::read("a.skc")? == before,
        "the old image was changed"
    );
    done(["show", "--changed", "b.skc"])?.prints(&[
        "udp 127.0.0.2:7026",
        "8388608 B (8 MiB)",
        "IP_TTL",
    ])?;
    let different = sockcr(["diff", "a.skc", "b.skc"]).run()?.different()?;
    different.prints(&["local address", "127.0.0.2:7026", "SO_RCVBUF", "IP_TTL"])?;
    // In place, back again; a size that was chosen once stays chosen.
    let words = ["SO_RCVBUF=212992", "IP_TTL=default", "local=127.0.0.1:7025"];
    done(["edit", "b.skc"].iter().chain(&words))?;
    let locked = sockcr(["diff", "a.skc", "b.skc"]).run()?.different()?;
    ensure!(
        locked.text() == "receive buffer lock  not locked  →  locked\n",
        "{locked}"
    );
    done(["edit", "a.skc", "SO_BROADCAST=on", "-o", "b.skc"])?;
    done(["edit", "b.skc", "SO_BROADCAST=off"])?;
    ensure!(std::fs::read("b.skc")? == before, "another image came back");

    done([
        "edit",
        "a.skc",
        "local=127.0.0.2:7026",
        "IP_TTL=9",
        "-o",
        "c.skc",
    ])?;
    done(["edit", "c.skc", "peer=127.0.0.1:7027"])?.says(&["peer: none → 127.0.0.1:7027"])?;
    let words = ["restore", "c.skc", "--", "cat", "/proc/net/udp"];
    // 127.0.0.2:7026 -> 127.0.0.1:7027
    done(words)?.prints(&["0200007F:1B72 0100007F:1B73"])?;
    done(["edit", "c.skc", "peer=none"])?;
    done(["show", "--json", "c.skc"])?.prints(&["\"peer\": null"])?;
    done(["restore", "c.skc"])?.prints(&["exactly"])?;
    Ok(())
}

/// What is typed as an address is where the socket is restored, whatever it was bound to before.
fn edited_addresses() -> Outcome {
    let any = Ipv4Addr::UNSPECIFIED;
    dumped("any.skc", vec![UdpSocket::bind((any, 7034))?])?;
    dumped("chosen.skc", vec![UdpSocket::bind(local(0))?])?;
    dumped("unbound.skc", vec![UdpSocket::from(unbound()?)])?;
    let connected = UdpSocket::from(unbound()?);
    connected.connect(local(7035))?;
    dumped("connected.skc", vec![connected])?;
    for image in ["any.skc", "chosen.skc", "unbound.skc", "connected.skc"] {
        if image == "connected.skc" {
            done(["edit", image, "peer=none"])?;
            done(["restore", image])?.prints(&["exactly"])?;
        }
        for address in ["127.0.0.3:7036", "0.0.0.0:7036", "127.0.0.3:7037", "none"] {
            done(["edit", image, &format!("local={address}")])?;
            let ran = done(["restore", image])?.prints(&["exactly"]);
            ran.with_context(|| format!("{image} at {address}"))?;
        }
    }
    Ok(())
}

fn wrongly_edited() -> Outcome {
    dumped("a.skc", vec![UdpSocket::bind(local(7028))?])?;
    let before = std::fs::read("a.skc")?;
    for (change, why) in [
        ("SO_NOSUCH=1", "no such option"),
        ("nonsense", "is not NAME=VALUE"),
        ("SO_RCVBUF=x", "is not a size"),
        ("SO_RCVBUF=-1", "SO_RCVBUF=-1"),
        ("IP_TTL=256", "IP_TTL=256"),
        ("IP_TTL=", "IP_TTL="),
        ("SO_BROADCAST=2", "SO_BROADCAST=2"),
        ("IP_MTU_DISCOVER=IP_NOSUCH", "IP_NOSUCH"),
        ("SO_RCVTIMEO=5 parsecs", "parsecs"),
        (
            "SO_BINDTODEVICE=a-name-that-is-too-long",
            "SO_BINDTODEVICE=",
        ),
        ("SO_COOKIE=1", "does not carry"),
        ("local=127.0.0.1", "local=127.0.0.1"),
        ("local=[::1]:53", "local=[::1]:53"),
        ("peer=x", "peer=x"),
    ] {
        // A good change before a bad one changes nothing either.
        for words in [&["IP_TTL=3", change][..], &[change, "-o", "b.skc"]] {
            refused(["edit", "a.skc"].iter().chain(words))?.says(&[why])?;
            ensure!(
                std::fs::read("a.skc")? == before,
                "{change}: the image was changed"
            );
        }
        ensure!(!std::fs::exists("b.skc")?, "{change}: an image was written");
    }
    refused(["edit", "a.skc", "SO_NOSUCH=1"])?.helps("sockcr options")?;
    Ok(())
}

fn compared() -> Outcome {
    let (a, b) = (UdpSocket::bind(local(7029))?, UdpSocket::bind(local(7030))?);
    let (live_a, live_b) = (target(&a), target(&b));
    done(["dump", &live_a, "-o", "a.skc"])?;
    for (one, other) in [("a.skc", "a.skc"), ("a.skc", &live_a), (&live_a, &live_a)] {
        let same = done(["diff", one, other])?.quiet()?;
        ensure!(same.bytes.is_empty(), "the same, yet: {same}");
    }
    b.set_ttl(3)?;
    for (one, other) in [("a.skc", &live_b), (&live_a, &live_b)] {
        let different = sockcr(["diff", one, other]).run()?.different()?;
        different.prints(&["127.0.0.1:7029", "127.0.0.1:7030", "IP_TTL"])?;
    }
    let json = sockcr(["diff", "--json", "a.skc", &live_b])
        .run()?
        .different()?
        .json()?;
    let differences = json["sockets"][0].as_array().context("no differences")?;
    let what: Vec<_> = differences.iter().map(|d| &d["what"]).collect();
    ensure!(what == ["local address", "IP_TTL"], "{json}");
    done(["dump", &live_a, &live_b, "-o", "two.skc"])?;
    refused(["diff", "a.skc", "two.skc"])?.says(&["a.skc has 1 sockets, two.skc has 2"])?;
    Ok(())
}

fn written_whole_and_private() -> Outcome {
    let socket = UdpSocket::bind(local(7031))?;
    let name = target(&socket);
    rustix::process::umask(rustix::fs::Mode::empty());
    done(["dump", &name, "-o", "a.skc"])?;
    done(["show", "--json", "a.skc"]).and_then(|json| Ok(std::fs::write("a.json", json.bytes)?))?;
    done(["encode", "a.json", "-o", "b.skc"])?;
    done(["edit", "b.skc", "IP_TTL=3"])?;
    for image in ["a.skc", "b.skc"] {
        let mode = std::fs::metadata(image)?.permissions().mode() & 0o7777;
        ensure!(mode == 0o600, "{image} has mode {mode:o}");
    }
    // Where it cannot be written to the end, there is an error, and what was there stays.
    refused(["dump", &name, "-o", "/dev/full"])?.says(&["/dev/full", "no space left"])?;
    refused(["dump", &name, "-o", "no/such/folder/a.skc"])?
        .says(&["no/such/folder/a.skc", "no such"])?;
    refused(["dump", &name, "-o", "nobody"])?.says(&["nobody"])?;
    std::fs::write("old.skc", "old")?;
    refused(["dump", "inode:1", "-o", "old.skc"])?;
    refused(["dump", &name, "inode:1", "-o", "old.skc"])?;
    ensure!(
        std::fs::read("old.skc")? == b"old",
        "a failed dump changed the file"
    );
    done(["dump", &name, "-o", "old.skc"])?;
    done(["diff", "old.skc", "a.skc"])?;
    only_these(&["a.json", "a.skc", "b.skc", "log", "nobody", "old.skc"])
}

fn only_these(expected: &[&str]) -> Outcome {
    let names = std::fs::read_dir(".")?.map(|entry| Ok(entry?.file_name()));
    let mut names: Vec<std::ffi::OsString> = names.collect::<std::io::Result<_>>()?;
    names.sort();
    ensure!(names == expected, "left behind: {names:?}");
    Ok(())
}

/// At whatever moment the command is killed, the file is the old one or the new one.
fn writer_killed() -> Outcome {
    let sockets: Vec<UdpSocket> = (7100..7130)
        .map(|port| UdpSocket::bind(local(port)))
        .collect::<Result<_, _>>()?;
    let own: Vec<String> = sockets.iter().map(target).collect();
    let mut words = vec!["dump", "-o", "new.skc"];
    words.extend(own.iter().map(String::as_str));
    let whole = command::duration(&words)?;
    let new = std::fs::read("new.skc")?;
    let mut killed = 0;
    for round in 0..60 {
        std::fs::write("new.skc", "old")?;
        let process = sockcr(&words).start()?;
        if !process.ends_within(whole * round / 60)? {
            killed += 1;
        }
        process.kill()?;
        let now = std::fs::read("new.skc")?;
        let length = now.len();
        ensure!(
            now == b"old" || now == new,
            "round {round}: {length} bytes of {}",
            new.len()
        );
    }
    ensure!(
        killed > 5,
        "was killed only {killed} times: the moments are badly chosen"
    );
    Ok(())
}

/// Who reads the output may stop to, as head(1) does: no panic, no message.
fn reader_gone() -> Outcome {
    dumped("a.skc", vec![UdpSocket::bind(local(7032))?])?;
    let socket = UdpSocket::bind(local(7033))?;
    let name = target(&socket);
    for words in [
        &["options"][..],
        &["options", "--json"],
        &["options", "--markdown"],
        &["show", "a.skc"],
        &["show", "--json", "a.skc"],
        &["list"],
        &["check"],
        &["man"],
        &["completions", "bash"],
        &["dump", &name, "-o", "-"],
        &["--help"],
    ] {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        drop(reader);
        sockcr(words).run_into(writer)?.done()?.quiet()?;
    }
    // Standard error may be closed, too.
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    drop(reader);
    let ran = sockcr(["show", "inode:1"]).errors_into(writer)?;
    ensure!(ran.code == Some(1), "{ran}");
    Ok(())
}
