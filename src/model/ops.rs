//! The operations of the forward pass, on candle tensors.
//!
//! On the CPU each goes through llmq's own kernels, plugged in as a candle custom operation; on any other device, through
//! candle's operations in [`portable`]. Tests hold the two against each other.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use llmq_kernels::attention::{Shape as Windows, causal};
use llmq_kernels::elementwise::{self, Pairing};
use llmq_kernels::gemm;

/// Rows of a tensor that lies in one piece on the CPU.
fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => bail!("a tensor that is not contiguous: {layout:?}"),
    }
}

struct Linear;

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "llmq-linear"
    }
    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((n, k), (m, wk)) = (xl.shape().dims2()?, wl.shape().dims2()?);
        if k != wk {
            bail!("a linear layer of {wk} columns on activations of {k}");
        }
        let mut y = vec![0.0; n * m];
        gemm::linear(slice(x, xl)?, slice(w, wl)?, k, &mut y);
        Ok((CpuStorage::F32(y), (n, m).into()))
    }
}

/// `x·wᵀ`. `x`: `[n, columns]`, `w`: `[rows, columns]`, result: `[n, rows]`.
pub fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { x.apply_op2_no_bwd(w, &Linear) } else { portable::linear(x, w) }
}

struct RmsNorm(f32);

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "llmq-rms-norm"
    }
    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, g: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, gain) = (slice(x, xl)?, slice(g, gl)?);
        let mut y = vec![0.0; x.len()];
        elementwise::rms_norm(x, gain, self.0, &mut y);
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }
}

/// `x / √(mean(x²) + eps) · gain` for each row. `x`: `[n, width]`, `gain`: `[width]`.
pub fn rms_norm(x: &Tensor, gain: &Tensor, eps: f32) -> Result<Tensor> {
    if x.device().is_cpu() { x.apply_op2_no_bwd(gain, &RmsNorm(eps)) } else { portable::rms_norm(x, gain, eps) }
}

struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "llmq-swiglu"
    }
    fn cpu_fwd(&self, g: &CpuStorage, gl: &Layout, u: &CpuStorage, ul: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (slice(g, gl)?, slice(u, ul)?);
        let mut y = vec![0.0; gate.len()];
        elementwise::swiglu(gate, up, &mut y);
        Ok((CpuStorage::F32(y), gl.shape().clone()))
    }
}

/// `silu(gate)·up`, both `[n, width]`.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.device().is_cpu() { gate.apply_op2_no_bwd(up, &SwiGlu) } else { portable::swiglu(gate, up) }
}

struct Rope {
    head_dim: usize,
    pairing: Pairing,
}

impl CustomOp3 for Rope {
    fn name(&self) -> &'static str {
        "llmq-rope"
    }
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        c: &CpuStorage,
        cl: &Layout,
        s: &CpuStorage,
        sl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut y = slice(x, xl)?.to_vec();
        let heads = xl.shape().dims2()?.1 / self.head_dim;
        elementwise::rope(&mut y, self.head_dim, heads, slice(c, cl)?, slice(s, sl)?, self.pairing);
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }
}

/// Rotary embedding. `x`: `[windows · positions, heads · head_dim]`; `cos`, `sin`: `[positions, head_dim / 2]`.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, head_dim: usize, pairing: Pairing) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.apply_op3_no_bwd(cos, sin, &Rope { head_dim, pairing })
    } else {
        portable::rope(x, cos, sin, head_dim, pairing)
    }
}

struct Attention(Windows);

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "llmq-attention"
    }
    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let q = slice(q, ql)?;
        let mut out = vec![0.0; q.len()];
        let scale = 1.0 / (self.0.d as f32).sqrt();
        causal(q, slice(k, kl)?, slice(v, vl)?, self.0, scale, &mut out);
        Ok((CpuStorage::F32(out), ql.shape().clone()))
    }
}

/// Causal attention, scaled by `1/√head_dim`, in windows of `shape.positions`.
///
/// `q`: `[windows · positions, heads · d]`; `k`, `v`: `[windows · positions, kv_heads · d]`; result as `q`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, shape: Windows) -> Result<Tensor> {
    if q.device().is_cpu() { q.apply_op3_no_bwd(k, v, &Attention(shape)) } else { portable::attention(q, k, v, shape) }
}

/// The same operations composed of candle's own, for devices without kernels of ours.
pub mod portable {
    use super::{Pairing, Result, Tensor, Windows};
    use candle_core::{D, DType};

