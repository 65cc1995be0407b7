//! Tiles in the registers of AVX2 and AVX-512, and what they are packed from.

use super::{Element, Pair, Tile};
use crate::pack::View;
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

/// Thirty-two numbers as sixteen pairs of neighbours, the first sixteen in the lower half. Numbers too small to be normal become zero, as
/// they do in products.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub fn rounded(first: __m512, second: __m512) -> __m512i {
    // SAFETY: a register is a register, whatever its numbers are taken for.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)) }
}

/// `[16, 16]` lanes of 32 bits, transposed: lanes of neighbouring rows side by side, then pairs of lanes, then quarters of registers.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut one = rows;
    for i in (0..16).step_by(2) {
        one[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        one[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // Register 4i + j: of rows 4i..4i + 4 column j of each quarter.
    let mut two = one;
    for i in (0..16).step_by(4) {
        two[i] = _mm512_unpacklo_epi64(one[i], one[i + 2]);
        two[i + 1] = _mm512_unpackhi_epi64(one[i], one[i + 2]);
        two[i + 2] = _mm512_unpacklo_epi64(one[i + 1], one[i + 3]);
        two[i + 3] = _mm512_unpackhi_epi64(one[i + 1], one[i + 3]);
    }
    let mut out = two;
    for j in 0..4 {
        let [a, b, c, d] = [two[j], two[4 + j], two[8 + j], two[12 + j]];
        let even = [_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d)];
        let odd = [_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d)];
        out[j] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
        out[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
        out[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
        out[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
    }
    out
}

/// Packs rows whose numbers lie side by side, sixteen rows and elements at once. `elements`: those that a row's numbers from one on make,
/// at most sixteen, with zeros behind; `out`: as [`Element::pack`] has it.
#[inline]
#[target_feature(enable = "avx512f")]
fn rows_of<E: Element>(part: View<'_>, width: usize, out: &mut [E], elements: impl Fn(&[f32]) -> __m512i) {
    const { assert!(size_of::<E>() == 4) };
    for (j, out) in (0..).step_by(16).zip(out.chunks_mut(16 * width)) {
        let columns = j * E::NUMBERS..((j + 16) * E::NUMBERS).min(part.columns);
        for i in (0..width).step_by(16) {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (at, row) in (i..part.rows).zip(&mut rows) {
                let numbers = &part.row(at)[columns.clone()];
                *row = elements(numbers);
                // Rows are too short for a processor to guess that those of the next panel come next.
                for line in (0..numbers.len()).step_by(16) {
                    let next = numbers.as_ptr().wrapping_add(line + width * part.steps.0);
                    _mm_prefetch::<_MM_HINT_T0>(next.cast());
                }
            }
            let lanes = (1u32 << (width - i).min(16)) - 1;
            for (out, column) in out.chunks_mut(width).zip(transposed(rows)) {
                // SAFETY: only the lanes that are left of this line are written; elements have as many bits.
                unsafe { _mm512_mask_storeu_epi32(out[i..].as_mut_ptr().cast(), lanes as __mmask16, column) };
            }
        }
    }
}

/// Up to sixteen numbers, zeros behind.
#[inline]
#[target_feature(enable = "avx512f")]
fn some(numbers: &[f32]) -> __m512 {
    let lanes = (1u32 << numbers.len().min(16)) - 1;
    // SAFETY: lanes that are not there are not read.
    unsafe { _mm512_maskz_loadu_ps(lanes as __mmask16, numbers.as_ptr()) }
}

/// [`Element::pack`] of rows whose numbers lie side by side.
#[target_feature(enable = "avx512f")]
pub fn pack_rows(part: View<'_>, width: usize, out: &mut [f32]) {
    rows_of(part, width, out, |numbers| _mm512_castps_si512(some(numbers)));
}

/// The same in pairs.
#[target_feature(enable = "avx512f,avx512bf16")]
pub fn pack_rows_in_pairs(part: View<'_>, width: usize, out: &mut [Pair]) {
    rows_of(part, width, out, |numbers| {
        let (first, second) = numbers.split_at(numbers.len().min(16));
        rounded(some(first), some(second))
    });
}
