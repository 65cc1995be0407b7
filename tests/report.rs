//! `--report`, `--model-card` and `--layers`: what is published with a file, and which block loses most.

mod common;

use common::{folder, llmq, names, rounded, tiny};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const SHORT: [&str; 4] = ["-c", "128", "--chunks", "4"];

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// The elements of a page, in order: their names and attributes. Fails where tags do not nest.
fn elements(page: &str) -> Vec<(String, BTreeMap<String, String>)> {
    const VOID: [&str; 2] = ["meta", "!doctype"];
    const RAW: [&str; 2] = ["style", "script"];
    let (mut found, mut open, mut rest) = (Vec::new(), Vec::<String>::new(), page);
    while let Some(at) = rest.find('<') {
        let end = at + rest[at..].find('>').expect("a tag that ends");
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "before {}", &rest[..rest.len().min(80)]);
            continue;
        }
        let (name, mut attributes) = tag.split_once(' ').unwrap_or((tag.trim_end_matches('/'), ""));
        let mut own = BTreeMap::new();
        while let Some((key, more)) = attributes.split_once("=\"") {
            let (value, more) = more.split_once('"').expect("an attribute that ends");
            let text = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")];
            let value = text.iter().fold(value.to_owned(), |value, (from, to)| value.replace(from, to));
            own.insert(key.trim().to_owned(), value);
            attributes = more;
        }
        if RAW.contains(&name) {
            rest = &rest[rest.find(&format!("</{name}>")).expect("an end")..];
        }
        if !VOID.contains(&name) && !tag.ends_with('/') {
            open.push(name.to_owned());
        }
        found.push((name.to_owned(), own));
    }
    assert_eq!(open, [""; 0], "not closed");
    found
}

/// The JSON lines that a page carries.
fn data(page: &str) -> Vec<Value> {
    let start = "<script type=\"application/json\" id=\"llmq-data\">";
    let (_, rest) = page.split_once(start).expect("data");
    serde_json::from_str(rest.split_once("</script>").expect("an end").0).expect("JSON")
}

/// The numbers of marks that have all of these, in the page's order.
fn marks(page: &str, keys: &[&str]) -> Vec<Vec<String>> {
    let wanted =
        |own: BTreeMap<String, String>| keys.iter().map(|key| own.get(&format!("data-{key}")).cloned()).collect();
    elements(page).into_iter().filter_map(|(_, own)| wanted(own)).collect()
}

fn parsed(text: &str) -> f64 {
    text.parse().unwrap_or_else(|_| panic!("no number: {text}"))
}

/// The same number; reading JSON may move its last digit.
#[track_caller]
fn same(shown: &str, wanted: &Value) {
    let (shown, wanted) = (parsed(shown), number(wanted));
    assert!((shown - wanted).abs() <= 1e-14 * wanted.abs(), "{shown} instead of {wanted}");
}

/// Nothing is loaded from anywhere; every reference stays in the page.
fn loads_nothing(page: &str) {
    for (name, own) in elements(page) {
        assert!(
            !["link", "img", "iframe", "object", "embed", "base", "image", "use"].contains(&name.as_str()),
            "{name}"
        );
        for key in ["src", "href", "xlink:href", "srcset", "action", "onerror", "onload", "style"] {
            assert!(!own.contains_key(key), "{name} {key}");
        }
    }
    for wanted in ["http", "url(", "@import", "fetch(", "XMLHttp"] {
        let outside = page.replace("http-equiv", "");
        assert!(!outside.contains(wanted), "{wanted}");
    }
    assert!(page.contains("content=\"default-src 'none'; "));
}

/// Runs a command that writes a report and prints JSON.
fn reported(run: &[&Path], options: &[&str], page: &Path) -> (Vec<Value>, String) {
    let command = if run.len() > 1 { "compare" } else { "eval" };
    let mut all: Vec<&std::ffi::OsStr> = run.iter().map(|path| path.as_os_str()).collect();
    all.extend(SHORT.iter().chain(options).map(std::ffi::OsStr::new));
    let lines = llmq![command, "--reference", tiny(), "--report", page, "--json"; all].ok().json();
    (lines, fs::read_to_string(page).unwrap())
}

