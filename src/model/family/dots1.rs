//! rednote's dots.llm1.

use super::deepseek2;
use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mixer::attention::HeadNorms;
use crate::model::mixer::experts::Experts;
use crate::model::mixer::routing::Scoring;
use crate::model::{Architecture, BlockTensor, Decoder, Model, config, mixture};
use crate::source::config::Config;

/// Norms of queries and keys, and experts as DeepSeek V3 has them.
pub struct Dots1;

impl Architecture for Dots1 {
    fn gguf(&self) -> &'static str {
        "dots1"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["dots1"]
    }

    fn examples(&self) -> &'static str {
        "dots.llm1 142B-A14B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { head_norms: HeadNorms::PerHead, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits { output: Place::Needed, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        Decoder { experts: deepseek2::small().experts, ..self.decoder().sized() }.build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        for key in ["attention_bias", "tie_word_embeddings"] {
            if config.flag(key)? {
                return Err(config::refused(config, &format!("{key} is not supported")));
            }
        }
        if model.kv_heads != model.heads {
            return Err(config::refused(config, "num_key_value_heads other than num_attention_heads is not supported"));
        }
        config::layer_types(config, model.blocks, &["full_attention"])?;
        if config.maybe_string("scoring_func")?.is_some_and(|own| !["noaux_tc", "sigmoid"].contains(&own.as_str())) {
            return Err(config::refused(config, "scoring_func other than 'noaux_tc' is not supported"));
        }
        model.dense = config::leading_dense(config, model.blocks, 0)?;
        model.experts = Some(mixture::read(config, &model, false)?);
        if model.experts.is_some_and(|experts| experts.shared.is_none()) {
            return Err(config::refused(config, "no n_shared_experts is not supported"));
        }
        mixture::put_keys(&mut model);
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        mixture::read_gguf(keys, &mut model, Experts { scoring: Scoring::Sigmoid, ..Experts::plain(0, 0, 0) })?;
        Ok(model.build(self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        deepseek2::source(tensor)
    }
}
