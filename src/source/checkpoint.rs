//! A checkpoint folder: its files mapped and checked, read one tensor at a time.
//!
//! The files are safetensors or what `torch.save` wrote, and weights may be packed by some other quantizer. Whoever asks for a
//! weight by name gets its numbers and need not know.

pub mod awq;
mod coded;
pub mod compressed;
pub mod gptq;
mod header;
mod mxfp4;
mod packed;
mod pickle;
mod place;
mod quantization;
mod scaled;
mod torch;
pub mod words;

use crate::error::{Context, Error, Result};
use coded::Coded;
pub use coded::Lines;
use llmq_kernels::elementwise::first_non_finite;
use packed::{PACKINGS, Packed, Parts};
use place::{Place, Shard, is_float};
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

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// The files that may list the shards of a checkpoint, and that may hold all of it instead, the first choice first.
const FILES: [(&str, &str); 2] = [(INDEX, SINGLE), ("pytorch_model.bin.index.json", "pytorch_model.bin")];

impl Checkpoint {
    /// Maps `model.safetensors`, or the shards that `model.safetensors.index.json` lists, or the same of
    /// `pytorch_model.bin`, and checks their headers.
    ///
    /// # Errors
    /// A missing shard, a truncated file, tensors that overlap or reach beyond the file, a name that occurs twice, an
    /// index that names a tensor which is not there.
    pub fn open(folder: &Path) -> Result<Checkpoint> {
        let is_there = |name: &str| folder.join(name).is_file();
        let found = FILES.into_iter().find(|(index, single)| is_there(index) || is_there(single));
        let (index, single) = found.unwrap_or(FILES[0]);
        let listed = if is_there(index) { read_index(&folder.join(index))? } else { BTreeMap::new() };
        let mut names: Vec<&str> = listed.values().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        if listed.is_empty() {
            names.push(single);
        }
        let hint = match listed.is_empty() {
            true => format!("a checkpoint folder holds {SINGLE}, or {INDEX} and its shards, or pytorch_model.bin"),
            false => format!("{index} lists this shard; download it, too"),
        };
        let mut checkpoint = Checkpoint {
            folder: folder.into(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
            packed: BTreeMap::new(),
            quantization: Quantization::find(folder)?,
        };
        for name in &names {
            checkpoint.add(Shard::open(&folder.join(name), hint.clone())?)?;
        }
        if let Some((tensor, file)) = listed.iter().find(|(tensor, _)| !checkpoint.tensors.contains_key(*tensor)) {
            return Err(Error::new(format!(
                "{} says that tensor '{tensor}' is in {file}, but it is not",
                folder.join(index).display()
            ))
            .hint("download the checkpoint again: the index and the shards do not belong together"));
        }
        checkpoint.find_packed()?;
        Ok(checkpoint)
    }

    /// Puts packed weights in the place of the tensors that make them.
    fn find_packed(&mut self) -> Result<()> {
        let Checkpoint { shards, tensors, quantization, .. } = self;
        let parts = Parts { shards, tensors, quantization: quantization.as_ref() };
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
        Ok(())
    }

    fn add(&mut self, shard: Shard) -> Result<()> {
        let torch = shard.path.extension().is_some_and(|ending| ["bin", "pt", "pth"].iter().any(|own| ending == *own));
        let read = if torch { torch::tensors } else { header::tensors };
        for (name, place) in read(&shard, self.shards.len())? {
            if let Some(other) = self.tensors.get(&name) {
                let other = self.shards.get(other.shard).unwrap_or(&shard).path.display();
                return Err(Error::new(format!("tensor '{name}' is in {} and in {other}", shard.path.display())));
            }
            self.tensors.insert(name, place);
        }
        self.shards.push(shard);
        Ok(())
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The files that are mapped.
    pub fn files(&self) -> Vec<&Path> {
        self.shards.iter().map(|s| s.path.as_path()).collect()
    }

    /// Every tensor, by name. A packed weight is one tensor.
    pub fn tensors(&self) -> impl Iterator<Item = Info<'_>> {
        let plain = self.tensors.iter().map(|(name, place)| Info {
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
            match self.quantization.as_ref().filter(|own| !PACKINGS.iter().any(|packing| packing.reads(own))) {
                Some(unread) => unread.refusal(&cause),
                None => cause,
            }
        })
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<Stored<'_>> {
        let packed = self.packed.get(name).map(|weight| Stored::Packed(weight.as_ref()));
        let stored = packed.or_else(|| self.tensors.get(name).map(Stored::Plain)).ok_or_else(|| {
            Error::new(format!("{}: there is no tensor '{name}'", self.folder.display())).hint(format!(
                "config.json asks for it, with shape {shape:?}; it may belong to another model, or a shard is missing"
            ))
        })?;
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
                    "only F32, F16 and BF16 checkpoints can be quantized: start from the original, unquantized one",
                ))
            }
            _ => Ok(stored),
        }
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

fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(path).context(|| format!("cannot read {}", path.display()))?;
    let index: Index = serde_json::from_str(&text)
        .context(|| format!("{} is not a valid index ({{\"weight_map\": {{tensor: file}}}})", path.display()))?;
    for (tensor, file) in &index.weight_map {
        if Path::new(file).file_name().is_none_or(|name| name != file.as_str()) {
            return Err(Error::new(format!(
                "{}: tensor '{tensor}' is in '{file}', which is no file name",
                path.display()
            )));
        }
    }
    if index.weight_map.is_empty() {
        return Err(Error::new(format!("{} lists no tensors", path.display())));
    }
    Ok(index.weight_map)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A safetensors file from its header and data.
    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend(std::iter::repeat_n(0u8, data));
        bytes
    }

    fn entry(name: &str, shape: usize, from: usize, to: usize) -> String {
        format!(r#""{name}":{{"dtype":"F32","shape":[{shape}],"data_offsets":[{from},{to}]}}"#)
    }

    fn open(files: &[(&str, Vec<u8>)]) -> Result<Checkpoint> {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        Checkpoint::open(folder.path())
    }

    fn complaint(files: &[(&str, Vec<u8>)]) -> String {
        open(files).err().expect("an error").chain().join(": ")
    }

    #[test]
    fn damaged_files_are_named_with_tensor_and_numbers() {
        let two = |from: usize| format!("{{{},{}}}", entry("a", 2, 0, 8), entry("b", 2, from, from + 8));
        for (bytes, wanted) in [
            (vec![1, 2, 3], "it has 3 bytes"),
            (file("{}", 0)[..9].to_vec(), "its header should take 2 bytes, but the file has only 9"),
            (file(&two(8), 12), "tensor 'b' ends at byte 16 of the data, but only 12 bytes are there"),
            (file(&two(4), 12), "tensor 'b' starts at byte 4 of the data, inside tensor 'a', which ends at 8"),
            (file(&two(12), 20), "4 bytes between tensors 'a' and 'b' belong to none"),
            (file(&two(8), 20), "4 bytes after the last tensor, 'b', belong to none"),
            (file("{nonsense", 0), "not a valid safetensors file"),
        ] {
            let message = complaint(&[("model.safetensors", bytes)]);
            assert!(message.contains(wanted) && message.contains("model.safetensors"), "{message}");
        }
    }

    #[test]
    fn shards_that_are_missing_or_lack_a_tensor_are_named() {
        let index = |file: &str| format!(r#"{{"weight_map":{{"a":"one.safetensors","b":"{file}"}}}}"#).into_bytes();
        let one = file(&format!("{{{}}}", entry("a", 1, 0, 4)), 4);
        let message = complaint(&[(INDEX, index("two.safetensors")), ("one.safetensors", one.clone())]);
        assert!(message.contains("two.safetensors"), "{message}");
        let message = complaint(&[(INDEX, index("one.safetensors")), ("one.safetensors", one.clone())]);
        assert!(message.contains("tensor 'b' is in one.safetensors, but it is not"), "{message}");
        let message = complaint(&[(INDEX, index("../two.safetensors")), ("one.safetensors", one)]);
        assert!(message.contains("no file name"), "{message}");
        assert!(complaint(&[]).contains("model.safetensors"));
    }

    #[test]
    fn tensors_are_read_and_checked() {
        let mut bytes = file(&format!("{{{}}}", entry("a", 2, 0, 8)), 0);
        bytes.extend_from_slice(&1.5f32.to_le_bytes());
        bytes.extend_from_slice(&f32::NAN.to_le_bytes());
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(SINGLE), &bytes).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let message = checkpoint.read("a", &[2]).unwrap_err().to_string();
        assert!(message.contains("tensor 'a' holds NaN at element 1 of 2"), "{message}");
        let message = checkpoint.read("a", &[1, 2]).unwrap_err().to_string();
        assert!(message.contains("shape [2], but config.json makes it [1, 2]"), "{message}");
        assert!(checkpoint.read("b", &[2]).unwrap_err().to_string().contains("no tensor 'b'"));
    }
}
