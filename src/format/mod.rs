//! The block types of GGUF: how their bytes are laid out, what they decode to, and how they act as grids.
//!
//! To add a type, write one file that implements [`Format`] (and [`Grid`]) and add it to [`TYPES`].

mod bf16;
mod bits;
pub mod budget;
mod codebook;
pub mod exact;
mod f16;
mod f32;
pub mod integer;
mod iq1_m;
mod iq1_s;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_s;
mod iq3_xxs;
mod iq4_nl;
mod iq4_xs;
pub mod mix;
mod mxfp4;
mod nvfp4;
mod q1_0;
mod q2_0;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
pub mod recipe;
mod regrid;
mod scale_packing;
mod signs;
mod superblock;
mod tq1_0;
mod tq2_0;
mod vector;

use crate::error::{Error, Result};
use crate::grid::Grid;
use rayon::prelude::*;

/// Every type, in ggml's order.
pub static TYPES: &[Type] = &[
    &f32::F32,
    &f16::F16,
    &q4_0::Q4_0,
    &q4_1::Q4_1,
    &q5_0::Q5_0,
    &q5_1::Q5_1,
    &q8_0::Q8_0,
    &q2_k::Q2K,
    &q3_k::Q3K,
    &q4_k::Q4K,
    &q5_k::Q5K,
    &q6_k::Q6K,
    &iq2_xxs::Iq2Xxs,
    &iq2_xs::Iq2Xs,
    &iq3_xxs::Iq3Xxs,
    &iq1_s::Iq1S,
    &iq4_nl::Iq4Nl,
    &iq3_s::Iq3S,
    &iq2_s::Iq2S,
    &iq4_xs::Iq4Xs,
    &iq1_m::Iq1M,
    &bf16::BF16,
    &tq1_0::Tq1_0,
    &tq2_0::Tq2_0,
    &mxfp4::MXFP4,
    &nvfp4::NVFP4,
    &q1_0::Q1_0,
    &q2_0::Q2_0,
];

/// One of [`TYPES`].
pub type Type = &'static dyn Format;

/// How values become bytes.
pub enum Encoding {
    /// Blocks of codes with scales: a method chooses both.
    Grid(&'static dyn Grid),
    /// Every number by itself: `(number, its bytes)`.
    Each(fn(::core::primitive::f32, &mut [u8])),
    /// The type is read, and never written.
    ReadOnly,
}

/// A type's name and the size of its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    /// ggml's name, in capitals.
    pub name: &'static str,
    /// ggml's number of the type.
    pub id: u32,
    /// Numbers per block; a row has to be divisible by it.
    pub width: usize,
    /// Bytes per block.
    pub bytes: usize,
}

/// A type of GGUF tensor.
pub trait Format: Sync {
    /// What it is called and how large its blocks are.
    fn spec(&self) -> Spec;

    /// Decodes one block: `block`: `[bytes]`, `out`: `[width]`.
    fn decode(&self, block: &[u8], out: &mut [::core::primitive::f32]);

    /// Decodes whole blocks, one after the other: `blocks`: `[n, bytes]`, `out`: `[n, width]`.
    fn decode_blocks(&self, blocks: &[u8], out: &mut [::core::primitive::f32]) {
        let Spec { width, bytes, .. } = self.spec();
        for (out, block) in out.chunks_mut(width).zip(blocks.chunks(bytes)) {
            self.decode(block, out);
        }
    }

    /// How values become blocks.
    fn encoding(&self) -> Encoding;
}

impl std::fmt::Debug for dyn Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq for dyn Format {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl dyn Format {
    /// ggml's name, in capitals.
    pub fn name(&self) -> &'static str {
        self.spec().name
    }

    /// ggml's number of the type.
    pub fn id(&self) -> u32 {
        self.spec().id
    }

    /// Numbers per block; a row has to be divisible by it.
    pub fn width(&self) -> usize {
        self.spec().width
    }

    /// Bytes per block.
    pub fn bytes(&self) -> usize {
        self.spec().bytes
    }

    /// Bytes of a tensor of `elements` numbers.
    pub fn size(&self, elements: u64) -> u64 {
        elements / self.width() as u64 * self.bytes() as u64
    }

