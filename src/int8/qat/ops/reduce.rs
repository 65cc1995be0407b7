//! Operators along axes: means, sums, softmax and norms.

use super::Rule;
use super::elementwise::one;
use crate::error::Result;
use crate::int8::qat::operand::{Inputs, Operand, axes};
use candle_core::Tensor;

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "ReduceMean" => |i| one(reduce(i, mean)?),
        "ReduceSum" => |i| one(reduce(i, sum)?),
        "ReduceMax" => |i| one(reduce(i, max)?),
        "ReduceL2" => |i| one(reduce(&squared(i)?, sum)?.sqrt()?),
        "GlobalAveragePool" => |i| one(mean(i.x(0)?, &spatial(i.x(0)?))?),
        "GlobalMaxPool" => |i| one(max(i.x(0)?, &spatial(i.x(0)?))?),
        "Softmax" => |i| one(softmax(i)?),
        "LogSoftmax" => |i| one(log_softmax(i)?),
        "LayerNormalization" => |i| one(layer_norm(i)?),
        "BatchNormalization" => |i| one(batch_norm(i)?),
        _ => return None,
    })
}

/// Along some axes, which stay with one number each.
type Along = fn(&Tensor, &[usize]) -> Result<Tensor>;

fn mean(x: &Tensor, over: &[usize]) -> Result<Tensor> {
    Ok(x.mean_keepdim(over)?)
}

fn sum(x: &Tensor, over: &[usize]) -> Result<Tensor> {
    Ok(x.sum_keepdim(over)?)
}

fn max(x: &Tensor, over: &[usize]) -> Result<Tensor> {
    over.iter().try_fold(x.clone(), |x, &axis| Ok(x.max_keepdim(axis)?))
}

/// The axes behind batch and channels.
fn spatial(x: &Tensor) -> Vec<usize> {
    (2..x.rank()).collect()
}

fn reduce(i: &Inputs, along: Along) -> Result<Tensor> {
    let x = i.x(0)?;
    let given = i.numbers(1, "axes").unwrap_or_default();
    let all: Vec<i64> = (0..x.rank() as i64).collect();
    let over = match (given.is_empty(), i.node.int_or("noop_with_empty_axes", 0) != 0) {
        (true, true) => return Ok(x.clone()),
        (true, false) => &all,
        (false, _) => &given,
    };
    let over = axes(over, x.rank())?;
    let mut y = along(x, &over)?;
    if i.node.int_or("keepdims", 1) == 0 {
        for &at in over.iter().rev() {
            y = y.squeeze(at)?;
        }
    }
    Ok(y)
}

/// The same node with the squares of its input.
fn squared<'a>(i: &Inputs<'a>) -> Result<Inputs<'a>> {
    let mut values = i.values.clone();
    values[0] = Some(Operand::Float(i.x(0)?.sqr()?));
    Ok(Inputs { node: i.node, values })
}

fn softmax(i: &Inputs) -> Result<Tensor> {
    let x = i.x(0)?;
    let axis = i.axis(-1, x.rank())?;
    // Any constant may be taken off; no gradient is lost with it.
    let e = x.broadcast_sub(&x.max_keepdim(axis)?.detach())?.exp()?;
    Ok(e.broadcast_div(&e.sum_keepdim(axis)?)?)
}

fn log_softmax(i: &Inputs) -> Result<Tensor> {
    let x = i.x(0)?;
    let axis = i.axis(-1, x.rank())?;
    let x = x.broadcast_sub(&x.max_keepdim(axis)?.detach())?;
    Ok(x.broadcast_sub(&x.exp()?.sum_keepdim(axis)?.log()?)?)
}

fn layer_norm(i: &Inputs) -> Result<Tensor> {
    let x = i.x(0)?;
    let axis = i.axis(-1, x.rank())?;
    let width: usize = x.dims()[axis..].iter().product();
    let rows = x.reshape((x.elem_count() / width.max(1), width))?;
    let off = rows.broadcast_sub(&rows.mean_keepdim(1)?)?;
    let variance = off.sqr()?.mean_keepdim(1)?;
    let deviation = (variance + f64::from(i.node.float_or("epsilon", 1e-5)))?.sqrt()?;
    let y = off.broadcast_div(&deviation)?.broadcast_mul(&i.x(1)?.flatten_all()?)?;
    let y = match i.optional(2) {
        Some(bias) => y.broadcast_add(&bias.flatten_all()?)?,
        None => y,
    };
    Ok(y.reshape(x.dims())?)
}

/// Those that could not be folded into a convolution.
fn batch_norm(i: &Inputs) -> Result<Tensor> {
    let x = i.x(0)?;
    let channels = i.x(1)?.elem_count();
    let mut dims = vec![1; x.rank()];
    if dims.len() > 1 {
        dims[1] = channels;
    }
    let part = |at: usize| -> Result<Tensor> { Ok(i.x(at)?.reshape(&dims[..])?) };
    let deviation = (part(4)? + f64::from(i.node.float_or("epsilon", 1e-5)))?.sqrt()?;
    let y = x.broadcast_sub(&part(3)?)?.broadcast_div(&deviation)?;
    Ok(y.broadcast_mul(&part(1)?)?.broadcast_add(&part(2)?)?)
}
