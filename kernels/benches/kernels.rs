//! Each public operation against the best alternative at hand, side by side: `cargo bench -p llmq-kernels`.
//!
//! Only the ratios mean something: machines are shared and noisy. Each figure is the best of several rounds.

use half::slice::HalfFloatSliceExt;
use llmq_kernels::attention::{self, Scores, Shape};
use llmq_kernels::elementwise::Activation;
use llmq_kernels::gemm::{self, Precision, View};
use llmq_kernels::recurrent::{
    CausalConv, DeltaInputs, DeltaShape, HeadOrder, KdaInputs, KdaShape, Mamba2Inputs, Mamba2Shape, causal_conv,
    gated_delta_rule, kda, mamba2_scan,
};
use llmq_kernels::search;
use llmq_kernels::{F, Isa, LANES, Levels, cholesky, column, convert, descent, elementwise, fused, squares, syrk};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// As in the program.
#[global_allocator]
static MEMORY: llmq_kernels::LargePages = llmq_kernels::LargePages;

/// The best time of one call, over rounds of at least a tenth of a second.
fn best(mut call: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let (started, mut calls) = (Instant::now(), 0);
        while started.elapsed() < Duration::from_millis(100) {
            call();
            calls += 1;
        }
        best = best.min(started.elapsed().as_secs_f64() / f64::from(calls));
    }
    best
}

fn show(what: &str, rate: f64, unit: &str, ours: f64, other: &str, theirs: f64) {
    println!("{what:44} {rate:8.2} {unit:10} {:6.2} x {other}", theirs / ours);
}

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.37).sin()).collect()
}

fn products() {
    for (n, m, k) in [(2048, 1280, 512), (2048, 512, 1280), (2048, 4096, 4096), (2048, 4096, 11008)] {
        let (x, w, mut y) = (numbers(n * k), numbers(m * k), vec![0.0; n * m]);
        let ours = best(|| gemm::linear(Precision::Single, &x, &w, k, black_box(&mut y)));
        let threads = rayon::current_num_threads();
        let theirs = best(|| {
            let y = black_box(&mut y);
            // SAFETY: all three matrices lie inside their vectors, row-major.
            unsafe {
                ::gemm::gemm(
                    n,
                    m,
                    k,
                    y.as_mut_ptr(),
                    1,
                    m as isize,
                    false,
                    x.as_ptr(),
                    1,
                    k as isize,
                    w.as_ptr(),
                    k as isize,
                    1,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    ::gemm::Parallelism::Rayon(threads),
                );
            }
        });
        let rate = 2e-9 * (n * m * k) as f64 / ours;
        show(&format!("linear {n} x {k} -> {m}"), rate, "GFLOP/s", ours, "the gemm crate", theirs);
    }
    rounded_products();
    // As in rounding: some rows, on one thread, with a part of a matrix that is too large for any cache.
    for (n, m, k) in [(128, 512, 4096), (128, 512, 11008)] {
        let (x, h, mut y) = (numbers(n * k), numbers(k * k), vec![0.0; n * m]);
        let ours = best(|| {
            for first in (0..k - m).step_by(m) {
                let band = gemm::View::new(&h[first..], k, m, k);
                gemm::product(
                    Precision::Single,
                    &mut y,
                    m,
                    gemm::Old::Replaced,
                    1.0,
                    gemm::View::new(&x, n, k, k),
                    black_box(band),
                );
            }
        });
        let bands = ((k - m) as f64 / m as f64).ceil();
        println!(
            "{:44} {:8.2} GFLOP/s",
            format!("product {n} x {k} x {m} on one thread"),
            2e-9 * bands * (n * m * k) as f64 / ours
        );
    }
    for (n, m, k) in [(1, 4096, 4096), (8, 4096, 4096), (2048, 4096, 4096)] {
        let (x, bytes, mut y) = (numbers(n * k), vec![0x3c; 2 * m * k], vec![0.0; n * m]);
        let decode = |rows: std::ops::Range<usize>, out: &mut [f32]| {
            convert::bf16_to_f32(&bytes[2 * rows.start * k..2 * rows.end * k], out);
            Ok::<(), ()>(())
        };
        let ours = best(|| fused::linear(Precision::Single, &x, k, m, decode, black_box(&mut y)).expect("it decodes"));
        let mut w = vec![0.0; m * k];
        let theirs = best(|| {
            convert::bf16_to_f32(&bytes, &mut w);
            gemm::linear(Precision::Single, &x, &w, k, black_box(&mut y));
        });
        let rate = 2e-9 * (n * m * k) as f64 / ours;
        show(&format!("linear of bfloat16, {n} x {k} -> {m}"), rate, "GFLOP/s", ours, "decoding all first", theirs);
    }
    for (n, k) in [(2048, 512), (2048, 1280), (8192, 4096)] {
        let (x, mut h) = (numbers(n * k), vec![0.0; k * k]);
        let ours = best(|| syrk::syrk(Precision::Single, &x, k, black_box(&mut h)));
        let transposed = numbers(k * n);
        let theirs = best(|| gemm::linear(Precision::Single, &transposed, &transposed, n, black_box(&mut h)));
        let rate = 1e-9 * (n * k * k) as f64 / ours;
        show(&format!("syrk {n} x {k}"), rate, "GFLOP/s", ours, "the full product", theirs);
    }
}

