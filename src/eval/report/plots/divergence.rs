//! How KL divergence is spread over the tokens: a histogram over a logarithmic axis, one below the other for several files.

use super::{Anchor, Plot, Scale, power};
use crate::eval::histogram::Bin;
use crate::eval::report::{Judged, words};

const AXIS: f64 = 44.0;

/// One row a file, all over one axis.
pub fn divergence(files: &[&Judged]) -> String {
    let bins = || files.iter().flat_map(|file| &file.statistics.histogram);
    // The bin of what counts as nothing has no lower edge; here it is as wide as the others.
    let width = 10f64.powf(-0.25);
    let edge = |bin: &Bin| if bin.low > 0.0 { bin.low } else { bin.high * width };
    let low = bins().map(edge).fold(f64::INFINITY, f64::min);
    let high = bins().map(|bin| bin.high).fold(0.0, f64::max);
    let scale = Scale::logarithmic(low, high);
    let named = files.len() > 1;
    let (row, gap) = if named { (74.0, 26.0) } else { (170.0, 34.0) };
    let bottom = (row + gap) * files.len() as f64;
    let title = "KL divergence of single tokens";
    let description = "Histogram: how many of the scored tokens have a KL divergence of which size, with mean, median and 99th percentile.";
    let mut plot = Plot::new("kl-plot", title, description, "bare", bottom + AXIS);
    for tick in scale.ticks(5) {
        let x = 100.0 * scale.at(tick);
        plot.line("grid", (x, 14.0), (x, bottom));
        let anchor = if x < 4.0 {
            Anchor::Start
        } else if x > 96.0 {
            Anchor::End
        } else {
            Anchor::Middle
        };
        plot.text("tick", (x, bottom + 17.0), 0.0, anchor, &power(tick));
    }
    plot.text("muted", (50.0, bottom + 38.0), 0.0, Anchor::Middle, "KL divergence of a token, nats");
    for (i, file) in files.iter().enumerate() {
        let base = (row + gap) * (i + 1) as f64;
        let tokens: usize = file.statistics.histogram.iter().map(|bin| bin.tokens).sum();
        let most = file.statistics.histogram.iter().map(|bin| bin.tokens).max().unwrap_or(1).max(1) as f64;
        plot.line("base", (0.0, base), (100.0, base));
        for bin in &file.statistics.histogram {
            let (x, end) = (100.0 * scale.at(edge(bin)), 100.0 * scale.at(bin.high));
            let height = row * bin.tokens as f64 / most;
            let part = 100.0 * bin.tokens as f64 / tokens.max(1) as f64;
            let from = if bin.low > 0.0 { format!("{} to ", words::significant(bin.low)) } else { "below ".into() };
            let label =
                format!("{}: {from}{}: {} tokens, {part:.1}%", file.label, words::significant(bin.high), bin.tokens);
            let data: [super::Datum; 4] =
                [("file", &file.name), ("low", &bin.low), ("high", &bin.high), ("tokens", &bin.tokens)];
            let (left, wide) = (x + 0.1, (end - x - 0.2).max(0.2));
            let shape = format!(
                r#"<rect class="bar" x="{left:.2}%" y="{:.1}" width="{wide:.2}%" height="{height:.1}"/><rect class="hit" x="{x:.2}%" y="{:.1}" width="{:.2}%" height="{row}"/>"#,
                base - height,
                base - row,
                end - x
            );
            plot.mark(if file.peer { "bin peer" } else { "bin" }, &label, &data, shape);
        }
        marks(&mut plot, file, &scale, (base - row, base), named);
    }
    plot.figure("Share of the scored tokens in each class of KL(original ‖ file). Equal widths are equal factors.")
}

/// Median, mean and 99th percentile as labelled lines.
fn marks(plot: &mut Plot, file: &Judged, scale: &Scale, (top, base): (f64, f64), named: bool) {
    let of = &file.statistics.divergence;
    if named {
        let text = format!("{}  mean {}", file.label, words::significant(of.mean.value));
        plot.text("label", (0.0, top - 4.0), 0.0, Anchor::Start, &text);
    }
    let lines = [("median", of.quantile(0.5)), ("mean", of.mean.value), ("99%", of.quantile(0.99))];
    for (i, (name, value)) in lines.into_iter().enumerate() {
        if value <= 0.0 || named && name != "mean" {
            continue;
        }
        let x = 100.0 * scale.at(value);
        let y = if named { top + 4.0 } else { top - 18.0 + 15.0 * (i % 2) as f64 };
        plot.line(if name == "mean" { "marker mean" } else { "marker" }, (x, y), (x, base));
        if !named {
            let (dx, anchor) = if x > 70.0 { (-6.0, Anchor::End) } else { (6.0, Anchor::Start) };
            // The median's label is on the side where the mean's is not.
            let (dx, anchor) = if name == "median" { (-6.0, Anchor::End) } else { (dx, anchor) };
            plot.text("note", (x, y + 9.0), dx, anchor, &format!("{name} {}", words::significant(value)));
        }
    }
}
