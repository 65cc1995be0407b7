//! Which layers lose most in 8 bits, and the shortest list of those that have to stay float.
//!
//! Each layer is quantized alone and the error at the outputs measured. Layers are then excluded, the worst first, until what
//! is asked for holds of the whole. Where a layer stands decides nothing: first and last ones are measured like all others.

use super::calibration_inputs;
use super::compare::numbers;
use super::engine::Engine;
use super::onnx::proto::ModelProto;
use super::qdq::rewrite::Integers;
use super::qdq::{Float, Layer};
use super::ranges::Range;
use super::samples::{Sample, Samples};
use super::statistics::Likeness;
use crate::error::{Error, Result};
use crate::interrupt;
use std::collections::{HashMap, HashSet};

/// A layer, and what it alone does to the outputs.
#[derive(Debug, Clone)]
pub struct Ranked {
    /// The layer.
    pub layer: Layer,
    /// The outputs' signal-to-noise ratio in dB with this layer in 8 bits and all others in floats.
    pub sqnr: f64,
}

/// The float outputs of some samples, to compare with.
pub struct Bench<'a> {
    float: &'a Float,
    ranges: &'a HashMap<String, Range>,
    integers: Integers,
    samples: Vec<Sample>,
    /// For each sample, each output.
    outputs: Vec<Vec<Vec<f32>>>,
}

impl<'a> Bench<'a> {
    /// Runs the float model on `count` samples, spread evenly over all.
    ///
    /// # Errors
    /// A sample cannot be read, or the graph cannot be run on it.
    pub fn new(
        float: &'a Float,
        ranges: &'a HashMap<String, Range>,
        integers: Integers,
        samples: &Samples,
        count: usize,
    ) -> Result<Bench<'a>> {
        let engine = Engine::new(float.model())?;
        let (all, count) = (samples.len(), count.clamp(1, samples.len()));
        let mut bench = Bench { float, ranges, integers, samples: Vec::new(), outputs: Vec::new() };
        for (i, sample) in samples.iter().enumerate() {
            let sample = sample?;
            // The i-th is taken if the share of samples reaches the next whole number with it.
            if (i + 1) * count / all > i * count / all {
                bench.outputs.push(outputs(&engine, &sample)?);
                bench.samples.push(sample);
            }
        }
        Ok(bench)
    }

    /// The least signal-to-noise ratio of all outputs, in dB, with these layers in 8 bits.
    ///
    /// # Errors
    /// As for [`Bench::new`].
    pub fn sqnr(&self, quantized: &dyn Fn(&str) -> bool) -> Result<f64> {
        let model = self.float.quantized(self.ranges, self.integers, &|name| !quantized(name))?.model;
        self.sqnr_of(&model)
    }

    fn sqnr_of(&self, model: &ModelProto) -> Result<f64> {
        let engine = Engine::new(model)?;
        let mut likeness = vec![Likeness::default(); engine.outputs().len()];
        for (sample, wanted) in self.samples.iter().zip(&self.outputs) {
            interrupt::check()?;
            for ((likeness, a), b) in likeness.iter_mut().zip(wanted).zip(outputs(&engine, sample)?) {
                likeness.add(a, &b, a.len());
            }
        }
        Ok(likeness.iter().map(Likeness::sqnr).fold(f64::INFINITY, f64::min))
    }

    /// Quantizes each layer alone: the most sensitive first, of equal ones the first of the graph.
    ///
    /// # Errors
    /// As for [`Bench::new`].
    pub fn rank(&self, done: &mut dyn FnMut(usize)) -> Result<Vec<Ranked>> {
        let mut ranked = Vec::new();
        for (i, layer) in self.float.layers.iter().enumerate() {
            let sqnr = self.sqnr(&|name| name == layer.name)?;
            ranked.push(Ranked { layer: layer.clone(), sqnr });
            done(i + 1);
        }
        ranked.sort_by(|a, b| a.sqnr.total_cmp(&b.sqnr));
        Ok(ranked)
    }
}

