//! Weights with scales beside them: FP8 as DeepSeek, Mistral, compressed-tensors (`float-quantized`), FBGEMM and ModelOpt store
//! it, and INT8 as compressed-tensors does (`int-quantized`). `weight` `[out, in]`, or a stack of such, times a scale, which is
//! one number, one per matrix, one per output, one per block of a matrix (128 x 128 where nothing says otherwise) or one per
//! group of neighbours along the inputs.

use super::packed::{Found, Named, Packed, Packing, Parts};
use super::place::{Place, Shard, is_float, is_fp8};
use super::quantization::Quantization;
use crate::error::{Error, Result};
use rayon::prelude::*;
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::ops::Range;

/// The packing.
pub struct Scaled;

/// The blocks that a description names none for.
const BLOCK: [usize; 2] = [128, 128];

/// The types that scales have; bytes are powers of two.
const SCALES: [Dtype; 6] = [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64, Dtype::F8_E8M0, Dtype::U8];

/// What is behind `weight` in the names of scales: DeepSeek's, everyone's.
const ENDINGS: [&str; 2] = ["_scale_inv", "_scale"];
/// What stands in the place of `weight` in Mistral's own layout.
const MISTRAL: &str = "qscale_weight";
/// What stands there in the names of scales of activations, which are no part of the weight.
const ACTIVATIONS: [&str; 3] = ["input_scale", "activation_scale", "qscale_act"];

/// Whether any of these tensors is the scale of a weight in eight bits.
pub fn are_there(tensors: &BTreeMap<String, Place>) -> bool {
    let is_small = |name: &str| tensors.get(name).is_some_and(|place| is_small(place.dtype));
    tensors.keys().any(|name| {
        let of = |ending: &str| name.strip_suffix(ending).is_some_and(is_small);
        ENDINGS.into_iter().any(of) || name.ends_with(MISTRAL)
    })
}

fn is_small(dtype: Dtype) -> bool {
    is_fp8(dtype) || dtype == Dtype::I8
}

impl Packing for Scaled {
    fn reads(&self, quantization: &Quantization) -> bool {
        let text = |key: &str| quantization.config.get(key).and_then(|value| value.as_str());
        match quantization.method.as_str() {
            "fp8" | "fbgemm_fp8" => true,
            "compressed-tensors" => {
                matches!(text("format"), Some("float-quantized" | "int-quantized" | "naive-quantized" | "dense"))
            }
            "modelopt" => text("quant_algo") == Some("FP8"),
            _ => false,
        }
    }

    fn find(&self, name: &str, parts: &Parts) -> Result<Option<Found>> {
        let place = &parts.tensors[name];
        let small = is_small(place.dtype);
        if !small && !is_float(place.dtype) {
            return Ok(None);
        }
        let Some(scale_name) = scale_of(name, small, parts) else {
            return if is_fp8(place.dtype) { plain_cast(name, place, parts) } else { Ok(None) };
        };
        let place = parts.part(name, &[place.dtype])?;
        let &[.., rows, columns] = &place.shape[..] else {
            return Err(parts.misfit(name, place, "but only matrices can have scales"));
        };
        let matrices = place.shape[..place.shape.len() - 2].iter().product();
        let scale = parts.part(&scale_name, &SCALES)?;
        let block = block(parts.quantization)?.unwrap_or(BLOCK);
        let Some(spread) = Spread::of(&scale.shape, [matrices, rows, columns], block) else {
            let [a, b] = block;
            let why = format!(
                "which is neither one scale for '{name}' nor one per row or group, nor one per {a} x {b} of it"
            );
            return Err(parts.misfit(&scale_name, scale, &why));
        };
        let zeros = format!("{name}_zero_point");
        let zero = match parts.tensors.contains_key(&zeros) {
            true => Some(parts.shaped(&zeros, &[Dtype::I8], &scale.shape)?.clone()),
            false => None,
        };
        let mut names = vec![name.to_owned(), scale_name.clone(), zeros.clone()];
        let stem = name.strip_suffix("weight");
        names.extend(stem.into_iter().flat_map(|stem| ACTIVATIONS.map(|ending| format!("{stem}{ending}"))));
        let as_powers = |place: &Place| match place.dtype {
            Dtype::U8 => Place { dtype: Dtype::F8_E8M0, ..place.clone() },
            _ => place.clone(),
        };
        let weight = Weight {
            kind: format!("{:?}", place.dtype),
            place: place.clone(),
            scale: Named { name: scale_name, place: as_powers(scale) },
            zero: zero.map(|place| Named { name: zeros, place }),
            spread,
        };
        Ok(Some(Found { name: name.to_owned(), weight: Box::new(weight), parts: names }))
    }
}

