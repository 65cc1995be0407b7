//! What is told and kept of a long evaluation while it runs.

use super::output::{self, Progress};
use super::scoring::Setting;
use crate::error::{Error, Kind, Result};
use crate::eval::divergence::Reference;
use crate::eval::perplexity::Parts;
use crate::eval::statistics::Scored;
use crate::eval::unfinished::Unfinished;
use crate::pipeline::journal::Settings;
use crate::pipeline::loaded_model::LoadedModel;
use crate::pipeline::report::Observer;
use crate::pipeline::settings::{hash, of_files};
use std::path::{Path, PathBuf};

/// Where an evaluation keeps what it has finished, and whether it goes on with what is there.
#[derive(Debug, clap::Args)]
pub struct Keeping {
    /// Go on with the same evaluation where it was stopped
    #[arg(long)]
    resume: bool,

    /// The folder for what is finished of a long evaluation [default: that of the model]
    #[arg(long, value_name = "FOLDER")]
    work_dir: Option<PathBuf>,
}

impl Keeping {
    /// Whether an earlier evaluation is to be continued.
    pub fn resumes(&self) -> bool {
        self.resume
    }

    /// `MODEL.eval-unfinished`, beside it; for a model on the hub, in the current folder. `command`: `eval` or `compare`.
    fn path(&self, model: &Path, command: &str) -> PathBuf {
        let whole = if model.exists() { model.canonicalize().ok() } else { None };
        let mut name = match &whole {
            Some(path) => path.file_name().unwrap_or_default().to_os_string(),
            None => model.to_string_lossy().replace(['/', '@'], "--").into(),
        };
        name.push(format!(".{command}-unfinished"));
        match (&self.work_dir, whole) {
            (Some(folder), _) => folder.join(name),
            (None, Some(path)) => path.with_file_name(name),
            (None, None) => name.into(),
        }
    }

    /// What is finished of the evaluation of a model, or of the comparison of several, over these windows.
    ///
    /// # Errors
    /// With `--resume`: what is there belongs to another evaluation, is damaged, or in use.
    pub fn open(
        &self,
        models: &[(&Path, &LoadedModel)],
        (from, reference): (Option<&Path>, Option<&Reference>),
        setting: &Setting,
        windows: &[Vec<u32>],
    ) -> Result<Option<Unfinished>> {
        let original = match (reference, from) {
            (Some(Reference::Model(original)), _) => of_files(&original.weights().files())?,
            (Some(Reference::Saved(_)), Some(path)) => of_files(&[path.to_path_buf()])?,
            _ => "none".into(),
        };
        let contents = models.iter().map(|(_, loaded)| of_files(&loaded.weights().files()));
        let settings = Settings::from(
            [
                ("llmq --version", env!("CARGO_PKG_VERSION").into()),
                ("the instruction set of the machine", format!("{:?}", llmq_kernels::Isa::best())),
                ("--device", models[0].1.compute.identity()),
                ("the set of files", contents.collect::<Result<Vec<_>>>()?.join(" ")),
                ("the reference", original),
                ("--protocol", setting.protocol.name().into()),
                ("-c", setting.context.to_string()),
                ("the text", hash(&windows)),
            ]
            .map(|(name, value): (&str, String)| (name.to_owned(), value)),
        );
        let path = self.path(models[0].0, if models.len() > 1 { "compare" } else { "eval" });
        let left = path.exists();
        match Unfinished::open(&path, &settings, self.resume) {
            Err(error) if self.resume => Err(error),
            Err(error) => {
                output::note(&format!("note: what is finished of this evaluation is not kept: {error}"));
                Ok(None)
            }
            Ok(unfinished) => {
                if self.resume && unfinished.kept() == 0 {
                    let path = path.display();
                    output::note(&format!(
                        "note: there is nothing to go on with in {path}; it starts from the beginning"
                    ));
                }
                if left && !self.resume {
                    output::note(&format!(
                        "note: {} holds an unfinished evaluation, which this one takes the place of; stop it and add --resume to go \
                         on with that one",
                        path.display()
                    ));
                }
                Ok(Some(unfinished))
            }
        }
    }
}

/// Shows how an evaluation stands, and keeps its parts.
pub struct EvalProgress<'a> {
    progress: &'a Progress,
    unfinished: Option<Unfinished>,
    /// How many files have a reference; zero if there is none.
    files: usize,
    tokens: usize,
    /// Sums over the tokens so far, of each file: of losses, the reference's losses, and divergences.
    sums: Vec<[f64; 3]>,
}

impl<'a> EvalProgress<'a> {
    /// Of this many files with a reference, or of one without, then `files` is zero.
    pub fn new(progress: &'a Progress, files: usize, unfinished: Option<Unfinished>) -> EvalProgress<'a> {
        if let Some(kept) = unfinished.as_ref().map(Unfinished::kept).filter(|&kept| kept > 0) {
            progress.resumed_parts(kept);
        }
        EvalProgress { progress, unfinished, files, tokens: 0, sums: vec![[0.0; 3]; files.max(1)] }
    }

    fn take(&mut self, numbers: &[f64]) {
        let per_file = numbers.len() / self.sums.len();
        for (sums, numbers) in self.sums.iter_mut().zip(numbers.chunks(per_file.max(1))) {
            if self.files == 0 {
                sums[0] += numbers.iter().sum::<f64>();
            } else {
                let tokens = numbers.as_chunks().0.iter().map(Scored::from_numbers);
                tokens.for_each(|t| {
                    [t.loss, t.reference, t.divergence].iter().zip(&mut *sums).for_each(|(x, sum)| *sum += x)
                });
            }
        }
        self.tokens += per_file / if self.files == 0 { 1 } else { 4 };
        self.progress.say(&self.text());
    }

    /// How it stands, in a few words.
    fn text(&self) -> String {
        let mean = |sum: f64| sum / self.tokens as f64;
        let all = |of: &dyn Fn(&[f64; 3]) -> String| self.sums.iter().map(of).collect::<Vec<_>>().join(" ");
        let own = format!("perplexity {}", all(&|sums| format!("{:.4}", mean(sums[0]).exp())));
        if self.files == 0 {
            return own;
        }
        let (original, far) = (mean(self.sums[0][1]).exp(), all(&|sums| format!("{:.6}", mean(sums[2]))));
        format!("{own}, original {original:.4}, KL divergence {far}")
    }

    /// The evaluation is done.
    pub fn finish(self) {
        self.unfinished.into_iter().for_each(Unfinished::finish);
    }

    /// What is said of an evaluation that has failed.
    pub fn give_up(self, error: Error) -> Error {
        match self.unfinished {
            Some(kept) if kept.kept() > 0 && error.kind() == Kind::Interrupted => {
                let path = kept.path().display();
                error.hint(format!(
                    "what is finished is in {path}: repeat the command with --resume to go on, or rm {path}"
                ))
            }
            _ => error,
        }
    }
}

impl Parts for EvalProgress<'_> {
    fn known(&mut self, part: usize) -> Option<Vec<f64>> {
        let numbers = self.unfinished.as_mut()?.known(part)?;
        self.progress.restart();
        self.take(&numbers);
        Some(numbers)
    }

    fn add(&mut self, part: usize, parts: usize, numbers: &[f64]) -> Result<()> {
        self.take(numbers);
        if let Some(unfinished) = &mut self.unfinished
            && let Err(error) = unfinished.add(part, parts, numbers)
        {
            // The evaluation itself does not need it.
            let why = error.chain().join(": ");
            self.progress.note(&format!("{why}; --work-dir FOLDER would keep it elsewhere"));
            self.unfinished = None;
        }
        Ok(())
    }
}
