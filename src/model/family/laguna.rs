//! Poolside's Laguna.

use crate::error::Result;
use crate::model::decoder::{Window, WindowBlocks};
use crate::model::gguf_keys::Keys;
use crate::model::limits::Limits;
use crate::model::mixer::Mixer;
use crate::model::mixer::attention::{Gate, HeadNorms};
use crate::model::mixer::experts::Experts;
use crate::model::mixer::routing::Scoring;
use crate::model::rope::Rope;
use crate::model::{Architecture, BlockTensor, Decoder, Model, Part, config, mixture};
use crate::source::config::Config;
use crate::source::value::{Array, Value};
use llmq_kernels::elementwise::Activation;

/// Query heads by block, a gate on what they give, windows with a rotary embedding of their own, and experts chosen by sigmoids.
pub struct Laguna;

/// What transformers takes where nothing is said.
fn usual_rope() -> serde_json::Value {
    serde_json::json!({
        "full_attention": { "rope_theta": 500_000.0, "partial_rotary_factor": 0.5 },
        "sliding_attention": { "rope_theta": 10_000.0 }
    })
}

const PATTERN: &str = "attention.sliding_window_pattern";

fn build(model: Decoder, heads: &[usize], gate: Gate, architecture: &'static dyn Architecture) -> Model {
    let mut model = model.build(architecture);
    for (block, &heads) in model.blocks.iter_mut().zip(heads) {
        if let Mixer::Attention(own) = &mut block.halves[0].mixer {
            (own.heads, own.gate) = (heads, gate);
        }
    }
    model
}

