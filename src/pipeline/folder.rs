//! Folders of safetensors for transformers and vLLM, made from the draft that a run has filled.
//!
//! The draft holds what the run has chosen, block by block, and outlives a crash; what is made of it here can be made again. Codes
//! of layers are packed, whatever a run has left alone is copied from the checkpoint as it is there, and norms and biases that
//! took up the scales of AWQ are written in single precision.

use super::plan::{Plan, Planned};
use super::weights::Weights;
use crate::error::{Context, Error, Result};
use crate::format::integer::{self, Content};
use crate::format::{self, Type};
use crate::interrupt;
use crate::model::mapping::{Change, Pick};
use crate::model::{Kind, TensorRole, TensorSpec};
use crate::source::checkpoint::Checkpoint;
use crate::source::folder::ADAPTER;
use crate::source::gguf::{Gguf, TypeLayout};
use crate::source::json;
use crate::source::links::stays_inside;
use crate::source::mistral;
use crate::writer::atomic::AtomicFolder;
use crate::writer::packing::{Described, Matrix, Packing};
use crate::writer::safetensors::{SafetensorsWriter, TensorPlan, split};
use rayon::prelude::*;
use safetensors::tensor::Dtype;
use serde_json::{Map, json};
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// A folder that is to be made.
pub struct Folder {
    /// Where it will be.
    pub path: PathBuf,
    /// How it stores codes.
    pub packing: &'static dyn Packing,
    /// The most bytes of one of its files.
    pub most: u64,
}

/// Bytes of a file where nothing else is asked for.
pub const MOST: u64 = 5_000_000_000;

/// Whether a matrix is a layer whose codes a folder holds; others stay what they are.
pub fn is_layer(spec: &TensorSpec) -> bool {
    matches!(spec.role, TensorRole::Block(_, Kind::Weight)) && (spec.site().is_some() || spec.is_of_experts())
}

/// Checks that a folder can be made of a checkpoint's, as far as this can be seen before the run.
///
/// # Errors
/// It is in Mistral's own layout, or holds a link that leads out of it.
pub fn check_folder(folder: &Path) -> Result<()> {
    if mistral::is_native(folder) {
        return Err(Error::usage(format!(
            "{} is in Mistral's own layout ({}), of which --format makes no folder: transformers and vLLM read packed layers \
             under transformers' names",
            folder.display(),
            mistral::PARAMS
        ))
        .hint("write a GGUF instead: leave out --format; or start from the folder with config.json of the same model"));
    }
    companions(folder).map(|_| ())
}

/// Checks that a folder can hold a layer of a checkpoint in a type's codes.
///
/// # Errors
/// The checkpoint stores it otherwise than as a matrix of its own, or its rows are no whole number of groups.
pub fn check(source: &Checkpoint, spec: &TensorSpec, kind: Type) -> Result<()> {
    let (folder, name) = (source.folder().display(), &spec.source);
    let refusal = |why: String, hint: &str| Err(Error::usage(format!("{folder}: tensor '{name}' {why}")).hint(hint));
    let as_is = matches!(spec.mapping.pick, Pick::AsIs | Pick::Stacked) && spec.mapping.factors.is_none();
    if !as_is || !name.ends_with(".weight") {
        let why = "is stored transposed, together with others, or with a factor beside it, which GPTQ, AWQ and compressed-tensors do not";
        return refusal(why.into(), "write a GGUF instead: leave out --format");
    }
    let (rows, columns, group) = (spec.shape[spec.shape.len() - 2], spec.columns(), kind.width());
    if !columns.is_multiple_of(group) {
        let fits = integer::SIZES.iter().rev().find(|&&size| columns.is_multiple_of(size));
        let hint = match fits {
            Some(size) => format!("--group-size {size} divides it"),
            None => "no group size does; write a GGUF instead: leave out --format".into(),
        };
        return refusal(format!("has rows of {columns}, which do not divide into groups of {group}"), &hint);
    }
    // Zero points of eight outputs share a word.
    if !rows.is_multiple_of(8) {
        let hint = "write a GGUF instead: leave out --format";
        return refusal(format!("has {rows} outputs, which do not fill words of eight"), hint);
    }
    Ok(())
}

/// Opens a draft, whose types may be those of folders.
///
/// # Errors
/// As [`Gguf::open`].
pub fn open_draft(path: &Path) -> Result<Gguf> {
    Gguf::open(path, |id| {
        let kind = format::by_id(id).or_else(|| integer::by_id(id))?;
        Some(TypeLayout { name: kind.name(), block: kind.width() as u64, bytes: kind.bytes() as u64 })
    })
}

/// What becomes of a tensor of the checkpoint that is not copied.
enum Fate<'a> {
    /// It is packed: the planned tensor, and which of its stacked matrices.
    Packed(&'a Planned, usize),
    /// It has changed: its new numbers.
    Changed(Vec<f32>),
}

