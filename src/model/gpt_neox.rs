//! EleutherAI's GPT-NeoX, and Pythia.

use super::form::Mlp;
use super::gguf_keys::Keys;
use super::{Architecture, Ends, Form, Kind, Made, MlpLayers, Model, Norm, Part, sizes};
use crate::error::Result;
use crate::source::config::Config;
use crate::source::value::Value;
use llmq_kernels::elementwise::Activation;

/// Attention and MLP side by side, norms that subtract the mean, q, k and v in one layer whose rows are sorted by heads in
/// the checkpoint, and a part of each head turned.
pub struct GptNeoX;

impl Architecture for GptNeoX {
    fn gguf(&self) -> &'static str {
        "gptneox"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["gpt_neox"]
    }

    fn form(&self) -> Form {
        Form {
            norm: Norm::Layer,
            parallel: true,
            fused_qkv: true,
            qkv_bias: true,
            o_bias: true,
            mlp_bias: true,
            mlp: Mlp { activation: Activation::Gelu, layers: MlpLayers::Plain },
            ..Form::PLAIN
        }
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = sizes::read(self, config, false)?;
        model.kv_heads = model.heads;
        sizes::check_activation(config, &["hidden_act"], Activation::Gelu, "gelu")?;
        let parallel = config.get("use_parallel_residual").map_or(Ok(true), |_| config.flag("use_parallel_residual"));
        model.form.parallel = parallel?;
        if config.get("attention_bias").is_some() && !config.flag("attention_bias")? {
            return Err(sizes::refused(config, "attention_bias false is not supported"));
        }
        // Older configurations have names of their own.
        let rope = model.rope.as_mut().expect("it was read");
        if let Some(base) = config.maybe_positive("rotary_emb_base")? {
            rope.base = base;
        }
        let inside = config.object("rope_parameters")?.is_some_and(|p| p.get("partial_rotary_factor").is_some());
        if !inside && config.get("partial_rotary_factor").is_none() {
            let part = config.maybe_positive("rotary_pct")?.unwrap_or(0.25);
            rope.rotary = (model.head_dim as f64 * part) as usize;
            if rope.rotary == 0 || !rope.rotary.is_multiple_of(2) || rope.rotary > model.head_dim {
                return Err(config.unsupported(&format!("rotary_pct {part} of head_dim {}", model.head_dim)));
            }
        }
        Ok(model)
    }

    fn read_gguf(&self, keys: &Keys, model: &mut Model) -> Result<()> {
        model.form.parallel = keys.maybe("use_parallel_residual").and_then(Value::as_bool).unwrap_or(true);
        Ok(())
    }

    fn keys(&self, model: &Model) -> Vec<(&'static str, Value)> {
        vec![("use_parallel_residual", Value::Bool(model.form.parallel))]
    }

    fn source(&self, part: Part) -> &'static str {
        match part {
            Part::Qkv => "attention.query_key_value",
            Part::O => "attention.dense",
            Part::Up => "mlp.dense_h_to_4h",
            Part::Down => "mlp.dense_4h_to_h",
            _ => part.usual_source(),
        }
    }

    fn ends(&self) -> Ends {
        Ends {
            embedding: "gpt_neox.embed_in",
            positions: "",
            blocks: "gpt_neox.layers",
            norm: "gpt_neox.final_layer_norm",
            output: "embed_out",
        }
    }

    fn made(&self, model: &Model, part: Part, _: Kind) -> Made {
        match part {
            Part::Qkv => Made::ByHeads { heads: model.heads, head_dim: model.head_dim },
            _ => Made::AsIs,
        }
    }
}
