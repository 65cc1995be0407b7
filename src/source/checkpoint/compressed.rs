//! compressed-tensors' `pack-quantized`, as llm-compressor stores it: `weight_packed` `[out, in/8]`, `weight_scale`
//! `[out, groups]`, `weight_shape` `[2]`; where it is not symmetric, `weight_zero_point` `[out/8, groups]`, or one byte each.
//! Neighbours along the inputs share a word of `weight_packed`, neighbours along the outputs one of `weight_zero_point`, the
//! first in the lowest bits. Codes and zero points are signed and stored with half their range added.

use super::coded::{Coded, Groups, Zeros};
use super::packed::{FLOATS, Found, Named, Packing, Parts};
use super::place::{Place, Shard};
use super::quantization::Quantization;
use super::words::{Axis, Layout, Words};
use crate::error::Result;
use safetensors::tensor::Dtype;

/// The packing.
pub struct Compressed;

/// How `weight_packed` holds the codes.
pub fn codes(bits: usize) -> Layout {
    Layout { bits, along: Axis::Second, order: None, outputs: Axis::First }
}

/// How `weight_zero_point` holds the zero points.
pub fn zeros(bits: usize) -> Layout {
    Layout { bits, along: Axis::First, order: None, outputs: Axis::First }
}

impl Packing for Compressed {
    fn reads(&self, quantization: &Quantization) -> bool {
        let format = quantization.config.get("format").and_then(|format| format.as_str());
        quantization.method == "compressed-tensors" && matches!(format, Some("pack-quantized" | "mixed-precision"))
    }

    fn find(&self, name: &str, parts: &Parts) -> Result<Option<Found>> {
        let Some(stem) = name.strip_suffix("_packed").filter(|stem| stem.ends_with(".weight")) else { return Ok(None) };
        if parts.described("compressed-tensors").is_none() || parts.tensors[name].dtype != Dtype::I32 {
            return Ok(None);
        }
        let part = |suffix: &str| format!("{stem}_{suffix}");
        let codes = parts.part(name, &[Dtype::I32])?;
        let shape_name = part("shape");
        let shape = parts.shaped(&shape_name, &[Dtype::I64, Dtype::I32], &[2])?;
        let [rows, columns] = whole_numbers(shape, parts.shards);
        let fits = |&bits: &usize| codes.shape == self::codes(bits).shape(rows, columns);
        let Some(bits) = [4, 8, 2].into_iter().find(fits) else {
            let why = format!("which holds no codes of 4, 8 or 2 bits for the {rows} x {columns} of '{shape_name}'");
            return Err(parts.misfit(name, codes, &why));
        };
        let scale_name = part("scale");
        let scale = parts.part(&scale_name, &FLOATS)?;
        let count = scale.elements() / rows.max(1);
        if count == 0 || scale.shape.first() != Some(&rows) || scale.elements() != rows * count || columns % count != 0
        {
            return Err(parts.misfit(&scale_name, scale, &format!("which divides no {rows} x {columns} into groups")));
        }
        let mut names = vec![name.to_owned(), shape_name, scale_name.clone()];
        let mut optional = |suffix: &str| {
            let name = part(suffix);
            let there = parts.tensors.contains_key(&name);
            if there {
                names.push(name.clone());
            }
            there.then_some(name)
        };
        let words = |place: &Place, layout, other| Words { place: place.clone(), layout, other };
        let zeros = match optional("zero_point") {
            None => Zeros::Middle,
            Some(name) if parts.tensors[&name].dtype == Dtype::I32 => {
                let layout = self::zeros(bits);
                let place = parts.shaped(&name, &[Dtype::I32], &layout.shape(rows, count))?;
                Zeros::Words { name, words: words(place, layout, count), less: 0 }
            }
            Some(name) => {
                let place = parts.shaped(&name, &[Dtype::I8], &scale.shape)?.clone();
                Zeros::Bytes(Named { name, place })
            }
        };
        let size = columns / count;
        let groups = match optional("g_idx") {
            None => Groups::Neighbours(size),
            Some(name) => {
                let place = parts.shaped(&name, &[Dtype::I32], &[columns])?.clone();
                Groups::Indices(Named { name, place }, size)
            }
        };
        let weight = Coded {
            kind: format!("INT{bits}"),
            shape: [rows, columns],
            codes: words(codes, self::codes(bits), columns),
            scales: Named { name: scale_name, place: scale.clone() },
            rows_of_scales: Axis::First,
            zeros,
            groups,
            count,
        };
        Ok(Some(Found { name: stem.to_owned(), weight: Box::new(weight), parts: names }))
    }
}

/// Two numbers of a tensor; what is below zero becomes zero, which fits no tensor.
fn whole_numbers(place: &Place, shards: &[Shard]) -> [usize; 2] {
    let (bytes, _) = place.rows(shards, 0..2);
    let width = place.width();
    std::array::from_fn(|i| {
        let mut whole = [0; 8];
        whole[..width].copy_from_slice(&bytes[i * width..(i + 1) * width]);
        let n = i64::from_le_bytes(whole);
        // A shape that no file could hold must not overflow on the way to the message about it.
        usize::try_from(if width == 4 { i64::from(n as i32) } else { n }).unwrap_or(0).min(u32::MAX as usize)
    })
}
