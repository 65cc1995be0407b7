//! Writes a GGUF file while its tensors are still being made: the plan comes first, the data in the plan's order.

use std::collections::HashSet;
use std::path::Path;

use super::atomic::AtomicFile;
use crate::error::{Error, Result};
use crate::source::gguf::{MAGIC, MAX_DIMS, alignment};
use crate::source::value::{Array, Metadata, Value, for_each_type};

/// The version of the format that is written.
const VERSION: u32 = 3;
/// ggml keeps tensor names in 64 bytes, the last of them zero.
const MAX_TENSOR_NAME: usize = 63;
/// The specification's limit for keys, in bytes.
const MAX_KEY: usize = 65535;

/// What a tensor will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlan {
    /// The name, unique and shorter than 64 bytes.
    pub name: String,
    /// Elements along each dimension in ggml's order, the fastest first.
    pub dims: Vec<u64>,
    /// ggml's number of the element type.
    pub type_id: u32,
    /// The length of the data in bytes.
    pub bytes: u64,
}

/// The size in bytes of the file that a [`GgufWriter`] would write.
///
/// # Errors
///
/// As [`GgufWriter::create`], for a plan that no file can hold.
pub fn file_size(metadata: &Metadata, tensors: &[TensorPlan]) -> Result<u64> {
    Ok(Layout::new(metadata, tensors)?.total)
}

/// A GGUF file under construction; dropped before [`GgufWriter::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct GgufWriter {
    file: AtomicFile,
    alignment: u64,
    tensors: Vec<TensorPlan>,
    /// The tensor that comes next or is under way.
    next: usize,
    /// Bytes that tensor already has.
    done: u64,
}

impl GgufWriter {
    /// Starts the file that will appear at `path`: writes everything but the data, and reserves the disk space of the
    /// whole file. Data is aligned to `general.alignment` where `metadata` has it, else to 32 bytes.
    ///
    /// # Errors
    ///
    /// The plan is one that no file can hold (duplicate or overlong names, more than 4 dimensions, sizes beyond
    /// 64 bits), or the disk is too small or not writable.
    pub fn create(path: &Path, metadata: &Metadata, tensors: Vec<TensorPlan>) -> Result<Self> {
        Self::start(AtomicFile::create(path)?, metadata, tensors)
    }

    /// The same under the name `draft`, which outlives the program: [`GgufWriter::go_on`] continues it.
    ///
    /// # Errors
    ///
    /// As [`GgufWriter::create`].
    pub fn create_draft(path: &Path, draft: &Path, metadata: &Metadata, tensors: Vec<TensorPlan>) -> Result<Self> {
        Self::start(AtomicFile::create_draft(path, draft)?, metadata, tensors)
    }

    fn start(mut file: AtomicFile, metadata: &Metadata, tensors: Vec<TensorPlan>) -> Result<Self> {
        let Layout { header, alignment, total } = Layout::new(metadata, &tensors)?;
        file.preallocate(total)?;
        file.write(&header)?;
        Ok(Self { file, alignment, tensors, next: 0, done: 0 })
    }

    /// Goes on with a draft of the same plan behind its first `finished` tensors. `hash`: what [`GgufWriter::sync`] gave when
    /// it had so many.
    ///
    /// # Errors
    ///
    /// The draft is missing, shorter, or damaged.
    pub fn go_on(
        path: &Path,
        draft: &Path,
        metadata: &Metadata,
        tensors: Vec<TensorPlan>,
        finished: usize,
        hash: &blake3::Hash,
    ) -> Result<Self> {
        let Layout { header, alignment, .. } = Layout::new(metadata, &tensors)?;
        let data: u64 = tensors.iter().take(finished).map(|plan| plan.bytes.next_multiple_of(alignment)).sum();
        let file = AtomicFile::go_on(path, draft, header.len() as u64 + data, hash)?;
        Ok(Self { file, alignment, next: finished.min(tensors.len()), tensors, done: 0 })
    }

    /// Makes all that has been written durable, and gives its hash. To be called between two tensors.
    ///
    /// # Errors
    ///
    /// The system refused.
    pub fn sync(&mut self) -> Result<Option<blake3::Hash>> {
        self.file.sync()
    }

    /// How many tensors are complete.
    pub fn finished(&self) -> usize {
        self.next
    }

