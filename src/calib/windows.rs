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

/// Windows of equal length, each out of one document, at a random place in it (as GPTQ's own code does it with C4).
///
/// Documents are drawn without replacement while they last; those that are shorter than a window are left out. A BOS is put as
/// [`sample`] does.
///
/// # Errors
/// No document is as long as a window.
pub fn sample_within(
    documents: &[Vec<u32>],
    bos: Option<u32>,
    count: usize,
    length: usize,
    seed: u64,
) -> Result<Vec<Vec<u32>>> {
    let mut long: Vec<&Vec<u32>> = documents.iter().filter(|tokens| tokens.len() >= length).collect();
    if long.is_empty() {
        let most = documents.iter().map(Vec::len).max().unwrap_or_default();
        return Err(Error::new(format!(
            "no document is long enough: the longest has {most} tokens, but a window has {length}"
        ))
        .hint("let windows reach across documents with --pack, or make them shorter with --seq-len"));
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    long.shuffle(&mut random);
    let windows = long.iter().cycle().take(count).map(|tokens| {
        let start = random.random_range(0..=tokens.len() - length);
        let mut window = tokens[start..start + length].to_vec();
        if let Some(bos) = bos {
            window[0] = bos;
        }
        window
    });
    Ok(windows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_within_documents_do_not_cross_their_ends() {
        // Document i is i·1000, i·1000 + 1, …
        let documents: Vec<Vec<u32>> =
            [40, 100, 80, 20].iter().zip(0..).map(|(n, i)| (i * 1000..i * 1000 + n).collect()).collect();
        let windows = sample_within(&documents, None, 2, 64, 3).unwrap();
        let of = |window: &Vec<u32>| window[0] / 1000;
        assert!(windows.iter().all(|w| w.len() == 64 && w.windows(2).all(|p| p[0] + 1 == p[1])));
        let mut from: Vec<u32> = windows.iter().map(of).collect();
        from.sort_unstable();
        assert_eq!(from, [1, 2], "each of the long documents once");
        assert_eq!(sample_within(&documents, Some(7), 5, 64, 3).unwrap().iter().filter(|w| w[0] == 7).count(), 5);
        let draw = |seed| sample_within(&documents, None, 2, 64, seed).unwrap();
        assert!((0..8).any(|seed| draw(seed) != draw(3)));
        let message = sample_within(&documents, None, 1, 101, 0).unwrap_err().to_string();
        assert!(message.contains("100 tokens") && message.contains("101"), "{message}");
    }

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
