//! What exporters write in many ways, in the one way that the recipes know. Each step leaves what the graph computes as it was.
//!
//! ```text
//! inputs -> raise -> microsoft -> weights -> gemm -> (batch_norm)
//! ```

pub mod batch_norm;
pub mod gemm;
mod inputs;
pub mod microsoft;
mod raise;
mod weights;

use super::onnx::file::opset;
use super::onnx::proto::ModelProto;
use crate::error::Result;

pub use raise::OLDEST;

/// What was changed that a user should know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prepared {
    /// The opset that the graph had, where it has a newer one now.
    pub raised_from: Option<i64>,
    /// Weights that were inputs of the graph as well, so that a caller could have replaced them.
    pub fixed: usize,
}

impl Prepared {
    /// Each change in a line.
    pub fn notes(&self) -> Vec<String> {
        let raised = self.raised_from.map(|old| format!("converted from opset {old} to {}", raise::NEW));
        let fixed = (self.fixed > 0)
            .then(|| format!("{} initializers were inputs of the graph as well; they are constants now", self.fixed));
        raised.into_iter().chain(fixed).collect()
    }
}

/// Prepares a graph of any opset for dynamic quantization.
///
/// # Errors
/// The graph cannot run, or a tensor is damaged.
pub fn prepare(model: &mut ModelProto) -> Result<Prepared> {
    let fixed = inputs::fix_initializers(model);
    microsoft::expand(model, opset(model).unwrap_or_default())?;
    weights::fold(model)?;
    gemm::plain(model)?;
    Ok(Prepared { raised_from: None, fixed })
}

/// The same for static quantization, which needs a newer opset.
///
/// # Errors
/// The graph cannot run, or a tensor is damaged.
pub fn prepare_static(model: &mut ModelProto) -> Result<Prepared> {
    let raised_from = raise::raise(model);
    Ok(Prepared { raised_from, ..prepare(model)? })
}
