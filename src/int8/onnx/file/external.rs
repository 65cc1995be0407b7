//! Values in files beside a model.
//!
//! A tensor names such a file by a path relative to the model's folder, with an offset and a length ([external data]).
//!
//! [external data]: https://github.com/onnx/onnx/blob/main/docs/ExternalData.md

use super::each_tensor;
use super::mapped::{each_part, map};
use crate::error::{Context, Error, Result};
use crate::int8::onnx::proto::tensor_proto::DataLocation;
use crate::int8::onnx::proto::{ModelProto, StringStringEntryProto, TensorProto};
use crate::int8::onnx::tensor::{raw_bytes, type_name};
use crate::writer::atomic::AtomicFile;
use prost::bytes::Bytes;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// Smaller tensors stay in the model.
const SMALLEST: usize = 1024;

/// Tensors of this size or more begin at a multiple of [`PAGE`], so that readers can map them.
const MAPPED: usize = 1 << 20;
const PAGE: u64 = 4096;

/// What other tensors are aligned to; more than any type needs.
const ALIGNED: u64 = 64;

/// The file with the values of the model at `path`.
pub fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".data");
    name.into()
}

/// Puts all external values in place; they stay mapped. Gives the files that they are in, with their sizes.
pub fn resolve(model: &mut ModelProto, path: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut files = BTreeMap::new();
    each_tensor(model, &mut |tensor| {
        if tensor.data_location() != DataLocation::External {
            return Ok(());
        }
        let bytes = values(tensor, folder, &mut files)
            .context(|| format!("the values of tensor '{}' cannot be found", tensor.name()))?;
        tensor.raw_data = Some(bytes);
        tensor.external_data.clear();
        tensor.data_location = None;
        Ok(())
    })?;
    Ok(files.into_iter().map(|(path, bytes)| (path, bytes.len() as u64)).collect())
}

/// The external values of one tensor.
fn values(tensor: &TensorProto, folder: &Path, files: &mut BTreeMap<PathBuf, Bytes>) -> Result<Bytes> {
    let entry = |key| tensor.external_data.iter().find(|entry| entry.key() == key).map(|entry| entry.value());
    let number = |key| {
        let parse = |text: &str| text.parse().map_err(|_| Error::new(format!("their {key} is '{text}'")));
        entry(key).map(parse).transpose()
    };
    let location = entry("location").ok_or_else(|| Error::new("no file is named"))?;
    let within = Path::new(location);
    // Lexically: a link in the folder is the user's own, and the cache of the Hugging Face Hub consists of them.
    if location.is_empty() || !within.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    {
        return Err(Error::new(format!("they are said to be in '{location}', which is not in the model's folder")));
    }
    let path: PathBuf = folder.join(within).components().filter(|part| *part != Component::CurDir).collect();
    if !files.contains_key(&path) {
        let mapped = map(&path).map_err(|cause| {
            Error::new(format!("cannot read {}", path.display()))
                .because(cause)
                .hint("the model consists of several files; put them all in one folder, under their names")
        })?;
        files.insert(path.clone(), mapped);
    }
    let file = &files[&path];
    let wanted =
        raw_bytes(tensor)?.ok_or_else(|| Error::new(format!("type {} is not known", type_name(tensor.data_type()))))?;
    let offset = number("offset")?.unwrap_or(0);
    let length = number("length")?.unwrap_or(wanted);
    if length != wanted {
        let dims = &tensor.dims;
        return Err(Error::new(format!("shape {dims:?} takes {wanted} bytes, but their length is {length}")));
    }
    let end = offset.checked_add(length).filter(|&end| end <= file.len());
    let Some(end) = end else {
        let (path, size) = (path.display(), file.len());
        return Err(Error::new(format!("{path} has {size} bytes, but they are {length} bytes from byte {offset} on"))
            .hint("the file is truncated or belongs to another model; copy or download it again"));
    };
    Ok(file.slice(offset..end))
}

/// Where values go.
pub trait Values {
    /// How many bytes there are.
    fn written(&self) -> u64;

    /// Adds some.
    ///
    /// # Errors
    /// The system refused.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;
}

impl Values for AtomicFile {
    fn written(&self) -> u64 {
        AtomicFile::written(self)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        AtomicFile::write(self, bytes)
    }
}

/// Moves the raw values of all larger tensors to `values`, which the model knows by `name` afterwards.
///
/// # Errors
/// The system refused.
pub fn move_out(model: &mut ModelProto, name: &str, values: &mut dyn Values) -> Result<()> {
    each_tensor(model, &mut |tensor| {
        let Some(raw) = tensor.raw_data.take_if(|raw| raw.len() >= SMALLEST) else { return Ok(()) };
        let align = if raw.len() >= MAPPED { PAGE } else { ALIGNED };
        let offset = values.written().next_multiple_of(align);
        values.write(&vec![0; (offset - values.written()) as usize])?;
        each_part(&raw, |part| values.write(part))?;
        let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
        tensor.external_data = vec![
            entry("location", name.into()),
            entry("offset", offset.to_string()),
            entry("length", raw.len().to_string()),
        ];
        tensor.data_location = Some(DataLocation::External as i32);
        Ok(())
    })
}
