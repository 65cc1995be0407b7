//! What stands in a block instead of plain attention and an MLP: every command can do with it what it does with these.

mod common;

use candle_core::Device;
use common::golden::{self, Golden};
use common::{BINARY, divergence, folder, llmq, tensors};
use llmq::eval::perplexity::{self, Protocol};
use llmq::model::frame::Frame;
use llmq::model::mixer::Mixer;
use llmq::model::mixer::attention::{Gate, KeysValues};
use llmq::model::states::States;
use llmq::pipeline::loaded_model::LoadedModel;
use llmq::pipeline::weights::open_gguf;
use llmq::source::imatrix::Imatrix;
use safetensors::Dtype;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const TEXT: &str = include_str!("../eval/heldout.txt");

/// What is special about a mixer; plain ones are none of these.
fn kind(mixer: &Mixer) -> Option<&'static str> {
    match mixer {
        Mixer::Attention(own) if own.gate == Gate::WithQueries => Some("gated attention"),
        Mixer::Attention(own) if own.keys_values == KeysValues::Same => Some("attention whose values are its keys"),
        Mixer::Attention(own) if matches!(own.keys_values, KeysValues::Shared { .. }) => {
            Some("attention with others' keys")
        }
        Mixer::Attention(own) if own.value_dim.is_some() => Some("attention with narrow values"),
        Mixer::Attention(own) if own.value_norm => Some("attention with a norm of values"),
        Mixer::GatedDeltaNet(own) if own.grouped => Some("gated delta net, value heads beside each other"),
        Mixer::GatedDeltaNet(_) => Some("gated delta net, value heads going round"),
        Mixer::KimiDeltaAttention(_) => Some("Kimi Delta Attention"),
        Mixer::LatentAttention(own) if own.gate => Some("gated attention through narrow vectors"),
        Mixer::PerLayerGate(_) => Some("per-layer gate"),
        Mixer::Experts(own) if own.beside.is_some() => Some("experts beside an MLP"),
        _ => None,
    }
}

/// How far what each half adds to the stream is from what it adds in the original, on the original's own activations and on text that no
/// calibration saw: `‖Δ′ − Δ‖² / ‖Δ‖²`, the mean over the halves of each kind.
fn half_errors(file: &Path, original: &Path) -> BTreeMap<&'static str, f64> {
    let [file, original] = [file, original].map(|path| LoadedModel::open(path, None).unwrap());
    let windows = perplexity::windows(&original, TEXT, Protocol::LlamaCpp, 64, Some(8)).unwrap();
    let frame = |loaded: &LoadedModel| Frame::new(&loaded.model, loaded.pairing(), 64, &Device::Cpu).unwrap();
    let frames = [frame(&file), frame(&original)];
    let mut sums: BTreeMap<&'static str, (f64, f64)> = BTreeMap::new();
    for mut states in original.embed(&windows, &Device::Cpu).unwrap() {
        for i in 0..original.model.blocks.len() {
            let blocks = [file.block(&frames[0], i).unwrap(), original.block(&frames[1], i).unwrap()];
            let before = states.clone();
            for half in blocks[1].halves() {
                let [own, wanted] = blocks.each_ref().map(|block| block.half(half, &states, &before).unwrap());
                let square = |a: &States, b: &States| {
                    let gap = (a.streams().unwrap() - b.streams().unwrap()).unwrap().sqr().unwrap().sum_all().unwrap();
                    f64::from(gap.to_scalar::<f32>().unwrap())
                };
                if let Some(kind) = kind(&original.model.blocks[i].halves[half].mixer) {
                    let sum = sums.entry(kind).or_default();
                    sum.0 += square(&own, &wanted) / square(&wanted, &states);
                    sum.1 += 1.0;
                }
                states = wanted;
            }
        }
    }
    sums.into_iter().map(|(kind, (sum, n))| (kind, sum / n)).collect()
}

