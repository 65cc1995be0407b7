//! MXFP4 as gpt-oss stores its experts: `NAME_blocks`, `[experts, rows, groups, 16]`, two codes a byte, the lower bits first, and
//! `NAME_scales`, `[experts, rows, groups]`, exponents with a bias of 127 (OCP Microscaling Formats 1.0, sections 5.2 and 6.3).
//!
//! Unpacked, such a weight is `[experts, 32·groups, rows]`: transposed, as those of the same models in 16 bits are.

use super::packed::{Found, Named, Packed, Packing, Parts};
use super::place::{Place, Shard};
use super::quantization::Quantization;
use crate::error::{Error, Result};
use rayon::prelude::*;
use safetensors::tensor::Dtype;
use std::ops::Range;

/// The packing.
pub struct Mxfp4;

/// Codes that share a scale.
const GROUP: usize = 32;

/// What the sixteen codes stand for: a sign, two bits of exponent, one of mantissa.
const LEVELS: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

impl Packing for Mxfp4 {
    fn reads(&self, quantization: &Quantization) -> bool {
        quantization.method == "mxfp4"
    }

    fn find(&self, name: &str, parts: &Parts) -> Result<Option<Found>> {
        let Some(stem) = name.strip_suffix("_blocks").filter(|_| parts.described("mxfp4").is_some()) else {
            return Ok(None);
        };
        let blocks = parts.part(name, &[Dtype::U8])?;
        let &[experts, rows, groups, bytes] = &blocks.shape[..] else {
            return Err(parts.misfit(name, blocks, "not [experts, rows, groups, 16]"));
        };
        if 2 * bytes != GROUP {
            return Err(parts.misfit(name, blocks, "not [experts, rows, groups, 16]"));
        }
        let scale = format!("{stem}_scales");
        let scales = parts.shaped(&scale, &[Dtype::U8], &[experts, rows, groups])?;
        let weight = Weight {
            shape: [experts, parts.times(name, blocks, groups, GROUP)?, rows],
            blocks: Named { name: name.to_owned(), place: blocks.clone() },
            scales: Named { name: scale.clone(), place: scales.clone() },
        };
        Ok(Some(Found { name: stem.to_owned(), weight: Box::new(weight), parts: vec![name.to_owned(), scale] }))
    }
}

struct Weight {
    /// `[experts, columns, rows]`.
    shape: [usize; 3],
    blocks: Named,
    scales: Named,
}

impl Packed for Weight {
    fn kind(&self) -> &str {
        "MXFP4"
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn parts(&self) -> Vec<&Place> {
        vec![&self.blocks.place, &self.scales.place]
    }

    fn numbers(&self, shards: &[Shard], experts: Range<usize>) -> Result<Vec<f32>> {
        let [_, columns, rows] = self.shape;
        let groups = columns / GROUP;
        let (blocks, of_blocks) = self.blocks.place.rows(shards, experts.clone());
        let (scales, of_scales) = self.scales.place.rows(shards, experts.clone());
        if let Some(at) = scales.iter().position(|&scale| scale == 255) {
            let (path, name) = (self.scales.place.path(shards).display(), &self.scales.name);
            let at = experts.start * rows * groups + at;
            return Err(Error::new(format!("{path}: tensor '{name}' holds NaN (255) at element {at}"))
                .hint("the checkpoint is damaged: compare its checksum with the published one, or download it again"));
        }
        let mut numbers = vec![0.0; experts.len() * columns * rows];
        // Each task fills the columns of one group: [32, rows] of an expert.
        numbers.par_chunks_mut((GROUP * rows).max(1)).enumerate().for_each(|(task, out)| {
            let (expert, group) = (task / groups, task % groups);
            for row in 0..rows {
                let at = (expert * rows + row) * groups + group;
                let scale = (f64::from(scales[at]) - 127.0).exp2() as f32;
                for (i, byte) in blocks[at * GROUP / 2..(at + 1) * GROUP / 2].iter().enumerate() {
                    out[2 * i * rows + row] = LEVELS[usize::from(byte & 15)] * scale;
                    out[(2 * i + 1) * rows + row] = LEVELS[usize::from(byte >> 4)] * scale;
                }
            }
        });
        shards[self.blocks.place.shard].release(of_blocks);
        shards[self.scales.place.shard].release(of_scales);
        Ok(numbers)
    }
}
