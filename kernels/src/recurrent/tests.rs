//! Scans against their recurrences in `f64`, and against what transformers computes.

use super::*;
use crate::Isa;
use crate::amx::Split;
use crate::gemm::View;
use crate::micro::{Element, Micro};
use std::fmt::Debug;

/// Numbers without any pattern, from `lo` to `hi`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }

    fn numbers(&mut self, n: usize, lo: f32, hi: f32) -> Vec<f32> {
        (0..n).map(|_| lo + (hi - lo) * self.next() as f32).collect()
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[(self.next() * all.len() as f64) as usize]
    }
}

/// The largest difference, in units of the largest number.
fn off(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(1e-30f64, |most, x| most.max(x.abs()));
    got.iter().zip(want).fold(0.0, |most: f64, (got, want)| {
        let off = (f64::from(*got) - want).abs() / largest;
        if off > most || off.is_nan() { off } else { most }
    })
}

/// All numbers of a case of the delta rule, and a state to go on from.
#[derive(Debug)]
struct Delta {
    shape: DeltaShape,
    windows: usize,
    /// `[tokens, q | k | v]`, as a convolution leaves them.
    qkv: Vec<f32>,
    g: Vec<f32>,
    beta: Vec<f32>,
    state: Option<Vec<f32>>,
}

const EPS: f32 = 1e-6;

impl Delta {
    fn random(random: &mut Random) -> Delta {
        let key_heads = random.one_of(&[1, 2, 3]);
        let shape = DeltaShape {
            positions: random.one_of(&[1, 2, 5, 63, 64, 65, 130, 200]),
            key_heads,
            value_heads: key_heads * random.one_of(&[1, 2, 3, 5]),
            dk: random.one_of(&[1, 7, 16, 33, 128]),
            dv: random.one_of(&[1, 5, 16, 32, 50, 128]),
            order: random.one_of(&[HeadOrder::Tiled, HeadOrder::Grouped]),
        };
        let kept = random.one_of(&[true, false]);
        let windows = if kept { 1 } else { random.one_of(&[1, 2]) };
        let n = windows * shape.positions;
        // Decays from none at all to nothing left; strengths near 0, near 1, and anything.
        let (strongest, often) =
            random.one_of(&[(0.0, 1.0), (0.1, 1.0), (3.0, 1.0), (200.0, 1.0), (200.0, 0.1), (1e30, 0.1)]);
        let g = (0..n * shape.value_heads)
            .map(|_| if random.next() < often { -strongest * random.next() as f32 } else { -0.01 })
            .collect();
        let (lo, hi) = random.one_of(&[(0.0, 0.01), (0.99, 1.0), (0.0, 1.0)]);
        Delta {
            shape,
            windows,
            qkv: random.numbers(n * (2 * shape.key_heads * shape.dk + shape.value_heads * shape.dv), -1.0, 1.0),
            g,
            beta: random.numbers(n * shape.value_heads, lo, hi),
            state: kept.then(|| random.numbers(shape.value_heads * shape.dk * shape.dv, -1.0, 1.0)),
        }
    }

    /// The inputs of some positions.
    fn inputs(&self, rows: std::ops::Range<usize>) -> DeltaInputs<'_> {
        let DeltaShape { key_heads, value_heads, dk, dv, .. } = self.shape;
        let (keys, values) = (key_heads * dk, value_heads * dv);
        let wide = 2 * keys + values;
        let view = |first: usize, columns| View::new(&self.qkv[rows.start * wide + first..], rows.len(), columns, wide);
        let heads = rows.start * value_heads..rows.end * value_heads;
        DeltaInputs {
            q: view(0, keys),
            k: view(keys, keys),
            v: view(2 * keys, values),
            g: &self.g[heads.clone()],
            beta: &self.beta[heads],
        }
    }

    /// Output and last state of each window, position by position.
    fn recurrence(&self) -> (Vec<f64>, Vec<f64>) {
        let DeltaShape { positions, key_heads, value_heads, dk, dv, order } = self.shape;
        let inputs = self.inputs(0..self.windows * positions);
        let mut out = vec![0.0; self.windows * positions * value_heads * dv];
        let mut last = Vec::new();
        for w in 0..self.windows {
            let mut states: Vec<f64> = match &self.state {
                Some(state) => state.iter().map(|x| f64::from(*x)).collect(),
                None => vec![0.0; value_heads * dk * dv],
            };
            for t in w * positions..(w + 1) * positions {
                for j in 0..value_heads {
                    let key = match order {
                        HeadOrder::Tiled => j % key_heads,
                        HeadOrder::Grouped => j / (value_heads / key_heads),
                    };
                    let unit = |x: &[f32]| -> Vec<f64> {
                        let x = x[key * dk..][..dk].iter().map(|x| f64::from(*x));
                        let squares: f64 = x.clone().map(|x| x * x).sum();
                        x.map(|x| x / (squares + f64::from(EPS)).sqrt()).collect()
                    };
                    let (q, k) = (unit(inputs.q.row(t)), unit(inputs.k.row(t)));
                    let v = &inputs.v.row(t)[j * dv..][..dv];
                    let (g, beta) =
                        (f64::from(inputs.g[t * value_heads + j]), f64::from(inputs.beta[t * value_heads + j]));
                    let state = &mut states[j * dk * dv..][..dk * dv];
                    state.iter_mut().for_each(|x| *x *= g.exp());
                    for (i, v) in v.iter().enumerate() {
                        let old: f64 = (0..dk).map(|p| state[p * dv + i] * k[p]).sum();
                        (0..dk).for_each(|p| state[p * dv + i] += k[p] * beta * (f64::from(*v) - old));
                        let read: f64 = (0..dk).map(|p| state[p * dv + i] * q[p]).sum();
                        out[(t * value_heads + j) * dv + i] = read / (dk as f64).sqrt();
                    }
                }
            }
            last.extend(states);
        }
        (out, last)
    }

    fn check<E: Element + Debug>(&self, micro: Micro<E>, within: f64) {
        let DeltaShape { positions, value_heads, dv, .. } = self.shape;
        let (want, last) = self.recurrence();
        let mut out = vec![f32::NAN; want.len()];
        let mut state = self.state.clone();
        let inputs = self.inputs(0..self.windows * positions);
        gated_delta_rule::scan(micro, &inputs, self.shape, EPS, state.as_deref_mut(), &mut out);
        let worst = off(&out, &want);
        assert!(worst < within, "{micro:?}: {worst} of {:?}", self.shape);
        let Some(state) = state else { return };
        let worst = off(&state, &last);
        assert!(worst < within, "{micro:?}: {worst} in the state of {:?}", self.shape);
        // The same in two pieces.
        let mut pieces = self.state.clone().unwrap_or_default();
        let wide = value_heads * dv;
        for rows in [0..positions / 3, positions / 3..positions] {
            let shape = DeltaShape { positions: rows.len(), ..self.shape };
            let out = &mut out[rows.start * wide..rows.end * wide];
            gated_delta_rule::scan(micro, &self.inputs(rows), shape, EPS, Some(&mut pieces), out);
        }
        assert!(off(&out, &want) < within && off(&pieces, &last) < within, "{micro:?}: pieces of {:?}", self.shape);
    }
}

#[test]
fn the_delta_rule_is_its_recurrence_on_every_instruction_set() {
    let mut random = Random(1);
    for _ in 0..60 {
        let case = Delta::random(&mut random);
        for isa in Isa::available() {
            case.check(Micro::<f32>::on(isa), 1e-5);
            case.check(Micro::<Split>::on(isa), 1e-4);
        }
    }
}
