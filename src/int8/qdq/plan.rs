//! Which nodes run in integers, and which values have to be quantized for that.
//!
//! The rules are those under which ONNX Runtime replaces a node between DequantizeLinear and QuantizeLinear by an integer
//! kernel:
//!
//! - `Conv` needs its output quantized, behind a `Relu` or `Clip` from zero that follows it and then costs nothing.
//! - `Gemm` and `MatMul` by a constant may give floats, which is more accurate and saves an operator.
//! - Sums, products, concatenations and pools are quantized only where all they read comes out of integers already: the
//!   residual stream of a transformer stays float.
//! - Operators that move numbers keep their codes: input and output have one scale.

use crate::int8::onnx::Graph;
use crate::int8::onnx::proto::tensor_proto::DataType;
use crate::int8::onnx::proto::{NodeProto, TensorProto};
use crate::int8::operators::{Counts, Kind, count, within};
use crate::int8::prepare::gemm::is_plain;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Operators with an integer kernel that has an output scale of its own.
const JOINS: [&str; 7] = ["Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool", "LeakyRelu", "Sigmoid"];

/// Operators that move numbers without changing them.
const MOVES: [&str; 6] = ["MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"];

/// Operators with weights that have an integer kernel.
const WEIGHTED: [&str; 3] = ["Conv", "MatMul", "Gemm"];

/// Operators that multiply and have none.
const NEVER: [&str; 5] = ["ConvTranspose", "LSTM", "GRU", "RNN", "Einsum"];

/// What a node in integers is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A convolution with constant weights.
    Conv,
    /// A matrix product with constant weights, whose output is float. `axis`: that of the output channels in its weights.
    Product {
        /// The axis of the weights along which each channel has a scale.
        axis: usize,
    },
    /// An operator of `JOINS`.
    Join,
    /// An operator of `MOVES`.
    Move,
}

impl Role {
    /// Whether it has weights.
    pub fn weighted(self) -> bool {
        matches!(self, Role::Conv | Role::Product { .. })
    }
}

/// A node that stays float though it looks as if it could run in integers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// How messages call the node.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// Why.
    pub why: &'static str,
}

/// How a value is quantized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Where it is made, by this node: everyone reads it quantized.
    Provenance(usize),
    /// For these nodes alone; others go on with the float value.
    Read(BTreeSet<usize>),
}

/// What becomes of a graph.
#[derive(Debug, Default)]
pub struct Plan {
    /// Nodes in integers.
    pub roles: BTreeMap<usize, Role>,
    /// Values to quantize.
    pub places: BTreeMap<String, Place>,
    /// Values that share the scale of another one.
    pub shares: HashMap<String, String>,
    /// Products and convolutions that stay float, and why.
    pub left: Vec<Left>,
    /// Other nodes that stay as they are.
    pub others: Counts,
}

impl Plan {
    /// Decides for each node; those that `excluded` names stay float.
    pub fn of(graph: &Graph, excluded: &dyn Fn(&NodeProto) -> bool) -> Plan {
        let mut plan = Plan::default();
        let nodes = graph.nodes();
        // Values that come out of integers.
        let mut integer = HashSet::new();
        for (at, node) in nodes.iter().enumerate() {
            plan.inside(node);
            let role = match weighted(graph, node) {
                Some(_) if excluded(node) => Err("excluded"),
                Some(found) => found,
                None if excluded(node) => continue,
                None if joins(graph, node, &integer) => Ok(Role::Join),
                None if moves(node, &integer) => Ok(Role::Move),
                None => continue,
            };
            match role {
                Ok(role) => {
                    plan.roles.insert(at, role);
                    if let Some(maker) = maker(graph, at, role) {
                        integer.insert(nodes[maker].output[0].clone());
                    }
                }
                Err(why) => {
                    let (label, op) = (node.label().to_owned(), node.op_type().to_owned());
                    plan.left.push(Left { node: label, op, why });
                }
            }
        }
        plan.drop_idle(graph);
        plan.place(graph);
        plan.count_others(graph);
        plan
    }

    /// What a node runs inside: calibration does not see its values.
    fn inside(&mut self, node: &NodeProto) {
        let why = match node.op_type() {
            "If" => "it is inside an If",
            "Loop" => "it is inside a Loop",
            _ => "it is inside a Scan",
        };
        for inside in node.subgraphs().flat_map(within) {
            if WEIGHTED.iter().chain(&NEVER).any(|op| inside.is(op)) {
                self.left.push(Left { node: inside.label().to_owned(), op: inside.op_type().to_owned(), why });
            }
        }
    }

    /// Moves that end in floats would only be slower for being quantized, one after the other from the end.
    fn drop_idle(&mut self, graph: &Graph) {
        let moves: Vec<usize> = self.roles.iter().filter(|(_, role)| **role == Role::Move).map(|(&at, _)| at).collect();
        for at in moves.into_iter().rev() {
            let output = &graph.nodes()[at].output[0];
            if !graph.consumers(output).iter().any(|reader| self.roles.contains_key(reader)) {
                self.roles.remove(&at);
            }
        }
    }

    fn place(&mut self, graph: &Graph) {
        let nodes = graph.nodes();
        for (&at, &role) in &self.roles {
            let Some(maker) = maker(graph, at, role) else { continue };
            let output = &nodes[maker].output[0];
            self.places.insert(output.clone(), Place::Provenance(maker));
            if role == Role::Move {
                let input = &nodes[at].input[0];
                let root = self.shares.get(input).unwrap_or(input).clone();
                self.shares.insert(output.clone(), root);
            }
        }
        for (&at, &role) in &self.roles {
            for input in data_inputs(&nodes[at], role) {
                match self.places.entry(input.clone()).or_insert_with(|| Place::Read(BTreeSet::new())) {
                    Place::Provenance(_) => {}
                    Place::Read(readers) => {
                        readers.insert(at);
                    }
                }
            }
        }
    }

