//! The stages that a graph runs in, one after the other, so that the constants of one stage at a time are in memory.

use crate::int8::onnx::graph::order::reads;
use crate::int8::onnx::proto::{GraphProto, TensorProto};
use std::collections::{HashMap, HashSet};

/// A node by the names of its values; those of constants are among what it reads.
#[derive(Debug)]
struct Step {
    stage: usize,
    reads: Vec<String>,
    makes: Vec<String>,
}

/// The nodes of a graph in an order in which they can run, each with its stage.
#[derive(Debug)]
pub struct Stages(Vec<Step>);

/// What to run at once.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Run<'a> {
    /// The values that have to be there, and whether nothing needs them afterwards.
    pub inputs: Vec<(&'a str, bool)>,
    /// The values to compute: those that are wanted, and those that later stages read.
    pub outputs: Vec<&'a str>,
}

impl Stages {
    /// Divides a graph whose nodes are in order. A stage's constants have at most `largest` bytes, unless a single node reads more.
    pub fn of(graph: &GraphProto, largest: usize) -> Stages {
        let bytes = |tensor: &TensorProto| tensor.raw_data.as_ref().map_or(0, |raw| raw.len());
        let initializers = graph.initializer.iter().map(|tensor| (tensor.name(), bytes(tensor)));
        let inside = graph.node.iter().filter(|node| node.is("Constant")).filter_map(|node| {
            let tensor = node.attribute("value")?.t.as_ref()?;
            Some((node.output.first()?.as_str(), bytes(tensor)))
        });
        let constants: HashMap<&str, usize> = initializers.chain(inside).collect();
        let (mut stage, mut held, mut there) = (0, 0, HashSet::new());
        let mut steps = Vec::with_capacity(graph.node.len());
        // The engine takes what a Constant node makes for a constant.
        for node in graph.node.iter().filter(|node| !node.is("Constant")) {
            let own: HashSet<&str> = reads(node).filter(|name| constants.contains_key(name)).collect();
            let size = |names: &mut dyn Iterator<Item = &&str>| names.map(|name| constants[name]).sum::<usize>();
            let more = size(&mut own.difference(&there));
            if held > 0 && more > 0 && held + more > largest {
                there.clear();
                (stage, held) = (stage + 1, size(&mut own.iter()));
            } else {
                held += more;
            }
            there.extend(own);
            let made = node.output.iter().filter(|name| !name.is_empty());
            steps.push(Step { stage, reads: reads(node).map(str::to_owned).collect(), makes: made.cloned().collect() });
        }
        Stages(steps)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.last().map_or(0, |step| step.stage + 1)
    }

    /// What has to run, one after the other, to get from some values to others.
    pub fn runs<'a>(&'a self, given: impl Iterator<Item = &'a str>, wanted: &[&'a str]) -> Vec<Run<'a>> {
        // The last stage that reads a value; what is wanted outlives them all.
        let mut last: HashMap<&str, usize> = wanted.iter().map(|&name| (name, usize::MAX)).collect();
        let mut needed: Vec<&Step> = Vec::new();
        for step in self.0.iter().rev() {
            if step.makes.iter().any(|name| last.contains_key(name.as_str())) {
                step.reads.iter().for_each(|name| {
                    last.entry(name).or_insert(step.stage);
                });
                needed.push(step);
            }
        }
        needed.reverse();
        let mut there: HashSet<&str> = given.collect();
        let made: HashSet<&str> = needed.iter().flat_map(|step| &step.makes).map(String::as_str).collect();
        let constant = |name: &&str| !made.contains(name) && !there.contains(name);
        let mut runs = vec![Run { inputs: Vec::new(), outputs: unique(wanted.iter().copied().filter(constant)) }];
        for steps in needed.chunk_by(|a, b| a.stage == b.stage) {
            let stage = steps[0].stage;
            let outputs = steps.iter().flat_map(|step| &step.makes).map(String::as_str);
            let outputs = unique(outputs.filter(|name| last.get(name).is_some_and(|&last| last > stage)));
            let inputs = steps.iter().flat_map(|step| &step.reads).map(String::as_str);
            let inputs = unique(inputs.filter(|name| there.contains(name)));
            there.extend(&outputs);
            runs.push(Run { inputs: inputs.into_iter().map(|name| (name, last[name] == stage)).collect(), outputs });
        }
        runs.retain(|run| !run.outputs.is_empty());
        runs
    }
}

/// Names without those that came before.
pub fn unique<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut before = HashSet::new();
    names.filter(|name| before.insert(*name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::int8::onnx::Tensor;
    use crate::int8::onnx::node::node;
    use crate::int8::onnx::proto::AttributeProto;

    /// `a = x·u`, `b = a·v`, `c = b + a`, `d = c·u`; `u` has 40 bytes, `v` 80.
    fn graph() -> GraphProto {
        let constant = |name: &str, n| Tensor::vector(vec![1.0f32; n]).proto(name);
        GraphProto {
            node: vec![
                node("MatMul", "", &["x", "u"], &["a"], vec![]),
                node("MatMul", "", &["a", "v"], &["b"], vec![]),
                node("Add", "", &["b", "a"], &["c"], vec![]),
                node("MatMul", "", &["c", "u"], &["d"], vec![]),
            ],
            initializer: vec![constant("u", 10), constant("v", 20)],
            ..Default::default()
        }
    }

    fn run<'a>(inputs: &[(&'a str, bool)], outputs: &[&'a str]) -> Run<'a> {
        Run { inputs: inputs.into(), outputs: outputs.into() }
    }

    #[test]
    fn constants_decide_how_many_stages_there_are() {
        let count = |largest| Stages::of(&graph(), largest).count();
        assert_eq!([119, 120, 80, 1].map(count), [3, 1, 3, 3]);
        assert_eq!(Stages::of(&GraphProto::default(), 1).count(), 0);
        // The same where a node makes one of them.
        let mut graph = graph();
        let value = Some(graph.initializer.remove(0));
        let value = AttributeProto { name: Some("value".into()), t: value, ..Default::default() };
        graph.node.insert(0, node("Constant", "", &[], &["u"], vec![value]));
        let count = |largest| Stages::of(&graph, largest).count();
        assert_eq!([119, 120].map(count), [3, 1]);
    }

    #[test]
    fn values_stay_as_long_as_something_needs_them() {
        let stages = Stages::of(&graph(), 100);
        let given = || ["x"].into_iter();
        let [a, b] = [run(&[("x", true)], &["a"]), run(&[("a", true)], &["c"])];
        assert_eq!(stages.runs(given(), &["d"]), [a, b, run(&[("c", true)], &["d"])]);
        let [a, b] = [run(&[("x", false)], &["a"]), run(&[("a", false)], &["b"])];
        assert_eq!(stages.runs(given(), &["b", "a", "x", "b"]), [a, b]);
        assert_eq!(stages.runs(given(), &["x"]), []);
        let constant = run(&[], &["v"]);
        assert_eq!(stages.runs(given(), &["a", "v"]), [constant, run(&[("x", true)], &["a"])]);
    }
}
