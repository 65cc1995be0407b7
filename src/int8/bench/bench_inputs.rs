//! What the models are run on.

use super::{Sizes, shape_of};
use crate::error::{Error, Result};
use crate::int8::engine::Input;
use crate::int8::onnx::proto::tensor_proto::DataType;
use serde::Serialize;

/// An input: noise for floats, and ones for whole numbers, which are valid as ids, types and masks.
#[derive(Debug, Serialize)]
pub(super) struct BenchInput {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: Kind,
    pub dims: Vec<usize>,
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
        let kind = match input.kind {
            Some(DataType::Float) => Kind::Float32,
            Some(DataType::Int64) => Kind::Int64,
            Some(DataType::Int32) => Kind::Int32,
            Some(DataType::Bool) => Kind::Bool,
            _ => return Err(Error::new(format!("input '{}' has a type that llmq cannot make values of", input.name))),
        };
        let dims = shape_of(input, sizes)?;
        let elements = dims.iter().try_fold(1usize, |all, &n| all.checked_mul(n)).filter(|&n| n < 1 << 31);
        if elements.is_none() {
            return Err(Error::new(format!("input '{}' of shape {dims:?} is too large", input.name)));
        }
        Ok(Self { name: input.name.clone(), kind, dims })
    }

    /// How many numbers it has.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Noise between -1 and 1, for floats.
    pub fn noise(&self) -> Vec<f32> {
        let number = |n: usize| ((n as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        (0..self.elements()).map(number).collect()
    }
}
