//! The Llama family: Llama 1 to 3, and the many checkpoints that share its `model_type`.

use super::rope::Rope;
use super::{Architecture, Model, QueryRows};
use crate::error::Result;
use crate::source::config::Config;

/// Pre-norm blocks with RMS norm, rotary grouped-query attention and a gated SiLU MLP.
pub struct Llama;

impl Architecture for Llama {
    fn gguf(&self) -> &'static str {
        "llama"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["llama"]
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Interleaved
    }

    fn obstacle_to_rotation(&self, _: &Model) -> Option<&'static str> {
        None
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let hidden = config.size("hidden_size")?;
        let heads = config.size("num_attention_heads")?;
        let kv_heads = config.maybe_size("num_key_value_heads")?.unwrap_or(heads);
        let explicit = config.maybe_size("head_dim")?;
        if explicit.is_none() && hidden % heads != 0 {
            return Err(config.unsupported(&format!("hidden_size {hidden} does not divide into {heads} heads")));
        }
        let head_dim = explicit.unwrap_or(hidden / heads);
        if head_dim % 2 != 0 {
            return Err(config.unsupported(&format!("head_dim {head_dim} is odd, and rotary embedding needs pairs")));
        }
        if head_dim > 1 << 16 {
            return Err(config.unsupported(&format!("head_dim {head_dim} is beyond {}", 1 << 16)));
        }
        if heads % kv_heads != 0 {
            return Err(config.unsupported(&format!("{heads} heads cannot share {kv_heads} key-value heads evenly")));
        }
        let activation = config.maybe_string("hidden_act")?.unwrap_or("silu".into());
        if activation != "silu" {
            return Err(config
                .unsupported(&format!("hidden_act '{activation}' is not supported"))
                .hint("llama.cpp runs models of this type with silu only"));
        }
        Ok(Model {
            architecture: self,
            blocks: config.size("num_hidden_layers")?,
            hidden,
            vocab: config.size("vocab_size")?,
            context: config.size("max_position_embeddings")?,
            heads,
            kv_heads,
            head_dim,
            explicit_head_dim: explicit.is_some(),
            ffn: config.size("intermediate_size")?,
            norm_eps: config.positive("rms_norm_eps")? as f32,
            rope: Rope::read(config, head_dim)?,
            attention_bias: config.flag("attention_bias")?,
            mlp_bias: config.flag("mlp_bias")?,
            tied: config.flag("tie_word_embeddings")?,
        })
    }
}
