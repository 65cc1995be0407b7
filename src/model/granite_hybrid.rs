//! IBM's Granite 4 with Mamba-2: most blocks have it instead of attention, and an MLP or experts behind either.

use super::decoder::Decoder;
use super::gguf_keys::Keys;
use super::mamba2::{self, PREFIXED};
use super::mapping::Pick;
use super::mixer::Mixer;
use super::mixer::experts::Experts;
use super::mixer::mamba2::Mamba2;
use super::mixer::mlp::Mlp;
use super::{Architecture, BlockConfig, BlockTensor, Kind, Model, Part, QueryRows, TensorMapping, config, granite};
use crate::error::Result;
use crate::source::config::Config;
use crate::source::value::Value;
use llmq_kernels::elementwise::Activation;
use serde_json::json;

/// Granite's factors, Mamba-2 in most blocks, and usually no rotary embedding.
pub struct GraniteHybrid;

/// Puts Mamba-2 in the place of attention where a block has that, and takes away rotary embedding where there is none.
fn arrange(model: Decoder, attends: &[bool], turns: bool, mamba: Mamba2) -> Model {
    let mut model = model.build(&GraniteHybrid);
    for (block, attends) in model.blocks.iter_mut().zip(attends) {
        match &mut block.halves[0].mixer {
            mixer if !attends => *mixer = mamba.into(),
            Mixer::Attention(attention) if !turns => attention.rope = None,
            _ => {}
        }
    }
    model
}

/// Experts with an MLP beside them, if that has a width.
fn mixture(count: usize, used: usize, width: usize, shared: usize) -> Experts {
    let beside = Mlp { shared: true, ..Mlp::gated(shared, Activation::Silu) };
    Experts { shared: (shared > 0).then_some(beside), ..Experts::plain(count, used, width) }
}

fn number(config: &Config, key: &str) -> usize {
    config.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0) as usize
}

/// Rotary embedding is used.
const TURNS: &str = "rope.scaling.finetuned";
const KV_HEADS: &str = "attention.head_count_kv";

