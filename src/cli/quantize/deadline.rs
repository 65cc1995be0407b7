//! `--time`: the best effort that a run has time for.

use super::Args;
use crate::cli::effort::{Effort, Preset};
use crate::cli::output;
use crate::cli::plan::{source_bytes, speed, text};
use crate::error::{Error, Result};
use crate::pipeline::KEEP;
use crate::pipeline::forecast::Job;
use crate::pipeline::forecast::shape::BlockShape;
use crate::pipeline::plan::Plan;
use crate::source::hub::Need;
use std::path::Path;
use std::time::Duration;

/// What is tried, the best first: the efforts, between them fewer windows, and behind them what is fastest.
fn efforts() -> [Preset; 8] {
    let [best, balanced, fast] = [Effort::Best, Effort::Balanced, Effort::Fast].map(Effort::preset);
    let fewer = |preset: Preset, part| Preset { samples: preset.samples / part, ..preset };
    let fastest = Preset { method: "gptq", sweeps: 0, ..fewer(fast, 2) };
    let plain = Preset { method: "rtn", ..fast };
    [best, balanced, fewer(balanced, 2), fewer(balanced, 4), fast, fewer(fast, 2), fastest, plain]
}

/// The same arguments with the best method, windows and sweeps that are forecast to be done within `limit` seconds.
///
/// # Errors
/// Not even rounding to nearest is.
pub(in crate::cli) fn within(args: &Args, model: &Path, limit: f64) -> Result<Args> {
    let found = crate::cli::hub::find(model, Need::Headers)?;
    let settled = |preset| Args { how: args.how.settled(preset), ..args.clone() };
    let (mut least, mut measured) = (f64::INFINITY, None);
    let mut planned: Option<Plan> = None;
    for preset in efforts() {
        let asked = settled(preset);
        let (method, options) = (asked.how.method()?, asked.how.options()?);
        // The types depend on whether a method is calibrated.
        let plan = match planned.take().filter(|_| method.calibrated()) {
            Some(plan) => plan,
            None => Plan::new(found.path(), asked.request(method, None)?)?,
        };
        let plan = &*planned.insert(plan);
        if method.calibrated() && plan.model().is_err() {
            continue;
        }
        let positions = plan.model().ok().map(|model| asked.positions(model)).transpose()?.unwrap_or(1);
        let speed = *measured.get_or_insert_with(|| speed(plan, &options));
        let job = Job {
            plan,
            method,
            options,
            asymmetric: asked.how.asymmetric(method),
            samples: preset.samples,
            positions,
            threads: rayon::current_num_threads(),
            text: text(&asked, positions)?,
            keep: KEEP,
        };
        let written = plan.tensors.iter().map(crate::pipeline::plan::Planned::bytes).sum();
        let seconds = job.work(&BlockShape::all(plan), source_bytes(plan), written).at(&speed).total();
        if seconds <= limit {
            let words = asked.how.words(method)?.join(" ");
            output::note(&format!(
                "--time is enough for {words}, in about {}",
                output::time(Duration::from_secs_f64(seconds))
            ));
            return Ok(asked);
        }
        least = least.min(seconds);
    }
    let least = output::time(Duration::from_secs_f64(least));
    Err(Error::new(format!("this machine would need about {least} for the fastest way there is: more than --time"))
        .hint("`llmq plan` with the same options shows what takes the time"))
}
