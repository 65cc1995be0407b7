//! Checkpoints that hold something other than safetensors of plain numbers: PyTorch's own files, FP8 with scales, and weights
//! that GPTQ, AWQ or llm-compressor have quantized.

mod common;

use common::packing::{Layout, Model, Zeros};
use common::torch::{Saved, saved};
use common::{divergence, folder, kind, llmq, refused, tensors, tiny};
use llmq::format::by_id;
use llmq::pipeline::weights::open_gguf;
use safetensors::tensor::Dtype;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const HINT: &str = "\nhint: ";

/// The numbers of a GGUF's tensors, by name.
fn numbers(file: &Path) -> BTreeMap<String, Vec<f32>> {
    let gguf = open_gguf(file).unwrap();
    let decoded = |info: &llmq::source::gguf::TensorInfo| by_id(info.type_id).unwrap().decode_all(gguf.data(info));
    gguf.tensors.iter().map(|info| (info.name.clone(), decoded(info))).collect()
}

/// Every linear layer in the file is of this type and has the model's numbers, to the bit.
#[track_caller]
fn holds(file: &Path, model: &Model, wanted: &str) {
    let found = numbers(file);
    let linears = model.in_gguf();
    assert_eq!(linears.len(), 4 * 7);
    for (name, values) in &linears {
        assert_eq!(kind(file, name), wanted, "{name}");
        let bits = |x: &[f32]| x.iter().map(|x| (x + 0.0).to_bits()).collect::<Vec<u32>>();
        assert!(bits(&found[name]) == bits(values), "{name} has other numbers");
    }
}

#[test]
fn codes_go_into_the_type_that_holds_them_without_a_change() {
    let out = folder();
    let (source, file) = (out.path().join("source"), out.path().join("out.gguf"));
    for (layout, group, zeros, to) in [
        (Layout::Gptq(1), 32, Zeros::Eight, "Q4_0"),
        (Layout::Gptq(2), 128, Zeros::Eight, "Q4_0"),
        (Layout::Gptq(1), 64, Zeros::Power, "Q4_1"),
        (Layout::Gptq(1), 128, Zeros::Any, "Q5_0"),
        (Layout::Awq, 64, Zeros::Eight, "Q4_0"),
        (Layout::Awq, 32, Zeros::Power, "Q4_1"),
        (Layout::Awq, 128, Zeros::Any, "Q5_0"),
        (Layout::Awq, 128, Zeros::Any, "Q8_0"),
        (Layout::Compressed, 32, Zeros::Eight, "Q4_0"),
        (Layout::Compressed, 128, Zeros::Any, "Q5_1"),
        (Layout::CompressedBytes, 64, Zeros::Power, "Q4_1"),
    ] {
        let model = Model::packed(layout, group, zeros);
        let _ = fs::remove_dir_all(&source);
        model.write(&source);
        llmq!["quantize", &source, "-o", &file, "--type", to, "--method", "rtn", "--force"].ok();
        holds(&file, &model, to);
    }
}

