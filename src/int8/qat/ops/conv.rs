//! Convolutions and pools.

use super::Rule;
use super::elementwise::one;
use super::window::Windows;
use crate::error::{Error, Result};
use crate::int8::qat::operand::Inputs;
use candle_core::{Device, Tensor};

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "Conv" => |i| one(conv(i)?),
        "MaxPool" => |i| one(max_pool(i)?),
        "AveragePool" => |i| one(average_pool(i)?),
        _ => return None,
    })
}

/// A sequence `[n, channels, length]` as an image of height 1.
fn image(x: &Tensor) -> Result<Tensor> {
    match x.dims()[..] {
        [_, _, _, _] => Ok(x.clone()),
        [n, channels, length] => Ok(x.reshape((n, channels, 1, length))?),
        _ => {
            Err(Error::new(format!("the input has shape {:?}, and only one or two dimensions are supported", x.dims())))
        }
    }
}

/// Back to the axes that `x` had.
fn back(y: &Tensor, x: &Tensor, channels: usize, windows: Windows) -> Result<Tensor> {
    let [height, width] = windows.out;
    let n = x.dims()[0];
    Ok(if x.rank() == 3 { y.reshape((n, channels, width))? } else { y.reshape((n, channels, height, width))? })
}

/// As a product of weights `[groups, outputs, inputs · area]` and windows `[groups, inputs · area, count]`.
fn conv(i: &Inputs) -> Result<Tensor> {
    let (x, w) = (i.x(0)?, i.x(1)?);
    let images = image(x)?;
    let windows = Windows::of(i.node, &x.dims()[2..], &w.dims()[2..])?;
    let (n, channels, outputs) = (x.dims()[0], x.dims()[1], w.dims()[0]);
    let groups = i.node.int_or("group", 1).max(1) as usize;
    if w.dims()[1] * groups != channels || outputs % groups != 0 {
        return Err(Error::new(format!("weights of shape {:?} on {channels} channels in {groups} groups", w.dims())));
    }
    let inner = channels / groups * windows.area();
    let unfolded = windows.unfold(&images)?.reshape((n, groups, inner, windows.count()))?;
    let w = w.reshape((1, groups, outputs / groups, inner))?;
    let y = if n == 1 { w.matmul(&unfolded)? } else { w.broadcast_matmul(&unfolded)? };
    let y = back(&y, x, outputs, windows)?;
    let Some(bias) = i.optional(2) else { return Ok(y) };
    let mut dims = vec![1; y.rank()];
    dims[1] = outputs;
    Ok(y.broadcast_add(&bias.reshape(dims)?)?)
}

fn pool(i: &Inputs) -> Result<(Tensor, Windows)> {
    let x = i.x(0)?;
    let images = image(x)?;
    let kernel = i.node.ints_of("kernel_shape").ok_or_else(|| Error::new("kernel_shape is missing"))?;
    let kernel: Vec<usize> = kernel.iter().map(|&n| n.max(1) as usize).collect();
    Ok((images, Windows::of(i.node, &x.dims()[2..], &kernel)?))
}

fn max_pool(i: &Inputs) -> Result<Tensor> {
    if i.node.output.iter().filter(|name| !name.is_empty()).count() > 1 {
        return Err(Error::new("the places of the largest numbers are not supported"));
    }
    let (images, windows) = pool(i)?;
    back(&windows.largest(&images)?, i.x(0)?, images.dims()[1], windows)
}

fn average_pool(i: &Inputs) -> Result<Tensor> {
    let (images, windows) = pool(i)?;
    let padding_counts = i.node.int_or("count_include_pad", 0) != 0;
    let part = |n: usize| 1.0 / if padding_counts { windows.area() } else { n.max(1) } as f32;
    let parts: Vec<f32> = windows.filled().into_iter().map(part).collect();
    let sums = windows.unfold(&images)?.sum(2)?;
    let y = sums.broadcast_mul(&Tensor::new(parts, &Device::Cpu)?)?;
    back(&y, i.x(0)?, images.dims()[1], windows)
}
