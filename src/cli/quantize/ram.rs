//! `--ram`: what a run may hold at once.

use crate::cli::output::bytes;
use crate::cli::{budget, plan};
use crate::error::{Error, Result};
use crate::pipeline::forecast::memory_advice::advise;
use crate::pipeline::forecast::shape::BlockShape;
use crate::pipeline::forecast::{Job, Text};
use crate::pipeline::plan::Plan;
use crate::pipeline::report::anonymous_memory;
use crate::pipeline::{KEEP, Rounding};

/// A number of bytes, with K, M or G behind it, fractions allowed.
pub fn size(text: &str) -> std::result::Result<u64, String> {
    budget::size(text).ok_or_else(|| "a size is a number with K, M or G behind it, for example 16G".into())
}

/// How many bytes of inner activations a run may keep, so that it fits.
///
/// # Errors
/// It does not fit whatever it keeps.
pub fn keep(ram: Option<u64>, plan: &Plan, rounding: &Rounding) -> Result<usize> {
    let Some(ram) = ram else { return Ok(KEEP) };
    let lengths = || rounding.calibration.into_iter().flat_map(|c| c.corpus.documents().map(|text| text.len() as u64));
    let shapes = BlockShape::all(plan);
    let own = anonymous_memory().unwrap_or(plan::OWN);
    let job = Job {
        plan,
        method: rounding.method,
        options: rounding.options,
        asymmetric: rounding.asymmetric,
        samples: rounding.calibration.map_or(0, |c| c.samples),
        positions: rounding.calibration.map_or(1, |c| c.positions),
        threads: rayon::current_num_threads(),
        text: Text { bytes: lengths().sum(), longest: lengths().max().unwrap_or_default() },
        keep: KEEP,
    };
    let peak = |job: Job| job.peak(&shapes, own);
    let without = Job { keep: 0, ..job };
    if peak(job).bytes() <= ram {
        return Ok(KEEP);
    }
    let least = peak(without);
    if least.bytes() <= ram {
        return Ok(0);
    }
    let advice = advise(&without, &shapes, own, ram);
    let hint = match (advice.samples, advice.rtn) {
        (Some(samples), _) => format!("--samples {samples} fits"),
        (None, true) => "--method rtn fits".into(),
        (None, false) => "no choice of options fits".into(),
    };
    let (needed, moment) = (bytes(least.bytes()), &least.moment);
    Err(Error::new(format!("the run would need about {needed} of memory ({moment}), more than --ram {}", bytes(ram)))
        .hint(format!("{hint}; `llmq plan` with the same options shows what the memory is for")))
}
