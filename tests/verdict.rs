//! `llmq eval --perplexity --reference`: all measures, the verdict, and what follows from it.

mod common;

use common::{divergence, folder, llmq, perplexity, rounded, tiny};
use serde_json::Value;

const SHORT: [&str; 4] = ["-c", "128", "--chunks", "12"];

fn judged(kind: &str) -> Value {
    let out = folder();
    let options = [&SHORT[..], &["--perplexity"]].concat();
    divergence(&rounded(out.path(), kind), &tiny(), &options)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

#[test]
fn the_measures_of_one_run_agree_with_each_other() {
    let s = judged("Q3_K_S");
    assert_eq!(s["reference_perplexity"], perplexity(&tiny(), &SHORT), "as in a run of its own");
    let (own, original, ln_ratio) =
        (number(&s["perplexity"]), number(&s["reference_perplexity"]), number(&s["ln_ratio"]));
    assert!((ln_ratio - (own / original).ln()).abs() < 1e-12, "{s}");
    assert!((number(&s["increase"]) - (own - original)).abs() < 1e-12, "{s}");
    // Paired: far more certain than either perplexity.
    assert!(number(&s["ln_ratio_error"]) < 0.3 * number(&s["perplexity_error"]) / own, "{s}");
    assert!(number(&s["correlation"]) > 0.9 && number(&s["same_top_error"]) > 0.0, "{s}");
    for key in ["kl", "delta_p"] {
        let quantiles: Vec<f64> = s[key]["quantiles"].as_object().unwrap().values().map(number).collect();
        assert_eq!(quantiles.len(), 11);
        assert!(quantiles.is_sorted() && quantiles[0] < quantiles[10], "{key}: {quantiles:?}");
        assert!(number(&s[key]["min"]) <= quantiles[0] && quantiles[10] <= number(&s[key]["max"]));
    }
    assert_eq!((&s["kl_p99"], &s["kl_divergence"]), (&s["kl"]["quantiles"]["0.99"], &s["kl"]["mean"]));
    assert!(number(&s["delta_p"]["rms"]["value"]) >= number(&s["delta_p"]["mean"]).abs(), "{s}");
    let parts = s["positions"].as_array().unwrap();
    assert_eq!(parts.iter().map(|part| part["tokens"].as_u64().unwrap()).sum::<u64>(), 12 * 63);
    assert_eq!((parts.len(), &parts[0]["first"], &parts[3]["last"]), (4, &65.into(), &127.into()));
    let mean = parts.iter().map(|p| number(&p["tokens"]) * number(&p["kl_divergence"])).sum::<f64>() / (12.0 * 63.0);
    assert!((mean - number(&s["kl_divergence"])).abs() < 1e-12, "{s}");

    let verdict = &s["verdict"];
    let (low, high) = (number(&verdict["interval"][0]), number(&verdict["interval"][1]));
    let increase = number(&verdict["relative_increase"]);
    assert!((increase - (own / original - 1.0)).abs() < 1e-12 && low < increase && increase < high, "{verdict}");
    assert_eq!((&verdict["max_increase"], &verdict["exceeded"]), (&Value::Null, &Value::Null));
}

#[test]
fn a_file_without_loss_is_excellent_and_one_of_two_bits_is_not() {
    let excellent = judged("F16");
    assert_eq!(
        (&excellent["verdict"]["grade"], &excellent["verdict"]["more_tokens"]),
        (&"excellent".into(), &Value::Null)
    );
    assert_eq!(excellent["verdict"]["next"], Value::Array(Vec::new()));

    let out = folder();
    let file = rounded(out.path(), "Q2_K");
    let shown = llmq!["eval", &file, "--perplexity", "--reference", tiny(), "-v"; SHORT].ok().stdout;
    let has = |wanted: &str| assert!(shown.contains(wanted), "no {wanted:?} in:\n{shown}");
    has("verdict         not recommended: perplexity rises by more than 3% (+");
    has("promise of INT4 perplexity rises by less than 0.5: not kept, +");
    has(&format!("llmq quantize {} --type ", tiny().display()));
    has("--method auto --target-bpw ");
    has("\n65 to 79 ");
    has("\n112 to 127 ");
}

#[test]
fn an_inconclusive_verdict_says_how_much_more_text_settles_it() {
    // One window of few tokens says little.
    let out = folder();
    let file = rounded(out.path(), "Q4_0");
    let options = ["-c", "32", "--chunks", "2", "--perplexity"];
    let verdict = divergence(&file, &tiny(), &options)["verdict"].clone();
    assert_eq!(verdict["grade"], "inconclusive", "{verdict}");
    assert!(verdict["between"][0] != verdict["between"][1], "{verdict}");
    let more = number(&verdict["more_tokens"]);
    let command = verdict["next"][0]["command"].as_str().unwrap();
    let windows: f64 = command.rsplit_once("--chunks ").unwrap().1.parse().unwrap();
    // 15 tokens of a window are scored; the number of windows is rounded up to two digits.
    assert!(windows >= 2.0 + more / 15.0 && windows <= 3.1 + 1.1 * (more / 15.0 + 1.0), "{verdict}");
    let shown = llmq!["eval", &file, "--reference", tiny(); options].ok().stdout;
    assert!(
        shown.contains("verdict         inconclusive, from ") && shown.contains(" more scored tokens ("),
        "{shown}"
    );
}

#[test]
fn max_increase_decides_about_the_exit_code() {
    let out = folder();
    let [coarse, fine] = ["Q2_K", "Q8_0"].map(|kind| rounded(out.path(), kind));
    let options = |most| [&SHORT[..], &["--max-increase", most]].concat();
    let told =
        ["Q2_K.gguf", "perplexity rises by ", "more than the 2% of --max-increase", "hint: more bits: llmq quantize"];
    let run = llmq!["eval", &coarse, "--reference", tiny(), "--json"; options("2%")].failed(1, &told);
    assert_eq!(
        (&run.summary()["verdict"]["exceeded"], &run.summary()["verdict"]["max_increase"]),
        (&true.into(), &0.02.into())
    );
    let summary = llmq!["eval", &fine, "--reference", tiny(), "--json"; options("2")].ok().summary();
    assert_eq!(summary["verdict"]["exceeded"], false);

    llmq!["eval", &fine, "--perplexity"; options("2%")].failed(2, &["--max-increase", "hint: add --reference"]);
    let run = llmq!["eval", &fine, "--reference", tiny(); options("much")];
    assert!(run.code == Some(2) && run.stderr.contains("per cent"), "{}", run.stderr);
}
