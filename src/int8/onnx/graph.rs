//! A graph that can be read both ways, and edited.

pub mod order;

use super::proto::{GraphProto, ModelProto, NodeProto, TensorProto, tensor_proto::DataType};
use super::shape::{self, Dim};
use crate::error::{Error, Result};
use prost::bytes::Bytes;
use std::collections::{BTreeMap, HashMap, HashSet};

/// How many nodes that do nothing are looked through, one behind the other: exporters write one or two. A hostile file could have
/// millions, to be walked from each of them.
const MOST_IDENTITIES: usize = 64;

/// Operators that only move or convert the numbers of their first input: a weight on its way to the node that multiplies with it.
pub const VIEWS: [&str; 7] = ["Identity", "Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze", "Flatten"];

/// The main graph of a model, with who makes and who reads each value. Nodes keep their numbers while they are edited: edits are
/// collected and take effect in [`Graph::finish`].
#[derive(Debug)]
pub struct Graph {
    /// Nodes are in topological order.
    proto: GraphProto,
    producers: HashMap<String, usize>,
    consumers: HashMap<String, Vec<usize>>,
    /// The initializers that no input can replace, by their place in the list.
    initializers: HashMap<String, usize>,
    /// Values that leave the graph.
    outputs: HashSet<String>,
    shapes: HashMap<String, Vec<Dim>>,
    kinds: HashMap<String, DataType>,
    /// All names of values and nodes, so that new ones differ.
    names: HashSet<String>,
    /// Per node, what comes in front of it.
    before: BTreeMap<usize, Vec<NodeProto>>,
    /// Per node, what takes its place.
    instead: BTreeMap<usize, Vec<NodeProto>>,
    /// For a graph inside a node: the constants around it, and what is to be added to them.
    around: Option<(HashMap<String, TensorProto>, Vec<String>)>,
}

impl Graph {
    /// Takes the main graph out of a model.
    ///
    /// # Errors
    /// Two nodes make the same value, a node reads a value that nothing makes, or nodes wait for each other.
    pub fn take(model: &mut ModelProto) -> Result<Self> {
        let proto = model.graph.take().ok_or_else(|| Error::new("the model holds no graph"))?;
        let names = order::names(&proto);
        Self::of(proto, names, model.ir_version(), None)
    }

    /// A graph that a node of this one runs inside, to be given back with [`Graph::finish_inside`]. What is added to it becomes an
    /// initializer of this one: branches share their constants.
    ///
    /// # Errors
    /// As for [`Graph::take`].
    pub fn inside(&self, proto: GraphProto) -> Result<Self> {
        let named = self.initializers.iter().map(|(name, &at)| (name.clone(), self.proto.initializer[at].clone()));
        let nodes = self.proto.node.iter().filter(|node| node.is("Constant"));
        let nodes = nodes.filter_map(|node| Some((node.output.first()?.clone(), node.attribute("value")?.t.clone()?)));
        let further = self.around.iter().flat_map(|(constants, _)| constants.clone());
        let constants = further.chain(named).chain(nodes).collect();
        // Graphs inside others cannot be called, so that none of their initializers is replaced.
        Self::of(proto, self.names.clone(), 0, Some((constants, Vec::new())))
    }

    /// Carries out the edits of a graph that [`Graph::inside`] gave.
    ///
    /// # Errors
    /// The edits left a value without a producer, or with two.
    pub fn finish_inside(&mut self, mut inside: Self) -> Result<GraphProto> {
        self.names = std::mem::take(&mut inside.names);
        let (mut constants, added) = inside.around.take().unwrap_or_default();
        for name in added {
            let Some(tensor) = constants.remove(&name) else { continue };
            match &mut self.around {
                Some((around, added)) => {
                    around.insert(name.clone(), tensor);
                    added.push(name);
                }
                None => {
                    self.initializers.insert(name, self.proto.initializer.len());
                    self.proto.initializer.push(tensor);
                }
            }
        }
        inside.edited(true)
    }

