//! What `llmq eval` and `llmq compare` share: the text and its windows, and what a file weighs.

use super::device::OnDevice;
use super::hub::{self, Download};
use super::output;
use crate::calib::sets::{self, Set};
use crate::calib::text::utf8;
use crate::error::{Context, Error, Result};
use crate::eval::divergence::Reference;
use crate::eval::histogram::Bin;
use crate::eval::perplexity::{self, Protocol};
use crate::eval::saved::SavedLogits;
use crate::pipeline::forecast::device_memory::device_memory;
use crate::pipeline::loaded_model::LoadedModel;
use crate::pipeline::weights::Weights;
use crate::source::hub::Need;
use clap::ValueEnum;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A text that no calibration sees, written for llmq.
const SAMPLE: &str = include_str!("../../eval/heldout.txt");

/// Which tokens are scored.
#[derive(Debug, clap::Args)]
pub struct Text {
    /// The text, in UTF-8 [default: a sample that is built in]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// A set that is fetched instead: the test split of wikitext2, or 1100 validation texts of c4, as the papers use them
    #[arg(long, value_name = "SET", conflicts_with = "file")]
    data: Option<String>,

    /// Tokens per window [default: 512 for llama.cpp; 2048, or the model's context if shorter, for hf]
    #[arg(short = 'c', long = "ctx-size", value_name = "N")]
    pub context: Option<usize>,

    /// How many windows at most
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,

    /// llama.cpp: windows of 512, second half scored, the text of special tokens read as plain text, as llama-perplexity does [default];
    /// hf: windows of 2048, every target scored, the text of special tokens read as those tokens, as the GPTQ and AWQ papers do
    #[arg(long)]
    protocol: Option<Choice>,
}

/// [`Protocol`] by its name.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Choice {
    #[value(name = "llama.cpp")]
    LlamaCpp,
    Hf,
}

/// How it is measured.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Which tokens of a window are scored.
    pub protocol: Protocol,
    /// Tokens per window.
    pub context: usize,
}

impl Text {
    /// The protocol that was asked for.
    pub fn protocol(&self) -> Protocol {
        match self.protocol {
            None | Some(Choice::LlamaCpp) => Protocol::LlamaCpp,
            Some(Choice::Hf) => Protocol::Hf,
        }
    }

    /// The setting, and the windows, each still with the first token that the text gives it.
    ///
    /// # Errors
    /// Windows or a text that are too short, or a text that cannot be read.
    pub fn cut(&self, loaded: &LoadedModel) -> Result<(Setting, Vec<Vec<u32>>)> {
        let protocol = self.protocol();
        let context = match self.context {
            Some(n) if n < 4 => {
                return Err(Error::usage(format!("windows of {n} tokens are too short: -c 4 is the least")));
            }
            Some(n) => n,
            None => protocol.usual_context().min(loaded.model.context),
        };
        if context > loaded.model.context {
            let own = loaded.model.context;
            output::note(&format!("note: windows of {context} tokens are longer than the model's context of {own}"));
        }
        self.check_chunks()?;
        let text = match (&self.file, &self.data) {
            (Some(path), _) => read(path)?,
            (None, Some(name)) => set(name)?.evaluation(&Download::default())?,
            (None, None) => SAMPLE.into(),
        };
        let windows = perplexity::cut(loaded, &text, protocol, context, self.chunks)?;
        Ok((Setting { protocol, context }, windows))
    }

    /// The same where saved logits bring their windows along.
    ///
    /// # Errors
    /// An option asks for another text or other windows.
    pub fn saved(&self, path: &Path, saved: &SavedLogits) -> Result<(Setting, Vec<Vec<u32>>)> {
        self.check_chunks()?;
        let (shown, context) = (path.display(), saved.context());
        let other = match self {
            Text { file: Some(_), .. } => Some("-f"),
            Text { data: Some(_), .. } => Some("--data"),
            Text { context: Some(n), .. } if *n != context => Some("-c"),
            Text { protocol: Some(Choice::Hf), .. } => Some("--protocol hf"),
            _ => None,
        };
        if let Some(option) = other {
            let what = format!("{shown} brings its own text in windows of {context} tokens, half of them scored");
            return Err(Error::usage(what).hint(format!("leave {option} out, or give the model itself to --reference")));
        }
        let mut windows = saved.windows().to_vec();
        windows.truncate(self.chunks.unwrap_or(usize::MAX));
        Ok((Setting { protocol: Protocol::LlamaCpp, context }, windows))
    }