fn outputs(engine: &Engine, sample: &Sample) -> Result<Vec<Vec<f32>>> {
    Ok(engine.run(&calibration_inputs::inputs(engine, sample)?)?.iter().map(numbers).collect())
}

/// One step of the search: what is excluded, and how well the rest does.
#[derive(Debug, Clone)]
pub struct Step {
    /// The layers that stay float.
    pub excluded: Vec<String>,
    /// What was measured.
    pub measured: f64,
    /// Whether that is enough.
    pub passes: bool,
}

/// Measures what is left when these layers stay float, and says whether that is enough.
pub type Judge<'a> = &'a mut dyn FnMut(&HashSet<&str>) -> Result<(f64, bool)>;

/// Excludes layers in the order of `ranked` until `judge` is content, then takes back whatever was excluded in vain. `judge`
/// is given the excluded ones and says what it measured and whether that is enough.
///
/// # Errors
/// `judge` failed, or nothing but the float model passes, or not even that.
pub fn search(ranked: &[Ranked], judge: Judge, step: &mut dyn FnMut(&Step)) -> Result<Step> {
    let mut excluded: Vec<&str> = Vec::new();
    let mut try_with = |excluded: &[&str]| -> Result<Step> {
        let (measured, passes) = judge(&excluded.iter().copied().collect())?;
        let tried = Step { excluded: excluded.iter().map(|&name| name.to_owned()).collect(), measured, passes };
        step(&tried);
        Ok(tried)
    };
    let mut best = try_with(&excluded)?;
    for next in ranked {
        if best.passes {
            break;
        }
        excluded.push(&next.layer.name);
        best = try_with(&excluded)?;
    }
    if !best.passes {
        return Err(Error::new(format!(
            "even with all {} layers in floats the target is missed: {:.2}",
            ranked.len(),
            best.measured
        ))
        .hint("ask for less"));
    }
    // From the least sensitive; the last one was needed, for without it the target was missed.
    for at in (0..excluded.len().saturating_sub(1)).rev() {
        let mut fewer = excluded.clone();
        fewer.remove(at);
        let tried = try_with(&fewer)?;
        if tried.passes {
            (excluded, best) = (fewer, tried);
        }
    }
    if best.excluded.len() == ranked.len() && !ranked.is_empty() {
        let layers = ranked.len();
        return Err(Error::new(format!("the target is reached only with all {layers} layers in floats"))
            .hint("ask for less: nothing would run in integers"));
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranked(names: &[&str]) -> Vec<Ranked> {
        let layer = |name: &&str| Layer { name: (*name).into(), op: "Conv".into(), weights: 1 };
        names.iter().map(|name| Ranked { layer: layer(name), sqnr: 0.0 }).collect()
    }

    #[test]
    fn as_few_as_needed_are_excluded() {
        // Only 'b' and 'd' matter; 'a' and 'c' only seem to, each on its own.
        let mut judge = |excluded: &HashSet<&str>| {
            let good = ["b", "d"].iter().filter(|name| excluded.contains(**name)).count();
            Ok((good as f64, good == 2))
        };
        let mut tried = 0;
        let found = search(&ranked(&["a", "b", "c", "d", "e"]), &mut judge, &mut |_| tried += 1).unwrap();
        assert_eq!((found.excluded, found.measured), (vec!["b".to_owned(), "d".to_owned()], 2.0));
        assert_eq!(tried, 5 + 3);
        let none = search(&ranked(&["a"]), &mut |_| Ok((0.0, true)), &mut |_| ()).unwrap();
        assert!(none.excluded.is_empty());
        let never = search(&ranked(&["a", "b"]), &mut |_| Ok((1.5, false)), &mut |_| ()).unwrap_err();
        assert!(never.to_string().contains("all 2 layers in floats the target is missed: 1.50"));
        let mut float = |excluded: &HashSet<&str>| Ok((0.0, excluded.len() == 2));
        let nothing = search(&ranked(&["a", "b"]), &mut float, &mut |_| ()).unwrap_err();
        assert!(nothing.to_string().contains("only with all 2 layers in floats"));
    }
}
