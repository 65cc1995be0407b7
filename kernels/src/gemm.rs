//! Matrix products of `f32`, row-major, in single precision or of operands that are rounded to bfloat16 or split into two of its numbers.
//!
//! Both operands are packed for the loop in `micro.rs`, as much of them at once as stays in the second cache. Each number of the
//! output is added up in the same order at any number of threads.

use crate::Isa;
use crate::blocks::{Packed, elements_mut, multiply, room_for};
use crate::fused::{self, AT_ONCE, FEW};
use crate::memory::Spare;
use crate::micro::{Element, Micro, Tile};
pub use crate::pack::View;
use crate::pack::{Operand, Out, packed, put};
use rayon::prelude::*;
use std::borrow::Cow;
use std::cell::RefCell;
use std::convert::Infallible;
use std::ops::Range;

/// How exact a product has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// All of it is computed in single precision.
    Single,
    /// Where the machine is faster with them, each number becomes the sum of two of bfloat16, which is within 2⁻¹⁷ of it, and all
    /// products but the smallest are added up in single precision. Where it is not, this is [`Precision::Single`].
    Split,
    /// Where the machine is faster with them, both operands are rounded to bfloat16, which is within 0.4% of each number; the sums stay
    /// in single precision. Where it is not, this is [`Precision::Single`].
    Bf16,
}

/// What an operand is packed into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// Numbers of single precision.
    Single,
    /// Pairs of bfloat16.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Pairs,
    /// Registers of such pairs.
    #[cfg(target_arch = "x86_64")]
    Registers,
    /// Two registers for each.
    #[cfg(target_arch = "x86_64")]
    Split,
}

impl Precision {
    /// Whether this machine multiplies anything but single precision for it.
    pub fn rounds(self) -> bool {
        self.packing() != Packing::Single
    }

    /// What this machine packs operands into.
    pub(crate) fn packing(self) -> Packing {
        match (self, Isa::best()) {
            #[cfg(target_arch = "x86_64")]
            (Precision::Bf16, Isa::Amx) => Packing::Registers,
            #[cfg(target_arch = "x86_64")]
            (Precision::Split, Isa::Amx) => Packing::Split,
            #[cfg(target_arch = "x86_64")]
            (Precision::Bf16, Isa::Avx512Bf16) => Packing::Pairs,
            #[cfg(target_arch = "aarch64")]
            (Precision::Bf16, Isa::NeonBf16) => Packing::Pairs,
            _ => Packing::Single,
        }
    }
}

/// Computes something with the tiles that this machine has for a precision: the one place that knows which they are.
macro_rules! with_micro {
    ($precision:expr, $micro:ident => $run:expr) => {
        match $precision.packing() {
            $crate::gemm::Packing::Single => {
                let $micro = $crate::micro::Micro::<f32>::best();
                $run
            }
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            $crate::gemm::Packing::Pairs => {
                let $micro = $crate::micro::Micro::<$crate::micro::Pair>::best();
                $run
            }
            #[cfg(target_arch = "x86_64")]
            $crate::gemm::Packing::Registers => {
                let $micro = $crate::micro::Micro::<$crate::amx::Register>::best();
                $run
            }
            #[cfg(target_arch = "x86_64")]
            $crate::gemm::Packing::Split => {
                let $micro = $crate::micro::Micro::<$crate::amx::Split>::best();
                $run
            }
        }
    };
}
pub(crate) use with_micro;

/// Rows of `A`, and columns of `B`, that one thread holds packed: 0.3 and 1.2 MB.
const ROWS: usize = 192;
const COLUMNS: usize = 768;

/// Strips of the output that each thread computes at least, if they are not narrower than [`STRIP`].
const STRIPS: usize = 3;

/// Rows of weights that are asked for, and packed, at once: whole tiles of every instruction set.
const STRIP: usize = 64;

/// What happens to the old content of a product's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Old {
    /// It is overwritten, unread.
    Replaced,
    /// The product is added to it.
    Kept,
}

