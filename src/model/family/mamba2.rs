//! Mamba-2 alone, and what every family with Mamba-2 blocks reads and writes alike.

use crate::error::{Error, Result};
use crate::model::decoder::Decoder;
use crate::model::gguf_keys::Keys;
use crate::model::half::HalfConfig;
use crate::model::mapping::{Change, TensorMapping};
use crate::model::mixer::mamba2::Mamba2 as Mixer;
use crate::model::{Architecture, BlockConfig, BlockTensor, Kind, Model, OutsideNames, Part, config};
use crate::source::config::Config;
use crate::source::json;
use crate::source::value::{Array, Value};
use llmq_kernels::elementwise::Activation;

/// A stack of Mamba-2 mixers without anything else.
pub struct Mamba2;

/// The context that llama.cpp's converter writes where the configuration says none that binds: positions are not counted.
pub const ANY_CONTEXT: usize = 1 << 20;

/// What the configurations of families call the sizes of Mamba-2.
pub struct Names {
    /// Heads.
    pub heads: &'static str,
    /// Numbers of each.
    pub head_dim: &'static str,
    /// Groups.
    pub groups: &'static str,
    /// Numbers of the state.
    pub state: &'static str,
    /// Positions that the convolution sees.
    pub taps: &'static str,
    /// Whether the convolution has a bias, which llama.cpp wants.
    pub conv_bias: &'static str,
    /// Whether layers have biases, which llama.cpp has no place for.
    pub biases: &'static [&'static str],
}

/// Names with a prefix, as in Granite 4 and Falcon-H1.
pub const PREFIXED: Names = Names {
    heads: "mamba_n_heads",
    head_dim: "mamba_d_head",
    groups: "mamba_n_groups",
    state: "mamba_d_state",
    taps: "mamba_d_conv",
    conv_bias: "mamba_conv_bias",
    biases: &["mamba_proj_bias"],
};

impl Names {
    /// Reads the sizes. `inner`: numbers of all heads, where that is said by itself.
    ///
    /// # Errors
    /// A size that is missing or does not fit the others, or a variation that llama.cpp does not have.
    pub fn read(&self, config: &Config, inner: Option<usize>, norm: Option<f32>) -> Result<Mixer> {
        let heads = config.size(self.heads)?;
        let head_dim = match (config.get(self.head_dim).and_then(|v| v.as_str()), inner) {
            (Some("auto"), Some(inner)) => inner / heads,
            _ => config.size(self.head_dim)?,
        };
        if inner.is_some_and(|inner| inner != heads * head_dim) {
            let (inner, key) = (inner.unwrap_or_default(), self.heads);
            return Err(config.unsupported(&format!("{key} {heads} of {head_dim} numbers make no {inner}")));
        }
        if config.get(self.conv_bias).is_some() && !config.flag(self.conv_bias)? {
            return Err(config::refused(config, &format!("{} false is not supported", self.conv_bias)));
        }
        for key in self.biases {
            if config.flag(key)? {
                return Err(config::refused(config, &format!("{key} is not supported")));
            }
        }
        check_steps(config)?;
        let [groups, state, taps] = [self.groups, self.state, self.taps].map(|key| config.size(key));
        let mixer = Mixer { heads, head_dim, groups: groups?, state: state?, taps: taps?, norm };
        checked(mixer, |what| config.unsupported(what))
    }
}

/// Refuses bounds of the steps: llama.cpp has none. (Where transformers has no kernel of the authors', it bounds those of Nemotron-H by
/// `time_step_min` from below, which the kernel does not.)
fn check_steps(config: &Config) -> Result<()> {
    let Some(limit) = config.get("time_step_limit") else { return Ok(()) };
    let is_open = |most: &serde_json::Value| most.is_null() || json::number(most) == Some(f64::INFINITY);
    match limit.as_array().map(Vec::as_slice) {
        Some([least, most]) if least.as_f64() == Some(0.0) && is_open(most) => Ok(()),
        _ => Err(config::refused(config, &format!("time_step_limit {limit} is not supported"))),
    }
}

/// More than any of the sizes is.
const LARGEST: usize = 1 << 16;

/// Sizes that fit each other. `wrong`: an error about where they are said.
fn checked(mixer: Mixer, wrong: impl Fn(&str) -> Error) -> Result<Mixer> {
    let Mixer { heads, head_dim, groups, state, taps, .. } = mixer;
    if !heads.is_multiple_of(groups) {
        return Err(wrong(&format!("{heads} heads of Mamba-2 do not divide into {groups} groups")));
    }
    match [heads, head_dim, state, taps].into_iter().find(|&n| n > LARGEST) {
        Some(n) => Err(wrong(&format!("a size of Mamba-2 is {n}, which is beyond {LARGEST}"))),
        None => Ok(mixer),
    }
}

/// The sizes in a file. `norm`: the ε of the norm behind the gate, if there is one.
///
/// # Errors
/// A key that is missing, or sizes that do not fit each other.
pub fn of_gguf(keys: &Keys, norm: Option<f32>) -> Result<Mixer> {
    let (inner, heads) = (keys.size("ssm.inner_size")?, keys.size("ssm.time_step_rank")?);
    if !inner.is_multiple_of(heads) {
        return Err(keys.wrong(&format!("{heads} heads of Mamba-2 make no {inner} numbers")));
    }
    let [groups, state, taps] = ["ssm.group_count", "ssm.state_size", "ssm.conv_kernel"].map(|key| keys.size(key));
    let mixer = Mixer { heads, head_dim: inner / heads, groups: groups?, state: state?, taps: taps?, norm };
    checked(mixer, |what| keys.wrong(what))
}

