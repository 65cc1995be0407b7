//! `llmq int8`: models that are no LLMs. One file per subcommand.

mod advise;
mod bench;
mod calibration;
mod dynamic;
mod qdq;
mod sensitivity;
mod validate;

use crate::error::Result;
use clap::Subcommand;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
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
    match &args.command {
        Command::Dynamic(args) => dynamic::run(args),
        Command::Static(args) => qdq::run(args),
        Command::Validate(args) => validate::run(args),
        Command::Sensitivity(args) => sensitivity::run(args),
        Command::Advise(args) => advise::run(args),
        Command::Bench(args) => bench::run(args),
    }
}
