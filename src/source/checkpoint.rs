//! A checkpoint folder: its files mapped and checked, read one tensor at a time.
//!
//! The files are safetensors or what `torch.save` wrote, in the layout of transformers or Mistral's own, and weights may be
//! packed by some other quantizer. Whoever asks for a weight by name gets its numbers and need not know.

pub mod awq;
mod bytes;
mod coded;
pub mod compressed;
mod files;
pub mod gptq;
mod header;
pub mod modules;
mod mxfp4;
mod packed;
mod pickle;
mod place;
mod quantization;
mod scaled;
mod torch;
pub mod words;

use crate::error::{Error, Result};
use crate::source::value::quoted;
use coded::Coded;
pub use coded::Lines;
use files::{Files, shortened};
use llmq_kernels::elementwise::first_non_finite;
use packed::{PACKINGS, Packed, Parts};
use place::{Place, Shard, is_float, is_fp8};
use quantization::Quantization;
use safetensors::tensor::Dtype;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The tensors of a checkpoint folder. Nothing is read until it is asked for.
pub struct Checkpoint {
    folder: PathBuf,
    shards: Vec<Shard>,
    /// What is there as it is.
    tensors: BTreeMap<String, Place>,
    /// Weights that are made of several of the files' tensors, which are no tensors of the checkpoint then.
    packed: BTreeMap<String, Box<dyn Packed>>,
    quantization: Option<Quantization>,
    notes: Vec<String>,
}

/// What is known about a tensor without reading it.
#[derive(Debug, Clone)]
pub struct Info<'a> {
    /// Its name.
    pub name: &'a str,
    /// safetensors' name of the element type, or what a packed weight is called: GPTQ4, AWQ4, INT4.
    pub dtype: String,
    /// Its shape, slowest dimension first.
    pub shape: &'a [usize],
    /// Its size in bytes.
    pub bytes: usize,
}

