//! LG's K-EXAONE.

use super::deepseek2;
use crate::error::Result;
use crate::model::decoder::{Window, WindowBlocks};
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mixer::attention::HeadNorms;
use crate::model::mixer::experts::Experts;
use crate::model::mixer::routing::Scoring;
use crate::model::{
    Architecture, BlockTensor, Decoder, ExtraBlocks, Model, Part, config, half::HalfConfig, mixer::Mixer, mixture,
    nextn,
};
use crate::source::config::Config;
use crate::source::value::{Array, Value};

/// Norms of queries and keys, experts as DeepSeek V3 has them; three blocks of four see a window, and the others turn nothing.
pub struct ExaoneMoe;

/// The key that marks blocks with a window.
const PATTERN: &str = "attention.sliding_window_pattern";

/// Every so many-th block sees everything, where nothing else is said.
const PERIOD: usize = 4;

fn build(decoder: Decoder, architecture: &'static dyn Architecture) -> Model {
    let mut model = decoder.build(architecture);
    for (_, attention) in model.attentions().filter(|(_, attention)| attention.window.is_none()) {
        attention.rope = None;
    }
    model
}

impl Architecture for ExaoneMoe {
    fn gguf(&self) -> &'static str {
        "exaone-moe"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["exaone_moe"]
    }

    fn examples(&self) -> &'static str {
        "K-EXAONE 236B-A23B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { head_norms: HeadNorms::PerHead, explicit_head_dim: true, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits { output: Place::Needed, rope_factors: true, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        let window = Some(Window::but_every(4, PERIOD));
        build(Decoder { blocks: 4, window, experts: deepseek2::small().experts, ..self.decoder().sized() }, self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        if config.flag("tie_word_embeddings")? {
            return Err(config::refused(config, "tie_word_embeddings is not supported"));
        }
        if config.maybe_string("scoring_func")?.is_some_and(|own| own != "sigmoid") {
            return Err(config::refused(config, "scoring_func other than 'sigmoid' is not supported"));
        }
        let n = model.blocks;
        let Some(tokens) = config.maybe_size("sliding_window")? else {
            return Err(config::refused(config, "no sliding_window is not supported"));
        };
        let kinds = config::layer_types(config, n, &["sliding_attention", "full_attention"])?;
        let local: Vec<bool> = match (kinds, config.maybe_string("sliding_window_pattern")) {
            (Some(kinds), _) => kinds.iter().map(|kind| kind == "sliding_attention").collect(),
            // As EXAONE 4 says it: a letter for each block of a period, and the last block sees everything.
            (None, Ok(Some(letters))) if !letters.is_empty() => {
                let letters = letters.as_bytes();
                (0..n).map(|i| letters[i % letters.len()] == b'L' && i + 1 != n).collect()
            }
            (None, _) => {
                let period = config.maybe_size("sliding_window_pattern")?.unwrap_or(PERIOD);
                (0..n).map(|i| !(i + 1).is_multiple_of(period)).collect()
            }
        };
        model.explicit_head_dim = true;
        model.dense = config::leading_dense(config, n, 1)?;
        model.experts = Some(mixture::read(config, &model, true)?);
        let Some(shared) = model.experts.and_then(|experts| experts.shared) else {
            return Err(config::refused(config, "no num_shared_experts is not supported"));
        };
        mixture::put_keys(&mut model);
        model.size_key("expert_shared_feed_forward_length", shared.width);
        model.size_key("attention.sliding_window", tokens);
        model.key(PATTERN, Value::Array(Array::Bool(local.clone())));
        model.window = Some(Window { tokens, blocks: WindowBlocks::Marked(local) });
        Ok(build(model, self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        mixture::read_gguf(keys, &mut model, Experts { scoring: Scoring::Sigmoid, ..Experts::plain(0, 0, 0) })?;
        let usual = || (0..model.blocks).map(|i| !(i + 1).is_multiple_of(PERIOD)).collect();
        let local = keys.marks(PATTERN)?.unwrap_or_else(usual);
        let tokens = keys.size("attention.sliding_window")?;
        model.window = Some(Window { tokens, blocks: WindowBlocks::Marked(local) });
        Ok(build(model, self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::SELECTION_BIAS => "mlp.e_score_correction_bias",
            _ => deepseek2::source(tensor),
        }
    }

    /// The layers that predict several tokens have no experts.
    fn extra_blocks(&self, model: &Model, has: &dyn Fn(&str) -> bool) -> Option<ExtraBlocks> {
        let mut block = model.blocks.last()?.clone();
        let ffn = model.blocks.iter().flat_map(|block| block.mixers()).find_map(|mixer| match mixer {
            Mixer::Mlp(mlp) => Some(**mlp),
            _ => None,
        });
        let second = block.halves.pop()?;
        block.halves.push(HalfConfig { mixer: ffn?.into(), ..second });
        nextn::blocks(model, &block, has)
    }
}
