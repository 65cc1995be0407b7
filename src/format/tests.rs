//! What holds for every type in the table, and the exact bytes of each.

use super::*;
use crate::grid::{Codes, Effort, F, GROUPS, LANES, Levels, Steps};
use llmq_kernels::codebook::Found;
use proptest::prelude::*;

/// Fits and rounds one row, alone in its lanes.
fn encode(grid: &dyn Grid, row: &[::core::primitive::f32], effort: Effort) -> Vec<u8> {
    let mut out = Vec::new();
    for block in row.chunks(grid.width()) {
        let w: Vec<F> = block.iter().map(|&x| F::splat(x)).collect();
        let mut bytes = vec![0xa5; LANES * grid.bytes()];
        let mut codes: Vec<Codes> = vec![[0; LANES]; w.len()];
        let steps = grid.fit(&w, &vec![F::splat(1.0); w.len()], effort);
        grid.round(&w, &vec![F::splat(1.0); w.len()], &steps, &mut codes);
        grid.store(&steps, &codes, &mut bytes);
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
        match a.encoding() {
            Encoding::ReadOnly => assert!(by_name(a.name()).unwrap_err().to_string().contains("reads"), "{a:?}"),
            _ => assert_eq!(by_name(&a.name().to_lowercase()).unwrap(), *a),
        }
        assert_eq!(by_id(a.id()), Some(*a));
        for b in &TYPES[i + 1..] {
            assert!(a.id() != b.id() && a.name() != b.name());
        }
    }
    assert!(by_name("Q4_9").is_err());
    assert!(TYPES.is_sorted_by_key(|t| t.id()), "ggml's order");
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
        let half = F::splat(0.5);
        let steps = if name.ends_with('1') { Steps::line(half, F::splat(-2.0)) } else { Steps::plain(half) };
        let mut blocks = vec![0xa5; LANES * grid.bytes()];
        grid.store(&steps, &codes, &mut blocks);
        assert_eq!(blocks[..grid.bytes()], bytes, "{name}");
        let mut decoded = vec![0.0; grid.width()];
        kind.decode(&bytes, &mut decoded);
        let (scale, offset) = steps.step(0);
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
    for (kind, count) in [("F16", 2), ("BF16", 0), ("F32", 0)] {
        let (kind, x) = (by_name(kind).unwrap(), [1.0, 0.0, 1e-9, -0.0, -1e-20, 1e-7]);
        assert_eq!(vanished(kind, &x, &kind.decode_all(&convert(kind, &x).unwrap())), count, "{kind:?}");
    }
    // One block that is left, with zeros among its codes, and one of which nothing is.
    let (kind, mut x) = (by_name("Q8_0").unwrap(), [1e-20; 64]);
    x[..2].copy_from_slice(&[1.0, 0.0]);
    x[40] = 0.0;
    let mut decoded = [0.0; 64];
    decoded[0] = 1.0;
    assert_eq!(vanished(kind, &x, &decoded), 31);
    let error = convert(by_name("F16").unwrap(), &[1.0, 1e6]).unwrap_err();
    assert!(error.to_string().contains("element 1 is 1000000"), "{error}");
}

/// How many of a grid's widest gaps between levels make up its range.
fn gaps(grid: &dyn Grid) -> ::core::primitive::f32 {
    match grid.levels() {
        // Not every run of levels exists.
        Levels::Uniform { hi, .. } if grid.codebook().is_some() => match hi {
            1 | 9 => 1.0,
            43 => 2.5,
            _ => 5.0,
        },
        // Its scale is a power of two and cannot move: a block of numbers between the levels 8 and 12 is off by a fifth.
        Levels::Table(table) if table[15] == 12 => 5.0,
        Levels::Uniform { lo, hi } => ::core::primitive::f32::from(hi) - ::core::primitive::f32::from(lo),
        Levels::Table(table) => {
            let widest = table.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
            (grid.levels().highest() - grid.levels().lowest()) / ::core::primitive::f32::from(widest)
        }
        Levels::Signs => 1.0,
    }
}

