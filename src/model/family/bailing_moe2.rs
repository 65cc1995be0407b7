//! inclusionAI's Ling and Ring 2.0, and Sarvam 30B.

use super::deepseek2;
use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mixer::attention::HeadNorms;
use crate::model::mixer::experts::Experts;
use crate::model::mixer::routing::Scoring;
use crate::model::{Architecture, BlockTensor, Decoder, Model, OutsideNames, Part, config, mixture};
use crate::source::config::Config;

/// q, k and v in one layer, norms of queries and keys, and experts as DeepSeek V3 has them.
pub struct BailingMoe2;

impl Architecture for BailingMoe2 {
    fn gguf(&self) -> &'static str {
        "bailingmoe2"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["bailing_moe", "bailing_moe_v2", "sarvam_moe"]
    }

    fn examples(&self) -> &'static str {
        "Ling-mini and Ling-flash 2.0, Ring 2.0, Sarvam 30B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { fused_qkv: true, head_norms: HeadNorms::PerHead, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits { output: Place::Needed, partial_rotary: true, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        Decoder { experts: deepseek2::small().experts, ..self.decoder().sized() }.build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let sarvam = config.string("model_type")? == "sarvam_moe";
        let (part, base) = if sarvam { (1.0, 8e6) } else { (0.5, 6e5) };
        let usual = serde_json::json!({ "partial_rotary_factor": part, "rope_theta": base });
        let mut config = config.clone().with_defaults(usual);
        // Ling-1T says it in numbers.
        if let Some(turned) = config.maybe_size("rotary_dim")? {
            let head_dim = config.size("head_dim")?;
            config = config.with("partial_rotary_factor", (turned as f64 / head_dim as f64).into());
        }
        let config = &config;
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        for key in ["attention_bias", "use_qkv_bias", "use_bias", "norm_head"] {
            if config.flag(key)? {
                return Err(config::refused(config, &format!("{key} is not supported")));
            }
        }
        for (key, usual) in [("use_qk_norm", sarvam), ("moe_router_enable_expert_bias", true)] {
            if !config.get(key).map_or(Ok(usual), |_| config.flag(key))? {
                return Err(config::refused(config, &format!("{key} false is not supported"))
                    .hint("models of the first version, such as Ling-lite, are not supported"));
            }
        }
        if config.maybe_string("score_function")?.is_some_and(|own| own != "sigmoid") {
            return Err(config::refused(config, "score_function other than 'sigmoid' is not supported"));
        }
        if model.heads * model.head_dim != model.hidden {
            let what = "head_dim other than hidden_size / num_attention_heads is not supported";
            return Err(config::refused(config, what));
        }
        model.dense = config::leading_dense(config, model.blocks, usize::from(sarvam))?;
        let mut experts = mixture::read(config, &model, true)?;
        let beside = config.maybe_size("moe_shared_expert_intermediate_size")?.unwrap_or(experts.width);
        if experts.shared.is_none_or(|mlp| mlp.width != experts.width) {
            return Err(config::refused(config, "num_shared_experts other than 1 is not supported"));
        }
        experts.shared = mixture::shared(&model, beside);
        model.experts = Some(experts);
        mixture::put_keys(&mut model);
        model.size_key("expert_shared_count", 1);
        model.size_key("expert_shared_feed_forward_length", beside);
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        mixture::read_gguf(keys, &mut model, Experts { scoring: Scoring::Sigmoid, ..Experts::plain(0, 0, 0) })?;
        Ok(model.build(self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::QKV => "attention.query_key_value",
            Part::O => "attention.dense",
            Part::Q_NORM => "attention.query_layernorm",
            Part::K_NORM => "attention.key_layernorm",
            Part::SELECTION_BIAS => "mlp.gate.expert_bias",
            _ => deepseek2::source(tensor),
        }
    }

    fn outside(&self) -> OutsideNames {
        OutsideNames {
            embedding: "model.word_embeddings",
            positions: "",
            blocks: "model.layers",
            norm: "model.norm",
            output: "lm_head",
        }
    }
}
