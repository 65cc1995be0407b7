//! Which files of a folder hold a checkpoint's weights.
//!
//! Folders have more than they should: shards of an older save beside a newer `model.safetensors`, indexes of shards that
//! are gone. What is read is what transformers reads, and where transformers reads nothing, what llama.cpp's converter reads.

use crate::error::{Context, Error, Result};
use crate::source::{folder, json, mistral};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// How the files of one way of saving are called: `STEM.ENDING`, or `STEM-00001-of-00002.ENDING` and an index.
struct Layout {
    stem: &'static str,
    ending: &'static str,
}

const SAFETENSORS: Layout = Layout { stem: "model", ending: ".safetensors" };
const TORCH: Layout = Layout { stem: "pytorch_model", ending: ".bin" };
const MISTRAL: Layout = Layout { stem: "consolidated", ending: ".safetensors" };

/// Endings of files that may be weights, which errors speak of.
const WEIGHTS: [&str; 10] =
    [".safetensors", ".bin", ".gguf", ".pt", ".pth", ".ckpt", ".npz", ".h5", ".msgpack", ".onnx"];

/// The files to read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Their names, sorted: a tensor that several have is that of the last one.
    pub names: Vec<String>,
    /// The tensors that the index puts into these files; empty where no index counts.
    pub listed: BTreeMap<String, String>,
    /// The index's name.
    pub index: String,
    /// What was passed over.
    pub notes: Vec<String>,
}

/// Chooses among the files of a folder.
///
/// # Errors
/// It cannot be listed, holds no weights or only some of the shards, or an index that counts is damaged.
pub fn find(folder: &Path) -> Result<Files> {
    let there = list(folder)?;
    // Where both ways of saving are there, the one that belongs to the configuration.
    let ways: &[&[Layout]] =
        if mistral::is_native(folder) { &[&[MISTRAL]] } else { &[&[SAFETENSORS, TORCH], &[MISTRAL]] };
    let mut stale = Vec::new();
    let mut found = None;
    for layouts in ways {
        found = choose(folder, &there, layouts, &mut stale)?;
        if found.is_some() {
            break;
        }
    }
    let Some(mut files) = found else {
        return Err(match stale.first() {
            Some((index, missing)) => lacks(folder, index, missing),
            None => nothing(folder, &there),
        });
    };
    let aside = |(index, _): &(String, _)| format!("{index} is left aside: none of the files that it lists is there");
    files.notes.splice(0..0, stale.iter().map(aside));
    if there.contains(folder::ADAPTER) {
        let (adapter, names) = (folder::ADAPTER, shortened(&files.names));
        files.notes.push(format!("{adapter} is left aside: {names} is read without the adapter"));
    }
    Ok(files)
}

/// The first of these ways that was saved whole, else the first of which there is a shard. `stale`: indexes of which nothing
/// is there, and what they list.
fn choose(
    folder: &Path,
    there: &BTreeSet<String>,
    layouts: &[Layout],
    stale: &mut Vec<(String, Vec<String>)>,
) -> Result<Option<Files>> {
    for layout in layouts {
        match layout.saved(folder, there)? {
            Saved::Whole(files) => return Ok(Some(files)),
            Saved::Stale(index, missing) => stale.push((index, missing)),
            Saved::Nothing => {}
        }
    }
    for layout in layouts {
        if let Some(files) = layout.unlisted(folder, there)? {
            return Ok(Some(files));
        }
    }
    Ok(None)
}

/// The names of the files in a folder.
fn list(folder: &Path) -> Result<BTreeSet<String>> {
    let unreadable = || format!("cannot list {}", folder.display());
    let mut there = BTreeSet::new();
    for entry in std::fs::read_dir(folder).context(unreadable)? {
        let entry = entry.context(unreadable)?;
        // Links count as what they point to.
        if entry.path().is_file() {
            there.extend(entry.file_name().into_string().ok());
        }
    }
    Ok(there)
}

/// What was found of a layout.
enum Saved {
    Whole(Files),
    /// An index and the files that it lists, none of which is there.
    Stale(String, Vec<String>),
    Nothing,
}

impl Layout {
    fn single(&self) -> String {
        format!("{}{}", self.stem, self.ending)
    }

    /// One file, or an index and its shards.
    fn saved(&self, folder: &Path, there: &BTreeSet<String>) -> Result<Saved> {
        let single = self.single();
        let index = format!("{single}.index.json");
        let listed = if there.contains(&index) { Some(read_index(&folder.join(&index))) } else { None };
        if there.contains(&single) {
            return Ok(Saved::Whole(self.single_beside(single, index, listed, there)));
        }
        let Some(listed) = listed.transpose()? else { return Ok(Saved::Nothing) };
        let names: BTreeSet<&String> = listed.values().collect();
        let missing: Vec<String> = names.iter().filter(|name| !there.contains(**name)).map(|n| n.to_string()).collect();
        if missing.len() == names.len() {
            return Ok(Saved::Stale(index, missing));
        }
        if !missing.is_empty() {
            return Err(lacks(folder, &index, &missing));
        }
        let names = names.into_iter().cloned().collect();
        Ok(Saved::Whole(Files { names, listed, index, notes: Vec::new() }))
    }

