//! The innermost loop of a matrix product: a tile of the output in registers (Goto, van de Geijn 2008, "Anatomy of
//! High-Performance Matrix Multiplication", section 5; the packing is that of BLIS).

use crate::Isa;
use crate::dispatch::kernel;
use crate::pack::{Operand, View, lines};
use std::marker::PhantomData;

/// Numbers of the largest tile.
pub(crate) const MOST: usize = 32 * 32;

/// What a tile adds up to: `[rows, columns]` of its [`Micro`].
#[derive(Clone)]
#[repr(align(64))]
pub(crate) struct Tile(pub [f32; MOST]);

impl Default for Tile {
    fn default() -> Tile {
        Tile([0.0; MOST])
    }
}

/// What a packed operand consists of.
pub(crate) trait Element: Copy + Default + Send + Sync + 'static {
    /// Numbers of neighbouring depth in one of these.
    const NUMBERS: usize;

    /// Neighbouring rows of the left operand, or columns of the right one, in one of these.
    const SIDE: usize;

    /// How much of the operands lies in the caches at once.
    const SIZES: Sizes;

    /// Rows and columns of a tile.
    fn tile(isa: Isa) -> (usize, usize);

    /// Packs up to `width` rows of a view for a kernel of `isa`, with zeros for what is not there. `out`:
    /// `[⌈columns / NUMBERS⌉, width / SIDE]`.
    fn pack(isa: Isa, operand: Operand, part: View<'_>, width: usize, out: &mut [Self]);

    /// See [`Micro::panels`]; this machine has the instruction set.
    fn panels(isa: Isa, a: &[Self], b: &[Self], add: bool, tiles: &mut [Tile]);
}

/// How much of its operands a product handles at once. No result depends on it but through `depth`, which says what is summed up
/// before it is added to the output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Columns of `A` and rows of `B`, in elements: a tile's part of `A` fills half of a usual nearest cache.
    pub depth: usize,
    /// The same for a sum of outer products, whose output is much larger.
    pub outer: usize,
    /// Rows of `X` that a sum of outer products packs at once, in elements.
    pub chunk: usize,
    /// Rows and columns of the output that stay in the second cache while the depth goes by.
    pub rows: usize,
    pub columns: usize,
}

/// Those of elements that vector instructions multiply.
const VECTORS: Sizes = Sizes { depth: 384, outer: 512, chunk: 512, rows: 512, columns: 128 };

/// A number, or some, that lie in one line with those of the next row or column.
pub(crate) trait Line: Element {
    /// From as many numbers; a second is not looked at where it holds one.
    fn of(numbers: [f32; 2]) -> Self;

    /// How many of them are put apart at once, so that what is written stays in the nearest cache.
    const AT_ONCE: usize;

    /// From up to [`AT_ONCE`](Self::AT_ONCE) · [`NUMBERS`](Element::NUMBERS) numbers in a row, with zero behind the last: every
    /// `step`-th of `out`.
    fn row(numbers: &[f32], out: &mut [Self], step: usize);

    /// From as many rows of numbers; a second is not looked at where it holds one. `out`: as long as they are.
    fn columns(rows: [&[f32]; 2], out: &mut [Self]);
}

/// A size of tiles, and the kernel that computes them from operands of `E`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Micro<E> {
    /// Rows of a tile.
    pub rows: usize,
    /// Columns of a tile.
    pub columns: usize,
    pub(crate) isa: Isa,
    of: PhantomData<E>,
}

impl<E: Element> Micro<E> {
    /// That of the fastest instruction set of this machine.
    pub fn best() -> Micro<E> {
        Micro::of(Isa::best())
    }

    /// That of an instruction set.
    ///
    /// # Panics
    /// If this machine does not have it.
    #[cfg(test)]
    pub fn on(isa: Isa) -> Micro<E> {
        assert!(Isa::available().contains(&isa), "this machine has no {isa:?}");
        Micro::of(isa)
    }