/// Products of operands that are rounded to bfloat16 or split into two of its numbers, where this machine has them.
fn rounded_products() {
    let ways = [("rounded to", Precision::Bf16), ("split into", Precision::Split)];
    for (how, precision) in ways.into_iter().filter(|(_, precision)| precision.rounds()) {
        for (n, m, k) in [(2048, 1280, 512), (2048, 512, 1280), (2048, 4096, 4096), (2048, 4096, 11008)] {
            let (x, w, mut y) = (numbers(n * k), numbers(m * k), vec![0.0; n * m]);
            let mut run = |precision| best(|| gemm::linear(precision, &x, &w, k, black_box(&mut y)));
            let (ours, theirs) = (run(precision), run(Precision::Single));
            let rate = 2e-9 * (n * m * k) as f64 / ours;
            let what = format!("linear {how} bfloat16, {n} x {k} -> {m}");
            show(&what, rate, "GFLOP/s", ours, "single precision", theirs);
        }
        for (n, k) in [(2048, 1280), (8192, 4096)] {
            let (x, mut h) = (numbers(n * k), vec![0.0; k * k]);
            let mut run = |precision| best(|| syrk::syrk(precision, &x, k, black_box(&mut h)));
            let (ours, theirs) = (run(precision), run(Precision::Single));
            let rate = 1e-9 * (n * k * k) as f64 / ours;
            show(&format!("syrk {how} bfloat16, {n} x {k}"), rate, "GFLOP/s", ours, "single precision", theirs);
        }
    }
}

fn factors() {
    for n in [1280, 2048] {
        let a: Vec<f64> = (0..n * n).map(|i| if i % (n + 1) == 0 { 2.0 } else { 1.0 / n as f64 }).collect();
        let mut l = a.clone();
        let ours = best(|| {
            l.copy_from_slice(&a);
            assert!(cholesky::cholesky(black_box(&mut l), n, vec![]));
        });
        let view = faer::MatRef::from_row_major_slice(&a, n, n);
        let theirs = best(|| {
            black_box(view.llt(faer::Side::Lower).expect("positive definite"));
        });
        let rate = 1e-9 / 3.0 * (n * n * n) as f64 / ours;
        show(&format!("cholesky {n}"), rate, "GFLOP/s", ours, "faer on its threads", theirs);
    }
}

fn rows() {
    let shape = Shape { positions: 512, past: 0, heads: 8, kv_heads: 4, d: 64 };
    let (q, kv) = (numbers(4 * 512 * 512), numbers(4 * 512 * 256));
    let (mut out, how) = (vec![0.0; q.len()], Scores { scale: 0.125, ..Scores::default() });
    let ours = best(|| attention::causal(&q, &kv, &kv, shape, &how, black_box(&mut out)));
    let rate = 2e-9 * (4 * 512 * 512 * 512) as f64 / ours;
    println!("{:44} {rate:8.2} GFLOP/s", "attention, 4 windows of 512, 8 heads of 64");
    let (x, mut y) = (numbers(1 << 16), vec![0.0; 1 << 16]);
    let exp = |isa, y: &mut [f32]| elementwise::gated_row_on(isa, Activation::Silu, &x, &x, y);
    let ours = best(|| exp(Isa::best(), black_box(&mut y)));
    let theirs = best(|| exp(Isa::Baseline, black_box(&mut y)));
    show("swiglu", 1e-9 * x.len() as f64 / ours, "Gnumbers/s", ours, "the baseline", theirs);
}

