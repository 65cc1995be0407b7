//! What `torch.save` wrote (`pytorch_model.bin`): a zip whose entries are not compressed, so that its tensors are read from
//! the map like any others.

use super::pickle::{Id, Pickle, Value};
use super::place::{Place, Shard};
use crate::error::{Error, Result};
use safetensors::tensor::Dtype;
use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;
use zip::{CompressionMethod, ZipArchive};

/// The tensors of a file that `torch.save` wrote, the `number`th of a checkpoint.
///
/// # Errors
/// Another format, the one before PyTorch 1.6 among them, compressed entries, a damaged file, or a tensor that reaches
/// beyond its storage.
pub fn tensors(shard: &Shard, number: usize) -> Result<Vec<(String, Place)>> {
    let path = shard.path.display();
    let archive = Archive::open(&shard.map).map_err(|what| {
        Error::new(format!("{path}: {what}"))
            .hint(format!("convert it, or download it again if it is not whole: {}", conversion(&shard.path)))
    })?;
    let damaged = || "the file is damaged or was not downloaded completely; download it again";
    let pickle = Pickle::read(&shard.map[archive.pickle.clone()])
        .map_err(|cause| Error::new(format!("{path}: {cause}")).hint(damaged()))?;
    let Value::Dict(pairs) = pickle.get(pickle.root) else {
        return Err(Error::new(format!("{path}: it holds no dictionary of tensors")).hint("it may not be a checkpoint"));
    };
    // As in Python, the last of several values of a name counts.
    let mut tensors = BTreeMap::new();
    for &(name, tensor) in pairs {
        let (Some(name), Value::Call(..)) = (pickle.text(name), pickle.get(tensor)) else { continue };
        let place = place(&pickle, &archive, tensor, number)
            .map_err(|what| Error::new(format!("{path}: tensor '{name}' {what}")).hint(damaged()))?;
        tensors.insert(name, place);
    }
    if tensors.is_empty() {
        return Err(Error::new(format!("{path}: its dictionary of {} values names no tensors", pairs.len()))
            .hint("a checkpoint maps names to tensors; save only model.state_dict()"));
    }
    Ok(tensors.into_iter().map(|(name, place)| (name.to_owned(), place)).collect())
}

/// The most dimensions of a tensor, and the most wrappings around one; PyTorch's own limit on the first is 64, and no
/// checkpoint comes near to either.
const DEEPEST: usize = 16;

/// The largest tensor that repeats numbers of a smaller storage, in bytes.
const REPEATED: usize = 64 << 20;

/// The command that makes a file that can be read of one that cannot. A shard keeps its name, because an index has it.
fn conversion(path: &Path) -> String {
    let load = format!("torch.load('{}', map_location='cpu', weights_only=True)", path.display());
    if path.file_name().is_some_and(|name| name == "pytorch_model.bin") {
        let to = path.with_file_name("model.safetensors");
        let tensors = format!("{{k: v.clone().contiguous() for k, v in {load}.items()}}");
        return format!(
            "python -c \"import torch, safetensors.torch as s; s.save_file({tensors}, '{}')\"",
            to.display()
        );
    }
    format!("python -c \"import torch; torch.save({load}, '{}')\"", path.display())
}

/// Where in the file the pickle and the storages are.
struct Archive {
    pickle: Range<usize>,
    storages: HashMap<String, Range<usize>>,
}

impl Archive {
    /// Reads the zip's directory; an error is what is wrong with it.
    fn open(map: &[u8]) -> Result<Archive, String> {
        if map.first() == Some(&0x80) {
            return Err("it is in the format from before PyTorch 1.6, a bare pickle".into());
        }
        if !map.starts_with(b"PK\x03\x04") {
            return Err(format!("it has {} bytes that do not begin as torch.save begins a file, a zip", map.len()));
        }
        let mut zip = ZipArchive::new(Cursor::new(map))
            .map_err(|cause| format!("its {} bytes are no whole zip: {cause}", map.len()))?;
        let mut entries = HashMap::new();
        for i in 0..zip.len() {
            let entry = zip.by_index_raw(i).map_err(|cause| format!("entry {i} of its zip is damaged: {cause}"))?;
            let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
            if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
                return Err(format!("'{name}' in it is compressed, which torch.save never does"));
            }
            let start = entry.data_start().unwrap_or(u64::MAX);
            let size = entry.size();
            match start.checked_add(size).filter(|&end| end <= map.len() as u64) {
                Some(end) => entries.insert(name, start as usize..end as usize),
                None => {
                    let length = map.len();
                    return Err(format!("'{name}' in it takes {size} bytes at {start}, but the file has {length}"));
                }
            };
        }
        let found = entries.iter().find_map(|(name, place)| Some((name.strip_suffix("data.pkl")?, place.clone())));
        let Some((folder, pickle)) = found.map(|(folder, place)| (folder.to_owned(), place)) else {
            return Err("there is no data.pkl in it".into());
        };
        let order = entries.get(&format!("{folder}byteorder")).map(|place| &map[place.clone()]);
        if order.is_some_and(|order| order != b"little") {
            return Err("it was saved on a big-endian machine".into());
        }
        let prefix = format!("{folder}data/");
        let storages =
            entries.into_iter().filter_map(|(name, place)| Some((name.strip_prefix(&prefix)?.to_owned(), place)));
        Ok(Archive { pickle, storages: storages.collect() })
    }
}

