//! What is judged: a checkpoint folder or a GGUF, read as `f32` one tensor at a time.

use crate::error::{Context, Error, Result};
use crate::format;
use crate::model::{Model, TensorSpec, gguf_keys};
use crate::source::checkpoint::Checkpoint;
use crate::source::config::Config;
use crate::source::gguf::{Gguf, TensorInfo, TypeLayout};
use crate::source::tokenizer::Tokenizer;
use crate::source::vocabulary::Vocabulary;
use llmq_kernels::elementwise::{Pairing, first_non_finite};
use std::ops::Range;
use std::path::Path;

/// A model with weights and a tokenizer.
pub struct Subject {
    /// Sizes and variations.
    pub model: Model,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    weights: Weights,
}

enum Weights {
    Checkpoint(Checkpoint),
    Gguf(Gguf),
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

impl Subject {
    /// Opens a folder or a `.gguf`. `pre`: the pre-tokenizer, where theirs is not known.
    ///
    /// # Errors
    /// Anything that is missing, damaged or unsupported; every tensor's presence and shape is checked.
    pub fn open(path: &Path, pre: Option<&str>) -> Result<Subject> {
        let subject = if path.is_dir() {
            let config = Config::open(&path.join("config.json"))
                .context(|| format!("{} is not a checkpoint folder", path.display()))?;
            let model = Model::read(&config)?;
            let vocabulary = Vocabulary::from_files(path, model.vocab, config.json(), pre)?;
            let tokenizer = Tokenizer::open(path, &vocabulary)?;
            Subject { model, tokenizer, weights: Weights::Checkpoint(Checkpoint::open(path)?) }
        } else {
            let file = open_gguf(path)?;
            let factors = match file.tensor(gguf_keys::ROPE_FACTORS) {
                Some(info) => Some(decode(&file, info, 0..1)?),
                None => None,
            };
            let model = gguf_keys::read(&file, factors)?;
            let of = || format!("the tokenizer of {}", path.display());
            let mut vocabulary = Vocabulary::from_metadata(&file.metadata).context(of)?;
            if let Some(name) = pre {
                vocabulary.pre = name.to_owned();
            }
            if vocabulary.tokens.len() > model.vocab {
                let (tokens, rows) = (vocabulary.tokens.len(), model.vocab);
                let what = format!("it has {tokens} tokens, but 'token_embd.weight' has only {rows} rows");
                return Err(Error::new(what)).context(of);
            }
            let tokenizer = Tokenizer::from_vocabulary(&vocabulary).context(of)?;
            Subject { model, tokenizer, weights: Weights::Gguf(file) }
        };
        for spec in subject.model.tensors() {
            subject.check(&spec)?;
        }
        Ok(subject)
    }

    /// The order in which the rows of queries and keys come.
    pub fn pairing(&self) -> Pairing {
        match (&self.weights, self.model.architecture.query_rows()) {
            (Weights::Gguf(_), crate::model::QueryRows::Interleaved) => Pairing::Neighbours,
            _ => Pairing::Halves,
        }
    }

    fn check(&self, spec: &TensorSpec) -> Result<()> {
        match &self.weights {
            Weights::Checkpoint(checkpoint) => checkpoint.check(&spec.source, &spec.shape),
            Weights::Gguf(file) => {
                let info = info(file, &spec.gguf)?;
                let shape: Vec<usize> = info.dims.iter().rev().map(|&n| n as usize).collect();
                if shape == spec.shape {
                    Ok(())
                } else {
                    let path = file.path.display();
                    let (name, wanted) = (&spec.gguf, &spec.shape);
                    Err(Error::new(format!(
                        "{path}: tensor '{name}' has shape {shape:?}, but the metadata makes it {wanted:?}"
                    )))
                }
            }
        }
    }

    /// Rows of a matrix, decoded. The whole of a vector counts as its rows.
    ///
    /// # Errors
    /// The tensor holds NaN or infinity.
    pub fn rows(&self, spec: &TensorSpec, rows: Range<usize>) -> Result<Vec<f32>> {
        match &self.weights {
            Weights::Checkpoint(checkpoint) => checkpoint.read_rows(&spec.source, &spec.shape, rows),
            Weights::Gguf(file) => {
                let info = info(file, &spec.gguf)?;
                let rows = if spec.shape.len() < 2 { 0..1 } else { rows };
                let numbers = decode(file, info, rows)?;
                match first_non_finite(&numbers) {
                    None => Ok(numbers),
                    Some(at) => {
                        let path = file.path.display();
                        Err(Error::new(format!("{path}: tensor '{}' holds {} at element {at}", spec.gguf, numbers[at])))
                    }
                }
            }
        }
    }

    /// A whole tensor, decoded.
    ///
    /// # Errors
    /// As [`Subject::rows`].
    pub fn read(&self, spec: &TensorSpec) -> Result<Vec<f32>> {
        self.rows(spec, 0..spec.shape[0])
    }
}

fn info<'a>(file: &'a Gguf, name: &str) -> Result<&'a TensorInfo> {
    file.tensor(name).ok_or_else(|| Error::new(format!("{}: there is no tensor '{name}'", file.path.display())))
}

/// Rows of a matrix, in the order of the file; a vector is one row.
fn decode(file: &Gguf, info: &TensorInfo, rows: Range<usize>) -> Result<Vec<f32>> {
    let kind = format::by_id(info.type_id).ok_or_else(|| Error::new(format!("unknown type {}", info.type_id)))?;
    let columns = info.dims.first().copied().unwrap_or(1);
    let row = kind.size(columns) as usize;
    let data = file.data(info);
    let numbers = kind.decode_all(&data[rows.start * row..rows.end * row]);
    file.release(info);
    Ok(numbers)
}
