//! Which calibrator: the one whose ranges leave the least error at the outputs, on samples that none of them has seen. Where another one
//! does better for some values, these get it: groups of neighbouring values are tried, and halved where the whole group loses.

use super::engine::Engine;
use super::qdq::Float;
use super::qdq::observe::{Calibrators, Observation, Seen};
use super::qdq::plan::Place;
use super::qdq::rewrite::Integers;
use super::ranges::{Calibrator, Range};
use super::refine::judge::{Verdict, judge};
use super::refine::split::spread;
use super::samples::Samples;
use crate::error::Result;
use std::collections::HashMap;

/// With fewer samples than these, the same ones teach and judge.
const FEWEST: usize = 4;

/// The most samples that judge.
const JUDGES: usize = 8;

/// How many groups of values are tried.
const TRIES: usize = 16;

/// Ranges that differ by a smaller part are one.
const ALIKE: f32 = 0.01;

/// What was chosen.
#[derive(Debug)]
pub struct Choice {
    /// The calibrators.
    pub calibrators: Calibrators,
    /// The ranges that they find on all samples.
    pub seen: Seen,
    /// With one calibrator for all, the least signal-to-noise ratio of all outputs in dB; the best first.
    pub tried: Vec<(Calibrator, f64)>,
    /// The same with what was chosen.
    pub sqnr: f64,
    /// The samples that judged.
    pub judges: Vec<usize>,
    /// Whether no range was made from these.
    pub held_out: bool,
}

/// Calibrates. `done` is told how many runs over samples and tries there have been, and of how many.
///
/// # Errors
/// A sample cannot be read, a graph cannot be run on it, or a value is not finite.
pub fn choose(
    float: &Float,
    samples: &Samples,
    integers: Integers,
    excluded: &dyn Fn(&str) -> bool,
    done: &mut dyn FnMut(usize, usize),
) -> Result<Choice> {
    let (engine, n) = (float.engine()?, samples.len());
    let all: Vec<usize> = (0..n).collect();
    let third: Vec<usize> = (2..n).step_by(3).collect();
    let held_out = n >= FEWEST;
    let judges = spread(if held_out { &third } else { &all }, JUDGES);
    let teachers: Vec<usize> = all.into_iter().filter(|at| !held_out || judges.binary_search(at).is_err()).collect();
    let total = n + Calibrator::ALL.len() + TRIES;
    let mut steps = 0;
    let mut step = || {
        steps += 1;
        done(steps, total);
    };
    let mut observation = Observation::new(&engine, samples, float.plan.observed().collect(), true);
    samples.each(&teachers, &mut |sample| {
        step();
        float.observe(&mut observation, &sample)
    })?;
    let mut search = Search { float, engine: &engine, samples, judges: &judges, integers, excluded };
    let mut found = Vec::new();
    for calibrator in Calibrator::ALL {
        let mut ranges = observation.ranges(&Calibrators::all(calibrator));
        float.share(&mut ranges);
        let verdict = search.judge(&ranges)?;
        found.push(Found { calibrator, ranges, verdict });
        step();
    }
    found.sort_by(|a, b| b.verdict.sqnr().total_cmp(&a.verdict.sqnr()));
    let tried = found.iter().map(|found| (found.calibrator, found.verdict.sqnr())).collect();
    let best = found.remove(0);
    let mut now = Now {
        calibrators: Calibrators::all(best.calibrator),
        ranges: best.ranges,
        verdict: best.verdict,
        tries: TRIES,
    };
    if held_out && judges.len() >= FEWEST {
        for other in &found {
            let differ = differing(float, &now.ranges, &other.ranges);
            let (a, b) = differ.split_at(differ.len() / 2);
            for group in [a, b] {
                search.attempt(&mut now, group, other, &mut step)?;
            }
        }
    }
    if held_out {
        samples.each(&judges, &mut |sample| {
            step();
            float.observe(&mut observation, &sample)
        })?;
    }
    let mut seen = observation.seen(&now.calibrators);
    float.share(&mut seen.ranges);
    Ok(Choice { seen, tried, sqnr: now.verdict.sqnr(), calibrators: now.calibrators, judges, held_out })
}

/// Values whose ranges differ, in the order of the nodes that make or read them.
fn differing<'a>(float: &'a Float, a: &HashMap<String, Range>, b: &HashMap<String, Range>) -> Vec<&'a str> {
    let apart = |value: &str| {
        let (Some(a), Some(b)) = (a.get(value), b.get(value)) else { return false };
        (a.low - b.low).abs().max((a.high - b.high).abs()) > ALIKE * (a.high - a.low).max(b.high - b.low)
    };
    let at = |place: &Place| match place {
        Place::Provenance(at) => *at,
        Place::Read(readers) => readers.first().copied().unwrap_or(0),
    };
    let mut found: Vec<&str> = float.plan.observed().filter(|value| apart(value)).collect();
    found.sort_by_key(|value| at(&float.plan.places[*value]));
    found
}

/// What one calibrator for all gives.
struct Found {
    calibrator: Calibrator,
    ranges: HashMap<String, Range>,
    verdict: Verdict,
}

/// The best so far.
struct Now {
    calibrators: Calibrators,
    ranges: HashMap<String, Range>,
    verdict: Verdict,
    /// How many tries are left.
    tries: usize,
}

struct Search<'a> {
    float: &'a Float,
    engine: &'a Engine,
    samples: &'a Samples,
    judges: &'a [usize],
    integers: Integers,
    excluded: &'a dyn Fn(&str) -> bool,
}

impl Search<'_> {
    fn judge(&self, ranges: &HashMap<String, Range>) -> Result<Verdict> {
        let (model, _) = self.float.in_integers(self.float.model().clone(), ranges, self.integers, self.excluded)?;
        judge(self.engine, &model, self.samples, self.judges)
    }

    /// Gives a group of values another calibrator's ranges, or halves of it, where that is measurably better.
    fn attempt(&mut self, now: &mut Now, group: &[&str], other: &Found, step: &mut dyn FnMut()) -> Result<()> {
        if now.tries == 0 || group.is_empty() {
            return Ok(());
        }
        now.tries -= 1;
        step();
        let mut ranges = now.ranges.clone();
        ranges.extend(group.iter().map(|value| ((*value).to_owned(), other.ranges[*value])));
        self.float.share(&mut ranges);
        let verdict = self.judge(&ranges)?;
        if verdict.better_than(&now.verdict) {
            let own = group.iter().map(|value| ((*value).to_owned(), other.calibrator));
            now.calibrators.own.extend(own);
            (now.ranges, now.verdict) = (ranges, verdict);
            return Ok(());
        }
        if group.len() > 1 {
            let (a, b) = group.split_at(group.len() / 2);
            self.attempt(now, a, other, step)?;
            self.attempt(now, b, other, step)?;
        }
        Ok(())
    }
}
