//! The block types of GGUF: how their bytes are laid out, what they decode to, and how they act as grids.
//!
//! To add a type, write one file that implements [`Format`] (and [`Grid`]) and add it to [`TYPES`].

mod bf16;
mod bits;
mod f16;
mod f32;
mod iq4_nl;
mod iq4_xs;
pub mod mix;
mod mxfp4;
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
mod sixes;
mod superblock;

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
    &iq4_nl::Iq4Nl,
    &iq4_xs::Iq4Xs,
    &mxfp4::MXFP4,
    &bf16::BF16,
];

/// One of [`TYPES`].
pub type Type = &'static dyn Format;

/// How values become bytes.
pub enum Encoding {
    /// Blocks of codes with scales: a method chooses both.
    Grid(&'static dyn Grid),
    /// Every number by itself: `(number, its bytes)`.
    Each(fn(::core::primitive::f32, &mut [u8])),
}

/// A type of GGUF tensor.
pub trait Format: Sync {
    /// ggml's name, in capitals.
    fn name(&self) -> &'static str;

    /// ggml's number of the type.
    fn id(&self) -> u32;

    /// Numbers per block; a row has to be divisible by it.
    fn width(&self) -> usize;

    /// Bytes per block.
    fn bytes(&self) -> usize;

    /// Decodes one block: `block`: `[bytes]`, `out`: `[width]`.
    fn decode(&self, block: &[u8], out: &mut [::core::primitive::f32]);

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
    /// Bytes of a tensor of `elements` numbers.
    pub fn size(&self, elements: u64) -> u64 {
        elements / self.width() as u64 * self.bytes() as u64
    }

    /// Bits per number.
    pub fn bits(&self) -> f64 {
        8.0 * self.bytes() as f64 / self.width() as f64
    }

    /// Whether values become blocks of codes, so that a method has a choice to make.
    pub fn is_quantized(&self) -> bool {
        matches!(self.encoding(), Encoding::Grid(_))
    }

    /// Decodes whole blocks on all threads.
    pub fn decode_all(&self, bytes: &[u8]) -> Vec<::core::primitive::f32> {
        let blocks = bytes.len() / self.bytes();
        let mut out = vec![0.0; blocks * self.width()];
        let part = 4096_usize.div_ceil(self.width());
        out.par_chunks_mut(part * self.width()).zip(bytes.par_chunks(part * self.bytes())).for_each(|(out, bytes)| {
            for (out, block) in out.chunks_mut(self.width()).zip(bytes.chunks(self.bytes())) {
                self.decode(block, out);
            }
        });
        out
    }
}

/// The type of a name in any case.
///
/// # Errors
/// An unknown name; the hint lists those that exist.
pub fn by_name(name: &str) -> Result<Type> {
    TYPES.iter().copied().find(|t| t.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
        let known: Vec<_> = TYPES.iter().map(|t| t.name()).collect();
        Error::usage(format!("unknown type '{name}'")).hint(format!("the types are {}", known.join(", ")))
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

#[cfg(test)]
mod tests;
