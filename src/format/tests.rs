//! What holds for every type in the table, and the exact bytes of each.

use super::*;
use crate::grid::{Codes, F, LANES, Levels};
use llmq_kernels::column;
use proptest::prelude::*;

/// Fits and rounds one row, alone in its lanes.
fn encode(grid: &dyn Grid, row: &[::core::primitive::f32]) -> Vec<u8> {
    let mut out = Vec::new();
    for block in row.chunks(grid.width()) {
        let w: Vec<F> = block.iter().map(|&x| F::splat(x)).collect();
        let mut bytes = vec![0; LANES * grid.bytes()];
        let mut codes: Vec<Codes> = vec![[0; LANES]; w.len()];
        grid.fit(&w, &vec![F::splat(1.0); w.len()], &mut bytes);
        for (g, (w, codes)) in w.chunks(grid.group()).zip(codes.chunks_mut(grid.group())).enumerate() {
            let (scale, offset) = grid.step(&bytes, g);
            column::round(w, scale, offset, grid.levels(), codes);
        }
        grid.store(&codes, &mut bytes);
        for lane in bytes.chunks(grid.bytes()) {
            assert_eq!(lane, &bytes[..grid.bytes()], "equal rows, equal bytes");
        }
        out.extend_from_slice(&bytes[..grid.bytes()]);
    }
    out
}

fn grids() -> Vec<(Type, &'static dyn Grid)> {
    TYPES.iter().filter_map(|&t| if let Encoding::Grid(g) = t.encoding() { Some((t, g)) } else { None }).collect()
}

#[test]
fn names_and_numbers_are_unique_and_findable() {
    for (i, a) in TYPES.iter().enumerate() {
        assert_eq!(by_name(&a.name().to_lowercase()).unwrap(), *a);
        assert_eq!(by_id(a.id()), Some(*a));
        for b in &TYPES[i + 1..] {
            assert!(a.id() != b.id() && a.name() != b.name());
        }
    }
    assert!(by_name("Q4_9").is_err());
}

#[test]
fn grid_and_format_agree_about_the_shape() {
    for (kind, grid) in grids() {
        assert_eq!((kind.width(), kind.bytes()), (grid.width(), grid.bytes()), "{}", kind.name());
        assert_eq!(grid.width() % grid.group(), 0);
    }
}

/// Codes that touch every bit of a block, its scales, and the bytes that ggml's layout makes of them.
#[test]
fn golden_bytes() {
    let d = [0x00, 0x38]; // 0.5
    let m = [0x00, 0xc0]; // −2
    let ramp =
        |n: u8, lo: i8| -> Vec<Codes> { (0..32u8).map(|i| [((i * 7 % n) as i8).wrapping_add(lo); LANES]).collect() };
    let q = |n: u8| -> Vec<u8> { (0..32u8).map(|i| i * 7 % n).collect() };
    let nibbles = |q: &[u8]| -> Vec<u8> { (0..16).map(|j| q[j] & 15 | (q[j + 16] & 15) << 4).collect() };
    let fifth =
        |q: &[u8]| -> Vec<u8> { (0..32).map(|i| u32::from(q[i] >> 4) << i).sum::<u32>().to_le_bytes().to_vec() };
    let q8: Vec<u8> = (0..32u8).map(|i| ((i * 7 % 254) as i8).wrapping_add(-127) as u8).collect();
    let golden: [(&str, Vec<Codes>, Vec<u8>); 5] = [
        ("Q4_0", ramp(16, -8), [&d[..], &nibbles(&q(16))].concat()),
        ("Q4_1", ramp(16, 0), [&d[..], &m, &nibbles(&q(16))].concat()),
        ("Q5_0", ramp(32, -16), [&d[..], &fifth(&q(32)), &nibbles(&q(32))].concat()),
        ("Q5_1", ramp(32, 0), [&d[..], &m, &fifth(&q(32)), &nibbles(&q(32))].concat()),
        ("Q8_0", ramp(254, -127), [&d[..], &q8].concat()),
    ];
    for (name, codes, bytes) in golden {
        let (kind, grid) = grids().into_iter().find(|(t, _)| t.name() == name).unwrap();
        let mut blocks = vec![0; LANES * grid.bytes()];
        for block in blocks.chunks_mut(grid.bytes()) {
            block[..2].copy_from_slice(&d);
            if name.ends_with('1') {
                block[2..4].copy_from_slice(&m);
            }
        }
        grid.store(&codes, &mut blocks);
        assert_eq!(blocks[..grid.bytes()], bytes, "{name}");
        let mut decoded = vec![0.0; grid.width()];
        kind.decode(&bytes, &mut decoded);
        let (scale, offset) = grid.step(&blocks, 0);
        for (x, code) in decoded.iter().zip(&codes) {
            assert_eq!(*x, grid.levels().level(code[0]).mul_add(scale.0[0], offset.0[0]), "{name}");
        }
    }
}

