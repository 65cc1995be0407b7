//! Tensors of ONNX as arrays, and back.

use super::file::mapped::{PART, each_part};
use super::proto::TensorProto;
use super::proto::tensor_proto::{DataLocation, DataType};
use crate::error::{Error, Result};
use prost::bytes::Bytes;
use std::borrow::Cow;

/// An array in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor<T> {
    /// The size of each dimension; none for a scalar.
    pub dims: Vec<usize>,
    /// As many values as the product of `dims`.
    pub data: Vec<T>,
}

/// A type of number that tensors are read and written in.
pub trait Element: Copy + Send + Sync + 'static {
    /// Its name in ONNX.
    const TYPE: DataType;
    /// Reads little-endian bytes, a whole number of values.
    fn from_bytes(bytes: &[u8]) -> Vec<Self>;
    /// Writes little-endian bytes.
    fn to_bytes(values: &[Self]) -> Vec<u8>;
    /// What stands in the field for this type, for a tensor without raw bytes.
    fn typed(tensor: &TensorProto) -> Vec<Self>;
}

macro_rules! element {
    ($type:ty, $name:ident, $field:ident) => {
        impl Element for $type {
            const TYPE: DataType = DataType::$name;
            fn from_bytes(bytes: &[u8]) -> Vec<Self> {
                bytes.as_chunks().0.iter().map(|&chunk| <$type>::from_le_bytes(chunk)).collect()
            }
            fn to_bytes(values: &[Self]) -> Vec<u8> {
                values.iter().flat_map(|value| value.to_le_bytes()).collect()
            }
            fn typed(tensor: &TensorProto) -> Vec<Self> {
                tensor.$field.iter().map(|&value| value as $type).collect()
            }
        }
    };
}

element!(f32, Float, float_data);
element!(f64, Double, double_data);
element!(i8, Int8, int32_data);
element!(u8, Uint8, int32_data);
element!(i32, Int32, int32_data);
element!(i64, Int64, int64_data);

impl<T: Element> Tensor<T> {
    /// A tensor of these values.
    ///
    /// # Panics
    /// There are more or fewer values than `dims` say.
    pub fn new(dims: impl Into<Vec<usize>>, data: Vec<T>) -> Self {
        let dims = dims.into();
        assert_eq!(dims.iter().product::<usize>(), data.len(), "a tensor of {dims:?}");
        Self { dims, data }
    }

    /// A single number.
    pub fn scalar(value: T) -> Self {
        Self::new([], vec![value])
    }

    /// A vector.
    pub fn vector(data: Vec<T>) -> Self {
        Self::new([data.len()], data)
    }

    /// Reads a tensor, whether its values are raw bytes or in the field for their type.
    ///
    /// # Errors
    /// The tensor has another type, or holds more or fewer values than its shape says.
    pub fn read(tensor: &TensorProto) -> Result<Self> {
        let found = type_of(tensor);
        if found != Some(T::TYPE) {
            let (name, wanted) = (tensor.name(), type_name(T::TYPE as i32));
            return Err(Error::new(format!(
                "tensor '{name}' has type {}, not {wanted}",
                type_name(tensor.data_type())
            )));
        }
        let (dims, elements) = shape(tensor)?;
        check_is_here(tensor)?;
        let size = size_of::<T>();
        let found = tensor.raw_data.as_ref().map(Bytes::len);
        if let Some(bytes) = found
            && Some(bytes) != elements.checked_mul(size)
        {
            let name = tensor.name();
            return Err(Error::new(format!(
                "tensor '{name}' has shape {dims:?} of {size} bytes each, but {bytes} bytes"
            )));
        }
        let data = match &tensor.raw_data {
            Some(raw) => {
                let mut values = Vec::with_capacity(elements);
                each_part(raw, |part| {
                    values.extend(T::from_bytes(part));
                    Ok(())
                })?;
                values
            }
            None => T::typed(tensor),
        };
        if data.len() != elements {
            let (name, found) = (tensor.name(), data.len());
            return Err(Error::new(format!("tensor '{name}' has shape {dims:?}, but {found} values")));
        }
        Ok(Self { dims, data })
    }

