//! Products of matrices in the tile registers of AMX: sixteen rows of sixteen pairs of bfloat16 each (Intel, "Architecture Instruction
//! Set Extensions Programming Reference", chapter 3).
//!
//! Numbers of single precision are either rounded to bfloat16, or split into the sum of two such numbers, whose products but the
//! smallest are all added up (Henry, Tang, Heinecke 2019, "Leveraging the bfloat16 Artificial Intelligence Datatype For
//! Higher-Precision Computations", section III).

#[cfg(target_arch = "x86_64")]
mod x86;

use crate::Isa;
use crate::micro::{Element, Line, Pair, Sizes, Tile, each};
use crate::pack::{Operand, View};

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::allowed;

/// Rows of a register, and pairs of a row.
const SIDE: usize = 16;

/// Numbers of a row.
const NUMBERS: usize = 2 * SIDE;

/// What a register holds: of a left operand `[row, pair of columns]`, of a right one `[pair of rows, column]`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
pub(crate) struct Register([[Pair; SIDE]; SIDE]);

/// The same of numbers that are the sums of two.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Split {
    /// The numbers, rounded.
    high: Register,
    /// What rounding took from them, rounded.
    low: Register,
}

impl Element for Register {
    const NUMBERS: usize = NUMBERS;
    const SIDE: usize = SIDE;
    const SIZES: Sizes = Sizes { depth: 8, outer: 8, chunk: 64, rows: 512, columns: 512 };

    fn tile(_: Isa) -> (usize, usize) {
        (2 * SIDE, 2 * SIDE)
    }

    fn pack(isa: Isa, operand: Operand, part: View<'_>, width: usize, out: &mut [Register]) {
        squares(operand, part, width, out, |numbers, out| match isa {
            // SAFETY: this machine has the instruction set.
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => unsafe { x86::rounded(numbers, out) },
            _ => *out = numbers.rounded(),
        });
    }

    fn panels(isa: Isa, a: &[Register], b: &[Register], add: bool, tiles: &mut [Tile]) {
        match isa {
            // SAFETY: this machine has the instruction set.
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => unsafe { x86::panels(a, b, add, tiles) },
            _ => each(b, tiles, |b, tile| reference(a, b, add, tile, add_up)),
        }
    }
}

impl Element for Split {
    const NUMBERS: usize = NUMBERS;
    const SIDE: usize = SIDE;
    const SIZES: Sizes = Sizes { depth: 6, outer: 6, chunk: 36, rows: 512, columns: 256 };

    fn tile(_: Isa) -> (usize, usize) {
        (2 * SIDE, 2 * SIDE)
    }

    fn pack(isa: Isa, operand: Operand, part: View<'_>, width: usize, out: &mut [Split]) {
        squares(operand, part, width, out, |numbers, out| match isa {
            // SAFETY: this machine has the instruction set.
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => unsafe { x86::split(numbers, out) },
            _ => *out = numbers.split(),
        });
    }

    fn panels(isa: Isa, a: &[Split], b: &[Split], add: bool, tiles: &mut [Tile]) {
        match isa {
            // SAFETY: this machine has the instruction set.
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => unsafe { x86::panels(a, b, add, tiles) },
            _ => each(b, tiles, |b, tile| {
                reference(a, b, add, tile, |a, b, c| {
                    add_up(&a.high, &b.high, c);
                    add_up(&a.high, &b.low, c);
                    add_up(&a.low, &b.high, c);
                })
            }),
        }
    }
}

/// The numbers of one register.
#[derive(Clone, Copy)]
struct Square<'a> {
    numbers: &'a [f32],
    step: usize,
    /// Whether `numbers` are thirty-two lines, each one number of sixteen rows of an operand; else they are those rows. Lines start
    /// `step` apart.
    across: bool,
    /// Whether a register's lines are not those of `numbers`.
    turned: bool,
}

