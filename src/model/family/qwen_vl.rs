//! The text halves of Qwen 2, 2.5 and 3 with vision: positions of text are the same along all axes, so rotary embedding is plain.

use super::{qwen, qwen_moe};
use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::Limits;
use crate::model::mixer::attention::HeadNorms;
use crate::model::mixer::experts::Experts;
use crate::model::{Architecture, Decoder, Model, config, mixture, rope};
use crate::source::config::Config;
use crate::source::value::{Array, Value};

/// Qwen 2 and 2.5 with vision.
pub struct Qwen2Vl;

/// Qwen 3 with vision.
pub struct Qwen3Vl;

/// The same with experts.
pub struct Qwen3VlMoe;

/// How pairs of a head are shared out to the axes of positions: `mrope_section`, four numbers in GGUF.
///
/// # Errors
/// Something else than up to four numbers.
pub(super) fn sections(config: &Config) -> Result<Option<Vec<i32>>> {
    let parameters = rope::parameters(config)?;
    let Some(list) = parameters.as_ref().and_then(|p| p.get("mrope_section")) else { return Ok(None) };
    let numbers = list.as_array().map(|list| list.iter().filter_map(serde_json::Value::as_u64).map(|n| n as i32));
    let mut numbers: Vec<i32> = numbers.into_iter().flatten().collect();
    if numbers.is_empty() || numbers.len() > 4 {
        return Err(config.unsupported(&format!("mrope_section {list} is not a list of up to four numbers")));
    }
    numbers.resize(4, 0);
    Ok(Some(numbers))
}

/// Adds the key of [`sections`]. `usual`: what transformers takes where they are not said.
///
/// # Errors
/// Nothing is said, nor usual.
pub(super) fn put_sections(model: &mut Decoder, config: &Config, usual: Option<[i32; 4]>) -> Result<()> {
    let sections = sections(config)?.or(usual.map(Vec::from));
    let sections = sections.ok_or_else(|| config.unsupported("rope_parameters do not say mrope_section"))?;
    model.key("rope.dimension_sections", Value::Array(Array::I32(sections)));
    Ok(())
}

impl Architecture for Qwen2Vl {
    fn gguf(&self) -> &'static str {
        "qwen2vl"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["qwen2_vl", "qwen2_5_vl", "qwen2_vl_text", "qwen2_5_vl_text"]
    }

    fn examples(&self) -> &'static str {
        "Qwen2-VL, Qwen2.5-VL 3B to 72B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { qkv_bias: true, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits { head_dim: false, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = qwen::read(self, config)?;
        put_sections(&mut model, config, None)?;
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, _: &Keys, decoder: Decoder) -> Result<Model> {
        Ok(decoder.build(self))
    }
}

impl Architecture for Qwen3Vl {
    fn gguf(&self) -> &'static str {
        "qwen3vl"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["qwen3_vl", "qwen3_vl_text"]
    }

    fn examples(&self) -> &'static str {
        "Qwen3-VL 2B to 32B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { head_norms: HeadNorms::PerHead, ..Decoder::PLAIN }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = qwen::read(self, config)?;
        put_sections(&mut model, config, Some([24, 20, 20, 0]))?;
        model.size_key("n_deepstack_layers", deepstack_layers(config)?);
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, _: &Keys, decoder: Decoder) -> Result<Model> {
        Ok(decoder.build(self))
    }
}

impl Architecture for Qwen3VlMoe {
    fn gguf(&self) -> &'static str {
        "qwen3vlmoe"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["qwen3_vl_moe", "qwen3_vl_moe_text"]
    }

    fn examples(&self) -> &'static str {
        "Qwen3-VL-30B-A3B, 235B-A22B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { head_norms: HeadNorms::PerHead, ..Decoder::PLAIN }
    }

    fn sample(&'static self) -> Model {
        Decoder { experts: Some(Experts::plain(2, 1, 8)), ..self.decoder().sized() }.build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = qwen_moe::read(self, config, false)?;
        if model.experts.is_some_and(|experts| !experts.normed) {
            return Err(config::refused(config, "norm_topk_prob must be true, as in all published models"));
        }
        put_sections(&mut model, config, Some([24, 20, 20, 0]))?;
        model.size_key("n_deepstack_layers", deepstack_layers(config)?);
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut decoder: Decoder) -> Result<Model> {
        mixture::read_gguf(keys, &mut decoder, Experts::plain(0, 0, 0))?;
        Ok(decoder.build(self))
    }
}

/// Blocks whose results the vision tower adds to.
pub(super) fn deepstack_layers(config: &Config) -> Result<usize> {
    let vision = config.object("vision_config")?;
    let list = vision.as_ref().and_then(|vision| vision.get("deepstack_visual_indexes"));
    Ok(list.and_then(|list| list.as_array()).map_or(0, Vec::len))
}
