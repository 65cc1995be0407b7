//! `--calib`: files, and sets by their names, each with its share of the windows.

use super::Args;
use crate::calib::chat::Chat;
use crate::calib::corpus::{Corpus, Cut, Source, check_weight};
use crate::calib::sets::{self, Set, SetRequest};
use crate::calib::text;
use crate::cli::hub::Download;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::pipeline::Calibration;
use crate::pipeline::plan::Plan;
use std::path::{Path, PathBuf};

/// One thing that `--calib` names.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::cli) struct Named {
    /// What it is.
    pub what: What,
    /// Its share, if one was given.
    weight: Option<f64>,
}

/// Where text comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) enum What {
    /// A file.
    File(PathBuf),
    /// A set that is fetched.
    Set(Set),
}

/// Everything that the options name. A file that is there comes before the set of its name, and before what its name could mean
/// otherwise.
///
/// # Errors
/// Weights that are none, or that only some have.
pub(in crate::cli) fn named(options: &[PathBuf]) -> Result<Vec<Named>> {
    let mut all = Vec::new();
    for option in options {
        match option.to_str() {
            Some(text) if !option.exists() => {
                for part in text.split(',') {
                    all.push(one(part)?);
                }
            }
            _ => all.push(Named { what: What::File(option.clone()), weight: None }),
        }
    }
    if let (Some(with), Some(without)) =
        (all.iter().find(|named| named.weight.is_some()), all.iter().find(|named| named.weight.is_none()))
    {
        return Err(Error::usage(format!(
            "--calib: {} has a weight, but {} has none",
            with.what.name(),
            without.what.name()
        ))
        .hint("give each a weight, as in --calib c4:0.7,code.jsonl:0.3, or none"));
    }
    Ok(all)
}

fn one(text: &str) -> Result<Named> {
    let what = |name: &str| match sets::by_name(name) {
        Some(set) if !Path::new(name).exists() => What::Set(set),
        _ => What::File(name.into()),
    };
    let weight = text.rsplit_once(':').filter(|_| !Path::new(text).exists());
    match weight.and_then(|(name, weight)| Some((name, weight.parse::<f64>().ok()?))) {
        Some((name, weight)) => {
            check_weight(weight, name)?;
            Ok(Named { what: what(name), weight: Some(weight) })
        }
        None => Ok(Named { what: what(text), weight: None }),
    }
}

impl Named {
    /// Its name without folders, and its share.
    pub(super) fn short(&self) -> String {
        let name = self.what.short();
        self.weight.map_or(name.clone(), |weight| format!("{name}:{weight}"))
    }
}

impl What {
    fn name(&self) -> String {
        match self {
            What::File(path) => path.display().to_string(),
            What::Set(set) => set.name().into(),
        }
    }
}

/// The files among what the options name.
pub(super) fn files(options: &[PathBuf]) -> Vec<PathBuf> {
    let file = |named: Named| match named.what {
        What::File(path) => Some(path),
        What::Set(_) => None,
    };
    named(options).unwrap_or_default().into_iter().filter_map(file).collect()
}

/// Reads all that the options name.
///
/// # Errors
/// Windows that make no sense, or text that cannot be read, fetched or written with the model's chat template.
pub(super) fn read(args: &Args, plan: &Plan, model: &Model) -> Result<Calibration> {
    let (positions, samples) = (args.positions(model)?, args.how.samples()?);
    let named = named(&args.calib)?;
    let corpus = plan.with_tokenizer(|tokenizer| {
        let chat = Chat::of(&plan.metadata, tokenizer.bos().is_some());
        // A template that cannot be used is an error only where it is needed.
        let (chat, broken) = match chat {
            Ok(chat) => (chat, None),
            Err(error) => (None, Some(error)),
        };
        let read = |paths: &[PathBuf]| match (text::read_all(paths, chat.as_ref()), broken.as_ref()) {
            (Err(error), Some(broken)) => Err(error.hint(broken.chain().join(": "))),
            (result, _) => result,
        };
        let weighted = named.iter().any(|named| named.weight.is_some());
        let only_files = named.iter().all(|named| matches!(named.what, What::File(_)));
        if only_files && !weighted {
            // One row of text, of which longer files give more windows.
            let (documents, names) = read(&files(&args.calib))?;
            return Ok(Corpus::of(documents, names));
        }
        let watch = Download::default();
        let demand = SetRequest { count: samples, length: positions, packed: args.pack, tokenizer };
        let sources = named.iter().map(|named| {
            let weight = named.weight.unwrap_or(1.0);
            match &named.what {
                What::Set(set) => set.calibration(weight, &demand, &watch),
                What::File(path) => {
                    let (documents, names) = read(std::slice::from_ref(path))?;
                    Ok(Source { names, documents, weight, cut: Cut::Packed })
                }
            }
        });
        Ok(Corpus { sources: sources.collect::<Result<_>>()? })
    })?;
    Ok(Calibration { corpus, samples, positions, seed: args.seed })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(options: &[&str]) -> Result<Vec<(String, Option<f64>)>> {
        let options: Vec<PathBuf> = options.iter().map(PathBuf::from).collect();
        Ok(named(&options)?.iter().map(|n| (n.what.name(), n.weight)).collect())
    }

    #[test]
    fn names_and_weights_are_told_apart() {
        let text = |name: &str, weight| (name.to_owned(), weight);
        assert_eq!(parsed(&["c4"]).unwrap(), [text("c4", None)]);
        assert_eq!(parsed(&["c4:0.7,code.jsonl:0.3"]).unwrap(), [text("c4", Some(0.7)), text("code.jsonl", Some(0.3))]);
        assert_eq!(parsed(&["c4:1", "wikitext2:2"]).unwrap(), [text("c4", Some(1.0)), text("wikitext2", Some(2.0))]);
        assert_eq!(parsed(&["C:\\text.txt"]).unwrap(), [text("C:\\text.txt", None)]);
        assert!(named(&["c4".into()]).unwrap()[0].what == What::Set(Set::C4));
        assert!(named(&["c4.txt".into()]).unwrap()[0].what == What::File("c4.txt".into()));
    }

    #[test]
    fn a_file_that_is_there_is_taken_whatever_it_is_called() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a,b.txt", "a:0.5"] {
            let path = root.path().join(name);
            std::fs::write(&path, "x").unwrap();
            assert_eq!(files(std::slice::from_ref(&path)), [path]);
        }
    }

    #[test]
    fn weights_that_make_no_sense_are_refused() {
        for (options, told) in
            [(&["c4:0"][..], "c4"), (&["c4:-1"], "-1"), (&["c4:nan"], "NaN"), (&["c4:0.7", "a.txt"], "a.txt has none")]
        {
            let error = parsed(options).unwrap_err();
            assert!(error.to_string().contains(told) && error.hint_text().is_some(), "{error}");
        }
    }
}