    /// The message for this tensor, its values as raw bytes.
    pub fn proto(&self, name: impl Into<String>) -> TensorProto {
        TensorProto {
            name: Some(name.into()),
            dims: self.dims.iter().map(|&n| n as i64).collect(),
            data_type: Some(T::TYPE as i32),
            raw_data: Some(T::to_bytes(&self.data).into()),
            ..Default::default()
        }
    }
}

/// The type of a tensor; none if the number stands for none.
pub fn type_of(tensor: &TensorProto) -> Option<DataType> {
    DataType::try_from(tensor.data_type()).ok()
}

/// The name of a type of ONNX by its number, such as `FLOAT16`.
pub fn type_name(number: i32) -> String {
    DataType::try_from(number).map_or_else(|_| format!("number {number}"), |kind| kind.as_str_name().to_owned())
}

/// The dimensions of a tensor and the number of its elements.
///
/// # Errors
/// A dimension is negative, or they multiply to more than a machine can address.
pub fn shape(tensor: &TensorProto) -> Result<(Vec<usize>, usize)> {
    let dims = tensor.dims.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<Vec<_>>>();
    let elements = dims.as_ref().and_then(|dims| dims.iter().try_fold(1usize, |all, &n| all.checked_mul(n)));
    match (dims, elements) {
        (Some(dims), Some(elements)) => Ok((dims, elements)),
        _ => Err(Error::new(format!("tensor '{}' has the impossible shape {:?}", tensor.name(), tensor.dims))),
    }
}

/// The bytes that a tensor of this type and shape has as raw data; none for strings and for types that are not known.
///
/// # Errors
/// The shape is impossible.
pub fn raw_bytes(tensor: &TensorProto) -> Result<Option<usize>> {
    let (_, elements) = shape(tensor)?;
    use DataType as D;
    let bits = match type_of(tensor) {
        Some(D::Complex128) => 128,
        Some(D::Double | D::Int64 | D::Uint64 | D::Complex64) => 64,
        Some(D::Float | D::Int32 | D::Uint32) => 32,
        Some(D::Float16 | D::Bfloat16 | D::Int16 | D::Uint16) => 16,
        Some(D::Int8 | D::Uint8 | D::Bool) => 8,
        Some(D::Float8e4m3fn | D::Float8e4m3fnuz | D::Float8e5m2 | D::Float8e5m2fnuz | D::Float8e8m0) => 8,
        Some(D::Int4 | D::Uint4 | D::Float4e2m1) => 4,
        Some(D::Int2 | D::Uint2) => 2,
        _ => return Ok(None),
    };
    match elements.checked_mul(bits) {
        Some(bits) => Ok(Some(bits.div_ceil(8))),
        None => Err(Error::new(format!("tensor '{}' has the impossible shape {:?}", tensor.name(), tensor.dims))),
    }
}

/// A tensor as several along its first axis, of some megabytes each, which share its values. It stays whole where these are not raw
/// bytes, or not as many as its shape says.
pub fn parts(tensor: &TensorProto) -> Vec<Cow<'_, TensorProto>> {
    let rows = tensor.dims.first().map_or(0, |&rows| usize::try_from(rows).unwrap_or(0));
    let whole = |raw: &&Bytes| raw_bytes(tensor).is_ok_and(|bytes| bytes == Some(raw.len()));
    let Some(raw) = tensor.raw_data.as_ref().filter(whole).filter(|raw| raw.len() > PART && raw.len() % rows == 0)
    else {
        return vec![Cow::Borrowed(tensor)];
    };
    let row = raw.len() / rows;
    let at_once = (PART / row).max(1);
    let part = |first: usize| {
        let last = rows.min(first + at_once);
        let mut part = TensorProto { raw_data: Some(raw.slice(first * row..last * row)), ..tensor.clone() };
        part.dims[0] = (last - first) as i64;
        Cow::Owned(part)
    };
    (0..rows).step_by(at_once).map(part).collect()
}

