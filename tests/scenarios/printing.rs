//! What the command prints about itself and the system, and the filters of `list`.

use anyhow::{Context, ensure};
use rustix::net::SendFlags;
use sockcr_scenarios::command::{done, refused, sockcr};
use sockcr_scenarios::need::Need;
use sockcr_scenarios::{Outcome, Scenario};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;

pub const ALL: &[Scenario] = &[
    Scenario::new("printing::list_with_filters", &[], list_with_filters),
    Scenario::new("printing::what_waits", &[Need::Root], what_waits),
    Scenario::new("printing::options", &[], options),
    Scenario::new(
        "printing::options_page_is_up_to_date",
        &[],
        options_page_is_up_to_date,
    ),
    Scenario::new("printing::check", &[], check),
    Scenario::new(
        "printing::completions_and_manual",
        &[],
        completions_and_manual,
    ),
];

/// Every verb that a user sees.
const VERBS: [&str; 12] = [
    "list",
    "show",
    "dump",
    "restore",
    "diff",
    "encode",
    "edit",
    "options",
    "check",
    "demo",
    "completions",
    "man",
];

fn list_with_filters() -> Outcome {
    let server = UdpSocket::bind("127.0.0.1:7050")?;
    let client = UdpSocket::bind("127.0.0.2:7051")?;
    client.connect(server.local_addr()?)?;
    client.send(b"queued")?;
    let all = ["127.0.0.1:7050", "127.0.0.2:7051"];
    for (filter, expected) in [
        ("", &all[..]),
        ("sport = :7050", &all[..1]),
        ("sport = 7051 or sport = 7050", &all),
        ("dport = :7050 and not src 127.0.0.1", &all[1..]),
        ("src 127.0.0.0/31", &all[..1]),
        ("dst 127.0.0.1:7050", &all[1..]),
        ("!( sport ge 7000 )", &[]),
        ("sport > 7050", &all[1..]),
    ] {
        // As one argument and as many.
        for words in [vec![filter], filter.split_whitespace().collect()] {
            let ran = done(["list", "--json"].into_iter().chain(words))?;
            let json = ran.json()?;
            let sockets = json["sockets"].as_array().context("no list")?;
            let mut found: Vec<_> = sockets.iter().map(|s| s["local"].as_str()).collect();
            found.sort();
            let expected: Vec<_> = expected.iter().map(|address| Some(*address)).collect();
            ensure!(found == expected, "{filter}: {ran}");
        }
    }
    let row = done(["list", "sport", "=", ":7050"])?;
    let lines = row.text().lines().count();
    ensure!(
        lines == 2 && !row.text().contains(" 0 B"),
        "a title and a full queue: {row}"
    );
    for wrong in ["sport", "foo = 3", "src 1.2.3", "( sport = 1", "sport = x"] {
        sockcr(["list", wrong])
            .run()?
            .misused()?
            .says(&["is no filter"])?;
    }
    Ok(())
}

/// What waits is shown, and still there afterwards.
fn what_waits() -> Outcome {
    let server = UdpSocket::bind("127.0.0.1:7050")?;
    let client = UdpSocket::bind("127.0.0.2:7051")?;
    let target = format!("{}:{}", std::process::id(), server.as_raw_fd());
    let empty = done(["show", &target])?.quiet()?;
    ensure!(!empty.text().contains("waiting"), "{empty}");
    client.send_to(b"", server.local_addr()?)?;
    client.send_to(b"seven..", server.local_addr()?)?;
    rustix::net::sendto(
        &server,
        b"held back",
        SendFlags::MORE,
        &SocketAddr::from(([127, 0, 0, 3], 9)),
    )?;
    for _ in 0..2 {
        done(["show", &target])?.quiet()?.prints(&[
            "waiting to be received",
            "127.0.0.2:7051 → 127.0.0.1:7050  0 B",
            "127.0.0.2:7051 → 127.0.0.1:7050  7 B",
            "held back",
            "→ 127.0.0.3:9  9 B",
        ])?;
    }
    let mut buffer = [0; 16];
    ensure!(server.recv(&mut buffer)? == 0, "the first has no data");
    ensure!(server.recv(&mut buffer)? == 7, "the second has 7 bytes");
    Ok(())
}

fn options() -> Outcome {
    done(["options"])?
        .quiet()?
        .prints(&["NAME", "SO_RCVBUF", "IP_TTL", "UDP_SEGMENT"])?;
    done(["options", "so_rcvbuf"])?.quiet()?.prints(&[
        "SO_RCVBUF",
        "SOL_SOCKET",
        "rmem_default",
    ])?;
    refused(["options", "SO_NOSUCH"])?.says(&["SO_NOSUCH", "no such option"])?;
    let json = done(["options", "--json"])?.quiet()?.json()?;
    let rows = json.as_array().context("no array")?;
    ensure!(rows.len() > 80, "only {} options", rows.len());
    for row in rows {
        for key in ["name", "level", "value", "how", "read", "since", "source"] {
            ensure!(row[key].is_string(), "no {key}: {row}");
        }
        ensure!(
            row["number"].is_u64() && row["carried"].is_boolean(),
            "{row}"
        );
    }
    let one = done(["options", "SO_RCVBUF", "--json"])?.json()?;
    ensure!(one[0]["number"] == 8, "{one}");
    Ok(())
}

fn options_page_is_up_to_date() -> Outcome {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/options.md");
    let have = std::fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    let due = done(["options", "--markdown"])?.quiet()?.text();
    let differs = have
        .lines()
        .zip(due.lines())
        .find(|(have, due)| have != due);
    ensure!(
        have == due,
        "docs/options.md is old: cargo run -- options --markdown > docs/options.md\n{differs:?}"
    );
    Ok(())
}

fn check() -> Outcome {
    let json = done(["check", "--json"])?.quiet()?.json()?;
    let features = json["features"].as_array().context("no features")?;
    let text = done(["check"])?.quiet()?.text();
    ensure!(features.len() > 5, "{json}");
    for feature in features {
        let what = feature["what"].as_str().context("no name")?;
        let answer = if feature["missing"].is_null() {
            "yes"
        } else {
            "no"
        };
        let mut lines = text.lines().filter(|line| line.contains(what));
        let line = lines
            .next()
            .with_context(|| format!("{what} is not in {text}"))?;
        ensure!(line.starts_with(answer), "{line}: {feature}");
        ensure!(feature["without"].is_string(), "{feature}");
    }
    Ok(())
}

fn completions_and_manual() -> Outcome {
    for (shell, sign) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef sockcr"),
        ("fish", "complete -c"),
    ] {
        let script = done(["completions", shell])?.quiet()?.prints(&[sign])?;
        script.prints(&VERBS)?;
    }
    let page = done(["man"])?
        .quiet()?
        .prints(&[".TH sockcr 1", "inode:N"])?;
    page.prints(&VERBS)?;
    std::fs::create_dir("pages")?;
    done(["man", "pages"])?.quiet()?;
    for verb in VERBS {
        let page = std::fs::read_to_string(format!("pages/sockcr-{verb}.1")).context(verb)?;
        ensure!(page.contains(".TH"), "{page}");
    }
    let missing = refused(["man", "no/such/folder"])?;
    missing.says(&["no/such/folder"])?;
    Ok(())
}
