//! The instructions themselves, which stand here as text because stable Rust has no names for them.

use super::{Register, SIDE, Split, Square};
use crate::micro::{Pair, Tile, each, x86};
use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Whether this process may use the registers: the processor has them, and the system has given leave (Linux, "Using XSTATE features
/// in user space applications").
pub fn allowed() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| {
        // Leaf 7: AMX-BF16 and AMX-TILE.
        let there = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (1 << 22 | 1 << 24) == 1 << 22 | 1 << 24;
        there && asked()
    })
}

#[cfg(target_os = "linux")]
fn asked() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call only says whether registers may be used; a system that does not know it refuses.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn asked() -> bool {
    false
}

/// What the registers are taken for.
#[repr(C, align(64))]
struct Shapes([u8; 64]);

/// Eight registers of sixteen rows of 64 bytes.
static SHAPES: Shapes = {
    let mut shapes = [0; 64];
    shapes[0] = 1;
    let mut register = 0;
    while register < 8 {
        shapes[16 + 2 * register] = 64;
        shapes[48 + register] = SIDE as u8;
        register += 1;
    }
    Shapes(shapes)
};

/// The shapes are set on this thread, until this goes.
pub struct Shaped(PhantomData<*const ()>);

impl Shaped {
    /// # Safety
    /// This process may use the registers.
    unsafe fn new() -> Shaped {
        // SAFETY: the caller's.
        unsafe { asm!("ldtilecfg [{shapes}]", shapes = in(reg) &SHAPES, options(nostack, readonly)) };
        Shaped(PhantomData)
    }
}

