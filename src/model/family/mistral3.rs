//! Mistral Small 3, Magistral, Devstral and Ministral 3: the text inside a model that sees.

use super::mistral4;
use crate::error::Result;
use crate::model::decoder::Window;
use crate::model::gguf_keys::Keys;
use crate::model::limits::Limits;
use crate::model::mixer::Mixer;
use crate::model::mixer::attention::Temperature;
use crate::model::rope::{self, Scaling, growth};
use crate::model::{Architecture, BlockTensor, Decoder, Model, OutsideNames, Part, QueryRows, config};
use crate::source::config::Config;
use crate::source::mistral::MODEL_TYPE;
use crate::source::value::Value;

/// Llama; in Ministral 3 with YaRN, and scores that grow beyond the context of the first training.
pub struct Mistral3;

/// What transformers takes for Ministral 3 where nothing is said.
fn usual_rope() -> serde_json::Value {
    serde_json::json!({
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale_all_dim": 1.0,
        "mscale": 1.0,
        "llama_4_scaling_beta": 0.1
    })
}

/// Scores are multiplied by `1 + β·ln(1 + ⌊position / original⌋)`.
fn with_temperature(mut model: Model, beta: f64, original: f64) -> Model {
    for half in model.blocks.iter_mut().flat_map(|block| &mut block.halves) {
        if let Mixer::Attention(attention) = &mut half.mixer {
            attention.temperature = Some(Temperature { beta: beta as f32, original: original as usize, offset: 0 });
        }
    }
    model
}

impl Architecture for Mistral3 {
    fn gguf(&self) -> &'static str {
        "mistral3"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["mistral3", "ministral3"]
    }

    fn examples(&self) -> &'static str {
        "Mistral Small 3.1 and 3.2, Magistral, Devstral, Ministral 3 3B to 14B"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Interleaved
    }

    fn limits(&self) -> Limits {
        Limits { windows: false, yarn_turns: true, ..Limits::of_llama(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        if config.string("model_type")? == "mistral4" {
            return mistral4::Mistral4.read(config);
        }
        read(self, config)
    }

    fn read_gguf(&'static self, keys: &Keys, mut decoder: Decoder) -> Result<Model> {
        let beta = keys.maybe_number("attention.temperature_scale")?;
        let mut original = decoder.context as f64;
        if let Some(Scaling::Yarn(yarn)) = decoder.rope.as_mut().map(|rope| &mut rope.scaling) {
            original = yarn.original;
            if let Some(all) = keys.maybe_number("rope.scaling.yarn_log_multiplier")? {
                let own = yarn.magnitude.map_or(1.0, |magnitude| magnitude / yarn.usual_magnitude());
                yarn.magnitude = Some(own * growth(yarn.factor, 1.0) / growth(yarn.factor, all));
            }
        }
        let model = decoder.build(self);
        Ok(match beta {
            Some(beta) => with_temperature(model, beta, original),
            None => model,
        })
    }
}

fn read(architecture: &'static dyn Architecture, config: &Config) -> Result<Model> {
    let kind = config.string("model_type")?;
    if !["mistral3", "mistral", "ministral3", MODEL_TYPE].contains(&kind.as_str()) {
        return Err(config::refused(config, &format!("text of model_type '{kind}' is not supported")));
    }
    let config = &match kind == "ministral3" && !config.says("rope_parameters") {
        true => config.clone().with("rope_parameters", usual_rope()),
        false => config.clone(),
    };
    let mut model = config::read(architecture, config, false)?;
    config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
    model.explicit_head_dim = true;
    // llama.cpp ignores it, which only matters in contexts that are longer.
    model.window = config.maybe_size("sliding_window")?.map(Window::everywhere);
    let parameters = rope::parameters(config)?;
    let of = |key: &str| parameters.as_ref().map(|p| p.maybe_positive(key)).transpose().map(Option::flatten);
    let (beta, all) = (of("llama_4_scaling_beta")?, of("mscale_all_dim")?);
    let Some(Scaling::Yarn(yarn)) = model.rope.as_ref().map(|rope| rope.scaling.clone()) else {
        return match beta {
            None => Ok(model.build(architecture)),
            Some(_) => Err(config::refused(config, "llama_4_scaling_beta is only supported with YaRN")),
        };
    };
    if let Some(all) = all {
        // llama.cpp takes mscale for 1.
        let theirs = growth(yarn.factor, 1.0) / growth(yarn.factor, all);
        if (yarn.magnitude() / theirs - 1.0).abs() > 1e-6 {
            return Err(config::refused(config, "mscale other than 1 is not supported"));
        }
        model.yarn_growth = Some(all as f32);
        model.key("rope.scaling.yarn_log_multiplier", Value::F32(all as f32));
    }
    match beta {
        None => Ok(model.build(architecture)),
        Some(beta) => {
            model.key("attention.temperature_scale", Value::F32(beta as f32));
            Ok(with_temperature(model.build(architecture), beta, yarn.original))
        }
    }
}

/// The same in Mistral's own layout, whose rows of queries and keys come in pairs of neighbours.
pub struct MistralNative;

impl Architecture for MistralNative {
    fn gguf(&self) -> &'static str {
        "mistral3"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &[MODEL_TYPE]
    }

    fn examples(&self) -> &'static str {
        "folders with params.json and consolidated.safetensors"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Neighbours
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        for key in ["n_routed_experts", "num_local_experts", "kv_lora_rank"] {
            if config.get(key).is_some() {
                return Err(config::refused(config, &format!("{key} is not supported in Mistral's own layout"))
                    .hint("start from the same model in transformers' layout"));
            }
        }
        read(self, config)
    }

    fn read_gguf(&'static self, keys: &Keys, decoder: Decoder) -> Result<Model> {
        Mistral3.read_gguf(keys, decoder)
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::ATTN_NORM => "attention_norm",
            Part::Q => "attention.wq",
            Part::K => "attention.wk",
            Part::V => "attention.wv",
            Part::O => "attention.wo",
            Part::GATE => "feed_forward.w1",
            Part::UP => "feed_forward.w3",
            Part::DOWN => "feed_forward.w2",
            Part::FFN_NORM => "ffn_norm",
            _ => tensor.source,
        }
    }

    fn outside(&self) -> OutsideNames {
        OutsideNames { embedding: "tok_embeddings", positions: "", blocks: "layers", norm: "norm", output: "output" }
    }
}
