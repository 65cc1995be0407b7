//! The causal convolution.

use super::super::*;
use super::{Random, close, golden, made};
use crate::Isa;
use crate::elementwise::Activation;
use crate::gemm::View;

#[test]
fn it_equals_the_sums_it_stands_for() {
    let mut random = Random(3);
    for _ in 0..100 {
        let (positions, channels) = (random.one_of(&[1, 2, 3, 7, 33, 70]), random.one_of(&[1, 15, 16, 17, 100]));
        let (taps, kept) = (random.one_of(&[1, 2, 3, 4, 5]), random.one_of(&[true, false]));
        let windows = if kept { 1 } else { random.one_of(&[1, 3]) };
        // Some columns of a wider matrix.
        let wide = channels + random.one_of(&[0, 3]);
        let x = random.numbers(windows * positions * wide, -1.0, 1.0);
        let (weight, bias) = (random.numbers(channels * taps, -1.0, 1.0), random.numbers(channels, -1.0, 1.0));
        let conv = CausalConv {
            weight: &weight,
            taps,
            bias: random.one_of(&[Some(&bias[..]), None]),
            activation: random.one_of(&[Some(Activation::Silu), None]),
        };
        let state = random.numbers((taps - 1) * channels, -1.0, 1.0);
        // All rows that are looked at: those before the window, and its own.
        let mut want = Vec::new();
        let mut last = Vec::new();
        for w in 0..windows {
            let mut rows: Vec<f32> = if kept { state.clone() } else { vec![0.0; state.len()] };
            let own = x[w * positions * wide..].chunks(wide).take(positions);
            rows.extend(own.flat_map(|row| &row[wide - channels..]));
            for t in 0..positions {
                for c in 0..channels {
                    let tap = |k: usize| f64::from(weight[c * taps + k]) * f64::from(rows[(t + k) * channels + c]);
                    let sum = (0..taps).map(tap).sum::<f64>() + conv.bias.map_or(0.0, |bias| f64::from(bias[c]));
                    want.push(if conv.activation.is_some() { sum / (1.0 + (-sum).exp()) } else { sum });
                }
            }
            last = rows[positions * channels..].iter().map(|x| f64::from(*x)).collect();
        }
        let rows = |from: usize, to: usize| View::new(&x[from * wide + wide - channels..], to - from, channels, wide);
        let what = (windows, positions, channels, taps, kept);
        let n = windows * positions;
        let mut out = vec![f32::NAN; n * channels];
        if !kept {
            causal_conv(rows(0, n), positions, &conv, None, &mut out);
            close(&out, &want, 1e-6, &what);
            continue;
        }
        for cut in [0, 1, n / 2].map(|cut| cut.min(n - 1)) {
            let mut state = state.clone();
            for (from, to) in [(0, cut), (cut, n)] {
                let out = &mut out[from * channels..to * channels];
                causal_conv(rows(from, to), to - from, &conv, Some(&mut state), out);
            }
            close(&out, &want, 1e-6, &(what, cut));
            close(&state, &last, 1e-9, &(what, cut));
            out.fill(f32::NAN);
        }
    }
}

#[test]
fn it_equals_transformers() {
    let (x, weight, bias) = (made(1, 9 * 5, -1.0, 1.0), made(2, 5 * 4, -1.0, 1.0), made(3, 5, -1.0, 1.0));
    let conv = CausalConv { weight: &weight, taps: 4, bias: Some(&bias), activation: Some(Activation::Silu) };
    let mut out = vec![f32::NAN; 9 * 5];
    causal_conv(View::new(&x, 9, 5, 5), 9, &conv, None, &mut out);
    close(&out, &golden(include_str!("../golden/causal_conv.txt")), 1e-6, &conv);
}

#[test]
fn all_instruction_sets_agree_to_the_last_bit_with_tails() {
    for n in [1, 15, 16, 17, 100] {
        let (x, weights, bias) = (made(1, 3 * n, -3.0, 3.0), made(2, 3 * n, -1.0, 1.0), made(3, n, -1.0, 1.0));
        let rows: Vec<&[f32]> = x.chunks(n).collect();
        let run = |isa| {
            [Some(Activation::Silu), None].map(|activation| {
                let mut out = vec![f32::NAN; n];
                causal_conv::filter_on(isa, &rows, &weights, Some(&bias), activation, &mut out);
                out
            })
        };
        for isa in Isa::available() {
            assert_eq!(run(isa), run(Isa::Baseline), "{isa:?} with {n}");
        }
    }
}