fn check_is_here(tensor: &TensorProto) -> Result<()> {
    if tensor.data_location() == DataLocation::External || tensor.segment.is_some() {
        return Err(Error::new(format!("the values of tensor '{}' are not in the model", tensor.name())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip<T: Element + PartialEq + std::fmt::Debug>(values: Vec<T>) {
        let tensor = Tensor::new([1, values.len()], values);
        assert_eq!(Tensor::<T>::read(&tensor.proto("t")).unwrap(), tensor);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(f in prop::collection::vec(-1e30f32..1e30, 0..9), i: Vec<i8>, u: Vec<u8>, n: Vec<i32>, l: Vec<i64>) {
            round_trip(f);
            round_trip(i);
            round_trip(u);
            round_trip(n);
            round_trip(l);
        }
    }

    #[test]
    fn parts_have_all_rows() {
        for (rows, width) in [(3, PART / 8), (PART / 2, 1), (2, PART), (PART, 0), (7, 3)] {
            let values: Vec<f32> = (0..rows * width).map(|i| i as f32).collect();
            let tensor = Tensor::new([rows, width], values).proto("t");
            let parts = parts(&tensor);
            let read: Vec<_> = parts.iter().map(|part| Tensor::<f32>::read(part).unwrap()).collect();
            assert_eq!(read.iter().map(|part| part.dims[0]).sum::<usize>(), rows);
            assert!(read.len() == 1 || read.iter().all(|part| part.dims[0] == 1 || part.data.len() * 4 <= PART));
            let read: Vec<f32> = read.into_iter().flat_map(|part| part.data).collect();
            assert_eq!(Tensor::new([rows, width], read).proto("t"), tensor);
        }
        let mut tensor = Tensor::vector(vec![0.0f32; 2 * PART]).proto("t");
        tensor.dims = vec![3];
        assert_eq!(parts(&tensor).len(), 1);
    }

    #[test]
    fn typed_fields_are_read_too() {
        let mut tensor = Tensor::vector(vec![-128i8, 0, 127]).proto("t");
        (tensor.raw_data, tensor.int32_data) = (None, vec![-128, 0, 127]);
        assert_eq!(Tensor::<i8>::read(&tensor).unwrap().data, [-128, 0, 127]);
        let mut tensor = Tensor::vector(vec![0.5f32]).proto("t");
        (tensor.raw_data, tensor.float_data) = (None, vec![0.5]);
        assert_eq!(Tensor::<f32>::read(&tensor).unwrap().data, [0.5]);
    }

    #[test]
    fn shapes_and_values_that_do_not_agree() {
        let refused = |change: fn(&mut TensorProto)| {
            let mut tensor = Tensor::vector(vec![1.0f32, 2.0]).proto("w");
            change(&mut tensor);
            Tensor::<f32>::read(&tensor).unwrap_err().to_string()
        };
        assert_eq!(refused(|t| t.dims = vec![3]), "tensor 'w' has shape [3] of 4 bytes each, but 8 bytes");
        assert_eq!(refused(|t| t.dims = vec![-2]), "tensor 'w' has the impossible shape [-2]");
        assert!(refused(|t| t.dims = vec![i64::MAX, i64::MAX]).contains("impossible shape"));
        assert!(refused(|t| t.dims = vec![1 << 62]).contains("8 bytes"));
        assert!(refused(|t| t.raw_data = None).contains("but 0 values"));
        assert!(refused(|t| t.data_type = Some(10)).contains("has type FLOAT16, not FLOAT"));
        assert!(refused(|t| t.data_type = Some(99)).contains("has type number 99, not FLOAT"));
        assert!(refused(|t| t.data_location = Some(1)).contains("not in the model"));
    }
}
