//! A model that can be run: a checkpoint folder or a GGUF, with its tokenizer.

use super::weights::{Weights, open_gguf, vector};
use crate::calib::chat::Chat;
use crate::compute::{Compute, Cpu};
use crate::error::{Context, Error, Result};
use crate::model::block::Block;
use crate::model::embedding::Embedding;
use crate::model::frame::Frame;
use crate::model::matrix::{Matrix, OnTheFly};
use crate::model::per_layer::PerLayerInputs;
use crate::model::states::States;
use crate::model::{Model, QueryRows, TensorSpec, gguf_keys};
use crate::source::checkpoint::Checkpoint;
use crate::source::config::Config;
use crate::source::gguf::Gguf;
use crate::source::tokenizer::Tokenizer;
use crate::source::vocabulary::Vocabulary;
use candle_core::{Device, Tensor};
use llmq_kernels::elementwise::Pairing;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Tokens that go through a block, or the output matrix, at once.
pub const BATCH: usize = 2048;

/// A model with weights and a tokenizer.
pub struct LoadedModel {
    /// Sizes and variations.
    pub model: Model,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Where its linear layers are computed: at first on the CPU.
    pub compute: Arc<dyn Compute>,
    /// Its chat template, if it has one that can be used.
    chat: Result<Option<Chat>>,
    weights: Weights,
}

/// Tensors that end with `.scale` and belong to the model.
const OWN_SCALES: [&str; 2] = [".ffn_gate_inp.scale", ".ffn_down_exps.scale"];

/// The model that a GGUF's metadata describes.
///
/// # Errors
/// An architecture that is not supported, or keys that are missing or make no sense.
pub fn gguf_model(file: &Gguf) -> Result<Model> {
    // Files of NVFP4 may have them; the forward pass would go wrong without a word.
    let is_scale = |name: &str| {
        name.starts_with("blk.") && name.ends_with(".scale") && !OWN_SCALES.iter().any(|own| name.ends_with(own))
    };
    if let Some(scale) = file.tensors.iter().find(|t| is_scale(&t.name)) {
        let (path, name) = (file.path.display(), &scale.name);
        return Err(Error::new(format!("{path}: weights with a scale beside them ('{name}') are not supported")));
    }
    gguf_keys::read(file, |name| vector(file, name))
}

/// The tokenizer that a GGUF's metadata describes. `pre`: the pre-tokenizer, where the file's is not known.
///
/// # Errors
/// A kind that is not supported, keys that make no sense, or more tokens than the model's embedding has rows.
pub fn gguf_tokenizer(file: &Gguf, model: &Model, pre: Option<&str>) -> Result<Tokenizer> {
    let of = || format!("the tokenizer of {}", file.path.display());
    let mut vocabulary = Vocabulary::from_metadata(&file.metadata).context(of)?;
    if let Some(name) = pre {
        vocabulary.pre = name.to_owned();
    }
    if vocabulary.tokens.len() > model.vocab {
        let (tokens, rows) = (vocabulary.tokens.len(), model.vocab);
        let what = format!("it has {tokens} tokens, but 'token_embd.weight' has only {rows} rows");
        return Err(Error::new(what)).context(of);
    }
    Tokenizer::from_vocabulary(&vocabulary).context(of)
}

/// The order in which a source holds the rows of a model's queries and keys.
pub fn pairing(weights: &Weights, model: &Model) -> Pairing {
    match (weights, model.architecture.query_rows()) {
        (Weights::Gguf(_), QueryRows::Interleaved) | (_, QueryRows::Neighbours) => Pairing::Neighbours,
        (_, QueryRows::Interleaved | QueryRows::Halves) => Pairing::Halves,
    }
}

/// What [`LoadedModel::embed`] says, for weights and the model that they are of.
///
/// # Errors
/// As [`Weights::rows`].
pub fn embed(weights: &Weights, model: &Model, windows: &[Vec<u32>], device: &Device) -> Result<Vec<States>> {
    let (embedding, hidden) = (model.embedding(), model.hidden);
    let positions = windows.first().map_or(1, Vec::len).max(1);
    let start = Embedding::new(model, positions, &|spec, rows| weights.rows(spec, rows))?;
    let tokens = windows.iter().flatten().copied();
    let per_layer = PerLayerInputs::new(model, tokens, &|spec, rows| weights.rows(spec, rows))?;
    let batches = windows.chunks((BATCH / positions).max(1)).map(|windows| {
        let mut x = Vec::with_capacity(windows.len() * positions * hidden);
        for window in windows {
            let first = x.len();
            for &token in window {
                x.extend(weights.rows(&embedding, token as usize..token as usize + 1)?);
            }
            start.apply(&mut x[first..]);
        }
        let h = Tensor::from_vec(x, (windows.len() * positions, hidden), device)?;
        let per_layer = per_layer.as_ref().map(|inputs| (inputs.clone(), Arc::new(windows.concat())));
        Ok(States { per_layer, ..start.states(h)? })
    });
    batches.collect()
}

