//! Weights that are stored as something other than plain numbers.
//!
//! To add a way of packing, write one file that implements [`Packing`] and [`Packed`] and add it to [`PACKINGS`].

use super::place::{Place, Shard, is_float};
use super::quantization::Quantization;
use super::{awq, compressed, gptq, mxfp4, scaled};
use crate::error::{Error, Result};
use rayon::prelude::*;
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::ops::Range;

/// Every way of packing.
pub static PACKINGS: &[&dyn Packing] =
    &[&gptq::Gptq, &awq::Awq, &compressed::Compressed, &scaled::Scaled, &mxfp4::Mxfp4];

/// A way in which some program stores weights.
pub trait Packing: Sync {
    /// Whether it is the way of a description.
    fn reads(&self, quantization: &Quantization) -> bool;

    /// The weight that the tensor called `name` is the main part of; none if it is no such part.
    ///
    /// # Errors
    /// Another part is missing, or their shapes or types do not belong together.
    fn find(&self, name: &str, parts: &Parts) -> Result<Option<Found>>;
}

/// A weight that was found.
pub struct Found {
    /// The name that it would have unpacked.
    pub name: String,
    /// What it is.
    pub weight: Box<dyn Packed>,
    /// The tensors that make it, which are no weights themselves.
    pub parts: Vec<String>,
}

/// One packed weight, `[rows, columns]`, or a stack of them.
pub trait Packed: Send + Sync {
    /// What it is called where types are shown.
    fn kind(&self) -> &str;

    /// `[rows, columns]`, or that of a stack.
    fn shape(&self) -> &[usize];

    /// The tensors that make it.
    fn parts(&self) -> Vec<&Place>;

    /// Some rows in `f32`: steps along the first dimension.
    ///
    /// # Errors
    /// What is stored makes no sense.
    fn numbers(&self, shards: &[Shard], rows: Range<usize>) -> Result<Vec<f32>>;

    /// The weight as codes with scales, if that is what it is.
    fn codes(&self) -> Option<&dyn Coded> {
        None
    }
}

/// A weight of unsigned integers `q` in groups of columns: `(q − zero)·scale`, exact in `f32`.
pub trait Coded: Packed {
    /// The largest `q`.
    fn top(&self) -> u8;

    /// `q` of some rows: `[rows, columns]`.
    fn read_codes(&self, shards: &[Shard], rows: Range<usize>) -> Vec<u8>;

    /// Scales and zero points of some rows.
    ///
    /// # Errors
    /// A group that is not there, a zero point beyond its range, or a scale that is no number.
    fn read_lines(&self, shards: &[Shard], rows: Range<usize>) -> Result<Lines>;
}

/// Scales and zero points of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Lines {
    /// The group of each column: `[columns]`.
    pub groups: Vec<u32>,
    /// How many groups there are.
    pub count: usize,
    /// `[rows, count]`, finite.
    pub scales: Vec<f32>,
    /// `[rows, count]`.
    pub zeros: Vec<i16>,
}

/// [`Packed::numbers`] of a weight that is [`Coded`].
///
/// # Errors
/// As [`Coded::read_lines`].
pub fn decoded(weight: &dyn Coded, shards: &[Shard], rows: Range<usize>) -> Result<Vec<f32>> {
    let lines = weight.read_lines(shards, rows.clone())?;
    let codes = weight.read_codes(shards, rows);
    let (columns, count) = (lines.groups.len(), lines.count);
    let mut out = vec![0.0; codes.len()];
    out.par_chunks_mut(columns).zip(codes.par_chunks(columns)).enumerate().for_each(|(r, (out, codes))| {
        let (scales, zeros) = (&lines.scales[r * count..], &lines.zeros[r * count..]);
        for ((x, &q), &g) in out.iter_mut().zip(codes).zip(&lines.groups) {
            *x = f32::from(i16::from(q) - zeros[g as usize]) * scales[g as usize];
        }
    });
    Ok(out)
}

