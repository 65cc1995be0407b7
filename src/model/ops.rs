//! The operations of the forward pass, on candle tensors.
//!
//! On the CPU each goes through llmq's own kernels, plugged in as a candle custom operation; on any other device, through
//! candle's operations in [`portable`]. Tests hold the two against each other.

pub mod portable;

use super::half::Norm;
use crate::error;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, Layout, Result, Shape, Storage, Tensor, bail};
use llmq_kernels::attention::{Scores, Shape as Windows, causal};
use llmq_kernels::elementwise::{self, Activation, Pairing};
use llmq_kernels::fused;
use llmq_kernels::gemm::{self, Precision};
use std::ops::Range;

/// Rows of a tensor that lies in one piece on the CPU.
fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => bail!("a tensor that is not contiguous: {layout:?}"),
    }
}

struct Linear(Precision);

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
        gemm::linear(self.0, slice(x, xl)?, slice(w, wl)?, k, &mut y);
        Ok((CpuStorage::F32(y), (n, m).into()))
    }
}

/// `x·wᵀ`. `x`: `[n, columns]`, `w`: `[rows, columns]`, result: `[n, rows]`. Only on the CPU anything is rounded.
pub fn linear(precision: Precision, x: &Tensor, w: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { x.apply_op2_no_bwd(w, &Linear(precision)) } else { portable::linear(x, w) }
}

/// The same with rows of `w`, `[rows, columns]`, from `decode`, on the CPU; see [`fused::linear`].
///
/// # Errors
/// Shapes that do not fit, or the error of `decode`.
pub fn linear_of(
    precision: Precision,
    x: &Tensor,
    rows: usize,
    columns: usize,
    decode: impl Fn(Range<usize>, &mut [f32]) -> error::Result<()> + Sync,
) -> error::Result<Tensor> {
    let (n, k) = x.dims2()?;
    if k != columns {
        return Err(error::Error::new(format!("a linear layer of {columns} columns on activations of {k}")));
    }
    let mut y = vec![0.0; n * rows];
    match &*x.storage_and_layout().0 {
        Storage::Cpu(storage) => fused::linear(precision, slice(storage, x.layout())?, k, rows, decode, &mut y)?,
        _ => return Err(error::Error::new("weights are decoded on the CPU only")),
    }
    Ok(Tensor::from_vec(y, (n, rows), x.device())?)
}

struct Sum;

impl CustomOp2 for Sum {
    fn name(&self) -> &'static str {
        "llmq-sum"
    }
    fn cpu_fwd(&self, a: &CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        if al.shape() != bl.shape() {
            bail!("a sum of {:?} and {:?}", al.shape(), bl.shape());
        }
        let (a, b) = (slice(a, al)?, slice(b, bl)?);
        let mut y = vec![0.0; a.len()];
        elementwise::add(a, b, &mut y);
        Ok((CpuStorage::F32(y), al.shape().clone()))
    }
}

/// `a + b`, both of the same shape: on llmq's own threads, which candle's would wait for.
pub fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.device().is_cpu() { a.apply_op2_no_bwd(b, &Sum) } else { a + b }
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

/// The same without a gain.
pub fn bare_norm(x: &Tensor, eps: f32) -> Result<Tensor> {
    rms_norm(x, &Tensor::ones(x.dim(D::Minus1)?, x.dtype(), x.device())?, eps)
}

struct LayerNorm(f32);

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "llmq-layer-norm"
    }
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        g: &CpuStorage,
        gl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, xl)?;
        let mut y = vec![0.0; x.len()];
        elementwise::layer_norm(x, slice(g, gl)?, slice(b, bl)?, self.0, &mut y);
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }
}

/// A norm of each row. `x`: `[n, width]`, `gain`, `bias`: `[width]`; only a layer norm has a bias, and it may have none.
pub fn norm(kind: Norm, x: &Tensor, gain: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    match (kind, bias) {
        (Norm::Gain, _) => x.broadcast_mul(gain),
        (Norm::Bare, _) => bare_norm(x, eps),
        (Norm::Rms, _) => rms_norm(x, gain, eps),
        (Norm::Layer, Some(bias)) if x.device().is_cpu() => x.apply_op3_no_bwd(gain, bias, &LayerNorm(eps)),
        (Norm::Layer, Some(bias)) => portable::layer_norm(x, gain, bias, eps),
        (Norm::Layer, None) => norm(kind, x, gain, Some(&gain.zeros_like()?), eps),
    }
}

struct Gated(Activation);

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "llmq-gated"
    }
    fn cpu_fwd(&self, g: &CpuStorage, gl: &Layout, u: &CpuStorage, ul: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (slice(g, gl)?, slice(u, ul)?);
        let mut y = vec![0.0; gate.len()];
        elementwise::gated(self.0, gate, up, &mut y);
        Ok((CpuStorage::F32(y), gl.shape().clone()))
    }
}

/// `activation(gate)·up`, both `[n, width]`.
pub fn gated(kind: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.device().is_cpu() { gate.apply_op2_no_bwd(up, &Gated(kind)) } else { portable::gated(kind, gate, up) }
}

