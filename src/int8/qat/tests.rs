//! What is trained is what the file computes, and what is stored is what was trained.

use super::operand::Operand;
use super::*;
use crate::int8::dynamic;
use crate::int8::engine::Value;
use crate::int8::onnx::node::{int, ints, node};
use crate::int8::onnx::proto::tensor_proto::DataType;
use crate::int8::onnx::proto::{GraphProto, OperatorSetIdProto};
use crate::int8::onnx::shape::{Dim, declare};
use crate::int8::onnx::{OnnxFile, Tensor as Array};
use crate::int8::qdq::Float;
use crate::int8::qdq::rewrite::Integers;
use crate::int8::ranges::{Calibrator, Observer};
use crate::int8::weights::Levels;
use rand::Rng;

const INTEGERS: Integers = Integers { signed: false, levels: Levels::Full };

fn random(seed: u64, dims: &[usize]) -> Array<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    Array::new(dims, (0..dims.iter().product()).map(|_| random.random_range(-1.0f32..1.0)).collect())
}

/// Two convolutions with a residual sum, a pool, and a product; `twice` also reads the product's weights for itself.
fn float(twice: bool) -> Float {
    let conv = |name: &str, x: &str, y: &str| {
        let attributes = vec![ints("kernel_shape", &[3, 3]), ints("pads", &[1; 4])];
        node("Conv", name, &[x, &format!("{name}.w"), &format!("{name}.b")], &[y], attributes)
    };
    let pool = vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])];
    let mut graph = GraphProto {
        name: Some("main".into()),
        node: vec![
            conv("one", "image", "a"),
            node("Relu", "relu", &["a"], &["b"], vec![]),
            conv("two", "b", "c"),
            node("Add", "sum", &["c", "b"], &["d"], vec![]),
            node("MaxPool", "pool", &["d"], &["e"], pool),
            node("Flatten", "flat", &["e"], &["f"], vec![]),
            node("Gemm", "last", &["f", "last.w", "last.b"], &["g"], vec![int("transB", 1)]),
            node("Mul", "gain", &["g", "gain.w"], &["logits"], vec![]),
        ],
        input: vec![declare("image", DataType::Float, &[1, 2, 6, 6].map(Dim::Fixed))],
        output: vec![declare("logits", DataType::Float, &[1, 5].map(Dim::Fixed))],
        ..Default::default()
    };
    let weights: [(&str, &[usize]); 7] = [
        ("one.w", &[4, 2, 3, 3]),
        ("one.b", &[4]),
        ("two.w", &[4, 4, 3, 3]),
        ("two.b", &[4]),
        ("last.w", &[5, 36]),
        ("last.b", &[5]),
        ("gain.w", &[5]),
    ];
    graph.initializer =
        weights.iter().enumerate().map(|(at, (name, dims))| random(at as u64, dims).proto(*name)).collect();
    if twice {
        graph.node.push(node("Neg", "other reader", &["last.w"], &["negated"], vec![]));
        graph.output.push(declare("negated", DataType::Float, &[5, 36].map(Dim::Fixed)));
    }
    let model = ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        graph: Some(graph),
        ..Default::default()
    };
    Float::new(&OnnxFile { path: "model.onnx".into(), model, external: Vec::new(), bytes: 0 }).unwrap()
}

fn image(seed: u64) -> Array<f32> {
    random(100 + seed, &[1, 2, 6, 6])
}

/// The extremes of a few images.
fn ranges(float: &Float) -> HashMap<String, Range> {
    let engine = float.engine().unwrap();
    let values: Vec<&str> = float.plan.observed().collect();
    let mut observers = vec![Observer::new(false); values.len()];
    for seed in 0..4 {
        let found = engine.run_for(&[("image", Value::F32(image(seed)))], &values).unwrap();
        observers.iter_mut().zip(found).for_each(|(observer, x)| observer.add(&x.floats().unwrap().data).unwrap());
    }
    values
        .iter()
        .map(|name| name.to_string())
        .zip(observers.iter().map(|seen| seen.range(Calibrator::MinMax)))
        .collect()
}

fn prepared(float: &Float) -> (Program, Parameters) {
    let mut model = float.model().clone();
    dynamic::quantize_rest(&mut model, Levels::Full, &|_| false).unwrap();
    let graph = Graph::take(&mut model).unwrap();
    let plan = Plan::of(&graph, &|_| false);
    let program = Program::of(&graph, &plan).unwrap();
    let parameters = Parameters::of(&graph, &plan, &program, &ranges(float), INTEGERS).unwrap();
    (program, parameters)
}

