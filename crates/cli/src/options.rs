//! `sockcr options`: the table.

use crate::Outcome;
use crate::output::{self, line, styled};
use serde_json::{Value as Json, json};
use sockcr::ErrorKind;
use sockcr::option::{self, Access, Default, Level, Row};

/// Print the table of socket options: what is carried, how it is read and written, and why not
#[derive(clap::Args)]
pub struct Arguments {
    /// One option, in full
    name: Option<String>,

    /// As JSON
    #[arg(long, conflicts_with = "markdown")]
    json: bool,

    /// As the page docs/options.md
    #[arg(long, hide = true)]
    markdown: bool,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let rows: Vec<&'static Row> = match &arguments.name {
        None => option::rows().collect(),
        Some(name) => match option::find(name) {
            Some(row) => vec![row],
            None => {
                let none = sockcr::Error::new(ErrorKind::NotFound, name, "no such option");
                return Err(none.help("`sockcr options` lists them all").into());
            }
        },
    };
    match (arguments.json, arguments.markdown, &arguments.name) {
        (true, ..) => output::json(&rows.iter().map(to_json).collect())?,
        (_, true, _) => line(markdown(&rows).trim_end())?,
        (.., None) => print(&rows)?,
        (.., Some(_)) => rows.iter().try_for_each(|row| full(row))?,
    }
    Ok(Outcome::Done)
}

fn print(rows: &[&'static Row]) -> anyhow::Result<()> {
    let titles = ["NAME", "LEVEL", "NUMBER", "SINCE", "CARRIED"];
    let mut cells = vec![titles.map(str::to_owned).to_vec()];
    cells.extend(rows.iter().map(|row| {
        let number = row.number.to_string();
        let level = row.level.name();
        vec![
            row.name.into(),
            level.into(),
            number,
            row.since.into(),
            carried(row),
        ]
    }));
    output::table(&cells).into_iter().try_for_each(line)
}

fn full(row: &Row) -> anyhow::Result<()> {
    line(styled(output::STRONG, row.name))?;
    let mut cells = vec![
        ["  level", row.level.name()].map(str::to_owned).to_vec(),
        vec!["  number".into(), row.number.to_string()],
        vec!["  since".into(), format!("Linux {}", row.since)],
        vec!["  value".into(), row.kind.describe()],
        vec!["  carried".into(), carried(row)],
        vec!["  read".into(), read(row)],
        vec!["  fresh socket".into(), fresh(row)],
        vec!["  attribute".into(), row.attribute.to_string()],
        vec!["  source".into(), row.source.into()],
    ];
    if let Some(capability) = row.capability {
        cells.push(vec!["  needs".into(), capability.into()]);
    }
    output::table(&cells).into_iter().try_for_each(line)
}

fn carried(row: &Row) -> String {
    match row.special {
        Some((special, access)) => {
            format!(
                "{}; on {}: {}",
                how(row.access),
                special.name(),
                how(access)
            )
        }
        None => how(row.access),
    }
}

fn how(access: Access) -> String {
    match access {
        Access::Carried(stage) => format!("written {}", stage.name()),
        Access::State(file) => format!("as state ({file})"),
        Access::Alias(name) => format!("as {name}"),
        Access::ReadOnly(why) => format!("no: {why}"),
        Access::SetOnly(why) => format!("no: {why}"),
        Access::NotRead(why) => format!("no: {why}"),
    }
}

fn read(row: &Row) -> String {
    let by_option = match row.access {
        Access::Carried(_) | Access::Alias(_) | Access::ReadOnly(_) => "getsockopt",
        Access::State(_) => "by the state",
        Access::SetOnly(_) | Access::NotRead(_) => "never",
    };
    match row.hidden {
        Some(field) => format!("{by_option}; whole by BPF only ({})", field.name()),
        None => by_option.into(),
    }
}

fn fresh(row: &Row) -> String {
    match row.default {
        Default::Number(number) => number.to_string(),
        Default::ByFamily(inet, inet6) => format!("{inet}, of AF_INET6 {inet6}"),
        Default::ByPort(udp, others) => format!("{udp}, of raw and ping sockets {others}"),
        Default::ByProtocol(own, other) => {
            let own = own
                .iter()
                .map(|(protocol, number)| format!(", of protocol {protocol} {number}"));
            format!("{other}{}", own.collect::<String>())
        }
        Default::Empty => "none".into(),
        Default::Sysctl(name) => format!("sysctl {name}"),
        Default::None => "-".into(),
    }
}

fn to_json(row: &&'static Row) -> Json {
    json!({
        "name": row.name,
        "level": row.level.name(),
        "level_number": row.level.number(),
        "number": row.number,
        "attribute": row.attribute,
        "value": row.kind.describe(),
        "carried": row.carried(),
        "how": carried(row),
        "read": read(row),
        "fresh": fresh(row),
        "capability": row.capability,
        "since": row.since,
        "source": row.source,
    })
}

/// The page docs/options.md.
pub fn markdown(rows: &[&'static Row]) -> String {
    let mut page = String::from(
        "# Socket options\n\n\
         Every option that Linux answers on a UDP, UDP-Lite, ping or raw socket, and what a checkpoint does\n\
         with it. A socket of AF_INET6 has those of IPPROTO_IP too, unless it is raw.\n\
         This page is written by `sockcr options --markdown` from the tables in\n\
         `crates/sockcr/src/option/`; a test holds the two together.\n",
    );
    for level in Level::ALL {
        page += &format!("\n## {}\n\n", level.name());
        page += "| option | no | attribute | value | fresh socket | read | carried | needs | since | source |\n";
        page += "|---|---|---|---|---|---|---|---|---|---|\n";
        let mut of_level: Vec<_> = rows.iter().filter(|row| row.level == level).collect();
        of_level.sort_by_key(|row| row.number);
        for row in of_level {
            let cells = [
                row.name.to_owned(),
                row.number.to_string(),
                row.attribute.to_string(),
                row.kind.describe().replace('|', "\\|"),
                fresh(row),
                read(row),
                carried(row),
                row.capability.unwrap_or_default().to_owned(),
                row.since.to_owned(),
                row.source.to_owned(),
            ];
            page += &format!("| {} |\n", cells.join(" | "));
        }
    }
    page
}
