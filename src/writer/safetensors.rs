//! Writes a safetensors file while its tensors are still being made, in any order.

use crate::error::{Error, Result};
use safetensors::tensor::Dtype;
use serde_json::{Map, json};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// What a tensor will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlan {
    /// The name, unique in the file.
    pub name: String,
    /// The type of its numbers.
    pub dtype: Dtype,
    /// Its shape, slowest dimension first.
    pub shape: Vec<usize>,
}

impl TensorPlan {
    /// Its bytes in the file.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * (self.dtype.bitsize() / 8) as u64
    }
}

/// Tensors in files of at most `most` bytes each, as long as a tensor is no larger.
pub fn split(tensors: Vec<TensorPlan>, most: u64) -> Vec<Vec<TensorPlan>> {
    let (mut files, mut held) = (vec![Vec::new()], 0u64);
    for tensor in tensors {
        if held > 0 && held.saturating_add(tensor.bytes()) > most {
            files.push(Vec::new());
            held = 0;
        }
        held += tensor.bytes();
        files.last_mut().expect("there is a file").push(tensor);
    }
    files
}

/// A safetensors file under construction. It has to lie where an early end does no harm: in an
/// [`AtomicFolder`](super::atomic::AtomicFolder).
#[derive(Debug)]
pub struct SafetensorsWriter {
    file: File,
    /// What errors call it.
    shown: PathBuf,
    /// By name, where a tensor's data starts, its size, and how much of it is written.
    places: HashMap<String, (u64, u64, u64)>,
    total: u64,
}

impl SafetensorsWriter {
    /// Starts the file at `path`, writes its header, and reserves the room for all of it. `shown`: the path that it will
    /// have in the end.
    ///
    /// # Errors
    /// The disk is too small or refuses, or a name occurs twice.
    pub fn create(path: &Path, shown: &Path, tensors: &[TensorPlan]) -> Result<Self> {
        let mut order: Vec<&TensorPlan> = tensors.iter().collect();
        // As the reference does it: the widest numbers first, so that all are aligned.
        order.sort_by(|a, b| b.dtype.bitsize().cmp(&a.dtype.bitsize()).then_with(|| a.name.cmp(&b.name)));
        let mut header = Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
        let (mut places, mut at) = (HashMap::new(), 0);
        for tensor in order {
            let bytes = tensor.bytes();
            let entry = json!({
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "data_offsets": [at, at + bytes],
            });
            if header.insert(tensor.name.clone(), entry).is_some() {
                return Err(Error::new(format!("tensor '{}' is planned twice", tensor.name)));
            }
            places.insert(tensor.name.clone(), (at, bytes, 0));
            at += bytes;
        }
        let mut text = serde_json::Value::Object(header).to_string();
        text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
        let start = 8 + text.len() as u64;
        places.values_mut().for_each(|place| place.0 += start);
        let failed = |cause| failure(shown, 0, cause);
        let mut file = File::create_new(path).map_err(failed)?;
        let total = start + at;
        super::atomic::reserve(&file, total).or_else(ignorable).map_err(failed)?;
        file.write_all(&(text.len() as u64).to_le_bytes()).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        Ok(Self { file, shown: shown.into(), places, total })
    }

    /// Writes the next part of a tensor.
    ///
    /// # Errors
    /// There is no such tensor, its parts are longer than planned, or the disk refuses.
    pub fn append(&mut self, name: &str, part: &[u8]) -> Result<()> {
        let Some((start, bytes, done)) = self.places.get_mut(name) else {
            return Err(Error::new(format!("tensor '{name}' was not planned")));
        };
        let at = *start + *done;
        *done += part.len() as u64;
        if done > bytes {
            return Err(Error::new(format!("tensor '{name}' has {done} bytes, but {bytes} were planned")));
        }
        let written = self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.write_all(part));
        written.map_err(|cause| failure(&self.shown, at, cause))
    }

    /// Makes the file durable; returns its size in bytes.
    ///
    /// # Errors
    /// A tensor is incomplete, or the disk refuses.
    pub fn finish(self) -> Result<u64> {
        if let Some((name, (_, bytes, done))) = self.places.iter().find(|(_, (_, bytes, done))| done < bytes) {
            return Err(Error::new(format!("tensor '{name}' has {done} of {bytes} planned bytes")));
        }
        let synced = self.file.set_len(self.total).and_then(|()| self.file.sync_all());
        synced.map_err(|cause| failure(&self.shown, self.total, cause))?;
        Ok(self.total)
    }
}

/// A file system that cannot reserve is no reason to stop; one that is full is.
fn ignorable(cause: std::io::Error) -> std::io::Result<()> {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    if matches!(cause.kind(), StorageFull | QuotaExceeded | FileTooLarge) { Err(cause) } else { Ok(()) }
}

fn failure(path: &Path, done: u64, cause: std::io::Error) -> Error {
    Error::new(format!("cannot write {}: failed after {done} bytes", path.display()))
        .hint("free some space there, or choose another folder with -o")
        .because(cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    fn plan(name: &str, dtype: Dtype, shape: &[usize]) -> TensorPlan {
        TensorPlan { name: name.into(), dtype, shape: shape.into() }
    }

    #[test]
    fn tensors_written_in_any_order_read_back_aligned() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let plans = [
            plan("codes", Dtype::I8, &[3, 1]),
            plan("halves", Dtype::F16, &[1]),
            plan("scales", Dtype::F32, &[3]),
            plan("one", Dtype::F32, &[]),
            plan("none", Dtype::F32, &[0, 4]),
        ];
        let mut writer = SafetensorsWriter::create(&path, &path, &plans).unwrap();
        writer.append("codes", &[1, 2]).unwrap();
        writer.append("scales", &[9; 12]).unwrap();
        writer.append("codes", &[3]).unwrap();
        writer.append("one", &[8; 4]).unwrap();
        writer.append("halves", &[7, 7]).unwrap();
        let size = writer.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, size);
        let (header, _) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header % 8, 0);
        let read = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.len(), 5);
        assert_eq!(read.tensor("codes").unwrap().data(), [1, 2, 3]);
        assert_eq!(read.tensor("halves").unwrap().data(), [7, 7]);
        assert_eq!(read.tensor("scales").unwrap().shape(), [3]);
        assert_eq!(read.tensor("one").unwrap().shape(), [0; 0]);
        let offset = |name| read.tensor(name).unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize;
        assert_eq!((offset("scales") % 4, offset("halves") % 2), (0, 0));
    }

    #[test]
    fn a_plan_has_to_be_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let plans = [plan("a", Dtype::I8, &[2])];
        let start = |name| SafetensorsWriter::create(&path(name), &path(name), &plans).unwrap();
        assert!(start("1").append("a", &[1, 2, 3]).unwrap_err().to_string().contains("3 bytes, but 2"));
        assert!(start("2").append("b", &[1]).unwrap_err().to_string().contains("not planned"));
        assert!(start("3").finish().unwrap_err().to_string().contains("0 of 2"));
        let twice = SafetensorsWriter::create(&path("4"), &path("4"), &[plans.clone(), plans].concat());
        assert!(twice.unwrap_err().to_string().contains("planned twice"));
    }

    #[test]
    fn what_does_not_fit_begins_another_file() {
        let tensors = vec![plan("a", Dtype::F32, &[4]), plan("b", Dtype::F32, &[4])];
        for (most, sizes) in [(20, &[1, 1][..]), (3, &[1, 1]), (32, &[2])] {
            assert_eq!(split(tensors.clone(), most).iter().map(Vec::len).collect::<Vec<_>>(), sizes);
        }
    }
}