/// What a program computes of an image.
fn computed(program: &Program, parameters: &Parameters, x: Array<f32>) -> Vec<f32> {
    assert_eq!(program.boundary, ["image"]);
    let leaves = parameters.leaves(false).unwrap();
    let given = [Operand::of(Value::F32(x)).unwrap()];
    program.run(&given, &leaves, Precision::Integers).unwrap()[0].flatten_all().unwrap().to_vec1().unwrap()
}

fn run(model: &ModelProto, x: Array<f32>) -> Vec<f32> {
    Engine::new(model).unwrap().run(&[("image", Value::F32(x))]).unwrap()[0].floats().unwrap().data.clone()
}

#[test]
fn training_computes_what_the_file_will_compute_before_and_after_a_step() {
    let float = float(false);
    let (program, mut parameters) = prepared(&float);
    for round in 0..2 {
        let mut model = float.model().clone();
        parameters.store(&mut model).unwrap();
        let mut learned = ranges(&float);
        learned.extend(parameters.ranges());
        let quantized = float.quantized_from(model, &learned, INTEGERS, &|_| false).unwrap();
        for seed in 0..4 {
            let wanted = run(&quantized.model, image(seed));
            let found = computed(&program, &parameters, image(seed));
            // Far less than a step of the last activation, which would show as a hundredth.
            let off = wanted.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 2e-4, "round {round}, image {seed}: {off}\n{wanted:?}\n{found:?}");
            let unlike = run(float.model(), image(seed)).iter().zip(&found).any(|(a, b)| (a - b).abs() > 5e-3);
            assert!(unlike, "nothing was rounded");
        }
        // Everything moves, ranges too.
        let steps: Vec<Vec<f32>> = parameters
            .all
            .iter()
            .map(|p| (0..p.values.data.len()).map(|at| 0.1 * p.unit as f32 * (at as f32).sin() * 0.1).collect())
            .collect();
        parameters.take_off(&steps);
    }
}

#[test]
fn gradients_reach_everything_that_is_trained() {
    let float = float(false);
    let (program, parameters) = prepared(&float);
    let leaves = parameters.leaves(true).unwrap();
    let given = [Operand::of(Value::F32(image(0))).unwrap()];
    let outputs = program.run(&given, &leaves, Precision::Integers).unwrap();
    let gradients = outputs[0].sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let mut sums = vec![Vec::new(); parameters.all.len()];
    leaves.collect(&gradients, &mut sums).unwrap();
    // Three layers of weights and biases, a gain, and the ranges of the image, two convolutions and the sum.
    assert_eq!(sums.len(), 3 * 2 + 1 + 4);
    for (sum, parameter) in sums.iter().zip(&parameters.all) {
        assert_eq!(sum.len(), parameter.values.data.len());
        assert!(sum.iter().any(|&g| g != 0.0) && sum.iter().all(|g| g.is_finite()), "{parameter:?}");
    }
}

#[test]
fn what_others_read_too_stays() {
    let float = float(true);
    let (_, mut parameters) = prepared(&float);
    let ones: Vec<Vec<f32>> = parameters.all.iter().map(|p| vec![0.5; p.values.data.len()]).collect();
    parameters.take_off(&ones);
    let mut model = float.model().clone();
    parameters.store(&mut model).unwrap();
    let weights = |model: &ModelProto, name: &str| {
        let all = &model.graph.as_ref().unwrap().initializer;
        Array::<f32>::read(all.iter().find(|tensor| tensor.name() == name).unwrap()).unwrap().data
    };
    assert_eq!(weights(&model, "last.w"), weights(float.model(), "last.w"));
    let moved = weights(float.model(), "two.w").iter().map(|x| x - 0.5).collect::<Vec<_>>();
    assert_eq!(weights(&model, "two.w"), moved);
}

#[test]
fn one_in_five_is_held_out_whatever_the_number() {
    for (samples, apart) in [(10, 2), (11, 3), (100, 20)] {
        let found = held_out(samples, &mut ChaCha8Rng::seed_from_u64(1));
        assert!(found.len() == apart && found.is_sorted() && found.iter().all(|&at| at < samples), "{found:?}");
    }
}
