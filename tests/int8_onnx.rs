//! `llmq int8` on ONNX files: dynamic quantization, advice, measurements, and bad input.
//!
//! The packages onnx and onnxruntime (scripts/setup-consumers.sh) are asked about the results; without them, those tests fail.

mod common;

use common::onnx::{self, LAYERS, LINEARS, VOCABULARY, WIDTH, cnn, encoder};
use common::{Run, folder, llmq, names};
use llmq::int8::engine::{Engine, Value};
use llmq::int8::onnx::node::node;
use llmq::int8::onnx::proto::{ModelProto, StringStringEntryProto, TensorProto};
use llmq::int8::onnx::{OnnxFile, Tensor};
use serde_json::Value as Json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/.consumers/python/bin/python");

/// Writes a model to a folder and quantizes it with these options.
fn quantized(model: &ModelProto, options: &[&str]) -> (tempfile::TempDir, PathBuf, PathBuf, Run) {
    let folder = folder();
    let [float, out] = ["float.onnx", "out.onnx"].map(|name| folder.path().join(name));
    onnx::write(model, &float);
    let run = llmq!["int8", "dynamic", &float, "-o", &out, "--json"; options];
    (folder, float, out, run)
}

fn ops(model: &ModelProto, op: &str) -> usize {
    model.graph.as_ref().unwrap().node.iter().filter(|node| node.op_type() == op).count()
}

fn initializer<'a>(model: &'a ModelProto, name: &str) -> &'a TensorProto {
    let found = model.graph.as_ref().unwrap().initializer.iter().find(|tensor| tensor.name() == name);
    found.unwrap_or_else(|| panic!("no initializer {name}"))
}

fn ids() -> Value {
    Value::integers(vec![2, 12], &(0..24).map(|n| n * 37 % VOCABULARY as i64).collect::<Vec<_>>()).unwrap()
}

fn sqnr(signal: &[f32], other: &[f32]) -> f64 {
    let power = |x: f32| f64::from(x).powi(2);
    let noise: f64 = signal.iter().zip(other).map(|(a, b)| power(a - b)).sum();
    10.0 * (signal.iter().map(|&x| power(x)).sum::<f64>() / noise).log10()
}

#[test]
fn an_encoder_becomes_integer_products_and_rows() {
    let model = encoder();
    let (_folder, float, out, run) = quantized(&model, &["--target", "vnni"]);
    let run = run.ok();
    let summary = run.summary();
    // The embedding and the classifier besides.
    assert_eq!(summary["quantized"], LAYERS * LINEARS + 2);
    assert_eq!(summary["left_float"], 2 * LAYERS);
    assert_eq!(summary["reduced_range"], false);
    assert_eq!(summary["bytes_before"], fs::metadata(&float).unwrap().len());
    assert_eq!(summary["bytes_after"], fs::metadata(&out).unwrap().len());
    for left in run.lines("left_float") {
        assert_eq!((&left["op"], &left["reason"]), (&"MatMul".into(), &"both sides are activations".into()));
    }
    let small = OnnxFile::open(&out).unwrap();
    assert!(small.bytes * 10 < fs::metadata(&float).unwrap().len() * 3, "{} bytes", small.bytes);

    assert_eq!(ops(&small.model, "MatMulInteger"), LAYERS * LINEARS + 1);
    assert_eq!(ops(&small.model, "MatMul"), 2 * LAYERS);
    assert_eq!(ops(&small.model, "Gemm"), 0);
    // Query, key and value read the same activation, and share its quantized form.
    assert_eq!(ops(&small.model, "DynamicQuantizeLinear"), LAYERS * (LINEARS - 2) + 1);
    assert_eq!(initializer(&small.model, "words_int8").dims, [VOCABULARY as i64, WIDTH as i64]);
    assert_eq!(initializer(&small.model, "words_scales").dims, [VOCABULARY as i64, 1]);
    assert_eq!(initializer(&small.model, "classifier.weight_scaled_int8").dims, [WIDTH as i64, 2]);
    assert!(small.model.graph.as_ref().unwrap().initializer.iter().all(|tensor| tensor.name() != "words"));
    assert_eq!(small.model.producer_name(), "llmq's tests");

    let outputs = [&model, &small.model].map(|model| Engine::new(model).unwrap().run(&[("ids", ids())]).unwrap());
    for (float, small) in outputs[0].iter().zip(&outputs[1]) {
        assert_eq!(float.dims(), small.dims());
        let sqnr = sqnr(&float.floats().unwrap().data, &small.floats().unwrap().data);
        assert!(sqnr > 25.0, "{sqnr} dB");
    }
}

