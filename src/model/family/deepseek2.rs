//! DeepSeek V2 and V3, and what is built like them.

use crate::error::Result;
use crate::model::decoder::Latent;
use crate::model::gguf_keys::Keys;
use crate::model::mapping::Pick;
use crate::model::mixer::Mixer;
use crate::model::mixer::experts::Experts;
use crate::model::mixer::routing::Scoring;
use crate::model::rope::{self, Rope, Scaling, Yarn};
use crate::model::{
    Architecture, BlockConfig, BlockTensor, Decoder, ExtraBlocks, Kind, Model, Part, QueryRows, TensorMapping, config,
    mixture, nextn,
};
use crate::source::config::Config;
use crate::source::value::Value;

/// Keys and values out of one narrow vector per token; experts from some block on, with shared ones beside them.
pub struct DeepSeek2;

/// Blocks of the models that llama.cpp expects no narrow vector of queries in.
const LITE: [usize; 2] = [26, 27];

/// YaRN as the family has it: scores grow, and queries and keys do not.
fn stretched(scale: f32, factor: f64, all: f64) -> f32 {
    let grown = if factor > 1.0 { 0.1 * all * factor.ln() + 1.0 } else { 1.0 };
    scale * (grown * grown) as f32
}

/// GLM-4.7-Flash: the same, always with sigmoids, and with a layer that predicts several tokens.
pub struct Glm4MoeLite;

impl Architecture for Glm4MoeLite {
    fn gguf(&self) -> &'static str {
        "deepseek2"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["glm4_moe_lite"]
    }

    fn examples(&self) -> &'static str {
        "GLM-4.7-Flash 30B-A3B"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Neighbours
    }

    fn sample(&'static self) -> Model {
        small().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = read(self, config)?;
        put_keys(&mut model);
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, keys: &Keys, decoder: Decoder) -> Result<Model> {
        Ok(read_gguf(keys, decoder)?.build(self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        source(tensor)
    }

    fn mapping(&self, block: &BlockConfig, tensor: &BlockTensor, _: Kind) -> TensorMapping {
        mapping(block, tensor)
    }

    fn extra_blocks(&self, model: &Model, has: &dyn Fn(&str) -> bool) -> Option<ExtraBlocks> {
        nextn::numbered(model, model.blocks.last()?, has)
    }
}

impl Architecture for DeepSeek2 {
    fn gguf(&self) -> &'static str {
        "deepseek2"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["deepseek_v2", "deepseek_v3"]
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Neighbours
    }

    fn examples(&self) -> &'static str {
        "DeepSeek-V2, V2-Lite, Coder-V2-Lite, V3, R1, Moonlight, Kimi K2"
    }

    fn sample(&'static self) -> Model {
        small().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = read(self, config)?;
        put_keys(&mut model);
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, keys: &Keys, decoder: Decoder) -> Result<Model> {
        Ok(read_gguf(keys, decoder)?.build(self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        source(tensor)
    }

    fn mapping(&self, block: &BlockConfig, tensor: &BlockTensor, _: Kind) -> TensorMapping {
        mapping(block, tensor)
    }
}

/// What checkpoints of the family call a tensor.
pub(super) fn source(tensor: &BlockTensor) -> &'static str {
    match tensor.part {
        Part::SHARED_GATE => "mlp.shared_experts.gate_proj",
        Part::SHARED_UP => "mlp.shared_experts.up_proj",
        Part::SHARED_DOWN => "mlp.shared_experts.down_proj",
        _ => tensor.source,
    }
}

/// How a tensor is made from theirs.
pub(super) fn mapping(block: &BlockConfig, tensor: &BlockTensor) -> TensorMapping {
    match (tensor.part, &block.halves[0].mixer) {
        (Part::K_B, Mixer::LatentAttention(own)) => Pick::Keys { value: own.value }.into(),
        (Part::V_B, Mixer::LatentAttention(own)) => Pick::Values { still: own.head_dim - own.turned }.into(),
        _ if tensor.source.contains("{}") => TensorMapping::STACKED,
        _ => TensorMapping::AS_IS,
    }
}

