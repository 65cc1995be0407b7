//! IBM's Granite.

use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::Limits;
use crate::model::mapping::Pick;
use crate::model::mixer::experts::Experts;
use crate::model::{
    Architecture, BlockConfig, BlockTensor, Decoder, Kind, Model, Part, QueryRows, TensorMapping, config, mixture,
};
use crate::source::config::Config;
use crate::source::value::Value;

/// Llama with factors for the embedding, the scores, what each half adds, and the logits.
pub struct Granite;

impl Architecture for Granite {
    fn gguf(&self) -> &'static str {
        "granite"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["granite"]
    }

    fn examples(&self) -> &'static str {
        "Granite 3.0 to 3.3, 4.1 dense"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Interleaved
    }

    fn limits(&self) -> Limits {
        Limits::of_llama(&self.decoder())
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        Ok(read(self, config)?.build(self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        read_factors(keys, &mut model)?;
        Ok(model.build(self))
    }
}

/// Reads the factors of a GGUF.
pub(super) fn read_factors(keys: &Keys, model: &mut Decoder) -> Result<()> {
    let factor = |key: &str| -> Result<f32> { Ok(keys.maybe_number(key)?.map_or(1.0, |x| x as f32)) };
    let scale = keys.maybe_number("attention.scale")?;
    model.attention_scale = scale.map(|x| x as f32);
    model.embedding_scale = factor("embedding_scale")?;
    model.residual_scale = factor("residual_scale")?;
    model.logit_scale = 1.0 / keys.number("logit_scale")? as f32;
    Ok(())
}

/// Llama with factors for the embedding, the scores, what each half adds, and the logits.
pub(super) fn read(architecture: &'static dyn Architecture, config: &Config) -> Result<Decoder> {
    let mut model = config::read(architecture, config, true)?;
    config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
    let factor = |key: &str| -> Result<f32> { Ok(config.maybe_positive(key)?.map_or(1.0, |x| x as f32)) };
    let (scale, logits) = (factor("attention_multiplier")?, factor("logits_scaling")?);
    model.attention_scale = Some(scale);
    model.embedding_scale = factor("embedding_multiplier")?;
    model.residual_scale = factor("residual_multiplier")?;
    model.logit_scale = 1.0 / logits;
    model.mlp_bias = config.flag("mlp_bias")?;
    // llama.cpp takes the width of a head from the two sizes where it can.
    model.explicit_head_dim = model.head_dim * model.heads != model.hidden;
    model.keys = vec![
        ("attention.scale", Value::F32(scale)),
        ("embedding_scale", Value::F32(model.embedding_scale)),
        ("residual_scale", Value::F32(model.residual_scale)),
        ("logit_scale", Value::F32(1.0 / model.logit_scale)),
    ];
    Ok(model)
}

/// Granite 3 and 4 with experts, and an MLP beside them in some.
pub struct GraniteMoe;

/// Granite 4 without experts, and without a block that has a state: its MLP is called that of all tokens.
pub struct GraniteShared;

/// Keys that speak of blocks with a state.
const OF_MAMBA: [&str; 9] = [
    "mamba_n_heads",
    "mamba_n_groups",
    "mamba_d_state",
    "mamba_d_head",
    "mamba_d_conv",
    "mamba_expand",
    "mamba_conv_bias",
    "mamba_proj_bias",
    "time_step_limit",
];

/// A model of type `granitemoehybrid` whose blocks all have attention.
///
/// # Errors
/// A key that is missing, of the wrong kind, or asks for something unsupported.
pub(super) fn read_hybrid_dense(config: &Config) -> Result<Model> {
    if config.maybe_string("position_embedding_type")?.as_deref() != Some("rope") {
        return Err(config::refused(
            config,
            "position_embedding_type other than 'rope' is not supported without Mamba",
        ));
    }
    if config.get("num_local_experts").and_then(|n| n.as_u64()).is_some_and(|n| n > 0) {
        return GraniteMoe.read(config);
    }
    let mut model = read(&GraniteShared, config)?;
    // What no block has.
    config.ignore(&OF_MAMBA);
    config.ignore(&["num_experts_per_tok"]);
    config::layer_types(config, model.blocks, &["attention", "full_attention"])?;
    model.ffn = config.size("shared_intermediate_size")?;
    model.size_key("feed_forward_length", model.ffn);
    Ok(model.build(&GraniteShared))
}

impl Architecture for GraniteShared {
    fn gguf(&self) -> &'static str {
        "granite"
    }

    fn model_types(&self) -> &'static [&'static str] {
        // They come with those of blocks with a state, which tell them apart.
        &[]
    }

    fn examples(&self) -> &'static str {
        "Granite 4.0 350M, 1B and micro"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Interleaved
    }

    fn limits(&self) -> Limits {
        Limits::of_llama(&self.decoder())
    }

    fn sample(&'static self) -> Model {
        self.decoder().sized().build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        read_hybrid_dense(config)
    }

    fn read_gguf(&'static self, keys: &Keys, model: Decoder) -> Result<Model> {
        Granite.read_gguf(keys, model)
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        source(tensor)
    }

    fn mapping(&self, _: &BlockConfig, tensor: &BlockTensor, _: Kind) -> TensorMapping {
        mapping(tensor)
    }
}

