//! Products on a GPU: weights stay there as long as there is room, sums until they are asked for; activations come and go.

use super::{Compute, Cpu, Key, Numbers, OuterSum, Part, Weights};
use crate::error::{Error, Result};
use llmq_gpu::{Adapter, Gpu, Matrix, Sum, kernels};
use llmq_kernels::gemm::Precision;
use llmq_kernels::memory::triangle;
use rayon::prelude::*;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Multiplications from which on a product is worth the way to the device and back; fewer are done where they are. By shapes alone, so that
/// results never depend on timing.
const WORTH: usize = 1 << 21;

/// Numbers of a sum, likewise.
const WORTH_SUM: usize = 1 << 14;

/// Rows of weights that one thread decodes at once.
const ROWS: usize = 64;

/// A GPU.
#[derive(Debug)]
pub struct OnGpu {
    gpu: Arc<Gpu>,
    identity: String,
    /// Bytes that it may hold, beside which nothing is kept.
    room: u64,
    kept: Mutex<Kept>,
}

/// Matrices that are there, with the moment when each was last used.
#[derive(Default)]
struct Kept {
    matrices: HashMap<Key, (u64, Arc<Matrix>)>,
    now: u64,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} matrices", self.matrices.len())
    }
}

/// What decides about the last bits of a device's results: its model, its driver, and the kernels.
pub fn identity(adapter: &Adapter) -> String {
    let mut hasher = blake3::Hasher::new();
    for (.., text) in kernels::sources() {
        hasher.update(text.as_bytes());
    }
    let kernels = &hasher.finalize().to_hex()[..8];
    format!("{}, {} {}, kernels {kernels}", adapter.name, adapter.interface, adapter.driver)
}

/// A device's error as one of the program's: one that may pass, so that what is finished is kept.
fn failed(error: llmq_gpu::Error) -> Error {
    let hint = match &error {
        llmq_gpu::Error::Lost(_) => "the system or the driver has reset it: look at their logs, or use --device cpu",
        llmq_gpu::Error::Memory { .. } => "close what else uses the GPU, raise --vram, or use --device cpu",
        llmq_gpu::Error::Refused(_) | llmq_gpu::Error::Wrong(_) => "update its driver, or use --device cpu",
    };
    Error::new("the GPU failed").because(io::Error::other(error)).hint(hint)
}

impl OnGpu {
    /// An open device of an adapter. `room`: bytes that it may hold.
    pub fn new(gpu: Arc<Gpu>, adapter: &Adapter, room: u64) -> OnGpu {
        OnGpu { gpu, identity: identity(adapter), room, kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops what was used longest ago until there is room for so many bytes, or nothing is left to drop.
    fn make_room(&self, bytes: u64) {
        let mut kept = self.kept();
        while self.gpu.taken() + bytes > self.room {
            let oldest = kept.matrices.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| *key);
            let Some(oldest) = oldest else { return };
            kept.matrices.remove(&oldest);
        }
    }

    /// The weights, brought there if they are not there yet.
    fn matrix(&self, w: &Weights<'_>) -> Result<Arc<Matrix>> {
        {
            let mut kept = self.kept();
            kept.now += 1;
            let now = kept.now;
            if let Some((used, matrix)) =
                kept.matrices.get_mut(&w.key).filter(|(_, m)| m.shape() == (w.rows, w.columns))
            {
                *used = now;
                return Ok(matrix.clone());
            }
        }
        // Nothing is locked while other threads decode.
        let mut decoded = Vec::new();
        let numbers = match w.numbers {
            Numbers::Held(numbers) => numbers,
            Numbers::OnTheFly(decode) => {
                decoded.resize(w.rows * w.columns, 0.0);
                let pieces = decoded.par_chunks_mut((ROWS * w.columns).max(1)).enumerate();
                let first_error = pieces
                    .map(|(i, piece)| decode(i * ROWS..i * ROWS + piece.len() / w.columns, piece))
                    .find_map_first(Result::err);
                first_error.map_or(Ok(()), Err)?;
                &decoded
            }
        };
        // Twice: while they are converted, they are there as bfloat16, too.
        self.make_room(2 * Matrix::bytes(w.rows, w.columns));
        let matrix = Arc::new(self.gpu.matrix(numbers, w.rows, w.columns).map_err(failed)?);
        let mut kept = self.kept();
        let now = kept.now;
        kept.matrices.insert(w.key, (now, matrix.clone()));
        Ok(matrix)
    }
}

impl Compute for OnGpu {
    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn linear(&self, precision: Precision, x: &[f32], w: &Weights<'_>, y: &mut [f32]) -> Result<()> {
        if y.len().saturating_mul(w.columns) < WORTH {
            return Cpu.linear(precision, x, w, y);
        }
        let matrix = self.matrix(w)?;
        self.make_room(4 * (x.len() + 2 * y.len()) as u64);
        self.gpu.linear(x, &matrix, false, y).map_err(failed)
    }

    fn sum(&self, precision: Precision, rows: usize, columns: usize, part: Part) -> Result<Box<dyn OuterSum>> {
        if rows * columns < WORTH_SUM {
            return Cpu.sum(precision, rows, columns, part);
        }
        self.make_room(Matrix::bytes(rows, columns));
        let wanted = if part == Part::Whole { llmq_gpu::Part::Whole } else { llmq_gpu::Part::Lower };
        let sum = Sum::new(&self.gpu, rows, columns, wanted).map_err(failed)?;
        Ok(Box::new(OnDevice { sum, rows, columns, part }))
    }
}

/// A sum that stays there.
struct OnDevice {
    sum: Sum,
    rows: usize,
    columns: usize,
    part: Part,
}

impl OuterSum for OnDevice {
    fn add(&mut self, a: &[f32], b: Option<&[f32]>) -> Result<()> {
        self.sum.add(a, b).map_err(failed)
    }

    fn diagonal(&self) -> Result<Vec<f32>> {
        self.sum.diagonal().map_err(failed)
    }

    fn finish(self: Box<Self>) -> Result<Vec<f32>> {
        let n = self.columns;
        let mut all = if self.part == Part::Triangle { triangle(n) } else { vec![0.0; self.rows * n] }; // [rows, columns]
        let read = self.sum.read(|row, found| {
            let there = if self.part == Part::Whole { n } else { row + 1 };
            all[row * n..row * n + there].copy_from_slice(&found[..there]);
        });
        read.map_err(failed)?;
        Ok(all)
    }
}
