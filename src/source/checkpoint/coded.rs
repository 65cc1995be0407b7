//! Weights in codes with scales and zero points, whoever packed them: what GPTQ, AWQ and compressed-tensors have in common.

use super::packed::{Named, Packed};
use super::place::{Place, Shard, is_float};
use super::words::{Axis, Words};
use crate::error::{Error, Result};
use rayon::prelude::*;
use safetensors::tensor::Dtype;
use std::ops::Range;

/// A weight of unsigned integers `q` in groups of columns: `(q − zero)·scale`, exact in `f32`.
pub struct Coded {
    /// What it is called where types are shown.
    pub kind: String,
    /// `[rows, columns]`.
    pub shape: [usize; 2],
    /// Every `q`.
    pub codes: Words,
    /// One scale per row and group.
    pub scales: Named,
    /// Which of the dimensions of the scales is the rows.
    pub rows_of_scales: Axis,
    /// One zero point per row and group.
    pub zeros: Zeros,
    /// Which column belongs to which group.
    pub groups: Groups,
    /// How many groups a row has.
    pub count: usize,
}

/// Where zero points are.
pub enum Zeros {
    /// Nowhere: they are all half of the range.
    Middle,
    /// Packed like the codes, `less` lower than they are.
    Words {
        /// The tensor's name.
        name: String,
        /// What is stored.
        words: Words,
        /// What is added to that.
        less: i16,
    },
    /// One byte each, with a sign, half of the range lower than they are.
    Bytes(Named),
}

/// Which column belongs to which group.
pub enum Groups {
    /// Neighbours, so many of them.
    Neighbours(usize),
    /// A tensor says it; where that holds −1 everywhere, neighbours, so many of them.
    Indices(Named, usize),
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

impl Packed for Coded {
    fn kind(&self) -> &str {
        &self.kind
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn parts(&self) -> Vec<&Place> {
        let zeros = match &self.zeros {
            Zeros::Middle => None,
            Zeros::Words { words, .. } => Some(&words.place),
            Zeros::Bytes(bytes) => Some(&bytes.place),
        };
        let groups = match &self.groups {
            Groups::Neighbours(_) => None,
            Groups::Indices(named, _) => Some(&named.place),
        };
        [&self.codes.place, &self.scales.place].into_iter().chain(zeros).chain(groups).collect()
    }

    fn numbers(&self, shards: &[Shard], rows: Range<usize>) -> Result<Vec<f32>> {
        let lines = self.read_lines(shards, rows.clone())?;
        let codes = self.read_codes(shards, rows);
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

    fn codes(&self) -> Option<&Coded> {
        Some(self)
    }
}

impl Coded {
    /// The largest `q`.
    pub fn top(&self) -> u8 {
        ((1u32 << self.codes.layout.bits) - 1) as u8
    }

    /// `q` of some rows: `[rows, columns]`.
    pub fn read_codes(&self, shards: &[Shard], rows: Range<usize>) -> Vec<u8> {
        self.codes.read(shards, rows)
    }

    /// Scales and zero points of some rows.
    ///
    /// # Errors
    /// A group that is not there, a zero point beyond its range, or a scale that is no number.
    pub fn read_lines(&self, shards: &[Shard], rows: Range<usize>) -> Result<Lines> {
        let (columns, count) = (self.shape[1], self.count);
        let groups = match &self.groups {
            Groups::Indices(named, _) if !all_unset(named, shards) => indices(named, count, shards)?,
            Groups::Indices(_, size) | Groups::Neighbours(size) => (0..columns).map(|j| (j / size) as u32).collect(),
        };
        let scales = scales(&self.scales, self.rows_of_scales, shards, rows.clone())?;
        Ok(Lines { groups, count, scales, zeros: self.read_zeros(shards, rows)? })
    }

    fn read_zeros(&self, shards: &[Shard], rows: Range<usize>) -> Result<Vec<i16>> {
        let (top, count, first) = (i16::from(self.top()), self.count, rows.start);
        let middle = (top + 1) / 2;
        let beyond = |part: &Named, at: usize, zero: i16, limit: String| {
            let (path, name, row, group) =
                (part.place.path(shards).display(), &part.name, first + at / count, at % count);
            let told =
                format!("{path}: tensor '{name}' holds zero point {zero} for output {row}, group {group}, beyond");
            Error::new(format!("{told} {limit}"))
        };
        match &self.zeros {
            Zeros::Middle => Ok(vec![middle; rows.len() * count]),
            Zeros::Words { name, words, less } => {
                let zeros: Vec<i16> = words.read(shards, rows).into_iter().map(|zero| i16::from(zero) + less).collect();
                // Programs differ in what they take a stored 15 for, which is one less than zero or than sixteen.
                match zeros.iter().position(|&zero| zero > top) {
                    None => Ok(zeros),
                    Some(at) => {
                        let part = Named { name: name.clone(), place: words.place.clone() };
                        Err(beyond(&part, at, zeros[at], format!("the codes' {top}")).hint(
                            "start from the original checkpoint, or save this one with the format gptq_v2, which has no \
                             such doubt",
                        ))
                    }
                }
            }
            Zeros::Bytes(part) => {
                let (bytes, _) = part.place.rows(shards, rows);
                let zeros = bytes.iter().map(|&byte| i16::from(byte as i8));
                match zeros.clone().position(|zero| !(-middle..middle).contains(&zero)) {
                    None => Ok(zeros.map(|zero| zero + middle).collect()),
                    Some(at) => {
                        let limit = format!("{} to {}", -middle, middle - 1);
                        Err(beyond(part, at, i16::from(bytes[at] as i8), limit)
                            .hint("the checkpoint is damaged, or its configuration belongs to another one"))
                    }
                }
            }
        }
    }
}

/// Scales of some outputs: `[rows, groups]`. `outputs`: which of the tensor's two dimensions these are.
fn scales(part: &Named, outputs: Axis, shards: &[Shard], rows: Range<usize>) -> Result<Vec<f32>> {
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

fn all_unset(groups: &Named, shards: &[Shard]) -> bool {
    let (bytes, _) = groups.place.rows(shards, 0..groups.place.shape[0]);
    bytes.iter().all(|&byte| byte == 0xff)
}

/// The group of each column as a tensor has it, all of them among the `count` that there are.
fn indices(part: &Named, count: usize, shards: &[Shard]) -> Result<Vec<u32>> {
    let Named { name, place } = part;
    debug_assert_eq!(place.dtype, Dtype::I32);
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
