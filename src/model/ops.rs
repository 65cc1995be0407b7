//! The operations of the forward pass, on candle tensors.
//!
//! On the CPU each goes through llmq's own kernels, plugged in as a candle custom operation; on any other device, through
//! candle's operations in [`portable`]. Tests hold the two against each other.
//!
//! Candle keeps what a backward pass needs only where a variable is among the inputs. Then products and attention have kernels
//! for their gradients, and `ops/backward.rs` has the rest. No gradient goes to weights.

mod backward;
pub mod portable;

use super::half::Norm;
use crate::compute::{Key, Numbers, Products, Weights};
use crate::error;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, Device, Layout, Result, Shape, Storage, Tensor, bail,
};
use llmq_kernels::attention::{Scores, Shape as Windows, causal, causal_backward};
use llmq_kernels::elementwise::{self, Activation, Pairing};
use llmq_kernels::gemm::{self, Old, Precision, View};
use llmq_kernels::memory::unwritten;
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};

/// Rows of a tensor that lies in one piece on the CPU.
fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => bail!("a tensor that is not contiguous: {layout:?}"),
    }
}

/// What `work` makes of the numbers of a tensor, which are copied only where they lie scattered or on another device.
///
/// # Errors
/// A tensor that cannot be moved to the CPU, or holds no `f32`.
pub fn with_numbers<T>(x: &Tensor, work: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let x = x.to_device(&Device::Cpu)?.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("numbers that are not on the CPU") };
    Ok(work(slice(storage, layout)?))
}

/// The numbers of a tensor on the CPU, in one piece.
fn numbers(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}

/// A gradient, on the CPU, of the shape of what it is of.
fn gradient(of: &Tensor, numbers: Vec<f32>) -> Result<Option<Tensor>> {
    Tensor::from_vec(numbers, of.shape(), &Device::Cpu).map(Some)
}

/// What has been computed where its errors are told as such: candle would make words of them.
struct Linear {
    precision: Precision,
    y: Mutex<Vec<f32>>, // [n, rows]
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "llmq-linear"
    }
    fn cpu_fwd(&self, _: &CpuStorage, xl: &Layout, _: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = std::mem::take(&mut *self.y.lock().unwrap_or_else(PoisonError::into_inner));
        Ok((CpuStorage::F32(y), (xl.shape().dims2()?.0, wl.shape().dims2()?.0).into()))
    }
    fn bwd(&self, _: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(linear_backward(self.precision, grad, w)?), None))
    }
}

/// `x·wᵀ`. `x`: `[n, columns]`, `w`: `[rows, columns]`, result: `[n, rows]`. The gradient is computed on the CPU.
///
/// # Errors
/// Shapes that do not fit, or what computes it fails.
pub fn linear(how: impl Into<Products>, x: &Tensor, w: &Tensor) -> error::Result<Tensor> {
    if !x.device().is_cpu() {
        return Ok(portable::linear(x, w)?);
    }
    let ((rows, columns), how) = (w.dims2()?, how.into());
    let y = {
        let storage = w.storage_and_layout().0;
        let Storage::Cpu(storage) = &*storage else {
            return Err(error::Error::new("weights that are not on the CPU beside activations that are"));
        };
        let numbers = Numbers::Held(slice(storage, w.layout())?);
        outputs(&how, x, &Weights { key: Key::Tensor(w.id()), rows, columns, numbers })?
    };
    Ok(x.apply_op2(w, Linear { precision: how.precision, y: Mutex::new(y) })?)
}

/// What a linear layer makes of activations, `[n, columns]` on the CPU: `[n, rows]`.
fn outputs(how: &Products, x: &Tensor, w: &Weights<'_>) -> error::Result<Vec<f32>> {
    let (n, k) = x.dims2()?;
    if k != w.columns {
        return Err(error::Error::new(format!("a linear layer of {} columns on activations of {k}", w.columns)));
    }
    let mut y = unwritten(n * w.rows);
    match &*x.storage_and_layout().0 {
        Storage::Cpu(storage) => how.on.linear(how.precision, slice(storage, x.layout())?, w, &mut y)?,
        _ => return Err(error::Error::new("weights are decoded on the CPU only")),
    }
    Ok(y)
}

