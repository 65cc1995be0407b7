//! A browser shows the report: without a complaint, without loading anything, at any width, with the numbers of the JSON.

use crate::ask;
use crate::common::{folder, llmq, rounded, tiny};
use serde_json::Value;
use std::path::PathBuf;

fn number(text: &str) -> f64 {
    text.parse().unwrap_or_else(|_| panic!("no number: {text}"))
}

/// A bar is as high as its number, among all bars of its plot and its file.
fn heights_are_numbers(marks: &[&ask::Mark], key: &str) {
    let most = |of: &dyn Fn(&ask::Mark) -> f64| marks.iter().map(|mark| of(mark)).fold(0.0, f64::max);
    let (tallest, largest) = (most(&|m| m.height), most(&|m| number(&m.data[key])));
    assert!(marks.len() > 3 && tallest > 40.0, "{tallest} of {}", marks.len());
    for mark in marks {
        let wanted = tallest * number(&mark.data[key]) / largest;
        assert!((mark.height - wanted).abs() < 0.15, "{}: {} instead of {wanted}", mark.label, mark.height);
    }
}

#[test]
fn the_report_is_shown_as_it_is_meant() {
    let out = folder();
    let [fine, coarse] = ["Q4_0", "Q3_K_S"].map(|kind| rounded(out.path(), kind));
    let [one, two]: [PathBuf; 2] = ["one.html", "two.html"].map(|name| out.path().join(name));
    let short = ["-c", "128", "--chunks", "4", "--json"];
    let eval = llmq!["eval", &fine, "--reference", tiny(), "--layers=2", "--report", &one; short].ok().json();
    let compare = llmq!["compare", &fine, &coarse, "--reference", tiny(), "--report", &two; short].ok().json();
    for (page, lines) in [(one, eval), (two, compare)] {
        let views = ask::views(&page, &[(1200, "light"), (390, "dark")]);
        for (view, width) in views.iter().zip([1200.0, 390.0]) {
            assert_eq!(view.errors, [""; 0]);
            assert_eq!(view.requests.len(), 1, "{:?}", view.requests);
            assert!(view.width <= width, "{} wide", view.width);
            assert_eq!(serde_json::from_str::<Vec<Value>>(&view.data).unwrap(), lines);
            let of = |plot: &str| view.marks.iter().filter(|mark| mark.plot == plot).collect::<Vec<_>>();
            assert!(view.tip.ends_with(&view.marks[0].label) && !view.tip.is_empty(), "{}", view.tip);
            for mark in &view.marks {
                assert!(mark.x >= 0.0 && mark.x + mark.width <= width && mark.width > 0.0, "{}", mark.label);
            }
            for file in ["Q4_0.gguf", "Q3_K_S.gguf"] {
                let bins: Vec<_> = of("kl-plot").into_iter().filter(|mark| mark.data["file"] == file).collect();
                if !bins.is_empty() {
                    heights_are_numbers(&bins, "tokens");
                }
            }
            match lines.iter().any(|line| line["type"] == "layer") {
                true => {
                    let bars: Vec<_> = of("layers-plot").into_iter().filter(|m| m.data.contains_key("kl")).collect();
                    heights_are_numbers(&bars, "kl");
                }
                false => {
                    let points = of("size-plot");
                    let [a, b] = points[..] else { panic!("{} points", points.len()) };
                    let larger = |key: &str| number(&a.data[key]) > number(&b.data[key]);
                    assert_eq!((a.x > b.x, a.y < b.y), (larger("bytes"), larger("kl")));
                }
            }
        }
    }
}
