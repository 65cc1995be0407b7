//! llama.cpp's mixes: a base type, and the tensors that get a better one.
//!
//! Which tensor gets which type is llama.cpp's choice (`llama_tensor_get_type` in its `llama-quant.cpp`), so that a file of
//! a given name has the size that people expect of it. Like there, tensors are told apart by their names in GGUF.

use super::{Type, by_name};
use crate::error::{Error, Result};
use crate::model::Model;

/// A named choice of types: what `--type` takes.
#[derive(Clone, Copy)]
pub struct Mix {
    /// Its name, in capitals.
    pub name: &'static str,
    /// `general.file_type` of a file made with it.
    pub file_type: u32,
    /// The type of everything that is not raised.
    pub base: Type,
    raise: fn(&Place) -> Option<&'static str>,
    /// It has one type for every layer, whatever the layer is for.
    even: bool,
}

/// What a mix has to know of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// `general.architecture`.
    pub architecture: String,
    /// Decoder blocks.
    pub blocks: usize,
    /// Query heads per key-value head.
    pub group: usize,
    /// Experts per block; zero or one where there are none.
    pub experts: usize,
    /// The embedding is the output matrix, too.
    pub tied: bool,
    /// The importance of columns is known, from an importance matrix or from calibration.
    pub importance: bool,
}

impl Facts {
    /// Of a model that llmq can run.
    pub fn of(model: &Model, importance: bool) -> Facts {
        let experts = model.blocks.iter().flat_map(|block| block.mixers()).find_map(|mixer| mixer.experts());
        Facts {
            architecture: model.architecture.gguf().into(),
            blocks: model.own_blocks(),
            group: model.group,
            experts: experts.map_or(0, |experts| experts.count),
            tied: model.tied,
            importance,
        }
    }
}

/// What a matrix is for, as far as mixes care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Category {
    Embedding,
    Output,
    Q,
    K,
    /// Values, also where they are fused with others.
    V,
    O,
    Down,
    /// What widens an MLP: its gate, or what is gated.
    Up,
    Other,
}

impl Category {
    /// By the name in GGUF.
    fn of(name: &str) -> Category {
        // The order counts: the first part that the name contains.
        const PARTS: [(&str, Category); 9] = [
            ("attn_qkv.weight", Category::V),
            ("attn_kv_b.weight", Category::V),
            ("attn_v.weight", Category::V),
            ("attn_k.weight", Category::K),
            ("attn_q.weight", Category::Q),
            ("attn_output.weight", Category::O),
            ("ffn_up", Category::Up),
            ("ffn_gate", Category::Up),
            ("ffn_down", Category::Down),
        ];
        match name {
            "output.weight" => Category::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Category::Embedding,
            _ => PARTS.iter().find(|(part, _)| name.contains(part)).map_or(Category::Other, |(_, category)| *category),
        }
    }
}

/// Where a matrix of a block is.
struct Place<'a> {
    category: Category,
    facts: &'a Facts,
    /// The block.
    i: usize,
    /// Whether the matrix is a stack of matrices, one per expert.
    stacked: bool,
}

impl Place<'_> {
    /// llama.cpp's `use_more_bits`: the first and the last eighth of the blocks, and every third between.
    fn more(&self) -> bool {
        let (i, n) = (self.i, self.facts.blocks);
        i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2
    }

    fn first_eighth(&self) -> bool {
        self.i < self.facts.blocks / 8
    }

    fn first_sixteenth(&self) -> bool {
        self.i < self.facts.blocks / 16
    }

    fn falcon(&self) -> bool {
        self.facts.architecture == "falcon"
    }

    /// Few enough key-value heads that good values are cheap.
    fn grouped(&self) -> bool {
        self.facts.group >= 4
    }

    /// Exactly the experts of Mixtral-8x7B.
    fn eight_experts(&self) -> bool {
        self.facts.experts == 8
    }
}

/// The output layer of the attention in most mixes of few bits.
fn attention_output(p: &Place, otherwise: Option<&'static str>) -> Option<&'static str> {
    match (p.falcon(), p.eight_experts()) {
        (true, _) => None,
        (false, true) => Some("Q5_K"),
        (false, false) => otherwise,
    }
}

/// The mixes of two bits and fewer; `better` is what some of them have for values and the first layers.
fn two_bits(p: &Place, better: &'static str, output: Option<&'static str>) -> Option<&'static str> {
    match p.category {
        Category::V if p.grouped() || p.facts.experts >= 4 => Some("Q4_K"),
        Category::V => Some(better),
        Category::K if p.eight_experts() => Some("Q4_K"),
        Category::Down if p.first_eighth() => Some(better),
        Category::O if p.eight_experts() => Some("Q5_K"),
        Category::O => output,
        _ => None,
    }
}