/// Where a pickled tensor is; an error is what is wrong with it.
fn place(pickle: &Pickle, archive: &Archive, tensor: Id, number: usize) -> Result<Place, String> {
    let (function, arguments) = rebuilt(pickle, tensor).ok_or("is made in a way that is not known")?;
    let &[storage, offset, size, stride, ..] = arguments else { return Err("has too few parts".into()) };
    let sizes = |id: Id| {
        let ids = pickle.sequence(id).filter(|ids| ids.len() <= DEEPEST)?;
        ids.iter().map(|&id| pickle.size(id)).collect::<Option<Vec<usize>>>()
    };
    let shape = sizes(size).ok_or("has a shape that is none")?;
    let strides = sizes(stride).filter(|strides| strides.len() == shape.len()).ok_or("has strides that are none")?;
    let offset = pickle.size(offset).ok_or("has an offset that is none")?;
    let Value::Stored(key) = pickle.get(storage) else { return Err("has no storage".into()) };
    let parts = pickle.sequence(*key).unwrap_or_default();
    let &[_, class, key, ..] = parts else { return Err("has a storage without a name".into()) };
    let key = pickle.text(key).ok_or("has a storage without a name")?;
    let class = match (function, pickle.global(class)) {
        // Newer types have storages of bytes, and their own name behind the tensor's other parts.
        ("_rebuild_tensor_v3", _) => arguments.get(6).and_then(|&id| pickle.global(id)),
        (_, class) => class,
    };
    let (_, class) = class.ok_or("has no type")?;
    let dtype = dtype(class).ok_or_else(|| format!("is of type {class}, which is not known"))?;
    let held = archive.storages.get(key).ok_or_else(|| format!("is in storage '{key}', which is not there"))?.clone();
    let width = dtype.bitsize() / 8;
    // One number behind the last.
    let end = || {
        if shape.contains(&0) {
            return Some(offset);
        }
        let last = shape
            .iter()
            .zip(&strides)
            .try_fold(offset, |at, (&n, &stride)| (n - 1).checked_mul(stride).and_then(|step| at.checked_add(step)));
        last?.checked_add(1)
    };
    // The product of the shape has to fit, too, though strides of zero repeat numbers: a small file must not ask for memory
    // that it does not fill itself.
    let elements =
        shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n)).and_then(|n| n.checked_mul(width));
    let end = elements.filter(|&bytes| bytes <= held.len().max(REPEATED)).and_then(|_| end());
    let end = end.and_then(|n| n.checked_mul(width)).filter(|&end| end <= held.len());
    let Some(end) = end else {
        let (held, kind) = (held.len() / width, format!("{dtype:?}"));
        return Err(format!(
            "has shape {shape:?} and strides {strides:?} from number {offset} on, but storage '{key}' has {held} of {kind}"
        ));
    };
    let bytes = held.start + (offset * width).min(end)..held.start + end;
    let strides = (!in_order(&shape, &strides)).then_some(strides);
    Ok(Place { shard: number, dtype, shape, bytes, strides })
}

/// The function that makes a tensor and its arguments, under the wrappings of parameters and subclasses.
fn rebuilt(pickle: &Pickle, mut tensor: Id) -> Option<(&str, &[Id])> {
    for _ in 0..DEEPEST {
        let Value::Call(function, arguments) = pickle.get(tensor) else { return None };
        let ((module, name), arguments) = (pickle.global(*function)?, pickle.sequence(*arguments)?);
        match (module, name) {
            ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor_v3") => return Some((name, arguments)),
            ("torch._utils", "_rebuild_parameter") => tensor = *arguments.first()?,
            ("torch._tensor", "_rebuild_from_type_v2") => {
                let &[function, _, arguments, ..] = arguments else { return None };
                return Some((pickle.global(function)?.1, pickle.sequence(arguments)?));
            }
            _ => return None,
        }
    }
    None
}

/// The type of numbers of a storage's class, or of PyTorch's own name for it.
fn dtype(class: &str) -> Option<Dtype> {
    Some(match class {
        "FloatStorage" => Dtype::F32,
        "DoubleStorage" => Dtype::F64,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "ByteStorage" => Dtype::U8,
        "CharStorage" => Dtype::I8,
        "ShortStorage" => Dtype::I16,
        "IntStorage" => Dtype::I32,
        "LongStorage" => Dtype::I64,
        "BoolStorage" => Dtype::BOOL,
        "float8_e4m3fn" => Dtype::F8_E4M3,
        "float8_e5m2" => Dtype::F8_E5M2,
        "uint16" => Dtype::U16,
        "uint32" => Dtype::U32,
        "uint64" => Dtype::U64,
        _ => return None,
    })
}

/// Whether numbers lie one behind the other in the order of the shape.
fn in_order(shape: &[usize], strides: &[usize]) -> bool {
    let mut next = 1;
    shape.contains(&0)
        || shape.iter().zip(strides).rev().all(|(&n, &stride)| {
            // Along one step there is no next one.
            let fits = n == 1 || stride == next;
            next *= n;
            fits
        })
}

#[cfg(test)]
mod tests;
