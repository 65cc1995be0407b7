//! Muse Glimmer.

use crate::error::Result;
use crate::model::decoder::{Window, WindowBlocks};
use crate::model::gguf_keys::Keys;
use crate::model::limits::{Limits, Place};
use crate::model::mapping::{Change, TensorMapping};
use crate::model::mixer::Mixer;
use crate::model::mixer::attention::{Gate, HeadNorms};
use crate::model::rope::{Rope, Scaling};
use crate::model::{Architecture, BlockConfig, BlockTensor, Decoder, Kind, Model, Part, QueryRows, config};
use crate::source::config::Config;
use crate::source::value::{Array, Value};
use llmq_kernels::elementwise::Activation;

/// Norms in front of and behind attention and MLP, one of embedded tokens, a gate on what heads give, queries and keys of one length, and
/// windows in three blocks of four, where alone something is turned.
pub struct MuseGlimmer;

const PATTERN: &str = "attention.sliding_window_pattern";

/// The ε of norms behind attention and MLP, which is in llama.cpp's code.
const POST_EPS: f32 = 1e-8;

/// What queries are multiplied by behind their norm, which has no gain, where the configuration does not say.
const QUERIES: f64 = 3.87;

fn build(
    mut model: Decoder,
    tokens: usize,
    local: Vec<bool>,
    queries: f32,
    architecture: &'static dyn Architecture,
) -> Model {
    model.window = Some(Window { tokens, blocks: WindowBlocks::Marked(local.clone()) });
    let eps = model.norm_eps;
    let mut model = model.build(architecture);
    model.embedding_norm = Some(eps);
    for (block, local) in model.blocks.iter_mut().zip(local) {
        for half in &mut block.halves {
            half.post_norm.iter_mut().for_each(|norm| norm.eps = POST_EPS);
            if let Mixer::Attention(own) = &mut half.mixer {
                own.made_up_gain = Some(queries);
                own.gate = Gate::Each(Activation::Sigmoid);
                own.rope = own.rope.take().filter(|_| local);
            }
        }
    }
    model
}

impl Architecture for MuseGlimmer {
    fn gguf(&self) -> &'static str {
        "muse-glimmer"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["muse_glimmer", "muse_glimmer_text"]
    }

    fn examples(&self) -> &'static str {
        "Muse-Glimmer-30B"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Interleaved
    }

    fn decoder(&self) -> Decoder {
        Decoder { head_norms: HeadNorms::PerHead, post_norms: true, explicit_head_dim: true, ..Decoder::PLAIN }
    }

    fn limits(&self) -> Limits {
        Limits { output: Place::Needed, ..Limits::of(&self.decoder()) }
    }

    fn sample(&'static self) -> Model {
        build(self.decoder().sized(), 4, vec![true], 1.0, self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_activation", "hidden_act"], model.activation, "silu")?;
        model.explicit_head_dim = true;
        let n = model.blocks;
        let types = config::layer_types(config, n, &["sliding_attention", "full_attention"])?;
        let local: Vec<bool> = match types {
            Some(types) => types.iter().map(|kind| kind == "sliding_attention").collect(),
            // Counted from the last.
            None => (0..n).map(|i| !(n - 1 - i).is_multiple_of(4)).collect(),
        };
        if model.rope.as_ref().is_some_and(|rope| rope.scaling != Scaling::None) {
            return Err(config::refused(config, "rope_parameters with a scaling are not supported"));
        }
        if config.maybe_positive("post_norm_eps")?.is_some_and(|eps| eps as f32 != POST_EPS) {
            return Err(config::refused(config, "post_norm_eps other than 1e-8 is not supported"));
        }
        if let (Some(list), Some(rope)) = (config.get("layer_rope_theta").and_then(|list| list.as_array()), &model.rope)
        {
            let fits = |(i, base): (usize, &serde_json::Value)| {
                base.as_f64() == Some(if local.get(i) == Some(&true) { rope.base } else { 0.0 })
            };
            if list.len() != n || !list.iter().enumerate().all(fits) {
                let what =
                    "layer_rope_theta is only supported with one base in blocks with a window, and 0 in the others";
                return Err(config::refused(config, what));
            }
        }
        let tokens = config.maybe_size("sliding_window")?.unwrap_or(2048);
        model.logit_scale = config.maybe_positive("output_multiplier")?.unwrap_or(1.0) as f32;
        model.logit_cap = config.maybe_positive("final_logit_softcapping")?.map(|x| x as f32);
        model.key("logit_scale", Value::F32(model.logit_scale));
        if let Some(cap) = model.logit_cap {
            model.key("final_logit_softcapping", Value::F32(cap));
        }
        model.size_key("attention.sliding_window", tokens);
        config::put_local_base(config, &mut model)?;
        model.key(PATTERN, Value::Array(Array::Bool(local.clone())));
        let queries = config.maybe_positive("qk_scale_factor")?.unwrap_or(QUERIES) as f32;
        Ok(build(model, tokens, local, queries, self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        let base = keys.maybe_number("rope.freq_base_swa")?;
        let local = |rope: &Rope| Some(Rope { base: base?, ..rope.clone() });
        model.local_rope = model.rope.as_ref().and_then(local);
        model.logit_scale = keys.number("logit_scale")? as f32;
        model.logit_cap = keys.maybe_number("final_logit_softcapping")?.map(|x| x as f32);
        let marks = keys.marks(PATTERN)?;
        let local = marks.unwrap_or_else(|| (0..model.blocks).map(|i| !(i + 1).is_multiple_of(4)).collect());
        Ok(build(model, keys.size("attention.sliding_window")?, local, 1.0, self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::FFN_NORM => "pre_feedforward_layernorm",
            _ => tensor.source,
        }
    }

    fn mapping(&self, block: &BlockConfig, tensor: &BlockTensor, _: Kind) -> TensorMapping {
        match (tensor.part, &block.halves[0].mixer) {
            (Part::Q_NORM, Mixer::Attention(own)) => TensorMapping::filled(own.made_up_gain.unwrap_or(1.0)),
            (Part::K_NORM, _) => TensorMapping::filled(1.0),
            (Part::ATTN_NORM | Part::ATTN_POST_NORM | Part::FFN_NORM | Part::FFN_POST_NORM, _) => {
                Change::PlusOne.into()
            }
            _ => TensorMapping::AS_IS,
        }
    }
}
