//! Nodes and their attributes.

use super::proto::attribute_proto::AttributeType;
use super::proto::{AttributeProto, GraphProto, NodeProto};

/// A node of ONNX's own operators. An empty name stands for an optional input that is left out.
pub fn node(
    op: &str,
    name: impl Into<String>,
    inputs: &[&str],
    outputs: &[&str],
    attributes: Vec<AttributeProto>,
) -> NodeProto {
    let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    NodeProto {
        op_type: Some(op.into()),
        name: Some(name.into()),
        input: owned(inputs),
        output: owned(outputs),
        attribute: attributes,
        ..Default::default()
    }
}

/// An attribute that is one whole number.
pub fn int(name: &str, value: i64) -> AttributeProto {
    let kind = Some(AttributeType::Int as i32);
    AttributeProto { name: Some(name.into()), r#type: kind, i: Some(value), ..Default::default() }
}

/// An attribute that is several whole numbers.
pub fn ints(name: &str, values: &[i64]) -> AttributeProto {
    let kind = Some(AttributeType::Ints as i32);
    AttributeProto { name: Some(name.into()), r#type: kind, ints: values.into(), ..Default::default() }
}

/// An attribute that is one number.
pub fn float(name: &str, value: f32) -> AttributeProto {
    let kind = Some(AttributeType::Float as i32);
    AttributeProto { name: Some(name.into()), r#type: kind, f: Some(value), ..Default::default() }
}

/// What a node says about itself.
impl NodeProto {
    /// Whether it is this operator, one of ONNX's own.
    pub fn is(&self, op: &str) -> bool {
        self.op_type() == op && matches!(self.domain(), "" | "ai.onnx")
    }

    /// The attribute of this name.
    pub fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|attribute| attribute.name() == name)
    }

    /// The whole number of this name, or what the operator takes without one.
    pub fn int_or(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).and_then(|attribute| attribute.i).unwrap_or(default)
    }

    /// The number of this name, or what the operator takes without one.
    pub fn float_or(&self, name: &str, default: f32) -> f32 {
        self.attribute(name).and_then(|attribute| attribute.f).unwrap_or(default)
    }

    /// The whole numbers of this name.
    pub fn ints_of(&self, name: &str) -> Option<&[i64]> {
        Some(&self.attribute(name)?.ints)
    }

    /// The input at this place, unless it is left out.
    pub fn input_at(&self, at: usize) -> Option<&str> {
        self.input.get(at).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// How messages call it: its name, or its first output if it has none.
    pub fn label(&self) -> &str {
        match self.name() {
            "" => self.output.first().map_or("", String::as_str),
            name => name,
        }
    }

    /// The graphs that it runs inside.
    pub fn subgraphs(&self) -> impl Iterator<Item = &GraphProto> {
        self.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs))
    }

    /// The same, to be edited.
    pub fn subgraphs_mut(&mut self) -> impl Iterator<Item = &mut GraphProto> {
        self.attribute.iter_mut().flat_map(|attribute| attribute.g.iter_mut().chain(&mut attribute.graphs))
    }
}
