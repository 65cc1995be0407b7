//! Seeded windows of tokens.

use crate::error::{Error, Result};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Windows of equal length, cut out of one long row of tokens, so that no token is padding.
///
/// Where the text is long enough the windows do not overlap: it is cut into slots (from a random offset on), and the
/// slots are drawn without replacement. Where it is too short for that, each window starts anywhere. If the model's text
/// starts with a BOS, so does every window: a first token that is not BOS has activations that never occur in use.
///
/// # Errors
/// Fewer tokens than one window.
pub fn sample(tokens: &[u32], bos: Option<u32>, count: usize, length: usize, seed: u64) -> Result<Vec<Vec<u32>>> {
    if tokens.len() < length {
        return Err(Error::new(format!(
            "the calibration text is too short: {} tokens, but a window has {length}",
            tokens.len()
        ))
        .hint("give more text with --calib (it may be repeated), or shorter windows with --seq-len"));
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let slots = tokens.len() / length;
    let starts: Vec<usize> = if slots >= count {
        let offset = random.random_range(0..=tokens.len() - slots * length);
        let mut slots: Vec<usize> = (0..slots).map(|s| offset + s * length).collect();
        slots.partial_shuffle(&mut random, count).0.to_vec()
    } else {
        (0..count).map(|_| random.random_range(0..=tokens.len() - length)).collect()
    };
    Ok(starts
        .into_iter()
        .map(|start| {
            let mut window = tokens[start..start + length].to_vec();
            if let Some(bos) = bos {
                window[0] = bos;
            }
            window
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_do_not_overlap_while_the_text_lasts() {
        let tokens: Vec<u32> = (0..1003).collect();
        let mut windows = sample(&tokens, None, 10, 100, 7).unwrap();
        windows.sort();
        for pair in windows.windows(2) {
            assert!(pair[0][99] < pair[1][0]);
        }
        assert_eq!(sample(&tokens, None, 30, 100, 7).unwrap().len(), 30);
    }

    #[test]
    fn the_seed_decides_and_bos_comes_first() {
        let tokens: Vec<u32> = (10..2000).collect();
        let draw = |seed| sample(&tokens, Some(1), 4, 64, seed).unwrap();
        assert_eq!(draw(0), draw(0));
        assert_ne!(draw(0), draw(1));
        assert!(draw(0).iter().all(|w| w[0] == 1 && w.len() == 64 && w[1..].windows(2).all(|p| p[0] + 1 == p[1])));
    }

    #[test]
    fn too_little_text_is_an_error_with_both_numbers() {
        let message = sample(&[1, 2, 3], None, 1, 8, 0).unwrap_err().to_string();
        assert!(message.contains("3 tokens") && message.contains('8'), "{message}");
    }
}