impl Folder {
    /// Makes the folder and lets it appear; returns the bytes of its tensors.
    ///
    /// # Errors
    /// The disk refuses, or the program is being interrupted; then nothing is left.
    pub fn write(&self, plan: &Plan, draft: &Gguf) -> Result<u64> {
        self.fill(plan, draft).context(|| format!("cannot make {}", self.path.display()))
    }

    fn fill(&self, plan: &Plan, draft: &Gguf) -> Result<u64> {
        let Weights::Checkpoint(source) = &plan.source else {
            return Err(Error::new("only a checkpoint folder can become one of another format"));
        };
        let mut fates: HashMap<String, Fate> = HashMap::new();
        let mut content = None;
        for tensor in &plan.tensors {
            if is_layer(&tensor.spec) {
                content = content.or(integer::content(tensor.kind));
                for (i, name) in tensor.spec.sources().into_iter().enumerate() {
                    fates.insert(name, Fate::Packed(tensor, i));
                }
            } else if let Some(numbers) = changed(plan, tensor, draft)? {
                fates.insert(tensor.spec.source.clone(), Fate::Changed(numbers));
            }
        }
        let content = content.ok_or_else(|| Error::new("no layer was rounded"))?;
        let folder = AtomicFolder::create(&self.path, 0)?;
        let bytes = self.tensors(source, &fates, draft, content, &folder)?;
        self.descriptions(source, plan, &fates, content, folder.path())?;
        folder.commit()?;
        Ok(bytes)
    }

    /// Writes every tensor, in one file or several with an index.
    fn tensors(
        &self,
        source: &Checkpoint,
        fates: &HashMap<String, Fate>,
        draft: &Gguf,
        content: Content,
        folder: &AtomicFolder,
    ) -> Result<u64> {
        let mut parts = Vec::new();
        let mut owners: HashMap<String, (String, usize)> = HashMap::new();
        for info in source.tensors() {
            let own = match fates.get(info.name) {
                Some(Fate::Packed(tensor, _)) => {
                    let shape = &tensor.spec.shape[tensor.spec.shape.len() - 2..];
                    let stem = info.name.strip_suffix(".weight").unwrap_or(info.name);
                    self.packing.parts(stem, shape[0], shape[1], content)
                }
                Some(Fate::Changed(_)) => {
                    vec![TensorPlan { name: info.name.into(), dtype: Dtype::F32, shape: info.shape.into() }]
                }
                None => {
                    let (dtype, _) = source.raw(info.name)?;
                    vec![TensorPlan { name: info.name.into(), dtype, shape: info.shape.into() }]
                }
            };
            for (i, part) in own.iter().enumerate() {
                owners.insert(part.name.clone(), (info.name.into(), i));
            }
            parts.extend(own);
        }
        let files = split(parts, self.most);
        let (count, mut total, mut map) = (files.len(), 0, Map::new());
        // The parts of a matrix may be in two files.
        let mut packed: (String, Vec<Vec<u8>>) = Default::default();
        for (i, parts) in files.into_iter().enumerate() {
            let name = match count {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
            };
            let mut writer = SafetensorsWriter::create(&folder.file(&name), &self.path.join(&name), &parts)?;
            for part in &parts {
                interrupt::check()?;
                let (owner, place) = &owners[&part.name];
                let bytes: Cow<[u8]> = match fates.get(owner) {
                    Some(Fate::Packed(tensor, matrix)) => {
                        if packed.0 != *owner {
                            let matrix = taken_apart(tensor, *matrix, draft, content)?;
                            packed = (owner.clone(), self.packing.pack(&matrix));
                        }
                        std::mem::take(&mut packed.1[*place]).into()
                    }
                    Some(Fate::Changed(numbers)) => {
                        numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into()
                    }
                    None => source.raw(owner)?.1,
                };
                total += bytes.len() as u64;
                writer.append(&part.name, &bytes)?;
                map.insert(part.name.clone(), name.clone().into());
            }
            writer.finish()?;
        }
        if count > 1 {
            let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
            write_json(&folder.file("model.safetensors.index.json"), &index)?;
        }
        Ok(total)
    }

    /// Writes what the folder says of itself, and copies what the checkpoint says of its tokens.
    fn descriptions(
        &self,
        source: &Checkpoint,
        plan: &Plan,
        fates: &HashMap<String, Fate>,
        content: Content,
        folder: &Path,
    ) -> Result<()> {
        let stem = |name: &String| name.strip_suffix(".weight").map(str::to_owned);
        let packed: BTreeSet<&String> =
            fates.iter().filter(|(_, fate)| matches!(fate, Fate::Packed(..))).map(|(name, _)| name).collect();
        let packed: Vec<String> = packed.into_iter().filter_map(stem).collect();
        let is_kept = |t: &&Planned| t.spec.block.is_some() && t.spec.shape.len() == 2 && !is_layer(&t.spec);
        let kept: Vec<String> = plan.tensors.iter().filter(is_kept).filter_map(|t| stem(&t.spec.source)).collect();
        let description = self.packing.description(&Described { content, kept: &kept, packed: &packed });
        let path = source.folder().join("config.json");
        let mut config = json::read(&path)?;
        config["quantization_config"] = description.clone();
        write_json(&folder.join("config.json"), &config)?;
        if let Some(name) = self.packing.own_file() {
            write_json(&folder.join(name), &description)?;
        }
        for (from, name) in companions(source.folder())? {
            let to = folder.join(&name);
            let copy = || fs::copy(&from, &to).and_then(|_| File::open(&to)?.sync_all());
            copy().context(|| format!("cannot copy {}", from.display()))?;
        }
        Ok(())
    }
}

