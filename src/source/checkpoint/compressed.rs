//! compressed-tensors' `pack-quantized`, as llm-compressor stores it: `weight_packed` `[out, in/8]`, `weight_scale`
//! `[out, groups]`, `weight_shape` `[2]`; where it is not symmetric, `weight_zero_point` `[out/8, groups]`, or one byte each.
//! Neighbours along the inputs share a word of `weight_packed`, neighbours along the outputs one of `weight_zero_point`, the
//! first in the lowest bits. Codes and zero points are signed and stored with half their range added.

use super::packed::{
    Axis, Coded, FLOATS, Found, Lines, Named, Packed, Packing, Parts, Words, decoded, in_order, indices, scales,
};
use super::place::{Place, Shard};
use super::quantization::Quantization;
use crate::error::{Error, Result};
use safetensors::tensor::Dtype;
use std::ops::Range;

/// The packing.
pub struct Compressed;

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
        let fits = |&bits: &usize| codes.shape == [rows, columns.div_ceil(32 / bits)];
        let Some(bits) = [4, 8, 2].into_iter().find(fits) else {
            let why = format!("which holds no codes of 4, 8 or 2 bits for the {rows} x {columns} of '{shape_name}'");
            return Err(parts.misfit(name, codes, &why));
        };
        let scale_name = part("scale");
        let scale = parts.part(&scale_name, &FLOATS)?;
        let count = scale.elements() / rows.max(1);
        if count == 0 || scale.shape[0] != rows || scale.elements() != rows * count || columns % count != 0 {
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
        let words = |place: &Place, shape, along| Words {
            place: place.clone(),
            shape,
            along,
            bits,
            order: None,
            outputs: Axis::First,
        };
        let zeros = match optional("zero_point") {
            None => Zeros::Middle,
            Some(name) if parts.tensors[&name].dtype == Dtype::I32 => {
                let place = parts.shaped(&name, &[Dtype::I32], &[rows.div_ceil(32 / bits), count])?;
                Zeros::Words(words(place, [rows, count], Axis::First))
            }
            Some(name) => {
                let place = parts.shaped(&name, &[Dtype::I8], &scale.shape)?.clone();
                Zeros::Bytes(Named { name, place })
            }
        };
        let groups = match optional("g_idx") {
            None => None,
            Some(name) => {
                let place = parts.shaped(&name, &[Dtype::I32], &[columns])?.clone();
                Some(Named { name, place })
            }
        };
        let weight = Weight {
            kind: format!("INT{bits}"),
            shape: [rows, columns],
            count,
            codes: words(codes, [rows, columns], Axis::Second),
            zeros,
            scales: Named { name: scale_name, place: scale.clone() },
            groups,
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

/// Where the zero points are.
enum Zeros {
    /// Nowhere: they are all half of the range.
    Middle,
    /// Packed like the codes.
    Words(Words),
    /// One byte each, with a sign.
    Bytes(Named),
}

struct Weight {
    kind: String,
    shape: [usize; 2],
    /// Groups per row.
    count: usize,
    codes: Words,
    zeros: Zeros,
    scales: Named,
    groups: Option<Named>,
}

impl Packed for Weight {
    fn kind(&self) -> &str {
        &self.kind
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn parts(&self) -> Vec<&Place> {
        let zeros = match &self.zeros {
            Zeros::Middle => None,
            Zeros::Words(words) => Some(&words.place),
            Zeros::Bytes(bytes) => Some(&bytes.place),
        };
        let more = self.groups.iter().map(|groups| &groups.place).chain(zeros);
        [&self.codes.place, &self.scales.place].into_iter().chain(more).collect()
    }

    fn numbers(&self, shards: &[Shard], rows: Range<usize>) -> Result<Vec<f32>> {
        decoded(self, shards, rows)
    }

    fn codes(&self) -> Option<&dyn Coded> {
        Some(self)
    }
}

impl Coded for Weight {
    fn top(&self) -> u8 {
        ((1u32 << self.codes.bits) - 1) as u8
    }

    fn read_codes(&self, shards: &[Shard], rows: Range<usize>) -> Vec<u8> {
        self.codes.read(shards, rows)
    }

    fn read_lines(&self, shards: &[Shard], rows: Range<usize>) -> Result<Lines> {
        let (columns, count) = (self.shape[1], self.count);
        let groups = match &self.groups {
            // Where columns are in order after all, every index is −1.
            Some(groups) if !all_unset(groups, shards) => indices(groups, count, shards)?,
            _ => in_order(columns, columns / count),
        };
        let middle = 1i16 << (self.codes.bits - 1);
        let zeros = match &self.zeros {
            Zeros::Middle => vec![middle; rows.len() * count],
            Zeros::Words(words) => words.read(shards, rows.clone()).into_iter().map(i16::from).collect(),
            Zeros::Bytes(Named { name, place }) => {
                let (bytes, _) = place.rows(shards, rows.clone());
                if let Some(at) = bytes.iter().position(|&byte| !(-middle..middle).contains(&i16::from(byte as i8))) {
                    let (path, zero, row) = (place.path(shards).display(), bytes[at] as i8, rows.start + at / count);
                    return Err(Error::new(format!(
                        "{path}: tensor '{name}' holds zero point {zero} for output {row}, group {}, beyond {} to {}",
                        at % count,
                        -middle,
                        middle - 1
                    ))
                    .hint("the checkpoint is damaged, or its configuration belongs to another one"));
                }
                bytes.iter().map(|&byte| i16::from(byte as i8) + middle).collect()
            }
        };
        Ok(Lines { groups, count, scales: scales(&self.scales, Axis::First, shards, rows)?, zeros })
    }
}

fn all_unset(groups: &Named, shards: &[Shard]) -> bool {
    let (bytes, _) = groups.place.rows(shards, 0..groups.place.shape[0]);
    bytes.iter().all(|&byte| byte == 0xff)
}
