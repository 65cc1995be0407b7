//! Reads GGUF files, trusting nothing in them: every count, length and offset is checked against the file's own size
//! before memory is asked for, and a damaged file is an error that says where and what.

mod parser;
mod split;

use std::collections::HashMap;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use self::parser::{Parser, damaged, shown};
use self::split::Split;
pub use self::split::{SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, keys as split_keys, shard_name};
use super::value::{Metadata, Value, get};
use super::{lfs, pages};
use crate::error::{Context, Error, Result};

/// The first four bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// What tensor data is aligned to, in bytes, unless `general.alignment` says otherwise.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// The most dimensions that ggml knows.
pub const MAX_DIMS: usize = 4;

/// How a tensor type lays out its elements. The caller of [`Gguf::open`] knows it, because block types belong to
/// `format`, downstream of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeLayout {
    /// The type's name, for errors: `Q4_K`.
    pub name: &'static str,
    /// Elements in one block; a row must hold a whole number of blocks.
    pub block: u64,
    /// Bytes in one block.
    pub bytes: u64,
}

/// One tensor, as the file describes it and after all checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name, unique in its file.
    pub name: String,
    /// Elements along each dimension in ggml's order, the fastest first: `[in, out]`, the reverse of a checkpoint's.
    pub dims: Vec<u64>,
    /// ggml's number of the element type.
    pub type_id: u32,
    /// Where the data starts, in bytes from the start of the data section.
    pub offset: u64,
    /// The length of the data in bytes.
    pub bytes: u64,
    /// Which of the files that make up a model holds it; zero where there is only one.
    pub shard: usize,
}

impl TensorInfo {
    /// The number of elements.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }
}

/// An open GGUF: its description in memory, its data mapped. A model that is cut into shards is one of these, too.
#[derive(Debug)]
pub struct Gguf {
    /// Where the file, or the first shard, is.
    pub path: PathBuf,
    /// The version of the format: 2 or 3.
    pub version: u32,
    /// Keys and values in file order; those of the first shard.
    pub metadata: Metadata,
    /// Tensors in file order.
    pub tensors: Vec<TensorInfo>,
    /// From a tensor's name to its place in `tensors`.
    index: HashMap<String, usize>,
    shards: Vec<Shard>,
}

/// One mapped file.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Mmap,
    /// Where the data section starts, in bytes from the start of the file.
    data_start: u64,
}

impl Gguf {
    /// Opens and checks the file at `path`, and the shards that belong to it if it is the first of several; `layout`
    /// tells how ggml's tensor types are laid out, or `None` for a type it does not know.
    ///
    /// # Errors
    ///
    /// A file cannot be read, is no little-endian GGUF of version 2 or 3, is damaged, or holds a tensor of a type
    /// that `layout` does not know; `path` is a shard but not the first; a shard is missing or belongs to another model.
    pub fn open(path: &Path, layout: impl Fn(u32) -> Option<TypeLayout>) -> Result<Self> {
        let (first, shard) = open_one(path, &layout)?;
        let mut gguf = Self {
            path: path.to_owned(),
            version: first.version,
            metadata: first.metadata,
            tensors: first.tensors,
            index: HashMap::new(),
            shards: vec![shard],
        };
        if let Some(split) = Split::of(&gguf.metadata, path)? {
            gguf.join(&split, &layout)?;
        }
        for (i, info) in gguf.tensors.iter().enumerate() {
            if let Some(other) = gguf.index.insert(info.name.clone(), i) {
                let [one, two] = [other, i].map(|i| gguf.shards[gguf.tensors[i].shard].path.display());
                return Err(Error::new(format!("tensor {} is in {one} and in {two}", shown(&info.name))));
            }
        }
        Ok(gguf)
    }

