//! The options of `--qat`.

use crate::cli::output::{Progress, line};
use crate::error::{Error, Result};
use crate::int8::qat::{self, Report, Trained};
use crate::int8::qdq::CalibratedGraph;
use serde_json::{Value, json};

#[derive(Debug, clap::Args)]
pub struct Training {
    /// Train the weights for some steps with the rounding in place: the float model teaches, on the calibration inputs,
    /// without labels. What is not better on samples held out is not kept
    #[arg(long)]
    pub qat: bool,

    /// With --qat: how many steps, of 16 samples each
    #[arg(long, value_name = "N", default_value_t = qat::Options::STEPS, requires = "qat")]
    steps: usize,

    /// With --qat: what a step changes at first, as a part of the size of a tensor's numbers
    #[arg(long, value_name = "RATE", default_value_t = qat::Options::RATE, requires = "qat")]
    learning_rate: f64,

    /// With --qat: of the order of the samples, and of the choice of those held out
    #[arg(long, value_name = "N", default_value_t = 0, requires = "qat")]
    seed: u64,
}

impl Training {
    /// What is asked for, checked before anything long begins.
    pub fn options(&self) -> Result<Option<qat::Options>> {
        let rate = self.learning_rate;
        if !(rate > 0.0 && rate <= 1.0) {
            return Err(Error::usage(format!("--learning-rate {rate} is not above 0 and at most 1")));
        }
        if self.steps == 0 {
            return Err(Error::usage("--steps 0 would train nothing").hint("leave out --qat"));
        }
        Ok(self.qat.then_some(qat::Options { steps: self.steps, rate, seed: self.seed }))
    }
}

/// Trains, and shows how it goes.
pub fn train(given: CalibratedGraph, options: qat::Options, json: bool) -> Result<Trained> {
    let progress = Progress::new(false, json);
    let told = &mut |done: usize, total: usize, error: f64| {
        progress.say(&format!("error {}", percent(error)));
        progress.set(done as u64, total as u64);
    };
    let trained = qat::train(given, options, told)?;
    progress.finish();
    Ok(trained)
}

/// An error as a part of the outputs' variance.
fn percent(error: f64) -> String {
    format!("{:.3}%", 100.0 * error)
}

pub fn show(report: &Report) {
    let Report { samples, held_out, parameters, steps, .. } = report;
    line(format!("trained        {parameters} numbers in {steps} steps on {samples} samples; {held_out} others judge"));
    let (before, after) = (percent(report.before), percent(report.after));
    match report.kept {
        0 => line(format!(
            "               no step was better than none: the weights stay, and the error is {before} of the outputs' variance"
        )),
        step => line(format!(
            "               error on those: {after} of the outputs' variance after step {step}, {before} without training"
        )),
    }
    if report.left_out > 0 {
        line(format!("               {} samples were left out: they do not fit the memory", report.left_out));
    }
}

pub fn tell(report: &Report) -> Value {
    json!({
        "samples": report.samples,
        "held_out": report.held_out,
        "left_out": report.left_out,
        "parameters": report.parameters,
        "steps": report.steps,
        "kept": report.kept,
        "error_before": report.before,
        "error": report.after,
    })
}
