//! inclusionAI's Ling and Ring 3.0.

use super::deepseek2;
use crate::error::Result;
use crate::model::decoder::Latent;
use crate::model::gguf_keys::Keys;
use crate::model::half::HalfConfig;
use crate::model::mapping::Change;
use crate::model::mixer::Mixer;
use crate::model::mixer::experts::Experts;
use crate::model::mixer::kimi_delta_attention::KimiDeltaAttention;
use crate::model::mixer::routing::Scoring;
use crate::model::rope::{Rope, Scaling};
use crate::model::{
    Architecture, BlockConfig, BlockTensor, Decoder, ExtraBlocks, Kind, Model, OutsideNames, Part, QueryRows,
    TensorMapping, config, mixture, nextn,
};
use crate::source::config::Config;
use crate::source::value::{Array, Value};

/// Kimi Delta Attention, and in some blocks DeepSeek's attention with a gate; experts as DeepSeek V3 has them.
pub struct BailingMoe3;

/// The model. `full`: which blocks attend.
fn build(decoder: Decoder, net: KimiDeltaAttention, full: &[bool], architecture: &'static dyn Architecture) -> Model {
    let mut model = decoder.build(architecture);
    for (block, &full) in model.blocks.iter_mut().zip(full) {
        let first = &mut block.halves[0];
        match &mut first.mixer {
            Mixer::LatentAttention(own) if full => own.gate = true,
            _ => *first = HalfConfig::new(first.norm, net),
        }
    }
    model
}

