//! Baidu's ERNIE 4.5, dense and with experts.

use super::deepseek2;
use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mapping::TensorMapping;
use crate::model::mixer::experts::Experts;
use crate::model::{
    Architecture, BlockConfig, BlockTensor, Decoder, HalfConfig, Kind, Model, Part, QueryRows, config, mixture,
};
use crate::source::config::Config;

/// Llama whose checkpoints turn neighbours.
pub struct Ernie45;

/// The same with experts in some blocks, of which a bias decides which are used.
pub struct Ernie45Moe;

fn read(architecture: &'static dyn Architecture, config: &Config) -> Result<Decoder> {
    let mut model = config::read(architecture, config, true)?;
    config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
    if config.flag("use_bias")? {
        return Err(config::refused(config, "use_bias is not supported"));
    }
    model.explicit_head_dim = true;
    Ok(model)
}

/// Leaves an MLP in the blocks that have no experts. `step`: every so many-th has some.
fn build(model: Decoder, step: usize, architecture: &'static dyn Architecture) -> Model {
    let (mlp, first) = (model.mlp(), model.dense);
    let mut model = model.build(architecture);
    for (i, block) in model.blocks.iter_mut().enumerate() {
        if let (false, Some(half)) = (i >= first && (i + 1).is_multiple_of(step), block.halves.last_mut()) {
            *half = HalfConfig { mixer: mlp.into(), ..half.clone() };
        }
    }
    model
}

impl Architecture for Ernie45 {
    fn gguf(&self) -> &'static str {
        "ernie4_5"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["ernie4_5"]
    }

    fn examples(&self) -> &'static str {
        "ERNIE-4.5-0.3B"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Neighbours
    }

    fn limits(&self) -> Limits {
        Limits { o_bias: Place::Optional, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        Ok(read(self, config)?.build(self))
    }

    fn read_gguf(&'static self, _: &Keys, decoder: Decoder) -> Result<Model> {
        Ok(decoder.build(self))
    }
}

impl Architecture for Ernie45Moe {
    fn gguf(&self) -> &'static str {
        "ernie4_5-moe"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["ernie4_5_moe"]
    }

    fn examples(&self) -> &'static str {
        "ERNIE-4.5-21B-A3B, 300B-A47B"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Neighbours
    }

    fn sample(&'static self) -> Model {
        Decoder { experts: Some(Experts::plain(2, 1, 8)), ..self.decoder().sized() }.build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = read(self, config)?;
        let (count, used, width) =
            (config.size("moe_num_experts")?, config.size("moe_k")?, config.size("moe_intermediate_size")?);
        let number = |key: &str| config.get(key).and_then(serde_json::Value::as_u64).map(|n| n as usize);
        let step = config.maybe_size("moe_layer_interval")?.unwrap_or(1);
        if step != 1 {
            return Err(config::refused(config, "moe_layer_interval other than 1 is not supported"));
        }
        let last = number("moe_layer_end_index").unwrap_or(model.blocks.saturating_sub(1));
        if last + 1 < model.blocks {
            return Err(config::refused(config, "moe_layer_end_index before the last block is not supported"));
        }
        model.dense = number("moe_layer_start_index").unwrap_or(0);
        let shared = number("moe_num_shared_experts").unwrap_or(0);
        let own = mixture::shared(&model, shared * width);
        model.experts = Some(Experts { selection_bias: true, shared: own, ..Experts::plain(count, used, width) });
        model.size_key("interleave_moe_layer_step", step);
        model.size_key("leading_dense_block_count", model.dense);
        model.size_key("expert_feed_forward_length", width);
        model.size_key("expert_shared_count", shared);
        model.size_key("expert_shared_feed_forward_length", shared * width);
        Ok(build(model, step, self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        mixture::read_gguf(keys, &mut model, Experts::plain(0, 0, 0))?;
        let step = keys.maybe_size("interleave_moe_layer_step")?.unwrap_or(1);
        Ok(build(model, step, self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::SELECTION_BIAS => "mlp.moe_statics.e_score_correction_bias",
            _ => deepseek2::source(tensor),
        }
    }

    fn mapping(&self, _: &BlockConfig, tensor: &BlockTensor, _: Kind) -> TensorMapping {
        match tensor.part {
            Part::SELECTION_BIAS => TensorMapping { stored: Some(vec![1, tensor.shape[0]]), ..TensorMapping::AS_IS },
            _ if tensor.source.contains("{}") => TensorMapping::STACKED,
            _ => TensorMapping::AS_IS,
        }
    }
}
