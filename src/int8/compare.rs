//! A quantized graph beside its original, on the same samples.

use super::calibration_inputs;
use super::engine::{Engine, Value};
use super::onnx::proto::{ModelProto, NodeProto};
use super::samples::{Sample, Samples};
use super::statistics::{Likeness, Paired, largest};
use crate::error::{Context, Error, Result};
use crate::interrupt;

/// What is known about an output.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its name in the original.
    pub name: String,
    /// How near both are.
    pub likeness: Likeness,
    /// Whether it holds one row of numbers for each input, so that its largest is a choice.
    pub chooses: bool,
    /// Whether it holds floats: how far whole numbers are from each other says little.
    pub float: bool,
}

/// With less, in dB, the noise is more than a tenth of the signal, and nobody should trust an output.
pub const LEAST_SQNR: f64 = 10.0;

/// What a comparison gave.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// In the order of the original's outputs.
    pub outputs: Vec<Output>,
    /// How often each was right, by the first output, where the truth is known.
    pub counts: Option<Paired>,
    /// How many runs of the graph.
    pub samples: usize,
}

impl Comparison {
    /// The output with the most noise, where that is too much for anything.
    pub fn ruined(&self) -> Option<&Output> {
        let floats = self.outputs.iter().filter(|output| output.float && output.likeness.sqnr() < LEAST_SQNR);
        floats.min_by(|a, b| a.likeness.sqnr().total_cmp(&b.likeness.sqnr()))
    }
}

/// A graph of which the engine is known to compute something else than ONNX says.
///
/// # Errors
/// It holds ConvInteger with padding: rten pads with zero instead of the zero point.
pub fn trusted(model: &ModelProto) -> Result<()> {
    let padded = |node: &&NodeProto| {
        let pads = node.ints_of("pads").is_some_and(|pads| pads.iter().any(|&n| n != 0));
        let auto = node.attribute("auto_pad").is_some_and(|a| a.s.as_deref().is_some_and(|s| s.starts_with(b"SAME")));
        node.is("ConvInteger") && (pads || auto)
    };
    match model.graph.iter().flat_map(|graph| &graph.node).find(padded) {
        None => Ok(()),
        Some(node) => Err(Error::new(format!(
            "node '{}' is a ConvInteger with padding, which the built-in engine computes wrongly: its verdict would be, too",
            node.label()
        ))
        .hint("quantize convolutions statically (llmq int8 static): that is faster as well")),
    }
}

/// Runs both on all samples. `done` is told after each how many there have been.
///
/// # Errors
/// Inputs or outputs of both differ, or a graph cannot be run on a sample.
pub fn compare(
    original: &Engine,
    quantized: &Engine,
    samples: &Samples,
    done: &mut dyn FnMut(usize),
) -> Result<Comparison> {
    same_interface(original, quantized)?;
    let mut outputs: Vec<Output> = original
        .outputs()
        .iter()
        .map(|name| Output { name: name.clone(), likeness: Likeness::default(), chooses: true, float: true })
        .collect();
    let mut counts = samples.labelled().then(Paired::default);
    let mut seen = 0;
    for sample in samples.iter() {
        interrupt::check()?;
        let sample = sample?;
        let inputs = calibration_inputs::inputs(original, &sample)?;
        let run = |engine: &Engine, whose: &str| {
            engine.run(&inputs).context(|| format!("{}: {whose} cannot be run", sample.place))
        };
        let (a, b) = (run(original, "the original")?, run(quantized, "the quantized model")?);
        for ((output, a), b) in outputs.iter_mut().zip(&a).zip(&b) {
            add(output, a, b, samples.batch(), &sample)?;
        }
        if let (Some(counts), Some(a), Some(b)) = (&mut counts, a.first(), b.first()) {
            let (a, b) = (classes(a, &sample, original)?, classes(b, &sample, quantized)?);
            for ((&label, a), b) in sample.labels.iter().zip(a).zip(b) {
                counts.add(a == label, b == label);
            }
        }
        seen += 1;
        done(seen);
    }
    Ok(Comparison { outputs, counts, samples: seen })
}

fn same_interface(original: &Engine, quantized: &Engine) -> Result<()> {
    let names = |engine: &Engine| engine.inputs().iter().map(|input| input.name.clone()).collect::<Vec<_>>();
    let (a, b) = (names(original), names(quantized));
    if a != b {
        return Err(Error::new(format!("the original's inputs are {a:?}, those of the quantized model {b:?}"))
            .hint("is it made from this original?"));
    }
    let (a, b) = (original.outputs(), quantized.outputs());
    if a != b {
        return Err(Error::new(format!("the original's outputs are {a:?}, those of the quantized model {b:?}"))
            .hint("is it made from this original?"));
    }
    Ok(())
}

/// The numbers of an output, integers as they are.
pub fn numbers(value: &Value) -> Vec<f32> {
    match value {
        Value::F32(tensor) => tensor.data.clone(),
        Value::I32(tensor) => tensor.data.iter().map(|&x| x as f32).collect(),
        Value::I8(tensor) => tensor.data.iter().map(|&x| f32::from(x)).collect(),
        Value::U8(tensor) => tensor.data.iter().map(|&x| f32::from(x)).collect(),
    }
}

fn add(output: &mut Output, a: &Value, b: &Value, batch: usize, sample: &Sample) -> Result<()> {
    let name = &output.name;
    if a.dims() != b.dims() {
        let (a, b) = (a.dims(), b.dims());
        return Err(Error::new(format!("{}: output '{name}' has shape {a:?}, quantized {b:?}", sample.place)));
    }
    let (x, y) = (numbers(a), numbers(b));
    for (whose, x) in [("the original", &x), ("the quantized model", &y)] {
        if let Some(at) = x.iter().position(|x| !x.is_finite()) {
            let what = x[at];
            return Err(Error::new(format!("{}: {whose} gives {what} at {at} of output '{name}'", sample.place)));
        }
    }
    output.float &= a.floats().is_some();
    let row = x.len() / batch.max(1);
    output.chooses &= a.floats().is_some() && a.dims().first() == Some(&batch) && row > 1 && one_axis(a.dims());
    let width = if output.chooses { row } else { x.len() };
    output.likeness.add(&x, &y, width);
    Ok(())
}

/// Whether one axis behind the batch has all the numbers.
fn one_axis(dims: &[usize]) -> bool {
    dims[1..].iter().filter(|&&n| n != 1).count() == 1
}

/// The class that an output names for each row: its largest number's place, or the integer itself.
fn classes(value: &Value, sample: &Sample, engine: &Engine) -> Result<Vec<i64>> {
    let (dims, rows) = (value.dims(), sample.labels.len());
    let classes: Vec<i64> = match value {
        Value::F32(tensor) if dims.first() == Some(&rows) && dims.len() > 1 && one_axis(dims) => {
            let width = tensor.data.len() / rows;
            if let Some(&label) = sample.labels.iter().find(|&&label| label < 0 || label >= width as i64) {
                return Err(Error::new(format!(
                    "{}: the label is {label}, but there are {width} classes",
                    sample.place
                )));
            }
            tensor.data.chunks(width).map(|row| largest(row) as i64).collect()
        }
        Value::I32(tensor) if tensor.data.len() == rows => tensor.data.iter().map(|&x| i64::from(x)).collect(),
        _ => {
            let name = engine.outputs().first().map_or("", String::as_str);
            return Err(Error::new(format!(
                "there are labels, but the first output, '{name}' {dims:?}, does not give {rows} rows of scores for classes"
            ))
            .hint("without the array of labels, both are compared by how near their outputs are"));
        }
    };
    Ok(classes)
}
