//! Files of arrays as NumPy writes them.

use super::onnx::VOCABULARY;
use llmq::int8::calibration_inputs;
use llmq::int8::engine::Engine;
use llmq::int8::onnx::proto::ModelProto;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use zip::write::SimpleFileOptions;

/// An array as NumPy writes it.
pub fn npy(descr: &str, shape: &[usize], data: Vec<u8>) -> Vec<u8> {
    let axes: String = shape.iter().map(|n| format!("{n}, ")).collect();
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({axes}), }}\n");
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), &data].concat()
}

pub fn floats(shape: &[usize], x: &[f32]) -> Vec<u8> {
    npy("<f4", shape, x.iter().flat_map(|x| x.to_le_bytes()).collect())
}

pub fn integers(shape: &[usize], x: &[i64]) -> Vec<u8> {
    npy("<i8", shape, x.iter().flat_map(|x| x.to_le_bytes()).collect())
}

/// As `np.savez` writes it.
pub fn npz(path: &Path, arrays: &[(&str, Vec<u8>)]) {
    let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
    for (name, bytes) in arrays {
        let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file(format!("{name}.npy"), stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

/// Images of smooth patterns and noise, for [`cnn`](super::onnx::cnn).
pub fn images(count: usize, seed: u64) -> Vec<u8> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut x = Vec::new();
    for _ in 0..count {
        let [a, b, size]: [f32; 3] = std::array::from_fn(|_| random.random_range(0.1..1.5));
        for at in 0..3 * 16 * 16 {
            let wave = (a * (at % 16) as f32).sin() + (b * (at / 16 % 16) as f32 + (at / 256) as f32).cos();
            x.push(size * (wave + random.random_range(-0.5..0.5)));
        }
    }
    floats(&[count, 3, 16, 16], &x)
}

/// Sentences of 12 tokens, for [`encoder`](super::onnx::encoder).
pub fn sentences(count: usize, seed: u64) -> Vec<u8> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let ids: Vec<i64> = (0..12 * count).map(|_| random.random_range(0..VOCABULARY as i64)).collect();
    integers(&[count, 12], &ids)
}

/// How far what the built-in engine makes of samples is from numbers that are given, in dB: the first output of all samples, one
/// behind the other.
pub fn agreement(model: &ModelProto, samples: &Path, given: &[f32]) -> f64 {
    let engine = Engine::new(model).unwrap();
    let samples = calibration_inputs::open(&[samples.to_path_buf()], &engine).unwrap();
    let mut own = Vec::new();
    for sample in samples.iter() {
        let outputs = engine.run(&calibration_inputs::inputs(&engine, &sample.unwrap()).unwrap()).unwrap();
        own.extend(outputs[0].floats().unwrap().data.clone());
    }
    assert_eq!(own.len(), given.len());
    let square = |x: f32| f64::from(x).powi(2);
    let noise: f64 = own.iter().zip(given).map(|(a, b)| square(a - b)).sum();
    10.0 * (own.iter().map(|&x| square(x)).sum::<f64>() / noise.max(1e-30)).log10()
}
