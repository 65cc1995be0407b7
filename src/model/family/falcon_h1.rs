//! TII's Falcon-H1: Mamba-2 and attention side by side in every block, and factors that llama.cpp wants to find in the weights.

use super::mamba2::{self, PREFIXED};
use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::model::gguf_keys::Keys;
use crate::model::half::HalfConfig;
use crate::model::limits::{Limits, Place};
use crate::model::mapping::RowFactors;
use crate::model::mixer::mamba2::Mamba2;
use crate::model::part::RowOrder;
use crate::model::{
    Architecture, BlockConfig, BlockTensor, Kind, Model, OutsideNames, Part, TensorMapping, TensorRole, config,
};
use crate::source::config::Config;

/// Mamba-2 and attention read the same, and an MLP what both have added.
pub struct FalconH1;

fn arrange(decoder: Decoder, mamba: Mamba2) -> Model {
    let norm = decoder.norm_of(Part::ATTN_NORM, "input_layernorm");
    let behind = decoder.norm_of(Part::FFN_NORM, "pre_ff_layernorm");
    let block = |i: usize| BlockConfig {
        halves: vec![
            HalfConfig::new(Some(norm), mamba),
            HalfConfig { parallel: true, ..HalfConfig::new(Some(norm), decoder.attention(i, RowOrder::AsIs)) },
            HalfConfig::new(Some(behind), decoder.mlp()),
        ],
    };
    let blocks = (0..decoder.blocks).map(block).collect();
    Model { blocks, ..decoder.build(&FalconH1) }
}

/// By what the checkpoint's layers are multiplied. What stands in front of a layer goes into its rows, as what stands behind it does.
fn factors(config: &Config, mamba: &Mamba2) -> Result<Vec<(TensorRole, RowFactors)>> {
    let factor = |key: &str| -> Result<f32> { Ok(config.maybe_positive(key)?.unwrap_or(1.0) as f32) };
    let of = |part: Part, by: f32| (TensorRole::Block(part, Kind::Weight), RowFactors::from([(usize::MAX, by)]));
    let attention = factor("attention_in_multiplier")?;
    let list = |key: &str, n: usize| config.get(key).map_or_else(|| Ok(vec![1.0; n]), |_| config.numbers(key, n));
    let (mlp, ssm) = (list("mlp_multipliers", 2)?, list("ssm_multipliers", 5)?);
    let (inner, shared, of_all) = (mamba.inner(), mamba.shared(), factor("ssm_in_multiplier")?);
    let pieces = [inner, inner, shared, shared, mamba.heads];
    let pieces: RowFactors = pieces.into_iter().zip(ssm).map(|(rows, by)| (rows, by * of_all)).collect();
    Ok(vec![
        (TensorRole::Embedding, RowFactors::from([(usize::MAX, factor("embedding_multiplier")?)])),
        (TensorRole::Output, RowFactors::from([(usize::MAX, factor("lm_head_multiplier")?)])),
        of(Part::Q, attention),
        of(Part::K, attention * factor("key_multiplier")?),
        of(Part::V, attention),
        of(Part::O, factor("attention_out_multiplier")?),
        (TensorRole::Block(Part::SSM_IN, Kind::Weight), pieces),
        of(Part::SSM_OUT, factor("ssm_out_multiplier")?),
        of(Part::GATE, mlp[0]),
        of(Part::DOWN, mlp[1]),
    ])
}

impl Architecture for FalconH1 {
    fn gguf(&self) -> &'static str {
        "falcon-h1"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["falcon_h1"]
    }

    fn examples(&self) -> &'static str {
        "Falcon-H1 0.5B to 34B, Falcon-H1R 7B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { explicit_head_dim: true, ..Decoder::PLAIN }
    }

    fn outside(&self) -> OutsideNames {
        OutsideNames {
            embedding: "model.embed_tokens",
            positions: "",
            blocks: "model.layers",
            norm: "model.final_layernorm",
            output: "lm_head",
        }
    }

    fn limits(&self) -> Limits {
        Limits { o_bias: Place::Optional, mlp_bias: Place::Optional, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        let mamba = Mamba2 { heads: 2, head_dim: 4, groups: 1, state: 4, taps: 4, norm: None };
        arrange(self.decoder().sized(), mamba)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = config::read(self, config, false)?;
        model.explicit_head_dim = true;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        for key in ["attention_bias", "mlp_bias", "projectors_bias"] {
            if config.flag(key)? {
                return Err(config::refused(config, &format!("{key} is not supported")));
            }
        }
        let (normed, before) = (config.flag("mamba_rms_norm")?, config.flag("mamba_norm_before_gate")?);
        if normed && before {
            return Err(config::refused(config, "mamba_norm_before_gate is not supported"));
        }
        let usual = config.size("mamba_expand")? * model.hidden;
        let inner = config.maybe_size("mamba_d_ssm")?.unwrap_or(usual);
        let mamba = PREFIXED.read(config, Some(inner), normed.then_some(model.norm_eps))?;
        mamba2::put_keys(&mut model, &mamba);
        let factors = factors(config, &mamba)?;
        let tied = model.tied;
        let model = arrange(model, mamba);
        // With factors of their own, the two matrices of a tied model are not the same.
        let own_output = (tied && factors[0].1 != factors[1].1).then(|| model.embedding().source);
        Ok(Model { factors, tied: tied && own_output.is_none(), output_source: own_output, ..model })
    }

    fn read_gguf(&'static self, keys: &Keys, decoder: Decoder) -> Result<Model> {
        let normed = keys.has("blk.0.ssm_norm.weight");
        let mamba = mamba2::of_gguf(keys, normed.then_some(decoder.norm_eps))?;
        Ok(arrange(decoder, mamba))
    }

    fn ending(&self, tensor: &BlockTensor) -> &'static str {
        // As llama.cpp has it.
        if tensor.part == Part::FFN_NORM { "" } else { tensor.ending }
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::GATE => "feed_forward.gate_proj",
            Part::UP => "feed_forward.up_proj",
            Part::DOWN => "feed_forward.down_proj",
            _ => tensor.source,
        }
    }

    fn mapping(&self, _: &BlockConfig, tensor: &BlockTensor, kind: Kind) -> TensorMapping {
        mamba2::mapping(tensor, kind)
    }
}
