//! Tasks with right answers: which files hold them, and how many a model solves.

use crate::calib::text;
use crate::cli::output::{Progress, line};
use crate::error::{Context, Error, Result};
use crate::eval::divergence::Reference;
use crate::eval::tasks::{Accuracy, Task, hellaswag, last_word, multiple_choice, solve, some, winogrande};
use crate::pipeline::loaded_model::LoadedModel;
use crate::source::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct Tasks {
    /// Tasks of HellaSwag in llama.cpp's format: six lines each
    #[arg(long, value_name = "FILE")]
    hellaswag: Option<PathBuf>,

    /// Tasks of Winogrande in llama.cpp's format: a line of CSV each
    #[arg(long, value_name = "FILE")]
    winogrande: Option<PathBuf>,

    /// Multiple choice (ARC, MMLU, TruthfulQA) in llama.cpp's binary format
    #[arg(long, value_name = "FILE")]
    multiple_choice: Option<PathBuf>,

    /// The last words of passages, as in LAMBADA: a {"text": …} a line
    #[arg(long, value_name = "FILE")]
    last_word: Option<PathBuf>,

    /// So many of the tasks of each file, always the same ones [default: all]
    #[arg(long, value_name = "N")]
    tasks: Option<usize>,
}

/// What a model and its reference reached on one file.
pub struct Reached {
    name: &'static str,
    own: Accuracy,
    original: Option<Accuracy>,
}

impl Tasks {
    /// Whether any tasks are there to be solved.
    pub fn any(&self) -> bool {
        [&self.hellaswag, &self.winogrande, &self.multiple_choice, &self.last_word].iter().any(|file| file.is_some())
    }

    /// Lets a model solve them all, and its reference too, if that is a model.
    ///
    /// # Errors
    /// A file that cannot be read or holds something else, or tasks that do not fit the model.
    pub fn run(
        &self,
        loaded: &LoadedModel,
        reference: Option<&Reference>,
        progress: &Progress,
    ) -> Result<Vec<Reached>> {
        if self.tasks == Some(0) {
            return Err(Error::usage("--tasks must be at least 1"));
        }
        type Read = fn(&Path, Option<usize>, &Tokenizer) -> Result<Vec<Task>>;
        let kinds: [(&str, &Option<PathBuf>, Read); 4] = [
            ("HellaSwag", &self.hellaswag, |path, n, tokenizer| {
                let questions = some(hellaswag::read(&plain(path)?)?, n);
                questions.iter().map(|question| hellaswag::task(question, tokenizer)).collect()
            }),
            ("Winogrande", &self.winogrande, |path, n, tokenizer| {
                let questions = some(winogrande::read(&plain(path)?)?, n);
                questions.iter().map(|question| winogrande::task(question, tokenizer)).collect()
            }),
            ("multiple choice", &self.multiple_choice, |path, n, tokenizer| {
                let bytes = std::fs::read(path).context(|| format!("cannot read {}", path.display()))?;
                let questions = some(multiple_choice::read(&bytes)?, n);
                questions.iter().map(|question| multiple_choice::task(question, tokenizer)).collect()
            }),
            ("last word", &self.last_word, |path, n, tokenizer| {
                let questions = some(last_word::read(&text::read(path, None)?)?, n);
                questions.iter().map(|question| last_word::task(question, tokenizer)).collect()
            }),
        ];
        let show = |done: usize, total: usize| progress.set(done as u64, total as u64);
        let mut reached = Vec::new();
        for (name, path, read) in kinds {
            let Some(path) = path else { continue };
            let solved = |loaded: &LoadedModel| {
                let tasks = read(path, self.tasks, &loaded.tokenizer)?;
                solve(loaded, &tasks, &show)
            };
            let of = || format!("cannot solve the tasks of {}", path.display());
            let own = solved(loaded).context(of)?;
            let original = match reference {
                Some(Reference::Model(reference)) => Some(solved(reference).context(of)?),
                _ => None,
            };
            reached.push(Reached { name, own, original });
        }
        Ok(reached)
    }
}

fn plain(path: &Path) -> Result<String> {
    text::utf8(path, std::fs::read(path).context(|| format!("cannot read {}", path.display()))?)
}

/// For people.
pub fn show(reached: &[Reached]) {
    for Reached { name, own, original } in reached {
        let percent = |a: &Accuracy| format!("{:.2}% ± {:.2}%", 100.0 * a.value(), 100.0 * a.error());
        let (low, high) = own.interval();
        let chance = own.chance.map_or(String::new(), |p| format!(", by chance {:.2}%", 100.0 * p));
        let perplexity = own.perplexity.map_or(String::new(), |p| format!(", perplexity of the words {p:.4}"));
        let of = original.as_ref().map_or(String::new(), |original| format!(", of the original {}", percent(original)));
        line(format!(
            "{name:15} {}{of} ({} of {} tasks, 95% interval {:.2}% to {:.2}%{chance}{perplexity})",
            percent(own),
            own.right,
            own.tasks,
            100.0 * low,
            100.0 * high
        ));
    }
}

/// For programs: an object by the names of the tasks.
pub fn json(reached: &[Reached]) -> Value {
    let one = |a: &Accuracy| {
        json!({
            "accuracy": a.value(),
            "error": a.error(),
            "interval": [a.interval().0, a.interval().1],
            "right": a.right,
            "tasks": a.tasks,
            "chance": a.chance,
            "perplexity": a.perplexity,
        })
    };
    let entry = |r: &Reached| {
        let mut own = one(&r.own);
        own["reference"] = r.original.as_ref().map(one).into();
        (r.name.to_lowercase().replace(' ', "_"), own)
    };
    Value::Object(reached.iter().map(entry).collect::<Map<_, _>>())
}
