//! Choosing the type of every tensor within a budget.

use super::forecast::sizes::is_on_gpu;
use super::plan::{Plan, Planned};
use super::sensitivity::Sensitivity;
use crate::error::{Error, Result};
use crate::format::budget::{self, Cost};
use crate::format::{Type, mix};
use crate::source::value::Value;

/// What a file may cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Bits per weight: of all tensors, per number in them.
    Bits(f64),
    /// Bytes of the file, or of all shards, header included.
    Size(u64),
    /// Bytes of the tensors that a GPU holds.
    Gpu(u64),
}

/// What was chosen.
#[derive(Debug, Clone)]
pub struct Choice {
    /// For each tensor that had a choice, its place in [`Plan::tensors`] and its estimated loss: Kullback-Leibler divergence
    /// per token, in nats.
    pub losses: Vec<(usize, f64)>,
}

impl Choice {
    /// The estimated loss of all of them together.
    pub fn total(&self) -> f64 {
        self.losses.iter().map(|(_, loss)| loss).sum()
    }

    /// A tensor's part of the estimated loss, if it had a choice. `place`: in [`Plan::tensors`].
    pub fn share(&self, place: usize) -> Option<f64> {
        let (_, loss) = self.losses.iter().find(|(tensor, _)| *tensor == place)?;
        let total = self.total();
        Some(if total > 0.0 { loss / total } else { 0.0 })
    }
}

/// Gives every measured tensor the type that makes the loss of all together the least within the target, and the file the
/// type that most of these weights have. `size`: the bytes of a plan's files.
///
/// # Errors
/// A target that even the smallest types miss; the message names the least that is possible.
pub fn decide(
    plan: &mut Plan,
    measured: &[Sensitivity],
    target: Target,
    size: &dyn Fn(&Plan) -> Result<u64>,
) -> Result<Choice> {
    let counted = |i: usize| !matches!(target, Target::Gpu(_)) || is_on_gpu(plan, &plan.tensors[i]);
    let option = |i: usize, cost: Cost| Cost { bytes: if counted(i) { cost.bytes } else { 0 }, ..cost };
    let costs = measured.iter().map(|m| m.options.iter().map(|(_, cost)| option(m.tensor, *cost)).collect());
    let costs: Vec<Vec<Cost>> = costs.collect();
    let bytes = |i: usize| if counted(i) { plan.tensors[i].bytes() } else { 0 };
    let fixed: u64 =
        (0..plan.tensors.len()).map(bytes).sum::<u64>() - measured.iter().map(|m| bytes(m.tensor)).sum::<u64>();
    let elements = plan.elements();
    // What is no choice: the header, padding, and tensors whose types are given.
    let mut rest = match target {
        Target::Bits(_) | Target::Gpu(_) => fixed,
        Target::Size(_) => size(plan)? - plan.tensors.iter().map(Planned::bytes).sum::<u64>() + fixed,
    };
    let all = match target {
        Target::Bits(bits) => whole_bytes(bits, elements),
        Target::Size(bytes) | Target::Gpu(bytes) => bytes,
    };
    loop {
        let choice = match all.checked_sub(rest).ok_or(0).and_then(|budget| budget::choose(&costs, budget)) {
            Ok(choice) => choice,
            Err(_) => {
                let least = costs.iter().filter_map(|c| c.iter().map(|c| c.bytes).min()).sum::<u64>();
                return Err(too_small(target, rest + least, elements));
            }
        };
        let mut losses = Vec::new();
        for (m, option) in measured.iter().zip(choice) {
            let (kind, cost) = m.options[option];
            let copied = plan.source.gguf_type(&plan.tensors[m.tensor].spec) == Some(kind);
            let tensor = &mut plan.tensors[m.tensor];
            (tensor.kind, tensor.instead_of, tensor.copied) = (kind, None, copied);
            losses.push((m.tensor, cost.loss));
        }
        // Other types may mean other shards, with headers of their own.
        let over = match target {
            Target::Bits(_) | Target::Gpu(_) => 0,
            Target::Size(bytes) => size(plan)?.saturating_sub(bytes),
        };
        if over == 0 {
            set_file_type(plan, measured)?;
            return Ok(Choice { losses });
        }
        rest += over;
    }
}

/// The most bytes that are no more than so many bits per number.
fn whole_bytes(bits: f64, elements: u64) -> u64 {
    let mut bytes = (bits * elements as f64 / 8.0) as u64;
    // The way in which bits per weight are shown.
    while bytes > 0 && 8.0 * bytes as f64 / elements as f64 > bits {
        bytes -= 1;
    }
    bytes
}

fn too_small(target: Target, least: u64, elements: u64) -> Error {
    match target {
        Target::Bits(bits) => {
            let possible = (8e4 * least as f64 / elements as f64).ceil() / 1e4;
            Error::usage(format!(
                "--target-bpw {bits} is too little: the least that is possible here is {possible} bits per weight"
            ))
            .hint(format!("give at least --target-bpw {possible}"))
        }
        Target::Size(bytes) => Error::usage(format!(
            "--target-size {bytes} is too little: the least that is possible here is {least} bytes"
        ))
        .hint(format!("give at least --target-size {least}")),
        Target::Gpu(bytes) => {
            Error::usage(format!("--fit leaves {bytes} bytes for weights, but at least {least} are needed"))
                .hint("give a shorter --context, or --kv q8_0; or leave some layers in main memory, with --target-size")
        }
    }
}

/// Names the type that most of the chosen weights have, as llama.cpp does for files that do not say; `Q4_K` stands for
/// `Q4_K_M` there.
fn set_file_type(plan: &mut Plan, measured: &[Sensitivity]) -> Result<()> {
    let mut weights: Vec<(Type, usize)> = Vec::new();
    for tensor in measured.iter().map(|m| &plan.tensors[m.tensor]) {
        match weights.iter_mut().find(|(kind, _)| *kind == tensor.kind) {
            Some((_, sum)) => *sum += tensor.spec.elements(),
            None => weights.push((tensor.kind, tensor.spec.elements())),
        }
    }
    let Some((kind, _)) = weights.into_iter().max_by_key(|(kind, sum)| (*sum, std::cmp::Reverse(kind.id()))) else {
        return Ok(());
    };
    let [before, now] = [plan.mix, kind.name()].map(|name| mix::named(name).map(|mix| Value::U32(mix.file_type)));
    let (before, now) = (before?, now?);
    // What the user has put in its place stays.
    let mut keys = plan.metadata.iter_mut();
    if let Some((_, value)) = keys.find(|(key, value)| key == "general.file_type" && *value == before) {
        *value = now;
    }
    Ok(())
}
