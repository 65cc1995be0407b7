//! Arcee's Trinity (AFMoE).

use super::deepseek2;
use crate::error::Result;
use crate::model::decoder::{Window, WindowBlocks};
use crate::model::gguf_keys::Keys;
use crate::model::mixer::Mixer;
use crate::model::mixer::attention::{Gate, HeadNorms};
use crate::model::mixer::experts::Experts;
use crate::model::mixer::routing::Scoring;
use crate::model::rope::Rope;
use crate::model::{Architecture, BlockTensor, Decoder, Model, Part, config, mixture};
use crate::source::config::Config;
use crate::source::value::{Array, Value};
use llmq_kernels::elementwise::Activation;

/// Norms in front of and behind attention and MLP, a gate on what heads give, windows in three blocks of four, where alone something is
/// turned, and experts chosen by sigmoids.
pub struct AfMoe;

const PATTERN: &str = "attention.sliding_window_pattern";

fn build(
    mut model: Decoder,
    tokens: Option<usize>,
    local: Vec<bool>,
    architecture: &'static dyn Architecture,
) -> Model {
    model.embedding_scale = (model.hidden as f32).sqrt();
    model.window = tokens.map(|tokens| Window { tokens, blocks: WindowBlocks::Marked(local.clone()) });
    let mut model = model.build(architecture);
    for (block, local) in model.blocks.iter_mut().zip(local) {
        if let Mixer::Attention(own) = &mut block.halves[0].mixer {
            own.gate = Gate::Each(Activation::Sigmoid);
            own.rope = own.rope.take().filter(|_| local);
        }
    }
    model
}

impl Architecture for AfMoe {
    fn gguf(&self) -> &'static str {
        "afmoe"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["afmoe"]
    }

    fn examples(&self) -> &'static str {
        "Trinity Nano and Mini"
    }

    fn decoder(&self) -> Decoder {
        Decoder { head_norms: HeadNorms::PerHead, post_norms: true, explicit_head_dim: true, ..Decoder::PLAIN }
    }

    fn sample(&'static self) -> Model {
        let decoder = Decoder { experts: Some(Experts::plain(2, 1, 8)), ..self.decoder().sized() };
        build(decoder, Some(4), vec![true], self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = config::read(self, config, false)?;
        config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
        model.explicit_head_dim = true;
        if config.maybe_flag("mup_enabled")? == Some(false) {
            return Err(config::refused(config, "mup_enabled false is not supported"));
        }
        if config.maybe_size("n_group")?.is_some_and(|n| n > 1) {
            return Err(config::refused(config, "n_group above 1 is not supported"));
        }
        let n = model.blocks;
        let every = config.maybe_size("global_attn_every_n_layers")?.unwrap_or(4);
        let types = config::layer_types(config, n, &["sliding_attention", "full_attention"])?;
        let local: Vec<bool> = match types {
            Some(types) => types.iter().map(|kind| kind == "sliding_attention").collect(),
            None => (0..n).map(|i| !(i + 1).is_multiple_of(every)).collect(),
        };
        if let Some(i) = (0..n).find(|&i| local[i] == (i + 1).is_multiple_of(4)) {
            let what = format!("layer_types must name every fourth block full_attention, and block {i} breaks that");
            return Err(config::refused(config, &what));
        }
        let tokens = config.maybe_size("sliding_window")?;
        let (width, shared) =
            (config.size("moe_intermediate_size")?, config.maybe_size("num_shared_experts")?.unwrap_or(0));
        let count = config::first_size(config, &["num_experts", "num_local_experts"])?;
        model.dense = config.get("num_dense_layers").and_then(|n| n.as_u64()).unwrap_or(0) as usize;
        model.experts = Some(Experts {
            scoring: Scoring::Sigmoid,
            normed: config.maybe_flag("route_norm")?.unwrap_or(true),
            scale: config.maybe_positive("route_scale")?.unwrap_or(1.0) as f32,
            selection_bias: true,
            shared: mixture::shared(&model, shared * width),
            ..Experts::plain(count, config.size("num_experts_per_tok")?, width)
        });
        model.size_key("expert_shared_count", shared);
        model.size_key("expert_feed_forward_length", width);
        model.size_key("leading_dense_block_count", model.dense);
        mixture::put_router(&mut model);
        if let Some(tokens) = tokens {
            model.size_key("attention.sliding_window", tokens);
        }
        model.key(PATTERN, Value::Array(Array::Bool(local.clone())));
        config::put_local_base(config, &mut model)?;
        Ok(build(model, tokens, local, self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        let base = keys.maybe_number("rope.freq_base_swa")?;
        let local = |rope: &Rope| Some(Rope { base: base?, ..rope.clone() });
        model.local_rope = model.rope.as_ref().and_then(local);
        mixture::read_gguf(keys, &mut model, Experts { scoring: Scoring::Sigmoid, ..Experts::plain(0, 0, 0) })?;
        let marks = keys.marks(PATTERN)?;
        let local = marks.unwrap_or_else(|| (0..model.blocks).map(|i| !(i + 1).is_multiple_of(4)).collect());
        Ok(build(model, keys.maybe_size("attention.sliding_window")?, local, self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        match tensor.part {
            Part::FFN_NORM => "pre_mlp_layernorm",
            Part::FFN_POST_NORM => "post_mlp_layernorm",
            Part::ROUTER => "mlp.router.gate",
            Part::SELECTION_BIAS => "mlp.expert_bias",
            _ => deepseek2::source(tensor),
        }
    }
}
