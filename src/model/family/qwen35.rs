//! Qwen 3.5, 3.6 and 3.8, dense and with experts, and Qwen3-Next: three blocks of four have a gated delta net instead of attention.

use super::qwen_vl;
use crate::error::Result;
use crate::model::gguf_keys::Keys;
use crate::model::limits::Limits;
use crate::model::mapping::{Change, Pick, TensorMapping};
use crate::model::mixer::Mixer;
use crate::model::mixer::attention::{Gate, HeadNorms};
use crate::model::mixer::experts::Experts;
use crate::model::mixer::gated_delta_net::GatedDeltaNet;
use crate::model::mixer::mlp::Mlp;
use crate::model::{Architecture, BlockConfig, BlockTensor, Decoder, ExtraBlocks, Kind, Model, Part, config, nextn};
use crate::source::config::Config;
use crate::source::value::{Array, Value};
use llmq_kernels::elementwise::Activation;
use std::sync::Arc;

/// Dense.
pub struct Qwen35;

/// With experts.
pub struct Qwen35Moe;

/// With experts, decays and corrections in one layer, and value heads beside those of the same key head.
pub struct Qwen3Next;

/// Every so many-th block has attention, where nothing else is said.
const INTERVAL: usize = 4;

fn plain() -> Decoder {
    Decoder { head_norms: HeadNorms::PerHead, explicit_head_dim: true, ..Decoder::PLAIN }
}

/// Puts a gated delta net in the place of attention where a block is recurrent, and a gate on attention elsewhere.
fn arrange(mut model: Model, recurrent: &[bool], net: GatedDeltaNet) -> Model {
    for (block, recurrent) in model.blocks.iter_mut().zip(recurrent) {
        match &mut block.halves[0].mixer {
            mixer if *recurrent => *mixer = net.into(),
            Mixer::Attention(attention) => attention.gate = Gate::WithQueries,
            _ => {}
        }
    }
    model
}

fn net(config: &Config, eps: f32, grouped: bool) -> Result<GatedDeltaNet> {
    let (key_heads, value_heads) = (config.size("linear_num_key_heads")?, config.size("linear_num_value_heads")?);
    let (key_dim, value_dim) = (config.size("linear_key_head_dim")?, config.size("linear_value_head_dim")?);
    if !value_heads.is_multiple_of(key_heads) {
        return Err(config.unsupported(&format!("{value_heads} value heads cannot share {key_heads} key heads evenly")));
    }
    if key_dim != value_dim {
        return Err(config::refused(config, "linear_value_head_dim other than linear_key_head_dim is not supported"));
    }
    let taps = config.size("linear_conv_kernel_dim")?;
    Ok(GatedDeltaNet { key_heads, value_heads, key_dim, value_dim, taps, eps, grouped })
}

fn read(architecture: &'static dyn Architecture, config: &Config, experts: bool, next: bool) -> Result<Model> {
    let usual = serde_json::json!({ "partial_rotary_factor": 0.25, "intermediate_size": config.maybe_size("moe_intermediate_size")? });
    let config = &config.clone().with_defaults(usual);
    let mut model = config::read(architecture, config, false)?;
    config::check_activation(config, &["hidden_act"], model.activation, "silu")?;
    model.explicit_head_dim = true;
    if config.maybe_flag("attn_output_gate")? == Some(false) {
        return Err(config::refused(config, "attn_output_gate false is not supported"));
    }
    let net = net(config, model.norm_eps, next)?;
    let interval = config.maybe_size("full_attention_interval")?.unwrap_or(INTERVAL);
    let kinds = config::layer_types(config, model.blocks, &["linear_attention", "full_attention"])?;
    let recurrent: Vec<bool> = match kinds {
        Some(kinds) => kinds.iter().map(|kind| kind == "linear_attention").collect(),
        None => (0..model.blocks).map(|i| !(i + 1).is_multiple_of(interval)).collect(),
    };
    if !next {
        qwen_vl::put_sections(&mut model, config, Some([11, 11, 10, 0]))?;
    }
    if experts {
        if config.get("mlp_only_layers").and_then(|list| list.as_array()).is_some_and(|list| !list.is_empty()) {
            return Err(config::refused(config, "mlp_only_layers is not supported"));
        }
        let width = config.size("moe_intermediate_size")?;
        let shared = config.size("shared_expert_intermediate_size")?;
        let count = config::first_size(config, &["num_experts", "num_local_experts"])?;
        model.experts = Some(mixture(count, config.size("num_experts_per_tok")?, width, shared));
        if next && config.maybe_flag("norm_topk_prob")? == Some(false) {
            return Err(config::refused(config, "norm_topk_prob must be true, as in all published models"));
        }
        model.size_key("expert_feed_forward_length", width);
        model.size_key("expert_shared_feed_forward_length", shared);
    }
    model.size_key("ssm.conv_kernel", net.taps);
    model.size_key("ssm.state_size", net.key_dim);
    model.size_key("ssm.group_count", net.key_heads);
    model.size_key("ssm.time_step_rank", net.value_heads);
    model.size_key("ssm.inner_size", net.values());
    model.key(RECURRENT, Value::Array(Array::Bool(recurrent.clone())));
    model.size_key("full_attention_interval", interval);
    Ok(arrange(model.build(architecture), &recurrent, net))
}

