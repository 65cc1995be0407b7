//! The Llama family: Llama 1 to 3, Mistral, Mixtral, and the many checkpoints that share their `model_type`.

use super::form::{Experts, Window};
use super::gguf_keys::Keys;
use super::{Architecture, Form, Kind, Made, Model, Part, QueryRows, sizes};
use crate::error::Result;
use crate::source::config::Config;

/// Pre-norm blocks with RMS norm, rotary grouped-query attention and a gated SiLU MLP.
pub struct Llama;

impl Architecture for Llama {
    fn gguf(&self) -> &'static str {
        "llama"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["llama", "mistral", "mixtral"]
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Interleaved
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = sizes::read(self, config, false)?;
        if let Some(count) = config.maybe_size("num_local_experts")? {
            model.form.experts = Some(Experts::plain(count, config.size("num_experts_per_tok")?, model.ffn));
        }
        sizes::check_activation(config, &["hidden_act"], model.form.mlp.activation, "silu")?;
        // Mistral 0.1; llama.cpp ignores it, which only matters in contexts that are longer.
        let window = config.maybe_size("sliding_window")?.map(|tokens| Window { tokens, period: None });
        Ok(Model { form: Form { mlp_bias: config.flag("mlp_bias")?, window, ..model.form }, ..model })
    }

    fn read_gguf(&self, keys: &Keys, model: &mut Model) -> Result<()> {
        if let Some(count) = keys.maybe_size("expert_count")? {
            model.form.experts = Some(Experts::plain(count, keys.size("expert_used_count")?, model.ffn));
        }
        Ok(())
    }

    fn source(&self, part: Part) -> &'static str {
        match part {
            Part::Router => "block_sparse_moe.gate",
            Part::ExpertGates => "block_sparse_moe.experts.{}.w1",
            Part::ExpertUps => "block_sparse_moe.experts.{}.w3",
            Part::ExpertDowns => "block_sparse_moe.experts.{}.w2",
            _ => part.usual_source(),
        }
    }

    fn made(&self, _: &Model, part: Part, _: Kind) -> Made {
        if part.is_of_experts() { Made::Stacked } else { Made::AsIs }
    }
}
