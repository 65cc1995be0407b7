//! Bias correction: what a layer's outputs are off by in the mean, its bias takes back (Nagel et al. 2019, "Data-Free
//! Quantization Through Weight Equalization and Bias Correction", section 4.2, on calibration inputs as in appendix D).
//!
//! Layers are corrected in the order in which they need each other, so that each sees inputs that are corrected already.

use super::layers::{Layer, initializer, layers, source};
use super::split::spread;
use crate::error::{Error, Result};
use crate::int8::calibration_inputs;
use crate::int8::engine::{Engine, Value};
use crate::int8::onnx::node::{int, node};
use crate::int8::onnx::proto::tensor_proto::DataType;
use crate::int8::onnx::proto::{ModelProto, NodeProto};
use crate::int8::onnx::{Graph, Tensor};
use crate::int8::qdq::Quantized;
use crate::int8::qdq::weights::bias_codes;
use crate::int8::samples::{Sample, Samples, Values};
use std::collections::HashMap;

/// Runs of the graph that all waves together may take.
const RUNS: usize = 2048;

/// Fewest and most samples of a wave.
const SAMPLES: (usize, usize) = (16, 64);

/// The most bytes of samples that are kept for the waves.
const MEMORY: usize = 256 << 20;

/// The largest bias in units of its scale: sums of products come on top of it.
const LARGEST: f64 = (1u32 << 30) as f64;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Layers that have a bias to correct.
    pub corrected: usize,
    /// All layers.
    pub layers: usize,
}

/// Where a layer's bias is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Bias {
    /// Codes of 32 bits, and their scales.
    Codes(String, String),
    /// Floats, which a sum behind the layer adds.
    Floats(String),
}

/// A layer and its bias.
struct Slot {
    /// What it gives in the quantized graph, and in the float graph.
    outputs: [String; 2],
    /// The axis of that which counts channels; none is the last one.
    axis: Option<usize>,
    channels: usize,
    bias: Bias,
    /// How many layers are in front of it, at most.
    wave: usize,
}

/// Corrects the biases of a quantized model. `float`: the model that it was made from.
///
/// # Errors
/// A sample cannot be read, or a graph cannot be run on it.
pub fn correct(
    float: &ModelProto,
    quantized: &Quantized,
    samples: &Samples,
    chosen: &[usize],
    done: &mut dyn FnMut(usize, usize),
) -> Result<(ModelProto, Done)> {
    let all = layers(float, quantized)?;
    let mut model = quantized.model.clone();
    let mut slots = slots(&mut model, &all)?;
    slots.sort_by_key(|slot| slot.wave);
    let report = Done { corrected: slots.len(), layers: all.len() };
    let waves: Vec<&[Slot]> = slots.chunk_by(|a, b| a.wave == b.wave).collect();
    let kept = keep(samples, chosen, (RUNS / waves.len().max(1)).clamp(SAMPLES.0, SAMPLES.1))?;
    let total = kept.len() * (waves.len() + 1);
    let mut ran = 0;
    let mut told = || {
        ran += 1;
        done(ran, total);
    };
    let wanted = means(float, &kept, &slots, 1, &mut told)?;
    let mut first = 0;
    for wave in waves {
        let found = means(&model, &kept, wave, 0, &mut told)?;
        for (i, slot) in wave.iter().enumerate() {
            let off = |c: usize| -> Vec<f64> {
                found.iter().zip(&wanted).map(|(found, wanted)| wanted[first + i][c] - found[i][c]).collect()
            };
            let shift: Vec<f64> = (0..slot.channels).map(|c| shrunk(&off(c))).collect();
            slot.add(&mut model, &shift)?;
        }
        first += wave.len();
    }
    Ok((model, report))
}

/// Some of the samples, as far as they fit the memory.
fn keep(samples: &Samples, chosen: &[usize], count: usize) -> Result<Vec<Sample>> {
    let (mut kept, mut bytes) = (Vec::new(), 0);
    samples.each(&spread(chosen, count), &mut |sample| {
        let numbers = sample.inputs.iter().map(|input| match &input.values {
            Values::Float(x) => x.len(),
            Values::Integer(x) => x.len(),
        });
        bytes += 4 * numbers.sum::<usize>();
        if bytes <= MEMORY || kept.is_empty() {
            kept.push(sample);
        }
        Ok(())
    })?;
    Ok(kept)
}

