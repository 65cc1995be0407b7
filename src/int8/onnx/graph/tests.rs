use super::*;
use crate::int8::onnx::node::{int, node};
use crate::int8::onnx::proto::{AttributeProto, ValueInfoProto};
use crate::int8::onnx::shape::declare;
use crate::int8::onnx::tensor::Tensor;

fn value(name: &str) -> ValueInfoProto {
    declare(name, DataType::Float, &[Dim::Fixed(2)])
}

/// `x + w -> a -> Relu -> y`, and `v`, which nothing reads.
fn model(nodes: Vec<NodeProto>) -> ModelProto {
    let graph = GraphProto {
        node: nodes,
        initializer: ["w", "v"].map(|name| Tensor::vector(vec![1.0f32, 2.0]).proto(name)).to_vec(),
        input: vec![value("x")],
        output: vec![value("y")],
        ..Default::default()
    };
    ModelProto { ir_version: Some(8), graph: Some(graph), ..Default::default() }
}

fn add() -> NodeProto {
    node("Add", "add", &["x", "w"], &["a"], vec![])
}

fn relu() -> NodeProto {
    node("Relu", "relu", &["a"], &["y"], vec![])
}

fn ops(model: &ModelProto) -> Vec<&str> {
    model.graph.as_ref().unwrap().node.iter().map(|node| node.op_type()).collect()
}

#[track_caller]
fn refused(nodes: Vec<NodeProto>, told: &str) {
    let error = Graph::take(&mut model(nodes)).unwrap_err().to_string();
    assert!(error.contains(told), "{error}");
}

#[test]
fn who_makes_and_who_reads() {
    let graph = Graph::take(&mut model(vec![relu(), add()])).unwrap();
    assert_eq!(graph.nodes().iter().map(|node| node.name()).collect::<Vec<_>>(), ["add", "relu"], "sorted");
    assert_eq!(graph.producer("a"), Some(0));
    assert_eq!(graph.consumers("a"), [1]);
    assert_eq!((graph.producer("x"), graph.consumers("y")), (None, [].as_slice()));
    assert!(graph.is_output("y") && !graph.is_output("a"));
    assert_eq!(graph.shape("x").unwrap(), [Dim::Fixed(2)]);
    assert_eq!(graph.shape("w").unwrap(), [Dim::Fixed(2)]);
    assert_eq!((graph.kind("w"), graph.shape("a")), (Some(DataType::Float), None));
}

#[test]
fn constants_by_every_way() {
    let tensor = Tensor::scalar(3.0f32).proto("");
    let attribute = AttributeProto { name: Some("value".into()), t: Some(tensor), ..Default::default() };
    let nodes = vec![
        node("Constant", "", &[], &["c"], vec![attribute]),
        node("Identity", "", &["c"], &["same"], vec![]),
        node("Identity", "", &["x"], &["other"], vec![]),
        node("Sum", "", &["same", "other", "w"], &["y"], vec![]),
    ];
    let mut replaceable = model(nodes.clone());
    let graph = Graph::take(&mut model(nodes)).unwrap();
    assert_eq!(Tensor::<f32>::read(graph.constant("same").unwrap()).unwrap(), Tensor::scalar(3.0));
    assert!(graph.constant("w").is_some() && graph.constant("other").is_none() && graph.constant("x").is_none());
    assert_eq!(graph.inputs().count(), 1);

    // An input of the same name can replace an initializer, but not in the oldest models, where each had to have one.
    replaceable.graph.as_mut().unwrap().input.push(value("w"));
    let mut old = ModelProto { ir_version: Some(3), ..replaceable.clone() };
    assert!(Graph::take(&mut replaceable).unwrap().constant("w").is_none());
    assert!(Graph::take(&mut old).unwrap().constant("w").is_some());
}

