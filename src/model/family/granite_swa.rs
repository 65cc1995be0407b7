//! IBM's Granite with windows: Swash.

use super::granite;
use crate::error::Result;
use crate::model::decoder::{Window, WindowBlocks};
use crate::model::gguf_keys::Keys;
use crate::model::limits::Limits;
use crate::model::rope::Rope;
use crate::model::{Architecture, Decoder, Model, QueryRows, config};
use crate::source::config::Config;
use crate::source::value::{Array, Value};

/// [`granite::Granite`] in which three blocks of four see a window, each head has a score of nothing, and some blocks turn nothing.
pub struct GraniteSwa;

/// Every so many-th block sees everything, the first one among them, where nothing else is said.
const PERIOD: usize = 4;

/// The key that marks blocks with a window.
const PATTERN: &str = "attention.sliding_window_pattern";

/// The key that marks blocks that turn queries and keys.
const TURNED: &str = "attention.rope_pattern";

fn build(decoder: Decoder, turned: &[bool], architecture: &'static dyn Architecture) -> Model {
    let mut model = decoder.build(architecture);
    for (_, attention) in model.attentions().filter(|(i, _)| !turned[*i]) {
        attention.rope = None;
    }
    model
}

/// The base of the rotary embedding of all blocks that turn, and which of them do.
fn bases(config: &Config, blocks: usize) -> Result<(Option<f64>, Vec<bool>)> {
    let wrong = || config.unsupported(&format!("layer_rope_theta is not a list of {blocks} numbers"));
    if let Some(list) = config.get("layer_rope_theta") {
        let all: Vec<f64> = list.as_array().into_iter().flatten().filter_map(|base| base.as_f64()).collect();
        if all.len() != blocks || all.iter().any(|base| *base < 0.0) {
            return Err(wrong());
        }
        let first = all.iter().copied().find(|base| *base > 0.0);
        if all.iter().any(|&base| base > 0.0 && Some(base) != first) {
            return Err(config::refused(config, "layer_rope_theta with several bases is not supported"));
        }
        return Ok((first, all.iter().map(|base| *base > 0.0).collect()));
    }
    if let Some(list) = config.get("no_rope_layers").and_then(|list| list.as_array()) {
        let turned: Vec<bool> = list.iter().filter_map(|on| on.as_u64()).map(|on| on != 0).collect();
        return if turned.len() == blocks { Ok((None, turned)) } else { Err(wrong()) };
    }
    Ok((None, vec![true; blocks]))
}

impl Architecture for GraniteSwa {
    fn gguf(&self) -> &'static str {
        "granite_swa"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["granite_swa"]
    }

    fn examples(&self) -> &'static str {
        "Granite Swash 2B"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Interleaved
    }

    fn decoder(&self) -> Decoder {
        Decoder { sinks: true, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits::of_llama(&self.decoder())
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = granite::read(self, config)?;
        let n = model.blocks;
        let kinds = config::layer_types(config, n, &["sliding_attention", "full_attention"])?;
        let local: Vec<bool> = match kinds {
            Some(kinds) => kinds.iter().map(|kind| kind == "sliding_attention").collect(),
            None => (0..n).map(|i| !i.is_multiple_of(PERIOD)).collect(),
        };
        let tokens = config.maybe_size("sliding_window")?.unwrap_or(128);
        let (base, turned) = bases(config, n)?;
        if let Some((rope, base)) = model.rope.as_mut().zip(base) {
            *rope = Rope { base, ..rope.clone() };
        }
        model.size_key("attention.sliding_window", tokens);
        model.key(PATTERN, Value::Array(Array::Bool(local.clone())));
        if turned.contains(&false) {
            model.key(TURNED, Value::Array(Array::Bool(turned.clone())));
        }
        model.window = Some(Window { tokens, blocks: WindowBlocks::Marked(local) });
        Ok(build(model, &turned, self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        granite::read_factors(keys, &mut model)?;
        let local = keys.marks(PATTERN)?.ok_or_else(|| keys.wrong("there is no list of blocks with a window"))?;
        let tokens = keys.size("attention.sliding_window")?;
        model.window = Some(Window { tokens, blocks: WindowBlocks::Marked(local) });
        let turned = keys.marks(TURNED)?.unwrap_or_else(|| vec![true; model.blocks]);
        Ok(build(model, &turned, self))
    }
}