fn blocks() -> impl Strategy<Value = Vec<::core::primitive::f32>> {
    // Nothing, tiny, small, usual, large, and close to the end of half precision.
    let scale = prop_oneof![Just(0.0), Just(1e-30), Just(1e-12), Just(1e-3), Just(1.0), Just(1e3), Just(2e3)];
    let outlier = prop_oneof![Just(1.0), Just(30.0)];
    let numbers = prop_oneof![
        4 => prop::collection::vec(-1.0f32..1.0, 256),
        1 => Just(vec![0.0; 256]), // all alike, once shifted
    ];
    (numbers, scale, outlier, 0usize..256, -1.0f32..1.0).prop_map(|(mut x, scale, outlier, at, shift)| {
        x[at] *= outlier;
        x.iter_mut().for_each(|x| *x = (*x + shift) * scale);
        x
    })
}

#[test]
fn scales_of_half_precision_do_not_end_numbers() {
    let largest = |name: &str| grids().into_iter().find(|(kind, _)| kind.name() == name).unwrap().1.largest();
    // ggml's own limits: 65504 times the largest code, and where there are sub-scales, times the largest of those.
    let wanted = [("Q8_0", 8_319_008.0), ("Q4_0", 458_528.0), ("Q4_1", 65_504.0), ("Q6_K", 65_504.0 * 127.0 * 31.0)];
    for (name, most) in wanted {
        assert_eq!(largest(name), most, "{name}");
    }
    assert!(largest("MXFP4") > 1e12);
}

/// The last place of half precision near zero, times the largest integers of a super-block (Q6_K's 128 · 32).
const FLOOR: f64 = 128.0 * 32.0 * 6e-8;

/// Whether what is decoded is within half a step of plain minimum–maximum rounding, measured over each block.
fn check_error(kind: Type, grid: &dyn Grid, x: &[::core::primitive::f32]) -> std::result::Result<(), TestCaseError> {
    for effort in [Effort::Quick, Effort::Full] {
        let back = kind.decode_all(&encode(grid, x, effort));
        let codes = f64::from(gaps(grid));
        for (x, back) in x.chunks(grid.width()).zip(back.chunks(grid.width())) {
            let (low, high) = x.iter().fold((0.0f32, 0.0f32), |(a, b), &x| (a.min(x), b.max(x)));
            let largest = f64::from(high.max(-low));
            let error: f64 = x.iter().zip(back).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            // Half a step of a symmetric grid per entry, the rounding of scale and minimum, and the floor of f16.
            let step = 2.0 * largest / codes;
            let bound = (0.5 * step + 0.002 * largest + FLOOR).powi(2) * x.len() as f64;
            prop_assert!(error <= bound, "{} {effort:?}: {error} > {bound}", kind.name());
        }
    }
    Ok(())
}

/// Where a block decoded to what it did, it is recognized, and its codes stand for the same values to the last bit.
fn check_again(kind: Type, grid: &dyn Grid, x: &[::core::primitive::f32]) -> std::result::Result<(), TestCaseError> {
    let once = kind.decode_all(&encode(grid, x, Effort::Full));
    let plain = crate::method::plain(256, None, true);
    prop_assert!(kind.decode_all(&plain.quantize(&once, grid)) == once, "{}", kind.name());
    Ok(())
}

/// Codebooks take longer: fewer cases are enough.
fn has_codebook(grid: &dyn Grid) -> bool {
    grid.codebook().is_some()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn codebooks_hold_what_they_can_and_what_they_decoded(x in blocks()) {
        for (kind, grid) in grids().into_iter().filter(|(_, grid)| has_codebook(*grid)) {
            check_error(kind, grid, &x)?;
            check_again(kind, grid, &x)?;
            let largest = x.iter().fold(1e-30f32, |most, x| most.max(x.abs()));
            check_error(kind, grid, &x.iter().map(|x| x / largest * grid.largest()).collect::<Vec<_>>())?;
        }
    }
}

