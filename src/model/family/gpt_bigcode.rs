//! BigCode's StarCoder and SantaCoder.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::mixer::mlp::MlpLayers;
use crate::model::{Architecture, BlockTensor, Decoder, Model, Norm, OutsideNames, Part, config};
use crate::source::config::Config;
use llmq_kernels::elementwise::Activation;

/// GPT-2 with one head of keys and values.
pub struct GptBigCode;

impl Architecture for GptBigCode {
    fn gguf(&self) -> &'static str {
        "starcoder"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["gpt_bigcode"]
    }

    fn examples(&self) -> &'static str {
        "StarCoder, StarCoderBase 1B to 15B, SantaCoder"
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
        Decoder { kv_heads: 1, ..self.decoder().sized() }.build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let (hidden, heads) = (config.size("n_embd")?, config.size("n_head")?);
        config::check_activation(config, &["activation_function"], Activation::GeluTanh, "gelu_pytorch_tanh")?;
        for key in ["multi_query", "scale_attn_weights"] {
            if config.get(key).is_some() && !config.flag(key)? {
                return Err(config::refused(config, &format!("{key} false is not supported")));
            }
        }
        let tied = config.get("tie_word_embeddings").map_or(Ok(true), |_| config.flag("tie_word_embeddings"))?;
        let decoder = Decoder {
            blocks: config.size("n_layer")?,
            hidden,
            vocab: config.size("vocab_size")?,
            context: config.size("n_positions")?,
            heads,
            kv_heads: 1,
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
}
