//! What fits a model, a target and a tolerance: a table of rules, of which the first that applies decides.
//!
//! The figures behind the thresholds are those of the field: INT8 without VNNI gains about 1.1x where the same model gains 2x and more
//! with it; dynamic quantization leaves convolutions float and so gains nothing on a CNN, but on BERT it was faster than static
//! quantization (2.13x against 1.76x, ONNX Runtime on a Xeon with AMX); depthwise convolutions lose most.

use super::cpu::Cpu;
use super::op_counts::OpCounts;
use super::operators::Kind;

/// Where a model is going to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A CPU.
    Cpu(Cpu),
    /// A GPU with ONNX Runtime or TensorRT.
    Gpu,
    /// A small device, mostly ARM, where size and energy count.
    Edge,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Leave the model as it is.
    Nothing,
    /// Half precision.
    Fp16,
    /// `llmq int8 dynamic`.
    Dynamic,
    /// `llmq int8 static`.
    Static,
    /// `llmq int8 static --qat`, since static quantization alone is likely to lose too much.
    Qat,
}

impl Choice {
    /// How messages and programs call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Fp16 => "FP16",
            Self::Dynamic => "INT8 dynamic",
            Self::Static => "INT8 static",
            Self::Qat => "INT8 static with QAT",
        }
    }
}

/// What the decision depends on.
#[derive(Debug, Clone)]
pub struct Situation {
    /// The model.
    pub counts: OpCounts,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Where it is going to run.
    pub target: Target,
    /// How many points of accuracy may be lost.
    pub tolerance: f64,
}

/// A rule of the table.
struct Rule {
    /// What it is called in `--json`.
    name: &'static str,
    applies: fn(&Situation) -> bool,
    choice: Choice,
    why: &'static str,
}

/// The decision.
#[derive(Debug, Clone, PartialEq)]
pub struct Advice {
    /// What to do.
    pub choice: Choice,
    /// The rule that decided.
    pub rule: &'static str,
    /// Why, the rule's own reason first.
    pub reasons: Vec<String>,
}

/// Below this, a model is loaded and run in no time anyway.
const SMALL: u64 = 1 << 20;

/// A loss in points that static quantization of a network with depthwise convolutions rarely keeps (MobileNetV2: 1.4).
const DEPTHWISE_LOSS: f64 = 1.0;

/// Weights of this kind are most of the work, or, where shapes are not known, of the weights.
fn mostly(s: &Situation, kind: Kind) -> bool {
    s.counts.work(kind).unwrap_or_else(|| s.counts.part(kind)) >= 0.5
}

fn quantizable(s: &Situation) -> f64 {
    [Kind::Conv, Kind::MatMul, Kind::Embedding].iter().map(|&kind| s.counts.part(kind)).sum()
}

const RULES: [Rule; 12] = [
    Rule {
        name: "quantized",
        applies: |s| s.counts.quantized > 0,
        choice: Choice::Nothing,
        why: "the graph is quantized already; start from the float model that it was made from",
    },
    Rule {
        name: "recurrent",
        applies: |s| s.counts.part(Kind::Recurrent) >= 0.5,
        choice: Choice::Nothing,
        why: "most weights are in recurrent layers, which llmq leaves float",
    },
    Rule {
        name: "no weights",
        applies: |s| quantizable(s) < 0.1,
        choice: Choice::Nothing,
        why: "less than a tenth of the weights is in convolutions, matrix products and embeddings: INT8 would change little",
    },
    Rule {
        name: "gpu, mostly convolutions, tolerant",
        applies: |s| s.target == Target::Gpu && mostly(s, Kind::Conv) && s.tolerance >= DEPTHWISE_LOSS,
        choice: Choice::Static,
        why: "TensorRT runs convolutions in INT8 from static scales",
    },
    Rule {
        name: "gpu",
        applies: |s| s.target == Target::Gpu,
        choice: Choice::Fp16,
        why: "on a GPU, FP16 halves the size, uses the tensor cores and loses next to nothing; dynamic INT8 has no fast GPU kernels",
    },
    Rule {
        name: "half precision",
        applies: |s| s.counts.half * 2 > s.counts.weights(),
        choice: Choice::Nothing,
        why: "the weights are in half precision, which CPUs widen to floats; export the model in FLOAT and ask again",
    },
    Rule {
        name: "small",
        applies: |s| s.bytes < SMALL && s.target != Target::Edge,
        choice: Choice::Nothing,
        why: "the model is smaller than 1 MB: overhead decides its speed, not arithmetic",
    },
    Rule {
        name: "depthwise, careful",
        applies: |s| mostly(s, Kind::Conv) && s.counts.depthwise > 0 && s.tolerance < DEPTHWISE_LOSS,
        choice: Choice::Qat,
        why: "depthwise convolutions lose most in INT8, commonly more than is tolerated here; training with rounding wins most of it back",
    },
    Rule {
        name: "mostly convolutions",
        applies: |s| mostly(s, Kind::Conv),
        choice: Choice::Static,
        why: "most of the work is in convolutions, which run in INT8 only with static scales; dynamic quantization would leave them float",
    },
    Rule {
        name: "matrix products",
        applies: |s| mostly(s, Kind::MatMul) || s.counts.part(Kind::MatMul) + s.counts.part(Kind::Embedding) >= 0.5,
        choice: Choice::Dynamic,
        why: "most of the weights are in matrix products and embeddings: dynamic quantization needs no data, and follows activations \
              with outliers better than fixed scales do",
    },
    Rule {
        name: "mixed",
        applies: |s| s.counts.share(Kind::Conv).nodes > 0,
        choice: Choice::Static,
        why: "convolutions and matrix products share the work, and only static scales cover both",
    },
    Rule {
        name: "nothing else fits",
        applies: |_| true,
        choice: Choice::Nothing,
        why: "no kind of node has enough of the weights",
    },
];

/// Decides.
pub fn advise(s: &Situation) -> Advice {
    let fits = RULES.iter().find(|rule| (rule.applies)(s));
    let rule = fits.unwrap_or(&RULES[RULES.len() - 1]);
    let mut reasons = vec![rule.why.to_owned()];
    reasons.extend(remarks(s, rule.choice));
    Advice { choice: rule.choice, rule: rule.name, reasons }
}

/// What else someone should know who follows the choice.
fn remarks(s: &Situation, choice: Choice) -> Vec<String> {
    let mut remarks = Vec::new();
    if matches!(choice, Choice::Nothing | Choice::Fp16) {
        return remarks;
    }
    if let Target::Cpu(cpu) = s.target {
        remarks.push(match cpu.is_fast() {
            true => format!("the CPU ({}) multiplies bytes several times as fast as floats", cpu.name()),
            false => format!(
                "the CPU ({}) multiplies bytes hardly faster than floats: expect a smaller file and about 1.1x the speed",
                cpu.name()
            ),
        });
    }
    if s.target == Target::Edge {
        remarks.push("small devices gain twice, by size and by energy; most have ARM's dot product".into());
    }
    let embeddings = s.counts.part(Kind::Embedding);
    if embeddings >= 0.2 {
        remarks.push(format!("{:.0}% of the weights are in embeddings, which get INT8 rows", 100.0 * embeddings));
    }
    if choice == Choice::Dynamic && s.tolerance < 0.5 {
        remarks.push("half a point is not much for a transformer in INT8: judge it with llmq int8 validate".into());
    }
    if s.counts.depthwise > 0 {
        remarks.push(format!(
            "{} depthwise convolutions lose most in INT8: judge it with llmq int8 validate",
            s.counts.depthwise
        ));
    }
    remarks
}

#[cfg(test)]
mod tests;