/// The files of a checkpoint's folder that are copied, with their names.
///
/// # Errors
/// It cannot be listed, or one of them is a link that leads out of it.
fn companions(folder: &Path) -> Result<Vec<(PathBuf, String)>> {
    let what = || format!("cannot copy what {} says of itself", folder.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).context(what)? {
        let from = entry.context(what)?.path();
        let name = from.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if from.is_file() && is_companion(&name) {
            stays_inside(folder, &from)?;
            found.push((from, name));
        }
    }
    found.sort();
    Ok(found)
}

/// Files that belong to a checkpoint and neither hold nor describe weights: tokenizers, templates, code, licences.
fn is_companion(name: &str) -> bool {
    // Beside packed weights, readers would follow a description of an adapter, or of the same model in another layout.
    const OWN: [&str; 5] = ["config.json", "quantize_config.json", "quant_config.json", ADAPTER, mistral::PARAMS];
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    let known = ["json", "jinja", "model", "txt", "tiktoken", "py"].contains(&ending);
    (known || ["LICENSE", "NOTICE"].iter().any(|prefix| name.starts_with(prefix)))
        && !name.ends_with(".index.json")
        && !OWN.contains(&name)
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let mut file = crate::writer::atomic::AtomicFile::create(path)?;
    file.write(json::text(value).as_bytes())?;
    file.commit()
}

/// One matrix of a tensor of the draft, its rows in the checkpoint's order.
fn taken_apart(tensor: &Planned, matrix: usize, draft: &Gguf, content: Content) -> Result<Matrix> {
    let (spec, kind) = (&tensor.spec, tensor.kind);
    let [rows, columns] = [spec.shape[spec.shape.len() - 2], spec.columns()];
    let info = found(draft, &spec.gguf)?;
    let (groups, row_bytes) = (columns / kind.width(), columns / kind.width() * kind.bytes());
    let first = matrix * rows * row_bytes;
    let bytes = &draft.data(info)[first..first + rows * row_bytes];
    // Where each row of the checkpoint is in the draft.
    let mut places: Vec<usize> = (0..rows).collect();
    for (place, source) in spec.order.sources(rows).into_iter().flatten().enumerate() {
        places[source] = place;
    }
    let mut codes = vec![0; rows * columns];
    let (mut scales, mut zeros) = (vec![0; rows * groups], vec![0; rows * groups]);
    let lines = scales.par_chunks_mut(groups).zip(zeros.par_chunks_mut(groups));
    codes.par_chunks_mut(columns).zip(lines).zip(places).for_each(|((codes, (scales, zeros)), place)| {
        let blocks = bytes[place * row_bytes..(place + 1) * row_bytes].chunks(kind.bytes());
        for (g, (block, codes)) in blocks.zip(codes.chunks_mut(kind.width())).enumerate() {
            (scales[g], zeros[g]) = integer::take_apart(kind, block, codes);
        }
    });
    Ok(Matrix { rows, columns, content, codes, scales, zeros })
}

fn found<'a>(draft: &'a Gguf, name: &str) -> Result<&'a crate::source::gguf::TensorInfo> {
    draft.tensor(name).ok_or_else(|| Error::new(format!("{}: there is no tensor '{name}'", draft.path.display())))
}

/// The numbers of a norm or a bias that are no more what the checkpoint has, as the checkpoint would store them.
fn changed(plan: &Plan, tensor: &Planned, draft: &Gguf) -> Result<Option<Vec<f32>>> {
    let spec = &tensor.spec;
    if !matches!(spec.role, TensorRole::Block(..) | TensorRole::Norm(_))
        || spec.shape.len() > 1
        || tensor.kind.is_quantized()
    {
        return Ok(None);
    }
    let stored = tensor.kind.decode_all(draft.data(found(draft, &spec.gguf)?));
    let mut numbers = stored.clone();
    for (place, source) in spec.order.sources(stored.len()).into_iter().flatten().enumerate() {
        numbers[source] = stored[place];
    }
    if numbers == plan.source.read(spec)? {
        return Ok(None);
    }
    match (&spec.mapping.pick, spec.mapping.change) {
        (Pick::AsIs, Change::None) => Ok(Some(numbers)),
        (Pick::AsIs, Change::PlusOne) => Ok(Some(numbers.iter().map(|x| x - 1.0).collect())),
        _ => Err(Error::new(format!("tensor '{}' has changed, and is stored together with others", spec.source))
            .hint("use a method that leaves it alone: --method gptq")),
    }
}