    /// See [`super::linear`].
    pub fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
        x.matmul(&w.t()?)
    }

    /// See [`super::rms_norm`].
    pub fn rms_norm(x: &Tensor, gain: &Tensor, eps: f32) -> Result<Tensor> {
        let square = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?;
        x.broadcast_div(&square.sqrt()?)?.broadcast_mul(gain)
    }

    /// See [`super::swiglu`].
    pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        gate.silu()? * up
    }

    /// See [`super::rope`].
    pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, head_dim: usize, pairing: Pairing) -> Result<Tensor> {
        let (n, width) = x.dims2()?;
        let (positions, half) = cos.dims2()?;
        // The pair's index is dimension 4 for halves and 3 for neighbours; the member's is the other one.
        let (split, member) = match pairing {
            Pairing::Halves => ((n / positions, positions, width / head_dim, 2, half), 3),
            Pairing::Neighbours => ((n / positions, positions, width / head_dim, half, 2), 4),
        };
        let table = |t: &Tensor| t.reshape((1, positions, 1, half))?.unsqueeze(member);
        let (cos, sin) = (table(cos)?, table(sin)?);
        let x = x.reshape(split)?;
        let (a, b) = (x.narrow(member, 0, 1)?, x.narrow(member, 1, 1)?);
        let left = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let right = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        Tensor::cat(&[left, right], member)?.reshape((n, width))
    }

    /// See [`super::attention`].
    pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, shape: Windows) -> Result<Tensor> {
        let Windows { positions, heads, kv_heads, d } = shape;
        let n = q.dims2()?.0;
        let windows = n / positions;
        let split = |x: &Tensor, heads: usize| -> Result<Tensor> {
            x.reshape((windows, positions, heads, d))?.transpose(1, 2)?.contiguous()
        };
        let repeat = |x: Tensor| -> Result<Tensor> {
            let shared = heads / kv_heads;
            x.unsqueeze(2)?.expand((windows, kv_heads, shared, positions, d))?.reshape((windows, heads, positions, d))
        };
        let (q, k, v) = (split(q, heads)?, repeat(split(k, kv_heads)?)?, repeat(split(v, kv_heads)?)?);
        let scores = (q.matmul(&k.t()?)? / (d as f64).sqrt())?;
        let mask: Vec<f32> = (0..positions * positions)
            .map(|i| if i % positions > i / positions { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        let mask = Tensor::from_vec(mask, (positions, positions), q.device())?.to_dtype(DType::F32)?;
        let scores = scores.broadcast_add(&mask)?;
        let e = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let p = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?;
        p.matmul(&v.contiguous()?)?.transpose(1, 2)?.reshape((n, heads * d))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tensor(rows: usize, columns: usize, step: f32) -> Tensor {
        let x: Vec<f32> = (0..rows * columns).map(|i| (i as f32 * step).sin()).collect();
        Tensor::from_vec(x, (rows, columns), &Device::Cpu).unwrap()
    }

    fn close(a: &Tensor, b: &Tensor) {
        assert_eq!(a.dims(), b.dims());
        let worst = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        assert!(worst < 2e-5, "the kernel and candle differ by {worst}");
    }

    #[test]
    fn the_kernels_agree_with_candle() {
        let (x, w) = (tensor(24, 32, 0.7), tensor(48, 32, 0.3));
        close(&linear(&x, &w).unwrap(), &portable::linear(&x, &w).unwrap());
        let gain = tensor(1, 32, 0.2).reshape(32).unwrap();
        close(&rms_norm(&x, &gain, 1e-5).unwrap(), &portable::rms_norm(&x, &gain, 1e-5).unwrap());
        let y = tensor(24, 32, 0.9);
        close(&swiglu(&x, &y).unwrap(), &portable::swiglu(&x, &y).unwrap());
        let (cos, sin) = (tensor(12, 4, 0.5), tensor(12, 4, 0.6));
        for pairing in [Pairing::Halves, Pairing::Neighbours] {
            let ours = rope(&x, &cos, &sin, 8, pairing).unwrap();
            close(&ours, &portable::rope(&x, &cos, &sin, 8, pairing).unwrap());
        }
        let (k, v) = (tensor(24, 16, 0.4), tensor(24, 16, 0.8));
        let shape = Windows { positions: 12, heads: 4, kv_heads: 2, d: 8 };
        close(&attention(&x, &k, &v, shape).unwrap(), &portable::attention(&x, &k, &v, shape).unwrap());
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        assert!(linear(&tensor(2, 8, 0.1), &tensor(4, 9, 0.1)).is_err());
    }
}
