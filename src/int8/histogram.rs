//! Histograms of numbers that come in a stream and whose range is not known beforehand.
//!
//! All bins have the same width, a power of two, and begin at multiples of it. When a number falls outside, the width doubles
//! until [`BINS`] bins suffice, and neighbours are merged: since their edges are among the old ones, nothing has to be
//! guessed. The width follows from the smallest and the largest number alone, so that the counts are those of one
//! histogram over all numbers at once, in whatever order and pieces they came.

/// The most bins; at least about half of them are in use. ONNX Runtime takes 2048 for percentiles and 128 for entropy.
pub const BINS: usize = 4096;

/// The narrowest bins: numbers below are as good as zero.
const NARROWEST: i32 = -120;

/// Counts of numbers, zero being among the range.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// The width of bins is 2 to the power of this.
    exponent: i32,
    /// The first bin begins at this multiple of the width.
    first: i64,
    counts: Vec<u64>,
    min: f32,
    max: f32,
    zeros: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { exponent: NARROWEST, first: 0, counts: vec![0], min: 0.0, max: 0.0, zeros: 0 }
    }
}

impl Histogram {
    /// Counts numbers whose smallest and largest are known, all finite.
    pub fn add(&mut self, x: &[f32], min: f32, max: f32) {
        self.grow(min, max);
        let inverse = 2f64.powi(-self.exponent);
        for &x in x {
            // Exact in double precision; in single, a tiny negative number would become zero and change its bin. The bin is
            // within the range that has just been made.
            let bin = (f64::from(x) * inverse).floor() as i64 - self.first;
            self.counts[bin as usize] += 1;
            self.zeros += u64::from(x == 0.0);
        }
    }

    fn grow(&mut self, min: f32, max: f32) {
        if min >= self.min && max <= self.max {
            return;
        }
        (self.min, self.max) = (self.min.min(min), self.max.max(max));
        let bin = |x: f32, exponent: i32| (f64::from(x) * 2f64.powi(-exponent)).floor();
        let span = |exponent| bin(self.max, exponent) - bin(self.min, exponent);
        let mut exponent = self.exponent;
        while span(exponent) >= BINS as f64 {
            exponent += 1;
        }
        let first = bin(self.min, exponent) as i64;
        let mut counts = vec![0; span(exponent) as usize + 1];
        for (i, &n) in self.counts.iter().enumerate() {
            // Bins merge towards minus infinity, as the floor does.
            let shift = (exponent - self.exponent).min(63);
            counts[(((self.first + i as i64) >> shift) - first) as usize] += n;
        }
        (self.exponent, self.first, self.counts) = (exponent, first, counts);
    }

    /// The smallest number, or zero if that is smaller.
    pub fn min(&self) -> f32 {
        self.min
    }

    /// The largest number, or zero if that is larger.
    pub fn max(&self) -> f32 {
        self.max
    }

    /// How many numbers were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How many of them are exactly zero.
    pub fn zeros(&self) -> u64 {
        self.zeros
    }

    /// The width of a bin.
    pub fn width(&self) -> f64 {
        2f64.powi(self.exponent)
    }

    /// The counts, from the smallest numbers to the largest.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Where the `i`th bin begins.
    pub fn edge(&self, i: usize) -> f64 {
        (self.first + i as i64) as f64 * self.width()
    }

    /// The bin that zero is in.
    pub fn zero_bin(&self) -> usize {
        -self.first as usize
    }

    /// A number in the same bin as the `⌈q·n⌉`th smallest: that bin's middle, within the range that was seen.
    pub fn quantile(&self, q: f64) -> f64 {
        let rank = ((q * self.total() as f64).ceil() as u64).max(1);
        let mut below = 0;
        let bin = self.counts.iter().position(|n| {
            below += n;
            below >= rank
        });
        let middle = self.edge(bin.unwrap_or(self.counts.len() - 1)) + 0.5 * self.width();
        middle.clamp(f64::from(self.min), f64::from(self.max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extremes(x: &[f32]) -> (f32, f32) {
        x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &x| (a.min(x), b.max(x)))
    }

    fn of<'a>(pieces: impl IntoIterator<Item = &'a [f32]>) -> Histogram {
        let mut histogram = Histogram::default();
        for x in pieces.into_iter().filter(|x| !x.is_empty()) {
            let (min, max) = extremes(x);
            histogram.add(x, min, max);
        }
        histogram
    }

    fn numbers() -> impl Strategy<Value = Vec<f32>> {
        let number = prop_oneof![
            Just(0.0f32),
            -1.0..1.0f32,
            (-1.0..1.0f32, -40..40i32).prop_map(|(x, e)| x * 2f32.powi(e)),
            prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL,
        ];
        prop::collection::vec(number, 1..300)
    }

    proptest! {
        #[test]
        fn a_stream_gives_the_histogram_of_all_at_once(x in numbers(), pieces in 1..40usize, backwards in any::<bool>()) {
            let mut streamed: Vec<&[f32]> = x.chunks(pieces).collect();
            if backwards { streamed.reverse() }
            let (streamed, whole) = (of(streamed), of([&x[..]]));
            prop_assert_eq!(&streamed, &whole);
            // And that is what one gets by looking for each number.
            prop_assert_eq!(whole.total(), x.len() as u64);
            for (i, &n) in whole.counts().iter().enumerate() {
                let (low, high) = (whole.edge(i), whole.edge(i + 1));
                let inside = x.iter().filter(|&&x| low <= f64::from(x) && f64::from(x) < high).count();
                prop_assert_eq!(n, inside as u64);
            }
            prop_assert_eq!(whole.zeros(), x.iter().filter(|x| **x == 0.0).count() as u64);
        }

        #[test]
        fn few_bins_are_left_out_and_zero_is_in_one(x in numbers()) {
            let h = of([&x[..]]);
            prop_assert!(h.counts().len() <= BINS);
            prop_assert!(h.counts().len() > BINS / 2 - 2 || h.exponent == NARROWEST);
            prop_assert_eq!(h.edge(h.zero_bin()), 0.0);
            prop_assert!(h.min() <= 0.0 && h.max() >= 0.0);
        }

        #[test]
        fn quantiles_are_off_by_less_than_a_bin(mut x in numbers(), q in 0.0..=1.0f64) {
            let h = of([&x[..]]);
            x.sort_by(f32::total_cmp);
            let rank = ((q * x.len() as f64).ceil() as usize).max(1);
            prop_assert!((h.quantile(q) - f64::from(x[rank - 1])).abs() <= h.width());
        }
    }
}