#[test]
fn the_page_of_one_file_has_the_numbers_of_the_json() {
    let out = folder();
    let file = rounded(out.path(), "Q4_0");
    let (lines, page) = reported(&[&file], &["--layers=2"], &out.path().join("report.html"));
    loads_nothing(&page);
    assert_eq!(data(&page), lines);
    let summary = lines.last().unwrap();

    let interval = marks(&page, &["file", "increase", "low", "high"]);
    let verdict = &summary["verdict"];
    let wanted = [&verdict["relative_increase"], &verdict["interval"][0], &verdict["interval"][1]];
    assert_eq!(interval.len(), 1);
    for (shown, wanted) in interval[0][1..].iter().zip(wanted) {
        same(shown, wanted);
    }
    let bins = marks(&page, &["low", "high", "tokens"]);
    let wanted = summary["kl_histogram"].as_array().unwrap();
    assert_eq!(bins.len(), wanted.len());
    for (bin, wanted) in bins.iter().zip(wanted) {
        bin.iter().zip(wanted.as_array().unwrap()).for_each(|(shown, wanted)| same(shown, wanted));
    }
    assert_eq!(bins.iter().map(|bin| parsed(&bin[2])).sum::<f64>(), number(&summary["tokens"]));

    let weights: Vec<&Value> = lines.iter().filter(|line| line["type"] == "weights").collect();
    let cells = marks(&page, &["tensor", "error"]);
    assert_eq!(cells.len(), 4 * 7, "seven matrices in each of four blocks");
    for cell in cells {
        let wanted = weights.iter().find(|line| line["tensor"] == cell[0].as_str()).unwrap();
        same(&cell[1], &wanted["error"]);
        assert!((1e-3..0.02).contains(&parsed(&cell[1])), "four bits lose about half a per cent: {cell:?}");
    }
    let layers: Vec<&Value> = lines.iter().filter(|line| line["type"] == "layer").collect();
    assert_eq!(layers.len(), 6);
    let bars = marks(&page, &["layer", "kl"]);
    for (bar, layer) in bars.iter().zip(&layers) {
        assert_eq!(bar[0], layer["layer"].as_str().unwrap());
        same(&bar[1], &layer["kl_divergence"]);
    }
    assert_eq!((bars.len(), marks(&page, &["layer", "stream"]).len()), (6, 5));
}

#[test]
fn the_page_of_several_files_has_all_of_them() {
    let out = folder();
    let [fine, coarse, peer] = ["Q6_K", "Q3_K_S", "Q4_0"].map(|kind| rounded(out.path(), kind));
    let peer = peer.to_str().unwrap();
    let (lines, page) = reported(&[&coarse, &fine], &["--peer", peer], &out.path().join("report.html"));
    loads_nothing(&page);
    assert_eq!(data(&page), lines);
    let files: Vec<&Value> = lines.iter().filter(|line| line["type"] == "file").collect();
    assert_eq!(files.iter().map(|file| file["peer"] == true).collect::<Vec<_>>(), [false, true, false]);
    let points = marks(&page, &["file", "bytes", "kl"]);
    assert_eq!(points.len(), 3);
    for point in points {
        let name = |file: &Value| Path::new(file["model"].as_str().unwrap()).file_name().unwrap().to_owned();
        let file = files.iter().find(|file| name(file) == *point[0]).unwrap();
        same(&point[1], &file["bytes"]);
        same(&point[2], &file["kl_divergence"]);
    }
    assert_eq!(marks(&page, &["increase"]).len(), 3);
    assert!(page.contains("<svg id=\"error-plot-2\""), "each has its errors");
}

#[test]
fn hashes_and_commands_lead_back_to_the_files() {
    let out = folder();
    let file = rounded(out.path(), "Q8_0");
    let [page, card] = ["r.html", "README.md"].map(|name| out.path().join(name));
    llmq!["eval", &file, "--reference", tiny(), "--report", &page, "--model-card", &card; SHORT].ok();
    let [page, card] = [page, card].map(|path| fs::read_to_string(path).unwrap());
    let sum =
        std::process::Command::new("sha256sum").arg(&file).arg(tiny().join("model.safetensors")).output().unwrap();
    for line in String::from_utf8(sum.stdout).unwrap().lines() {
        let hash = line.split(' ').next().unwrap();
        assert!(hash.len() == 64 && page.contains(hash) && card.contains(hash), "{line}");
    }
    for text in [&page, &card] {
        assert!(text.contains("llmq eval ") && text.contains("--chunks 4"), "{text}");
        assert!(text.contains("llmq quantize ") && text.contains("--type Q8_0 --method rtn"), "{text}");
    }
    assert!(card.starts_with("---\npipeline_tag: text-generation\nquantized_by: llmq\ntags:\n- gguf\n"), "{card}");
    assert!(
        card.contains("llama-completion -m Q8_0.gguf -no-cnv -c 512 -p") && card.contains("| Q8_0.gguf | Q8_0 |"),
        "{card}"
    );
}

