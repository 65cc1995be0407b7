//! What will be done, from headers alone.

use super::report::TensorReport;
use crate::error::{Context, Result};
use crate::format::Type;
use crate::format::recipe::Recipe;
use crate::model::{Model, TensorSpec, gguf_keys};
use crate::source::checkpoint::Checkpoint;
use crate::source::config::Config;
use crate::source::tokenizer::Tokenizer;
use crate::source::value::{Metadata, Value};
use crate::source::vocabulary::Vocabulary;
use crate::writer::gguf::{TensorPlan, file_size};
use std::collections::HashMap;
use std::path::Path;

/// A file that can be made: every tensor was found, has the right shape, and has its type.
pub struct Plan {
    /// Sizes and variations.
    pub model: Model,
    /// Where the weights are.
    pub source: Checkpoint,
    /// The checkpoint's tokenizer.
    pub tokenizer: Tokenizer,
    /// Every key of the file.
    pub metadata: Metadata,
    /// The model's tensors, in file order.
    pub tensors: Vec<Planned>,
    /// The name of the mix of types.
    pub mix: &'static str,
    /// Tensors that are no weights; they follow the embedding.
    pub extra: Vec<Extra>,
}

/// One tensor and its type.
#[derive(Debug)]
pub struct Planned {
    /// What it is.
    pub spec: TensorSpec,
    /// Its type in the checkpoint.
    pub from: String,
    /// Its type in the file.
    pub kind: Type,
    /// The type that it should have had.
    pub instead_of: Option<Type>,
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

    /// The report about it.
    pub fn report(&self, error: Option<f64>) -> TensorReport {
        TensorReport {
            name: self.spec.gguf.clone(),
            shape: self.spec.shape.clone(),
            from: self.from.clone(),
            kind: self.kind,
            instead_of: self.instead_of,
            bytes: self.bytes(),
            error,
        }
    }
}

impl Plan {
    /// Reads a checkpoint folder's headers and gives every tensor its type. `pre`: the pre-tokenizer, where its regular
    /// expression is not known.
    ///
    /// # Errors
    /// A configuration, tokenizer or tensor that is missing, damaged or unsupported; an override that matches nothing.
    pub fn new(folder: &Path, mut recipe: Recipe, pre: Option<&str>) -> Result<Plan> {
        let config = Config::open(&folder.join("config.json"))
            .context(|| format!("{} is not a checkpoint folder", folder.display()))?;
        let model = Model::read(&config)?;
        let source = Checkpoint::open(folder)?;
        let vocabulary = Vocabulary::from_files(folder, model.vocab, config.json(), pre)?;
        let dtypes: HashMap<&str, String> = source.tensors().map(|t| (t.name, t.dtype)).collect();
        let mut tensors = Vec::new();
        for spec in model.tensors() {
            source.check(&spec.source, &spec.shape)?;
            let from = dtypes.get(spec.source.as_str()).cloned().unwrap_or_default();
            let choice = recipe.choose(&spec, &model);
            tensors.push(Planned { spec, from, kind: choice.kind, instead_of: choice.instead_of });
        }
        recipe.check_all_used()?;
        let extra: Vec<Extra> = model
            .rope
            .factors
            .iter()
            .map(|factors| Extra { gguf: gguf_keys::ROPE_FACTORS.into(), numbers: factors.clone() })
            .collect();
        let elements = tensors.iter().map(|t| t.spec.elements() as u64).sum();
        let mut metadata = general(folder, &model, elements);
        metadata.extend(gguf_keys::metadata(&model));
        metadata.push(("general.file_type".into(), Value::U32(recipe.mix().file_type)));
        metadata.push(("general.quantization_version".into(), Value::U32(2)));
        metadata.extend(vocabulary.to_metadata());
        let tokenizer = Tokenizer::open(folder, &vocabulary)?;
        Ok(Plan { model, source, tokenizer, metadata, tensors, mix: recipe.mix().name, extra })
    }

    /// The entries of the file's header, in file order.
    pub fn headers(&self) -> Vec<TensorPlan> {
        let mut headers: Vec<TensorPlan> = self.tensors.iter().map(Planned::header).collect();
        let extra = self.extra.iter().map(|extra| TensorPlan {
            name: extra.gguf.clone(),
            dims: vec![extra.numbers.len() as u64],
            type_id: 0,
            bytes: 4 * extra.numbers.len() as u64,
        });
        headers.splice(1..1, extra);
        headers
    }

    /// Bytes of the file.
    ///
    /// # Errors
    /// Sizes that make no file.
    pub fn file_size(&self) -> Result<u64> {
        file_size(&self.metadata, &self.headers())
    }

    /// Numbers in all tensors.
    pub fn elements(&self) -> u64 {
        self.tensors.iter().map(|t| t.spec.elements() as u64).sum()
    }

    /// The embedding.
    pub fn embedding(&self) -> &Planned {
        &self.tensors[0]
    }

    /// The tensors of block `i`.
    pub fn block(&self, i: usize) -> &[Planned] {
        let each = (self.tensors.len() - 1 - self.model.tail().len()) / self.model.blocks;
        &self.tensors[1 + i * each..1 + (i + 1) * each]
    }

    /// The tensors behind the blocks.
    pub fn tail(&self) -> &[Planned] {
        &self.tensors[self.tensors.len() - self.model.tail().len()..]
    }

    /// Whether a layer of a block is rounded to codes, so that a method has something to do.
    pub fn has_grids(&self) -> bool {
        self.tensors.iter().any(|t| t.spec.site().is_some() && t.kind.is_quantized())
    }
}

fn general(folder: &Path, model: &Model, elements: u64) -> Metadata {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.into());
    let name = folder.file_name().map_or("model".into(), |n| n.to_string_lossy().into_owned());
    let text = |s: &str| Value::Str(s.into());
    vec![
        ("general.architecture".into(), text(model.architecture.gguf())),
        ("general.type".into(), text("model")),
        ("general.name".into(), Value::Str(name)),
        ("general.size_label".into(), Value::Str(size_label(elements))),
    ]
}

/// A number of weights as people write it: `22M`, `1.2B`, `70B`.
pub fn size_label(elements: u64) -> String {
    let n = elements as f64;
    let (scaled, unit) = match n {
        n if n >= 1e12 => (n / 1e12, "T"),
        n if n >= 1e9 => (n / 1e9, "B"),
        n if n >= 1e6 => (n / 1e6, "M"),
        n => (n / 1e3, "K"),
    };
    if scaled < 9.95 { format!("{scaled:.1}{unit}") } else { format!("{scaled:.0}{unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_labelled_as_people_write_them() {
        for (n, label) in [(20_715_008, "21M"), (1_235_814_400, "1.2B"), (70_553_706_496, "71B"), (512, "0.5K")] {
            assert_eq!(size_label(n), label);
        }
    }
}
