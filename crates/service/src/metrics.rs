//! How the service fares: counters that all of its processes share, as Prometheus text.

use crate::message::Command;
use std::fmt::Write;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The upper ends of the histogram, in microseconds.
const BUCKETS: [u64; 11] = [
    20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 100_000, 1_000_000,
];
/// The kernel has fewer.
const ERRNOS: usize = 140;
/// The family, the commands, and what is wrong.
const VERBS: usize = Command::ALL.len() + 2;

const REQUESTS: usize = 0;
const FAILURES: usize = REQUESTS + VERBS;
const HISTOGRAM: usize = FAILURES + ERRNOS;
const SINGLE: usize = HISTOGRAM + BUCKETS.len();
const COUNT: usize = SINGLE + SINGLES.len();

/// What is one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Clients taken.
    Clients,
    /// Clients of now.
    Connected,
    /// Clients turned away.
    TurnedAway,
    /// Clients that took nothing, or sent too slowly, or nonsense.
    LetGo,
    /// Sockets dumped.
    Dumped,
    /// Sockets restored.
    Restored,
    /// Bytes of answers.
    Sent,
    /// Bytes of images that came.
    Received,
    /// Microseconds that requests took.
    Time,
    /// Requests in the histogram.
    Timed,
}

const SINGLES: [(Counter, &str, &str, &str); 10] = [
    (
        Counter::Clients,
        "clients_total",
        "counter",
        "Clients that connected.",
    ),
    (
        Counter::Connected,
        "clients",
        "gauge",
        "Clients that are connected.",
    ),
    (
        Counter::TurnedAway,
        "clients_turned_away_total",
        "counter",
        "Clients that were too many.",
    ),
    (
        Counter::LetGo,
        "clients_let_go_total",
        "counter",
        "Clients whose connection the service ended.",
    ),
    (
        Counter::Dumped,
        "sockets_dumped_total",
        "counter",
        "Sockets dumped.",
    ),
    (
        Counter::Restored,
        "sockets_restored_total",
        "counter",
        "Sockets restored.",
    ),
    (
        Counter::Sent,
        "sent_bytes_total",
        "counter",
        "Bytes of answers.",
    ),
    (
        Counter::Received,
        "image_bytes_total",
        "counter",
        "Bytes of images to restore.",
    ),
    (Counter::Time, "", "", ""),
    (Counter::Timed, "", "", ""),
];

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// The family.
    Family,
    /// A command of it.
    Of(Command),
    /// Nothing that is understood.
    Wrong,
}

impl Verb {
    fn place(self) -> usize {
        match self {
            Verb::Family => 0,
            Verb::Of(command) => command as usize,
            Verb::Wrong => VERBS - 1,
        }
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Family => "family",
            Verb::Of(command) => command.name(),
            Verb::Wrong => "wrong",
        }
    }
}

/// The counters.
#[derive(Clone, Copy, Debug)]
pub struct Metrics(&'static [AtomicU64]);

impl Metrics {
    /// All of them 0, shared with every copy that this process makes of itself from now on.
    pub fn new() -> io::Result<Metrics> {
        sockcr_sys::shared::counters(COUNT).map(Metrics)
    }

    /// Adds to one.
    pub fn add(&self, counter: Counter, count: u64) {
        self.at(SINGLE + counter as usize, count);
    }

    /// One client less.
    pub fn gone(&self) {
        if let Some(cell) = self.0.get(SINGLE + Counter::Connected as usize) {
            cell.fetch_sub(1, Relaxed);
        }
    }

    /// A request was answered, with this errno or 0.
    pub fn answered(&self, verb: Verb, errno: i32, took: Duration) {
        self.at(REQUESTS + verb.place(), 1);
        if errno != 0 {
            let known = usize::try_from(errno).unwrap_or(0).min(ERRNOS - 1);
            self.at(FAILURES + known, 1);
        }
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = BUCKETS.iter().position(|end| took <= *end) {
            self.at(HISTOGRAM + bucket, 1);
        }
        self.add(Counter::Time, took);
        self.add(Counter::Timed, 1);
    }

    fn at(&self, place: usize, count: u64) {
        if let Some(cell) = self.0.get(place) {
            cell.fetch_add(count, Relaxed);
        }
    }

    fn get(&self, place: usize) -> u64 {
        self.0.get(place).map_or(0, |cell| cell.load(Relaxed))
    }

    /// In the text format of Prometheus.
    pub fn text(&self) -> String {
        let mut text = String::new();
        head(&mut text, "requests_total", "counter", "Requests answered.");
        let asked = Command::ALL.into_iter().filter(|c| *c != Command::Queue);
        let verbs = asked.map(Verb::Of).chain([Verb::Family, Verb::Wrong]);
        for verb in verbs {
            let name = format!("requests_total{{command=\"{}\"}}", verb.name());
            line(&mut text, &name, self.get(REQUESTS + verb.place()));
        }
        head(
            &mut text,
            "failures_total",
            "counter",
            "Requests that failed, by errno.",
        );
        for errno in 1..ERRNOS {
            let count = self.get(FAILURES + errno);
            if count > 0 {
                line(
                    &mut text,
                    &format!("failures_total{{errno=\"{errno}\"}}"),
                    count,
                );
            }
        }
        for (counter, name, kind, help) in SINGLES {
            if !name.is_empty() {
                head(&mut text, name, kind, help);
                line(&mut text, name, self.get(SINGLE + counter as usize));
            }
        }
        self.histogram(&mut text);
        text
    }

    fn histogram(&self, text: &mut String) {
        let name = "request_duration_seconds";
        head(text, name, "histogram", "How long requests took.");
        let mut sum = 0;
        for (at, end) in BUCKETS.into_iter().enumerate() {
            sum += self.get(HISTOGRAM + at);
            let end = seconds(end);
            line(text, &format!("{name}_bucket{{le=\"{end}\"}}"), sum);
        }
        let all = self.get(SINGLE + Counter::Timed as usize);
        line(text, &format!("{name}_bucket{{le=\"+Inf\"}}"), all);
        let time = seconds(self.get(SINGLE + Counter::Time as usize));
        line(text, &format!("{name}_sum"), time);
        line(text, &format!("{name}_count"), all);
    }
}

fn seconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e6
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    // To write to a String does not fail.
    let _ = write!(
        text,
        "# HELP sockcr_{name} {help}\n# TYPE sockcr_{name} {kind}\n"
    );
}

fn line(text: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = writeln!(text, "sockcr_{name} {value}");
}
