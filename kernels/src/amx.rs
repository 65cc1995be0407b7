//! Products of matrices in the tile registers of AMX: sixteen rows of sixteen pairs of bfloat16 each (Intel, "Architecture Instruction
//! Set Extensions Programming Reference", chapter 3).
//!
//! Numbers of single precision are either rounded to bfloat16, or split into the sum of two such numbers, whose products but the
//! smallest are all added up (Henry, Tang, Heinecke 2019, "Leveraging the bfloat16 Artificial Intelligence Datatype For
//! Higher-Precision Computations", section III).

use crate::Isa;
use crate::micro::{Element, Pair, Sizes, Tile, each};
use crate::pack::{Operand, View};

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
        let mut near = [0.0; SIDE * NUMBERS];
        squares(operand, part, width, out, &mut near, |numbers, out| match isa {
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
        let mut near = [0.0; SIDE * NUMBERS];
        squares(operand, part, width, out, &mut near, |numbers, out| match isa {
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

/// Goes over the registers of an operand's panel, `[⌈columns / NUMBERS⌉, width / SIDE]`. `near`: zeros, for what the part ends in.
fn squares<T>(
    operand: Operand,
    part: View<'_>,
    width: usize,
    out: &mut [T],
    near: &mut [f32; SIDE * NUMBERS],
    make: impl Fn(Square<'_>, &mut T),
) {
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
            for i in 0..if part.rows == 0 { 0 } else { lines.rows } {
                near[i * step..][..lines.columns].copy_from_slice(&lines.data[i * lines.steps.0..][..lines.columns]);
            }
            make(Square { numbers: near, step, across, turned }, out);
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
        self.pairs(<Pair as crate::micro::Line>::of)
    }

    fn split(self) -> Split {
        let of = <Pair as crate::micro::Line>::of;
        let rest = |x: f32| x - of([x, 0.0]).numbers()[0];
        Split { high: self.pairs(of), low: self.pairs(|pair| of(pair.map(rest))) }
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

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::allowed;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Register, SIDE, Split, Square};
    use crate::micro::{Pair, Tile, each};
    use std::arch::asm;
    use std::arch::x86_64::*;
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

    /// The shapes are set, until this goes.
    pub struct Shaped;

    impl Shaped {
        /// # Safety
        /// This process may use the registers.
        unsafe fn new() -> Shaped {
            // SAFETY: the caller's.
            unsafe { asm!("ldtilecfg [{shapes}]", shapes = in(reg) &SHAPES, options(nostack, readonly)) };
            Shaped
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

    /// Four registers of sums: what is in the tile or zero, to which each of `$depth` steps adds, and which then become the tile.
    macro_rules! sums {
        ($a:expr, $b:expr, $depth:expr, $add:expr, $tile:expr, [$($step:literal),* $(,)?]) => {
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
                depth = inout(reg) $depth => _,
                tile = in(reg) $tile.0.as_mut_ptr(),
                line = in(reg) 64usize,
                add = in(reg) u32::from($add),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }

    impl Products for Register {
        #[inline]
        fn add_up(_: &Shaped, a: &[Register], b: &[Register], add: bool, tile: &mut Tile) {
            let depth = a.len() / 2;
            assert!(b.len() / 2 >= depth);
            // SAFETY: each step reads two registers of either operand, as many times as both have two; a tile has 32 rows of as many
            // numbers; and the shapes of the registers are set.
            unsafe {
                sums!(
                    a,
                    b,
                    depth,
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
            let depth = a.len() / 2;
            assert!(b.len() / 2 >= depth);
            // SAFETY: as above, with four registers of either operand.
            unsafe {
                sums!(
                    a,
                    b,
                    depth,
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
        // SAFETY: a register is a register, whatever its numbers are taken for.
        let near = unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(x[1], x[0])) };
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
        let lines = if turned { transposed(lines) } else { lines };
        for (line, out) in lines.into_iter().zip(&mut out.0) {
            let out: &mut [Pair; SIDE] = out;
            // SAFETY: a line is sixteen pairs of 32 bits.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), line) };
        }
    }

    /// Of sixteen rows of sixteen pairs: pairs change places in squares of two, of four, of eight and of sixteen.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transposed(x: [__m512i; SIDE]) -> [__m512i; SIDE] {
        let mut y = x;
        for i in (0..SIDE).step_by(2) {
            y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
            y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
        }
        let mut z = y;
        for i in (0..SIDE).step_by(4) {
            // Column 4·l + c of rows i to i + 3 is in lane l of z[i + c].
            z[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
            z[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
            z[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
            z[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
        }
        let mut out = z;
        for c in 0..4 {
            let (a, b) = (z[c], z[4 + c]);
            let (d, e) = (z[8 + c], z[12 + c]);
            // Lanes 0 and 2, and lanes 1 and 3, of both.
            let (ab02, ab13) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
            let (de02, de13) = (_mm512_shuffle_i32x4::<0x88>(d, e), _mm512_shuffle_i32x4::<0xdd>(d, e));
            out[c] = _mm512_shuffle_i32x4::<0x88>(ab02, de02);
            out[4 + c] = _mm512_shuffle_i32x4::<0x88>(ab13, de13);
            out[8 + c] = _mm512_shuffle_i32x4::<0xdd>(ab02, de02);
            out[12 + c] = _mm512_shuffle_i32x4::<0xdd>(ab13, de13);
        }
        out
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