#[test]
fn a_method_that_calibrates_leaves_the_codes_alone_and_the_rest_is_rounded() {
    let out = folder();
    let (source, file) = (out.path().join("source"), out.path().join("out.gguf"));
    let mut model = Model::packed(Layout::Gptq(1), 64, Zeros::Eight);
    // One layer was left out, as quantizers do with those that suffer most.
    let name = "model.layers.1.mlp.down_proj.weight";
    let plain = Model::tiny().tensors[name].clone();
    model.tensors.retain(|own, _| !own.starts_with("model.layers.1.mlp.down_proj."));
    model.tensors.insert(name.into(), plain);
    model.write(&source);
    let options = ["--method", "gptq", "--samples", "8", "--seq-len", "64", "--type", "Q4_0", "--json"];
    let run = llmq!["quantize", &source, "-o", &file; options].ok();
    let lines = run.lines("tensor");
    let method = |name: &str| lines.iter().find(|line| line["name"] == name).unwrap()["method"].clone();
    assert_eq!(method("blk.1.ffn_down.weight"), "gptq");
    assert_eq!(method("blk.0.ffn_down.weight"), json!(null));
    let found = numbers(&file);
    for (name, values) in model.in_gguf().iter().filter(|(name, _)| *name != "blk.1.ffn_down.weight") {
        assert_eq!(&found[name], values, "{name}");
    }
    // The embedding of 2048 rows and one layer are all that is new.
    let shown = tensors(&source);
    let kinds = |kind: &str| shown.iter().filter(|tensor| tensor["kind"] == kind).count();
    assert_eq!((kinds("GPTQ4"), shown.len()), (27, tensors(&tiny()).len()));
    assert!(divergence(&file, &source, &["-c", "64", "--chunks", "2"])["kl_divergence"].as_f64().unwrap() < 0.1);
}

#[test]
fn another_type_is_refused_with_the_one_that_fits_unless_asked_for() {
    let out = folder();
    let (source, file) = (out.path().join("source"), out.path().join("out.gguf"));
    Model::packed(Layout::Awq, 128, Zeros::Any).write(&source);
    let told = |to: &str| format!("is AWQ4 already, and {to} would add its own error to that");
    let name = "model.layers.0.self_attn.q_proj.weight";
    for (to, why) in [
        ("Q4_K", "Q4_K has other scales"),
        ("Q4_0", "-7 to 8 times a scale, and those of Q4_0 -8 to 7"),
        ("Q4_1", "in output 5, group 1, its minimum −11·"),
    ] {
        let mix = if to == "Q4_K" { "Q4_K_M" } else { to };
        refused(&source, &["--type", mix], 1, &[name, &told(to), why, HINT, "--type Q5_0 keeps", "--allow-requantize"]);
    }
    let rotated = ["--type", "Q5_0", "-m", "rtn", "--rotate"];
    refused(&source, &rotated, 1, &[&told("Q5_0"), "on no grid", HINT, "original checkpoint"]);
    llmq!["quantize", &source, "-o", &file, "--type", "Q4_1", "-m", "rtn", "--allow-requantize"].ok();
    assert_eq!(kind(&file, "blk.0.attn_q.weight"), "Q4_1");
    // Single precision holds anything.
    let single = out.path().join("single.gguf");
    llmq!["quantize", &source, "-o", &single, "--type", "F32"].ok();
    holds(&single, &Model::packed(Layout::Awq, 128, Zeros::Any), "F32");
    let run = llmq!["plan", &source, "--json"].ok();
    assert_eq!(run.summary()["source_type"], "AWQ4");
    assert!(llmq!["plan", &source].ok().stdout.contains("28 tensors, AWQ4"));
    refused(&source, &["--target-bpw", "5", "--samples", "4"], 1, &["is AWQ4 already"]);
}

#[test]
fn columns_in_the_order_of_their_activations_are_read_but_not_kept() {
    let out = folder();
    let (source, file) = (out.path().join("source"), out.path().join("out.gguf"));
    let mut model = Model::packed(Layout::Gptq(1), 128, Zeros::Eight);
    let name = "model.layers.0.self_attn.v_proj";
    let index = model.tensors.get_mut(&format!("{name}.g_idx")).unwrap();
    // Columns 3 and 200 change places.
    index.bytes[3 * 4] = 1;
    index.bytes[200 * 4] = 0;
    model.config["quantization_config"]["desc_act"] = true.into();
    model.write(&source);
    let told = ["v_proj.weight' is GPTQ4 already", "its columns 0 to 31 share no scale (act-order", HINT, "original"];
    refused(&source, &["--type", "Q4_0"], 1, &told);
    llmq!["quantize", &source, "-o", &file, "--type", "F32"].ok();
    let (found, wanted) = (&numbers(&file)["blk.0.attn_v.weight"], &model.in_gguf()["blk.0.attn_v.weight"]);
    let other: Vec<usize> = (0..256).filter(|&j| found[j] != wanted[j]).collect();
    assert!(other.iter().all(|j| [3, 200].contains(j)) && !other.is_empty(), "{other:?}");
}