const RECURRENT: &str = "attention.recurrent_layers";

fn mixture(count: usize, used: usize, width: usize, shared: usize) -> Experts {
    let shared = Some(Mlp { shared: true, ..Mlp::gated(shared, Activation::Silu) });
    Experts { shared, shared_gate: true, ..Experts::plain(count, used, width) }
}

fn read_gguf(architecture: &'static dyn Architecture, keys: &Keys, mut model: Decoder, next: bool) -> Result<Model> {
    let (state, inner) = (keys.size("ssm.state_size")?, keys.size("ssm.inner_size")?);
    let (key_heads, value_heads) = (keys.size("ssm.group_count")?, keys.size("ssm.time_step_rank")?);
    if !value_heads.is_multiple_of(key_heads) || inner != value_heads * state {
        return Err(keys
            .wrong(&format!("{value_heads} value heads of {state} on {key_heads} key heads make no {inner} numbers")));
    }
    let net = GatedDeltaNet {
        key_heads,
        value_heads,
        key_dim: state,
        value_dim: state,
        taps: keys.size("ssm.conv_kernel")?,
        eps: model.norm_eps,
        grouped: next,
    };
    let interval = keys.maybe_size("full_attention_interval")?.unwrap_or(INTERVAL);
    let marks = keys.marks(RECURRENT)?;
    let recurrent = |i: usize| marks.as_ref().map_or(!(i + 1).is_multiple_of(interval), |marks| marks[i]);
    if let Some(count) = keys.maybe_size("expert_count")? {
        let (width, shared) =
            (keys.first_size("expert_feed_forward_length")?, keys.size("expert_shared_feed_forward_length")?);
        model.experts = Some(mixture(count, keys.size("expert_used_count")?, width, shared));
    }
    let recurrent: Vec<bool> = (0..model.blocks).map(recurrent).collect();
    Ok(arrange(model.build(architecture), &recurrent, net))
}

/// For each head of values, of those that go round the key heads, its place among those that stand beside the others of the same key
/// head; for each of its `each` rows.
fn tiled(net: &GatedDeltaNet, each: usize) -> impl Iterator<Item = usize> + use<> {
    let (keys, shared) = (net.key_heads, net.value_heads / net.key_heads);
    (0..net.value_heads).flat_map(move |j| {
        let head = j % keys * shared + j / keys;
        (0..each).map(move |row| head * each + row)
    })
}

fn mapping(block: &BlockConfig, tensor: &BlockTensor, next: bool) -> TensorMapping {
    let Mixer::GatedDeltaNet(net) = &block.halves[0].mixer else { return of_others(tensor) };
    let (key, value) = (net.key_heads * net.key_dim, net.values());
    let rows = |rows: Vec<usize>| {
        let of = rows.len();
        TensorMapping::from(Pick::Rows { rows: rows.into(), of })
    };
    let reordered = !next && net.key_heads != net.value_heads;
    let stored = (tensor.part == Part::SSM_CONV1D).then(|| vec![tensor.shape[0], 1, net.taps]);
    let mapping = match tensor.part {
        Part::QKV | Part::SSM_CONV1D if reordered => {
            rows((0..2 * key).chain(tiled(net, net.value_dim).map(|row| 2 * key + row)).collect())
        }
        Part::QKV if next => {
            taken_apart(net, &[(0, net.key_dim), (net.key_dim, net.key_dim), (2 * net.key_dim, value / net.key_heads)])
        }
        Part::ATTN_GATE if next => {
            taken_apart(net, &[(2 * net.key_dim + value / net.key_heads, value / net.key_heads)])
        }
        Part::ATTN_GATE if reordered => rows(tiled(net, net.value_dim).collect()),
        Part::SSM_ALPHA | Part::SSM_BETA | Part::SSM_A | Part::SSM_DT if reordered => rows(tiled(net, 1).collect()),
        Part::SSM_OUT if reordered => {
            let places: Arc<[usize]> = tiled(net, net.value_dim).collect();
            Pick::ColumnOrder(places).into()
        }
        _ => of_others(tensor),
    };
    let change = if tensor.part == Part::SSM_A { Change::NegExp } else { mapping.change };
    TensorMapping { change, stored, ..mapping }
}

/// Rows out of a matrix that has queries, keys, values and gates of one key head after the other. `pieces`: where each piece begins
/// within a head, and how many rows it has.
fn taken_apart(net: &GatedDeltaNet, pieces: &[(usize, usize)]) -> TensorMapping {
    let each = 2 * net.key_dim + 2 * net.values() / net.key_heads;
    let head = |first: usize, n: usize| {
        (0..net.key_heads).flat_map(move |head| (0..n).map(move |row| head * each + first + row))
    };
    let rows: Vec<usize> = pieces.iter().flat_map(|&(first, n)| head(first, n)).collect();
    Pick::Rows { rows: rows.into(), of: net.key_heads * each }.into()
}