proptest! {
    #[test]
    fn the_error_of_a_block_is_bounded(x in blocks()) {
        for (kind, grid) in grids().into_iter().filter(|(_, grid)| !has_codebook(*grid)) {
            check_error(kind, grid, &x)?;
        }
    }

    /// Up to the largest magnitude that a grid says it can hold.
    #[test]
    fn the_largest_numbers_are_held(x in prop::collection::vec(-1.0f32..1.0, 256)) {
        let largest = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for (kind, grid) in grids().into_iter().filter(|(_, grid)| !has_codebook(*grid)) {
            let x: Vec<_> = x.iter().map(|x| x / largest * grid.largest()).collect();
            check_error(kind, grid, &x)?;
        }
    }

    #[test]
    fn what_was_decoded_is_encoded_to_the_same_values(x in blocks()) {
        for (kind, grid) in grids().into_iter().filter(|(_, grid)| !has_codebook(*grid)) {
            check_again(kind, grid, &x)?;
        }
    }

    /// Encoding what a block decoded to moves no value by more than about a step.
    #[test]
    fn encoding_what_was_decoded_stays_close(x in blocks()) {
        for (kind, grid) in grids().into_iter().filter(|(_, grid)| !has_codebook(*grid)) {
            let once = kind.decode_all(&encode(grid, &x, Effort::Full));
            let twice = kind.decode_all(&encode(grid, &once, Effort::Full));
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

/// FNV-1a, to compare many values at once.
pub fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A block that looks random and is always the same, with 0.1, 0.2, … in half precision at the bytes `halves`.
///
/// It starts where no scale in a block of [`GOLDEN`] becomes zero or infinite, whatever the layout.
fn noise(bytes: usize, halves: &[usize]) -> Vec<u8> {
    let mut state = 534u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let mut block: Vec<u8> = (0..bytes).map(|_| next()).collect();
    for (k, &at) in halves.iter().enumerate() {
        block[at..at + 2].copy_from_slice(&(0x2e66 + 0x400 * k as u16).to_le_bytes());
    }
    block
}

/// What the package gguf, 0.19, reads in a block of [`noise`]: the type, where the block holds halves, [`fnv`] of all
/// values, and the bits of eight of them at equal distances, the first and the last included.
#[rustfmt::skip]
const GOLDEN: [(&str, &[usize], u64, [u32; 8]); 20] = [
    ("Q2_K", &[80, 82], 0xfe03_a7c0_6fe3_6e59,
        [0xbfa65c00, 0xbfb32800, 0x3f7ff000, 0xbeccc000, 0xbe4cc000, 0xbf999000, 0xbeccc000, 0xbf999000]),
    ("Q3_K", &[108], 0x52c3_93bf_3c8e_9c8c,
        [0x3fe65800, 0x3e999000, 0x40999000, 0xbfe65800, 0xbf999000, 0x404cc000, 0x40a32900, 0x40265c00]),
    ("Q4_K", &[0, 2], 0xdc2c_c340_4fd3_bc80,
        [0xbeccc000, 0x42072ac0, 0xc07ff000, 0xbe999000, 0x414cc000, 0x4292c3a0, 0x412ff500, 0x420b2a80]),
    ("Q5_K", &[0, 2], 0x41a0_fae7_2cdd_7879,
        [0x40ecbe00, 0x4243f3c0, 0xc0199000, 0x41065e00, 0x4204c480, 0x42bec0e0, 0x42f2bda0, 0x42f8bd40]),
    ("Q6_K", &[208], 0x0536_4ffd_2f16_375c,
        [0x412b2880, 0x434a7358, 0xc3adf520, 0xc1e7f180, 0xc386f790, 0x438b041c, 0x436371c8, 0x43a75bf0]),
    ("IQ2_XXS", &[0], 0x2251_bb76_f07f_5c5b,
        [0x3f665800, 0x4081f7e0, 0x3f332800, 0xc070bdc0, 0xbefff000, 0xbff32400, 0xc0465a00, 0xc01ff600]),
    ("IQ2_XS", &[0], 0xdc79_fb64_6d80_e892,
        [0xc100f7f0, 0xbfc7f380, 0xbefff000, 0xbfbff400, 0xbf6ff100, 0xc0398e00, 0x3fbff400, 0x41235c30]),
    ("IQ3_XXS", &[0], 0x09b9_89ad_b733_d8d5,
        [0xbf8cc400, 0xbff32400, 0x41ad8ec0, 0x419729c0, 0x405ff200, 0x413e5a80, 0x41119080, 0xc164be80]),
    ("IQ1_S", &[0], 0x10ef_fad3_e435_a8ae,
        [0x3f9e5c80, 0x3eacc200, 0xbde65800, 0x3f0ff700, 0x3c4cc000, 0xbf498d00, 0xbd7ff000, 0xbd199000]),
    ("IQ4_NL", &[0], 0x31e3_c964_cb00_a93d,
        [0xc09cc300, 0xc09cc300, 0xc00cc400, 0x3dccc000, 0xc00cc400, 0xc104c480, 0xc09cc300, 0xc00cc400]),
    ("IQ3_S", &[0], 0x025d_69c7_52c7_c84c,
        [0x416b2480, 0x40532600, 0xc1fbf040, 0xc02cc200, 0x3e999000, 0xc0532600, 0x409cc300, 0x4216c360]),
    ("IQ2_S", &[0], 0x9bf5_8081_c9f1_6ad6,
        [0x401ff600, 0xbfa65c00, 0xbf665800, 0xc1235c30, 0x3efff000, 0xbe9ff600, 0x4106f790, 0xc0d1f2e0]),
    ("IQ4_XS", &[0], 0x7bc3_c43a_889e_f55f,
        [0xc2072ac0, 0xc1eff100, 0x425bf240, 0x3ffff000, 0x41cff300, 0x42fe5680, 0x4312dd38, 0x41c726c0]),
    ("IQ1_M", &[], 0xf6d4_dba5_c318_332e,
        [0x3eedd500, 0x3f82cec0, 0x3e096a00, 0x3f017c80, 0x3eedd500, 0x3f267b80, 0xbd93fc00, 0xbde88c00]),
    ("TQ1_0", &[52], 0x483e_5268_775c_c21d,
        [0x00000000, 0x3dccc000, 0x00000000, 0xbdccc000, 0x00000000, 0xbdccc000, 0xbdccc000, 0xbdccc000]),
    ("TQ2_0", &[64], 0xeecc_0837_d7b5_196f,
        [0x00000000, 0x00000000, 0x3dccc000, 0xbdccc000, 0x00000000, 0x3e4cc000, 0x3dccc000, 0x00000000]),
    ("MXFP4", &[], 0x740b_eab1_e643_ba92,
        [0x39800000, 0x39800000, 0x38800000, 0xb9800000, 0x39c00000, 0xb9400000, 0x39800000, 0x39c00000]),
    ("NVFP4", &[], 0xa665_5b3d_8fc6_e204,
        [0x44100000, 0xc4100000, 0xc0600000, 0x40600000, 0x43900000, 0x43900000, 0x00000000, 0x43b40000]),
    // The package knows only their names: these are of llama.cpp's dequantize_row_q1_0 and dequantize_row_q2_0 of September 2026.
    ("Q1_0", &[0], 0x5c3b_14ba_add5_f2a5,
        [0xbdccc000, 0x3dccc000, 0xbdccc000, 0xbdccc000, 0x3dccc000, 0x3dccc000, 0xbdccc000, 0xbdccc000]),
    ("Q2_0", &[0], 0xf547_4545_b067_9157,
        [0xbdccc000, 0x00000000, 0xbdccc000, 0xbdccc000, 0x00000000, 0x00000000, 0x3dccc000, 0x00000000]),
];

#[test]
fn noise_reads_as_in_the_package_gguf() {
    for (name, halves, hash, bits) in GOLDEN {
        let kind = *TYPES.iter().find(|t| t.name() == name).unwrap();
        let found: Vec<u32> = kind.decode_all(&noise(kind.bytes(), halves)).into_iter().map(|x| x.to_bits()).collect();
        let places: [usize; 8] = std::array::from_fn(|k| k * (kind.width() - 1) / 7);
        assert_eq!(places.map(|at| found[at]), bits, "{name}");
        assert_eq!(fnv(found.iter().flat_map(|bits| bits.to_le_bytes())), hash, "{name}");
    }
    for kind in TYPES.iter().filter(|t| matches!(t.encoding(), Encoding::ReadOnly)) {
        assert!(GOLDEN.iter().any(|golden| golden.0 == kind.name()), "{kind:?} is read by no test");
    }
}

/// Any scales and codes that a format has: what is decoded is what they stand for, whatever the bytes were before.
#[test]
fn what_is_stored_is_what_is_decoded() {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as ::core::primitive::f32 / (1 << 24) as ::core::primitive::f32
    };
    for (kind, grid) in grids() {
        let freedom = grid.freedom();
        let (lowest, highest) = match grid.levels() {
            Levels::Uniform { lo, hi } => (::core::primitive::f32::from(lo), ::core::primitive::f32::from(hi)),
            Levels::Table(_) => (0.0, 15.0),
            Levels::Signs => (-1.0, 1.0),
        };
        for _ in 0..64 {
            let mut steps = |(lo, hi): (::core::primitive::f32, ::core::primitive::f32),
                             apart: ::core::primitive::f32| {
                let many = ((hi - lo) / apart + 1.0).floor();
                [(); LANES].map(|()| lo + apart * (next() * many).floor().min(many - 1.0))
            };
            let scales: [F; GROUPS] = std::array::from_fn(|_| F(steps(freedom.scales, freedom.apart)));
            let mins = std::array::from_fn(|_| F(steps(freedom.mins, 1.0)));
            let mut codes: Vec<Codes> = (0..grid.width())
                .map(|_| {
                    steps((lowest, highest), if grid.levels() == Levels::Signs { 2.0 } else { 1.0 })
                        .map(|code| code as i8)
                })
                .collect();
            let mut number = || freedom.round_super(F([(); LANES].map(|()| 0.001 + next())));
            let mut steps = Steps { d: number(), dmin: number(), scales, mins };
            if let Some(book) = grid.codebook() {
                for run in codes.chunks_mut(book.run()) {
                    for l in 0..LANES {
                        let mut entries = (0..run.len() / book.width()).flat_map(|_| {
                            let place = (next() * book.entries() as ::core::primitive::f32) as u16;
                            let signs = if book.signs().are_free() { (next() * 256.0) as u8 } else { 0 };
                            book.codes(Found { place, signs, down: next() < 0.5 }).collect::<Vec<_>>()
                        });
                        run.iter_mut().for_each(|codes| codes[l] = entries.next().unwrap());
                        let own: Vec<i8> = run.iter().map(|codes| codes[l]).collect();
                        if !book.holds(&own) {
                            run[0][l] = -run[0][l]; // an odd number of minuses
                        }
                    }
                }
                if freedom.one_super {
                    steps.dmin = steps.d;
                    steps.mins = steps.scales.map(|s| F(s.0.map(|s| if next() < 0.5 { s / 8.0 } else { -s / 8.0 })));
                }
            }
            let mut blocks: Vec<u8> = (0..LANES * grid.bytes()).map(|_| (next() * 256.0) as u8).collect();
            grid.store(&steps, &codes, &mut blocks);
            let values = kind.decode_all(&blocks); // [LANES, width]
            for (i, codes) in codes.iter().enumerate() {
                let (scale, offset) = steps.step(i / grid.group());
                for (l, &code) in codes.iter().enumerate() {
                    let value = grid.levels().level(code).mul_add(scale.0[l], offset.0[l]);
                    assert_eq!(values[l * grid.width() + i], value, "{}, lane {l}, column {i}", kind.name());
                }
            }
        }
    }
}

/// `Σ h·(w − ŵ)² / Σ h·w²` of what llama.cpp's `ggml_quantize_chunk` (September 2026) makes of the weights below, with their importances.
const LLAMA_CPP: [(&str, f64); 11] = [
    ("IQ2_XXS", 0.080701),
    ("IQ2_XS", 0.061338),
    ("IQ3_XXS", 0.020948),
    ("IQ1_S", 0.179215),
    ("IQ3_S", 0.013003),
    ("IQ2_S", 0.047554),
    ("IQ1_M", 0.141425),
    ("TQ1_0", 0.542219),
    ("TQ2_0", 0.542219),
    ("Q1_0", 0.327066),
    ("Q2_0", 0.453986),
];

#[test]
fn types_of_few_bits_lose_less_than_in_llama_cpp() {
    const COLUMNS: usize = 512;
    let mut state = 106u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as ::core::primitive::f32 / (1 << 24) as ::core::primitive::f32 - 0.5
    };
    let w: Vec<_> = (0..16 * COLUMNS).map(|_| uniform() + uniform() + uniform()).collect();
    let h: Vec<_> = (0..COLUMNS).map(|j| ((1 + j * 5 % 7) as ::core::primitive::f32).powi(2)).collect();
    for (name, theirs) in LLAMA_CPP {
        let (kind, grid) = grids().into_iter().find(|(kind, _)| kind.name() == name).unwrap();
        let q = kind.decode_all(&crate::method::plain(COLUMNS, Some(&h), false).quantize(&w, grid));
        let ours = crate::method::relative(crate::method::weight_error((0.0, 0.0), &w, &q, COLUMNS, Some(&h)));
        assert!(ours < theirs, "{name}: {ours} against {theirs}");
    }
}
