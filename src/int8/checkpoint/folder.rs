//! A checkpoint folder in, a checkpoint folder in compressed-tensors' INT8 layout out.
//!
//! `X.weight` becomes the codes and `X.weight_scale` `[out, 1]` their scales; everything else is copied. transformers and vLLM
//! load it; transformers decodes the weights when it first uses them, vLLM multiplies in INT8.

use super::companions::{self, CONFIG};
use super::layers::{Role, roles};
use super::rows::{self, Scales};
use super::scheme::Scheme;
use super::{Summary, TensorReport};
use crate::error::{Context, Error, Result};
use crate::source::checkpoint::Checkpoint;
use crate::source::config::Config;
use crate::source::json;
use crate::writer::atomic::{AtomicFolder, check_folder};
use crate::writer::safetensors::{SafetensorsWriter, TensorPlan};
use crate::{format, interrupt};
use half::f16;
use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What is made of a checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// With or without INT8 activations.
    pub scheme: Scheme,
    /// How scales are chosen.
    pub scales: Scales,
    /// The type that embeddings are stored in: F32, F16 or BF16; none leaves them as they are.
    pub embeddings: Option<Dtype>,
    /// The largest file of weights, in bytes.
    pub max_shard: u64,
}

/// One tensor of the checkpoint, and what becomes of it.
#[derive(Debug)]
pub struct Planned {
    /// Its name.
    pub name: String,
    /// Its shape, slowest dimension first.
    pub shape: Vec<usize>,
    /// What it is.
    pub role: Role,
    /// Its type in the checkpoint.
    pub from: Dtype,
    /// Its type in the result; I8 for linear layers, however these are packed.
    pub to: Dtype,
    /// Its bytes in the checkpoint.
    pub before: u64,
    /// Its bytes in the result, scales included.
    pub after: u64,
    /// Which file of weights it goes to.
    shard: usize,
}

/// A folder that can be made.
pub struct Plan {
    checkpoint: Checkpoint,
    config: Config,
    options: Options,
    /// Every tensor, by name.
    pub tensors: Vec<Planned>,
    shards: usize,
}

/// How many numbers are in memory at a time.
const PART: usize = 1 << 22;

impl Plan {
    /// Reads the headers of a checkpoint folder and decides what becomes of each tensor.
    ///
    /// # Errors
    /// The folder holds no checkpoint, one that is quantized already, or one without linear layers or whose weights are for
    /// the most part not in such.
    pub fn new(folder: &Path, options: Options) -> Result<Plan> {
        let (config, checkpoint) = super::open(folder)?;
        let mut tensors = Vec::new();
        let shapes: BTreeMap<&str, &[usize]> = checkpoint.tensors().map(|t| (t.name, t.shape)).collect();
        let vocab = vocabulary(&config)?;
        for (name, role) in roles(&shapes, vocab) {
            let Some((from, bytes)) = checkpoint.bytes(name) else {
                return Err(Error::new(format!("{}: tensor '{name}' is packed", folder.display()))
                    .hint("start from the original checkpoint"));
            };
            let shape = shapes[name].to_vec();
            let before = bytes.len() as u64;
            let is_float = matches!(from, Dtype::F32 | Dtype::F16 | Dtype::BF16);
            let role = if is_float && before > 0 { role } else { Role::Other };
            let to = match role {
                Role::Linear => Dtype::I8,
                Role::Embedding => options.embeddings.unwrap_or(from),
                _ => from,
            };
            let mut planned = Planned { name: name.into(), shape, role, from, to, before, after: 0, shard: 0 };
            planned.after = planned.stored(options.scheme).iter().map(TensorPlan::bytes).sum();
            tensors.push(planned);
        }
        check_roles(folder, &tensors)?;
        let mut shards = 0;
        let mut held = 0;
        for tensor in &mut tensors {
            if held > 0 && held + tensor.after > options.max_shard {
                (shards, held) = (shards + 1, 0);
            }
            held += tensor.after;
            tensor.shard = shards;
        }
        Ok(Plan { checkpoint, config, options, tensors, shards: shards + 1 })
    }

