//! Calibration and evaluation on sets by name, against a small hub on the loopback interface; several sources; conversations.

mod common;

use common::hub::{Fault, Hub, Repo};
use common::{Run, folder, llmq, run, tiny};
use flate2::Compression;
use flate2::write::GzEncoder;
use llmq::pipeline::weights::open_gguf;
use llmq::source::imatrix::Imatrix;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const C4: &str = "en/c4-train.00000-of-01024.json.gz";
const HINT: &str = "\nhint: ";

/// A calibrated run that takes a second or two.
const QUICK: [&str; 8] = ["--type", "Q4_0", "--method", "gptq", "--sweeps", "0", "--no-gptaq", "--no-order"];

/// Documents of random words, between two lengths.
fn documents(count: usize, words: std::ops::Range<usize>, seed: u64) -> Vec<String> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let word = |random: &mut ChaCha8Rng| {
        let letters = random.random_range(1..9);
        (0..letters).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect::<String>()
    };
    let document = |random: &mut ChaCha8Rng| {
        let words = random.random_range(words.clone());
        (0..words).map(|_| word(random)).collect::<Vec<_>>().join(" ")
    };
    (0..count).map(|_| document(&mut random)).collect()
}

/// Documents as C4 has them.
fn packed(documents: &[String], how: Compression) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), how);
    for text in documents {
        writeln!(packer, "{}", json!({ "text": text, "timestamp": "2019", "url": "http://x" })).unwrap();
    }
    packer.finish().unwrap()
}

fn c4(file: &str, content: Vec<u8>) -> Hub {
    Hub::new(vec![Repo::of_file("datasets/allenai/c4", file, content)])
}

/// Lines as the hub has WikiText.
fn parquet(lines: &[&str]) -> Vec<u8> {
    let schema = Arc::new(parse_message_type("message schema { OPTIONAL BYTE_ARRAY text (STRING); }").unwrap());
    let snappy = WriterProperties::builder().set_compression(parquet::basic::Compression::SNAPPY).build();
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(snappy)).unwrap();
    // More than one group of rows.
    for lines in lines.chunks(lines.len().div_ceil(2).max(1)) {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = lines.iter().map(|line| ByteArray::from(*line)).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&vec![1; lines.len()]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.into_inner().unwrap()
}

fn wikitext(split: &str, lines: &[&str]) -> Hub {
    let file = format!("wikitext-2-raw-v1/{split}-00000-of-00001.parquet");
    Hub::new(vec![Repo::of_file("datasets/Salesforce/wikitext", &file, parquet(lines))])
}

/// Quantizes with this calibration; what [`weights`] gives.
fn calibrated(hub: &Hub, home: &Path, model: &Path, options: &[&str]) -> Vec<u8> {
    let out = folder();
    attempt(hub, home, model, out.path(), options, &[]).ok();
    weights(out.path())
}

/// The bytes of all tensors of the file in this folder; its keys name the calibration, and so may differ.
fn weights(out: &Path) -> Vec<u8> {
    let file = open_gguf(&out.join("x.gguf")).unwrap();
    file.tensors.iter().flat_map(|tensor| file.data(tensor)).copied().collect()
}

fn attempt(hub: &Hub, home: &Path, model: &Path, out: &Path, options: &[&str], variables: &[(&str, &str)]) -> Run {
    let file = out.join("x.gguf");
    let mut args = [&["quantize", model.to_str().unwrap(), "-o", file.to_str().unwrap()], &QUICK[..], options].concat();
    for (option, value) in [("--samples", "6"), ("--seq-len", "64")] {
        if !options.contains(&option) {
            args.extend([option, value]);
        }
    }
    run(hub.command(home, &args).envs(variables.iter().copied()))
}

/// A file of its own.
fn written(name: &str, content: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let root = folder();
    let path = root.path().join(name);
    fs::write(&path, content).unwrap();
    (root, path)
}

/// What is kept of C4's beginning.
fn kept(home: &Path) -> PathBuf {
    home.join("hub/datasets--allenai--c4/llmq").join("d".repeat(40)).join(C4)
}

