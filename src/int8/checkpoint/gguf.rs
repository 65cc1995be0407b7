//! An encoder's checkpoint folder in, a GGUF for llama.cpp out.

use super::bert::{Bert, Tensor};
use super::layers::Role;
use super::{Summary, TensorReport};
use crate::error::{Context, Error, Result};
use crate::format::{self, Encoding, Type, mix};
use crate::interrupt;
use crate::method::Plain;
use crate::pipeline::plan::size_label;
use crate::source::checkpoint::Checkpoint;
use crate::source::pooling::Pooling;
use crate::source::value::{Metadata, Value};
use crate::writer::atomic::check_destination;
use crate::writer::gguf::{GgufWriter, TensorPlan};
use std::path::{Path, PathBuf};

/// A GGUF that can be made.
pub struct Plan {
    checkpoint: Checkpoint,
    metadata: Metadata,
    tensors: Vec<(Tensor, Type)>,
    notes: Vec<String>,
}

/// How many numbers are in memory at a time.
const PART: usize = 1 << 22;

impl Plan {
    /// Reads the headers of a checkpoint folder. `kind`: the type of its matrices, Q8_0, F16, BF16 or F32.
    ///
    /// # Errors
    /// As [`Bert::open`]; another type; a checkpoint that is quantized already.
    pub fn new(folder: &Path, kind: &str, pooling: Option<Pooling>) -> Result<Plan> {
        let mix = mix::named(kind)?;
        if !["Q8_0", "F16", "BF16", "F32"].contains(&mix.name) {
            return Err(Error::usage(format!("encoders are not written as {}", mix.name))
                .hint("the types are Q8_0, F16, BF16 and F32"));
        }
        let (config, checkpoint) = super::open(folder)?;
        let Bert { metadata: own, tensors, mut notes } = Bert::open(&checkpoint, &config, pooling)?;
        let [single, half] = ["F32", "F16"].map(format::by_name);
        let (single, half) = (single?, half?);
        let mut fallbacks = Vec::new();
        let mut typed = Vec::new();
        for tensor in tensors {
            let columns = *tensor.shape.last().unwrap_or(&1);
            let kind = match tensor.matrix {
                true if columns % mix.base.width() == 0 => mix.base,
                true => {
                    fallbacks.push(tensor.gguf.clone());
                    half
                }
                false => single,
            };
            typed.push((tensor, kind));
        }
        if let Some(first) = fallbacks.first() {
            notes.push(format!(
                "{} tensors, {first} the first, get F16 instead of {}: their rows do not divide into blocks of {}",
                fallbacks.len(),
                mix.name,
                mix.base.width()
            ));
        }
        let elements: u64 = typed.iter().map(|(tensor, _)| elements(tensor)).sum();
        let name = folder.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        let text = |text: &str| Value::Str(text.into());
        let mut metadata: Metadata = vec![
            ("general.architecture".into(), text("bert")),
            ("general.type".into(), text("model")),
            ("general.name".into(), Value::Str(name.unwrap_or("model".into()))),
            ("general.size_label".into(), Value::Str(size_label(elements))),
        ];
        metadata.extend(own);
        metadata.push(("general.file_type".into(), Value::U32(mix.file_type)));
        metadata.push(("general.quantization_version".into(), Value::U32(2)));
        Ok(Plan { checkpoint, metadata, tensors: typed, notes })
    }

    /// Refuses a place that the file cannot go to.
    ///
    /// # Errors
    /// As [`check_destination`].
    pub fn check(&self, output: &Path, force: bool) -> Result<()> {
        let folder = std::fs::read_dir(self.checkpoint.folder()).into_iter().flatten().flatten();
        let inputs: Vec<PathBuf> = folder.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
        check_destination(output, &inputs.iter().map(PathBuf::as_path).collect::<Vec<_>>(), force)
    }