/// The tensors of a checkpoint, among which parts of weights are looked for.
pub struct Parts<'a> {
    /// The files.
    pub shards: &'a [Shard],
    /// Where each tensor is.
    pub tensors: &'a BTreeMap<String, Place>,
    /// What the checkpoint says of itself.
    pub quantization: Option<&'a Quantization>,
}

impl Parts<'_> {
    /// The description of the checkpoint, if it is of this method.
    pub fn described(&self, method: &str) -> Option<&Quantization> {
        self.quantization.filter(|quantization| quantization.method == method)
    }

    /// A tensor of one of these types that lies in one piece.
    ///
    /// # Errors
    /// It is missing or something else.
    pub fn part(&self, name: &str, types: &[Dtype]) -> Result<&Place> {
        let place = self.tensors.get(name).ok_or_else(|| {
            let files: Vec<_> = self.shards.iter().take(1).map(|shard| shard.path.display().to_string()).collect();
            Error::new(format!("{}: there is no tensor '{name}', which belongs to a packed weight", files.concat()))
                .hint("a shard may be missing; download the checkpoint again")
        })?;
        let path = place.path(self.shards).display();
        if !types.contains(&place.dtype) || place.strides.is_some() {
            let turned = if place.strides.is_some() { " in another order" } else { "" };
            return Err(Error::new(format!(
                "{path}: tensor '{name}' is of type {:?}{turned}, not {types:?}",
                place.dtype
            ))
            .hint("it was packed in a way that is not known: start from the original checkpoint"));
        }
        Ok(place)
    }

    /// A tensor of one of these types and of this shape.
    ///
    /// # Errors
    /// As [`Parts::part`], or another shape.
    pub fn shaped(&self, name: &str, types: &[Dtype], shape: &[usize]) -> Result<&Place> {
        let place = self.part(name, types)?;
        if place.shape != shape {
            return Err(self.misfit(name, place, &format!("not {shape:?} as the other parts of its weight make it")));
        }
        Ok(place)
    }

    /// An error about a tensor's shape. `why`: how it goes on.
    pub fn misfit(&self, name: &str, place: &Place, why: &str) -> Error {
        let path = place.path(self.shards).display();
        Error::new(format!("{path}: tensor '{name}' has shape {:?}, {why}", place.shape))
            .hint("the checkpoint is damaged, or its configuration belongs to another one; download it again")
    }
}

/// The types that scales have.
pub const FLOATS: [Dtype; 3] = [Dtype::F16, Dtype::BF16, Dtype::F32];

/// Which dimension of a matrix is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// The slower one.
    First,
    /// The faster one.
    Second,
}

/// A matrix of small unsigned integers, several to each 32-bit word.
#[derive(Debug, Clone)]
pub struct Words {
    /// The words.
    pub place: Place,
    /// The matrix that they hold.
    pub shape: [usize; 2],
    /// Along which of its dimensions neighbours share a word.
    pub along: Axis,
    /// Bits per integer, a divisor of 32 up to eight.
    pub bits: usize,
    /// Which place in its word each of the neighbours has, from the lowest bits on; none if each has its own.
    pub order: Option<&'static [usize]>,
    /// Which dimension is the weight's outputs, its rows.
    pub outputs: Axis,
}

impl Words {
    /// Integers for some outputs: `[rows, other dimension]`.
    pub fn read(&self, shards: &[Shard], rows: Range<usize>) -> Vec<u8> {
        const ROWS: usize = 32;
        let other = self.shape[1 - self.outputs as usize];
        let mut out = vec![0; rows.len() * other];
        out.par_chunks_mut((ROWS * other).max(1)).enumerate().for_each(|(i, out)| {
            let first = rows.start + i * ROWS;
            self.read_part(&shards[self.place.shard].map, first..first + out.len() / other, out);
        });
        // Where outputs are the faster dimension, rows are all over the matrix.
        shards[self.place.shard].release(self.place.bytes.clone());
        out
    }

