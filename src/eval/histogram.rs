//! How often a measure of tokens has which size, over a logarithmic axis.

/// Bins of a factor of ten.
const PER_DECADE: i32 = 4;

/// What is smaller than 10 to this power counts as nothing: the arithmetic's own noise.
const LEAST: i32 = -8;

/// How many tokens have a value from `low` to below `high`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bin {
    /// The lower edge.
    pub low: f64,
    /// The upper edge.
    pub high: f64,
    /// Tokens.
    pub tokens: usize,
}

/// The bins of values that are not negative, without empty ones at either end, the smallest values first. Values that
/// count as nothing are in the lowest bin that there can be, which ends at 10⁻⁸ and has `low` zero.
pub fn logarithmic(values: &[f64]) -> Vec<Bin> {
    let edge = |step: i32| 10f64.powf(f64::from(step) / f64::from(PER_DECADE));
    let lowest = LEAST * PER_DECADE;
    // The bin's place; the edges themselves decide, so that rounding in the logarithm cannot.
    let place = |value: f64| {
        if value < edge(lowest) {
            return 0;
        }
        let guess = (value.log10() * f64::from(PER_DECADE)).floor() as i32;
        let step = [guess + 1, guess].into_iter().find(|&step| edge(step) <= value).unwrap_or(guess - 1);
        (step - lowest + 1).max(1) as usize
    };
    let places: Vec<usize> = values.iter().filter(|value| value.is_finite()).map(|&value| place(value)).collect();
    let (Some(&first), Some(&last)) = (places.iter().min(), places.iter().max()) else { return Vec::new() };
    let mut tokens = vec![0; last - first + 1];
    places.iter().for_each(|place| tokens[place - first] += 1);
    let bin = |(i, tokens): (usize, usize)| {
        let step = lowest + (first + i) as i32;
        Bin { low: if first + i == 0 { 0.0 } else { edge(step - 1) }, high: edge(step), tokens }
    };
    tokens.into_iter().enumerate().map(bin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn four_bins_are_a_decade() {
        let bins = logarithmic(&[0.0, 1e-9, 0.02, 0.1, 0.17, 0.99]);
        assert_eq!(bins[0], Bin { low: 0.0, high: 1e-8, tokens: 2 });
        let last = bins[bins.len() - 1];
        assert!((last.low - 0.562).abs() < 1e-3 && last.high == 1.0 && last.tokens == 1, "{last:?}");
        assert_eq!(bins.iter().find(|bin| bin.low == 0.1).unwrap().tokens, 2);
        assert_eq!(logarithmic(&[]), []);
    }

    proptest! {
        #[test]
        fn every_value_is_in_the_one_bin_that_contains_it(exponents in prop::collection::vec(-12.0..2.0f64, 1..50)) {
            let values: Vec<f64> = exponents.iter().map(|x| 10f64.powf(*x)).collect();
            let bins = logarithmic(&values);
            for bin in &bins {
                prop_assert_eq!(bin.tokens, values.iter().filter(|&&v| bin.low <= v && v < bin.high).count());
            }
            prop_assert_eq!(bins.iter().map(|bin| bin.tokens).sum::<usize>(), values.len());
            prop_assert!(bins.windows(2).all(|pair| pair[0].high == pair[1].low));
        }
    }
}
