//! `--report` and `--model-card`: what is published with a file.

use super::output::{self, Progress};
use super::scoring::{Setting, Size};
use super::shell;
use crate::error::{Error, Result};
use crate::eval::divergence::Reference;
use crate::eval::layers::Layer;
use crate::eval::report::{self, Facts, Hash, Judged, Maker, Original, Provenance, Report, Usage};
use crate::eval::speed::Speed;
use crate::eval::statistics::Statistics;
use crate::eval::tensors::{self, TensorError};
use crate::eval::verdict::Verdict;
use crate::pipeline::loaded_model::LoadedModel;
use crate::source::hub::name_of;
use crate::writer::atomic::{AtomicFile, check_destination};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct ReportFiles {
    /// Write a report: one page of HTML that needs no network, with the verdict, plots, settings, hashes, and how to get the
    /// same numbers
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,

    /// Write a model card for the Hugging Face Hub
    #[arg(long, value_name = "README.md")]
    model_card: Option<PathBuf>,
}

/// One file that was judged.
pub struct Entry<'a> {
    /// Where it is, as it was named.
    pub path: &'a Path,
    /// The file.
    pub loaded: &'a LoadedModel,
    /// Whether others made it.
    pub peer: bool,
    /// What was measured.
    pub statistics: &'a Statistics,
    /// What that means.
    pub verdict: &'a Verdict,
    /// The errors of its weights.
    pub tensors: Vec<TensorError>,
    /// How fast it is here, if that was measured.
    pub speed: Option<Speed>,
}

/// What all files were judged by.
pub struct Basis<'a> {
    /// The reference as it was named.
    pub path: &'a Path,
    /// The reference.
    pub reference: &'a Reference,
    /// The setting.
    pub setting: Setting,
    /// What the text is called; none if it is the built-in sample.
    pub text: Option<String>,
    /// SHA-256 of the scored windows.
    pub tokens: &'a str,
    /// How fast the reference is here, if that was measured.
    pub speed: Option<Speed>,
}

impl ReportFiles {
    /// Whether anything is to be written.
    pub fn any(&self) -> bool {
        self.report.is_some() || self.model_card.is_some()
    }

    /// Refuses, before anything is measured, what could not be written afterwards.
    ///
    /// # Errors
    /// A destination that is there already, an input, or cannot be written.
    pub fn check(&self, inputs: &[&Path], force: bool) -> Result<()> {
        if let (Some(a), Some(b)) = (&self.report, &self.model_card)
            && a == b
        {
            return Err(Error::usage(format!("--report and --model-card both name {}", a.display()))
                .hint("give each a file of its own"));
        }
        self.report.iter().chain(&self.model_card).try_for_each(|path| check_destination(path, inputs, force))
    }

