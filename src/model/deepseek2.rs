//! DeepSeek V2 and V3, and what is built like them.

use super::form::{Experts, Latent, Scoring};
use super::gguf_keys::Keys;
use super::rope::{Rope, Scaling, Yarn};
use super::{Architecture, Form, Kind, Made, Model, Part, QueryRows, sizes};
use crate::error::Result;
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

    fn form(&self) -> Form {
        Form { latent: Some(Latent::UNREAD), experts: Some(Experts::UNREAD), ..Form::PLAIN }
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let latent = Latent {
            query: config.maybe_size("q_lora_rank")?,
            latent: config.size("kv_lora_rank")?,
            turned: config.size("qk_rope_head_dim")?,
            value: config.size("v_head_dim")?,
        };
        let mut model = sizes::read(self, config, false)?;
        sizes::check_activation(config, &["hidden_act"], model.form.mlp.activation, "silu")?;
        if latent.query.is_none() && !LITE.contains(&model.blocks) {
            return Err(sizes::refused(config, "no q_lora_rank is only supported for models of 26 or 27 blocks"));
        }
        if config.flag("attention_bias")? {
            return Err(sizes::refused(config, "attention_bias is not supported"));
        }
        if config.maybe_size("moe_layer_freq")?.is_some_and(|every| every != 1) {
            return Err(sizes::refused(config, "moe_layer_freq other than 1 is not supported"));
        }
        model.head_dim = config.size("qk_nope_head_dim")? + latent.turned;
        if latent.value > model.head_dim {
            return Err(sizes::refused(config, "values that are wider than keys are not supported"));
        }
        model.explicit_head_dim = false;
        model.kv_heads = model.heads;
        let mut rope = Rope::read(config, latent.turned)?;
        let mut scale = 1.0 / (model.head_dim as f32).sqrt();
        if let Scaling::Yarn(yarn) = &mut rope.scaling {
            let scaling = config.object("rope_parameters")?;
            let scaling = scaling.map_or_else(|| config.object("rope_scaling"), |s| Ok(Some(s)))?;
            let of = |key: &str| scaling.as_ref().map(|s| s.maybe_positive(key)).transpose().map(Option::flatten);
            if let Some(all) = of("mscale_all_dim")? {
                if of("mscale")?.is_some_and(|own| own != all) {
                    return Err(sizes::refused(config, "mscale other than mscale_all_dim is not supported"));
                }
                scale = stretched(scale, yarn.factor, all);
                model.form.yarn_growth = Some(all as f32);
            }
            yarn.magnitude = Some(1.0);
        }
        model.rope = Some(rope);
        model.form.attention_scale = Some(scale);
        model.form.latent = Some(latent);
        let sigmoid = config.string("model_type")? == "deepseek_v3";
        let of_shared = config.maybe_size("n_shared_experts")?.unwrap_or(0);
        model.form.experts = None;
        if let Some(count) = config.maybe_size("n_routed_experts")? {
            let ffn = config.size("moe_intermediate_size")?;
            let groups = config.maybe_size("n_group")?.zip(config.maybe_size("topk_group")?).filter(|(n, _)| *n > 1);
            let groups = groups.filter(|_| {
                sigmoid || matches!(config.maybe_string("topk_method"), Ok(Some(method)) if method == "group_limited_greedy")
            });
            if groups.is_some_and(|(n, _)| !count.is_multiple_of(n)) {
                return Err(config.unsupported(&format!("{count} experts do not divide into n_group groups")));
            }
            let dense = config.get("first_k_dense_replace").and_then(serde_json::Value::as_u64).unwrap_or(0);
            model.form.experts = Some(Experts {
                dense: dense as usize,
                scoring: if sigmoid { Scoring::Sigmoid } else { Scoring::Softmax },
                // The code that came with V2 never norms.
                normed: sigmoid && config.flag("norm_topk_prob")?,
                scale: config.maybe_positive("routed_scaling_factor")?.unwrap_or(1.0) as f32,
                favours: sigmoid,
                groups,
                shared: of_shared * ffn,
                ..Experts::plain(count, config.size("num_experts_per_tok")?, ffn)
            });
        }
        Ok(model)
    }

    fn read_gguf(&self, keys: &Keys, model: &mut Model) -> Result<()> {
        let missing =
            |key: &str| keys.wrong(&format!("there is no key '{key}': the file is older than llama.cpp's MLA"));
        let head_dim =
            keys.maybe_size("attention.key_length_mla")?.ok_or_else(|| missing("attention.key_length_mla"))?;
        let turned = keys.size("rope.dimension_count")?;
        if turned >= head_dim || !turned.is_multiple_of(2) {
            return Err(keys.wrong(&format!("{turned} numbers of each head of {head_dim} cannot be turned")));
        }
        model.form.latent = Some(Latent {
            query: keys.maybe_size("attention.q_lora_rank")?,
            latent: keys.size("attention.kv_lora_rank")?,
            turned,
            value: keys
                .maybe_size("attention.value_length_mla")?
                .ok_or_else(|| missing("attention.value_length_mla"))?,
        });
        (model.head_dim, model.kv_heads, model.explicit_head_dim) = (head_dim, model.heads, false);
        let mut scale = 1.0 / (head_dim as f32).sqrt();
        if let Some(Rope { scaling: Scaling::Yarn(yarn), .. }) = &mut model.rope {
            if let Some(growth) = keys.maybe_number("rope.scaling.yarn_log_multiplier")? {
                scale = stretched(scale, yarn.factor, 10.0 * growth);
                model.form.yarn_growth = Some(10.0 * growth as f32);
            }
            *yarn = Yarn { magnitude: Some(1.0), ..*yarn };
        }
        model.form.attention_scale = Some(scale);
        model.form.experts = None;
        if let Some(count) = keys.maybe_size("expert_count")? {
            let ffn = keys.size("expert_feed_forward_length")?;
            let sigmoid = keys.maybe("expert_gating_func").and_then(Value::as_u64) == Some(2);
            let dense = keys.maybe("leading_dense_block_count").and_then(Value::as_u64).unwrap_or(0) as usize;
            let shared = keys.maybe("expert_shared_count").and_then(Value::as_u64).unwrap_or(0) as usize;
            let groups = keys.maybe_size("expert_group_count")?.zip(keys.maybe_size("expert_group_used_count")?);
            model.form.experts = Some(Experts {
                dense,
                scoring: if sigmoid { Scoring::Sigmoid } else { Scoring::Softmax },
                normed: keys.maybe("expert_weights_norm").and_then(Value::as_bool).unwrap_or(false),
                scale: keys.maybe_number("expert_weights_scale")?.unwrap_or(1.0) as f32,
                favours: keys.has(&format!("blk.{dense}.exp_probs_b.bias")),
                groups: groups.filter(|(n, _)| *n > 1 && count.is_multiple_of(*n)),
                shared: shared * ffn,
                ..Experts::plain(count, keys.size("expert_used_count")?, ffn)
            });
        }
        Ok(())
    }

    fn keys(&self, model: &Model) -> Vec<(&'static str, Value)> {
        let size = |n: usize| Value::U32(n as u32);
        let mut keys = Vec::new();
        if let Some(latent) = &model.form.latent {
            keys.extend(latent.query.map(|width| ("attention.q_lora_rank", size(width))));
            keys.push(("attention.kv_lora_rank", size(latent.latent)));
            // What llama.cpp attends to is the narrow vector itself, as one head.
            keys.push(("attention.key_length", size(latent.latent + latent.turned)));
            keys.push(("attention.value_length", size(latent.latent)));
            keys.push(("attention.key_length_mla", size(model.head_dim)));
            keys.push(("attention.value_length_mla", size(latent.value)));
        }
        if let Some(experts) = &model.form.experts {
            keys.push(("leading_dense_block_count", size(experts.dense)));
            keys.push(("expert_feed_forward_length", size(experts.ffn)));
            keys.push(("expert_shared_count", size(experts.shared / experts.ffn.max(1))));
            keys.push(("expert_weights_scale", Value::F32(experts.scale)));
            keys.push(("expert_weights_norm", Value::Bool(experts.normed)));
            let function = if experts.scoring == Scoring::Sigmoid { 2 } else { 1 };
            keys.push(("expert_gating_func", Value::U32(function)));
            if let Some((groups, used)) = experts.groups {
                keys.push(("expert_group_count", size(groups)));
                keys.push(("expert_group_used_count", size(used)));
            }
        }
        let growth = model.form.yarn_growth.map(|all| ("rope.scaling.yarn_log_multiplier", Value::F32(0.1 * all)));
        keys.extend(growth);
        keys
    }

    fn kv_heads(&self, _: &Model) -> usize {
        1
    }

    fn shared_source(&self, part: Part) -> String {
        part.usual_source().replace("mlp.", "mlp.shared_experts.")
    }

    fn made(&self, model: &Model, part: Part, _: Kind) -> Made {
        let still = model.form.latent.map_or(0, |latent| model.head_dim - latent.turned);
        match part {
            Part::KB => Made::Keys { value: model.form.latent.map_or(0, |latent| latent.value) },
            Part::VB => Made::Values { still },
            _ if part.is_of_experts() => Made::Stacked,
            _ => Made::AsIs,
        }
    }
}
