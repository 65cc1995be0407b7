//! Stability's StableLM.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mixer::attention::HeadNorms;
use crate::model::{Architecture, BlockTensor, Decoder, Model, Norm, Part, config};
use crate::source::config::Config;
use crate::source::value::Value;

/// Llama with norms that subtract the mean, and a part of each head turned. The 12B model has attention and MLP side by side,
/// behind one norm, and norms of each query and key head.
pub struct StableLm;

impl Architecture for StableLm {
    fn gguf(&self) -> &'static str {
        "stablelm"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["stablelm"]
    }

    fn examples(&self) -> &'static str {
        "StableLM 2, StableLM Zephyr"
    }

    fn decoder(&self) -> Decoder {
        Decoder { norm: Norm::Layer, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits { output: Place::Needed, head_dim: false, partial_rotary: true, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        model.qkv_bias = config.flag("use_qkv_bias")?;
        vary(&mut model, config.flag("use_parallel_residual")?, config.flag("qk_layernorm")?);
        model.key("use_parallel_residual", Value::Bool(model.parallel));
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        // llama.cpp looks for the tensors.
        vary(&mut model, !keys.has("blk.0.ffn_norm.weight"), keys.has("blk.0.attn_q_norm.weight"));
        Ok(model.build(self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::Q_NORM => "self_attn.q_layernorm.norms.{}",
            Part::K_NORM => "self_attn.k_layernorm.norms.{}",
            _ => tensor.source,
        }
    }
}

fn vary(form: &mut Decoder, parallel: bool, head_norms: bool) {
    (form.parallel, form.shared_norm) = (parallel, parallel);
    form.head_norms = if head_norms { HeadNorms::Centred } else { HeadNorms::None };
}
