//! `quantize --target-bpw` and `--target-size`: types that fill a budget.

mod common;

use common::checkpoint::Shape;
use common::{Run, folder, kind, llmq, names, perplexity, refused, tensors, tiny};
use llmq::pipeline::weights::open_gguf;
use llmq::source::value::Value as Key;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Little text: the measurement is what is tested, not its quality.
const SHORT: [&str; 4] = ["--samples", "8", "--seq-len", "128"];

fn dry(model: &Path, options: &[&str]) -> Run {
    llmq!["quantize", model, "--dry-run", "--json"; options.iter().chain(&SHORT)].ok()
}

fn real(model: &Path, output: &Path, options: &[&str]) -> Run {
    llmq!["quantize", model, "-o", output, "--json"; options.iter().chain(&SHORT)].ok()
}

/// Names and types.
fn types(run: &Run) -> Vec<(Value, Value)> {
    run.lines("tensor").iter().map(|t| (t["name"].clone(), t["to"].clone())).collect()
}

#[test]
fn bits_per_weight_are_kept_to_and_spent() {
    for target in ["2.8", "3.5", "4.5", "6.25"] {
        let run = dry(&tiny(), &["--target-bpw", target, "-m", "rtn"]);
        let (bits, wanted) = (run.summary()["bits_per_weight"].as_f64().unwrap(), target.parse::<f64>().unwrap());
        assert!(bits <= wanted && bits > wanted - 0.01, "{bits} for {target}");
        let shares: Vec<f64> = run.lines("tensor").iter().filter_map(|t| t["loss_share"].as_f64()).collect();
        assert_eq!(shares.len(), 1 + 4 * 7, "every matrix has its share");
        assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)));
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }
}

#[test]
fn more_bits_lose_less_by_estimate_and_in_truth() {
    let out = folder();
    let original = perplexity(&tiny(), &["-c", "256"]);
    let mut last = (f64::INFINITY, f64::INFINITY);
    for target in ["2.7", "3.4", "5"] {
        let file = out.path().join(target);
        let run = real(&tiny(), &file, &["--target-bpw", target, "-m", "rtn"]);
        let estimated = run.lines("choice")[0]["estimated_divergence"].as_f64().unwrap();
        let now = (estimated, (perplexity(&file, &["-c", "256"]) / original).ln());
        assert!(now.0 < last.0 && now.1 < last.1, "{now:?} after {last:?} at {target}");
        last = now;
    }
}

#[test]
fn the_size_of_the_file_is_within_the_target_and_near_it() {
    let out = folder();
    let file = out.path().join("out.gguf");
    let run = real(&tiny(), &file, &["--target-size", "1.625M"]);
    let size = fs::metadata(&file).unwrap().len();
    assert!((1_615_000..=1_625_000).contains(&size), "{size}");
    assert_eq!(run.summary()["bytes"], size);
    // The dry run says what the real one does.
    let plan = dry(&tiny(), &["--target-size", "1625kB"]);
    assert_eq!(plan.summary()["bytes"], size);
    assert_eq!(types(&plan), types(&run));
    // Shards have headers of their own, which count.
    let shards = out.path().join("shards");
    fs::create_dir(&shards).unwrap();
    real(&tiny(), &shards.join("out.gguf"), &["--target-size", "1.625M", "--max-shard-size", "500K", "-m", "rtn"]);
    let files = names(&shards);
    let sum: u64 = files.iter().map(|name| fs::metadata(shards.join(name)).unwrap().len()).sum();
    assert!(files.len() > 3 && sum <= 1_625_000 && sum > 1_600_000, "{files:?}: {sum}");
}