/// The mixers of Qwen3.5-4B and -9B and of Nemotron 3 Nano, beside attention of the same width: one window of 512 positions.
fn scans() {
    let (n, keys, values) = (512, 16 * 128, 32 * 128);
    let wide = 2 * keys + values;
    let (x, mut y, mut out) = (numbers(n * wide), vec![0.0; n * wide], vec![0.0; n * values]);
    let kv = numbers(n * values);
    let shape = Shape { positions: n, past: 0, heads: 32, kv_heads: 32, d: 128 };
    let how = Scores { scale: 0.1, ..Scores::default() };
    let attention = best(|| attention::causal(&kv, &kv, &kv, shape, &how, black_box(&mut out)));
    let beside = |what: &str, ours: f64| {
        show(what, 1e-3 * n as f64 / ours, "k/s", ours, "attention, 32 heads of 128", attention);
    };
    let weight = numbers(wide * 4);
    let conv = CausalConv { weight: &weight, taps: 4, bias: None, activation: Some(Activation::Silu) };
    let convolved = best(|| causal_conv(View::new(&x, n, wide, wide), n, &conv, None, black_box(&mut y)));
    beside(&format!("causal convolution, {wide} channels"), convolved);
    let part = |first: usize, columns| View::new(&x[first..], n, columns, wide);
    let strengths: Vec<f32> = numbers(n * 32).into_iter().map(f32::abs).collect();
    let decays: Vec<f32> = strengths.iter().map(|x| -x).collect();
    let inputs =
        DeltaInputs { q: part(0, keys), k: part(keys, keys), v: part(2 * keys, values), g: &decays, beta: &strengths };
    let shape = DeltaShape { positions: n, key_heads: 16, value_heads: 32, dk: 128, dv: 128, order: HeadOrder::Tiled };
    let scan = best(|| gated_delta_rule(&inputs, shape, 1e-6, None, black_box(&mut out)));
    beside("gated delta rule, 16 and 32 heads of 128", scan);
    beside("both", convolved + scan);
    let (all, each): (_, Vec<f32>) = (View::new(&kv, n, values, values), kv.iter().map(|x| -x.abs()).collect());
    let inputs = KdaInputs { q: all, k: all, v: all, g: View::new(&each, n, values, values), beta: &strengths };
    let shape = KdaShape { positions: n, heads: 32, dk: 128, dv: 128 };
    let scan = best(|| kda(&inputs, shape, 1e-6, None, black_box(&mut out)));
    beside("Kimi Delta Attention, 32 heads of 128", scan);
    let (a, dt) = (vec![-1.0; 64], vec![0.1; n * 64]);
    let inputs = Mamba2Inputs { x: part(0, values), dt: &dt, a: &a, b: part(values, 1024), c: part(5120, 1024), d: &a };
    let shape = Mamba2Shape { positions: n, heads: 64, head_dim: 64, groups: 8, state: 128 };
    let scan = best(|| mamba2_scan(&inputs, shape, None, black_box(&mut out)));
    beside("Mamba-2, 64 heads of 64", scan);
    let conv = CausalConv { weight: &weight[..6144 * 4], ..conv };
    let convolved = best(|| causal_conv(View::new(&x, n, 6144, wide), n, &conv, None, black_box(&mut y[..n * 6144])));
    beside("both", convolved + scan);
    let share = (convolved + scan) / attention;
    println!("{:44} {share:8.2} of attention's time; 1.5 is the most that it may be", "Mamba-2");
}

