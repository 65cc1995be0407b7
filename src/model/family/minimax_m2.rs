//! MiniMax M2.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mixer::attention::HeadNorms;
use crate::model::mixer::experts::Experts;
use crate::model::mixer::routing::Scoring;
use crate::model::{Architecture, BlockTensor, Decoder, Model, Part, config};
use crate::source::config::Config;
use crate::source::value::Value;

/// Norms of all query and of all key heads together, a part of each head turned, and experts chosen by sigmoids with a bias.
pub struct MiniMaxM2;

fn mixture(count: usize, used: usize, width: usize, scoring: Scoring) -> Experts {
    Experts { scoring, selection_bias: true, ..Experts::plain(count, used, width) }
}

impl Architecture for MiniMaxM2 {
    fn gguf(&self) -> &'static str {
        "minimax-m2"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["minimax_m2"]
    }

    fn examples(&self) -> &'static str {
        "MiniMax M2 to M2.7"
    }

    fn decoder(&self) -> Decoder {
        Decoder { head_norms: HeadNorms::Whole, explicit_head_dim: true, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits { output: Place::Needed, partial_rotary: true, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        let experts = Some(mixture(2, 1, 8, Scoring::Sigmoid));
        Decoder { experts, ..self.decoder().sized() }.build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let usual = serde_json::json!({ "head_dim": 128, "rope_theta": 5e6 });
        let config = &config.clone().with_defaults(usual);
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        if model.tied {
            return Err(config::refused(config, "tie_word_embeddings is not supported"));
        }
        for key in ["use_qk_norm", "use_routing_bias"] {
            if config.get(key).is_some() && !config.flag(key)? {
                return Err(config::refused(config, &format!("{key} false is not supported")));
            }
        }
        for (key, usual) in [("scoring_func", "sigmoid"), ("qk_norm_type", "per_layer")] {
            if config.maybe_string(key)?.is_some_and(|own| own != usual) {
                return Err(config::refused(config, &format!("{key} other than '{usual}' is not supported")));
            }
        }
        if config::count(config, "shared_intermediate_size")?.is_some_and(|width| width > 0) {
            return Err(config::refused(config, "shared_intermediate_size is not supported"));
        }
        let list = config.get("attn_type_list").and_then(|list| list.as_array());
        if list.is_some_and(|list| list.iter().any(|kind| kind.as_u64() != Some(1))) {
            return Err(config::refused(config, "attn_type_list with other kinds than 1 is not supported"));
        }
        let rotary = config.maybe_size("rotary_dim")?;
        if let Some((rope, rotary)) = model.rope.as_mut().zip(rotary) {
            if rotary > model.head_dim || !rotary.is_multiple_of(2) {
                return Err(config.unsupported(&format!("rotary_dim {rotary} of head_dim {}", model.head_dim)));
            }
            rope.rotary = rotary;
        }
        model.explicit_head_dim = true;
        let count = config::first_size(config, &["num_local_experts", "num_experts"])?;
        let used = config.size("num_experts_per_tok")?;
        model.experts = Some(mixture(count, used, model.ffn, Scoring::Sigmoid));
        model.size_key("expert_feed_forward_length", model.ffn);
        model.size_key("expert_gating_func", 2);
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        let (count, used) = (keys.size("expert_count")?, keys.size("expert_used_count")?);
        let scoring = match keys.maybe("expert_gating_func").and_then(Value::as_u64) {
            Some(1) => Scoring::Softmax,
            _ => Scoring::Sigmoid,
        };
        model.experts = Some(mixture(count, used, model.ffn, scoring));
        Ok(model.build(self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::ROUTER => "block_sparse_moe.gate",
            Part::SELECTION_BIAS => "block_sparse_moe.e_score_correction_bias",
            Part::EXPERT_GATES => "block_sparse_moe.experts.{}.w1",
            Part::EXPERT_UPS => "block_sparse_moe.experts.{}.w3",
            Part::EXPERT_DOWNS => "block_sparse_moe.experts.{}.w2",
            _ => tensor.source,
        }
    }
}