#[test]
fn a_card_takes_over_what_the_original_says() {
    let out = folder();
    let model = out.path().join("models--some-org--tiny-1.0/snapshots/0123");
    fs::create_dir_all(&model).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(tiny().join(name), model.join(name)).unwrap();
    }
    fs::write(model.join("README.md"), "---\nlicense: mit\nlanguage:\n- en\n- no\ntags:\n- mine\n---\n# Tiny\n")
        .unwrap();
    let card = out.path().join("README.md");
    llmq!["eval", rounded(out.path(), "Q8_0"), "--reference", &model, "--model-card", &card; SHORT].ok();
    let card = fs::read_to_string(card).unwrap();
    let matter = "---\nbase_model: \"some-org/tiny-1.0\"\nbase_model_relation: quantized\nlicense: \"mit\"\nlanguage:\n- \"en\"\n\
                  - \"no\"\npipeline_tag: ";
    assert!(card.starts_with(matter), "{card}");
    assert!(card.contains("# tiny-1.0 in GGUF") && card.contains("https://huggingface.co/some-org/tiny-1.0"), "{card}");
}

#[test]
fn a_card_runs_the_file_as_the_original_wants_it() {
    let out = folder();
    let model = out.path().join("Tiny Chat");
    fs::create_dir_all(&model).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(tiny().join(name), model.join(name)).unwrap();
    }
    let mut tokenizer: Value =
        serde_json::from_slice(&fs::read(tiny().join("tokenizer_config.json")).unwrap()).unwrap();
    tokenizer["chat_template"] = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}".into();
    fs::write(model.join("tokenizer_config.json"), tokenizer.to_string()).unwrap();
    let generation = r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95}"#;
    fs::write(model.join("generation_config.json"), generation).unwrap();
    let [file, card] = ["Tiny Chat.gguf", "README.md"].map(|name| out.path().join(name));
    llmq!["quantize", &model, "-o", &file, "--type", "Q8_0", "--method", "rtn"].ok();
    llmq!["eval", &file, "--reference", &model, "--model-card", &card; SHORT].ok();
    let card = fs::read_to_string(card).unwrap();
    for wanted in [
        "llama-cli -m 'Tiny Chat.gguf' --jinja -c 512 --temp 0.6 --top-k 20 --top-p 0.95\n",
        "llama-server -m 'Tiny Chat.gguf' --jinja -c 512 --temp 0.6 --top-k 20 --top-p 0.95 --port",
        "FROM ./Tiny Chat.gguf\nPARAMETER num_ctx 512\nPARAMETER temperature 0.6\nPARAMETER top_k 20\nPARAMETER top_p 0.95\nEND\n",
        "ollama run tiny-chat\n",
        "lms import 'Tiny Chat.gguf'\n",
        "recommends temperature 0.6, top k 20, top p 0.95.",
    ] {
        assert!(card.contains(wanted), "no {wanted:?} in\n{card}");
    }
}

#[test]
fn whatever_a_file_says_stays_text() {
    const HOSTILE: &str = "</script><img src=x onerror=alert(1)>\"'\n---\nlicense: evil\n`|[a](http://b)";
    let out = folder();
    let file = out.path().join("a\"'<b>&|`.gguf");
    let keys = ["general.name", "general.license", "llmq.options", "general.quantized_by", "quantize.imatrix.file"];
    let keys: Vec<String> = keys.iter().map(|key| format!("--override-kv={key}=str:{HOSTILE}")).collect();
    llmq!["quantize", tiny(), "-o", &file, "--type", "Q8_0", "--method", "rtn"; keys].ok();
    let [page, card] = ["r.html", "README.md"].map(|name| out.path().join(name));
    llmq!["eval", &file, "--reference", tiny(), "--report", &page, "--model-card", &card; SHORT].ok();
    let page = fs::read_to_string(page).unwrap();
    let names: Vec<String> = elements(&page).into_iter().map(|(name, _)| name).collect();
    assert!(!names.contains(&"img".into()) && !names.contains(&"b".into()));
    assert_eq!(names.iter().filter(|name| *name == "script").count(), 2);
    assert!(page.contains("&lt;img src=x onerror=alert(1)&gt;"), "it is shown");
    assert!(data(&page).last().unwrap()["model"].as_str().unwrap().ends_with("a\"'<b>&|`.gguf"));
    let card = fs::read_to_string(card).unwrap();
    let matter: Vec<&str> = card.lines().skip(1).take_while(|line| *line != "---").collect();
    assert_eq!(matter.iter().filter(|line| line.starts_with("license:")).count(), 1, "{matter:?}");
    assert!(!card.contains("\nlicense: evil"), "{card}");
    // In code nothing is markup; everywhere else neither tag nor link is left.
    let body = card.splitn(3, "---\n").nth(2).unwrap();
    assert!(body.split('`').step_by(2).all(|text| !text.contains("<img") && !text.contains("[a](")), "{body}");
}

