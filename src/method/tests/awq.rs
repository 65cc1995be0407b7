//! Scales: what they are for, and that they divide out; and the choice between all methods.

use super::*;

/// Inputs a few channels of which are fifty times as large as the others.
fn outliers(columns: usize, tokens: usize, seed: u64) -> Vec<f32> {
    let mut x = activations(columns, tokens, seed);
    for row in x.chunks_mut(columns) {
        [5, 70, 71, 200].into_iter().filter(|&j| j < columns).for_each(|j| row[j] *= 50.0);
    }
    x
}

#[test]
fn awq_lowers_the_output_error_where_a_few_channels_are_huge() {
    // With one scale for signs, or for one level and zero, a factor has no finer steps to win.
    for (kind, grid) in grids().filter(|(_, grid)| grid.levels().highest() > 1.0 || grid.codebook().is_some()) {
        let columns = if grid.width() > 64 { 256 } else { 320 };
        let (x, w) = (outliers(columns, 900, 12), noise(48 * columns, 13));
        let h = outer(&x, &x, 900);
        let of = |method| error(&rounded(method, &h, &w, grid, &Options::default()), &w, &h);
        let (rtn, awq, gptq, both) = (of("rtn"), of("awq"), of("gptq"), of("awq+gptq"));
        // The scales of MXFP4 are powers of two; what a factor wins is lost again to these.
        assert!(awq < 0.9 * rtn, "{}: {awq} against {rtn}", kind.name());
        assert!(both < awq && both < 1.02 * gptq, "{}: {both}, {gptq}, {awq}", kind.name());
        // Weighed rounding alone is among what AWQ chooses from.
        let unscaled = Site { channels: None, ..site(&h, columns, vec![layer(&w, grid)]) };
        let solution = crate::method::awq::Awq.quantize(&unscaled, &Options::default()).unwrap();
        let weighed = error(&own(&solution, &unscaled)[0], &w, &h);
        assert!(awq < weighed, "{}: {awq} against {weighed}", kind.name());
    }
}

#[test]
fn scales_divide_out_and_are_those_of_their_channel() {
    let (columns, (_, grid)) = (320, grid("Q8_0"));
    let (x, w) = (outliers(columns, 900, 12), noise(48 * columns, 13));
    let h = outer(&x, &x, 900);
    // Two heads of 32 columns share each group of 32 channels.
    let channels: Vec<usize> = (0..columns).map(|j| j / 64 * 32 + j % 32).collect();
    for method in ["awq", "awq+gptq"] {
        for channels in [(0..columns).collect(), channels.clone()] {
            let site = Site { channels: Some(channels.clone()), ..site(&h, columns, vec![layer(&w, grid)]) };
            let solution = by_name(method).unwrap().quantize(&site, &Options::default()).unwrap();
            let scales = solution.scales.as_ref().unwrap();
            assert_eq!(solution.layers[0].method, method);
            for j in 0..columns {
                let first = channels.iter().position(|&c| c == channels[j]).unwrap();
                assert_eq!(scales[j], scales[first], "{method}, column {j}");
            }
            assert!(scales[70] > 1.2 * scales[100], "{method}: {} and {}", scales[70], scales[100]);
            let rounded = solution.layers[0].rounded.values(grid);
            let off = |q: &[f32]| relative(weight_error((0.0, 0.0), &w, q, columns, None));
            let (own, scaled) = (off(&own(&solution, &site)[0]), off(&rounded));
            assert!(own < 1e-3 && scaled > 10.0 * own, "{method}: {own}, {scaled}");
        }
    }
}

#[test]
fn nothing_is_scaled_where_nothing_absorbs_it() {
    let (columns, (_, grid)) = (320, grid("Q4_0"));
    let (x, w) = (outliers(columns, 900, 12), noise(48 * columns, 13));
    let h = outer(&x, &x, 900);
    for (method, instead) in [("awq", "rtn"), ("awq+gptq", "gptq"), ("auto", "gptq")] {
        let site = Site { channels: None, ..site(&h, columns, vec![layer(&w, grid)]) };
        let solution = by_name(method).unwrap().quantize(&site, &Options::default()).unwrap();
        assert!(solution.scales.is_none(), "{method}");
        assert_eq!(solution.layers[0].method, instead);
    }
}

#[test]
fn auto_is_no_worse_than_any_other_on_what_was_held_out() {
    for name in ["Q4_0", "Q5_1", "Q8_0", "MXFP4", "IQ4_NL", "Q2_K", "Q4_K"] {
        let (_, grid) = grid(name);
        let columns = few_columns(grid);
        let (w, up) = (noise(30 * columns, 13), noise(12 * columns, 14));
        // Many tokens of correlated inputs, huge channels, ones that the Hessian does not know, and so few tokens that
        // feedback learns them by heart.
        let usual = |seed, tokens| (activations(columns, tokens, seed), tokens);
        let huge = |seed, tokens| (outliers(columns, tokens, seed), tokens);
        let cases = [
            (usual(20, 900), usual(21, 300)),
            (huge(12, 900), huge(13, 300)),
            (usual(20, 900), huge(13, 300)),
            (usual(20, 9), usual(21, 300)),
        ];
        for (i, cases) in cases.into_iter().enumerate() {
            let [seen, held] = [cases.0, cases.1].map(|(x, tokens)| outer(&x, &x, tokens));
            let layers = vec![layer(&w, grid), Layer { weight: 3.0, ..layer(&up, grid) }];
            let site = Site { held: Some(&held), ..site(&seen, columns, layers) };
            let loss = |method: &dyn Method| -> f64 {
                let q = own(&method.quantize(&site, &Options::default()).unwrap(), &site);
                site.layers.iter().zip(&q).map(|(layer, q)| layer.weight * layer.loss(q, &site)).sum()
            };
            let auto = loss(&auto::Auto);
            for method in METHODS {
                let other = loss(*method);
                assert!(auto <= other * 1.000_01, "{name}, case {i}: {auto}, {} {other}", method.name());
            }
        }
    }
}