/// The gradient at the input of [`linear`]: `dX = dY·W`. `grad`: `[n, rows]`, `w`: `[rows, columns]`, on the CPU; result: `[n, columns]`.
pub fn linear_backward(precision: Precision, grad: &Tensor, w: &Tensor) -> Result<Tensor> {
    let ((n, m), k) = (grad.dims2()?, w.dim(1)?);
    let (grad, storage) = (numbers(grad)?, w.storage_and_layout().0);
    let Storage::Cpu(storage) = &*storage else { bail!("weights that are not on the CPU") };
    let (w, mut dx) = (View::new(slice(storage, w.layout())?, m, k, k), unwritten(n * k));
    let each = n.div_ceil(rayon::current_num_threads()).max(1);
    dx.par_chunks_mut(each * k).zip(grad.par_chunks(each * m)).for_each(|(dx, grad)| {
        let grad = View::new(grad, grad.len() / m, m, m);
        gemm::product(precision, dx, k, Old::Replaced, 1.0, grad, w);
    });
    Tensor::from_vec(dx, (n, k), &Device::Cpu)
}

/// The same as [`linear`] with weights of any kind, for activations on the CPU; without a gradient.
///
/// # Errors
/// Shapes that do not fit, weights that cannot be decoded, or what computes it fails.
pub fn linear_of(how: &Products, x: &Tensor, w: &Weights<'_>) -> error::Result<Tensor> {
    Ok(Tensor::from_vec(outputs(how, x, w)?, (x.dim(0)?, w.rows), x.device())?)
}

/// A sum, or a difference.
struct Sum {
    minus: bool,
}

impl CustomOp2 for Sum {
    fn name(&self) -> &'static str {
        "llmq-sum"
    }
    fn cpu_fwd(&self, a: &CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        if al.shape() != bl.shape() {
            bail!("a sum of {:?} and {:?}", al.shape(), bl.shape());
        }
        let (a, b) = (slice(a, al)?, slice(b, bl)?);
        let mut y = unwritten(a.len());
        if self.minus {
            elementwise::subtract(a, b, &mut y)
        } else {
            elementwise::add(a, b, &mut y)
        }
        Ok((CpuStorage::F32(y), al.shape().clone()))
    }
    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.clone()), Some(if self.minus { grad.neg()? } else { grad.clone() })))
    }
}

/// `a + b`, both of the same shape: on llmq's own threads, which candle's would wait for.
pub fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.device().is_cpu() { a.apply_op2(b, Sum { minus: false }) } else { a + b }
}

/// `a − b`, likewise.
pub fn difference(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.device().is_cpu() { a.contiguous()?.apply_op2(&b.contiguous()?, Sum { minus: true }) } else { a - b }
}

/// Each column of `x`, `[n, columns]`, divided by a number of its own.
pub fn divide_columns(x: &Tensor, by: &[f32]) -> Result<Tensor> {
    if x.dim(D::Minus1)? != by.len() {
        bail!("{} divisors for the columns of {:?}", by.len(), x.shape());
    }
    let mut y = unwritten(x.elem_count());
    with_numbers(x, |x| elementwise::divide(x, by, &mut y))?;
    Tensor::from_vec(y, x.shape(), x.device())
}

struct RmsNorm(f32);

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "llmq-rms-norm"
    }
    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, g: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, gain) = (slice(x, xl)?, slice(g, gl)?);
        let mut y = unwritten(x.len());
        elementwise::rms_norm(x, gain, self.0, &mut y);
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }
    fn bwd(&self, x: &Tensor, gain: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = backward::norm(false, &numbers(x)?, &numbers(gain)?, self.0, &numbers(grad)?);
        Ok((gradient(x, dx)?, None))
    }
}

