//! Reading and writing ONNX files, with the values that lie beside them.
//!
//! A file is mapped, and so are the files with external data: the raw values of all tensors stay on disk until someone reads them. A
//! model that has been opened has every value in place, as raw data; where they lay is remembered, so that writing can do likewise.

pub mod external;
pub mod mapped;
mod message;
mod weight;

use super::merge::merge_equal;
use super::proto::{ModelProto, OperatorSetIdProto};
use super::visit::each_tensor;
use crate::error::{Context, Error, Result};
use crate::writer::atomic::{AtomicFile, check_destination};
use prost::Message;
use std::path::{Path, PathBuf};

/// The versions of the file format that are read; from onnx 0.2 (2017) to 1.23.
const IR_VERSIONS: std::ops::RangeInclusive<i64> = 3..=14;

/// From this version on, initializers need not be inputs too. Older models are written as this one.
const IR_WITH_FREE_INITIALIZERS: i64 = 4;

/// The versions of ONNX's own operators that are read; up to that of onnx 1.23.
const OPSETS: std::ops::RangeInclusive<i64> = 7..=28;

/// The largest message that protobuf's readers accept.
const LARGEST_MESSAGE: usize = i32::MAX as usize;

/// A model from a file.
#[derive(Debug)]
pub struct OnnxFile {
    /// Where it was read from.
    pub path: PathBuf,
    /// The model, all values in place.
    pub model: ModelProto,
    /// The files beside it that hold values.
    pub external: Vec<PathBuf>,
    /// The sizes of all these files together.
    pub bytes: u64,
}

impl OnnxFile {
    /// Opens an ONNX file.
    ///
    /// # Errors
    /// It cannot be read, is no ONNX model or a monstrous one, has versions that are not supported, or lacks values that should lie
    /// beside it.
    pub fn open(path: &Path) -> Result<Self> {
        let what = || format!("cannot read {}", path.display());
        if path.is_dir() {
            let example = path.join("model.onnx");
            return Err(Error::new(format!("{} is a folder", path.display()))
                .hint(format!("name the ONNX file in it, such as {}", example.display())));
        }
        let bytes = mapped::map(path).context(what)?;
        let mut size = bytes.len() as u64;
        let weight = weight::of(&bytes);
        if weight > weight::MOST {
            let most = weight::MOST;
            return Err(Error::new(format!(
                "its nodes, attributes and tensors take {weight} bytes of memory, and {most} are the most"
            ))
            .hint("no real graph is so large: the file is damaged, or was made to fill the memory"))
            .context(what);
        }
        let mut model = ModelProto::decode(bytes.clone())
            .map_err(|cause| Error::new("it is truncated, or not an ONNX model").because(cause))
            .and_then(check)
            .context(what)?;
        // Between names and shapes lie values, some of whose pages came along.
        mapped::release(&bytes);
        let external = external::resolve(&mut model, path).context(what)?;
        for (_, bytes) in &external {
            size += bytes;
        }
        let external = external.into_iter().map(|(path, _)| path).collect();
        Ok(Self { path: path.into(), model, external, bytes: size })
    }

    /// The version of ONNX's own operators that the model uses.
    pub fn opset(&self) -> i64 {
        opset(&self.model).unwrap_or_default()
    }

    /// Refuses a model whose operators are older than `least`, which `needed_for` needs.
    ///
    /// # Errors
    /// They are older.
    pub fn need_opset(&self, least: i64, needed_for: &str) -> Result<()> {
        let found = self.opset();
        if found >= least {
            return Ok(());
        }
        let (path, newest) = (self.path.display(), OPSETS.end());
        Err(Error::new(format!("{path} has opset {found}, but {needed_for} needs opset {least} or newer"))
            .hint(format!("export it again with opset {least} to {newest}, or convert it: onnx.version_converter.convert_version(model, {least})")))
    }
}