/// Every mix: `(name, file type, base type, what is raised)`.
type Row = (&'static str, u32, &'static str, fn(&Place) -> Option<&'static str>);

static MIXES: &[Row] = &[
    ("F32", 0, "F32", |_| None),
    ("F16", 1, "F16", |_| None),
    ("BF16", 32, "BF16", |_| None),
    ("Q8_0", 7, "Q8_0", |_| None),
    ("Q6_K", 18, "Q6_K", |_| None),
    ("Q5_K_M", 17, "Q5_K", |p| match p.category {
        Category::V | Category::Down if p.more() => Some("Q6_K"),
        _ => None,
    }),
    ("Q5_K_S", 16, "Q5_K", |_| None),
    ("Q5_1", 9, "Q5_1", |_| None),
    ("Q5_0", 8, "Q5_0", |p| match p.category {
        Category::Down if p.facts.importance && p.first_eighth() => Some("Q5_1"),
        _ => None,
    }),
    ("Q4_K_M", 15, "Q4_K", |p| match p.category {
        Category::V if p.more() => Some("Q6_K"),
        Category::Down if p.falcon() && p.first_sixteenth() => Some("Q6_K"),
        Category::Down if p.more() => Some(if p.falcon() { "Q5_K" } else { "Q6_K" }),
        Category::O => attention_output(p, None),
        _ => None,
    }),
    ("Q4_K_S", 14, "Q4_K", |p| match p.category {
        Category::V if p.i < 4 => Some("Q5_K"),
        Category::Down if !p.falcon() && p.first_eighth() => Some("Q5_K"),
        Category::O => attention_output(p, None),
        _ => None,
    }),
    ("Q4_1", 3, "Q4_1", |_| None),
    ("Q4_0", 2, "Q4_0", |p| match p.category {
        Category::Down if p.facts.importance && p.first_eighth() => Some("Q4_1"),
        _ => None,
    }),
    ("IQ4_NL", 25, "IQ4_NL", four_bit_tables),
    ("IQ4_XS", 30, "IQ4_XS", four_bit_tables),
    ("MXFP4", 38, "MXFP4", |_| None),
    ("MXFP4_MOE", 38, "MXFP4", |p| if p.stacked { None } else { Some("Q8_0") }),
    ("Q3_K_L", 13, "Q3_K", |p| match p.category {
        Category::V => Some("Q5_K"),
        Category::Down => Some(if p.falcon() { "Q4_K" } else { "Q5_K" }),
        Category::O if p.falcon() => Some("Q4_K"),
        Category::O if !p.eight_experts() => Some("Q5_K"),
        _ => None,
    }),
    ("Q3_K_M", 12, "Q3_K", |p| match p.category {
        Category::V => Some(if p.i < 2 { "Q5_K" } else { "Q4_K" }),
        Category::Down if p.first_sixteenth() => Some("Q5_K"),
        Category::Down if !p.falcon() || p.more() => Some("Q4_K"),
        Category::O => attention_output(p, Some("Q4_K")),
        _ => None,
    }),
    ("Q3_K_S", 11, "Q3_K", |p| match p.category {
        Category::O => attention_output(p, None),
        _ => None,
    }),
    ("IQ3_M", 27, "IQ3_S", |p| match p.category {
        Category::V => Some("Q4_K"),
        Category::Down if p.first_eighth() || p.eight_experts() && p.more() => Some("Q4_K"),
        Category::O => attention_output(p, Some("Q4_K")),
        _ => None,
    }),
    ("IQ3_S", 26, "IQ3_S", |p| match p.category {
        Category::V if p.grouped() => Some("Q4_K"),
        Category::O => attention_output(p, None),
        _ => None,
    }),
    ("IQ3_XS", 22, "IQ3_S", |p| match p.category {
        Category::V if p.grouped() => Some("Q4_K"),
        Category::Q | Category::K => Some("IQ3_XXS"),
        Category::Up if !p.first_eighth() && p.i < 7 * p.facts.blocks / 8 => Some("IQ3_XXS"),
        Category::O => attention_output(p, None),
        _ => None,
    }),
    ("IQ3_XXS", 23, "IQ3_XXS", |p| match p.category {
        Category::V if p.grouped() => Some("Q4_K"),
        Category::V if !p.facts.importance => Some("IQ3_S"),
        Category::Q | Category::K => Some("IQ2_S"),
        Category::Down if !p.facts.importance => Some(if p.first_eighth() { "Q4_K" } else { "Q3_K" }),
        Category::O => attention_output(p, Some("IQ3_S")),
        _ => None,
    }),
    ("Q2_K", 10, "Q2_K", |p| match p.category {
        Category::V => Some(if p.grouped() { "Q4_K" } else { "Q3_K" }),
        Category::Down => Some("Q3_K"),
        Category::O => attention_output(p, Some("Q3_K")),
        _ => None,
    }),
    ("Q2_K_S", 21, "Q2_K", |p| match p.category {
        Category::V if p.grouped() => Some("Q4_K"),
        Category::Down if p.first_eighth() => Some("Q4_K"),
        _ => None,
    }),
    ("IQ2_M", 29, "IQ2_S", |p| two_bits(p, "IQ3_S", Some("IQ3_S"))),
    ("IQ2_S", 28, "IQ2_XS", |p| two_bits(p, "IQ3_S", Some("IQ3_S"))),
    ("IQ2_XS", 20, "IQ2_XS", |p| two_bits(p, "Q2_K", None)),
    ("Q2_0", 41, "Q2_0", |_| None),
    ("IQ2_XXS", 19, "IQ2_XXS", |p| two_bits(p, "Q2_K", None)),
    ("TQ2_0", 37, "TQ2_0", |_| None),
    ("IQ1_M", 31, "IQ1_M", |p| two_bits(p, "Q2_K", Some("IQ2_XXS"))),
    ("TQ1_0", 36, "TQ1_0", |_| None),
    ("IQ1_S", 24, "IQ1_S", |p| two_bits(p, "Q2_K", Some("IQ2_XXS"))),
    ("Q1_0", 40, "Q1_0", |_| None),
];

/// What the mixes of few bits have for an embedding that is no output matrix, where that is not their base type.
fn embedding(mix: &str) -> Option<&'static str> {
    match mix {
        "IQ2_XXS" | "IQ2_XS" | "IQ1_S" | "IQ1_M" => Some("Q2_K"),
        "IQ2_S" | "IQ2_M" | "IQ3_XXS" => Some("IQ3_S"),
        "TQ1_0" | "TQ2_0" | "Q2_0" => Some("Q4_K"),
        _ => None,
    }
}

