//! Every kernel on a real device, or on the driver that computes on the CPU, against the CPU's kernels. Where there is neither, these
//! tests say so and do nothing; with LLMQ_GPU_TESTS=1 that is an error. All of it is less than 1 GFLOP.

use llmq_gpu::kernels::Kernel;
use llmq_gpu::{Adapter, Error, Gpu, Matrix, Part, Setup, Sum, adapters};
use llmq_kernels::gemm::{self, Precision};
use llmq_kernels::syrk;
use std::sync::Arc;

/// The first adapter.
fn adapter() -> Option<Adapter> {
    let found = adapters().into_iter().next();
    if found.is_none() {
        let why = "no adapter: install a driver (Debian: apt-get install mesa-vulkan-drivers libvulkan1)";
        assert!(std::env::var_os("LLMQ_GPU_TESTS").is_none_or(|x| x != "1"), "{why}");
        eprintln!("SKIPPED: {why}");
    }
    found
}

fn open(adapter: &Adapter) -> Arc<Gpu> {
    Arc::new(adapter.open(&Setup::default()).unwrap())
}

fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0).collect()
}

/// The largest difference.
fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| if a.is_finite() { (a - b).abs() } else { f32::INFINITY }).fold(0.0, f32::max)
}

fn linear(gpu: &Gpu, x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    let (n, m) = (x.len() / k, w.len() / k);
    let mut y = vec![f32::NAN; n * m];
    let matrix = gpu.matrix(w, m, k).unwrap();
    gpu.linear(x, &matrix, false, &mut y).unwrap();
    y
}

fn sum(gpu: &Arc<Gpu>, a: &[f32], m: usize, b: Option<(&[f32], usize)>) -> Vec<f32> {
    let (n, part) = b.map_or((m, Part::Lower), |(_, n)| (n, Part::Whole));
    let mut sum = Sum::new(gpu, m, n, part).unwrap();
    // In two steps.
    let first = a.len() / m / 2;
    sum.add(&a[..first * m], b.map(|(b, n)| &b[..first * n])).unwrap();
    sum.add(&a[first * m..], b.map(|(b, n)| &b[first * n..])).unwrap();
    let mut all = vec![0.0; m * n];
    sum.read(|row, found| all[row * n..(row + 1) * n].copy_from_slice(found)).unwrap();
    let diagonal = sum.diagonal().unwrap();
    assert_eq!(diagonal, (0..m.min(n)).map(|i| all[i * n + i]).collect::<Vec<f32>>());
    if part == Part::Lower {
        (0..m).for_each(|i| all[i * n + i + 1..(i + 1) * n].fill(0.0));
    }
    all
}

fn wanted_sum(a: &[f32], m: usize, b: Option<(&[f32], usize)>) -> Vec<f32> {
    let n = b.map_or(m, |(_, n)| n);
    let mut all = vec![0.0; m * n];
    match b {
        Some((b, n)) => syrk::outer(Precision::Single, a, m, b, n, &mut all),
        None => {
            syrk::syrk(Precision::Single, a, m, &mut all);
            (0..m).for_each(|i| all[i * n + i + 1..(i + 1) * n].fill(0.0));
        }
    }
    all
}

const SHAPES: [(usize, usize, usize); 8] =
    [(1, 1, 1), (3, 5, 7), (1, 200, 64), (64, 64, 16), (65, 129, 200), (130, 66, 18), (200, 3, 33), (129, 200, 132)];

