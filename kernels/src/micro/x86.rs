//! Tiles in the registers of AVX2 and AVX-512.

use super::{Pair, Tile};
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma")]
pub fn avx2(a: &[f32], b: &[f32], add: bool, tile: &mut Tile) {
    let mut c = [[_mm256_setzero_ps(); 2]; 6];
    if add {
        for (c, from) in c.iter_mut().zip(tile.0.chunks_exact(16)) {
            // SAFETY: `from` has sixteen numbers.
            *c = unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] };
        }
    }
    for (a, b) in a.chunks_exact(6).zip(b.chunks_exact(16)) {
        // SAFETY: `b` has sixteen numbers.
        let b = unsafe { [_mm256_loadu_ps(b.as_ptr()), _mm256_loadu_ps(b.as_ptr().add(8))] };
        for i in 0..6 {
            let a = _mm256_set1_ps(a[i]);
            c[i][0] = _mm256_fmadd_ps(a, b[0], c[i][0]);
            c[i][1] = _mm256_fmadd_ps(a, b[1], c[i][1]);
        }
    }
    for (to, c) in tile.0[..96].chunks_exact_mut(16).zip(c) {
        // SAFETY: `to` has sixteen numbers.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), c[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), c[1]);
        }
    }
}

#[target_feature(enable = "avx512f")]
pub fn avx512(a: &[f32], b: &[f32], add: bool, tile: &mut Tile) {
    let mut c = begun(add, tile);
    for (a, b) in a.chunks_exact(14).zip(b.chunks_exact(32)) {
        // SAFETY: `b` has thirty-two numbers.
        let b = unsafe { [_mm512_loadu_ps(b.as_ptr()), _mm512_loadu_ps(b.as_ptr().add(16))] };
        for i in 0..14 {
            let a = _mm512_set1_ps(a[i]);
            c[i][0] = _mm512_fmadd_ps(a, b[0], c[i][0]);
            c[i][1] = _mm512_fmadd_ps(a, b[1], c[i][1]);
        }
    }
    stored(&c, tile);
}

/// The sums that a tile begins with.
#[inline]
#[target_feature(enable = "avx512f")]
fn begun(add: bool, tile: &Tile) -> [[__m512; 2]; 14] {
    let mut c = [[_mm512_setzero_ps(); 2]; 14];
    if add {
        for (c, from) in c.iter_mut().zip(tile.0.chunks_exact(32)) {
            // SAFETY: `from` has thirty-two numbers.
            *c = unsafe { [_mm512_loadu_ps(from.as_ptr()), _mm512_loadu_ps(from.as_ptr().add(16))] };
        }
    }
    c
}

/// Puts accumulators where they belong in a tile.
#[inline]
#[target_feature(enable = "avx512f")]
fn stored(c: &[[__m512; 2]; 14], tile: &mut Tile) {
    for (to, c) in tile.0.chunks_exact_mut(32).zip(c) {
        // SAFETY: `to` has thirty-two numbers.
        unsafe {
            _mm512_storeu_ps(to.as_mut_ptr(), c[0]);
            _mm512_storeu_ps(to.as_mut_ptr().add(16), c[1]);
        }
    }
}

/// Sixteen pairs.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn pairs_of(first: *const Pair) -> __m512bh {
    // SAFETY: the caller's; and a register is a register, whatever its numbers are taken for.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(first.cast())) }
}

/// The same shape with two products in each addition: numbers of bfloat16 are multiplied exactly and summed in single
/// precision.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub fn avx512_bf16(a: &[Pair], b: &[Pair], add: bool, tile: &mut Tile) {
    let mut c = begun(add, tile);
    for (a, b) in a.chunks_exact(14).zip(b.chunks_exact(32)) {
        // SAFETY: `b` has thirty-two pairs.
        let b = unsafe { [pairs_of(b.as_ptr()), pairs_of(b.as_ptr().add(16))] };
        for i in 0..14 {
            // SAFETY: a register is a register, whatever its numbers are taken for.
            let a = unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(a[i].0 as i32)) };
            c[i][0] = _mm512_dpbf16_ps(c[i][0], a, b[0]);
            c[i][1] = _mm512_dpbf16_ps(c[i][1], a, b[1]);
        }
    }
    stored(&c, tile);
}
