//! Calibration inputs into a graph.

use super::engine::{Engine, Input, Value};
use super::onnx::proto::tensor_proto::DataType;
use super::onnx::tensor::Tensor;
use super::samples::{Array, InputSpec, Sample, Samples, Values};
use crate::error::{Context, Error, Result};
use std::path::PathBuf;

/// Opens the files that hold inputs for a graph.
///
/// # Errors
/// They do not fit the graph's inputs, or are damaged.
pub fn open(paths: &[PathBuf], engine: &Engine) -> Result<Samples> {
    if engine.inputs().is_empty() {
        return Err(Error::new("the graph has no inputs: everything it computes is constant"));
    }
    let wanted = engine.inputs().iter().map(|input| InputSpec {
        name: input.name.clone(),
        float: matches!(input.kind, None | Some(DataType::Float | DataType::Float16 | DataType::Double)),
        shape: input.dims.clone(),
    });
    Samples::open(paths, wanted.collect())
}

/// What a graph takes for a sample.
///
/// # Errors
/// A number does not fit the input's type.
pub fn inputs<'a>(engine: &'a Engine, sample: &Sample) -> Result<Vec<(&'a str, Value)>> {
    let values = engine.inputs().iter().zip(&sample.inputs).map(|(input, array)| {
        let value = value(input, array).context(|| format!("{}: '{}' does not fit", sample.place, input.name))?;
        Ok((input.name.as_str(), value))
    });
    values.collect()
}

fn value(input: &Input, array: &Array) -> Result<Value> {
    let dims = array.shape.clone();
    Ok(match (&array.values, input.kind) {
        (Values::Float(x), _) => Value::F32(Tensor::new(dims, x.clone())),
        (Values::Integer(x), Some(DataType::Uint8)) => Value::U8(Tensor::new(dims, narrow(x)?)),
        (Values::Integer(x), Some(DataType::Int8)) => Value::I8(Tensor::new(dims, narrow(x)?)),
        (Values::Integer(x), _) => Value::I32(Tensor::new(dims, x.clone())),
    })
}

fn narrow<T: TryFrom<i32>>(x: &[i32]) -> Result<Vec<T>> {
    x.iter().map(|&x| T::try_from(x).map_err(|_| Error::new(format!("{x} does not fit into a byte")))).collect()
}
