//! The files of a checkpoint folder that hold no weights: tokenizer, preprocessing, pooling.

use crate::error::{Context, Result};
use crate::source::checkpoint::modules;
use crate::source::links::stays_inside;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// The file that is rewritten.
pub const CONFIG: &str = "config.json";

/// What names of files of weights end with, of this framework or another.
const WEIGHTS: &[&str] = &[
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".ot",
    ".onnx",
    ".onnx_data",
    ".gguf",
    ".tflite",
];

/// The files that are copied, and their names in the result: those of the folder that hold no weights, and those of the
/// folders in which sentence-transformers keeps what follows the model (pooling, for example).
///
/// # Errors
/// A folder or modules.json that cannot be read, or a link out of the folder.
pub fn of(folder: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut others = Vec::new();
    for path in files(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let weights = WEIGHTS.iter().any(|ending| name.ends_with(ending)) || name.ends_with(".index.json");
        if !weights && name != CONFIG && !name.starts_with('.') {
            others.push((path, name));
        }
    }
    for module in modules(folder)? {
        for path in files(&folder.join(&module))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            others.push((path, format!("{module}/{name}")));
        }
    }
    others.iter().try_for_each(|(path, _)| stays_inside(folder, path))?;
    Ok(others)
}

/// The files in a folder, by name.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let cannot = || format!("cannot read {}", folder.display());
    let entries = fs::read_dir(folder).context(cannot)?.collect::<std::io::Result<Vec<_>>>().context(cannot)?;
    let mut files: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).filter(|path| path.is_file()).collect();
    files.sort();
    Ok(files)
}

/// The folders that sentence-transformers' modules.json lists, as far as they are there, inside `folder`.
fn modules(folder: &Path) -> Result<Vec<String>> {
    let inside = |path: &String| {
        let mut parts = Path::new(path).components();
        parts.next().is_some_and(|part| matches!(part, Component::Normal(_))) && parts.next().is_none()
    };
    let paths = modules::read(folder)?.into_iter().map(|module| module.path);
    Ok(paths.filter(inside).filter(|path| folder.join(path).is_dir()).collect())
}
