//! Rounding with error feedback: GPTQ at 8 bits, on the quantized inputs that a layer is going to see. The scales stay.
//!
//! Layers that read the same input share its Hessian. A pass over the samples fills as many Hessians as fit
//! `MEMORY`; whatever the number of samples, that and one sample's activations is what is held.

use super::columns::Columns;
use super::layers::{Layer, by_output, by_shape, initializer, layers};
use crate::error::{Context, Error, Result};
use crate::int8::calibration_inputs;
use crate::int8::engine::Engine;
use crate::int8::onnx::Tensor;
use crate::int8::onnx::proto::ModelProto;
use crate::int8::qdq::Quantized;
use crate::int8::samples::Samples;
use crate::int8::weights::Levels;
use crate::method::{GptqInt8, output_error};
use llmq_kernels::gemm::Precision;
use llmq_kernels::syrk::{mirror, syrk};
use std::collections::BTreeSet;

/// The most bytes of the Hessians of one pass.
const MEMORY: usize = 512 << 20;

/// Layers with more inputs than this are left as they are: the Hessian of one alone would need more than a gigabyte.
const WIDEST: usize = 16384;

/// The largest part of a Hessian that may be its mean diagonal.
const LARGEST_PART: f64 = 0.99;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Layers that were rounded anew.
    pub changed: usize,
    /// All layers.
    pub layers: usize,
}

/// The layers that read one input the same way, and what is known of it.
struct Site {
    input: String,
    columns: Columns,
    layers: Vec<Layer>,
    /// One for each group.
    hessians: Vec<Hessian>,
}

/// `Σ x xᵀ`, and what tells how sure that is.
struct Hessian {
    /// `[width, width]`, the lower triangle until it is finished.
    sum: Vec<f32>,
    /// How many `x`.
    rows: f64,
    /// `Σ |x|⁴`.
    fourth: f64,
}

impl Hessian {
    fn add(&mut self, x: &[f32], width: usize) {
        syrk(Precision::Single, x, width, &mut self.sum);
        self.rows += (x.len() / width) as f64;
        let square = |row: &[f32]| row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
        self.fourth += x.chunks(width).map(|row| square(row).powi(2)).sum::<f64>();
    }

    /// Completes the sum, and adds to its diagonal what it is too little sure for: with few rows the feedback would follow
    /// what these have in common by chance. How much is by Ledoit and Wolf 2004, "A well-conditioned estimator for
    /// large-dimensional covariance matrices", section 3: `S* = ρ·μ·I + (1 − ρ)·S`, here divided by `1 − ρ`.
    fn finish(&mut self, width: usize) {
        mirror(width, &mut self.sum);
        let n = self.rows.max(1.0);
        let size = self.sum.iter().map(|&h| f64::from(h).powi(2)).sum::<f64>() / (n * n); // |S|²
        let mean = (0..width).map(|j| f64::from(self.sum[j * width + j])).sum::<f64>() / n / width as f64; // μ
        let spread = size - mean * mean * width as f64; // |S − μI|²
        let chance = (self.fourth / n - size) / n;
        let part = if spread > 0.0 { (chance / spread).clamp(0.0, LARGEST_PART) } else { LARGEST_PART };
        let more = part / (1.0 - part) * mean * n;
        (0..width).for_each(|j| self.sum[j * width + j] += more as f32);
    }
}

impl Site {
    fn bytes(&self) -> usize {
        self.columns.groups() * self.columns.width().pow(2) * size_of::<f32>()
    }

    fn begin(&mut self) {
        let size = self.columns.width().pow(2);
        let none = |_| Hessian { sum: vec![0.0; size], rows: 0.0, fourth: 0.0 };
        self.hessians = (0..self.columns.groups()).map(none).collect();
    }

    fn add(&mut self, x: &Tensor<f32>) -> Result<()> {
        for (group, hessian) in self.hessians.iter_mut().enumerate() {
            hessian.add(&self.columns.rows(x, group)?, self.columns.width());
        }
        Ok(())
    }
}

/// Rounds all layers of a quantized model anew. `float`: the model that it was made from.
///
/// # Errors
/// A sample cannot be read, or the graph cannot be run on it.
pub fn round(
    float: &ModelProto,
    quantized: &Quantized,
    levels: Levels,
    samples: &Samples,
    chosen: &[usize],
    done: &mut dyn FnMut(usize, usize),
) -> Result<(ModelProto, Done)> {
    let engine = Engine::with_intermediates(&quantized.model)?;
    let all = layers(float, quantized)?;
    let mut report = Done { changed: 0, layers: all.len() };
    let mut passes = passes(sites(all));
    let mut model = quantized.model.clone();
    let (total, mut seen) = (passes.len() * chosen.len(), 0);
    for sites in &mut passes {
        sites.iter_mut().for_each(Site::begin);
        let inputs: BTreeSet<String> = sites.iter().map(|site| site.input.clone()).collect();
        let names: Vec<&str> = inputs.iter().map(String::as_str).collect();
        samples.each(chosen, &mut |sample| {
            let found = engine.run_for(&calibration_inputs::inputs(&engine, &sample)?, &names)?;
            for (name, x) in names.iter().zip(&found) {
                let x = x.floats().ok_or_else(|| Error::new(format!("value '{name}' is not of floats")))?;
                for site in sites.iter_mut().filter(|site| site.input == *name) {
                    site.add(x).context(|| format!("{}: value '{name}'", sample.place))?;
                }
            }
            seen += 1;
            done(seen, total);
            Ok(())
        })?;
        for site in sites.iter_mut() {
            report.changed += finish(site, levels, &mut model)?;
            site.hessians = Vec::new();
        }
    }
    Ok((model, report))
}