/// Goes over the registers of an operand's panel, `[⌈columns / NUMBERS⌉, width / SIDE]`.
fn squares<T>(operand: Operand, part: View<'_>, width: usize, out: &mut [T], make: impl Fn(Square<'_>, &mut T)) {
    let mut near = [0.0; SIDE * NUMBERS]; // what the part ends in, with zeros for what is not there
    let across = part.steps.0 == 1;
    let turned = across == (operand == Operand::Left);
    for (d, out) in out.chunks_exact_mut(width / SIDE).enumerate() {
        for (r, out) in out.iter_mut().enumerate() {
            let rows = (r * SIDE).min(part.rows)..((r + 1) * SIDE).min(part.rows);
            let columns = d * NUMBERS..((d + 1) * NUMBERS).min(part.columns);
            let part = part.part(rows, columns);
            let lines = if across { part.t() } else { part }; // rows of numbers that lie side by side
            if (part.rows, part.columns) == (SIDE, NUMBERS) {
                make(Square { numbers: lines.data, step: lines.steps.0, across, turned }, out);
                continue;
            }
            let step = if across { SIDE } else { NUMBERS };
            near.fill(0.0);
            for i in (0..lines.rows).filter(|_| lines.columns > 0) {
                near[i * step..][..lines.columns].copy_from_slice(&lines.data[i * lines.steps.0..][..lines.columns]);
            }
            make(Square { numbers: &near, step, across, turned }, out);
        }
    }
}

impl Square<'_> {
    /// What both the instructions for rounding and those for splitting are tested against: `of` makes a pair.
    fn pairs(self, of: impl Fn([f32; 2]) -> Pair) -> Register {
        let at = |row: usize, column: usize| match self.across {
            true => self.numbers[column * self.step + row],
            false => self.numbers[row * self.step + column],
        };
        // A right operand's line has a pair of each row; a left one's all pairs of a row.
        let left = self.across == self.turned;
        Register(std::array::from_fn(|i| {
            std::array::from_fn(|j| {
                let (row, pair) = if left { (i, j) } else { (j, i) };
                of([at(row, 2 * pair), at(row, 2 * pair + 1)])
            })
        }))
    }

    fn rounded(self) -> Register {
        self.pairs(Pair::of)
    }

    fn split(self) -> Split {
        let rest = |x: f32| x - Pair::of([x, 0.0]).numbers()[0];
        Split { high: self.pairs(Pair::of), low: self.pairs(|pair| Pair::of(pair.map(rest))) }
    }
}

/// What the instructions for products are tested against. `a`: `[depth, 2]`, `b`: `[depth, 2]`.
fn reference<E>(a: &[E], b: &[E], add: bool, tile: &mut Tile, step: impl Fn(&E, &E, &mut [[f32; SIDE]; SIDE])) {
    for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let line = |row: usize| (i * SIDE + row) * 2 * SIDE + j * SIDE;
        let mut c = [[0.0; SIDE]; SIDE];
        if add {
            c.iter_mut().enumerate().for_each(|(row, c)| c.copy_from_slice(&tile.0[line(row)..][..SIDE]));
        }
        a.chunks_exact(2).zip(b.chunks_exact(2)).for_each(|(a, b)| step(&a[i], &b[j], &mut c));
        c.iter().enumerate().for_each(|(row, c)| tile.0[line(row)..][..SIDE].copy_from_slice(c));
    }
}