#[test]
fn scales_that_half_precision_cannot_hold_are_refused() {
    let (out, mut model) = (folder(), Model::packed(Layout::Compressed, 64, Zeros::Eight));
    let name = "model.layers.2.mlp.up_proj.weight_scale";
    let scale = model.tensors.get_mut(name).unwrap();
    let numbers = scale.bytes.chunks(2).map(|x| half::f16::from_le_bytes([x[0], x[1]]).to_f32() * 1.0001);
    (scale.bytes, scale.dtype) = (numbers.flat_map(f32::to_le_bytes).collect(), Dtype::F32);
    let source = out.path().join("source");
    model.write(&source);
    let told = ["up_proj.weight' is INT4 already", "in output 0, group 0, its scale ", "half precision", HINT];
    refused(&source, &["--type", "Q4_0"], 1, &told);
}

#[test]
fn fp8_with_scales_is_quantized_like_anything_else() {
    let out = folder();
    let (source, file) = (out.path().join("source"), out.path().join("out.gguf"));
    let model = Model::fp8();
    model.write(&source);
    llmq!["quantize", &source, "-o", &file, "--type", "F32"].ok();
    holds(&file, &model, "F32");
    let q4 = out.path().join("q4.gguf");
    llmq!["quantize", &source, "-o", &q4, "--type", "Q4_K_M", "--samples", "4", "--seq-len", "64"].ok();
    assert_eq!(kind(&q4, "blk.0.attn_q.weight"), "Q4_K");
}