#[test]
fn the_target_decides_about_the_range_of_codes() {
    let largest = |options: &[&str]| {
        let (_folder, _, out, run) = quantized(&encoder(), options);
        let reduced = run.ok().summary()["reduced_range"].as_bool().unwrap();
        let model = OnnxFile::open(&out).unwrap().model;
        let peak = |name: &str| {
            let codes = Tensor::<i8>::read(initializer(&model, name)).unwrap();
            codes.data.iter().map(|code| code.unsigned_abs()).max().unwrap()
        };
        (reduced, peak("layer.0.up.weight_int8"), peak("words_int8"))
    };
    assert_eq!(largest(&["--target", "avx2"]), (true, 64, 127));
    assert_eq!(largest(&["--target", "arm"]), (false, 127, 127));
    assert_eq!(largest(&["--target", "avx2", "--reduce-range", "off"]), (false, 127, 127));
    assert_eq!(largest(&["--target", "vnni", "--reduce-range", "on"]), (true, 64, 127));
}

#[test]
fn excluded_nodes_and_convolutions_stay_float_and_are_listed() {
    let (_folder, _, out, run) = quantized(&encoder(), &["--exclude", "layer.1", "--exclude", "^/embedded$"]);
    let run = run.ok();
    let reason = |node: &str| {
        let left = run.lines("left_float").into_iter().find(|left| left["node"] == node).expect("listed");
        left["reason"].as_str().unwrap().to_owned()
    };
    assert_eq!([reason("/layer.1.up.MatMul"), reason("/embedded")], ["it was excluded"; 2]);
    let model = OnnxFile::open(&out).unwrap().model;
    assert_eq!(ops(&model, "MatMulInteger"), LINEARS + 1);
    assert_eq!(Tensor::<f32>::read(initializer(&model, "words")).unwrap().data.len(), VOCABULARY * WIDTH);

    // The classifier of a CNN is all that dynamic quantization finds there.
    let (_folder, _, out, run) = quantized(&cnn(), &[]);
    let left = run.ok().lines("left_float");
    assert_eq!(left.len(), 3);
    assert!(left.iter().all(|left| left["op"] == "Conv" && left["reason"].as_str().unwrap().contains("int8 static")));
    let model = OnnxFile::open(&out).unwrap().model;
    assert_eq!([ops(&model, "Conv"), ops(&model, "MatMulInteger")], [3, 1]);

    let (folder, float, out, _run) = quantized(&cnn(), &[]);
    let text = llmq!["int8", "dynamic", &float, "-o", folder.path().join("text.onnx")].ok().stdout;
    assert!(text.contains("left float: Conv /stem.conv and 2 more: ConvInteger is slower"), "{text}");
    llmq!["int8", "dynamic", &float, "-o", &out].failed(2, &["already exists", "--force"]);
    llmq!["int8", "dynamic", &float, "-o", &out, "--force"].ok();
    llmq!["int8", "dynamic", &float, "-o", &float, "--force"].failed(2, &["is the input"]);
    llmq!["int8", "dynamic", &float, "-o", &out, "--force", "--exclude", "nonsense"].failed(2, &["matches no node"]);
    llmq!["int8", "dynamic", &out, "-o", folder.path().join("twice.onnx")]
        .failed(1, &["out.onnx", "already quantized: DynamicQuantizeLinear node", "and 1 other nodes", "float model"]);
}