    /// Refuses a place that the result cannot go to.
    ///
    /// # Errors
    /// As [`check_folder`]; or it is the checkpoint itself, or inside it.
    pub fn check(&self, output: &Path, force: bool) -> Result<()> {
        let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let own = self.checkpoint.folder().canonicalize().ok();
        let inside =
            |path: &Path| own.as_ref().is_some_and(|own| path.canonicalize().is_ok_and(|p| p.starts_with(own)));
        if inside(output) || inside(parent) {
            return Err(Error::usage(format!("the output {} is the input, or inside it", output.display()))
                .hint("choose another folder with -o"));
        }
        check_folder(output, &[self.checkpoint.folder()], force)
    }

    /// Writes the folder, whole or not at all. `progress` is told the bytes read so far, and all of them.
    ///
    /// # Errors
    /// As [`Plan::check`]; numbers that are not finite, or that a type cannot hold; the disk refuses.
    pub fn run(&self, output: &Path, force: bool, progress: &dyn Fn(u64, u64)) -> Result<Summary> {
        self.check(output, force)?;
        let others = companions::of(self.checkpoint.folder())?;
        let copied: u64 = others.iter().filter_map(|(from, _)| fs::metadata(from).ok()).map(|found| found.len()).sum();
        let total: u64 = self.tensors.iter().map(|tensor| tensor.before).sum();
        let needed = copied + self.tensors.iter().map(|tensor| tensor.after).sum::<u64>();
        let folder = AtomicFolder::create(output, needed)?;
        let (mut summary, mut done) = (Summary { bytes: 0, tensors: Vec::new(), notes: self.notes() }, 0);
        for shard in 0..self.shards {
            let name = self.file(shard);
            let tensors = || self.tensors.iter().filter(|tensor| tensor.shard == shard);
            let plans: Vec<TensorPlan> = tensors().flat_map(|tensor| tensor.stored(self.options.scheme)).collect();
            let mut writer = SafetensorsWriter::create(&folder.file(&name), &output.join(&name), &plans)?;
            for tensor in tensors() {
                interrupt::check()?;
                let error = self.write(tensor, &mut writer, &|bytes| progress(done + bytes, total))?;
                summary.tensors.push(tensor.report(error));
                done += tensor.before;
                progress(done, total);
            }
            summary.bytes += writer.finish()?;
        }
        let write = |name: &str, json: &Value| fs::write(folder.file(name), json::text(json));
        let cannot = |name: &str| format!("cannot write {}", output.join(name).display());
        if self.shards > 1 {
            write(INDEX, &self.index()).context(|| cannot(INDEX))?;
        }
        write(CONFIG, &self.new_config()).context(|| cannot(CONFIG))?;
        for (from, to) in &others {
            let place = folder.file(to);
            let made = place.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::copy(from, &place));
            made.context(|| format!("cannot copy {} to {}", from.display(), output.join(to).display()))?;
        }
        folder.commit()?;
        Ok(summary)
    }

    /// Writes one tensor part by part; gives the error of one that was rounded.
    fn write(&self, tensor: &Planned, writer: &mut SafetensorsWriter, done: &dyn Fn(u64)) -> Result<Option<f64>> {
        let Planned { name, shape, role, from, to, .. } = tensor;
        let is_float = matches!(from, Dtype::F32 | Dtype::F16 | Dtype::BF16);
        let (bytes_there, count) = (tensor.before, shape.iter().product::<usize>());
        if !is_float || shape.is_empty() || count == 0 {
            let (_, bytes) = self.checkpoint.bytes(name).ok_or_else(|| Error::new(format!("there is no '{name}'")))?;
            writer.append(name, &bytes)?;
            return Ok(None);
        }
        let width = count / shape[0];
        // Whole groups of sixteen rows, which are rounded together.
        let step = (PART / width).next_multiple_of(16);
        let (mut error, mut power) = (0.0, 0.0);
        for first in (0..shape[0]).step_by(step) {
            interrupt::check()?;
            let last = (first + step).min(shape[0]);
            let numbers = self.checkpoint.read_rows(name, shape, first..last)?;
            if *role == Role::Linear {
                let rounded = rows::round(&numbers, width, self.options.scales, *from);
                writer.append(
                    &codes_name(name, self.options.scheme),
                    &codes(&rounded.codes, width, self.options.scheme),
                )?;
                writer.append(&format!("{name}_scale"), &stored(&rounded.scales, *from)?)?;
                error += rounded.error;
                power += rounded.power;
            } else {
                let too_large = |x: &f32| *to == Dtype::F16 && f16::from_f32(*x).is_infinite();
                if let Some(at) = numbers.iter().position(too_large) {
                    let (element, x) = (first * width + at, numbers[at]);
                    return Err(Error::new(format!(
                        "tensor '{name}': element {element} is {x}, which F16 cannot hold"
                    ))
                    .hint("leave embeddings as they are, or choose --embeddings bf16"));
                }
                writer.append(name, &stored(&numbers, *to)?)?;
            }
            done(bytes_there * last as u64 / shape[0] as u64);
        }
        if *role != Role::Linear {
            return Ok(None);
        }
        if self.options.scheme == Scheme::WeightOnly {
            let sizes: Vec<u8> = shape.iter().flat_map(|&n| (n as i64).to_le_bytes()).collect();
            writer.append(&format!("{name}_shape"), &sizes)?;
        }
        Ok(Some(if power > 0.0 { error / power } else { 0.0 }))
    }

    /// The name of a file of weights.
    fn file(&self, shard: usize) -> String {
        match self.shards {
            1 => "model.safetensors".into(),
            n => format!("model-{:05}-of-{n:05}.safetensors", shard + 1),
        }
    }

    fn index(&self) -> Value {
        let (mut map, mut size) = (Map::new(), 0);
        for tensor in &self.tensors {
            for plan in tensor.stored(self.options.scheme) {
                size += plan.bytes();
                map.insert(plan.name, self.file(tensor.shard).into());
            }
        }
        json!({ "metadata": { "total_size": size }, "weight_map": map })
    }

    /// config.json as it was, with the description of the codes.
    fn new_config(&self) -> Value {
        let mut config = self.config.json().clone();
        let (quantized, kept) = (self.modules(&[Role::Linear]), self.modules(&[Role::Head, Role::Unsure]));
        config["quantization_config"] = self.options.scheme.config(&quantized, &kept);
        // Without it, readers take the type of the first tensor for that of all, which embeddings may not have any more.
        let first = self.tensors.iter().find(|tensor| tensor.role == Role::Linear).map(|tensor| tensor.from);
        if self.config.get("dtype").is_none() && self.config.get("torch_dtype").is_none() {
            config["torch_dtype"] = match first {
                Some(Dtype::F16) => "float16".into(),
                Some(Dtype::BF16) => "bfloat16".into(),
                _ => "float32".into(),
            };
        }
        config
    }

    /// The names of the modules whose weights have one of these roles.
    fn modules(&self, roles: &[Role]) -> Vec<&str> {
        let own = self.tensors.iter().filter(|tensor| roles.contains(&tensor.role));
        own.filter_map(|tensor| tensor.name.strip_suffix(".weight")).collect()
    }

    /// What the user should know beforehand.
    fn notes(&self) -> Vec<String> {
        let unsure = self.modules(&[Role::Unsure]);
        unsure.first().map(|first| {
            let count = unsure.len();
            format!("{count} matrices are left as they are ({first} the first): nothing says that they are linear layers")
        }).into_iter().collect()
    }
}