/// A small model of the family.
pub(super) fn small() -> Decoder {
    let latent = Latent { query: Some(4), latent: 4, turned: 2, value: 4 };
    let experts = Experts { shared: mixture::shared(&Decoder::PLAIN, 8), ..Experts::plain(2, 1, 8) };
    Decoder { latent: Some(latent), experts: Some(experts), ..Decoder::PLAIN.sized() }
}

/// What configurations of the family have in common, without keys.
pub(super) fn read(architecture: &'static dyn Architecture, config: &Config) -> Result<Decoder> {
    let latent = Latent {
        query: config.maybe_size("q_lora_rank")?,
        latent: config.size("kv_lora_rank")?,
        turned: config.size("qk_rope_head_dim")?,
        value: config.size("v_head_dim")?,
    };
    let mut model = config::read(architecture, config, false)?;
    config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
    if latent.query.is_none() && !LITE.contains(&model.blocks) {
        return Err(config::refused(config, "no q_lora_rank is only supported for models of 26 or 27 blocks"));
    }
    if config.flag("attention_bias")? {
        return Err(config::refused(config, "attention_bias is not supported"));
    }
    if config.maybe_size("moe_layer_freq")?.is_some_and(|every| every != 1) {
        return Err(config::refused(config, "moe_layer_freq other than 1 is not supported"));
    }
    model.head_dim = config.size("qk_nope_head_dim")? + latent.turned;
    if latent.value > model.head_dim {
        return Err(config::refused(config, "values that are wider than keys are not supported"));
    }
    model.explicit_head_dim = false;
    model.kv_heads = model.heads;
    let mut rope = Rope::read(config, latent.turned)?;
    if rope.rotary != latent.turned {
        return Err(config::refused(config, "partial_rotary_factor is not supported"));
    }
    let mut scale = 1.0 / (model.head_dim as f32).sqrt();
    if let Scaling::Yarn(yarn) = &mut rope.scaling {
        let scaling = rope::parameters(config)?;
        let of = |key: &str| scaling.as_ref().map(|s| s.maybe_nonzero(key)).transpose().map(Option::flatten);
        if (yarn.magnitude() - 1.0).abs() > 1e-6 {
            let what =
                "YaRN with an attention_factor other than 1, or mscale other than mscale_all_dim, is not supported";
            return Err(config::refused(config, what));
        }
        match of("mscale_all_dim")? {
            Some(all) => {
                scale = stretched(scale, yarn.factor, all);
                model.yarn_growth = Some(all as f32);
            }
            // llama.cpp would let scores grow.
            None => model.key("rope.scaling.attn_factor", Value::F32((1.0 / yarn.usual_magnitude()) as f32)),
        }
        yarn.magnitude = Some(1.0);
    } else if matches!(rope.scaling, Scaling::Linear(_)) {
        return Err(config::refused(config, "rope scaling of type 'linear' is not supported"));
    }
    model.rope = Some(rope);
    model.attention_scale = Some(scale);
    model.latent = Some(latent);
    let sigmoid = ["deepseek_v3", "deepseek_v32", "glm4_moe_lite"].contains(&config.string("model_type")?.as_str());
    let of_shared = config.maybe_size("n_shared_experts")?.unwrap_or(0);
    model.experts = None;
    if let Some(count) = config.maybe_size("n_routed_experts")? {
        let ffn = config.size("moe_intermediate_size")?;
        let groups = config.maybe_size("n_group")?.zip(config.maybe_size("topk_group")?).filter(|(n, used)| used < n);
        let groups = groups.filter(|_| {
            sigmoid
                || matches!(config.maybe_string("topk_method"), Ok(Some(method)) if method == "group_limited_greedy")
        });
        if groups.is_some_and(|(n, _)| !count.is_multiple_of(n)) {
            return Err(config.unsupported(&format!("{count} experts do not divide into n_group groups")));
        }
        model.dense = dense_blocks(config, model.blocks)?;
        model.experts = Some(Experts {
            scoring: if sigmoid { Scoring::Sigmoid } else { Scoring::Softmax },
            // The code that came with V2 never norms.
            normed: sigmoid && config.flag("norm_topk_prob")?,
            scale: config.maybe_positive("routed_scaling_factor")?.unwrap_or(1.0) as f32,
            selection_bias: sigmoid,
            groups,
            shared: mixture::shared(&model, of_shared * ffn),
            ..Experts::plain(count, config.size("num_experts_per_tok")?, ffn)
        });
    }
    Ok(model)
}

