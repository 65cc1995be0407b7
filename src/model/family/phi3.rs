//! Microsoft's Phi-3 and Phi-4.

use crate::error::Result;
use crate::model::decoder::Window;
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, LongRope};
use crate::model::mixer::mlp::MlpLayers;
use crate::model::rope::Scaling;
use crate::model::{Architecture, Decoder, Model, config};
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

    fn examples(&self) -> &'static str {
        "Phi-3, 3.5 mini and medium, Phi-4, Phi-4-mini"
    }

    fn decoder(&self) -> Decoder {
        Decoder { fused_qkv: true, mlp: MlpLayers::Fused, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits {
            head_dim: false,
            partial_rotary: true,
            long_rope: LongRope::ByTensors,
            windows: false,
            ..Limits::of(&self.decoder())
        }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], Activation::Silu, "silu")?;
        let window = config.maybe_size("sliding_window")?;
        model.window = window.map(Window::everywhere);
        model.size_key("attention.sliding_window", window.unwrap_or(0));
        if model.rope.as_ref().is_some_and(|rope| !matches!(rope.scaling, Scaling::Long { .. })) {
            model.size_key("rope.scaling.original_context_length", model.context);
        }
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        // Zero says that there is none.
        let window = keys.maybe("attention.sliding_window").and_then(Value::as_u64).filter(|&n| n > 0);
        model.window = window.map(|tokens| Window::everywhere(tokens as usize));
        Ok(model.build(self))
    }
}
