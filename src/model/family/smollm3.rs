//! SmolLM 3.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::{Architecture, Decoder, Model, QueryRows, config};
use crate::source::config::Config;

/// Llama whose every fourth block turns no queries and keys.
pub struct SmolLm3;

/// llama.cpp has this number in its code.
const SKIP: usize = 4;

impl Architecture for SmolLm3 {
    fn gguf(&self) -> &'static str {
        "smollm3"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["smollm3"]
    }

    fn examples(&self) -> &'static str {
        "SmolLM 3 3B"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Interleaved
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        if config.flag("use_sliding_window")? {
            return Err(config::refused(config, "use_sliding_window is not supported"));
        }
        config.ignore(&["sliding_window", "max_window_layers"]);
        let model = config::read(self, config, true)?;
        config::layer_types(config, model.blocks, &["full_attention"])?;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        let interval = config.maybe_size("no_rope_layer_interval")?.unwrap_or(SKIP);
        let list = config.get("no_rope_layers").and_then(|list| list.as_array());
        if list.is_none() && interval != SKIP {
            return Err(config::refused(config, &format!("no_rope_layer_interval {interval} is not supported")));
        }
        if let Some(list) = list {
            let turned = |i: usize| !(i + 1).is_multiple_of(SKIP);
            if let Some(at) = list.iter().enumerate().position(|(i, on)| on.as_u64() != Some(u64::from(turned(i)))) {
                return Err(config::refused(
                    config,
                    &format!("no_rope_layers must name every fourth block, and block {at} breaks that"),
                ));
            }
        }
        Ok(Decoder { rope_skip: Some(SKIP), mlp_bias: config.flag("mlp_bias")?, ..model }.build(self))
    }

    fn read_gguf(&'static self, _: &Keys, decoder: Decoder) -> Result<Model> {
        Ok(Decoder { rope_skip: Some(SKIP), ..decoder }.build(self))
    }
}