#[test]
fn only_the_beginning_of_c4_is_fetched_and_kept() {
    let all = documents(12_000, 20..400, 1);
    let content = packed(&all, Compression::none());
    assert!(content.len() > 12_000_000);
    let hub = c4(C4, content.clone());
    let (home, out) = (folder(), folder());
    let run = attempt(&hub, home.path(), &tiny(), out.path(), &["--calib", "c4"], &[]).ok();
    assert!(run.stderr.contains("allenai/c4"), "{}", run.stderr);
    let first = weights(out.path());
    let part = fs::read(kept(home.path())).unwrap();
    assert!(part.len() < content.len() / 2 && content.starts_with(&part), "{} bytes", part.len());
    hub.requests();
    let offline = [("HF_HUB_OFFLINE", "1")];
    let again = folder();
    attempt(&hub, home.path(), &tiny(), again.path(), &["--calib", "c4"], &offline).ok();
    assert!(weights(again.path()) == first);
    // Online, too, nothing is asked.
    assert!(calibrated(&hub, home.path(), &tiny(), &["--calib", "c4"]) == first);
    assert_eq!(hub.requests().len(), 0);
    assert!(calibrated(&hub, home.path(), &tiny(), &["--calib", "c4", "--seed", "1"]) != first);
    // More windows need more text, which follows on what is there.
    let more = ["--calib", "c4", "--samples", "300"];
    let out = folder();
    let first = format!("the first {} bytes", part.len());
    let run = attempt(&hub, home.path(), &tiny(), out.path(), &more, &offline);
    run.failed(1, &["HF_HUB_OFFLINE is set", &first, HINT, "--samples"]);
    attempt(&hub, home.path(), &tiny(), out.path(), &more, &[]).ok();
    let from = format!("bytes={}-", part.len());
    let requests = hub.requests();
    assert!(requests.iter().any(|r| r.cdn && r.range.as_ref() == Some(&from)), "{requests:?}");
}

#[test]
fn c4_takes_long_documents_and_packed_all_of_them() {
    // Three that are long enough among many that are not.
    let mut all = documents(40, 5..20, 2);
    let long = documents(3, 200..300, 3);
    for (i, text) in long.iter().enumerate() {
        all.insert(7 * i, text.clone());
    }
    let hub = c4(C4, packed(&all, Compression::fast()));
    let home = folder();
    let within = calibrated(&hub, home.path(), &tiny(), &["--calib", "c4"]);
    // All of it was read, so it is kept as any other file.
    let snapshot = home.path().join("hub/datasets--allenai--c4/snapshots").join("d".repeat(40)).join(C4);
    assert!(fs::read(snapshot).unwrap() == packed(&all, Compression::fast()) && !kept(home.path()).exists());
    let offline = folder();
    let no_network = [("HF_HUB_OFFLINE", "1")];
    attempt(&hub, home.path(), &tiny(), offline.path(), &["--calib", "c4"], &no_network).ok();
    assert!(weights(offline.path()) == within);
    // Short ones do not matter.
    let only = c4(C4, packed(&long, Compression::fast()));
    assert!(within == calibrated(&only, folder().path(), &tiny(), &["--calib", "c4"]));
    // Packed, it is a file like any other; so many windows need all of it.
    let (_root, path) = written("all.json.gz", packed(&all, Compression::fast()));
    let of = |options: &[&str]| {
        let options = [options, &["--samples", "64"]].concat();
        calibrated(&hub, home.path(), &tiny(), &options)
    };
    let file = of(&["--calib", path.to_str().unwrap()]);
    assert!(file == of(&["--calib", "c4", "--pack"]) && file != of(&["--calib", "c4"]));
    let out = folder();
    attempt(&hub, home.path(), &tiny(), out.path(), &["--calib", "c4", "--seq-len", "4096"], &[])
        .failed(1, &["c4", "no document is long enough", "4096", HINT, "--pack"]);
}

#[test]
fn broken_transfers_and_files_of_c4_are_told() {
    let all = documents(4000, 20..400, 4);
    let hub = c4(C4, packed(&all, Compression::none()));
    let sound = calibrated(&hub, folder().path(), &tiny(), &["--calib", "c4"]);
    let home = folder();
    hub.fault(C4, Fault::Cut(10_000), 2);
    assert!(calibrated(&hub, home.path(), &tiny(), &["--calib", "c4"]) == sound);
    // What is kept may be damaged.
    let part = kept(home.path());
    fs::write(&part, b"this is no gzip").unwrap();
    let out = folder();
    attempt(&hub, home.path(), &tiny(), out.path(), &["--calib", "c4"], &[])
        .failed(1, &[part.to_str().unwrap(), "line 1 cannot be read", HINT, "rm "]);
    let empty = folder();
    attempt(&hub, empty.path(), &tiny(), out.path(), &["--calib", "c4"], &[("HF_HUB_OFFLINE", "1")])
        .failed(1, &["HF_HUB_OFFLINE is set", C4, "allenai/c4", HINT]);
    let none = Hub::new(vec![]);
    attempt(&none, empty.path(), &tiny(), out.path(), &["--calib", "c4"], &[])
        .failed(1, &["allenai/c4", "HTTP 401", HINT]);
    attempt(&none, empty.path(), &tiny(), out.path(), &["--calib", "c5"], &[])
        .failed(1, &["cannot open c5", HINT, "c4 and wikitext2"]);
}

