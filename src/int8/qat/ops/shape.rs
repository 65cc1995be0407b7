//! Operators that move numbers.

use super::Rule;
use super::elementwise::one;
use crate::error::{Error, Result};
use crate::int8::qat::operand::{Inputs, axes, axis};
use candle_core::{Device, Shape, Tensor};

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "Reshape" => |i| one(reshape(i)?),
        "Flatten" => |i| one(flatten(i)?),
        "Transpose" => |i| one(transpose(i)?),
        "Squeeze" => |i| one(squeeze(i)?),
        "Unsqueeze" => |i| one(unsqueeze(i)?),
        "Concat" => |i| one(concat(i)?),
        "Gather" => |i| one(gather(i)?),
        "Slice" => |i| one(slice(i)?),
        "Split" => split,
        "Pad" => |i| one(pad(i)?),
        "Expand" => |i| one(expand(i)?),
        _ => return None,
    })
}

fn missing(what: &str) -> Error {
    Error::new(format!("{what} is missing"))
}

fn reshape(i: &Inputs) -> Result<Tensor> {
    let x = i.x(0)?;
    let wanted = &i.whole(1).ok_or_else(|| missing("the shape"))?.data;
    let copies = i.node.int_or("allowzero", 0) == 0;
    let size = |(at, &n): (usize, &i64)| match n {
        0 if copies => x.dims().get(at).copied().unwrap_or(0),
        n => n.max(0) as usize,
    };
    let mut dims: Vec<usize> = wanted.iter().enumerate().map(size).collect();
    if let Some(open) = wanted.iter().position(|&n| n == -1) {
        let others = dims.iter().enumerate().filter(|(at, _)| *at != open).map(|(_, &n)| n).product::<usize>();
        dims[open] = x.elem_count() / others.max(1);
    }
    Ok(x.reshape(&dims[..])?)
}

fn flatten(i: &Inputs) -> Result<Tensor> {
    let x = i.x(0)?;
    let at = i.node.int_or("axis", 1);
    let at = if at == x.rank() as i64 { x.rank() } else { axis(at, x.rank())? };
    let rows: usize = x.dims()[..at].iter().product();
    Ok(x.reshape((rows, x.elem_count() / rows.max(1)))?)
}

fn transpose(i: &Inputs) -> Result<Tensor> {
    let x = i.x(0)?;
    let turned: Vec<i64> = (0..x.rank() as i64).rev().collect();
    let order = i.node.ints_of("perm").unwrap_or(&turned);
    let order = order.iter().map(|&at| axis(at, x.rank())).collect::<Result<Vec<_>>>()?;
    Ok(x.permute(order)?.contiguous()?)
}

fn squeeze(i: &Inputs) -> Result<Tensor> {
    let x = i.x(0)?;
    let gone = match i.numbers(1, "axes") {
        Some(given) => axes(&given, x.rank())?,
        None => (0..x.rank()).filter(|&at| x.dims()[at] == 1).collect(),
    };
    if let Some(&at) = gone.iter().find(|&&at| x.dims()[at] != 1) {
        return Err(Error::new(format!("axis {at} of shape {:?} cannot be squeezed", x.dims())));
    }
    let kept = (0..x.rank()).filter(|at| !gone.contains(at)).map(|at| x.dims()[at]);
    Ok(x.reshape(kept.collect::<Vec<_>>())?)
}

fn unsqueeze(i: &Inputs) -> Result<Tensor> {
    let x = i.x(0)?;
    let given = i.numbers(1, "axes").ok_or_else(|| missing("the axes"))?;
    let new = axes(&given, x.rank() + given.len())?;
    let mut dims = x.dims().to_vec();
    new.iter().for_each(|&at| dims.insert(at, 1));
    Ok(x.reshape(dims)?)
}

fn concat(i: &Inputs) -> Result<Tensor> {
    let all = (0..i.values.len()).map(|at| i.x(at)).collect::<Result<Vec<_>>>()?;
    let rank = all.first().map_or(0, |x| x.rank());
    Ok(Tensor::cat(&all, i.axis(0, rank)?)?)
}

/// These positions along an axis.
fn select(x: &Tensor, axis: usize, positions: impl Iterator<Item = i64>) -> Result<Tensor> {
    let n = x.dims()[axis] as i64;
    let counted = |at: i64| match if at < 0 { at + n } else { at } {
        at if (0..n).contains(&at) => Ok(at as u32),
        _ => Err(Error::new(format!("position {at} of {n}"))),
    };
    let positions = positions.map(counted).collect::<Result<Vec<u32>>>()?;
    Ok(x.contiguous()?.index_select(&Tensor::new(&positions[..], &Device::Cpu)?, axis)?)
}

