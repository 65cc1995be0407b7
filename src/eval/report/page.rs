//! The page: HTML, style and script in one file, which may load nothing.

use super::escape::{self, Html};
use super::words::{bytes, grouped, headline, percent, sentence, short, signed_percent, significant};
use super::{Hash, Judged, Report, Size, plots};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page. It carries its data as JSON lines in an element `llmq-data`, and forbids itself to load anything or to run any
/// script but its own.
pub fn page(report: &Report) -> String {
    let loaded = report.loaded();
    let title = match report.files.len() {
        1 => format!("{} against {}", loaded.name, report.original.name),
        n => format!("{n} files against {}", report.original.name),
    };
    let policy = format!("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}'", fingerprint(SCRIPT));
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"generator\" content=\"llmq {}\">\n<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        env!("CARGO_PKG_VERSION"),
        Html(&title)
    );
    for part in
        [head(report, &title), table(report), plots(report), speeds(report), settings(report), reproduce(report)]
    {
        html += &part;
    }
    let data = escape::json(&Value::Array(report.lines.clone()));
    let _ = write!(
        html,
        "<footer>Provenance by llmq {}. The numbers of this page are in it as JSON, in the element <code>llmq-data</code>; it loads \
         nothing from anywhere.</footer>\n<div id=\"tip\" role=\"status\"></div>\n\
         <script type=\"application/json\" id=\"llmq-data\">{data}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    );
    html
}

/// The verdict, and the figures that matter.
fn head(report: &Report, title: &str) -> String {
    let loaded = report.loaded();
    let (verdict, statistics) = (&loaded.verdict, &loaded.statistics);
    let class = verdict.settled().map_or("inconclusive".into(), |grade| grade.name().replace(' ', "-"));
    let own: Vec<&Judged> = report.own().collect();
    let (word, says) = match own.len() {
        0 | 1 => (headline(verdict).to_owned(), sentence(verdict)),
        _ => {
            let says = format!("{} is nearest to the original. {}", loaded.name, sentence(verdict));
            (format!("{}: {}", loaded.label, headline(verdict).to_lowercase()), says)
        }
    };
    let all: Vec<&Judged> = report.files.iter().collect();
    let kl = &statistics.divergence.mean;
    let smaller = report.original.size.map_or(String::new(), |size| {
        format!("{:.1} times smaller than the original", size.bytes as f64 / loaded.size.bytes as f64)
    });
    let figures = [
        ("KL divergence", significant(kl.value), format!("± {} nats a token", significant(kl.error))),
        (
            "same likeliest token",
            format!("{:.1}%", 100.0 * statistics.same_top.value),
            format!("± {:.1}%", 100.0 * statistics.same_top.error),
        ),
        (
            "perplexity",
            format!("{:.3}", statistics.perplexity.value),
            format!("original {:.3}", statistics.reference.value),
        ),
        ("size", bytes(loaded.size.bytes), format!("{:.2} bits a weight", loaded.size.bits)),
    ];
    let mut html = format!(
        "<header><h1>{}</h1>\n<p class=\"verdict {class}\">{}</p>\n<p class=\"says\">{}</p>\n{}</header>\n<dl class=\"figures\">",
        Html(title),
        Html(&word),
        Html(&says),
        plots::verdicts(&all)
    );
    for (name, value, more) in figures {
        let more = if name == "size" && !smaller.is_empty() { format!("{more}; {smaller}") } else { more };
        let _ =
            write!(html, "<div><dt>{name}</dt><dd>{}</dd><dd class=\"more\">{}</dd></div>", Html(&value), Html(&more));
    }
    html + "</dl>\n"
}

/// A cell: its heading, its content, and what is said in small print.
fn cell(head: &str, text: &str, small: &str) -> String {
    let small = if small.is_empty() { String::new() } else { format!(" <small>{}</small>", Html(small)) };
    // On a narrow screen the two are beside the heading, as one.
    format!("<td data-head=\"{head}\"><span>{}{small}</span></td>", Html(text))
}