/// The name of a weight's scale. `small`: the weight is of eight bits; others may have a `weight_scale` that is in them already.
fn scale_of(name: &str, small: bool, parts: &Parts) -> Option<String> {
    let mistral = name.strip_suffix("weight").map(|stem| format!("{stem}{MISTRAL}"));
    let names = ENDINGS.map(|ending| format!("{name}{ending}")).into_iter().chain(mistral);
    names.take(if small { 3 } else { 1 }).find(|name| parts.tensors.contains_key(name))
}

/// Whether a tensor is a weight by its name, and not a scale, which may be FP8 itself (NVFP4's are).
pub fn is_weight(name: &str) -> bool {
    !name.rsplit('.').next().is_some_and(|last| last.contains("scale"))
}

/// FP8 without a scale is what a plain cast leaves, unless the checkpoint has scales elsewhere or speaks of them.
fn plain_cast(name: &str, place: &Place, parts: &Parts) -> Result<Option<Found>> {
    let described = parts.quantization.is_some_and(|described| Scaled.reads(described));
    if !is_weight(name) || place.shape.len() < 2 || !described && !parts.has_scales {
        return Ok(None);
    }
    let path = place.path(parts.shards).display();
    Err(Error::new(format!("{path}: tensor '{name}' is FP8, but there is no '{name}_scale(_inv)'"))
        .hint("its scale may be in a missing shard: download the checkpoint again"))
}

/// The blocks that share a scale, if the description says so.
fn block(described: Option<&Quantization>) -> Result<Option<[usize; 2]>> {
    let Some(described) = described else { return Ok(None) };
    let Some(sizes) = described.config.get("weight_block_size") else { return Ok(None) };
    let sizes: Vec<u64> = sizes.as_array().into_iter().flatten().filter_map(serde_json::Value::as_u64).collect();
    match sizes[..] {
        [a @ 1..65536, b @ 1..65536] => Ok(Some([a as usize, b as usize])),
        _ => Err(described.config.unsupported("its 'weight_block_size' is no pair of sizes")),
    }
}

/// Which scale belongs to which number of a stack of matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spread {
    /// Rows of a matrix.
    rows: usize,
    /// Rows and columns that share a scale, both above zero.
    block: [usize; 2],
    /// Scales from one matrix to the next.
    matrix: usize,
    /// Scales from one row of blocks to the next.
    across: usize,
}

impl Spread {
    /// As the shape of the scales has it; none if it fits nothing. `sizes`: matrices, rows and columns.
    fn of(scale: &[usize], sizes: [usize; 3], block: [usize; 2]) -> Option<Spread> {
        let [matrices, rows, columns] = sizes;
        let [whole, line] = [[rows.max(1), columns.max(1)], [1, columns.max(1)]];
        let elements: usize = scale.iter().product();
        if elements == 1 {
            return Some(Spread { rows, block: whole, matrix: 0, across: 0 });
        }
        // The last dimension is the columns', if it is not left out.
        let last = scale.last().copied().filter(|&n| n > 0 && scale.len() > 1).unwrap_or(1);
        let group = [1, if columns.is_multiple_of(last) { (columns / last).max(1) } else { 1 }];
        let fits = |[a, b]: [usize; 2]| {
            let (down, across) = (rows.div_ceil(a), columns.div_ceil(b));
            // Dimensions of one are left out or not.
            let wanted = [matrices, down, across].into_iter().filter(|&n| n != 1);
            scale.iter().copied().filter(|&n| n != 1).eq(wanted)
        };
        let blocks = [whole, line, block, group];
        let block = blocks.into_iter().find(|&block| fits(block) && columns > 0)?;
        let across = columns.div_ceil(block[1]);
        Some(Spread { rows, block, matrix: rows.div_ceil(block[0]) * across, across })
    }

