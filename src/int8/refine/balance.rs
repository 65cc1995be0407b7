//! Balance between activations and weights: where channels of an activation are of very different size, small ones are left
//! with few of its codes. Factors move the difference into the weights, whose scales are those of outputs (SmoothQuant: Xiao
//! et al. 2023, equation 4; between two layers it is the equalization of Nagel et al. 2019, section 4.1).
//!
//! Which exponent is best for a site, or whether none is, is decided by the noise that rounding both is expected to make, from
//! the extremes and mean squares of each channel alone.

use super::fold::{Place, Reader, Site, sites};
use crate::error::{Error, Result};
use crate::int8::calibration_inputs;
use crate::int8::engine::Engine;
use crate::int8::onnx::proto::ModelProto;
use crate::int8::onnx::{Graph, Tensor};
use crate::int8::qdq::plan::Plan;
use crate::int8::samples::Samples;
use crate::int8::weights::Levels;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// A site is scaled if the noise expected falls to this part of what it was.
const WORTH: f64 = 0.9;

/// Exponents of the activations' size and of the weights'.
const EXPONENTS: [(f64, f64); 7] =
    [(0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1.0, 0.0), (0.75, 0.0), (0.5, 0.0), (0.25, 0.0)];

/// The largest factor, and one over the smallest.
const MOST: f64 = 256.0;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Activations that were scaled.
    pub changed: usize,
    /// Activations that can be.
    pub sites: usize,
}

/// What is known of a channel.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Channel {
    low: f64,
    high: f64,
    /// The sum of squares.
    squares: f64,
}

/// The channels of an activation over some samples.
#[derive(Debug, Clone, PartialEq)]
struct Channels {
    all: Vec<Channel>,
    /// Numbers of each.
    count: f64,
}

/// Balances a float model in which nothing but constants changes.
///
/// # Errors
/// A tensor is damaged, a sample cannot be read, or the graph cannot be run on it.
pub fn balance(
    float: &ModelProto,
    plan: &Plan,
    levels: Levels,
    samples: &Samples,
    chosen: &[usize],
    done: &mut dyn FnMut(usize, usize),
) -> Result<(ModelProto, Done)> {
    let mut model = float.clone();
    let mut graph = Graph::take(&mut model)?;
    let sites = sites(&graph, plan);
    let mut report = Done { changed: 0, sites: sites.len() };
    if sites.is_empty() {
        return Ok((float.clone(), report));
    }
    let seen = observe(float, &sites, samples, chosen, done)?;
    let mut constants: BTreeMap<(usize, usize), Tensor<f32>> = BTreeMap::new();
    for (site, channels) in sites.iter().zip(&seen) {
        for place in site.makers.iter().map(|(place, _)| place).chain(site.readers.iter().map(|reader| &reader.place)) {
            if let Entry::Vacant(entry) = constants.entry((place.node, place.input)) {
                entry.insert(read(&graph, *place)?);
            }
        }
        let Some(factors) = factors(site, channels, &constants, levels) else { continue };
        for (place, axis) in &site.makers {
            let tensor = constants.get_mut(&(place.node, place.input)).into_iter().flat_map(|tensor| &mut tensor.data);
            tensor.enumerate().for_each(|(at, x)| *x = (f64::from(*x) / factors[axis.channel(at)]) as f32);
        }
        for Reader { place, inputs, .. } in &site.readers {
            let tensor = constants.get_mut(&(place.node, place.input)).into_iter().flat_map(|tensor| &mut tensor.data);
            tensor.enumerate().for_each(|(at, x)| *x = (f64::from(*x) * factors[inputs.channel(at)]) as f32);
        }
        report.changed += 1;
    }
    if report.changed == 0 {
        return Ok((float.clone(), report));
    }
    let mut nodes = BTreeMap::new();
    for ((at, input), tensor) in constants {
        let node = nodes.entry(at).or_insert_with(|| graph.nodes()[at].clone());
        node.input[input] = graph.add(&format!("{}_balanced", node.input[input]), |name| tensor.proto(name));
    }
    for (at, node) in nodes {
        graph.replace(at, vec![node]);
    }
    graph.finish(&mut model)?;
    Ok((model, report))
}

fn read(graph: &Graph, place: Place) -> Result<Tensor<f32>> {
    let name = &graph.nodes()[place.node].input[place.input];
    let constant = graph.constant(name).ok_or_else(|| Error::new(format!("value '{name}' is no constant")))?;
    Tensor::read(constant)
}

