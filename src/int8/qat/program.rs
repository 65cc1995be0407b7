//! The part of a graph that training goes through: from the first node in integers to the outputs. What comes before, and what
//! depends on shapes alone, is constant for each sample, and the engine computes it once.

use super::operand::Operand;
use super::ops;
use super::parameters::Leaves;
use crate::error::{Error, Result};
use crate::int8::onnx::Graph;
use crate::int8::onnx::proto::NodeProto;
use crate::int8::qdq::plan::{Place, Plan, Role, data_inputs};
use candle_core::Tensor;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The values of a run by name.
type Values<'a> = HashMap<&'a str, Operand>;

/// A node to run.
#[derive(Debug)]
pub struct Step {
    /// Its number in the graph.
    pub at: usize,
    /// The node.
    pub node: NodeProto,
    /// What it is in integers.
    pub role: Option<Role>,
}

/// What to run, in order.
#[derive(Debug)]
pub struct Program {
    /// The nodes.
    pub steps: Vec<Step>,
    /// Values that the engine has to compute for each sample.
    pub boundary: Vec<String>,
    /// The graph's outputs that training can change, with their place among all outputs.
    pub outputs: Vec<(usize, String)>,
    constants: HashMap<String, Operand>,
    places: BTreeMap<String, Place>,
    shares: HashMap<String, String>,
}

/// Whether activations are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// As in the float model.
    Float,
    /// As in the quantized one.
    Integers,
}

impl Program {
    /// Finds what to run.
    ///
    /// # Errors
    /// Training cannot go through an operator, or no output depends on what would be trained.
    pub fn of(graph: &Graph, plan: &Plan) -> Result<Program> {
        let live = live(graph, plan);
        let outputs: Vec<(usize, String)> = graph
            .proto()
            .output
            .iter()
            .enumerate()
            .map(|(at, output)| (at, output.name().to_owned()))
            .filter(|(_, name)| graph.producer(name).is_some_and(|maker| live.contains(&maker)))
            .collect();
        if outputs.is_empty() {
            return Err(Error::new(
                "no output of the graph depends on a quantized layer by floats alone: there is nothing to train for",
            ));
        }
        let needed = needed(graph, &live, &outputs);
        let steps: Vec<Step> = needed
            .iter()
            .map(|&at| Step { at, node: graph.nodes()[at].clone(), role: plan.roles.get(&at).copied() })
            .collect();
        refuse_unknown(&steps)?;
        let (mut boundary, mut constants) = (Vec::new(), HashMap::new());
        for name in steps.iter().flat_map(|step| &step.node.input).filter(|name| !name.is_empty()) {
            if constants.contains_key(name) || boundary.contains(name) {
                continue;
            }
            let made = graph.producer(name).is_some_and(|maker| live.contains(&maker));
            match graph.constant(name).map(Operand::constant).transpose()?.flatten() {
                Some(constant) => drop(constants.insert(name.clone(), constant)),
                None if !made => boundary.push(name.clone()),
                None => {}
            }
        }
        let (places, shares) = (plan.places.clone(), plan.shares.clone());
        Ok(Program { steps, boundary, outputs, constants, places, shares })
    }

    /// Runs a sample: `given` are the values of [`Self::boundary`]. Gives [`Self::outputs`].
    ///
    /// # Errors
    /// An operator's inputs do not fit.
    pub fn run(&self, given: &[Operand], leaves: &Leaves, precision: Precision) -> Result<Vec<Tensor>> {
        let mut values: Values = self.boundary.iter().map(String::as_str).zip(given.iter().cloned()).collect();
        let mut rounded: HashMap<&str, Tensor> = HashMap::new();
        for step in &self.steps {
            let inputs = step.node.input.iter().enumerate();
            let inputs = inputs.map(|(at, name)| self.input(step, at, name, &values, &mut rounded, leaves, precision));
            let outputs = ops::apply(&step.node, inputs.collect::<Result<_>>()?)?;
            for (name, mut output) in step.node.output.iter().zip(outputs) {
                let made =
                    self.places.get(name) == Some(&Place::Provenance(step.at)) && !self.shares.contains_key(name);
                if made && precision == Precision::Integers {
                    output = leaves.rounded(name, &output)?;
                }
                values.insert(name, Operand::Float(output));
            }
        }
        self.outputs
            .iter()
            .map(|(_, name)| match values.get(name.as_str()) {
                Some(Operand::Float(x)) => Ok(x.clone()),
                _ => Err(Error::new(format!("output '{name}' was not computed"))),
            })
            .collect()
    }

