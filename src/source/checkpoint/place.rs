//! Mapped files, and where in them a tensor's numbers are.

use super::bytes;
use crate::error::{Context, Error, Result};
use crate::source::{lfs, pages};
use llmq_kernels::convert;
use llmq_kernels::memory::unwritten;
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::tensor::Dtype;
use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A mapped file of tensors.
pub struct Shard {
    /// The file.
    pub path: PathBuf,
    /// Its bytes.
    pub map: Mmap,
}

/// Where a tensor is.
#[derive(Debug, Clone)]
pub struct Place {
    /// Which of the files it is in.
    pub shard: usize,
    /// The type of its numbers.
    pub dtype: Dtype,
    /// Its shape, slowest dimension first.
    pub shape: Vec<usize>,
    /// From its first number to its last.
    pub bytes: Range<usize>,
    /// How many numbers further the next step along each dimension is, where they do not lie in the order of the shape.
    pub strides: Option<Vec<usize>>,
}

impl Shard {
    /// Maps a file.
    ///
    /// # Errors
    /// It cannot be opened, and `hint` says what else to try then; it is a Git LFS pointer.
    pub fn open(path: &Path, hint: String) -> Result<Shard> {
        let what = || format!("cannot open {}", path.display());
        let file = File::open(path).map_err(|cause| Error::new(what()).because(cause).hint(hint))?;
        // SAFETY: the mapping is read-only. As with every mapped file, another process that truncates the checkpoint while
        // it is being read ends this one with SIGBUS; reading it whole is no alternative at these sizes.
        let map = unsafe { Mmap::map(&file) }.context(|| format!("cannot map {}", path.display()))?;
        lfs::refuse_pointer(path, &map)?;
        Ok(Shard { path: path.into(), map })
    }

    /// Tells the system that these bytes will be read soon.
    pub fn expect(&self, bytes: Range<usize>) {
        pages::expect(&self.map, bytes);
    }

    /// Gives pages back, see [`pages::release`].
    pub fn release(&self, bytes: Range<usize>) {
        pages::release(&self.map, bytes);
    }
}

impl Place {
    /// How many numbers it has.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes per number.
    pub fn width(&self) -> usize {
        self.dtype.bitsize() / 8
    }

    /// The file that it is in.
    pub fn path<'a>(&self, shards: &'a [Shard]) -> &'a Path {
        &shards[self.shard].path
    }

    /// The bytes of some rows (steps along the first dimension), in the order of the shape, and where in the file they are.
    pub fn rows<'a>(&self, shards: &'a [Shard], rows: Range<usize>) -> (Cow<'a, [u8]>, Range<usize>) {
        let map = &shards[self.shard].map;
        let Some(strides) = &self.strides else {
            let row = self.bytes.len() / self.shape.first().copied().unwrap_or(1).max(1);
            let part = self.bytes.start + rows.start * row..self.bytes.start + rows.end * row;
            return (Cow::Borrowed(&map[part.clone()]), part);
        };
        let width = self.width();
        let shape: Vec<usize> = [rows.len()].into_iter().chain(self.shape[1..].iter().copied()).collect();
        let count: usize = shape.iter().product();
        let first = self.bytes.start + rows.start * strides[0] * width;
        let mut out = Vec::with_capacity(count * width);
        let (mut index, mut at, mut last) = (vec![0; shape.len()], first, first);
        for _ in 0..count {
            out.extend_from_slice(&map[at..at + width]);
            last = last.max(at + width);
            for (d, i) in index.iter_mut().enumerate().rev() {
                *i += 1;
                at += strides[d] * width;
                if *i < shape[d] {
                    break;
                }
                at -= strides[d] * width * shape[d];
                *i = 0;
            }
        }
        (Cow::Owned(out), first..last)
    }

    /// Some rows in `f32`, for a type that [`is_float`] knows, or for bytes. Their pages are given back.
    pub fn numbers(&self, shards: &[Shard], rows: Range<usize>) -> Vec<f32> {
        let (bytes, part) = self.rows(shards, rows);
        let numbers = match (self.dtype, bytes::values(self.dtype)) {
            (_, Some(values)) => converted(&bytes, 1, |bytes, out| {
                out.iter_mut().zip(bytes).for_each(|(x, &byte)| *x = values[usize::from(byte)]);
            }),
            (Dtype::F64, _) => converted(&bytes, 8, |bytes, out| {
                out.iter_mut().zip(bytes.as_chunks().0).for_each(|(x, bytes)| *x = f64::from_le_bytes(*bytes) as f32);
            }),
            (Dtype::F32, _) => converted(&bytes, 4, convert::f32_to_f32),
            (Dtype::F16, _) => converted(&bytes, 2, convert::f16_to_f32),
            _ => converted(&bytes, 2, convert::bf16_to_f32),
        };
        shards[self.shard].release(part);
        numbers
    }
}

/// Whether numbers of this type are read as they are.
pub fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16) || is_fp8(dtype)
}

/// Whether numbers of this type are FP8, which may have scales beside them.
pub fn is_fp8(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2)
}

/// Converts on all threads. `width`: bytes per number.
fn converted(bytes: &[u8], width: usize, convert: impl Fn(&[u8], &mut [f32]) + Sync) -> Vec<f32> {
    const PART: usize = 1 << 16;
    let mut out = unwritten(bytes.len() / width);
    out.par_chunks_mut(PART).zip(bytes.par_chunks(PART * width)).for_each(|(out, bytes)| convert(bytes, out));
    out
}
