//! Llama 4, text only.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::Limits;
use crate::model::mixer::Mixer;
use crate::model::mixer::attention::{HeadNorms, Temperature};
use crate::model::mixer::experts::Experts;
use crate::model::mixer::mlp::Mlp;
use crate::model::mixer::routing::Scoring;
use crate::model::{Architecture, BlockTensor, Decoder, Model, Part, QueryRows, config};
use crate::source::config::Config;
use llmq_kernels::elementwise::Activation;

/// One expert whose input is weighed, beside one for all tokens, in every so many-th block. Three blocks of four turn queries and
/// keys, see chunks of positions, and in Scout norm what they have turned; in the fourth scores grow with the position.
pub struct Llama4;

// What llama.cpp has in its code.
const PERIOD: usize = 4;
const CHUNK: usize = 8192;
const TEMPERATURE: Temperature = Temperature { beta: 0.1, original: 8192, offset: 1 };
/// Experts of the model that norms no queries and keys, Maverick.
const WITHOUT_NORMS: usize = 128;

fn mixture(count: usize, used: usize, width: usize) -> Experts {
    let shared = Some(Mlp { shared: true, ..Mlp::gated(width, Activation::Silu) });
    let scoring = Scoring::Sigmoid;
    Experts { shared, scoring, normed: false, weigh_inputs: true, ..Experts::plain(count, used, width) }
}

/// The model, with experts in every `step`-th block.
fn build(decoder: Decoder, step: usize, architecture: &'static dyn Architecture) -> Model {
    let mlp = decoder.mlp();
    let norms = decoder.experts.is_some_and(|experts| experts.count != WITHOUT_NORMS);
    let mut model = Decoder { rope_skip: Some(PERIOD), ..decoder }.build(architecture);
    for (_, attention) in model.attentions() {
        match attention.rope {
            Some(_) => attention.chunk = Some(CHUNK),
            None => attention.temperature = Some(TEMPERATURE),
        }
        if norms && attention.rope.is_some() {
            (attention.head_norms, attention.norms_behind_rope) = (HeadNorms::Bare, true);
        }
    }
    let others = model.blocks.iter_mut().enumerate().filter(|(i, _)| !(i + 1).is_multiple_of(step));
    for half in others.flat_map(|(_, block)| &mut block.halves) {
        if matches!(half.mixer, Mixer::Experts(_)) {
            half.mixer = mlp.into();
        }
    }
    model
}

/// Whether something is true, or a number other than zero.
fn is_on(config: &Config, key: &str) -> bool {
    config.get(key).is_none_or(|on| on.as_bool().unwrap_or(on.as_f64() != Some(0.0)))
}

/// Refuses what llama.cpp has another number for in its code.
fn check(config: &Config, blocks: usize, experts: usize) -> Result<()> {
    let refused = |what: &str| Err(config::refused(config, what));
    for (key, usual) in [("attention_chunk_size", CHUNK), ("floor_scale", TEMPERATURE.original)] {
        if config.maybe_size(key)?.is_some_and(|own| own != usual) {
            return refused(&format!("{key} other than {usual} is not supported"));
        }
    }
    if config.json().get("attention_chunk_size").is_some_and(|own| own.is_null()) {
        return refused("attention without chunks is not supported");
    }
    if config.maybe_positive("attn_scale")?.is_some_and(|own| own as f32 != TEMPERATURE.beta) {
        return refused("attn_scale other than 0.1 is not supported");
    }
    if !is_on(config, "attn_temperature_tuning") {
        return refused("attn_temperature_tuning false is not supported");
    }
    let norms = config.get("use_qk_norm").is_none() || config.flag("use_qk_norm")?;
    if norms == (experts == WITHOUT_NORMS) {
        return refused(&format!("use_qk_norm {norms} is not supported for models with {experts} experts"));
    }
    let turned = |i: usize| !(i + 1).is_multiple_of(PERIOD);
    let list = config.get("no_rope_layers").and_then(|list| list.as_array()).filter(|list| !list.is_empty());
    if list.is_some_and(|list| (0..blocks).any(|i| list.get(i).and_then(|on| on.as_u64()) != Some(turned(i).into()))) {
        return refused("no_rope_layers must name every fourth block");
    }
    if list.is_none() && config.maybe_size("no_rope_layer_interval")?.is_some_and(|own| own != PERIOD) {
        return refused("no_rope_layer_interval other than 4 is not supported");
    }
    let kinds = config::layer_types(config, blocks, &["chunked_attention", "full_attention"])?;
    if kinds.is_some_and(|kinds| (0..blocks).any(|i| (kinds[i] == "chunked_attention") != turned(i))) {
        return refused("layer_types must have full attention in every fourth block");
    }
    Ok(())
}

impl Architecture for Llama4 {
    fn gguf(&self) -> &'static str {
        "llama4"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["llama4", "llama4_text"]
    }

    fn examples(&self) -> &'static str {
        "Llama 4 Scout and Maverick"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Neighbours
    }

    fn limits(&self) -> Limits {
        Limits { rope_factors: true, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        build(Decoder { blocks: 4, experts: Some(mixture(2, 1, 8)), ..self.decoder().sized() }, 2, self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let usual = serde_json::json!({ "head_dim": 128, "rope_theta": 500_000.0, "intermediate_size_mlp": 16384 });
        let config = &config.clone().with_defaults(usual);
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        if config.flag("attention_bias")? {
            return Err(config::refused(config, "attention_bias is not supported"));
        }
        let count = config.size("num_local_experts")?;
        check(config, model.blocks, count)?;
        let step = config.maybe_size("interleave_moe_layer_step")?.unwrap_or(1);
        let with_experts = (1..=model.blocks).filter(|i| i.is_multiple_of(step)).map(|i| i as u64 - 1);
        if let Some(own) = config.get("moe_layers").and_then(|list| list.as_array())
            && !own.iter().map(|i| i.as_u64()).eq(with_experts.map(Some))
        {
            return Err(config::refused(config, "moe_layers that are not every so many-th block are not supported"));
        }
        let width = model.ffn;
        model.ffn = config.size("intermediate_size_mlp")?;
        model.experts = Some(mixture(count, config.size("num_experts_per_tok")?, width));
        model.explicit_head_dim = true;
        model.size_key("interleave_moe_layer_step", step);
        model.size_key("expert_feed_forward_length", width);
        Ok(build(model, step, self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        let (count, used) = (keys.size("expert_count")?, keys.size("expert_used_count")?);
        model.experts = Some(mixture(count, used, keys.first_size("expert_feed_forward_length")?));
        for key in ["attention.sliding_window", "attention.sliding_window_pattern"] {
            if keys.maybe(key).is_some() {
                return Err(keys.wrong(&format!("key 'llama4.{key}' is not supported")));
            }
        }
        Ok(build(model, keys.size("interleave_moe_layer_step")?, self))
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
            Part::SHARED_GATE => "feed_forward.shared_expert.gate_proj",
            Part::SHARED_UP => "feed_forward.shared_expert.up_proj",
            Part::SHARED_DOWN => "feed_forward.shared_expert.down_proj",
            _ => tensor.source,
        }
    }
}
