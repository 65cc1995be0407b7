//! The hinge between methods and formats: a method asks a grid to fit a block and rounds onto what it is given, a format
//! implements it, and neither imports the other.
//!
//! Everything is done for sixteen rows at a time, one per lane. [`Steps`] are the scales as the file stores them, rounded
//! and all, so a method can only ever round onto the values that llama.cpp will decode. One that changes them itself keeps
//! to the grid's [`Freedom`].

pub use llmq_kernels::codebook::Codebook;
pub use llmq_kernels::column::Codes;
pub use llmq_kernels::search::Effort;
pub use llmq_kernels::{F, LANES, Levels};
use llmq_kernels::{codebook, column};

/// The most groups that a block has.
pub const GROUPS: usize = 16;

/// The size of a grid's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Columns of a block.
    pub width: usize,
    /// Columns that share a scale and an offset; divides `width` into [`GROUPS`] at most.
    pub group: usize,
    /// Bytes of a block.
    pub bytes: usize,
}

/// The scales of a block, for sixteen rows, as the file holds them: group `g` has the values
/// `d·scales[g]·q − dmin·mins[g]`.
///
/// Without sub-scales all `scales` are one; where `dmin` alone is the minimum, so are all `mins`. Without minima `dmin` and
/// all `mins` are zero. Groups that the block does not have mean nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Steps {
    /// What all scales are multiples of.
    pub d: F,
    /// What all minima are multiples of.
    pub dmin: F,
    /// One per group: integers, but where codes come from a codebook.
    pub scales: [F; GROUPS],
    /// Integers, one per group; likewise.
    pub mins: [F; GROUPS],
}

impl Steps {
    /// One scale and no minimum.
    pub fn plain(d: F) -> Steps {
        Steps { d, dmin: F::ZERO, scales: [F::splat(1.0); GROUPS], mins: [F::ZERO; GROUPS] }
    }

    /// One scale and one offset: `d·q + m`.
    pub fn line(d: F, m: F) -> Steps {
        Steps { dmin: -m, mins: [F::splat(1.0); GROUPS], ..Steps::plain(d) }
    }

    /// Scale and offset of a group: its values are `scale·q + offset`.
    pub fn step(&self, group: usize) -> (F, F) {
        (self.d * self.scales[group], -(self.dmin * self.mins[group]))
    }

    /// The row in lane `l`.
    pub fn lane(&self, l: usize) -> RowSteps {
        RowSteps {
            d: self.d.0[l],
            dmin: self.dmin.0[l],
            scales: self.scales.map(|x| x.0[l]),
            mins: self.mins.map(|x| x.0[l]),
        }
    }

    /// Replaces the row in lane `l`.
    pub fn set_lane(&mut self, l: usize, row: &RowSteps) {
        (self.d.0[l], self.dmin.0[l]) = (row.d, row.dmin);
        for g in 0..GROUPS {
            (self.scales[g].0[l], self.mins[g].0[l]) = (row.scales[g], row.mins[g]);
        }
    }
}

/// The [`Steps`] of a single row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowSteps {
    /// What all scales are multiples of.
    pub d: f32,
    /// What all minima are multiples of.
    pub dmin: f32,
    /// Integers, one per group.
    pub scales: [f32; GROUPS],
    /// Integers, one per group.
    pub mins: [f32; GROUPS],
}

impl RowSteps {
    /// One scale and no minimum.
    pub fn plain(d: f32) -> RowSteps {
        RowSteps { d, dmin: 0.0, scales: [1.0; GROUPS], mins: [0.0; GROUPS] }
    }

    /// One scale and one offset: `d·q + m`.
    pub fn line(d: f32, m: f32) -> RowSteps {
        RowSteps { dmin: -m, mins: [1.0; GROUPS], ..RowSteps::plain(d) }
    }

    /// One scale, and the code that stands for zero: `d·(q − zero)`.
    pub fn whole(d: f32, zero: f32) -> RowSteps {
        RowSteps { dmin: d, mins: [zero; GROUPS], ..RowSteps::plain(d) }
    }
}

/// What the scales of a format may be; a method that refits them keeps to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Freedom {
    /// How `d` and `dmin` are stored.
    pub supers: Supers,
    /// What sub-scales may be, lowest and highest; one where there are none.
    pub scales: (f32, f32),
    /// How far neighbouring sub-scales are apart.
    pub apart: f32,
    /// The same for minima: zero where there are no minima, one where `dmin` alone is the minimum.
    pub mins: (f32, f32),
    /// There is one super-scale: `dmin` is `d`, and minima are zero points, or parts of their scales.
    pub one_super: bool,
}

/// How `d` and `dmin` are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supers {
    /// In half precision.
    Half,
    /// As an exponent: `2^−128` to `2^126`.
    PowerOfTwo,
}

impl Freedom {
    /// One scale in half precision, and no minimum.
    pub const PLAIN: Freedom =
        Freedom { supers: Supers::Half, scales: (1.0, 1.0), apart: 1.0, mins: (0.0, 0.0), one_super: false };

