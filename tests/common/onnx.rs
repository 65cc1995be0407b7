//! Small ONNX models with random weights: an encoder like BERT's, and a convolutional network.

use llmq::int8::onnx::Tensor;
use llmq::int8::onnx::node::{float, int, ints, node};
use llmq::int8::onnx::proto::tensor_proto::DataType;
use llmq::int8::onnx::proto::{AttributeProto, GraphProto, ModelProto, OperatorSetIdProto};
use llmq::int8::onnx::shape::{Dim, declare};
use prost::Message;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;

/// A graph under construction.
pub struct Builder {
    pub graph: GraphProto,
    random: ChaCha8Rng,
}

impl Builder {
    pub fn new(seed: u64) -> Builder {
        let graph = GraphProto { name: Some("main".into()), ..Default::default() };
        Builder { graph, random: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// An input or output; `-1` is an open dimension.
    pub fn dims(dims: &[i64]) -> Vec<Dim> {
        let open = |at: usize| Dim::Dynamic(["batch", "length", "more"][at].into());
        dims.iter().enumerate().map(|(at, &n)| usize::try_from(n).map_or_else(|_| open(at), Dim::Fixed)).collect()
    }

    pub fn input(&mut self, name: &str, kind: DataType, dims: &[i64]) {
        self.graph.input.push(declare(name, kind, &Self::dims(dims)));
    }

    pub fn output(&mut self, name: &str, dims: &[i64]) {
        self.graph.output.push(declare(name, DataType::Float, &Self::dims(dims)));
    }

    /// Weights that are almost normally distributed, about `mean`.
    pub fn weight(&mut self, name: &str, dims: &[usize], mean: f32, deviation: f32) -> String {
        let mut normal = || (0..4).map(|_| self.random.random_range(-1.0f32..1.0)).sum::<f32>() * 0.866;
        let data = (0..dims.iter().product()).map(|_| mean + deviation * normal()).collect();
        self.graph.initializer.push(Tensor::new(dims, data).proto(name));
        name.into()
    }

    pub fn shape(&mut self, name: &str, dims: &[i64]) -> String {
        self.graph.initializer.push(Tensor::vector(dims.to_vec()).proto(name));
        name.into()
    }

    /// A node whose only output has its name.
    pub fn op(&mut self, op: &str, name: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.graph.node.push(node(op, format!("/{name}"), inputs, &[name], attributes));
        name.into()
    }

    /// A linear layer as exporters write it: a product with `[inputs, outputs]`, and a bias.
    pub fn linear(&mut self, name: &str, x: &str, inputs: usize, outputs: usize) -> String {
        let deviation = (inputs as f32).sqrt().recip();
        let weight = self.weight(&format!("{name}.weight"), &[inputs, outputs], 0.0, deviation);
        let bias = self.weight(&format!("{name}.bias"), &[outputs], 0.0, 0.1);
        let product = self.op("MatMul", &format!("{name}.MatMul"), &[x, &weight], vec![]);
        self.op("Add", name, &[&bias, &product], vec![])
    }

    pub fn norm(&mut self, name: &str, x: &str, width: usize) -> String {
        let [scale, shift] = [("weight", 1.0), ("bias", 0.0)]
            .map(|(part, mean)| self.weight(&format!("{name}.{part}"), &[width], mean, 0.1));
        self.op("LayerNormalization", name, &[x, &scale, &shift], vec![int("axis", -1), float("epsilon", 1e-5)])
    }

    pub fn model(self) -> ModelProto {
        ModelProto {
            ir_version: Some(8),
            opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
            producer_name: Some("llmq's tests".into()),
            graph: Some(self.graph),
            ..Default::default()
        }
    }
}

/// The numbers of an encoder.
pub const VOCABULARY: usize = 1000;
pub const WIDTH: usize = 256;
pub const HEADS: usize = 4;
pub const LAYERS: usize = 2;
/// Products with weights per layer.
pub const LINEARS: usize = 6;

/// Token ids `[batch, length]` to hidden states `[batch, length, 256]` and logits `[batch, 2]` of the first token, by a `Gemm`.
pub fn encoder() -> ModelProto {
    let mut b = Builder::new(1);
    b.input("ids", DataType::Int64, &[-1, -1]);
    let words = b.weight("words", &[VOCABULARY, WIDTH], 0.0, 1.0);
    let mut x = b.op("Gather", "embedded", &[&words, "ids"], vec![]);
    let heads = b.shape("heads", &[0, 0, HEADS as i64, (WIDTH / HEADS) as i64]);
    let joined = b.shape("joined", &[0, 0, WIDTH as i64]);
    let root = b.weight("root", &[], ((WIDTH / HEADS) as f32).sqrt(), 0.0);
    let [sqrt2, one, half] =
        [("sqrt2", 2f32.sqrt()), ("one", 1.0), ("half", 0.5)].map(|(name, value)| b.weight(name, &[], value, 0.0));
    for layer in 0..LAYERS {
        let n = |name: &str| format!("layer.{layer}.{name}");
        let mut split = |name: &str, perm: &[i64]| {
            let all = b.linear(&n(name), &x, WIDTH, WIDTH);
            let split = b.op("Reshape", &n(&format!("{name}.split")), &[&all, &heads], vec![]);
            b.op("Transpose", &n(&format!("{name}.turned")), &[&split], vec![ints("perm", perm)])
        };
        let q = split("query", &[0, 2, 1, 3]);
        let k = split("key", &[0, 2, 3, 1]);
        let v = split("value", &[0, 2, 1, 3]);
        let scores = b.op("MatMul", &n("scores"), &[&q, &k], vec![]);
        let scaled = b.op("Div", &n("scaled"), &[&scores, &root], vec![]);
        let weights = b.op("Softmax", &n("softmax"), &[&scaled], vec![int("axis", -1)]);
        let mixed = b.op("MatMul", &n("mixed"), &[&weights, &v], vec![]);
        let turned = b.op("Transpose", &n("turned"), &[&mixed], vec![ints("perm", &[0, 2, 1, 3])]);
        let together = b.op("Reshape", &n("together"), &[&turned, &joined], vec![]);
        let attended = b.linear(&n("output"), &together, WIDTH, WIDTH);
        let sum = b.op("Add", &n("sum"), &[&attended, &x], vec![]);
        let normed = b.norm(&n("norm"), &sum, WIDTH);
        let up = b.linear(&n("up"), &normed, WIDTH, 2 * WIDTH);
        let scaled = b.op("Div", &n("gelu.Div"), &[&up, &sqrt2], vec![]);
        let erf = b.op("Erf", &n("gelu.Erf"), &[&scaled], vec![]);
        let shifted = b.op("Add", &n("gelu.Add"), &[&erf, &one], vec![]);
        let product = b.op("Mul", &n("gelu.Mul"), &[&up, &shifted], vec![]);
        let gelu = b.op("Mul", &n("gelu"), &[&product, &half], vec![]);
        let down = b.linear(&n("down"), &gelu, 2 * WIDTH, WIDTH);
        let sum = b.op("Add", &n("sum2"), &[&down, &normed], vec![]);
        x = b.norm(&n("norm2"), &sum, WIDTH);
    }
    let zero = b.shape("zero", &[0]);
    b.graph.initializer.last_mut().unwrap().dims.clear();
    let first = b.op("Gather", "first", &[&x, &zero], vec![int("axis", 1)]);
    let weight = b.weight("classifier.weight", &[2, WIDTH], 0.0, 0.1);
    let bias = b.weight("classifier.bias", &[2], 0.0, 1.0);
    let scaling = vec![int("transB", 1), float("alpha", 0.5), float("beta", 2.0)];
    b.op("Gemm", "logits", &[&first, &weight, &bias], scaling);
    b.graph.node.push(node("Identity", "hidden", &[&x], &["hidden"], vec![]));
    b.output("hidden", &[-1, -1, WIDTH as i64]);
    b.output("logits", &[-1, 2]);
    b.model()
}

/// Images `[batch, 3, 16, 16]` to logits `[batch, 10]`: three convolutions with norms, a residual sum, a pool, and a `Gemm`.
pub fn cnn() -> ModelProto {
    let mut b = Builder::new(2);
    b.input("image", DataType::Float, &[-1, 3, 16, 16]);
    let block = |b: &mut Builder, name: &str, x: &str, inputs: usize, outputs: usize| {
        let deviation = ((9 * inputs) as f32).sqrt().recip();
        let weight = b.weight(&format!("{name}.weight"), &[outputs, inputs, 3, 3], 0.0, deviation);
        let y = b.op(
            "Conv",
            &format!("{name}.conv"),
            &[x, &weight],
            vec![ints("pads", &[1; 4]), ints("kernel_shape", &[3; 2])],
        );
        let [scale, variance] =
            ["scale", "variance"].map(|part| b.weight(&format!("{name}.{part}"), &[outputs], 1.0, 0.1));
        let [shift, mean] = ["shift", "mean"].map(|part| b.weight(&format!("{name}.{part}"), &[outputs], 0.0, 0.1));
        b.op("BatchNormalization", &format!("{name}.norm"), &[&y, &scale, &shift, &mean, &variance], vec![])
    };
    let a = block(&mut b, "stem", "image", 3, 32);
    let a = b.op("Relu", "stem.relu", &[&a], vec![]);
    let c = block(&mut b, "one", &a, 32, 32);
    let c = b.op("Relu", "one.relu", &[&c], vec![]);
    let d = block(&mut b, "two", &c, 32, 32);
    let sum = b.op("Add", "residual", &[&d, &a], vec![]);
    let relu = b.op("Relu", "two.relu", &[&sum], vec![]);
    let pooled = b.op("GlobalAveragePool", "pooled", &[&relu], vec![]);
    let flat = b.op("Flatten", "flat", &[&pooled], vec![]);
    let weight = b.weight("classifier.weight", &[10, 32], 0.0, 0.2);
    let bias = b.weight("classifier.bias", &[10], 0.0, 0.1);
    b.op("Gemm", "logits", &[&flat, &weight, &bias], vec![int("transB", 1)]);
    b.output("logits", &[-1, 10]);
    b.model()
}

/// Writes a model as it is.
pub fn write(model: &ModelProto, path: &Path) {
    std::fs::write(path, model.encode_to_vec()).expect("a file");
}
