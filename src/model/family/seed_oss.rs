//! ByteDance's Seed-OSS.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::{Architecture, Decoder, Model, Part, config};
use crate::source::config::Config;

/// Llama with biases on q, k and v.
pub struct SeedOss;

impl Architecture for SeedOss {
    fn gguf(&self) -> &'static str {
        "seed_oss"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["seed_oss"]
    }

    fn examples(&self) -> &'static str {
        "Seed-OSS-36B"
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        for key in ["attention_out_bias", "mlp_bias"] {
            if config.flag(key)? {
                return Err(config::refused(config, &format!("{key} is not supported")));
            }
        }
        (model.o_bias, model.explicit_head_dim) = (false, true);
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, _: &Keys, decoder: Decoder) -> Result<Model> {
        Ok(decoder.build(self))
    }

    fn gguf_name(&self, part: Part) -> &'static str {
        match part {
            // As llama.cpp has it.
            Part::FFN_NORM => "post_attention_norm",
            _ => part.0,
        }
    }
}