    /// The nearest sub-scale.
    pub fn round_scale(&self, x: F) -> F {
        let ((lowest, highest), apart) = (self.scales, self.apart);
        let steps = (x - F::splat(lowest)) * F::splat(1.0 / apart);
        steps.round().mul_add(F::splat(apart), F::splat(lowest)).clamp(lowest, highest)
    }

    /// The nearest number that the file can hold for `d` or `dmin`.
    pub fn round_super(&self, x: F) -> F {
        match self.supers {
            Supers::Half => x.to_f16(),
            Supers::PowerOfTwo => x.map(power_of_two),
        }
    }
}

/// The nearest power of two that an exponent can stand for. Zero and whatever is below become the smallest.
fn power_of_two(x: f32) -> f32 {
    let (smallest, largest) = (2f64.powi(-128), 2f64.powi(126));
    // In double precision none of them is subnormal: half of the mantissa's range is carried into the exponent.
    let bits = f64::from(x).max(smallest).min(largest).to_bits() + (1 << 51);
    f64::from_bits(bits >> 52 << 52) as f32
}

/// A block format seen as a grid: `value = scale·q + offset`, with one scale and offset per group of columns.
pub trait Grid: Sync {
    /// The size of its blocks.
    fn shape(&self) -> Shape;

    /// The codes that exist.
    fn levels(&self) -> Levels;

    /// The scales that exist.
    fn freedom(&self) -> Freedom;

    /// The runs of codes that exist, where they do not all: columns are then rounded several at a time.
    fn codebook(&self) -> Option<&'static Codebook> {
        None
    }

    /// Chooses scales and offsets that keep `Σ h·(w − ŵ)²` small.
    ///
    /// `w`, `h`: `[width]`, all finite, `h ≥ 0`.
    fn fit(&self, w: &[F], h: &[F], effort: Effort) -> Steps;

    /// The scales of a row whose numbers are on the grid already, so that its codes stand for exactly these; none if it is
    /// no such row.
    ///
    /// `x`: `[width]`.
    fn recognize(&self, x: &[f32]) -> Option<RowSteps>;

    /// Writes scales and codes.
    ///
    /// `codes`: `[width]`; `blocks`: `[LANES, bytes]`, all of which is replaced.
    fn store(&self, steps: &Steps, codes: &[Codes], blocks: &mut [u8]);
}

impl dyn Grid + '_ {
    /// Columns of a block.
    pub fn width(&self) -> usize {
        self.shape().width
    }

    /// Columns that share a scale and an offset.
    pub fn group(&self) -> usize {
        self.shape().group
    }

    /// Groups of a block.
    pub fn groups(&self) -> usize {
        self.width() / self.group()
    }

    /// Bytes of a block.
    pub fn bytes(&self) -> usize {
        self.shape().bytes
    }

    /// Columns that are rounded together.
    pub fn run(&self) -> usize {
        self.codebook().map_or(1, Codebook::run)
    }

    /// Rounds a block to the nearest: every column by itself, or runs of them by what their errors count together.
    ///
    /// `w`, `h`, `codes`: `[width]`.
    pub fn round(&self, w: &[F], h: &[F], steps: &Steps, codes: &mut [Codes]) {
        let group = self.group();
        for (g, (w, codes)) in w.chunks(group).zip(codes.chunks_mut(group)).enumerate() {
            let (scale, offset) = steps.step(g);
            match self.codebook() {
                None => column::round(w, scale, offset, self.levels(), codes),
                Some(book) => {
                    let h = &h[g * group..(g + 1) * group];
                    codebook::round(w, h, scale, offset.div_or_zero(scale), book, codes);
                }
            }
        }
    }

    /// The magnitude up to which every block can be held, whatever its signs: the largest scale times the largest code; where there
    /// are minima, these have to reach as far, zero points lie in the middle, and codebooks have few runs of largest codes. Larger
    /// powers of two exist than the ones that count here: squares of numbers have to stay in single precision.
    pub fn largest(&self) -> f32 {
        let Freedom { supers, scales, mins, one_super, .. } = self.freedom();
        let super_scale = match supers {
            Supers::Half => 65504.0,
            Supers::PowerOfTwo => 2f32.powi(40),
        };
        let codes = super_scale * scales.1 * self.levels().highest();
        match (one_super || self.codebook().is_some(), mins.1 > 0.0) {
            (true, _) => codes / 2.0,
            (false, true) => codes.min(super_scale * mins.1),
            (false, false) => codes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supers_are_rounded_to_what_the_file_can_hold() {
        let of = |supers, x| Freedom { supers, ..Freedom::PLAIN }.round_super(F::splat(x)).0[7];
        assert_eq!([0.1, -0.1, 1e9].map(|x| of(Supers::Half, x)), [0.099_975_586, -0.099_975_586, 65504.0]);
        for e in -128..=126 {
            let power = 2f64.powi(e) as f32;
            assert_eq!([power, power * 1.49, power * 0.76].map(|x| of(Supers::PowerOfTwo, x)), [power; 3], "{e}");
        }
        assert_eq!([0.0, -1.0, 1e-45].map(|x| of(Supers::PowerOfTwo, x)), [2f64.powi(-128) as f32; 3]);
        assert_eq!(of(Supers::PowerOfTwo, f32::MAX), 2f32.powi(126));
    }
}