#[test]
fn linear_layers_are_those_of_the_cpu_on_ragged_shapes() {
    let Some(adapter) = adapter() else { return };
    let gpu = open(&adapter);
    for (n, m, k) in SHAPES {
        let (x, w) = (numbers(n * k, 1), numbers(m * k, 2));
        let mut wanted = vec![0.0; n * m];
        gemm::linear(Precision::Single, &x, &w, k, &mut wanted);
        let found = linear(&gpu, &x, &w, k);
        assert!(worst(&found, &wanted) < 2e-6 * k as f32, "{n} {m} {k}");
        assert_eq!(found, linear(&gpu, &x, &w, k), "twice, {n} {m} {k}");

        let mut added = numbers(n * m, 3);
        wanted.iter_mut().zip(&added).for_each(|(y, old)| *y += old);
        gpu.linear(&x, &gpu.matrix(&w, m, k).unwrap(), true, &mut added).unwrap();
        assert!(worst(&added, &wanted) < 2e-6 * k as f32, "added, {n} {m} {k}");
    }
    assert_eq!(linear(&gpu, &[], &numbers(12, 1), 4), []);
}

#[test]
fn a_row_does_not_depend_on_those_beside_it() {
    let Some(adapter) = adapter() else { return };
    let gpu = open(&adapter);
    // The width of tiles changes between them.
    let (m, k) = (130, 76);
    let (x, w) = (numbers(140 * k, 4), numbers(m * k, 5));
    let all = linear(&gpu, &x, &w, k);
    let few = linear(&gpu, &x[..9 * k], &w, k);
    assert!(worst(&all[..9 * m], &few) < 1e-5);
    assert_eq!(linear(&gpu, &x[..100 * k], &w, k), all[..100 * m]);
}

#[test]
fn weights_of_bfloat16_stay_what_they_are_to_the_last_bit() {
    let Some(adapter) = adapter() else { return };
    let gpu = open(&adapter);
    // Every number of bfloat16 that is one: all but subnormal numbers, which devices may take for zero, infinities and NaN.
    let all: Vec<f32> = (0..=u16::MAX).map(|bits| f32::from_bits(u32::from(bits) << 16)).collect();
    let normal: Vec<f32> = all.into_iter().filter(|x| x.is_normal() || *x == 0.0).collect();
    let k = 4;
    let w = &normal[..normal.len() / k * k];
    // Each column by itself; with 1/4 none overflows and few become subnormal.
    for column in 0..k {
        let mut x = vec![0.0; k];
        x[column] = 0.25;
        let y = linear(&gpu, &x, w, k);
        for (y, w) in y.iter().zip(w.chunks(k)) {
            let wanted = w[column] * 0.25;
            assert!(*y == wanted || wanted.is_subnormal() && *y == 0.0, "{} became {y}", w[column]);
        }
    }
}

#[test]
fn sums_of_outer_products_are_those_of_the_cpu_on_ragged_shapes() {
    let Some(adapter) = adapter() else { return };
    let gpu = open(&adapter);
    for (m, n, tokens) in SHAPES {
        let (a, b) = (numbers(tokens * m, 1), numbers(tokens * n, 2));
        for b in [None, Some((&b[..], n))] {
            let found = sum(&gpu, &a, m, b);
            assert!(worst(&found, &wanted_sum(&a, m, b)) < 2e-6 * tokens as f32, "{m} {n} {tokens}");
            assert_eq!(found, sum(&gpu, &a, m, b), "twice, {m} {n} {tokens}");
        }
    }
}

#[test]
fn what_is_larger_than_a_binding_goes_there_in_bands() {
    let Some(adapter) = adapter() else { return };
    // Some rows of 200 numbers at once.
    let setup = Setup { binding: Some(200 * 4 * 30), ..Setup::default() };
    let (narrow, wide) = (Arc::new(adapter.open(&setup).unwrap()), open(&adapter));
    let (n, m, k) = (70, 150, 200);
    let (x, w) = (numbers(n * k, 1), numbers(m * k, 2));
    assert!(worst(&linear(&narrow, &x, &w, k), &linear(&wide, &x, &w, k)) < 1e-4);
    let (a, b) = (numbers(n * k, 3), numbers(n * m, 4));
    for b in [None, Some((&b[..], m))] {
        assert!(worst(&sum(&narrow, &a, k, b), &wanted_sum(&a, k, b)) < 1e-4);
    }
    let refused = narrow.matrix(&numbers(9000, 1), 1, 9000).err().unwrap();
    assert!(refused.to_string().contains("four rows of 9000 numbers do not fit"), "{refused}");
}