struct Activate(Activation);

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "llmq-activate"
    }
    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = slice(x, xl)?.to_vec();
        elementwise::activate(self.0, &mut y);
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }
}

/// `1 / (1 + exp(−x))`.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

/// What is above the mean of its row by `deviations` standard deviations, less that; zeros elsewhere. `x`: `[n, width]`.
pub fn above(x: &Tensor, deviations: f32) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = centred.sqr()?.mean_keepdim(D::Minus1)?.sqrt()?;
    centred.broadcast_sub(&(deviation * f64::from(deviations))?)?.relu()
}

/// `activation(x)`.
pub fn activate(kind: Activation, x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { x.apply_op1_no_bwd(&Activate(kind)) } else { portable::activate(kind, x) }
}

struct Rope {
    head_dim: usize,
    rotary: usize,
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
        elementwise::rope(&mut y, self.head_dim, self.rotary, heads, slice(c, cl)?, slice(s, sl)?, self.pairing);
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }
}

/// Rotary embedding. `x`: `[windows · positions, heads · head_dim]`; `cos`, `sin`: `[positions, rotary / 2]`, for the first
/// `rotary` numbers of each head.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, head_dim: usize, pairing: Pairing) -> Result<Tensor> {
    if x.device().is_cpu() {
        let rotary = 2 * cos.dims2()?.1;
        x.apply_op3_no_bwd(cos, sin, &Rope { head_dim, rotary, pairing })
    } else {
        portable::rope(x, cos, sin, head_dim, pairing)
    }
}

struct Attention<'a>(Windows, &'a Scores);

impl CustomOp3 for Attention<'_> {
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
        causal(q, slice(k, kl)?, slice(v, vl)?, self.0, self.1, &mut out);
        Ok((CpuStorage::F32(out), ql.shape().clone()))
    }
}

/// Causal attention in windows of `shape.positions`.
///
/// `q`: `[windows · positions, heads · d]`; `k`, `v`: `[windows · (past + positions), kv_heads · d]`; result as `q`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, shape: Windows, scores: &Scores) -> Result<Tensor> {
    if q.device().is_cpu() {
        q.apply_op3_no_bwd(k, v, &Attention(shape, scores))
    } else {
        portable::attention(q, k, v, shape, scores)
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
        close(&sum(&x, &x).unwrap(), &(&x + &x).unwrap());
        close(&linear(Precision::Single, &x, &w).unwrap(), &portable::linear(&x, &w).unwrap());
        let gain = tensor(1, 32, 0.2).reshape(32).unwrap();
        close(&rms_norm(&x, &gain, 1e-5).unwrap(), &portable::rms_norm(&x, &gain, 1e-5).unwrap());
        let y = tensor(24, 32, 0.9);
        for kind in Activation::ALL {
            close(&gated(kind, &x, &y).unwrap(), &portable::gated(kind, &x, &y).unwrap());
            close(&activate(kind, &x).unwrap(), &portable::activate(kind, &x).unwrap());
        }
        let centred = norm(Norm::Layer, &x, &gain, Some(&gain), 1e-5).unwrap();
        close(&centred, &portable::layer_norm(&x, &gain, &gain, 1e-5).unwrap());
        for pairs in [4, 3] {
            let (cos, sin) = (tensor(12, pairs, 0.5), tensor(12, pairs, 0.6));
            for pairing in [Pairing::Halves, Pairing::Neighbours] {
                let ours = rope(&x, &cos, &sin, 8, pairing).unwrap();
                close(&ours, &portable::rope(&x, &cos, &sin, 8, pairing).unwrap());
            }
        }
        let (k, v) = (tensor(24, 16, 0.4), tensor(24, 16, 0.8));
        let whole = Windows { positions: 12, past: 0, heads: 4, kv_heads: 2, d: 8 };
        let last = Windows { positions: 5, past: 7, ..whole };
        let plain = Scores { scale: 0.35, ..Scores::default() };
        let sinks = vec![0.5, -1.0, 0.0, 2.0];
        let both_ways = Scores { both_ways: true, window: Some(4), ..plain.clone() };
        for how in [plain.clone(), Scores { cap: Some(1.5), window: Some(5), sinks, ..plain.clone() }, both_ways] {
            for (x, shape) in [(&x, whole), (&x.narrow(0, 7, 10).unwrap(), last)] {
                let ours = attention(x, &k, &v, shape, &how).unwrap();
                close(&ours, &portable::attention(x, &k, &v, shape, &how).unwrap());
            }
        }
        for (x, shape) in [(&x, whole), (&x.narrow(0, 7, 10).unwrap(), last)] {
            let sees = |i: usize| i % 12 == shape.past + i / 12 % shape.positions || i.is_multiple_of(5);
            let how = Scores { chosen: (0..x.dim(0).unwrap() * 12).map(sees).collect(), ..plain.clone() };
            let ours = attention(x, &k, &v, shape, &how).unwrap();
            close(&ours, &portable::attention(x, &k, &v, shape, &how).unwrap());
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        assert!(sum(&tensor(2, 8, 0.1), &tensor(8, 2, 0.1)).is_err());
        assert!(linear(Precision::Single, &tensor(2, 8, 0.1), &tensor(4, 9, 0.1)).is_err());
    }
}
