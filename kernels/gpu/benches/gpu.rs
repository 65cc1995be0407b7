//! How fast the kernels are on a device, alone and with the way there and back: `cargo bench -p llmq-gpu [-- NAME]`. NAME: a part of the
//! adapter's name; by default the first that is not the CPU. Takes about a minute on a GPU.

use llmq_gpu::{Gpu, Kind, Part, Setup, Sum, adapters};
use std::sync::Arc;
use std::time::Instant;

/// Seconds that a figure takes, more or less.
const EACH: f64 = 0.5;

/// Rows of activations: a batch of the program.
const TOKENS: usize = 2048;

/// Seconds of one call, from as many as take about [`EACH`].
fn seconds(mut calls: impl FnMut(usize)) -> f64 {
    calls(1);
    let started = Instant::now();
    calls(1);
    let times = (EACH / started.elapsed().as_secs_f64()).clamp(1.0, 1000.0) as usize;
    let started = Instant::now();
    calls(times);
    started.elapsed().as_secs_f64() / times as f64
}

fn show(what: &str, shape: &str, work: f64, seconds: f64) {
    println!("{what:18} {shape:24} {:9.3} TFLOP/s {:9.3} ms", work / seconds * 1e-12, seconds * 1e3);
}

fn products(gpu: &Arc<Gpu>, n: usize, k: usize, m: usize) -> llmq_gpu::Result<()> {
    let (x, shape, work) = (vec![0.5; n * k], format!("{n} x {k} -> {m}"), 2.0 * (n * k * m) as f64);
    let w = gpu.matrix(&vec![0.25; m * k], m, k)?;
    let mut failed = Ok(());
    show("gemm", &shape, work, seconds(|times| failed = gpu.spin(n, &w, times)));
    failed?;
    let mut y = vec![0.0; n * m];
    let mut failed = Ok(());
    let with_bus = seconds(|times| failed = (0..times).try_for_each(|_| gpu.linear(&x, &w, false, &mut y)));
    show("gemm, with bus", &shape, work, with_bus);
    failed
}

fn sums(gpu: &Arc<Gpu>, tokens: usize, n: usize) -> llmq_gpu::Result<()> {
    let (x, shape) = (vec![0.5; tokens * n], format!("{tokens} x {n}"));
    for part in [Part::Lower, Part::Whole] {
        let what = if part == Part::Lower { "outer, lower" } else { "outer" };
        // What is left out counts as not done.
        let work = (tokens * n * n) as f64 * if part == Part::Lower { 1.0 } else { 2.0 };
        let mut sum = Sum::new(gpu, n, n, part)?;
        let mut failed = Ok(());
        show(what, &shape, work, seconds(|times| failed = sum.spin(tokens, times)));
        failed?;
        let b = (part == Part::Whole).then_some(&x[..]);
        let mut failed = Ok(());
        let with_bus = seconds(|times| failed = (0..times).try_for_each(|_| sum.add(&x, b)));
        show(&format!("{what}, bus"), &shape, work, with_bus);
        failed?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let named = std::env::args().skip(1).find(|word| !word.starts_with("--")).map(|name| name.to_lowercase());
    let wanted = |adapter: &llmq_gpu::Adapter| match &named {
        Some(name) => adapter.name.to_lowercase().contains(name),
        None => adapter.kind != Kind::Cpu,
    };
    let Some(adapter) = adapters().into_iter().find(wanted) else {
        println!("no such adapter");
        return Ok(());
    };
    println!("{}, {} {}", adapter.name, adapter.interface, adapter.driver);
    let gpu = Arc::new(adapter.open(&Setup::default())?);
    gpu.self_test()?;
    let small = adapter.kind == Kind::Cpu;
    let layers = [(4096, 4096), (4096, 14336), (14336, 4096), (2048, 8192), (5120, 27648)];
    for (k, m) in if small { &[(256, 256)][..] } else { &layers } {
        products(&gpu, if small { 128 } else { TOKENS }, *k, *m)?;
    }
    for n in if small { &[256][..] } else { &[4096, 8192, 14336] } {
        sums(&gpu, if small { 128 } else { TOKENS }, *n)?;
    }
    Ok(())
}
