//! Ai2's OLMo 2.

use crate::error::Result;
use crate::model::decoder::{Window, WindowBlocks};
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mixer::attention::HeadNorms;
use crate::model::rope::Rope;
use crate::model::{Architecture, BlockTensor, Decoder, Model, Part, config};
use crate::source::config::Config;
use crate::source::value::{Array, Value};

/// Norms behind attention and MLP instead of in front of them, and norms of queries and keys over all heads at once.
pub struct Olmo2;

/// One block of four sees everything in OLMo 3.
const PERIOD: usize = 4;

const PATTERN: &str = "attention.sliding_window_pattern";

impl Architecture for Olmo2 {
    fn gguf(&self) -> &'static str {
        "olmo2"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["olmo2", "olmo3"]
    }

    fn examples(&self) -> &'static str {
        "OLMo 2 1B to 32B, OLMo 3 7B and 32B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { pre_norms: false, post_norms: true, head_norms: HeadNorms::Whole, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits { output: Place::Needed, head_dim: false, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        if let Some(tokens) = config
            .maybe_size("sliding_window")?
            .filter(|_| config.string("model_type").is_ok_and(|kind| kind == "olmo3"))
        {
            let types = config::layer_types(config, model.blocks, &["sliding_attention", "full_attention"])?;
            let local: Vec<bool> = match types {
                Some(types) => types.iter().map(|kind| kind == "sliding_attention").collect(),
                None => (0..model.blocks).map(|i| !(i + 1).is_multiple_of(PERIOD)).collect(),
            };
            model.size_key("attention.sliding_window", tokens);
            model.key(PATTERN, Value::Array(Array::Bool(local.clone())));
            model.window = Some(Window { tokens, blocks: WindowBlocks::Marked(local) });
            let usual = 500_000.0;
            let bases = [config.maybe_positive("rope_theta")?.unwrap_or(usual), usual];
            let [rope, local] = Rope::by_kind(config, model.head_dim, bases)?;
            if local != Rope::plain(rope.base, rope.rotary) {
                let what =
                    "rope_parameters of sliding_attention with a scaling or a rope_theta of its own is not supported";
                return Err(config::refused(config, what));
            }
            (model.rope, model.local_rope) = (Some(rope), Some(local));
        }
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut decoder: Decoder) -> Result<Model> {
        if let Some(tokens) = keys.maybe_size("attention.sliding_window")? {
            let blocks = keys.marks(PATTERN)?.map_or(WindowBlocks::ButEvery(PERIOD), WindowBlocks::Marked);
            decoder.window = Some(Window { tokens, blocks });
            // Nothing is stretched there.
            let base = keys.maybe_number("rope.freq_base_swa")?;
            decoder.local_rope = decoder.rope.as_ref().map(|rope| Rope::plain(base.unwrap_or(rope.base), rope.rotary));
        }
        Ok(decoder.build(self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::FFN_POST_NORM => "post_feedforward_layernorm",
            _ => tensor.source,
        }
    }
}
