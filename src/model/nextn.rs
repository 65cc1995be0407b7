//! Layers behind the last block that predict several tokens: kept and named as llama.cpp's converter does, not run.

use super::mapping::ExpertLayout;
use super::part::TensorRole;
use super::{BlockConfig, ExtraBlocks, Model, TensorMapping, TensorSpec};
use crate::source::value::{Metadata, Value, get};

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
        // They do not share the prefix of the others.
        let (inside, own) = (longer.named(format!("{usual}{}.", first + count)), format!("{prefix}.layers.{count}."));
        let specs = |layout: ExpertLayout| -> Vec<TensorSpec> {
            let laid_out = Model { expert_layout: layout, ..longer.clone() };
            let moved = |spec: TensorSpec| TensorSpec {
                source: spec.source.strip_prefix(&inside).map_or(spec.source.clone(), |rest| format!("{own}{rest}")),
                role: TensorRole::Other,
                block: None,
                reads: None,
                ..spec
            };
            laid_out.block(first + count).into_iter().map(moved).collect()
        };
        // Their experts may be stored in another way than those of the others.
        let layouts = [model.expert_layout, ExpertLayout::Usual, ExpertLayout::Fused];
        let complete = |layout: &ExpertLayout| specs(*layout).iter().all(|spec| has(&spec.first_source()));
        tensors.extend(specs(layouts.into_iter().find(complete).unwrap_or(model.expert_layout)));
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
    Some(ExtraBlocks { count, tensors, keys: vec![(COUNT, Value::U32(count as u32))] })
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
    let keys = vec![(COUNT, Value::U32(count as u32))];
    (count > 0).then_some(ExtraBlocks { count, tensors, keys })
}

/// Takes them out of the keys of a file. `blocks`: how many the forward pass uses. Returns how many there were.
pub fn leave_out(metadata: &mut Metadata, architecture: &str, blocks: usize) -> usize {
    let named = |key: &str| format!("{architecture}.{key}");
    let [count, all] =
        [COUNT, "block_count"].map(|key| get(metadata, &named(key)).and_then(Value::as_u64).unwrap_or(0));
    if count == 0 {
        return 0;
    }
    metadata.retain(|(key, _)| *key != named(COUNT));
    for (key, value) in metadata.iter_mut() {
        // What is said block by block.
        let by_block = key.starts_with(&named("attention.")) || *key == named("feed_forward_length");
        match value {
            Value::Array(list) if by_block && list.len() as u64 == all => list.truncate(blocks),
            _ if *key == named("block_count") => *value = Value::U32(blocks as u32),
            _ => {}
        }
    }
    count as usize
}

/// What is said where they are left out.
pub fn note_left_out(count: usize) -> String {
    format!("{} for multi-token prediction {} left out", of_blocks(count), if count == 1 { "is" } else { "are" })
}

/// What is said where they are kept, with so many tensors.
pub fn note_kept(count: usize, tensors: usize) -> String {
    let verb = if count == 1 { "is" } else { "are" };
    format!(
        "{} for multi-token prediction {verb} kept ({tensors} tensors, rounded to nearest; --no-mtp leaves them out)",
        of_blocks(count)
    )
}

fn of_blocks(count: usize) -> String {
    if count == 1 { "1 block".into() } else { format!("{count} blocks") }
}

/// The key of how many there are.
const COUNT: &str = "nextn_predict_layers";

/// More layers than any model has.
const MOST: usize = 16;