    /// What the text is called: its file or its set; none if it is the built-in sample.
    pub fn name(&self) -> Option<String> {
        self.file.as_ref().map(|path| path.display().to_string()).or_else(|| self.data.clone())
    }

    /// Finds out before anything is fetched or opened whether what is asked for makes sense.
    ///
    /// # Errors
    /// A set that is not known.
    pub fn check(&self) -> Result<()> {
        self.data.as_deref().map(set).transpose().map(drop)
    }

    /// # Errors
    /// No window at all is asked for.
    fn check_chunks(&self) -> Result<()> {
        if self.chunks == Some(0) { Err(Error::usage("--chunks must be at least 1")) } else { Ok(()) }
    }
}

/// Opens what files are compared with: a model, or saved logits.
///
/// # Errors
/// As [`LoadedModel::open`] and [`SavedLogits::open`].
pub fn reference(path: &Path, pre: Option<&str>) -> Result<Reference> {
    if SavedLogits::is_one(path) {
        return Ok(Reference::Saved(SavedLogits::open(path)?));
    }
    Ok(Reference::Model(Box::new(open(path, pre)?)))
}

/// Opens a model, from the hub if that is where it is.
///
/// # Errors
/// As [`hub::find`] and [`LoadedModel::open`].
pub fn open(model: &Path, pre: Option<&str>) -> Result<LoadedModel> {
    LoadedModel::open(hub::find(model, Need::Weights)?.path(), pre)
}

/// Has the linear layers of some models, and of what they are compared with, computed on one device.
///
/// # Errors
/// The GPU that was asked for cannot be had.
pub fn compute_on<'a>(
    on: &OnDevice,
    models: impl IntoIterator<Item = &'a mut LoadedModel>,
    reference: Option<&'a mut Reference>,
) -> Result<()> {
    let mut all: Vec<&mut LoadedModel> = models.into_iter().collect();
    if let Some(Reference::Model(original)) = reference {
        all.push(original);
    }
    let need = all.iter().map(|loaded| device_memory(&loaded.model, false, false)).max();
    let compute = on.choose(need.unwrap_or_default())?;
    all.into_iter().for_each(|loaded| loaded.compute = compute.clone());
    Ok(())
}

fn set(name: &str) -> Result<Set> {
    sets::by_name(name).ok_or_else(|| {
        let known: Vec<&str> = sets::SETS.iter().map(|(name, _)| *name).collect();
        Error::usage(format!("--data: there is no set '{name}'"))
            .hint(format!("there are {}; a file goes with -f", known.join(" and ")))
    })
}

fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).context(|| format!("cannot read {}", path.display()))?;
    utf8(path, bytes)
}

/// Bins as `[low, high, tokens]`.
pub fn histogram(bins: &[Bin]) -> Value {
    bins.iter().map(|bin| json!([bin.low, bin.high, bin.tokens])).collect()
}

/// What a model weighs.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Bytes of its files.
    pub bytes: u64,
    /// Bits per weight, over all tensors.
    pub bits: f64,
    /// `general.file_type` of a GGUF.
    pub file_type: Option<u32>,
}

impl Size {
    /// Of a model's files.
    pub fn of(loaded: &LoadedModel) -> Size {
        let weights = loaded.weights();
        let bytes = weights.files().iter().filter_map(|path| path.metadata().ok()).map(|file| file.len()).sum();
        let sizes: Vec<(u64, u64)> = match weights {
            Weights::Gguf(file) => file.tensors.iter().map(|t| (t.bytes, t.elements())).collect(),
            Weights::Checkpoint(checkpoint) => {
                let elements = |shape: &[usize]| shape.iter().map(|&n| n as u64).product();
                checkpoint.tensors().map(|t| (t.bytes as u64, elements(t.shape))).collect()
            }
            // Nothing that is judged is rotated on the way.
            Weights::Rotated(_) => Vec::new(),
        };
        let (stored, elements) = sizes.iter().fold((0, 0), |(b, e), (bytes, elements)| (b + bytes, e + elements));
        let file_type = weights.gguf().and_then(|file| file.get("general.file_type")?.as_u64());
        Size {
            bytes,
            bits: 8.0 * stored as f64 / (elements as f64).max(1.0),
            file_type: file_type.and_then(|n| u32::try_from(n).ok()),
        }
    }
}
