//! OpenAI's GPT-2.

use super::form::Mlp;
use super::gguf_keys::Keys;
use super::{Architecture, Ends, Form, Kind, Made, MlpLayers, Model, Norm, Part, sizes};
use crate::error::Result;
use crate::source::config::Config;
use llmq_kernels::elementwise::Activation;

/// Learned positions, norms that subtract the mean, q, k and v in one layer, and layers that are stored column by column.
pub struct Gpt2;

impl Architecture for Gpt2 {
    fn gguf(&self) -> &'static str {
        "gpt2"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["gpt2"]
    }

    fn form(&self) -> Form {
        Form {
            norm: Norm::Layer,
            positions: true,
            fused_qkv: true,
            qkv_bias: true,
            o_bias: true,
            mlp_bias: true,
            mlp: Mlp { activation: Activation::GeluTanh, layers: MlpLayers::Plain },
            ..Form::PLAIN
        }
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let (hidden, heads) = (config.size("n_embd")?, config.size("n_head")?);
        sizes::check_activation(config, &["activation_function"], Activation::GeluTanh, "gelu_new")?;
        if config.flag("scale_attn_by_inverse_layer_idx")? {
            return Err(sizes::refused(config, "scale_attn_by_inverse_layer_idx is not supported"));
        }
        let tied = config.get("tie_word_embeddings").map_or(Ok(true), |_| config.flag("tie_word_embeddings"))?;
        Ok(Model {
            architecture: self,
            blocks: config.size("n_layer")?,
            hidden,
            vocab: config.size("vocab_size")?,
            context: config.size("n_positions")?,
            heads,
            kv_heads: heads,
            head_dim: sizes::head_dim(config, hidden, heads, None)?,
            explicit_head_dim: false,
            ffn: config.maybe_size("n_inner")?.unwrap_or(4 * hidden),
            norm_eps: config.positive("layer_norm_epsilon")? as f32,
            rope: None,
            form: self.form(),
            tied,
            renamed: ("", ""),
        })
    }

    fn read_gguf(&self, _: &Keys, model: &mut Model) -> Result<()> {
        model.rope = None;
        Ok(())
    }

    fn source(&self, part: Part) -> &'static str {
        match part {
            Part::AttnNorm => "ln_1",
            Part::Qkv => "attn.c_attn",
            Part::O => "attn.c_proj",
            Part::FfnNorm => "ln_2",
            Part::Up => "mlp.c_fc",
            Part::Down => "mlp.c_proj",
            _ => part.usual_source(),
        }
    }

    fn ends(&self) -> Ends {
        Ends {
            embedding: "transformer.wte",
            positions: "transformer.wpe",
            blocks: "transformer.h",
            norm: "transformer.ln_f",
            output: "lm_head",
        }
    }

    fn made(&self, _: &Model, part: Part, kind: Kind) -> Made {
        match (part, kind) {
            (Part::Qkv | Part::O | Part::Up | Part::Down, Kind::Weight) => Made::Transposed,
            _ => Made::AsIs,
        }
    }
}
