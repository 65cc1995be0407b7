//! OpenAI's gpt-oss.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mapping::Pick;
use crate::model::mixer::experts::Experts;
use crate::model::{Architecture, BlockConfig, BlockTensor, Decoder, Kind, Model, Part, TensorMapping, config};
use crate::source::config::Config;
use llmq_kernels::elementwise::Activation;

/// Experts with biases and a bounded activation, a score of nothing in every head, and every other block sees a window.
pub struct GptOss;

const PERIOD: usize = 2;

/// What transformers takes where nothing is said.
fn usual_rope() -> serde_json::Value {
    serde_json::json!({
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": false,
        "original_max_position_embeddings": 4096
    })
}

impl Architecture for GptOss {
    fn gguf(&self) -> &'static str {
        "gpt-oss"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["gpt_oss"]
    }

    fn examples(&self) -> &'static str {
        "gpt-oss 20B and 120B"
    }

    fn decoder(&self) -> Decoder {
        let activation = Activation::SiluBounded;
        Decoder { sinks: true, qkv_bias: true, o_bias: true, activation, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits { output: Place::Needed, approximates_yarn: true, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        Decoder { experts: Some(Experts { bias: true, ..Experts::plain(2, 1, 8) }), ..self.decoder().sized() }
            .build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let config = &match config.says("rope_parameters") {
            true => config.clone(),
            false => config.clone().with("rope_parameters", usual_rope()),
        };
        let mut model = config::read(self, config, false)?;
        let bias = config.maybe_flag("attention_bias")?.unwrap_or(true);
        (model.qkv_bias, model.o_bias) = (bias, bias);
        let (count, used) = (config.size("num_local_experts")?, config.size("num_experts_per_tok")?);
        model.experts = Some(Experts { bias: true, ..Experts::plain(count, used, model.ffn) });
        let tokens = config.maybe_size("sliding_window")?.unwrap_or(128);
        config::put_windows(config, &mut model, tokens, PERIOD)?;
        model.size_key("expert_feed_forward_length", model.ffn);
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        let (count, used) = (keys.size("expert_count")?, keys.size("expert_used_count")?);
        let ffn = keys.maybe_size("expert_feed_forward_length")?.unwrap_or(model.ffn);
        model.experts = Some(Experts { bias: true, ..Experts::plain(count, used, ffn) });
        let tokens = keys.maybe_size("attention.sliding_window")?.unwrap_or(128);
        config::read_windows(keys, &mut model, tokens, PERIOD)?;
        model.mlp_bias = false;
        Ok(model.build(self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::ROUTER => "mlp.router",
            Part::EXPERT_GATES | Part::EXPERT_UPS => "mlp.experts.gate_up_proj",
            Part::EXPERT_DOWNS => "mlp.experts.down_proj",
            _ => tensor.source,
        }
    }

    fn suffix(&self, tensor: &BlockTensor, kind: Kind) -> String {
        match (tensor.part, kind) {
            (Part::SINKS, _) => String::new(),
            (Part::EXPERT_GATES | Part::EXPERT_UPS | Part::EXPERT_DOWNS, Kind::Weight) => String::new(),
            (Part::EXPERT_GATES | Part::EXPERT_UPS | Part::EXPERT_DOWNS, Kind::Bias) => "_bias".into(),
            _ => format!(".{}", kind.suffix()),
        }
    }

    fn gguf_name(&self, part: Part) -> &'static str {
        match part {
            // As llama.cpp has it.
            Part::FFN_NORM => "post_attention_norm",
            _ => part.0,
        }
    }

    fn mapping(&self, _: &BlockConfig, tensor: &BlockTensor, kind: Kind) -> TensorMapping {
        let columns = |first, step| Pick::Columns { first, step, of: step * tensor.shape[1] }.into();
        match (tensor.part, kind) {
            (Part::EXPERT_GATES, Kind::Weight) => columns(0, 2),
            (Part::EXPERT_UPS, Kind::Weight) => columns(1, 2),
            (Part::EXPERT_DOWNS, Kind::Weight) => columns(0, 1),
            (Part::EXPERT_GATES, Kind::Bias) => Pick::Every { first: 0, step: 2 }.into(),
            (Part::EXPERT_UPS, Kind::Bias) => Pick::Every { first: 1, step: 2 }.into(),
            _ => TensorMapping::AS_IS,
        }
    }
}