    /// That of an instruction set, which this machine has.
    fn of(isa: Isa) -> Micro<E> {
        let (rows, columns) = E::tile(isa);
        Micro { rows, columns, isa, of: PhantomData }
    }

    /// Rows of the output, or columns, that a panel of an operand stands for.
    pub fn width(self, operand: Operand) -> usize {
        match operand {
            Operand::Left => self.rows,
            Operand::Right => self.columns,
        }
    }

    /// `tile = Σ_p a_p·b_pᵀ`, or `tile += Σ_p a_p·b_pᵀ`, for the tiles of one panel of the left operand with some of the right one. `a`:
    /// `[depth, rows / E::SIDE]`; `b`: `[panel, depth, columns / E::SIDE]`; `tiles`: `[panel]`.
    ///
    /// # Panics
    /// If the lengths do not fit.
    #[inline]
    pub fn panels(self, a: &[E], b: &[E], add: bool, tiles: &mut [Tile]) {
        assert_eq!(a.len() * self.columns * tiles.len(), b.len() * self.rows, "depth of tiles");
        E::panels(self.isa, a, b, add, tiles);
    }

    /// The same for one tile.
    #[inline]
    pub fn run(self, a: &[E], b: &[E], add: bool, tile: &mut Tile) {
        self.panels(a, b, add, std::slice::from_mut(tile));
    }
}

/// One tile behind the other, each with its panel of the right operand: `b`, `[panel, _]`.
pub(crate) fn each<E>(b: &[E], tiles: &mut [Tile], mut run: impl FnMut(&[E], &mut Tile)) {
    match b.len() / tiles.len().max(1) {
        0 => tiles.iter_mut().for_each(|tile| run(&[], tile)),
        panel => b.chunks_exact(panel).zip(tiles).for_each(|(b, tile)| run(b, tile)),
    }
}

impl Line for f32 {
    #[inline]
    fn of(numbers: [f32; 2]) -> f32 {
        numbers[0]
    }

    const AT_ONCE: usize = 16;

    #[inline]
    fn row(numbers: &[f32], out: &mut [f32], step: usize) {
        numbers.iter().zip(out.iter_mut().step_by(step)).for_each(|(from, to)| *to = *from);
    }

    #[inline]
    fn columns(rows: [&[f32]; 2], out: &mut [f32]) {
        out.copy_from_slice(rows[0]);
    }
}

impl Element for f32 {
    const NUMBERS: usize = 1;
    const SIDE: usize = 1;
    const SIZES: Sizes = VECTORS;

    fn pack(isa: Isa, _: Operand, part: View<'_>, width: usize, out: &mut [f32]) {
        match isa {
            // SAFETY: this machine has the instruction set.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx if part.has_rows() => unsafe { x86::pack_rows(part, width, out) },
            _ => lines(part, width, out),
        }
    }

    fn tile(isa: Isa) -> (usize, usize) {
        match isa {
            Isa::Baseline => (4, 16),
            // Accumulators, one row of B, and one number of A fill sixteen and thirty-two registers.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => (6, 16),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => (14, 32),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonBf16 => (12, 8),
        }
    }

    #[inline]
    fn panels(isa: Isa, a: &[f32], b: &[f32], add: bool, tiles: &mut [Tile]) {
        each(b, tiles, |b, tile| match isa {
            Isa::Baseline => baseline(a, b, add, tile),
            // SAFETY: this machine has the instruction set.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86::avx2(a, b, add, tile) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => unsafe { x86::avx512(a, b, add, tile) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonBf16 => unsafe { neon::single(a, b, add, tile) },
        });
    }
}

/// Two neighbours along the depth, rounded to bfloat16, the first in the lower half.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Pair(u32);

impl Pair {
    /// Both numbers in single precision.
    #[inline]
    pub(crate) fn numbers(self) -> [f32; 2] {
        [f32::from_bits(self.0 << 16), f32::from_bits(self.0 & 0xffff_0000)]
    }
}

