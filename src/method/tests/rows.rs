//! QuantizedMatrix rows that are scaled afterwards.

use super::*;

#[test]
fn scaled_rows_keep_their_codes() {
    for (kind, grid) in grids() {
        let (rows, columns) = (19, 256);
        let (h, w) = (hessian(columns, 400), noise(rows * columns, 9));
        let site = site(&h, columns, vec![layer(&w, grid)]);
        let mut rounded = crate::method::gptq::Gptq.quantize(&site, &PAPER).unwrap().layers.remove(0).rounded;
        let before = rounded.values(grid);
        // Powers of two are exact wherever scales are.
        let exact: Vec<f32> = (0..rows).map(|r| [0.25, 1.0, 4.0][r % 3]).collect();
        rounded.scale_rows(&exact, &grid.freedom());
        let after = rounded.values(grid);
        for (i, (after, before)) in after.iter().zip(&before).enumerate() {
            assert_eq!(*after, before * exact[i / columns], "{}, row {}", kind.name(), i / columns);
        }
        assert_eq!(kind.decode_all(&rounded.store(grid)), after, "{}", kind.name());
    }
    // Two bytes of scale, sixteen of codes.
    let (_, grid) = grid("Q4_0");
    let w = noise(3 * 64, 10);
    let mut rounded = plain(64, None, false).round(&w, grid);
    let (before, values) = (rounded.store(grid), rounded.values(grid));
    let factors = [0.37, 1.9, 77.0];
    rounded.scale_rows(&factors, &grid.freedom());
    for (after, before) in rounded.store(grid).chunks(18).zip(before.chunks(18)) {
        assert!(after[2..] == before[2..] && after[..2] != before[..2]);
    }
    for (i, (after, before)) in rounded.values(grid).iter().zip(&values).enumerate() {
        let want = before * factors[i / 64];
        assert!((after - want).abs() <= 5e-4 * want.abs(), "{after} instead of {want}");
    }
}

#[test]
fn rows_are_scaled_only_as_far_as_half_precision_goes() {
    let (_, grid) = grid("Q4_0");
    let w = noise(20 * 64, 11);
    let can = |size: f32, factor: f32| {
        let w: Vec<f32> = w.iter().map(|w| w * size).collect();
        let mut factors = vec![1.0; 20];
        factors[..4].fill(factor);
        plain(64, None, false).round(&w, grid).can_scale_rows(&factors, &grid.freedom())
    };
    assert!(can(1.0, 0.013) && can(1.0, 77.0) && can(1e-3, 0.3));
    // A scale of 1e-4 or so has six bits left at 1e-6, and one of 6000 has an end at 65504.
    assert!(!can(1e-3, 0.013) && can(4e4, 0.013) && !can(4e4, 77.0));
}