    fn count_others(&mut self, graph: &Graph) {
        // An activation is done by the node in front of it, and what becomes of embeddings is decided elsewhere.
        let absorbed: HashSet<usize> = self.roles.iter().filter_map(|(&at, &role)| maker(graph, at, role)).collect();
        for (at, node) in graph.nodes().iter().enumerate() {
            let known = self.roles.contains_key(&at) || absorbed.contains(&at) || weighted(graph, node).is_some();
            if !known && Kind::of(node, graph) != Some(Kind::Embedding) {
                count(&mut self.others, node);
            }
        }
    }

    /// The values whose ranges have to be known.
    pub fn observed(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str).filter(|value| !self.shares.contains_key(*value))
    }
}

/// The node behind which the output of a node in integers is quantized; none for products, whose output is float.
fn maker(graph: &Graph, at: usize, role: Role) -> Option<usize> {
    match role {
        Role::Product { .. } => None,
        Role::Move => Some(at),
        Role::Conv | Role::Join => Some(activation(graph, at).unwrap_or(at)),
    }
}

/// The inputs of a node that are activations.
pub fn data_inputs(node: &NodeProto, role: Role) -> &[String] {
    match role {
        Role::Join => &node.input,
        Role::Conv | Role::Product { .. } | Role::Move => &node.input[..1],
    }
}

/// The constant behind a value, if it is in single precision.
fn float_constant<'a>(graph: &'a Graph, value: Option<&str>) -> Option<&'a TensorProto> {
    graph.constant(value?).filter(|tensor| tensor.data_type() == DataType::Float as i32)
}

/// The role of a node with weights, or why it has none; `None` for other operators.
fn weighted(graph: &Graph, node: &NodeProto) -> Option<Result<Role, &'static str>> {
    let product = node.is("MatMul") || node.is("Gemm");
    let conv = node.is("Conv");
    if !(product || conv) {
        return NEVER.iter().any(|op| node.is(op)).then_some(Err("there is no integer kernel for it"));
    }
    if !gives(node) {
        return Some(Err("it has no output"));
    }
    let Some(weights) = node.input_at(1).and_then(|name| graph.constant(name)) else {
        if node.input_at(1).is_some_and(|name| graph.is_input(name)) {
            return Some(Err("its weights are an input of the graph, which a caller may replace"));
        }
        return Some(Err(if product { "both factors are computed" } else { "its weights are computed" }));
    };
    if node.input_at(0).is_none_or(|input| graph.constant(input).is_some()) {
        return Some(Err("its input is a constant"));
    }
    if weights.data_type() != DataType::Float as i32 {
        return Some(Err("its weights are not in single precision"));
    }
    if weights.dims.iter().any(|&n| n <= 0) {
        return Some(Err("it has no weights"));
    }
    let vector = |tensor: &TensorProto, n: i64| tensor.dims == [n];
    let bias = |n: i64| match node.input_at(2) {
        None => true,
        name => float_constant(graph, name).is_some_and(|tensor| vector(tensor, n)),
    };
    Some(if conv {
        match weights.dims[..] {
            [_, _, _] | [_, _, _, _] if bias(weights.dims[0]) => Ok(Role::Conv),
            [_, _, _] | [_, _, _, _] => Err("its bias is no constant vector"),
            _ => Err("the integer kernels take one or two dimensions"),
        }
    } else if weights.dims.len() != 2 {
        Err("its weights are no matrix")
    } else if node.is("MatMul") {
        Ok(Role::Product { axis: 1 })
    } else {
        match is_plain(graph, node) {
            false => Err("it is scaled or transposed, or its bias is no constant vector"),
            true => Ok(Role::Product { axis: usize::from(node.int_or("transB", 0) == 0) }),
        }
    })
}

/// Whether a node has a first output.
fn gives(node: &NodeProto) -> bool {
    node.output.first().is_some_and(|output| !output.is_empty())
}

/// Whether all that an operator of `JOINS` reads comes out of integers.
fn joins(graph: &Graph, node: &NodeProto, integer: &HashSet<String>) -> bool {
    JOINS.iter().any(|op| node.is(op))
        && !node.input.is_empty()
        && node.output.len() == 1
        && gives(node)
        && node.input.iter().all(|input| integer.contains(input) && graph.constant(input).is_none())
}

fn moves(node: &NodeProto, integer: &HashSet<String>) -> bool {
    MOVES.iter().any(|op| node.is(op))
        && gives(node)
        && node.output.iter().filter(|output| !output.is_empty()).count() == 1
        && node.input_at(0).is_some_and(|input| integer.contains(input))
}

/// The `Relu`, or `Clip` from zero, that alone reads what a node makes: where zero is the smallest code, quantizing does the
/// same.
fn activation(graph: &Graph, at: usize) -> Option<usize> {
    let output = graph.nodes()[at].output.first()?;
    let [next] = graph.consumers(output) else { return None };
    let node = &graph.nodes()[*next];
    if graph.is_output(output) || node.input_at(0) != Some(output) || !gives(node) {
        return None;
    }
    let from_zero = || {
        let least = node.input_at(1).and_then(|name| float_constant(graph, Some(name)))?;
        let least = crate::int8::onnx::Tensor::<f32>::read(least).ok()?;
        // The upper end is a constant, too, or there is none.
        let known = node.input_at(2).is_none_or(|name| float_constant(graph, Some(name)).is_some());
        (least.data == [0.0] && known).then_some(())
    };
    (node.is("Relu") || (node.is("Clip") && from_zero().is_some())).then_some(*next)
}
