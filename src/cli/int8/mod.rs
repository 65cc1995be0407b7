//! `llmq int8`: models that are no LLMs.

mod checkpoint;

use crate::error::Result;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    checkpoint: checkpoint::CheckpointArgs,
}

pub fn run(args: &Args) -> Result<()> {
    checkpoint::run(&args.checkpoint)
}
