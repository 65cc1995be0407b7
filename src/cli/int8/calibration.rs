//! The options of the commands that calibrate.

use super::dynamic::{Reduce, Target};
use crate::cli::output::{self, Progress};
use crate::error::{Error, Result};
use crate::int8::batch_axis::doubts;
use crate::int8::calibration_inputs;
use crate::int8::choose::choose;
use crate::int8::cpu::Cpu;
use crate::int8::engine::Engine;
use crate::int8::qdq::Float;
use crate::int8::qdq::observe::{Calibrators, Seen};
use crate::int8::qdq::rewrite::Integers;
use crate::int8::ranges::Calibrator;
use crate::int8::samples::Samples;
use crate::int8::weights::Levels;
use clap::ValueEnum;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Calibration inputs: .npz or .npy files, or a folder of them; their arrays have the names of the graph's inputs, and
    /// their first axis counts samples
    #[arg(long, value_name = "FILES", num_args = 1.., required_unless_present = "list")]
    pub calib: Vec<PathBuf>,

    /// How ranges are chosen from what calibration saw
    #[arg(
        long,
        value_name = "NAME",
        default_value = "best",
        default_value_if("percentile", clap::builder::ArgPredicate::IsPresent, "percentile")
    )]
    calibrator: Named,

    /// With --calibrator percentile: how much of all numbers a range holds
    #[arg(long, value_name = "PERCENT", default_value_t = Calibrator::PERCENTILE)]
    percentile: f64,

    /// The CPU that the model is going to run on
    #[arg(long, value_name = "CPU", default_value = "this")]
    target: Target,

    /// Weights in 7 bits, so that x86 without VNNI does not cut sums off
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    reduce_range: Reduce,

    /// List the layers that can be quantized, and do no more
    #[arg(long)]
    pub list: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Named {
    /// The one with the least error at the outputs on samples held out, and another for values that it suits better
    Best,
    Minmax,
    Average,
    Percentile,
    Entropy,
    Mse,
}

/// What calibration gave.
pub struct Calibrated {
    pub samples: Samples,
    pub seen: Seen,
    pub calibrators: Calibrators,
    /// The least signal-to-noise ratio of all outputs in dB, where calibrators were chosen by it.
    pub sqnr: Option<f64>,
}

/// In words.
pub fn named(calibrators: &Calibrators) -> String {
    let mut own: BTreeMap<&str, usize> = BTreeMap::new();
    calibrators.own.values().for_each(|calibrator| *own.entry(calibrator.name()).or_default() += 1);
    let own = own.iter().map(|(name, n)| format!(", {n} by {name}"));
    format!("{}{}", calibrators.most.name(), own.collect::<String>())
}

impl Options {
    /// None if the best is to be found.
    fn calibrator(&self) -> Result<Option<Calibrator>> {
        Ok(Some(match self.calibrator {
            Named::Best => return Ok(None),
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
        }))
    }

    /// The integers for the target, and in words why.
    pub fn integers(&self) -> (Integers, String) {
        let cpu = self.target.cpu();
        let Integers { signed, levels } = integers(cpu, self.reduce_range);
        let (activations, bits) = (if signed { "S8" } else { "U8" }, if levels == Levels::Reduced { 7 } else { 8 });
        let words =
            format!("{activations} activations, S8 weights of {bits} bits per channel, for {}; S32 biases", cpu.name());
        (Integers { signed, levels }, words)
    }

    /// Opens the samples and runs the float model on them; tells the user what is wrong with them.
    pub fn calibrate(&self, float: &Float, excluded: &dyn Fn(&str) -> bool, json: bool) -> Result<Calibrated> {
        let engine = float.engine()?;
        let samples = open(&self.calib, &engine)?;
        let progress = Progress::new(false, json);
        let doubts = doubts(&engine, &samples)?;
        let (mut seen, calibrators, sqnr) = match self.calibrator()? {
            Some(calibrator) => {
                let (all, total) = (Calibrators::all(calibrator), samples.len() as u64);
                let show = &mut |done: usize| progress.set(done as u64, total);
                (float.calibrate(&engine, &samples, &all, show)?, all, None)
            }
            None => {
                let show = &mut |done: usize, total: usize| progress.set(done as u64, total as u64);
                let found = choose(float, &samples, self.integers().0, excluded, show)?;
                (found.seen, found.calibrators, Some(found.sqnr))
            }
        };
        progress.finish();
        seen.warnings.extend(doubts);
        for warning in &seen.warnings {
            warn(warning, json);
        }
        Ok(Calibrated { samples, seen, calibrators, sqnr })
    }
}

/// The integers that suit a CPU.
pub fn integers(cpu: Cpu, reduce: Reduce) -> Integers {
    Integers { signed: matches!(cpu, Cpu::Arm | Cpu::ArmDot), levels: reduce.levels(cpu) }
}

/// Opens samples; tells the user what of them is not used.
pub fn open(paths: &[PathBuf], engine: &Engine) -> Result<Samples> {
    let samples = calibration_inputs::open(paths, engine)?;
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
