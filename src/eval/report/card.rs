//! The model card: `README.md` of a repository on the hub, with its front matter.

use super::escape::{Markdown, code, yaml};
use super::usage::section;
use super::words::{bytes, grouped, headline, sentence, short, signed_percent};
use super::{Hash, Judged, Report};
use std::fmt::Write;

/// The card.
pub fn card(report: &Report) -> String {
    let files: Vec<&Judged> = report.own().collect();
    let original = report.original.facts.repository.as_deref();
    let mut text = front_matter(report);
    let name = &report.original.name;
    let _ = write!(text, "\n# {} in GGUF\n\n", Markdown(name));
    let link = original.map_or_else(|| Markdown(name).to_string(), |id| format!("[{id}](https://huggingface.co/{id})"));
    let perplexity = &report.original.perplexity;
    let _ = writeln!(
        text,
        "Quantized from {link} for [llama.cpp](https://github.com/ggml-org/llama.cpp) and whatever else reads GGUF, and measured \
         against it.\n"
    );
    let best = report.loaded();
    let which = if files.len() > 1 { format!("**{}**: ", Markdown(&best.name)) } else { String::new() };
    let _ = writeln!(text, "{which}**{}.** {}\n", headline(&best.verdict), sentence(&best.verdict));
    table(&mut text, report);
    let _ = writeln!(
        text,
        "\nKL divergence from the original (mean over tokens, in nats), tokens for which both have the same likeliest successor, and \
         the increase of perplexity with its 95% interval; {} scored tokens in {} windows of {} tokens (text: {}; protocol: {}).\n",
        grouped(perplexity.tokens),
        perplexity.windows,
        report.setting.context,
        Markdown(&report.setting.text),
        report.setting.protocol
    );
    let usage = section(best, &report.original.facts.sampling);
    if !usage.is_empty() {
        text += &usage;
        text.push('\n');
    }
    text += "## How it was made\n\n";
    for file in report.files.iter() {
        made(&mut text, file);
    }
    text += "\nTo get the numbers of the table again:\n\n```sh\n";
    report.commands.iter().for_each(|line| text += &format!("{}\n", code(line)));
    text += "```\n\n";
    hashes(&mut text, JUDGED, report.files.iter().flat_map(|file| &file.digests));
    hashes(&mut text, "SHA-256 of the original:", &report.original.digests);
    text
}

/// Stands before the hashes of the files that the card judges.
const JUDGED: &str = "SHA-256 of the files:";

fn hashes<'a>(text: &mut String, heading: &str, hashes: impl IntoIterator<Item = &'a Hash>) {
    let _ = write!(text, "{heading}\n\n```\n");
    hashes.into_iter().for_each(|hash| *text += &format!("{}  {}\n", hash.sha256, code(&hash.name)));
    *text += "```\n";
}

/// The files that a card of [`card`] judges against their original; none if the text is no such card.
pub fn judged(card: &str) -> Option<Vec<Hash>> {
    let (matter, text) = card.strip_prefix("---\n")?.split_once("\n---\n")?;
    matter.lines().find(|line| *line == MADE_BY)?;
    let (_, list) = text.split_once(&format!("\n{JUDGED}\n\n```\n"))?;
    let (list, _) = list.split_once("```\n")?;
    let hash = |line: &str| {
        let (sha256, name) = line.split_once("  ")?;
        let hexadecimal = sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit());
        hexadecimal.then(|| Hash { name: name.into(), sha256: sha256.into() })
    };
    list.lines().map(hash).collect()
}

/// Line of the front matter that only cards from here have.
const MADE_BY: &str = "quantized_by: llmq";

fn front_matter(report: &Report) -> String {
    let facts = &report.original.facts;
    let mut text = "---\n".to_owned();
    if let Some(id) = &facts.repository {
        let _ = writeln!(text, "base_model: {}\nbase_model_relation: quantized", yaml(id));
    }
    for (key, values) in &facts.matter {
        match values.as_slice() {
            [one] => text += &format!("{key}: {}\n", yaml(one)),
            several => {
                let _ = writeln!(text, "{key}:");
                several.iter().for_each(|value| text += &format!("- {}\n", yaml(value)));
            }
        }
    }
    if facts.get("license").is_none()
        && let Some(license) = report.loaded().made.key("general.license")
    {
        let _ = writeln!(text, "license: {}", yaml(license));
    }
    if facts.get("pipeline_tag").is_none() {
        text += "pipeline_tag: text-generation\n";
    }
    text + MADE_BY + "\ntags:\n- gguf\n- llmq\n- llama.cpp\n- quantized\n---\n"
}

fn table(text: &mut String, report: &Report) {
    text.push_str(
        "| file | type | size | bits a weight | KL divergence | same token | perplexity | increase | verdict |\n",
    );
    text.push_str("|---|---|---:|---:|---:|---:|---:|---:|---|\n");
    let original = &report.original;
    let (size, bits) = original.size.map_or(Default::default(), |s| (bytes(s.bytes), format!("{:.2}", s.bits)));
    let _ = writeln!(
        text,
        "| {}, the original | | {size} | {bits} | 0 | 100% | {:.4} | | |",
        Markdown(&original.name),
        original.perplexity.value
    );
    for file in &report.files {
        let (s, (low, high)) = (&file.statistics, file.verdict.interval);
        let kl = &s.divergence.mean;
        let by = if file.peer { format!(", {}", file.made.maker.name()) } else { String::new() };
        let _ = writeln!(
            text,
            "| {}{} | {} | {} | {:.2} | {:.6} ± {:.6} | {:.2}% | {:.4} | {} ({} to {}) | {} |",
            Markdown(&file.name),
            Markdown(&by),
            file.made.mix.as_deref().unwrap_or(""),
            bytes(file.size.bytes),
            file.size.bits,
            kl.value,
            kl.error,
            100.0 * s.same_top.value,
            s.perplexity.value,
            signed_percent(file.verdict.increase),
            signed_percent(low),
            signed_percent(high),
            short(&file.verdict)
        );
    }
}

fn made(text: &mut String, file: &Judged) {
    let types: Vec<String> = file.made.types.iter().map(|t| format!("{} {:.1}%", t.kind, 100.0 * t.part)).collect();
    let _ = writeln!(text, "- {}: {}", Markdown(&file.name), Markdown(&types.join(", ")));
    for (key, value) in &file.made.keys {
        let _ = writeln!(text, "  - `{}`: `{}`", code(key), code(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cards_from_here_say_what_was_judged() {
        let own = Hash { name: "a b.gguf".into(), sha256: "0f".repeat(32) };
        let other = Hash { name: "model.safetensors".into(), sha256: "1e".repeat(32) };
        let mut card = format!("---\nlicense: mit\n{MADE_BY}\n---\n\n# Tiny\n\n");
        hashes(&mut card, JUDGED, [&own]);
        hashes(&mut card, "SHA-256 of the original:", [&other]);
        assert_eq!(judged(&card), Some(vec![own]));
        for no_card in
            [&card.replace(MADE_BY, "quantized_by: me"), &card.replace("0f0f", "0g"), &card[..card.len() / 2], ""]
        {
            assert_eq!(judged(no_card), None, "{no_card}");
        }
    }
}
