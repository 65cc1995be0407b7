//! `llmq int8`: models that are no LLMs.

mod calibration;
mod qdq;
mod sensitivity;
mod validate;

use crate::error::Result;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Quantize an ONNX graph statically: calibrated activations, for convolutional networks above all
    Static(qdq::Args),
    /// Compare a quantized ONNX graph with its original, and say whether it is good enough
    Validate(validate::Args),
    /// Find the layers that lose most, and the shortest list of those that have to stay float
    Sensitivity(sensitivity::Args),
}

pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::Static(args) => qdq::run(args),
        Command::Validate(args) => validate::run(args),
        Command::Sensitivity(args) => sensitivity::run(args),
    }
}