/// Runs the float model, and looks at the channels of each site.
fn observe(
    float: &ModelProto,
    sites: &[Site],
    samples: &Samples,
    chosen: &[usize],
    done: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Channels>> {
    let engine = Engine::with_intermediates(float)?;
    let names: Vec<&str> = sites.iter().map(|site| site.value.as_str()).collect();
    let none = Channel { low: 0.0, high: 0.0, squares: 0.0 };
    let mut seen: Vec<Channels> =
        sites.iter().map(|site| Channels { all: vec![none; site.channels], count: 0.0 }).collect();
    let mut ran = 0;
    samples.each(chosen, &mut |sample| {
        let found = engine.run_for(&calibration_inputs::inputs(&engine, &sample)?, &names)?;
        for ((site, seen), value) in sites.iter().zip(&mut seen).zip(&found) {
            let (name, dims) = (&site.value, value.dims());
            let axis = if site.second { 1 } else { dims.len().wrapping_sub(1) };
            let Some(x) = value.floats().filter(|_| dims.get(axis) == Some(&site.channels)) else {
                let channels = site.channels;
                return Err(Error::new(format!(
                    "value '{name}' of shape {dims:?} has not {channels} channels of floats"
                )));
            };
            seen.add(&x.data, dims[axis + 1..].iter().product());
        }
        ran += 1;
        done(ran, chosen.len());
        Ok(())
    })?;
    Ok(seen)
}

impl Channels {
    fn add(&mut self, x: &[f32], inner: usize) {
        let n = self.all.len();
        for (at, run) in x.chunks(inner.max(1)).enumerate() {
            let channel = &mut self.all[at % n];
            for &x in run {
                let x = f64::from(x);
                channel.low = channel.low.min(x);
                channel.high = channel.high.max(x);
                channel.squares += x * x;
            }
        }
        self.count += (x.len() / n.max(1)) as f64;
    }
}

/// A weight of a site in numbers: `[outputs, channels]`, over what else it has.
struct Weight {
    /// The largest of each output and channel.
    largest: Vec<f64>,
    /// The sum of squares of each channel.
    squares: Vec<f64>,
    /// How many numbers an output has for a channel.
    taps: f64,
    /// Whether an output reads a channel at all is seen by `largest`; outputs.
    outputs: usize,
}

/// The best factors of a site; none if nothing is gained by any.
fn factors(
    site: &Site,
    channels: &Channels,
    constants: &BTreeMap<(usize, usize), Tensor<f32>>,
    levels: Levels,
) -> Option<Vec<f64>> {
    let n = site.channels;
    let mut weights = Vec::new();
    for Reader { place, inputs, outputs } in &site.readers {
        let w = &constants.get(&(place.node, place.input))?.data;
        let rows = outputs.count();
        let mut weight = Weight {
            largest: vec![0.0; rows * n],
            squares: vec![0.0; n],
            taps: (w.len() / rows / inputs.count()) as f64,
            outputs: rows,
        };
        for (at, &x) in w.iter().enumerate() {
            let (x, c) = (f64::from(x), inputs.channel(at));
            let largest = &mut weight.largest[outputs.channel(at) * n + c];
            *largest = largest.max(x.abs());
            weight.squares[c] += x * x;
        }
        weights.push(weight);
    }
    let size: Vec<f64> = channels.all.iter().map(|channel| channel.high.max(-channel.low)).collect();
    let reach: Vec<f64> = (0..n)
        .map(|c| weights.iter().flat_map(|w| w.largest.iter().skip(c).step_by(n)).fold(0.0, |a: f64, &b| a.max(b)))
        .collect();
    let noise = |s: &[f64]| noise(s, channels, &weights, f64::from(levels.largest()));
    let before = noise(&vec![1.0; n]);
    let candidates = EXPONENTS.map(|(a, b)| {
        let s = candidate(&size, &reach, a, b);
        (noise(&s), s)
    });
    let (after, best) = candidates.into_iter().min_by(|a, b| a.0.total_cmp(&b.0))?;
    (after < WORTH * before).then_some(best)
}

/// `s = size^a / reach^b`, around one. Channels of nothing keep theirs.
fn candidate(size: &[f64], reach: &[f64], a: f64, b: f64) -> Vec<f64> {
    let alive = |(size, reach): (&f64, &f64)| (*size > 0.0 && *reach > 0.0).then(|| a * size.ln() - b * reach.ln());
    let logarithms: Vec<Option<f64>> = size.iter().zip(reach).map(alive).collect();
    let known: Vec<f64> = logarithms.iter().flatten().copied().collect();
    let middle = known.iter().sum::<f64>() / known.len().max(1) as f64;
    logarithms.iter().map(|l| l.map_or(1.0, |l| (l - middle).exp().clamp(1.0 / MOST, MOST))).collect()
}

/// The noise in the outputs that rounding `x/s` and `w·s` is expected to make: that of a number on a grid of step `Δ` has a
/// mean square of `Δ²/12`.
fn noise(s: &[f64], channels: &Channels, weights: &[Weight], largest: f64) -> f64 {
    let n = s.len();
    let all = channels.all.iter().zip(s);
    let (low, high) = all.fold((0.0f64, 0.0f64), |(a, b), (x, s)| (a.min(x.low / s), b.max(x.high / s)));
    let x = ((high - low) / 255.0).powi(2);
    let squares: Vec<f64> =
        channels.all.iter().zip(s).map(|(x, s)| x.squares / channels.count.max(1.0) / (s * s)).collect();
    let of = |w: &Weight| {
        let by_activation = x * w.squares.iter().zip(s).map(|(w, s)| w * s * s).sum::<f64>();
        let by_weights = (0..w.outputs).map(|o| {
            let row = &w.largest[o * n..(o + 1) * n];
            let step = row.iter().zip(s).fold(0.0f64, |a, (w, s)| a.max(w * s)) / largest;
            let read = row.iter().zip(&squares).filter(|(w, _)| **w > 0.0).map(|(_, x)| x).sum::<f64>();
            step * step * read * w.taps
        });
        by_activation + by_weights.sum::<f64>()
    };
    weights.iter().map(of).sum()
}

#[cfg(test)]
mod tests;
