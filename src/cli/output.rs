//! How things are shown: results on standard output, everything else on standard error.

use super::Color;
use crate::error::{Error, Kind};
use crate::pipeline::report::{Observer, TensorReport, Work, peak_memory};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::borrow::Cow;
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

static COLOR: AtomicBool = AtomicBool::new(false);

/// Decides about colour on standard error, once.
pub fn set_color(choice: Color) {
    let on = match choice {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
    };
    COLOR.store(on, Ordering::Relaxed);
}

fn painted(text: &str, code: &str) -> String {
    if COLOR.load(Ordering::Relaxed) { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
}

/// Text that may hold names out of a strange file, without what would steer the terminal: control characters but for line ends
/// and tabs become what Rust writes for them.
fn harmless(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| if steers(c) { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(shown).collect())
}

/// A line of the result. A reader that has gone away ends the program quietly, as with any filter.
pub fn line(text: impl std::fmt::Display) {
    if let Err(cause) = writeln!(std::io::stdout(), "{}", harmless(&text.to_string())) {
        let code = if cause.kind() == ErrorKind::BrokenPipe { 0 } else { 1 };
        crate::writer::atomic::discard_all();
        std::process::exit(code);
    }
}

/// One tagged JSON object on a line of its own.
pub fn json(tag: &str, fields: serde_json::Value) {
    line(tagged(tag, fields));
}

/// An object with its tag.
pub fn tagged(tag: &str, fields: serde_json::Value) -> serde_json::Value {
    let mut object = serde_json::Map::new();
    object.insert("type".into(), tag.into());
    if let serde_json::Value::Object(fields) = fields {
        object.extend(fields);
    }
    serde_json::Value::Object(object)
}

/// Something the user should know, on standard error.
pub fn note(text: &str) {
    // A standard error that is closed leaves nobody to tell.
    let _ = writeln!(std::io::stderr(), "{}", harmless(text));
}

/// The same behind a word in colour.
fn labelled(label: &str, code: &str, text: &str) {
    let _ = writeln!(std::io::stderr(), "{} {}", painted(label, code), harmless(text));
}

/// An error with its causes and its hint.
pub fn error(error: &Error) {
    if error.kind() == Kind::Interrupted {
        match error.hint_text() {
            Some(hint) => note(&format!("interrupted; {hint}")),
            None => note("interrupted; nothing was left behind"),
        }
        return;
    }
    let chain = error.chain();
    labelled("error:", "1;31", &chain[0]);
    for cause in &chain[1..] {
        note(&format!("  caused by: {cause}"));
    }
    if let Some(hint) = error.hint_text() {
        note("");
        labelled("hint:", "1;36", hint);
    }
}

/// A number of bytes as people read it.
pub fn bytes(n: u64) -> String {
    let (scaled, unit) = match n as f64 {
        n if n >= 1e9 => (n / 1e9, "GB"),
        n if n >= 1e6 => (n / 1e6, "MB"),
        n => (n / 1e3, "kB"),
    };
    format!("{scaled:.2} {unit}")
}

/// The same where there is little room.
fn short(n: u64) -> String {
    if n >= 1_000_000_000 { format!("{:.1} GB", n as f64 / 1e9) } else { format!("{} MB", n / 1_000_000) }
}

/// A number of things, rounded up to two digits, for more would pretend to be known.
pub fn rounded(n: f64) -> u64 {
    let unit = 10f64.powf((n.max(1.0).log10().floor() - 1.0).max(0.0));
    ((n / unit).ceil() * unit) as u64
}

/// The same with its digits in groups of three.
pub fn grouped(n: f64) -> String {
    let digits = rounded(n).to_string();
    let parts: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|part| std::str::from_utf8(part).ok()).collect();
    parts.join(",")
}