/// Lines as WikiText has them, the empty ones too.
fn lines() -> Vec<String> {
    let texts = documents(60, 20..120, 5);
    texts.iter().enumerate().map(|(i, text)| if i % 3 == 0 { String::new() } else { format!(" {text} \n") }).collect()
}

#[test]
fn wikitext2_is_its_lines_joined_by_empty_lines() {
    let lines = lines();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let (_root, path) = written("joined.txt", lines.join("\n\n"));
    let path = path.to_str().unwrap();
    let (hub, home) = (wikitext("train", &lines), folder());
    let named = calibrated(&hub, home.path(), &tiny(), &["--calib", "wikitext2"]);
    assert!(named == calibrated(&hub, home.path(), &tiny(), &["--calib", path]));

    let (hub, home) = (wikitext("test", &lines), folder());
    let of = |run: Run| run.ok().summary();
    let model = tiny();
    let args = ["eval", model.to_str().unwrap(), "--perplexity", "--json", "-c", "128", "--data", "wikitext2"];
    let summary = of(hub.llmq(home.path(), &args));
    let file = of(llmq!["eval", tiny(), "--perplexity", "--json", "-c", "128", "-f", path]);
    assert_eq!((&summary["perplexity"], &summary["text"]), (&file["perplexity"], &json!("wikitext2")));
    hub.requests();
    let offline = of(run(hub.command(home.path(), &args).env("HF_HUB_OFFLINE", "1")));
    assert_eq!((&offline["perplexity"], hub.requests().len()), (&file["perplexity"], 0));
    let wrong = ["eval", model.to_str().unwrap(), "--perplexity", "--data", "ptb"];
    hub.llmq(home.path(), &wrong).failed(2, &["no set 'ptb'", HINT, "c4 and wikitext2"]);
}

/// An importance matrix is measured on the training texts, too, and says how much of C4 it would need.
#[test]
fn importance_takes_sets_by_name() {
    let lines = vec!["The quick brown fox jumps over the lazy dog."; 200];
    let (hub, home, out) = (wikitext("train", &lines), folder(), folder());
    let [named, file, text] = ["named.gguf", "file.gguf", "text.txt"].map(|name| out.path().join(name));
    fs::write(&text, lines.join("\n\n")).unwrap();
    let measure = |from: &str, to: &Path| {
        let of =
            ["imatrix", tiny().to_str().unwrap(), "-c", "64", "-o", to.to_str().unwrap(), "-f", from].map(String::from);
        hub.llmq(home.path(), &of)
    };
    measure("wikitext2", &named).ok();
    measure(text.to_str().unwrap(), &file).ok();
    let sums = |path: &Path| Imatrix::read(path).unwrap().entries["blk.0.attn_q.weight"].sums.clone();
    assert!(sums(&named) == sums(&file));
    measure("c4", &out.path().join("x.gguf")).failed(2, &["c4", HINT, "--chunks"]);
}

#[test]
fn a_parquet_file_that_is_none_is_named() {
    let file = "wikitext-2-raw-v1/train-00000-of-00001.parquet";
    let hub = Hub::new(vec![Repo::of_file("datasets/Salesforce/wikitext", file, b"PAR1 or not".to_vec())]);
    let (home, out) = (folder(), folder());
    attempt(&hub, home.path(), &tiny(), out.path(), &["--calib", "wikitext2"], &[])
        .failed(1, &["train-00000-of-00001.parquet", "column 'text'", "caused by", HINT, "rm "]);
}

#[test]
fn c4_judges_on_the_first_1100_validation_texts() {
    let all = documents(1200, 5..30, 6);
    let hub = c4("en/c4-validation.00000-of-00008.json.gz", packed(&all, Compression::fast()));
    let (_root, path) = written("joined.txt", all[..1100].join(" "));
    let home = folder();
    let common = ["--perplexity", "--json", "-c", "128", "--chunks", "40", "--protocol", "hf"];
    let model = tiny();
    let named = hub.llmq(home.path(), &[&["eval", model.to_str().unwrap(), "--data", "c4"], &common[..]].concat());
    let file = llmq!["eval", tiny(), "-f", &path; common];
    assert_eq!(named.ok().summary()["perplexity"], file.ok().summary()["perplexity"]);
}

