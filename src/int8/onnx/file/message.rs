//! A model's message, written tensor by tensor: the whole is never in memory a second time.

use super::mapped::release;
use crate::error::Result;
use crate::int8::onnx::proto::{GraphProto, ModelProto};
use crate::writer::atomic::AtomicFile;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use std::mem::take;

/// The numbers of fields, by which a message is in order.
const GRAPH: u32 = 7;
const INITIALIZER: u32 = 5;

/// Writes the bytes that `model.encode_to_vec()` gives.
///
/// # Errors
/// The system refused.
pub fn write(mut model: ModelProto, file: &mut AtomicFile) -> Result<()> {
    let Some(mut graph) = model.graph.take() else { return file.write(&model.encode_to_vec()) };
    let bytes = graph.encoded_len();
    let before_graph = ModelProto {
        ir_version: model.ir_version.take(),
        producer_name: model.producer_name.take(),
        producer_version: model.producer_version.take(),
        domain: model.domain.take(),
        model_version: model.model_version.take(),
        doc_string: model.doc_string.take(),
        ..Default::default()
    };
    let initializers = take(&mut graph.initializer);
    let before_initializers = GraphProto { node: take(&mut graph.node), name: graph.name.take(), ..Default::default() };
    file.write(&before_graph.encode_to_vec())?;
    file.write(&prefix(GRAPH, bytes))?;
    file.write(&before_initializers.encode_to_vec())?;
    for tensor in initializers {
        file.write(&prefix(INITIALIZER, tensor.encoded_len()))?;
        file.write(&tensor.encode_to_vec())?;
        tensor.raw_data.iter().for_each(|raw| release(raw));
    }
    file.write(&graph.encode_to_vec())?;
    file.write(&model.encode_to_vec())
}

/// What stands in front of a message that is a field of another.
fn prefix(field: u32, bytes: usize) -> Vec<u8> {
    let mut prefix = Vec::new();
    encode_key(field, WireType::LengthDelimited, &mut prefix);
    encode_varint(bytes as u64, &mut prefix);
    prefix
}