#[test]
fn nothing_is_overwritten_or_left_half_written() {
    let out = folder();
    let file = rounded(out.path(), "Q8_0");
    let page = out.path().join("r.html");
    fs::write(&page, "mine").unwrap();
    for option in ["--report", "--model-card"] {
        llmq!["eval", &file, "--reference", tiny(), option, &page; SHORT]
            .failed(2, &["r.html already exists", "--force"]);
        llmq!["eval", &file, "--reference", tiny(), option, &file, "--force"; SHORT].failed(2, &["is the input"]);
        llmq!["eval", &file, "--perplexity", option, &page; SHORT].failed(2, &["from its original", "--reference"]);
    }
    assert_eq!(fs::read_to_string(&page).unwrap(), "mine");
    llmq!["eval", &file, "--reference", tiny(), "--report", &page, "--force"; SHORT].ok();
    assert!(fs::read_to_string(&page).unwrap().starts_with("<!doctype html>"));
    llmq!["eval", &file, "--reference", tiny(), "--report", &page, "--model-card", &page, "--force"]
        .failed(2, &["both"]);
    assert_eq!(names(out.path()), ["Q8_0.gguf", "r.html"]);
}

/// Rounds to eight bits, and one tensor of a kind of one block to two.
fn with_one_coarse_block(out: &Path, block: usize) -> PathBuf {
    let file = out.join("coarse.gguf");
    let own = format!("^blk\\.{block}\\.=Q2_K");
    llmq!["quantize", tiny(), "-o", &file, "--type", "Q8_0", "--tensor-type", own, "--method", "rtn"].ok();
    file
}

#[test]
fn the_block_with_the_fewest_bits_loses_most() {
    let out = folder();
    let file = with_one_coarse_block(out.path(), 2);
    let run = llmq!["eval", &file, "--reference", tiny(), "--layers=3", "--json"; SHORT].ok();
    let layers = run.lines("layer");
    let names: Vec<&str> = layers.iter().map(|layer| layer["layer"].as_str().unwrap()).collect();
    assert_eq!(names, ["embedding", "block 0", "block 1", "block 2", "block 3", "output"]);
    let kl: Vec<f64> = layers.iter().map(|layer| number(&layer["kl_divergence"])).collect();
    assert!((0..6).all(|i| i == 3 || kl[i] < 0.05 * kl[3]), "{kl:?}");
    let stream: Vec<f64> = layers[..5].iter().map(|layer| number(&layer["stream_error"])).collect();
    assert!(stream[2] < 0.05 * stream[3], "{stream:?}");
    // It is almost all that the file loses.
    let whole = llmq!["eval", &file, "--reference", tiny(), "--json"; ["-c", "128", "--chunks", "3"]].ok().summary();
    assert!((kl[3] / number(&whole["kl_divergence"]) - 1.0).abs() < 0.1, "{kl:?} {whole}");

    let shown = llmq!["eval", &file, "--reference", tiny(), "--layers=1"; SHORT].ok().stdout;
    let longest = shown.lines().max_by_key(|line| line.matches('█').count()).unwrap();
    assert!(longest.starts_with("block 2 "), "{shown}");
}

#[test]
fn blocks_that_cannot_be_exchanged_are_refused() {
    let out = folder();
    let file = out.path().join("rotated.gguf");
    llmq!["quantize", tiny(), "-o", &file, "--type", "F16", "--rotate"].ok();
    let told = ["one by one", "its embedding is not the original's", "--rotate"];
    llmq!["eval", &file, "--reference", tiny(), "--layers"; SHORT].failed(1, &told);
    llmq!["eval", &file, "--layers"; SHORT].failed(2, &["--layers", "--reference MODEL"]);
    llmq!["eval", &file, "--reference", tiny(), "--layers=0"; SHORT].failed(2, &["--layers=1"]);
}
