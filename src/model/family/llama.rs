//! The Llama family: Llama 1 to 3, Mistral, Mixtral, and the many checkpoints that share their `model_type`.

use crate::error::Result;
use crate::model::decoder::Window;
use crate::model::gguf_keys::Keys;
use crate::model::limits::Limits;
use crate::model::mixer::experts::Experts;
use crate::model::{Architecture, BlockTensor, Decoder, Model, Part, QueryRows, config};
use crate::source::config::Config;

/// Pre-norm blocks with RMS norm, rotary grouped-query attention and a gated SiLU MLP.
pub struct Llama;

impl Architecture for Llama {
    fn gguf(&self) -> &'static str {
        "llama"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["llama", "mistral", "mixtral", "internlm3"]
    }

    fn examples(&self) -> &'static str {
        "Llama 2 to 3.3, Mistral 7B, Nemo, Mixtral, SmolLM 2, MiniCPM5, InternLM3, DeepSeek R1 distills"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Interleaved
    }

    fn limits(&self) -> Limits {
        Limits { windows: false, ..Limits::of_llama(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = config::read(self, config, false)?;
        if let Some(count) = config.maybe_size("num_local_experts")? {
            model.experts = Some(Experts::plain(count, config.size("num_experts_per_tok")?, model.ffn));
        }
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        model.mlp_bias = config.flag("mlp_bias")?;
        if config.string("model_type")? == "internlm3" {
            // As published; transformers saves it with Llama's names.
            let bias = config.flag("bias")?;
            model.qkv_bias |= config.flag("qkv_bias")?;
            model.o_bias |= bias;
            model.mlp_bias |= bias;
        }
        // Mistral 0.1 and Mixtral; llama.cpp ignores it, which only matters in contexts that are longer.
        if ["mistral", "mixtral"].contains(&config.string("model_type")?.as_str()) {
            model.window = config.maybe_size("sliding_window")?.map(Window::everywhere);
        }
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut decoder: Decoder) -> Result<Model> {
        if let Some(count) = keys.maybe_size("expert_count")? {
            decoder.experts = Some(Experts::plain(count, keys.size("expert_used_count")?, decoder.ffn));
        }
        Ok(decoder.build(self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::ROUTER => "block_sparse_moe.gate",
            Part::EXPERT_GATES => "block_sparse_moe.experts.{}.w1",
            Part::EXPERT_UPS => "block_sparse_moe.experts.{}.w3",
            Part::EXPERT_DOWNS => "block_sparse_moe.experts.{}.w2",
            _ => tensor.source,
        }
    }
}