/// Adds the keys of the sizes.
pub fn put_keys(model: &mut Decoder, mixer: &Mixer) {
    model.size_key("ssm.conv_kernel", mixer.taps);
    model.size_key("ssm.state_size", mixer.state);
    model.size_key("ssm.group_count", mixer.groups);
    model.size_key("ssm.inner_size", mixer.inner());
    model.size_key("ssm.time_step_rank", mixer.heads);
}

/// A key with a number for each block: zero for those without.
pub fn per_block(n: usize, blocks: impl Iterator<Item = bool>) -> Value {
    Value::Array(Array::U32(blocks.map(|own| if own { n as u32 } else { 0 }).collect()))
}

/// How a tensor is made from the checkpoint's, of Mamba-2 or of anything else.
pub fn mapping(tensor: &BlockTensor, kind: Kind) -> TensorMapping {
    let usual = if tensor.source.contains("{}") { TensorMapping::STACKED } else { TensorMapping::AS_IS };
    let all = || Some(vec![tensor.shape.iter().product()]);
    let stored = match (tensor.part, kind) {
        (Part::SSM_CONV1D, Kind::Weight) => Some(vec![tensor.shape[0], 1, tensor.shape[1]]),
        (Part::SSM_A | Part::SSM_D | Part::SSM_NORM, _) => all(),
        _ => None,
    };
    let change = if tensor.part == Part::SSM_A { Change::NegExp } else { usual.change };
    TensorMapping { stored, change, ..usual }
}

/// What the parts of Mamba-2 are called where each block has one mixer of that name.
pub fn source(part: Part) -> Option<&'static str> {
    Some(match part {
        Part::SSM_IN => "mixer.in_proj",
        Part::SSM_CONV1D => "mixer.conv1d",
        Part::SSM_DT => "mixer.dt_bias",
        Part::SSM_A => "mixer.A_log",
        Part::SSM_D => "mixer.D",
        Part::SSM_NORM => "mixer.norm",
        Part::SSM_OUT => "mixer.out_proj",
        _ => return None,
    })
}

/// Names outside the blocks of the families whose tensors begin with `backbone`.
pub const BACKBONE: OutsideNames = OutsideNames {
    embedding: "backbone.embeddings",
    positions: "",
    blocks: "backbone.layers",
    norm: "backbone.norm_f",
    output: "lm_head",
};

const NAMES: Names = Names {
    heads: "num_heads",
    head_dim: "head_dim",
    groups: "n_groups",
    state: "state_size",
    taps: "conv_kernel",
    conv_bias: "use_conv_bias",
    biases: &["use_bias"],
};

/// A model whose blocks have the mixer behind a norm.
fn arrange(decoder: Decoder, mixer: Mixer, architecture: &'static dyn Architecture) -> Model {
    let norm = decoder.norm_of(Part::ATTN_NORM, "norm");
    let mut model = decoder.build(architecture);
    model.blocks.fill(BlockConfig { halves: vec![HalfConfig::new(Some(norm), mixer)] });
    model
}

impl Architecture for Mamba2 {
    fn gguf(&self) -> &'static str {
        "mamba2"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["mamba2"]
    }

    fn examples(&self) -> &'static str {
        "Mamba-Codestral-7B, Mamba-2 130M to 2.7B"
    }

    fn decoder(&self) -> Decoder {
        Decoder { heads: 0, kv_heads: 0, ..Decoder::PLAIN }
    }

    fn outside(&self) -> OutsideNames {
        BACKBONE
    }

    fn sample(&'static self) -> Model {
        let mixer = Mixer { heads: 2, head_dim: 8, groups: 1, state: 4, taps: 4, norm: Some(1e-5) };
        arrange(Decoder { blocks: 1, hidden: 8, vocab: 8, context: 8, ..self.decoder() }, mixer, self)
    }

    fn read(&'static self, config: &Config) -> Result<Model> {
        config::check_activation(config, &["hidden_act"], Activation::Silu, "silu")?;
        config.ignore(&["time_step_rank"]);
        let hidden = config.size("hidden_size")?;
        let eps = config.positive("layer_norm_epsilon")? as f32;
        // For the beginning of training.
        config.ignore(&["time_step_min", "time_step_rank"]);
        let mixer = NAMES.read(config, Some(config.size("expand")? * hidden), Some(eps))?;
        let mut model = Decoder {
            blocks: config.size("num_hidden_layers")?,
            hidden,
            vocab: config.size("vocab_size")?,
            context: ANY_CONTEXT,
            norm_eps: eps,
            tied: config.flag("tie_word_embeddings")?,
            ..self.decoder()
        };
        put_keys(&mut model, &mixer);
        Ok(arrange(model, mixer, self))
    }

    fn read_gguf(&'static self, keys: &Keys, decoder: Decoder) -> Result<Model> {
        let mixer = of_gguf(keys, Some(decoder.norm_eps))?;
        Ok(arrange(decoder, mixer, self))
    }

    fn source(&self, tensor: &BlockTensor) -> &'static str {
        source(tensor.part).unwrap_or(tensor.source)
    }

    fn mapping(&self, _: &BlockConfig, tensor: &BlockTensor, kind: Kind) -> TensorMapping {
        mapping(tensor, kind)
    }
}