/// `C = α·A·B`, or `C += α·A·B`, on the calling thread.
///
/// `c`: `[a.rows, b.columns]` with rows `stride` apart.
///
/// # Panics
/// If the shapes do not fit.
pub fn product(precision: Precision, c: &mut [f32], stride: usize, old: Old, alpha: f32, a: View<'_>, b: View<'_>) {
    let out = Out::new(c, a.rows, b.columns, stride);
    with_micro!(precision, micro => product_on(micro, out, old, alpha, a, b))
}

/// [`product`] with given tiles.
pub(crate) fn product_on<E: Element>(
    micro: Micro<E>,
    mut out: Out<'_>,
    old: Old,
    alpha: f32,
    a: View<'_>,
    b: View<'_>,
) {
    thread_local! {
        static PACKED: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
    }
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(k, b.rows, "shapes of a product");
    if k == 0 && old == Old::Replaced {
        out.clear();
    }
    let mut tile = Tile::default();
    let deep = E::SIZES.depth * E::NUMBERS;
    let panel = |width: usize, depth: usize| packed::<E>(width, depth, width);
    PACKED.with_borrow_mut(|[left, right]| {
        for first in (0..n).step_by(COLUMNS) {
            let columns = first..(first + COLUMNS).min(n);
            for from in (0..k).step_by(deep) {
                let depth = from..(from + deep).min(k);
                let right = room(right, packed::<E>(columns.len(), depth.len(), micro.columns));
                b.part(depth.clone(), columns.clone()).t().pack(micro, Operand::Right, right);
                for top in (0..m).step_by(ROWS) {
                    let rows = top..(top + ROWS).min(m);
                    let left = room(left, packed::<E>(rows.len(), depth.len(), micro.rows));
                    a.part(rows, depth.clone()).pack(micro, Operand::Left, left);
                    let add = old == Old::Kept || from > 0;
                    let lefts = left.chunks_exact(panel(micro.rows, depth.len()));
                    for (i, left) in (top..).step_by(micro.rows).zip(lefts) {
                        let rights = right.chunks_exact(panel(micro.columns, depth.len()));
                        for (j, right) in (first..).step_by(micro.columns).zip(rights) {
                            micro.run(left, right, false, &mut tile);
                            put(&mut out, (i, j), &tile, micro.columns, alpha, add);
                        }
                    }
                }
            }
        }
    });
}

/// The first elements that fit into a buffer, which is made long enough.
fn room<E: Element>(buffer: &mut Vec<f32>, len: usize) -> &mut [E] {
    let numbers = room_for::<E>(len);
    if buffer.len() < numbers {
        buffer.resize(numbers, 0.0);
    }
    &mut elements_mut(buffer)[..len]
}

/// `Y = X·Wᵀ` on all threads, where `rows` gives some rows of `W`, `[rows, k]`, to each task, and anew for each [`AT_ONCE`] rows of
/// `X`. `x`: `[n, k]`; `y`: `[n, m]`.
///
/// # Errors
/// The one that `rows` gave for the first rows that it failed on. What is in `y` then means nothing.
pub(crate) fn layer<'w, F: Send>(
    precision: Precision,
    x: &[f32],
    k: usize,
    m: usize,
    rows: impl Fn(Range<usize>) -> Result<Cow<'w, [f32]>, F> + Sync,
    y: &mut [f32],
) -> Result<(), F> {
    with_micro!(precision, micro => layer_of(micro, x, k, m, rows, y))
}

/// Columns of the output that one task computes: as many as stay in the caches, or fewer so that each thread has some strips. No number
/// depends on where strips end.
fn strip_of<E: Element>(m: usize) -> usize {
    E::SIZES.columns.min(m.div_ceil(STRIPS * rayon::current_num_threads()).next_multiple_of(STRIP))
}

/// Bytes that [`linear`] packs its operands into, for `n` rows of `k` numbers and `m` outputs.
pub fn workspace(precision: Precision, n: usize, k: usize, m: usize) -> usize {
    fn of<E: Element>(_: Micro<E>, n: usize, k: usize, m: usize) -> usize {
        let rows = n.min(AT_ONCE) + rayon::current_num_threads() * strip_of::<E>(m);
        rows * k.div_ceil(E::NUMBERS) * size_of::<E>() / E::SIDE
    }
    with_micro!(precision, micro => of(micro, n, k, m))
}

