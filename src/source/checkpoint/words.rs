//! Small unsigned integers, several to each 32-bit word: how they are packed and unpacked.

use super::place::{Place, Shard};
use rayon::prelude::*;
use std::ops::Range;

/// Which dimension of a matrix is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// The slower one.
    First,
    /// The faster one.
    Second,
}

/// How a matrix of small unsigned integers, one line for each output of a layer, lies in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Bits per integer, a divisor of 32 up to eight.
    pub bits: usize,
    /// Along which of its dimensions neighbours share a word.
    pub along: Axis,
    /// Which place in its word each of the neighbours has, from the lowest bits on; none if each has its own.
    pub order: Option<&'static [usize]>,
    /// Which dimension is the layer's outputs, the rows of its weight.
    pub outputs: Axis,
}

impl Layout {
    /// Integers per word.
    pub fn per_word(&self) -> usize {
        32 / self.bits
    }

    /// The shape of the words for so many outputs of `other` integers each.
    pub fn shape(&self, outputs: usize, other: usize) -> [usize; 2] {
        let mut shape = match self.outputs {
            Axis::First => [outputs, other],
            Axis::Second => [other, outputs],
        };
        shape[self.along as usize] = shape[self.along as usize].div_ceil(self.per_word());
        shape
    }

    /// Where the integer of an output and its place `other` are: row and column of the word, and its lowest bit.
    fn place(&self, output: usize, other: usize) -> (usize, usize, usize) {
        let mut index = match self.outputs {
            Axis::First => [output, other],
            Axis::Second => [other, output],
        };
        let along = &mut index[self.along as usize];
        // A power of two; divisions would take most of the time.
        let per = self.per_word();
        let t = *along & (per - 1);
        *along >>= per.trailing_zeros();
        (index[0], index[1], self.order.map_or(t, |order| order[t]) * self.bits)
    }

    /// Little-endian words that hold `integers`, `[outputs, other]`; what is left of the last words is zero.
    pub fn pack(&self, integers: &[u8], outputs: usize, other: usize) -> Vec<u8> {
        let [_, columns] = self.shape(outputs, other);
        let mut words = vec![0u32; self.shape(outputs, other).iter().product()];
        // Each part is a row of words, to which no other part adds.
        words.par_chunks_mut(columns.max(1)).enumerate().for_each(|(row, words)| {
            let first = if self.along == Axis::First { row * self.per_word() } else { row };
            let run = if self.along == Axis::First { self.per_word() } else { 1 };
            let mut put = |output: usize, at: usize| {
                let (_, column, shift) = self.place(output, at);
                words[column] |= u32::from(integers[output * other + at]) << shift;
            };
            match self.outputs {
                Axis::First => (first..(first + run).min(outputs)).for_each(|o| (0..other).for_each(|at| put(o, at))),
                Axis::Second => (first..(first + run).min(other)).for_each(|at| (0..outputs).for_each(|o| put(o, at))),
            }
        });
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

/// A matrix in words of a file.
#[derive(Debug, Clone)]
pub struct Words {
    /// The words.
    pub place: Place,
    /// How they hold it.
    pub layout: Layout,
    /// Integers for each output.
    pub other: usize,
}

impl Words {
    /// Integers for some outputs: `[rows, other]`.
    pub fn read(&self, shards: &[Shard], rows: Range<usize>) -> Vec<u8> {
        const ROWS: usize = 32;
        let other = self.other;
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
        let Words { place, layout, other } = self;
        let mask = ((1u32 << layout.bits) - 1) as u8;
        let mut get = |output: usize, at: usize| {
            let (i, j, shift) = layout.place(output, at);
            let byte = place.bytes.start + 4 * (i * place.shape[1] + j);
            let word = u32::from_le_bytes([map[byte], map[byte + 1], map[byte + 2], map[byte + 3]]);
            out[(output - rows.start) * other + at] = (word >> shift) as u8 & mask;
        };
        // In the order of the file.
        match layout.outputs {
            Axis::First => rows.clone().for_each(|output| (0..*other).for_each(|at| get(output, at))),
            Axis::Second => (0..*other).for_each(|at| rows.clone().for_each(|output| get(output, at))),
        }
    }
}
