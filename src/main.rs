//! The `llmq` program.

use clap::Parser;
use llmq::cli::{Cli, run};
use std::process::ExitCode;

/// Most of the work is on large matrices.
#[global_allocator]
static MEMORY: llmq_kernels::LargePages = llmq_kernels::LargePages;

fn main() -> ExitCode {
    run(Cli::parse())
}
