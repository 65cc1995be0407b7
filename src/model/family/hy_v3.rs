//! Tencent's Hy3.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::mixer::attention::HeadNorms;
use crate::model::mixer::experts::Experts;
use crate::model::mixer::mlp::Mlp;
use crate::model::mixer::routing::Scoring;
use crate::model::{Architecture, BlockTensor, Decoder, ExtraBlocks, Model, Part, config, nextn};
use crate::source::config::Config;
use crate::source::value::Value;
use llmq_kernels::elementwise::Activation;

/// Norms of queries and keys, and experts chosen by sigmoids with a bias behind a dense block, with shared ones beside them.
pub struct HyV3;

/// `beside`: width of the shared experts together.
fn mixture(count: usize, used: usize, width: usize, beside: usize) -> Experts {
    let shared = (beside > 0).then(|| Mlp { shared: true, ..Mlp::gated(beside, Activation::Silu) });
    Experts { scoring: Scoring::Sigmoid, selection_bias: true, shared, ..Experts::plain(count, used, width) }
}

impl Architecture for HyV3 {
    fn gguf(&self) -> &'static str {
        "hy_v3"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["hy_v3"]
    }

    fn examples(&self) -> &'static str {
        "Hy3 and Hy3-preview 295B-A21B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { head_norms: HeadNorms::PerHead, explicit_head_dim: true, ..Decoder::PLAIN }
    }

    fn sample(&'static self) -> Model {
        Decoder { experts: Some(mixture(2, 1, 8, 8)), ..self.decoder().sized() }.build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let usual = serde_json::json!({ "head_dim": 128, "rope_theta": 11_158_840.0 });
        let config = &config.clone().with_defaults(usual);
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        for key in ["attention_bias", "mlp_bias"] {
            if config.flag(key)? {
                return Err(config::refused(config, &format!("{key} is not supported")));
            }
        }
        for key in ["qk_norm", "route_norm", "moe_router_use_sigmoid", "moe_router_enable_expert_bias"] {
            if config.get(key).is_some() && !config.flag(key)? {
                return Err(config::refused(config, &format!("{key} false is not supported")));
            }
        }
        let width = config.size("moe_intermediate_size")?;
        let beside = config::count(config, "num_shared_experts")?.unwrap_or(1) * width;
        let scale = config.maybe_positive("router_scaling_factor")?.unwrap_or(2.826) as f32;
        let count = config::first_size(config, &["num_experts", "num_local_experts"])?;
        model.explicit_head_dim = true;
        model.dense = config::leading_dense(config, model.blocks, 1)?;
        model.experts = Some(Experts { scale, ..mixture(count, config.size("num_experts_per_tok")?, width, beside) });
        if beside == 0 {
            return Err(config::refused(config, "num_shared_experts 0 is not supported"));
        }
        model.size_key("expert_feed_forward_length", width);
        model.size_key("expert_shared_feed_forward_length", beside);
        model.key("expert_weights_norm", Value::Bool(true));
        model.key("expert_weights_scale", Value::F32(scale));
        model.size_key("expert_gating_func", 2);
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        let width = keys.first_size("expert_feed_forward_length")?;
        let beside = keys.maybe_size("expert_shared_feed_forward_length")?.unwrap_or(width);
        let softmax = keys.maybe("expert_gating_func").and_then(Value::as_u64) == Some(1);
        // llama.cpp looks for the tensors.
        model.dense = (0..model.blocks).take_while(|i| !keys.has(&format!("blk.{i}.ffn_gate_inp.weight"))).count();
        model.experts = Some(Experts {
            scoring: if softmax { Scoring::Softmax } else { Scoring::Sigmoid },
            normed: keys.maybe("expert_weights_norm").and_then(Value::as_bool).unwrap_or(false),
            scale: keys.maybe_number("expert_weights_scale")?.unwrap_or(1.0) as f32,
            selection_bias: keys.has(&format!("blk.{}.exp_probs_b", model.dense)),
            ..mixture(keys.size("expert_count")?, keys.size("expert_used_count")?, width, beside)
        });
        Ok(model.build(self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::ROUTER => "mlp.router.gate",
            Part::SELECTION_BIAS => "mlp.expert_bias",
            Part::SHARED_GATE => "mlp.shared_mlp.gate_proj",
            Part::SHARED_UP => "mlp.shared_mlp.up_proj",
            Part::SHARED_DOWN => "mlp.shared_mlp.down_proj",
            _ => tensor.source,
        }
    }

    fn extra_blocks(&self, model: &Model, has: &dyn Fn(&str) -> bool) -> Option<ExtraBlocks> {
        nextn::numbered(model, model.blocks.last()?, has)
    }

    fn ending(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            // As llama.cpp has it.
            Part::SELECTION_BIAS => "",
            _ => tensor.ending,
        }
    }
}