    /// Adds the shards behind the first.
    fn join(&mut self, split: &Split, layout: &dyn Fn(u32) -> Option<TypeLayout>) -> Result<()> {
        let hint = "the shards of a model belong in one folder, under the names they were published with";
        for no in 1..split.count {
            let path = self.path.with_file_name(shard_name(&split.prefix, no, split.count));
            let (parsed, shard) = open_one(&path, layout)
                .map_err(|cause| match path.exists() {
                    true => cause,
                    false => {
                        Error::new(format!("shard {} of {} is missing", no + 1, split.count)).because(cause).hint(hint)
                    }
                })
                .context(|| format!("cannot read {}", self.path.display()))?;
            let numbers = |key: &str| get(&parsed.metadata, key).and_then(Value::as_u64);
            if (numbers(SPLIT_NO), numbers(SPLIT_COUNT)) != (Some(no as u64), Some(split.count as u64)) {
                let what = format!("{} does not say that it is shard {} of {}", path.display(), no + 1, split.count);
                return Err(Error::new(what).hint(hint));
            }
            let place = self.shards.len();
            self.tensors.extend(parsed.tensors.into_iter().map(|info| TensorInfo { shard: place, ..info }));
            self.shards.push(shard);
        }
        match get(&self.metadata, SPLIT_TENSORS).and_then(Value::as_u64) {
            Some(wanted) if wanted != self.tensors.len() as u64 => {
                let (path, n, found) = (self.path.display(), split.count, self.tensors.len());
                let what = format!("{path} says that there are {wanted} tensors, but its {n} shards have {found}");
                Err(Error::new(what).hint("a shard is from another version of the model: download them all again"))
            }
            _ => Ok(()),
        }
    }

    /// The files that are mapped, the first shard first.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|shard| shard.path.as_path())
    }

    /// The value of a metadata key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        get(&self.metadata, key)
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(*self.index.get(name)?)
    }

    /// The bytes of a tensor, as they are in the file.
    ///
    /// # Panics
    ///
    /// When `info` was made by hand and lies outside this file; what [`Gguf::open`] returned never does.
    pub fn data(&self, info: &TensorInfo) -> &[u8] {
        let start = self.start_of(info);
        &self.shards[info.shard].map[start..start + info.bytes as usize]
    }

    /// Tells the system that a tensor will be read soon, so that the disk is at work meanwhile.
    pub fn expect(&self, info: &TensorInfo) {
        let start = self.start_of(info);
        pages::expect(&self.shards[info.shard].map, start..start + info.bytes as usize);
    }

    /// Gives the memory of a part of a tensor, `bytes` of its data, that was read back to the system. It may be read again,
    /// at the price of reading the disk. Does nothing on systems other than Unix.
    pub fn release(&self, info: &TensorInfo, bytes: Range<usize>) {
        let start = self.start_of(info);
        pages::release(&self.shards[info.shard].map, start + bytes.start..start + bytes.end);
    }

    /// Where a tensor starts in its file. `parse` has checked that it fits the map, so it fits a usize.
    fn start_of(&self, info: &TensorInfo) -> usize {
        (self.shards[info.shard].data_start + info.offset) as usize
    }
}

fn open_one(path: &Path, layout: &dyn Fn(u32) -> Option<TypeLayout>) -> Result<(Parsed, Shard)> {
    let what = || format!("cannot read {}", path.display());
    // Opening a pipe or a device could wait for ever.
    if !fs::metadata(path).context(what)?.is_file() {
        return Err(Error::new(format!("cannot read {}: it is not a file", path.display())));
    }
    let file = File::open(path).context(what)?;
    // SAFETY: the map is read-only and every byte pattern is a valid u8. Another program could still shorten or
    // rewrite the file meanwhile; that is outside what any reader of mapped files can prevent.
    let map = unsafe { Mmap::map(&file) }.context(what)?;
    lfs::refuse_pointer(path, &map)?;
    let parsed = parse(&map, layout).map_err(|cause| match of_checkpoint(path).filter(|_| !map.starts_with(&MAGIC)) {
        Some(folder) => cause.hint(format!("of a checkpoint, give the folder that it is in: {}", folder.display())),
        None => cause,
    });
    let parsed = parsed.context(|| format!("cannot read {} as GGUF", path.display()))?;
    let shard = Shard { path: path.to_owned(), map, data_start: parsed.data_start };
    Ok((parsed, shard))
}

/// The folder of a file that is part of a checkpoint by its name.
fn of_checkpoint(path: &Path) -> Option<&Path> {
    let ending = path.extension()?.to_str()?.to_lowercase();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    ["safetensors", "bin", "pt", "pth", "json"].contains(&ending.as_str()).then_some(folder)
}

