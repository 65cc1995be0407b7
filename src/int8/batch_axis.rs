//! Is the first axis of the samples a batch? Rows of what is one sample would be run one by one otherwise, and their ranges believed.

use super::calibration_inputs;
use super::engine::{Engine, Value};
use super::onnx::shape::Dim;
use super::onnx::tensor::Tensor;
use super::samples::Samples;
use crate::error::Result;

/// What makes that doubtful, if anything does: files whose first axes all differ in length, or a graph that makes no more of two rows than
/// of one.
///
/// # Errors
/// A sample cannot be read.
pub fn doubts(engine: &Engine, samples: &Samples) -> Result<Option<String>> {
    let Some(at) = open(engine, samples) else { return Ok(None) };
    let name = &engine.inputs()[at].name;
    let advice = "if the first axis is no batch but time, say, save each sample with one axis more in front";
    let mut rows = samples.rows();
    let lengths: Vec<String> = rows.iter().take(3).map(ToString::to_string).collect();
    let files = rows.len();
    rows.sort_unstable();
    rows.dedup();
    if files > 1 && rows.len() == files && !rows.contains(&1) {
        let lengths = lengths.join(", ");
        return Ok(Some(format!(
            "each file has another number of rows in '{name}' ({lengths}), which are run one by one: {advice}"
        )));
    }
    let mut first = samples.iter().take(2).collect::<Result<Vec<_>>>()?;
    let (Some(second), Some(one)) = (first.pop(), first.pop()) else { return Ok(None) };
    let [a, b] = [calibration_inputs::inputs(engine, &one)?, calibration_inputs::inputs(engine, &second)?];
    let both = a
        .iter()
        .zip(&b)
        .zip(samples.counted())
        .map(|(((name, a), (_, b)), counted)| Some((*name, if counted { stacked(a, b)? } else { a.clone() })));
    // A graph that cannot run two at once, or none of them, says nothing here.
    let Some(both) = both.collect::<Option<Vec<_>>>() else { return Ok(None) };
    let (Ok(one), Ok(two)) = (engine.run(&a), engine.run(&both)) else { return Ok(None) };
    let alike = !one.is_empty() && one.iter().zip(&two).all(|(one, two)| one.dims() == two.dims());
    Ok(alike.then(|| format!("the graph makes outputs of one size of one row of '{name}' and of two: {advice}")))
}

/// The first input whose first axis is open and counts samples.
fn open(engine: &Engine, samples: &Samples) -> Option<usize> {
    let open = |dims: &Vec<Dim>| dims.first().is_some_and(|dim| dim.fixed().is_none());
    let mut inputs = engine.inputs().iter().zip(samples.counted());
    inputs.position(|(input, counted)| counted && input.dims.as_ref().is_some_and(open))
}

/// Two values as rows of one; none where they are of other sizes.
fn stacked(a: &Value, b: &Value) -> Option<Value> {
    fn join<T: Clone + super::onnx::tensor::Element>(a: &Tensor<T>, b: &Tensor<T>) -> Option<Tensor<T>> {
        let mut dims = a.dims.clone();
        *dims.first_mut()? += *b.dims.first()?;
        (a.dims[1..] == *b.dims.get(1..)?).then(|| Tensor::new(dims, [&a.data[..], &b.data[..]].concat()))
    }
    match (a, b) {
        (Value::F32(a), Value::F32(b)) => join(a, b).map(Value::F32),
        (Value::I32(a), Value::I32(b)) => join(a, b).map(Value::I32),
        (Value::I8(a), Value::I8(b)) => join(a, b).map(Value::I8),
        (Value::U8(a), Value::U8(b)) => join(a, b).map(Value::U8),
        _ => None,
    }
}
