//! What a run tells while it works and when it is done.

use crate::format::Type;
use crate::source::imatrix::Imatrix;
use std::time::{Duration, Instant};

/// What reading, rounding and writing one number costs, in multiplications: only the estimate of the time left needs it.
pub const PER_WEIGHT: u64 = 400;

/// The size of a run, in multiplications.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// All of them.
    pub total: u64,
}

/// Someone who watches a run.
pub trait Observer: Sync {
    /// The run's size is known.
    fn begin(&self, work: Work);
    /// The run goes on behind so many of its blocks, which an earlier one has finished.
    fn resumed(&self, finished: usize, blocks: usize);
    /// Something else begins, as "rounding ffn_down", in one of so many blocks, which are counted from zero, or beside them.
    fn phase(&self, block: Option<usize>, blocks: usize, what: &str);
    /// Some of the work is done.
    fn advance(&self, work: u64);
    /// A tensor has been written.
    fn tensor(&self, report: &TensorReport);
    /// Something went other than planned.
    fn note(&self, note: &str);
}

/// One tensor of the file.
#[derive(Debug, Clone)]
pub struct TensorReport {
    /// Its name in GGUF.
    pub name: String,
    /// Its shape in the checkpoint, `[rows, columns]` or `[n]`.
    pub shape: Vec<usize>,
    /// Its type in the checkpoint.
    pub from: String,
    /// Its type in the file.
    pub kind: Type,
    /// The type that it should have had, if its rows do not divide into blocks of that.
    pub instead_of: Option<Type>,
    /// Bytes that this costs.
    pub fallback_cost: Option<i64>,
    /// Its bytes in the file.
    pub bytes: u64,
    /// The relative error of its output, or of its weights where no activations were seen; none if nothing was rounded
    /// to codes.
    pub error: Option<f64>,
    /// Which method its codes are of, where a calibrated one chose them.
    pub method: Option<&'static str>,
    /// How many of its numbers are too small for its type, and became zeros.
    pub vanished: usize,
}

/// The share of a tensor's numbers from which on it matters that they became zeros: many a checkpoint has a few that are next
/// to nothing.
const MANY: usize = 100;

/// A sentence for each kind of tensor of whose numbers many became zeros, as `blk.*.ffn_up.weight (30 tensors): …`.
pub fn vanished(tensors: &[TensorReport]) -> Vec<String> {
    let mut kinds: Vec<(String, &str, [usize; 3])> = Vec::new();
    for tensor in tensors {
        let count: usize = tensor.shape.iter().product();
        if tensor.vanished == 0 || tensor.vanished < count / MANY {
            continue;
        }
        let (pattern, kind) = (pattern(&tensor.name), tensor.kind.name());
        let at = kinds.iter().position(|(own, type_of_own, _)| *own == pattern && *type_of_own == kind);
        let at = at.unwrap_or_else(|| {
            kinds.push((pattern, kind, [0; 3]));
            kinds.len() - 1
        });
        for (sum, n) in kinds[at].2.iter_mut().zip([1, tensor.vanished, count]) {
            *sum += n;
        }
    }
    let line = |(pattern, kind, [tensors, vanished, count]): &(String, &str, [usize; 3])| {
        let tensors = if *tensors > 1 { format!(" ({tensors} tensors)") } else { String::new() };
        format!(
            "{pattern}{tensors}: {vanished} of {count} numbers are too small for {kind} and became zero; BF16 holds them"
        )
    };
    kinds.iter().map(line).collect()
}

/// A name with `*` for the number of its block.
pub fn pattern(name: &str) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((number, rest)) if is_number(number) => format!("blk.*.{rest}"),
        _ => name.to_owned(),
    }
}

/// What a run has done.
#[derive(Debug)]
pub struct Summary {
    /// Bytes of the file.
    pub bytes: u64,
    /// Numbers in all tensors.
    pub elements: u64,
    /// Where the time went.
    pub clock: Clock,
    /// Every tensor, in file order.
    pub tensors: Vec<TensorReport>,
    /// What went other than planned.
    pub notes: Vec<String>,
    /// Calibration tokens seen.
    pub tokens: usize,
    /// What the layers of a calibrated run saw, if it was to be kept.
    pub imatrix: Option<Imatrix>,
}

impl Summary {
    /// Bytes that all of these cost together.
    pub fn fallback_bytes(&self) -> i64 {
        self.tensors.iter().filter_map(|t| t.fallback_cost).sum()
    }

    /// The names of the tensors that got another type than they should have.
    pub fn fallbacks(&self) -> Vec<&str> {
        self.tensors.iter().filter(|t| t.instead_of.is_some()).map(|t| t.name.as_str()).collect()
    }
}

/// Where the time went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock {
    /// Reading and converting the checkpoint.
    pub reading: Duration,
    /// Forward passes of the calibration windows.
    pub forward: Duration,
    /// Multiplications of linear layers in these passes.
    pub multiplications: u64,
    /// Sums of outer products.
    pub hessian: Duration,
    /// Factoring, scale searches, rounding, decoding, errors.
    pub method: Duration,
    /// Writing the file.
    pub writing: Duration,
    /// Tokenizing.
    pub other: Duration,
}

impl Clock {
    /// The beginning of a step.
    pub fn start(&self) -> Instant {
        Instant::now()
    }

    /// The parts by name, in the order of the work.
    pub fn parts(&self) -> [(&'static str, Duration); 6] {
        [
            ("tokenizing", self.other),
            ("reading", self.reading),
            ("forward passes", self.forward),
            ("Hessians", self.hessian),
            ("rounding", self.method),
            ("writing", self.writing),
        ]
    }
}

/// The most memory that this process has had at once, in bytes, mapped files included; where the system tells.
pub fn peak_memory() -> Option<u64> {
    status("VmHWM:")
}

/// Counts [`peak_memory`] from now on, where the system can do that.
pub fn forget_peak_memory() {
    // Elsewhere it stays that of the whole process.
    std::fs::write("/proc/self/clear_refs", "5").ok();
}

/// The memory that this process has now, in bytes, mapped files not included; where the system tells.
pub fn anonymous_memory() -> Option<u64> {
    status("RssAnon:")
}

fn status(key: &str) -> Option<u64> {
    // Wine shows Windows programs the files of Linux, in which this process is another.
    if !cfg!(target_os = "linux") {
        return None;
    }
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::by_name;

    #[test]
    fn what_vanished_is_told_by_kind_and_a_few_numbers_are_not_worth_a_word() {
        let report = |name: &str, vanished: usize| TensorReport {
            name: name.into(),
            shape: vec![10, 100],
            from: "F32".into(),
            kind: by_name("F16").unwrap(),
            instead_of: None,
            fallback_cost: None,
            bytes: 0,
            error: None,
            method: None,
            vanished,
        };
        let mut tensors = vec![report("token_embd.weight", 9), report("output.weight", 10)];
        tensors.extend((0..30).map(|i| report(&format!("blk.{i}.ffn_up.weight"), if i < 2 { 1000 } else { 0 })));
        let told = "numbers are too small for F16 and became zero; BF16 holds them";
        let wanted = [
            format!("output.weight: 10 of 1000 {told}"),
            format!("blk.*.ffn_up.weight (2 tensors): 2000 of 2000 {told}"),
        ];
        assert_eq!(vanished(&tensors), wanted);
        assert_eq!(pattern("blk.x.ffn_down.weight"), "blk.x.ffn_down.weight");
    }
}