fn four_bit_tables(p: &Place) -> Option<&'static str> {
    match p.category {
        Category::V if p.grouped() => Some("Q5_K"),
        Category::Down if !p.facts.importance && p.first_eighth() => Some("Q5_K"),
        Category::O => attention_output(p, None),
        _ => None,
    }
}

/// Every mix, the largest first.
pub fn all() -> impl Iterator<Item = Mix> {
    MIXES.iter().filter_map(|&(name, file_type, base, raise)| {
        Some(Mix { name, file_type, base: by_name(base).ok()?, raise, even: false })
    })
}

/// llama.cpp's numbers of files that are only read here.
const READ_ONLY: [(&str, u32); 2] = [("NVFP4", 39), ("guessed", 1024)];

/// What llama.cpp calls a number of `general.file_type`, whether llmq writes such files or not.
pub fn file_type_name(number: u64) -> Option<&'static str> {
    let known = all().map(|mix| (mix.name, mix.file_type)).chain(READ_ONLY);
    known.into_iter().find(|(_, own)| u64::from(*own) == number).map(|(name, _)| name)
}

/// The mix of a name in any case; `Q3_K`, `Q4_K` and `Q5_K` are their `_M`.
///
/// # Errors
/// An unknown name; the hint lists those that exist.
pub fn named(name: &str) -> Result<Mix> {
    let wanted = name.to_uppercase();
    let full = if ["Q3_K", "Q4_K", "Q5_K"].contains(&wanted.as_str()) { format!("{wanted}_M") } else { wanted };
    all().find(|m| m.name == full).ok_or_else(|| {
        let known: Vec<_> = all().map(|m| m.name).collect();
        Error::unknown("type", name, &known)
    })
}

impl Mix {
    /// One type for every layer; the output matrix of a GGUF gets a better one, as in any mix.
    pub fn even(name: &'static str, file_type: u32, base: Type) -> Mix {
        Mix { name, file_type, base, raise: |_| None, even: true }
    }

    /// The type of a matrix: llama.cpp's choice. `columns`: its row length; `stacked`: whether it is one of several in a tensor.
    pub fn choose(&self, name: &str, columns: usize, stacked: bool, facts: &Facts) -> Type {
        if !self.base.is_quantized() {
            return self.base;
        }
        let category = Category::of(name);
        if category == Category::Output || category == Category::Embedding && facts.tied {
            return self.output(columns, facts);
        }
        if category == Category::Embedding && self.name != "MXFP4_MOE" {
            return embedding(self.name)
                .filter(|_| !self.even)
                .and_then(|name| by_name(name).ok())
                .unwrap_or(self.base);
        }
        let place = Place { category, facts, i: block(name).unwrap_or_default(), stacked };
        let mut chosen = (self.raise)(&place).unwrap_or(self.base.name());
        // The mixes of two bits and fewer are made for themselves.
        let two_bits = self.has_two_bits();
        if category == Category::V && self.name != "MXFP4_MOE" && !two_bits {
            // Llama-2-70B and its like: eight query heads share their values, which makes good ones cheap.
            if facts.blocks == 80 && facts.group > 1 && ["Q3_K", "Q4_K"].contains(&chosen) {
                chosen = "Q5_K";
            }
        }
        if matches!(category, Category::V | Category::K) && place.eight_experts() && !two_bits {
            chosen = "Q8_0";
        }
        by_name(chosen).unwrap_or(self.base)
    }

