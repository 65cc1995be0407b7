//! OpenAI's GPT-2.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::mapping::Pick;
use crate::model::mixer::mlp::MlpLayers;
use crate::model::{
    Architecture, BlockConfig, BlockTensor, Decoder, Kind, Model, Norm, OutsideNames, Part, TensorMapping, config,
};
use crate::source::config::Config;
use llmq_kernels::elementwise::Activation;

/// Learned positions, norms that subtract the mean, q, k and v in one layer, and layers that are stored column by column.
pub struct Gpt2;

impl Architecture for Gpt2 {
    fn gguf(&self) -> &'static str {
        "gpt2"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["gpt2"]
    }

    fn examples(&self) -> &'static str {
        "GPT-2, DistilGPT-2"
    }

    fn decoder(&self) -> Decoder {
        Decoder {
            norm: Norm::Layer,
            positions: true,
            fused_qkv: true,
            qkv_bias: true,
            o_bias: true,
            mlp_bias: true,
            activation: Activation::GeluTanh,
            mlp: MlpLayers::Plain,
            ..Decoder::PLAIN
        }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let (hidden, heads) = (config.size("n_embd")?, config.size("n_head")?);
        config::check_activation(config, &["activation_function"], Activation::GeluTanh, "gelu_new")?;
        if config.flag("scale_attn_by_inverse_layer_idx")? {
            return Err(config::refused(config, "scale_attn_by_inverse_layer_idx is not supported"));
        }
        let tied = config.maybe_flag("tie_word_embeddings")?.unwrap_or(true);
        let decoder = Decoder {
            blocks: config.size("n_layer")?,
            hidden,
            vocab: config.size("vocab_size")?,
            context: config.size("n_positions")?,
            heads,
            kv_heads: heads,
            head_dim: config::head_dim(config, hidden, heads, None)?,
            explicit_head_dim: false,
            ffn: config.maybe_size("n_inner")?.unwrap_or(4 * hidden),
            norm_eps: config.positive("layer_norm_epsilon")? as f32,
            tied,
            ..self.decoder()
        };
        Ok(decoder.build(self))
    }

    fn read_gguf(&'static self, _: &Keys, decoder: Decoder) -> Result<Model> {
        Ok(Decoder { rope: None, ..decoder }.build(self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::ATTN_NORM => "ln_1",
            Part::QKV => "attn.c_attn",
            Part::O => "attn.c_proj",
            Part::FFN_NORM => "ln_2",
            Part::UP => "mlp.c_fc",
            Part::DOWN => "mlp.c_proj",
            _ => tensor.source,
        }
    }

    fn outside(&self) -> OutsideNames {
        OutsideNames {
            embedding: "transformer.wte",
            positions: "transformer.wpe",
            blocks: "transformer.h",
            norm: "transformer.ln_f",
            output: "lm_head",
        }
    }

    fn mapping(&self, _: &BlockConfig, tensor: &BlockTensor, kind: Kind) -> TensorMapping {
        match (tensor.part, kind) {
            (Part::QKV | Part::O | Part::UP | Part::DOWN, Kind::Weight) => Pick::Transposed.into(),
            _ => TensorMapping::AS_IS,
        }
    }
}