#[test]
fn numbers_by_themselves() {
    let x = [1.0, -2.5, 65504.0, 1e-8, 0.1];
    assert_eq!(by_name("F32").unwrap().decode_all(&convert(by_name("F32").unwrap(), &x).unwrap()), x);
    assert_eq!(convert(by_name("F16").unwrap(), &[1.0, -2.0]).unwrap(), [0x00, 0x3c, 0x00, 0xc0]);
    // 1 + 2⁻⁸ lies halfway between two bfloat16 numbers and goes to the even one; 1 + 3·2⁻⁸ goes up.
    let (even, up) = (1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0);
    assert_eq!(convert(by_name("BF16").unwrap(), &[even, up]).unwrap(), [0x80, 0x3f, 0x82, 0x3f]);
    let error = convert(by_name("F16").unwrap(), &[1.0, 1e6]).unwrap_err();
    assert!(error.to_string().contains("element 1 is 1000000"), "{error}");
}

/// How many of a grid's widest gaps between levels make up its range.
fn gaps(grid: &dyn Grid) -> ::core::primitive::f32 {
    match grid.levels() {
        Levels::Uniform { lo, hi } => ::core::primitive::f32::from(hi) - ::core::primitive::f32::from(lo),
        Levels::Table(table) => {
            let widest = table.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
            (grid.levels().highest() - grid.levels().lowest()) / ::core::primitive::f32::from(widest)
        }
    }
}

fn blocks() -> impl Strategy<Value = Vec<::core::primitive::f32>> {
    let scale = prop_oneof![Just(0.0), Just(1e-12), Just(1e-3), Just(1.0), Just(1e3)];
    let outlier = prop_oneof![Just(1.0), Just(30.0)];
    (prop::collection::vec(-1.0f32..1.0, 256), scale, outlier, 0usize..256, -1.0f32..1.0).prop_map(
        |(mut x, scale, outlier, at, shift)| {
            x[at] *= outlier;
            x.iter_mut().for_each(|x| *x = (*x + shift) * scale);
            x
        },
    )
}

/// The last place of half precision near zero, times the largest integers of a super-block (Q6_K's 128 · 32).
const FLOOR: f64 = 128.0 * 32.0 * 6e-8;

proptest! {
    /// What is decoded is within half a step of plain minimum–maximum rounding, measured over the block.
    #[test]
    fn the_error_of_a_block_is_bounded(x in blocks()) {
        for (kind, grid) in grids() {
            let back = kind.decode_all(&encode(grid, &x));
            let codes = f64::from(gaps(grid));
            for (x, back) in x.chunks(grid.width()).zip(back.chunks(grid.width())) {
                let (low, high) = x.iter().fold((0.0f32, 0.0f32), |(a, b), &x| (a.min(x), b.max(x)));
                let largest = f64::from(high.max(-low));
                let error: f64 = x.iter().zip(back).map(|(a, b)| f64::from(a - b).powi(2)).sum();
                // Half a step of a symmetric grid per entry, the rounding of scale and minimum, and the floor of f16.
                let step = 2.0 * largest / codes;
                let bound = (0.5 * step + 0.002 * largest + FLOOR).powi(2) * x.len() as f64;
                prop_assert!(error <= bound, "{}: {error} > {bound}", kind.name());
            }
        }
    }

    /// Encoding what a block decoded to moves no value by more than about a step.
    #[test]
    fn encoding_what_was_decoded_stays_close(x in blocks()) {
        for (kind, grid) in grids() {
            let once = kind.decode_all(&encode(grid, &x));
            let twice = kind.decode_all(&encode(grid, &once));
            let codes = gaps(grid);
            for (once, twice) in once.chunks(grid.width()).zip(twice.chunks(grid.width())) {
                let largest = once.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                let bound = 2.0 * largest / codes + 2e-3 * largest + FLOOR as ::core::primitive::f32;
                for (a, b) in once.iter().zip(twice) {
                    prop_assert!((a - b).abs() <= bound, "{}: {a} became {b}", kind.name());
                }
            }
        }
    }
}
