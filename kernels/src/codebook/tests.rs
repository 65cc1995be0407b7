use super::*;
use crate::column::Codes;
use crate::{F, Isa, LANES};

/// Entries of some digits: enough of them that halves repeat.
fn entries<const W: usize>(levels: &[i8], n: usize) -> Vec<[i8; W]> {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        levels[(state >> 40) as usize % levels.len()]
    };
    let mut all: Vec<[i8; W]> = (0..n).map(|_| std::array::from_fn(|_| next())).collect();
    all.sort_by(|a, b| a.iter().rev().cmp(b.iter().rev()));
    all.dedup();
    all
}

fn books() -> Vec<(Codebook, Vec<Vec<i8>>)> {
    let (two, three) = (entries::<8>(&[8, 25, 43], 90), entries::<4>(&[1, 3, 5, 7, 9, 11, 13, 15], 60));
    let one = entries::<8>(&[-1, 0, 1], 90);
    vec![
        (Codebook::new(&two, Signs::Even), vecs(&two)),
        (Codebook::new(&two, Signs::Each), vecs(&two)),
        (Codebook::new(&three[..12], Signs::Even), vecs(&three[..12])),
        (Codebook::new(&three, Signs::Each), vecs(&three)),
        (Codebook::new(&one, Signs::None), vecs(&one)),
        (Codebook::new(&one, Signs::Shifted), vecs(&one)),
    ]
}

fn vecs<const W: usize>(entries: &[[i8; W]]) -> Vec<Vec<i8>> {
    entries.iter().map(|entry| entry.to_vec()).collect()
}

/// Every run of codes that there is.
fn all_codes(signs: Signs, entries: &[Vec<i8>]) -> Vec<Vec<f32>> {
    let mut all = Vec::new();
    let pairs: Vec<Vec<i8>>;
    let entries = if signs == Signs::Even && entries[0].len() == 4 {
        pairs = entries.iter().flat_map(|a| entries.iter().map(|b| [&a[..], b].concat())).collect();
        &pairs[..]
    } else {
        entries
    };
    for entry in entries {
        let own: Vec<f32> = entry.iter().map(|&x| f32::from(x)).collect();
        match signs {
            Signs::None => all.push(own),
            Signs::Shifted => [-1.0, 1.0].into_iter().for_each(|s| all.push(own.iter().map(|x| 8.0 * x + s).collect())),
            Signs::Each | Signs::Even => {
                for bits in 0..1u32 << entry.len() {
                    if signs == Signs::Each || bits.count_ones() % 2 == 0 {
                        let sign = |(j, x): (usize, &f32)| if bits >> j & 1 == 1 { -x } else { *x };
                        all.push(own.iter().enumerate().map(sign).collect());
                    }
                }
            }
        }
    }
    all
}

fn numbers(n: usize, size: f32, seed: usize) -> Vec<F> {
    let of = |i: usize| ((i + 31 * seed) as f32 * 0.713).sin() + ((i + seed) as f32 * 2.37).cos();
    (0..n).map(|i| F(std::array::from_fn(|l| size * of(i * LANES + l)))).collect()
}

/// A size of numbers that codes are for.
fn size(book: &Codebook) -> f32 {
    0.4 * book.levels.last().unwrap()
}

fn metric(run: usize, correlation: f32) -> Vec<f32> {
    let of = |i: usize, j: usize| correlation.powi(i.abs_diff(j) as i32) * (1.0 + (i * j % 3) as f32 * 0.1);
    let mut a: Vec<f32> = (0..run * run).map(|n| 0.5 * (of(n / run, n % run) + of(n % run, n / run))).collect();
    (0..run).for_each(|i| a[i * (run + 1)] = 1.2 + i as f32 * 0.3);
    a
}

fn lane(codes: &[Codes], l: usize) -> Vec<i8> {
    codes.iter().map(|codes| codes[l]).collect()
}

#[test]
fn entries_are_found_and_nothing_else_is() {
    for (book, entries) in books() {
        for (place, entry) in entries.iter().enumerate() {
            for bits in [0, 0b11, 0b1010, 0b1111] {
                let signs = if book.signs.are_free() { bits } else { 0 };
                for down in [false, true] {
                    let down = down && book.signs == Signs::Shifted;
                    let found = Found { place: place as u16, signs, down };
                    let codes: Vec<i8> = book.codes(found).collect();
                    assert_eq!(book.find(codes.iter().copied()), Some(found), "{:?} {entry:?}", book.signs);
                }
            }
        }
        let top = *book.levels.last().unwrap() as i8;
        assert_eq!(book.find([top + 2; 8][..book.width].iter().copied()), None);
        let mut codes = entries[0].repeat(book.run / book.width);
        if book.signs == Signs::Shifted {
            codes.iter_mut().for_each(|code| *code = 8 * *code - 1);
        }
        assert!(book.holds(&codes));
        codes[0] = -codes[0];
        let held = book.holds(&codes);
        assert!(held == (book.signs == Signs::Each) || book.signs == Signs::None, "odd minuses, or two shifts");
    }
}