/// A transposed constant, a scaled bias that is no constant and is added behind, a weight on the left, a table that is small.
#[test]
fn products_in_other_forms() {
    let mut b = onnx::Builder::new(3);
    b.input("x", llmq::int8::onnx::proto::tensor_proto::DataType::Float, &[-1, 8]);
    let [w, left, table] =
        [("w", 5), ("left", 8), ("table", 8)].map(|(name, rows)| b.weight(name, &[rows, 8], 0.0, 0.3));
    b.op("Transpose", "turned", &[&w], vec![]);
    let y = b.op("MatMul", "y", &["x", "turned"], vec![]);
    let wide = b.op("Gemm", "wide", &[&y, &w, "x"], vec![llmq::int8::onnx::node::float("beta", 0.5)]);
    b.op("MatMul", "z", &[&left, &wide], vec![]);
    let rows = b.shape("rows", &[1, 0]);
    b.op("Gather", "picked", &[&table, &rows], vec![]);
    b.graph.node.push(node("Identity", "", &["y"], &["same"], vec![]));
    for (name, dims) in [("z", &[-1, 8]), ("same", &[-1, 5]), ("picked", &[2, 8])] {
        b.output(name, dims);
    }
    let model = b.model();
    let (_folder, _, out, run) = quantized(&model, &["--reduce-range", "on"]);
    let left = run.ok().lines("left_float");
    let reasons: Vec<_> = left.iter().map(|left| left["reason"].as_str().unwrap()).collect();
    let wanted = ["its left side is constant", "its table is small"];
    assert_eq!(
        {
            let mut r = reasons;
            r.sort_unstable();
            r
        },
        wanted
    );
    let small = OnnxFile::open(&out).unwrap().model;
    assert_eq!(initializer(&small, "turned_folded_int8").dims, [8, 5]);
    assert_eq!(initializer(&small, "w_int8").dims, [5, 8]);
    assert_eq!(ops(&small, "Transpose"), 0, "nothing reads it any more");
    let x = Value::F32(Tensor::new([8, 8], (0..64).map(|n| (n * 29 % 64) as f32 - 30.0).collect()));
    let [float, small] = [&model, &small].map(|model| Engine::new(model).unwrap().run(&[("x", x.clone())]).unwrap());
    let sqnr = sqnr(&float[1].floats().unwrap().data, &small[1].floats().unwrap().data);
    assert!(sqnr > 35.0, "{sqnr} dB");
}

#[test]
fn values_beside_a_model_stay_beside_it() {
    let folder = folder();
    let [float, out] = ["float.onnx", "out.onnx"].map(|name| folder.path().join(name));
    let mut model = encoder();
    let tensor = &mut model.graph.as_mut().unwrap().initializer[0];
    let entry = |key: &str, value: &str| StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) };
    fs::write(folder.path().join("float.bin"), tensor.raw_data.take().unwrap()).unwrap();
    (tensor.data_location, tensor.external_data) = (Some(1), vec![entry("location", "float.bin")]);
    onnx::write(&model, &float);
    let summary = llmq!["int8", "dynamic", &float, "-o", &out, "--json"].ok().summary();
    assert_eq!(names(folder.path()), ["float.bin", "float.onnx", "out.onnx", "out.onnx.data"]);
    let sizes = ["out.onnx", "out.onnx.data"].map(|name| fs::metadata(folder.path().join(name)).unwrap().len());
    assert_eq!(summary["bytes_after"], sizes.iter().sum::<u64>());
    assert!(sizes[0] < 100_000, "{sizes:?}");
    let small = OnnxFile::open(&out).unwrap().model;
    Engine::new(&small).unwrap().run(&[("ids", ids())]).unwrap();

    let file = folder.path().join("float.bin");
    fs::write(&file, vec![0; 5]).unwrap();
    let other = folder.path().join("other.onnx");
    llmq!["int8", "dynamic", &float, "-o", &other]
        .failed(1, &["float.onnx", "tensor 'words'", "has 5 bytes", "truncated"]);
    fs::remove_file(&file).unwrap();
    llmq!["int8", "dynamic", &float, "-o", &other]
        .failed(1, &["float.onnx", "tensor 'words'", "float.bin", "one folder"]);
    assert!(!other.exists());
}

