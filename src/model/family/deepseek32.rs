//! DeepSeek V3.2: V3 with attention that sees the positions which an indexer chooses.

use super::deepseek2;
use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::mixer::Mixer;
use crate::model::mixer::latent_attention::indexer::Indexer;
use crate::model::{
    Architecture, BlockConfig, BlockTensor, Decoder, ExtraBlocks, Kind, Model, QueryRows, TensorMapping, config, nextn,
};
use crate::source::config::Config;

/// V3 whose attention is sparse.
pub struct DeepSeek32;

const HEADS: &str = "attention.indexer.head_count";
const HEAD_DIM: &str = "attention.indexer.key_length";
const TOP: &str = "attention.indexer.top_k";

fn build(decoder: Decoder, indexer: Indexer, architecture: &'static dyn Architecture) -> Model {
    let mut model = decoder.build(architecture);
    for half in model.blocks.iter_mut().flat_map(|block| &mut block.halves) {
        if let Mixer::LatentAttention(attention) = &mut half.mixer {
            attention.indexer = Some(indexer);
        }
    }
    model
}

impl Architecture for DeepSeek32 {
    fn gguf(&self) -> &'static str {
        "deepseek32"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["deepseek_v32"]
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Neighbours
    }

    fn examples(&self) -> &'static str {
        "DeepSeek-V3.2-Exp, V3.2, V3.2-Speciale"
    }

    fn sample(&'static self) -> Model {
        build(deepseek2::small(), Indexer { heads: 1, head_dim: 4, top: 4 }, self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        if config.maybe_size("q_lora_rank")?.is_none() {
            return Err(config::refused(config, "no q_lora_rank is not supported"));
        }
        let mut model = deepseek2::read(self, config)?;
        // What transformers puts the part of a head that is turned in the place of.
        config.ignore(&["head_dim"]);
        config::layer_types(config, model.blocks, &["indexed_attention", "deepseek_sparse_attention"])?;
        let turned = model.latent.map_or(0, |latent| latent.turned);
        if model.experts.is_none_or(|experts| experts.shared.is_none()) {
            return Err(config::refused(config, "no n_routed_experts, or no n_shared_experts, is not supported"));
        }
        let indexer = Indexer {
            heads: config.size("index_n_heads")?,
            head_dim: config.size("index_head_dim")?,
            top: config.size("index_topk")?,
        };
        // llama.cpp turns its queries and keys by a Hadamard matrix, which it has for these.
        if indexer.head_dim < turned.max(64) || !indexer.head_dim.is_power_of_two() {
            let what = format!(
                "index_head_dim {} is not supported: it has to be a power of two, 64 at least, and qk_rope_head_dim {turned} at least",
                indexer.head_dim
            );
            return Err(config::refused(config, &what));
        }
        deepseek2::put_keys(&mut model);
        model.size_key(HEADS, indexer.heads);
        model.size_key(HEAD_DIM, indexer.head_dim);
        model.size_key(TOP, indexer.top);
        Ok(build(model, indexer, self))
    }

    fn read_gguf(&'static self, keys: &Keys, decoder: Decoder) -> Result<Model> {
        let model = deepseek2::read_gguf(keys, decoder)?;
        let turned = model.latent.map_or(0, |latent| latent.turned);
        let indexer = Indexer { heads: keys.size(HEADS)?, head_dim: keys.size(HEAD_DIM)?, top: keys.size(TOP)? };
        if indexer.head_dim < turned {
            return Err(keys.wrong(&format!("{turned} numbers of an indexer's {} cannot be turned", indexer.head_dim)));
        }
        if model.latent.is_none_or(|latent| latent.query.is_none()) {
            return Err(keys.wrong("there is no key 'attention.q_lora_rank'"));
        }
        Ok(build(model, indexer, self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        deepseek2::source(tensor)
    }

    fn mapping(&self, block: &BlockConfig, tensor: &BlockTensor, _: Kind) -> TensorMapping {
        deepseek2::mapping(block, tensor)
    }

    fn extra_blocks(&self, model: &Model, has: &dyn Fn(&str) -> bool) -> Option<ExtraBlocks> {
        nextn::numbered(model, model.blocks.last()?, has)
    }
}
