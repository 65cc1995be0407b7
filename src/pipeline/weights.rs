//! A model's numbers, wherever they are: in a folder of safetensors or in a GGUF.

use super::packed;
use super::rotated::Rotated;
use crate::error::{Error, Result};
use crate::format::{self, Type};
use crate::model::TensorSpec;
use crate::source::checkpoint::Checkpoint;
use crate::source::gguf::{Gguf, TensorInfo, TypeLayout};
use llmq_kernels::elementwise::first_non_finite;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Mapped tensors, read as `f32` one part at a time.
pub enum Weights {
    /// A folder.
    Checkpoint(Checkpoint),
    /// A file, or several shards.
    Gguf(Gguf),
    /// A folder, rotated while it is read.
    Rotated(Box<Rotated>),
}

/// Opens a GGUF, knowing the types of [`format::TYPES`].
///
/// # Errors
/// A damaged file, or one with a type that is not known.
pub fn open_gguf(path: &Path) -> Result<Gguf> {
    Gguf::open(path, |id| {
        format::by_id(id).map(|t| TypeLayout { name: t.name(), block: t.width() as u64, bytes: t.bytes() as u64 })
    })
}

impl Weights {
    /// The files that are mapped.
    pub fn files(&self) -> Vec<PathBuf> {
        match self {
            Weights::Checkpoint(checkpoint) => checkpoint.files().into_iter().map(Path::to_path_buf).collect(),
            Weights::Gguf(file) => file.files().map(Path::to_path_buf).collect(),
            Weights::Rotated(rotated) => rotated.source().files(),
        }
    }

    /// The GGUF, if it is one.
    pub fn gguf(&self) -> Option<&Gguf> {
        match self {
            Weights::Gguf(file) => Some(file),
            Weights::Checkpoint(_) | Weights::Rotated(_) => None,
        }
    }

    /// Whether the numbers are those of the files, so that they may lie on a grid already.
    pub fn is_original(&self) -> bool {
        !matches!(self, Weights::Rotated(_))
    }

    /// Whether a part of a tensor's rows can be read without the others. [`Weights::rows`] gives it in any case.
    pub fn has_rows_of_their_own(&self, spec: &TensorSpec) -> bool {
        match self {
            Weights::Checkpoint(_) => spec.has_rows_of_their_own(),
            Weights::Gguf(_) => true,
            Weights::Rotated(rotated) => rotated.has_rows_of_their_own(spec),
        }
    }

