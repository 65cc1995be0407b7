//! `llmq inspect`: what is in a file.

use super::hub;
use super::output::{self, bytes};
use crate::error::Result;
use crate::format::{self, mix};
use crate::pipeline::weights::open_gguf;
use crate::source::checkpoint::Checkpoint;
use crate::source::hub::Need;
use crate::source::value::{Array, Value};
use serde_json::json;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A .gguf, a checkpoint folder, or org/name[@revision] on the Hugging Face Hub, of which only headers are fetched
    model: PathBuf,

    /// Every tensor by itself, not those of all blocks in one line, and every key
    #[arg(long)]
    all: bool,

    /// One JSON object a line on standard output: every tensor by itself
    #[arg(long)]
    json: bool,
}

/// One tensor, wherever it is.
struct Row {
    name: String,
    kind: String,
    shape: Vec<u64>,
    bytes: u64,
}

impl Row {
    /// How it is shown under a name, with as many bytes as all of that name take.
    fn line(&self, name: &str, all: u64) -> String {
        let shape: Vec<String> = self.shape.iter().map(ToString::to_string).collect();
        format!("{name:40} {:>6} {:>16} {:>10}", self.kind, shape.join(" x "), bytes(all))
    }

    /// Its name with `*` for each number between dots, and these numbers.
    fn pattern(&self) -> (String, Vec<usize>) {
        let number = |part: &&str| part.bytes().all(|b| b.is_ascii_digit());
        let numbers = self.name.split('.').filter(number).filter_map(|part| part.parse().ok()).collect();
        let parts: Vec<&str> = self.name.split('.').map(|part| if number(&part) { "*" } else { part }).collect();
        (parts.join("."), numbers)
    }
}

/// A line for tensors whose names differ by the number of their block, or expert, alone and which are alike otherwise; it says of which
/// blocks they are where others have that name, too.
fn grouped(rows: &[Row]) -> Vec<String> {
    let mut patterns: Vec<Vec<Vec<&Row>>> = Vec::new();
    let mut known = HashMap::new();
    for row in rows {
        let at = *known.entry(row.pattern().0).or_insert(patterns.len());
        if at == patterns.len() {
            patterns.push(Vec::new());
        }
        let groups = &mut patterns[at];
        match groups.iter_mut().find(|group| group[0].kind == row.kind && group[0].shape == row.shape) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    let line = |group: &Vec<&Row>, i: usize, count: usize| {
        let ((pattern, _), of) = (group[0].pattern(), group.len());
        let mut blocks: Vec<usize> = group.iter().filter_map(|row| row.pattern().1.first().copied()).collect();
        blocks.dedup();
        let which = match (count, i + 1 == count) {
            (1, _) => String::new(),
            (_, true) => " in the others".into(),
            (_, false) => format!(" in {}", ranges(&blocks)),
        };
        match of {
            1 if count == 1 => group[0].line(&group[0].name, group[0].bytes),
            _ => format!("{}   x {of}{which}", group[0].line(&pattern, group.iter().map(|row| row.bytes).sum())),
        }
    };
    let lines = |groups: &Vec<Vec<&Row>>| {
        groups.iter().enumerate().map(|(i, group)| line(group, i, groups.len())).collect::<Vec<_>>()
    };
    patterns.iter().flat_map(lines).collect()
}

/// Ascending numbers, those in a row as their first and last.
fn ranges(numbers: &[usize]) -> String {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [first, .., last] => format!("{first}-{last}"),
        one => one.iter().map(ToString::to_string).collect(),
    });
    runs.collect::<Vec<_>>().join(", ")
}

