//! IBM's Granite 4 with Mamba-2: most blocks have it instead of attention, and an MLP or experts behind either.

use super::granite;
use super::mamba2::{self, PREFIXED};
use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mixer::Mixer;
use crate::model::mixer::experts::Experts;
use crate::model::mixer::mamba2::Mamba2;
use crate::model::{Architecture, BlockConfig, BlockTensor, Kind, Model, QueryRows, TensorMapping, config, mixture};
use crate::source::config::Config;
use crate::source::value::Value;

/// Granite's factors, Mamba-2 in most blocks, and usually no rotary embedding.
pub struct GraniteHybrid;

/// Puts Mamba-2 in the place of attention where a block has that, and takes away rotary embedding where there is none.
fn arrange(model: Decoder, attends: &[bool], turns: bool, mamba: Mamba2) -> Model {
    let mut model = model.build(&GraniteHybrid);
    for (block, attends) in model.blocks.iter_mut().zip(attends) {
        match &mut block.halves[0].mixer {
            mixer if !attends => *mixer = mamba.into(),
            Mixer::Attention(attention) if !turns => attention.rope = None,
            _ => {}
        }
    }
    model
}

/// Rotary embedding is used.
const TURNS: &str = "rope.scaling.finetuned";
const KV_HEADS: &str = "attention.head_count_kv";

impl Architecture for GraniteHybrid {
    fn gguf(&self) -> &'static str {
        "granitehybrid"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["granitemoehybrid"]
    }

    fn examples(&self) -> &'static str {
        "Granite 4.0 h-micro, h-tiny, h-small"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Interleaved
    }

    fn limits(&self) -> Limits {
        Limits { o_bias: Place::Optional, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        let mamba = Mamba2 { heads: 2, head_dim: 8, groups: 1, state: 4, taps: 4, norm: Some(1e-5) };
        let decoder = Decoder { blocks: 2, ..self.decoder().sized() };
        let experts = Experts { shared: mixture::shared(&decoder, 8), ..Experts::plain(2, 1, 8) };
        arrange(Decoder { experts: Some(experts), ..decoder }, &[false, true], false, mamba)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let blocks = config.size("num_hidden_layers")?;
        let kinds = config::layer_types(config, blocks, &["mamba", "linear_attention", "attention", "full_attention"])?;
        let kinds = kinds.ok_or_else(|| config.unsupported("there is no key 'layer_types'"))?;
        let attends: Vec<bool> = kinds.iter().map(|kind| kind == "attention" || kind == "full_attention").collect();
        if attends.iter().all(|attends| *attends) {
            return granite::read_hybrid_dense(config);
        }
        let mut model = granite::read(self, config)?;
        if config.size("mamba_expand")? != 2 {
            return Err(config::refused(config, "mamba_expand other than 2 is not supported"));
        }
        let mamba = PREFIXED.read(config, Some(2 * model.hidden), Some(model.norm_eps))?;
        let turns = config.maybe_string("position_embedding_type")?.as_deref() == Some("rope");
        if !turns {
            model.context = mamba2::ANY_CONTEXT;
        }
        let shared = config::count(config, "shared_intermediate_size")?.unwrap_or(0);
        match config::count(config, "num_local_experts")? {
            None | Some(0) => {
                // The MLP is called the shared one there, too.
                model.ffn = config.size("shared_intermediate_size")?;
                config.ignore(&["num_experts_per_tok"]);
            }
            Some(count) => {
                let experts = Experts::plain(count, config.size("num_experts_per_tok")?, model.ffn);
                model.experts = Some(Experts { shared: mixture::shared(&model, shared), ..experts });
                model.size_key("expert_shared_feed_forward_length", shared);
            }
        }
        mamba2::put_keys(&mut model, &mamba);
        model.key(TURNS, Value::Bool(turns));
        model.key(KV_HEADS, mamba2::per_block(model.kv_heads, attends.iter().copied()));
        Ok(arrange(model, &attends, turns, mamba))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        let kv_heads = keys.per_block(KV_HEADS)?.ok_or_else(|| keys.wrong(&format!("there is no list {KV_HEADS}")))?;
        if kv_heads.iter().any(|&n| n != 0 && n != model.kv_heads as u64) {
            return Err(keys.wrong(&format!("several numbers in {KV_HEADS} are not supported")));
        }
        let attends: Vec<bool> = kv_heads.iter().map(|&n| n > 0).collect();
        let turns = keys.maybe(TURNS).and_then(Value::as_bool).unwrap_or(true);
        granite::read_factors(keys, &mut model)?;
        mixture::read_gguf(keys, &mut model, Experts::plain(0, 0, 0))?;
        let mamba = mamba2::of_gguf(keys, Some(model.norm_eps))?;
        Ok(arrange(model, &attends, turns, mamba))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        granite::source(tensor)
    }

    fn mapping(&self, _: &BlockConfig, tensor: &BlockTensor, kind: Kind) -> TensorMapping {
        match mamba2::source(tensor.part) {
            Some(_) => mamba2::mapping(tensor, kind),
            None => granite::mapping(tensor),
        }
    }
}
