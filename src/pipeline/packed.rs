//! Weights that another program has quantized: their codes go into the file as they are, where a type holds them exactly.

use crate::error::{Error, Result};
use crate::format::exact::{self, Line};
use crate::format::{self, Type};
use crate::model::{TensorRole, TensorSpec};
use crate::source::checkpoint::{Checkpoint, Grouped};
use std::ops::Range;

/// Types that may hold the codes of others, the smallest first.
const HOLDERS: [&str; 5] = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"];

/// Rows whose scales are looked at together.
const ROWS: usize = 1024;

/// Whether a tensor of a checkpoint is in codes that go into the file as they are. `lost`: why they cannot, whatever the type;
/// `requantize`: what does not fit may be rounded again.
///
/// # Errors
/// It is in codes that the type does not hold exactly, and may not be rounded again; or its scales make no sense.
pub fn is_kept(
    source: &Checkpoint,
    spec: &TensorSpec,
    kind: Type,
    lost: Option<&str>,
    requantize: bool,
) -> Result<bool> {
    let Some(weight) = source.grouped(&spec.source) else { return Ok(false) };
    let why = match lost {
        Some(lost) => lost.to_owned(),
        None => match misfit(&weight, spec, kind)? {
            None => return Ok(kind.is_quantized()),
            Some(why) => why,
        },
    };
    if requantize {
        return Ok(false);
    }
    let (path, name, how, to) = (weight.path().display(), &spec.source, weight.kind(), kind.name());
    let original = "start from the original checkpoint, or accept the loss with --allow-requantize";
    let hint = match holder(&weight, spec)?.filter(|_| lost.is_none()) {
        Some(holder) if spec.role == TensorRole::Output => {
            format!("--output-tensor-type {holder} keeps its values as they are; or {original}")
        }
        Some(holder) => format!("--type {holder} keeps its values as they are; or {original}"),
        None => original.to_owned(),
    };
    Err(Error::new(format!(
        "{path}: tensor '{name}' is {how} already, and {to} would add its own error to that: {why}"
    ))
    .hint(hint))
}

/// The smallest type that holds a weight exactly.
fn holder(weight: &Grouped, spec: &TensorSpec) -> Result<Option<&'static str>> {
    for name in HOLDERS {
        if misfit(weight, spec, format::by_name(name)?)?.is_none() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Why a type does not hold a weight exactly; none if it does.
fn misfit(weight: &Grouped, spec: &TensorSpec, kind: Type) -> Result<Option<String>> {
    let (rows, columns, width) = (spec.rows(), spec.columns(), kind.width());
    if columns % width != 0 {
        return Ok(Some(format!("its rows of {columns} are no whole number of blocks of {width}")));
    }
    for first in (0..rows).step_by(ROWS) {
        let lines = weight.lines(first..(first + ROWS).min(rows))?;
        // Neighbouring groups often have the same zero point and never the same scale, so all of them are looked at.
        for (i, (&scale, &zero)) in lines.scales.iter().zip(&lines.zeros).enumerate() {
            if let Some(why) = (Line { zero, scale, top: weight.top() }).misfit(kind) {
                let (row, group) = (first + i / lines.count, i % lines.count);
                return Ok(Some(format!("in output {row}, group {group}, {why}")));
            }
        }
        if kind.is_quantized()
            && let Some(b) = lines.groups.chunks(width).position(|block| block.iter().any(|&group| group != block[0]))
        {
            let (from, to) = (b * width, (b + 1) * width - 1);
            return Ok(Some(format!(
                "its columns {from} to {to} share no scale (act-order, or groups that are no multiple of {width})"
            )));
        }
    }
    Ok(None)
}

/// Rows of a weight in the blocks of a type that holds it.
///
/// # Errors
/// It does not hold it after all, or scales that make no sense.
pub fn blocks(weight: &Grouped, name: &str, kind: Type, rows: Range<usize>) -> Result<Vec<u8>> {
    let lines = weight.lines(rows.clone())?;
    let codes = weight.codes(rows.clone());
    let line = |row: usize, block: usize| {
        let at = row * lines.count + lines.groups[block * kind.width()] as usize;
        Line { zero: lines.zeros[at], scale: lines.scales[at], top: weight.top() }
    };
    exact::blocks(kind, &codes, lines.groups.len(), line).map_err(|(row, block, why)| {
        let (path, row) = (weight.path().display(), rows.start + row);
        Error::new(format!("{path}: tensor '{name}', output {row}, block {block}: {why}"))
            .hint("the file has changed while it was read")
    })
}
