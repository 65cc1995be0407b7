//! Calibration: the float graph runs on one sample after the other, and what it computes on the way is counted.

use crate::error::{Context, Error, Result};
use crate::int8::calibration_inputs;
use crate::int8::diversity::Diversity;
use crate::int8::engine::Engine;
use crate::int8::ranges::{Calibrator, Observer, Range};
use crate::int8::samples::{Sample, Samples};
use rayon::prelude::*;
use std::collections::HashMap;

/// How the range of each value is chosen.
#[derive(Debug, Clone)]
pub struct Calibrators {
    /// That of most values.
    pub most: Calibrator,
    /// Values that another one suits better, by name.
    pub own: HashMap<String, Calibrator>,
}

impl Calibrators {
    /// One for all.
    pub fn all(most: Calibrator) -> Calibrators {
        Calibrators { most, own: HashMap::new() }
    }

    /// That of a value.
    pub fn of(&self, value: &str) -> Calibrator {
        self.own.get(value).copied().unwrap_or(self.most)
    }

    /// Whether any needs more than extremes.
    pub fn counts(&self) -> bool {
        self.most.counts() || self.own.values().any(|calibrator| calibrator.counts())
    }
}

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

/// A calibration under way.
pub struct Observation<'a> {
    engine: &'a Engine,
    values: Vec<&'a str>,
    observers: Vec<Observer>,
    diversity: Diversity,
    counts: bool,
    samples: usize,
}

impl<'a> Observation<'a> {
    /// Nothing seen yet of these values. `counts`: for calibrators that need more than extremes.
    pub fn new(engine: &'a Engine, samples: &Samples, values: Vec<&'a str>, counts: bool) -> Observation<'a> {
        let observers = values.iter().map(|_| Observer::new(counts)).collect();
        Observation { engine, values, observers, diversity: Diversity::of(samples.whole()), counts, samples: 0 }
    }

    /// Runs the graph on a sample.
    ///
    /// # Errors
    /// It cannot be run on it, or a value is not finite.
    pub fn add(&mut self, sample: &Sample) -> Result<()> {
        self.diversity.add(sample);
        let (engine, values) = (self.engine, &self.values);
        let inputs = calibration_inputs::inputs(engine, sample)?;
        let extremes = if self.counts { None } else { engine.extremes(&inputs, values) };
        let found = match extremes {
            Some(found) => found,
            None => engine.run_for(&inputs, values).context(|| format!("{} cannot be run", sample.place))?,
        };
        let added = self.observers.par_iter_mut().zip(&found).zip(values).map(|((observer, found), name)| {
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
        self.samples += 1;
        Ok(())
    }

    /// The range of each value.
    pub fn ranges(&self, by: &Calibrators) -> HashMap<String, Range> {
        let range = |(name, observer): (&&str, &Observer)| ((*name).to_owned(), observer.range(by.of(name)));
        self.values.par_iter().zip(&self.observers).map(range).collect()
    }

    /// All that was seen.
    pub fn seen(&self, by: &Calibrators) -> Seen {
        let names: Vec<String> = self.engine.inputs().iter().map(|input| input.name.clone()).collect();
        Seen { ranges: self.ranges(by), samples: self.samples, warnings: self.diversity.warnings(&names) }
    }
}