    /// Checks that a tensor is there, with the shape that the model gives it and a type that can be read.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self, spec: &TensorSpec) -> Result<()> {
        match self {
            Weights::Checkpoint(checkpoint) => spec.check(checkpoint),
            Weights::Rotated(rotated) => rotated.check(spec),
            Weights::Gguf(file) => {
                let info = info(file, &spec.gguf)?;
                let shape: Vec<usize> = info.dims.iter().rev().map(|&n| n as usize).collect();
                // Programs leave out the slowest dimensions where they are 1.
                let plain = |shape: &[usize]| shape.iter().copied().skip_while(|&n| n == 1).collect::<Vec<_>>();
                if plain(&shape) == plain(&spec.shape) {
                    return Ok(());
                }
                let (path, name, wanted) = (file.path.display(), &spec.gguf, &spec.shape);
                Err(Error::new(format!(
                    "{path}: tensor '{name}' has shape {shape:?}, but the metadata makes it {wanted:?}"
                )))
            }
        }
    }

    /// The type of a tensor in a GGUF; none in a checkpoint.
    pub fn gguf_type(&self, spec: &TensorSpec) -> Option<Type> {
        format::by_id(self.gguf()?.tensor(&spec.gguf)?.type_id)
    }

    /// What a tensor that is quantized in the source already is called there: the type of a GGUF, or the codes of others.
    pub fn quantized(&self, spec: &TensorSpec) -> Option<&str> {
        match self {
            Weights::Gguf(_) => self.gguf_type(spec).filter(|kind| kind.is_quantized()).map(|kind| kind.name()),
            Weights::Checkpoint(checkpoint) => checkpoint.quantized(&spec.source),
            Weights::Rotated(rotated) => rotated.source().quantized(spec),
        }
    }

    /// The bytes of rows of a tensor that stay what they are in the source: those of a GGUF, or codes of others in the blocks of
    /// `kind`, which holds them exactly.
    ///
    /// # Errors
    /// There are no such bytes.
    pub fn kept_rows(&self, spec: &TensorSpec, kind: Type, rows: Range<usize>) -> Result<Vec<u8>> {
        let gone = || Error::new(format!("the bytes of '{}' cannot be taken over", spec.gguf));
        match self {
            Weights::Gguf(file) => {
                let info = info(file, &spec.gguf)?;
                Ok(file.data(info)[byte_range(info, rows)].to_vec())
            }
            Weights::Checkpoint(checkpoint) => {
                let weight = checkpoint.grouped(&spec.source).ok_or_else(gone)?;
                packed::blocks(&weight, &spec.source, kind, rows)
            }
            Weights::Rotated(_) => Err(gone()),
        }
    }

    /// Tells the system that a tensor will be read soon, so that the disk is at work while something else is computed.
    pub fn expect(&self, spec: &TensorSpec) {
        match self {
            Weights::Checkpoint(checkpoint) => spec.expect(checkpoint),
            Weights::Gguf(file) => file.tensor(&spec.gguf).into_iter().for_each(|info| file.expect(info)),
            Weights::Rotated(rotated) => rotated.expect(spec),
        }
    }

    /// Rows of a tensor, decoded: steps along all dimensions but the last. The whole of a vector counts as one row.
    ///
    /// # Errors
    /// The tensor is missing, or holds NaN or infinity.
    pub fn rows(&self, spec: &TensorSpec, rows: Range<usize>) -> Result<Vec<f32>> {
        match self {
            Weights::Checkpoint(checkpoint) => spec.read_rows(checkpoint, rows),
            Weights::Rotated(rotated) => rotated.rows(spec, rows),
            Weights::Gguf(file) => {
                let info = info(file, &spec.gguf)?;
                let first = rows.start * spec.columns();
                let numbers = decode(file, info, rows)?;
                match first_non_finite(&numbers) {
                    None => Ok(numbers),
                    Some(at) => Err(non_finite(file, &spec.gguf, numbers[at], first + at)),
                }
            }
        }
    }

    /// A whole tensor, decoded.
    ///
    /// # Errors
    /// As [`Weights::rows`].
    pub fn read(&self, spec: &TensorSpec) -> Result<Vec<f32>> {
        self.rows(spec, 0..spec.rows())
    }
}

/// A vector that a GGUF may hold beside its weights, decoded.
///
/// # Errors
/// A type that cannot be decoded.
pub fn vector(file: &Gguf, name: &str) -> Result<Option<Vec<f32>>> {
    file.tensor(name).map(|info| decode(file, info, 0..1)).transpose()
}

/// What is said of NaN or infinity at an element of a tensor.
pub(super) fn non_finite(file: &Gguf, name: &str, number: f32, element: usize) -> Error {
    Error::new(format!("{}: tensor '{name}' holds {number} at element {element}", file.path.display()))
        .hint("the file is damaged: compare its checksum, or make it again")
}

pub(super) fn info<'a>(file: &'a Gguf, name: &str) -> Result<&'a TensorInfo> {
    file.tensor(name).ok_or_else(|| Error::new(format!("{}: there is no tensor '{name}'", file.path.display())))
}

/// Where rows are in a tensor's data.
pub(super) fn byte_range(info: &TensorInfo, rows: Range<usize>) -> Range<usize> {
    let all = info.dims.iter().skip(1).product::<u64>().max(1) as usize;
    let row = info.bytes as usize / all;
    rows.start * row..rows.end * row
}

/// Rows of a tensor, in the order of the file.
fn decode(file: &Gguf, info: &TensorInfo, rows: Range<usize>) -> Result<Vec<f32>> {
    let kind = format::by_id(info.type_id).ok_or_else(|| Error::new(format!("unknown type {}", info.type_id)))?;
    let bytes = byte_range(info, rows);
    let numbers = kind.decode_all(&file.data(info)[bytes.clone()]);
    file.release(info, bytes);
    Ok(numbers)
}
