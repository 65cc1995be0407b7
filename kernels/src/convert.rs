//! Half-precision numbers and single-precision ones.

use crate::dispatch::kernel;
use crate::micro::to_bf16;

/// `x` in half precision, as bits, in single precision: exact for every value, NaN and infinity included.
#[inline(always)]
fn f16(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let magnitude = (bits & 0x7fff) << 13;
    // The exponent moves from a bias of 15 to one of 127. Multiplied, subnormal numbers become normal ones.
    let scaled = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
    let special = if magnitude >= 0x0f80_0000 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | (bits & 0x8000) << 16)
}

kernel! {
    /// Converts little-endian half-precision numbers. `bytes`: `[n, 2]`, `out`: `[n]`.
    pub fn f16_to_f32 / f16_to_f32_on(bytes: &[u8], out: &mut [f32]) {
        for (x, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *x = f16(u16::from_le_bytes(*bytes));
        }
    }
}

kernel! {
    /// Converts little-endian bfloat16 numbers. `bytes`: `[n, 2]`, `out`: `[n]`.
    pub fn bf16_to_f32 / bf16_to_f32_on(bytes: &[u8], out: &mut [f32]) {
        for (x, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *x = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
        }
    }
}

kernel! {
    /// Rounds numbers to bfloat16, ties to even; NaN stays NaN. `x`: `[n]`, `bytes`: `[n, 2]`, little-endian.
    pub fn f32_to_bf16 / f32_to_bf16_on(x: &[f32], bytes: &mut [u8]) {
        for (bytes, x) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(x) {
            *bytes = ((to_bf16(*x) >> 16) as u16).to_le_bytes();
        }
    }
}

kernel! {
    /// Converts little-endian single-precision numbers. `bytes`: `[n, 4]`, `out`: `[n]`.
    pub fn f32_to_f32 / f32_to_f32_on(bytes: &[u8], out: &mut [f32]) {
        for (x, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *x = f32::from_le_bytes(*bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn every_half_precision_number_is_exact_on_every_instruction_set() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for isa in Isa::available() {
            // Tails of every length.
            for skip in 0..17 {
                let bytes = &all[2 * skip..];
                let mut out = vec![0.0; bytes.len() / 2];
                f16_to_f32_on(isa, bytes, &mut out);
                for (i, x) in out.iter().enumerate() {
                    let wanted = half::f16::from_bits((i + skip) as u16).to_f32();
                    assert!(x.to_bits() == wanted.to_bits() || x.is_nan() && wanted.is_nan(), "{isa:?} {i}");
                }
                bf16_to_f32_on(isa, bytes, &mut out);
                for (i, x) in out.iter().enumerate() {
                    assert_eq!(x.to_bits(), ((i + skip) as u32) << 16, "{isa:?} {i}");
                }
            }
            let numbers: Vec<f32> = (0..35).map(|i| (i as f32 * 0.7).sin() * 10f32.powi(i % 60 - 30)).collect();
            for n in 0..numbers.len() {
                let special = [f32::NAN, f32::INFINITY, f32::MAX, -0.0];
                let numbers = [&special[..n.min(4)], &numbers[n.min(4)..n]].concat();
                let mut bytes = vec![0; 2 * n];
                f32_to_bf16_on(isa, &numbers, &mut bytes);
                let wanted: Vec<u8> = numbers.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
                assert_eq!(bytes, wanted, "{isa:?} {n}");
            }
            let numbers = [1.5f32, -0.0, f32::MAX];
            let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
            let mut out = [0.0; 3];
            f32_to_f32_on(isa, &bytes, &mut out);
            assert_eq!(out, numbers);
        }
    }
}
