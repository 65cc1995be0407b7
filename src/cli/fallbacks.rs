//! Tensors that get another type than they should have, one line for all that change alike.

use super::output::bytes;
use crate::pipeline::plan::Planned;
use crate::pipeline::report::{TensorReport, pattern};

/// What tensors have in common of which one line tells.
#[derive(PartialEq)]
struct Fallback {
    wanted: &'static str,
    got: &'static str,
    columns: usize,
    width: usize,
}

/// A line for all tensors whose rows do not divide into blocks of the type that they should have had, and which got the same one
/// instead, as `blk.*.ffn_down.weight (30 tensors): Q4_K -> Q5_0, 1.20 MB more, because rows of 576 do not divide into blocks of 256`.
pub fn lines<'a>(tensors: impl Iterator<Item = &'a TensorReport>) -> Vec<String> {
    let mut all: Vec<(Fallback, Vec<&TensorReport>)> = Vec::new();
    for tensor in tensors {
        let Some(wanted) = tensor.instead_of else { continue };
        let fallback = Fallback {
            wanted: wanted.name(),
            got: tensor.kind.name(),
            columns: tensor.shape.last().copied().unwrap_or_default(),
            width: wanted.width(),
        };
        match all.iter_mut().find(|(other, _)| *other == fallback) {
            Some((_, tensors)) => tensors.push(tensor),
            None => all.push((fallback, vec![tensor])),
        }
    }
    all.iter().map(|(fallback, tensors)| fallback.line(tensors)).collect()
}

/// The same of what is only planned.
pub fn planned<'a>(tensors: impl Iterator<Item = &'a Planned>) -> Vec<String> {
    lines(tensors.map(|tensor| tensor.report(None)).collect::<Vec<_>>().iter())
}

impl Fallback {
    fn line(&self, tensors: &[&TensorReport]) -> String {
        let Fallback { wanted, got, columns, width } = self;
        let count = if tensors.len() > 1 { format!(" ({} tensors)", tensors.len()) } else { String::new() };
        let cost: i64 = tensors.iter().filter_map(|tensor| tensor.fallback_cost).sum();
        let cost = format!("{} {}", bytes(cost.unsigned_abs()), if cost < 0 { "less" } else { "more" });
        format!(
            "{}{count}: {wanted} -> {got}, {cost}, because rows of {columns} do not divide into blocks of {width}",
            names(tensors)
        )
    }
}

/// The names of tensors, with `*` for the number of the block, and as a shell would write several: `blk.*.{attn_q,attn_k}.weight`.
fn names(tensors: &[&TensorReport]) -> String {
    let mut patterns: Vec<String> = Vec::new();
    for pattern in tensors.iter().map(|tensor| pattern(&tensor.name)) {
        if !patterns.contains(&pattern) {
            patterns.push(pattern);
        }
    }
    let middle = |pattern: &String| Some(pattern.strip_prefix("blk.*.")?.strip_suffix(".weight")?.to_owned());
    let (inside, outside): (Vec<String>, Vec<String>) = patterns.into_iter().partition(|name| middle(name).is_some());
    let inside = match inside.as_slice() {
        [] | [_] => inside,
        several => {
            vec![format!("blk.*.{{{}}}.weight", several.iter().filter_map(middle).collect::<Vec<_>>().join(","))]
        }
    };
    outside.into_iter().chain(inside).collect::<Vec<_>>().join(", ")
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
            tensors.push(report(&format!("blk.{i}.attn_k.weight"), Some("Q6_K"), "Q8_0", 576));
            let wanted = if i < 3 { "Q6_K" } else { "Q4_K" };
            tensors.push(report(&format!("blk.{i}.ffn_down.weight"), Some(wanted), "F16", 80));
        }
        let wanted = [
            "token_embd.weight, blk.*.attn_k.weight (31 tensors): Q6_K -> Q8_0, 31.00 kB less, because rows of 576 do not divide into blocks of 256",
            "blk.*.ffn_down.weight (3 tensors): Q6_K -> F16, 150.00 kB more, because rows of 80 do not divide into blocks of 256",
            "blk.*.ffn_down.weight (27 tensors): Q4_K -> F16, 1.35 MB more, because rows of 80 do not divide into blocks of 256",
        ];
        assert_eq!(lines(tensors.iter()), wanted);
        let all = ["attn_q", "attn_k"].map(|name| report(&format!("blk.3.{name}.weight"), Some("Q4_K"), "Q5_0", 64));
        assert!(
            lines(all.iter())[0].starts_with("blk.*.{attn_q,attn_k}.weight (2 tensors): Q4_K -> Q5_0, 2.00 kB less")
        );
    }
}
