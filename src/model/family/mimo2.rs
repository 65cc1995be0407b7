//! Xiaomi's MiMo V2 Flash.

use crate::error::Result;
use crate::model::decoder::{Window, WindowBlocks};
use crate::model::gguf_keys::Keys;
use crate::model::half::HalfConfig;
use crate::model::limits::{Limits, Place};
use crate::model::mixer::Mixer;
use crate::model::mixer::experts::Experts;
use crate::model::mixer::routing::Scoring;
use crate::model::rope::Rope;
use crate::model::{Architecture, BlockTensor, Decoder, Model, Part, config, mixture};
use crate::source::config::Config;
use crate::source::value::{Array, Value};
use serde_json::json;

/// Values that are not as wide as keys; blocks with a window have twice the key heads, a rotary base and a score of nothing for each
/// head; experts as DeepSeek V3 has them, without one that all tokens share.
pub struct Mimo2;

const PATTERN: &str = "attention.sliding_window_pattern";

/// What blocks have that the others of the model have not.
#[derive(Clone)]
struct Variation {
    /// Key heads of each.
    kv_heads: Vec<usize>,
    /// Whether a head has a score of nothing.
    sinks: Vec<bool>,
    /// Numbers of each value.
    value: usize,
    /// By what values are multiplied.
    scale: f32,
}

fn build(model: Decoder, own: &Variation, architecture: &'static dyn Architecture) -> Model {
    let mut model = model.build(architecture);
    for (i, block) in model.blocks.iter_mut().enumerate() {
        let HalfConfig { mixer: Mixer::Attention(attention), residual_scale, .. } = &mut block.halves[0] else {
            continue;
        };
        // What all values are multiplied by, the layer behind them may multiply as well.
        *residual_scale = own.scale;
        (attention.kv_heads, attention.sinks) = (own.kv_heads[i], own.sinks[i]);
        attention.value_dim = Some(own.value);
    }
    model
}

/// The words of the configuration that came with the checkpoint in those of transformers.
fn newer(config: &Config) -> Result<Config> {
    let mut config = config.clone();
    let marks = |key: &str| {
        let list = config.get(key).and_then(|list| list.as_array().cloned());
        list.map(|list| list.iter().map(|mark| mark.as_u64() == Some(1)).collect::<Vec<bool>>())
    };
    let named = |marks: Vec<bool>, [yes, no]: [&str; 2]| -> serde_json::Value {
        marks.into_iter().map(|mark| if mark { yes } else { no }).collect()
    };
    let kinds = marks("hybrid_layer_pattern").map(|marks| named(marks, ["sliding_attention", "full_attention"]));
    let layers = marks("moe_layer_freq").map(|marks| named(marks, ["sparse", "dense"]));
    for (key, value) in [("layer_types", kinds), ("mlp_layer_types", layers)] {
        if let Some(value) = value.filter(|_| !config.says(key)) {
            config = config.with(key, value);
        }
    }
    if let Some(eps) = config.maybe_positive("layernorm_epsilon")? {
        config = config.with_defaults(json!({ "rms_norm_eps": eps }));
    }
    if let Some(tokens) = config.maybe_size("sliding_window_size")? {
        config = config.with("sliding_window", (tokens + 1).into());
    }
    if !config.says("rope_parameters") {
        let [full, local] = [("rope_theta", 5e6), ("swa_rope_theta", 1e4)].map(|(key, usual)| {
            let said = |key: &str, usual: f64| if config.says(key) { config.positive(key) } else { Ok(usual) };
            let base = said(key, usual);
            base.and_then(|base| {
                Ok(json!({ "rope_theta": base, "partial_rotary_factor": said("partial_rotary_factor", 0.334)? }))
            })
        });
        config = config.with("rope_parameters", json!({ "full_attention": full?, "sliding_attention": local? }));
    }
    Ok(config)
}