#[test]
fn a_chain_without_end_is_no_constant() {
    const LENGTH: usize = 100_000;
    let name = |at: usize| if at == LENGTH { "y".into() } else { format!("v{at}") };
    let names: Vec<String> = (0..=LENGTH).map(name).collect();
    let step = |pair: &[String]| node("Identity", "", &[&pair[0]], &[&pair[1]], vec![]);
    let chain: Vec<_> =
        [node("Identity", "", &["w"], &["v0"], vec![])].into_iter().chain(names.windows(2).map(step)).collect();
    let graph = Graph::take(&mut model(chain)).unwrap();
    assert!(graph.constant(&names[MOST_IDENTITIES - 1]).is_some());
    assert!(names[MOST_IDENTITIES..].iter().step_by(997).all(|name| graph.constant(name).is_none()));
    // Everything that asks about a value asks this.
    assert_eq!((graph.kind("y"), graph.shape("y")), (Some(DataType::Float), Some(vec![Dim::Fixed(2)])));
}

#[test]
fn edits_take_effect_together_and_nothing_unread_stays() {
    let mut model = model(vec![add(), relu()]);
    model.graph.as_mut().unwrap().value_info.push(value("a"));
    let mut graph = Graph::take(&mut model).unwrap();
    let half = graph.add("w", |name| Tensor::vector(vec![0.5f32, 1.0]).proto(name));
    assert_eq!(half, "w_1");
    assert!(graph.constant(&half).is_some());
    assert_eq!(graph.fresh("w"), "w_2");
    let [scaled, sum] = ["a_scaled", "sum"].map(|base| graph.fresh(base));
    graph.insert_before(1, [node("Mul", "mul", &["x", &half], &[&scaled], vec![])]);
    graph.insert_before(1, [node("Add", "again", &[&scaled, "x"], &[&sum], vec![])]);
    graph.replace(0, vec![]);
    graph.replace(1, vec![node("Relu", "relu", &[&sum], &["y"], vec![])]);
    graph.finish(&mut model).unwrap();
    assert_eq!(ops(&model), ["Mul", "Add", "Relu"]);
    let graph = model.graph.unwrap();
    // `w` had a reader and lost it; `v` never had one.
    assert_eq!(graph.initializer.iter().map(|tensor| tensor.name()).collect::<Vec<_>>(), ["v", "w_1"]);
    assert_eq!(graph.value_info, []);
}

#[test]
fn edits_that_break_the_graph_are_found() {
    let mut model = model(vec![add(), relu()]);
    let mut graph = Graph::take(&mut model).unwrap();
    graph.replace(0, vec![]);
    let error = graph.finish(&mut model).unwrap_err().to_string();
    assert_eq!(error, "Relu node 'relu' reads 'a', which nothing makes");
}

#[test]
fn graphs_that_cannot_run() {
    refused(vec![relu()], "Relu node 'relu' reads 'a', which nothing makes");
    refused(vec![add(), add(), relu()], "value 'a' is made twice, the second time by node 'add'");
    refused(vec![node("Relu", "r", &["x"], &["w"], vec![])], "value 'w' is made twice");
    refused(vec![add()], "nothing makes the output 'y'");
    let circle = [node("Add", "one", &["x", "b"], &["a"], vec![]), node("Relu", "two", &["a"], &["b"], vec![])];
    refused([&circle[..], &[relu()]].concat(), "the nodes make a circle: 'one' waits for its own result");
}

#[test]
fn what_a_subgraph_reads_counts_as_read() {
    let branch = |from: &str| GraphProto {
        node: vec![node("Mul", "", &[from, "v"], &["inner"], vec![])],
        output: vec![value("inner")],
        ..Default::default()
    };
    let graph =
        |name: &str, from| AttributeProto { name: Some(name.into()), g: Some(branch(from)), ..Default::default() };
    let branches = vec![graph("then_branch", "a"), graph("else_branch", "w"), int("unused", 1)];
    let mut model = model(vec![node("If", "if", &["x"], &["y"], branches), add()]);
    let graph = Graph::take(&mut model).unwrap();
    assert_eq!(graph.consumers("a"), [1], "the node with the branch comes behind what makes it");
    assert_eq!(graph.consumers("v"), [1]);
    graph.finish(&mut model).unwrap();
    assert_eq!(ops(&model), ["Add", "If"]);
    assert_eq!(model.graph.unwrap().initializer.len(), 2);
}