impl Architecture for GraniteMoe {
    fn gguf(&self) -> &'static str {
        "granitemoe"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["granitemoe", "granitemoeshared"]
    }

    fn examples(&self) -> &'static str {
        "Granite 3 1B-A400M and 3B-A800M"
    }

    fn query_rows(&self) -> QueryRows {
        QueryRows::Interleaved
    }

    fn limits(&self) -> Limits {
        Limits::of_llama(&self.decoder())
    }

    fn sample(&'static self) -> Model {
        Decoder { experts: Some(Experts::plain(2, 1, 8)), ..self.decoder().sized() }.build(self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        let mut model = read(self, config)?;
        let shared = config.get("shared_intermediate_size").and_then(|n| n.as_u64()).unwrap_or(0) as usize;
        let experts = Experts::plain(config.size("num_local_experts")?, config.size("num_experts_per_tok")?, model.ffn);
        model.experts = Some(Experts { shared: mixture::shared(&model, shared), ..experts });
        if shared > 0 {
            model.size_key("expert_shared_feed_forward_length", shared);
        }
        Ok(model.build(self))
    }

    fn read_gguf(&'static self, keys: &Keys, mut model: Decoder) -> Result<Model> {
        read_factors(keys, &mut model)?;
        mixture::read_gguf(keys, &mut model, Experts::plain(0, 0, 0))?;
        Ok(model.build(self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        source(tensor)
    }

    fn mapping(&self, _: &BlockConfig, tensor: &BlockTensor, _: Kind) -> TensorMapping {
        mapping(tensor)
    }
}

/// Gate and up are one tensor in the checkpoint.
pub(super) fn source(tensor: &BlockTensor) -> &'static str {
    match tensor.part {
        Part::GATE | Part::UP | Part::SHARED_GATE | Part::SHARED_UP => "shared_mlp.input_linear",
        Part::DOWN | Part::SHARED_DOWN => "shared_mlp.output_linear",
        Part::ROUTER => "block_sparse_moe.router.layer",
        Part::EXPERT_GATES | Part::EXPERT_UPS => "block_sparse_moe.input_linear",
        Part::EXPERT_DOWNS => "block_sparse_moe.output_linear",
        _ => tensor.source,
    }
}

/// Which rows of it are which.
pub(super) fn mapping(tensor: &BlockTensor) -> TensorMapping {
    let half = |second: bool| {
        let n = tensor.shape[0];
        Pick::RowsFrom { first: if second { n } else { 0 }, of: 2 * n }.into()
    };
    let of_stack = |second: bool| {
        let n = tensor.shape[1];
        Pick::StackRows { first: if second { n } else { 0 }, of: 2 * n }.into()
    };
    match tensor.part {
        Part::GATE | Part::SHARED_GATE => half(false),
        Part::UP | Part::SHARED_UP => half(true),
        Part::EXPERT_GATES => of_stack(false),
        Part::EXPERT_UPS => of_stack(true),
        _ => TensorMapping::AS_IS,
    }
}