#[test]
fn bad_models_are_refused_and_leave_nothing() {
    let folder = folder();
    let [float, out] = ["float.onnx", "out.onnx"].map(|name| folder.path().join(name));
    let refused = |bytes: &[u8], told: &[&str]| {
        fs::write(&float, bytes).unwrap();
        llmq!["int8", "dynamic", &float, "-o", &out].failed(1, &[&["float.onnx"], told].concat());
        assert_eq!(names(folder.path()), ["float.onnx"]);
    };
    let changed = |change: &dyn Fn(&mut ModelProto)| {
        let mut model = encoder();
        change(&mut model);
        prost::Message::encode_to_vec(&model)
    };
    refused(b"", &["holds no graph"]);
    refused(b"not a protobuf at all", &["truncated, or not an ONNX model"]);
    let whole = changed(&|_| {});
    refused(&whole[..whole.len() - 7], &["truncated, or not an ONNX model"]);
    refused(
        &changed(&|m| m.opset_import[0].version = Some(10)),
        &["opset 10", "needs opset 11 or newer", "version_converter"],
    );
    refused(&changed(&|m| m.opset_import[0].version = Some(99)), &["opset 99", "7 to 28 are supported"]);
    refused(&changed(&|m| m.ir_version = Some(99)), &["version 99", "3 to 14"]);
    let graph =
        |change: fn(&mut llmq::int8::onnx::proto::GraphProto)| changed(&move |m| change(m.graph.as_mut().unwrap()));
    refused(
        &graph(|g| g.node[0].input[1] = "nothing".into()),
        &["Gather node '/embedded' reads 'nothing', which nothing makes"],
    );
    refused(&graph(|g| g.initializer[0].dims[0] += 1), &["tensor 'words' has shape [1001, 256]"]);
    refused(&graph(|g| g.initializer[0].dims[0] = -1), &["tensor 'words' has the impossible shape [-1, 256]"]);
    let nan = graph(|g| {
        let weight = g.initializer.iter_mut().find(|tensor| tensor.name() == "layer.0.up.weight").unwrap();
        let mut values = Tensor::<f32>::read(weight).unwrap();
        values.data[77] = f32::NAN;
        weight.raw_data = values.proto("").raw_data;
    });
    refused(&nan, &["weight 'layer.0.up.weight' holds NaN at element 77"]);
    let half = graph(|g| {
        let half = |tensor: &&mut TensorProto| tensor.dims.len() == 2;
        g.initializer.iter_mut().filter(half).for_each(|tensor| {
            tensor.data_type = Some(10);
            tensor.dims[1] *= 2;
        });
    });
    refused(&half, &["nothing can be quantized", "half precision"]);
    let only_convolutions = {
        let mut model = cnn();
        model.graph.as_mut().unwrap().node.retain(|node| !node.is("Gemm"));
        model.graph.as_mut().unwrap().output[0].name = Some("flat".into());
        prost::Message::encode_to_vec(&model)
    };
    refused(&only_convolutions, &["nothing can be quantized: 3 Conv", "llmq int8 static"]);
    llmq!["int8", "dynamic", folder.path(), "-o", &out].failed(1, &["is a folder"]);
    llmq!["int8", "dynamic", folder.path().join("none.onnx"), "-o", &out].failed(1, &["none.onnx"]);
}

#[test]
fn advice_and_its_command() {
    let folder = folder();
    let [bert, net] = ["bert", "net"].map(|name| folder.path().join(name).join("model.onnx"));
    for (path, model) in [(&bert, encoder()), (&net, cnn())] {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        onnx::write(&model, path);
    }
    let advice = |model: &Path, options: &[&str]| llmq!["int8", "advise", model, "--json"; options].ok().summary();
    let told = advice(&bert, &[]);
    assert_eq!((&told["choice"], &told["rule"]), (&"INT8 dynamic".into(), &"matrix products".into()));
    let command = told["command"].as_str().unwrap();
    let words: Vec<&str> = command.split_whitespace().skip(1).collect();
    llmq![; &words].ok();
    let made = words.last().unwrap();
    assert_eq!(advice(Path::new(made), &[])["rule"], "quantized");

    // The same by its folder.
    assert_eq!(advice(bert.parent().unwrap(), &["--target", "gpu"])["choice"], "FP16");
    assert_eq!(advice(&net, &[])["rule"], "small");
    let told = advice(&net, &["--target", "edge"]);
    assert_eq!((&told["choice"], &told["rule"]), (&"INT8 static".into(), &"mostly convolutions".into()));
    assert!(told["command"].as_str().unwrap().contains("int8 static"));
    let text = llmq!["int8", "advise", &bert].ok().stdout;
    assert!(text.contains("advice: INT8 dynamic") && text.contains("embeddings"), "{text}");

    llmq!["int8", "advise", common::tiny()].failed(2, &["language model", "llmq quantize"]);
    llmq!["int8", "advise", folder.path()].failed(1, &["neither an ONNX file nor a config.json"]);
    llmq!["int8", "advise", &bert, "--tolerance=-1"].failed(2, &["--tolerance -1"]);
}