impl Planned {
    fn report(&self, error: Option<f64>) -> TensorReport {
        TensorReport {
            name: self.name.clone(),
            shape: self.shape.clone(),
            role: self.role,
            from: format!("{:?}", self.from),
            to: format!("{:?}", self.to),
            before: self.before,
            after: self.after,
            error,
        }
    }

    /// The tensors that it becomes.
    fn stored(&self, scheme: Scheme) -> Vec<TensorPlan> {
        let Planned { name, shape, role, from, to, .. } = self;
        let plan = |name: String, dtype: Dtype, shape: Vec<usize>| TensorPlan { name, dtype, shape };
        let (Role::Linear, &[rows, columns]) = (role, &shape[..]) else {
            return vec![plan(name.clone(), *to, shape.clone())];
        };
        let scales = plan(format!("{name}_scale"), *from, vec![rows, 1]);
        let codes = codes_name(name, scheme);
        match scheme {
            Scheme::W8A8 => vec![plan(codes, Dtype::I8, shape.clone()), scales],
            Scheme::WeightOnly => {
                let codes = plan(codes, Dtype::I32, vec![rows, columns.div_ceil(4)]);
                vec![codes, scales, plan(format!("{name}_shape"), Dtype::I64, vec![2])]
            }
        }
    }
}

