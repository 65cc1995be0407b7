//! The twelve bytes in which Q4_K and Q5_K keep eight six-bit scales and eight six-bit minima.
//!
//! Bytes 0–3 hold scales 0–3 and bytes 4–7 minima 0–3 in their low six bits; bytes 8–11 hold the low nibbles of scales 4–7
//! (low) and minima 4–7 (high), whose upper two bits are bits 6–7 of bytes 0–3 and 4–7.

use super::bits::put_halves;
use crate::grid::{LANES, Steps};

/// Scale and minimum of group `g`.
pub fn scale_and_min(bytes: &[u8], g: usize) -> (u8, u8) {
    if g < 4 {
        (bytes[g] & 63, bytes[g + 4] & 63)
    } else {
        (bytes[g + 4] & 15 | (bytes[g - 4] >> 6) << 4, bytes[g + 4] >> 4 | (bytes[g] >> 6) << 4)
    }
}

/// Writes all eight pairs.
fn put_scales(bytes: &mut [u8], pair: impl Fn(usize) -> (u8, u8)) {
    for g in 0..4 {
        let ((scale, min), (high_scale, high_min)) = (pair(g), pair(g + 4));
        bytes[g] = scale | (high_scale >> 4) << 6;
        bytes[g + 4] = min | (high_min >> 4) << 6;
        bytes[g + 8] = high_scale & 15 | (high_min & 15) << 4;
    }
}

/// Writes the scales of sixteen blocks of Q4_K or Q5_K: `d` and `dmin`, and the twelve bytes behind them.
pub fn put_head(steps: &Steps, blocks: &mut [u8]) {
    put_halves(blocks, 0, steps.d);
    put_halves(blocks, 2, steps.dmin);
    let bytes = blocks.len() / LANES;
    for (l, block) in blocks.chunks_mut(bytes).enumerate() {
        put_scales(&mut block[4..], |g| (steps.scales[g].0[l] as u8, steps.mins[g].0[l] as u8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_survives_in_every_place() {
        for seed in 0..64u8 {
            let pair = |g: usize| ((seed + 7 * g as u8) % 64, seed.wrapping_mul(3).wrapping_add(11 * g as u8) % 64);
            let mut bytes = [0; 12];
            put_scales(&mut bytes, pair);
            for g in 0..8 {
                assert_eq!(scale_and_min(&bytes, g), pair(g));
            }
        }
    }
}
