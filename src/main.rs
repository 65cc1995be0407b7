//! The `llmq` program.

use clap::Parser;
use llmq::cli::{Cli, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    run(Cli::parse())
}
