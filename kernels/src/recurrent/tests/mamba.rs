//! The scan of Mamba-2.

use super::super::*;
use super::{Random, close, golden, made, on_all};
use crate::gemm::View;
use crate::micro::{Element, Micro};
use std::fmt::Debug;
use std::ops::Range;

/// All numbers of a case, and a state to go on from.
#[derive(Debug)]
struct Case {
    shape: Mamba2Shape,
    windows: usize,
    /// `[tokens, x | b | c]`, as a convolution leaves them.
    xbc: Vec<f32>,
    dt: Vec<f32>,
    a: Vec<f32>,
    d: Vec<f32>,
    state: Option<Vec<f32>>,
}

impl Case {
    fn random(random: &mut Random) -> Case {
        let groups = random.one_of(&[1, 2, 3]);
        let shape = Mamba2Shape {
            positions: random.one_of(&[1, 2, 5, 63, 64, 65, 130, 200]),
            heads: groups * random.one_of(&[1, 2, 3, 9]),
            head_dim: random.one_of(&[1, 5, 16, 33, 64]),
            groups,
            state: random.one_of(&[1, 7, 16, 33, 128]),
        };
        let kept = random.one_of(&[true, false]);
        let windows = if kept { 1 } else { random.one_of(&[1, 2]) };
        let n = windows * shape.positions;
        let strongest = random.one_of(&[0.0, 0.1, 3.0, 1e5]);
        Case {
            shape,
            windows,
            xbc: random.numbers(n * (shape.heads * shape.head_dim + 2 * groups * shape.state), -1.0, 1.0),
            dt: random.numbers(n * shape.heads, 0.0, 0.5),
            a: random.numbers(shape.heads, -strongest, 0.0),
            d: random.numbers(shape.heads, -1.0, 1.0),
            state: kept.then(|| random.numbers(shape.heads * shape.head_dim * shape.state, -1.0, 1.0)),
        }
    }

    /// The inputs of some positions.
    fn inputs(&self, rows: Range<usize>) -> Mamba2Inputs<'_> {
        let Mamba2Shape { heads, head_dim, groups, state, .. } = self.shape;
        let (values, keys) = (heads * head_dim, groups * state);
        let wide = values + 2 * keys;
        let view = |first: usize, columns| View::new(&self.xbc[rows.start * wide + first..], rows.len(), columns, wide);
        Mamba2Inputs {
            x: view(0, values),
            dt: &self.dt[rows.start * heads..rows.end * heads],
            a: &self.a,
            b: view(values, keys),
            c: view(values + keys, keys),
            d: &self.d,
        }
    }

    /// Output and last state of each window, position by position.
    fn recurrence(&self) -> (Vec<f64>, Vec<f64>) {
        let Mamba2Shape { positions, heads, head_dim, groups, state: keys } = self.shape;
        let inputs = self.inputs(0..self.windows * positions);
        let (mut out, mut last) = (Vec::new(), Vec::new());
        for w in 0..self.windows {
            let mut states: Vec<f64> = match &self.state {
                Some(state) => state.iter().map(|x| f64::from(*x)).collect(),
                None => vec![0.0; heads * head_dim * keys],
            };
            for t in w * positions..(w + 1) * positions {
                for (h, state) in states.chunks_mut(head_dim * keys).enumerate() {
                    let group = h / (heads / groups) * keys;
                    let (b, c) = (&inputs.b.row(t)[group..][..keys], &inputs.c.row(t)[group..][..keys]);
                    let (dt, a) = (f64::from(inputs.dt[t * heads + h]), f64::from(inputs.a[h]));
                    let x = &inputs.x.row(t)[h * head_dim..][..head_dim];
                    for (state, x) in state.chunks_mut(keys).zip(x) {
                        let x = f64::from(*x);
                        for (state, b) in state.iter_mut().zip(b) {
                            *state = *state * (dt * a).exp() + dt * x * f64::from(*b);
                        }
                        let read: f64 = state.iter().zip(c).map(|(state, c)| state * f64::from(*c)).sum();
                        out.push(read + f64::from(inputs.d[h]) * x);
                    }
                }
            }
            last.extend(states);
        }
        (out, last)
    }

    /// Output and last state, each a piece of the window after the other. `cuts`: where pieces end.
    fn scanned<E: Element>(&self, micro: Micro<E>, cuts: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let wide = self.shape.heads * self.shape.head_dim;
        let mut out = vec![f32::NAN; self.windows * self.shape.positions * wide];
        let mut state = self.state.clone();
        let mut from = 0;
        for to in cuts {
            if *to == from {
                continue;
            }
            let shape = Mamba2Shape { positions: (to - from) / self.windows, ..self.shape };
            let out = &mut out[from * wide..to * wide];
            mamba2::scan(micro, &self.inputs(from..*to), shape, state.as_deref_mut(), out);
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
    let mut random = Random(2);
    for _ in 0..40 {
        let case = Case::random(&mut random);
        on_all(|micro| case.check(micro, 1e-5), |micro| case.check(micro, 1e-4));
    }
}

#[test]
fn it_equals_transformers() {
    let shape = Mamba2Shape { positions: 70, heads: 4, head_dim: 3, groups: 2, state: 4 };
    let (x, dt) = (made(1, 70 * 12, -1.0, 1.0), made(2, 70 * 4, 0.0, 0.6));
    let (b, c) = (made(3, 70 * 8, -1.0, 1.0), made(4, 70 * 8, -1.0, 1.0));
    let (a, d, mut state) = (made(5, 4, -2.0, -0.1), made(6, 4, -1.0, 1.0), made(7, 4 * 3 * 4, -1.0, 1.0));
    let view = |x, columns| View::new(x, 70, columns, columns);
    let inputs = Mamba2Inputs { x: view(&x, 12), dt: &dt, a: &a, b: view(&b, 8), c: view(&c, 8), d: &d };
    let mut out = vec![f32::NAN; 70 * 12];
    mamba2_scan(&inputs, shape, Some(&mut state), &mut out);
    close(&[out, state].concat(), &golden(include_str!("../golden/mamba2.txt")), 1e-5, &shape);
}

#[test]
fn threads_do_not_change_a_bit() {
    let shape = Mamba2Shape { positions: 100, heads: 22, head_dim: 64, groups: 2, state: 16 };
    let (x, dt, b) = (made(1, 200 * 1408, -1.0, 1.0), made(2, 200 * 22, 0.0, 0.6), made(3, 200 * 32, -1.0, 1.0));
    let (a, d) = (made(5, 22, -2.0, -0.1), made(6, 22, -1.0, 1.0));
    let view = |x, columns| View::new(x, 200, columns, columns);
    let inputs = Mamba2Inputs { x: view(&x, 1408), dt: &dt, a: &a, b: view(&b, 32), c: view(&b, 32), d: &d };
    let on = |threads| {
        let mut out = vec![f32::NAN; 200 * 1408];
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| mamba2_scan(&inputs, shape, None, &mut out));
        out
    };
    assert_eq!(on(1), on(3));
}