fn searches() {
    let w: Vec<F> = numbers(32 * LANES).chunks(LANES).map(|x| F(x.try_into().expect("sixteen"))).collect();
    let h = vec![F::splat(1.0); 32];
    let weights = (32 * LANES) as f64;
    let q4 = Levels::Uniform { lo: -8, hi: 7 };
    let run = |isa| {
        best(|| {
            black_box(search::symmetric_on(isa, black_box(&w), &h, q4, search::Effort::Full));
        })
    };
    let (ours, theirs) = (run(Isa::best()), run(Isa::Baseline));
    show("symmetric search (Q4_0)", 1e-6 * weights / ours, "Mweights/s", ours, "the baseline", theirs);
    let run = |isa| {
        best(|| {
            black_box(search::asymmetric_on(isa, black_box(&w), &h, 15.0, search::Effort::Full, false));
        })
    };
    let (ours, theirs) = (run(Isa::best()), run(Isa::Baseline));
    show("asymmetric search (Q4_1)", 1e-6 * weights / ours, "Mweights/s", ours, "the baseline", theirs);
    let u: Vec<f32> = (0..128 * 128).map(|i| if i % 129 == 0 { 1.0 } else { 0.01 }).collect();
    let run = |isa| {
        let (mut codes, mut e) = (vec![[0; LANES]; 128], vec![F::ZERO; 128]);
        best(|| {
            let mut w = [F::splat(0.53); 128];
            let lines = [(F::splat(0.1), F::ZERO)];
            column::feedback_on(
                isa,
                black_box(&mut w),
                0,
                &u,
                128,
                &lines,
                &[0; 128],
                &[1.0; 128],
                q4,
                &mut codes,
                &mut e,
            );
        })
    };
    let (ours, theirs) = (run(Isa::best()), run(Isa::Baseline));
    show("column loop, blocks of 128", 1e-6 * 128.0 * 16.0 / ours, "Mweights/s", ours, "the baseline", theirs);
    let run = |isa| {
        let (mut codes, lines) = (vec![[0; LANES]; 128], [(F::splat(0.1), F::ZERO)]);
        best(|| {
            let (mut g, mut q, mut moved) = ([F::splat(0.53); 128], [F::ZERO; 128], [F::ZERO; 128]);
            let g = black_box(&mut g[..]);
            descent::codes_on(isa, g, &mut q, &mut moved, &u, 128, &lines, 128, &[1.0; 128], q4, &mut codes);
        })
    };
    let (ours, theirs) = (run(Isa::best()), run(Isa::Baseline));
    show("descent over codes, tiles of 128", 1e-6 * 128.0 * 16.0 / ours, "Mweights/s", ours, "the baseline", theirs);
}

fn conversions() {
    let n = 1 << 20;
    let halves: Vec<half::f16> = numbers(n).iter().map(|&x| half::f16::from_f32(x)).collect();
    let bytes: Vec<u8> = halves.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut out = vec![0.0; n];
    let rate = |seconds: f64| 1e-9 * n as f64 / seconds;
    let ours = best(|| convert::f16_to_f32(&bytes, black_box(&mut out)));
    let theirs = best(|| halves.convert_to_f32_slice(black_box(&mut out)));
    show("half to single precision", rate(ours), "Gnumbers/s", ours, "the half crate", theirs);
    let bf16 = |isa, out: &mut [f32]| convert::bf16_to_f32_on(isa, &bytes, out);
    let (ours, theirs) =
        (best(|| bf16(Isa::best(), black_box(&mut out))), best(|| bf16(Isa::Baseline, black_box(&mut out))));
    show("bfloat16 to single precision", rate(ours), "Gnumbers/s", ours, "the baseline", theirs);
    let x = numbers(n);
    let errors = |isa| {
        best(|| {
            black_box(squares::errors_on(isa, black_box(&x), &out, None));
        })
    };
    let (ours, theirs) = (errors(Isa::best()), errors(Isa::Baseline));
    show("sum of squared errors", rate(ours), "Gnumbers/s", ours, "the baseline", theirs);
    let largest = |isa| {
        best(|| {
            black_box(elementwise::largest_magnitude_on(isa, black_box(&x)));
        })
    };
    let (ours, theirs) = (largest(Isa::best()), largest(Isa::Baseline));
    show("largest magnitude", rate(ours), "Gnumbers/s", ours, "the baseline", theirs);
}

fn main() {
    println!("{} threads, {:?}", rayon::current_num_threads(), Isa::best());
    products();
    factors();
    rows();
    scans();
    searches();
    conversions();
}