#[test]
fn the_nearest_entry_is_found_whatever_the_weights() {
    for (book, entries) in books() {
        let (run, all) = (book.run, all_codes(book.signs, &entries));
        for seed in 0..20 {
            let w = numbers(run, size(&book) * 0.5, seed);
            let h: Vec<F> = numbers(run, 1.0, seed + 50).iter().map(|h| h.map(|h| h * h)).collect();
            let mut codes = vec![[0; LANES]; run];
            round(&w, &h, F::splat(0.5), F::splat(0.1), &book, &mut codes);
            let fit = fit(&w, &h, F::splat(0.5), F::splat(0.1), &book);
            for l in 0..LANES {
                let cost = |codes: &[f32]| -> f32 {
                    let each = codes.iter().enumerate();
                    each.map(|(j, c)| h[j].0[l] * (w[j].0[l] - 0.5 * (c + 0.1)).powi(2)).sum()
                };
                let own = lane(&codes, l);
                assert!(book.holds(&own), "{:?}: {own:?}", book.signs);
                let own = cost(&own.iter().map(|&c| f32::from(c)).collect::<Vec<_>>());
                let least = all.iter().map(|codes| cost(codes)).fold(f32::INFINITY, f32::min);
                assert!(own <= least * 1.001 + 1e-4, "{:?} of {run}, seed {seed}, row {l}: {own}, {least}", book.signs);
                assert!((fit.error.0[l] - own).abs() <= 1e-3 * own + 1e-3, "{} {own}", fit.error.0[l]);
            }
        }
    }
}

#[test]
fn in_a_metric_no_entry_is_better_for_the_signs_and_no_sign_is_for_the_entry() {
    for (book, entries) in books() {
        let (run, all) = (book.run, all_codes(book.signs, &entries));
        let mut optimal = 0;
        for seed in 0..20 {
            let a = metric(run, [0.0, 0.5, 0.9][seed % 3]);
            let x = numbers(run, size(&book), seed);
            let b: Vec<F> = (0..run)
                .map(|i| (0..run).fold(F::ZERO, |sum, k| x[k].mul_add(F::splat(a[i * run + k]), sum)))
                .collect();
            let mut codes = vec![[0; LANES]; run];
            round(&x, &vec![F::splat(1.0); run], F::splat(1.0), F::ZERO, &book, &mut codes);
            let start = codes.clone();
            refine(&a, &b, &book, &mut codes);
            for l in 0..LANES {
                let cost = |c: &[f32]| -> f64 {
                    let d = |i: usize| f64::from(c[i] - x[i].0[l]);
                    (0..run * run).map(|n| f64::from(a[n]) * d(n / run) * d(n % run)).sum()
                };
                let of = |codes: &[Codes]| {
                    let codes = lane(codes, l);
                    assert!(book.holds(&codes), "{:?}: {codes:?}", book.signs);
                    cost(&codes.iter().map(|&c| f32::from(c)).collect::<Vec<_>>())
                };
                let (before, after) = (of(&start), of(&codes));
                let least = all.iter().map(|codes| cost(codes)).fold(f64::INFINITY, f64::min);
                assert!(after <= before * 1.001 + 1e-2, "{:?}: {after} after {before}", book.signs);
                optimal += usize::from(after <= least * 1.001 + 1e-2);
                assert!(book.signs.are_free() || after <= least * 1.001 + 1e-2, "{:?}: {after}, {least}", book.signs);
            }
        }
        assert!(optimal >= 20 * LANES * 8 / 10, "{:?} of {run}: {optimal}", book.signs);
    }
}

#[test]
fn numbers_that_are_none_and_weights_of_zero_give_entries() {
    for (book, _) in books() {
        for (w, h, scale) in [
            (f32::NAN, 1.0, 1.0),
            (f32::INFINITY, 1.0, 1.0),
            (0.0, 1.0, 0.0),
            (3.0, 0.0, 1.0),
            (1e30, 1e30, 1e-3),
            (-0.0, 1.0, 1.0),
        ] {
            let (run, mut codes) = (book.run, vec![[0; LANES]; book.run]);
            let w = vec![F::splat(w); run];
            round(&w, &vec![F::splat(h); run], F::splat(scale), F::ZERO, &book, &mut codes);
            assert!(book.holds(&lane(&codes, 5)));
            let a = vec![h; run * run];
            refine(&a, &w, &book, &mut codes);
            assert!(book.holds(&lane(&codes, 5)));
        }
    }
}

#[test]
fn all_instruction_sets_agree_to_the_last_bit() {
    for (book, _) in books() {
        let (run, n) = (book.run, 32);
        let run_on = |isa| {
            let (w, h) = (numbers(n, size(&book), 3), numbers(n, 1.0, 4).iter().map(|h| h.abs()).collect::<Vec<_>>());
            let mut codes = vec![[0; LANES]; n];
            round_on(isa, &w, &h, F::splat(0.9), F::splat(0.1), &book, &mut codes);
            let sums = fit_on(isa, &w, &h, F::splat(0.9), F::ZERO, &book);
            let mut single = codes[..run].to_vec();
            refine_on(isa, &metric(run, 0.6), &w[..run], &book, &mut single);
            let (mut left, mut fed, mut e) = (w.clone(), codes.clone(), vec![F::ZERO; n]);
            let u: Vec<f32> =
                (0..n * n).map(|i| if i % n == i / n { 1.5 } else { (i as f32 * 0.3).cos() * 0.2 }).collect();
            let metrics: Vec<f32> = (0..n / run).flat_map(|_| metric(run, 0.6)).collect();
            let (lines, groups, scales) = ([(F::splat(0.8), F::ZERO)], vec![0; n], vec![1.1; n]);
            feedback_on(isa, &mut left, 0, &u, n, &lines, &groups, &scales, &metrics, &book, &mut fed, &mut e);
            let (mut g, mut q, mut moved) = (numbers(n, 3.0, 5), numbers(n, 1.0, 6), vec![F::ZERO; n]);
            let wide = metric(n, 0.6);
            sweep_on(isa, &mut g, &mut q, &mut moved, &wide, n, &lines, n, &scales, &book, &mut fed);
            (codes, sums, single, left, fed, e, g, q, moved)
        };
        for isa in Isa::available() {
            assert!(run_on(isa) == run_on(Isa::Baseline), "{isa:?} {:?}", book.signs);
        }
    }
}