    /// Writes the file, whole or not at all. `progress` is told the bytes read so far, and all of them.
    ///
    /// # Errors
    /// As [`Plan::check`]; numbers that are not finite, or that a type cannot hold; the disk refuses.
    pub fn run(&self, output: &Path, force: bool, progress: &dyn Fn(u64, u64)) -> Result<Summary> {
        self.check(output, force)?;
        let plans = self.tensors.iter().map(|(tensor, kind)| header(tensor, *kind)).collect();
        let mut writer = GgufWriter::create(output, &self.metadata, plans)?;
        let total: u64 = self.tensors.iter().map(|(tensor, _)| self.before(tensor)).sum();
        let (mut tensors, mut done) = (Vec::new(), 0);
        for (tensor, kind) in &self.tensors {
            let error = self.write(tensor, *kind, &mut writer)?;
            done += self.before(tensor);
            progress(done, total);
            tensors.push(TensorReport {
                name: tensor.source.clone(),
                shape: tensor.shape.clone(),
                role: tensor.role,
                from: self.checkpoint.bytes(&tensor.source).map_or(String::new(), |(dtype, _)| format!("{dtype:?}")),
                to: kind.name().into(),
                before: self.before(tensor),
                after: header(tensor, *kind).bytes,
                error,
            });
        }
        // What the GGUF has no place for: the pooler, output layers, buffers.
        let written: Vec<&str> = self.tensors.iter().map(|(tensor, _)| tensor.source.as_str()).collect();
        for left in self.checkpoint.tensors().filter(|tensor| !written.contains(&tensor.name)) {
            tensors.push(TensorReport {
                name: left.name.into(),
                shape: left.shape.into(),
                role: Role::Other,
                from: left.dtype,
                to: "left out".into(),
                before: left.bytes as u64,
                after: 0,
                error: None,
            });
        }
        Ok(Summary { bytes: writer.finish()?, tensors, notes: self.notes.clone() })
    }

    fn before(&self, tensor: &Tensor) -> u64 {
        self.checkpoint.bytes(&tensor.source).map_or(0, |(_, bytes)| bytes.len() as u64)
    }

    /// Writes one tensor part by part; gives the error of one that was rounded to codes.
    fn write(&self, tensor: &Tensor, kind: Type, writer: &mut GgufWriter) -> Result<Option<f64>> {
        let Tensor { source, gguf, shape, skip, .. } = tensor;
        let width: usize = shape[1..].iter().product();
        let step = (PART / width.max(1)).next_multiple_of(16);
        let (mut error, mut power) = (0.0, 0.0);
        for first in (*skip..shape[0]).step_by(step) {
            interrupt::check()?;
            let numbers = self.checkpoint.read_rows(source, shape, first..(first + step).min(shape[0]))?;
            let bytes = match kind.encoding() {
                Encoding::Grid(grid) => {
                    let bytes = Plain::new(width, None).quantize(&numbers, grid);
                    for (w, v) in numbers.iter().zip(kind.decode_all(&bytes)) {
                        error += f64::from(w - v).powi(2);
                        power += f64::from(*w).powi(2);
                    }
                    bytes
                }
                _ => format::convert(kind, &numbers).context(|| format!("tensor '{source}' from row {first} on"))?,
            };
            writer.append(gguf, &bytes)?;
        }
        Ok(kind.is_quantized().then_some(if power > 0.0 { error / power } else { 0.0 }))
    }
}

/// How many numbers of it are in the file.
fn elements(tensor: &Tensor) -> u64 {
    let row: usize = tensor.shape[1..].iter().product();
    ((tensor.shape[0] - tensor.skip) * row) as u64
}

fn header(tensor: &Tensor, kind: Type) -> TensorPlan {
    let mut dims: Vec<u64> = tensor.shape.iter().rev().map(|&n| n as u64).collect();
    if let Some(rows) = dims.last_mut() {
        *rows -= tensor.skip as u64;
    }
    TensorPlan { name: tensor.gguf.clone(), dims, type_id: kind.id(), bytes: kind.size(elements(tensor)) }
}