    /// The better type of a small layer from which a recurrent mixer takes how its state decays and what is written to it and read from
    /// it, or by which an indexer chooses what attention sees; none where `kind` is as good. llama.cpp gives it the base type, but errors
    /// stay in a state from token to token, what is not chosen is lost, and eight bits of these layers cost next to nothing.
    pub fn better_for_steering(&self, name: &str, kind: Type) -> Option<Type> {
        const LAYERS: [&str; 8] = [
            ".ssm_alpha.weight",
            ".ssm_beta.weight",
            ".ssm_ba.weight",
            ".ssm_dt.weight",
            ".ssm_x.weight",
            ".indexer.attn_q_b.weight",
            ".indexer.attn_k.weight",
            ".indexer.proj.weight",
        ];
        let better = by_name("Q8_0").ok()?;
        let concerned = !self.even && kind.is_quantized() && kind.bits() < better.bits();
        (concerned && LAYERS.iter().any(|layer| name.ends_with(layer))).then_some(better)
    }

    /// One of llama.cpp's mixes of the types with codebooks of two bits and fewer.
    fn has_two_bits(&self) -> bool {
        !self.even && (self.name.starts_with("IQ1") || self.name.starts_with("IQ2"))
    }

    /// The type of the output matrix, a tied embedding included: its errors reach the logits undamped.
    fn output(&self, columns: usize, facts: &Facts) -> Type {
        let eight = self.base.name() == "MXFP4"
            || self.base.name() == "Q8_0"
            || facts.architecture == "falcon"
            || !columns.is_multiple_of(self.base.width());
        let five = self.has_two_bits() || self.name == "IQ3_XXS" && !self.even;
        by_name(if eight {
            "Q8_0"
        } else if five {
            "Q5_K"
        } else {
            "Q6_K"
        })
        .unwrap_or(self.base)
    }
}

/// The block that a tensor belongs to.
pub fn block(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// What a type falls back to where rows do not divide into its blocks.
pub fn fallback(kind: Type) -> Type {
    let other = match kind.name() {
        "IQ1_S" | "IQ1_M" | "IQ2_XXS" | "IQ2_XS" | "IQ2_S" | "IQ3_XXS" | "IQ3_S" | "IQ4_XS" => "IQ4_NL",
        "Q2_0" | "Q2_K" | "Q3_K" | "TQ1_0" | "TQ2_0" => "Q4_0",
        "Q4_K" => "Q5_0",
        "Q5_K" => "Q5_1",
        "Q6_K" => "Q8_0",
        _ => "F16",
    };
    by_name(other).unwrap_or(kind)
}

/// Whether llama.cpp stores a tensor of this name and shape (slowest dimension first) in few bits; others stay as they are. One row alone
/// is a vector to it.
pub fn is_eligible(name: &str, shape: &[usize]) -> bool {
    // Norms, routers, positions, and what is small and sensitive in some architectures.
    const KEPT: [&str; 23] = [
        "_norm.weight",
        "ffn_gate_inp.weight",
        "ffn_gate_tid2eid.weight",
        "altup",
        "laurel",
        "per_layer_model_proj",
        "ssm_conv1d",
        "shortconv.conv.weight",
        "indexer.k_proj.weight",
        "indexer.q_proj.weight",
        "time_mix_first.weight",
        "time_mix_lerp_fused.weight",
        "attn_rel_b.weight",
        ".position_embd",
        "sam.pos_embd",
        "sam.neck.",
        "sam.net_",
        ".rel_pos",
        ".patch_embd",
        ".patch_merger",
        "a.rvq.codebook",
        "mm.a.code_embd",
        "time_mix_decay_w",
    ];
    let small_mixer =
        ["w", "v", "a", "g"].iter().any(|part| (0..3).any(|i| name.contains(&format!("time_mix_{part}{i}.weight"))));
    shape.iter().skip_while(|&&n| n == 1).count() >= 2
        && name.ends_with("weight")
        && !["position_embd.weight", "token_types.weight"].contains(&name)
        && !small_mixer
        && !KEPT.iter().any(|part| name.contains(part))
}
