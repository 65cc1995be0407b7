//! Runs on a GPU, or on Mesa's driver that computes on the CPU: the main job gives the same file twice and one as good as the CPU's, and
//! whatever a device lacks is said. Where there is no driver these tests say so and do nothing; with LLMQ_GPU_TESTS=1 that is an error.
#![cfg(feature = "gpu")]

mod common;

use common::{BINARY, Run, folder, names, run, tiny};
use llmq::compute::choice::{Wanted, choose_among, open};
use llmq::compute::gpu::OnGpu;
use llmq::compute::{Compute, Key, Numbers, Part, Weights};
use llmq_gpu::{Adapter, Error, Kind, adapters};
use llmq_kernels::gemm::Precision;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// Few tokens: the driver computes some hundred million numbers a second.
const LITTLE: [&str; 6] = ["--samples", "2", "--seq-len", "48", "--sweeps", "1"];

fn adapter() -> Option<Adapter> {
    let found = adapters().into_iter().next();
    if found.is_none() {
        let why = "no adapter: install a driver (Debian: apt-get install mesa-vulkan-drivers libvulkan1)";
        assert!(std::env::var_os("LLMQ_GPU_TESTS").is_none_or(|x| x != "1"), "{why}");
        eprintln!("SKIPPED: {why}");
    }
    found
}

fn llmq(words: &[&str], paths: &[&Path]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(words).args(paths).env("NODEVICE_SELECT", "1");
    command
}

fn quantized(output: &Path, device: &str, options: &[&str]) -> Run {
    let mut command = llmq(&["quantize"], &[&tiny()]);
    run(command.arg("-o").arg(output).args(LITTLE).args(["--type", "Q4_0", "--device", device]).args(options))
}

/// KL divergence of a file from the checkpoint, computed by `device`.
fn divergence(file: &Path, device: &str, chunks: &str) -> f64 {
    let mut command = llmq(&["eval"], &[file]);
    command.arg("--reference").arg(tiny()).args(["--json", "-c", "128", "--chunks", chunks, "--device", device]);
    run(&mut command).ok().summary()["kl_divergence"].as_f64().expect("a divergence")
}

#[test]
fn a_file_made_on_a_gpu_is_as_good_as_the_cpus_and_the_same_every_time() {
    let Some(adapter) = adapter() else { return };
    let name = format!("gpu:{}", adapter.name);
    let out = folder();
    let path = |name: &str| out.path().join(name);
    let first = quantized(&path("gpu.gguf"), &name, &["--threads", "1"]).ok();
    assert!(first.stderr.contains(&format!("computing on {}", adapter.name)), "{}", first.stderr);
    assert!(first.stderr.contains("passed its self-test"), "{}", first.stderr);
    quantized(&path("again.gguf"), &name, &["--threads", "2"]).ok();
    assert!(fs::read(path("gpu.gguf")).unwrap() == fs::read(path("again.gguf")).unwrap(), "other bytes");
    let shown = run(&mut llmq(&["inspect", "--json"], &[&path("gpu.gguf")])).ok().stdout;
    assert!(shown.contains("llmq.device") && shown.contains(&adapter.driver), "{shown}");

    quantized(&path("cpu.gguf"), "cpu", &[]).ok();
    let [gpu, cpu] = ["gpu.gguf", "cpu.gguf"].map(|name| divergence(&path(name), "cpu", "40"));
    eprintln!("KL divergence: {gpu} on the GPU, {cpu} on the CPU");
    // Single precision there, bfloat16 here, where the CPU has instructions for it: on so few tokens the CPU's own file differs by 2.4%
    // between the two.
    assert!((gpu / cpu - 1.0).abs() < 0.1, "{gpu} on the GPU, {cpu} on the CPU");
    let [own, others] = [name.as_str(), "cpu"].map(|device| divergence(&path("gpu.gguf"), device, "1"));
    assert!((own / others - 1.0).abs() < 1e-3, "evaluated: {own} on the GPU, {others} on the CPU");
}

#[test]
fn without_a_driver_auto_takes_the_cpu_and_a_gpu_is_an_error() {
    let out = folder();
    let file = out.path().join("out.gguf");
    let without = |device: &str| {
        let mut command = llmq(&["imatrix"], &[&tiny()]);
        command.arg("-o").arg(&file).args(["-c", "32", "--chunks", "1", "--device", device]);
        run(command.env("VK_ICD_FILENAMES", "/nonexistent").env("VK_DRIVER_FILES", "/nonexistent"))
    };
    without("gpu").failed(1, &["--device gpu cannot be had", "no GPU with a driver", "hint: `llmq devices`"]);
    assert_eq!(names(out.path()), [""; 0]);
    let auto = without("auto").ok();
    assert!(auto.stderr.contains("computing on the CPU: no GPU with a driver"), "{}", auto.stderr);
}

