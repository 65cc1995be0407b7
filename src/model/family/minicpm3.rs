//! OpenBMB's MiniCPM 3.

use crate::error::Result;
use crate::model::decoder::Latent;
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, LongRope};
use crate::model::mixer::Mixer;
use crate::model::rope::{Rope, Scaling};
use crate::model::{Architecture, Decoder, Model, config};
use crate::source::config::Config;

/// Keys and values out of one narrow vector, and factors for the embedding, what each half adds, and the logits.
pub struct MiniCpm3;

// What llama.cpp has in its code.
const EMBEDDING: f64 = 12.0;
const DEPTH: f64 = 1.4;
const WIDTH: f64 = 256.0;

/// The factors, which depend on sizes.
fn scaled(decoder: Decoder) -> Decoder {
    Decoder {
        embedding_scale: EMBEDDING as f32,
        residual_scale: (DEPTH / (decoder.blocks as f64).sqrt()) as f32,
        logit_scale: (WIDTH / decoder.hidden as f64) as f32,
        ..decoder
    }
}

fn build(decoder: Decoder, architecture: &'static dyn Architecture) -> Model {
    let mut model = scaled(decoder).build(architecture);
    for half in model.blocks.iter_mut().flat_map(|block| &mut block.halves) {
        if let Mixer::LatentAttention(attention) = &mut half.mixer {
            attention.joined = true;
        }
    }
    model
}

impl Architecture for MiniCpm3 {
    fn gguf(&self) -> &'static str {
        "minicpm3"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["minicpm3"]
    }

    fn examples(&self) -> &'static str {
        "MiniCPM3 4B"
    }

    fn limits(&self) -> Limits {
        Limits { long_rope: LongRope::ByTensors, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        let latent = Latent { query: Some(4), latent: 4, turned: 2, value: 4 };
        build(Decoder { latent: Some(latent), ..self.decoder().sized() }, self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = config::read(self, config, true)?;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        for key in ["attention_bias", "mlp_bias"] {
            if config.flag(key)? {
                return Err(config::refused(config, &format!("{key} is not supported")));
            }
        }
        for (key, wanted) in [("scale_emb", EMBEDDING), ("scale_depth", DEPTH), ("dim_model_base", WIDTH)] {
            let null = config.json().get(key).is_some_and(|own| own.is_null());
            if null || config.maybe_positive(key)?.is_some_and(|own| own != wanted) {
                return Err(config::refused(config, &format!("{key} other than {wanted} is not supported")));
            }
        }
        let turned = config.size("qk_rope_head_dim")?;
        let latent = Latent {
            query: Some(config.size("q_lora_rank")?),
            latent: config.size("kv_lora_rank")?,
            turned,
            value: config.maybe_size("v_head_dim")?.unwrap_or(model.hidden / model.heads),
        };
        model.head_dim = config.size("qk_nope_head_dim")? + turned;
        if latent.value > model.head_dim {
            return Err(config::refused(config, "values that are wider than keys are not supported"));
        }
        let rope = Rope::read(config, turned)?;
        match &rope.scaling {
            Scaling::None => {}
            Scaling::Long { magnitude, .. } if *magnitude == 1.0 => {}
            _ => {
                return Err(config::refused(
                    config,
                    "rope scaling other than 'longrope' within its context is not supported",
                ));
            }
        }
        model.kv_heads = model.heads;
        model.explicit_head_dim = false;
        model.rope = Some(rope);
        model.latent = Some(latent);
        model.size_key("attention.q_lora_rank", config.size("q_lora_rank")?);
        model.size_key("attention.kv_lora_rank", latent.latent);
        model.size_key("attention.key_length", model.head_dim);
        model.size_key("attention.value_length", latent.value);
        Ok(build(model, self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        let turned = keys.size("rope.dimension_count")?;
        if turned >= model.head_dim || !turned.is_multiple_of(2) {
            return Err(keys.wrong(&format!("{turned} numbers of each head of {} cannot be turned", model.head_dim)));
        }
        let value = keys.maybe_size("attention.value_length")?.unwrap_or(model.hidden / model.heads);
        if value > model.head_dim {
            return Err(keys.wrong(&format!("values of {value} numbers with keys of {}", model.head_dim)));
        }
        let latent = keys.size("attention.kv_lora_rank")?;
        model.latent = Some(Latent { query: Some(keys.size("attention.q_lora_rank")?), latent, turned, value });
        model.kv_heads = model.heads;
        model.explicit_head_dim = false;
        Ok(build(model, self))
    }
}
