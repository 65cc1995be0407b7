//! Qwen 2 and 3 with experts.

use super::qwen;
use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mixer::attention::HeadNorms;
use crate::model::mixer::experts::Experts;
use crate::model::mixer::mlp::Mlp;
use crate::model::{Architecture, Decoder, Model, config};
use crate::source::config::Config;
use llmq_kernels::elementwise::Activation;

/// Qwen 1.5 and 2 with experts, and one that every token goes to.
pub struct Qwen2Moe;

/// Qwen 3 with experts.
pub struct Qwen3Moe;

/// A model in which every block has experts; llama.cpp knows no other.
pub(super) fn read(architecture: &'static dyn Architecture, config: &Config, shared: bool) -> Result<Decoder> {
    let mut model = qwen::read(architecture, config)?;
    model.qkv_bias = config.maybe_flag("qkv_bias")?.unwrap_or(model.qkv_bias);
    if config.get("mlp_only_layers").and_then(|list| list.as_array()).is_some_and(|list| !list.is_empty()) {
        return Err(config::refused(config, "mlp_only_layers is not supported"));
    }
    if config.maybe_size("decoder_sparse_step")?.is_some_and(|step| step != 1) {
        return Err(config::refused(config, "decoder_sparse_step other than 1 is not supported"));
    }
    // Newer configurations of transformers say it in other words.
    let count = config::first_size(config, &["num_experts", "num_local_experts"])?;
    let width = config.size("moe_intermediate_size")?;
    let beside = shared.then(|| config.size("shared_expert_intermediate_size")).transpose()?;
    model.experts = Some(Experts {
        normed: config.flag("norm_topk_prob")?,
        ..with_shared(Experts::plain(count, config.size("num_experts_per_tok")?, width), beside)
    });
    model.size_key("expert_feed_forward_length", width);
    if let Some(beside) = beside {
        model.size_key("expert_shared_feed_forward_length", beside);
    }
    Ok(model)
}

/// Experts with one of a width that every token goes to, more or less.
fn with_shared(experts: Experts, width: Option<usize>) -> Experts {
    let shared = width.map(|width| Mlp { shared: true, ..Mlp::gated(width, Activation::Silu) });
    Experts { shared, shared_gate: shared.is_some(), ..experts }
}

fn read_gguf(keys: &Keys, decoder: &mut Decoder, normed: bool, shared: bool) -> Result<()> {
    let beside = shared.then(|| keys.size("expert_shared_feed_forward_length")).transpose()?;
    let width = keys.size("expert_feed_forward_length")?;
    let experts = Experts::plain(keys.size("expert_count")?, keys.size("expert_used_count")?, width);
    decoder.experts = Some(Experts { normed, ..with_shared(experts, beside) });
    Ok(())
}

impl Architecture for Qwen2Moe {
    fn gguf(&self) -> &'static str {
        "qwen2moe"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["qwen2_moe"]
    }

    fn examples(&self) -> &'static str {
        "Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { qkv_bias: true, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits { output: Place::Needed, head_dim: false, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        Decoder { experts: Some(with_shared(Experts::plain(2, 1, 8), Some(8))), ..self.decoder().sized() }.build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let model = read(self, config, true)?;
        match model.experts {
            Some(experts) if experts.normed => Err(config::refused(config, "norm_topk_prob is not supported")),
            _ => Ok(model.build(self)),
        }
    }

    fn read_gguf(&'static self, keys: &Keys, mut decoder: Decoder) -> Result<Model> {
        read_gguf(keys, &mut decoder, false, true)?;
        Ok(decoder.build(self))
    }
}

impl Architecture for Qwen3Moe {
    fn gguf(&self) -> &'static str {
        "qwen3moe"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["qwen3_moe"]
    }

    fn examples(&self) -> &'static str {
        "Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder-30B-A3B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { head_norms: HeadNorms::PerHead, ..Decoder::PLAIN }
    }

    fn sample(&'static self) -> Model {
        Decoder { experts: Some(with_shared(Experts::plain(2, 1, 8), None)), ..self.decoder().sized() }.build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let model = read(self, config, false)?;
        match model.experts {
            Some(experts) if !experts.normed => {
                Err(config::refused(config, "norm_topk_prob must be true, as in all published models"))
            }
            _ => Ok(model.build(self)),
        }
    }

    fn read_gguf(&'static self, keys: &Keys, mut decoder: Decoder) -> Result<Model> {
        read_gguf(keys, &mut decoder, true, false)?;
        Ok(decoder.build(self))
    }
}
