//! Rounding with error feedback: GPTQ at 8 bits, on the quantized inputs that a layer is going to see. The scales stay.
//!
//! Layers that read the same input share its Hessian. A pass over the samples fills as many Hessians as fit
//! [`MEMORY`]; whatever the number of samples, that and one sample's activations is what is held.

use super::columns::Columns;
use super::layers::{Layer, by_output, by_shape, initializer, layers};
use super::split::each;
use crate::error::{Context, Error, Result};
use crate::int8::engine::Engine;
use crate::int8::feed;
use crate::int8::onnx::Tensor;
use crate::int8::onnx::proto::ModelProto;
use crate::int8::qdq::Quantized;
use crate::int8::samples::Samples;
use crate::int8::weights::Levels;
use crate::method::{Fixed, output_error};
use llmq_kernels::syrk::{mirror, syrk};

/// The most bytes of the Hessians of one pass.
const MEMORY: usize = 512 << 20;

/// Layers with more inputs than this are left as they are: the Hessian of one alone would need more than a gigabyte.
const WIDEST: usize = 16384;

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
    /// One for each group: `[width, width]`, the lower triangle until [`Site::finish`].
    hessians: Vec<Vec<f32>>,
}

impl Site {
    fn bytes(&self) -> usize {
        self.columns.groups() * self.columns.width().pow(2) * size_of::<f32>()
    }

    fn begin(&mut self) {
        self.hessians = vec![vec![0.0; self.columns.width().pow(2)]; self.columns.groups()];
    }

    fn add(&mut self, x: &Tensor<f32>) -> Result<()> {
        for (group, hessian) in self.hessians.iter_mut().enumerate() {
            syrk(&self.columns.rows(x, group)?, self.columns.width(), hessian);
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
        let mut wanted: Vec<&str> = sites.iter().map(|site| site.input.as_str()).collect();
        wanted.dedup();
        let wanted: Vec<String> = wanted.into_iter().map(str::to_owned).collect();
        let names: Vec<&str> = wanted.iter().map(String::as_str).collect();
        each(samples, chosen, &mut |sample| {
            let found = engine.run_for(&feed::inputs(&engine, &sample)?, &names)?;
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
    site.hessians.iter_mut().for_each(|hessian| mirror(width, hessian));
    let factors: Vec<Option<Fixed>> = site.hessians.iter().map(|hessian| Fixed::new(hessian, width)).collect();
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
                output_error(&w[part.clone()], &values, width, hessian).0
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
