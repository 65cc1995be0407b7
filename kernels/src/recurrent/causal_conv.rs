//! The short convolution in front of a scan, and by itself the mixer of LFM2.

use crate::dispatch::kernel;
use crate::elementwise::{Activation, load, store};
use crate::gemm::View;
use crate::lanes::{F, LANES};
use rayon::prelude::*;

/// Rows that one task handles.
const ROWS: usize = 32;

/// A depthwise causal convolution: each channel is filtered by itself, over the positions up to its own.
#[derive(Debug, Clone, Copy)]
pub struct CausalConv<'a> {
    /// `[channels, taps]`; the last of a channel's is for the newest position. GGUF's `ssm_conv1d` and `shortconv.conv`.
    pub weight: &'a [f32],
    /// Positions that each output looks at.
    pub taps: usize,
    /// `[channels]`.
    pub bias: Option<&'a [f32]>,
    /// What follows.
    pub activation: Option<Activation>,
}

/// The convolution of every window, on all threads.
///
/// `x`: `[windows · positions, channels]`; `out`: the same without anything between rows. Every window begins behind rows of zeros; or,
/// given `state`, `[taps − 1, channels]`, the only window follows those rows and leaves its own last ones there.
///
/// # Panics
/// If the shapes do not fit.
pub fn causal_conv(
    x: View<'_>,
    positions: usize,
    conv: &CausalConv<'_>,
    mut state: Option<&mut [f32]>,
    out: &mut [f32],
) {
    let CausalConv { weight, taps, bias, activation } = *conv;
    if out.is_empty() {
        return;
    }
    let channels = weight.len() / taps;
    assert_eq!(weight.len(), channels * taps, "weights of a convolution");
    assert!(bias.is_none_or(|bias| bias.len() == channels), "biases of a convolution");
    assert_eq!((x.columns, x.rows * channels, x.rows % positions), (channels, out.len(), 0), "rows of a convolution");
    if let Some(state) = &state {
        assert_eq!((x.rows, state.len()), (positions, (taps - 1) * channels), "the state of one window");
    }
    let before = state.as_deref();
    let mut turned = vec![0.0; weight.len()]; // [taps, channels]
    for (c, weight) in weight.chunks(taps).enumerate() {
        weight.iter().enumerate().for_each(|(tap, w)| turned[tap * channels + c] = *w);
    }
    let tiles: Vec<(usize, usize, &mut [f32])> = out
        .chunks_mut(positions * channels)
        .enumerate()
        .flat_map(|(w, out)| out.chunks_mut(ROWS * channels).enumerate().map(move |(t, out)| (w, t * ROWS, out)))
        .collect();
    tiles.into_par_iter().for_each(|(w, first, out)| {
        let mut rows: Vec<&[f32]> = Vec::with_capacity(taps);
        for (i, out) in out.chunks_mut(channels).enumerate() {
            let t = first + i;
            // Of the rows before a window that begins afresh, none is there.
            let absent = if before.is_none() { (taps - 1).saturating_sub(t) } else { 0 };
            rows.clear();
            rows.extend((absent..taps).map(|tap| match (t + tap).checked_sub(taps - 1) {
                Some(t) => x.row(w * positions + t),
                None => &before.unwrap_or_default()[(t + tap) * channels..][..channels],
            }));
            filter(&rows, &turned[absent * channels..], bias, activation, out);
        }
    });
    if let Some(state) = &mut state {
        let kept = (taps - 1).saturating_sub(positions);
        state.copy_within((taps - 1 - kept) * channels.., 0);
        for (row, to) in state.chunks_mut(channels).enumerate().skip(kept) {
            to.copy_from_slice(x.row(positions + row - (taps - 1)));
        }
    }
}

kernel! {
    /// One row: `activation(bias + Σ rows·weights)`. `rows`: `[taps][n]`; `weights`: `[taps, n]`; `bias`, `out`: `[n]`.
    pub fn filter / filter_on(
        rows: &[&[f32]],
        weights: &[f32],
        bias: Option<&[f32]>,
        activation: Option<Activation>,
        out: &mut [f32],
    ) {
        let n = out.len();
        for (first, out) in (0..).step_by(LANES).zip(out.chunks_mut(LANES)) {
            let columns = first..first + out.len();
            let mut y = F::ZERO;
            if let Some(bias) = bias {
                y = load(&bias[columns.clone()], 0.0);
            }
            for (row, weights) in rows.iter().zip(weights.chunks_exact(n)) {
                y = load(&row[columns.clone()], 0.0).mul_add(load(&weights[columns.clone()], 0.0), y);
            }
            if let Some(activation) = activation {
                y = activation.of(y);
            }
            store(y, out);
        }
    }
}
