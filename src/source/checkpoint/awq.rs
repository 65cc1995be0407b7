//! AWQ, as AutoAWQ stores it for its GEMM kernel: `qweight` `[in, out/8]`, `qzeros` `[groups, out/8]`, `scales`
//! `[groups, out]`. Neighbours along the outputs share a word, in the order that its kernel unpacks them.

use super::coded::{Coded, Groups, Zeros};
use super::packed::{FLOATS, Found, Named, Packing, Parts};
use super::place::Place;
use super::quantization::Quantization;
use super::words::{Axis, Layout, Words};
use crate::error::Result;
use safetensors::tensor::Dtype;

/// The packing.
pub struct Awq;

/// Bits of a code.
pub const BITS: usize = 4;
const PER_WORD: usize = 32 / BITS;

/// Which nibble each of eight neighbours has: the kernel writes the outputs 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits on.
const ORDER: [usize; PER_WORD] = [0, 4, 1, 5, 2, 6, 3, 7];

/// How `qweight` holds the codes, and `qzeros` the zero points.
pub const LAYOUT: Layout = Layout { bits: BITS, along: Axis::Second, order: Some(&ORDER), outputs: Axis::Second };

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
        let rows = parts.times(name, codes, words, PER_WORD)?;
        let size = ["group_size", "q_group_size"].iter().find_map(|key| described.config.get(key)?.as_i64());
        let size = match size {
            Some(-1) => columns.max(1),
            Some(n @ 1..) => n as usize,
            _ => return Err(described.config.unsupported("its description of AWQ has no 'group_size'")),
        };
        let count = columns.div_ceil(size);
        let scales = parts.shaped(&part("scales"), &FLOATS, &[count, rows])?;
        let zeros = parts.shaped(&part("qzeros"), &[Dtype::I32], &LAYOUT.shape(rows, count))?;
        let words = |place: &Place, other| Words { place: place.clone(), layout: LAYOUT, other };
        let weight = Coded {
            kind: "AWQ4".into(),
            shape: [rows, columns],
            codes: words(codes, columns),
            scales: Named { name: part("scales"), place: scales.clone() },
            rows_of_scales: Axis::Second,
            zeros: Zeros::Words { name: part("qzeros"), words: words(zeros, count), less: 0 },
            groups: Groups::Neighbours(size),
            count,
        };
        let parts = vec![name.to_owned(), part("scales"), part("qzeros")];
        Ok(Some(Found { name: part("weight"), weight: Box::new(weight), parts }))
    }
}