    /// The single file, whatever an index beside it says, unless that says that the file is one of several shards.
    fn single_beside(
        &self,
        single: String,
        index: String,
        listed: Option<Result<BTreeMap<String, String>>>,
        there: &BTreeSet<String>,
    ) -> Files {
        let aside = |why: &str| vec![format!("{index} is left aside: {why}")];
        let (listed, notes) = match listed {
            None => (BTreeMap::new(), Vec::new()),
            Some(Err(cause)) => (BTreeMap::new(), aside(&cause.to_string())),
            Some(Ok(listed)) => {
                let names: BTreeSet<&String> = listed.values().collect();
                if names.contains(&single) && names.iter().all(|name| there.contains(*name)) {
                    let names = names.into_iter().cloned().collect();
                    return Files { names, listed, index, notes: Vec::new() };
                }
                let notes = aside(&format!(
                    "{single} is read, as transformers does, and not the {} files that it lists",
                    names.len()
                ));
                (BTreeMap::new(), notes)
            }
        };
        Files { names: vec![single], listed, index, notes }
    }

    /// Every file whose name begins and ends as that of a shard does, without an index.
    fn unlisted(&self, folder: &Path, there: &BTreeSet<String>) -> Result<Option<Files>> {
        let own = |name: &&String| name.starts_with(self.stem) && name.ends_with(self.ending);
        let names: Vec<String> = there.iter().filter(own).cloned().collect();
        if names.is_empty() {
            return Ok(None);
        }
        // Names that say how many shards there are also say which ones are missing.
        for name in &names {
            let Some((before, last)) = self.numbered(name) else { continue };
            let whole = (1..=last).map(|i| format!("{before}-{i:05}-of-{last:05}{}", self.ending));
            if let Some(missing) = whole.into_iter().find(|name| !there.contains(name)) {
                let folder = folder.display();
                return Err(Error::new(format!("{folder} holds {name}, but not {missing}"))
                    .hint("a shard is missing; download it, too"));
            }
        }
        let what = if names.len() == 1 { "is" } else { "are" };
        let notes = vec![format!("there is no {}.index.json: {} {what} read", self.single(), shortened(&names))];
        Ok(Some(Files { names, notes, ..Files::default() }))
    }

    /// What comes before the numbers of `STEM-00001-of-00002.ENDING`, and the last number.
    fn numbered<'a>(&self, name: &'a str) -> Option<(&'a str, usize)> {
        let (before, last) = name.strip_suffix(self.ending)?.rsplit_once("-of-")?;
        let (before, own) = before.rsplit_once('-')?;
        let number = |digits: &str| digits.parse().ok().filter(|_| digits.len() == 5);
        number(own)?;
        Some((before, number(last)?))
    }
}

fn lacks(folder: &Path, index: &str, missing: &[String]) -> Error {
    let (folder, count, missing) = (folder.display(), missing.len(), shortened(missing));
    Error::new(format!("{folder} lacks {count} of the files that {index} lists: {missing}"))
        .hint(format!("download what is missing, too; where {index} is a leftover of another save, delete it"))
}

/// An error that says what is there instead of weights.
fn nothing(folder: &Path, there: &BTreeSet<String>) -> Error {
    if let Some(error) = folder::recognized(folder) {
        return error;
    }
    let found = there.iter().filter(|name| WEIGHTS.iter().any(|ending| name.to_lowercase().ends_with(ending)));
    let found: Vec<String> = found.cloned().collect();
    let single = SAFETENSORS.single();
    let usual = format!("a checkpoint folder holds {single}, or its shards and their index, or {}", TORCH.single());
    let folder = folder.display();
    match &found[..] {
        [] => Error::new(format!("{folder} holds no weights")).hint(usual),
        [gguf, ..] if found.iter().all(|name| name.ends_with(".gguf")) => {
            Error::new(format!("{folder} holds no checkpoint, but GGUF files: {}", shortened(&found)))
                .hint(format!("give the file itself: {folder}/{gguf}"))
        }
        [one, ..] => {
            let what = format!("{folder} holds no {single}, but files of other names: {}", shortened(&found));
            let rename =
                one.ends_with(SAFETENSORS.ending).then(|| format!("; if {one} is the whole model, call it so"));
            Error::new(what).hint(format!("{usual}{}", rename.unwrap_or_default()))
        }
    }
}

/// The first names of a list and how many more there are.
pub fn shortened<T: AsRef<str>>(names: &[T]) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    match names.len() {
        n if n > SHOWN => format!("{} and {} more", shown.join(", "), n - SHOWN),
        _ => shown.join(", "),
    }
}

/// The file of every tensor.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let index = json::read(path)?;
    let damaged = |what: String| Error::new(format!("{}: {what}", path.display()));
    let Some(map) = index["weight_map"].as_object().filter(|map| !map.is_empty()) else {
        return Err(damaged("it lists no tensors ({\"weight_map\": {tensor: file}})".into()));
    };
    let file = |(tensor, file): (&String, &Value)| match file.as_str() {
        // Nothing outside of the folder is read, whatever an index says.
        Some(name) if Path::new(name).file_name().is_some_and(|own| own == name) => {
            Ok((tensor.clone(), name.to_owned()))
        }
        _ => Err(damaged(format!("tensor '{tensor}' is in {file}, which is no file name"))),
    };
    map.iter().map(file).collect()
}

#[cfg(test)]
mod tests;