/// A GPU holds all that is left beside the context, but for an embedding that is not the output matrix, too.
#[test]
fn weights_fill_what_a_context_leaves_of_a_gpu() {
    let out = folder();
    let untied = out.path().join("untied");
    Shape { tied: false, ..Shape::default() }.write(&untied);
    for (model, tied) in [(tiny(), true), (untied, false)] {
        let fit = ["--fit", "13M", "--device-overhead", "0", "--reserve", "2M", "--context", "256", "--kv", "q8_0"];
        let plan = llmq!["plan", &model; fit.iter().chain(&["--json"])].ok().summary();
        let [cache, reserve, free] =
            ["cache_bytes", "reserve_bytes", "vram_bytes"].map(|key| plan[key].as_u64().unwrap());
        assert_eq!(free, 11_000_000);
        let run = dry(&model, &[&fit[..], &["-m", "rtn"]].concat());
        let on_gpu = |line: &&Value| tied || line["name"] != "token_embd.weight";
        let held: u64 = run.lines("tensor").iter().filter(on_gpu).map(|line| line["bytes"].as_u64().unwrap()).sum();
        let all = held + cache + reserve;
        assert!(all <= free && (all + 50_000 > free || !tied), "{held} with {cache} and {reserve} of {free}");
    }
    let tight = ["--fit", "9M", "--device-overhead", "0", "--context", "64k"];
    refused(&tiny(), &[&tight[..], &["-m", "rtn"]].concat(), 2, &["65536 tokens", "--kv q8_0"]);
    refused(&tiny(), &["--context", "256"], 2, &["--fit"]);
}

#[test]
fn the_same_bytes_come_out_at_any_number_of_threads() {
    let out = folder();
    let [one, three] = ["1", "3"].map(|threads| {
        let file = out.path().join(threads);
        real(&tiny(), &file, &["--target-bpw", "4.1", "--threads", threads]);
        fs::read(file).unwrap()
    });
    assert!(one == three);
}

#[test]
fn types_that_the_user_names_are_kept() {
    let named = ["--tensor-type", "attn_v=Q8_0", "--tensor-type", "ffn_down=F16", "--token-embedding-type", "Q3_K"];
    let run = dry(&tiny(), &[&["--target-bpw", "6.5", "-m", "rtn"], &named[..]].concat());
    for tensor in run.lines("tensor") {
        let (name, to) = (tensor["name"].as_str().unwrap(), tensor["to"].as_str().unwrap());
        let fixed = [("attn_v", "Q8_0"), ("ffn_down", "F16"), ("token_embd", "Q3_K"), ("norm", "F32")];
        match fixed.iter().find(|(part, _)| name.contains(part)) {
            Some((_, kind)) => assert_eq!((to, tensor["loss_share"].is_null()), (*kind, true), "{name}"),
            None => assert!(tensor["loss_share"].is_f64(), "{name}"),
        }
    }
    let bits = run.summary()["bits_per_weight"].as_f64().unwrap();
    assert!(bits <= 6.5 && bits > 6.3, "{bits}");
    // Where everything is named there is nothing to measure, and the target is still a limit.
    let all = ["--tensor-type", "weight=Q5_K"];
    assert!(types(&dry(&tiny(), &[&["--target-bpw", "6"], &all[..]].concat())).iter().any(|(_, to)| to == "Q5_K"));
    refused(&tiny(), &[&["--target-bpw", "5"], &all[..], &SHORT].concat(), 2, &["--target-bpw 5 is too little"]);
}

#[test]
fn rows_of_any_length_and_untied_outputs_have_their_types() {
    let out = folder();
    let model = out.path().join("model");
    Shape { tied: false, attention_bias: true, ..Shape::default() }.write(&model);
    let file = out.path().join("out.gguf");
    let run = real(&model, &file, &["--target-bpw", "5.2"]);
    let summary = run.summary();
    assert!(summary["bits_per_weight"].as_f64().unwrap() <= 5.2, "{summary}");
    assert_eq!(summary["fallbacks"], serde_json::json!([]), "what was chosen fits");
    let all = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "F32"];
    assert!(tensors(&file).iter().all(|t| all.contains(&t["kind"].as_str().unwrap())));
    for name in ["output.weight", "token_embd.weight"] {
        assert_ne!(kind(&file, name), "F32");
    }
    // A budget for everything takes the best of everything.
    let best = dry(&model, &["--target-bpw", "30"]);
    assert!(types(&best).iter().all(|(_, to)| to == "Q8_0" || to == "F32"));
}