pub fn run(args: &Args) -> Result<()> {
    let model = hub::find(&args.model, Need::Headers)?;
    let model = model.path();
    let (rows, file_type) = if model.is_dir() { (checkpoint(model)?, None) } else { gguf(args, model)? };
    if args.json {
        for row in &rows {
            let fields = json!({ "name": row.name, "kind": row.kind, "shape": row.shape, "bytes": row.bytes });
            output::json("tensor", fields);
        }
    } else if args.all {
        rows.iter().for_each(|row| output::line(row.line(&row.name, row.bytes)));
    } else {
        grouped(&rows).iter().for_each(output::line);
    }
    let size: u64 = rows.iter().map(|r| r.bytes).sum();
    let elements: u64 = rows.iter().map(|r| r.shape.iter().product::<u64>()).sum();
    let bits = if elements > 0 { 8.0 * size as f64 / elements as f64 } else { 0.0 };
    let mut kinds: Vec<&str> = rows.iter().map(|r| r.kind.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    if args.json {
        let fields = json!({
            "tensors": rows.len(),
            "elements": elements,
            "bytes": size,
            "bits_per_weight": bits,
            "kinds": kinds,
            "file_type": file_type,
        });
        output::json("summary", fields);
    } else {
        let (n, kinds) = (rows.len(), kinds.join(", "));
        output::line(format!("{n} tensors, {elements} weights, {}, {bits:.2} bits per weight ({kinds})", bytes(size)));
    }
    Ok(())
}

fn checkpoint(model: &Path) -> Result<Vec<Row>> {
    let checkpoint = Checkpoint::open(model)?;
    let rows = checkpoint.tensors().map(|t| Row {
        name: t.name.into(),
        kind: t.dtype,
        shape: t.shape.iter().map(|&n| n as u64).collect(),
        bytes: t.bytes as u64,
    });
    Ok(rows.collect())
}

/// The tensors of a GGUF, and what llama.cpp calls such a file.
fn gguf(args: &Args, model: &Path) -> Result<(Vec<Row>, Option<&'static str>)> {
    let file = open_gguf(model)?;
    let file_type = file.get("general.file_type").and_then(Value::as_u64).and_then(mix::file_type_name);
    // What a tokenizer consists of are lists, and texts of many lines.
    let shown = |key: &str| match key.strip_prefix("tokenizer.") {
        Some(rest) => args.all || args.json || ["ggml.model", "ggml.pre"].contains(&rest),
        None => true,
    };
    let (shown, left): (Vec<_>, Vec<_>) = file.metadata.iter().partition(|(key, _)| shown(key));
    for (key, value) in shown {
        if args.json {
            output::json("metadata", json!({ "key": key, "value_type": value.type_name(), "value": plain(value) }));
        } else {
            let name =
                file_type.filter(|_| key == "general.file_type").map_or(String::new(), |name| format!(" ({name})"));
            output::line(format!("{key:45} {:8} {value}{name}", value.type_name()));
        }
    }
    if !left.is_empty() {
        output::line(format!("tokenizer.*: {} other keys: --all", left.len()));
    }
    let rows = file.tensors.iter().map(|t| Row {
        name: t.name.clone(),
        kind: format::by_id(t.type_id).map_or_else(|| t.type_id.to_string(), |k| k.name().into()),
        shape: t.dims.iter().rev().copied().collect(),
        bytes: t.bytes,
    });
    Ok((rows.collect(), file_type))
}

/// A value as JSON, arrays whole.
fn plain(value: &Value) -> serde_json::Value {
    match value {
        Value::Bool(b) => (*b).into(),
        Value::Str(s) => s.as_str().into(),
        Value::F32(x) => f64::from(*x).into(),
        Value::F64(x) => (*x).into(),
        Value::I8(_) | Value::I16(_) | Value::I32(_) | Value::I64(_) => match value.as_f64() {
            Some(x) => (x as i64).into(),
            None => serde_json::Value::Null,
        },
        Value::Array(array) => elements(array),
        other => other.as_u64().into(),
    }
}

fn elements(array: &Array) -> serde_json::Value {
    (0..array.len()).filter_map(|i| array.get(i)).map(|v| plain(&v)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, kind: &str) -> Row {
        Row { name: name.into(), kind: kind.into(), shape: vec![2, 3], bytes: 24 }
    }

    #[test]
    fn tensors_of_all_blocks_are_one_line() {
        let mut rows = vec![row("token_embd.weight", "F16")];
        for i in 0..12 {
            rows.push(row(
                &format!("blk.{i}.attn_v.weight"),
                if [0, 1, 2, 5, 11].contains(&i) { "Q6_K" } else { "Q4_K" },
            ));
            rows.push(row(&format!("blk.{i}.ffn.0.weight"), "Q4_K"));
        }
        let lines: Vec<String> =
            grouped(&rows).iter().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "token_embd.weight F16 2 x 3 0.02 kB",
                "blk.*.attn_v.weight Q6_K 2 x 3 0.12 kB x 5 in 0-2, 5, 11",
                "blk.*.attn_v.weight Q4_K 2 x 3 0.17 kB x 7 in the others",
                "blk.*.ffn.*.weight Q4_K 2 x 3 0.29 kB x 12",
            ]
        );
    }
}
