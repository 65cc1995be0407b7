//! Grids of GPTQ, AWQ and compressed-tensors: `(q − zero)·d` for whole numbers `q`, with `d` in half precision.
//!
//! Without zero points, `zero` is half of the range: with 32 columns those are the numbers of Q4_0, and nearly those of Q8_0,
//! whose lowest code is one higher. With them, each group has its own, from one to fifteen: the first version of GPTQ's format
//! stores one less, and programs differ in what a stored −1 means (see `source::checkpoint::gptq`).
//!
//! Files of GGUF do not have these types. Their blocks are in the draft that a folder is made from, and nowhere else.

use super::bits::{half_at, nibble, put_halves, put_nibbles};
use super::{Encoding, Format, Spec, Type, regrid, superblock};
use crate::error::{Error, Result};
use crate::grid::{Codes, Effort, F, Freedom, Grid, LANES, Levels, RowSteps, Shape, Steps};

/// A block: `d` as f16, the zero point as u8, a byte of nothing, then the codes.
const HEADER: usize = 4;

/// Numbers that ggml gives to no type.
const FIRST_ID: u32 = 0x1000;

/// One such grid.
pub struct Integer {
    name: &'static str,
    place: u32,
    /// Bits per code.
    pub bits: usize,
    /// Columns that share a scale.
    pub group: usize,
    /// Whether each group has a zero point of its own.
    pub zeros: bool,
}

const fn symmetric(name: &'static str, place: u32, bits: usize, group: usize) -> Integer {
    Integer { name, place, bits, group, zeros: false }
}

const fn with_zeros(name: &'static str, place: u32, group: usize) -> Integer {
    Integer { name, place, bits: 4, group, zeros: true }
}

/// Every such grid, under llm-compressor's names: weights in so many bits, activations in sixteen.
static GRIDS: [Integer; 9] = [
    symmetric("W4A16_G32", 0, 4, 32),
    symmetric("W4A16_G64", 1, 4, 64),
    symmetric("W4A16_G128", 2, 4, 128),
    with_zeros("W4A16_ASYM_G32", 3, 32),
    with_zeros("W4A16_ASYM_G64", 4, 64),
    with_zeros("W4A16_ASYM_G128", 5, 128),
    symmetric("W8A16_G32", 6, 8, 32),
    symmetric("W8A16_G64", 7, 8, 64),
    symmetric("W8A16_G128", 8, 8, 128),
];

/// Their names without the groups.
pub const NAMES: [&str; 3] = ["W4A16", "W4A16_ASYM", "W8A16"];

/// Columns that may share a scale.
pub const SIZES: [usize; 3] = [32, 64, 128];

/// The grid of a name in any case and of a group size; none if no grid is called so.
pub fn by_name(name: &str, group: usize) -> Option<Type> {
    let full = format!("{name}_G{group}");
    GRIDS.iter().find(|grid| grid.name.eq_ignore_ascii_case(&full)).map(|grid| grid as Type)
}

/// The grid whose blocks have this number in a draft.
pub fn by_id(id: u32) -> Option<Type> {
    GRIDS.iter().find(|grid| grid.spec().id == id).map(|grid| grid as Type)
}

/// What a type's blocks hold, for those that are `(q − zero)·d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Bits per code.
    pub bits: usize,
    /// Columns that share a scale.
    pub group: usize,
    /// Whether each group has a zero point of its own; it is half of the range otherwise.
    pub zeros: bool,
}

/// What a type's blocks hold; none if they hold something else.
pub fn content(kind: Type) -> Option<Content> {
    match kind.name() {
        "Q4_0" => Some(Content { bits: 4, group: 32, zeros: false }),
        "Q8_0" => Some(Content { bits: 8, group: 32, zeros: false }),
        _ => {
            let grid = GRIDS.iter().find(|grid| grid.spec().id == kind.id())?;
            Some(Content { bits: grid.bits, group: grid.group, zeros: grid.zeros })
        }
    }
}

/// Takes a block apart: its codes, `[width]`, and returns its scale, as the bits of its half-precision number, and its zero point.
///
/// # Panics
/// If the type has no [`content`].
pub fn take_apart(kind: Type, block: &[u8], codes: &mut [u8]) -> (u16, u8) {
    let scale = u16::from_le_bytes([block[0], block[1]]);
    let four = |packed: &[u8], codes: &mut [u8]| {
        for (codes, packed) in codes.chunks_mut(32).zip(packed.chunks(16)) {
            codes.iter_mut().enumerate().for_each(|(i, code)| *code = nibble(packed, i));
        }
    };
    match (kind.name(), content(kind).map(|content| content.bits)) {
        ("Q4_0", _) => four(&block[2..], codes),
        ("Q8_0", _) => codes.iter_mut().zip(&block[2..]).for_each(|(code, &byte)| *code = byte ^ 0x80),
        (_, Some(4)) => four(&block[HEADER..], codes),
        (_, Some(8)) => codes.copy_from_slice(&block[HEADER..]),
        _ => panic!("{} has no codes with zero points", kind.name()),
    }
    let zero = match (kind.name(), content(kind).map(|content| content.bits)) {
        ("Q4_0", _) => 8,
        ("Q8_0", _) => 128,
        _ => block[2],
    };
    (scale, zero)
}

