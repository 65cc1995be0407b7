//! How much memory a model's description will take, before it is decoded.
//!
//! In a file, an empty attribute has two bytes; decoded, it has more than a thousand. So a file of some megabytes could fill any
//! memory. The values of tensors do not count: they stay where they are.

use crate::int8::onnx::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto,
    TrainingInfoProto, ValueInfoProto,
};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// The most bytes that a description may take. A graph of 100,000 nodes with three attributes each takes half of it.
pub const MOST: usize = 1 << 30;

/// What strings and small messages are taken for.
const SMALL: usize = 64;

/// How deep messages nest at most, which is the decoder's own limit.
const DEEPEST: usize = 100;

/// A message: its size when it is decoded, and which of its fields are messages of weight.
struct Message {
    size: usize,
    fields: &'static [(u32, &'static Message)],
}

macro_rules! messages {
    ($($name:ident $type:ty: $($field:literal $of:ident)*;)*) => {
        $(static $name: Message = Message { size: size_of::<$type>(), fields: &[$(($field, &$of)),*] };)*
    };
}

// The numbers are those of fields in onnx.proto.
messages! {
    MODEL ModelProto: 7 GRAPH 20 TRAINING 25 FUNCTION;
    GRAPH GraphProto: 1 NODE 5 TENSOR 11 VALUE 12 VALUE 13 VALUE 15 SPARSE;
    NODE NodeProto: 5 ATTRIBUTE;
    ATTRIBUTE AttributeProto: 5 TENSOR 6 GRAPH 10 TENSOR 11 GRAPH 22 SPARSE 23 SPARSE;
    TENSOR TensorProto: ;
    VALUE ValueInfoProto: ;
    SPARSE SparseTensorProto: 1 TENSOR 2 TENSOR;
    FUNCTION FunctionProto: 7 NODE 11 ATTRIBUTE 12 VALUE;
    TRAINING TrainingInfoProto: 1 GRAPH 2 GRAPH;
}

/// About how many bytes the messages of a model take when they are decoded. Of what is no such message, the part before that counts.
pub fn of(bytes: &[u8]) -> usize {
    weigh(bytes, &MODEL, DEEPEST)
}

fn weigh(mut bytes: &[u8], message: &Message, deepest: usize) -> usize {
    let mut sum = message.size;
    while !bytes.is_empty() && deepest > 0 {
        let Ok((field, wire)) = decode_key(&mut bytes) else { break };
        if wire != WireType::LengthDelimited {
            if skip_field(wire, field, &mut bytes, DecodeContext::default()).is_err() {
                break;
            }
            continue;
        }
        let length = decode_varint(&mut bytes).ok().and_then(|length| usize::try_from(length).ok());
        let Some((content, rest)) = length.and_then(|length| bytes.split_at_checked(length)) else { break };
        let known = message.fields.iter().find(|(number, _)| *number == field);
        sum += known.map_or(SMALL, |(_, message)| weigh(content, message, deepest - 1));
        bytes = rest;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::int8::onnx::node::node;
    use prost::Message as _;

    fn model(attributes: usize) -> ModelProto {
        let nested = AttributeProto {
            t: Some(TensorProto { raw_data: Some(vec![0; 1 << 20].into()), ..Default::default() }),
            ..Default::default()
        };
        let attributes = [vec![AttributeProto::default(); attributes], vec![nested]].concat();
        let graph = GraphProto { node: vec![node("Relu", "", &["x"], &["y"], attributes)], ..Default::default() };
        ModelProto { graph: Some(graph), ..Default::default() }
    }

    #[test]
    fn what_is_small_in_a_file_and_large_in_memory_is_weighed_and_values_are_not() {
        let [few, many] = [10, 1010].map(|n| of(&model(n).encode_to_vec()));
        assert_eq!(many - few, 1000 * size_of::<AttributeProto>());
        assert!((10 * size_of::<AttributeProto>()..1 << 16).contains(&few), "{few}");
    }

    #[test]
    fn any_bytes_are_weighed() {
        let bytes = model(3).encode_to_vec();
        for length in 0..200 {
            of(&bytes[..length]);
        }
        assert_eq!(of(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), size_of::<ModelProto>());
        // Graphs in attributes of nodes of graphs, deeper than anything is decoded.
        let within = |inner: Vec<u8>, field: u8| {
            let mut outer = vec![field << 3 | 2];
            prost::encoding::encode_varint(inner.len() as u64, &mut outer);
            [outer, inner].concat()
        };
        let deep = (0..1000).fold(Vec::new(), |inner, _| [6, 5, 1].into_iter().fold(inner, within));
        assert!(of(&within(deep, 7)) < DEEPEST * size_of::<AttributeProto>());
    }
}