    /// The errors of a file's weights, if they are to be shown.
    ///
    /// # Errors
    /// As [`tensors::errors`].
    pub fn weights(
        &self,
        loaded: &LoadedModel,
        reference: &Reference,
        progress: &Progress,
    ) -> Result<Vec<TensorError>> {
        match reference {
            Reference::Model(original) if self.report.is_some() => {
                tensors::errors(loaded, original, &|done, total| progress.set(done, total))
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Writes what was asked for. `files`: the best one first; `lines`: what `--json` prints.
    ///
    /// # Errors
    /// A file cannot be hashed, or the output cannot be written.
    pub fn write(
        &self,
        basis: &Basis,
        files: Vec<Entry>,
        layers: Option<Vec<Layer>>,
        lines: Vec<Value>,
        progress: &Progress,
    ) -> Result<()> {
        if !self.any() {
            return Ok(());
        }
        let mut hashing = Hashing::new(basis, &files, progress);
        let digests = |hashing: &mut Hashing, paths: &[PathBuf]| {
            paths.iter().map(|path| hashing.hash(path)).collect::<Result<Vec<Hash>>>()
        };
        let original = original(basis, files[0].statistics, digests(&mut hashing, &files_of(basis))?);
        let mut commands: Vec<String> = Vec::new();
        let mut judged = Vec::new();
        for file in files {
            let made = Provenance::of(file.loaded);
            commands.extend(made_by(&made, basis.path, file.path));
            let size = Size::of(file.loaded);
            judged.push(Judged {
                name: shown(file.path),
                label: String::new(),
                peer: file.peer,
                size: report::Size { bytes: size.bytes, bits: size.bits },
                made,
                usage: usage(file.loaded),
                statistics: file.statistics.clone(),
                verdict: *file.verdict,
                tensors: file.tensors,
                digests: digests(&mut hashing, &file.loaded.weights().files())?,
                speed: file.speed,
            });
        }
        commands.push(shell::own_command());
        report::label(&mut judged);
        let setting = report::Setting {
            protocol: basis.setting.protocol.name(),
            context: basis.setting.context,
            text: basis.text.clone().map_or("a sample that is built in".into(), |text| shown(Path::new(&text))),
            tokens: basis.tokens.into(),
        };
        let report = Report { original, files: judged, setting, layers, commands, lines };
        progress.finish();
        for (path, render) in [(&self.report, report::page as fn(&Report) -> String), (&self.model_card, report::card)]
        {
            let Some(path) = path else { continue };
            let text = render(&report);
            let mut file = AtomicFile::create(path)?;
            file.write(text.as_bytes())?;
            file.commit()?;
            output::note(&format!("{}: {}", path.display(), output::bytes(text.len() as u64)));
        }
        Ok(())
    }
}

/// The errors of a file's weights as JSON lines.
pub fn weight_lines(path: &Path, tensors: &[TensorError]) -> Vec<Value> {
    let line = |tensor: &TensorError| {
        let TensorError { name, kind, block, part: _, error, rescaled } = tensor;
        let fields = json!({ "model": path, "tensor": name, "kind": kind, "block": block, "error": error, "rescaled": rescaled });
        output::tagged("weights", fields)
    };
    tensors.iter().map(line).collect()
}

/// Hashes files one after the other, and shows how that goes.
struct Hashing<'a> {
    progress: &'a Progress,
    done: std::cell::Cell<u64>,
    total: u64,
}

impl<'a> Hashing<'a> {
    fn new(basis: &Basis, files: &[Entry], progress: &'a Progress) -> Hashing<'a> {
        let own = files.iter().flat_map(|file| file.loaded.weights().files());
        let size = |path: PathBuf| path.metadata().map_or(0, |found| found.len());
        let total = own.chain(files_of(basis)).map(size).sum();
        Hashing { progress, done: std::cell::Cell::new(0), total }
    }

    fn hash(&mut self, path: &Path) -> Result<Hash> {
        Hash::of(path, &|n| {
            self.done.set(self.done.get() + n);
            self.progress.set(self.done.get(), self.total.max(self.done.get()));
        })
    }
}

/// The files of a reference.
fn files_of(basis: &Basis) -> Vec<PathBuf> {
    match basis.reference {
        Reference::Model(loaded) => loaded.weights().files(),
        Reference::Saved(_) => vec![basis.path.to_path_buf()],
    }
}

/// What a GGUF says about how it is run.
fn usage(loaded: &LoadedModel) -> Option<Usage> {
    let file = loaded.weights().gguf()?;
    let chat = file.get("tokenizer.chat_template").is_some();
    Some(Usage { chat, context: loaded.model.context, shards: loaded.weights().files().len() > 1 })
}

fn original(basis: &Basis, statistics: &Statistics, digests: Vec<Hash>) -> Original {
    let (size, facts) = match basis.reference {
        Reference::Model(loaded) => {
            let size = Size::of(loaded);
            // Where the files are, fetched ones included.
            let files = loaded.weights().files();
            let folder = files.first().and_then(|file| file.parent()).filter(|_| loaded.weights().gguf().is_none());
            let size = report::Size { bytes: size.bytes, bits: size.bits };
            (Some(size), Facts::of(basis.path, folder.unwrap_or(basis.path)))
        }
        Reference::Saved(_) => (None, Facts::default()),
    };
    Original {
        name: shown(basis.path),
        size,
        perplexity: statistics.reference,
        digests,
        facts,
        speed: basis.speed.clone(),
    }
}

/// A name without folders.
fn shown(path: &Path) -> String {
    let full = path.canonicalize().unwrap_or_else(|_| path.into());
    let own = || full.file_name().map(|name| name.to_string_lossy().into_owned());
    name_of(path).or_else(own).unwrap_or_else(|| path.display().to_string())
}

/// The command that made a file, as far as it says.
fn made_by(made: &Provenance, original: &Path, file: &Path) -> Option<String> {
    let options = made.key("llmq.options").filter(|text| made.maker == Maker::Llmq && shell::is_words(text))?;
    let budget = options.contains("--target-");
    let kind = made.mix.as_ref().filter(|_| !budget).map_or(String::new(), |mix| format!(" --type {mix}"));
    let (original, file) = (shell::word(original), shell::word(shown(file)));
    Some(format!("llmq quantize {original}{kind} {options} -o {file}"))
}