impl Integer {
    fn middle(&self) -> u8 {
        1 << (self.bits - 1)
    }

    fn size(&self) -> usize {
        HEADER + self.group * self.bits / 8
    }
}

impl Format for Integer {
    fn spec(&self) -> Spec {
        Spec { name: self.name, id: FIRST_ID + self.place, width: self.group, bytes: self.size() }
    }

    fn decode(&self, block: &[u8], out: &mut [f32]) {
        let (d, zero, packed) = (half_at(block, 0), f32::from(block[2]), &block[HEADER..]);
        for (j, x) in out.iter_mut().enumerate() {
            let q = if self.bits == 8 { packed[j] } else { nibble(&packed[j / 32 * 16..], j % 32) };
            *x = (f32::from(q) - zero) * d;
        }
    }

    fn encoding(&self) -> Encoding {
        match GRIDS.get(self.place as usize) {
            Some(grid) => Encoding::Grid(grid),
            None => Encoding::ReadOnly,
        }
    }
}

impl Grid for Integer {
    fn shape(&self) -> Shape {
        Shape { width: self.group, group: self.group, bytes: self.size() }
    }

    fn levels(&self) -> Levels {
        match (self.zeros, self.bits) {
            (true, _) => Levels::Uniform { lo: 0, hi: 15 },
            (false, 4) => Levels::Uniform { lo: -8, hi: 7 },
            (false, _) => Levels::Uniform { lo: -128, hi: 127 },
        }
    }

    fn freedom(&self) -> Freedom {
        match self.zeros {
            true => Freedom { mins: (1.0, 15.0), one_super: true, ..Freedom::PLAIN },
            false => Freedom::PLAIN,
        }
    }

    fn fit(&self, w: &[F], h: &[F], effort: Effort) -> Steps {
        match self.zeros {
            true => superblock::fit_zero(self, w, h, effort),
            false => superblock::fit_plain(self, w, h, effort),
        }
    }

    fn recognize(&self, x: &[f32]) -> Option<RowSteps> {
        if self.zeros { regrid::with_zero(self, x) } else { regrid::plain(self, x) }
    }

    fn store(&self, steps: &Steps, codes: &[Codes], blocks: &mut [u8]) {
        let (bytes, middle) = (self.size(), self.middle());
        put_halves(blocks, 0, steps.d);
        for (l, block) in blocks.chunks_mut(bytes).enumerate() {
            block[2] = if self.zeros { steps.mins[0].0[l] as u8 } else { middle };
            block[3] = 0;
        }
        match (self.bits, self.zeros) {
            (4, true) => put_nibbles(codes, 0, 16, blocks, HEADER),
            (4, false) => put_nibbles(codes, 8, 16, blocks, HEADER),
            _ => {
                for (l, block) in blocks.chunks_mut(bytes).enumerate().take(LANES) {
                    for (byte, code) in block[HEADER..].iter_mut().zip(codes) {
                        *byte = code[l] as u8 ^ 0x80;
                    }
                }
            }
        }
    }
}

