//! Attention itself, where positions see all before them or only those of their chunk, as in Llama 4.

use super::Attention;
use crate::error::Result;
use crate::model::ops;
use candle_core::Tensor;
use llmq_kernels::attention::{Scores, Shape};
use std::ops::Range;

impl Attention {
    /// The heads' results. `q`: those of `positions`; `k`, `v`: those of all up to the last, in each window.
    pub(super) fn attended(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        positions: &Range<usize>,
        scores: &Scores,
    ) -> Result<Tensor> {
        let (chunk, all) = (self.chunk.unwrap_or(usize::MAX), positions.len());
        let windows = q.dim(0)? / all;
        let cut = |x: &Tensor, of: usize, part: Range<usize>| -> Result<Tensor> {
            let width = x.dim(1)?;
            let x = x.reshape((windows, of, width))?.narrow(1, part.start, part.len())?.contiguous()?;
            Ok(x.reshape((windows * part.len(), width))?)
        };
        let mut parts = Vec::new();
        let mut first = positions.start;
        while first < positions.end {
            let begin = first / chunk * chunk;
            let end = positions.end.min(begin.saturating_add(chunk));
            let shape = Shape {
                positions: end - first,
                past: first - begin,
                heads: self.heads,
                kv_heads: self.kv_heads,
                d: self.width(),
            };
            if end - begin == positions.end {
                return Ok(ops::attention(q, k, v, shape, scores)?);
            }
            let (k, v) = (cut(k, positions.end, begin..end)?, cut(v, positions.end, begin..end)?);
            let q = cut(q, all, first - positions.start..end - positions.start)?;
            let y = ops::attention(&q, &k, &v, shape, scores)?;
            parts.push(y.reshape((windows, end - first, ()))?);
            first = end;
        }
        Ok(Tensor::cat(&parts, 1)?.reshape(q.shape())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn positions_see_none_of_another_chunk() {
        let numbers = |n: usize, step: f32| -> Tensor {
            let x: Vec<f32> = (0..n * 4).map(|i| (i as f32 * step).sin()).collect();
            Tensor::from_vec(x, (n, 4), &Device::Cpu).unwrap()
        };
        let own = Attention { chunk: Some(3), ..Attention::plain(2, 2, 2, None) };
        let whole = Attention { chunk: None, ..own.clone() };
        let scores = Scores { scale: 1.0, ..Scores::default() };
        // Two windows of five positions: chunks of three and two.
        let (q, k, v) = (numbers(10, 0.7), numbers(10, 0.4), numbers(10, 0.3));
        let y = own.attended(&q, &k, &v, &(0..5), &scores).unwrap().to_vec2::<f32>().unwrap();
        for (first, count) in [(0, 3), (3, 2), (5, 3), (8, 2)] {
            let part = |x: &Tensor| x.narrow(0, first, count).unwrap().contiguous().unwrap();
            let alone = whole.attended(&part(&q), &part(&k), &part(&v), &(0..count), &scores).unwrap();
            assert_eq!(alone.to_vec2::<f32>().unwrap(), y[first..first + count]);
        }
        // The last three positions of a window, behind two that are known.
        let (q, k, v) = (numbers(3, 0.7), numbers(5, 0.4), numbers(5, 0.3));
        let y = own.attended(&q, &k, &v, &(2..5), &scores).unwrap().to_vec2::<f32>().unwrap();
        let part = |x: &Tensor, first: usize, count: usize| x.narrow(0, first, count).unwrap().contiguous().unwrap();
        let third = whole.attended(&part(&q, 0, 1), &part(&k, 0, 3), &part(&v, 0, 3), &(2..3), &scores).unwrap();
        assert_eq!(third.to_vec2::<f32>().unwrap(), y[..1]);
        let last = whole.attended(&part(&q, 1, 2), &part(&k, 3, 2), &part(&v, 3, 2), &(0..2), &scores).unwrap();
        assert_eq!(last.to_vec2::<f32>().unwrap(), y[1..]);
    }
}