/// What tensor data is aligned to by a file with this metadata, in bytes.
///
/// # Errors
///
/// `general.alignment` is no u32, the one type that ggml takes, or no power of two.
pub fn alignment(metadata: &Metadata) -> Result<u64> {
    match get(metadata, "general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(n)) if n.is_power_of_two() => Ok((*n).into()),
        Some(other) => Err(Error::new(format!(
            "general.alignment is {other} ({}), but it must be a power of two (u32)",
            other.type_name()
        ))),
    }
}

/// Everything the file says about itself.
struct Parsed {
    version: u32,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    data_start: u64,
}

fn parse(bytes: &[u8], layout: &dyn Fn(u32) -> Option<TypeLayout>) -> Result<Parsed> {
    let mut parser = Parser::new(bytes);
    if parser.take(4).ok() != Some(&MAGIC) {
        return Err(Error::new("it does not start with \"GGUF\"").hint("check that this is a .gguf file"));
    }
    let version: u32 = parser.read()?;
    match version {
        2 | 3 => {}
        1 => {
            return Err(Error::new("it has version 1 of the format, which no program writes any more")
                .hint("convert the original checkpoint again"));
        }
        n if matches!(n.swap_bytes(), 1..=3) => {
            return Err(Error::new("it is big-endian").hint("convert it with gguf_convert_endian.py of llama.cpp"));
        }
        n => {
            return Err(Error::new(format!("it has version {n} of the format; versions 2 and 3 are known"))
                .hint("a newer llmq may read it"));
        }
    }
    let tensor_count: u64 = parser.read()?;
    let key_count: u64 = parser.read()?;
    let metadata = parser.metadata(key_count)?;
    let alignment = alignment(&metadata)?;
    let mut tensors = parser.tensors(tensor_count, layout)?;
    let file_size = bytes.len() as u64;
    let data_start = (parser.at() as u64).next_multiple_of(alignment);
    check_places(&mut tensors, alignment, data_start, file_size)?;
    Ok(Parsed { version, metadata, tensors, data_start })
}

