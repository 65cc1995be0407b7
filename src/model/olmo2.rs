//! Ai2's OLMo 2.

use super::{Architecture, Form, HeadNorms, Model, Part, sizes};
use crate::error::Result;
use crate::source::config::Config;

/// Norms behind attention and MLP instead of in front of them, and norms of queries and keys over all heads at once.
pub struct Olmo2;

impl Architecture for Olmo2 {
    fn gguf(&self) -> &'static str {
        "olmo2"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["olmo2"]
    }

    fn form(&self) -> Form {
        Form { pre_norms: false, post_norms: true, head_norms: HeadNorms::Whole, ..Form::PLAIN }
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let model = sizes::read(self, config, false)?;
        sizes::check_activation(config, &["hidden_act"], model.form.mlp.activation, "silu")?;
        if model.tied {
            return Err(sizes::refused(config, "an embedding that is the output matrix, too, is not supported"));
        }
        Ok(model)
    }

    fn source(&self, part: Part) -> &'static str {
        match part {
            Part::FfnPostNorm => "post_feedforward_layernorm",
            _ => part.usual_source(),
        }
    }
}