    /// Writes a whole tensor, the next of the plan.
    ///
    /// # Errors
    ///
    /// Another tensor comes next, the size is not as planned, or the disk refuses.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let planned = self.tensors.get(self.next).filter(|plan| plan.name == name).map(|plan| plan.bytes);
        if let Some(planned) = planned.filter(|&n| self.done > 0 || n != bytes.len() as u64) {
            let (got, done) = (bytes.len(), self.done);
            return Err(Error::new(format!(
                "tensor {name:?} should be {planned} bytes, but {got} were given at once after {done}"
            )));
        }
        self.append(name, bytes)
    }

    /// Writes the next part of a tensor that is made in parts; with the last of its planned bytes it is complete.
    ///
    /// # Errors
    ///
    /// Another tensor comes next, the parts are longer than planned, or the disk refuses.
    pub fn append(&mut self, name: &str, part: &[u8]) -> Result<()> {
        let Some(plan) = self.tensors.get(self.next) else {
            return Err(Error::new(format!("tensor {name:?} comes after the last of the plan")));
        };
        if plan.name != name {
            return Err(Error::new(format!("tensor {name:?} comes where {:?} was planned", plan.name)));
        }
        let done = self.done + part.len() as u64;
        if done > plan.bytes {
            return Err(Error::new(format!("tensor {name:?} has {done} bytes, but {} were planned", plan.bytes)));
        }
        self.file.write(part)?;
        self.done = done;
        if done == plan.bytes {
            let padding = done.next_multiple_of(self.alignment) - done;
            self.file.write(&vec![0; padding as usize])?;
            (self.next, self.done) = (self.next + 1, 0);
        }
        Ok(())
    }

    /// Whether every planned tensor has been written.
    pub fn is_full(&self) -> bool {
        self.next == self.tensors.len()
    }

    /// Makes the file durable and lets it appear at its path; returns its size in bytes.
    ///
    /// # Errors
    ///
    /// A tensor is missing or incomplete, or the disk refuses.
    pub fn finish(self) -> Result<u64> {
        if let Some(plan) = self.tensors.get(self.next) {
            let (missing, done) = (self.tensors.len() - self.next, self.done);
            return Err(Error::new(format!(
                "{missing} of {} planned tensors are missing, the first {:?} with {done} of {} bytes",
                self.tensors.len(),
                plan.name,
                plan.bytes
            )));
        }
        let total = self.file.written();
        self.file.commit()?;
        Ok(total)
    }
}

/// A plan turned into the bytes before the data, and the numbers that follow from it.
struct Layout {
    /// Everything before the data section, with its padding.
    header: Vec<u8>,
    alignment: u64,
    /// Bytes in the whole file.
    total: u64,
}

impl Layout {
    fn new(metadata: &Metadata, tensors: &[TensorPlan]) -> Result<Self> {
        let alignment = alignment(metadata)?;
        let mut header = MAGIC.to_vec();
        VERSION.encode(&mut header);
        (tensors.len() as u64).encode(&mut header);
        (metadata.len() as u64).encode(&mut header);
        let mut keys = HashSet::new();
        for (key, value) in metadata {
            if key.is_empty() || key.len() > MAX_KEY || !keys.insert(key) {
                return Err(Error::new(format!("metadata key {key:?} is empty, too long or there twice")));
            }
            key.encode(&mut header);
            encode_value(value, &mut header);
        }
        let mut names = HashSet::new();
        let mut offset = 0u64;
        for plan in tensors {
            let TensorPlan { name, dims, type_id, bytes } = plan;
            if name.is_empty() || name.len() > MAX_TENSOR_NAME {
                let length = name.len();
                let what = format!("tensor {name:?} has a name of {length} bytes; 1 to {MAX_TENSOR_NAME} are allowed");
                return Err(Error::new(what));
            }
            if !names.insert(name) {
                return Err(Error::new(format!("tensor {name:?} is planned twice")));
            }
            if dims.is_empty() || dims.len() > MAX_DIMS {
                let count = dims.len();
                return Err(Error::new(format!("tensor {name:?} has {count} dimensions; 1 to {MAX_DIMS} are allowed")));
            }
            name.encode(&mut header);
            (dims.len() as u32).encode(&mut header);
            dims.iter().for_each(|dim| dim.encode(&mut header));
            type_id.encode(&mut header);
            offset.encode(&mut header);
            let end = offset.checked_add(*bytes).and_then(|end| end.checked_next_multiple_of(alignment));
            offset = end.ok_or_else(|| too_large(name))?;
        }
        header.resize((header.len() as u64).next_multiple_of(alignment) as usize, 0);
        let total = offset.checked_add(header.len() as u64).filter(|&n| n <= i64::MAX as u64);
        let total = total.ok_or_else(|| too_large(&tensors[tensors.len() - 1].name))?;
        Ok(Self { header, alignment, total })
    }
}

fn too_large(name: &str) -> Error {
    Error::new(format!("the file would be larger than 2^63 bytes at tensor {name:?}"))
}

