//! Numbers and verdicts as people read them.

use crate::eval::verdict::{Grade, Verdict};

/// A number of bytes.
pub fn bytes(n: u64) -> String {
    match n as f64 {
        n if n >= 1e9 => format!("{:.2} GB", n / 1e9),
        n if n >= 1e6 => format!("{:.2} MB", n / 1e6),
        n => format!("{:.1} kB", n / 1e3),
    }
}

/// A number with its digits in groups of three.
pub fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let parts: Vec<String> = digits.as_bytes().rchunks(3).rev().map(|p| String::from_utf8_lossy(p).into()).collect();
    // Narrow spaces that do not break.
    parts.join("\u{202f}")
}

/// Part of a whole as per cent, with its sign.
pub fn signed_percent(x: f64) -> String {
    format!("{:+.2}%", 100.0 * x).replace('-', "−")
}

/// Part of a whole as per cent, with two significant digits.
pub fn percent(x: f64) -> String {
    format!("{}%", significant(100.0 * x))
}

/// A number with two significant digits, three from ten on.
pub fn significant(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        size if size >= 100.0 => format!("{x:.0}"),
        size if size >= 10.0 => format!("{x:.1}"),
        size if size >= 1e-4 => format!("{x:.*}", (1.0 - size.log10().floor()).max(0.0) as usize),
        _ => exponential(x),
    }
}

/// The same without zeros behind the point that say nothing, for axes.
pub fn tick(x: f64) -> String {
    let text = significant(x);
    if text.contains('.') && !text.contains('×') {
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    text
}

/// `1.2×10⁻⁵`.
fn exponential(x: f64) -> String {
    let text = format!("{x:.1e}");
    match text.split_once('e') {
        Some((number, exponent)) => format!("{number}×10{}", raised(exponent)),
        None => text,
    }
}

/// An exponent in small raised digits.
pub fn raised(exponent: &str) -> String {
    let small = |c: char| match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        c => c.to_digit(10).and_then(|d| char::from_u32(0x2070 + d)).unwrap_or(c),
    };
    exponent.chars().map(small).collect()
}

/// A verdict in a word or two.
pub fn headline(verdict: &Verdict) -> &'static str {
    match verdict.settled() {
        Some(Grade::Excellent) => "Excellent",
        Some(Grade::Acceptable) => "Acceptable",
        Some(Grade::Poor) => "Could be better",
        Some(Grade::NotRecommended) => "Not recommended",
        None => "Inconclusive",
    }
}

/// The same in a table.
pub fn short(verdict: &Verdict) -> String {
    let (best, worst) = verdict.grades;
    verdict.settled().map_or_else(|| format!("{} to {}", best.name(), worst.name()), |grade| grade.name().into())
}

/// What a verdict says, in a sentence.
pub fn sentence(verdict: &Verdict) -> String {
    let (low, high) = verdict.interval;
    let direction = if verdict.increase < 0.0 { "falls" } else { "rises" };
    let mut text = format!(
        "Perplexity {direction} by {:.2}% against the original (95% interval {} to {}).",
        100.0 * verdict.increase.abs(),
        signed_percent(low),
        signed_percent(high)
    );
    match verdict.settled() {
        Some(Grade::Excellent) => text += " Below 1% is a loss that hardly anyone will notice.",
        Some(Grade::Acceptable) => text += " From 1% to 2% is what a good file of few bits loses.",
        Some(Grade::Poor) => text += " From 2% to 3%, a better method or more bits are worth trying.",
        Some(Grade::NotRecommended) => text += " Above 3%, the file is not worth publishing.",
        None => {
            let (best, worst) = (verdict.grades.0.name(), verdict.grades.1.name());
            text += &format!(" That may be anything from {best} to {worst}");
            match verdict.more.filter(|more| *more < 1e12) {
                Some(more) => {
                    let unit = 10f64.powf((more.max(1.0).log10().floor() - 1.0).max(0.0));
                    text += &format!(
                        "; about {} more scored tokens should settle it.",
                        grouped(((more / unit).ceil() * unit) as usize)
                    );
                }
                None => text += "; it lies on a limit, and no length of text will settle it.",
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_two_digits_that_mean_something() {
        let shown =
            [(0.0, "0"), (1.5e-6, "1.5×10⁻⁶"), (0.00123, "0.0012"), (0.25, "0.25"), (3.149, "3.1"), (123.4, "123")];
        for (x, wanted) in shown {
            assert_eq!(significant(x), wanted, "{x}");
        }
        assert_eq!((bytes(13_431_712).as_str(), grouped(1_234_567).as_str()), ("13.43 MB", "1\u{202f}234\u{202f}567"));
        assert_eq!(signed_percent(-0.0123), "−1.23%");
        assert_eq!([0.005, 0.1, 100.0, 300.0].map(tick), ["0.005", "0.1", "100", "300"]);
    }
}