/// To the nearest number of bfloat16, ties to even, in the upper half of what is returned. NaN stays NaN.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    if bits & 0x7fff_ffff > 0x7f80_0000 { bits | 0x0040_0000 } else { rounded }
}

impl Line for Pair {
    #[inline(always)]
    fn of(numbers: [f32; 2]) -> Pair {
        Pair(to_bf16(numbers[0]) >> 16 | to_bf16(numbers[1]) & 0xffff_0000)
    }

    const AT_ONCE: usize = 128;

    fn row(numbers: &[f32], out: &mut [Pair], step: usize) {
        let mut near = [Pair::default(); Pair::AT_ONCE];
        let near = &mut near[..numbers.len().div_ceil(2)];
        let (whole, rest) = numbers.as_chunks::<2>();
        neighbours(whole, &mut near[..whole.len()]);
        if let [last] = rest {
            near[whole.len()] = Pair::of([*last, 0.0]);
        }
        near.iter().zip(out.iter_mut().step_by(step)).for_each(|(from, to)| *to = *from);
    }

    fn columns(rows: [&[f32]; 2], out: &mut [Pair]) {
        beside(rows[0], rows[1], out);
    }
}

impl Element for Pair {
    const NUMBERS: usize = 2;
    const SIDE: usize = 1;
    const SIZES: Sizes = VECTORS;

    fn pack(isa: Isa, _: Operand, part: View<'_>, width: usize, out: &mut [Pair]) {
        match isa {
            // SAFETY: this machine has the instruction set.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 | Isa::Amx if part.has_rows() => unsafe { x86::pack_rows_in_pairs(part, width, out) },
            _ => lines(part, width, out),
        }
    }

    fn tile(isa: Isa) -> (usize, usize) {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 | Isa::Amx => (14, 32),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonBf16 => (12, 8),
            _ => (4, 16),
        }
    }

    #[inline]
    fn panels(isa: Isa, a: &[Pair], b: &[Pair], add: bool, tiles: &mut [Tile]) {
        each(b, tiles, |b, tile| match isa {
            // SAFETY: this machine has the instruction set.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 | Isa::Amx => unsafe { x86::avx512_bf16(a, b, add, tile) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Isa::NeonBf16 => unsafe { neon::pairs(a, b, add, tile) },
            _ => pairs(a, b, add, tile),
        });
    }
}

kernel! {
    /// Pairs of neighbours. `numbers`: `[n, 2]`, `out`: `[n]`.
    pub fn neighbours / neighbours_on(numbers: &[[f32; 2]], out: &mut [Pair]) {
        out.iter_mut().zip(numbers).for_each(|(out, numbers)| *out = Pair::of(*numbers));
    }
}

kernel! {
    /// Pairs of a number from either row. `a`, `b`, `out`: `[n]`.
    pub fn beside / beside_on(a: &[f32], b: &[f32], out: &mut [Pair]) {
        out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (a, b))| *out = Pair::of([*a, *b]));
    }
}

/// The sums that a tile of the baseline begins with.
fn begun(add: bool, tile: &Tile) -> [[f32; 16]; 4] {
    let mut c = [[0.0; 16]; 4];
    if add {
        c.iter_mut().zip(tile.0.chunks_exact(16)).for_each(|(c, from)| c.copy_from_slice(from));
    }
    c
}

/// What the instructions for pairs are tested against.
fn pairs(a: &[Pair], b: &[Pair], add: bool, tile: &mut Tile) {
    let mut c = begun(add, tile);
    for (a, b) in a.chunks_exact(4).zip(b.chunks_exact(16)) {
        for (c, a) in c.iter_mut().zip(a) {
            for (c, b) in c.iter_mut().zip(b) {
                let (a, b) = (a.numbers(), b.numbers());
                *c += a[0] * b[0] + a[1] * b[1];
            }
        }
    }
    tile.0[..64].chunks_exact_mut(16).zip(&c).for_each(|(to, c)| to.copy_from_slice(c));
}

