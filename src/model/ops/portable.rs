//! The same operations composed of candle's own, for devices without kernels of ours.
use super::{Activation, Pairing, Result, Scores, Tensor, Windows};
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

/// See [`super::norm`].
pub fn layer_norm(x: &Tensor, gain: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let square = (centred.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?;
    centred.broadcast_div(&square.sqrt()?)?.broadcast_mul(gain)?.broadcast_add(bias)
}

/// See [`super::activate`].
pub fn activate(kind: Activation, x: &Tensor) -> Result<Tensor> {
    match kind {
        Activation::Silu => x.silu(),
        Activation::GeluTanh => x.gelu(),
        Activation::Gelu => x.gelu_erf(),
        Activation::SiluBounded => {
            let x = x.minimum(7.0)?;
            &x * ((&x * -1.702)?.exp()? + 1.0)?.recip()?
        }
        Activation::ReluSquared => x.relu()?.sqr(),
        Activation::Softplus => x.maximum(0.0)? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?,
        Activation::Sigmoid => super::sigmoid(x),
    }
}

/// See [`super::gated`].
pub fn gated(kind: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match kind {
        Activation::SiluBounded => activate(kind, gate)? * (up.clamp(-7.0, 7.0)? + 1.0)?,
        _ => activate(kind, gate)? * up,
    }
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
    let x = x.reshape((n / positions, positions, width / head_dim, head_dim))?;
    let (turning, still) = (x.narrow(3, 0, 2 * half)?, x.narrow(3, 2 * half, head_dim - 2 * half)?);
    let x = turning.contiguous()?.reshape(split)?;
    let (a, b) = (x.narrow(member, 0, 1)?, x.narrow(member, 1, 1)?);
    let left = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let right = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    let turned = Tensor::cat(&[left, right], member)?;
    let turned = turned.reshape((n / positions, positions, width / head_dim, 2 * half))?;
    Tensor::cat(&[turned, still], 3)?.reshape((n, width))
}

/// See [`super::attention`].
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, shape: Windows, how: &Scores) -> Result<Tensor> {
    let Windows { positions, past, heads, kv_heads, d } = shape;
    let (n, seen) = (q.dims2()?.0, past + positions);
    let windows = n / positions;
    let split = |x: &Tensor, positions: usize, heads: usize| -> Result<Tensor> {
        x.reshape((windows, positions, heads, d))?.transpose(1, 2)?.contiguous()
    };
    let repeat = |x: Tensor| -> Result<Tensor> {
        let shared = heads / kv_heads;
        x.unsqueeze(2)?.expand((windows, kv_heads, shared, seen, d))?.reshape((windows, heads, seen, d))
    };
    let (q, k, v) = (split(q, positions, heads)?, split(k, seen, kv_heads)?, split(v, seen, kv_heads)?);
    let (k, v) = (repeat(k)?, repeat(v)?);
    let mut scores = (q.matmul(&k.t()?)? * f64::from(how.scale))?;
    if let Some(cap) = how.cap.map(f64::from) {
        scores = ((scores / cap)?.tanh()? * cap)?;
    }
    let sees = |i: usize| how.seen(past + i / seen, seen).contains(&(i % seen));
    let mask: Vec<f32> = (0..positions * seen).map(|i| if sees(i) { 0.0 } else { f32::NEG_INFINITY }).collect();
    let mask = Tensor::from_vec(mask, (positions, seen), q.device())?.to_dtype(DType::F32)?;
    let mut scores = scores.broadcast_add(&mask)?;
    if !how.chosen.is_empty() {
        let mask: Vec<f32> = how.chosen.iter().map(|&sees| if sees { 0.0 } else { f32::NEG_INFINITY }).collect();
        scores = scores.broadcast_add(&Tensor::from_vec(mask, (windows, 1, positions, seen), q.device())?)?;
    }
    if !how.sinks.is_empty() {
        let sinks = Tensor::from_slice(&how.sinks, (1, heads, 1, 1), q.device())?;
        let sinks = sinks.expand((windows, heads, positions, 1))?.contiguous()?;
        scores = Tensor::cat(&[scores, sinks], 3)?;
    }
    let e = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let p = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?;
    p.narrow(3, 0, seen)?.contiguous()?.matmul(&v.contiguous()?)?.transpose(1, 2)?.reshape((n, heads * d))
}
