//! `llmq int8`: models that are no LLMs. One file per subcommand; without one, a checkpoint folder.

mod advise;
mod bench;
mod checkpoint;
mod dynamic;

use crate::error::Result;
use clap::Subcommand;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    checkpoint: Option<checkpoint::CheckpointArgs>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Quantize an ONNX model's weights, and its activations while it runs: BERT and other transformers
    Dynamic(dynamic::Args),
    /// Say what fits a model, a target and a tolerance: FP16, dynamic or static INT8, training, or nothing
    Advise(advise::Args),
    /// Measure what quantizing brought: sizes, latencies, and what runs in INT8
    Bench(bench::Args),
}

pub fn run(args: &Args) -> Result<()> {
    match (&args.command, &args.checkpoint) {
        (Some(Command::Dynamic(args)), _) => dynamic::run(args),
        (Some(Command::Advise(args)), _) => advise::run(args),
        (Some(Command::Bench(args)), _) => bench::run(args),
        (None, Some(args)) => checkpoint::run(args),
        (None, None) => unreachable!("clap asks for a folder where there is no subcommand"),
    }
}
