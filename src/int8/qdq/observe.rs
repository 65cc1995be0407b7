//! Calibration: the float graph runs on one sample after the other, and what it computes on the way is counted.

use crate::error::{Context, Error, Result};
use crate::int8::calibration_inputs;
use crate::int8::diversity::Diversity;
use crate::int8::engine::Engine;
use crate::int8::ranges::{Calibrator, Observer, Range};
use crate::int8::samples::Samples;
use crate::interrupt;
use rayon::prelude::*;
use std::collections::HashMap;

/// What calibration has seen.
#[derive(Debug)]
pub struct Seen {
    /// The range of each value that was asked for.
    pub ranges: HashMap<String, Range>,
    /// How many samples.
    pub samples: usize,
    /// What the user should know about them.
    pub warnings: Vec<String>,
}

/// Runs all samples. `done` is told after each how many there have been.
///
/// # Errors
/// A sample cannot be read, the graph cannot be run on it, or a value is not finite.
pub fn observe(
    engine: &Engine,
    samples: &Samples,
    values: &[&str],
    calibrator: Calibrator,
    done: &mut dyn FnMut(usize),
) -> Result<Seen> {
    let mut observers: Vec<Observer> = values.iter().map(|_| Observer::new(calibrator)).collect();
    let mut diversity = Diversity::of(samples.whole());
    let mut seen = 0;
    for sample in samples.iter() {
        interrupt::check()?;
        let sample = sample?;
        diversity.add(&sample);
        let inputs = calibration_inputs::inputs(engine, &sample)?;
        let extremes = if calibrator.counts() { None } else { engine.extremes(&inputs, values) };
        let found = match extremes {
            Some(found) => found,
            None => engine.run_for(&inputs, values).context(|| format!("{} cannot be run", sample.place))?,
        };
        let added = observers.par_iter_mut().zip(&found).zip(values).map(|((observer, found), name)| {
            let Some(x) = found.floats() else {
                return Err(Error::new(format!("value '{name}' has integers, where floats were expected")));
            };
            observer.add(&x.data).map_err(|at| {
                Error::new(format!("{}: the model makes {} of it, in value '{name}'", sample.place, x.data[at])).hint(
                    "the float model itself overflows there: check the input's preprocessing, or exclude the node",
                )
            })
        });
        added.collect::<Result<Vec<()>>>()?;
        seen += 1;
        done(seen);
    }
    let names: Vec<String> = engine.inputs().iter().map(|input| input.name.clone()).collect();
    let ranges = values.iter().zip(&observers).map(|(name, observer)| ((*name).to_owned(), observer.range()));
    Ok(Seen { ranges: ranges.collect(), samples: seen, warnings: diversity.warnings(&names) })
}