/// The grid that `--type` and `--group-size` name.
///
/// # Errors
/// A name that is no grid of this kind, or groups that do not exist; the hint lists those that do.
pub fn asked(name: &str, group: Option<usize>) -> Result<Type> {
    let known = || format!("the types are {}, and Q4_0 and Q8_0 as in a GGUF", NAMES.join(", "));
    if let Some(size) = group.filter(|size| !SIZES.contains(size)) {
        return Err(Error::usage(format!("--group-size {size} is none that loaders know"))
            .hint(format!("the sizes are {}", SIZES.map(|size| size.to_string()).join(", "))));
    }
    if let Some(kind) = by_name(name, group.unwrap_or(128)) {
        return Ok(kind);
    }
    let upper = name.to_ascii_uppercase();
    match (upper.as_str(), group) {
        ("Q4_0" | "Q8_0", None | Some(32)) => super::by_name(name),
        ("Q4_0" | "Q8_0", Some(size)) => {
            Err(Error::usage(format!("{upper} has groups of 32, not of {size}")).hint(format!(
                "--type {} has a scale for as many columns as asked for",
                if upper == "Q4_0" { NAMES[0] } else { NAMES[2] }
            )))
        }
        ("Q4_1", _) => Err(Error::usage("Q4_1 has minima, which are no whole numbers of steps as zero points are")
            .hint("--type W4A16_ASYM --group-size 32 is the nearest grid that has them")),
        _ => Err(Error::usage(format!("'{name}' is no type of these folders")).hint(known())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn grid_of(kind: Type) -> &'static dyn Grid {
        match kind.encoding() {
            Encoding::Grid(grid) => grid,
            _ => unreachable!("it is a grid"),
        }
    }

    fn all() -> impl Iterator<Item = Type> {
        let own = NAMES.iter().flat_map(|name| SIZES.map(|size| by_name(name, size).unwrap()));
        own.chain(["Q4_0", "Q8_0"].map(|name| super::super::by_name(name).unwrap()))
    }

    #[test]
    fn every_grid_is_found_by_name_and_number_and_is_at_its_place() {
        for (i, grid) in GRIDS.iter().enumerate() {
            assert_eq!(grid.place as usize, i);
            let id = grid.spec().id;
            assert_eq!(by_id(id).unwrap().name(), grid.name);
            assert!(super::super::by_id(id).is_none(), "GGUF has no such type");
        }
        assert_eq!(all().count(), 11);
        for (name, group, told) in [
            ("Q4_1", None, "no whole numbers"),
            ("Q4_0", Some(64), "groups of 32"),
            ("W4A16", Some(48), "--group-size 48"),
            ("Q4_K_M", None, "no type of these"),
        ] {
            let error = asked(name, group).err().unwrap();
            assert!(error.to_string().contains(told) && error.hint_text().is_some(), "{error}");
        }
        assert_eq!(asked("w4a16", None).unwrap().name(), "W4A16_G128");
        assert_eq!(asked("q4_0", Some(32)).unwrap().name(), "Q4_0");
    }

    proptest! {
        /// What is stored is what the steps stand for, and what is taken apart gives the same numbers.
        #[test]
        fn blocks_hold_what_was_chosen(values in prop::collection::vec(-1.0f32..1.0, 128), shift in -0.5f32..0.5) {
            for kind in all() {
                let grid = grid_of(kind);
                let (width, bytes) = (grid.width(), grid.bytes());
                let w: Vec<F> = values[..width].iter().map(|&x| F::splat(x + shift)).collect();
                let h = vec![F::splat(1.0); width];
                let steps = grid.fit(&w, &h, Effort::Full);
                let (scale, offset) = steps.step(0);
                let mut codes = vec![[0; LANES]; width];
                llmq_kernels::column::round(&w, scale, offset, grid.levels(), &mut codes);
                let mut blocks = vec![0xaa; LANES * bytes];
                grid.store(&steps, &codes, &mut blocks);
                let block = &blocks[bytes..2 * bytes];
                let (mut out, mut taken) = (vec![0.0; width], vec![0; width]);
                kind.decode(block, &mut out);
                let (d, zero) = take_apart(kind, block, &mut taken);
                let d = half::f16::from_bits(d).to_f32();
                for j in 0..width {
                    let level = grid.levels().level(codes[j][1]);
                    prop_assert_eq!(out[j], level.mul_add(scale.0[1], offset.0[1]), "{}", kind.name());
                    prop_assert_eq!(out[j], (f32::from(taken[j]) - f32::from(zero)) * d, "{}", kind.name());
                }
                // Numbers that are on the grid are known to be, and stay there.
                let found = grid.recognize(&out).expect("they are on it");
                let (scale, offset) = (found.d, -(found.dmin * found.mins[0]));
                for &x in &out {
                    let q = if scale == 0.0 { 0.0 } else { ((x - offset) / scale).round() };
                    prop_assert!((grid.levels().lowest()..=grid.levels().highest()).contains(&q));
                    prop_assert_eq!(q.mul_add(scale, offset), x, "{}", kind.name());
                }
            }
        }

        /// With zero points of its own a group is never worse off than without.
        #[test]
        fn zero_points_pay(values in prop::collection::vec(-1.0f32..1.0, 32), shift in -2.0f32..2.0) {
            let w: Vec<F> = values.iter().map(|&x| F::splat(x + shift)).collect();
            let h: Vec<F> = values.iter().map(|&x| F::splat(x.abs() + 0.1)).collect();
            for effort in [Effort::Quick, Effort::Full] {
                let error = |name: &str| {
                    let grid = grid_of(by_name(name, 32).unwrap());
                    let (scale, offset) = grid.fit(&w, &h, effort).step(0);
                    llmq_kernels::search::error(&w, &h, scale, offset, grid.levels()).0[0]
                };
                prop_assert!(error("W4A16_ASYM") <= error("W4A16") * 1.0001 + 1e-9);
            }
        }
    }
}
