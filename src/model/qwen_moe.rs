//! Qwen 2 and 3 with experts.

use super::form::Experts;
use super::gguf_keys::Keys;
use super::{Architecture, Form, HeadNorms, Kind, Made, Model, Part, qwen, sizes};
use crate::error::Result;
use crate::source::config::Config;
use crate::source::value::Value;

/// Qwen 1.5 and 2 with experts, and one that every token goes to.
pub struct Qwen2Moe;

/// Qwen 3 with experts.
pub struct Qwen3Moe;

/// A model in which every block has experts; llama.cpp knows no other.
fn read(architecture: &'static dyn Architecture, config: &Config, shared: bool) -> Result<Model> {
    let mut model = qwen::read(architecture, config)?;
    if config.get("mlp_only_layers").and_then(|list| list.as_array()).is_some_and(|list| !list.is_empty()) {
        return Err(sizes::refused(config, "mlp_only_layers is not supported"));
    }
    if config.maybe_size("decoder_sparse_step")?.is_some_and(|step| step != 1) {
        return Err(sizes::refused(config, "decoder_sparse_step other than 1 is not supported"));
    }
    // Newer configurations of transformers say it in other words.
    let count = match config.maybe_size("num_experts")? {
        Some(count) => count,
        None => config.size("num_local_experts")?,
    };
    model.form.experts = Some(Experts {
        normed: config.flag("norm_topk_prob")?,
        shared: if shared { config.size("shared_expert_intermediate_size")? } else { 0 },
        shared_gate: shared,
        ..Experts::plain(count, config.size("num_experts_per_tok")?, config.size("moe_intermediate_size")?)
    });
    Ok(model)
}

fn read_gguf(keys: &Keys, model: &mut Model, normed: bool, shared: bool) -> Result<()> {
    let ffn = keys.size("expert_feed_forward_length")?;
    model.form.experts = Some(Experts {
        normed,
        shared: if shared { keys.size("expert_shared_feed_forward_length")? } else { 0 },
        shared_gate: shared,
        ..Experts::plain(keys.size("expert_count")?, keys.size("expert_used_count")?, ffn)
    });
    Ok(())
}

fn keys(model: &Model) -> Vec<(&'static str, Value)> {
    let size = |n: usize| Value::U32(n as u32);
    let Some(experts) = &model.form.experts else { return Vec::new() };
    let mut keys = vec![("expert_feed_forward_length", size(experts.ffn))];
    if experts.shared > 0 {
        keys.push(("expert_shared_feed_forward_length", size(experts.shared)));
    }
    keys
}

fn made(part: Part) -> Made {
    if part.is_of_experts() { Made::Stacked } else { Made::AsIs }
}

impl Architecture for Qwen2Moe {
    fn gguf(&self) -> &'static str {
        "qwen2moe"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["qwen2_moe"]
    }

    fn form(&self) -> Form {
        Form { qkv_bias: true, experts: Some(Experts::UNREAD), ..Form::PLAIN }
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let model = read(self, config, true)?;
        match model.form.experts {
            Some(experts) if experts.normed => Err(sizes::refused(config, "norm_topk_prob is not supported")),
            _ => Ok(model),
        }
    }

    fn read_gguf(&self, keys: &Keys, model: &mut Model) -> Result<()> {
        read_gguf(keys, model, false, true)
    }

    fn keys(&self, model: &Model) -> Vec<(&'static str, Value)> {
        keys(model)
    }

    fn made(&self, _: &Model, part: Part, _: Kind) -> Made {
        made(part)
    }
}

impl Architecture for Qwen3Moe {
    fn gguf(&self) -> &'static str {
        "qwen3moe"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["qwen3_moe"]
    }

    fn form(&self) -> Form {
        Form { head_norms: HeadNorms::PerHead, experts: Some(Experts::UNREAD), ..Form::PLAIN }
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let model = read(self, config, false)?;
        match model.form.experts {
            Some(experts) if !experts.normed => {
                Err(sizes::refused(config, "norm_topk_prob must be true, as in all published models"))
            }
            _ => Ok(model),
        }
    }

    fn read_gguf(&self, keys: &Keys, model: &mut Model) -> Result<()> {
        read_gguf(keys, model, true, false)
    }

    fn keys(&self, model: &Model) -> Vec<(&'static str, Value)> {
        keys(model)
    }

    fn made(&self, _: &Model, part: Part, _: Kind) -> Made {
        made(part)
    }
}
