//! What became of each node that carries weights.

use super::recurrent::is_dynamic;
use crate::error::Error;
use crate::int8::onnx::Graph;
use crate::int8::onnx::proto::NodeProto;
use crate::int8::operators::{Counts, Kind};

/// A node that now runs in INT8.
#[derive(Debug, Clone)]
pub struct Done {
    /// Its name.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// What kind of node it is.
    pub kind: Kind,
    /// The name of its weight.
    pub weight: String,
    /// How many weights these are.
    pub elements: usize,
    /// The weights are in INT8, but it computes in floats.
    pub stored: bool,
}

impl Done {
    pub(super) fn new(node: &NodeProto, kind: Kind, weight: String, graph: &Graph) -> Self {
        let elements = graph.constant(&weight).map_or(0, |tensor| tensor.dims.iter().product::<i64>() as usize);
        let stored = kind == Kind::Recurrent && !is_dynamic(node);
        Self { node: node.label().into(), op: node.op_type().into(), kind, weight, elements, stored }
    }
}

/// A node that stays float.
#[derive(Debug, Clone)]
pub struct Left {
    /// Its name.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// Why.
    pub reason: &'static str,
}

/// What became of each node that carries weights, in topological order.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// What runs in INT8.
    pub done: Vec<Done>,
    /// What stays float.
    pub left: Vec<Left>,
    /// Nodes without weights, which stay as they are.
    pub others: Counts,
}

impl Report {
    pub(super) fn leave(&mut self, node: &NodeProto, reason: &'static str) {
        self.left.push(Left { node: node.label().into(), op: node.op_type().into(), reason });
    }

    /// What stays float by operator and reason: these with how many nodes, and the first of them.
    pub fn reasons(&self) -> Vec<(&str, &str, usize, &str)> {
        let mut found: Vec<(&str, &str, usize, &str)> = Vec::new();
        for Left { node, op, reason } in &self.left {
            match found.iter_mut().find(|(o, r, ..)| o == op && r == reason) {
                Some((.., count, _)) => *count += 1,
                None => found.push((op, reason, 1, node)),
            }
        }
        found
    }

    pub(super) fn nothing_done(&self) -> Error {
        let reasons = self.reasons().into_iter().map(|(op, reason, count, _)| format!("{count} {op}: {reason}"));
        let reasons: Vec<String> = reasons.collect();
        let error = match reasons.is_empty() {
            true => Error::new("nothing can be quantized: no node has weights that INT8 could hold"),
            false => Error::new(format!("nothing can be quantized: {}", reasons.join("; "))),
        };
        match self.left.iter().any(|left| left.op.starts_with("Conv")) {
            true => error
                .hint("convolutions take static quantization: llmq int8 static MODEL.onnx --calib DATA -o OUT.onnx"),
            false => error,
        }
    }
}
