//! What the models are run on.

use super::{Sizes, shape_of};
use crate::error::{Error, Result};
use crate::int8::engine::Input;
use crate::int8::onnx::proto::tensor_proto::DataType;
use crate::int8::samples::{Array, Values};
use serde::Serialize;

/// An input: noise for floats, and for whole numbers a sample's, or ones, which are valid as ids, types and masks.
#[derive(Debug, Serialize)]
pub struct BenchInput {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: Kind,
    pub(super) dims: Vec<usize>,
    /// Row-major; none for floats, and for ones.
    pub(super) whole: Vec<i32>,
}

/// A type, by numpy's name.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Float32,
    Int64,
    Int32,
    Bool,
}

impl BenchInput {
    /// For this input, its open dimensions as `sizes` says.
    ///
    /// # Errors
    /// Its type or its shape is none that values can be made for.
    pub fn of(input: &Input, sizes: &Sizes) -> Result<Self> {
        Self::with(input, shape_of(input, sizes)?)
    }

    /// With the shape and the whole numbers of a sample.
    ///
    /// # Errors
    /// Its type is none that values can be made for.
    pub fn of_sample(input: &Input, array: &Array) -> Result<Self> {
        let whole = if let Values::Integer(x) = &array.values { x.clone() } else { Vec::new() };
        Ok(Self { whole, ..Self::with(input, array.shape.clone())? })
    }

    fn with(input: &Input, dims: Vec<usize>) -> Result<Self> {
        let kind = match input.kind {
            Some(DataType::Float) => Kind::Float32,
            Some(DataType::Int64) => Kind::Int64,
            Some(DataType::Int32) => Kind::Int32,
            Some(DataType::Bool) => Kind::Bool,
            _ => return Err(Error::new(format!("input '{}' has a type that llmq cannot make values of", input.name))),
        };
        let elements = dims.iter().try_fold(1usize, |all, &n| all.checked_mul(n)).filter(|&n| n < 1 << 31);
        if elements.is_none() {
            return Err(Error::new(format!("input '{}' of shape {dims:?} is too large", input.name)));
        }
        Ok(Self { name: input.name.clone(), kind, dims, whole: Vec::new() })
    }

    /// How many numbers it has.
    pub(super) fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// The whole numbers.
    pub(super) fn integers(&self) -> Vec<i32> {
        if self.whole.is_empty() { vec![1; self.elements()] } else { self.whole.clone() }
    }

    /// Noise between -1 and 1, for floats.
    pub(super) fn noise(&self) -> Vec<f32> {
        let number = |n: usize| ((n as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        (0..self.elements()).map(number).collect()
    }
}
