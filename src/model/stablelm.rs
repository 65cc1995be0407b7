//! Stability's StableLM.

use super::gguf_keys::Keys;
use super::{Architecture, Form, HeadNorms, Kind, Made, Model, Norm, Part, sizes};
use crate::error::Result;
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

    fn form(&self) -> Form {
        Form { norm: Norm::Layer, ..Form::PLAIN }
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = sizes::read(self, config, false)?;
        sizes::check_activation(config, &["hidden_act"], model.form.mlp.activation, "silu")?;
        model.form.qkv_bias = config.flag("use_qkv_bias")?;
        vary(&mut model.form, config.flag("use_parallel_residual")?, config.flag("qk_layernorm")?);
        Ok(model)
    }

    fn read_gguf(&self, keys: &Keys, model: &mut Model) -> Result<()> {
        // llama.cpp looks for the tensors.
        vary(&mut model.form, !keys.has("blk.0.ffn_norm.weight"), keys.has("blk.0.attn_q_norm.weight"));
        Ok(())
    }

    fn keys(&self, model: &Model) -> Vec<(&'static str, Value)> {
        vec![("use_parallel_residual", Value::Bool(model.form.parallel))]
    }

    fn source(&self, part: Part) -> &'static str {
        match part {
            Part::QNorm => "self_attn.q_layernorm.norms.{}",
            Part::KNorm => "self_attn.k_layernorm.norms.{}",
            _ => part.usual_source(),
        }
    }

    fn made(&self, _: &Model, part: Part, _: Kind) -> Made {
        if matches!(part, Part::QNorm | Part::KNorm) { Made::Stacked } else { Made::AsIs }
    }
}

fn vary(form: &mut Form, parallel: bool, head_norms: bool) {
    (form.parallel, form.shared_norm) = (parallel, parallel);
    form.head_norms = if head_norms { HeadNorms::Centred } else { HeadNorms::None };
}