    /// What a node reads at this place.
    #[expect(clippy::too_many_arguments, reason = "all of a run's state")]
    fn input<'a>(
        &'a self,
        step: &Step,
        at: usize,
        name: &'a str,
        values: &Values<'a>,
        rounded: &mut HashMap<&'a str, Tensor>,
        leaves: &Leaves,
        precision: Precision,
    ) -> Result<Option<Operand>> {
        if name.is_empty() {
            return Ok(None);
        }
        if let Some(tensor) = leaves.constant(step.at, at, name) {
            return Ok(Some(Operand::Float(tensor.clone())));
        }
        let found = self.constants.get(name).or_else(|| values.get(name)).cloned();
        let found = found.ok_or_else(|| Error::new(format!("value '{name}' was not computed")))?;
        let reads = |place: &Place| matches!(place, Place::Read(readers) if readers.contains(&step.at));
        let data = step.role.is_some_and(|role| at < data_inputs(&step.node, role).len());
        match found {
            Operand::Float(x)
                if data && precision == Precision::Integers && self.places.get(name).is_some_and(reads) =>
            {
                if !rounded.contains_key(name) {
                    rounded.insert(name, leaves.rounded(name, &x)?);
                }
                Ok(Some(Operand::Float(rounded[name].clone())))
            }
            found => Ok(Some(found)),
        }
    }

    /// The values that are rounded on the way and have a range of their own.
    pub fn ranged(&self) -> impl Iterator<Item = &str> {
        let own = self.places.keys().filter(|name| !self.shares.contains_key(*name));
        own.map(String::as_str)
    }
}

/// The nodes whose outputs change with what is trained: those in integers, and what computes floats from theirs.
fn live(graph: &Graph, plan: &Plan) -> HashSet<usize> {
    let mut live = HashSet::new();
    for (at, node) in graph.nodes().iter().enumerate() {
        let mut makers = node.input.iter().filter_map(|name| graph.producer(name));
        if plan.roles.contains_key(&at) || (!ops::cuts(node) && makers.any(|maker| live.contains(&maker))) {
            live.insert(at);
        }
    }
    live
}

/// Those of them that the outputs need, in order.
fn needed(graph: &Graph, live: &HashSet<usize>, outputs: &[(usize, String)]) -> Vec<usize> {
    let mut read: HashSet<&str> = outputs.iter().map(|(_, name)| name.as_str()).collect();
    let mut needed = Vec::new();
    for (at, node) in graph.nodes().iter().enumerate().rev().filter(|(at, _)| live.contains(at)) {
        if node.output.iter().any(|name| read.contains(name.as_str())) {
            read.extend(node.input.iter().map(String::as_str));
            needed.push(at);
        }
    }
    needed.reverse();
    needed
}

fn refuse_unknown(steps: &[Step]) -> Result<()> {
    let mut unknown: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for step in steps.iter().filter(|step| !ops::is_known(&step.node)) {
        unknown.entry(step.node.op_type()).or_default().push(step.node.label());
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let shown = unknown.iter().map(|(op, nodes)| match nodes[..] {
        [node] => format!("{op} (node '{node}')"),
        _ => format!("{op} (node '{}' and {} more)", nodes[0], nodes.len() - 1),
    });
    Err(Error::new(format!("training cannot go through these operators: {}", shown.collect::<Vec<_>>().join(", ")))
        .hint(ops::HINT))
}
