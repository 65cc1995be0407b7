//! Rotary embedding.

use rayon::prelude::*;

/// Which two numbers of a head rotary embedding turns together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// `i` and `i + rotary/2`: the usual order of rows in a checkpoint.
    Halves,
    /// `2i` and `2i + 1`: the order of rows in a GGUF of the llama family.
    Neighbours,
}

/// Rotary embedding in place, on all threads (Su et al. 2021, equation 34), of the first `rotary` of the `d` numbers of each head.
///
/// `x`: `[windows · positions, heads · d]`; `cos`, `sin`: `[positions, rotary/2]`, which also says how many positions a window
/// has.
///
/// # Panics
/// If the lengths do not fit.
pub fn rope(x: &mut [f32], d: usize, rotary: usize, heads: usize, cos: &[f32], sin: &[f32], pairing: Pairing) {
    let (width, half) = (heads * d, rotary / 2);
    let positions = cos.len() / half;
    assert!(
        rotary.is_multiple_of(2)
            && rotary <= d
            && x.len().is_multiple_of(positions * width)
            && cos.len() == positions * half
            && cos.len() == sin.len(),
        "shapes of rope"
    );
    x.par_chunks_mut(width).enumerate().for_each(|(t, row)| {
        let at = t % positions * half;
        let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
        for head in row.chunks_mut(d) {
            let head = &mut head[..rotary];
            match pairing {
                Pairing::Halves => {
                    let (a, b) = head.split_at_mut(half);
                    for i in 0..half {
                        (a[i], b[i]) = (a[i] * cos[i] - b[i] * sin[i], b[i] * cos[i] + a[i] * sin[i]);
                    }
                }
                Pairing::Neighbours => {
                    for (i, pair) in head.chunks_exact_mut(2).enumerate() {
                        let (a, b) = (pair[0], pair[1]);
                        (pair[0], pair[1]) = (a * cos[i] - b * sin[i], b * cos[i] + a * sin[i]);
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_pairings_turn_the_same_pairs() {
        let (cos, sin) = ([0.6, 0.8], [0.8, 0.6]); // one position, d = 4
        let mut halves = [1.0, 2.0, 3.0, 4.0];
        let mut neighbours = [1.0, 3.0, 2.0, 4.0];
        rope(&mut halves, 4, 4, 1, &cos, &sin, Pairing::Halves);
        rope(&mut neighbours, 4, 4, 1, &cos, &sin, Pairing::Neighbours);
        let want = [0.6 - 2.4, 1.6 - 2.4, 1.8 + 0.8, 3.2 + 1.2];
        for i in 0..4 {
            assert!((halves[i] - want[i]).abs() < 1e-6);
        }
        assert_eq!([halves[0], halves[2], halves[1], halves[3]], neighbours);
        // A head of six, of which two do not turn.
        let mut part = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        rope(&mut part, 6, 4, 1, &cos, &sin, Pairing::Halves);
        assert_eq!((&part[..4], &part[4..]), (&halves[..], &[5.0, 6.0][..]));
    }
}