fn layer_of<'w, E: Element, F: Send>(
    micro: Micro<E>,
    x: &[f32],
    k: usize,
    m: usize,
    rows: impl Fn(Range<usize>) -> Result<Cow<'w, [f32]>, F> + Sync,
    y: &mut [f32],
) -> Result<(), F> {
    let spare = Spare::new();
    for (x, y) in x.chunks((AT_ONCE * k).max(1)).zip(y.chunks_mut(AT_ONCE * m)) {
        let n = y.len() / m;
        let piece = E::SIZES.depth;
        let left = Packed::on_all(micro, Operand::Left, View::new(x, n, k, k), piece);
        let wide = strip_of::<E>(m);
        let strips = Out::new(y, n, m, m).strips(wide);
        let strip = |(right, tiles): &mut (Packed<E>, Vec<Tile>), i: usize, mut out: Out<'_>| {
            let columns = i * wide..((i + 1) * wide).min(m);
            for first in columns.clone().step_by(STRIP) {
                let range = first..(first + STRIP).min(columns.end);
                let count = range.len();
                let w = rows(range)?;
                right.fill(micro, Operand::Right, first - columns.start, View::new(&w, count, k, k));
            }
            multiply(micro, (&left, 0), right, false, |_| usize::MAX, tiles, &mut out);
            Ok(())
        };
        let done = strips.into_par_iter().enumerate().map(|(i, out)| {
            let room = || (Packed::room(micro, Operand::Right, wide.min(m), k, piece), Vec::new());
            spare.with(room, |room| strip(room, i, out))
        });
        if let Some(error) = done.find_map_first(Result::err) {
            return Err(error);
        }
    }
    Ok(())
}