fn baseline(a: &[f32], b: &[f32], add: bool, tile: &mut Tile) {
    let mut c = begun(add, tile);
    for (a, b) in a.chunks_exact(4).zip(b.chunks_exact(16)) {
        for (c, &a) in c.iter_mut().zip(a) {
            // Without a fused instruction a fused product would be a call.
            #[cfg(target_arch = "x86_64")]
            c.iter_mut().zip(b).for_each(|(c, &b)| *c += a * b);
            #[cfg(not(target_arch = "x86_64"))]
            c.iter_mut().zip(b).for_each(|(c, &b)| *c = a.mul_add(b, *c));
        }
    }
    tile.0[..64].chunks_exact_mut(16).zip(&c).for_each(|(to, c)| to.copy_from_slice(c));
}

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_gives_the_sums_it_stands_for() {
        sums::<f32>(|x| vec![x]);
        sums::<Pair>(|x| x.numbers().to_vec());
    }

    fn sums<E: Line>(numbers: impl Fn(E) -> Vec<f32>) {
        for isa in Isa::available() {
            let micro = Micro::<E>::on(isa);
            for depth in [0, 1, 2, 7, 64] {
                let made = |n: usize, step: f32| -> Vec<E> {
                    (0..n).map(|i| E::of([0, 1].map(|j| ((i * E::NUMBERS + j) as f32 * step).sin()))).collect()
                };
                let (a, b) = (made(depth * micro.rows, 0.7), made(depth * micro.columns, 0.3));
                let mut tile = Tile([f32::NAN; MOST]);
                micro.run(&a, &b, false, &mut tile);
                // Twice as much, of which half has been there.
                micro.run(&a, &b, true, &mut tile);
                for i in 0..micro.rows {
                    for j in 0..micro.columns {
                        let product = |p: usize| -> f64 {
                            let (a, b) = (numbers(a[p * micro.rows + i]), numbers(b[p * micro.columns + j]));
                            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(b)).sum()
                        };
                        let want: f64 = 2.0 * (0..depth).map(product).sum::<f64>();
                        let got = f64::from(tile.0[i * micro.columns + j]);
                        assert!(
                            (got - want).abs() < 2e-5 * E::NUMBERS as f64,
                            "{isa:?} of depth {depth} at {i} {j}: {got} and {want}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn pairs_are_rounded_to_the_nearest_with_ties_to_even() {
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, f32::MAX, f32::MIN, 1e-40];
        let ties = (0..64u32).map(|i| f32::from_bits(0x3f80_0000 + i * 0x4000));
        let others = (0..1000).map(|i| (i as f32 * 0.7).sin() * 10f32.powi(i % 60 - 30));
        let all: Vec<f32> =
            special.into_iter().chain(ties).chain(others).chain([f32::from_bits(0x7fff_ffff)]).collect();
        let close = |x: f32, got: f32| {
            let wanted = half::bf16::from_f32(x).to_f32();
            assert!(got.to_bits() == wanted.to_bits() || got.is_nan() && wanted.is_nan(), "{x}: {got} and {wanted}");
        };
        for isa in Isa::available() {
            for n in (0..40).chain([all.len() / 2]) {
                let mut out = vec![Pair::default(); n];
                neighbours_on(isa, &all.as_chunks().0[..n], &mut out);
                out.iter().flat_map(|pair| pair.numbers()).zip(&all).for_each(|(got, x)| close(*x, got));
                beside_on(isa, &all[..n], &all[n..2 * n], &mut out);
                for (i, pair) in out.iter().enumerate() {
                    pair.numbers().into_iter().zip([all[i], all[n + i]]).for_each(|(got, x)| close(x, got));
                }
            }
        }
        let mut odd = [Pair::of([7.0; 2]); 4];
        Pair::row(&[1.0, 2.0, 3.0], &mut odd, 2);
        assert_eq!(odd.map(Pair::numbers), [[1.0, 2.0], [7.0, 7.0], [3.0, 0.0], [7.0, 7.0]]);
    }
}
