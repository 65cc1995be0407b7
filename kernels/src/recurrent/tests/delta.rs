//! The gated delta rule.

use super::super::*;
use super::{Random, close, golden, made, on_all};
use crate::gemm::View;
use crate::micro::{Element, Micro};
use std::fmt::Debug;
use std::ops::Range;

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
    fn inputs(&self, rows: Range<usize>) -> DeltaInputs<'_> {
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

    /// Output and last state, each a piece of the window after the other. `cuts`: where pieces end.
    fn scanned<E: Element>(&self, micro: Micro<E>, cuts: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let wide = self.shape.value_heads * self.shape.dv;
        let mut out = vec![f32::NAN; self.windows * self.shape.positions * wide];
        let mut state = self.state.clone();
        let mut from = 0;
        for to in cuts {
            if *to == from {
                continue;
            }
            let shape = DeltaShape { positions: (to - from) / self.windows, ..self.shape };
            let out = &mut out[from * wide..to * wide];
            gated_delta_rule::scan(micro, &self.inputs(from..*to), shape, EPS, state.as_deref_mut(), out);
            from = *to;
        }
        (out, state.unwrap_or_default())
    }

    fn check<E: Element + Debug>(&self, micro: Micro<E>, within: f64) {
        let n = self.windows * self.shape.positions;
        let (want, last) = self.recurrence();
        let whole = self.scanned(micro, &[n]);
        close(&whole.0, &want, within, &(micro, self.shape));
        if self.state.is_some() {
            close(&whole.1, &last, within, &(micro, self.shape));
            let pieces = self.scanned(micro, &[1, n / 3, n].map(|cut: usize| cut.max(1)));
            close(&pieces.0, &want, within, &(micro, self.shape, "in pieces"));
            close(&pieces.1, &last, within, &(micro, self.shape, "in pieces"));
        }
    }
}

#[test]
fn every_instruction_set_gives_the_recurrence() {
    let mut random = Random(1);
    for _ in 0..40 {
        let case = Delta::random(&mut random);
        on_all(|micro| case.check(micro, 1e-5), |micro| case.check(micro, 1e-4));
    }
}

#[test]
fn it_equals_transformers() {
    let shape = DeltaShape { positions: 70, key_heads: 2, value_heads: 4, dk: 4, dv: 3, order: HeadOrder::Grouped };
    let (q, k, v) = (made(1, 70 * 8, -1.0, 1.0), made(2, 70 * 8, -1.0, 1.0), made(3, 70 * 12, -1.0, 1.0));
    let (g, beta, mut state) = (made(4, 70 * 4, -0.2, 0.0), made(5, 70 * 4, 0.0, 1.0), made(6, 4 * 4 * 3, -1.0, 1.0));
    let view = |x, columns| View::new(x, 70, columns, columns);
    let inputs = DeltaInputs { q: view(&q, 8), k: view(&k, 8), v: view(&v, 12), g: &g, beta: &beta };
    let mut out = vec![f32::NAN; 70 * 12];
    gated_delta_rule(&inputs, shape, 1e-6, Some(&mut state), &mut out);
    let want = golden(include_str!("../golden/gated_delta_rule.txt"));
    close(&[out, state].concat(), &want, 1e-5, &shape);
}

#[test]
fn threads_do_not_change_a_bit() {
    let shape = DeltaShape { positions: 100, key_heads: 3, value_heads: 15, dk: 24, dv: 128, order: HeadOrder::Tiled };
    let (q, v) = (made(1, 200 * 72, -1.0, 1.0), made(3, 200 * 1920, -1.0, 1.0));
    let (g, beta) = (made(4, 200 * 15, -0.2, 0.0), made(5, 200 * 15, 0.0, 1.0));
    let view = |x, columns| View::new(x, 200, columns, columns);
    let inputs = DeltaInputs { q: view(&q, 72), k: view(&q, 72), v: view(&v, 1920), g: &g, beta: &beta };
    let on = |threads| {
        let mut out = vec![f32::NAN; 200 * 1920];
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| gated_delta_rule(&inputs, shape, 1e-6, None, &mut out));
        out
    };
    assert_eq!(on(1), on(3));
}

#[test]
fn a_decay_that_leaves_nothing_takes_nothing_from_what_follows() {
    // One head of one number: the state becomes v where beta is one, and decays by e^-0.5 from there on.
    let shape = DeltaShape { positions: 4, key_heads: 1, value_heads: 1, dk: 1, dv: 1, order: HeadOrder::Tiled };
    let (q, v, beta) = ([1.0; 4], [3.0, 2.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]);
    for gone in [-200.0, -1e30, f32::NEG_INFINITY] {
        let g = [gone, gone, -0.5, -0.5];
        let view = |x| View::new(x, 4, 1, 1);
        let inputs = DeltaInputs { q: view(&q), k: view(&q), v: view(&v), g: &g, beta: &beta };
        let mut out = [f32::NAN; 4];
        gated_delta_rule(&inputs, shape, 0.0, None, &mut out);
        let want = [3.0, 2.0, 2.0 * (-0.5f64).exp(), 2.0 * (-1.0f64).exp()];
        close(&out, &want, 1e-6, &gone);
    }
}
