//! Zhipu's GLM-4.5, 4.6 and 4.7 with experts, and Upstage's Solar Open.

use super::deepseek2;
use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::Limits;
use crate::model::mixer::attention::HeadNorms;
use crate::model::mixer::experts::Experts;
use crate::model::mixer::routing::Scoring;
use crate::model::{Architecture, BlockTensor, Decoder, ExtraBlocks, Model, Part, config, mixture, nextn};
use crate::source::config::Config;

/// Half of each head turned, biases on q, k and v, experts chosen by sigmoids, one shared.
pub struct Glm4Moe;

impl Architecture for Glm4Moe {
    fn gguf(&self) -> &'static str {
        "glm4moe"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["glm4_moe", "solar_open"]
    }

    fn examples(&self) -> &'static str {
        "GLM-4.5-Air, GLM-4.5, 4.6, 4.7, Solar Open 100B"
    }

    fn limits(&self) -> Limits {
        Limits { partial_rotary: true, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        Decoder { experts: Some(Experts::plain(2, 1, 8)), ..self.decoder().sized() }.build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        // The other one turns whole heads.
        let solar = config.string("model_type")? == "solar_open";
        let part = if solar { 1.0 } else { 0.5 };
        let usual = serde_json::json!({ "partial_rotary_factor": part, "norm_topk_prob": solar });
        let mut config = config.clone().with_defaults(usual);
        if solar {
            // No block has such a width.
            config = config.with_defaults(serde_json::json!({ "intermediate_size": 10_240 }));
        }
        let config = &config;
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        // attention_bias is about q, k and v alone.
        (model.o_bias, model.explicit_head_dim) = (false, true);
        if config.flag("use_qk_norm")? {
            model.head_norms = HeadNorms::PerHead;
        }
        if config.maybe_size("n_group")?.is_some_and(|n| n > 1) {
            return Err(config::refused(config, "n_group above 1 is not supported"));
        }
        let (width, count) = (config.size("moe_intermediate_size")?, config.size("n_routed_experts")?);
        let shared = config.maybe_size("n_shared_experts")?.unwrap_or(0);
        model.dense = config.get("first_k_dense_replace").and_then(|n| n.as_u64()).unwrap_or(0) as usize;
        model.experts = Some(Experts {
            scoring: Scoring::Sigmoid,
            normed: config.flag("norm_topk_prob")?,
            scale: config.maybe_positive("routed_scaling_factor")?.unwrap_or(1.0) as f32,
            selection_bias: true,
            shared: mixture::shared(&model, shared * width),
            ..Experts::plain(count, config.size("num_experts_per_tok")?, width)
        });
        model.size_key("expert_feed_forward_length", width);
        model.size_key("expert_shared_count", shared);
        model.size_key("leading_dense_block_count", model.dense);
        mixture::put_router(&mut model);
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        if keys.has("blk.0.attn_q_norm.weight") {
            model.head_norms = HeadNorms::PerHead;
        }
        mixture::read_gguf(keys, &mut model, Experts { scoring: Scoring::Sigmoid, ..Experts::plain(0, 0, 0) })?;
        Ok(model.build(self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        deepseek2::source(tensor)
    }

    fn gguf_name(&self, part: Part) -> &'static str {
        match part {
            // As llama.cpp has it.
            Part::FFN_NORM => "post_attention_norm",
            _ => part.0,
        }
    }

    fn extra_blocks(&self, model: &Model, has: &dyn Fn(&str) -> bool) -> Option<ExtraBlocks> {
        nextn::numbered(model, model.blocks.last()?, has)
    }
}
