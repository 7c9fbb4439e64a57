//! `sockcr serve`: the service.

use crate::Outcome;
use sockcr_service::Server;
use std::path::PathBuf;
use tracing::Level;

/// Answer DUMP and RESTORE by message on a Unix socket, for whoever may; docs/service.md has the messages
///
/// Needs Linux 6.5. Without rights of its own it serves its own user. The service manager may pass the socket
/// (LISTEN_FDS) and is told when it is ready. SIGTERM and SIGINT end it, when what was asked for is answered.
#[derive(clap::Args)]
pub struct Arguments {
    /// Where it listens: by default at the socket of the service manager, else at /run/sockcr/socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// What goes to standard error: error, warn, info, debug
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: Level,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    tracing_subscriber::fmt()
        .with_max_level(arguments.log)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .init();
    Server::new(arguments.socket.as_deref())?.run()?;
    Ok(Outcome::Done)
}
