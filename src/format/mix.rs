//! llama.cpp's mixes: a base type, and the tensors that get a better one.
//!
//! Which tensor gets which type is llama.cpp's choice (`llama_tensor_get_type` in its `llama-quant.cpp`), so that a file of
//! a given name has the size that people expect of it.

use super::{Type, by_name};
use crate::error::{Error, Result};
use crate::model::{Model, Part};

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
}

/// Where a layer is.
struct Place {
    part: Part,
    /// The block, and how many there are.
    i: usize,
    n: usize,
    /// Query heads per key-value head.
    group: usize,
}

impl Place {
    /// llama.cpp's `use_more_bits`: the first and the last eighth of the blocks, and every third between.
    fn more(&self) -> bool {
        let eighth = self.n / 8;
        self.i < eighth || self.i >= 7 * self.n / 8 || (self.i - eighth) % 3 == 2
    }

    fn first_eighth(&self) -> bool {
        self.i < self.n / 8
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
    ("Q5_K_M", 17, "Q5_K", |p| match p.part {
        Part::V | Part::Down if p.more() => Some("Q6_K"),
        _ => None,
    }),
    ("Q5_K_S", 16, "Q5_K", |_| None),
    ("Q5_1", 9, "Q5_1", |_| None),
    ("Q5_0", 8, "Q5_0", |_| None),
    ("Q4_K_M", 15, "Q4_K", |p| match p.part {
        Part::V | Part::Down if p.more() => Some("Q6_K"),
        _ => None,
    }),
    ("Q4_K_S", 14, "Q4_K", |p| match p.part {
        Part::V if p.i < 4 => Some("Q5_K"),
        Part::Down if p.first_eighth() => Some("Q5_K"),
        _ => None,
    }),
    ("Q4_1", 3, "Q4_1", |_| None),
    ("Q4_0", 2, "Q4_0", |_| None),
    ("IQ4_NL", 25, "IQ4_NL", |p| match p.part {
        Part::V if p.group >= 4 => Some("Q5_K"),
        _ => None,
    }),
    ("IQ4_XS", 30, "IQ4_XS", |p| match p.part {
        Part::V if p.group >= 4 => Some("Q5_K"),
        _ => None,
    }),
    ("MXFP4", 38, "MXFP4", |_| None),
    ("Q3_K_L", 13, "Q3_K", |p| match p.part {
        Part::V | Part::O | Part::Down => Some("Q5_K"),
        _ => None,
    }),
    ("Q3_K_M", 12, "Q3_K", |p| match p.part {
        Part::V => Some(if p.i < 2 { "Q5_K" } else { "Q4_K" }),
        Part::O => Some("Q4_K"),
        Part::Down => Some(if p.i < p.n / 16 { "Q5_K" } else { "Q4_K" }),
        _ => None,
    }),
    ("Q3_K_S", 11, "Q3_K", |_| None),
    ("Q2_K", 10, "Q2_K", |p| match p.part {
        Part::V => Some(if p.group >= 4 { "Q4_K" } else { "Q3_K" }),
        Part::O | Part::Down => Some("Q3_K"),
        _ => None,
    }),
    ("Q2_K_S", 21, "Q2_K", |p| match p.part {
        Part::V if p.group >= 4 => Some("Q4_K"),
        Part::Down if p.first_eighth() => Some("Q4_K"),
        _ => None,
    }),
];

/// Every mix, the largest first.
pub fn all() -> impl Iterator<Item = Mix> {
    MIXES
        .iter()
        .filter_map(|&(name, file_type, base, raise)| Some(Mix { name, file_type, base: by_name(base).ok()?, raise }))
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
        Error::usage(format!("unknown type '{name}'")).hint(format!("the types are {}", known.join(", ")))
    })
}

impl Mix {
    /// The type of a layer of block `i`.
    pub fn layer(&self, part: Part, i: usize, model: &Model) -> Type {
        let group = model.heads / model.kv_heads;
        let place = Place { part, i, n: model.blocks, group };
        let chosen = (self.raise)(&place).and_then(|name| by_name(name).ok()).unwrap_or(self.base);
        // Llama-2-70B and its like: eight query heads share their values, which makes good ones cheap.
        let seventy = model.blocks == 80 && group > 1;
        match chosen.name() {
            "Q3_K" | "Q4_K" if part == Part::V && seventy => by_name("Q5_K").unwrap_or(chosen),
            _ => chosen,
        }
    }

    /// The type of the output matrix, a tied embedding included: its errors reach the logits undamped.
    pub fn output(&self) -> Type {
        let kind = match self.base.name() {
            "Q8_0" | "MXFP4" => "Q8_0",
            _ if self.base.is_quantized() => "Q6_K",
            own => own,
        };
        by_name(kind).unwrap_or(self.base)
    }
}

/// What a type falls back to where rows do not divide into its blocks.
pub fn fallback(kind: Type) -> Type {
    let other = match kind.name() {
        "IQ4_XS" => "IQ4_NL",
        "Q2_K" | "Q3_K" => "Q4_0",
        "Q4_K" => "Q5_0",
        "Q5_K" => "Q5_1",
        "Q6_K" => "Q8_0",
        _ => "F16",
    };
    by_name(other).unwrap_or(kind)
}
