//! Microsoft's Phi-3 and Phi-4.

use super::form::{Mlp, Window};
use super::gguf_keys::Keys;
use super::rope::Scaling;
use super::{Architecture, Form, MlpLayers, Model, sizes};
use crate::error::Result;
use crate::source::config::Config;
use crate::source::value::Value;
use llmq_kernels::elementwise::Activation;

/// Llama with q, k and v in one layer, gate and up in another, and two lists of rotary divisors for long contexts.
pub struct Phi3;

impl Architecture for Phi3 {
    fn gguf(&self) -> &'static str {
        "phi3"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["phi3"]
    }

    fn form(&self) -> Form {
        let mlp = Mlp { activation: Activation::Silu, layers: MlpLayers::Fused };
        Form { fused_qkv: true, mlp, ..Form::PLAIN }
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = sizes::read(self, config, false)?;
        sizes::check_activation(config, &["hidden_act"], Activation::Silu, "silu")?;
        model.form.window = config.maybe_size("sliding_window")?.map(|tokens| Window { tokens, period: None });
        Ok(model)
    }

    fn read_gguf(&self, keys: &Keys, model: &mut Model) -> Result<()> {
        // Zero says that there is none.
        let window = keys.maybe("attention.sliding_window").and_then(Value::as_u64).filter(|&n| n > 0);
        model.form.window = window.map(|tokens| Window { tokens: tokens as usize, period: None });
        Ok(())
    }

    fn keys(&self, model: &Model) -> Vec<(&'static str, Value)> {
        let window = model.form.window.map_or(0, |window| window.tokens);
        let mut keys = vec![("attention.sliding_window", Value::U32(window as u32))];
        if model.rope.as_ref().is_some_and(|rope| !matches!(rope.scaling, Scaling::Long { .. })) {
            keys.push(("rope.scaling.original_context_length", Value::U32(model.context as u32)));
        }
        keys
    }
}
