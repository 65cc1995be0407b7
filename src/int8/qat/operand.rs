//! What operators read: floats with a gradient, and whole numbers without.

use crate::error::{Error, Result};
use crate::int8::engine::Value;
use crate::int8::onnx::Tensor as Array;
use crate::int8::onnx::proto::tensor_proto::DataType;
use crate::int8::onnx::proto::{NodeProto, TensorProto};
use crate::int8::onnx::tensor::{Element, type_of};
use candle_core::{Device, Tensor};

/// A value of the graph.
#[derive(Debug, Clone)]
pub enum Operand {
    /// Floats, which may depend on what is trained.
    Float(Tensor),
    /// Whole numbers and truth values: shapes, indices, masks.
    Whole(Array<i64>),
}

impl Operand {
    /// Of what the engine computed.
    ///
    /// # Errors
    /// The tensor library refused.
    pub fn of(value: Value) -> Result<Operand> {
        fn whole<T: Copy + Into<i64>>(x: Array<T>) -> Operand {
            Operand::Whole(Array { dims: x.dims, data: x.data.iter().map(|&x| x.into()).collect() })
        }
        Ok(match value {
            Value::F32(x) => Operand::Float(float(x)?),
            Value::I32(x) => whole(x),
            Value::I8(x) => whole(x),
            Value::U8(x) => whole(x),
        })
    }

    /// Of a constant of the graph; none if it is of a type that no operator here reads.
    ///
    /// # Errors
    /// The tensor is damaged.
    pub fn constant(tensor: &TensorProto) -> Result<Option<Operand>> {
        fn whole<T: Element + Into<i64>>(tensor: &TensorProto) -> Result<Option<Operand>> {
            let Array { dims, data } = Array::<T>::read(tensor)?;
            Ok(Some(Operand::Whole(Array { dims, data: data.into_iter().map(Into::into).collect() })))
        }
        match type_of(tensor) {
            Some(DataType::Float) => Ok(Some(Operand::Float(float(Array::read(tensor)?)?))),
            Some(DataType::Int64) => whole::<i64>(tensor),
            Some(DataType::Int32) => whole::<i32>(tensor),
            Some(DataType::Int8) => whole::<i8>(tensor),
            Some(DataType::Uint8) => whole::<u8>(tensor),
            // Stored as bytes.
            Some(DataType::Bool) => {
                whole::<u8>(&TensorProto { data_type: Some(DataType::Uint8 as i32), ..tensor.clone() })
            }
            _ => Ok(None),
        }
    }

    /// About how many bytes it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Operand::Float(x) => 4 * x.elem_count(),
            Operand::Whole(x) => 8 * x.data.len(),
        }
    }
}

/// A tensor of these numbers, without a gradient.
///
/// # Errors
/// The tensor library refused.
pub fn float(x: Array<f32>) -> Result<Tensor> {
    Ok(Tensor::from_vec(x.data, x.dims, &Device::Cpu)?)
}

/// What an operator is given.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The node, for its attributes.
    pub node: &'a NodeProto,
    /// In the order of the node's inputs; none where an optional one is left out.
    pub values: Vec<Option<Operand>>,
}

impl Inputs<'_> {
    /// The floats of an input.
    ///
    /// # Errors
    /// It is missing, or has whole numbers.
    pub fn x(&self, at: usize) -> Result<&Tensor> {
        match self.values.get(at) {
            Some(Some(Operand::Float(x))) => Ok(x),
            Some(Some(Operand::Whole(_))) => Err(Error::new(format!("input {at} has integers, not floats"))),
            _ => Err(Error::new(format!("input {at} is missing"))),
        }
    }

    /// The floats of an optional input.
    pub fn optional(&self, at: usize) -> Option<&Tensor> {
        match self.values.get(at) {
            Some(Some(Operand::Float(x))) => Some(x),
            _ => None,
        }
    }

    /// The whole numbers of an input, if it is there.
    pub fn whole(&self, at: usize) -> Option<&Array<i64>> {
        match self.values.get(at) {
            Some(Some(Operand::Whole(x))) => Some(x),
            _ => None,
        }
    }

    /// Whole numbers that newer opsets give as an input, and older ones as an attribute.
    pub fn numbers(&self, at: usize, attribute: &str) -> Option<Vec<i64>> {
        let given = self.whole(at).map(|x| x.data.clone());
        given.or_else(|| self.node.ints_of(attribute).map(<[i64]>::to_vec))
    }

    /// A single float, by default that of an attribute.
    ///
    /// # Errors
    /// The input has more than one number.
    pub fn scalar(&self, at: usize, attribute: &str) -> Result<Option<f32>> {
        match self.optional(at) {
            None => Ok(self.node.attribute(attribute).and_then(|attribute| attribute.f)),
            Some(x) if x.elem_count() == 1 => Ok(Some(x.flatten_all()?.to_vec1::<f32>()?[0])),
            Some(x) => Err(Error::new(format!("input {at} has shape {:?}, not one number", x.dims()))),
        }
    }

    /// The attribute `axis` as the number of an axis of `rank`.
    ///
    /// # Errors
    /// There is no such axis.
    pub fn axis(&self, default: i64, rank: usize) -> Result<usize> {
        axis(self.node.int_or("axis", default), rank)
    }
}

/// The number of an axis, which may be counted from the end.
///
/// # Errors
/// There is no such axis.
pub fn axis(at: i64, rank: usize) -> Result<usize> {
    let counted = if at < 0 { at + rank as i64 } else { at };
    match usize::try_from(counted) {
        Ok(axis) if axis < rank => Ok(axis),
        _ => Err(Error::new(format!("axis {at} of a tensor with {rank} axes"))),
    }
}

/// Axes in order, each once.
///
/// # Errors
/// One of them does not exist.
pub fn axes(given: &[i64], rank: usize) -> Result<Vec<usize>> {
    let mut found = given.iter().map(|&at| axis(at, rank)).collect::<Result<Vec<_>>>()?;
    found.sort_unstable();
    found.dedup();
    Ok(found)
}