    fn read_part(&self, map: &[u8], rows: Range<usize>, out: &mut [u8]) {
        let [words, per] = [self.place.shape[1], 32 / self.bits];
        let other = self.shape[1 - self.outputs as usize];
        let mut wanted = [0..other, 0..other];
        wanted[self.outputs as usize] = rows.clone();
        let mut range = wanted.clone();
        let along = self.along as usize;
        range[along] = wanted[along].start / per..wanted[along].end.div_ceil(per);
        let mask = ((1u32 << self.bits) - 1) as u8;
        for i in range[0].clone() {
            for j in range[1].clone() {
                let at = self.place.bytes.start + 4 * (i * words + j);
                let word = u32::from_le_bytes([map[at], map[at + 1], map[at + 2], map[at + 3]]);
                for t in 0..per {
                    let mut index = [i, j];
                    index[along] = index[along] * per + t;
                    if !wanted[along].contains(&index[along]) {
                        continue;
                    }
                    let shift = self.order.map_or(t, |order| order[t]) * self.bits;
                    let (row, column) = match self.outputs {
                        Axis::First => (index[0], index[1]),
                        Axis::Second => (index[1], index[0]),
                    };
                    out[(row - rows.start) * other + column] = (word >> shift) as u8 & mask;
                }
            }
        }
    }
}

/// A part and the name under which errors speak of it.
#[derive(Debug, Clone)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub place: Place,
}

/// Scales of some outputs: `[rows, groups]`. `outputs`: which of the tensor's two dimensions these are.
///
/// # Errors
/// A scale that is no finite number.
pub fn scales(part: &Named, outputs: Axis, shards: &[Shard], rows: Range<usize>) -> Result<Vec<f32>> {
    let Named { name, place } = part;
    debug_assert!(is_float(place.dtype));
    let [first, second] = [place.shape[0], place.shape.get(1).copied().unwrap_or(1)];
    let out = match outputs {
        Axis::First => place.numbers(shards, rows.clone()),
        Axis::Second => {
            let mut out = vec![0.0; rows.len() * first];
            for g in 0..first {
                let at = place.bytes.start + (g * second + rows.start) * place.width();
                let part =
                    Place { bytes: at..at + rows.len() * place.width(), shape: vec![rows.len()], ..place.clone() };
                for (r, x) in part.numbers(shards, 0..rows.len()).into_iter().enumerate() {
                    out[r * first + g] = x;
                }
            }
            out
        }
    };
    let groups = out.len() / rows.len().max(1);
    match out.iter().position(|x| !x.is_finite()) {
        None => Ok(out),
        Some(at) => {
            let (path, row, group) = (place.path(shards).display(), rows.start + at / groups, at % groups);
            Err(Error::new(format!(
                "{path}: tensor '{name}' holds {} as the scale of output {row}, group {group}",
                out[at]
            ))
            .hint("the checkpoint is damaged: compare its checksum with the published one, or download it again"))
        }
    }
}

/// The group of each column, where groups are `size` columns wide.
pub fn in_order(columns: usize, size: usize) -> Vec<u32> {
    (0..columns).map(|j| (j / size) as u32).collect()
}

/// The group of each column as a tensor has it.
///
/// # Errors
/// A group that is not among the `count` that there are.
pub fn indices(part: &Named, count: usize, shards: &[Shard]) -> Result<Vec<u32>> {
    let Named { name, place } = part;
    let (bytes, _) = place.rows(shards, 0..place.shape[0]);
    let groups: Vec<i32> = bytes.as_chunks::<4>().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect();
    match groups.iter().position(|&g| g < 0 || g as usize >= count) {
        None => Ok(groups.into_iter().map(|g| g as u32).collect()),
        Some(j) => {
            let (path, group) = (place.path(shards).display(), groups[j]);
            Err(Error::new(format!(
                "{path}: tensor '{name}' puts column {j} into group {group}, but there are {count}"
            ))
            .hint("the checkpoint is damaged: compare its checksum with the published one, or download it again"))
        }
    }
}

#[cfg(test)]
mod tests;
