//! Which node needs which, and an order in which they can run.

use crate::error::{Error, Result};
use crate::int8::onnx::proto::{GraphProto, NodeProto};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

/// The values that a node reads, those that its subgraphs read from outside included. Names that a subgraph makes itself are among
/// them too; no value outside has such a name.
pub fn reads(node: &NodeProto) -> Box<dyn Iterator<Item = &str> + '_> {
    let own = node.input.iter().map(String::as_str).filter(|name| !name.is_empty());
    Box::new(own.chain(node.subgraphs().flat_map(within)))
}

fn within(graph: &GraphProto) -> Vec<&str> {
    let outputs = graph.output.iter().map(|output| output.name());
    graph.node.iter().flat_map(reads).chain(outputs).collect()
}

/// All names of values and nodes of a graph, inside subgraphs too.
pub fn names(graph: &GraphProto) -> HashSet<String> {
    fn collect(graph: &GraphProto, names: &mut HashSet<String>) {
        let declared = graph.input.iter().chain(&graph.output).chain(&graph.value_info).map(|info| info.name());
        let initializers = graph.initializer.iter().map(|tensor| tensor.name());
        names.extend(declared.chain(initializers).map(str::to_owned));
        for node in &graph.node {
            names.extend(node.input.iter().chain(&node.output).cloned().chain(node.name.clone()));
            node.subgraphs().for_each(|graph| collect(graph, names));
        }
    }
    let mut names = HashSet::new();
    collect(graph, &mut names);
    names
}

/// Brings the nodes into an order in which each comes behind those that it needs, and that is otherwise as it was. `inside`: a node runs
/// this graph, and values may come from around it.
///
/// # Errors
/// Two nodes make the same value, a node reads a value that nothing makes, or nodes wait for each other.
pub fn sort(graph: &mut GraphProto, inside: bool) -> Result<()> {
    let mut made: HashMap<&str, usize> = HashMap::new();
    let sparse = graph.sparse_initializer.iter().filter_map(|sparse| sparse.values.as_ref());
    let initializers = graph.initializer.iter().chain(sparse).map(|tensor| tensor.name());
    let given: HashSet<&str> = graph.input.iter().map(|input| input.name()).chain(initializers).collect();
    for (at, node) in graph.node.iter().enumerate() {
        for output in node.output.iter().filter(|name| !name.is_empty()) {
            if given.contains(output.as_str()) || made.insert(output, at).is_some() {
                let label = node.label();
                return Err(Error::new(format!("value '{output}' is made twice, the second time by node '{label}'")));
            }
        }
    }
    let mut waits_for = vec![0usize; graph.node.len()];
    let mut wanted_by: Vec<Vec<usize>> = vec![Vec::new(); graph.node.len()];
    for (at, node) in graph.node.iter().enumerate() {
        let own: HashSet<&str> = node.input.iter().map(String::as_str).collect();
        for input in reads(node) {
            match made.get(input) {
                Some(&maker) => {
                    waits_for[at] += 1;
                    wanted_by[maker].push(at);
                }
                // Inside a subgraph it may be one of its own.
                None if inside || given.contains(input) || !own.contains(input) => {}
                None => {
                    let (op, label) = (node.op_type(), node.label());
                    return Err(Error::new(format!("{op} node '{label}' reads '{input}', which nothing makes")));
                }
            }
        }
    }
    for output in &graph.output {
        let name = output.name();
        if !inside && !made.contains_key(name) && !given.contains(name) {
            return Err(Error::new(format!("nothing makes the output '{name}'")));
        }
    }
    let mut ready: BinaryHeap<_> = (0..waits_for.len()).filter(|&at| waits_for[at] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(waits_for.len());
    while let Some(Reverse(at)) = ready.pop() {
        order.push(at);
        for &next in &wanted_by[at] {
            waits_for[next] -= 1;
            if waits_for[next] == 0 {
                ready.push(Reverse(next));
            }
        }
    }
    if let Some(at) = waits_for.iter().position(|&n| n > 0) {
        let label = graph.node[at].label();
        return Err(Error::new(format!("the nodes make a circle: '{label}' waits for its own result")));
    }
    if !order.is_sorted() {
        let mut nodes: Vec<_> = std::mem::take(&mut graph.node).into_iter().map(Some).collect();
        graph.node = order.into_iter().filter_map(|at| nodes[at].take()).collect();
    }
    Ok(())
}