#[test]
fn other_quantizers_are_refused_by_name() {
    let out = folder();
    for (n, (description, told)) in [
        (json!({ "quant_method": "bitsandbytes", "load_in_4bit": true }), "quantized with bitsandbytes"),
        (json!({ "quant_method": "gptq", "bits": 3, "group_size": 128 }), "quantized with gptq"),
        (
            json!({ "quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv" }),
            "quantized with awq (gemv)",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let mut model = Model::packed(Layout::Awq, 128, Zeros::Any);
        model.config["quantization_config"] = description;
        let source = out.path().join(n.to_string());
        model.write(&source);
        refused(
            &source,
            &["--type", "Q5_0"],
            1,
            &["config.json", told, "llmq does not read", HINT, "original checkpoint"],
        );
    }
}

#[test]
fn damaged_packed_weights_are_named() {
    let out = folder();
    let layer = "model.layers.3.self_attn.o_proj";
    for (n, (part, damage, told)) in [
        (
            "g_idx",
            (|bytes| bytes[7 * 4 + 3] = 0x7f) as fn(&mut [u8]),
            "puts column 7 into group 2130706432, but there are 2",
        ),
        ("scales", |bytes| bytes[..2].copy_from_slice(&[0, 0x7e]), "holds NaN as the scale of output 0, group 0"),
        ("qzeros", |bytes| bytes[0] |= 0x0f, "holds zero point 16 for output 0, group 0, beyond the codes' 15"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut model = Model::packed(Layout::Gptq(1), 128, Zeros::Eight);
        damage(&mut model.tensors.get_mut(&format!("{layer}.{part}")).unwrap().bytes);
        let source = out.path().join(n.to_string());
        model.write(&source);
        for options in
            [&["--type", "Q4_0"][..], &["--type", "F32"], &["--type", "Q4_K_M", "-m", "rtn", "--allow-requantize"]]
        {
            refused(&source, options, 1, &["model.safetensors: tensor '", &format!("{layer}.{part}' "), told, HINT]);
        }
    }
    let mut model = Model::packed(Layout::Gptq(1), 128, Zeros::Eight);
    model.tensors.get_mut(&format!("{layer}.scales")).unwrap().shape = vec![1, 512];
    let source = out.path().join("shape");
    model.write(&source);
    refused(&source, &[], 1, &["model.safetensors: tensor", "o_proj.scales' has shape [1, 512], not [2, 256]", HINT]);
}

/// Writes a model as PyTorch's files, two of them with an index where `shards` says so.
fn write_bin(model: &Model, folder: &Path, shards: bool) {
    model.write_rest(folder);
    // Every other matrix lies in memory turned.
    let all: Vec<Saved> = model
        .tensors
        .iter()
        .enumerate()
        .map(|(i, (name, raw))| Saved {
            name,
            raw,
            turned: i % 2 == 0 && raw.shape.len() == 2 && raw.dtype == Dtype::BF16,
        })
        .collect();
    if !shards {
        return fs::write(folder.join("pytorch_model.bin"), saved(&all)).unwrap();
    }
    let mut map = BTreeMap::new();
    for (i, part) in all.chunks(all.len().div_ceil(2)).enumerate() {
        let name = format!("pytorch_model-{:05}-of-00002.bin", i + 1);
        fs::write(folder.join(&name), saved(part)).unwrap();
        map.extend(part.iter().map(|tensor| (tensor.name, name.clone())));
    }
    fs::write(folder.join("pytorch_model.bin.index.json"), json!({ "weight_map": map }).to_string()).unwrap();
}

#[test]
fn pytorch_files_give_the_bytes_that_safetensors_give() {
    let out = folder();
    let options = ["--type", "Q4_K_M", "--samples", "4", "--seq-len", "64"];
    let model = Model::tiny();
    // The name of the folder is in the file.
    let [one, two, three] = ["one", "two", "three"].map(|name| out.path().join(name).join("model"));
    model.write(&one);
    write_bin(&model, &two, false);
    write_bin(&model, &three, true);
    let files = [&one, &two, &three].map(|source| {
        let file = source.parent().unwrap().join("out.gguf");
        llmq!["quantize", source, "-o", &file; options].ok();
        fs::read(file).unwrap()
    });
    assert!(files[0] == files[1], "one file of PyTorch");
    assert!(files[0] == files[2], "two files of PyTorch");
    assert_eq!(tensors(&one), tensors(&three));

    let packed = Model::packed(Layout::Gptq(1), 64, Zeros::Eight);
    let (source, file) = (out.path().join("packed"), out.path().join("packed.gguf"));
    write_bin(&packed, &source, false);
    llmq!["quantize", &source, "-o", &file, "--type", "Q4_0", "-m", "rtn"].ok();
    holds(&file, &packed, "Q4_0");
}

#[test]
fn damaged_pytorch_files_are_named() {
    let out = folder();
    let source = out.path().join("model");
    write_bin(&Model::tiny(), &source, true);
    let second = source.join("pytorch_model-00002-of-00002.bin");
    let bytes = fs::read(&second).unwrap();
    let file = second.to_str().unwrap();
    fs::write(&second, &bytes[..bytes.len() / 2]).unwrap();
    refused(&source, &[], 1, &[file, "are no whole zip", HINT, "python -c"]);
    fs::write(&second, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.").unwrap();
    refused(&source, &[], 1, &[file, "before PyTorch 1.6", HINT, "python -c", "import torch; torch.save("]);
    fs::remove_file(&second).unwrap();
    let told = "lacks 1 of the files that pytorch_model.bin.index.json lists: pytorch_model-00002-of-00002.bin";
    refused(&source, &[], 1, &[told, HINT]);
}

/// gpt-oss stores its experts as MXFP4: they stay what they are, bit for bit, in a file of that type.
#[test]
fn experts_in_mxfp4_keep_their_numbers() {
    let mut golden = common::golden::read("gpt_oss");
    let (experts, hidden, ffn) = (4usize, 64usize, 96usize);
    let levels = [0.0f32, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let mut packed: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut wanted: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for block in 0..2 {
        // [experts, rows, columns] as the matrices multiply; gate and up are in turn.
        for (name, rows, columns) in [("gate_up_proj", 2 * ffn, hidden), ("down_proj", hidden, ffn)] {
            let codes: Vec<u8> = (0..experts * rows * columns).map(|i| ((i * 7 + i / 13 + block) % 16) as u8).collect();
            let scales: Vec<u8> = (0..codes.len() / 32).map(|i| 120 + (i % 5) as u8).collect();
            let value = |(i, &code): (usize, &u8)| {
                let sign = if code < 8 { 1.0 } else { -1.0 };
                sign * levels[usize::from(code % 8)] * 2f32.powi(i32::from(scales[i / 32]) - 127)
            };
            let values: Vec<f32> = codes.iter().enumerate().map(value).collect();
            let bytes = codes.chunks(2).map(|pair| pair[0] | pair[1] << 4).collect();
            let stem = format!("model.layers.{block}.mlp.experts.{name}");
            packed.push((format!("{stem}_blocks"), vec![experts, rows, columns / 32, 16], bytes));
            packed.push((format!("{stem}_scales"), vec![experts, rows, columns / 32], scales.clone()));
            golden.checkpoint.tensors.remove(&stem).expect("a tensor of the golden file");
            let every = |first: usize, step: usize| -> Vec<f32> {
                let rows = values.chunks(columns).skip(first).step_by(step);
                rows.flatten().copied().collect()
            };
            if name == "down_proj" {
                wanted.insert(format!("blk.{block}.ffn_down_exps.weight"), values.clone());
            } else {
                wanted.insert(format!("blk.{block}.ffn_gate_exps.weight"), every(0, 2));
                wanted.insert(format!("blk.{block}.ffn_up_exps.weight"), every(1, 2));
            }
        }
    }
    golden.checkpoint.config["quantization_config"] = json!({ "quant_method": "mxfp4" });
    let out = folder();
    let model = out.path().join("model");
    golden.checkpoint.write(&model);
    // The experts are in a shard of their own.
    let views = packed.iter().map(|(name, shape, bytes)| {
        (name.clone(), safetensors::tensor::TensorView::new(Dtype::U8, shape.clone(), bytes).unwrap())
    });
    let shard = "experts.safetensors";
    safetensors::serialize_to_file(views, None, &model.join(shard)).unwrap();
    let mut map: BTreeMap<&str, &str> = packed.iter().map(|(name, _, _)| (name.as_str(), shard)).collect();
    map.extend(golden.checkpoint.tensors.keys().map(|name| (name.as_str(), "model.safetensors")));
    fs::write(model.join("model.safetensors.index.json"), json!({ "weight_map": map }).to_string()).unwrap();
    for (kind, method) in [("F32", "rtn"), ("MXFP4_MOE", "rtn"), ("MXFP4_MOE", "gptq")] {
        let file = out.path().join(format!("{kind}-{method}.gguf"));
        let windows = ["--samples", "8", "--seq-len", "64"];
        llmq!["quantize", &model, "-o", &file, "--type", kind, "--method", method; windows].ok();
        let found = numbers(&file);
        for (name, values) in &wanted {
            assert!(found[name].iter().zip(values).all(|(a, b)| a == b), "{kind} {method}: {name} has other numbers");
        }
    }
    packed[1].2[3] = 255;
    let views = packed.iter().map(|(name, shape, bytes)| {
        (name.clone(), safetensors::tensor::TensorView::new(Dtype::U8, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &model.join(shard)).unwrap();
    let file = out.path().join("damaged.gguf");
    let args = ["--type", "F32", "--method", "rtn"];
    llmq!["quantize", &model, "-o", &file; args]
        .failed(1, &["gate_up_proj_scales' holds NaN (255) at element 3", HINT]);
    assert!(!file.exists());
}
