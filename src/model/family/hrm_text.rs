//! Sapient's HRM-Text: two stacks of blocks that take turns.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::half::Norm;
use crate::model::limits::{Limits, Place};
use crate::model::looped::Looped;
use crate::model::mapping::Pick;
use crate::model::mixer::attention::Gate;
use crate::model::{Architecture, BlockTensor, Decoder, Model, Part, TensorMapping, config};
use crate::source::config::Config;
use crate::source::value::Value;
use llmq_kernels::elementwise::Activation;

/// Norms without a gain, and a gate behind attention.
pub struct HrmText;

/// No model runs more blocks.
const MOST_RUNS: usize = 65_536;

fn build(mut decoder: Decoder, looped: Looped, architecture: &'static dyn Architecture) -> Model {
    decoder.blocks = looped.runs();
    let mut model = decoder.build(architecture);
    model.attentions().for_each(|(_, own)| own.gate = Gate::Each(Activation::Sigmoid));
    model.looped = Some(looped);
    model
}

impl Architecture for HrmText {
    fn gguf(&self) -> &'static str {
        "hrm_text"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["hrm_text"]
    }

    fn examples(&self) -> &'static str {
        "HRM-Text 1B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { norm: Norm::Bare, explicit_head_dim: true, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits { qkv_bias: Place::None, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        let decoder = self.decoder().sized();
        let eps = decoder.norm_eps;
        build(decoder, Looped { layers: 1, high: 1, low: 1, eps }, self)
    }

    /// As Sapient saves them, and transformers reads them.
    fn joined(&self, tensor: &BlockTensor) -> Option<(&'static str, TensorMapping)> {
        const GATED: (&str, &[Part]) = ("attn.gqkv_proj", &[Part::ATTN_GATE, Part::Q, Part::K, Part::V]);
        const MLP: (&str, &[Part]) = ("mlp.gate_up_proj", &[Part::GATE, Part::UP]);
        const OUTPUT: (&str, &[Part]) = ("attn.o_proj", &[Part::O]);
        let rows = tensor.shape[0];
        [GATED, MLP, OUTPUT].into_iter().find_map(|(source, parts)| {
            let at = parts.iter().position(|part| *part == tensor.part)?;
            Some((source, Pick::RowsFrom { first: at * rows, of: parts.len() * rows }.into()))
        })
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        config::check_activation(config, &["hidden_act"], Activation::Silu, "silu")?;
        let mut model = config::read(self, config, false)?;
        // The class reads no number of key heads.
        (model.kv_heads, model.explicit_head_dim) = (model.heads, true);
        // Training has another name for it.
        let layers = config.maybe_size("num_layers_per_stack")?.unwrap_or(model.blocks);
        let (high, low) = (config.size("H_cycles")?, config.size("L_cycles")?);
        let runs = [high, low.saturating_add(1)].iter().fold(layers, |runs, n| runs.saturating_mul(*n));
        if runs > MOST_RUNS {
            return Err(config.unsupported(&format!(
                "{layers} blocks of a stack, {high} H_cycles and {low} L_cycles make more than {MOST_RUNS} runs of blocks"
            )));
        }
        model.embedding_scale = match config.maybe_positive("embedding_scale")? {
            Some(scale) => scale as f32,
            None => (1.0 / config.maybe_positive("initializer_range")?.unwrap_or(0.02)) as f32,
        };
        // Training alone.
        config.ignore(&["L_bp_cycles"]);
        model.key("embedding_scale", Value::F32(model.embedding_scale));
        model.size_key("hrm.layers_per_stack", layers);
        model.size_key("hrm.h_cycles", high);
        model.size_key("hrm.l_cycles", low);
        // Text that is no instruction is seen one way, as llama.cpp has it.
        model.key("hrm.prefix_lm", Value::Bool(config.flag("prefix_lm")?));
        let eps = model.norm_eps;
        Ok(build(model, Looped { layers, high, low, eps }, self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        model.embedding_scale = keys.maybe_number("embedding_scale")?.unwrap_or(1.0) as f32;
        let (layers, high, low) =
            (keys.size("hrm.layers_per_stack")?, keys.size("hrm.h_cycles")?, keys.size("hrm.l_cycles")?);
        let looped = Looped { layers, high, low, eps: model.norm_eps };
        let most = layers.checked_mul(high).and_then(|n| n.checked_mul(low.checked_add(1)?));
        if most != Some(model.blocks) {
            return Err(
                keys.wrong(&format!("{} blocks are not {layers} of a stack, {high} times {low} and one", model.blocks))
            );
        }
        Ok(build(model, looped, self))
    }
}
