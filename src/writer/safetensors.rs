//! Writes safetensors while their tensors are still being made: the plan comes first, the data in the plan's order.

use super::atomic::AtomicFile;
use crate::error::{Error, Result};
use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What a tensor will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// The type of its numbers.
    pub dtype: Dtype,
    /// Its shape, slowest dimension first.
    pub shape: Vec<usize>,
}

impl Plan {
    /// Its bytes in the file.
    pub fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8) as u64
    }

    /// Whether what follows it could be off the eight bytes that the widest types are aligned to: there are no gaps.
    fn is_odd(&self) -> bool {
        !self.bytes().is_multiple_of(8)
    }
}

/// Tensors in files of at most `most` bytes each, as long as a tensor is no larger.
pub fn split(tensors: Vec<Plan>, most: u64) -> Vec<Vec<Plan>> {
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

/// A file under construction; dropped before [`SafetensorsWriter::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct SafetensorsWriter {
    file: AtomicFile,
    /// In the order of the file: those of an odd size last, the widest types first.
    plan: Vec<Plan>,
    /// The tensor that comes next.
    next: usize,
    /// Tensors whose turn has not come.
    early: Vec<(String, Vec<u8>)>,
}

impl SafetensorsWriter {
    /// Starts the file that will appear at `path`, and reserves its space.
    ///
    /// # Errors
    /// The disk is too small or not writable.
    pub fn create(path: &Path, mut plan: Vec<Plan>) -> Result<SafetensorsWriter> {
        plan.sort_by_key(|tensor| if tensor.is_odd() { 64 - tensor.dtype.bitsize().min(64) } else { 0 });
        plan.sort_by_key(Plan::is_odd);
        let mut entries = Map::new();
        entries.insert("__metadata__".into(), json!({ "format": "pt" }));
        let mut at = 0;
        for tensor in &plan {
            let (first, last) = (at, at + tensor.bytes());
            // safetensors' own spelling of the type.
            let dtype = serde_json::to_value(tensor.dtype).expect("a type is a word");
            let entry = json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [first, last] });
            if entries.insert(tensor.name.clone(), entry).is_some() {
                return Err(Error::new(format!("tensor '{}' is planned twice", tensor.name)));
            }
            at = last;
        }
        let mut header = Value::Object(entries).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = AtomicFile::create(path)?;
        file.preallocate(8 + header.len() as u64 + at)?;
        file.write(&(header.len() as u64).to_le_bytes())?;
        file.write(&header)?;
        Ok(SafetensorsWriter { file, plan, next: 0, early: Vec::new() })
    }

    /// Writes a tensor of the plan, or keeps it until its turn has come, which only tensors of an odd size have to wait for.
    ///
    /// # Errors
    /// No such tensor is planned, it has another size, or the disk refuses.
    pub fn write(&mut self, name: &str, bytes: Vec<u8>) -> Result<()> {
        let planned = self.plan.iter().skip(self.next).find(|tensor| tensor.name == name);
        match planned.map(Plan::bytes) {
            Some(planned) if planned == bytes.len() as u64 => {}
            Some(planned) => {
                let got = bytes.len();
                return Err(Error::new(format!("tensor '{name}' should have {planned} bytes and has {got}")));
            }
            None => return Err(Error::new(format!("tensor '{name}' is not planned, or was written already"))),
        }
        self.early.push((name.into(), bytes));
        while let Some(tensor) = self.plan.get(self.next) {
            let Some(i) = self.early.iter().position(|(name, _)| *name == tensor.name) else { break };
            self.file.write(&self.early.swap_remove(i).1)?;
            self.next += 1;
        }
        Ok(())
    }

    /// Makes the file durable and lets it appear; returns its size.
    ///
    /// # Errors
    /// A tensor is missing, or the disk refuses.
    pub fn finish(self) -> Result<u64> {
        if let Some(tensor) = self.plan.get(self.next) {
            return Err(Error::new(format!("tensor '{}' was planned and is missing", tensor.name)));
        }
        let total = self.file.written();
        self.file.commit()?;
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    fn plan(name: &str, dtype: Dtype, shape: &[usize]) -> Plan {
        Plan { name: name.into(), dtype, shape: shape.into() }
    }

    #[test]
    fn every_tensor_is_aligned_and_read_back_whatever_the_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let tensors = [
            plan("three", Dtype::F16, &[3]),
            plan("pair", Dtype::I64, &[2]),
            plan("one", Dtype::F32, &[1]),
            plan("bytes", Dtype::U8, &[5]),
            plan("matrix", Dtype::BF16, &[4, 2]),
        ];
        let mut writer = SafetensorsWriter::create(&path, tensors.to_vec()).unwrap();
        let content = |tensor: &Plan| vec![tensor.name.len() as u8; tensor.bytes() as usize];
        for tensor in &tensors {
            writer.write(&tensor.name, content(tensor)).unwrap();
        }
        assert!(writer.write("pair", vec![0; 16]).unwrap_err().to_string().contains("written already"));
        let size = writer.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, size);
        let found = SafeTensors::deserialize(&bytes).unwrap();
        for tensor in &tensors {
            let view = found.tensor(&tensor.name).unwrap();
            assert_eq!(
                (view.dtype(), view.shape(), view.data()),
                (tensor.dtype, &tensor.shape[..], &content(tensor)[..])
            );
            let at = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            assert_eq!(at % (tensor.dtype.bitsize() / 8), 0, "{}", tensor.name);
        }
    }

    #[test]
    fn what_was_not_planned_is_refused_and_what_does_not_fit_begins_another_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let tensors = vec![plan("a", Dtype::F32, &[4]), plan("b", Dtype::F32, &[4])];
        assert_eq!(split(tensors.clone(), 20).iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(split(tensors.clone(), 3).iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(split(tensors.clone(), 32).len(), 1);
        let mut writer = SafetensorsWriter::create(&path, tensors.clone()).unwrap();
        assert!(writer.write("c", vec![]).unwrap_err().to_string().contains("not planned"));
        assert!(writer.write("a", vec![0; 3]).unwrap_err().to_string().contains("16 bytes and has 3"));
        writer.write("a", vec![0; 16]).unwrap();
        assert!(writer.finish().unwrap_err().to_string().contains("'b' was planned"));
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        assert!(SafetensorsWriter::create(&path, [&tensors[..1], &tensors[..1]].concat()).is_err());
    }
}
