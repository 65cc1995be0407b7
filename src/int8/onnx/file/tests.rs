use super::*;
use crate::int8::onnx::node::node;
use crate::int8::onnx::proto::{GraphProto, StringStringEntryProto, TensorProto, tensor_proto::DataType};
use crate::int8::onnx::shape::{Dim, declare};
use crate::int8::onnx::tensor::Tensor;
use proptest::prelude::*;
use std::fs;

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) }
}

/// `x * w -> y` with 1,000 and 10 weights, and something in most kinds of field.
fn model() -> ModelProto {
    let floats = Tensor::vector((0..1000).map(|n| n as f32).collect());
    let typed = TensorProto {
        name: Some("typed".into()),
        dims: vec![2],
        data_type: Some(DataType::Float as i32),
        float_data: vec![0.0, -0.0],
        ..Default::default()
    };
    let graph = GraphProto {
        name: Some("main".into()),
        node: vec![node("Mul", "m", &["x", "w"], &["y"], vec![])],
        initializer: vec![floats.proto("w"), Tensor::vector(vec![7i8; 10]).proto("small"), typed],
        input: vec![declare("x", DataType::Float, &[Dim::Dynamic("n".into())])],
        output: vec![declare("y", DataType::Float, &[Dim::Fixed(1000)])],
        doc_string: Some("y = w·x".into()),
        value_info: vec![declare("z", DataType::Int8, &[])],
        metadata_props: vec![entry("more", "none")],
        ..Default::default()
    };
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        producer_name: Some("tests".into()),
        producer_version: Some("1".into()),
        domain: Some("here".into()),
        model_version: Some(3),
        doc_string: Some(String::new()),
        metadata_props: vec![entry("licence", "none")],
        graph: Some(graph),
        ..Default::default()
    }
}

/// The same with the large tensor's values in another file.
fn split(folder: &Path, place: &[(&str, &str)]) -> PathBuf {
    let mut model = model();
    let tensor = &mut model.graph.as_mut().unwrap().initializer[0];
    let values = tensor.raw_data.take().unwrap();
    tensor.data_location = Some(1);
    tensor.external_data = place.iter().map(|(key, value)| entry(key, value)).collect();
    fs::create_dir_all(folder.join("deeper")).unwrap();
    fs::write(folder.join("deeper/w.bin"), [&[9; 8], &values[..]].concat()).unwrap();
    let path = folder.join("split.onnx");
    fs::write(&path, model.encode_to_vec()).unwrap();
    path
}

const PLACE: [(&str, &str); 3] = [("location", "./deeper/w.bin"), ("offset", "8"), ("length", "4000")];

#[track_caller]
fn refused(path: &Path, told: &[&str]) {
    let error = OnnxFile::open(path).unwrap_err();
    let chain = error.chain().join(": ");
    assert!(chain.contains(&path.display().to_string()), "{chain}");
    for told in told {
        assert!(chain.contains(told), "no {told:?} in {chain}");
    }
}

#[test]
fn a_model_is_written_as_it_was_read() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first.onnx", "second.onnx"].map(|name| folder.path().join(name));
    let bytes = model().encode_to_vec();
    fs::write(&first, &bytes).unwrap();
    let file = OnnxFile::open(&first).unwrap();
    assert_eq!(file.model, model());
    assert_eq!((file.opset(), file.bytes, file.external.len()), (17, bytes.len() as u64, 0));
    let destination = Destination::new(&second, &file, false).unwrap();
    assert_eq!(destination.write(file.model).unwrap(), bytes.len() as u64);
    assert_eq!(fs::read(&second).unwrap(), bytes);
    assert!(!external::beside(&second).exists());
}

#[test]
fn raw_values_stay_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    fs::write(&path, model().encode_to_vec()).unwrap();
    let bytes = mapped::map(&path).unwrap();
    let within = bytes.as_ptr_range();
    let decoded = ModelProto::decode(bytes).unwrap();
    let values = decoded.graph.unwrap().initializer[0].raw_data.clone().unwrap();
    assert!(within.contains(&values.as_ptr()), "the values were copied");
}

