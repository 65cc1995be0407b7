//! Every tensor of a model, wherever it is.

use super::proto::{GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto};
use crate::error::Result;

/// What is done with each tensor.
type Visitor<'a> = &'a mut dyn FnMut(&mut TensorProto) -> Result<()>;

/// Visits all tensors: initializers, attributes, sparse ones, and those of subgraphs, functions and training graphs. The decoder bounds
/// how deep graphs nest.
pub fn each_tensor(model: &mut ModelProto, visit: Visitor) -> Result<()> {
    model.graph.iter_mut().try_for_each(|graph| in_graph(graph, visit))?;
    for function in &mut model.functions {
        in_nodes(&mut function.node, visit)?;
    }
    for training in &mut model.training_info {
        training
            .initialization
            .iter_mut()
            .chain(&mut training.algorithm)
            .try_for_each(|graph| in_graph(graph, visit))?;
    }
    Ok(())
}

fn in_graph(graph: &mut GraphProto, visit: Visitor) -> Result<()> {
    graph.initializer.iter_mut().try_for_each(&mut *visit)?;
    graph.sparse_initializer.iter_mut().try_for_each(|sparse| in_sparse(sparse, visit))?;
    in_nodes(&mut graph.node, visit)
}

fn in_nodes(nodes: &mut [NodeProto], visit: Visitor) -> Result<()> {
    for attribute in nodes.iter_mut().flat_map(|node| &mut node.attribute) {
        attribute.t.iter_mut().chain(&mut attribute.tensors).try_for_each(&mut *visit)?;
        let sparse = attribute.sparse_tensor.iter_mut().chain(&mut attribute.sparse_tensors);
        sparse.into_iter().try_for_each(|sparse| in_sparse(sparse, visit))?;
        attribute.g.iter_mut().chain(&mut attribute.graphs).try_for_each(|graph| in_graph(graph, visit))?;
    }
    Ok(())
}

fn in_sparse(sparse: &mut SparseTensorProto, visit: Visitor) -> Result<()> {
    sparse.values.iter_mut().chain(&mut sparse.indices).try_for_each(visit)
}
