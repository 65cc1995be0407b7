//! Every setting of a run that decides about the bytes of its output, by the name under which a user knows it.

use super::Rounding;
use super::folder::Folder;
use super::journal::Settings;
use super::plan::Plan;
use super::weights::Weights;
use crate::error::{Context, Result};
use crate::writer::shards::Files;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// What is hashed of a large file: pieces of this size, and how many of them.
const PIECE: u64 = 1 << 16;
const PIECES: u64 = 64;

/// The settings of a run. What is large is there as its hash, and called "the …".
///
/// # Errors
/// A file of the model cannot be read any more.
pub(super) fn of(
    plan: &Plan,
    rounding: &Rounding,
    windows: &[Vec<u32>],
    files: &Files,
    folders: &[Folder],
) -> Result<Settings> {
    let tensors: Vec<_> = plan.tensors.iter().map(|t| (&t.spec.gguf, &t.spec.shape, t.kind.name())).collect();
    let names: Vec<_> = files.paths().map(|path| path.file_name().unwrap_or_default()).collect();
    let options = &rounding.options;
    let text = |x: &dyn ToString| x.to_string();
    let mut settings = vec![
        ("llmq --version", text(&env!("CARGO_PKG_VERSION"))),
        ("the instruction set of the machine", text(&format_args!("{:?}", llmq_kernels::Isa::best()))),
        ("--device", rounding.compute.identity()),
        ("the model", of_files(&plan.source.files())?),
        ("--type", text(&plan.mix)),
        ("the choice of the tensors' types", hash(&tensors)),
        ("the keys of the output", hash(&plan.metadata)),
        ("the name of the output, or --max-shard-size,", hash(&names)),
        ("--format", folders.iter().map(|folder| folder.packing.name()).collect::<Vec<_>>().join(", ")),
        ("--rotate", text(&matches!(plan.source, Weights::Rotated(_)))),
        ("--method", text(&rounding.method.name())),
        ("--damp", text(&options.damp)),
        ("--no-order", text(&!options.order)),
        ("--sweeps", text(&options.sweeps)),
        ("--no-scale-sweeps", text(&!options.scales)),
        ("--output-feedback", text(&options.outputs)),
        ("--no-gptaq", text(&!rounding.asymmetric)),
        ("--save-imatrix", text(&rounding.keep_statistics)),
        ("the importance matrix", rounding.imatrix.map_or("none".into(), |imatrix| hash(&imatrix.entries))),
    ];
    if let Some(c) = rounding.calibration {
        settings.extend([
            ("--samples", text(&c.samples)),
            ("--seq-len", text(&c.positions)),
            ("--seed", text(&c.seed)),
            ("the calibration text", hash(&windows)),
        ]);
    }
    Ok(settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// A hash by which files are known again: of their lengths, and of parts of them.
///
/// # Errors
/// One that cannot be read.
pub fn of_files(paths: &[PathBuf]) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for path in paths {
        sample(path, &mut hasher).context(|| format!("cannot read {}", path.display()))?;
    }
    Ok(hasher.finalize().to_string())
}

/// The hash of what a thing looks like.
pub fn hash(of: &dyn std::fmt::Debug) -> String {
    struct Sink(blake3::Hasher);
    impl std::fmt::Write for Sink {
        fn write_str(&mut self, part: &str) -> std::fmt::Result {
            self.0.update(part.as_bytes());
            Ok(())
        }
    }
    let mut sink = Sink(blake3::Hasher::new());
    // Nothing is refused there.
    std::fmt::write(&mut sink, format_args!("{of:?}")).ok();
    sink.0.finalize().to_string()
}

/// Adds a file's length, its beginning and end, and pieces from all over it: reading all of a large one would take minutes.
fn sample(path: &Path, hasher: &mut blake3::Hasher) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    hasher.update(&length.to_le_bytes());
    for i in 0..PIECES {
        file.seek(SeekFrom::Start(length.saturating_sub(PIECE) * i / (PIECES - 1)))?;
        hasher.update_reader(file.by_ref().take(PIECE))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_differ_in_length_or_beginning_or_end_have_other_hashes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        let of = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let mut hasher = blake3::Hasher::new();
            sample(&path, &mut hasher).unwrap();
            hasher.finalize()
        };
        for length in [0, 10, 1 << 16, (1 << 22) - 5, (1 << 23) + 5] {
            let bytes = vec![7u8; length];
            let whole = of(&bytes);
            assert_eq!(whole, of(&bytes));
            assert_ne!(whole, of(&[&bytes[..], &[7]].concat()));
            // In a file so large, what lies between two pieces is not looked at.
            let middle = if length < 1 << 22 { length / 2 } else { 0 };
            for at in [0, middle, length.wrapping_sub(1)] {
                let mut other = bytes.clone();
                let Some(byte) = other.get_mut(at) else { continue };
                *byte = 8;
                assert_ne!(whole, of(&other), "byte {at} of {length}");
            }
        }
    }
}
