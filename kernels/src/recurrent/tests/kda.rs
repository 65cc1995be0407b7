//! Kimi Delta Attention.

use super::super::*;
use super::{Random, close};
use crate::Isa;
use crate::gemm::View;
use std::ops::Range;

/// All numbers of a case, and a state to go on from.
#[derive(Debug)]
struct Kda {
    shape: KdaShape,
    windows: usize,
    /// `[tokens, q | k | v]`, as a convolution leaves them.
    qkv: Vec<f32>,
    g: Vec<f32>,
    beta: Vec<f32>,
    state: Option<Vec<f32>>,
}

const EPS: f32 = 1e-6;

impl Kda {
    fn random(random: &mut Random) -> Kda {
        let shape = KdaShape {
            positions: random.one_of(&[1, 2, 5, 64, 130]),
            heads: random.one_of(&[1, 2, 5]),
            dk: random.one_of(&[1, 7, 16, 33, 128]),
            dv: random.one_of(&[1, 5, 16, 31, 32, 63, 65, 128]),
        };
        let kept = random.one_of(&[true, false]);
        let windows = if kept { 1 } else { random.one_of(&[1, 2]) };
        let (n, keys, values) = (windows * shape.positions, shape.heads * shape.dk, shape.heads * shape.dv);
        // Decays from none at all to nothing left.
        let strongest = random.one_of(&[0.0, 0.1, 5.0, 200.0]);
        let (lo, hi) = random.one_of(&[(0.0, 0.01), (0.99, 1.0), (0.0, 1.0)]);
        Kda {
            shape,
            windows,
            qkv: random.numbers(n * (2 * keys + values), -1.0, 1.0),
            g: random.numbers(n * keys, -strongest, 0.0),
            beta: random.numbers(n * shape.heads, lo, hi),
            state: kept.then(|| random.numbers(keys * shape.dv, -1.0, 1.0)),
        }
    }

    /// The inputs of some positions.
    fn inputs(&self, rows: Range<usize>) -> KdaInputs<'_> {
        let KdaShape { heads, dk, dv, .. } = self.shape;
        let (keys, values) = (heads * dk, heads * dv);
        let wide = 2 * keys + values;
        let view = |first: usize, columns| View::new(&self.qkv[rows.start * wide + first..], rows.len(), columns, wide);
        KdaInputs {
            q: view(0, keys),
            k: view(keys, keys),
            v: view(2 * keys, values),
            g: View::new(&self.g[rows.start * keys..], rows.len(), keys, keys),
            beta: &self.beta[rows.start * heads..rows.end * heads],
        }
    }

    /// Output and last state of each window in double precision.
    fn recurrence(&self) -> (Vec<f64>, Vec<f64>) {
        let KdaShape { positions, heads, dk, dv } = self.shape;
        let inputs = self.inputs(0..self.windows * positions);
        let mut out = vec![0.0; self.windows * positions * heads * dv];
        let mut last = Vec::new();
        for w in 0..self.windows {
            let mut states: Vec<f64> = match &self.state {
                Some(state) => state.iter().map(|x| f64::from(*x)).collect(),
                None => vec![0.0; heads * dk * dv],
            };
            for t in w * positions..(w + 1) * positions {
                for j in 0..heads {
                    let unit = |x: &[f32]| -> Vec<f64> {
                        let x = x[j * dk..][..dk].iter().map(|x| f64::from(*x));
                        let squares: f64 = x.clone().map(|x| x * x).sum();
                        x.map(|x| x / (squares + f64::from(EPS)).sqrt()).collect()
                    };
                    let (q, k) = (unit(inputs.q.row(t)), unit(inputs.k.row(t)));
                    let (v, g) = (&inputs.v.row(t)[j * dv..][..dv], &inputs.g.row(t)[j * dk..][..dk]);
                    let beta = f64::from(inputs.beta[t * heads + j]);
                    let state = &mut states[j * dk * dv..][..dk * dv];
                    for (row, g) in state.chunks_mut(dv).zip(g) {
                        row.iter_mut().for_each(|x| *x *= f64::from(*g).exp());
                    }
                    for (i, v) in v.iter().enumerate() {
                        let old: f64 = (0..dk).map(|p| state[p * dv + i] * k[p]).sum();
                        (0..dk).for_each(|p| state[p * dv + i] += k[p] * beta * (f64::from(*v) - old));
                        let read: f64 = (0..dk).map(|p| state[p * dv + i] * q[p]).sum();
                        out[(t * heads + j) * dv + i] = read / (dk as f64).sqrt();
                    }
                }
            }
            last.extend(states);
        }
        (out, last)
    }

    /// Output and last state, each a piece of the window after the other. `cuts`: where pieces end.
    fn scanned(&self, isa: Isa, cuts: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let wide = self.shape.heads * self.shape.dv;
        let mut out = vec![f32::NAN; self.windows * self.shape.positions * wide];
        let mut state = self.state.clone();
        let mut from = 0;
        for &to in cuts.iter().filter(|&&to| to > 0) {
            if to > from {
                let shape = KdaShape { positions: (to - from) / self.windows, ..self.shape };
                let out = &mut out[from * wide..to * wide];
                kda::scan(isa, &self.inputs(from..to), shape, EPS, state.as_deref_mut(), out);
                from = to;
            }
        }
        (out, state.unwrap_or_default())
    }
}

#[test]
fn the_scan_is_the_recurrence() {
    let mut random = Random(17);
    for _ in 0..60 {
        let case = Kda::random(&mut random);
        let n = case.windows * case.shape.positions;
        let (want, last) = case.recurrence();
        for isa in Isa::available() {
            let whole = case.scanned(isa, &[n]);
            close(&whole.0, &want, 2e-5, &(isa, case.shape));
            if case.state.is_some() {
                close(&whole.1, &last, 2e-5, &(isa, case.shape));
                let pieces = case.scanned(isa, &[1, n / 3, n]);
                close(&pieces.0, &want, 2e-5, &(isa, case.shape, "in pieces"));
                close(&pieces.1, &last, 2e-5, &(isa, case.shape, "in pieces"));
            }
        }
    }
}

/// With one decay for all channels of a head it is the gated delta rule.
#[test]
fn equal_decays_make_the_gated_delta_rule() {
    let (positions, heads, dk, dv) = (70, 2, 16, 20);
    let mut random = Random(3);
    let qkv = random.numbers(positions * heads * (2 * dk + dv), -1.0, 1.0);
    let (g, beta) = (random.numbers(positions * heads, -1.0, 0.0), random.numbers(positions * heads, 0.0, 1.0));
    let each: Vec<f32> = g.iter().flat_map(|g| vec![*g; dk]).collect();
    let (keys, wide) = (heads * dk, heads * (2 * dk + dv));
    let view = |first: usize, columns| View::new(&qkv[first..], positions, columns, wide);
    let (q, k, v) = (view(0, keys), view(keys, keys), view(2 * keys, heads * dv));
    let [mut ours, mut other] = [(); 2].map(|()| vec![0.0; positions * heads * dv]);
    let inputs = KdaInputs { q, k, v, g: View::new(&each, positions, keys, keys), beta: &beta };
    kda(&inputs, KdaShape { positions, heads, dk, dv }, EPS, None, &mut ours);
    let shape = DeltaShape { positions, key_heads: heads, value_heads: heads, dk, dv, order: HeadOrder::Tiled };
    gated_delta_rule(&DeltaInputs { q, k, v, g: &g, beta: &beta }, shape, EPS, None, &mut other);
    let other: Vec<f64> = other.into_iter().map(f64::from).collect();
    close(&ours, &other, 1e-3, &"one decay for each head");
}
