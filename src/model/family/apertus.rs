//! Apertus, of the Swiss AI initiative.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mixer::attention::HeadNorms;
use crate::model::mixer::mlp::MlpLayers;
use crate::model::mixer::{Mixer, Xielu};
use crate::model::{Architecture, BlockTensor, Decoder, Model, Part, config};
use crate::source::checkpoint::Checkpoint;
use crate::source::config::Config;
use crate::source::value::Value;

/// Llama with norms of queries and keys, and an MLP of two layers with xIELU between.
pub struct Apertus;

/// What a checkpoint and GGUF call the numbers of xIELU.
const NUMBERS: [&str; 4] = ["alpha_n", "alpha_p", "beta", "eps"];

/// The activations of all blocks.
fn activations(model: &mut Model) -> impl Iterator<Item = &mut Xielu> {
    model.blocks.iter_mut().flat_map(|block| &mut block.halves).filter_map(|half| match &mut half.mixer {
        Mixer::Xielu(own) => Some(&mut **own),
        _ => None,
    })
}

/// Sets the numbers of all blocks, in the order of [`NUMBERS`], and the keys that say them.
fn set(model: &mut Model, numbers: [Vec<f32>; 4]) {
    for (i, own) in activations(model).enumerate() {
        let [alpha_n, alpha_p, beta, eps] = numbers.each_ref().map(|all| all[i]);
        *own = Xielu { width: own.width, alpha_p, alpha_n, beta, eps };
    }
    for (name, numbers) in NUMBERS.iter().zip(numbers) {
        model.keys.push((format!("xielu.{name}"), Value::from(numbers)));
    }
}

fn build(decoder: Decoder, architecture: &'static dyn Architecture) -> Model {
    let mut model = decoder.build(architecture);
    for half in model.blocks.iter_mut().flat_map(|block| &mut block.halves) {
        if let Mixer::Mlp(mlp) = &half.mixer {
            half.mixer = Xielu::new(mlp.width).into();
        }
    }
    model
}

impl Architecture for Apertus {
    fn gguf(&self) -> &'static str {
        "apertus"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["apertus"]
    }

    fn examples(&self) -> &'static str {
        "Apertus 8B and 70B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { head_norms: HeadNorms::PerHead, mlp: MlpLayers::Plain, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits { output: Place::Needed, mlp_bias: Place::None, ..Limits::of_llama(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        build(self.decoder().sized(), self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let scaling = serde_json::json!({
            "rope_type": "llama3", "rope_theta": 12e6, "factor": 8.0, "original_max_position_embeddings": 8192,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        });
        let said = config.get("rope_parameters").or(config.get("rope_scaling")).is_some();
        let config = &if said { config.clone() } else { config.clone().with("rope_parameters", scaling) };
        let model = config::read(self, config, false)?;
        match config.maybe_string("hidden_act")?.as_deref() {
            None | Some("xielu") => {}
            Some(other) => {
                return Err(config::refused(config, &format!("hidden_act '{other}' is not supported, only xielu")));
            }
        }
        if model.tied {
            return Err(config::refused(config, "tie_word_embeddings is not supported"));
        }
        for (key, usual) in [("qk_norm", true), ("post_norm", false), ("mlp_bias", false)] {
            if config.get(key).is_some() && config.flag(key)? != usual {
                return Err(config::refused(config, &format!("{key} {} is not supported", !usual)));
            }
        }
        Ok(build(model, self))
    }

    fn read_gguf(&'static self, keys: &Keys, decoder: Decoder) -> Result<Model> {
        let mut model = build(decoder, self);
        let mut numbers: [Vec<f32>; 4] = Default::default();
        for (own, name) in numbers.iter_mut().zip(NUMBERS) {
            *own = keys.shared_numbers(&format!("xielu.{name}"))?;
        }
        set(&mut model, numbers);
        Ok(model)
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::ATTN_NORM => "attention_layernorm",
            Part::FFN_NORM => "feedforward_layernorm",
            _ => tensor.source,
        }
    }

    fn settle(&self, model: &mut Model, checkpoint: &Checkpoint) -> Result<Vec<String>> {
        let (mut numbers, mut names): ([Vec<f32>; 4], _) = Default::default();
        let names_of: &mut Vec<String> = &mut names;
        for i in 0..model.blocks.len() {
            for (own, name) in numbers.iter_mut().zip(NUMBERS) {
                let name = model.named(format!("{}.{i}.mlp.act_fn.{name}", self.outside().blocks));
                own.push(checkpoint.number(&name)?);
                names_of.push(name);
            }
        }
        set(model, numbers);
        Ok(names)
    }
}
