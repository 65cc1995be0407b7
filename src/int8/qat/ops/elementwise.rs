//! Operators on single numbers.

use super::Rule;
use crate::error::{Error, Result};
use crate::int8::qat::operand::Inputs;
use candle_core::{DType, Device, Shape, Tensor};

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "Add" => |i| one(i.x(0)?.broadcast_add(i.x(1)?)?),
        "Sub" => |i| one(i.x(0)?.broadcast_sub(i.x(1)?)?),
        "Mul" => |i| one(i.x(0)?.broadcast_mul(i.x(1)?)?),
        "Div" => |i| one(i.x(0)?.broadcast_div(i.x(1)?)?),
        "Pow" => |i| one(pow(i)?),
        "Sqrt" => |i| one(i.x(0)?.sqrt()?),
        "Reciprocal" => |i| one(i.x(0)?.recip()?),
        "Neg" => |i| one(i.x(0)?.neg()?),
        "Abs" => |i| one(i.x(0)?.abs()?),
        "Exp" => |i| one(i.x(0)?.exp()?),
        "Log" => |i| one(i.x(0)?.log()?),
        "Erf" => |i| one(i.x(0)?.erf()?),
        "Tanh" => |i| one(i.x(0)?.tanh()?),
        "Sigmoid" => |i| one(sigmoid(i.x(0)?)?),
        "Relu" => |i| one(i.x(0)?.relu()?),
        "LeakyRelu" => |i| one(leaky_relu(i.x(0)?, i.node.float_or("alpha", 0.01))?),
        "Clip" => |i| one(clip(i)?),
        "Gelu" => |i| one(gelu(i)?),
        "HardSigmoid" => |i| {
            let (alpha, beta) = (i.node.float_or("alpha", 0.2), i.node.float_or("beta", 0.5));
            one(hard_sigmoid(i.x(0)?, alpha, beta)?)
        },
        "HardSwish" => |i| one(i.x(0)?.mul(&hard_sigmoid(i.x(0)?, 1.0 / 6.0, 0.5)?)?),
        "Where" => |i| one(choose(i)?),
        "PRelu" => |i| one(x_and_slope(i.x(0)?, i.x(1)?)?),
        "Elu" => |i| one(i.x(0)?.elu(f64::from(i.node.float_or("alpha", 1.0)))?),
        "Softplus" => |i| one(softplus(i.x(0)?)?),
        "Min" => |i| one(together(i, Tensor::broadcast_minimum)?),
        "Max" => |i| one(together(i, Tensor::broadcast_maximum)?),
        "Sum" => |i| one(together(i, Tensor::broadcast_add)?),
        // At inference, a dropout lets everything through.
        "Identity" | "Cast" | "Dropout" => |i| one(i.x(0)?.clone()),
        _ => return None,
    })
}

/// The outputs of an operator that has one.
pub(super) fn one(x: Tensor) -> Result<Vec<Tensor>> {
    Ok(vec![x])
}

fn pow(i: &Inputs) -> Result<Tensor> {
    let x = i.x(0)?;
    let exponent = match i.whole(1) {
        Some(whole) if whole.data.len() == 1 => whole.data[0] as f32,
        _ => i.scalar(1, "")?.ok_or_else(|| Error::new("the exponent is missing"))?,
    };
    Ok(if exponent == 2.0 {
        x.sqr()?
    } else if exponent == 0.5 {
        x.sqrt()?
    } else {
        x.powf(f64::from(exponent))?
    })
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    // By way of tanh, which does not overflow: 1/(1 + exp(-x)) = (1 + tanh(x/2))/2.
    Ok((x * 0.5)?.tanh()?.affine(0.5, 0.5)?)
}

fn leaky_relu(x: &Tensor, alpha: f32) -> Result<Tensor> {
    let alpha = f64::from(alpha);
    Ok((x.relu()? * (1.0 - alpha))?.add(&(x * alpha)?)?)
}

fn x_and_slope(x: &Tensor, slope: &Tensor) -> Result<Tensor> {
    Ok(x.relu()?.sub(&x.neg()?.relu()?.broadcast_mul(slope)?)?)
}

/// `ln(1 + eˣ)`, which is `max(x, 0) + ln(1 + e^-|x|)`: that does not overflow.
fn softplus(x: &Tensor) -> Result<Tensor> {
    let small = (x.abs()?.neg()?.exp()? + 1.0)?.log()?;
    Ok(x.relu()?.add(&small)?)
}

/// Any number of inputs, from the left to the right.
fn together(i: &Inputs, two: fn(&Tensor, &Tensor) -> candle_core::Result<Tensor>) -> Result<Tensor> {
    let mut sum = i.x(0)?.clone();
    for at in 1..i.values.len() {
        sum = two(&sum, i.x(at)?)?;
    }
    Ok(sum)
}

/// The larger, or the smaller, of each number and a limit.
fn limit(x: &Tensor, least: Option<f32>, most: Option<f32>) -> Result<Tensor> {
    let mut x = x.clone();
    if let Some(least) = least {
        x = x.broadcast_maximum(&Tensor::new(least, x.device())?)?;
    }
    if let Some(most) = most {
        x = x.broadcast_minimum(&Tensor::new(most, x.device())?)?;
    }
    Ok(x)
}

fn clip(i: &Inputs) -> Result<Tensor> {
    limit(i.x(0)?, i.scalar(1, "min")?, i.scalar(2, "max")?)
}

fn hard_sigmoid(x: &Tensor, alpha: f32, beta: f32) -> Result<Tensor> {
    limit(&x.affine(f64::from(alpha), f64::from(beta))?, Some(0.0), Some(1.0))
}

fn gelu(i: &Inputs) -> Result<Tensor> {
    let tanh = i.node.attribute("approximate").is_some_and(|a| a.s.as_deref() == Some(b"tanh"));
    if !tanh {
        return Ok(i.x(0)?.gelu_erf()?);
    }
    let x = i.x(0)?;
    let inner = ((x.sqr()?.mul(x)? * 0.044_715)?.add(x)? * (2.0 / std::f64::consts::PI).sqrt())?;
    Ok(x.mul(&inner.tanh()?.affine(0.5, 0.5)?)?)
}

fn choose(i: &Inputs) -> Result<Tensor> {
    let condition = i.whole(0).ok_or_else(|| Error::new("the condition has floats, not truth values"))?;
    let truth: Vec<u8> = condition.data.iter().map(|&x| u8::from(x != 0)).collect();
    let condition = Tensor::from_vec(truth, &condition.dims[..], &Device::Cpu)?.to_dtype(DType::U8)?;
    let (x, y) = (i.x(1)?, i.x(2)?);
    let shape = condition.shape().broadcast_shape_binary_op(x.shape(), "where")?;
    let shape: Shape = shape.broadcast_shape_binary_op(y.shape(), "where")?;
    let [x, y] = [x, y].map(|x| x.broadcast_as(&shape));
    Ok(condition.broadcast_as(&shape)?.where_cond(&x?, &y?)?)
}
