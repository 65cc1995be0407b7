//! Rounding runs of columns to the entries of a codebook, for sixteen rows at a time.
//!
//! Levels of an entry are chosen together: of all runs of four or eight levels a codebook holds a few hundred. Signs are
//! apart from them, free or with an even number of minuses, or there are none. Both searches below are exact: costs that
//! add up over columns are added up once for each half of an entry ([`round`]); and in a metric that is not diagonal, the
//! best entry for given signs is found from tables of the halves, too, and signs move by themselves ([`refine`]).

mod metric;
mod separable;

use crate::lanes::F;

pub use metric::{feedback, feedback_on, refine, refine_on, sweep, sweep_on};
pub use separable::{Fit, fit, fit_on, round, round_on};

/// The most columns that are rounded together.
pub const RUN: usize = 8;

/// The most combinations of levels that half of an entry may have, rounded up to a power of two.
const HALVES: usize = 128;

/// Where tables of the halves are made: too large to be cleared for every run.
struct Room {
    low: [F; HALVES],
    high: [F; HALVES],
    flip_low: [F; HALVES],
    flip_high: [F; HALVES],
    /// What the first columns add to a level of each column behind them.
    ahead: [[F; HALVES]; RUN],
}

impl Default for Room {
    fn default() -> Room {
        let zeros = [F::ZERO; HALVES];
        Room { low: zeros, high: zeros, flip_low: zeros, flip_high: zeros, ahead: [zeros; RUN] }
    }
}

/// What is kept apart from the levels of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signs {
    /// Nothing: levels have their signs.
    None,
    /// Nothing, but levels, eight times an entry's, are all one more or all one less.
    Shifted,
    /// A sign for each column.
    Each,
    /// A sign for each column, with an even number of minuses in every eight.
    Even,
}

impl Signs {
    /// Whether there are signs apart from the levels.
    pub fn are_free(self) -> bool {
        matches!(self, Signs::Each | Signs::Even)
    }
}

/// Which runs of levels exist. Codes are levels with their signs.
pub struct Codebook {
    /// Columns of an entry.
    width: usize,
    /// Columns that depend on each other: one entry, or several that share a sign.
    run: usize,
    signs: Signs,
    /// What a digit stands for, rising.
    levels: Vec<f32>,
    /// The places of both halves of each entry among all combinations of digits, the first column's the lowest.
    halves: Vec<[u8; 2]>,
    /// The same with the place of the entry, in the order of the first half.
    sorted: Vec<([u8; 2], u16)>,
    /// The levels of each combination: `[levels^(width / 2), width / 2]`.
    digits: Vec<[f32; RUN / 2]>,
    entries: Vec<[i8; RUN]>,
    /// The entry of each combination of all digits; [`NOWHERE`] if there is none.
    places: Vec<u16>,
}

const NOWHERE: u16 = u16::MAX;

/// What a file stores of some columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The place in the codebook.
    pub place: u16,
    /// Set bits are minuses, the first column's the lowest.
    pub signs: u8,
    /// The levels are shifted down.
    pub down: bool,
}

impl Codebook {
    /// A codebook of entries of `W` levels: `[n, W]`.
    ///
    /// # Panics
    /// If entries are longer than [`RUN`], or there are too many levels.
    pub fn new<const W: usize>(entries: &[[i8; W]], signs: Signs) -> Codebook {
        let times = if signs == Signs::Shifted { 8 } else { 1 };
        let mut levels: Vec<i8> = entries.as_flattened().to_vec();
        levels.sort_unstable();
        levels.dedup();
        let base = levels.len();
        let half = base.pow(W as u32 / 2);
        assert!(W <= RUN && half <= HALVES && entries.len() < usize::from(NOWHERE));
        let number = |digits: &[i8]| -> usize {
            digits.iter().rev().fold(0, |n, level| n * base + levels.partition_point(|known| known < level))
        };
        let mut places = vec![NOWHERE; half * half];
        let mut halves = Vec::new();
        for (place, entry) in entries.iter().enumerate() {
            places[number(entry)] = place as u16;
            halves.push([number(&entry[..W / 2]) as u8, number(&entry[W / 2..]) as u8]);
        }
        let mut sorted: Vec<_> = halves.iter().copied().zip(0..).collect();
        sorted.sort_unstable();
        let levels: Vec<f32> = levels.into_iter().map(|level| f32::from(level * times)).collect();
        let digits = |n: usize| -> [f32; RUN / 2] {
            std::array::from_fn(|j| if j < W / 2 { levels[n / base.pow(j as u32) % base] } else { 0.0 })
        };
        let digits = (0..half).map(digits).collect();
        let padded = |entry: &[i8; W]| std::array::from_fn(|j| entry.get(j).map_or(0, |level| level * times));
        let run = if signs == Signs::Even { RUN } else { W };
        Codebook {
            width: W,
            run,
            signs,
            levels,
            halves,
            sorted,
            digits,
            entries: entries.iter().map(padded).collect(),
            places,
        }
    }

    /// Columns of an entry.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Columns that are rounded together.
    pub fn run(&self) -> usize {
        self.run
    }

    /// The magnitudes that codes have, rising.
    pub fn magnitudes(&self) -> Vec<f32> {
        let shifts: &[f32] = if self.signs == Signs::Shifted { &[-1.0, 1.0] } else { &[0.0] };
        let mut all: Vec<f32> =
            self.levels.iter().flat_map(|level| shifts.iter().map(move |s| (level + s).abs())).collect();
        all.sort_by(f32::total_cmp);
        all.dedup();
        all
    }

    /// What is kept apart from the levels.
    pub fn signs(&self) -> Signs {
        self.signs
    }

    /// How many entries there are.
    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    /// The codes of an entry; see [`Found`].
    pub fn codes(&self, found: Found) -> impl Iterator<Item = i8> {
        let shift = match (self.signs, found.down) {
            (Signs::Shifted, false) => 1,
            (Signs::Shifted, true) => -1,
            _ => 0,
        };
        let entry = &self.entries[usize::from(found.place)][..self.width];
        entry.iter().enumerate().map(move |(j, &level)| {
            let level = if found.signs >> j & 1 == 1 { -level } else { level };
            level + shift
        })
    }

    /// Whether the file can hold these codes. `codes`: `[run]`.
    pub fn holds(&self, codes: &[i8]) -> bool {
        let even = self.signs != Signs::Even || codes.iter().filter(|code| **code < 0).count() % 2 == 0;
        even && codes.chunks(self.width).all(|codes| self.find(codes.iter().copied()).is_some())
    }

    /// The entry that some codes are, or none. `codes`: `[width]`.
    pub fn find(&self, codes: impl DoubleEndedIterator<Item = i8> + Clone) -> Option<Found> {
        let down = self.signs == Signs::Shifted && codes.clone().next()? & 2 != 0;
        let shift = if self.signs == Signs::Shifted { if down { -1 } else { 1 } } else { 0 };
        let mut signs = 0;
        let mut number = 0;
        for code in codes.rev() {
            let mut level = code.checked_sub(shift)?;
            if self.signs.are_free() {
                signs = signs << 1 | u8::from(level < 0);
                level = level.checked_abs()?;
            }
            number = number * self.levels.len() + self.levels.iter().position(|known| *known == f32::from(level))?;
        }
        let place = *self.places.get(number)?;
        (place != NOWHERE).then_some(Found { place, signs, down })
    }
}

#[cfg(test)]
mod tests;
