//! The grammar of GGUF's header: numbers, strings, values and tensor descriptions.

use std::collections::HashSet;

use super::{MAX_DIMS, TensorInfo, TypeLayout};
use crate::error::{Context, Error, Result};
use crate::source::value::{ARRAY_TYPE, Array, Metadata, Value, for_each_type, quoted};

/// The longest key or tensor name that is read, in bytes; the specification's limit for keys.
const MAX_NAME: usize = 65535;

/// An error in the file itself.
pub fn damaged(what: impl Into<String>) -> Error {
    Error::new(what).hint("the file is incomplete or damaged: download or make it again")
}

/// A key or a name, as errors show it.
pub fn shown(name: &str) -> String {
    quoted(name, 80)
}

/// A place in the bytes of a file.
pub struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// An element type of GGUF's metadata.
pub trait Element: Sized {
    /// The fewest bytes that one takes; what a count is checked against before memory is asked for.
    const MIN_BYTES: usize;
    /// Reads one.
    fn parse(parser: &mut Parser) -> Result<Self>;
}

macro_rules! number {
    ($($type:ty)*) => {
        $(impl Element for $type {
            const MIN_BYTES: usize = size_of::<$type>();
            fn parse(parser: &mut Parser) -> Result<Self> {
                let mut raw = [0; size_of::<$type>()];
                raw.copy_from_slice(parser.take(size_of::<$type>() as u64)?);
                Ok(<$type>::from_le_bytes(raw))
            }
        })*
    };
}
number!(u8 i8 u16 i16 u32 i32 u64 i64 f32 f64);

impl Element for bool {
    const MIN_BYTES: usize = 1;
    fn parse(parser: &mut Parser) -> Result<Self> {
        // As ggml: anything but zero is true.
        Ok(parser.read::<u8>()? != 0)
    }
}

impl Element for String {
    const MIN_BYTES: usize = 8;
    fn parse(parser: &mut Parser) -> Result<Self> {
        Ok(parser.text()?.to_owned())
    }
}

impl<'a> Parser<'a> {
    /// The start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub fn at(&self) -> usize {
        self.at
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: u64) -> Result<&'a [u8]> {
        if n > self.left() as u64 {
            let Self { at, bytes } = self;
            return Err(damaged(format!(
                "{n} bytes should follow byte {at}, but the file ends at byte {}",
                bytes.len()
            )));
        }
        let start = self.at;
        self.at += n as usize;
        Ok(&self.bytes[start..self.at])
    }

    /// The next element.
    pub fn read<T: Element>(&mut self) -> Result<T> {
        T::parse(self)
    }

    /// `count` as a usize, once it is known that so many things of at least `min_bytes` fit what is left of the file.
    fn count(&self, count: u64, min_bytes: usize, what: &str) -> Result<usize> {
        let most = self.left() / min_bytes;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(damaged(format!(
                "{count} {what} should follow byte {}, but what is left of the file holds {most} at most",
                self.at
            ))),
        }
    }

    fn array<T: Element>(&mut self) -> Result<Vec<T>> {
        let count = self.read()?;
        let count = self.count(count, T::MIN_BYTES, "array elements")?;
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.read()?);
        }
        Ok(items)
    }

    fn value(&mut self) -> Result<Value> {
        macro_rules! read {
            ($($id:literal $variant:ident $type:ident $name:literal,)*) => {
                match self.read::<u32>()? {
                    $($id => Ok(Value::$variant(self.read()?)),)*
                    ARRAY_TYPE => match self.read::<u32>()? {
                        $($id => Ok(Value::Array(Array::$variant(self.array()?))),)*
                        ARRAY_TYPE => Err(Error::new("it is an array of arrays, which llmq does not read")),
                        id => Err(damaged(format!("its elements have the unknown type {id}"))),
                    },
                    id => Err(damaged(format!("its value has the unknown type {id}"))),
                }
            };
        }
        for_each_type!(read)
    }

    fn text(&mut self) -> Result<&'a str> {
        let length: u64 = self.read()?;
        let start = self.at;
        let text = str::from_utf8(self.take(length)?);
        text.map_err(|cause| damaged(format!("the string at byte {start} is not UTF-8")).because(cause))
    }

    fn name(&mut self) -> Result<&'a str> {
        let start = self.at;
        let name = self.text()?;
        if name.len() > MAX_NAME {
            let length = name.len();
            return Err(damaged(format!("the name at byte {start} has {length} bytes; {MAX_NAME} are allowed")));
        }
        Ok(name)
    }

    /// The next `count` keys and values.
    pub fn metadata(&mut self, count: u64) -> Result<Metadata> {
        // An entry has at least an empty key (8 bytes), a type (4) and one byte of value.
        let count = self.count(count, 13, "metadata entries")?;
        let mut metadata = Metadata::new();
        let mut seen = HashSet::new();
        for i in 1..=count {
            let key = self.name().context(|| format!("key of metadata entry {i} of {count}"))?;
            let value = self.value().context(|| format!("metadata key {}", shown(key)))?;
            if !seen.insert(key) {
                return Err(damaged(format!("metadata key {} is there twice", shown(key))));
            }
            metadata.push((key.to_owned(), value));
        }
        Ok(metadata)
    }

    /// The next `count` descriptions of tensors. Where their data lies is still to be checked.
    pub fn tensors(&mut self, count: u64, layout: &dyn Fn(u32) -> Option<TypeLayout>) -> Result<Vec<TensorInfo>> {
        // A description has at least an empty name (8 bytes), the number of dimensions (4), a type (4), an offset (8).
        let count = self.count(count, 24, "tensors")?;
        let mut tensors = Vec::new();
        let mut seen = HashSet::new();
        for i in 1..=count {
            let name = self.name().context(|| format!("name of tensor {i} of {count}"))?;
            if !seen.insert(name) {
                return Err(damaged(format!("tensor {} is there twice", shown(name))));
            }
            tensors.push(self.tensor(name, layout).context(|| format!("tensor {}", shown(name)))?);
        }
        Ok(tensors)
    }

    fn tensor(&mut self, name: &str, layout: &dyn Fn(u32) -> Option<TypeLayout>) -> Result<TensorInfo> {
        let count: u32 = self.read()?;
        if count as usize > MAX_DIMS {
            return Err(damaged(format!("it has {count} dimensions; {MAX_DIMS} are the most")));
        }
        let dims: Vec<u64> = (0..count).map(|_| self.read()).collect::<Result<_>>()?;
        let type_id: u32 = self.read()?;
        let offset: u64 = self.read()?;
        let TypeLayout { name: type_name, block, bytes } = layout(type_id).ok_or_else(|| {
            Error::new(format!("its type {type_id} is not known")).hint("a newer llmq may read it, or use another type")
        })?;
        let row = dims.first().copied().unwrap_or(1);
        if row % block != 0 {
            return Err(damaged(format!("its rows of {row} are no whole number of {type_name} blocks of {block}")));
        }
        // ggml counts elements in signed 64 bits.
        let elements = dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
        let elements = elements.filter(|&n| n <= i64::MAX as u64 && dims.iter().all(|&dim| dim <= i64::MAX as u64));
        let bytes = elements.and_then(|n| (n / block).checked_mul(bytes));
        let bytes = bytes.ok_or_else(|| damaged(format!("its shape {dims:?} has too many elements")))?;
        Ok(TensorInfo { name: name.to_owned(), dims, type_id, offset, bytes, shard: 0 })
    }
}