const INDEX: &str = "model.safetensors.index.json";

/// What the codes of a weight are called.
fn codes_name(name: &str, scheme: Scheme) -> String {
    match scheme {
        Scheme::W8A8 => name.to_owned(),
        Scheme::WeightOnly => format!("{name}_packed"),
    }
}

/// The bytes of codes. `codes`: `[rows, columns]`.
fn codes(codes: &[i8], columns: usize, scheme: Scheme) -> Vec<u8> {
    match scheme {
        Scheme::W8A8 => codes.iter().map(|&q| q as u8).collect(),
        // Words of four codes with 128 added, the first in the lowest bits: byte after byte, each row filled up with zeros.
        Scheme::WeightOnly => {
            let mut out = Vec::with_capacity(codes.len());
            for row in codes.chunks(columns) {
                out.extend(row.iter().map(|&q| q as u8 ^ 0x80));
                out.resize(out.len().next_multiple_of(4), 0);
            }
            out
        }
    }
}

/// Numbers as a type stores them.
fn stored(numbers: &[f32], dtype: Dtype) -> Result<Vec<u8>> {
    format::convert(format::by_name(&format!("{dtype:?}"))?, numbers)
}

/// How many tokens a model knows, wherever its configuration says so.
fn vocabulary(config: &Config) -> Result<Option<usize>> {
    let text = config.object("text_config")?;
    Ok(match config.maybe_size("vocab_size")? {
        Some(size) => Some(size),
        None => text.map(|text| text.maybe_size("vocab_size")).transpose()?.flatten(),
    })
}

/// Refuses what this layout is not made for.
fn check_roles(folder: &Path, tensors: &[Planned]) -> Result<()> {
    let sum = |role: Role| -> usize {
        let own = tensors.iter().filter(|tensor| tensor.role == role);
        own.map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    };
    let (linear, convolution) = (sum(Role::Linear), sum(Role::Convolution));
    let shown = folder.display();
    if convolution > linear {
        return Err(Error::new(format!(
            "{shown}: {convolution} of its weights are in convolutions and {linear} in linear layers, and this layout has \
             INT8 for the latter only"
        ))
        .hint("export the model to ONNX (torch.onnx.export) and use llmq int8 static MODEL.onnx --calib …"));
    }
    if let Some(odd) = tensors.iter().find(|tensor| tensor.role == Role::Transposed) {
        return Err(Error::new(format!(
            "{shown}: tensor '{}' with shape {:?} has a bias of {}: it is stored the other way round (transformers' Conv1D), \
             and compressed-tensors knows no such layers",
            odd.name, odd.shape, odd.shape[1]
        ))
        .hint("for a GPT-2, llmq quantize makes a GGUF"));
    }
    if linear == 0 {
        let matrices = tensors.iter().filter(|tensor| tensor.shape.len() == 2).count();
        return Err(Error::new(format!("{shown} has no weight of a linear layer, among {matrices} matrices")).hint(
            "the weight of a linear layer is X.weight [out, in], with X.bias [out] beside it or a name that is known",
        ));
    }
    Ok(())
}
