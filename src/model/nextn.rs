//! Layers behind the last block that predict several tokens: kept and named as llama.cpp's converter does, not run.

use super::part::TensorRole;
use super::{BlockConfig, ExtraBlocks, Model, TensorMapping, TensorSpec};
use crate::source::value::Value;

/// What the checkpoint calls a layer's own tensors behind `mtp.`, what GGUF does behind `blk.N.nextn.`, and whether it is a norm.
const NAMES: [(&str, &str, bool); 4] = [
    ("fc", "eh_proj", false),
    ("pre_fc_norm_embedding", "enorm", true),
    ("pre_fc_norm_hidden", "hnorm", true),
    ("norm", "shared_head_norm", true),
];

/// Those under `mtp.`, whose blocks are like `block`; none where the checkpoint has none, whatever its configuration says.
/// `has`: whether it has a tensor.
pub fn blocks(model: &Model, block: &BlockConfig, has: &dyn Fn(&str) -> bool) -> Option<ExtraBlocks> {
    let prefix = ["mtp", "model.mtp"].into_iter().find(|prefix| has(&format!("{prefix}.fc.weight")))?;
    let first = model.blocks.len();
    let usual = format!("{}.", model.architecture.outside().blocks);
    let mut longer = model.clone();
    let mut tensors = Vec::new();
    let mut count = 0;
    while count < MOST && has(&format!("{prefix}.layers.{count}.input_layernorm.weight")) {
        longer.blocks.push(block.clone());
        let own = longer.block(first + count);
        // They do not share the prefix of the others.
        let inside = longer.named(format!("{usual}{}.", first + count));
        tensors.extend(own.into_iter().map(|spec| {
            let source = spec.source.strip_prefix(&inside).map(|rest| format!("{prefix}.layers.{count}.{rest}"));
            TensorSpec {
                source: source.unwrap_or_else(|| spec.source.clone()),
                role: TensorRole::Other,
                block: None,
                reads: None,
                ..spec
            }
        }));
        count += 1;
    }
    if count == 0 {
        return None;
    }
    for (source, gguf, norm) in NAMES {
        let shape = if norm { vec![model.hidden] } else { vec![model.hidden, 2 * model.hidden] };
        let mapping = if norm { model.architecture.norm_mapping() } else { TensorMapping::AS_IS };
        let (source, gguf) = (format!("{prefix}.{source}.weight"), format!("blk.{first}.nextn.{gguf}.weight"));
        tensors.push(TensorSpec { mapping, ..TensorSpec::plain(source, gguf, shape, TensorRole::Other) });
    }
    Some(ExtraBlocks { count, tensors, keys: vec![("nextn_predict_layers", Value::U32(count as u32))] })
}

/// The same under names behind `NUMBERED.`, and whether there may be none.
const NUMBERED: [(&str, &str, Shape); 7] = [
    ("eh_proj", "eh_proj", Shape::Both),
    ("enorm", "enorm", Shape::Norm),
    ("hnorm", "hnorm", Shape::Norm),
    ("shared_head.norm", "shared_head_norm", Shape::Norm),
    // As HY3 calls it.
    ("final_layernorm", "shared_head_norm", Shape::Norm),
    ("shared_head.head", "shared_head_head", Shape::Vocabulary),
    ("embed_tokens", "embed_tokens", Shape::Vocabulary),
];

#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Both,
    Norm,
    /// As the embedding, and not always there.
    Vocabulary,
}

/// Those that have the numbers behind the last block's, as GLM has them. `has`: whether the checkpoint has a tensor.
pub fn numbered(model: &Model, block: &BlockConfig, has: &dyn Fn(&str) -> bool) -> Option<ExtraBlocks> {
    let (first, blocks) = (model.blocks.len(), model.architecture.outside().blocks);
    let mut longer = model.clone();
    let mut tensors = Vec::new();
    let mut count = 0;
    while count < MOST && has(&model.named(format!("{blocks}.{}.eh_proj.weight", first + count))) {
        let i = first + count;
        longer.blocks.push(block.clone());
        let own = longer.block(i).into_iter();
        tensors.extend(own.map(|spec| TensorSpec { role: TensorRole::Other, block: None, reads: None, ..spec }));
        for (source, gguf, shape) in NUMBERED {
            let source = model.named(format!("{blocks}.{i}.{source}.weight"));
            let optional = shape == Shape::Vocabulary || gguf == "shared_head_norm";
            if optional && !has(&source) {
                continue;
            }
            let shape = match shape {
                Shape::Both => vec![model.hidden, 2 * model.hidden],
                Shape::Norm => vec![model.hidden],
                Shape::Vocabulary => vec![model.vocab, model.hidden],
            };
            tensors.push(TensorSpec::plain(source, format!("blk.{i}.nextn.{gguf}.weight"), shape, TensorRole::Other));
        }
        count += 1;
    }
    let keys = vec![("nextn_predict_layers", Value::U32(count as u32))];
    (count > 0).then_some(ExtraBlocks { count, tensors, keys })
}

/// More layers than any model has.
const MOST: usize = 16;