/// `C += A·B` of three registers.
fn add_up(a: &Register, b: &Register, c: &mut [[f32; SIDE]; SIDE]) {
    for (a, c) in a.0.iter().zip(c) {
        for (a, b) in a.iter().zip(&b.0) {
            let a = a.numbers();
            for (c, b) in c.iter_mut().zip(b) {
                let b = b.numbers();
                *c += a[0] * b[0];
                *c += a[1] * b[1];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::micro::{MOST, Micro};

    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * i) as f32 * 0.37).sin()).collect()
    }

    /// Every element of an operand in place, both ways round, with tails.
    fn packs<E: Element>(numbers_of: impl Fn(&E) -> Vec<[[f32; 2]; SIDE]>, kept: impl Fn(f32) -> f32) {
        for (rows, columns) in [(32, 64), (1, 1), (16, 32), (17, 33), (31, 7), (5, 95)] {
            let x = numbers(rows * columns);
            let turned: Vec<f32> = (0..x.len()).map(|at| x[at % rows * columns + at / rows]).collect();
            let views = [View::new(&x, rows, columns, columns), View::new(&turned, columns, rows, rows).t()];
            for (isa, view) in Isa::available().into_iter().flat_map(|isa| views.map(|view| (isa, view))) {
                for operand in [Operand::Left, Operand::Right] {
                    let mut out = vec![E::default(); columns.div_ceil(NUMBERS) * 2];
                    E::pack(isa, operand, view, 2 * SIDE, &mut out);
                    for (at, element) in out.iter().enumerate() {
                        let (d, r) = (at / 2, at % 2);
                        for (i, line) in numbers_of(element).into_iter().enumerate() {
                            for (j, got) in line.into_iter().enumerate() {
                                let (row, pair) = if operand == Operand::Left { (i, j) } else { (j, i) };
                                let (row, column) = (r * SIDE + row, d * NUMBERS + 2 * pair);
                                let number = |column| {
                                    if row < rows && column < columns { x[row * columns + column] } else { 0.0 }
                                };
                                let want = [number(column), number(column + 1)].map(&kept);
                                assert_eq!(got, want, "{isa:?} {operand:?} {rows} x {columns} at {row} {column}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_packs_registers_of_rounded_numbers() {
        let lines = |x: &Register| x.0.map(|line| line.map(Pair::numbers)).to_vec();
        packs::<Register>(lines, |x| half::bf16::from_f32(x).to_f32());
    }

    #[test]
    fn every_instruction_set_splits_numbers_into_the_nearest_and_the_rest() {
        let sum = |x: &Split| {
            let lines = x.high.0.iter().zip(&x.low.0);
            let added = |(a, b): (&Pair, &Pair)| [0, 1].map(|i| a.numbers()[i] + b.numbers()[i]);
            lines.map(|(a, b)| std::array::from_fn(|j| added((&a[j], &b[j])))).collect()
        };
        packs::<Split>(sum, |x| {
            let high = half::bf16::from_f32(x).to_f32();
            let both = high + half::bf16::from_f32(x - high).to_f32();
            assert!((both - x).abs() <= x.abs() / 131_072.0, "{x} became {both}");
            both
        });
    }

    #[test]
    fn every_instruction_set_multiplies_registers() {
        for isa in Isa::available() {
            products::<Register>(isa, 4e-3);
            products::<Split>(isa, 2e-5);
        }
    }

    /// Tiles of no depth, of some and of more than any piece, within a part of the numbers' size.
    fn products<E: Element>(isa: Isa, part: f64) {
        let micro = Micro::<E>::on(isa);
        for depth in [0, 1, 2, 5, 33] {
            let (m, n, k) = (micro.rows, micro.columns, depth * NUMBERS);
            let (a, b) = (numbers(m * k), numbers(n * k));
            let packed = |operand, x: &[f32], rows| {
                let mut out = vec![E::default(); depth * 2];
                E::pack(isa, operand, View::new(x, rows, k, k), rows, &mut out);
                out
            };
            let mut tile = Tile([f32::NAN; MOST]);
            micro.run(&packed(Operand::Left, &a, m), &packed(Operand::Right, &b, n), false, &mut tile);
            // Twice as much, of which half has been there.
            micro.run(&packed(Operand::Left, &a, m), &packed(Operand::Right, &b, n), true, &mut tile);
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let products = || (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[j * k + p]));
                let (want, size) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
                let off = (f64::from(tile.0[i * n + j]) - 2.0 * want).abs();
                assert!(off <= 2.0 * part * size, "{isa:?} of depth {depth} at {i} {j}: {off}");
            }
        }
    }
}