/// So many blocks have an MLP, the first ones.
fn dense_blocks(config: &Config, blocks: usize) -> Result<usize> {
    let said = config.get("first_k_dense_replace").and_then(serde_json::Value::as_u64);
    let usual = if config.string("model_type")? == "glm4_moe_lite" { 1 } else { 0 };
    let Some(kinds) = config.get("mlp_layer_types").and_then(serde_json::Value::as_array) else {
        return Ok(said.unwrap_or(usual) as usize);
    };
    let dense = kinds.iter().take_while(|kind| kind.as_str() == Some("dense")).count();
    if kinds.len() != blocks || kinds[dense..].iter().any(|kind| kind.as_str() != Some("sparse")) {
        return Err(config::refused(config, "mlp_layer_types with dense blocks behind sparse ones is not supported"));
    }
    Ok(dense)
}

/// What files of the family have in common.
pub(super) fn read_gguf(keys: &Keys, mut model: Decoder) -> Result<Decoder> {
    let missing = |key: &str| keys.wrong(&format!("there is no key '{key}': the file is older than llama.cpp's MLA"));
    let head_dim = keys.maybe_size("attention.key_length_mla")?.ok_or_else(|| missing("attention.key_length_mla"))?;
    let turned = keys.size("rope.dimension_count")?;
    if turned >= head_dim || !turned.is_multiple_of(2) {
        return Err(keys.wrong(&format!("{turned} numbers of each head of {head_dim} cannot be turned")));
    }
    model.latent = Some(Latent {
        query: keys.maybe_size("attention.q_lora_rank")?,
        latent: keys.size("attention.kv_lora_rank")?,
        turned,
        value: keys.maybe_size("attention.value_length_mla")?.ok_or_else(|| missing("attention.value_length_mla"))?,
    });
    (model.head_dim, model.kv_heads, model.explicit_head_dim) = (head_dim, model.heads, false);
    let mut scale = 1.0 / (head_dim as f32).sqrt();
    if let Some(Rope { scaling: Scaling::Yarn(yarn), .. }) = &mut model.rope {
        let mut grown = keys.maybe_number("rope.scaling.attn_factor")?.unwrap_or(1.0);
        match keys.maybe_number("rope.scaling.yarn_log_multiplier")? {
            Some(growth) => {
                scale = stretched(scale, yarn.factor, 10.0 * growth);
                model.yarn_growth = Some(10.0 * growth as f32);
            }
            None => grown *= yarn.usual_magnitude(),
        }
        // llama.cpp multiplies scores by it, too.
        scale *= (grown * grown) as f32;
        *yarn = Yarn { magnitude: Some(grown), ..*yarn };
    }
    model.attention_scale = Some(scale);
    let usual = Experts { scoring: Scoring::Softmax, normed: false, scale: 1.0, ..Experts::plain(0, 0, 0) };
    mixture::read_gguf(keys, &mut model, usual)?;
    Ok(model)
}

/// The keys that the family has besides the usual ones.
pub(super) fn put_keys(model: &mut Decoder) {
    model.size_key("attention.head_count_kv", 1);
    if let Some(latent) = model.latent {
        if let Some(width) = latent.query {
            model.size_key("attention.q_lora_rank", width);
        }
        model.size_key("attention.kv_lora_rank", latent.latent);
        // What llama.cpp attends to is the narrow vector itself, as one head.
        model.size_key("attention.key_length", latent.latent + latent.turned);
        model.size_key("attention.value_length", latent.latent);
        model.size_key("attention.key_length_mla", model.head_dim);
        model.size_key("attention.value_length_mla", latent.value);
    }
    mixture::put_keys(model);
    if let Some(all) = model.yarn_growth {
        model.key("rope.scaling.yarn_log_multiplier", Value::F32(0.1 * all));
    }
}
