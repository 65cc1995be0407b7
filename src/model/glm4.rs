//! Zhipu's GLM-4 (0414).

use super::form::Mlp;
use super::{Architecture, Form, MlpLayers, Model, Part, QueryRows, sizes};
use crate::error::Result;
use crate::source::config::Config;
use llmq_kernels::elementwise::Activation;

/// Norms in front of and behind attention and MLP, half of each head turned in neighbouring pairs, gate and up in one layer.
pub struct Glm4;

impl Architecture for Glm4 {
    fn gguf(&self) -> &'static str {
        "glm4"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["glm4"]
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Neighbours
    }

    fn form(&self) -> Form {
        let mlp = Mlp { activation: Activation::Silu, layers: MlpLayers::Fused };
        Form { post_norms: true, mlp, ..Form::PLAIN }
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = sizes::read(self, config, false)?;
        sizes::check_activation(config, &["hidden_act"], Activation::Silu, "silu")?;
        // attention_bias is about q, k and v alone.
        model.form.o_bias = false;
        Ok(model)
    }

    fn source(&self, part: Part) -> &'static str {
        match part {
            Part::AttnPostNorm => "post_self_attn_layernorm",
            Part::FfnPostNorm => "post_mlp_layernorm",
            _ => part.usual_source(),
        }
    }
}
