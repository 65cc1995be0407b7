//! Importance matrices in llama.cpp's GGUF form.

use super::gguf::{GgufWriter, TensorPlan};
use crate::error::Result;
use crate::source::imatrix::{CHUNK_COUNT, CHUNK_SIZE, COUNTS, DATASETS, Imatrix, SUMS, TYPE};
use crate::source::value::{Metadata, Value};
use std::path::Path;

/// Writes an importance matrix, whole or not at all; returns its size in bytes.
///
/// # Errors
/// The disk refuses, or a weight's name is too long to get a suffix.
pub fn write(path: &Path, imatrix: &Imatrix) -> Result<u64> {
    let metadata: Metadata = vec![
        ("general.type".into(), TYPE.into()),
        (DATASETS.into(), imatrix.datasets.clone().into()),
        (CHUNK_COUNT.into(), Value::U32(imatrix.chunks)),
        (CHUNK_SIZE.into(), Value::U32(imatrix.chunk_size)),
    ];
    let mut tensors = Vec::new();
    for (name, entry) in &imatrix.entries {
        let matrices = entry.counts.len() as u64;
        for (suffix, numbers) in [(SUMS, &entry.sums), (COUNTS, &entry.counts)] {
            // As ggml counts dimensions: those of one at the end do not count.
            let mut dims = vec![numbers.len() as u64 / matrices, matrices];
            dims.truncate(if matrices == 1 { 1 } else { 2 });
            let plan =
                TensorPlan { name: format!("{name}{suffix}"), dims, type_id: 0, bytes: 4 * numbers.len() as u64 };
            tensors.push((plan, numbers));
        }
    }
    let mut writer = GgufWriter::create(path, &metadata, tensors.iter().map(|(plan, _)| plan.clone()).collect())?;
    for (plan, numbers) in &tensors {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.write(&plan.name, &bytes)?;
    }
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::imatrix::Entry;

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("imatrix.gguf");
        let experts = Entry { sums: vec![1.0, 2.0, 3.0, 4.0], counts: vec![5.0, 0.0] };
        let plain = Entry { sums: vec![0.5, 0.25, 8.0], counts: vec![512.0] };
        let entries = [("blk.0.ffn_up_exps.weight".to_owned(), experts), ("blk.0.attn_q.weight".to_owned(), plain)];
        let imatrix = Imatrix {
            datasets: vec!["calib.txt".into(), "more.txt".into()],
            chunks: 1,
            chunk_size: 512,
            entries: entries.into(),
        };
        let bytes = write(&path, &imatrix).unwrap();
        assert_eq!(bytes, std::fs::metadata(&path).unwrap().len());
        assert_eq!(Imatrix::read(&path).unwrap(), imatrix);
    }
}
