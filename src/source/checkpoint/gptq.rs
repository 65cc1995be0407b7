//! GPTQ, as AutoGPTQ, GPTQModel and transformers store it: `qweight` `[in/8, out]`, `qzeros` `[groups, out/8]`, `scales`
//! `[groups, out]`, `g_idx` `[in]`. Neighbours along the inputs share a word of `qweight`, neighbours along the outputs one
//! of `qzeros`, the first in the lowest bits.

use super::packed::{
    Axis, Coded, FLOATS, Found, Lines, Named, Packed, Packing, Parts, Words, decoded, in_order, indices, scales,
};
use super::place::{Place, Shard};
use super::quantization::Quantization;
use crate::error::{Error, Result};
use safetensors::tensor::Dtype;
use std::ops::Range;

/// The packing.
pub struct Gptq;

impl Packing for Gptq {
    fn reads(&self, quantization: &Quantization) -> bool {
        quantization.method == "gptq" && offset(quantization).is_some() && bits(quantization).is_some()
    }

    fn find(&self, name: &str, parts: &Parts) -> Result<Option<Found>> {
        let (Some(stem), Some(described)) = (name.strip_suffix(".qweight"), parts.described("gptq")) else {
            return Ok(None);
        };
        let (Some(offset), Some(bits)) = (offset(described), bits(described)) else { return Ok(None) };
        let per = 32 / bits;
        let part = |suffix: &str| format!("{stem}.{suffix}");
        let codes = parts.part(name, &[Dtype::I32])?;
        let &[words, rows] = &codes.shape[..] else { return Err(parts.misfit(name, codes, "but has to be a matrix")) };
        let columns = words * per;
        let size = match described.config.get("group_size").and_then(|size| size.as_i64()) {
            Some(-1) => columns.max(1),
            Some(n @ 1..) => n as usize,
            _ => return Err(described.config.unsupported("its description of GPTQ has no 'group_size'")),
        };
        let count = columns.div_ceil(size);
        let scales = parts.shaped(&part("scales"), &FLOATS, &[count, rows])?;
        let zeros = parts.shaped(&part("qzeros"), &[Dtype::I32], &[count, rows.div_ceil(per)])?;
        let mut names = vec![name.to_owned(), part("scales"), part("qzeros")];
        let groups = if parts.tensors.contains_key(&part("g_idx")) {
            names.push(part("g_idx"));
            let place = parts.shaped(&part("g_idx"), &[Dtype::I32], &[columns])?.clone();
            Some(Named { name: part("g_idx"), place })
        } else {
            None
        };
        let words = |place: &Place, shape, along| Words {
            place: place.clone(),
            shape,
            along,
            bits,
            order: None,
            outputs: Axis::Second,
        };
        let weight = Weight {
            kind: format!("GPTQ{bits}"),
            shape: [rows, columns],
            size,
            offset,
            codes: words(codes, [columns, rows], Axis::First),
            zeros: words(zeros, [count, rows], Axis::Second),
            zeros_name: part("qzeros"),
            scales: Named { name: part("scales"), place: scales.clone() },
            groups,
        };
        Ok(Some(Found { name: part("weight"), weight: Box::new(weight), parts: names }))
    }
}

/// What is added to a stored zero point. The first version of the format stores one less.
fn offset(described: &Quantization) -> Option<i16> {
    let format = described.config.get("checkpoint_format").or_else(|| described.config.get("format"));
    match format.map_or(Some("gptq"), |format| format.as_str()) {
        Some("gptq") => Some(1),
        Some("gptq_v2") => Some(0),
        _ => None,
    }
}

/// Bits per code, where they divide a word.
fn bits(described: &Quantization) -> Option<usize> {
    described
        .config
        .get("bits")
        .and_then(|bits| bits.as_u64())
        .filter(|bits| [2, 4, 8].contains(bits))
        .map(|n| n as usize)
}

struct Weight {
    kind: String,
    shape: [usize; 2],
    /// Columns per group.
    size: usize,
    offset: i16,
    codes: Words,
    zeros: Words,
    zeros_name: String,
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
        let groups = self.groups.iter().map(|groups| &groups.place);
        [&self.codes.place, &self.zeros.place, &self.scales.place].into_iter().chain(groups).collect()
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
        let count = self.scales.place.shape[0];
        let groups = match &self.groups {
            Some(groups) => indices(groups, count, shards)?,
            None => in_order(self.shape[1], self.size),
        };
        let scales = scales(&self.scales, Axis::Second, shards, rows.clone())?;
        let top = i16::from(self.top());
        let zeros: Vec<i16> =
            self.zeros.read(shards, rows.clone()).into_iter().map(|zero| i16::from(zero) + self.offset).collect();
        // Programs differ in what they take a stored 15 for, which is one less than zero or than sixteen.
        if let Some(at) = zeros.iter().position(|&zero| zero > top) {
            let (path, name) = (self.zeros.place.path(shards).display(), &self.zeros_name);
            let (zero, row, group) = (zeros[at], rows.start + at / count, at % count);
            return Err(Error::new(format!(
                "{path}: tensor '{name}' holds zero point {zero} for output {row}, group {group}, beyond the codes' {top}"
            ))
            .hint("start from the original checkpoint, or save this one with the format gptq_v2, which has no such doubt"));
        }
        Ok(Lines { groups, count, scales, zeros })
    }
}
