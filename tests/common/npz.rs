//! Files of arrays as NumPy writes them.

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
