//! SmolLM 3.

use super::gguf_keys::Keys;
use super::{Architecture, Form, Model, QueryRows, sizes};
use crate::error::Result;
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

    fn query_rows(&self) -> QueryRows {
        QueryRows::Interleaved
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        if config.flag("use_sliding_window")? {
            return Err(sizes::refused(config, "use_sliding_window is not supported"));
        }
        let mut model = sizes::read(self, config, true)?;
        sizes::check_activation(config, &["hidden_act"], model.form.mlp.activation, "silu")?;
        if let Some(list) = config.get("no_rope_layers").and_then(|list| list.as_array()) {
            let turned = |i: usize| !(i + 1).is_multiple_of(SKIP);
            if let Some(at) = list.iter().enumerate().position(|(i, on)| on.as_u64() != Some(u64::from(turned(i)))) {
                return Err(sizes::refused(
                    config,
                    &format!("no_rope_layers must name every fourth block, and block {at} breaks that"),
                ));
            }
        }
        model.rope.iter_mut().for_each(|rope| rope.skip = Some(SKIP));
        let form = Form { mlp_bias: config.flag("mlp_bias")?, ..model.form };
        Ok(Model { form, ..model })
    }

    fn read_gguf(&self, _: &Keys, model: &mut Model) -> Result<()> {
        model.rope.iter_mut().for_each(|rope| rope.skip = Some(SKIP));
        Ok(())
    }
}