    /// Bits per number.
    pub fn bits(&self) -> f64 {
        8.0 * self.bytes() as f64 / self.width() as f64
    }

    /// Whether the type's blocks hold codes that stand for rounded values.
    pub fn is_quantized(&self) -> bool {
        !matches!(self.encoding(), Encoding::Each(_))
    }

    /// Decodes whole blocks on all threads.
    pub fn decode_all(&self, bytes: &[u8]) -> Vec<::core::primitive::f32> {
        let blocks = bytes.len() / self.bytes();
        let mut out = vec![0.0; blocks * self.width()];
        let part = (1usize << 14).div_ceil(self.width());
        out.par_chunks_mut(part * self.width()).zip(bytes.par_chunks(part * self.bytes())).for_each(|(out, bytes)| {
            self.decode_blocks(bytes, out);
        });
        out
    }
}

/// The types that llmq writes, in ggml's order.
pub fn writable() -> impl Iterator<Item = Type> {
    TYPES.iter().copied().filter(|t| !matches!(t.encoding(), Encoding::ReadOnly))
}

/// The type of a name in any case, among those that llmq writes.
///
/// # Errors
/// An unknown name, or a type that is only read; the hint lists those that are written.
pub fn by_name(name: &str) -> Result<Type> {
    let found = TYPES.iter().find(|t| t.name().eq_ignore_ascii_case(name));
    if let Some(kind) = found.filter(|t| !matches!(t.encoding(), Encoding::ReadOnly)) {
        return Ok(*kind);
    }
    let known: Vec<_> = writable().map(|t| t.name()).collect();
    Err(match found {
        Some(kind) => {
            let what = format!("llmq reads tensors of type {}, but does not write them", kind.name());
            Error::usage(what).hint(format!("the types are {}", known.join(", ")))
        }
        None => Error::unknown("type", name, &known),
    })
}

/// The type of ggml's number `id`.
pub fn by_id(id: u32) -> Option<Type> {
    TYPES.iter().copied().find(|t| t.id() == id)
}

/// Converts numbers to a type that stores each by itself.
///
/// # Errors
/// A number that the type cannot hold, by its position.
///
/// # Panics
/// If the type is a grid: those need a method.
pub fn convert(to: Type, x: &[::core::primitive::f32]) -> Result<Vec<u8>> {
    let Encoding::Each(encode) = to.encoding() else { panic!("{} needs a method", to.name()) };
    let mut out = vec![0; x.len() * to.bytes()];
    const PART: usize = 1 << 15;
    out.par_chunks_mut(PART * to.bytes()).zip(x.par_chunks(PART)).enumerate().try_for_each(|(part, (out, x))| {
        for (i, (bytes, &x)) in out.chunks_mut(to.bytes()).zip(x).enumerate() {
            encode(x, bytes);
            let mut back = [0.0];
            to.decode(bytes, &mut back);
            if !back[0].is_finite() {
                let at = part * PART + i;
                return Err(Error::new(format!("element {at} is {x}, which {} cannot hold", to.name()))
                    .hint("choose BF16 or F32 for this tensor (--tensor-type)"));
            }
        }
        Ok(())
    })?;
    Ok(out)
}

/// How many numbers that are not zero a type has made zeros of because its smallest number, or the smallest scale of its blocks, is
/// larger: those of blocks of which nothing is left. Zeros among other codes are only rounded. `x`, `decoded`: `[n]`.
pub fn vanished(kind: Type, x: &[::core::primitive::f32], decoded: &[::core::primitive::f32]) -> usize {
    let lost = |(x, decoded): (&[::core::primitive::f32], &[::core::primitive::f32])| match decoded {
        [] => 0,
        decoded if decoded.iter().any(|decoded| *decoded != 0.0) => 0,
        _ => x.iter().filter(|x| **x != 0.0).count(),
    };
    let width = kind.width();
    x.par_chunks(width << 10)
        .zip(decoded.par_chunks(width << 10))
        .map(|(x, decoded)| x.chunks(width).zip(decoded.chunks(width)).map(lost).sum::<usize>())
        .sum()
}

#[cfg(test)]
mod tests;