/// How GGUF stores an element of its metadata.
trait Encode {
    fn encode(&self, out: &mut Vec<u8>);
}

macro_rules! number {
    ($($type:ty)*) => {
        $(impl Encode for $type {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }
        })*
    };
}
number!(u8 i8 u16 i16 u32 i32 u64 i64 f32 f64);

impl Encode for bool {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Encode for String {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.len() as u64).encode(out);
        out.extend(self.as_bytes());
    }
}

fn encode_value(value: &Value, out: &mut Vec<u8>) {
    macro_rules! encode {
        ($($id:literal $variant:ident $type:ident $name:literal,)*) => {
            match value {
                $(Value::$variant(element) => element.encode(out),)*
                Value::Array(array) => {
                    array.type_id().encode(out);
                    (array.len() as u64).encode(out);
                    match array {
                        $(Array::$variant(items) => items.iter().for_each(|item| item.encode(out)),)*
                    }
                }
            }
        };
    }
    value.type_id().encode(out);
    for_each_type!(encode);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::gguf::{Gguf, TypeLayout};
    use std::fs;

    fn layout(type_id: u32) -> Option<TypeLayout> {
        match type_id {
            0 => Some(TypeLayout { name: "F32", block: 1, bytes: 4 }),
            8 => Some(TypeLayout { name: "Q8_0", block: 32, bytes: 34 }),
            _ => None,
        }
    }

    fn plan(name: &str, dims: &[u64], type_id: u32, bytes: u64) -> TensorPlan {
        TensorPlan { name: name.into(), dims: dims.into(), type_id, bytes }
    }

    /// The message of a result that must be an error.
    fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn golden_bytes_of_a_small_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("small.gguf");
        let metadata = vec![("a".to_owned(), Value::from("hi")), ("b".to_owned(), Value::from(vec![1u16, 2]))];
        let tensors = vec![plan("w", &[2, 1], 0, 8), plan("v", &[1], 0, 4)];
        assert_eq!(file_size(&metadata, &tensors).unwrap(), 224);
        let mut writer = GgufWriter::create(&path, &metadata, tensors).unwrap();
        writer.write("w", &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        writer.write("v", &[9, 10, 11, 12]).unwrap();
        assert_eq!(writer.finish().unwrap(), 224);
        #[rustfmt::skip]
        let golden: Vec<u8> = [
            &b"GGUF"[..], &[3, 0, 0, 0],        // magic, version
            &[2, 0, 0, 0, 0, 0, 0, 0],          // tensors
            &[2, 0, 0, 0, 0, 0, 0, 0],          // keys
            &[1, 0, 0, 0, 0, 0, 0, 0], b"a", &[8, 0, 0, 0],                 // "a": str
            &[2, 0, 0, 0, 0, 0, 0, 0], b"hi",
            &[1, 0, 0, 0, 0, 0, 0, 0], b"b", &[9, 0, 0, 0, 2, 0, 0, 0],     // "b": array of u16
            &[2, 0, 0, 0, 0, 0, 0, 0], &[1, 0, 2, 0],
            &[1, 0, 0, 0, 0, 0, 0, 0], b"w", &[2, 0, 0, 0],                 // "w": 2 dimensions
            &[2, 0, 0, 0, 0, 0, 0, 0], &[1, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 0], &[0, 0, 0, 0, 0, 0, 0, 0],                       // F32 at 0
            &[1, 0, 0, 0, 0, 0, 0, 0], b"v", &[1, 0, 0, 0],                 // "v": 1 dimension
            &[1, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 0], &[32, 0, 0, 0, 0, 0, 0, 0],                      // F32 at 32
            &[0; 10],                                                       // to 160
            &[1, 2, 3, 4, 5, 6, 7, 8], &[0; 24],
            &[9, 10, 11, 12], &[0; 28],
        ].concat();
        assert_eq!(fs::read(&path).unwrap(), golden);
    }

    #[test]
    fn every_value_type_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("values.gguf");
        let mut values: Vec<Value> = vec![Value::from("é\n"), Value::from(true), Value::from("")];
        values.push(vec!["a".to_owned(), String::new(), "ü".to_owned()].into());
        values.push(vec![true, false].into());
        values.push(Vec::<u8>::new().into());
        macro_rules! numbers {
            ($($type:ty)*) => {$(
                values.extend([Value::from(<$type>::MIN), Value::from(<$type>::MAX)]);
                values.push(vec![<$type>::MIN, 1 as $type, <$type>::MAX].into());
            )*};
        }
        numbers!(u8 i8 u16 i16 u32 i32 u64 i64 f32 f64);
        let mut metadata: Metadata =
            values.into_iter().enumerate().map(|(i, value)| (format!("k{i}"), value)).collect();
        metadata.push(("general.alignment".into(), 64u32.into()));
        let tensors = vec![plan("a", &[32, 3], 8, 102), plan("empty", &[0], 0, 0), plan("b", &[1, 2, 1, 3], 0, 24)];
        let size = file_size(&metadata, &tensors).unwrap();
        let mut writer = GgufWriter::create(&path, &metadata, tensors.clone()).unwrap();
        for part in [[7; 34], [8; 34], [9; 34]] {
            writer.append("a", &part).unwrap();
        }
        writer.write("empty", &[]).unwrap();
        writer.write("b", &[1; 24]).unwrap();
        assert_eq!(writer.finish().unwrap(), size);
        assert_eq!(fs::metadata(&path).unwrap().len(), size);

        let gguf = Gguf::open(&path, layout).unwrap();
        assert_eq!(gguf.version, 3);
        assert_eq!(gguf.metadata, metadata);
        assert_eq!(gguf.tensors.len(), tensors.len());
        for (info, plan) in gguf.tensors.iter().zip(&tensors) {
            let read = TensorPlan {
                name: info.name.clone(),
                dims: info.dims.clone(),
                type_id: info.type_id,
                bytes: info.bytes,
            };
            assert_eq!(&read, plan);
            assert_eq!(info.offset % 64, 0);
        }
        let a = gguf.tensor("a").unwrap();
        let expected = [[7; 34], [8; 34], [9; 34]].concat();
        assert_eq!(gguf.data(a), expected);
        gguf.release(a, 0..102);
        assert_eq!(gguf.data(a), expected);
        assert!(gguf.data(gguf.tensor("empty").unwrap()).is_empty());
        assert_eq!(gguf.data(gguf.tensor("b").unwrap()), [1; 24]);
    }

    #[test]
    fn data_out_of_plan_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.gguf");
        let tensors = vec![plan("a", &[2], 0, 8), plan("b", &[1], 0, 4)];
        let mut writer = GgufWriter::create(&path, &Metadata::new(), tensors).unwrap();
        assert!(message(writer.write("b", &[0; 4])).contains("where \"a\" was planned"));
        assert!(message(writer.write("a", &[0; 4])).contains("should be 8 bytes, but 4"));
        writer.append("a", &[0; 4]).unwrap();
        assert!(message(writer.write("a", &[0; 8])).contains("after 4"));
        assert!(message(writer.append("a", &[0; 5])).contains("9 bytes, but 8 were planned"));
        writer.append("a", &[0; 4]).unwrap();
        writer.append("b", &[0; 3]).unwrap();
        let error = message(writer.finish());
        assert!(error.contains("1 of 2 planned tensors are missing, the first \"b\" with 3 of 4 bytes"), "{error}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);

        let mut writer = GgufWriter::create(&path, &Metadata::new(), vec![plan("a", &[1], 0, 4)]).unwrap();
        writer.write("a", &[0; 4]).unwrap();
        assert!(message(writer.write("a", &[0; 4])).contains("after the last"));
    }

    #[test]
    fn plans_that_no_file_can_hold_are_refused() {
        let none = Metadata::new();
        let twice = vec![("k".to_owned(), Value::U8(1)), ("k".to_owned(), Value::U8(1))];
        assert!(message(file_size(&twice, &[])).contains("there twice"));
        assert!(file_size(&none, &[plan(&"n".repeat(63), &[1], 0, 4)]).is_ok());
        assert!(message(file_size(&none, &[plan(&"n".repeat(64), &[1], 0, 4)])).contains("64 bytes"));
        let twice = [plan("a", &[1], 0, 4), plan("a", &[1], 0, 4)];
        assert!(message(file_size(&none, &twice)).contains("planned twice"));
        assert!(message(file_size(&none, &[plan("a", &[1; 5], 0, 4)])).contains("5 dimensions"));
        assert!(message(file_size(&none, &[plan("a", &[1], 0, u64::MAX)])).contains("2^63"));
        assert!(message(file_size(&none, &[plan("a", &[1], 0, 1 << 63)])).contains("2^63"));
        let odd = vec![("general.alignment".to_owned(), Value::U32(24))];
        assert!(message(file_size(&odd, &[])).contains("power of two"));
    }

    #[test]
    fn a_file_of_metadata_alone_is_fine() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vocab.gguf");
        GgufWriter::create(&path, &Metadata::new(), vec![]).unwrap().finish().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 32);
        assert!(Gguf::open(&path, layout).unwrap().tensors.is_empty());
    }
}
