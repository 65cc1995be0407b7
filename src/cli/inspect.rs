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
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A .gguf, a checkpoint folder, or org/name[@revision] on the Hugging Face Hub, of which only headers are fetched
    model: PathBuf,

    /// One JSON object a line on standard output
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

pub fn run(args: &Args) -> Result<()> {
    let model = hub::find(&args.model, Need::Headers)?;
    let model = model.path();
    let (rows, file_type) = if model.is_dir() { (checkpoint(model)?, None) } else { gguf(args, model)? };
    for row in &rows {
        if args.json {
            output::json(
                "tensor",
                json!({ "name": row.name, "kind": row.kind, "shape": row.shape, "bytes": row.bytes }),
            );
        } else {
            let shape: Vec<String> = row.shape.iter().map(ToString::to_string).collect();
            output::line(format!("{:40} {:>6} {:>16} {:>10}", row.name, row.kind, shape.join(" x "), bytes(row.bytes)));
        }
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
    for (key, value) in &file.metadata {
        if args.json {
            output::json("metadata", json!({ "key": key, "value_type": value.type_name(), "value": plain(value) }));
        } else {
            let name =
                file_type.filter(|_| key == "general.file_type").map_or(String::new(), |name| format!(" ({name})"));
            output::line(format!("{key:45} {:8} {value}{name}", value.type_name()));
        }
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