impl Checkpoint {
    /// Maps `model.safetensors`, or the shards that `model.safetensors.index.json` lists, or the same of
    /// `pytorch_model.bin` or Mistral's `consolidated.safetensors`, and checks their headers.
    ///
    /// # Errors
    /// There are no weights, a missing shard, a truncated file, tensors that overlap or reach beyond the file.
    pub fn open(folder: &Path) -> Result<Checkpoint> {
        let Files { names, listed, index, notes } = files::find(folder)?;
        let mut checkpoint = Checkpoint {
            folder: folder.into(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
            packed: BTreeMap::new(),
            quantization: Quantization::find(folder)?,
            notes,
        };
        let mut repeated = Vec::new();
        for name in &names {
            let shard = Shard::open(&folder.join(name), "see whether it may be read".into())?;
            checkpoint.add(shard, &mut repeated)?;
        }
        if !repeated.is_empty() {
            let (count, which) = (repeated.len(), shortened(&repeated));
            checkpoint.notes.push(format!(
                "tensors in more than one file ({count}): those of the last file are read, as transformers does: {which}"
            ));
        }
        let gone: Vec<String> = listed
            .iter()
            .filter(|(tensor, _)| !checkpoint.tensors.contains_key(*tensor))
            .map(|(tensor, file)| format!("'{tensor}' in {file}"))
            .collect();
        if !gone.is_empty() {
            let (count, which) = (gone.len(), shortened(&gone));
            checkpoint.notes.push(format!("{index} lists tensors that are not there ({count}): {which}"));
        }
        checkpoint.find_packed()?;
        checkpoint.add_modules()?;
        Ok(checkpoint)
    }

    /// Puts packed weights in the place of the tensors that make them.
    fn find_packed(&mut self) -> Result<()> {
        let Checkpoint { shards, tensors, quantization, .. } = self;
        let has_scales = scaled::are_there(tensors);
        let parts = Parts { shards, tensors, quantization: quantization.as_ref(), has_scales };
        let mut found = Vec::new();
        for name in tensors.keys() {
            for packing in PACKINGS {
                found.extend(packing.find(name, &parts)?);
            }
        }
        for weight in found {
            for part in &weight.parts {
                self.tensors.remove(part);
            }
            if self.tensors.contains_key(&weight.name) || self.packed.contains_key(&weight.name) {
                let (folder, name) = (self.folder.display(), &weight.name);
                return Err(Error::new(format!("{folder}: weight '{name}' is there twice, packed and as it is")));
            }
            self.packed.insert(weight.name, weight.weight);
        }
        let cast = self.tensors.iter().filter(|(name, place)| is_fp8(place.dtype) && scaled::is_weight(name));
        let cast: Vec<&str> = cast.map(|(name, _)| name.as_str()).collect();
        if !cast.is_empty() {
            let (count, which) = (cast.len(), shortened(&cast));
            self.notes.push(format!("FP8 tensors without scales ({count}) are read as plain numbers: {which}"));
        }
        Ok(())
    }

    /// Adds the layers of sentence-transformers, which have folders of their own: `2_Dense/linear.weight`.
    fn add_modules(&mut self) -> Result<()> {
        for module in modules::read(&self.folder)?.into_iter().filter(|module| module.kind == "Dense") {
            let file = self.folder.join(&module.path).join("model.safetensors");
            if !file.is_file() {
                continue;
            }
            let shard = Shard::open(&file, String::new())?;
            for (name, place) in header::tensors(&shard, self.shards.len())? {
                self.tensors.insert(format!("{}/{name}", module.path), place);
            }
            self.shards.push(shard);
        }
        Ok(())
    }

    /// Adds the tensors of a file. `repeated`: those that an earlier file has, too.
    fn add(&mut self, shard: Shard, repeated: &mut Vec<String>) -> Result<()> {
        let torch = shard.path.extension().is_some_and(|ending| ["bin", "pt", "pth"].iter().any(|own| ending == *own));
        let read = if torch { torch::tensors } else { header::tensors };
        for (name, place) in read(&shard, self.shards.len())? {
            if let Some(earlier) = self.tensors.insert(name.clone(), place) {
                let file = |shard: &Shard| shard.path.file_name().unwrap_or_default().display().to_string();
                let earlier = self.shards.get(earlier.shard).unwrap_or(&shard);
                repeated.push(format!("'{name}' in {} and {}", file(earlier), file(&shard)));
            }
        }
        self.shards.push(shard);
        Ok(())
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What was read otherwise than the folder's files say, or passed over: a sentence each, for people.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The files that are mapped.
    pub fn files(&self) -> Vec<&Path> {
        self.shards.iter().map(|s| s.path.as_path()).collect()
    }

    /// Every tensor, by name, but for those of modules in folders of their own. A packed weight is one tensor.
    pub fn tensors(&self) -> impl Iterator<Item = Info<'_>> {
        let own = self.tensors.iter().filter(|(name, _)| !name.contains('/'));
        let plain = own.map(|(name, place)| Info {
            name,
            dtype: format!("{:?}", place.dtype),
            shape: &place.shape,
            bytes: place.bytes.len(),
        });
        let packed = self.packed.iter().map(|(name, weight)| Info {
            name,
            dtype: weight.kind().to_owned(),
            shape: weight.shape(),
            bytes: weight.parts().iter().map(|place| place.bytes.len()).sum(),
        });
        let mut all: Vec<Info<'_>> = plain.chain(packed).collect();
        all.sort_unstable_by_key(|info| info.name);
        all.into_iter()
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.packed.contains_key(name)
    }

    /// Checks that a tensor is there, with this shape and a type that can be read.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.stored(name, shape).map(|_| ())
    }

    /// Tells the system that a tensor will be read soon, so that the disk is at work meanwhile.
    pub fn expect(&self, name: &str) {
        let parts = self.packed.get(name).map(|weight| weight.parts());
        for place in parts.into_iter().flatten().chain(self.tensors.get(name)) {
            self.shards[place.shard].expect(place.bytes.clone());
        }
    }

