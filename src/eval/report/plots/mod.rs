//! Plots as inline SVG. Places along the axis of width are parts of it, in per cent, and heights are pixels, so that a plot
//! fills whatever room there is while its text keeps its size.

mod divergence;
mod heatmap;
mod layers;
mod sizes;
mod verdicts;

pub use divergence::divergence;
pub use heatmap::heatmap;
pub use layers::layers;
pub use sizes::sizes;
pub use verdicts::verdicts;

use super::escape::Html;
use std::fmt::{Display, Write};

/// A plot in the making.
pub struct Plot {
    id: String,
    title: String,
    description: String,
    class: &'static str,
    height: f64,
    body: String,
}

/// Where the text at a place is.
#[derive(Clone, Copy)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

/// A number that a mark stands for: its name, and itself.
pub type Datum<'a> = (&'a str, &'a dyn Display);

impl Plot {
    /// `id`: unique in the page; `class`: room for labels beside it, in the style sheet.
    pub fn new(id: &str, title: &str, description: &str, class: &'static str, height: f64) -> Plot {
        let (id, title, description) = (id.into(), title.into(), description.into());
        Plot { id, title, description, class, height, body: String::new() }
    }

    /// Adds SVG.
    pub fn push(&mut self, svg: impl Display) {
        // A string takes everything.
        let _ = write!(self.body, "{svg}");
    }

    pub fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.push(format_args!(r#"<line class="{class}" x1="{x1:.2}%" y1="{y1:.1}" x2="{x2:.2}%" y2="{y2:.1}"/>"#));
    }

    pub fn text(&mut self, class: &str, at: (f64, f64), dx: f64, anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => r#" text-anchor="middle""#,
            Anchor::End => r#" text-anchor="end""#,
        };
        let (x, y) = at;
        self.push(format_args!(
            r#"<text class="{class}" x="{x:.2}%" y="{y:.1}" dx="{dx}"{anchor}>{}</text>"#,
            Html(text)
        ));
    }

    /// A mark that people can point at or step to: what it says, the numbers that it stands for, and what it looks like.
    pub fn mark(&mut self, class: &str, label: &str, data: &[Datum], shape: impl Display) {
        self.push(format_args!(r#"<g class="m {class}" role="img" aria-label="{}""#, Html(label)));
        for (name, value) in data {
            self.push(format_args!(r#" data-{name}="{}""#, Html(&value.to_string())));
        }
        self.push(format_args!(">{shape}</g>"));
    }

    /// The whole figure, with a caption below it.
    pub fn figure(self, caption: &str) -> String {
        let Plot { id, title, description, class, height, body } = self;
        format!(
            "<figure class=\"plot {class}\"><svg id=\"{id}\" role=\"group\" tabindex=\"0\" aria-labelledby=\"{id}-t {id}-d\" \
             width=\"100%\" height=\"{height:.0}\"><title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>{body}</svg>\
             <figcaption>{}</figcaption></figure>\n",
            Html(&title),
            Html(&description),
            Html(caption)
        )
    }
}

/// An axis: from numbers to parts of its length.
#[derive(Clone, Copy)]
pub struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    /// From `low` to `high`.
    pub fn linear(low: f64, high: f64) -> Scale {
        Scale { low, high: if high > low { high } else { low + 1.0 }, logarithmic: false }
    }

    /// From `low` to `high`, both above zero.
    pub fn logarithmic(low: f64, high: f64) -> Scale {
        let low = low.max(f64::MIN_POSITIVE).log10();
        Scale { low, high: high.max(f64::MIN_POSITIVE).log10().max(low + 1e-9), logarithmic: true }
    }

    /// Where a number is: 0 at the low end and 1 at the high one. What lies outside is at the end.
    pub fn at(&self, x: f64) -> f64 {
        let x = if self.logarithmic { x.max(f64::MIN_POSITIVE).log10() } else { x };
        ((x - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// Round numbers on it, about `count` of them. On a logarithmic axis powers of ten, or 1, 2 and 5 times these.
    pub fn ticks(&self, count: usize) -> Vec<f64> {
        if self.logarithmic {
            let powers = self.low.floor() as i32..=self.high.ceil() as i32;
            let inside = |x: &f64| x.log10() >= self.low - 1e-9 && x.log10() <= self.high + 1e-9;
            let all = |steps: &[f64]| {
                let of = |power: i32| steps.iter().map(move |step| step * 10f64.powi(power));
                powers.clone().flat_map(of).filter(inside).collect::<Vec<f64>>()
            };
            let tens = all(&[1.0]);
            return match tens.len() {
                n if n > count => tens.into_iter().rev().step_by(n.div_ceil(count)).collect(),
                0..=2 => [&[1.0, 3.0][..], &[1.0, 2.0, 5.0], &[1.0, 2.0, 3.0, 4.0, 5.0, 7.0]]
                    .map(all)
                    .into_iter()
                    .find(|ticks| ticks.len() > 2)
                    .unwrap_or(tens),
                _ => tens,
            };
        }
        let rough = (self.high - self.low) / count as f64;
        let unit = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * unit).into_iter().find(|&step| step >= rough).unwrap_or(rough);
        let (first, last) = ((self.low / step - 1e-9).ceil() as i64, (self.high / step + 1e-9).floor() as i64);
        (first..=last).map(|i| i as f64 * step).collect()
    }
}

/// A far power of ten as `10⁻⁴`, any other number in digits.
pub fn power(x: f64) -> String {
    let exponent = x.log10().round();
    match (10f64.powf(exponent) / x - 1.0).abs() < 1e-9 && !(-3.0..4.0).contains(&exponent) {
        true => format!("10{}", super::words::raised(&exponent.to_string())),
        false => super::words::tick(x),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ticks_are_round_numbers_inside() {
        assert_eq!(Scale::linear(0.0, 1.0).ticks(5), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        let ticks = Scale::logarithmic(1e-4, 1.0).ticks(6);
        assert!(ticks.len() == 5 && (ticks[0] - 1e-4).abs() < 1e-12, "{ticks:?}");
        assert!(Scale::logarithmic(0.002, 0.03).ticks(5).len() > 2);
        assert_eq!((power(1e-4).as_str(), power(1.0).as_str(), power(0.02).as_str()), ("10⁻⁴", "1", "0.02"));
    }

    #[test]
    fn text_cannot_leave_its_place() {
        let mut plot = Plot::new("p", "<t>", "\"", "", 10.0);
        plot.mark("a", "\"><script>", &[("x", &"'>")], "");
        let figure = plot.figure("</figure>");
        assert!(!figure.contains("<script") && !figure.contains("<t>"), "{figure}");
        assert_eq!(figure.matches("</figure>").count(), 1);
    }

    proptest! {
        #[test]
        fn places_are_on_the_axis_and_in_order(low in -1e6..1e6f64, size in 0.0..1e6f64, a in -1e7..1e7f64, b in -1e7..1e7f64) {
            for scale in [Scale::linear(low, low + size), Scale::logarithmic(low, low + size)] {
                let (x, y) = (scale.at(a.min(b)), scale.at(a.max(b)));
                prop_assert!(0.0 <= x && x <= y && y <= 1.0);
                prop_assert!(scale.ticks(5).len() < 20);
            }
        }
    }
}
