//! OpenAI's gpt-oss.

use super::form::{Experts, Mlp, Window};
use super::gguf_keys::Keys;
use super::{Architecture, Form, Kind, Made, MlpLayers, Model, Part, sizes};
use crate::error::Result;
use crate::source::config::Config;
use crate::source::value::Value;
use llmq_kernels::elementwise::Activation;

/// Experts with biases and a bounded activation, a score of nothing in every head, and every other block sees a window.
pub struct GptOss;

const PERIOD: usize = 2;

impl Architecture for GptOss {
    fn gguf(&self) -> &'static str {
        "gpt-oss"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["gpt_oss"]
    }

    fn form(&self) -> Form {
        let mlp = Mlp { activation: Activation::SiluBounded, layers: MlpLayers::Gated };
        Form { experts: Some(Experts::UNREAD), sinks: true, qkv_bias: true, o_bias: true, mlp, ..Form::PLAIN }
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = sizes::read(self, config, false)?;
        let (count, used) = (config.size("num_local_experts")?, config.size("num_experts_per_tok")?);
        model.form.experts = Some(Experts { bias: true, ..Experts::plain(count, used, model.ffn) });
        let tokens = config.maybe_size("sliding_window")?.unwrap_or(128);
        model.form.window = Some(Window { tokens, period: Some(PERIOD) });
        Ok(model)
    }

    fn read_gguf(&self, keys: &Keys, model: &mut Model) -> Result<()> {
        let (count, used) = (keys.size("expert_count")?, keys.size("expert_used_count")?);
        let ffn = keys.maybe_size("expert_feed_forward_length")?.unwrap_or(model.ffn);
        model.form.experts = Some(Experts { bias: true, ..Experts::plain(count, used, ffn) });
        let tokens = keys.maybe_size("attention.sliding_window")?.unwrap_or(128);
        model.form.window = Some(Window { tokens, period: Some(PERIOD) });
        model.form.mlp_bias = false;
        Ok(())
    }

    fn keys(&self, model: &Model) -> Vec<(&'static str, Value)> {
        let window = model.form.window.map(|window| ("attention.sliding_window", window.tokens));
        let inside = model.form.experts.map(|experts| ("expert_feed_forward_length", experts.ffn));
        window.into_iter().chain(inside).map(|(key, n)| (key, Value::U32(n as u32))).collect()
    }

    fn source(&self, part: Part) -> &'static str {
        match part {
            Part::Router => "mlp.router",
            Part::ExpertGates | Part::ExpertUps => "mlp.experts.gate_up_proj",
            Part::ExpertDowns => "mlp.experts.down_proj",
            _ => part.usual_source(),
        }
    }

    fn suffix(&self, part: Part, kind: Kind) -> String {
        match (part, kind) {
            (Part::Sinks, _) => String::new(),
            (_, Kind::Weight) if part.is_of_experts() => String::new(),
            (_, Kind::Bias) if part.is_of_experts() => "_bias".into(),
            _ => format!(".{}", kind.suffix()),
        }
    }

    fn gguf_name(&self, part: Part) -> &'static str {
        match part {
            // As llama.cpp has it.
            Part::FfnNorm => "post_attention_norm",
            _ => part.gguf(),
        }
    }

    fn made(&self, _: &Model, part: Part, kind: Kind) -> Made {
        match (part, kind) {
            (Part::ExpertGates, Kind::Weight) => Made::Columns { first: 0, step: 2 },
            (Part::ExpertUps, Kind::Weight) => Made::Columns { first: 1, step: 2 },
            (Part::ExpertDowns, Kind::Weight) => Made::Columns { first: 0, step: 1 },
            (Part::ExpertGates, Kind::Bias) => Made::Every { first: 0, step: 2 },
            (Part::ExpertUps, Kind::Bias) => Made::Every { first: 1, step: 2 },
            _ => Made::AsIs,
        }
    }
}
