//! Tiles in the registers of NEON: twelve rows of eight columns, four in a register, leave eight of thirty-two registers for operands.

use super::{Pair, Tile};
use std::arch::aarch64::*;
use std::arch::asm;

/// Registers of a row of sums.
const WIDE: usize = 2;

/// Rows of sums.
const HIGH: usize = 12;

/// The sums that a tile begins with.
#[inline]
#[target_feature(enable = "neon")]
fn begun(add: bool, tile: &Tile) -> [[float32x4_t; WIDE]; HIGH] {
    std::array::from_fn(|i| {
        std::array::from_fn(|j| {
            let from = &tile.0[(i * WIDE + j) * 4..][..4];
            // SAFETY: `from` has four numbers.
            unsafe { if add { vld1q_f32(from.as_ptr()) } else { vdupq_n_f32(0.0) } }
        })
    })
}

/// Puts sums where they belong in a tile.
#[inline]
#[target_feature(enable = "neon")]
fn stored(c: [[float32x4_t; WIDE]; HIGH], tile: &mut Tile) {
    for (to, c) in tile.0.chunks_exact_mut(4 * WIDE).zip(c) {
        for (j, c) in c.into_iter().enumerate() {
            let to = &mut to[4 * j..][..4];
            // SAFETY: `to` has four numbers.
            unsafe { vst1q_f32(to.as_mut_ptr(), c) };
        }
    }
}

/// For numbers of single precision. `a`: `[depth, 12]`; `b`: `[depth, 8]`.
#[target_feature(enable = "neon")]
pub fn single(a: &[f32], b: &[f32], add: bool, tile: &mut Tile) {
    let mut c = begun(add, tile);
    for (a, b) in a.chunks_exact(HIGH).zip(b.chunks_exact(4 * WIDE)) {
        // SAFETY: there are twelve numbers, and eight.
        let (a, b) = unsafe {
            let (a, b) = (a.as_ptr(), b.as_ptr());
            ([vld1q_f32(a), vld1q_f32(a.add(4)), vld1q_f32(a.add(8))], [vld1q_f32(b), vld1q_f32(b.add(4))])
        };
        for j in 0..WIDE {
            for (i, a) in [(0, a[0]), (4, a[1]), (8, a[2])] {
                c[i][j] = vfmaq_laneq_f32::<0>(c[i][j], b[j], a);
                c[i + 1][j] = vfmaq_laneq_f32::<1>(c[i + 1][j], b[j], a);
                c[i + 2][j] = vfmaq_laneq_f32::<2>(c[i + 2][j], b[j], a);
                c[i + 3][j] = vfmaq_laneq_f32::<3>(c[i + 3][j], b[j], a);
            }
        }
    }
    stored(c, tile);
}

/// One row's sums with one of four pairs of `a`: products of bfloat16, summed in single precision. The instruction stands here as text
/// because stable Rust has no name for it.
macro_rules! dot {
    ($c:expr, $b:expr, $a:expr, $pair:literal) => {
        // SAFETY: it reads and writes these registers only, and the function has the feature.
        unsafe {
            asm!(
                concat!("bfdot {c:v}.4s, {b:v}.8h, {a:v}.2h[", $pair, "]"),
                c = inout(vreg) $c,
                b = in(vreg) $b,
                a = in(vreg) $a,
                options(pure, nomem, nostack, preserves_flags),
            )
        }
    };
}

/// For pairs of bfloat16. `a`: `[depth, 12]`; `b`: `[depth, 8]`.
#[target_feature(enable = "neon,bf16")]
pub fn pairs(a: &[Pair], b: &[Pair], add: bool, tile: &mut Tile) {
    let mut c = begun(add, tile);
    for (a, b) in a.chunks_exact(HIGH).zip(b.chunks_exact(4 * WIDE)) {
        // SAFETY: there are twelve pairs, and eight, of 32 bits each.
        let (a, b) = unsafe {
            let (a, b) = (a.as_ptr().cast::<u32>(), b.as_ptr().cast::<u32>());
            ([vld1q_u32(a), vld1q_u32(a.add(4)), vld1q_u32(a.add(8))], [vld1q_u32(b), vld1q_u32(b.add(4))])
        };
        for j in 0..WIDE {
            for (i, a) in [(0, a[0]), (4, a[1]), (8, a[2])] {
                dot!(c[i][j], b[j], a, "0");
                dot!(c[i + 1][j], b[j], a, "1");
                dot!(c[i + 2][j], b[j], a, "2");
                dot!(c[i + 3][j], b[j], a, "3");
            }
        }
    }
    stored(c, tile);
}
