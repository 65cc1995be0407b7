//! Tensors that get another type than they should have, one line for each kind of them.

use super::output::bytes;
use crate::pipeline::plan::Planned;
use crate::pipeline::report::{TensorReport, pattern};

/// What is said of tensors that are called the same but for their block: as many as a model has blocks.
#[derive(PartialEq)]
struct Kind {
    /// With `*` for the number of the block.
    pattern: String,
    wanted: &'static str,
    got: &'static str,
    columns: usize,
    width: usize,
}

/// A line for each kind of tensor whose rows do not divide into blocks of the type that it should have had, as
/// `blk.*.ffn_down.weight (30 tensors): Q4_K -> Q5_0, 1.20 MB more, because rows of 576 do not divide into blocks of 256`.
pub fn lines<'a>(tensors: impl Iterator<Item = &'a TensorReport>) -> Vec<String> {
    let mut kinds: Vec<(Kind, usize, i64)> = Vec::new();
    for tensor in tensors {
        let Some(wanted) = tensor.instead_of else { continue };
        let kind = Kind {
            pattern: pattern(&tensor.name),
            wanted: wanted.name(),
            got: tensor.kind.name(),
            columns: tensor.shape.last().copied().unwrap_or_default(),
            width: wanted.width(),
        };
        let at = kinds.iter().position(|(other, ..)| *other == kind).unwrap_or_else(|| {
            kinds.push((kind, 0, 0));
            kinds.len() - 1
        });
        kinds[at].1 += 1;
        kinds[at].2 += tensor.fallback_cost.unwrap_or_default();
    }
    kinds.iter().map(|(kind, count, cost)| kind.line(*count, *cost)).collect()
}

/// The same of what is only planned.
pub fn planned<'a>(tensors: impl Iterator<Item = &'a Planned>) -> Vec<String> {
    lines(tensors.map(|tensor| tensor.report(None)).collect::<Vec<_>>().iter())
}

impl Kind {
    fn line(&self, count: usize, cost: i64) -> String {
        let Kind { pattern, wanted, got, columns, width } = self;
        let count = if count > 1 { format!(" ({count} tensors)") } else { String::new() };
        let cost = format!("{} {}", bytes(cost.unsigned_abs()), if cost < 0 { "less" } else { "more" });
        format!(
            "{pattern}{count}: {wanted} -> {got}, {cost}, because rows of {columns} do not divide into blocks of {width}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::by_name;

    fn report(name: &str, wanted: Option<&str>, kind: &str, columns: usize) -> TensorReport {
        TensorReport {
            name: name.into(),
            shape: vec![8, columns],
            from: "BF16".into(),
            kind: by_name(kind).unwrap(),
            instead_of: wanted.map(|wanted| by_name(wanted).unwrap()),
            fallback_cost: wanted.map(|_| if kind == "F16" { 50_000 } else { -1_000 }),
            bytes: 0,
            error: None,
            method: None,
            vanished: 0,
        }
    }

    #[test]
    fn blocks_are_told_together_and_other_kinds_by_themselves() {
        let mut tensors = vec![report("token_embd.weight", Some("Q6_K"), "Q8_0", 576)];
        for i in 0..30 {
            tensors.push(report(&format!("blk.{i}.attn_q.weight"), None, "Q4_K", 512));
            let wanted = if i < 3 { "Q6_K" } else { "Q4_K" };
            tensors.push(report(&format!("blk.{i}.ffn_down.weight"), Some(wanted), "F16", 80));
        }
        let wanted = [
            "token_embd.weight: Q6_K -> Q8_0, 1.00 kB less, because rows of 576 do not divide into blocks of 256",
            "blk.*.ffn_down.weight (3 tensors): Q6_K -> F16, 150.00 kB more, because rows of 80 do not divide into blocks of 256",
            "blk.*.ffn_down.weight (27 tensors): Q4_K -> F16, 1.35 MB more, because rows of 80 do not divide into blocks of 256",
        ];
        assert_eq!(lines(tensors.iter()), wanted);
    }
}
