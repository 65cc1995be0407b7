//! One tensor of a file to be made.

use super::super::report::TensorReport;
use crate::format::Type;
use crate::model::TensorSpec;
use crate::writer::gguf::TensorPlan;

/// One tensor and its type.
#[derive(Debug)]
pub struct Planned {
    /// What it is.
    pub spec: TensorSpec,
    /// Its type in the source.
    pub from: String,
    /// Its type in the file.
    pub kind: Type,
    /// The type that it should have had.
    pub instead_of: Option<Type>,
    /// The type that the mix has for it, where a state asks for a better one.
    pub raised_from: Option<Type>,
    /// Its codes go into the file as they are in the source: a GGUF, or a checkpoint that was quantized before.
    pub copied: bool,
    /// The user named no type for it, and it need not stay as it is.
    pub free: bool,
}

/// What a tensor of a block is called, without its block and ending.
fn part(name: &str) -> Option<&str> {
    name.strip_prefix("blk.")?.split_once('.')?.1.strip_suffix(".weight")
}

/// What is said of the layers that get better types than the mix has for them, if there are some.
pub(super) fn states_note(tensors: &[Planned]) -> Option<String> {
    let raised: Vec<&Planned> = tensors.iter().filter(|tensor| tensor.raised_from.is_some()).collect();
    let (first, kind) = raised.first().map(|tensor| (tensor.raised_from, tensor.kind))?;
    let cost: u64 = raised.iter().filter_map(|tensor| tensor.raised_cost()).sum();
    let mut parts: Vec<&str> = raised.iter().filter_map(|tensor| part(&tensor.spec.gguf)).collect();
    parts.sort_unstable();
    parts.dedup();
    Some(format!(
        "{} of all blocks ({} small layers that steer the state of recurrent mixers, or choose what attention sees) get {} instead of {}, unless --pure or \
         --tensor-type says otherwise; that costs {cost} bytes",
        parts.join(", "),
        raised.len(),
        kind.name(),
        first.map_or("", |t| t.name()),
    ))
}

/// What is said where types of so few bits that llama.cpp refuses it are rounded without knowing which inputs count.
pub(super) fn importance_note(tensors: &[Planned], known: bool) -> Option<String> {
    const REFUSED: [&str; 6] = ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"];
    let low = |tensor: &&Planned| tensor.spec.block.is_some() && REFUSED.contains(&tensor.kind.name());
    let count = tensors.iter().filter(low).count();
    (count > 0 && !known).then(|| {
        format!(
            "{count} tensors get types of so few bits that llama.cpp refuses them without an importance matrix; give one (--imatrix, from \
             `llmq imatrix`), or a calibrated --method"
        )
    })
}

/// A vector of single-precision numbers that GGUF wants and the checkpoint does not have.
pub struct Extra {
    /// Its name.
    pub gguf: String,
    /// Its numbers.
    pub numbers: Vec<f32>,
}

impl Extra {
    /// Its bytes in the file.
    pub fn bytes(&self) -> Vec<u8> {
        self.numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
    }
}

impl Planned {
    /// Its entry in the file's header.
    pub fn header(&self) -> TensorPlan {
        TensorPlan {
            name: self.spec.gguf.clone(),
            dims: self.spec.shape.iter().rev().map(|&n| n as u64).collect(),
            type_id: self.kind.id(),
            bytes: self.bytes(),
        }
    }

    /// Its bytes in the file.
    pub fn bytes(&self) -> u64 {
        self.kind.size(self.spec.elements() as u64)
    }

    /// Bytes that a fallback costs, where the type should have been another.
    pub fn fallback_cost(&self) -> Option<i64> {
        let wanted = self.instead_of?.bits() * self.spec.elements() as f64 / 8.0;
        Some(self.bytes() as i64 - wanted.round() as i64)
    }

    /// Bytes that its better type costs, where the mix has another one.
    fn raised_cost(&self) -> Option<u64> {
        let own = self.raised_from?.bits() * self.spec.elements() as f64 / 8.0;
        Some(self.bytes().saturating_sub(own.round() as u64))
    }

    /// Whether a method chooses its codes.
    pub fn is_rounded(&self) -> bool {
        self.kind.is_quantized() && !self.copied
    }

    /// The report about it.
    pub fn report(&self, error: Option<f64>) -> TensorReport {
        TensorReport {
            name: self.spec.gguf.clone(),
            shape: self.spec.shape.clone(),
            from: self.from.clone(),
            kind: self.kind,
            instead_of: self.instead_of,
            fallback_cost: self.fallback_cost(),
            bytes: self.bytes(),
            error,
            method: None,
            vanished: 0,
        }
    }
}