    /// Edits the main graph of a model and all graphs inside it, those inside first.
    ///
    /// # Errors
    /// As for [`Graph::take`] and [`Graph::finish`], or an edit failed.
    pub fn edit_all(model: &mut ModelProto, edit: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<()> {
        let mut graph = Self::take(model)?;
        graph.edit_inside(edit)?;
        graph.finish(model)
    }

    fn edit_inside(&mut self, edit: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<()> {
        for at in 0..self.nodes().len() {
            if self.nodes()[at].subgraphs().next().is_some() {
                let mut node = self.nodes()[at].clone();
                for graph in node.subgraphs_mut() {
                    let mut inside = self.inside(std::mem::take(graph))?;
                    inside.edit_inside(edit)?;
                    *graph = self.finish_inside(inside)?;
                }
                self.replace(at, vec![node]);
            }
        }
        edit(self)
    }

    fn of(
        mut proto: GraphProto,
        names: HashSet<String>,
        version: i64,
        around: Option<(HashMap<String, TensorProto>, Vec<String>)>,
    ) -> Result<Self> {
        order::sort(&mut proto, around.is_some())?;
        let (mut producers, mut consumers) = (HashMap::new(), HashMap::<String, Vec<usize>>::new());
        for (at, node) in proto.node.iter().enumerate() {
            for output in node.output.iter().filter(|name| !name.is_empty()) {
                producers.insert(output.clone(), at);
            }
            for input in order::reads(node) {
                let readers = consumers.entry(input.into()).or_default();
                if readers.last() != Some(&at) {
                    readers.push(at);
                }
            }
        }
        // Old models list all initializers as inputs as well; in newer ones that says that the caller may replace it.
        let replaceable: HashSet<&str> = match version {
            ..4 => HashSet::new(),
            _ => proto.input.iter().map(|input| input.name()).collect(),
        };
        let fixed = proto.initializer.iter().enumerate().filter(|(_, tensor)| !replaceable.contains(tensor.name()));
        let initializers = fixed.map(|(at, tensor)| (tensor.name().to_owned(), at)).collect();
        let (mut shapes, mut kinds) = (HashMap::new(), HashMap::new());
        for info in proto.input.iter().chain(&proto.output).chain(&proto.value_info) {
            let (kind, dims) = shape::of(info);
            kind.map(|kind| kinds.insert(info.name().to_owned(), kind));
            dims.map(|dims| shapes.insert(info.name().to_owned(), dims));
        }
        let outputs = proto.output.iter().map(|output| output.name().to_owned()).collect();
        let (before, instead) = Default::default();
        Ok(Self { proto, producers, consumers, initializers, outputs, shapes, kinds, names, before, instead, around })
    }

    /// The nodes, in topological order.
    pub fn nodes(&self) -> &[NodeProto] {
        &self.proto.node
    }

    /// The whole graph as it was, edits not included.
    pub fn proto(&self) -> &GraphProto {
        &self.proto
    }

    /// The number of the node that makes a value; none for inputs and initializers.
    pub fn producer(&self, value: &str) -> Option<usize> {
        self.producers.get(value).copied()
    }

    /// The numbers of the nodes that read a value, in their subgraphs too, in order.
    pub fn consumers(&self, value: &str) -> &[usize] {
        self.consumers.get(value).map_or(&[], Vec::as_slice)
    }

    /// The `Add` that alone reads a value, and at which of its inputs the other summand is.
    pub fn sum_behind(&self, value: &str) -> Option<(usize, usize)> {
        let [reader] = *self.consumers(value) else { return None };
        let add = &self.nodes()[reader];
        let other = add.input.iter().position(|input| input != value)?;
        (add.is("Add") && !self.is_output(value)).then_some((reader, other))
    }

    /// Whether a value leaves the graph.
    pub fn is_output(&self, value: &str) -> bool {
        self.outputs.contains(value)
    }

    /// Whether a value is an input of the graph, also one that an initializer gives a default.
    pub fn is_input(&self, value: &str) -> bool {
        self.proto.input.iter().any(|input| input.name() == value)
    }

    /// The inputs that a caller has to give: those without an initializer.
    pub fn inputs(&self) -> impl Iterator<Item = &super::proto::ValueInfoProto> {
        let given: HashSet<&str> = self.proto.initializer.iter().map(|tensor| tensor.name()).collect();
        self.proto.input.iter().filter(move |input| !given.contains(input.name()))
    }

    /// The tensor behind a value that never changes: an initializer that no input can replace, or what a `Constant` node gives, also
    /// through up to `MOST_IDENTITIES` of `Identity`.
    pub fn constant(&self, value: &str) -> Option<&TensorProto> {
        self.constant_behind(value, MOST_IDENTITIES)
    }

    fn constant_behind(&self, value: &str, identities: usize) -> Option<&TensorProto> {
        if let Some(&at) = self.initializers.get(value) {
            return Some(&self.proto.initializer[at]);
        }
        let Some(at) = self.producer(value) else {
            let (around, _) = self.around.as_ref()?;
            return around.get(value).filter(|_| !self.is_input(value));
        };
        let node = &self.proto.node[at];
        match node.op_type() {
            "Constant" if node.is("Constant") => node.attribute("value")?.t.as_ref(),
            "Identity" if node.is("Identity") => self.constant_behind(node.input_at(0)?, identities.checked_sub(1)?),
            _ => None,
        }
    }

    /// The shape of a value, if the graph tells.
    pub fn shape(&self, value: &str) -> Option<Vec<Dim>> {
        if let Some(tensor) = self.constant(value) {
            return Some(tensor.dims.iter().map(|&n| Dim::Fixed(n.max(0) as usize)).collect());
        }
        self.shapes.get(value).cloned()
    }

    /// The element type of a value, if the graph tells.
    pub fn kind(&self, value: &str) -> Option<DataType> {
        if let Some(tensor) = self.constant(value) {
            return super::tensor::type_of(tensor);
        }
        self.kinds.get(value).copied()
    }

    /// A name like `base` that nothing has yet; from now on it is taken.
    pub fn fresh(&mut self, base: &str) -> String {
        let numbered = (1..).map(|n| format!("{base}_{n}"));
        let mut candidates = std::iter::once(base.to_owned()).chain(numbered);
        let name = candidates.find(|name| !name.is_empty() && !self.names.contains(name));
        let name = name.expect("there are infinitely many");
        self.names.insert(name.clone());
        name
    }

    /// Adds an initializer under a name like `base`, and gives that name.
    pub fn add(&mut self, base: &str, tensor: impl FnOnce(&str) -> TensorProto) -> String {
        let name = self.fresh(base);
        if let Some((constants, added)) = &mut self.around {
            constants.insert(name.clone(), tensor(&name));
            added.push(name.clone());
        } else {
            self.initializers.insert(name.clone(), self.proto.initializer.len());
            self.proto.initializer.push(tensor(&name));
        }
        name
    }

    /// Gives an initializer its values.
    pub fn set_values(&mut self, name: &str, raw: Bytes) {
        let around = self.around.as_mut().and_then(|(constants, _)| constants.get_mut(name));
        let own = self.initializers.get(name).map(|&at| &mut self.proto.initializer[at]);
        if let Some(tensor) = own.or(around) {
            tensor.raw_data = Some(raw);
        }
    }

    /// Puts nodes right in front of another, behind those that were put there before.
    pub fn insert_before(&mut self, node: usize, nodes: impl IntoIterator<Item = NodeProto>) {
        self.before.entry(node).or_default().extend(nodes);
    }

    /// Puts nodes in the place of another; none removes it. They make the values that it made, under the same names.
    pub fn replace(&mut self, node: usize, with: Vec<NodeProto>) {
        self.instead.insert(node, with);
    }

    /// Carries out the edits and puts the graph back. Constants and initializers that nothing reads any more go, and with the latter the
    /// inputs of the same name.
    ///
    /// # Errors
    /// The edits left a value without a producer, or with two.
    pub fn finish(self, model: &mut ModelProto) -> Result<()> {
        model.graph = Some(self.edited(false)?);
        Ok(())
    }

    fn edited(self, inside: bool) -> Result<GraphProto> {
        let Self { mut proto, mut before, mut instead, .. } = self;
        let old = std::mem::take(&mut proto.node);
        let unread: HashSet<String> = unread(&proto, &old);
        for (at, node) in old.into_iter().enumerate() {
            proto.node.extend(before.remove(&at).unwrap_or_default());
            match instead.remove(&at) {
                Some(nodes) => proto.node.extend(nodes),
                None => proto.node.push(node),
            }
        }
        prune(&mut proto, &unread);
        order::sort(&mut proto, inside)?;
        Ok(proto)
    }
}

/// Initializers that nothing reads.
fn unread(proto: &GraphProto, nodes: &[NodeProto]) -> HashSet<String> {
    let mut read: HashSet<&str> = nodes.iter().flat_map(order::reads).collect();
    read.extend(proto.output.iter().map(|output| output.name()));
    let names = proto.initializer.iter().map(|tensor| tensor.name());
    names.filter(|name| !read.contains(name)).map(str::to_owned).collect()
}

/// Takes out what the edits left unread; `was` is what had been unread before, which stays.
fn prune(proto: &mut GraphProto, was: &HashSet<String>) {
    let mut read: HashSet<String> = proto.output.iter().map(|output| output.name().to_owned()).collect();
    // From the end, so that a chain of constants goes as a whole.
    let mut kept = Vec::with_capacity(proto.node.len());
    for node in std::mem::take(&mut proto.node).into_iter().rev() {
        let constant = node.is("Constant") || VIEWS.iter().any(|op| node.is(op));
        if !constant || node.output.iter().any(|output| read.contains(output)) {
            read.extend(order::reads(&node).map(str::to_owned));
            kept.push(node);
        }
    }
    kept.reverse();
    proto.node = kept;
    let gone = |name: &str| !read.contains(name) && !was.contains(name);
    let initializers: HashSet<String> = proto.initializer.iter().map(|tensor| tensor.name().to_owned()).collect();
    proto.initializer.retain(|tensor| !gone(tensor.name()));
    proto.input.retain(|input| !(initializers.contains(input.name()) && gone(input.name())));
    let left: HashSet<&str> = proto.node.iter().flat_map(|node| &node.output).map(String::as_str).collect();
    let inputs: HashSet<&str> = proto.initializer.iter().map(|tensor| tensor.name()).collect();
    proto.value_info.retain(|info| left.contains(info.name()) || inputs.contains(info.name()));
}

#[cfg(test)]
mod tests;
