//! The header of a safetensors file.

use super::place::{Place, Shard};
use crate::error::{Error, Result};
use safetensors::tensor::SafeTensors;

/// The tensors of a safetensors file, the `number`th of a checkpoint.
///
/// # Errors
/// A damaged header, or tensors that overlap or reach beyond the file.
pub fn tensors(shard: &Shard, number: usize) -> Result<Vec<(String, Place)>> {
    let (header, metadata) = SafeTensors::read_metadata(&shard.map).map_err(|cause| {
        let what = diagnose(&shard.map).unwrap_or_else(|| "it is not a valid safetensors file".into());
        Error::new(format!("{}: {what}", shard.path.display()))
            .because(cause)
            .hint("the file is damaged or was not downloaded completely; download it again")
    })?;
    let start = header + 8;
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let (shape, (from, to)) = (info.shape.clone(), info.data_offsets);
        (name, Place { shard: number, dtype: info.dtype, shape, bytes: start + from..start + to, strides: None })
    });
    Ok(tensors.collect())
}

/// Says with names and numbers what is wrong with a file that the safetensors crate refused.
fn diagnose(map: &[u8]) -> Option<String> {
    let length = map.len();
    if length < 8 {
        return Some(format!("it has {length} bytes, too few for a safetensors header"));
    }
    let header = u64::from_le_bytes(map[..8].try_into().ok()?);
    if header > length as u64 - 8 {
        return Some(format!("its header should take {header} bytes, but the file has only {length}"));
    }
    let start = header as usize + 8;
    let json: serde_json::Value = serde_json::from_slice(&map[8..start]).ok()?;
    let mut places = Vec::new();
    for (name, info) in json.as_object()?.iter().filter(|(name, _)| *name != "__metadata__") {
        let offsets = info.get("data_offsets")?;
        places.push((offsets.get(0)?.as_u64()?, offsets.get(1)?.as_u64()?, name));
    }
    places.sort();
    let held = (length - start) as u64;
    for pair in places.windows(2) {
        let ((_, end, a), (begin, _, b)) = (pair[0], pair[1]);
        if begin < end {
            return Some(format!(
                "tensor '{b}' starts at byte {begin} of the data, inside tensor '{a}', which ends at {end}"
            ));
        }
        if begin > end {
            return Some(format!("{} bytes between tensors '{a}' and '{b}' belong to none", begin - end));
        }
    }
    let (_, end, name) = *places.last()?;
    if end > held {
        return Some(format!("tensor '{name}' ends at byte {end} of the data, but only {held} bytes are there"));
    }
    (end < held).then(|| format!("{} bytes after the last tensor, '{name}', belong to none", held - end))
}
