//! Numbers that are none, or too large.

use crate::dispatch::kernel;
use crate::lanes::LANES;
use rayon::prelude::*;

/// The place of the first NaN or infinity, on all threads.
pub fn first_non_finite(x: &[f32]) -> Option<usize> {
    first_beyond(x, f32::MAX)
}

/// The position of the first number that is NaN or of a larger magnitude than `most`, searched for on all threads.
pub fn first_beyond(x: &[f32], most: f32) -> Option<usize> {
    const PART: usize = 1 << 14;
    // Within a part nothing stops early, so that the loop is a vector one.
    let part = x.par_chunks(PART).position_first(|part| largest_magnitude(part) > most.to_bits())?;
    let beyond = |x: &f32| x.to_bits() & 0x7fff_ffff > most.to_bits();
    x[part * PART..].iter().position(beyond).map(|at| part * PART + at)
}

kernel! {
    /// The bits of the largest magnitude, which rise as magnitudes do; those of NaN are above all others.
    pub fn largest_magnitude / largest_magnitude_on(x: &[f32]) -> u32 {
        let (lanes, tail) = x.as_chunks::<LANES>();
        let mut largest = [0u32; LANES];
        for x in lanes {
            for (largest, x) in largest.iter_mut().zip(x) {
                *largest = (*largest).max(x.to_bits() & 0x7fff_ffff);
            }
        }
        let tail = tail.iter().map(|x| x.to_bits() & 0x7fff_ffff);
        largest.into_iter().chain(tail).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn the_first_number_that_is_none_is_found() {
        let mut x = vec![1.0; 100_000];
        assert_eq!(first_non_finite(&x), None);
        x[70_001] = f32::NEG_INFINITY;
        x[99_999] = f32::NAN;
        assert_eq!(first_non_finite(&x), Some(70_001));
        assert_eq!(first_non_finite(&x[70_002..]), Some(29_997));
        assert_eq!(first_beyond(&[1.0, -3.0, 2.0], 3.0), None);
        assert_eq!(first_beyond(&[1.0, -3.0, 4.0, f32::NAN], 2.5), Some(1));
        for n in 0..40 {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin()).collect();
            let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs())).to_bits();
            for isa in Isa::available() {
                assert_eq!(largest_magnitude_on(isa, &x), largest, "{isa:?} {n}");
            }
        }
    }
}
