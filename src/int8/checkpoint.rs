//! INT8 from a checkpoint folder alone, without a graph: linear layers in compressed-tensors' layout for transformers and vLLM,
//! or, for BERT and its kin, a GGUF for llama.cpp.

pub mod bert;
mod companions;
pub mod folder;
pub mod gguf;
pub mod layers;
pub mod rows;
pub mod scheme;

use crate::error::{Context, Error, Result};
use crate::source::checkpoint::Checkpoint;
use crate::source::config::Config;
use layers::Role;
use std::path::Path;

/// One tensor of a checkpoint, and what became of it.
#[derive(Debug, Clone)]
pub struct TensorReport {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its shape, slowest dimension first.
    pub shape: Vec<usize>,
    /// What it is.
    pub role: Role,
    /// Its type in the checkpoint.
    pub from: String,
    /// Its type in the result.
    pub to: String,
    /// Its bytes in the checkpoint.
    pub before: u64,
    /// Its bytes in the result, scales included.
    pub after: u64,
    /// `Σ(w − ŵ)²/Σw²`, where it was rounded.
    pub error: Option<f64>,
}

/// What was made of a checkpoint.
#[derive(Debug)]
pub struct Summary {
    /// Bytes of all files that hold weights.
    pub bytes: u64,
    /// Every tensor, by name or in file order.
    pub tensors: Vec<TensorReport>,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl Summary {
    /// The bytes of all tensors of a kind, before and after.
    pub fn sizes(&self, of: impl Fn(Role) -> bool) -> (u64, u64) {
        let own = self.tensors.iter().filter(|tensor| of(tensor.role));
        own.fold((0, 0), |(before, after), tensor| (before + tensor.before, after + tensor.after))
    }

    /// The tensor with the largest error; none if nothing was rounded.
    pub fn worst(&self) -> Option<(&TensorReport, f64)> {
        let rounded = self.tensors.iter().filter_map(|tensor| Some((tensor, tensor.error?)));
        rounded.max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// The mean error of the tensors that were rounded; none if there are none.
    pub fn mean_error(&self) -> Option<f64> {
        let errors: Vec<f64> = self.tensors.iter().filter_map(|tensor| tensor.error).collect();
        (!errors.is_empty()).then(|| errors.iter().sum::<f64>() / errors.len() as f64)
    }
}

/// A checkpoint folder and its configuration.
///
/// # Errors
/// The folder holds no checkpoint, or one that is quantized already.
fn open(folder: &Path) -> Result<(Config, Checkpoint)> {
    let config = Config::open(&folder.join(companions::CONFIG))
        .context(|| format!("{} is not a checkpoint folder", folder.display()))?;
    let checkpoint = Checkpoint::open(folder)?;
    match checkpoint.quantization() {
        None => Ok((config, checkpoint)),
        Some(method) => {
            Err(Error::new(format!("{}: the checkpoint is quantized already, with {method}", folder.display()))
                .hint("start from the original checkpoint"))
        }
    }
}
