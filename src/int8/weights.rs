//! A weight in INT8: symmetric, one scale per output channel or per row of an embedding.
//!
//! The zero point is always 0 and the code -128 is never used, so that a weight and its negative have codes of equal size. The scale of
//! a channel is the best of a few: the one that just covers the largest weight, and smaller ones that clip it, by squared error.

use super::onnx::proto::TensorProto;
use super::onnx::tensor::{self, Tensor};
use crate::error::{Error, Result};
use llmq_kernels::elementwise::first_non_finite;
use rayon::prelude::*;

/// How large codes may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Levels {
    /// 8 bits: -127 to 127.
    Full,
    /// 7 bits: -64 to 64. Without VNNI, an x86 CPU adds two products of a byte and a code in 16 bits (`vpmaddubsw`) and cuts the sum off;
    /// 2 x 255 x 64 still fits.
    Reduced,
}

impl Levels {
    /// The largest code.
    pub fn largest(self) -> i8 {
        match self {
            Self::Full => 127,
            Self::Reduced => 64,
        }
    }
}

/// Which axis of a matrix has a scale for each index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channels {
    /// Each column, as for the right side of a product `[inputs, outputs]`.
    Columns,
    /// Each row, as for an embedding `[tokens, width]` or a linear layer `[outputs, inputs]`.
    Rows,
}

/// Codes and the scales to multiply them with.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// In the shape of the weight.
    pub codes: Tensor<i8>,
    /// One per channel.
    pub scales: Vec<f32>,
}

impl Quantized {
    /// The other way round: `[a, b]` becomes `[b, a]`.
    #[must_use]
    pub fn transposed(self) -> Self {
        let (rows, columns) = (self.codes.dims[0], self.codes.dims[1]);
        let codes = Tensor::new([columns, rows], transpose(&self.codes.data, rows, columns));
        Self { codes, scales: self.scales }
    }
}

/// Fractions of the scale that covers the largest weight.
const SHRINK: [f32; 6] = [1.0, 0.98, 0.96, 0.93, 0.9, 0.85];

/// Quantizes a matrix with a scale per channel.
///
/// # Errors
/// It is damaged, of another type, or no matrix, or holds a number that is not finite; `name` is the weight's.
pub fn quantize(name: &str, weight: &TensorProto, channels: Channels, levels: Levels) -> Result<Quantized> {
    let (dims, _) = tensor::shape(weight)?;
    let [rows, columns] = dims[..] else {
        return Err(Error::new(format!("weight '{name}' has shape {dims:?} and is no matrix")));
    };
    let (codes, scales) = match channels {
        Channels::Rows => {
            let (mut codes, mut scales) = (Vec::new(), Vec::new());
            // A large table is never in memory as a whole.
            for part in tensor::parts(weight) {
                let (part, by_row) = by_row(&read(name, &part, codes.len())?, columns, levels);
                codes.extend(part);
                scales.extend(by_row);
            }
            (codes, scales)
        }
        Channels::Columns => {
            let turned = transpose(&read(name, weight, 0)?, rows, columns);
            let (codes, scales) = by_row(&turned, rows, levels);
            (transpose(&codes, columns, rows), scales)
        }
    };
    Ok(Quantized { codes: Tensor::new([rows, columns], codes), scales })
}

/// The numbers of a part of a weight that begins with element `first`.
fn read(name: &str, part: &TensorProto, first: usize) -> Result<Vec<f32>> {
    let data = Tensor::<f32>::read(part)?.data;
    match first_non_finite(&data) {
        None => Ok(data),
        Some(at) => Err(Error::new(format!("weight '{name}' holds {} at element {}", data[at], first + at))
            .hint("the model is damaged; export it again")),
    }
}

/// The codes of rows of this length, and their scales.
fn by_row(data: &[f32], length: usize, levels: Levels) -> (Vec<i8>, Vec<f32>) {
    let mut codes = vec![0; data.len()];
    let pairs = codes.par_chunks_mut(length.max(1)).zip(data.par_chunks(length.max(1)));
    let scales = pairs.map(|(codes, row)| channel(row, codes, levels, 0.0)).collect();
    (codes, scales)
}

/// Rounds one channel into `codes` and gives its scale, which is at least `least`.
pub fn channel(row: &[f32], codes: &mut [i8], levels: Levels, least: f32) -> f32 {
    let largest = f32::from(levels.largest());
    let peak = row.iter().fold(0.0f32, |peak, x| peak.max(x.abs()));
    let least = least.max(f32::MIN_POSITIVE);
    if peak == 0.0 {
        codes.fill(0);
        return if least > f32::MIN_POSITIVE { least } else { 1.0 };
    }
    // Never so small that it is rounded itself.
    let covering = (peak / largest).max(least);
    let code = |x: f32, scale: f32| (x / scale).round_ties_even().clamp(-largest, largest);
    let error = |scale: f32| row.iter().map(|&x| f64::from(x - scale * code(x, scale)).powi(2)).sum::<f64>();
    let candidates = SHRINK.map(|part| (covering * part).max(least));
    let errors = candidates.map(error);
    let best = (0..SHRINK.len()).min_by(|&a, &b| errors[a].total_cmp(&errors[b])).unwrap_or(0);
    let scale = candidates[best];
    for (to, &x) in codes.iter_mut().zip(row) {
        *to = code(x, scale) as i8;
    }
    scale
}

