//! GPTQ, as AutoGPTQ, GPTQModel and transformers store it: `qweight` `[in/8, out]`, `qzeros` `[groups, out/8]`, `scales`
//! `[groups, out]`, `g_idx` `[in]`. Neighbours along the inputs share a word of `qweight`, neighbours along the outputs one
//! of `qzeros`, the first in the lowest bits.

use super::coded::{Coded, Groups, Zeros};
use super::packed::{FLOATS, Found, Named, Packing, Parts};
use super::quantization::Quantization;
use super::words::{Axis, Layout, Words};
use crate::error::Result;
use safetensors::tensor::Dtype;

/// The packing.
pub struct Gptq;

/// What the first version of the format stores less than a zero point is.
pub const LESS: i16 = 1;

/// How `qweight` holds the codes.
pub fn codes(bits: usize) -> Layout {
    Layout { bits, along: Axis::First, order: None, outputs: Axis::Second }
}

/// How `qzeros` holds the zero points.
pub fn zeros(bits: usize) -> Layout {
    Layout { bits, along: Axis::Second, order: None, outputs: Axis::Second }
}

impl Packing for Gptq {
    fn reads(&self, quantization: &Quantization) -> bool {
        quantization.method == "gptq" && less(quantization).is_some() && bits(quantization).is_some()
    }

    fn find(&self, name: &str, parts: &Parts) -> Result<Option<Found>> {
        let (Some(stem), Some(described)) = (name.strip_suffix(".qweight"), parts.described("gptq")) else {
            return Ok(None);
        };
        let (Some(less), Some(bits)) = (less(described), bits(described)) else { return Ok(None) };
        let (in_codes, in_zeros) = (self::codes(bits), self::zeros(bits));
        let part = |suffix: &str| format!("{stem}.{suffix}");
        let codes = parts.part(name, &[Dtype::I32])?;
        let &[words, rows] = &codes.shape[..] else { return Err(parts.misfit(name, codes, "but has to be a matrix")) };
        let columns = parts.times(name, codes, words, in_codes.per_word())?;
        let size = match described.config.get("group_size").and_then(|size| size.as_i64()) {
            Some(-1) => columns.max(1),
            Some(n @ 1..) => n as usize,
            _ => return Err(described.config.unsupported("its description of GPTQ has no 'group_size'")),
        };
        let count = columns.div_ceil(size);
        let scales = parts.shaped(&part("scales"), &FLOATS, &[count, rows])?;
        let zeros = parts.shaped(&part("qzeros"), &[Dtype::I32], &in_zeros.shape(rows, count))?;
        let mut names = vec![name.to_owned(), part("scales"), part("qzeros")];
        let groups = if parts.tensors.contains_key(&part("g_idx")) {
            names.push(part("g_idx"));
            let place = parts.shaped(&part("g_idx"), &[Dtype::I32], &[columns])?.clone();
            Groups::Indices(Named { name: part("g_idx"), place }, size)
        } else {
            Groups::Neighbours(size)
        };
        let zeros = Words { place: zeros.clone(), layout: in_zeros, other: count };
        let weight = Coded {
            kind: format!("GPTQ{bits}"),
            shape: [rows, columns],
            codes: Words { place: codes.clone(), layout: in_codes, other: columns },
            scales: Named { name: part("scales"), place: scales.clone() },
            rows_of_scales: Axis::Second,
            zeros: Zeros::Words { name: part("qzeros"), words: zeros, less },
            groups,
            count,
        };
        Ok(Some(Found { name: part("weight"), weight: Box::new(weight), parts: names }))
    }
}

/// What a stored zero point is less than it should be.
fn less(described: &Quantization) -> Option<i16> {
    let format = described.config.get("checkpoint_format").or_else(|| described.config.get("format"));
    match format.map_or(Some("gptq"), |format| format.as_str()) {
        Some("gptq") => Some(LESS),
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
