//! Places where each channel of an activation can be divided by a factor of its own, because what makes it has constants that
//! take the division in, and what reads it has weights that take the factor in: the function stays what it is.

use crate::int8::onnx::Graph;
use crate::int8::onnx::proto::{NodeProto, TensorProto, tensor_proto::DataType};
use crate::int8::qdq::plan::{Plan, Role};

/// A constant with a number, or numbers, for each channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// The node that reads it.
    pub node: usize,
    /// As which input.
    pub input: usize,
}

/// Which channel each number of a constant belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Axis {
    /// Numbers that follow each other for one channel.
    inner: usize,
    /// Channels along the axis.
    count: usize,
    /// Numbers after which the next group of channels begins; there may be one.
    group: usize,
}

impl Axis {
    fn of(dims: &[i64], axis: usize) -> Axis {
        let inner = dims[axis + 1..].iter().product::<i64>() as usize;
        Axis { inner, count: dims[axis] as usize, group: usize::MAX }
    }

    /// How many channels a group has along the axis.
    pub fn count(self) -> usize {
        self.count
    }

    /// The channel of the number at a place.
    pub fn channel(self, at: usize) -> usize {
        at / self.group * self.count + at / self.inner % self.count
    }
}

/// A weight that reads the channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader {
    /// Where its constant is.
    pub place: Place,
    /// The axis of its inputs.
    pub inputs: Axis,
    /// The axis of its outputs.
    pub outputs: Axis,
}

/// An activation whose channels can be scaled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Its name.
    pub value: String,
    /// How many channels it has.
    pub channels: usize,
    /// Whether these are its second axis; else its last.
    pub second: bool,
    /// What has to be divided.
    pub makers: Vec<(Place, Axis)>,
    /// What has to be multiplied.
    pub readers: Vec<Reader>,
}

/// All sites of a graph, in its order.
pub fn sites(graph: &Graph, plan: &Plan) -> Vec<Site> {
    let values = graph.nodes().iter().flat_map(|node| &node.output).filter(|value| plan.places.contains_key(*value));
    values.filter_map(|value| site(graph, plan, value)).collect()
}

fn site(graph: &Graph, plan: &Plan, value: &str) -> Option<Site> {
    if graph.is_output(value) || graph.consumers(value).is_empty() {
        return None;
    }
    let mut readers = Vec::new();
    let mut shape = None;
    for &at in graph.consumers(value) {
        let (node, &role) = (&graph.nodes()[at], plan.roles.get(&at)?);
        let alone = node.input_at(0) == Some(value) && node.input[1..].iter().all(|input| input != value);
        if !role.weighted() || !alone || node.subgraphs().next().is_some() {
            return None;
        }
        let dims = &constant(graph, node, 1)?.dims;
        let (outputs, inputs, own) = match role {
            Role::Product { axis } => {
                (Axis::of(dims, axis), Axis::of(dims, 1 - axis), (dims[1 - axis] as usize, false))
            }
            _ => {
                let groups = usize::try_from(node.int_or("group", 1)).ok().filter(|&n| n > 0)?;
                let inputs = Axis::of(dims, 1);
                let group = inputs.inner * inputs.count * (dims[0] as usize / groups).max(1);
                (Axis::of(dims, 0), Axis { group, ..inputs }, (groups * inputs.count, true))
            }
        };
        if *shape.get_or_insert(own) != own {
            return None;
        }
        readers.push(Reader { place: Place { node: at, input: 1 }, inputs, outputs });
    }
    let (channels, second) = shape?;
    let makers = makers(graph, value, channels, second)?;
    Some(Site { value: value.to_owned(), channels, second, makers, readers })
}

/// A constant input in single precision.
fn constant<'a>(graph: &'a Graph, node: &NodeProto, input: usize) -> Option<&'a TensorProto> {
    graph.constant(node.input_at(input)?).filter(|tensor| tensor.data_type() == DataType::Float as i32)
}

/// The constants that make a value, through what neither mixes channels nor minds a positive factor.
fn makers(graph: &Graph, value: &str, channels: usize, second: bool) -> Option<Vec<(Place, Axis)>> {
    let n = channels as i64;
    let mut makers = Vec::new();
    let mut value = value.to_owned();
    loop {
        let at = graph.producer(&value)?;
        let node = &graph.nodes()[at];
        let is = |ops: &[&str]| ops.iter().any(|op| node.is(op));
        // A constant whose axis counts the channels; one that is left out needs no factor.
        let mut take = |input: usize, axis: usize, dimensions: usize| -> Option<()> {
            if node.input_at(input).is_some() {
                let dims = &constant(graph, node, input)?.dims;
                if dims.len() != dimensions || dims[axis] != n {
                    return None;
                }
                makers.push((Place { node: at, input }, Axis::of(dims, axis)));
            }
            Some(())
        };
        let homogeneous = is(&["Relu", "LeakyRelu", "Identity"])
            || (second && node.output.len() == 1 && is(&["MaxPool", "AveragePool", "GlobalAveragePool"]));
        let next = if homogeneous {
            node.input_at(0)?.to_owned()
        } else if is(&["Add", "Mul"]) && !second {
            let place = (0..2).find(|&input| constant(graph, node, input).is_some())?;
            take(place, 0, 1)?;
            if node.is("Mul") {
                return Some(makers);
            }
            node.input_at(1 - place)?.to_owned()
        } else {
            match node.op_type() {
                "LayerNormalization" if !second && node.is("LayerNormalization") && node.int_or("axis", -1) == -1 => {
                    take(1, 0, 1)?;
                    take(2, 0, 1)?;
                }
                "MatMul" if !second && node.is("MatMul") => take(1, 1, 2)?,
                "Gemm" if !second && node.is("Gemm") => {
                    take(1, usize::from(node.int_or("transB", 0) == 0), 2)?;
                    take(2, 0, 1)?;
                }
                "Conv" if second && node.is("Conv") => {
                    let dimensions = constant(graph, node, 1)?.dims.len();
                    take(1, 0, dimensions)?;
                    take(2, 0, 1)?;
                }
                _ => return None,
            }
            return Some(makers);
        };
        // Nobody else may see the channels scaled.
        if graph.consumers(&next) != [at] || graph.is_output(&next) {
            return None;
        }
        value = next;
    }
}