/// For each sample, for each layer, the mean of each channel. `side`: 0 in the quantized graph, 1 in the float one.
fn means(
    model: &ModelProto,
    samples: &[Sample],
    slots: &[Slot],
    side: usize,
    told: &mut dyn FnMut(),
) -> Result<Vec<Vec<Vec<f64>>>> {
    let engine = Engine::with_intermediates(model)?;
    let names: Vec<&str> = slots.iter().map(|slot| slot.outputs[side].as_str()).collect();
    let mut all = Vec::with_capacity(samples.len());
    for sample in samples {
        crate::interrupt::check()?;
        let found = engine.run_for(&calibration_inputs::inputs(&engine, sample)?, &names)?;
        all.push(slots.iter().zip(&found).map(|(slot, value)| slot.means(value)).collect::<Result<_>>()?);
        told();
    }
    Ok(all)
}

/// The mean, less what may well be by chance: a factor of `1 − σ²/m²`, as James and Stein shrink.
fn shrunk(x: &[f64]) -> f64 {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let chance = variance / n;
    if mean * mean > chance { mean - chance / mean } else { 0.0 }
}

impl Slot {
    fn means(&self, value: &Value) -> Result<Vec<f64>> {
        let wrong = || {
            let (name, channels, dims) = (&self.outputs[0], self.channels, value.dims());
            Error::new(format!("value '{name}' of shape {dims:?} has not {channels} channels"))
        };
        let x = value.floats().ok_or_else(wrong)?;
        let axis = self.axis.or(x.dims.len().checked_sub(1)).ok_or_else(wrong)?;
        if x.dims.get(axis) != Some(&self.channels) {
            return Err(wrong());
        }
        let inner: usize = x.dims[axis + 1..].iter().product();
        let mut sums = vec![0.0; self.channels];
        for (at, run) in x.data.chunks(inner.max(1)).enumerate() {
            sums[at % self.channels] += run.iter().map(|&x| f64::from(x)).sum::<f64>();
        }
        let count = (x.data.len() / self.channels).max(1) as f64;
        Ok(sums.into_iter().map(|sum| sum / count).collect())
    }

    /// Adds something to the bias of each channel, as far as 32 bits hold it.
    fn add(&self, model: &mut ModelProto, shift: &[f64]) -> Result<()> {
        match &self.bias {
            Bias::Codes(codes, scales) => {
                let scales = Tensor::<f32>::read(initializer(model, scales)?)?.data;
                let tensor = initializer(model, codes)?;
                let mut b = Tensor::<i32>::read(tensor)?;
                for ((code, scale), shift) in b.data.iter_mut().zip(scales).zip(shift) {
                    let new = f64::from(*code) + (shift / f64::from(scale)).round_ties_even();
                    if new.abs() <= LARGEST {
                        *code = new as i32;
                    }
                }
                *tensor = b.proto(codes);
            }
            Bias::Floats(name) => {
                let tensor = initializer(model, name)?;
                let mut b = Tensor::<f32>::read(tensor)?;
                b.data.iter_mut().zip(shift).for_each(|(b, shift)| *b = (f64::from(*b) + shift) as f32);
                *tensor = b.proto(name);
            }
        }
        Ok(())
    }
}

/// Finds the bias of each layer, and gives one to convolutions and `Gemm`s without. A `MatMul` that no constant vector is
/// added to has none, and gets none: the sum would be an operator more.
fn slots(model: &mut ModelProto, layers: &[Layer]) -> Result<Vec<Slot>> {
    let mut graph = Graph::take(model)?;
    let waves = waves(&graph, layers);
    let mut slots = Vec::new();
    for (layer, wave) in layers.iter().zip(waves) {
        let node = graph.nodes()[layer.node].clone();
        let bias = if node.is("MatMul") {
            added(&mut graph, layer)?
        } else {
            match source(&graph, &node, 2, DataType::Int32) {
                Some((codes, scales)) => Some(Bias::Codes(codes, scales)),
                None => zeros(&mut graph, layer, node.clone())?,
            }
        };
        if let Some(bias) = bias {
            let axis = node.is("Conv").then_some(1);
            let outputs = [layer.output.clone(), layer.float.clone()];
            slots.push(Slot { outputs, axis, channels: layer.outputs(), bias, wave });
        }
    }
    graph.finish(model)?;
    Ok(slots)
}