/// Layers by what they read.
fn sites(layers: Vec<Layer>) -> Vec<Site> {
    let mut sites: Vec<Site> = Vec::new();
    for layer in layers {
        let Some(columns) = layer.columns.clone().filter(|columns| columns.width() <= WIDEST) else { continue };
        match sites.iter_mut().find(|site| site.input == layer.input && site.columns == columns) {
            Some(site) => site.layers.push(layer),
            None => {
                sites.push(Site { input: layer.input.clone(), columns, layers: vec![layer], hessians: Vec::new() });
            }
        }
    }
    sites
}

/// Sites in groups whose Hessians fit the memory, in order.
fn passes(sites: Vec<Site>) -> Vec<Vec<Site>> {
    let mut passes: Vec<Vec<Site>> = Vec::new();
    let mut bytes = 0;
    for site in sites {
        let own = site.bytes();
        match passes.last_mut() {
            Some(pass) if bytes + own <= MEMORY => pass.push(site),
            _ => {
                passes.push(vec![site]);
                bytes = 0;
            }
        }
        bytes += own;
    }
    passes
}

/// Rounds the layers of a site, and says how many are better for it.
fn finish(site: &mut Site, levels: Levels, model: &mut ModelProto) -> Result<usize> {
    let (width, groups) = (site.columns.width(), site.columns.groups());
    site.hessians.iter_mut().for_each(|hessian| hessian.finish(width));
    let factors: Vec<Option<GptqInt8>> =
        site.hessians.iter().map(|hessian| GptqInt8::new(&hessian.sum, width)).collect();
    let mut changed = 0;
    for layer in &site.layers {
        let w = layer.rows()?;
        let scales = Tensor::<f32>::read(initializer(model, &layer.scales)?)?.data;
        let Tensor { dims, data } = Tensor::<i8>::read(initializer(model, &layer.codes)?)?;
        let mut codes = by_output(&dims, data, layer.axis);
        let (rows, mut better) = (layer.outputs() / groups, false);
        for (group, (hessian, factor)) in site.hessians.iter().zip(&factors).enumerate() {
            let Some(factor) = factor else { continue };
            let (scales, part) = (&scales[group * rows..][..rows], group * rows * width..(group + 1) * rows * width);
            let new = factor.round(&w[part.clone()], scales, levels.largest());
            let loss = |codes: &[i8]| {
                let values: Vec<f32> =
                    codes.iter().enumerate().map(|(at, &code)| f32::from(code) * scales[at / width]).collect();
                output_error(&w[part.clone()], &values, width, &hessian.sum).0
            };
            if loss(&new) < loss(&codes[part.clone()]) {
                codes[part].copy_from_slice(&new);
                better = true;
            }
        }
        if better {
            let codes = Tensor::new(dims.clone(), by_shape(&dims, codes, layer.axis));
            *initializer(model, &layer.codes)? = codes.proto(&layer.codes);
            changed += 1;
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of almost normal distribution.
    fn noise(count: usize) -> Vec<f32> {
        let mut state = 7u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).map(|_| (0..4).map(|_| uniform()).sum()).collect()
    }

    /// The mean square of what is beside the diagonal, over the square of the diagonal's mean.
    fn beside(x: &[f32], width: usize) -> f64 {
        let mut hessian = Hessian { sum: vec![0.0; width * width], rows: 0.0, fourth: 0.0 };
        for part in x.chunks(10 * width) {
            hessian.add(part, width);
        }
        hessian.finish(width);
        let at = |i: usize, j: usize| f64::from(hessian.sum[i * width + j]);
        let diagonal = (0..width).map(|j| at(j, j)).sum::<f64>() / width as f64;
        let others = (0..width * width).filter(|at| at % (width + 1) != 0);
        let squares = others.map(|place| at(place / width, place % width).powi(2)).sum::<f64>();
        squares / (width * (width - 1)) as f64 / diagonal.powi(2)
    }

    #[test]
    fn what_inputs_have_in_common_by_chance_does_not_count() {
        let width = 40;
        // Without anything in common: what is beside the diagonal is one over the number of rows in the mean.
        let chance = beside(&noise(60 * width), width);
        assert!(chance < 0.1 / 60.0, "{chance}");
        // With something in common, it stays: each number is the one before it and something of its own.
        let mut related = noise(60 * width);
        related.chunks_mut(width).for_each(|row| (1..width).for_each(|j| row[j] = 0.8 * row[j - 1] + 0.6 * row[j]));
        let real = beside(&related, width);
        assert!(real > 0.02, "{real}");
    }

    #[test]
    fn a_pass_holds_what_fits() {
        let site = |width| Site {
            input: String::new(),
            columns: Columns::product(width),
            layers: Vec::new(),
            hessians: Vec::new(),
        };
        // 400 MiB, 256 MiB, 4 KiB, 1 GiB.
        let passes = passes([10240, 8192, 32, WIDEST].map(site).into());
        assert_eq!(passes.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 1]);
    }
}