/// `x / √(mean(x²) + eps) · gain` for each row. `x`: `[n, width]`, `gain`: `[width]`.
pub fn rms_norm(x: &Tensor, gain: &Tensor, eps: f32) -> Result<Tensor> {
    if x.device().is_cpu() { x.apply_op2(gain, RmsNorm(eps)) } else { portable::rms_norm(x, gain, eps) }
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
        let mut y = unwritten(x.len());
        elementwise::layer_norm(x, slice(g, gl)?, slice(b, bl)?, self.0, &mut y);
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }
    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dx = backward::norm(true, &numbers(x)?, &numbers(gain)?, self.0, &numbers(grad)?);
        Ok((gradient(x, dx)?, None, None))
    }
}

/// A norm of each row. `x`: `[n, width]`, `gain`, `bias`: `[width]`; only a layer norm has a bias, and it may have none.
pub fn norm(kind: Norm, x: &Tensor, gain: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    match (kind, bias) {
        (Norm::Gain, _) => x.broadcast_mul(gain),
        (Norm::Bare, _) => bare_norm(x, eps),
        (Norm::Rms, _) => rms_norm(x, gain, eps),
        (Norm::Layer, Some(bias)) if x.device().is_cpu() => x.apply_op3(gain, bias, LayerNorm(eps)),
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
        let mut y = unwritten(gate.len());
        elementwise::gated(self.0, gate, up, &mut y);
        Ok((CpuStorage::F32(y), gl.shape().clone()))
    }
    fn bwd(&self, gate: &Tensor, up: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (of_gate, of_up) = backward::gated(self.0, &numbers(gate)?, &numbers(up)?, &numbers(grad)?);
        Ok((gradient(gate, of_gate)?, gradient(up, of_up)?))
    }
}

/// `activation(gate)·up`, both `[n, width]`.
pub fn gated(kind: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.device().is_cpu() { gate.apply_op2(up, Gated(kind)) } else { portable::gated(kind, gate, up) }
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
    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        gradient(x, backward::activate(self.0, &numbers(x)?, &numbers(y)?, &numbers(grad)?))
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
    if x.device().is_cpu() { x.apply_op1(Activate(kind)) } else { portable::activate(kind, x) }
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
    fn bwd(
        &self,
        _: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        // The transpose of a rotation is the rotation back.
        Ok((Some(rope(&grad.contiguous()?, cos, &sin.neg()?, self.head_dim, self.pairing)?), None, None))
    }
}

/// Rotary embedding. `x`: `[windows · positions, heads · head_dim]`; `cos`, `sin`: `[positions, rotary / 2]`, for the first
/// `rotary` numbers of each head.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, head_dim: usize, pairing: Pairing) -> Result<Tensor> {
    if x.device().is_cpu() {
        let rotary = 2 * cos.dims2()?.1;
        x.apply_op3(cos, sin, Rope { head_dim, rotary, pairing })
    } else {
        portable::rope(x, cos, sin, head_dim, pairing)
    }
}

struct Attention(Windows, Scores);

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
        let mut out = unwritten(q.len());
        causal(q, slice(k, kl)?, slice(v, vl)?, self.0, &self.1, &mut out);
        Ok((CpuStorage::F32(out), ql.shape().clone()))
    }
    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        if !self.1.chosen.is_empty() {
            bail!("attention to chosen positions has no gradient");
        }
        let [dq, dk, dv] = causal_backward(&numbers(q)?, &numbers(k)?, &numbers(v)?, &numbers(grad)?, self.0, &self.1);
        Ok((gradient(q, dq)?, gradient(k, dk)?, gradient(v, dv)?))
    }
}