/// A time as people read it.
pub fn time(t: Duration) -> String {
    let s = t.as_secs();
    match s {
        0..10 => format!("{:.1} s", t.as_secs_f64()),
        10..120 => format!("{s} s"),
        120..7200 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}

/// A bar with the time left on a terminal, a line now and then elsewhere.
pub struct Progress {
    bar: Option<ProgressBar>,
    verbose: bool,
    json: bool,
    /// Since when, and from where, the time left is estimated.
    started: Mutex<(Instant, u64)>,
    /// What comes next was done earlier.
    restarts: AtomicBool,
    /// The block that was the first here, and when it began.
    first_block: Mutex<Option<(usize, Instant)>>,
    /// How the work stands.
    said: Mutex<String>,
    total: AtomicU64,
    done: AtomicU64,
    told: Mutex<(Instant, u64)>,
}

/// Without a terminal, no two lines of progress are closer together than this.
const LINES_APART: Duration = Duration::from_secs(10);

impl Progress {
    /// `verbose`: show each tensor; `json`: emit each tensor on standard output.
    pub fn new(verbose: bool, json: bool) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            // What matters most comes first, and all of it fits 80 columns.
            let style = ProgressStyle::with_template("{percent:>3}% {bar:6} {elapsed}, {eta} left; {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        Progress {
            bar,
            verbose,
            json,
            started: Mutex::new((Instant::now(), 0)),
            restarts: AtomicBool::new(false),
            first_block: Mutex::default(),
            said: Mutex::default(),
            total: AtomicU64::new(0),
            done: AtomicU64::new(0),
            told: Mutex::new((Instant::now(), 0)),
        }
    }

    /// Sets what is done out of the whole.
    pub fn set(&self, done: u64, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.done.store(done, Ordering::Relaxed);
        let restarts = self.restarts.swap(false, Ordering::Relaxed);
        if restarts && let Ok(mut started) = self.started.lock() {
            *started = (Instant::now(), done);
        }
        match &self.bar {
            Some(bar) => {
                bar.set_length(total);
                bar.set_position(done);
                if restarts {
                    bar.reset_eta();
                }
            }
            None => self.tell(done, total),
        }
    }

    /// Shows how the work stands, from now on.
    pub fn say(&self, text: &str) {
        if let Ok(mut said) = self.said.lock() {
            *said = text.into();
        }
        if let Some(bar) = &self.bar {
            bar.set_message(harmless(text).into_owned());
        }
    }

    /// What is done next was done earlier: how long it takes tells nothing of the rest.
    pub fn restart(&self) {
        self.restarts.store(true, Ordering::Relaxed);
    }

    /// An evaluation goes on behind so many finished parts.
    pub fn resumed_parts(&self, parts: usize) {
        self.print(&format!("going on behind {parts} finished parts"));
        if self.json {
            json("resumed", serde_json::json!({ "finished_parts": parts }));
        }
    }

    fn tell(&self, done: u64, total: u64) {
        let percent = 100 * done / total.max(1);
        let Ok(mut told) = self.told.lock() else { return };
        if percent > told.1 && told.0.elapsed() >= LINES_APART {
            *told = (Instant::now(), percent);
            let Ok((started, from)) = self.started.lock().map(|started| *started) else { return };
            let left = started.elapsed().mul_f64((total - done) as f64 / done.saturating_sub(from).max(1) as f64);
            let said = self.said.lock().map_or_else(|_| String::new(), |said| said.clone());
            let said = if said.is_empty() { said } else { format!("; {said}") };
            note(&format!("{percent}% done, about {} left{said}", time(left)));
        }
    }

    fn print(&self, text: &str) {
        self.aside(|| note(text));
    }

    /// Lets something be shown above the bar.
    fn aside(&self, show: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(show),
            None => show(),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Observer for Progress {
    fn begin(&self, work: Work) {
        self.set(0, work.total);
    }

    fn resumed(&self, finished: usize, blocks: usize) {
        self.print(&format!("going on behind {finished} of {blocks} blocks"));
        if self.json {
            json("resumed", serde_json::json!({ "finished_blocks": finished, "blocks": blocks }));
        }
    }

    fn advance(&self, work: u64) {
        let done = self.done.load(Ordering::Relaxed) + work;
        self.set(done, self.total.load(Ordering::Relaxed));
    }

    fn phase(&self, block: Option<usize>, blocks: usize, what: &str) {
        let peak = peak_memory();
        let mut costs: Vec<String> = peak.map(short).into_iter().collect();
        let mut text = what.to_owned();
        let mut each = None;
        if let (Some(block), Ok(mut first)) = (block, self.first_block.lock()) {
            let (from, began) = *first.get_or_insert((block, Instant::now()));
            each = (block > from).then(|| began.elapsed() / (block - from) as u32);
            costs.splice(0..0, each.map(|each| format!("{} each", time(each))));
            text = format!("block {}/{blocks}: {what}", block + 1);
        }
        if !costs.is_empty() {
            text = format!("{text}; {}", costs.join(", "));
        }
        self.say(&text);
        if self.json {
            let fields = serde_json::json!({
                "block": block,
                "blocks": blocks,
                "what": what,
                "seconds_a_block": each.map(|each| each.as_secs_f64()),
                "peak_memory_bytes": peak,
                "done": self.done.load(Ordering::Relaxed) as f64 / self.total.load(Ordering::Relaxed).max(1) as f64,
            });
            json("progress", fields);
        }
    }

    fn tensor(&self, report: &TensorReport) {
        if self.json {
            json("tensor", super::summary::tensor_json(report));
        }
        if self.verbose {
            self.print(&super::summary::tensor_line(report));
        }
    }

    fn note(&self, note: &str) {
        self.aside(|| labelled("note:", "1;33", note));
        if self.json {
            json("note", serde_json::json!({ "text": note }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert_eq!(harmless("a\u{1b}]0;title\u{7}b\r\u{9b}31m"), "a\\u{1b}]0;title\\u{7}b\\r\\u{9b}31m");
        let usual = "blk.0 \u{2581}\u{e9}\n\tx";
        assert!(matches!(harmless(usual), Cow::Borrowed(text) if text == usual));
    }

    #[test]
    fn numbers_are_rounded_up_and_grouped() {
        let shown =
            [(1.0, "1"), (99.0, "99"), (101.0, "110"), (1000.0, "1,000"), (123_456.0, "130,000"), (2.4e6, "2,400,000")];
        for (n, wanted) in shown {
            assert_eq!(grouped(n), wanted);
        }
    }
}
