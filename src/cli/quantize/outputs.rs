//! What a run is to make: a GGUF, folders for transformers and vLLM, or several of them with the same codes.

use super::Args;
use crate::error::{Error, Result};
use crate::format::integer;
use crate::format::mix::{self, Mix};
use crate::pipeline::folder::{Folder, MOST};
use crate::pipeline::plan::Folders;
use crate::writer::atomic::{check_destination, check_folder};
use crate::writer::packing::{self, Packing};
use std::path::{Path, PathBuf};

/// The outputs that are named, and what they are called after.
pub struct Outputs {
    /// The GGUF: where it is named, its place; none if there is to be none.
    pub gguf: Option<Option<PathBuf>>,
    /// The folders, each with its place where that is named.
    pub folders: Vec<(&'static dyn Packing, Option<PathBuf>)>,
}

impl Args {
    /// What is to be made.
    ///
    /// # Errors
    /// Formats and outputs that do not belong together, or options that do not apply to folders.
    pub(in crate::cli) fn outputs(&self) -> Result<Outputs> {
        if self.format.is_empty() {
            return match &self.output[..] {
                [] => Ok(Outputs { gguf: Some(None), folders: Vec::new() }),
                [only] => Ok(Outputs { gguf: Some(Some(only.clone())), folders: Vec::new() }),
                several => Err(Error::usage(format!("{} outputs, and no --format for any of them", several.len())).hint(
                    "one run makes one GGUF, and folders with the same codes: add --format gptq, awq or compressed-tensors \
                     for each",
                )),
            };
        }
        let packings = self.format.iter().map(|name| packing::by_name(name)).collect::<Result<Vec<_>>>()?;
        let is_gguf = |path: &&PathBuf| path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
        let (files, places): (Vec<&PathBuf>, Vec<&PathBuf>) = self.output.iter().partition(is_gguf);
        if files.len() > 1 {
            return Err(Error::usage(format!("{} GGUFs, but the codes of a run make one", files.len()))
                .hint("name one -o that ends in .gguf, or run llmq once for each"));
        }
        if !self.output.is_empty() && places.len() != packings.len() {
            let (named, formats) = (places.len(), packings.len());
            return Err(Error::usage(format!("{named} folders for {formats} formats")).hint(
                "each --format has its folder, in the same order: --format gptq -o DIR; a -o that ends in .gguf is a GGUF",
            ));
        }
        for (i, place) in places.iter().enumerate() {
            if places[..i].contains(place) {
                return Err(Error::usage(format!("the output {} is named twice", place.display())));
            }
        }
        let alone = files.is_empty();
        for (option, given) in [
            ("--tensor-type", !self.tensor_type.is_empty()),
            ("--tensor-type-file", self.tensor_type_file.is_some()),
            ("--rotate", self.rotate),
            ("--target-bpw, --target-size or --fit", self.target()?.is_some()),
            ("--output-tensor-type", alone && self.output_tensor_type.is_some()),
            ("--token-embedding-type", alone && self.token_embedding_type.is_some()),
        ] {
            if given {
                return Err(Error::usage(format!("{option} cannot be used with --format")).hint(
                    "these folders have one type for every layer, and keep the embedding and the output as they are",
                ));
            }
        }
        let places = places.into_iter().cloned().map(Some).chain(std::iter::repeat(None));
        Ok(Outputs {
            gguf: files.first().map(|path| Some((*path).clone())),
            folders: packings.into_iter().zip(places).collect(),
        })
    }
}

impl Outputs {
    /// The mix of types: what `--type` names, or what people expect of the outputs.
    ///
    /// # Errors
    /// A type that is unknown, or that one of the outputs does not hold.
    pub fn mix(&self, kind: Option<&str>, group: Option<usize>) -> Result<Mix> {
        let Some((first, _)) = self.folders.first() else {
            if group.is_some() {
                return Err(Error::usage("--group-size is for --format; the types of a GGUF have their own groups")
                    .hint("add --format gptq, awq or compressed-tensors, or leave out --group-size"));
            }
            return mix::named(kind.unwrap_or("Q4_K_M"));
        };
        let base = integer::asked(kind.unwrap_or(if self.gguf.is_some() { "Q4_0" } else { first.usual() }), group)?;
        let in_gguf = integer::by_id(base.id()).is_none();
        if self.gguf.is_some() && !in_gguf {
            return Err(Error::usage(format!("a GGUF has no {}", base.name()))
                .hint("--type Q4_0 and Q8_0 have codes that it shares with the folders; or make the folder alone"));
        }
        let content = integer::content(base).ok_or_else(|| Error::usage(format!("{} is no such grid", base.name())))?;
        for (packing, _) in &self.folders {
            if let Some(why) = packing.misfit(content) {
                let what = format!("--format {} does not hold {}: {why}", packing.name(), base.name());
                return Err(Error::usage(what).hint("choose a --type of four bits, or another format"));
            }
        }
        let file_type = if in_gguf { mix::named(base.name())?.file_type } else { 0 };
        Ok(Mix::even(base.name(), file_type, base))
    }

    /// Whether folders are made, and beside what.
    pub fn beside(&self) -> Option<Folders> {
        match (self.folders.is_empty(), &self.gguf) {
            (true, _) => None,
            (false, Some(_)) => Some(Folders::BesideGguf),
            (false, None) => Some(Folders::Alone),
        }
    }

    /// The folders with their places; `own`: what comes before the format in a name that is not given.
    pub fn folders(&self, own: &str, most: Option<u64>) -> Vec<Folder> {
        let folder = |(packing, path): &(&'static dyn Packing, Option<PathBuf>)| Folder {
            path: path.clone().unwrap_or_else(|| format!("{own}.{}", packing.name()).into()),
            packing: *packing,
            most: most.unwrap_or(MOST),
        };
        self.folders.iter().map(folder).collect()
    }
}

/// Checks every place that something is to appear at.
///
/// # Errors
/// As [`check_destination`] and [`check_folder`].
pub fn check<'a>(
    files: impl Iterator<Item = &'a Path>,
    folders: &[Folder],
    inputs: &[&Path],
    force: bool,
) -> Result<()> {
    files.into_iter().try_for_each(|path| check_destination(path, inputs, force))?;
    folders.iter().try_for_each(|folder| check_folder(&folder.path, inputs, force))
}