/// Causal attention in windows of `shape.positions`.
///
/// `q`: `[windows · positions, heads · d]`; `k`, `v`: `[windows · (past + positions), kv_heads · d]`; result as `q`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, shape: Windows, scores: &Scores) -> Result<Tensor> {
    if q.device().is_cpu() {
        q.apply_op3(k, v, Attention(shape, scores.clone()))
    } else {
        portable::attention(q, k, v, shape, scores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

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
        let turned = w.t().unwrap().narrow(1, 3, 24).unwrap().t().unwrap();
        close(&difference(&x, &turned).unwrap(), &(&x - &turned).unwrap());
        let by: Vec<f32> = (1..33).map(|i| i as f32 * 0.3).collect();
        let divided = x.broadcast_div(&Tensor::new(by.clone(), &Device::Cpu).unwrap()).unwrap();
        close(&divide_columns(&x, &by).unwrap(), &divided);
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

    /// The gradient at `x` of a sum of products of what `of` makes of it.
    fn gradient_at(x: &Tensor, of: &dyn Fn(&Tensor) -> Result<Tensor>) -> Tensor {
        let x = Var::from_tensor(x).unwrap();
        let y = of(&x).unwrap();
        let (rows, columns) = y.dims2().unwrap();
        let loss = (y * tensor(rows, columns, 0.77)).unwrap().sum_all().unwrap();
        loss.backward().unwrap().remove(&x).unwrap()
    }

    #[test]
    fn gradients_are_those_that_candle_finds() {
        let (x, y, w) = (tensor(24, 32, 0.7), tensor(24, 32, 0.9), tensor(48, 32, 0.3));
        let gain = tensor(1, 32, 0.2).reshape(32).unwrap();
        let same = |x: &Tensor, a: &dyn Fn(&Tensor) -> Result<Tensor>, b: &dyn Fn(&Tensor) -> Result<Tensor>| {
            close(&gradient_at(x, a), &gradient_at(x, b));
        };
        same(&x, &|x| Ok(linear(Precision::Single, x, &w).unwrap()), &|x| portable::linear(x, &w));
        same(&x, &|x| sum(x, &y), &|x| x + &y);
        same(&x, &|x| rms_norm(x, &gain, 1e-5), &|x| portable::rms_norm(x, &gain, 1e-5));
        same(&x, &|x| norm(Norm::Layer, x, &gain, Some(&gain), 1e-5), &|x| portable::layer_norm(x, &gain, &gain, 1e-5));
        let wide = (&x * 9.0).unwrap();
        for kind in Activation::ALL {
            same(&wide, &|x| activate(kind, x), &|x| portable::activate(kind, x));
            same(&wide, &|x| gated(kind, x, &y), &|x| portable::gated(kind, x, &y));
            same(&wide, &|x| gated(kind, &y, x), &|x| portable::gated(kind, &y, x));
        }
        let (cos, sin) = (tensor(12, 3, 0.5), tensor(12, 3, 0.6));
        for pairing in [Pairing::Halves, Pairing::Neighbours] {
            same(&x, &|x| rope(x, &cos, &sin, 8, pairing), &|x| portable::rope(x, &cos, &sin, 8, pairing));
        }
        let (k, v) = (tensor(24, 16, 0.4), tensor(24, 16, 0.8));
        let shape = Windows { positions: 12, past: 0, heads: 4, kv_heads: 2, d: 8 };
        let how = Scores {
            scale: 0.35,
            cap: Some(1.5),
            window: Some(5),
            sinks: vec![0.5, -1.0, 0.0, 2.0],
            ..Scores::default()
        };
        same(&x, &|q| attention(q, &k, &v, shape, &how), &|q| portable::attention(q, &k, &v, shape, &how));
        same(&k, &|k| attention(&x, k, &v, shape, &how), &|k| portable::attention(&x, k, &v, shape, &how));
        same(&v, &|v| attention(&x, &k, v, shape, &how), &|v| portable::attention(&x, &k, v, shape, &how));
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        assert!(sum(&tensor(2, 8, 0.1), &tensor(8, 2, 0.1)).is_err());
        assert!(linear(Precision::Single, &tensor(2, 8, 0.1), &tensor(4, 9, 0.1)).is_err());
    }
}