/// `[rows, columns]` as `[columns, rows]`, in tiles that fit the cache.
pub fn transpose<T: Copy + Default + Send + Sync>(data: &[T], rows: usize, columns: usize) -> Vec<T> {
    const TILE: usize = 32;
    let mut out = vec![T::default(); data.len()];
    if data.is_empty() {
        return out;
    }
    out.par_chunks_mut(TILE * rows).enumerate().for_each(|(band, out)| {
        let first = band * TILE;
        let width = out.len() / rows;
        for from in (0..rows).step_by(TILE) {
            for row in from..(from + TILE).min(rows) {
                for column in 0..width {
                    out[column * rows + row] = data[row * columns + first + column];
                }
            }
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(weight: &[f32], codes: &[i8], scale: f32) -> f64 {
        weight.iter().zip(codes).map(|(x, &q)| f64::from(x - scale * f32::from(q)).powi(2)).sum()
    }

    proptest! {
        #[test]
        fn no_channel_is_worse_than_by_its_largest_weight(
            row in prop::collection::vec(-1e3f32..1e3, 1..60), reduced: bool
        ) {
            let levels = if reduced { Levels::Reduced } else { Levels::Full };
            let largest = levels.largest();
            let weight = Tensor::new([1, row.len()], row.clone()).proto("");
            let Quantized { codes, scales } = quantize("w", &weight, Channels::Rows, levels).unwrap();
            prop_assert!(codes.data.iter().all(|q| q.abs() <= largest));
            let peak = row.iter().fold(0.0f32, |peak, x| peak.max(x.abs()));
            let plain = (peak / f32::from(largest)).max(f32::MIN_POSITIVE);
            let rounded: Vec<i8> = row.iter().map(|x| (x / plain).round_ties_even() as i8).collect();
            prop_assert!(error(&row, &codes.data, scales[0]) <= error(&row, &rounded, plain));
        }

        #[test]
        fn columns_are_the_rows_of_the_transposed(rows in 1usize..70, columns in 1usize..70, seed: u32) {
            let noise = |n: usize| ((n as u32).wrapping_mul(2654435761).wrapping_add(seed) >> 8) as f32 - 8e6;
            let data: Vec<f32> = (0..rows * columns).map(noise).collect();
            let weight = Tensor::new([rows, columns], data.clone()).proto("");
            let other = Tensor::new([columns, rows], transpose(&data, rows, columns)).proto("");
            let by_column = quantize("w", &weight, Channels::Columns, Levels::Full).unwrap();
            let by_row = quantize("w", &other, Channels::Rows, Levels::Full).unwrap();
            prop_assert_eq!(by_column, by_row.transposed());
        }
    }

    #[test]
    fn outlying_values() {
        let one = |data: Vec<f32>| {
            let weight = Tensor::new([1, data.len()], data).proto("");
            quantize("w", &weight, Channels::Rows, Levels::Full)
        };
        let zero = one(vec![0.0, -0.0]).unwrap();
        assert_eq!((zero.codes.data, zero.scales), (vec![0, 0], vec![1.0]));
        let tiny = one(vec![1e-45, 0.0]).unwrap();
        assert_eq!(tiny.scales, [f32::MIN_POSITIVE]);
        let huge = one(vec![f32::MAX, -f32::MAX]).unwrap();
        assert_eq!(huge.codes.data, [127, -127]);
        assert!(one(vec![]).unwrap().codes.data.is_empty());
        for bad in [f32::NAN, f32::INFINITY] {
            let told = one(vec![0.0, bad]).unwrap_err().to_string();
            assert_eq!(told, format!("weight 'w' holds {bad} at element 1"));
        }
        let mut many = vec![0.0f32; 3 << 20];
        *many.last_mut().unwrap() = f32::NAN;
        let weight = Tensor::new([3 << 10, 1 << 10], many).proto("");
        let told = quantize("w", &weight, Channels::Rows, Levels::Full).unwrap_err().to_string();
        assert_eq!(told, "weight 'w' holds NaN at element 3145727");
        let cube = Tensor::new([1, 1, 1], vec![1.0f32]).proto("");
        let told = quantize("w", &cube, Channels::Rows, Levels::Full).unwrap_err().to_string();
        assert_eq!(told, "weight 'w' has shape [1, 1, 1] and is no matrix");
    }
}