impl Architecture for GraniteHybrid {
    fn gguf(&self) -> &'static str {
        "granitehybrid"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["granitemoehybrid"]
    }

    fn examples(&self) -> &'static str {
        "Granite 4.0 h-micro, h-tiny, h-small"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Interleaved
    }

    fn sample(&'static self) -> Model {
        let mamba = Mamba2 { heads: 2, head_dim: 8, groups: 1, state: 4, taps: 4, norm: Some(1e-5) };
        let decoder = Decoder { blocks: 2, experts: Some(mixture(2, 1, 8, 8)), ..self.decoder().sized() };
        arrange(decoder, &[false, true], false, mamba)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let config = &config.clone().with_defaults(json!({ "mamba_expand": 2, "mamba_d_head": "auto" }));
        let blocks = config.size("num_hidden_layers")?;
        let known = ["mamba", "linear_attention", "attention", "full_attention"];
        let kinds = config::layer_types(config, blocks, &known)?;
        let kinds = kinds.ok_or_else(|| config.unsupported("there is no key 'layer_types'"))?;
        let attends: Vec<bool> =
            kinds.iter().map(|kind| kind.ends_with("attention") && !kind.starts_with("linear")).collect();
        if attends.iter().all(|attends| *attends) {
            return granite::read_hybrid_dense(config);
        }
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        if config.size("mamba_expand")? != 2 {
            return Err(config::refused(config, "mamba_expand other than 2 is not supported"));
        }
        let mamba = PREFIXED.read(config, Some(2 * model.hidden), Some(model.norm_eps))?;
        let turns = config.maybe_string("position_embedding_type")?.as_deref() == Some("rope");
        let factor = |key: &str| -> Result<f32> { Ok(config.maybe_positive(key)?.map_or(1.0, |x| x as f32)) };
        let (scale, logits) = (factor("attention_multiplier")?, factor("logits_scaling")?);
        model.attention_scale = Some(scale);
        model.embedding_scale = factor("embedding_multiplier")?;
        model.residual_scale = factor("residual_multiplier")?;
        model.logit_scale = 1.0 / logits;
        // llama.cpp takes the width of a head from the two sizes.
        model.explicit_head_dim = false;
        if model.head_dim * model.heads != model.hidden {
            return Err(config::refused(
                config,
                "head_dim other than hidden_size / num_attention_heads is not supported",
            ));
        }
        if !turns {
            model.context = mamba2::ANY_CONTEXT;
        }
        let (count, shared) = (number(config, "num_local_experts"), number(config, "shared_intermediate_size"));
        match count {
            // The MLP is called the shared one there, too.
            0 => model.ffn = config.size("shared_intermediate_size")?,
            _ => model.experts = Some(mixture(count, config.size("num_experts_per_tok")?, model.ffn, shared)),
        }
        model.key("attention.scale", Value::F32(scale));
        model.key("embedding_scale", Value::F32(model.embedding_scale));
        model.key("residual_scale", Value::F32(model.residual_scale));
        model.key("logit_scale", Value::F32(logits));
        if count > 0 {
            model.size_key("expert_shared_feed_forward_length", shared);
        }
        mamba2::put_keys(&mut model, &mamba);
        model.key(TURNS, Value::Bool(turns));
        model.key(KV_HEADS, mamba2::per_block(model.kv_heads, attends.iter().copied()));
        Ok(arrange(model, &attends, turns, mamba))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        let kv_heads = keys.per_block(KV_HEADS)?.ok_or_else(|| keys.wrong(&format!("there is no list {KV_HEADS}")))?;
        if kv_heads.iter().any(|&n| n != 0 && n != model.kv_heads as u64) {
            return Err(keys.wrong(&format!("several numbers in {KV_HEADS} are not supported")));
        }
        let attends: Vec<bool> = kv_heads.iter().map(|&n| n > 0).collect();
        let turns = keys.maybe(TURNS).and_then(Value::as_bool).unwrap_or(true);
        let factor = |key: &str| -> Result<f32> { Ok(keys.maybe_number(key)?.map_or(1.0, |x| x as f32)) };
        model.attention_scale = keys.maybe_number("attention.scale")?.map(|x| x as f32);
        model.embedding_scale = factor("embedding_scale")?;
        model.residual_scale = factor("residual_scale")?;
        model.logit_scale = 1.0 / factor("logit_scale")?;
        if let Some(count) = keys.maybe("expert_count").and_then(Value::as_u64).filter(|&count| count > 0) {
            let shared = keys.maybe("expert_shared_feed_forward_length").and_then(Value::as_u64).unwrap_or(0);
            let used = keys.size("expert_used_count")?;
            model.experts = Some(mixture(count as usize, used, model.ffn, shared as usize));
        }
        let mamba = mamba2::of_gguf(keys, Some(model.norm_eps))?;
        Ok(arrange(model, &attends, turns, mamba))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::ROUTER => "block_sparse_moe.router.layer",
            Part::EXPERT_GATES | Part::EXPERT_UPS => "block_sparse_moe.input_linear",
            Part::EXPERT_DOWNS => "block_sparse_moe.output_linear",
            Part::GATE | Part::UP | Part::SHARED_GATE | Part::SHARED_UP => "shared_mlp.input_linear",
            Part::DOWN | Part::SHARED_DOWN => "shared_mlp.output_linear",
            _ => tensor.source,
        }
    }

    fn mapping(&self, _: &BlockConfig, tensor: &BlockTensor, kind: Kind) -> TensorMapping {
        // Gate and up are one layer, gate first.
        let part =
            |first: usize| Pick::Rows { rows: (first..first + tensor.shape[0]).collect(), of: 2 * tensor.shape[0] };
        let of_stack = |first: usize| Pick::StackRows { first, of: 2 * tensor.shape[1] };
        match tensor.part {
            Part::GATE | Part::SHARED_GATE => part(0).into(),
            Part::UP | Part::SHARED_UP => part(tensor.shape[0]).into(),
            Part::EXPERT_GATES => of_stack(0).into(),
            Part::EXPERT_UPS => of_stack(tensor.shape[1]).into(),
            Part::EXPERT_DOWNS => TensorMapping::AS_IS,
            _ => mamba2::mapping(tensor, kind),
        }
    }
}
