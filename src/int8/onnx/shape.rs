//! What a graph says about the shapes of its values.

use super::proto::tensor_shape_proto::dimension::Value as Size;
use super::proto::type_proto::{Tensor, Value as Kind};
use super::proto::{
    TensorShapeProto, TypeProto, ValueInfoProto, tensor_proto::DataType, tensor_shape_proto::Dimension,
};
use std::fmt;

/// The size of one dimension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// Always this.
    Fixed(usize),
    /// Decided when the model runs; the name that the graph gives it, which may be empty.
    Dynamic(String),
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(n) => n.fmt(f),
            Self::Dynamic(name) if name.is_empty() => f.write_str("?"),
            Self::Dynamic(name) => f.write_str(name),
        }
    }
}

impl Dim {
    /// The size, if it is fixed.
    pub fn fixed(&self) -> Option<usize> {
        if let Self::Fixed(n) = self { Some(*n) } else { None }
    }
}

/// A shape as messages show it, `[batch, 3, 224, 224]`.
pub fn shown(dims: &[Dim]) -> String {
    let dims: Vec<String> = dims.iter().map(ToString::to_string).collect();
    format!("[{}]", dims.join(", "))
}

/// What exporters write where they know no name: two such dimensions need not have one size.
const NO_NAMES: [&str; 12] = ["", "?", "*", "-1", "-", "None", "none", "null", "unk", "unknown", "undefined", "any"];

/// The element type and the shape of a value, as far as the graph tells.
pub fn of(info: &ValueInfoProto) -> (Option<DataType>, Option<Vec<Dim>>) {
    let Some(TypeProto { value: Some(Kind::TensorType(tensor)), .. }) = &info.r#type else { return (None, None) };
    let kind = tensor.elem_type.and_then(|number| DataType::try_from(number).ok());
    let dims = tensor.shape.as_ref().map(|shape| shape.dim.iter().map(dim).collect());
    (kind, dims)
}

fn dim(dimension: &Dimension) -> Dim {
    match &dimension.value {
        Some(Size::DimValue(n)) => usize::try_from(*n).map_or(Dim::Dynamic(String::new()), Dim::Fixed),
        Some(Size::DimParam(name)) if NO_NAMES.contains(&name.trim()) => Dim::Dynamic(String::new()),
        Some(Size::DimParam(name)) => Dim::Dynamic(name.clone()),
        None => Dim::Dynamic(String::new()),
    }
}

/// The message that declares a value of this type and shape.
pub fn declare(name: impl Into<String>, kind: DataType, dims: &[Dim]) -> ValueInfoProto {
    let dimension = |dim: &Dim| Dimension {
        value: match dim {
            Dim::Fixed(n) => Some(Size::DimValue(*n as i64)),
            Dim::Dynamic(name) if name.is_empty() => None,
            Dim::Dynamic(name) => Some(Size::DimParam(name.clone())),
        },
        ..Default::default()
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dimension).collect() };
    let tensor = Tensor { elem_type: Some(kind as i32), shape: Some(shape) };
    let kind = TypeProto { value: Some(Kind::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: Some(name.into()), r#type: Some(kind), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declared_shape_is_read_back() {
        let dims = [Dim::Dynamic("batch".into()), Dim::Fixed(3), Dim::Dynamic(String::new())];
        let info = declare("x", DataType::Float, &dims);
        assert_eq!(of(&info), (Some(DataType::Float), Some(dims.to_vec())));
        assert_eq!(shown(&dims), "[batch, 3, ?]");
        assert_eq!(of(&ValueInfoProto::default()), (None, None));
        let unnamed = declare("x", DataType::Float, &["?", "None", "n"].map(|name| Dim::Dynamic(name.into())));
        assert_eq!(of(&unnamed).1.unwrap(), ["", "", "n"].map(|name| Dim::Dynamic(name.into())));
    }
}
