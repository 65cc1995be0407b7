//! Products of matrices.

use super::Rule;
use super::elementwise::one;
use crate::error::Result;
use crate::int8::qat::operand::Inputs;
use candle_core::Tensor;

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "MatMul" => |i| one(matmul(i.x(0)?, i.x(1)?)?),
        "Gemm" => |i| one(gemm(i)?),
        _ => return None,
    })
}

fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (mut left, mut right) = (a.dims().to_vec(), b.dims().to_vec());
    // A vector is a row on the left and a column on the right; the axis goes afterwards.
    let (row, column) = (left.len() == 1, right.len() == 1);
    if row {
        left.insert(0, 1);
    }
    if column {
        right.push(1);
    }
    let (a, b) = (a.reshape(&left[..])?, b.reshape(&right[..])?);
    let mut y = if right.len() == 2 {
        // One product of all rows at once.
        let width = left[left.len() - 1];
        let rows = a.elem_count() / width.max(1);
        let mut dims = left.clone();
        dims[left.len() - 1] = right[1];
        a.reshape((rows, width))?.matmul(&b.contiguous()?)?.reshape(&dims[..])?
    } else {
        a.contiguous()?.broadcast_matmul(&b.contiguous()?)?
    };
    if column {
        y = y.squeeze(y.rank() - 1)?;
    }
    if row {
        let at = y.rank() - usize::from(!column) - 1;
        y = y.squeeze(at)?;
    }
    Ok(y)
}

fn gemm(i: &Inputs) -> Result<Tensor> {
    let turned = |at: usize, name: &str| -> Result<Tensor> {
        let x = i.x(at)?;
        Ok(if i.node.int_or(name, 0) == 0 { x.contiguous()? } else { x.t()?.contiguous()? })
    };
    let mut y = turned(0, "transA")?.matmul(&turned(1, "transB")?)?;
    let (alpha, beta) = (i.node.float_or("alpha", 1.0), i.node.float_or("beta", 1.0));
    if alpha != 1.0 {
        y = (y * f64::from(alpha))?;
    }
    match i.optional(2) {
        Some(c) if beta == 1.0 => Ok(y.broadcast_add(c)?),
        Some(c) => Ok(y.broadcast_add(&(c * f64::from(beta))?)?),
        None => Ok(y),
    }
}