#[test]
fn several_sources_have_their_shares() {
    let (_one, one) = written("one.txt", documents(1, 3000..3001, 7).concat());
    let (_two, two) = written("two.txt", documents(1, 3000..3001, 8).concat());
    let (one, two) = (one.to_str().unwrap(), two.to_str().unwrap());
    let hub = c4(C4, packed(&documents(50, 100..200, 9), Compression::fast()));
    let home = folder();
    let of = |calib: &str| calibrated(&hub, home.path(), &tiny(), &["--calib", calib]);
    let (pooled, half) = (of(&format!("{one},{two}")), of(&format!("{one}:1,{two}:1")));
    assert!(pooled != half && half == of(&format!("{one}:0.5,{two}:0.5")));
    // A share so small that it is no window is as good as none.
    assert!(of(&format!("{one}:1000,{two}:1")) != half);
    let mixed = of(&format!("c4:0.5,{one}:0.5"));
    assert!(mixed == of(&format!("c4,{one}")) && mixed != of("c4") && mixed != of(one));
    let out = folder();
    for (calib, told) in [(format!("c4:0.7,{one}"), "has none"), ("c4:0".into(), "not a number above zero")] {
        attempt(&hub, home.path(), &tiny(), out.path(), &["--calib", &calib], &[]).failed(2, &[told, HINT, "c4:0.7"]);
    }
}

/// The tiny checkpoint with a chat template.
fn chatty(template: &str) -> (tempfile::TempDir, PathBuf) {
    let root = folder();
    let model = root.path().join("tiny");
    fs::create_dir(&model).unwrap();
    for name in ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(tiny().join(name), model.join(name)).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&fs::read(tiny().join("tokenizer_config.json")).unwrap()).unwrap();
    config["chat_template"] = template.into();
    fs::write(model.join("tokenizer_config.json"), config.to_string()).unwrap();
    (root, model)
}

#[test]
fn conversations_are_written_with_the_models_own_template() {
    const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{% if message.role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}[{{ message['role'].upper() }}] {{ message.content | trim }}{{ eos_token if not loop.last }}\n{% endfor %}";
    let (_root, model) = chatty(TEMPLATE);
    let hub = Hub::new(vec![]);
    let home = folder();
    let texts = documents(20, 30..60, 10);
    let (mut chats, mut plain) = (String::new(), String::new());
    let special: Value = serde_json::from_slice(&fs::read(model.join("tokenizer_config.json")).unwrap()).unwrap();
    let eos = special["eos_token"].as_str().unwrap();
    for pair in texts.chunks(2) {
        let messages = json!([{ "role": "user", "content": format!(" {} ", pair[0]) }, { "role": "assistant", "content": pair[1] }]);
        chats += &format!("{}\n", json!({ "messages": messages }));
        let text = format!("[USER] {}{eos}\n[ASSISTANT] {}\n", pair[0], pair[1]);
        plain += &format!("{}\n", json!({ "text": text }));
    }
    let (_a, chats) = written("chats.jsonl", chats);
    let (_b, plain) = written("plain.jsonl", plain);
    let of = |path: &Path| calibrated(&hub, home.path(), &model, &["--calib", path.to_str().unwrap()]);
    assert!(of(&chats) == of(&plain));

    let out = folder();
    let refused = |model: &Path, content: &str, wanted: &[&str]| {
        let (_root, path) = written("bad.jsonl", content);
        attempt(&hub, home.path(), model, out.path(), &["--calib", path.to_str().unwrap()], &[])
            .failed(1, &[&["bad.jsonl: line 2", HINT], wanted].concat());
    };
    let good = json!({ "messages": [{ "role": "user", "content": "x" }] }).to_string();
    let robot = json!({ "messages": [{ "role": "robot", "content": "x" }] }).to_string();
    refused(&model, &format!("{good}\n{robot}\n"), &["no robots"]);
    refused(&model, &format!("{good}\n{{\"body\": 1}}\n"), &["\"text\" or \"messages\""]);
    refused(&tiny(), &format!("{{\"text\": \"x\"}}\n{good}\n"), &["no chat template"]);
}

#[test]
fn plans_with_sets_fetch_no_text() {
    let hub = Hub::new(vec![]);
    let home = folder();
    let model = tiny();
    let run = hub.llmq(home.path(), &["plan", model.to_str().unwrap(), "--calib", "c4:1,wikitext2:1", "--json"]).ok();
    assert!(run.summary()["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(hub.requests().len(), 0);
}
