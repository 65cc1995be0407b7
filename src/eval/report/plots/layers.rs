//! Which block loses most: what each costs alone, and how the error of the residual stream grows.

use super::{Anchor, Plot, Scale};
use crate::eval::layers::{Layer, Place};
use crate::eval::report::words;

/// Pixels of the upper and the lower panel, and of what is between them.
const UPPER: f64 = 130.0;
const LOWER: f64 = 90.0;
const BETWEEN: f64 = 34.0;
const TOP: f64 = 22.0;
const AXIS: f64 = 42.0;

/// Two panels over one axis of parts.
pub fn layers(layers: &[Layer]) -> String {
    let n = layers.len().max(1);
    let (middle, bottom) = (TOP + UPPER, TOP + UPPER + BETWEEN + LOWER);
    let title = "What each block costs";
    let description = "Above: the KL divergence when only that part is the file's. Below: the relative error of the residual \
                       stream behind each part, with everything before it quantized, too.";
    let mut plot = Plot::new("layers-plot", title, description, "narrow-gutter", bottom + AXIS);
    let most = layers.iter().map(|layer| layer.alone.value).fold(0.0, f64::max);
    let largest = layers.iter().filter_map(|layer| layer.stream).fold(0.0, f64::max);
    let (upper, lower) = (Scale::linear(0.0, 1.08 * most), Scale::linear(0.0, 1.1 * largest));
    for (scale, base, height) in [(&upper, middle, UPPER), (&lower, bottom, LOWER)] {
        for tick in scale.ticks(3) {
            let y = base - height * scale.at(tick);
            plot.line(if tick == 0.0 { "base" } else { "grid" }, (0.0, y), (100.0, y));
            let text = if base == middle { words::tick(tick) } else { format!("{}%", words::tick(100.0 * tick)) };
            plot.text("tick", (0.0, y + 4.0), -8.0, Anchor::End, &text);
        }
    }
    plot.text("muted", (0.0, TOP - 10.0), 0.0, Anchor::Start, "KL divergence with it alone, nats");
    plot.text("muted", (0.0, middle + 22.0), 0.0, Anchor::Start, "error of the residual stream behind it");
    let width = 100.0 / n as f64;
    let every = n.div_ceil(10);
    let mut before: Option<(f64, f64)> = None;
    for (i, layer) in layers.iter().enumerate() {
        let x = width * (i as f64 + 0.5);
        let height = UPPER * upper.at(layer.alone.value);
        let place = layer.place.to_string();
        let label = format!("{place} alone: KL divergence {:.6} ± {:.6}", layer.alone.value, layer.alone.error);
        let data: [super::Datum; 2] = [("layer", &place), ("kl", &layer.alone.value)];
        let shape = format!(
            r#"<rect class="bar" x="{:.2}%" y="{:.1}" width="{:.2}%" height="{height:.1}" rx="1.5"/><rect class="hit" x="{:.2}%" y="{TOP}" width="{width:.2}%" height="{UPPER}"/>"#,
            x - 0.36 * width,
            middle - height,
            0.72 * width,
            x - 0.5 * width
        );
        plot.mark(if layer.alone.value == most { "bin worst" } else { "bin" }, &label, &data, shape);
        if let Some(error) = layer.stream {
            let y = bottom - LOWER * lower.at(error);
            if let Some(before) = before.replace((x, y)) {
                plot.line("curve own", before, (x, y));
            }
            let label = format!("behind {place}: error of the residual stream {}", words::percent(error));
            let data: [super::Datum; 2] = [("layer", &place), ("stream", &error)];
            plot.mark("point own", &label, &data, format!(r#"<circle cx="{x:.2}%" cy="{y:.1}" r="4"/>"#));
        }
        let name = match layer.place {
            Place::Embedding => "in".to_owned(),
            Place::Output => "out".to_owned(),
            Place::Block(block) => block.to_string(),
        };
        if layer.place == Place::Embedding
            || layer.place == Place::Output
            || (i - 1) % every == 0 && i + 1 + every / 2 < n
        {
            plot.text("tick", (x, bottom + 17.0), 0.0, Anchor::Middle, &name);
        }
    }
    plot.text("muted", (50.0, bottom + 36.0), 0.0, Anchor::Middle, "embedding, blocks, output");
    let worst = layers.iter().max_by(|a, b| a.alone.value.total_cmp(&b.alone.value));
    let worst = worst.map_or(String::new(), |layer| match layer.place {
        Place::Block(i) => format!(" Block {i} costs most."),
        Place::Embedding => " The embedding costs most.".into(),
        Place::Output => " The output matrix costs most.".into(),
    });
    plot.figure(&format!("Above, only one part is the file's; below, so is all that comes before it.{worst}"))
}
