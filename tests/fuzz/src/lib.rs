//! What the targets share: files for readers that take paths, and a limit on memory.

use llmq::source::checkpoint::Checkpoint;
use llmq::source::tokenizer::Tokenizer;
use llmq::source::vocabulary::Vocabulary;
use serde_json::Value;
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::{self, File};
use std::hint::black_box;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A file that holds the input at hand. It should lie in memory: scripts/fuzz.sh sets `TMPDIR` to a folder there.
pub struct InputFile {
    file: File,
    path: PathBuf,
}

impl InputFile {
    /// The file of this name, alone in a folder but for its neighbours, which hold what is given with their names.
    pub fn new(name: &str, neighbours: &[(&str, &[u8])]) -> InputFile {
        static FOLDERS: AtomicUsize = AtomicUsize::new(0);
        let number = FOLDERS.fetch_add(1, Relaxed);
        let folder = std::env::temp_dir().join(format!("llmq-fuzz-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder for files");
        for (name, bytes) in neighbours {
            fs::write(folder.join(name), bytes).expect("a file in it");
        }
        let path = folder.join(name);
        InputFile { file: File::create(&path).expect("a file in it"), path }
    }

    /// Makes these bytes all that the file holds, and gives its path. Nothing may have it mapped.
    pub fn holds(&self, bytes: &[u8]) -> &Path {
        self.file.write_all_at(bytes, 0).and_then(|()| self.file.set_len(bytes.len() as u64)).expect("a file in memory");
        &self.path
    }

    /// The same, with the folder that it is in.
    pub fn folder_holds(&self, bytes: &[u8]) -> &Path {
        self.holds(bytes).parent().unwrap_or(Path::new("."))
    }
}

/// Lets everything run on the thread of the fuzzer, which sees and times only that one.
pub fn alone() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
    pool.build_global().expect("the first pool");
}

/// The most bytes that may be in use. libFuzzer's own limit of single allocations needs a sanitizer, and inputs here are
/// some kilobytes long: whatever takes this much was asked for by a count that nobody checked.
const MOST: usize = 256 << 20;

/// The system's memory, up to a limit.
struct Limited;

static USED: AtomicUsize = AtomicUsize::new(0);

fn take(bytes: usize) {
    let used = USED.fetch_add(bytes, Relaxed).saturating_add(bytes);
    if used > MOST {
        // The message needs memory, too.
        USED.store(0, Relaxed);
        let _ = writeln!(std::io::stderr(), "an allocation of {bytes} bytes would make {used}, more than {MOST}");
        std::process::abort();
    }
}

// SAFETY: every call goes to the system's allocator as it came; counting changes nothing about it.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        take(bytes.saturating_sub(layout.size()));
        USED.fetch_sub(layout.size().saturating_sub(bytes), Relaxed);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, bytes) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static MEMORY: Limited = Limited;

/// Reads every small tensor of a checkpoint in each way that there is.
pub fn read_all(checkpoint: &Checkpoint) {
    for info in checkpoint.tensors() {
        black_box((info.dtype, info.bytes));
        let elements: u128 = info.shape.iter().map(|&n| n as u128).product();
        // No model asks for a tensor of no numbers.
        if !(1..=1 << 16).contains(&elements) || info.shape.is_empty() {
            continue;
        }
        black_box(checkpoint.bytes(info.name));
        let _ = black_box(checkpoint.read(info.name, info.shape));
        if let Some(weight) = checkpoint.grouped(info.name) {
            black_box(weight.codes(0..info.shape[0]));
            let _ = black_box(weight.lines(0..info.shape[0]));
        }
    }
}

/// Reads the vocabulary in a folder, for an embedding of so many rows, writes and reads it as GGUF does, and encodes text with it.
pub fn encode(folder: &Path, rows: usize) {
    let Ok(vocabulary) = Vocabulary::from_files(folder, rows, &Value::Null, None) else { return };
    let read = Vocabulary::from_metadata(&vocabulary.to_metadata());
    assert!(read.is_ok(), "what was written cannot be read: {read:?}");
    let Ok(tokenizer) = Tokenizer::open(folder, &vocabulary) else { return };
    let Ok(tokens) = tokenizer.encode("a b<s>\u{e9} c 12") else { return };
    assert!(tokens.iter().all(|&token| (token as usize) < rows), "a token without a row: {tokens:?}");
}

/// A zip of files that are not compressed, with the checksums left out, which nothing here looks at.
pub fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in files {
        let (at, size) = (bytes.len() as u32, (content.len() as u32).to_le_bytes());
        // Version, flags, method, time, date, checksum; both sizes, the lengths of the name and of what follows it.
        let about =
            [&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &size[..], &size, &[name.len() as u8, 0, 0, 0]].concat();
        bytes.extend([b"PK\x03\x04", &about[..], name.as_bytes(), content].concat());
        let behind = [&[0; 10], &at.to_le_bytes()[..], name.as_bytes()].concat();
        directory.extend([b"PK\x01\x02\x14\0", &about[..], &behind].concat());
    }
    let (count, size, at) = (files.len() as u8, directory.len() as u32, bytes.len() as u32);
    let end = [&[0, 0, 0, 0, count, 0, count, 0], &size.to_le_bytes()[..], &at.to_le_bytes(), &[0, 0]].concat();
    [&bytes[..], &directory, b"PK\x05\x06", &end].concat()
}
