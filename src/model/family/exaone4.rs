//! LG's EXAONE 4.

use crate::error::Result;
use crate::model::decoder::{Window, WindowBlocks};
use crate::model::gguf_keys::Keys;
use crate::model::limits::Limits;
use crate::model::mixer::attention::HeadNorms;
use crate::model::rope::Rope;
use crate::model::{Architecture, BlockTensor, Decoder, Model, Part, config};
use crate::source::config::Config;
use crate::source::value::{Array, Value};

/// Norms behind attention and MLP instead of in front of them, norms of each query and key head; in the 32B model three blocks of four
/// see a window, and the others turn nothing.
pub struct Exaone4;

/// llama.cpp looks at windows in models of so many blocks alone.
const LARGE: usize = 64;

const PATTERN: &str = "attention.sliding_window_pattern";

fn build(mut model: Decoder, window: Option<Window>, architecture: &'static dyn Architecture) -> Model {
    model.window = window;
    let windowed = model.window.is_some();
    let mut model = model.build(architecture);
    for half in model.blocks.iter_mut().flat_map(|block| &mut block.halves) {
        if let crate::model::mixer::Mixer::Attention(own) = &mut half.mixer
            && windowed
            && own.window.is_none()
        {
            own.rope = None;
        }
    }
    model
}

impl Architecture for Exaone4 {
    fn gguf(&self) -> &'static str {
        "exaone4"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["exaone4"]
    }

    fn examples(&self) -> &'static str {
        "EXAONE 4.0 1.2B and 32B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { pre_norms: false, post_norms: true, head_norms: HeadNorms::PerHead, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits { rope_factors: true, head_dim: false, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        model.explicit_head_dim = true;
        config.ignore(&["sliding_window_pattern"]);
        let Some(tokens) = config.maybe_size("sliding_window")? else {
            config::layer_types(config, model.blocks, &["full_attention"])?;
            return Ok(build(model, None, self));
        };
        if model.blocks != LARGE {
            return Err(config::refused(config, "sliding_window in a model of other than 64 blocks is not supported"));
        }
        let types = config::layer_types(config, model.blocks, &["sliding_attention", "full_attention"])?;
        let local: Vec<bool> = match types {
            Some(types) => types.iter().map(|kind| kind == "sliding_attention").collect(),
            None => {
                let period = config.maybe_size("sliding_window_pattern")?.unwrap_or(4);
                (0..model.blocks).map(|i| !(i + 1).is_multiple_of(period)).collect()
            }
        };
        model.size_key("attention.sliding_window", tokens);
        config::put_local_base(config, &mut model)?;
        model.key(PATTERN, Value::Array(Array::Bool(local.clone())));
        Ok(build(model, Some(Window { tokens, blocks: WindowBlocks::Marked(local) }), self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        let base = keys.maybe_number("rope.freq_base_swa")?;
        let local = |rope: &Rope| Some(Rope { base: base?, ..rope.clone() });
        model.local_rope = model.rope.as_ref().and_then(local);
        let tokens = keys.maybe_size("attention.sliding_window")?.filter(|_| model.blocks == LARGE);
        let marks = keys.marks(PATTERN)?;
        let blocks = marks.map_or(WindowBlocks::ButEvery(4), WindowBlocks::Marked);
        Ok(build(model, tokens.map(|tokens| Window { tokens, blocks }), self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::FFN_POST_NORM => "post_feedforward_layernorm",
            _ => tensor.source,
        }
    }
}