fn table(report: &Report) -> String {
    let mut html = "<section><h2>Size and quality</h2>\n<table><thead><tr><th scope=\"col\">file</th><th scope=\"col\">size</th>\
                    <th scope=\"col\">perplexity</th><th scope=\"col\">increase</th><th scope=\"col\">KL divergence</th>\
                    <th scope=\"col\">same token</th><th scope=\"col\">verdict</th></tr></thead>\n<tbody>"
        .to_owned();
    let original = &report.original;
    let small = |size: &Size| format!("{:.2} bits a weight", size.bits);
    let perplexity = &original.perplexity;
    let (size, bits) = original.size.as_ref().map_or(Default::default(), |size| (bytes(size.bytes), small(size)));
    let _ = write!(
        html,
        "<tr><td><span>{} <small>the original</small></span></td>{}{}<td></td><td></td><td></td><td></td></tr>",
        Html(&original.name),
        cell("size", &size, &bits),
        cell("perplexity", &format!("{:.3}", perplexity.value), &format!("± {:.3}", perplexity.error))
    );
    for file in &report.files {
        let (s, verdict) = (&file.statistics, &file.verdict);
        let (kl, top) = (&s.divergence.mean, &s.same_top);
        let mix = file.made.mix.as_deref().unwrap_or("no GGUF type");
        let under = if file.peer { format!("{mix}, {}", file.made.maker.name()) } else { mix.to_owned() };
        let (low, high) = verdict.interval;
        let _ = write!(
            html,
            "\n<tr><td><span>{} <small>{}</small></span></td>{}{}{}{}{}{}</tr>",
            Html(&file.name),
            Html(&under),
            cell("size", &bytes(file.size.bytes), &small(&file.size)),
            cell("perplexity", &format!("{:.3}", s.perplexity.value), &format!("± {:.3}", s.perplexity.error)),
            cell(
                "increase",
                &signed_percent(verdict.increase),
                &format!("{} to {}", signed_percent(low), signed_percent(high))
            ),
            cell("KL divergence", &format!("{:.6}", kl.value), &format!("± {:.6}", kl.error)),
            cell("same token", &format!("{:.2}%", 100.0 * top.value), &format!("± {:.2}%", 100.0 * top.error)),
            cell("verdict", &short(verdict), "")
        );
    }
    html + "</tbody></table></section>\n"
}

fn plots(report: &Report) -> String {
    let all: Vec<&Judged> = report.files.iter().collect();
    let mut html = "<section class=\"plots\">\n".to_owned();
    if all.len() > 1 {
        html += &format!("<div><h2>Size against quality</h2>\n{}</div>\n", plots::sizes(&all));
    }
    html += &format!("<div><h2>KL divergence, token by token</h2>\n{}</div>\n", plots::divergence(&all));
    if let Some(layers) = &report.layers {
        html += &format!("<div><h2>Which block loses most</h2>\n{}</div>\n", plots::layers(layers));
    }
    html += &errors(report);
    html + "</section>\n"
}

/// Heatmaps of all files on one scale of colour, of which that of the first is open.
fn errors(report: &Report) -> String {
    let all = report.files.iter().flat_map(|file| &file.tensors).filter(|t| t.error > 0.0 && t.block.is_some());
    let (low, high) = all.fold((f64::INFINITY, 0.0f64), |(a, b), t| (a.min(t.error), b.max(t.error)));
    let range = if low < high { (low, high) } else { (high.max(1e-12) / 2.0, high.max(1e-12)) };
    let maps = report.files.iter().enumerate().filter_map(|(i, file)| Some((i, file, plots::heatmap(file, i, range)?)));
    let maps: Vec<(usize, &Judged, String)> = maps.collect();
    if maps.is_empty() {
        return String::new();
    }
    let steps: String = (1..=8).map(|step| format!("<i class=\"h{step}\"></i>")).collect();
    let mut html = format!(
        "<div><h2>Error of the weights</h2>\n<p class=\"scale\">{}<span>{steps}</span>{}</p>\n",
        percent(range.0),
        percent(range.1)
    );
    let first = report.loaded();
    for (_, file, map) in &maps {
        if maps.len() == 1 {
            html += map;
        } else {
            let open = if std::ptr::eq(*file, first) { " open" } else { "" };
            html += &format!("<details{open}><summary>{}</summary>{map}</details>\n", Html(&file.name));
        }
    }
    html + "</div>\n"
}