impl Drop for Shaped {
    fn drop(&mut self) {
        // SAFETY: it lets go of what `new` has set. Without it the system would save the registers at each change of threads.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// What registers hold: how they are multiplied.
pub trait Products: Sized {
    /// `tile = A·B`, or `tile += A·B`. `a`: `[depth, 2]`; `b`: `[depth, 2]`.
    fn add_up(shaped: &Shaped, a: &[Self], b: &[Self], add: bool, tile: &mut Tile);
}

/// Four registers of sums: what is in the tile or zero, to which each step of the depth adds, and which then become the tile.
macro_rules! sums {
    ($a:expr, $b:expr, $add:expr, $tile:expr, [$($step:literal),* $(,)?]) => {{
        let depth = $a.len() / 2;
        assert!($b.len() / 2 >= depth);
        asm!(
            "test {add:e}, {add:e}",
            "jz 2f",
            "tileloadd tmm0, [{tile} + 2*{line}]",
            "tileloadd tmm1, [{tile} + 2*{line} + 64]",
            "tileloadd tmm2, [{tile} + 2*{line} + 2048]",
            "tileloadd tmm3, [{tile} + 2*{line} + 2112]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "test {depth}, {depth}",
            "jz 5f",
            "4:",
            $($step,)*
            "dec {depth}",
            "jnz 4b",
            "5:",
            "tilestored [{tile} + 2*{line}], tmm0",
            "tilestored [{tile} + 2*{line} + 64], tmm1",
            "tilestored [{tile} + 2*{line} + 2048], tmm2",
            "tilestored [{tile} + 2*{line} + 2112], tmm3",
            a = inout(reg) $a.as_ptr() => _,
            b = inout(reg) $b.as_ptr() => _,
            depth = inout(reg) depth => _,
            tile = in(reg) $tile.0.as_mut_ptr(),
            line = in(reg) 64usize,
            add = in(reg) u32::from($add),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    }};
}

impl Products for Register {
    #[inline]
    fn add_up(_: &Shaped, a: &[Register], b: &[Register], add: bool, tile: &mut Tile) {
        // SAFETY: each step reads two registers of either operand, as many times as both have two; a tile has 32 rows of as many
        // numbers; and the shapes of the registers are set.
        unsafe {
            sums!(
                a,
                b,
                add,
                tile,
                [
                    "tileloadd tmm4, [{a} + {line}]",
                    "tileloadd tmm6, [{b} + {line}]",
                    "tileloadd tmm7, [{b} + {line} + 1024]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{a} + {line} + 1024]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {a}, 2048",
                    "add {b}, 2048",
                ]
            );
        }
    }
}

impl Products for Split {
    /// Without the products of both lower parts.
    #[inline]
    fn add_up(_: &Shaped, a: &[Split], b: &[Split], add: bool, tile: &mut Tile) {
        // SAFETY: as above, with four registers of either operand.
        unsafe {
            sums!(
                a,
                b,
                add,
                tile,
                [
                    // Higher parts of both.
                    "tileloadd tmm4, [{a} + {line}]",
                    "tileloadd tmm6, [{b} + {line}]",
                    "tileloadd tmm7, [{b} + {line} + 2048]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{a} + {line} + 2048]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    // The lower parts of B.
                    "tileloadd tmm6, [{b} + {line} + 1024]",
                    "tileloadd tmm7, [{b} + {line} + 3072]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    // The lower parts of A.
                    "tileloadd tmm4, [{a} + {line} + 1024]",
                    "tileloadd tmm6, [{b} + {line}]",
                    "tileloadd tmm7, [{b} + {line} + 2048]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{a} + {line} + 3072]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {a}, 4096",
                    "add {b}, 4096",
                ]
            );
        }
    }
}

/// [`Micro::panels`](crate::micro::Micro::panels).
///
/// # Safety
/// This process may use the registers.
pub unsafe fn panels<E: Products>(a: &[E], b: &[E], add: bool, tiles: &mut [Tile]) {
    // SAFETY: the caller's.
    let shaped = unsafe { Shaped::new() };
    each(b, tiles, |b, tile| E::add_up(&shaped, a, b, add, tile));
}

/// [`Square::rounded`]. Numbers below the least normal one become zero, as the products would take them for.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub fn rounded(numbers: Square<'_>, out: &mut Register) {
    let mut lines = [_mm512_setzero_si512(); SIDE];
    for (i, line) in lines.iter_mut().enumerate() {
        *line = pairs(numbers.line(i), numbers.across).0;
    }
    stored(lines, numbers.turned, out);
}

/// [`Square::split`], likewise.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub fn split(numbers: Square<'_>, out: &mut Split) {
    let (mut high, mut low) = ([_mm512_setzero_si512(); SIDE], [_mm512_setzero_si512(); SIDE]);
    for i in 0..SIDE {
        let x = numbers.line(i);
        let (near, [a, b]) = pairs(x, numbers.across);
        high[i] = near;
        low[i] = pairs([_mm512_sub_ps(x[0], a), _mm512_sub_ps(x[1], b)], numbers.across).0;
    }
    stored(high, numbers.turned, &mut out.high);
    stored(low, numbers.turned, &mut out.low);
}

impl Square<'_> {
    /// What becomes sixteen pairs: thirty-two numbers in a row, or sixteen of two rows each.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn line(self, i: usize) -> [__m512; 2] {
        let at = if self.across {
            [2 * i * self.step, (2 * i + 1) * self.step]
        } else {
            [i * self.step, i * self.step + SIDE]
        };
        at.map(|at| {
            let numbers = &self.numbers[at..at + SIDE];
            // SAFETY: these are sixteen numbers.
            unsafe { _mm512_loadu_ps(numbers.as_ptr()) }
        })
    }
}

/// Pairs of numbers, rounded: of neighbours, or of one from either half. And the rounded numbers in single precision.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pairs(x: [__m512; 2], across: bool) -> (__m512i, [__m512; 2]) {
    let near = x86::rounded(x[0], x[1]);
    let single = |half: __m256i| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)));
    let rounded = [single(_mm512_castsi512_si256(near)), single(_mm512_extracti64x4_epi64::<1>(near))];
    // Words 0, 16, 1, 17 and so on.
    let apart = _mm512_cvtepu8_epi16(_mm256_set_epi64x(
        0x1f0f_1e0e_1d0d_1c0c,
        0x1b0b_1a0a_1909_1808,
        0x1707_1606_1505_1404,
        0x1303_1202_1101_1000,
    ));
    (if across { _mm512_permutexvar_epi16(apart, near) } else { near }, rounded)
}

/// Puts sixteen lines of pairs into a register's place, or the transposed matrix.
#[inline]
#[target_feature(enable = "avx512f")]
fn stored(lines: [__m512i; SIDE], turned: bool, out: &mut Register) {
    let lines = if turned { x86::transposed(lines) } else { lines };
    for (line, out) in lines.into_iter().zip(&mut out.0) {
        let out: &mut [Pair; SIDE] = out;
        // SAFETY: a line is sixteen pairs of 32 bits.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), line) };
    }
}