    fn stored(&self, name: &str, shape: &[usize]) -> Result<Stored<'_>> {
        self.find(name, shape).map_err(|cause| {
            let unread = self.quantization.as_ref().filter(|own| !PACKINGS.iter().any(|packing| packing.reads(own)));
            // A name counts more than what the tensors look like, and that more than a description without a name.
            match (unread, quantization::recognized(name, &self.tensors)) {
                (Some(unread), None) => unread.refusal(&cause),
                (Some(unread), _) if unread.is_named() => unread.refusal(&cause),
                (_, Some(method)) => quantization::refusal(&self.folder, method, &cause),
                (None, None) => cause,
            }
        })
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<Stored<'_>> {
        let packed = self.packed.get(name).map(|weight| Stored::Packed(weight.as_ref()));
        let stored = packed.or_else(|| self.tensors.get(name).map(Stored::Plain));
        let stored = stored.ok_or_else(|| self.missing(name, shape))?;
        let path = self.path(stored).display();
        if stored.shape() != shape {
            return Err(Error::new(format!(
                "{path}: tensor '{name}' has shape {:?}, but config.json makes it {shape:?}",
                stored.shape()
            ))
            .hint("config.json and the weights do not belong to the same model"));
        }
        match stored {
            Stored::Plain(place) if !is_float(place.dtype) => {
                Err(Error::new(format!("{path}: tensor '{name}' is of type {:?}", place.dtype)).hint(
                    "only checkpoints of F64, F32, F16, BF16 and FP8 can be quantized: start from the original, \
                     unquantized one",
                ))
            }
            _ => Ok(stored),
        }
    }

    /// An error about a tensor that is not there, which shows the names that are most like its own.
    fn missing(&self, name: &str, shape: &[usize]) -> Error {
        const SHOWN: usize = 3;
        // Wrappers put something in front of names, other layouts of the same model change their middle.
        let likeness = |other: &str| {
            let (wanted, found) = (name.as_bytes(), other.as_bytes());
            let front = wanted.iter().zip(found).take_while(|(a, b)| a == b).count();
            let back = wanted.iter().rev().zip(found.iter().rev()).take_while(|(a, b)| a == b).count();
            (front + back).min(wanted.len())
        };
        let mut there: Vec<&str> = self.tensors.keys().chain(self.packed.keys()).map(String::as_str).collect();
        there.sort_by_cached_key(|other| std::cmp::Reverse(likeness(other)));
        let count = there.len();
        let nearest: Vec<String> = there.into_iter().take(SHOWN).map(|name| quoted(name, 100)).collect();
        let tied = if name.contains("lm_head") || name == "output.weight" {
            "; a model without one has tie_word_embeddings: true in config.json"
        } else {
            ""
        };
        Error::new(format!("{}: there is no tensor '{name}'", self.folder.display())).hint(format!(
            "config.json asks for it, with shape {shape:?}; of the {count} that are there, the nearest are {}: they may belong \
             to another model, or a shard is missing{tied}",
            nearest.join(", ")
        ))
    }

    /// The file that a tensor is in, or the main part of a packed weight.
    fn path(&self, stored: Stored) -> &Path {
        let shard = match stored {
            Stored::Plain(place) => place.shard,
            Stored::Packed(weight) => weight.parts()[0].shard,
        };
        &self.shards[shard].path
    }

    /// What the codes of a weight that is quantized already are called; none for any other, FP8 with scales among them.
    pub fn quantized(&self, name: &str) -> Option<&str> {
        let weight = self.packed.get(name)?;
        weight.codes().map(|_| weight.kind())
    }

    /// A weight that is quantized already, whose codes can be had as they are; none if it is no such weight.
    pub fn grouped(&self, name: &str) -> Option<Grouped<'_>> {
        let weight = self.packed.get(name)?.codes()?;
        Some(Grouped { shards: &self.shards, weight })
    }

    /// The program's name for how the checkpoint is quantized; none if it says nothing of the kind.
    pub fn quantization(&self) -> Option<String> {
        self.quantization.as_ref().map(Quantization::name)
    }

    /// The type and the bytes of a tensor that is stored as plain numbers of whatever type, in the order of its shape; none
    /// for a packed weight, or if there is no such tensor.
    pub fn bytes(&self, name: &str) -> Option<(Dtype, Cow<'_, [u8]>)> {
        let place = self.tensors.get(name)?;
        let rows = place.shape.first().copied().unwrap_or(1);
        Some((place.dtype, place.rows(&self.shards, 0..rows).0))
    }

    /// As [`Checkpoint::bytes`], of a tensor that has to be there.
    ///
    /// # Errors
    /// It is missing or packed.
    pub fn raw(&self, name: &str) -> Result<(Dtype, Cow<'_, [u8]>)> {
        self.bytes(name).ok_or_else(|| {
            let (folder, what) =
                (self.folder.display(), self.packed.get(name).map_or("missing", |weight| weight.kind()));
            Error::new(format!("{folder}: tensor '{name}' is {what}, and cannot be copied as it is"))
                .hint("start from the original checkpoint in 16 bits")
        })
    }

    /// One tensor in `f32`.
    ///
    /// # Errors
    /// It is missing, has another shape or type, or holds NaN or infinity.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.read_rows(name, shape, 0..shape[0])
    }

    /// The one number of a tensor of shape `[]` or `[1]`.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn number(&self, name: &str) -> Result<f32> {
        let scalar = self.tensors.get(name).is_some_and(|place| place.shape.is_empty());
        let numbers = self.read_rows(name, if scalar { &[] } else { &[1] }, 0..1)?;
        Ok(numbers[0])
    }

    /// Some rows (steps along the first dimension) of one tensor in `f32`.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn read_rows(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Vec<f32>> {
        let stored = self.stored(name, shape)?;
        let numbers = match stored {
            Stored::Plain(place) => place.numbers(&self.shards, rows.clone()),
            Stored::Packed(weight) => weight.numbers(&self.shards, rows.clone())?,
        };
        match first_non_finite(&numbers) {
            None => Ok(numbers),
            Some(at) => Err(Error::new(format!(
                "{}: tensor '{name}' holds {} at element {} of {}",
                self.path(stored).display(),
                numbers[at],
                rows.start * (shape.iter().product::<usize>() / shape.first().copied().unwrap_or(1)) + at,
                shape.iter().product::<usize>()
            ))
            .hint("the checkpoint is damaged: compare its checksum with the published one, or download it again")),
        }
    }
}

