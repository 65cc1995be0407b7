//! The increase of perplexity of each file with its interval, over the limits of the verdict.

use super::{Anchor, Plot, Scale};
use crate::eval::report::{Judged, words};
use crate::eval::verdict::{CONFIDENCE, Grade};

/// Pixels of a file's row, of the names above all rows, and of the axis below.
const ROW: f64 = 40.0;
const TOP: f64 = 26.0;
const AXIS: f64 = 24.0;

/// A grade's name is left out where it has less of the width than this, in per cent.
const NARROW: f64 = 14.0;

/// One row a file.
pub fn verdicts(files: &[&Judged]) -> String {
    let named = files.len() > 1;
    let row = if named { ROW } else { 0.8 * ROW };
    let limits = Grade::LIMITS;
    let low = files.iter().map(|file| file.verdict.interval.0).fold(-0.002, f64::min).max(-0.05);
    let high = files.iter().map(|file| file.verdict.interval.1).filter(|x| x.is_finite()).fold(0.04, f64::max);
    // Far beyond the limits only the direction matters.
    let high = high.min(0.25);
    let scale = Scale::linear(low - 0.03 * (high - low), high + 0.03 * (high - low));
    let bottom = TOP + row * files.len() as f64 + 6.0;
    let title = "Increase of perplexity over the original";
    let description = "For each file a point with its 95% interval, over the ranges that the verdict goes by.";
    let mut plot = Plot::new("verdict-plot", title, description, "bare", bottom + AXIS);
    let edges: Vec<f64> = [0.0].into_iter().chain(limits.map(|limit| scale.at(limit))).chain([1.0]).collect();
    for (i, (grade, pair)) in Grade::ALL.iter().zip(edges.windows(2)).enumerate() {
        let (x, width) = (100.0 * pair[0], 100.0 * (pair[1] - pair[0]));
        plot.push(format_args!(
            r#"<rect class="zone z{i}" x="{x:.2}%" y="{TOP}" width="{width:.2}%" height="{:.0}"/>"#,
            bottom - TOP
        ));
        if width >= NARROW {
            // The last one's name is long.
            let long = *grade == Grade::NotRecommended && width < 2.0 * NARROW;
            let name = if long { "above" } else { grade.name() };
            plot.text("muted", (x + 0.5 * width, TOP - 8.0), 0.0, Anchor::Middle, name);
        }
    }
    for limit in limits {
        let x = 100.0 * scale.at(limit);
        plot.line("limit", (x, TOP), (x, bottom));
        plot.text("tick", (x, bottom + 17.0), 0.0, Anchor::Middle, &format!("{:.0}%", 100.0 * limit));
    }
    let zero = 100.0 * scale.at(0.0);
    plot.line("zero", (zero, TOP), (zero, bottom));
    plot.text("tick", (zero, bottom + 17.0), 0.0, Anchor::Middle, "0");
    for (i, file) in files.iter().enumerate() {
        let verdict = &file.verdict;
        let y = TOP + row * (i as f64 + if named { 0.68 } else { 0.5 }) + 3.0;
        let (low, high) = verdict.interval;
        let [a, x, b] = [low, verdict.increase, high].map(|x| 100.0 * scale.at(x));
        if named {
            let text = format!("{} {}", file.label, words::signed_percent(verdict.increase));
            let (anchor, dx) = if x > 60.0 { (Anchor::End, 7.0) } else { (Anchor::Start, -7.0) };
            plot.text("label", (x, y - 11.0), dx, anchor, &text);
        }
        let label = format!(
            "{}: {}, {:.0}% interval {} to {}, {}",
            file.label,
            words::signed_percent(verdict.increase),
            100.0 * CONFIDENCE,
            words::signed_percent(low),
            words::signed_percent(high),
            words::short(verdict)
        );
        let shape = format!(
            r#"<line x1="{a:.2}%" y1="{y:.1}" x2="{b:.2}%" y2="{y:.1}"/><circle cx="{x:.2}%" cy="{y:.1}" r="5.5"/>"#
        );
        let data: [super::Datum; 4] =
            [("file", &file.name), ("increase", &verdict.increase), ("low", &low), ("high", &high)];
        plot.mark(if file.peer { "interval peer" } else { "interval" }, &label, &data, shape);
    }
    plot.figure("Relative increase of perplexity over the original; the bar is the 95% interval.")
}
