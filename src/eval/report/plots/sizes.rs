//! Size against KL divergence: files of one maker are a curve.

use super::{Anchor, Plot, Scale, power};
use crate::eval::report::{Judged, Maker, words};

const TOP: f64 = 24.0;
const HEIGHT: f64 = 320.0;
const AXIS: f64 = 44.0;

/// A label keeps this many pixels from the next one.
const LINE: f64 = 15.0;

/// All files as points.
pub fn sizes(files: &[&Judged]) -> String {
    let (least, most) = ends(files.iter().map(|file| file.size.bytes as f64));
    let room = 0.08 * (most - least).max(0.02 * most);
    let x = Scale::linear(least - room, most + 3.0 * room);
    // A file without any loss has no place on a logarithmic axis; it is at its lower end.
    let lost = |file: &Judged| file.statistics.divergence.mean.value;
    let (low, high) = ends(files.iter().map(|file| lost(file)).filter(|&kl| kl > 0.0));
    let y = Scale::logarithmic(low / 1.9, high * 1.3);
    let height = |kl: f64| TOP + (HEIGHT - TOP) * (1.0 - y.at(kl));
    let title = "Size and KL divergence";
    let description =
        "One point a file: bytes to the right, mean KL divergence upwards on a logarithmic axis. Lower left is better.";
    let mut plot = Plot::new("size-plot", title, description, "narrow-gutter", HEIGHT + AXIS);
    for tick in y.ticks(6) {
        plot.line("grid", (0.0, height(tick)), (100.0, height(tick)));
        plot.text("tick", (0.0, height(tick) + 4.0), -8.0, Anchor::End, &power(tick));
    }
    plot.line("base", (0.0, HEIGHT), (100.0, HEIGHT));
    for tick in x.ticks(4) {
        plot.text("tick", (100.0 * x.at(tick), HEIGHT + 17.0), 0.0, Anchor::Middle, &words::bytes(tick as u64));
    }
    plot.text("muted", (50.0, HEIGHT + 38.0), 0.0, Anchor::Middle, "size of the file");
    plot.text("muted", (0.0, 8.0), -8.0, Anchor::Start, "mean KL divergence, nats");
    let series = series(files);
    let point = |file: &Judged| (100.0 * x.at(file.size.bytes as f64), height(lost(file)));
    for (name, members, class) in &series {
        for pair in members.windows(2) {
            plot.line(&format!("curve {class}"), point(pair[0]), point(pair[1]));
        }
        if let (Some(name), Some(last)) = (name, members.last()) {
            // The curve's name is below its lower end, that of the largest file: curves fall.
            let (x, y) = point(last);
            plot.text(&format!("series {class}"), (x, y + 22.0), 6.0, Anchor::End, name);
        }
    }
    let mut labels: Vec<(f64, f64)> = Vec::new();
    for (_, members, class) in &series {
        for &file in members {
            let (cx, cy) = point(file);
            let kl = &file.statistics.divergence.mean;
            let label = format!(
                "{}: {}, KL divergence {:.6} ± {:.6}",
                file.label,
                words::bytes(file.size.bytes),
                kl.value,
                kl.error
            );
            let data: [super::Datum; 3] = [("file", &file.name), ("bytes", &file.size.bytes), ("kl", &kl.value)];
            plot.mark(
                &format!("point {class}"),
                &label,
                &data,
                format!(r#"<circle cx="{cx:.2}%" cy="{cy:.1}" r="5.5"/>"#),
            );
            // Labels stand above and to the right of falling curves, or below where one is there already.
            let free = |y: f64, labels: &[(f64, f64)]| {
                labels.iter().all(|&(ox, oy)| (ox - cx).abs() > 22.0 || (oy - y).abs() > LINE)
            };
            let places = [-7.0, 16.0, -22.0, 31.0].map(|dy| cy + dy);
            let place = places.into_iter().find(|&y| free(y, &labels)).unwrap_or(places[0]);
            labels.push((cx, place));
            plot.text("label", (cx, place), 8.0, Anchor::Start, &file.label);
        }
    }
    plot.figure("Mean KL(original ‖ file) against bytes. Lower is nearer to the original, left is smaller.")
}

fn ends(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, 0.0), |(a, b): (f64, f64), x| (a.min(x), b.max(x)));
    if low.is_finite() { (low, high) } else { (1e-6, 1e-5) }
}

/// Files of one maker: what the curve is called, its files from small to large, and how it is drawn.
type Series<'a> = (Option<&'a str>, Vec<&'a Judged>, &'static str);

/// Files by maker and by whether they are peers.
fn series<'a>(files: &[&'a Judged]) -> Vec<Series<'a>> {
    let mut all: Vec<Series> = Vec::new();
    for &file in files {
        let class = if file.peer { "peer" } else { "own" };
        let name = match (&file.made.maker, file.peer) {
            (Maker::Unknown, false) => None,
            (Maker::Unknown, true) => Some("peers"),
            (maker, _) => Some(maker.name()),
        };
        match all.iter_mut().find(|(own, _, kind)| *own == name && *kind == class) {
            Some((_, members, _)) => members.push(file),
            None => all.push((name, vec![file], class)),
        }
    }
    all.iter_mut().for_each(|(_, members, _)| members.sort_by_key(|file| file.size.bytes));
    all
}
