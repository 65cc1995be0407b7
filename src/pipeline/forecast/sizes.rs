//! How large a file would be with each mix of types.

use crate::error::Result;
use crate::format::mix::{self, Mix};
use crate::format::recipe::{Choice, Recipe};
use crate::format::{self, Type};
use crate::model::TensorRole;
use crate::pipeline::plan::{Plan, Planned};
use crate::source::gguf::DEFAULT_ALIGNMENT;
use crate::source::value::{Value, get};
use std::path::Path;

/// The embedding's name in GGUF.
const EMBEDDING: &str = "token_embd.weight";

/// A file that could be made.
#[derive(Clone, Copy)]
pub struct Size {
    /// Its mix of types.
    pub mix: Mix,
    /// Bytes of the file, header and padding included.
    pub bytes: u64,
    /// Bytes of its tensors.
    pub weights: u64,
    /// Bytes of the tensors that a GPU has to hold so that it need not wait for any.
    pub on_gpu: u64,
    /// Bits per number of its tensors.
    pub bits_per_weight: f64,
}

/// Whether llama.cpp keeps a tensor on the GPU. It looks tokens up in main memory; an embedding that is the output matrix, too, is on
/// both sides.
pub fn is_on_gpu(plan: &Plan, tensor: &Planned) -> bool {
    let embedding = tensor.spec.role == TensorRole::Embedding || tensor.spec.gguf == EMBEDDING;
    !embedding || plan.tensors.iter().all(|other| other.spec.gguf != "output.weight")
}

/// The size of a plan's file with every mix, the largest mix first. `recipe`: the user's wishes around a mix.
///
/// # Errors
/// Requests that make no sense, or a plan that no file can hold.
pub fn sizes(plan: &Plan, recipe: impl Fn(Mix) -> Result<Recipe>) -> Result<Vec<Size>> {
    let alignment =
        get(&plan.metadata, "general.alignment").and_then(Value::as_u64).unwrap_or(DEFAULT_ALIGNMENT).max(1);
    let padded = |kind: Type, tensor: &Planned| kind.size(tensor.spec.elements() as u64).next_multiple_of(alignment);
    // Neither the header nor the vectors that follow the embedding depend on the mix.
    let fixed = plan.files(Path::new("model.gguf"), None)?.size()?
        - plan.tensors.iter().map(|tensor| padded(tensor.kind, tensor)).sum::<u64>();
    let elements = plan.elements().max(1);
    let single = format::by_name("F32")?;
    let of = |mix: Mix| {
        let mut recipe = recipe(mix)?;
        let mut size = Size { mix, bytes: fixed, weights: 0, on_gpu: 0, bits_per_weight: 0.0 };
        for tensor in &plan.tensors {
            let choice = recipe.choose(&tensor.spec.gguf, &tensor.spec.shape, &plan.facts);
            let kept = || plan.source.gguf_type(&tensor.spec).unwrap_or(single);
            let kind = choice.map_or_else(kept, |Choice { kind, .. }| kind);
            let bytes = kind.size(tensor.spec.elements() as u64);
            size.bytes += padded(kind, tensor);
            size.weights += bytes;
            size.on_gpu += if is_on_gpu(plan, tensor) { bytes } else { 0 };
        }
        size.bits_per_weight = 8.0 * size.weights as f64 / elements as f64;
        Ok(size)
    };
    mix::all().map(of).collect()
}

/// The type that most of a model's weights have in the source.
pub fn source_type(plan: &Plan) -> &str {
    let mut sums: Vec<(&str, u64)> = Vec::new();
    for tensor in &plan.tensors {
        let more = tensor.spec.elements() as u64;
        match sums.iter_mut().find(|(kind, _)| *kind == tensor.from) {
            Some((_, sum)) => *sum += more,
            None => sums.push((&tensor.from, more)),
        }
    }
    sums.into_iter().max_by_key(|(_, sum)| *sum).map_or("", |(kind, _)| kind)
}

/// The type of a plan's tensors that are quantized in the source already, and how many there are.
pub fn quantized_already(plan: &Plan) -> Option<(&str, usize)> {
    let kinds: Vec<&str> = plan.tensors.iter().filter_map(|t| plan.source.quantized(&t.spec)).collect();
    Some((*kinds.first()?, kinds.len()))
}
