//! The report that is published with a file: one page that needs no network, and a model card for the hub.
//!
//! Everything that they show is in [`Report`]; the page also carries the JSON lines that `--json` prints, and each mark of a
//! plot the number that it stands for.

mod card;
mod escape;
mod original;
mod page;
mod plots;
mod provenance;
mod usage;
mod words;

pub use card::{card, judged};
pub use original::Facts;
pub use page::page;
pub use provenance::{Maker, Provenance};
pub use usage::Usage;

use super::layers::Layer;
use super::perplexity::Perplexity;
use super::speed::Speed;
use super::statistics::Statistics;
use super::tensors::TensorError;
use super::verdict::Verdict;
use crate::error::{Context, Result};
use crate::interrupt;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// All that a page or a card tells.
pub struct Report {
    /// What the files were made from.
    pub original: Original,
    /// The files that were judged, the one nearest to the original first; at least one.
    pub files: Vec<Judged>,
    /// How they were judged.
    pub setting: Setting,
    /// What each part of the first file costs, if that was measured.
    pub layers: Option<Vec<Layer>>,
    /// The commands that give these numbers again.
    pub commands: Vec<String>,
    /// What `--json` prints.
    pub lines: Vec<Value>,
}

/// The model that files were made from.
pub struct Original {
    /// Its name, without folders.
    pub name: String,
    /// Its size; none for saved logits.
    pub size: Option<Size>,
    /// Perplexity.
    pub perplexity: Perplexity,
    /// Its files.
    pub digests: Vec<Hash>,
    /// What its card says.
    pub facts: Facts,
    /// How fast it is here, if that was measured.
    pub speed: Option<Speed>,
}

/// A file that was judged.
pub struct Judged {
    /// Its name, without folders.
    pub name: String,
    /// What plots call it: its type where that tells the files apart, else its name.
    pub label: String,
    /// Whether it was made by others, and is there to be compared with.
    pub peer: bool,
    /// Its size.
    pub size: Size,
    /// What it says about how it was made.
    pub made: Provenance,
    /// What it says about how it is run; none for what is no GGUF.
    pub usage: Option<Usage>,
    /// All measures.
    pub statistics: Statistics,
    /// What they mean.
    pub verdict: Verdict,
    /// The errors of its weights; none where they were not compared.
    pub tensors: Vec<TensorError>,
    /// Its files.
    pub digests: Vec<Hash>,
    /// How fast it is here, if that was measured.
    pub speed: Option<Speed>,
}

/// What a model weighs.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Bytes of its files.
    pub bytes: u64,
    /// Bits per weight.
    pub bits: f64,
}

/// How files were judged.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The name of the protocol.
    pub protocol: &'static str,
    /// Tokens per window.
    pub context: usize,
    /// What the text is called.
    pub text: String,
    /// SHA-256 of its tokens' windows, each token as four bytes, the least significant first.
    pub tokens: String,
}

/// A file and its SHA-256, as `sha256sum` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hash {
    /// The name of the file, without folders.
    pub name: String,
    /// In hexadecimal.
    pub sha256: String,
}

impl Hash {
    /// Of a file. `progress` is told how many bytes more have been read.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(path: &Path, progress: &dyn Fn(u64)) -> Result<Hash> {
        let what = || format!("cannot read {}", path.display());
        let mut file = File::open(path).context(what)?;
        let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            interrupt::check()?;
            match file.read(&mut buffer).context(what)? {
                0 => break,
                n => {
                    hasher.update(&buffer[..n]);
                    progress(n as u64);
                }
            }
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Hash { name, sha256: hexadecimal(&hasher.finalize()) })
    }
}

/// SHA-256 of tokens, in hexadecimal.
pub fn digest_of_tokens(windows: &[Vec<u32>]) -> String {
    let mut hasher = Sha256::new();
    windows.iter().flatten().for_each(|token| hasher.update(token.to_le_bytes()));
    hexadecimal(&hasher.finalize())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Gives all files their labels: their types where those tell them apart, else their names without `.gguf`.
pub fn label(files: &mut [Judged]) {
    let mixes: Vec<Option<String>> = files.iter().map(|file| file.made.mix.clone()).collect();
    for (i, file) in files.iter_mut().enumerate() {
        let alone = mixes.iter().enumerate().all(|(j, mix)| i == j || *mix != mixes[i]);
        let stem = || file.name.strip_suffix(".gguf").unwrap_or(&file.name).to_owned();
        file.label = mixes[i].clone().filter(|_| alone).unwrap_or_else(stem);
    }
}

impl Report {
    /// The files that are no peers, the best first.
    fn own(&self) -> impl Iterator<Item = &Judged> {
        self.files.iter().filter(|file| !file.peer)
    }

    /// The file that the report is about: the best one that is no peer.
    fn loaded(&self) -> &Judged {
        self.own().next().unwrap_or(&self.files[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_sha256sum() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        let hash = Hash::of(&path, &|_| ()).unwrap();
        assert_eq!(hash.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(hash.name, "abc");
        assert_eq!(digest_of_tokens(&[vec![0x0063_6261]])[..8], hexadecimal(&Sha256::digest(b"abc\0"))[..8]);
    }
}