#[test]
fn values_beside_a_model_are_found_and_written_beside_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = split(folder.path(), &PLACE);
    let file = OnnxFile::open(&path).unwrap();
    assert_eq!(file.model, model(), "as if they had been inside");
    assert_eq!(file.external, [folder.path().join("deeper/w.bin")]);
    assert_eq!(file.bytes, fs::metadata(&path).unwrap().len() + 4008);

    let out = folder.path().join("out.onnx");
    let bytes = Destination::new(&out, &file, false).unwrap().write(file.model.clone()).unwrap();
    let beside = folder.path().join("out.onnx.data");
    assert_eq!(fs::metadata(&beside).unwrap().len(), 4000);
    assert_eq!(fs::metadata(&out).unwrap().len() + 4000, bytes);
    let again = OnnxFile::open(&out).unwrap();
    assert_eq!((again.model, again.external), (model(), vec![beside]));

    // Neither the values of the input nor those of another model are replaced unasked.
    let taken = Destination::new(&out, &file, false).unwrap_err();
    assert!(taken.to_string().contains("already exists"), "{taken}");
    fs::remove_file(&out).unwrap();
    let taken = Destination::new(&out, &file, false).unwrap_err();
    assert!(taken.to_string().contains("out.onnx.data already exists"), "{taken}");
    Destination::new(&out, &file, true).unwrap();
    fs::rename(folder.path().join("deeper/w.bin"), folder.path().join("deeper/in.onnx.data")).unwrap();
    let source = split(folder.path(), &[("location", "deeper/in.onnx.data"), PLACE[1], PLACE[2]]);
    let file = OnnxFile::open(&source).unwrap();
    let lost = Destination::new(&folder.path().join("deeper/in.onnx"), &file, true).unwrap_err();
    assert!(lost.to_string().contains("is the input"), "{lost}");
}

/// With a lower limit: no test should write 2 GB.
#[test]
fn values_that_do_not_fit_into_a_message_go_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first.onnx", "second.onnx"].map(|name| folder.path().join(name));
    fs::write(&first, model().encode_to_vec()).unwrap();
    let file = OnnxFile::open(&first).unwrap();
    let to = |force| Destination { largest: 2000, ..Destination::new(&second, &file, force).unwrap() };
    let bytes = to(false).write(file.model.clone()).unwrap();
    let again = OnnxFile::open(&second).unwrap();
    let beside = external::beside(&second);
    assert_eq!((&again.model, again.bytes), (&model(), bytes));
    assert_eq!(again.external, std::slice::from_ref(&beside));

    // Another model's values are replaced only if asked for.
    fs::remove_file(&second).unwrap();
    let taken = to(false).write(file.model.clone()).unwrap_err();
    assert!(taken.to_string().contains("second.onnx.data already exists"), "{taken}");
    assert!(!second.exists());
    to(true).write(file.model.clone()).unwrap();
    assert_eq!(OnnxFile::open(&second).unwrap().model, model());

    // Numbers that are no raw bytes cannot be moved.
    for path in [&second, &beside] {
        fs::remove_file(path).unwrap();
    }
    let mut typed = file.model.clone();
    typed.graph.as_mut().unwrap().initializer[2].float_data = vec![1.0; 600];
    let error = to(false).write(typed).unwrap_err();
    assert!(error.to_string().contains("not in raw tensors, and a message has at most 2000"), "{error}");
    assert!(!second.exists() && !beside.exists());
}