/// The version of ONNX's own operators.
pub fn opset(model: &ModelProto) -> Option<i64> {
    let own = |set: &&OperatorSetIdProto| matches!(set.domain(), "" | "ai.onnx");
    model.opset_import.iter().find(own).map(OperatorSetIdProto::version)
}

fn check(model: ModelProto) -> Result<ModelProto> {
    if model.graph.is_none() {
        return Err(Error::new("it holds no graph").hint("this takes an ONNX model; is it another kind of file?"));
    }
    let range = |range: &std::ops::RangeInclusive<i64>| format!("{} to {} are supported", range.start(), range.end());
    let ir = model.ir_version();
    if !IR_VERSIONS.contains(&ir) {
        return Err(Error::new(format!("it has version {ir} of the ONNX format, and {}", range(&IR_VERSIONS)))
            .hint("export the model again with another version of onnx"));
    }
    match opset(&model) {
        Some(opset) if OPSETS.contains(&opset) => Ok(model),
        Some(opset) => Err(Error::new(format!("it has opset {opset}, and {}", range(&OPSETS)))
            .hint("export the model again with another opset, or convert it with onnx.version_converter")),
        None => Err(Error::new("it names no version of ONNX's operators")),
    }
}

/// Where the values of a new model go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// Into the file, or beside it if they are too many for one message.
    Inside,
    /// Into a file of their own beside it, named after it with `.data` added.
    Beside,
}

/// A file that is going to be written.
#[derive(Debug)]
pub struct Destination {
    path: PathBuf,
    values: Values,
    /// What is read meanwhile and has to stay.
    inputs: Vec<PathBuf>,
    force: bool,
    /// The largest message that is written.
    largest: usize,
}

impl Destination {
    /// Checks that a model made from `source` may be written to `path`: values go beside it if they did so before.
    ///
    /// # Errors
    /// Something is there already and `force` is not set, or would be lost, or the folder is missing or not writable.
    pub fn new(path: &Path, source: &OnnxFile, force: bool) -> Result<Self> {
        let inputs = [&source.path].into_iter().chain(&source.external).cloned().collect();
        let values = if source.external.is_empty() { Values::Inside } else { Values::Beside };
        let this = Self { path: path.into(), values, inputs, force, largest: LARGEST_MESSAGE };
        this.check(path)?;
        if values == Values::Beside {
            this.check(&external::beside(path))?;
        }
        Ok(this)
    }

    fn check(&self, path: &Path) -> Result<()> {
        let inputs: Vec<&Path> = self.inputs.iter().map(PathBuf::as_path).collect();
        check_destination(path, &inputs, self.force)
    }

    /// Writes the model and gives its size, that of the values beside it included. Each file appears completely or not at all; the
    /// values come first, so that a model is never there without them.
    ///
    /// # Errors
    /// The system refused.
    pub fn write(&self, mut model: ModelProto) -> Result<u64> {
        model.ir_version = model.ir_version.max(Some(IR_WITH_FREE_INITIALIZERS));
        merge_equal(&mut model)?;
        let (mut bytes, mut beside) = (0, None);
        let too_large = model.encoded_len() > self.largest;
        if self.values == Values::Beside || too_large {
            let path = external::beside(&self.path);
            if self.values == Values::Inside {
                self.check(&path)?;
            }
            let mut file = AtomicFile::create(&path)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            external::move_out(&mut model, &name, &mut file)?;
            bytes += file.written();
            beside = Some(file);
        }
        if model.encoded_len() > self.largest {
            let (path, bytes, largest) = (self.path.display(), model.encoded_len(), self.largest);
            return Err(Error::new(format!(
                "cannot write {path}: {bytes} bytes are not in raw tensors, and a message has at most {largest}"
            ))
            .hint("export the model again with a newer exporter, which writes weights as raw data"));
        }
        let mut file = AtomicFile::create(&self.path)?;
        message::write(model, &mut file)?;
        bytes += file.written();
        beside.map_or(Ok(()), AtomicFile::commit)?;
        file.commit()?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests;