    /// The first of the scales of a row, counted through all matrices.
    fn row(&self, row: usize) -> usize {
        row / self.rows * self.matrix + row % self.rows / self.block[0] * self.across
    }
}

struct Weight {
    kind: String,
    place: Place,
    scale: Named,
    /// What is taken off before scaling, one for each scale.
    zero: Option<Named>,
    spread: Spread,
}

impl Packed for Weight {
    fn kind(&self) -> &str {
        &self.kind
    }

    fn shape(&self) -> &[usize] {
        &self.place.shape
    }

    fn parts(&self) -> Vec<&Place> {
        [&self.place, &self.scale.place].into_iter().chain(self.zero.iter().map(|zero| &zero.place)).collect()
    }

    fn numbers(&self, shards: &[Shard], rows: Range<usize>) -> Result<Vec<f32>> {
        let mut numbers = self.place.numbers(shards, rows.clone());
        let Some(&columns) = self.place.shape.last().filter(|_| !numbers.is_empty()) else { return Ok(numbers) };
        // Steps along the first dimension are matrices where there are several.
        let each = self.place.shape[1..self.place.shape.len() - 1].iter().product::<usize>();
        let (from, to) = (rows.start * each, rows.end * each);
        let first = self.spread.row(from);
        let held = first..self.spread.row(to - 1) + columns.div_ceil(self.spread.block[1]);
        let scales = part(&self.scale, shards, held.clone())?;
        let zeros = self.zero.as_ref().map(|zero| part(zero, shards, held)).transpose()?;
        numbers.par_chunks_mut(columns).enumerate().for_each(|(r, row)| {
            let at = self.spread.row(from + r) - first;
            for (i, x) in row.chunks_mut(self.spread.block[1]).enumerate() {
                let (scale, zero) = (scales[at + i], zeros.as_ref().map_or(0.0, |zeros| zeros[at + i]));
                x.iter_mut().for_each(|x| *x = (*x - zero) * scale);
            }
        });
        Ok(numbers)
    }
}

/// Some elements of a tensor, counted through all of its dimensions.
fn part(Named { name, place }: &Named, shards: &[Shard], elements: Range<usize>) -> Result<Vec<f32>> {
    let flat = Place { shape: vec![place.elements()], ..place.clone() };
    let numbers = flat.numbers(shards, elements.clone());
    match numbers.iter().position(|x| !x.is_finite()) {
        None => Ok(numbers),
        Some(at) => {
            let (path, x) = (place.path(shards).display(), numbers[at]);
            Err(Error::new(format!("{path}: tensor '{name}' holds {x} at element {}", elements.start + at))
                .hint("the checkpoint is damaged: compare its checksum with the published one, or download it again"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_spread_as_their_shape_says() {
        let of = |scale: &[usize], sizes| Spread::of(scale, sizes, BLOCK).map(|s| (s.block, s.matrix, s.across));
        for (scale, sizes, wanted) in [
            (&[][..], [1, 300, 200], Some(([300, 200], 0, 0))),
            (&[1, 1], [4, 300, 200], Some(([300, 200], 0, 0))),
            (&[300], [1, 300, 200], Some(([1, 200], 300, 1))),
            (&[300, 1], [1, 300, 200], Some(([1, 200], 300, 1))),
            (&[3, 2], [1, 300, 200], Some(([128, 128], 6, 2))),
            (&[300, 4], [1, 300, 200], Some(([1, 50], 1200, 4))),
            (&[4], [4, 300, 200], Some(([300, 200], 1, 1))),
            (&[4, 1, 1], [4, 300, 200], Some(([300, 200], 1, 1))),
            (&[4, 300, 1], [4, 300, 200], Some(([1, 200], 300, 1))),
            (&[4, 3, 2], [4, 300, 200], Some(([128, 128], 6, 2))),
            (&[2, 3], [1, 300, 200], None),
            (&[300, 7], [1, 300, 200], None),
            (&[0], [1, 300, 200], None),
        ] {
            assert_eq!(of(scale, sizes), wanted, "{scale:?}");
        }
        let rows = Spread::of(&[4, 3, 2], [4, 300, 200], BLOCK).unwrap();
        assert_eq!([0, 127, 128, 299, 300, 599].map(|row| rows.row(row)), [0, 0, 2, 4, 6, 10]);
    }
}
