//! A folder with safetensors: mapped, checked, read one tensor at a time.

use crate::error::{Context, Error, Result};
use llmq_kernels::convert;
use llmq_kernels::elementwise::first_non_finite;
use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The tensors of a checkpoint folder. Nothing is read until it is asked for.
pub struct Checkpoint {
    folder: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Place>,
}

struct Shard {
    path: PathBuf,
    map: Mmap,
}

/// Where a tensor is.
#[derive(Debug, Clone)]
struct Place {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// What is known about a tensor without reading it.
#[derive(Debug, Clone)]
pub struct Info<'a> {
    /// Its name.
    pub name: &'a str,
    /// safetensors' name of the element type.
    pub dtype: String,
    /// Its shape, slowest dimension first.
    pub shape: &'a [usize],
    /// Its size in bytes.
    pub bytes: usize,
}

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

impl Checkpoint {
    /// Maps `model.safetensors`, or the shards that `model.safetensors.index.json` lists, and checks their headers.
    ///
    /// # Errors
    /// A missing shard, a truncated file, tensors that overlap or reach beyond the file, a name that occurs twice, an
    /// index that names a tensor which is not there.
    pub fn open(folder: &Path) -> Result<Checkpoint> {
        let index = folder.join(INDEX);
        let (names, listed) = if index.is_file() {
            let map = read_index(&index)?;
            let mut names: Vec<String> = map.values().cloned().collect();
            names.sort();
            names.dedup();
            (names, map)
        } else {
            (vec![SINGLE.to_string()], BTreeMap::new())
        };
        let mut checkpoint = Checkpoint { folder: folder.into(), shards: Vec::new(), tensors: BTreeMap::new() };
        for name in &names {
            checkpoint.add(&folder.join(name), !listed.is_empty())?;
        }
        if let Some((tensor, file)) = listed.iter().find(|(tensor, _)| !checkpoint.tensors.contains_key(*tensor)) {
            return Err(Error::new(format!(
                "{} says that tensor '{tensor}' is in {file}, but it is not",
                index.display()
            ))
            .hint("download the checkpoint again: the index and the shards do not belong together"));
        }
        Ok(checkpoint)
    }

    fn add(&mut self, path: &Path, listed: bool) -> Result<()> {
        let file = File::open(path).map_err(|cause| {
            let hint = if listed {
                format!("{INDEX} lists this shard; download it, too")
            } else {
                format!("a checkpoint folder holds {SINGLE}, or {INDEX} and its shards")
            };
            Error::new(format!("cannot open {}", path.display())).because(cause).hint(hint)
        })?;
        // SAFETY: the mapping is read-only. As with every mapped file, another process that truncates the checkpoint while
        // it is being read ends this one with SIGBUS; reading it whole is no alternative at these sizes.
        let map = unsafe { Mmap::map(&file) }.context(|| format!("cannot map {}", path.display()))?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|cause| {
            let what = diagnose(&map).unwrap_or_else(|| "it is not a valid safetensors file".into());
            Error::new(format!("{}: {what}", path.display()))
                .because(cause)
                .hint("the file is damaged or was not downloaded completely; download it again")
        })?;
        self.insert(path, &metadata, header + 8)?;
        self.shards.push(Shard { path: path.into(), map });
        Ok(())
    }

    fn insert(&mut self, path: &Path, metadata: &Metadata, start: usize) -> Result<()> {
        for (name, info) in metadata.tensors() {
            let place = Place {
                shard: self.shards.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                bytes: start + info.data_offsets.0..start + info.data_offsets.1,
            };
            if let Some(other) = self.tensors.insert(name.clone(), place) {
                let other = self.shards[other.shard].path.display();
                return Err(Error::new(format!("tensor '{name}' is in {} and in {other}", path.display())));
            }
        }
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

    /// Every tensor, by name.
    pub fn tensors(&self) -> impl Iterator<Item = Info<'_>> {
        self.tensors.iter().map(|(name, place)| Info {
            name,
            dtype: format!("{:?}", place.dtype),
            shape: &place.shape,
            bytes: place.bytes.len(),
        })
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Checks that a tensor is there, with this shape and a type that can be read.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.place(name, shape).map(|_| ())
    }

    /// Tells the system that a tensor will be read soon, so that the disk is at work meanwhile.
    pub fn expect(&self, name: &str) {
        if let Some(place) = self.tensors.get(name) {
            self.shards[place.shard].expect(place.bytes.clone());
        }
    }

    fn place(&self, name: &str, shape: &[usize]) -> Result<&Place> {
        let place = self.tensors.get(name).ok_or_else(|| {
            Error::new(format!("{}: there is no tensor '{name}'", self.folder.display())).hint(format!(
                "config.json asks for it, with shape {shape:?}; it may belong to another model, or a shard is missing"
            ))
        })?;
        let path = self.shards[place.shard].path.display();
        if place.shape != shape {
            return Err(Error::new(format!(
                "{path}: tensor '{name}' has shape {:?}, but config.json makes it {shape:?}",
                place.shape
            ))
            .hint("config.json and the weights do not belong to the same model"));
        }
        if !matches!(place.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(Error::new(format!("{path}: tensor '{name}' is of type {:?}", place.dtype)).hint(
                "only F32, F16 and BF16 checkpoints can be quantized: start from the original, unquantized one",
            ));
        }
        Ok(place)
    }

    /// One tensor in `f32`.
    ///
    /// # Errors
    /// It is missing, has another shape or type, or holds NaN or infinity.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.read_rows(name, shape, 0..shape[0])
    }

    /// Some rows (steps along the first dimension) of one tensor in `f32`.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn read_rows(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Vec<f32>> {
        let place = self.place(name, shape)?;
        let shard = &self.shards[place.shard];
        let row = place.bytes.len() / shape[0].max(1);
        let part = place.bytes.start + rows.start * row..place.bytes.start + rows.end * row;
        let bytes = &shard.map[part.clone()];
        let numbers = match place.dtype {
            Dtype::F32 => converted(bytes, 4, convert::f32_to_f32),
            Dtype::F16 => converted(bytes, 2, convert::f16_to_f32),
            _ => converted(bytes, 2, convert::bf16_to_f32),
        };
        shard.release(part);
        match first_non_finite(&numbers) {
            None => Ok(numbers),
            Some(at) => Err(Error::new(format!(
                "{}: tensor '{name}' holds {} at element {} of {}",
                shard.path.display(),
                numbers[at],
                rows.start * (shape.iter().product::<usize>() / shape[0]) + at,
                shape.iter().product::<usize>()
            ))
            .hint("the checkpoint is damaged: compare its checksum with the published one, or download it again")),
        }
    }
}

