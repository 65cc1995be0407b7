use super::*;
use crate::int8::op_counts::Share;

const VNNI: Target = Target::Cpu(Cpu::Vnni);
const OLD: Target = Target::Cpu(Cpu::X86);

/// A model of 100 MB by its weights in convolutions, matrix products, embeddings and recurrent layers, of 100.
fn situation(weights: [u64; 4], target: Target) -> Situation {
    let kinds = Kind::ALL.into_iter().zip(weights).filter(|(_, weights)| *weights > 0);
    let share = |weights| Share { nodes: 1, weights, products: 0, unknown: 1 };
    let other = 100 - weights.iter().sum::<u64>();
    let kinds = kinds.map(|(kind, weights)| (kind, share(weights))).collect();
    Situation { counts: OpCounts { kinds, other, ..OpCounts::default() }, bytes: 100_000_000, target, tolerance: 1.0 }
}

const CNN: [u64; 4] = [90, 9, 0, 0];
const BERT: [u64; 4] = [0, 77, 22, 0];

#[test]
fn the_table() {
    let change = |base: Situation, change: fn(&mut Situation)| {
        let mut changed = base;
        change(&mut changed);
        changed
    };
    let table = [
        ("mostly convolutions", Choice::Static, situation(CNN, VNNI)),
        ("mostly convolutions", Choice::Static, situation(CNN, OLD)),
        ("mostly convolutions", Choice::Static, situation(CNN, Target::Edge)),
        ("gpu, mostly convolutions, tolerant", Choice::Static, situation(CNN, Target::Gpu)),
        ("gpu", Choice::Fp16, change(situation(CNN, Target::Gpu), |s| s.tolerance = 0.5)),
        ("gpu", Choice::Fp16, situation(BERT, Target::Gpu)),
        ("matrix products", Choice::Dynamic, situation(BERT, VNNI)),
        ("matrix products", Choice::Dynamic, situation([0, 48, 52, 0], VNNI)),
        ("matrix products", Choice::Dynamic, situation(BERT, Target::Edge)),
        ("mixed", Choice::Static, situation([45, 40, 0, 0], VNNI)),
        ("recurrent", Choice::Nothing, situation([0, 20, 0, 80], VNNI)),
        ("no weights", Choice::Nothing, situation([5, 4, 0, 0], VNNI)),
        ("nothing else fits", Choice::Nothing, situation([0, 30, 0, 0], VNNI)),
        ("quantized", Choice::Nothing, change(situation(CNN, VNNI), |s| s.counts.quantized = 1)),
        ("half precision", Choice::Nothing, change(situation(BERT, VNNI), |s| s.counts.half = 90)),
        ("small", Choice::Nothing, change(situation(CNN, VNNI), |s| s.bytes = 1000)),
        ("mostly convolutions", Choice::Static, change(situation(CNN, Target::Edge), |s| s.bytes = 1000)),
        ("mostly convolutions", Choice::Static, change(situation(CNN, VNNI), |s| s.counts.depthwise = 17)),
        (
            "depthwise, careful",
            Choice::Qat,
            change(situation(CNN, VNNI), |s| (s.counts.depthwise, s.tolerance) = (17, 0.5)),
        ),
    ];
    for (rule, choice, situation) in &table {
        let advice = advise(situation);
        assert_eq!((advice.rule, advice.choice), (*rule, *choice), "{situation:?}");
    }
    for rule in &RULES {
        assert!(table.iter().any(|(name, ..)| *name == rule.name), "no case for {}", rule.name);
    }
}

#[test]
fn where_the_work_is_known_it_counts_instead_of_weights() {
    let mut s = situation([30, 60, 0, 0], VNNI);
    assert_eq!(advise(&s).choice, Choice::Dynamic);
    for (kind, products) in [(Kind::Conv, 900), (Kind::MatMul, 100)] {
        let share = s.counts.kinds.get_mut(&kind).unwrap();
        (share.products, share.unknown) = (products, 0);
    }
    assert_eq!(advise(&s).choice, Choice::Static);
}

#[test]
fn reasons_tell_about_the_cpu_and_embeddings() {
    let told = |s: Situation| advise(&s).reasons.join("\n");
    assert!(told(situation(CNN, OLD)).contains("about 1.1x the speed"));
    assert!(told(situation(CNN, VNNI)).contains("several times as fast"));
    assert!(told(situation(BERT, VNNI)).contains("22% of the weights are in embeddings"));
    assert!(!told(situation(CNN, Target::Gpu)).contains("the CPU"));
}
