//! AI21's Jamba: Mamba in most blocks and attention in the others, experts or an MLP behind either.

use super::mamba2::per_block;
use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mapping::Change;
use crate::model::mixer::experts::Experts;
use crate::model::mixer::mamba::Mamba;
use crate::model::{
    Architecture, BlockConfig, BlockTensor, Kind, Model, OutsideNames, Part, TensorMapping, config, mixture,
};
use crate::source::config::Config;
use llmq_kernels::elementwise::Activation;

/// Mamba with norms inside, attention without rotary embedding.
pub struct Jamba;

/// Puts Mamba in the place of attention where a block has that, and an MLP in that of experts.
fn arrange(mut model: Decoder, attends: &[bool], routed: &[bool], mamba: Mamba) -> Model {
    model.rope = None;
    let (norm, mlp) = (model.norm_of(Part::FFN_NORM, "pre_ff_layernorm"), model.mlp());
    let mut model = model.build(&Jamba);
    for ((block, attends), routed) in model.blocks.iter_mut().zip(attends).zip(routed) {
        if !attends {
            block.halves[0].mixer = mamba.into();
        }
        if !routed {
            block.halves[1].mixer = mlp.into();
        }
        block.halves[1].norm = Some(norm);
    }
    model
}

const KV_HEADS: &str = "attention.head_count_kv";

impl Architecture for Jamba {
    fn gguf(&self) -> &'static str {
        "jamba"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["jamba"]
    }

    fn examples(&self) -> &'static str {
        "Jamba v0.1, 1.5 and 1.7, Jamba2 and Reasoning 3B"
    }

    fn outside(&self) -> OutsideNames {
        OutsideNames {
            embedding: "model.embed_tokens",
            positions: "",
            blocks: "model.layers",
            norm: "model.final_layernorm",
            output: "lm_head",
        }
    }

    fn limits(&self) -> Limits {
        Limits { head_dim: false, qkv_bias: Place::None, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        let mamba = Mamba { inner: 16, state: 4, rank: 2, taps: 4, eps: 1e-6 };
        let decoder = Decoder { blocks: 2, experts: Some(Experts::plain(2, 1, 8)), ..self.decoder().sized() };
        arrange(decoder, &[false, true], &[true, false], mamba)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], Activation::Silu, "silu")?;
        for (key, wanted) in [("mamba_conv_bias", true), ("mamba_proj_bias", false)] {
            if config.flag(key)? != wanted {
                return Err(config::refused(config, &format!("{key} {} is not supported", !wanted)));
            }
        }
        if config.size("mamba_expand")? != 2 {
            return Err(config::refused(config, "mamba_expand other than 2 is not supported"));
        }
        model.explicit_head_dim = false;
        let rank = match config.get("mamba_dt_rank").filter(|rank| rank.is_number()) {
            Some(_) => config.size("mamba_dt_rank")?,
            None => model.hidden.div_ceil(16),
        };
        let mamba = Mamba {
            inner: 2 * model.hidden,
            state: config.size("mamba_d_state")?,
            rank,
            taps: config.size("mamba_d_conv")?,
            eps: model.norm_eps,
        };
        let every = |period: &str, offset: &str| -> Result<Vec<bool>> {
            let (period, from) = (config.size(period)?, config.get(offset).and_then(serde_json::Value::as_u64));
            let from = from.ok_or_else(|| config.unsupported(&format!("{offset} is no whole number")))? as usize;
            Ok((0..model.blocks).map(|i| i % period == from).collect())
        };
        let attends = every("attn_layer_period", "attn_layer_offset")?;
        let mut routed = every("expert_layer_period", "expert_layer_offset")?;
        match config::first_size(config, &["num_experts", "num_local_experts"])? {
            1 => {
                config.ignore(&["num_experts_per_tok"]);
                routed.fill(false);
            }
            count => {
                let experts = Experts::plain(count, config.size("num_experts_per_tok")?, model.ffn);
                model.experts = Some(Experts { normed: false, ..experts });
            }
        }
        model.size_key("ssm.conv_kernel", mamba.taps);
        model.size_key("ssm.inner_size", mamba.inner);
        model.size_key("ssm.state_size", mamba.state);
        model.size_key("ssm.time_step_rank", mamba.rank);
        model.key(KV_HEADS, per_block(model.kv_heads, attends.iter().copied()));
        model.rope = None;
        Ok(arrange(model, &attends, &routed, mamba))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        let kv_heads = keys.per_block(KV_HEADS)?.ok_or_else(|| keys.wrong(&format!("there is no list {KV_HEADS}")))?;
        if kv_heads.iter().any(|&n| n != 0 && n != model.kv_heads as u64) {
            return Err(keys.wrong(&format!("several numbers in {KV_HEADS} are not supported")));
        }
        let attends: Vec<bool> = kv_heads.iter().map(|&n| n > 0).collect();
        let routed: Vec<bool> = (0..model.blocks).map(|i| keys.has(&format!("blk.{i}.ffn_gate_inp.weight"))).collect();
        if routed.contains(&true) {
            mixture::read_gguf(keys, &mut model, Experts { normed: false, ..Experts::plain(0, 0, 0) })?;
        }
        let mamba = Mamba {
            inner: keys.size("ssm.inner_size")?,
            state: keys.size("ssm.state_size")?,
            rank: keys.size("ssm.time_step_rank")?,
            taps: keys.size("ssm.conv_kernel")?,
            eps: model.norm_eps,
        };
        Ok(arrange(model, &attends, &routed, mamba))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::GATE => "feed_forward.gate_proj",
            Part::UP => "feed_forward.up_proj",
            Part::DOWN => "feed_forward.down_proj",
            Part::ROUTER => "feed_forward.router",
            Part::EXPERT_GATES => "feed_forward.experts.{}.gate_proj",
            Part::EXPERT_UPS => "feed_forward.experts.{}.up_proj",
            Part::EXPERT_DOWNS => "feed_forward.experts.{}.down_proj",
            _ => tensor.source,
        }
    }

    fn mapping(&self, _: &BlockConfig, tensor: &BlockTensor, kind: Kind) -> TensorMapping {
        match (tensor.part, kind) {
            (Part::SSM_CONV1D, Kind::Weight) => {
                let stored = Some(vec![tensor.shape[0], 1, tensor.shape[1]]);
                TensorMapping { stored, ..TensorMapping::AS_IS }
            }
            (Part::SSM_A, _) => Change::NegExp.into(),
            _ if tensor.source.contains("{}") => TensorMapping::STACKED,
            _ => TensorMapping::AS_IS,
        }
    }
}
