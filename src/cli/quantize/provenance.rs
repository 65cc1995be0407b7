//! What a file says about how it was made, in keys that llama.cpp ignores: `llmq.version`, `llmq.options`, and of calibrated
//! methods `llmq.calibration` and `llmq.calibration.blake3`; and `llmq.device` where it was not the CPU.
//!
//! Paths stay at home: of files only their names are kept. Types are not repeated, for the file itself has them.

use super::Args;
use super::corpus::{What, named};
use crate::cli::shell::word;
use crate::compute::{Compute, Cpu};
use crate::error::Result;
use crate::method::Method;
use crate::pipeline::Calibration;
use crate::source::value::{Metadata, Value};
use std::path::Path;

const VERSION: &str = "llmq.version";
const OPTIONS: &str = "llmq.options";
const CALIBRATION: &str = "llmq.calibration";
const HASH: &str = "llmq.calibration.blake3";
const DEVICE: &str = "llmq.device";

/// The keys. The hash is that of no text until [`calibrated`] knows better, so that plans know how long they are.
///
/// # Errors
/// Options that make no sense.
pub fn keys(args: &Args, method: &dyn Method) -> Result<Metadata> {
    let mut keys = vec![
        (VERSION.to_owned(), Value::from(env!("CARGO_PKG_VERSION"))),
        (OPTIONS.to_owned(), options(args, method)?.join(" ").into()),
    ];
    if method.calibrated() {
        let names = named(&args.calib)?.iter().map(|named| named.what.short()).collect::<Vec<String>>();
        let names = if names.is_empty() { "sample built into llmq".into() } else { names.join(", ") };
        keys.push((CALIBRATION.into(), names.into()));
        keys.push((HASH.into(), blake3::hash(b"").to_string().into()));
    }
    Ok(keys)
}

/// Writes down on which device, with which driver and kernels, unless it was the CPU.
pub fn computed(metadata: &mut Metadata, compute: &dyn Compute) {
    let identity = compute.identity();
    if identity != Cpu.identity() && metadata.iter().all(|(key, _)| key != DEVICE) {
        metadata.push((DEVICE.into(), identity.into()));
    }
}

/// Writes down which text was read: BLAKE3 of its documents, each with its length before it (8 bytes, the least significant
/// first).
pub fn calibrated(metadata: &mut Metadata, calibration: &Calibration) {
    let mut hasher = blake3::Hasher::new();
    for document in calibration.corpus.documents() {
        hasher.update(&(document.len() as u64).to_le_bytes());
        hasher.update(document.as_bytes());
    }
    let nothing = Value::Str(blake3::hash(b"").to_string());
    // A key that --override-kv has replaced stays as it is.
    if let Some((_, value)) = metadata.iter_mut().find(|(key, value)| key == HASH && *value == nothing) {
        *value = hasher.finalize().to_string().into();
    }
}

/// The options that decide about the file, as they are typed.
fn options(args: &Args, method: &dyn Method) -> Result<Vec<String>> {
    let mut words = args.target.words();
    words.extend(args.fit.words());
    words.extend(args.how.words(method)?);
    let mut pair = |option: &str, value: String| words.extend([option.to_owned(), word(value)]);
    if method.calibrated() {
        args.seq_len.iter().for_each(|n| pair("--seq-len", n.to_string()));
        named(&args.calib)?.iter().for_each(|named| pair("--calib", named.short()));
    }
    if args.seed != 0 {
        pair("--seed", args.seed.to_string());
    }
    args.tensor_type.iter().for_each(|own| pair("--tensor-type", own.clone()));
    args.tensor_type_file.iter().for_each(|path| pair("--tensor-type-file", file_name(path)));
    args.output_tensor_type.iter().for_each(|kind| pair("--output-tensor-type", kind.clone()));
    args.token_embedding_type.iter().for_each(|kind| pair("--token-embedding-type", kind.clone()));
    args.imatrix.iter().for_each(|path| pair("--imatrix", file_name(path)));
    let flags = [("--pure", args.pure), ("--pack", args.pack), ("--rotate", args.rotate), ("--no-mtp", args.no_mtp)];
    words.extend(flags.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag.to_owned()));
    Ok(words)
}

/// A path without its folders.
pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl What {
    /// Its name, without folders.
    pub(super) fn short(&self) -> String {
        match self {
            What::File(path) => file_name(path),
            What::Set(set) => set.name().into(),
        }
    }
}