#[test]
fn limits_that_the_adapter_does_not_have_are_an_error() {
    let Some(adapter) = adapter() else { return };
    let setup = Setup { binding: Some(adapter.binding + 4096), ..Setup::default() };
    let error = adapter.open(&setup).err().unwrap();
    assert!(matches!(&error, Error::Refused(why) if why.contains("max_storage_buffer_binding_size")), "{error}");
}

#[test]
fn more_memory_than_allowed_is_an_error_and_what_is_dropped_comes_back() {
    let Some(adapter) = adapter() else { return };
    let gpu = Arc::new(adapter.open(&Setup { memory: Some(1 << 20), ..Setup::default() }).unwrap());
    let matrix = gpu.matrix(&numbers(128 * 1024, 1), 128, 1024).unwrap();
    assert_eq!(matrix.shape(), (128, 1024));
    assert!(gpu.taken() >= Matrix::bytes(128, 1024));
    let error = Sum::new(&gpu, 512, 512, Part::Lower).err().unwrap();
    assert!(matches!(error, Error::Memory { allowed: Some(1_048_576), .. }), "{error}");
    drop(matrix);
    Sum::new(&gpu, 256, 256, Part::Lower).unwrap();
    assert!(gpu.taken() < 1 << 20);
}

#[test]
fn the_self_test_finds_every_kernel_that_is_wrong() {
    let Some(adapter) = adapter() else { return };
    open(&adapter).self_test().unwrap();
    let wrongs = [
        (Kernel::Gemm, "sum0_0 += a0.z * z0", "sum0_0 -= a0.z * z0"),
        (Kernel::Gemm, "row < p.columns && quad < p.quads", "row < p.columns && quad + 1u < p.quads"),
        (Kernel::Gemm, "c[at] += sum", "c[at] = sum"),
        (Kernel::Outer, "y0_0 += a0.y * b0", "y0_0 += a0.y * b0 * 1.001"),
        (Kernel::Outer, "c[row * p.b_quads + quad] += sum", "c[row * p.b_quads + quad] = sum"),
        (Kernel::Outer, "> p.a_first + top + TILE - 1u", ">= p.a_first + top"),
        (Kernel::Convert, "0xffff0000u", "0xfffe0000u"),
    ];
    for (kernel, right, wrong) in wrongs {
        let edit = |own: Kernel, text: String| {
            let changed = own == kernel && text.contains(right);
            if changed { text.replace(right, wrong) } else { text }
        };
        let gpu = Arc::new(adapter.open(&Setup { edit: &edit, ..Setup::default() }).unwrap());
        match gpu.self_test() {
            Err(Error::Wrong(what)) => eprintln!("{what}"),
            other => panic!("{wrong}: {other:?}"),
        }
    }
    let broken = Setup { edit: &|_, text| text.replace("fn main", "fn main main"), ..Setup::default() };
    assert!(matches!(adapter.open(&broken).err(), Some(Error::Refused(_))));
}

#[test]
fn a_device_that_is_lost_is_an_error_value() {
    let Some(adapter) = adapter() else { return };
    let gpu = open(&adapter);
    let (x, w) = (numbers(80 * 32, 1), numbers(80 * 32, 2));
    let matrix = gpu.matrix(&w, 80, 32).unwrap();
    let mut sum = Sum::new(&gpu, 32, 32, Part::Lower).unwrap();
    gpu.lose();
    let mut y = vec![0.0; 80 * 80];
    let errors = [
        gpu.linear(&x, &matrix, false, &mut y).err(),
        gpu.matrix(&w, 80, 32).err(),
        sum.add(&x, None).err(),
        sum.read(|_, _| {}).err(),
        sum.diagonal().err(),
        Sum::new(&gpu, 32, 32, Part::Lower).err(),
        gpu.self_test().err(),
    ];
    for error in errors {
        assert!(matches!(error, Some(Error::Lost(_))), "{error:?}");
    }
}
