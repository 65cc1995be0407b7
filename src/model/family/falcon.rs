//! TII's Falcon 7B to 180B, and Falcon 2.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::mapping::Pick;
use crate::model::mixer::Mixer;
use crate::model::mixer::mlp::MlpLayers;
use crate::model::{
    Architecture, BlockConfig, BlockTensor, Decoder, Kind, Model, Norm, OutsideNames, Part, TensorMapping, config,
};
use crate::source::config::Config;
use llmq_kernels::elementwise::Activation;

/// Attention and MLP side by side, behind one norm that subtracts the mean or one each, and q, k and v in one layer whose rows are
/// sorted by key heads in the checkpoint.
pub struct Falcon;

impl Part {
    /// The norm in front of attention, where the MLP has one of its own.
    const ATTN_NORM_2: Part = Part("attn_norm_2");
}

/// The model; `norms`: attention and MLP have a norm each, and that of the MLP has the usual name.
fn build(decoder: Decoder, norms: bool, architecture: &'static dyn Architecture) -> Model {
    let of_mlp = decoder.norm_of(Part::ATTN_NORM, "ln_mlp");
    let of_attention = decoder.norm_of(Part::ATTN_NORM_2, "ln_attn");
    let mut model = Decoder { shared_norm: true, ..decoder }.build(architecture);
    for block in model.blocks.iter_mut().filter(|_| norms) {
        for (half, norm) in block.halves.iter_mut().zip([of_attention, of_mlp]) {
            half.norm = Some(norm);
        }
    }
    model
}

impl Architecture for Falcon {
    fn gguf(&self) -> &'static str {
        "falcon"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["falcon"]
    }

    fn examples(&self) -> &'static str {
        "Falcon 7B, 40B, 180B, Falcon 2 11B"
    }

    fn decoder(&self) -> Decoder {
        Decoder {
            norm: Norm::Layer,
            parallel: true,
            fused_qkv: true,
            activation: Activation::Gelu,
            mlp: MlpLayers::Plain,
            ..Decoder::PLAIN
        }
    }

    fn sample(&'static self) -> Model {
        build(self.decoder().sized(), false, self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let (hidden, heads) = (config.size("hidden_size")?, config.size("num_attention_heads")?);
        let newer = config.flag("new_decoder_architecture")?;
        let flag = |key: &str, usual: bool| config.get(key).map_or(Ok(usual), |_| config.flag(key));
        let kv_heads = match (newer, flag("multi_query", true)?) {
            (true, _) => config.maybe_size("num_kv_heads")?.unwrap_or(heads),
            (false, true) => {
                config.ignore(&["num_kv_heads"]);
                1
            }
            (false, false) => heads,
        };
        let usual = serde_json::json!({
            "intermediate_size": 4 * hidden, "max_position_embeddings": 2048, "layer_norm_epsilon": 1e-5,
        });
        let config = config.clone().with("num_key_value_heads", kv_heads.into()).with_defaults(usual);
        let config = &match config.get("ffn_hidden_size").cloned() {
            Some(width) => config.with("intermediate_size", width),
            None => config.with("intermediate_size", (4 * hidden).into()),
        };
        let mut model = config::read(self, config, true)?;
        config::check_activation(config, &["activation"], Activation::Gelu, "gelu")?;
        for (key, wanted) in [("alibi", false), ("bias", false), ("parallel_attn", true)] {
            if flag(key, wanted)? != wanted && !(newer && key == "parallel_attn") {
                return Err(config::refused(config, &format!("{key} {} is not supported", !wanted)));
            }
        }
        model.explicit_head_dim = false;
        let norms = newer && config.maybe_size("num_ln_in_parallel_attn")?.unwrap_or(2) == 2;
        model.key("tensor_data_layout", "jploski".into());
        Ok(build(model, norms, self))
    }

    fn read_gguf(&'static self, keys: &Keys, decoder: Decoder) -> Result<Model> {
        Ok(build(decoder, keys.has("blk.0.attn_norm_2.weight"), self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::QKV => "self_attention.query_key_value",
            Part::O => "self_attention.dense",
            Part::UP => "mlp.dense_h_to_4h",
            Part::DOWN => "mlp.dense_4h_to_h",
            _ => tensor.source,
        }
    }

    fn outside(&self) -> OutsideNames {
        OutsideNames {
            embedding: "transformer.word_embeddings",
            positions: "",
            blocks: "transformer.h",
            norm: "transformer.ln_f",
            output: "lm_head",
        }
    }

    fn mapping(&self, block: &BlockConfig, tensor: &BlockTensor, _: Kind) -> TensorMapping {
        let (Part::QKV, Mixer::Attention(own)) = (tensor.part, &block.halves[0].mixer) else {
            return TensorMapping::AS_IS;
        };
        // Queries that share a key head, the key, the value; and then those of the next.
        let (shared, d) = (own.heads / own.kv_heads, own.head_dim);
        let place = |group: usize, i: usize| (group * (shared + 2) + i) * d;
        let queries = (0..own.heads).map(|head| place(head / shared, head % shared));
        let others = |i: usize| (0..own.kv_heads).map(move |group| place(group, shared + i));
        let firsts = queries.chain(others(0)).chain(others(1));
        let rows: Vec<usize> = firsts.flat_map(|first| first..first + d).collect();
        let of = rows.len();
        Pick::Rows { rows: rows.into(), of }.into()
    }
}