#[test]
fn values_that_cannot_be_found() {
    let folder = tempfile::tempdir().unwrap();
    let with = |place: &[(&str, &str)], told: &[&str]| {
        refused(&split(folder.path(), place), &[&["tensor 'w'"], told].concat())
    };
    let location = |location| [("location", location), ("offset", "8")];
    with(&location("w.bin"), &["cannot read", "w.bin"]);
    with(&location("../w.bin"), &["'../w.bin', which is not in the model's folder"]);
    with(&location("/etc/hostname"), &["'/etc/hostname', which is not in the model's folder"]);
    with(&location("deeper/../../w.bin"), &["not in the model's folder"]);
    with(&location(""), &["not in the model's folder"]);
    with(&location("deeper"), &["cannot read"]);
    with(&[("offset", "8")], &["no file is named"]);
    let whole = ("location", "deeper/w.bin");
    with(&[whole, ("offset", "16")], &["has 4008 bytes, but they are 4000 bytes from byte 16 on"]);
    with(&[whole, ("offset", "18446744073709551615")], &["4000 bytes from byte 18446744073709551615 on"]);
    with(&[whole, ("offset", "-1")], &["their offset is '-1'"]);
    with(&[whole, ("length", "4008")], &["shape [1000] takes 4000 bytes, but their length is 4008"]);
    with(&[whole, ("length", "many")], &["their length is 'many'"]);
    fs::write(folder.path().join("deeper/w.bin"), [0; 100]).unwrap();
    let path = folder.path().join("split.onnx");
    refused(&path, &["their length is 'many'"]);
}

#[test]
fn files_that_are_no_models_or_too_old_or_new() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.onnx");
    let with = |bytes: &[u8], told: &[&str]| {
        fs::write(&path, bytes).unwrap();
        refused(&path, told);
    };
    with(b"", &["it holds no graph"]);
    with(b"GGUF\x03\0\0\0", &["truncated, or not an ONNX model"]);
    let whole = model().encode_to_vec();
    with(&whole[..whole.len() / 2], &["truncated, or not an ONNX model"]);
    let changed = |change: fn(&mut ModelProto)| {
        let mut model = model();
        change(&mut model);
        model.encode_to_vec()
    };
    with(&changed(|m| m.ir_version = Some(99)), &["version 99 of the ONNX format, and 3 to 14 are supported"]);
    with(&changed(|m| m.ir_version = None), &["version 0 of the ONNX format"]);
    with(&changed(|m| m.opset_import[0].version = Some(6)), &["opset 6, and 7 to 28 are supported"]);
    with(&changed(|m| m.opset_import[0].version = Some(1000)), &["opset 1000, and 7 to 28 are supported"]);
    with(&changed(|m| m.opset_import.clear()), &["names no version"]);
    refused(folder.path(), &["is a folder"]);
    refused(&folder.path().join("none.onnx"), &["cannot read"]);

    fs::write(&path, changed(|m| m.opset_import[0].version = Some(9))).unwrap();
    let file = OnnxFile::open(&path).unwrap();
    file.need_opset(9, "that").unwrap();
    let old = file.need_opset(11, "dynamic quantization").unwrap_err();
    assert!(old.to_string().contains("has opset 9, but dynamic quantization needs opset 11 or newer"), "{old}");
}

/// A message within a message within a message...
#[test]
fn bottomless_nesting_is_refused() {
    // An attribute's graph (field 6), its node (1), its attribute (5), and so on, innermost first.
    let mut bytes = Vec::new();
    for tag in [6, 5, 1].repeat(2000) {
        let mut outer = Vec::new();
        prost::encoding::encode_key(tag, prost::encoding::WireType::LengthDelimited, &mut outer);
        prost::encoding::encode_varint(bytes.len() as u64, &mut outer);
        outer.extend(bytes);
        bytes = outer;
    }
    let mut whole = Vec::new();
    prost::encoding::encode_key(7, prost::encoding::WireType::LengthDelimited, &mut whole);
    prost::encoding::encode_varint(bytes.len() as u64, &mut whole);
    whole.extend(bytes);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep.onnx");
    fs::write(&path, whole).unwrap();
    refused(&path, &["not an ONNX model"]);
}

proptest! {
    /// Whatever a byte or a cut does, opening ends, with a model or with an error.
    #[test]
    fn damage_never_panics(at in 0usize..5000, to: u8, cut in 0usize..5000) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("damaged.onnx");
        let mut bytes = model().encode_to_vec();
        let length = bytes.len();
        bytes[at % length] = to;
        bytes.truncate(if cut % 2 == 0 { length } else { cut % length });
        fs::write(&path, bytes).unwrap();
        if let Ok(file) = OnnxFile::open(&path) {
            let mut model = file.model;
            if let Ok(graph) = crate::int8::onnx::Graph::take(&mut model) {
                graph.constant("w").map(Tensor::<f32>::read);
            }
        }
    }
}