impl LoadedModel {
    /// Opens a folder or a `.gguf`. `pre`: the pre-tokenizer, where theirs is not known.
    ///
    /// # Errors
    /// Anything that is missing, damaged or unsupported; every tensor's presence and shape is checked.
    pub fn open(path: &Path, pre: Option<&str>) -> Result<LoadedModel> {
        let loaded = if path.is_dir() {
            let config = Config::open(&path.join("config.json"))
                .context(|| format!("{} is not a checkpoint folder", path.display()))?;
            let weights = Checkpoint::open(path)?;
            let (model, _) = Model::of_checkpoint(&config, &weights, false)?;
            let vocabulary = Vocabulary::from_files(path, model.vocab, config.json(), pre)?;
            let tokenizer = Tokenizer::open(path, &vocabulary)?;
            let chat = Chat::of(&vocabulary.to_metadata(), tokenizer.bos().is_some());
            LoadedModel { model, tokenizer, compute: Arc::new(Cpu), chat, weights: Weights::Checkpoint(weights) }
        } else {
            let file = open_gguf(path)?;
            let model = gguf_model(&file)?;
            let tokenizer = gguf_tokenizer(&file, &model, pre)?;
            let chat = Chat::of(&file.metadata, tokenizer.bos().is_some());
            LoadedModel { model, tokenizer, compute: Arc::new(Cpu), chat, weights: Weights::Gguf(file) }
        };
        for spec in loaded.model.tensors() {
            loaded.weights.check(&spec)?;
        }
        Ok(loaded)
    }

    /// Its chat template, or why the one that it has cannot be used.
    pub fn chat(&self) -> &Result<Option<Chat>> {
        &self.chat
    }

    /// Where its numbers are.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The order in which the rows of queries and keys come.
    pub fn pairing(&self) -> Pairing {
        pairing(&self.weights, &self.model)
    }

    /// The embedded tokens of windows of equal length, in batches that go through a block at once:
    /// a stream of `[windows · positions, hidden]` each.
    ///
    /// # Errors
    /// As [`LoadedModel::rows`].
    pub fn embed(&self, windows: &[Vec<u32>], device: &Device) -> Result<Vec<States>> {
        embed(&self.weights, &self.model, windows, device)
    }

    /// Block `i` with what it needs: its matrices stay as they are in their file where they can, and are decoded on the way.
    ///
    /// # Errors
    /// As [`LoadedModel::rows`].
    pub fn block<'a>(&'a self, frame: &'a Frame, i: usize) -> Result<Block<'a>> {
        let mut block = Block::new(frame, i);
        for spec in self.model.block(i) {
            match self.weights.on_the_fly(&spec)? {
                Some(rows) if block.set_on_the_fly(&spec, &rows) => {}
                _ => block.set(&spec, self.read(&spec)?)?,
            }
        }
        Ok(block)
    }

    /// The output matrix, `[vocab, hidden]`, likewise.
    ///
    /// # Errors
    /// As [`LoadedModel::rows`].
    pub fn output(&self) -> Result<Matrix<'_>> {
        let spec = self.model.output();
        match self.weights.on_the_fly(&spec)? {
            Some(rows) => Ok(Matrix::OnTheFly(OnTheFly::new(rows, spec.rows(), spec.columns()))),
            None => Ok(Tensor::from_vec(self.read(&spec)?, spec.shape.as_slice(), &Device::Cpu)?.into()),
        }
    }

    /// Rows of a matrix, decoded. The whole of a vector counts as its rows.
    ///
    /// # Errors
    /// The tensor holds NaN or infinity.
    pub fn rows(&self, spec: &TensorSpec, rows: Range<usize>) -> Result<Vec<f32>> {
        self.weights.rows(spec, rows)
    }

    /// A whole tensor, decoded.
    ///
    /// # Errors
    /// As [`LoadedModel::rows`].
    pub fn read(&self, spec: &TensorSpec) -> Result<Vec<f32>> {
        self.weights.read(spec)
    }
}
