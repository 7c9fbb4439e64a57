//! The command `sockcr`.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    sockcr_cli::main()
}