fn gather(i: &Inputs) -> Result<Tensor> {
    let x = i.x(0)?;
    let at = i.axis(0, x.rank())?;
    let positions = i.whole(1).ok_or_else(|| missing("the index"))?;
    let found = select(x, at, positions.data.iter().copied())?;
    let dims = [&x.dims()[..at], &positions.dims, &x.dims()[at + 1..]].concat();
    Ok(found.reshape(dims)?)
}

fn slice(i: &Inputs) -> Result<Tensor> {
    let mut x = i.x(0)?.clone();
    let given = |at: usize, what: &str| i.whole(at).map(|x| x.data.clone()).ok_or_else(|| missing(what));
    let (starts, ends) = (given(1, "the start")?, given(2, "the end")?);
    let all: Vec<i64> = (0..starts.len() as i64).collect();
    let along = i.whole(3).map_or(all, |x| x.data.clone());
    let steps = i.whole(4).map_or(vec![1; starts.len()], |x| x.data.clone());
    for (((&start, &end), &along), &step) in starts.iter().zip(&ends).zip(&along).zip(&steps) {
        let at = axis(along, x.rank())?;
        let n = x.dims()[at] as i64;
        let counted = |at: i64| if at < 0 { at.saturating_add(n) } else { at };
        if step == 1 {
            let (from, to) = (counted(start).clamp(0, n), counted(end).clamp(0, n));
            x = x.narrow(at, from as usize, (to - from).max(0) as usize)?;
        } else if step > 1 {
            let (from, to) = (counted(start).clamp(0, n), counted(end).clamp(0, n));
            x = select(&x, at, (from..to).step_by(step as usize))?;
        } else {
            let (from, to) = (counted(start).clamp(-1, n - 1), counted(end).clamp(-1, n - 1));
            let steps = (to + 1..=from).rev().step_by(step.unsigned_abs().max(1) as usize);
            x = select(&x, at, steps)?;
        }
    }
    Ok(x.contiguous()?)
}

fn split(i: &Inputs) -> Result<Vec<Tensor>> {
    let x = i.x(0)?;
    let at = i.axis(0, x.rank())?;
    let (n, parts) = (x.dims()[at], i.node.output.len().max(1));
    let even = n.div_ceil(parts);
    let sizes: Vec<usize> = match i.numbers(1, "split") {
        Some(given) => given.iter().map(|&n| n.max(0) as usize).collect(),
        None => (0..parts).map(|part| even.min(n.saturating_sub(part * even))).collect(),
    };
    let mut from = 0;
    let part = |&size: &usize| {
        from += size;
        Ok(x.narrow(at, from - size, size)?.contiguous()?)
    };
    sizes.iter().map(part).collect()
}

fn pad(i: &Inputs) -> Result<Tensor> {
    let mut x = i.x(0)?.clone();
    let mode = i.node.attribute("mode").and_then(|attribute| attribute.s.as_deref()).unwrap_or(b"constant");
    if mode != b"constant" {
        return Err(Error::new(format!("mode {} is not supported", String::from_utf8_lossy(mode))));
    }
    let pads = &i.whole(1).ok_or_else(|| missing("the widths"))?.data;
    let value = i.scalar(2, "value")?.unwrap_or(0.0);
    let all: Vec<i64> = (0..x.rank() as i64).collect();
    let along = i.whole(3).map_or(all, |x| x.data.clone());
    for (pair, &along) in along.iter().enumerate() {
        let at = axis(along, x.rank())?;
        // Widths before all axes, then those after all.
        let around = [pair, pair + pads.len() / 2].map(|place| pads.get(place).copied().unwrap_or(0));
        let full = |n: i64| -> Result<Tensor> {
            let mut dims = x.dims().to_vec();
            dims[at] =
                usize::try_from(n).map_err(|_| Error::new(format!("a negative width, {n}, is not supported")))?;
            Ok(Tensor::full(value, dims, &Device::Cpu)?)
        };
        let (before, after) = (full(around[0])?, full(around[1])?);
        let parts = [before, x.clone(), after].into_iter().filter(|part| part.elem_count() > 0);
        x = Tensor::cat(&parts.collect::<Vec<_>>(), at)?;
    }
    Ok(x)
}

fn expand(i: &Inputs) -> Result<Tensor> {
    let x = i.x(0)?;
    let wanted = &i.whole(1).ok_or_else(|| missing("the shape"))?.data;
    let wanted: Shape = wanted.iter().map(|&n| n.max(1) as usize).collect::<Vec<_>>().into();
    Ok(x.broadcast_as(x.shape().broadcast_shape_binary_op(&wanted, "expand")?)?.contiguous()?)
}