/// `Y = X·Wᵀ`, a linear layer without bias, on all threads.
///
/// `x`: `[n, k]`, `w`: `[m, k]`, `y`: `[n, m]`. A few rows of `x` are multiplied in single precision anyway.
///
/// # Panics
/// If the lengths do not fit.
pub fn linear(precision: Precision, x: &[f32], w: &[f32], k: usize, y: &mut [f32]) {
    if y.is_empty() {
        return;
    }
    let m = w.len() / k;
    assert_eq!((w.len(), x.len() / k * m), (m * k, y.len()), "shapes of a linear layer");
    let rows = |rows: Range<usize>| &w[rows.start * k..rows.end * k];
    let copy = |range: Range<usize>, out: &mut [f32]| {
        out.copy_from_slice(rows(range));
        Ok(())
    };
    let done: Result<(), Infallible> = match y.len() / m <= FEW {
        true => fused::linear(precision, x, k, m, copy, y),
        false => layer(precision, x, k, m, |range| Ok(rows(range).into()), y),
    };
    done.unwrap_or_else(|never| match never {});
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amx::{Register, Split};
    use crate::micro::Pair;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut s = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        (0..n)
            .map(|_| {
                s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (s >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    #[test]
    fn a_linear_layer_equals_the_sums_it_stands_for() {
        for (n, m, k) in [(1, 1, 1), (3, 5, 7), (129, 33, 65), (300, 16, 31), (9, 130, 800), (1030, 3, 5)] {
            let (x, w) = (numbers(n * k, 1), numbers(m * k, 2));
            let mut y = vec![f32::NAN; n * m];
            linear(Precision::Single, &x, &w, k, &mut y);
            for i in 0..n {
                for j in 0..m {
                    let want: f64 = (0..k).map(|p| f64::from(x[i * k + p]) * f64::from(w[j * k + p])).sum();
                    assert!((f64::from(y[i * m + j]) - want).abs() < 1e-5 * k as f64, "{n} {m} {k} at {i} {j}");
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_product_with_tails_and_transposed() {
        for isa in Isa::available() {
            products(Micro::<f32>::on(isa), 1e-5);
            products(Micro::<Split>::on(isa), 2e-5);
        }
    }

    /// Products of views either way round, within `each` for every product of two numbers.
    fn products<E: Element + std::fmt::Debug>(micro: Micro<E>, each: f64) {
        for (m, n, k) in [(1, 1, 1), (2, 3, 0), (15, 33, 7), (6, 16, 400), (200, 50, 13), (5, 800, 9), (30, 70, 900)] {
            let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
            let turned = |x: &[f32], rows: usize, columns: usize| -> Vec<f32> {
                (0..x.len()).map(|at| x[at % rows * columns + at / rows]).collect()
            };
            let (at, bt) = (turned(&a, m, k), turned(&b, k, n));
            let lefts = [View::new(&a, m, k, k), View::new(&at, k, m, m).t()];
            let rights = [View::new(&b, k, n, n), View::new(&bt, n, k, k).t()];
            let old = numbers(m * n, 3);
            for (a_view, b_view) in lefts.into_iter().flat_map(|a| rights.map(|b| (a, b))) {
                for kept in [Old::Kept, Old::Replaced] {
                    let mut c = if kept == Old::Kept { old.clone() } else { vec![f32::NAN; m * n] };
                    product_on(micro, Out::new(&mut c, m, n, n), kept, -0.5, a_view, b_view);
                    for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                        let sum: f64 = (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[p * n + j])).sum();
                        let before = if kept == Old::Kept { f64::from(old[i * n + j]) } else { 0.0 };
                        let off = (f64::from(c[i * n + j]) - (before - 0.5 * sum)).abs();
                        assert!(off < each * (k + 1) as f64, "{micro:?} {m} {n} {k} at {i} {j}: {off}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        let (x, w) = (numbers(517 * 96, 3), numbers(70 * 96, 4));
        let on = |precision, threads| {
            let mut y = vec![0.0; 517 * 70];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| linear(precision, &x, &w, 96, &mut y));
            y
        };
        for precision in [Precision::Single, Precision::Split, Precision::Bf16] {
            assert_eq!(on(precision, 1), on(precision, 3));
        }
    }

    #[test]
    fn every_instruction_set_multiplies_rounded_operands_with_tails() {
        for isa in Isa::available() {
            layers(Micro::<Pair>::on(isa), |x| f64::from(half::bf16::from_f32(x)), 1e-6);
            layers(Micro::<Register>::on(isa), |x| f64::from(half::bf16::from_f32(x)), 1e-6);
            layers(Micro::<Split>::on(isa), f64::from, 2e-5);
        }
    }

    /// Layers with what `kept` is of each number, within `each` for every product.
    fn layers<E: Element + std::fmt::Debug>(micro: Micro<E>, kept: impl Fn(f32) -> f64, each: f64) {
        for (n, m, k) in
            [(1, 1, 1), (3, 5, 7), (29, 33, 64), (5, 130, 801), (15, 40, 1601), (600, 3, 70), (34, 290, 33)]
        {
            let (x, w) = (numbers(n * k, 1), numbers(m * k, 2));
            let mut y = vec![f32::NAN; n * m];
            let rows = |range: Range<usize>| Ok::<_, Infallible>((&w[range.start * k..range.end * k]).into());
            layer_of(micro, &x, k, m, rows, &mut y).unwrap();
            for (i, j) in (0..n).flat_map(|i| (0..m).map(move |j| (i, j))) {
                let (x, w) = (&x[i * k..(i + 1) * k], &w[j * k..(j + 1) * k]);
                let want: f64 = x.iter().zip(w).map(|(x, w)| kept(*x) * kept(*w)).sum();
                let off = (f64::from(y[i * m + j]) - want).abs();
                assert!(off < each * (k + 1) as f64, "{micro:?} {n} {m} {k} at {i} {j}: {off}");
            }
        }
    }

    #[test]
    fn a_product_adds_to_what_is_there() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 1.0]);
        let mut c = [10.0, 10.0, -1.0, 10.0, 10.0, -1.0]; // [2, 2] in rows of 3
        product(Precision::Single, &mut c, 3, Old::Kept, -1.0, View::new(&a, 2, 2, 2), View::new(&b, 2, 2, 2));
        assert_eq!(c, [9.0, 8.0, -1.0, 7.0, 6.0, -1.0]);
    }
}