/// How a tensor is there.
#[derive(Clone, Copy)]
enum Stored<'a> {
    Plain(&'a Place),
    Packed(&'a dyn Packed),
}

impl Stored<'_> {
    fn shape(&self) -> &[usize] {
        match self {
            Stored::Plain(place) => &place.shape,
            Stored::Packed(weight) => weight.shape(),
        }
    }
}

/// A packed weight whose codes can be had as they are: `(q − zero)·scale` for whole numbers `q` from zero to [`Grouped::top`].
#[derive(Clone, Copy)]
pub struct Grouped<'a> {
    shards: &'a [Shard],
    weight: &'a Coded,
}

impl Grouped<'_> {
    /// What it is called where types are shown.
    pub fn kind(&self) -> &str {
        self.weight.kind()
    }

    /// The file of its codes.
    pub fn path(&self) -> &Path {
        self.weight.parts()[0].path(self.shards)
    }

    /// The largest code.
    pub fn top(&self) -> u8 {
        self.weight.top()
    }

    /// The codes of some rows: `[rows, columns]`.
    pub fn codes(&self, rows: Range<usize>) -> Vec<u8> {
        self.weight.read_codes(self.shards, rows)
    }

    /// Scales and zero points of some rows.
    ///
    /// # Errors
    /// A group that is not there, a zero point beyond its range, or a scale that is no number.
    pub fn lines(&self, rows: Range<usize>) -> Result<Lines> {
        self.weight.read_lines(self.shards, rows)
    }
}

#[cfg(test)]
mod tests;