impl Architecture for Laguna {
    fn gguf(&self) -> &'static str {
        "laguna"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["laguna"]
    }

    fn examples(&self) -> &'static str {
        "Laguna XS 33B-A3B, Laguna S 118B-A8B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { head_norms: HeadNorms::PerHead, explicit_head_dim: true, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits { partial_rotary: true, approximates_yarn: true, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        let decoder = Decoder { experts: Some(Experts::plain(2, 1, 8)), ..self.decoder().sized() };
        build(decoder, &[2], Gate::PerHead(Activation::Softplus), self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        if model.qkv_bias || model.o_bias {
            return Err(config::refused(config, "attention_bias is not supported"));
        }
        if config.maybe_positive("moe_router_logit_softcapping").ok().flatten().is_some() {
            return Err(config::refused(config, "moe_router_logit_softcapping is not supported"));
        }
        model.explicit_head_dim = true;
        let n = model.blocks;
        let heads = match config.get("num_attention_heads_per_layer").and_then(|list| list.as_array()) {
            Some(list) => list.iter().filter_map(|n| n.as_u64()).map(|n| n as usize).collect(),
            None => vec![model.heads; n],
        };
        let fit = |&heads: &usize| heads > 0 && heads.is_multiple_of(model.kv_heads);
        if heads.len() != n || !heads.iter().all(fit) {
            return Err(config
                .unsupported(&format!("num_attention_heads_per_layer {heads:?} makes no {n} blocks of attention")));
        }
        let gate = match config.get("gating") {
            Some(serde_json::Value::String(kind)) if kind.replace('-', "_") == "per_element" => {
                Gate::Each(Activation::Softplus)
            }
            None | Some(serde_json::Value::Bool(true)) => Gate::PerHead(Activation::Softplus),
            Some(serde_json::Value::String(kind)) if kind.replace('-', "_") == "per_head" => {
                Gate::PerHead(Activation::Softplus)
            }
            Some(other) => return Err(config::refused(config, &format!("gating {other} is not supported"))),
        };
        if config.get("gating_types").is_some() {
            return Err(config::refused(config, "gating_types is not supported"));
        }
        let types = config::layer_types(config, n, &["sliding_attention", "full_attention"])?;
        let tokens = config.maybe_size("sliding_window")?;
        let local: Vec<bool> = match types {
            Some(types) => types.iter().map(|kind| kind == "sliding_attention" && tokens.is_some()).collect(),
            None => vec![false; n],
        };
        let parameters = match config.object("rope_parameters")? {
            None => config.clone().with("rope_parameters", usual_rope()).object("rope_parameters")?,
            said => said,
        };
        let of = |kind: &str| parameters.as_ref().map(|all| all.object(kind)).transpose().map(Option::flatten);
        if let Some(own) = of("full_attention")? {
            model.rope = Some(Rope::of(config, Some(own), model.head_dim)?);
        }
        if let Some(own) = of("sliding_attention")? {
            let rope = Rope::of(config, Some(own), model.head_dim)?;
            model.size_key("rope.dimension_count_swa", rope.rotary);
            model.key("rope.freq_base_swa", Value::F32(rope.base as f32));
            model.local_rope = Some(rope);
        }
        if let Some(tokens) = tokens.filter(|_| local.contains(&true)) {
            model.window = Some(Window { tokens, blocks: WindowBlocks::Marked(local.clone()) });
            model.size_key("attention.sliding_window", tokens);
            model.key(PATTERN, Value::Array(Array::Bool(local)));
        }
        let dense = config.get("mlp_layer_types").and_then(|list| list.as_array()).map(|list| {
            let dense = list.iter().take_while(|kind| kind.as_str() == Some("dense")).count();
            (dense, list.iter().skip(dense).any(|kind| kind.as_str() == Some("dense")))
        });
        if dense.is_some_and(|(_, later)| later) {
            return Err(config::refused(config, "mlp_layer_types with dense blocks behind others is not supported"));
        }
        model.dense = dense.map_or(1, |(first, _)| first);
        let (width, shared) = (config.size("moe_intermediate_size")?, config.size("shared_expert_intermediate_size")?);
        model.experts = Some(Experts {
            scoring: Scoring::Sigmoid,
            scale: config.maybe_positive("moe_routed_scaling_factor")?.unwrap_or(1.0) as f32,
            selection_bias: true,
            shared: mixture::shared(&model, shared),
            ..Experts::plain(config.size("num_experts")?, config.size("num_experts_per_tok")?, width)
        });
        model.key("attention.head_count", Value::Array(Array::U32(heads.iter().map(|&n| n as u32).collect())));
        model.size_key("expert_feed_forward_length", width);
        model.size_key("expert_shared_feed_forward_length", shared);
        model.size_key("leading_dense_block_count", model.dense);
        mixture::put_router(&mut model);
        Ok(build(model, &heads, gate, self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        mixture::read_gguf(keys, &mut model, Experts { scoring: Scoring::Sigmoid, ..Experts::plain(0, 0, 0) })?;
        let heads = keys.per_block("attention.head_count")?.unwrap_or_else(|| vec![model.heads as u64; model.blocks]);
        let heads: Vec<usize> = heads.into_iter().take(model.blocks).map(|n| n as usize).collect();
        if heads.iter().any(|&n| n == 0 || !n.is_multiple_of(model.kv_heads)) {
            return Err(keys.wrong(&format!("heads {heads:?} cannot share {} key-value heads", model.kv_heads)));
        }
        if let Some(tokens) = keys.maybe_size("attention.sliding_window")? {
            let marks = keys.marks(PATTERN)?.unwrap_or_else(|| (0..model.blocks).map(|i| i % 4 != 0).collect());
            model.window = Some(Window { tokens, blocks: WindowBlocks::Marked(marks) });
            let base = keys.maybe_number("rope.freq_base_swa")?.or(model.rope.as_ref().map(|rope| rope.base));
            let rotary = keys.maybe_size("rope.dimension_count_swa")?.unwrap_or(model.head_dim);
            model.local_rope = base.map(|base| Rope::plain(base, rotary));
        }
        let rows = keys.rows("blk.0.attn_gate.weight");
        let gate = match rows == Some(heads[0]) {
            true => Gate::PerHead(Activation::Softplus),
            false => Gate::Each(Activation::Softplus),
        };
        Ok(build(model, &heads, gate, self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::ATTN_GATE => "self_attn.g_proj",
            Part::SELECTION_BIAS => "mlp.experts.e_score_correction_bias",
            _ => tensor.source,
        }
    }
}
