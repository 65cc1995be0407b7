//! AWQ, as AutoAWQ stores it for its GEMM kernel: `qweight` `[in, out/8]`, `qzeros` `[groups, out/8]`, `scales`
//! `[groups, out]`. Neighbours along the outputs share a word, in the order that its kernel unpacks them.

use super::packed::{
    Axis, Coded, FLOATS, Found, Lines, Named, Packed, Packing, Parts, Words, decoded, in_order, scales,
};
use super::place::{Place, Shard};
use super::quantization::Quantization;
use crate::error::Result;
use safetensors::tensor::Dtype;
use std::ops::Range;

/// The packing.
pub struct Awq;

const BITS: usize = 4;
const PER_WORD: usize = 32 / BITS;

/// Which nibble each of eight neighbours has: the kernel writes the outputs 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits on.
const ORDER: [usize; PER_WORD] = [0, 4, 1, 5, 2, 6, 3, 7];

impl Packing for Awq {
    fn reads(&self, quantization: &Quantization) -> bool {
        let text = |key: &str, usual: &str| {
            quantization.config.get(key).map_or(Some(usual.to_owned()), |x| x.as_str().map(str::to_lowercase))
        };
        let bits = ["bits", "w_bit"].iter().find_map(|key| quantization.config.get(key)?.as_u64());
        quantization.method == "awq" && text("version", "gemm").as_deref() == Some("gemm") && bits == Some(BITS as u64)
    }

    fn find(&self, name: &str, parts: &Parts) -> Result<Option<Found>> {
        let (Some(stem), Some(described)) = (name.strip_suffix(".qweight"), parts.described("awq")) else {
            return Ok(None);
        };
        if !self.reads(described) {
            return Ok(None);
        }
        let part = |suffix: &str| format!("{stem}.{suffix}");
        let codes = parts.part(name, &[Dtype::I32])?;
        let &[columns, words] = &codes.shape[..] else {
            return Err(parts.misfit(name, codes, "but has to be a matrix"));
        };
        let rows = words * PER_WORD;
        let size = ["group_size", "q_group_size"].iter().find_map(|key| described.config.get(key)?.as_i64());
        let size = match size {
            Some(-1) => columns.max(1),
            Some(n @ 1..) => n as usize,
            _ => return Err(described.config.unsupported("its description of AWQ has no 'group_size'")),
        };
        let count = columns.div_ceil(size);
        let scales = parts.shaped(&part("scales"), &FLOATS, &[count, rows])?;
        let zeros = parts.shaped(&part("qzeros"), &[Dtype::I32], &[count, words])?;
        let words = |place: &Place, shape| Words {
            place: place.clone(),
            shape,
            along: Axis::Second,
            bits: BITS,
            order: Some(&ORDER),
            outputs: Axis::Second,
        };
        let weight = Weight {
            shape: [rows, columns],
            size,
            codes: words(codes, [columns, rows]),
            zeros: words(zeros, [count, rows]),
            scales: Named { name: part("scales"), place: scales.clone() },
        };
        let parts = vec![name.to_owned(), part("scales"), part("qzeros")];
        Ok(Some(Found { name: part("weight"), weight: Box::new(weight), parts }))
    }
}

struct Weight {
    shape: [usize; 2],
    /// Columns per group.
    size: usize,
    codes: Words,
    zeros: Words,
    scales: Named,
}

impl Packed for Weight {
    fn kind(&self) -> &str {
        "AWQ4"
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn parts(&self) -> Vec<&Place> {
        vec![&self.codes.place, &self.zeros.place, &self.scales.place]
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
        (1 << BITS) - 1
    }

    fn read_codes(&self, shards: &[Shard], rows: Range<usize>) -> Vec<u8> {
        self.codes.read(shards, rows)
    }

    fn read_lines(&self, shards: &[Shard], rows: Range<usize>) -> Result<Lines> {
        Ok(Lines {
            groups: in_order(self.shape[1], self.size),
            count: self.scales.place.shape[0],
            scales: scales(&self.scales, Axis::Second, shards, rows.clone())?,
            // Four bits cannot hold more than the codes do.
            zeros: self.zeros.read(shards, rows).into_iter().map(i16::from).collect(),
        })
    }
}