#[test]
fn auto_never_takes_the_cpus_own_driver_and_little_memory_is_said() {
    let Some(adapter) = adapter().filter(|adapter| adapter.kind == Kind::Cpu) else { return };
    let out = folder();
    let file = out.path().join("out.gguf");
    let run_of = |device: &str, options: &[&str]| {
        let mut command = llmq(&["imatrix"], &[&tiny()]);
        run(command
            .arg("-o")
            .arg(&file)
            .args(["-c", "32", "--chunks", "1", "--force", "--device", device])
            .args(options))
    };
    let auto = run_of("auto", &[]).ok();
    assert!(auto.stderr.contains("computing on the CPU: llvmpipe"), "{}", auto.stderr);
    run_of("gpu", &[]).failed(1, &["--device gpu cannot be had", "computes on the CPU itself"]);
    let name = format!("gpu:{}", adapter.name);
    run_of(&name, &["--vram", "1M"]).failed(1, &["may be taken (--vram), and the run needs"]);
    run_of("gpu:voodoo", &[]).failed(1, &["is another one"]);
    run_of("cuda", &[]).failed(2, &["a device is auto, cpu, gpu"]);
}

#[test]
fn a_device_that_fails_its_self_test_is_not_taken() {
    let Some(mut adapter) = adapter() else { return };
    adapter.kind = Kind::Discrete;
    let wrong = |_: &Adapter| Err(Error::Wrong("gemm: 1 instead of 2".into()));
    let choose = |wanted: &str, vram| {
        choose_among(&Wanted::parse(wanted).unwrap(), vram, 1000, std::slice::from_ref(&adapter), &wrong)
    };
    let chosen = choose("auto", None).unwrap();
    assert_eq!(chosen.compute.identity(), "cpu");
    assert!(chosen.said.unwrap().contains("computes wrong numbers: gemm"));
    assert!(choose("gpu", None).unwrap_err().to_string().contains("computes wrong numbers: gemm"));
    assert!(choose("auto", Some(10)).unwrap().said.unwrap().contains("10 bytes may be taken"));
}

#[test]
fn runs_go_on_only_where_they_were() {
    let Some(adapter) = adapter() else { return };
    let out = folder();
    let file = out.path().join("out.gguf");
    // Killed once it has begun with block 2.
    let mut command = llmq(&["quantize"], &[&tiny()]);
    command.arg("-o").arg(&file).args(LITTLE).args(["--type", "Q4_0", "--device", "cpu", "--json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("blk.2.attn_q.weight")), "it ended before block 2");
    child.kill().unwrap();
    child.wait().unwrap();
    let name = format!("gpu:{}", adapter.name);
    quantized(&file, &name, &["--resume"]).failed(2, &["--device was cpu and is", &adapter.name]);
    quantized(&file, "cpu", &["--resume"]).ok();
}

#[test]
fn a_device_that_is_lost_ends_the_run_with_an_error_that_may_pass() {
    let Some(adapter) = adapter() else { return };
    let gpu = open(&adapter, None).unwrap();
    let on = OnGpu::new(gpu.clone(), &adapter, 1 << 30);
    let numbers: Vec<f32> = (0..256 * 256).map(|i| (i as f32 * 0.37).sin()).collect();
    let weights = || Weights { key: Key::new_rows(), rows: 256, columns: 256, numbers: Numbers::Held(&numbers) };
    let mut y = vec![0.0; 256 * 256];
    on.linear(Precision::Single, &numbers, &weights(), &mut y).unwrap();
    let mut sum = on.sum(Precision::Single, 256, 256, Part::Lower).unwrap();
    sum.add(&numbers, None).unwrap();
    gpu.lose();
    let errors = [
        on.linear(Precision::Single, &numbers, &weights(), &mut y).unwrap_err(),
        sum.add(&numbers, None).unwrap_err(),
        sum.finish().unwrap_err(),
    ];
    for error in errors {
        assert!(error.chain().join(": ").contains("the GPU failed: the device was lost"), "{error:?}");
        assert!(error.hint_text().unwrap().contains("--device cpu"));
        // What is finished is kept for errors of the system.
        assert!(std::error::Error::source(&error).unwrap().is::<std::io::Error>());
    }
}

#[test]
fn weights_leave_when_others_need_their_room() {
    let Some(adapter) = adapter() else { return };
    let gpu = open(&adapter, None).unwrap();
    let room = gpu.taken() + (4 << 20);
    let on = OnGpu::new(gpu.clone(), &adapter, room);
    let n = 256;
    let x: Vec<f32> = (0..32 * n).map(|i| (i as f32 * 0.11).cos()).collect();
    let all: Vec<Vec<f32>> = (0..6).map(|s| (0..n * n).map(|i| ((i + s * 77) as f32 * 0.37).sin()).collect()).collect();
    let keys: Vec<Key> = all.iter().map(|_| Key::new_rows()).collect();
    let decoded = |numbers: &[f32], rows: std::ops::Range<usize>, out: &mut [f32]| {
        out.copy_from_slice(&numbers[rows.start * n..rows.end * n]);
        Ok(())
    };
    for _ in 0..2 {
        for (key, numbers) in keys.iter().zip(&all) {
            let decode = |rows: std::ops::Range<usize>, out: &mut [f32]| decoded(numbers, rows, out);
            let weights = Weights { key: *key, rows: n, columns: n, numbers: Numbers::OnTheFly(&decode) };
            let (mut own, mut wanted) = (vec![0.0; 32 * n], vec![0.0; 32 * n]);
            on.linear(Precision::Single, &x, &weights, &mut own).unwrap();
            llmq_kernels::gemm::linear(Precision::Single, &x, numbers, n, &mut wanted);
            assert!(own.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-3));
        }
    }
    assert!(gpu.taken() <= room, "{} of {room}", gpu.taken());
}
