//! Google's EmbeddingGemma: Gemma 3 whose positions see those behind them, too, and whose last states make a vector.

use super::gemma;
use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mixer::attention::HeadNorms;
use crate::model::{Architecture, BlockConfig, BlockTensor, Decoder, Kind, Model, TensorMapping, config, pooling};
use crate::source::checkpoint::Checkpoint;
use crate::source::config::Config;

/// [`gemma::Gemma3`] with attention both ways; a window has half of it on each side.
pub struct EmbeddingGemma;

fn build(decoder: Decoder, architecture: &'static dyn Architecture) -> Model {
    let mut model = decoder.build(architecture);
    for (_, attention) in model.attentions() {
        attention.both_ways = true;
    }
    model
}

impl Architecture for EmbeddingGemma {
    fn gguf(&self) -> &'static str {
        "gemma-embedding"
    }

    fn model_types(&self) -> &'static [&'static str] {
        // Configurations say that of Gemma 3.
        &[]
    }

    fn examples(&self) -> &'static str {
        "EmbeddingGemma 300M"
    }

    fn decoder(&self) -> Decoder {
        Decoder { post_norms: true, head_norms: HeadNorms::PerHead, ..gemma::plain() }
    }

    fn limits(&self) -> Limits {
        Limits { output: Place::None, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        build(self.decoder().sized(), self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let model = gemma::read_3(self, config, usize::MAX)?;
        if model.logit_cap.is_some() {
            return Err(config::refused(config, "final_logit_softcapping is not supported"));
        }
        Ok(build(model, self))
    }

    fn read_gguf(&'static self, keys: &Keys, decoder: Decoder) -> Result<Model> {
        Ok(build(gemma::read_gguf_3(keys, decoder, usize::MAX)?, self))
    }

    fn writes_rope_base(&self) -> bool {
        true
    }

    fn obstacle_to_rotation(&self) -> Option<&'static str> {
        Some("what comes out is the residual stream itself")
    }

    fn settle(&self, model: &mut Model, checkpoint: &Checkpoint) -> Result<Vec<String>> {
        pooling::settle_dense(model, checkpoint)?;
        Ok(Vec::new())
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        gemma::source(tensor)
    }

    fn mapping(&self, _: &BlockConfig, tensor: &BlockTensor, _: Kind) -> TensorMapping {
        gemma::mapping(tensor)
    }

    fn norm_mapping(&self) -> TensorMapping {
        crate::model::mapping::Change::PlusOne.into()
    }
}
