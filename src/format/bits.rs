//! What several block formats share: half-precision fields and packed codes.

use crate::grid::{Codes, F, LANES};
use half::f16;

/// The half-precision number at byte `at`.
pub fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Writes half-precision numbers at byte `at` of each of sixteen blocks. They must be exact in half precision.
pub fn put_halves(blocks: &mut [u8], at: usize, values: F) {
    let bytes = blocks.len() / LANES;
    for (block, value) in blocks.chunks_mut(bytes).zip(values.0) {
        let half = f16::from_f32(value);
        debug_assert_eq!(half.to_f32(), value, "a scale that is not in half precision");
        block[at..at + 2].copy_from_slice(&half.to_le_bytes());
    }
}

/// Packs the low four bits of codes, shifted by `shift`, in ggml's order: of every `2·run` columns, byte `j` holds column
/// `j` in its low nibble and column `j + run` in its high one.
///
/// `at`: where the bytes start in each block.
pub fn put_nibbles(codes: &[Codes], shift: i8, run: usize, blocks: &mut [u8], at: usize) {
    let bytes = blocks.len() / LANES;
    for (l, block) in blocks.chunks_mut(bytes).enumerate() {
        for (codes, packed) in codes.chunks(2 * run).zip(block[at..].chunks_mut(run)) {
            for (j, byte) in packed.iter_mut().enumerate() {
                let low = (codes[j][l] + shift) as u8 & 15;
                let high = (codes[j + run][l] + shift) as u8 & 15;
                *byte = low | high << 4;
            }
        }
    }
}

/// Packs bit `bit` of 256 codes, shifted by `shift`, from byte `at` of each block on: bit `k` of byte `j` of 32 belongs to
/// column `32·k + j`.
pub fn put_bits(codes: &[Codes], shift: i8, bit: u32, blocks: &mut [u8], at: usize) {
    let bytes = blocks.len() / LANES;
    for (l, block) in blocks.chunks_mut(bytes).enumerate() {
        for (j, byte) in block[at..at + 32].iter_mut().enumerate() {
            *byte = (0..8).fold(0, |bits, k| bits | ((codes[32 * k + j][l] + shift) as u8 >> bit & 1) << k);
        }
    }
}

/// Packs the fifth bit of each of 32 codes, shifted by `shift`, as a little-endian `u32` at byte `at`: bit `i` belongs to
/// column `i`.
pub fn put_fifth_bits(codes: &[Codes], shift: i8, blocks: &mut [u8], at: usize) {
    let bytes = blocks.len() / LANES;
    for (l, block) in blocks.chunks_mut(bytes).enumerate() {
        let bits = (0..32).fold(0u32, |bits, i| bits | u32::from((codes[i][l] + shift) as u8 >> 4 & 1) << i);
        block[at..at + 4].copy_from_slice(&bits.to_le_bytes());
    }
}

/// The four-bit code of column `i` among the sixteen bytes `nibbles`.
pub fn nibble(nibbles: &[u8], i: usize) -> u8 {
    if i < 16 { nibbles[i] & 15 } else { nibbles[i - 16] >> 4 }
}

/// Decodes the 32 four-bit codes of sixteen bytes; see [`nibble`] for their order.
#[inline(always)]
pub fn each_nibble(nibbles: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(nibbles) {
        (*low, *high) = (value(byte & 15), value(byte >> 4));
    }
}

/// The five-bit code of column `i`: the fifth bits are the `u32` at byte `high`, the nibbles start at byte `low`.
pub fn five_bits(block: &[u8], high: usize, low: usize, i: usize) -> u8 {
    nibble(&block[low..], i) | (block[high + i / 8] >> (i % 8) & 1) << 4
}

/// The two-bit code of column `i` of a super-block: per 128 columns, byte `l` of 32 holds columns `l`, `l + 32`, `l + 64` and
/// `l + 96`, from the low bits up.
pub fn crumb(crumbs: &[u8], i: usize) -> u8 {
    crumbs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3
}

/// Packs two bits, from bit `bit` up, of 256 codes, shifted by `shift`, from byte `at` of each block on; see [`crumb`].
pub fn put_crumbs(codes: &[Codes], shift: i8, bit: u32, blocks: &mut [u8], at: usize) {
    let bytes = blocks.len() / LANES;
    for (l, block) in blocks.chunks_mut(bytes).enumerate() {
        for (b, byte) in block[at..at + 64].iter_mut().enumerate() {
            let first = b / 32 * 128 + b % 32;
            *byte = (0..4).fold(0, |bits, k| bits | ((codes[first + 32 * k][l] + shift) as u8 >> bit & 3) << (2 * k));
        }
    }
}