/// The constant that a sum behind a `MatMul` adds: its codes, or its floats as a tensor of their own.
fn added(graph: &mut Graph, layer: &Layer) -> Result<Option<Bias>> {
    let Some((next, place)) = graph.sum_behind(&layer.output) else { return Ok(None) };
    let mut sum = graph.nodes()[next].clone();
    if let Some((codes, scales)) = source(graph, &sum, place, DataType::Int32) {
        return Ok(Some(Bias::Codes(codes, scales)));
    }
    let Some(constant) = graph.constant(&sum.input[place]) else { return Ok(None) };
    let channels = layer.outputs();
    if constant.data_type() != DataType::Float as i32 {
        return Ok(None);
    }
    let b = Tensor::<f32>::read(constant)?;
    if b.dims.last() != Some(&channels) || b.data.len() != channels {
        return Ok(None);
    }
    let name = graph.add(&format!("{}_corrected", sum.input[place]), |name| b.proto(name));
    sum.input[place].clone_from(&name);
    graph.replace(next, vec![sum]);
    Ok(Some(Bias::Floats(name)))
}

/// Gives a node a bias of zeros, in 32 bits.
fn zeros(graph: &mut Graph, layer: &Layer, mut old: NodeProto) -> Result<Option<Bias>> {
    if old.input_at(2).is_some() {
        return Ok(None);
    }
    let input = graph.producer(&layer.input).and_then(|maker| graph.nodes()[maker].input_at(1));
    let Some(input) = input.and_then(|name| graph.constant(name)) else { return Ok(None) };
    let (input, weights) = (Tensor::<f32>::read(input)?, graph.constant(&layer.scales));
    let Some(weights) = weights.map(Tensor::<f32>::read).transpose()? else { return Ok(None) };
    let (codes, scales) = bias_codes(&vec![0.0; weights.data.len()], &weights.data, input.data[0]);
    let base = format!("{}_bias", layer.codes);
    let zero = Tensor::vector(vec![0i32; codes.len()]);
    let codes = graph.add(&format!("{base}_quantized"), |name| Tensor::vector(codes).proto(name));
    let scales = graph.add(&format!("{base}_scale"), |name| Tensor::vector(scales).proto(name));
    let zero = graph.add(&format!("{base}_zero_point"), |name| zero.proto(name));
    let (label, back) = (graph.fresh(&format!("{base}_DequantizeLinear")), graph.fresh(&format!("{base}_dequantized")));
    let dequantize = node("DequantizeLinear", label, &[&codes, &scales, &zero], &[&back], vec![int("axis", 0)]);
    old.input.resize(3, String::new());
    old.input[2] = back;
    graph.replace(layer.node, vec![dequantize, old]);
    Ok(Some(Bias::Codes(codes, scales)))
}

/// How many layers each needs one after the other.
fn waves(graph: &Graph, layers: &[Layer]) -> Vec<usize> {
    let own: HashMap<usize, usize> = layers.iter().enumerate().map(|(i, layer)| (layer.node, i)).collect();
    let mut depths: HashMap<&str, usize> = HashMap::new();
    let mut waves = vec![0; layers.len()];
    for (at, node) in graph.nodes().iter().enumerate() {
        let mut depth = node.input.iter().filter_map(|input| depths.get(input.as_str())).copied().max().unwrap_or(0);
        if let Some(&layer) = own.get(&at) {
            waves[layer] = depth;
            depth += 1;
        }
        depths.extend(node.output.iter().map(|output| (output.as_str(), depth)));
    }
    waves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_by_chance_is_left() {
        assert_eq!(shrunk(&[0.5; 8]), 0.5);
        assert_eq!(shrunk(&[1.0, -1.0, 1.0, -1.0]), 0.0);
        assert_eq!(shrunk(&[0.0; 3]), 0.0);
        let some = shrunk(&[1.0, 0.8, 1.2, 1.1]);
        assert!(0.9 < some && some < 1.025, "{some}");
        assert!(shrunk(&[-1.0, -0.8, -1.2, -1.1]) == -some);
    }

    #[test]
    fn means_are_those_of_channels() {
        let slot = |axis, channels| {
            let bias = Bias::Floats(String::new());
            Slot { outputs: Default::default(), axis, channels, bias, wave: 0 }
        };
        let value = Value::F32(Tensor::new([2, 2, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]));
        assert_eq!(slot(Some(1), 2).means(&value).unwrap(), [3.5, 5.5]);
        assert_eq!(slot(None, 2).means(&value).unwrap(), [4.0, 5.0]);
        assert!(slot(None, 3).means(&value).unwrap_err().to_string().contains("[2, 2, 2] has not 3 channels"));
    }
}