fn of_others(tensor: &BlockTensor) -> TensorMapping {
    match tensor.part {
        Part::ATTN_NORM | Part::FFN_NORM | Part::Q_NORM | Part::K_NORM => Change::PlusOne.into(),
        _ if tensor.source.contains("{}") => TensorMapping::STACKED,
        _ => TensorMapping::AS_IS,
    }
}

/// The layers that predict several tokens have attention.
fn extra_blocks(model: &Model, has: &dyn Fn(&str) -> bool) -> Option<ExtraBlocks> {
    let attention = model.blocks.iter().find(|block| matches!(block.halves[0].mixer, Mixer::Attention(_)))?;
    let mut extra = nextn::blocks(model, attention, has)?;
    let recurrent = |block: &BlockConfig| !matches!(block.halves[0].mixer, Mixer::Attention(_));
    let mut marks: Vec<bool> = model.blocks.iter().map(recurrent).collect();
    marks.resize(marks.len() + extra.count, false);
    extra.keys.push((RECURRENT, Value::Array(Array::Bool(marks))));
    Some(extra)
}

fn gguf_name(part: Part) -> &'static str {
    match part {
        // As llama.cpp has it.
        Part::FFN_NORM => "post_attention_norm",
        _ => part.0,
    }
}

const SAMPLE: GatedDeltaNet =
    GatedDeltaNet { key_heads: 1, value_heads: 2, key_dim: 4, value_dim: 4, taps: 4, eps: 1e-6, grouped: false };

fn sample(architecture: &'static dyn Architecture, experts: bool, grouped: bool) -> Model {
    let decoder = Decoder { blocks: 2, ..architecture.decoder().sized() };
    let decoder = Decoder { blocks: 2, experts: experts.then(|| mixture(2, 1, 8, 8)), ..decoder };
    arrange(decoder.build(architecture), &[true, false], GatedDeltaNet { grouped, ..SAMPLE })
}

/// What the three do alike.
macro_rules! family {
    ($name:ident, $gguf:literal, $types:expr, $examples:literal, $experts:literal, $next:literal) => {
        impl Architecture for $name {
            fn gguf(&self) -> &'static str {
                $gguf
            }

            fn model_types(&self) -> &'static [&'static str] {
                $types
            }

            fn examples(&self) -> &'static str {
                $examples
            }

            fn decoder(&self) -> Decoder {
                plain()
            }

            fn limits(&self) -> Limits {
                Limits { partial_rotary: true, ..Limits::of(&self.decoder()) }
            }

            fn sample(&'static self) -> Model {
                sample(self, $experts, $next)
            }

            fn read(&'static self, config: &Config) -> Result<Model> {
                read(self, config, $experts, $next)
            }

            fn read_gguf(&'static self, keys: &Keys, decoder: Decoder) -> Result<Model> {
                read_gguf(self, keys, decoder, $next)
            }

            fn source(&self, tensor: &BlockTensor) -> &'static str {
                match tensor.part {
                    Part::QKV | Part::ATTN_GATE if $next => "linear_attn.in_proj_qkvz",
                    _ => tensor.source,
                }
            }

            fn gguf_name(&self, part: Part) -> &'static str {
                gguf_name(part)
            }

            fn mapping(&self, block: &BlockConfig, tensor: &BlockTensor, _: Kind) -> TensorMapping {
                mapping(block, tensor, $next)
            }

            fn norm_mapping(&self) -> TensorMapping {
                Change::PlusOne.into()
            }

            fn extra_blocks(&self, model: &Model, has: &dyn Fn(&str) -> bool) -> Option<ExtraBlocks> {
                extra_blocks(model, has)
            }
        }
    };
}

family!(Qwen35, "qwen35", &["qwen3_5", "qwen3_5_text"], "Qwen3.5 0.8B to 27B, Qwen3.6-27B, Qwen3.8-27B", false, false);
family!(
    Qwen35Moe,
    "qwen35moe",
    &["qwen3_5_moe", "qwen3_5_moe_text"],
    "Qwen3.6-35B-A3B, Qwen3.5-122B-A10B",
    true,
    false
);
family!(Qwen3Next, "qwen3next", &["qwen3_next"], "Qwen3-Next-80B-A3B, Qwen3-Coder-Next", true, true);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_heads_go_round_the_key_heads() {
        let net = GatedDeltaNet { key_heads: 2, value_heads: 4, ..SAMPLE };
        // Heads 0 and 1 are of the first key head, 2 and 3 of the second.
        assert_eq!(tiled(&net, 1).collect::<Vec<_>>(), [0, 2, 1, 3]);
        assert_eq!(tiled(&net, 2).collect::<Vec<_>>(), [0, 1, 4, 5, 2, 3, 6, 7]);
    }

    #[test]
    fn a_matrix_of_heads_is_taken_apart() {
        let net = GatedDeltaNet { key_heads: 2, value_heads: 2, key_dim: 1, value_dim: 1, ..SAMPLE };
        let Pick::Rows { rows, of } = taken_apart(&net, &[(0, 1), (1, 1), (2, 1)]).pick else { panic!("rows") };
        assert_eq!((&rows[..], of), (&[0, 4, 1, 5, 2, 6][..], 8));
    }
}
