//! A file for what is too much for memory, as bfloat16.

use crate::error::{Context, Error, Result};
use crate::model::ops;
use candle_core::{Device, Tensor};
use llmq_kernels::convert::{bf16_to_f32, f32_to_bf16};
use llmq_kernels::memory::unwritten;
use rayon::prelude::*;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes of a number in the file: it holds bfloat16. Its rounding averages out in the statistics: with single precision the KL
/// divergence of the README's checkpoint at Q4_K_M is 0.000888, with this 0.000878.
pub(super) const WIDTH: usize = 2;

/// A file that is gone with the run.
pub(super) struct Scratch {
    pub path: PathBuf,
    file: File,
    /// Of each batch.
    pub hashes: Vec<Option<blake3::Hash>>,
}

impl Scratch {
    /// Opens the file of so many batches, or makes it.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn open(path: &Path, batches: usize) -> Result<Scratch> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|cause| {
            Error::new(failed("keep", path)).hint("choose a folder that can be written with --work-dir").because(cause)
        })?;
        Ok(Scratch { path: path.to_owned(), file, hashes: vec![None; batches] })
    }

    /// Finds out now whether the disk has room for so many bytes.
    ///
    /// # Errors
    /// It has not.
    pub fn reserve(&self, bytes: u64) -> Result<()> {
        crate::writer::atomic::reserve(&self.file, bytes).map_err(|cause| self.refused(cause, bytes))
    }

    fn refused(&self, cause: std::io::Error, bytes: u64) -> Error {
        Error::new(failed("keep", &self.path))
            .hint(format!(
                "it needs {bytes} bytes: free some space, choose another folder with --work-dir, or lower --samples or --seq-len"
            ))
            .because(cause)
    }

    /// So many bytes from `offset` on.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn read(&self, offset: u64, bytes: usize) -> Result<Vec<u8>> {
        let mut bytes = unwritten(bytes);
        let mut file = &self.file;
        let read = file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut bytes));
        read.context(|| failed("read", &self.path))?;
        Ok(bytes)
    }

    /// Has the disk hold all of it, under its name.
    ///
    /// # Errors
    /// The disk refuses, or the file has vanished.
    pub fn save(&self) -> Result<()> {
        self.file.sync_data().and_then(|()| fs::metadata(&self.path)).map(|_| ()).map_err(|cause| {
            let hint = "if its folder has vanished, start over with another one for --work-dir";
            Error::new(failed("save", &self.path)).hint(hint).because(cause)
        })
    }

    /// Puts bytes at `offset`.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut file = &self.file;
        let written = file.seek(SeekFrom::Start(offset)).and_then(|_| file.write_all(bytes));
        written.map_err(|cause| self.refused(cause, bytes.len() as u64))
    }
}

/// What tells that bytes are still what they were.
pub(super) fn hash(bytes: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update_rayon(bytes).finalize()
}

/// Rounds numbers to bfloat16.
pub(super) fn to_bf16(bytes: &mut [u8], x: &Tensor) -> Result<()> {
    Ok(ops::with_numbers(x, |x| {
        let pieces = bytes.par_chunks_mut(WIDTH << 16).zip(x.par_chunks(1 << 16));
        pieces.for_each(|(bytes, x)| f32_to_bf16(x, bytes));
    })?)
}

/// The first `[tokens, columns]` numbers of bfloat16.
pub(super) fn from_bf16(bytes: &[u8], tokens: usize, columns: usize) -> Result<Tensor> {
    let mut x = unwritten(tokens * columns);
    let (numbers, bytes) = (x.par_chunks_mut(1 << 16), bytes.par_chunks(WIDTH << 16));
    numbers.zip(bytes).for_each(|(x, bytes)| bf16_to_f32(&bytes[..x.len() * WIDTH], x));
    Ok(Tensor::from_vec(x, (tokens, columns), &Device::Cpu)?)
}

fn failed(verb: &str, path: &Path) -> String {
    format!("cannot {verb} the calibration's residual stream in {}", path.display())
}
