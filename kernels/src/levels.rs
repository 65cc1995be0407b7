//! The levels that codes stand for, and rounding to the nearest of them.

use crate::column::Codes;
use crate::dispatch::kernel;
use crate::lanes::{F, LANES, whole};

/// The levels `q` of a grid whose values are `scale · q + offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Levels {
    /// Every integer from `lo` to `hi`; a code is its own level.
    Uniform {
        /// The smallest.
        lo: i8,
        /// The largest.
        hi: i8,
    },
    /// Sixteen integers, rising; a code is a place in the table.
    Table(&'static [i8; 16]),
    /// Minus one and one; a code is its own level.
    Signs,
}

impl Levels {
    /// The smallest level.
    pub fn lowest(self) -> f32 {
        match self {
            Levels::Uniform { lo, .. } => f32::from(lo),
            Levels::Table(table) => f32::from(table[0]),
            Levels::Signs => -1.0,
        }
    }

    /// The largest level.
    pub fn highest(self) -> f32 {
        match self {
            Levels::Uniform { hi, .. } => f32::from(hi),
            Levels::Table(table) => f32::from(table[15]),
            Levels::Signs => 1.0,
        }
    }

    /// The level of a code.
    pub fn level(self, code: i8) -> f32 {
        match self {
            Levels::Uniform { .. } | Levels::Signs => f32::from(code),
            Levels::Table(table) => f32::from(table[code as usize]),
        }
    }
}

kernel! {
    /// The numbers that the codes of a group stand for, `scale · level + offset`, rounded once. `codes`, `out`: `[n]`.
    pub fn values / values_on(levels: Levels, codes: &[Codes], scale: F, offset: F, out: &mut [F]) {
        for (codes, out) in codes.iter().zip(out) {
            let level = match levels {
                Levels::Uniform { .. } | Levels::Signs => F(codes.map(f32::from)),
                Levels::Table(_) => F(codes.map(|code| levels.level(code))),
            };
            *out = level.mul_add(scale, offset);
        }
    }
}

/// Rounding to one kind of levels; kernels are compiled for each.
pub(crate) trait Nearest: Copy {
    /// The level nearest to each lane.
    fn level(self, x: F) -> F;
    /// Whether neighbours are equally far apart.
    fn is_even(self) -> bool;
    /// The same, and its code.
    fn code(self, x: F, codes: &mut Codes) -> F;
}

#[derive(Clone, Copy)]
pub(crate) struct Uniform {
    pub lo: f32,
    pub hi: f32,
}

impl Nearest for Uniform {
    #[inline(always)]
    fn is_even(self) -> bool {
        true
    }

    #[inline(always)]
    fn level(self, x: F) -> F {
        x.round().clamp(self.lo, self.hi)
    }

    #[inline(always)]
    fn code(self, x: F, codes: &mut Codes) -> F {
        let q = self.level(x);
        // `q` is an integer within the range of `i8`. Added to 1.5·2²³ it ends up in the lowest bits, which is one vector
        // addition, where a conversion that saturates is a handful of instructions for each number.
        for (code, q) in codes.iter_mut().zip(q.0) {
            *code = (q + 12_582_912.0).to_bits() as i8;
        }
        q
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Table(pub &'static [i8; 16]);

impl Nearest for Table {
    #[inline(always)]
    fn is_even(self) -> bool {
        false
    }

    #[inline(always)]
    fn level(self, x: F) -> F {
        let mut level = F::splat(f32::from(self.0[0]));
        for pair in self.0.windows(2) {
            let (low, high) = (f32::from(pair[0]), f32::from(pair[1]));
            level = F::splat(0.5 * (low + high)).less(x, F::splat(high), level);
            whole();
        }
        level
    }

    #[inline(always)]
    fn code(self, x: F, codes: &mut Codes) -> F {
        let mut place = F::ZERO;
        for (i, pair) in self.0.windows(2).enumerate() {
            let middle = 0.5 * (f32::from(pair[0]) + f32::from(pair[1]));
            place = F::splat(middle).less(x, F::splat(i as f32 + 1.0), place);
            whole();
        }
        let mut level = F::ZERO;
        for l in 0..LANES {
            codes[l] = place.0[l] as i8;
            level.0[l] = f32::from(self.0[codes[l] as usize]);
        }
        level
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Signs;

impl Nearest for Signs {
    #[inline(always)]
    fn is_even(self) -> bool {
        true
    }

    #[inline(always)]
    fn level(self, x: F) -> F {
        x.less(F::ZERO, F::splat(-1.0), F::splat(1.0))
    }

    #[inline(always)]
    fn code(self, x: F, codes: &mut Codes) -> F {
        let q = self.level(x);
        for l in 0..LANES {
            codes[l] = q.0[l] as i8;
        }
        q
    }
}

/// Calls a generic function with the kind of `levels`, so that its loops are compiled for that kind.
macro_rules! for_levels {
    ($levels:expr, $kind:ident => $call:expr) => {
        match $levels {
            $crate::levels::Levels::Uniform { lo, hi } => {
                let $kind = $crate::levels::Uniform { lo: f32::from(lo), hi: f32::from(hi) };
                $call
            }
            $crate::levels::Levels::Table(table) => {
                let $kind = $crate::levels::Table(table);
                $call
            }
            $crate::levels::Levels::Signs => {
                let $kind = $crate::levels::Signs;
                $call
            }
        }
    };
}
pub(crate) use for_levels;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn every_instruction_set_decodes_the_same_numbers() {
        const TABLE: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
        let codes: Vec<Codes> = (0..35).map(|j| std::array::from_fn(|l| ((j * 7 + l * 3) % 16) as i8)).collect();
        let lanes = |step: f32| F(std::array::from_fn(|l| (l as f32 * step).sin()));
        let (scale, offset) = (lanes(0.7), lanes(1.3));
        for levels in [Levels::Uniform { lo: 0, hi: 15 }, Levels::Table(&TABLE)] {
            for isa in Isa::available() {
                let mut out = vec![F::ZERO; codes.len()];
                values_on(isa, levels, &codes, scale, offset, &mut out);
                for (codes, out) in codes.iter().zip(&out) {
                    let want = |l: usize| levels.level(codes[l]).mul_add(scale.0[l], offset.0[l]);
                    assert_eq!(out.0, std::array::from_fn(want), "{isa:?}, {levels:?}");
                }
            }
        }
    }
}
