//! What quantizing brought: latencies of two models on the same inputs, and which nodes run in INT8.
//!
//! Latency is that of ONNX Runtime, which models are deployed with, where its library is found (with the feature `ort`) or Python has
//! the package `onnxruntime`, run by a small script. Otherwise it is rten's, which is another engine with other kernels; then only
//! the label may be believed, never a speed-up.

mod bench_inputs;
mod kernels;
#[cfg(feature = "ort")]
mod library;
mod python;
mod runtime;

use super::engine::{Engine, Input, Value};
use super::onnx::OnnxFile;
use super::onnx::shape::{Dim, shown};
use super::onnx::tensor::Tensor;
use crate::error::{Context, Error, Result};
use crate::interrupt;
use bench_inputs::Kind;
use std::time::{Duration, Instant};

pub use bench_inputs::BenchInput;
pub use kernels::{Kernels, kernels};
pub use runtime::OnnxRuntime;

/// Runs before those that count.
const WARM_UP: usize = 3;

/// The times of some runs.
#[derive(Debug, Clone)]
pub struct Times {
    /// In seconds, sorted.
    seconds: Vec<f64>,
}

impl Times {
    /// Of at least one run.
    pub(crate) fn new(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        Self { seconds }
    }

    /// The time that this part of the runs stays within, by the nearest rank.
    pub fn quantile(&self, part: f64) -> f64 {
        let rank = (part * self.seconds.len() as f64).ceil() as usize;
        self.seconds.get(rank.saturating_sub(1)).or(self.seconds.last()).copied().unwrap_or(f64::NAN)
    }

    /// Runs per second, one after the other.
    pub fn throughput(&self) -> f64 {
        self.seconds.len() as f64 / self.seconds.iter().sum::<f64>()
    }
}

/// A size for each dimension that is decided when a model runs.
pub type Sizes = [(String, usize)];

/// The shape that an input is given: open dimensions as `sizes` says by name, and 1 for an open first one.
///
/// # Errors
/// A dimension is open, not the first, and has no size; or the graph tells no shape.
pub fn shape_of(input: &Input, sizes: &Sizes) -> Result<Vec<usize>> {
    let name = &input.name;
    let dims = input
        .dims
        .as_ref()
        .ok_or_else(|| Error::new(format!("the graph does not tell the shape of input '{name}'")))?;
    let size = |(at, dim): (usize, &Dim)| match dim {
        Dim::Fixed(n) => Ok(*n),
        Dim::Dynamic(open) => match sizes.iter().find(|(name, _)| name == open) {
            Some((_, n)) => Ok(*n),
            None if at == 0 => Ok(1),
            None => {
                let open = if open.is_empty() { "?" } else { open };
                Err(Error::usage(format!("input '{name}' has shape {}, in which {open} is open", shown(dims)))
                    .hint(format!("give it a size: --dim {open}=128")))
            }
        },
    };
    dims.iter().enumerate().map(size).collect()
}

/// Seconds of each model's runs that count, in turn, so that what else the machine does hits all alike. `run`: one run of a model, and
/// how long it took.
fn in_turn(models: usize, runs: usize, mut run: impl FnMut(usize) -> Result<Duration>) -> Result<Vec<Vec<f64>>> {
    let mut seconds = vec![Vec::with_capacity(runs); models];
    for turn in 0..runs + WARM_UP {
        for (model, seconds) in seconds.iter_mut().enumerate() {
            interrupt::check()?;
            let took = run(model)?;
            if turn >= WARM_UP {
                seconds.push(took.as_secs_f64());
            }
        }
    }
    Ok(seconds)
}

/// As rten takes it.
fn value(given: &BenchInput) -> Value {
    let dims = given.dims.clone();
    match given.kind {
        Kind::Float32 => Value::F32(Tensor::new(dims, given.noise())),
        Kind::Int64 | Kind::Int32 | Kind::Bool => Value::I32(Tensor::new(dims, given.integers())),
    }
}

/// Times models with rten, in turn, on the same inputs.
///
/// # Errors
/// The engine cannot run one of them, an input's shape is not known, or Ctrl-C.
pub fn with_rten(files: &[&OnnxFile], sizes: &Sizes, runs: usize) -> Result<Vec<Times>> {
    let what = |file: &OnnxFile| format!("cannot run {}", file.path.display());
    let mut engines = Vec::new();
    for file in files {
        let engine = Engine::new(&file.model).context(|| what(file))?;
        let inputs = engine.inputs().iter().map(|input| BenchInput::of(input, sizes));
        let inputs = inputs.collect::<Result<Vec<_>>>().context(|| what(file))?;
        let inputs: Vec<_> = inputs.into_iter().map(|given| (value(&given), given.name)).collect();
        engines.push((engine, inputs));
    }
    let seconds = in_turn(files.len(), runs, |at| {
        let (engine, inputs) = &engines[at];
        let inputs: Vec<_> = inputs.iter().map(|(value, name)| (name.as_str(), value.clone())).collect();
        let start = Instant::now();
        engine.run(&inputs).context(|| what(files[at]))?;
        Ok(start.elapsed())
    })?;
    Ok(seconds.into_iter().map(Times::new).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::int8::onnx::proto::tensor_proto::DataType;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let times = Times::new((1..=100).rev().map(f64::from).collect());
        assert_eq!([0.5, 0.99, 1.0, 0.0].map(|part| times.quantile(part)), [50.0, 99.0, 100.0, 1.0]);
        assert_eq!(Times::new(vec![0.5, 0.25, 0.25]).throughput(), 3.0);
        assert_eq!(Times::new(vec![7.0]).quantile(0.99), 7.0);
    }

    #[test]
    fn open_dimensions_take_their_sizes() {
        let dims = vec![Dim::Dynamic("n".into()), Dim::Fixed(3), Dim::Dynamic("length".into())];
        let input = Input { name: "x".into(), kind: Some(DataType::Float), dims: Some(dims) };
        assert_eq!(shape_of(&input, &[("length".into(), 5)]).unwrap(), [1, 3, 5]);
        assert_eq!(shape_of(&input, &[("length".into(), 5), ("n".into(), 2)]).unwrap(), [2, 3, 5]);
        let open = shape_of(&input, &[]).unwrap_err();
        assert_eq!(open.to_string(), "input 'x' has shape [n, 3, length], in which length is open");
        assert_eq!(open.hint_text(), Some("give it a size: --dim length=128"));
    }
}
