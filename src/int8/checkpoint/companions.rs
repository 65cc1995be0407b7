//! The files of a checkpoint folder that hold no weights: tokenizer, preprocessing, pooling.

use crate::error::{Context, Result};
use crate::source::links::stays_inside;
use serde_json::Value;
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
    let path = folder.join("modules.json");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) => return Err(cause).context(|| format!("cannot read {}", path.display())),
    };
    let list: Value = serde_json::from_str(&text).context(|| format!("{} is not valid JSON", path.display()))?;
    let paths = list.as_array().into_iter().flatten().filter_map(|module| module["path"].as_str());
    let inside = |path: &&str| {
        let mut parts = Path::new(path).components();
        parts.next().is_some_and(|part| matches!(part, Component::Normal(_))) && parts.next().is_none()
    };
    Ok(paths.filter(inside).filter(|path| folder.join(path).is_dir()).map(str::to_owned).collect())
}
