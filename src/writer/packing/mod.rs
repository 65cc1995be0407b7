//! Ways to store a layer's codes in safetensors, as transformers and vLLM load them.
//!
//! How words are packed is described once, beside the readers in [`crate::source::checkpoint`]. To add a way, write one file that
//! implements [`Packing`] and add it to [`PACKINGS`].

mod awq;
mod compressed;
mod gptq;

use super::safetensors::TensorPlan;
use crate::error::{Error, Result};
use crate::format::integer::Content;
use safetensors::tensor::Dtype;
use serde_json::Value;

/// Every way.
pub static PACKINGS: &[&dyn Packing] = &[&gptq::Gptq, &awq::Awq, &compressed::Compressed];

/// A layer's weight: `(codes − zeros)·scales`.
pub struct Matrix {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// What its groups are.
    pub content: Content,
    /// `[rows, columns]`.
    pub codes: Vec<u8>,
    /// `[rows, groups]`, the bits of half-precision numbers.
    pub scales: Vec<u16>,
    /// `[rows, groups]`.
    pub zeros: Vec<u8>,
}

impl Matrix {
    /// Groups of a row.
    pub fn groups(&self) -> usize {
        self.columns / self.content.group
    }

    /// The bytes of the scales, `[groups, rows]`.
    fn transposed_scales(&self) -> Vec<u8> {
        let groups = self.groups();
        (0..groups).flat_map(|g| (0..self.rows).flat_map(move |r| self.scales[r * groups + g].to_le_bytes())).collect()
    }
}

/// What a folder says of itself.
pub struct Described<'a> {
    /// What the groups are.
    pub content: Content,
    /// The linear layers of blocks that are not quantized, by name, without `.weight`.
    pub kept: &'a [String],
    /// Those that are.
    pub packed: &'a [String],
}

/// A way to store a layer's codes.
pub trait Packing: Sync {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// The type that people expect where none is named.
    fn usual(&self) -> &'static str;

    /// Why it cannot hold such groups; none if it can.
    fn misfit(&self, _content: Content) -> Option<String> {
        None
    }

    /// The tensors that a weight becomes. `stem`: its name without `.weight`.
    fn parts(&self, stem: &str, rows: usize, columns: usize, content: Content) -> Vec<TensorPlan>;

    /// Their bytes, in the same order.
    fn pack(&self, matrix: &Matrix) -> Vec<Vec<u8>>;

    /// What `quantization_config` in `config.json` says.
    fn description(&self, described: &Described) -> Value;

    /// A file of its own that says the same, as older programs look for.
    fn own_file(&self) -> Option<&'static str> {
        None
    }
}

/// The way of this name.
///
/// # Errors
/// An unknown name; the hint lists those that exist.
pub fn by_name(name: &str) -> Result<&'static dyn Packing> {
    PACKINGS.iter().copied().find(|packing| packing.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
        let known: Vec<_> = PACKINGS.iter().map(|packing| packing.name()).collect();
        Error::unknown("format", name, &known)
    })
}

fn plan(stem: &str, suffix: &str, dtype: Dtype, shape: &[usize]) -> TensorPlan {
    TensorPlan { name: format!("{stem}{suffix}"), dtype, shape: shape.into() }
}

#[cfg(test)]
mod tests;