impl Shard {
    /// Tells the system that these bytes will be read soon.
    #[cfg_attr(not(unix), allow(unused_variables))]
    fn expect(&self, bytes: Range<usize>) {
        // Only a hint: nothing depends on it.
        #[cfg(unix)]
        self.map.advise_range(memmap2::Advice::WillNeed, bytes.start, bytes.len()).ok();
    }

    /// Gives pages back: they count as this process's memory while they are mapped in.
    #[cfg(unix)]
    fn release(&self, bytes: Range<usize>) {
        const PAGE: usize = 4096;
        let first = bytes.start.next_multiple_of(PAGE);
        let last = bytes.end / PAGE * PAGE;
        if first < last {
            // SAFETY: the mapping is file-backed and never written, so dropped pages are read again from the file. A failure
            // only means that the pages stay, hence the ignored result.
            let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, first, last - first) };
        }
    }

    /// Pages are the system's own business here.
    #[cfg(not(unix))]
    fn release(&self, _: Range<usize>) {}
}

/// Converts on all threads. `width`: bytes per number.
fn converted(bytes: &[u8], width: usize, convert: fn(&[u8], &mut [f32])) -> Vec<f32> {
    const PART: usize = 1 << 16;
    let mut out = vec![0.0; bytes.len() / width];
    out.par_chunks_mut(PART).zip(bytes.par_chunks(PART * width)).for_each(|(out, bytes)| convert(bytes, out));
    out
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

/// Says with names and numbers what is wrong with a file that the safetensors crate refused.
fn diagnose(map: &[u8]) -> Option<String> {
    let length = map.len();
    if length < 8 {
        return Some(format!("it has {length} bytes, too few for a safetensors header"));
    }
    let header = u64::from_le_bytes(map[..8].try_into().ok()?);
    if header > length as u64 - 8 {
        return Some(format!("its header should take {header} bytes, but the file has only {length}"));
    }
    let start = header as usize + 8;
    let json: serde_json::Value = serde_json::from_slice(&map[8..start]).ok()?;
    let mut places = Vec::new();
    for (name, info) in json.as_object()?.iter().filter(|(name, _)| *name != "__metadata__") {
        let offsets = info.get("data_offsets")?;
        places.push((offsets.get(0)?.as_u64()?, offsets.get(1)?.as_u64()?, name));
    }
    places.sort();
    let held = (length - start) as u64;
    for pair in places.windows(2) {
        let ((_, end, a), (begin, _, b)) = (pair[0], pair[1]);
        if begin < end {
            return Some(format!(
                "tensor '{b}' starts at byte {begin} of the data, inside tensor '{a}', which ends at {end}"
            ));
        }
        if begin > end {
            return Some(format!("{} bytes between tensors '{a}' and '{b}' belong to none", begin - end));
        }
    }
    let (_, end, name) = *places.last()?;
    if end > held {
        return Some(format!("tensor '{name}' ends at byte {end} of the data, but only {held} bytes are there"));
    }
    (end < held).then(|| format!("{} bytes after the last tensor, '{name}', belong to none", held - end))
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