/// Checks that every tensor's data is aligned, inside the file, and its own. Gaps and any order are fine.
fn check_places(tensors: &mut [TensorInfo], alignment: u64, data_start: u64, file_size: u64) -> Result<()> {
    let mut by_offset: Vec<&TensorInfo> = Vec::with_capacity(tensors.len());
    for info in tensors.iter() {
        let TensorInfo { name, offset, bytes, .. } = info;
        let name = shown(name);
        if offset % alignment != 0 {
            let what = format!("tensor {name} starts at offset {offset}, which is no multiple of {alignment}");
            return Err(damaged(what));
        }
        let end = data_start.checked_add(*offset).and_then(|start| start.checked_add(*bytes));
        if end.is_none_or(|end| end > file_size) {
            return Err(damaged(format!(
                "tensor {name} needs {bytes} bytes at offset {offset} of the data section, which starts at byte \
                 {data_start}, but the file ends at byte {file_size}"
            )));
        }
        if *bytes > 0 {
            by_offset.push(info);
        }
    }
    by_offset.sort_by_key(|info| info.offset);
    for pair in by_offset.windows(2) {
        if pair[0].offset + pair[0].bytes > pair[1].offset {
            let [first, second] = [&pair[0].name, &pair[1].name].map(|name| shown(name));
            let what = format!("tensors {first} and {second} overlap at offset {}", pair[1].offset);
            return Err(damaged(what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(type_id: u32) -> Option<TypeLayout> {
        match type_id {
            0 => Some(TypeLayout { name: "F32", block: 1, bytes: 4 }),
            8 => Some(TypeLayout { name: "Q8_0", block: 32, bytes: 34 }),
            _ => None,
        }
    }

    fn string(text: &[u8]) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text].concat()
    }

    /// A metadata entry from its key, its type and the bytes of its value.
    fn entry(key: &str, type_id: u32, value: &[u8]) -> Vec<u8> {
        [&string(key.as_bytes()), &type_id.to_le_bytes()[..], value].concat()
    }

    fn array(type_id: u32, count: u64, items: &[u8]) -> Vec<u8> {
        [&type_id.to_le_bytes()[..], &count.to_le_bytes(), items].concat()
    }

    fn info(name: &str, dims: &[u64], type_id: u32, offset: u64) -> Vec<u8> {
        let mut out = string(name.as_bytes());
        out.extend((dims.len() as u32).to_le_bytes());
        out.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
        out.extend(type_id.to_le_bytes());
        out.extend(offset.to_le_bytes());
        out
    }

    /// A whole file with `data` bytes of data.
    fn file(entries: &[Vec<u8>], infos: &[Vec<u8>], data: usize) -> Vec<u8> {
        let counts = [infos.len() as u64, entries.len() as u64].map(u64::to_le_bytes).concat();
        let mut out = [&MAGIC[..], &3u32.to_le_bytes(), &counts, &entries.concat(), &infos.concat()].concat();
        out.resize(out.len().next_multiple_of(32) + data, 7);
        out
    }

    /// A file with a value of each kind and two tensors, and the length of what comes before the data.
    fn small() -> (Vec<u8>, usize) {
        let entries = [
            entry("general.alignment", 4, &32u32.to_le_bytes()),
            entry("s", 8, &string("é".as_bytes())),
            entry("strs", 9, &array(8, 2, &[string(b"ab"), string(b"")].concat())),
            entry("ints", 9, &array(5, 2, &[0; 8])),
            entry("yes", 7, &[1]),
        ];
        let infos = [info("a", &[32, 2], 8, 0), info("b", &[2, 2, 2], 0, 96)];
        let bytes = file(&entries, &infos, 128);
        let header = bytes.len() - 128;
        (bytes, header)
    }

    /// The errors of a file, outermost first; panics if there is none.
    fn errors(bytes: &[u8]) -> String {
        parse(bytes, &layout).err().expect("an error").chain().join(": ")
    }

    #[test]
    fn a_small_file_reads() {
        let (bytes, header) = small();
        let parsed = parse(&bytes, &layout).unwrap();
        assert_eq!((parsed.version, parsed.data_start), (3, header as u64));
        assert_eq!(get(&parsed.metadata, "s").and_then(Value::as_str), Some("é"));
        assert_eq!(get(&parsed.metadata, "strs"), Some(&vec!["ab".to_owned(), String::new()].into()));
        assert_eq!(get(&parsed.metadata, "yes"), Some(&true.into()));
        let b = &parsed.tensors[1];
        assert_eq!((b.dims.as_slice(), b.offset, b.bytes, b.elements()), (&[2, 2, 2][..], 96, 32, 8));
        let mut older = bytes;
        older[4] = 2;
        assert_eq!(parse(&older, &layout).unwrap().version, 2);
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error() {
        let (bytes, _) = small();
        for length in 0..bytes.len() {
            let error = parse(&bytes[..length], &layout).err().unwrap_or_else(|| panic!("cut to {length} bytes"));
            assert!(error.hint_text().is_some(), "cut to {length} bytes: {error}");
        }
    }

    #[test]
    fn a_damaged_byte_never_panics_nor_asks_for_more_than_the_file_holds() {
        let (bytes, header) = small();
        for at in 0..header {
            for value in [0, 1, 0x7f, 0x80, 0xff, bytes[at] ^ 1, bytes[at] ^ 0x10] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                // A count that was believed would abort here: byte 7 of a length is 2^63 bytes.
                let Ok(parsed) = parse(&damaged, &layout) else { continue };
                assert!(parsed.metadata.capacity() + parsed.tensors.capacity() <= bytes.len());
                for info in &parsed.tensors {
                    assert!(parsed.data_start + info.offset + info.bytes <= bytes.len() as u64);
                }
            }
        }
    }

    #[test]
    fn other_formats_and_versions_are_named() {
        assert!(errors(b"").contains("\"GGUF\""));
        assert!(errors(b"PK\x03\x04 and more").contains("\"GGUF\""));
        assert!(errors(b"GGUF\x01\0\0\0").contains("version 1"));
        assert!(errors(b"GGUF\x04\0\0\0").contains("version 4"));
        assert!(errors(b"GGUF\0\0\0\x03").contains("big-endian"));
        // A file of a checkpoint belongs to a folder, and any other may be the wrong one.
        let folder = tempfile::tempdir().unwrap();
        let hint = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            Gguf::open(&path, layout).unwrap_err().hint_text().unwrap().to_owned()
        };
        let own = folder.path().display().to_string();
        assert!(hint("model.safetensors", b"{}").contains(&format!("give the folder that it is in: {own}")));
        assert!(hint("a.gguf", b"{}").contains("a .gguf file"));
        assert!(!hint("a.bin", b"GGUF\x01\0\0\0").contains("folder"));
    }

    #[test]
    fn damaged_metadata_is_named() {
        let one = |entry: Vec<u8>| errors(&file(&[entry], &[], 64));
        assert!(one(entry("k", 13, &[0; 8])).contains("metadata key \"k\": its value has the unknown type 13"));
        assert!(one(entry("k", 9, &array(13, 1, &[0; 8]))).contains("unknown type 13"));
        assert!(one(entry("k", 9, &array(9, 1, &[0; 24]))).contains("array of arrays"));
        assert!(one(entry("k", 9, &array(0, 1 << 40, &[]))).contains("1099511627776 array elements"));
        assert!(one(entry("k", 9, &array(8, 12, &[0; 8]))).contains("12 array elements"));
        assert!(one(entry("k", 8, &u64::MAX.to_le_bytes())).contains("18446744073709551615 bytes should follow"));
        assert!(one(entry("k", 8, &string(b"\xff"))).contains("not UTF-8"));
        assert!(one([string(b"\xff"), vec![0; 8]].concat()).contains("key of metadata entry 1 of 1"));
        assert!(one(entry(&"k".repeat(65536), 0, &[0])).contains("65536 bytes"));
        for alignment in [0u32, 24] {
            let error = one(entry("general.alignment", 4, &alignment.to_le_bytes()));
            assert!(error.contains(&format!("general.alignment is {alignment} (u32)")), "{error}");
        }
        assert!(one(entry("general.alignment", 0, &[32])).contains("(u8)"));
        let twice = [entry("k", 0, &[1]), entry("k", 0, &[1])];
        assert!(errors(&file(&twice, &[], 0)).contains("\"k\" is there twice"));
    }

    #[test]
    fn damaged_tensors_are_named() {
        let two = |a: Vec<u8>, b: Vec<u8>| errors(&file(&[], &[a, b], 128));
        let good = || info("good", &[8], 0, 0);
        assert!(two(good(), good()).contains("tensor \"good\" is there twice"));
        assert!(two(good(), info("t", &[1; 5], 0, 32)).contains("tensor \"t\": it has 5 dimensions"));
        assert!(two(good(), info("t", &[8], 99, 32)).contains("its type 99 is not known"));
        assert!(two(good(), info("t", &[48], 8, 32)).contains("rows of 48 are no whole number of Q8_0 blocks of 32"));
        assert!(two(good(), info("t", &[1 << 32, 1 << 32], 0, 32)).contains("too many elements"));
        assert!(two(good(), info("t", &[0, u64::MAX], 0, 32)).contains("too many elements"));
        assert!(two(good(), info("t", &[1 << 62], 0, 32)).contains("too many elements"));
        assert!(two(good(), info("t", &[8], 0, 33)).contains("offset 33"));
        assert!(two(good(), info("t", &[8], 0, 128)).contains("needs 32 bytes at offset 128"));
        assert!(two(good(), info("t", &[8], 0, u64::MAX - 31)).contains("the file ends at byte"));
        assert!(two(info("long", &[16], 0, 0), info("t", &[8], 0, 32)).contains("\"long\" and \"t\" overlap"));
        assert!(two(good(), info("\u{1b}[2J", &[8], 99, 0)).contains(r#""\u{1b}[2J""#));
    }

    #[test]
    fn a_scalar_and_an_empty_tensor_are_fine() {
        let bytes = file(&[], &[info("scalar", &[], 0, 0), info("empty", &[0, 3], 0, 0)], 4);
        let parsed = parse(&bytes, &layout).unwrap();
        assert_eq!((parsed.tensors[0].bytes, parsed.tensors[1].bytes), (4, 0));
    }

    #[test]
    fn a_folder_or_a_missing_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Gguf::open(folder.path(), layout).unwrap_err().to_string().contains("it is not a file"));
        let missing = folder.path().join("missing.gguf");
        let error = Gguf::open(&missing, layout).unwrap_err();
        assert!(error.to_string().contains("missing.gguf"));
        fs::write(&missing, "").unwrap();
        assert!(Gguf::open(&missing, layout).unwrap_err().chain()[1].contains("\"GGUF\""));
    }
}
