//! Hessians, weights and shapes that nobody would wish for.

use super::*;

/// What every solution has to be: finite, decoded by the type to what the method says, and not far from the weights by
/// themselves: by no more than `allowed`, a part of their squares, beyond a few times the error of rounding.
#[track_caller]
fn assert_sound(solution: &Solution, site: &Site, kinds: &[Type], allowed: f64, what: &str) {
    let own = own(solution, site);
    assert_eq!(own.len(), site.layers.len());
    if let Some(s) = &solution.scales {
        assert!(s.len() == site.columns && s.iter().all(|s| (0.01..=100.0).contains(s)), "{what}: {s:?}");
    }
    for (((solved, layer), q), kind) in solution.layers.iter().zip(&site.layers).zip(&own).zip(kinds) {
        let what = format!("{what}, {}, by {}", kind.name(), solved.method);
        let values = solved.rounded.values(layer.grid);
        assert!(values.iter().all(|x| x.is_finite()), "{what}");
        assert!(kind.decode_all(&solved.rounded.store(layer.grid)) == values, "{what}");
        let plain = plain(site.columns, None, false).round(layer.w, layer.grid).values(layer.grid);
        let of = |q: &[f32]| weight_error((0.0, 0.0), layer.w, q, site.columns, None);
        let ((error, whole), (least, _)) = (of(q), of(&plain));
        // Most codebooks have no zero: what hardly counts, or is zero itself, is as large as its neighbours' scale makes it.
        if layer.grid.codebook().is_some() {
            continue;
        }
        assert!(error <= 8.0 * least + allowed * whole, "{what}: {error} where rounding has {least}");
    }
}

#[test]
fn every_method_gives_what_the_file_will_decode_to_on_every_grid() {
    for (kind, grid) in grids() {
        let columns = 256;
        let h = hessian(columns, 400);
        let (w, row) = (noise(37 * columns, 15), noise(columns, 16));
        // A single row, and another width of blocks beside it.
        let (other_kind, other) = super::tests::grid(if grid.width() > 64 { "Q4_0" } else { "Q4_K" });
        for method in METHODS {
            let site = site(&h, columns, vec![layer(&w, grid), layer(&row, grid), layer(&row, other)]);
            let solution = method.quantize(&site, &Options::default()).unwrap();
            assert_sound(&solution, &site, &[kind, kind, other_kind], 0.1, method.name());
        }
    }
}

/// Hessians that a calibration may end up with when something is odd.
fn odd_hessians(n: usize) -> Vec<(&'static str, Vec<f32>)> {
    let (one, two) = (activations(n, 1, 60), activations(n, 2, 61));
    let usual = hessian(n, 3 * n);
    let sized = |size: &dyn Fn(usize) -> f32| -> Vec<f32> {
        (0..n * n).map(|i| usual[i] * size(i / n) * size(i % n)).collect()
    };
    let mut lonely = vec![0.0; n * n];
    lonely[(n - 1) * (n + 1)] = 2.0;
    vec![
        ("one token", outer(&one, &one, 1)),
        ("two tokens", outer(&two, &two, 2)),
        ("no token", vec![0.0; n * n]),
        ("equal inputs", vec![1.0; n * n]),
        ("one live column", lonely),
        ("every other column dead", sized(&|j| (j % 2) as f32)),
        ("a block dead", sized(&|j| if j < 32 { 0.0 } else { 1.0 })),
        ("tiny", sized(&|_| 1e-15)),
        ("subnormal", sized(&|_| 1e-20)),
        ("huge", sized(&|_| 1e15)),
        ("almost infinite", sized(&|_| 1e18)),
        ("tiny and huge", sized(&|j| if j % 3 == 0 { 1e15 } else { 1e-15 })),
        ("one huge column", sized(&|j| if j == 7 { 1e3 } else { 1.0 })),
    ]
}

#[test]
fn odd_hessians_and_narrow_matrices_are_rounded_soundly_by_every_method() {
    for (kind, grid) in grids() {
        // A single block, and a few; a single row, and a few.
        let wide = grid.width() > 64;
        let columns = if wide { vec![grid.width()] } else { vec![grid.width(), 3 * grid.width()] };
        for (columns, rows) in columns.into_iter().flat_map(|columns| [(columns, 1), (columns, 17)]) {
            for (what, h) in odd_hessians(columns) {
                let w = noise(rows * columns, 70);
                let plain = plain(columns, None, false).round(&w, grid).values(grid);
                let least = error(&plain, &w, &h);
                for method in METHODS.iter().filter(|m| !wide || m.name() != "awq+gptq") {
                    let site = site(&h, columns, vec![layer(&w, grid)]);
                    let solution = method.quantize(&site, &Options::default()).unwrap();
                    let what = format!("{what}, {rows} x {columns}, {}", method.name());
                    // Columns that hardly count may be lost, but no more than lost.
                    assert_sound(&solution, &site, &[kind], 1.0, &what);
                    assert!(solution.notes.is_empty(), "{what}: {:?}", solution.notes);
                    // Whoever looks at the Hessian has to be no worse by it; what cancels on a single row is luck.
                    let (error, luck) = (error(&own(&solution, &site)[0], &w, &h), if rows > 1 { 1.5 } else { 1e9 });
                    assert!(error <= least * luck + 1e-12, "{what}, {}: {error}, {least}", kind.name());
                }
            }
        }
    }
}

#[test]
fn odd_weights_are_rounded_soundly_by_every_method() {
    for (kind, grid) in grids() {
        let columns = few_columns(grid);
        let h = hessian(columns, 600);
        let usual = noise(17 * columns, 71);
        let mut sparse = vec![0.0; 17 * columns];
        sparse[3 * columns + 5] = 1.0;
        let sized = |size: f32| usual.iter().map(|w| w * size).collect::<Vec<f32>>();
        for (what, w) in [
            ("zeros", vec![0.0; 17 * columns]),
            ("all but one zero", sparse),
            ("constant", vec![-0.3; 17 * columns]),
            ("large", sized(4e4)),
            ("subnormal", sized(1e-40)),
        ] {
            for method in METHODS {
                let site = site(&h, columns, vec![layer(&w, grid)]);
                let solution = method.quantize(&site, &Options::default()).unwrap();
                assert_sound(&solution, &site, &[kind], 0.2, &format!("{what}, {}", method.name()));
            }
        }
    }
}

#[test]
fn how_large_all_inputs_are_together_changes_no_byte() {
    for (kind, grid) in grids() {
        let columns = few_columns(grid);
        let (usual, w) = (hessian(columns, 600), noise(17 * columns, 72));
        for method in METHODS {
            let of = |size: f32| {
                let h: Vec<f32> = usual.iter().map(|h| h * size).collect();
                let site = site(&h, columns, vec![layer(&w, grid)]);
                method.quantize(&site, &Options::default()).unwrap().layers[0].rounded.store(grid)
            };
            let usual = of(1.0);
            for power in [-90, 90] {
                assert!(of(2f32.powi(power)) == usual, "{} by {}, 2^{power}", kind.name(), method.name());
            }
        }
    }
}

#[test]
fn unknown_methods_are_usage_errors_that_list_the_known_ones() {
    let error = by_name("magic").err().unwrap();
    assert!(error.hint_text().unwrap().contains("gptq, awq, rtn"));
    assert!(METHODS.iter().all(|m| by_name(&m.name().to_uppercase()).unwrap().name() == m.name()));
}
