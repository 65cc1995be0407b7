//! Weights with scales beside them: FP8 (E4M3) as DeepSeek, compressed-tensors (`float-quantized`), FBGEMM and ModelOpt store
//! it. `weight` `[out, in]` times a scale, which is one number, one per output, or one per block of 128 x 128.

use super::packed::{FLOATS, Found, Named, Packed, Packing, Parts};
use super::place::{Place, Shard, is_float};
use super::quantization::Quantization;
use crate::error::{Error, Result};
use rayon::prelude::*;
use safetensors::tensor::Dtype;
use std::ops::Range;

/// The packing.
pub struct Scaled;

/// The blocks that a description names none for.
const BLOCK: [usize; 2] = [128, 128];

impl Packing for Scaled {
    fn reads(&self, quantization: &Quantization) -> bool {
        let format = quantization.config.get("format").and_then(|format| format.as_str());
        match quantization.method.as_str() {
            "fp8" | "fbgemm_fp8" => true,
            "compressed-tensors" => matches!(format, Some("float-quantized" | "naive-quantized" | "dense")),
            "modelopt" => quantization.config.get("quant_algo").and_then(|name| name.as_str()) == Some("FP8"),
            _ => false,
        }
    }

    fn find(&self, name: &str, parts: &Parts) -> Result<Option<Found>> {
        let place = &parts.tensors[name];
        let small = place.dtype == Dtype::F8_E4M3;
        let there = |suffix: &str| Some(format!("{name}_{suffix}")).filter(|name| parts.tensors.contains_key(name));
        // Numbers that are no FP8 may have a `weight_scale` that is in them already.
        let scale = there("scale_inv").or_else(|| there("scale").filter(|_| small));
        if !small && !is_float(place.dtype) {
            return Ok(None);
        }
        let Some(scale_name) = scale else {
            let path = place.path(parts.shards).display();
            return match small && name.ends_with(".weight") {
                true => {
                    Err(Error::new(format!("{path}: tensor '{name}' is FP8, but there is no '{name}_scale(_inv)'"))
                        .hint("its scale may be in a missing shard: download the checkpoint again"))
                }
                false => Ok(None),
            };
        };
        let place = parts.part(name, &[place.dtype])?;
        let &[rows, columns] = &place.shape[..] else {
            return Err(parts.misfit(name, place, "but only matrices can have scales"));
        };
        let scale = parts.part(&scale_name, &FLOATS)?;
        let block = match block(parts.quantization)? {
            _ if scale.elements() == 1 => [rows, columns],
            _ if scale.shape == [rows] || scale.shape == [rows, 1] => [1, columns],
            Some(block) => block,
            None => BLOCK,
        };
        let block = block.map(|n| n.max(1));
        let shape = [rows.div_ceil(block[0]), columns.div_ceil(block[1])];
        if scale.elements() != shape[0] * shape[1] || scale.shape.len() == 2 && scale.shape != shape {
            let [a, b] = block;
            let why = format!("which is neither one scale for '{name}', nor one per row, nor one per {a} x {b} of it");
            return Err(parts.misfit(&scale_name, scale, &why));
        }
        let mut names = vec![name.to_owned(), scale_name.clone()];
        names.extend(name.strip_suffix("weight").map(|stem| format!("{stem}input_scale")));
        let weight = Weight {
            kind: format!("{:?}", place.dtype),
            weight: Named { name: name.to_owned(), place: place.clone() },
            scale: Named { name: scale_name, place: scale.clone() },
            block,
            across: shape[1],
        };
        Ok(Some(Found { name: name.to_owned(), weight: Box::new(weight), parts: names }))
    }
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

struct Weight {
    kind: String,
    weight: Named,
    scale: Named,
    /// Rows and columns that share a scale.
    block: [usize; 2],
    /// Scales along a row.
    across: usize,
}

impl Packed for Weight {
    fn kind(&self) -> &str {
        &self.kind
    }

    fn shape(&self) -> &[usize] {
        &self.weight.place.shape
    }

    fn parts(&self) -> Vec<&Place> {
        vec![&self.weight.place, &self.scale.place]
    }

    fn numbers(&self, shards: &[Shard], rows: Range<usize>) -> Result<Vec<f32>> {
        let place = &self.weight.place;
        let columns = place.shape[1];
        let mut numbers = if is_float(place.dtype) {
            place.numbers(shards, rows.clone())
        } else {
            let (bytes, part) = place.rows(shards, rows.clone());
            let values: [f32; 256] = std::array::from_fn(|i| e4m3(i as u8));
            let numbers = bytes.par_iter().with_min_len(1 << 16).map(|&byte| values[usize::from(byte)]).collect();
            shards[place.shard].release(part);
            numbers
        };
        let (name, part) = (&self.scale.name, &self.scale.place);
        let flat = Place { shape: vec![part.elements()], ..part.clone() };
        let first = rows.start / self.block[0] * self.across;
        let last = rows.end.div_ceil(self.block[0]) * self.across;
        let scales = flat.numbers(shards, first..last);
        if let Some(at) = scales.iter().position(|x| !x.is_finite()) {
            let (path, x) = (part.path(shards).display(), scales[at]);
            return Err(Error::new(format!("{path}: tensor '{name}' holds {x} at element {}", first + at))
                .hint("the checkpoint is damaged: compare its checksum with the published one, or download it again"));
        }
        numbers.par_chunks_mut(columns.max(1)).enumerate().for_each(|(r, row)| {
            let at = (rows.start + r) / self.block[0] * self.across - first;
            for (x, scale) in row.chunks_mut(self.block[1]).zip(&scales[at..]) {
                x.iter_mut().for_each(|x| *x *= scale);
            }
        });
        Ok(numbers)
    }
}

/// The number that a byte of E4M3 stands for: a sign, four bits of exponent with a bias of 7, three of mantissa; no
/// infinities, and NaN where all but the sign is set (Micikevicius et al. 2022, table 1).
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let size = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        (_, _) => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_e4m3_is_what_its_bits_say() {
        // The whole positive range, counted up: eight subnormals, then each octave in steps of an eighth of itself.
        let mut wanted: Vec<f32> = (0..8).map(|i| i as f32 / 512.0).collect();
        let mut octave = 1.0 / 64.0;
        while octave <= 256.0 {
            wanted.extend((0..8).map(|i| octave + octave * i as f32 / 8.0));
            octave *= 2.0;
        }
        assert_eq!((wanted.len(), wanted[126]), (128, 448.0));
        for (i, x) in wanted.iter().enumerate().take(127) {
            assert_eq!((e4m3(i as u8), e4m3(i as u8 | 0x80)), (*x, -x), "{i}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
    }
}