impl Architecture for Mimo2 {
    fn gguf(&self) -> &'static str {
        "mimo2"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["mimo_v2_flash"]
    }

    fn examples(&self) -> &'static str {
        "MiMo V2 Flash 309B-A15B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { explicit_head_dim: true, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits { output: Place::Needed, qkv_bias: Place::None, partial_rotary: true, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        let experts = Experts { selection_bias: true, scoring: Scoring::Sigmoid, ..Experts::plain(2, 1, 8) };
        let own = Variation { kv_heads: vec![2], sinks: vec![true], value: 6, scale: 0.7 };
        build(Decoder { experts: Some(experts), ..self.decoder().sized() }, &own, self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let config = &newer(config)?.with_defaults(json!({ "head_dim": 192, "v_head_dim": 128 }));
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        let n = model.blocks;
        for (key, of_all) in [("swa_head_dim", "head_dim"), ("swa_v_head_dim", "v_head_dim")] {
            if config.maybe_size(key)?.is_some_and(|own| config.size(of_all).is_ok_and(|all| own != all)) {
                return Err(config::refused(config, &format!("{key} other than {of_all} is not supported")));
            }
        }
        let types = config::layer_types(config, n, &["sliding_attention", "full_attention"])?;
        let local: Vec<bool> = match types {
            Some(types) => types.iter().map(|kind| kind == "sliding_attention").collect(),
            None => (0..n).map(|i| i > 0 && !(i + 1).is_multiple_of(6)).collect(),
        };
        let [rope, of_local] = Rope::by_kind(config, model.head_dim, [5e6, 1e4])?;
        if of_local != Rope::plain(of_local.base, rope.rotary) || rope != Rope::plain(rope.base, rope.rotary) {
            return Err(config::refused(config, "rope scaling, or partial_rotary_factor by block, is not supported"));
        }
        model.key("rope.freq_base_swa", Value::F32(of_local.base as f32));
        (model.rope, model.local_rope) = (Some(rope), Some(of_local));
        let tokens = config.maybe_size("sliding_window")?.unwrap_or(129);
        model.window = Some(Window { tokens, blocks: WindowBlocks::Marked(local.clone()) });
        let doubled = config.maybe_size("swa_num_key_value_heads")?.unwrap_or(2 * model.kv_heads);
        if !model.heads.is_multiple_of(doubled) {
            let what = format!("{} heads cannot share {doubled} key-value heads evenly", model.heads);
            return Err(config.unsupported(&what));
        }
        let own = Variation {
            kv_heads: local.iter().map(|&local| if local { doubled } else { model.kv_heads }).collect(),
            sinks: local.clone(),
            value: config.size("v_head_dim")?,
            scale: config.maybe_positive("attention_value_scale")?.unwrap_or(1.0) as f32,
        };
        for (key, wanted) in [("add_swa_attention_sink_bias", true), ("add_full_attention_sink_bias", false)] {
            if config.maybe_flag(key)?.is_some_and(|own| own != wanted) {
                return Err(config.unsupported(&format!("{key} {} is not supported", !wanted)));
            }
        }
        // What it does not say is one dense block.
        model.dense = config::leading_dense(config, n, 1)?;
        let experts = Experts { shared: None, ..mixture::read(config, &model, true)? };
        if !experts.normed || experts.scale != 1.0 {
            let what = "norm_topk_prob false, or routed_scaling_factor other than 1, is not supported";
            return Err(config::refused(config, what));
        }
        model.experts = Some(experts);
        model.explicit_head_dim = true;
        mixture::put_keys(&mut model);
        model.size_key("attention.value_length", own.value);
        model.size_key("attention.sliding_window", tokens);
        let heads = own.kv_heads.iter().map(|&n| n as u32).collect();
        model.key("attention.head_count_kv", Value::Array(Array::U32(heads)));
        model.key(PATTERN, Value::Array(Array::Bool(local)));
        model.key("attention.value_scale", Value::F32(own.scale));
        Ok(build(model, &own, self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        let usual = Experts { scoring: Scoring::Sigmoid, ..Experts::plain(0, 0, 0) };
        mixture::read_gguf(keys, &mut model, usual)?;
        // llama.cpp looks for the tensors.
        model.dense = (0..model.blocks).take_while(|i| keys.has(&format!("blk.{i}.ffn_gate.weight"))).count();
        let heads = keys.per_block("attention.head_count_kv")?;
        let heads = heads.unwrap_or_else(|| vec![model.kv_heads as u64; model.blocks]);
        let kv_heads: Vec<usize> = heads.into_iter().map(|n| n as usize).collect();
        if kv_heads.iter().any(|&n| n == 0 || !model.heads.is_multiple_of(n)) {
            return Err(keys.wrong(&format!("{} heads cannot share {kv_heads:?} key-value heads", model.heads)));
        }
        let local = keys.marks(PATTERN)?.ok_or_else(|| keys.wrong(&format!("there is no key '{PATTERN}'")))?;
        let tokens = keys.size("attention.sliding_window")?;
        model.window = Some(Window { tokens, blocks: WindowBlocks::Marked(local) });
        let base = keys.maybe_number("rope.freq_base_swa")?.unwrap_or(1e4);
        model.local_rope = model.rope.as_ref().map(|rope| Rope::plain(base, rope.rotary));
        let own = Variation {
            kv_heads,
            sinks: (0..model.blocks).map(|i| keys.has(&format!("blk.{i}.attn_sinks.weight"))).collect(),
            value: keys.maybe_size("attention.value_length")?.unwrap_or(model.head_dim),
            scale: keys.maybe_number("attention.value_scale")?.unwrap_or(1.0) as f32,
        };
        Ok(build(model, &own, self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::SINKS => "self_attn.attention_sink_bias",
            _ => tensor.source,
        }
    }
}