#[test]
fn ggufs_are_measured_as_well() {
    let out = folder();
    let [single, half] = ["single.gguf", "half.gguf"].map(|name| out.path().join(name));
    llmq!["quantize", tiny(), "-o", &single, "--type", "F32"].ok();
    let options = ["--target-bpw", "4.5", "-m", "rtn"];
    // Rows of queries and keys come in another order, so that other rows are measured.
    let (from_folder, from_file) = (types(&dry(&tiny(), &options)), types(&dry(&single, &options)));
    let same = from_folder.iter().zip(&from_file).filter(|(a, b)| a == b).count();
    assert!(same + 4 >= from_folder.len(), "{same} of {}", from_folder.len());
    llmq!["quantize", tiny(), "-o", &half, "-m", "rtn", "--type", "F16", "--tensor-type", "ffn_up=Q6_K"].ok();
    let mut bytes = fs::read(&half).unwrap();
    let options = ["--target-bpw", "4", "-m", "rtn", "--tensor-type", "ffn_up=Q6_K"];
    assert!(dry(&half, &options).summary()["bits_per_weight"].as_f64().unwrap() <= 4.0);
    // A second rounding has to be asked for.
    refused(&half, &options[..4], 1, &["'blk.0.ffn_up.weight' is Q6_K already", "--allow-requantize"]);
    let again = dry(&half, &["--target-bpw", "4", "-m", "rtn", "--allow-requantize"]);
    assert!(again.lines("tensor").iter().all(|t| t["from"] != "Q6_K" || t["loss_share"].is_f64()));
    // What has no forward pass cannot be measured.
    let at = bytes.windows(5).position(|w| w == b"llama").unwrap();
    bytes[at..at + 5].copy_from_slice(b"hydra");
    fs::write(&half, bytes).unwrap();
    refused(&half, &options, 1, &["hydra", "hint: choose a mix"]);
}

#[test]
fn the_file_says_the_type_that_most_weights_have() {
    let out = folder();
    let file = out.path().join("out.gguf");
    let file_type = |options: &[&str]| {
        real(&tiny(), &file, &[options, &["-m", "rtn", "--force"]].concat());
        open_gguf(&file).unwrap().get("general.file_type").cloned()
    };
    assert_eq!(file_type(&["--target-bpw", "9"]), Some(Key::U32(7)), "Q8_0");
    assert_eq!(file_type(&["--target-bpw", "2"]), Some(Key::U32(24)), "IQ1_S");
    let own = ["--target-bpw", "9", "--override-kv", "general.file_type=int:1"];
    assert_ne!(file_type(&own), Some(Key::U32(7)));
}

#[test]
fn the_file_is_called_after_its_target() {
    let out = folder();
    let run = |options: &[&str]| {
        let mut command = std::process::Command::new(common::BINARY);
        command.current_dir(out.path()).arg("quantize").arg(tiny()).args(options).args(SHORT).args(["-m", "rtn"]);
        common::run(&mut command)
    };
    run(&["--target-bpw", "4.5"]).ok();
    run(&["--target-size", "1.7mb"]).ok();
    assert_eq!(names(out.path()), ["tiny.1.7MB.gguf", "tiny.4.50bpw.gguf"]);
    // Known before anything is measured.
    let again = run(&["--target-bpw", "4.5"]).failed(2, &["tiny.4.50bpw.gguf", "--force"]);
    assert!(!again.stderr.contains("measuring"), "{}", again.stderr);
}

#[test]
fn impossible_and_contradictory_targets_are_refused() {
    let refuse = |options: &[&str], wanted: &[&str]| {
        refused(&tiny(), &[options, &SHORT].concat(), 2, wanted);
    };
    refuse(&["--target-bpw", "1.5"], &["--target-bpw 1.5 is too little", "hint: give at least --target-bpw 1.5"]);
    refuse(&["--target-size", "500K"], &["--target-size 500000 is too little", "bytes", "hint: give at least"]);
    refuse(&["--target-size", "10"], &["is too little"]);
    refuse(&["--target-bpw", "0"], &["above zero"]);
    refuse(&["--target-bpw", "nan"], &["above zero"]);
    refuse(&["--target-size", "large"], &["'large' is no size"]);
    for other in [&["--target-size", "2M"][..], &["--type", "Q4_0"], &["--pure"]] {
        refuse(&[&["--target-bpw", "4"], other].concat(), &["cannot be used with"]);
        refuse(&[&["--target-size", "3M"], other].concat(), &["cannot be used"]);
    }
    // What is named in the hint is possible.
    let run = llmq!["quantize", tiny(), "--dry-run", "--target-bpw", "1"; SHORT];
    let least = run.stderr.rsplit(' ').next().unwrap().trim().to_owned();
    dry(&tiny(), &["--target-bpw", &least]);
}