/// How fast all are, where that was measured.
fn speeds(report: &Report) -> String {
    let original = (report.original.name.as_str(), &report.original.speed, report.original.size);
    let files = report.files.iter().map(|file| (file.name.as_str(), &file.speed, Some(file.size)));
    let all = [original].into_iter().chain(files);
    let rows: Vec<_> = all.filter_map(|(name, speed, size)| Some((name, speed.as_ref()?, size))).collect();
    if rows.is_empty() {
        return String::new();
    }
    let mut html =
        "<section><h2>Speed on the machine that measured</h2>\n\
         <p>In llmq's own engine on the CPU, not in llama.cpp: what carries over is how the files compare.</p>\n<table><thead><tr><th scope=\"col\">file</th>\
                    <th scope=\"col\">prompt</th><th scope=\"col\">generation</th><th scope=\"col\">first token</th>\
                    <th scope=\"col\">memory</th><th scope=\"col\">size</th></tr></thead>\n<tbody>"
            .to_owned();
    for (name, speed, size) in rows {
        let memory = speed.peak_memory.map_or(String::new(), bytes);
        let _ = write!(
            html,
            "\n<tr><td><span>{}</span></td>{}{}{}{}{}</tr>",
            Html(name),
            cell("prompt", &format!("{:.1} tokens/s", speed.prompt_rate.median), ""),
            cell("generation", &format!("{:.2} tokens/s", speed.generation_rate.median), ""),
            cell("first token", &format!("{:.3} s", speed.first_token_seconds.median), ""),
            cell("memory", &memory, ""),
            cell("size", &size.map_or(String::new(), |size| bytes(size.bytes)), "")
        );
    }
    html + "</tbody></table></section>\n"
}

fn facts(rows: &[(String, String)]) -> String {
    let row = |(name, value): &(String, String)| format!("<dt>{}</dt><dd>{}</dd>\n", Html(name), Html(value));
    format!("<dl class=\"facts\">{}</dl>\n", rows.iter().map(row).collect::<String>())
}

fn settings(report: &Report) -> String {
    let setting = &report.setting;
    let perplexity = &report.original.perplexity;
    let mut rows = vec![
        ("text".to_owned(), setting.text.clone()),
        (
            "tokens".into(),
            format!(
                "{} scored in {} windows of {}, protocol {}",
                grouped(perplexity.tokens),
                grouped(perplexity.windows),
                grouped(setting.context),
                setting.protocol
            ),
        ),
    ];
    rows.extend(report.original.facts.repository.iter().map(|id| ("original".into(), id.clone())));
    let mut html = format!("<section><h2>How it was judged and made</h2>\n{}", facts(&rows));
    for file in &report.files {
        let made = &file.made;
        let share = |share: &super::provenance::Share| format!("{} {:.1}%", share.kind, 100.0 * share.part);
        let mut rows = vec![
            ("types of the weights".to_owned(), made.types.iter().map(share).collect::<Vec<_>>().join(", ")),
            ("made by".into(), made.maker.name().to_owned()),
        ];
        rows.extend(
            [("calls itself", &made.name), ("architecture", &made.architecture)]
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))),
        );
        rows.extend(made.keys.iter().cloned());
        let _ = write!(html, "<h3>{}</h3>\n{}", Html(&file.name), facts(&rows));
    }
    html + "</section>\n"
}

fn reproduce(report: &Report) -> String {
    let hash = |Hash { name, sha256 }: &Hash| {
        format!("<dt>{}</dt><dd><span class=\"hash\">{sha256}</span></dd>\n", Html(name))
    };
    let files = report.files.iter().flat_map(|file| &file.digests).chain(&report.original.digests);
    let commands: Vec<String> = report.commands.iter().map(|line| Html(line).to_string()).collect();
    format!(
        "<section><h2>How to get these numbers again</h2>\n<p class=\"under\">With llmq {} and files that have these hashes \
         (SHA-256, as <code>sha256sum</code> and the Hugging Face Hub show them):</p>\n<pre>{}</pre>\n\
         <dl class=\"facts\">{}<dt>the tokens that were scored</dt><dd><span class=\"hash\">{}</span></dd></dl></section>\n",
        env!("CARGO_PKG_VERSION"),
        commands.join("\n"),
        files.map(hash).collect::<String>(),
        report.setting.tokens
    )
}

/// SHA-256 of a script in base 64 (RFC 4648), by which a policy knows it.
fn fingerprint(script: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digest = Sha256::digest(script.as_bytes());
    let group = |bytes: &[u8]| {
        let bits = bytes.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - bytes.len()));
        let digit =
            |i: usize| if i > bytes.len() { '=' } else { char::from(DIGITS[(bits >> (18 - 6 * i)) as usize & 63]) };
        (0..4).map(digit).collect::<String>()
    };
    digest.chunks(3).map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_known_by_their_hashes() {
        // openssl dgst -sha256 -binary | base64, of "abc".
        assert_eq!(fingerprint("abc"), "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=");
    }
}
