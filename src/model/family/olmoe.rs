//! Ai2's OLMoE.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mixer::attention::HeadNorms;
use crate::model::mixer::experts::Experts;
use crate::model::{Architecture, Decoder, Model, config};
use crate::source::config::Config;

/// Llama with experts whose weights are not normed, and norms of queries and keys over all heads at once.
pub struct Olmoe;

impl Architecture for Olmoe {
    fn gguf(&self) -> &'static str {
        "olmoe"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["olmoe"]
    }

    fn examples(&self) -> &'static str {
        "OLMoE-1B-7B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { head_norms: HeadNorms::Whole, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits { output: Place::Needed, head_dim: false, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        Decoder { experts: Some(Experts::plain(2, 1, 8)), ..self.decoder().sized() }.build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        if config.flag("norm_topk_prob")? {
            return Err(config::refused(config, "norm_topk_prob is not supported"));
        }
        if model.kv_heads != model.heads {
            return Err(config::refused(config, "num_key_value_heads other than num_attention_heads is not supported"));
        }
        if config.maybe_positive("clip_qkv")?.is_some() {
            return Err(config::refused(config, "clip_qkv is not supported"));
        }
        let count = config::first_size(config, &["num_experts", "num_local_experts"])?;
        let experts = Experts::plain(count, config.size("num_experts_per_tok")?, model.ffn);
        model.experts = Some(Experts { normed: false, ..experts });
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        if let Some(count) = keys.maybe_size("expert_count")? {
            let experts = Experts::plain(count, keys.size("expert_used_count")?, model.ffn);
            model.experts = Some(Experts { normed: false, ..experts });
        }
        Ok(model.build(self))
    }
}