impl Architecture for BailingMoe3 {
    fn gguf(&self) -> &'static str {
        "bailingmoe3"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["bailing_hybrid"]
    }

    fn examples(&self) -> &'static str {
        "Ling 3.0 and Ling 3.0 Flash"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Neighbours
    }

    fn sample(&'static self) -> Model {
        let decoder = Decoder { blocks: 2, ..deepseek2::small() };
        let net = KimiDeltaAttention { heads: 2, head_dim: 4, taps: 4, lower_bound: -5.0, eps: 1e-6 };
        build(decoder, net, &[false, true], self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        // Behind the narrow vectors' sizes, head_dim is one of them; the net's own is beside it.
        let net_dim = match config.maybe_size("linear_head_dim")? {
            Some(own) => own,
            None => config.size("head_dim")?,
        };
        let usual = serde_json::json!({ "rope_theta": 6e6 });
        let config = &config.clone().with_defaults(usual).with("head_dim", serde_json::Value::Null);
        let latent = Latent {
            query: config.maybe_size("q_lora_rank")?,
            latent: config.size("kv_lora_rank")?,
            turned: config.size("qk_rope_head_dim")?,
            value: config.size("v_head_dim")?,
        };
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        model.head_dim = config.size("qk_nope_head_dim")? + latent.turned;
        if latent.value > model.head_dim {
            return Err(config::refused(config, "values that are wider than keys are not supported"));
        }
        if model.qkv_bias {
            return Err(config::refused(config, "attention_bias is not supported"));
        }
        for key in ["kda_safe_gate", "no_kda_lora"] {
            if config.maybe_flag(key)? == Some(false) {
                return Err(config::refused(config, &format!("{key} false is not supported")));
            }
        }
        let gate = config.maybe_string("gated_attention_proj_granularity_type")?;
        if gate.as_deref().is_some_and(|kind| kind != "head_wise") {
            return Err(config::refused(
                config,
                "gated_attention_proj_granularity_type other than 'head_wise' is not supported",
            ));
        }
        for key in ["expert_swiglu_limit_list", "share_expert_swiglu_limit_list"] {
            let list = config.get(key).and_then(|list| list.as_array());
            if list.is_some_and(|list| list.iter().any(|x| x.as_f64().is_some_and(|x| x != 0.0))) {
                return Err(config.unsupported(&format!("{key} is not supported")));
            }
        }
        let rope = Rope::read(config, latent.turned)?;
        if rope.rotary != latent.turned || rope.scaling != Scaling::None {
            return Err(config::refused(config, "rope scaling, or partial_rotary_factor, is not supported"));
        }
        (model.rope, model.latent) = (Some(rope), Some(latent));
        let (n, group) = (model.blocks, config.size("layer_group_size")?);
        let full: Vec<bool> = match config::layer_types(config, n, &["linear_attention", "full_attention"])? {
            Some(types) => types.iter().map(|kind| kind == "full_attention").collect(),
            // Blocks of a group that is not whole are nets to some, and attend to others.
            None if !n.is_multiple_of(group) => {
                let what = format!("{n} blocks in groups of {group}, without layer_types, are not supported");
                return Err(config.unsupported(&what));
            }
            None => (0..n).map(|block| (block + 1).is_multiple_of(group)).collect(),
        };
        model.kv_heads = model.heads;
        model.explicit_head_dim = false;
        model.dense = config::leading_dense(config, n, 2)?;
        let experts = mixture::read(config, &model, true)?;
        let beside = config.maybe_size("moe_shared_expert_intermediate_size")?;
        let beside = beside.or(experts.shared.map(|mlp| mlp.width)).unwrap_or(0);
        if beside == 0 {
            return Err(config::refused(config, "no num_shared_experts is not supported"));
        }
        let count = experts.shared.map_or(0, |mlp| mlp.width) / experts.width;
        model.experts = Some(Experts { shared: mixture::shared(&model, beside), ..experts });
        let net = KimiDeltaAttention {
            heads: model.heads,
            head_dim: net_dim,
            taps: config.size("short_conv_kernel_size")?,
            lower_bound: config.get("kda_lower_bound").map_or(Some(-5.0), |bound| bound.as_f64()).unwrap_or(0.0) as f32,
            eps: model.norm_eps,
        };
        if net.lower_bound >= 0.0 {
            return Err(config.unsupported("kda_lower_bound that is no number below zero is not supported"));
        }
        deepseek2::put_keys(&mut model);
        let heads = full.iter().map(|&full| u32::from(full)).collect();
        model.key("attention.head_count_kv", Value::Array(Array::U32(heads)));
        model.size_key("expert_shared_count", count);
        model.size_key("expert_shared_feed_forward_length", beside);
        model.size_key("ssm.conv_kernel", net.taps);
        model.size_key("kda.head_dim", net.head_dim);
        model.key("kda.safe_gate", Value::Bool(true));
        model.key("kda.gate_lower_bound", Value::F32(net.lower_bound));
        Ok(build(model, net, &full, self))
    }

    fn read_gguf(&'static self, keys: &Keys, decoder: Decoder) -> Result<Model> {
        let heads = keys.per_block("attention.head_count_kv")?;
        let full: Vec<bool> = match heads {
            Some(heads) => heads.into_iter().map(|n| n > 0).collect(),
            None => return Err(keys.wrong("there is no key 'bailingmoe3.attention.head_count_kv'")),
        };
        let mut model = deepseek2::read_gguf(keys, decoder)?;
        if let Some(experts) = &mut model.experts {
            let said = keys.maybe("expert_gating_func").and_then(Value::as_u64);
            experts.scoring = if said == Some(1) { Scoring::Softmax } else { Scoring::Sigmoid };
        }
        let bound = keys.maybe("kda.gate_lower_bound").and_then(Value::as_f64).filter(|&bound| bound < 0.0);
        let net = KimiDeltaAttention {
            heads: model.heads,
            head_dim: keys.size("kda.head_dim")?,
            taps: keys.size("ssm.conv_kernel")?,
            lower_bound: bound.ok_or_else(|| keys.wrong("'kda.gate_lower_bound' is no number below zero"))? as f32,
            eps: model.norm_eps,
        };
        Ok(build(model, net, &full, self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::Q => "attention.q_proj",
            Part::K => "attention.k_proj",
            Part::V => "attention.v_proj",
            Part::SSM_CONV1D_Q => "attention.q_conv1d",
            Part::SSM_CONV1D_K => "attention.k_conv1d",
            Part::SSM_CONV1D_V => "attention.v_conv1d",
            Part::SSM_F_A => "attention.f_proj",
            Part::SSM_BETA => "attention.b_proj",
            Part::SSM_A => "attention.A_log",
            Part::SSM_DT => "attention.dt_bias",
            Part::SSM_G_A | Part::ATTN_GATE => "attention.g_proj",
            Part::SSM_NORM => "attention.o_norm",
            Part::Q_A => "attention.q_a_proj",
            Part::Q_A_NORM => "attention.q_a_layernorm",
            Part::Q_B => "attention.q_b_proj",
            Part::KV_A => "attention.kv_a_proj_with_mqa",
            Part::KV_A_NORM => "attention.kv_a_layernorm",
            Part::K_B | Part::V_B => "attention.kv_b_proj",
            Part::O => "attention.dense",
            Part::SELECTION_BIAS => "mlp.gate.expert_bias",
            _ => deepseek2::source(tensor),
        }
    }

    fn mapping(&self, block: &BlockConfig, tensor: &BlockTensor, _: Kind) -> TensorMapping {
        match tensor.part {
            Part::SSM_A => TensorMapping { stored: Some(vec![tensor.shape[0]]), ..Change::Exp.into() },
            _ => deepseek2::mapping(block, tensor),
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

    fn extra_blocks(&self, model: &Model, has: &dyn Fn(&str) -> bool) -> Option<ExtraBlocks> {
        let full =
            model.blocks.iter().rev().find(|block| matches!(block.halves[0].mixer, Mixer::LatentAttention(_)))?;
        let mut extra = nextn::numbered(model, full, has)?;
        // llama.cpp runs one, and has another name for its norm.
        for tensor in &mut extra.tensors {
            tensor.gguf = tensor.gguf.replace("nextn.shared_head_norm", "layer_output_norm");
        }
        let heads = model.blocks.iter().map(|block| matches!(block.halves[0].mixer, Mixer::LatentAttention(_)));
        let heads = heads.chain(vec![true; extra.count]).map(u32::from).collect();
        extra.keys.push(("attention.head_count_kv", Value::Array(Array::U32(heads))));
        (extra.count == 1).then_some(extra)
    }
}
