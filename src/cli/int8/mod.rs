//! `llmq int8`: models that are no LLMs. One file per subcommand; without one, a checkpoint folder.

mod advise;
mod auto;
mod bench;
mod calibration;
mod checkpoint;
mod dynamic;
mod qdq;
mod refining;
mod sensitivity;
mod training;
mod validate;

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
    /// Try what fits an ONNX model, and write what is on the knee of the curve of size, error and time
    Auto(auto::Args),
    /// Quantize an ONNX model's weights, and its activations while it runs: BERT and other transformers
    Dynamic(dynamic::Args),
    /// Quantize an ONNX model with ranges of activations that calibration finds: convolutional networks above all
    Static(qdq::Args),
    /// Compare a quantized ONNX model with its original, and say whether it is good enough
    Validate(validate::Args),
    /// Find the layers that lose most, and the shortest list of those that have to stay float
    Sensitivity(sensitivity::Args),
    /// Say what fits a model, a target and a tolerance: FP16, dynamic or static INT8, training, or nothing
    Advise(advise::Args),
    /// Measure what quantizing brought: sizes, latencies, and what runs in INT8
    Bench(bench::Args),
}

pub fn run(args: &Args) -> Result<()> {
    if matches!(args.command, Some(Command::Auto(_) | Command::Dynamic(_) | Command::Static(_))) {
        llmq_kernels::memory::give_back_early();
    }
    match (&args.command, &args.checkpoint) {
        (Some(Command::Auto(args)), _) => auto::run(args),
        (Some(Command::Dynamic(args)), _) => dynamic::run(args),
        (Some(Command::Static(args)), _) => qdq::run(args),
        (Some(Command::Validate(args)), _) => validate::run(args),
        (Some(Command::Sensitivity(args)), _) => sensitivity::run(args),
        (Some(Command::Advise(args)), _) => advise::run(args),
        (Some(Command::Bench(args)), _) => bench::run(args),
        (None, Some(args)) => checkpoint::run(args),
        (None, None) => unreachable!("clap asks for a folder where there is no subcommand"),
    }
}

/// Says so where a file became larger, which nobody quantizes for.
fn warn_larger(before: u64, after: u64, json: bool) {
    if after > before {
        calibration::warn(
            &format!(
                "the result is larger than the original, {after} bytes for {before}: scales outweigh what is saved"
            ),
            json,
        );
    }
}

/// How a size compares with the one before, in words: a small model, whose scales outweigh what is saved, may grow.
fn ratio(before: u64, after: u64) -> String {
    let (before, after) = (before as f64, after as f64);
    if after <= before {
        format!("{:.2} times smaller", before / after)
    } else {
        format!("{:.2} times as large", after / before)
    }
}