/// A model in which a few channels are far larger than others, and tokens are alike in most directions, as in trained ones.
fn structured(name: &str) -> Golden {
    let mut golden = golden::read(name);
    let zero_centred = name.starts_with("qwen");
    for (name, weights) in &mut golden.checkpoint.tensors {
        let width = weights.shape[weights.shape.len() - 1];
        if name.contains("embed_tokens") || name.contains("word_embeddings") {
            for row in weights.numbers.chunks_mut(width) {
                let few: Vec<f32> = row[..8].to_vec();
                for (j, x) in row.iter_mut().enumerate() {
                    let along = |(k, c): (usize, &f32)| c * ((k + 1) as f32 * (j as f32 + 0.5)).cos();
                    *x = 0.3 * *x + few.iter().enumerate().map(along).sum::<f32>() / 2.0;
                }
            }
        }
        let in_front = ["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm"];
        if in_front.iter().any(|norm| name.contains(norm)) && (zero_centred || !name.contains("post_attention")) {
            for channel in [5, 21, 40] {
                weights.numbers[channel] += 6.0;
            }
        }
    }
    golden
}

/// A quarter less at least. Without what makes up for the errors of earlier layers, which serves the stream and not the half by itself.
#[test]
fn methods_lower_the_error_of_every_kind_of_half() {
    let (mut seen, mut wrong) = (BTreeSet::new(), Vec::new());
    for name in
        ["qwen3_5", "qwen3_next", "gemma4", "gemma4_e2b", "gemma4_moe", "gemma3n", "mimo_v2_flash", "bailing_hybrid"]
    {
        let out = folder();
        let model = out.path().join("model");
        structured(name).checkpoint.write(&model);
        let [rtn, gptq, awq] = ["rtn", "gptq", "awq+gptq"].map(|method| {
            let file = out.path().join(format!("{method}.gguf"));
            let options = ["--samples", "64", "--seq-len", "64", "--no-gptaq"];
            llmq!["quantize", &model, "-o", &file, "--type", "Q4_0", "--method", method; options].ok();
            half_errors(&file, &model)
        });
        for (kind, rtn) in &rtn {
            seen.insert(*kind);
            if gptq[kind].max(awq[kind]) > 0.75 * rtn {
                wrong.push(format!("{name}: {kind}: rtn {rtn}, gptq {}, awq+gptq {}", gptq[kind], awq[kind]));
            }
        }
    }
    assert_eq!(seen.len(), 11, "{seen:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// And with everything that is usual, the model is nearer to the original.
#[test]
fn calibration_helps_models_with_structure() {
    for name in ["qwen3_5", "qwen3_next", "gemma4_e2b", "gemma4_moe", "gemma3n"] {
        let out = folder();
        let model = out.path().join("model");
        structured(name).checkpoint.write(&model);
        let [rtn, auto] = ["rtn", "auto"].map(|method| {
            let file = out.path().join(format!("{method}.gguf"));
            let options = ["--samples", "64", "--seq-len", "64"];
            llmq!["quantize", &model, "-o", &file, "--type", "Q4_0", "--method", method; options].ok();
            kl(&file, &model)
        });
        assert!(auto < 0.8 * rtn, "{name}: rtn {rtn}, auto {auto}");
    }
}

fn kl(file: &Path, original: &Path) -> f64 {
    divergence(file, original, &["--chunks", "16", "-c", "64"])["kl_divergence"].as_f64().unwrap()
}

/// What recurrent mixers remember of a window is forgotten before the next one.
#[test]
fn a_window_does_not_see_the_one_before_it() {
    const LENGTH: usize = 80;
    for name in [
        "qwen3_5",
        "qwen3_next",
        "gemma4",
        "gemma4_e2b",
        "gemma4_moe",
        "gemma3n",
        "mimo_v2_flash",
        "hrm_text",
        "bailing_hybrid",
        "deepseek_v32",
    ] {
        let out = folder();
        golden::read(name).checkpoint.write(out.path());
        let loaded = LoadedModel::open(out.path(), None).unwrap();
        let windows = perplexity::windows(&loaded, TEXT, Protocol::LlamaCpp, LENGTH, Some(3)).unwrap();
        let frame = Frame::new(&loaded.model, loaded.pairing(), LENGTH, &Device::Cpu).unwrap();
        let of = |windows: &[Vec<u32>]| {
            let mut states = States::cat(&loaded.embed(windows, &Device::Cpu).unwrap()).unwrap();
            for i in 0..loaded.model.blocks.len() {
                states = loaded.block(&frame, i).unwrap().forward(&states).unwrap();
            }
            let width = loaded.model.hidden * LENGTH;
            let numbers = states.h.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            numbers.chunks(width).map(<[f32]>::to_vec).collect::<Vec<_>>()
        };
        let together = of(&windows);
        for (i, window) in windows.iter().enumerate() {
            let alone = &of(std::slice::from_ref(window))[0];
            // Products of other sizes may be added up in another order.
            let apart = |(a, b): (&f32, &f32)| (a - b).abs() / b.abs().max(1.0);
            let worst = together[i].iter().zip(alone).map(apart).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{name}: window {i} differs by {worst:e}");
        }
    }
}

const FAMILIES: [&str; 5] = ["qwen3_5", "qwen3_5_moe", "gemma4_e2b", "gemma4_moe", "gemma3n"];
const WINDOWS: [&str; 4] = ["--samples", "16", "--seq-len", "64"];
const FEW: [&str; 4] = ["--chunks", "4", "-c", "64"];

/// A checkpoint in half precision, which a GGUF holds exactly.
fn written(name: &str, folder: &Path) -> PathBuf {
    let mut golden = golden::read(name);
    golden.checkpoint.dtype = Dtype::F16;
    golden.checkpoint.write(&folder.join("model"));
    folder.join("model")
}

/// Names of the tensors of blocks that are rounded to codes.
fn rounded(file: &Path) -> Vec<String> {
    let of_blocks = tensors(file).into_iter().filter(|tensor| tensor["kind"].as_str().unwrap().starts_with('Q'));
    let names = of_blocks.map(|tensor| tensor["name"].as_str().unwrap().to_owned());
    names.filter(|name| name.starts_with("blk.")).collect()
}

#[test]
fn every_command_takes_every_mixer() {
    for name in FAMILIES {
        let out = folder();
        let model = written(name, out.path());
        let path = |name: &str| out.path().join(name);
        let [gptq, rtn, saved, measured, chosen] =
            ["gptq.gguf", "rtn.gguf", "saved.gguf", "measured.gguf", "chosen.gguf"].map(path);
        llmq!["plan", &model, "--type", "Q4_K_M"].ok();
        let options = [&WINDOWS[..], &["--type", "Q4_0", "--method", "gptq", "--json"]].concat();
        let run = llmq!["quantize", &model, "-o", &gptq, "--save-imatrix", &saved; options].ok();
        let rounded = rounded(&gptq);
        for tensor in run.lines("tensor").iter().filter(|t| rounded.iter().any(|name| t["name"] == **name)) {
            assert!(tensor["method"] == "gptq" && tensor["relative_error"].is_f64(), "{name}: {tensor}");
        }
        // What layers see, during calibration and by itself.
        llmq!["imatrix", &model, "-o", &measured; FEW].ok();
        for imatrix in [&saved, &measured] {
            let entries = Imatrix::read(imatrix).unwrap().entries;
            for tensor in &rounded {
                let seen = entries.get(tensor).is_some_and(|entry| entry.sums.iter().any(|&sum| sum > 0.0));
                assert!(seen, "{name}: nothing is known of {tensor}");
            }
        }
        llmq!["quantize", &model, "-o", &rtn, "--type", "Q4_0", "--method", "rtn", "--imatrix", &measured].ok();
        // A budget: every tensor of few bits was measured, but for those that keep eight.
        let budget = [&WINDOWS[..], &["--target-bpw", "6", "--method", "gptq", "--json"]].concat();
        let dry = llmq!["quantize", &model, "-o", &chosen, "--dry-run"; &budget].ok();
        let steers = |name: &str| name.contains("ssm_alpha") || name.contains("ssm_beta");
        for tensor in dry.lines("tensor") {
            let (name, kind) = (tensor["name"].as_str().unwrap(), tensor["to"].as_str().unwrap());
            let coded = kind.starts_with('Q') || kind.starts_with("IQ");
            assert_eq!(tensor["loss_share"].is_f64(), coded && !steers(name), "{tensor}");
            assert!(!steers(name) || kind == "Q8_0", "{tensor}");
        }
        let bits =
            llmq!["quantize", &model, "-o", &chosen; &budget].ok().summary()["bits_per_weight"].as_f64().unwrap();
        assert!((5.8..=6.0).contains(&bits), "{name}: {bits}");
        assert!(kl(&chosen, &model) < kl(&gptq, &model), "{name}");
        // What comes of it.
        llmq!["inspect", &chosen].ok();
        let how = [&FEW[..], &["--layers=2", "--json", "--reference", model.to_str().unwrap()]].concat();
        let layers = llmq!["eval", &gptq; how].ok().lines("layer");
        let blocks = LoadedModel::open(&model, None).unwrap().model.blocks.len();
        assert_eq!(layers.len(), blocks + 2, "{name}");
        assert!(layers[1..=blocks].iter().all(|layer| layer["kl_divergence"].as_f64().unwrap() > 0.0), "{layers:?}");
        let speed = llmq!["eval", &gptq, "--speed", "--json"].ok().summary()["speed"]["own"].clone();
        assert!(speed["generation_rate"]["median"].as_f64().unwrap() > 0.0, "{speed}");
        let run = llmq!["compare", &rtn, &chosen, "--reference", &model, "--json"; FEW].ok();
        assert_eq!(run.summary()["ranking"][0], chosen.to_str().unwrap(), "{name}");
    }
}

#[test]
fn a_gguf_is_as_good_a_source() {
    for name in FAMILIES.into_iter().chain(["deepseek_v32"]) {
        let out = folder();
        let model = written(name, out.path());
        let path = |name: &str| out.path().join(name);
        let source = path("F16.gguf");
        llmq!["quantize", &model, "-o", &source, "--type", "F16", "--method", "rtn"].ok();
        llmq!["plan", &source, "--type", "Q4_K_M"].ok();
        let [of_model, of_source] = [("model", &model), ("source", &source)].map(|(from, source)| {
            let [rtn, measured, auto] = ["rtn", "measured", "auto"].map(|name| path(&format!("{from}-{name}.gguf")));
            llmq!["quantize", source, "-o", &rtn, "--type", "Q4_0", "--method", "rtn"].ok();
            llmq!["imatrix", source, "-o", &measured; FEW].ok();
            llmq!["quantize", source, "-o", &auto, "--type", "Q4_0", "--method", "auto"; WINDOWS].ok();
            (rtn, measured, auto)
        });
        let [one, other] = [&of_model.0, &of_source.0].map(|path| open_gguf(path).unwrap());
        assert_eq!(one.tensors.len(), other.tensors.len(), "{name}");
        for info in &one.tensors {
            assert!(one.data(info) == other.data(other.tensor(&info.name).unwrap()), "{name}: {}", info.name);
        }
        let [one, other] = [&of_model.1, &of_source.1].map(|path| Imatrix::read(path).unwrap().entries);
        for (tensor, entry) in &one {
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-3 * b.abs().max(1e-3);
            assert!(entry.sums.iter().zip(&other[tensor].sums).all(near), "{name}: {tensor}");
        }
        // Products are added up in another order, so that some codes differ.
        let [rtn, one, other] = [&of_model.0, &of_model.2, &of_source.2].map(|file| kl(file, &model));
        assert!(
            one < rtn && other < rtn && (one / other).ln().abs() < 0.1,
            "{name}: rtn {rtn}, auto {one} and {other}"
        );
    }
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_bytes() {
    for name in FAMILIES.into_iter().chain(["deepseek_v32"]) {
        let out = folder();
        let model = written(name, out.path());
        let [whole, resumed] = ["whole.gguf", "resumed.gguf"].map(|name| out.path().join(name));
        let options = [&WINDOWS[..], &["--type", "Q4_0", "--method", "auto", "--json"]].concat();
        llmq!["quantize", &model, "-o", &whole; &options].ok();
        let mut command = Command::new(BINARY);
        command.arg("quantize").arg(&model).arg("-o").arg(&resumed).args(&options).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let begun = lines.find(|line| line.as_ref().unwrap().contains("\"blk.1.attn_norm.weight\""));
        assert!(begun.is_some(), "{name}: it ended before block 1");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!resumed.exists(), "{name}");
        let run = llmq!["quantize", &model, "-o", &resumed, "--resume"; &options].ok();
        assert!(run.lines("resumed")[0]["finished_blocks"].as_u64().unwrap() > 0, "{name}");
        assert!(std::fs::read(&resumed).unwrap() == std::fs::read(&whole).unwrap(), "{name}");
    }
}

/// An importance matrix has what they see each time, and a method that would see the first time alone is refused.
#[test]
fn blocks_that_run_several_times_are_measured_each_time() {
    let out = folder();
    let model = written("hrm_text", out.path());
    let [file, measured] = ["out.gguf", "measured.gguf"].map(|name| out.path().join(name));
    let options = [&WINDOWS[..], &["--type", "Q4_0", "--method", "auto"]].concat();
    let refused = llmq!["quantize", &model, "-o", &file; options];
    assert!(refused.code == Some(1) && refused.stderr.contains("runs its blocks several times"), "{}", refused.stderr);
    llmq!["imatrix", &model, "-o", &measured; FEW].ok();
    let entries = Imatrix::read(&measured).unwrap().entries;
    // Two stacks of two blocks; the low one runs four times, the high one twice.
    let tokens = |name: &str| entries[name].counts[0];
    assert_eq!(entries.len(), 4 * 8);
    assert_eq!(tokens("blk.0.attn_q.weight"), 2.0 * tokens("blk.3.ffn_down.weight"));
    llmq!["quantize", &model, "-o", &file, "--type", "Q4_0", "--method", "rtn", "--imatrix", &measured].ok();
    assert_eq!(rounded(&file).len(), 4 * 8);
    let how = [&FEW[..], &["--layers=2", "--json", "--reference", model.to_str().unwrap()]].concat();
    assert_eq!(llmq!["eval", &file; how].ok().lines("layer").len(), 12 + 2);
}

/// Layers that steer a state keep eight bits, which is said once with what it costs.
#[test]
fn the_price_of_steering_a_state_well_is_said() {
    for (name, parts) in [("qwen3_5", "ssm_alpha, ssm_beta"), ("qwen3_next", "ssm_ba")] {
        let out = folder();
        let model = written(name, out.path());
        let source = out.path().join("F16.gguf");
        llmq!["quantize", &model, "-o", &source, "--type", "F16", "--method", "rtn"].ok();
        let of = |from: &Path, options: &[&str]| {
            let file = out.path().join("out.gguf");
            let run =
                llmq!["quantize", from, "-o", &file, "--type", "Q4_0", "--method", "rtn", "--force", "--json"; options];
            let run = run.ok();
            let bytes: u64 = run.lines("tensor").iter().map(|tensor| tensor["bytes"].as_u64().unwrap()).sum();
            (run.summary()["notes"].as_array().unwrap().clone(), bytes, file)
        };
        let rule = parts.split(", ").map(|part| ["--tensor-type".to_owned(), format!("{part}=Q4_0")]);
        let rule = rule.collect::<Vec<_>>().concat();
        let rule: Vec<&str> = rule.iter().map(String::as_str).collect();
        for from in [&model, &source] {
            let (notes, bytes, file) = of(from, &[]);
            let first = parts.split(", ").next().unwrap();
            assert_eq!(common::kind(&file, &format!("blk.0.{first}.weight")), "Q8_0", "{name}");
            let (without, cheaper, file) = of(from, &rule);
            assert_eq!((without.len(), common::kind(&file, &format!("blk.0.{first}.weight"))), (0, "Q4_0".into()));
            assert_eq!(notes.len(), 1, "{notes:?}");
            let note = notes[0].as_str().unwrap();
            assert!(
                note.starts_with(&format!("{parts} of all blocks (")) && note.contains("instead of Q4_0"),
                "{note}"
            );
            assert!(note.ends_with(&format!("costs {} bytes", bytes - cheaper)), "{note}, {}", bytes - cheaper);
            let (pure, _, file) = of(from, &["--pure"]);
            assert_eq!((pure.len(), common::kind(&file, &format!("blk.0.{first}.weight"))), (0, "Q4_0".into()));
        }
    }
}

/// What a block adds for a token is what the file will hold of it while later layers are calibrated.
#[test]
fn embeddings_for_each_block_are_rounded_before_the_layers_that_see_them() {
    let out = folder();
    let model = written("gemma4_e2b", out.path());
    let [file, saved] = ["out.gguf", "saved.gguf"].map(|name| out.path().join(name));
    let sums = |kind: &str| {
        // Nothing else is rounded in front of block 4.
        let types = ["--tensor-type", "blk.[0-3]=F32", "--token-embedding-type", "F32", "--tensor-type"];
        let own = format!("per_layer_token_embd={kind}");
        let options = [&WINDOWS[..], &["--type", "Q8_0", "--method", "gptq", "--force"], &types, &[&own]].concat();
        llmq!["quantize", &model, "-o", &file, "--save-imatrix", &saved; options].ok();
        Imatrix::read(&saved).unwrap().entries["blk.0.proj.weight"].sums.clone()
    };
    let [exact, near, far] = ["F32", "Q8_0", "Q4_0"].map(sums);
    let apart = |own: &[f32]| own.iter().zip(&exact).map(|(a, b)| f64::from((a - b).abs() / b)).sum::<f64>();
    assert!(0.0 < apart(&near) && 4.0 * apart(&near) < apart(&far), "{} and {}", apart(&near), apart(&far));
}