#[test]
fn measurements_with_either_engine() {
    let (folder, float, out, run) = quantized(&encoder(), &[]);
    run.ok();
    let options = ["--dim", "length=16", "--runs", "5", "--json"];
    let bench =
        |engine: &str| llmq!["int8", "bench", &float, &out, "--python", PYTHON, "--engine", engine; options].ok();
    for (engine, from) in [("rten", "file"), ("onnxruntime", "engine")] {
        let run = bench(engine);
        let [original, small] = &run.lines("model")[..] else { panic!("{}", run.stdout) };
        for model in [original, small] {
            let [p50, p99] = ["p50_ms", "p99_ms"].map(|key| model[key].as_f64().unwrap());
            assert!(0.0 < p50 && p50 <= p99);
        }
        assert_eq!(original["int8"], serde_json::json!({}));
        let count = |ops: &Json| ops.as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum::<u64>();
        // In ONNX Runtime too, all products with weights run in INT8.
        assert_eq!(count(&small["int8"]), (LAYERS * LINEARS + 1) as u64, "{small}");
        assert_eq!(count(&small["float"]), 2 * LAYERS as u64, "{small}");
        let summary = run.summary();
        assert_eq!(summary["kernels_from"], from);
        assert!(summary["engine"].as_str().unwrap().to_lowercase().replace(' ', "").starts_with(engine), "{summary}");
    }
    let told = llmq!["int8", "bench", &float, &out, "--engine", "rten", "--dim", "length=4", "--runs", "1"].ok();
    assert!(told.stderr.contains("these are rten's latencies"), "{}", told.stderr);
    llmq!["int8", "bench", &float, &out, "--engine", "rten"].failed(2, &["[batch, length]", "--dim length=128"]);
    llmq!["int8", "bench", &float, &out, "--engine", "onnxruntime", "--python", "/nowhere"]
        .failed(2, &["/nowhere", "pip install"]);
    assert_eq!(llmq!["int8", "bench", &float, &out, "--dim", "length"].code, Some(2));
    llmq!["int8", "bench", &float, folder.path().join("none.onnx")].failed(1, &["none.onnx"]);

    let none = folder.path().join("none.so");
    let of_library =
        |path: &Path| llmq!["int8", "bench", &float, &out, "--python", "/nowhere", "--library", path; options];
    if cfg!(feature = "ort") {
        of_library(&none).failed(1, &["cannot load", "none.so", "onnxruntime/capi"]);
        let run = of_library(&library()).ok();
        assert_eq!(run.summary()["kernels_from"], "engine");
        assert_eq!(run.summary()["engine"], bench("onnxruntime").summary()["engine"]);
        let kernels = |run: &common::Run| run.lines("model").iter().map(|of| of["int8"].clone()).collect::<Vec<_>>();
        assert_eq!(kernels(&run), kernels(&bench("onnxruntime")));
    } else {
        of_library(&none).failed(2, &["none.so", "without the feature ort", "--features ort"]);
    }
}

/// ONNX Runtime's, as Python has it.
fn library() -> PathBuf {
    let code = "import glob, os, onnxruntime as o; print(glob.glob(os.path.dirname(o.__file__) + '/capi/libonnxruntime.so*')[0])";
    let told = std::process::Command::new(PYTHON).args(["-c", code]).output().unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    String::from_utf8(told.stdout).unwrap().trim().into()
}

/// onnx finds nothing wrong, ONNX Runtime computes what rten computes, and nothing is worse than what ONNX Runtime's own quantizer makes.
#[test]
fn onnx_runtime_agrees_and_its_own_quantizer_is_no_better() {
    for (target, reduced) in [("vnni", "0"), ("avx2", "1")] {
        let (_folder, float, out, run) = quantized(&encoder(), &["--target", target]);
        run.ok();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/consumers/onnx_compare.py");
        let told = common::run(Command::new(PYTHON).arg(script).args([&float, &out]).args([reduced, "16", "64"])).ok();
        let told: Json = serde_json::from_str(&told.stdout).unwrap();
        let number = |key: &str| told[key].as_f64().unwrap();
        let [ours, theirs] = ["sqnr_ours", "sqnr_theirs"].map(number);
        println!("{target}: {ours:.2} dB, quantize_dynamic {theirs:.2} dB");
        // Both round the activations in the same way, which is most of the error; another sample moves either by a tenth of a decibel.
        assert!(ours >= theirs - 0.1, "{target}: {ours} dB, but quantize_dynamic has {theirs} dB");
        let [ours, theirs] = [fs::metadata(&out).unwrap().len() as f64, number("bytes_theirs")];
        println!("{target}: {ours} bytes, quantize_dynamic {theirs}");
        assert!(ours <= 1.02 * theirs, "{ours} bytes, but quantize_dynamic takes {theirs}");

        // At full range, rten too cuts sums off on x86 without VNNI.
        if reduced == "1" {
            let ids: Vec<i64> = serde_json::from_value(told["inputs"]["ids"]["data"].clone()).unwrap();
            let ids = Value::integers(vec![16, 64], &ids).unwrap();
            let rten = Engine::new(&OnnxFile::open(&out).unwrap().model).unwrap().run(&[("ids", ids)]).unwrap();
            let ort: Vec<f32> = serde_json::from_value(told["output"].clone()).unwrap();
            let agreement = sqnr(&ort, &rten[0].floats().unwrap().data);
            println!("{target}: rten and ONNX Runtime agree to {agreement:.1} dB");
            assert!(agreement > 40.0, "{agreement} dB");
        }
    }
}
