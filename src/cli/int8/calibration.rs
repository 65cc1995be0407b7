//! The options of the commands that calibrate.

use crate::cli::output::{self, Progress};
use crate::error::{Error, Result};
use crate::int8::engine::Engine;
use crate::int8::feed;
use crate::int8::qdq::Float;
use crate::int8::qdq::observe::Seen;
use crate::int8::qdq::rewrite::Integers;
use crate::int8::ranges::Calibrator;
use crate::int8::samples::Samples;
use clap::ValueEnum;
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Calibration inputs: .npz or .npy files, or a folder of them; their arrays have the names of the graph's inputs, and
    /// their first axis counts samples
    #[arg(long, value_name = "FILES", num_args = 1.., required_unless_present = "list")]
    pub calib: Vec<PathBuf>,

    /// How ranges are chosen from what calibration saw
    #[arg(long, value_name = "NAME", default_value = "minmax")]
    calibrator: Named,

    /// With --calibrator percentile: how much of all numbers a range holds
    #[arg(long, value_name = "PERCENT", default_value_t = Calibrator::PERCENTILE)]
    percentile: f64,

    /// The machine that the model is for [default: this one]
    #[arg(long, value_name = "CPU")]
    target: Option<Target>,

    /// Weights of 7 bits, for x86 CPUs without VNNI, whose sums would overflow [default: whether this CPU is one]
    #[arg(long, value_name = "WHETHER")]
    reduce_range: Option<Whether>,

    /// List the layers that can be quantized, and do no more
    #[arg(long)]
    pub list: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Named {
    Minmax,
    Average,
    Percentile,
    Entropy,
    Mse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// Unsigned activations
    X86,
    /// Signed activations
    Arm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Whether {
    Yes,
    No,
}

impl Options {
    pub fn calibrator(&self) -> Result<Calibrator> {
        Ok(match self.calibrator {
            Named::Minmax => Calibrator::MinMax,
            Named::Average => Calibrator::Average,
            Named::Entropy => Calibrator::Entropy,
            Named::Mse => Calibrator::Mse,
            Named::Percentile if self.percentile > 0.0 && self.percentile <= 100.0 => {
                Calibrator::Percentile(self.percentile)
            }
            Named::Percentile => {
                let percent = self.percentile;
                return Err(Error::usage(format!("--percentile {percent} is not above 0 and at most 100")));
            }
        })
    }

    /// The integers for the target, and in words why.
    pub fn integers(&self) -> (Integers, String) {
        let here = if cfg!(target_arch = "aarch64") { Target::Arm } else { Target::X86 };
        let target = self.target.unwrap_or(here);
        let (reduced, why) = match (self.reduce_range, target) {
            (Some(whether), _) => (whether == Whether::Yes, "as asked for"),
            (None, Target::Arm) => (false, "for ARM"),
            (None, Target::X86) if here == Target::Arm => (true, "for x86 CPUs without VNNI, too"),
            (None, Target::X86) if has_vnni() => (false, "this CPU has VNNI"),
            (None, Target::X86) => (true, "this CPU has no VNNI"),
        };
        let signed = target == Target::Arm;
        let (activations, bits) = (if signed { "S8" } else { "U8" }, if reduced { 7 } else { 8 });
        let words = format!("{activations} activations, S8 weights of {bits} bits per channel ({why}), int32 biases");
        (Integers { signed, limit: if reduced { 64 } else { 127 } }, words)
    }

    /// Opens the samples and runs the float model on them; tells the user what is wrong with them.
    pub fn calibrate(&self, float: &Float, json: bool) -> Result<(Samples, Seen)> {
        let engine = float.engine()?;
        let samples = open(&self.calib, &engine)?;
        let progress = Progress::new(false, json);
        let total = samples.len() as u64;
        let show = &mut |done: usize| progress.set(done as u64, total);
        let seen = float.calibrate(&engine, &samples, self.calibrator()?, show)?;
        progress.finish();
        for warning in &seen.warnings {
            warn(warning, json);
        }
        Ok((samples, seen))
    }
}

/// Opens samples; tells the user what of them is not used.
pub fn open(paths: &[PathBuf], engine: &Engine) -> Result<Samples> {
    let samples = feed::open(paths, engine)?;
    if !samples.unused.is_empty() {
        output::note(&format!("note: these arrays are no inputs of the graph: {}", samples.unused.join(", ")));
    }
    if samples.left_over() > 0 {
        let (rows, batch) = (samples.left_over(), samples.batch());
        output::note(&format!(
            "note: the graph takes {batch} samples at a time; {rows} at the ends of files are left over"
        ));
    }
    Ok(samples)
}

pub fn warn(text: &str, json: bool) {
    output::note(&format!("warning: {text}"));
    if json {
        output::json("warning", json!({ "text": text }));
    }
}

fn has_vnni() -> bool {
    #[cfg(target_arch = "x86_64")]
    let found = std::arch::is_x86_feature_detected!("avx512vnni") || std::arch::is_x86_feature_detected!("avxvnni");
    #[cfg(not(target_arch = "x86_64"))]
    let found = false;
    found
}
