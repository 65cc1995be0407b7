//! What is known of a GGUF without its architecture's file: all of its tensors, and what its keys say.

use super::Weights;
use crate::error::Result;
use crate::format::mix::{Facts, block};
use crate::model::{Model, RowOrder, TensorRole, TensorSpec, nextn};
use crate::source::gguf::{Gguf, TensorInfo};
use crate::source::value::{Metadata, Value};
use std::collections::HashSet;

/// The tensors of a GGUF that llmq can run, in the order in which it runs them; what else the file holds has its place
/// behind the embedding or behind its block.
pub(super) fn specs_of_model(source: &Weights, file: &Gguf, model: &Model) -> Result<Vec<TensorSpec>> {
    let named: Vec<TensorSpec> = model.tensors().map(|spec| TensorSpec { order: RowOrder::AsIs, ..spec }).collect();
    for spec in &named {
        source.check(spec)?;
    }
    let known: HashSet<&str> = named.iter().map(|spec| spec.gguf.as_str()).collect();
    // A block that the model does not have is no block of it.
    let of_the_model = |spec: TensorSpec| TensorSpec { block: spec.block.filter(|&i| i < model.blocks.len()), ..spec };
    let mut others: Vec<TensorSpec> =
        file.tensors.iter().filter(|t| !known.contains(t.name.as_str())).map(spec_by_name).map(of_the_model).collect();
    let mut specs: Vec<TensorSpec> = Vec::new();
    let mut named = named.into_iter().peekable();
    while let Some(spec) = named.next() {
        let here = spec.block;
        let last = named.peek().is_none_or(|next| next.block != here);
        let embedding = spec.role == TensorRole::Embedding;
        specs.push(spec);
        if embedding || last && here.is_some() {
            let (now, later): (Vec<_>, Vec<_>) = others.into_iter().partition(|other| other.block == here);
            specs.extend(now);
            others = later;
        }
    }
    Ok(specs)
}

/// Takes the blocks that predict several tokens out of a file's tensors and keys; what is said of it, if there are some.
pub(super) fn leave_out_mtp(model: &Model, specs: &mut Vec<TensorSpec>, metadata: &mut Metadata) -> Option<String> {
    let blocks = model.blocks.len();
    let count = nextn::leave_out(metadata, model.architecture.gguf(), blocks);
    if count == 0 {
        return None;
    }
    specs.retain(|spec| block(&spec.gguf).is_none_or(|i| i < blocks));
    Some(nextn::note_left_out(count))
}

pub(super) fn spec_by_name(info: &TensorInfo) -> TensorSpec {
    let shape = info.dims.iter().rev().map(|&n| n as usize).collect();
    let plain = TensorSpec::plain(info.name.clone(), info.name.clone(), shape, TensorRole::Other);
    TensorSpec { block: block(&info.name), ..plain }
}

/// What mixes have to know of a model that llmq cannot run, as far as its keys say.
pub(super) fn facts_by_keys(file: &Gguf, importance: bool) -> Facts {
    let architecture = file.get("general.architecture").and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |key: &str| {
        let value = file.get(&format!("{architecture}.{key}"))?;
        // Some architectures have a number per block; mixes look at the first.
        let first = value.as_array().and_then(|array| array.get(0));
        first.as_ref().unwrap_or(value).as_u64().map(|n| n as usize)
    };
    let heads = number("attention.head_count").unwrap_or_default();
    Facts {
        blocks: number("block_count").unwrap_or_default(),
        group: heads / number("attention.head_count_kv").filter(|&n| n > 0).unwrap_or(heads.max(1)),
        experts: number("expert_count").unwrap_or_default(),
        tied: file.tensor("output.weight").is_none(),
        importance,
        architecture,
    }
}
