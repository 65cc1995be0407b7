//! Spending a budget of bytes: one type for each tensor, so that the loss of all together is as small as it can be.
//!
//! This is a knapsack with a choice of sizes for every item. The price of a byte, λ, settles almost all of it: each tensor
//! takes the type of least loss + λ·bytes. What is left is the gap between that and the last byte of the budget, which is
//! searched exactly, by branch and bound.

use super::{Encoding, Type, writable};

/// Partial choices that are kept after each tensor; if there are more, the search goes on with the most promising, and is no
/// longer exact.
const KEPT: usize = 1 << 12;

/// What one type would cost at one tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Bytes in the file.
    pub bytes: u64,
    /// What it adds to the model's loss; finite, not negative.
    pub loss: f64,
}

/// The types that a matrix with rows of `columns` numbers may be given when llmq chooses, in ggml's order.
///
/// Where rows divide into super-blocks of 256, the older types of 32 have nothing to offer but `Q8_0`. Left out is what was made for models
/// that were trained with it: `MXFP4`, whose scales are powers of two, and types of one scale for two codes, or three, or four.
pub fn candidates(columns: usize) -> Vec<Type> {
    let wide = columns.is_multiple_of(256);
    let fits = |t: &Type| match t.encoding() {
        Encoding::Grid(_) => columns.is_multiple_of(t.width()) && (t.width() == 256 || !wide || t.name() == "Q8_0"),
        Encoding::Each(_) | Encoding::ReadOnly => false,
    };
    const TRAINED: [&str; 5] = ["MXFP4", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0"];
    writable().filter(fits).filter(|t| !TRAINED.contains(&t.name())).collect()
}

/// The choice of least loss within `budget` bytes: for each tensor, which of its options. Of options that cost the same,
/// the first.
///
/// # Errors
/// Even the smallest options do not fit; the bytes of these.
///
/// # Panics
/// If a tensor has no options.
pub fn choose(tensors: &[Vec<Cost>], budget: u64) -> Result<Vec<usize>, u64> {
    let ladders: Vec<Ladder> = tensors.iter().map(|options| Ladder::new(options)).collect();
    let smallest: u64 = ladders.iter().map(|l| l.steps[0].bytes()).sum();
    if smallest > budget {
        return Err(smallest);
    }
    let (greedy, price) = greedy(&ladders, budget - smallest);
    let places = match price {
        Some(price) => refine(&ladders, budget, greedy, price),
        None => greedy,
    };
    Ok(ladders.iter().zip(places).map(|(ladder, place)| ladder.steps[place].option).collect())
}

/// A tensor's options worth having: each larger than the one before, and of less loss.
struct Ladder {
    steps: Vec<Step>,
}

struct Step {
    option: usize,
    cost: Cost,
}

impl Step {
    fn bytes(&self) -> u64 {
        self.cost.bytes
    }

    fn loss(&self) -> f64 {
        self.cost.loss
    }
}

impl Ladder {
    fn new(options: &[Cost]) -> Ladder {
        let mut order: Vec<usize> = (0..options.len()).collect();
        order.sort_by(|&a, &b| {
            let (x, y) = (options[a], options[b]);
            x.bytes.cmp(&y.bytes).then(x.loss.total_cmp(&y.loss)).then(a.cmp(&b))
        });
        let mut steps: Vec<Step> = Vec::new();
        for option in order {
            let cost = options[option];
            if steps.last().is_none_or(|last| cost.loss < last.loss()) {
                steps.push(Step { option, cost });
            }
        }
        assert!(!steps.is_empty(), "a tensor without options");
        Ladder { steps }
    }

    /// The places on the lower convex hull: the steps that some price of a byte makes the best.
    fn hull(&self) -> Vec<usize> {
        let mut hull: Vec<usize> = Vec::new();
        for place in 0..self.steps.len() {
            while let [.., a, b] = hull[..] {
                if self.gain(a, b) > self.gain(b, place) {
                    break;
                }
                hull.pop();
            }
            hull.push(place);
        }
        hull
    }

    /// Loss saved per byte between two places.
    fn gain(&self, from: usize, to: usize) -> f64 {
        let (a, b) = (&self.steps[from], &self.steps[to]);
        (a.loss() - b.loss()) / (b.bytes() - a.bytes()) as f64
    }
}

/// Climbs the ladders, the most loss saved per byte first, while there is room. Returns the places and the price of a byte
/// where room ran out first; none if everything is at its best.
fn greedy(ladders: &[Ladder], mut room: u64) -> (Vec<usize>, Option<f64>) {
    let mut climbs: Vec<(f64, usize, usize, usize)> = Vec::new();
    for (i, ladder) in ladders.iter().enumerate() {
        climbs.extend(ladder.hull().windows(2).map(|pair| (ladder.gain(pair[0], pair[1]), i, pair[0], pair[1])));
    }
    // A stable order: the climbs of one ladder stay in theirs even where two gain the same.
    climbs.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let mut places = vec![0; ladders.len()];
    let mut price = None;
    for (gain, i, from, to) in climbs {
        let bytes = ladders[i].steps[to].bytes() - ladders[i].steps[from].bytes();
        if places[i] == from && bytes <= room {
            room -= bytes;
            places[i] = to;
        } else {
            price = price.or(Some(gain));
        }
    }
    (places, price)
}

/// Some tensors have their types.
#[derive(Clone, Copy)]
struct Partial {
    bytes: u64,
    loss: f64,
    /// How much worse than the bound it is already: the sum of what each choice costs, at the price of a byte, above the best
    /// choice there.
    excess: f64,
    /// The partial choice that it extends, and by which place.
    from: (u32, u32),
}

/// The best choice, given a good one and the price of a byte.
///
/// With the price λ, no choice within the budget has less loss than `B = Σ min(loss + λ·bytes) − λ·budget`, and any choice has
/// the loss `B + Σ excess + λ·(bytes left over)`. So whatever exceeds what `good` has above `B` need not be followed.
fn refine(ladders: &[Ladder], budget: u64, good: Vec<usize>, price: f64) -> Vec<usize> {
    let priced = |step: &Step| step.loss() + price * step.bytes() as f64;
    let best: Vec<f64> = ladders.iter().map(|l| l.steps.iter().map(priced).fold(f64::INFINITY, f64::min)).collect();
    let steps = || ladders.iter().zip(&good).map(|(ladder, &place)| &ladder.steps[place]);
    let (used, good_loss) = (steps().map(Step::bytes).sum::<u64>(), steps().map(Step::loss).sum::<f64>());
    let gap = steps().zip(&best).map(|(step, best)| priced(step) - best).sum::<f64>() + price * (budget - used) as f64;
    // The largest first: the small ones then fill what is left.
    let mut order: Vec<usize> = (0..ladders.len()).collect();
    let extent = |l: &Ladder| l.steps.last().map_or(0, Step::bytes) - l.steps[0].bytes();
    order.sort_by_key(|&i| std::cmp::Reverse(extent(&ladders[i])));
    let mut least: u64 = ladders.iter().map(|l| l.steps[0].bytes()).sum();
    let mut most: u64 = ladders.iter().filter_map(|l| l.steps.last()).map(Step::bytes).sum();
    let mut stages: Vec<Vec<(u32, u32)>> = Vec::new();
    let mut partials = vec![Partial { bytes: 0, loss: 0.0, excess: 0.0, from: (0, 0) }];
    for &i in &order {
        let ladder = &ladders[i];
        least -= ladder.steps[0].bytes();
        most -= ladder.steps.last().map_or(0, Step::bytes);
        let mut next = Vec::new();
        for (at, partial) in partials.iter().enumerate() {
            for (place, step) in ladder.steps.iter().enumerate() {
                let bytes = partial.bytes + step.bytes();
                let excess = partial.excess + priced(step) - best[i];
                let wasted = price * budget.saturating_sub(bytes + most) as f64;
                if bytes + least <= budget && excess + wasted <= gap {
                    let (loss, from) = (partial.loss + step.loss(), (at as u32, place as u32));
                    next.push(Partial { bytes, loss, excess, from });
                }
            }
        }
        partials = undominated(next);
        stages.push(partials.iter().map(|partial| partial.from).collect());
    }
    // Undominated ones are in the order of their bytes, so that the last has the least loss.
    match partials.last().filter(|found| found.loss < good_loss) {
        None => good,
        Some(_) => {
            let mut places = good;
            let mut at = partials.len() - 1;
            for (&i, stage) in order.iter().zip(&stages).rev() {
                let (before, place) = stage[at];
                (places[i], at) = (place as usize, before as usize);
            }
            places
        }
    }
}

/// Those for which no other has both fewer bytes and less loss, in the order of their bytes; of too many, the nearest to the
/// bound.
fn undominated(mut all: Vec<Partial>) -> Vec<Partial> {
    all.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss)).then(a.from.cmp(&b.from)));
    let mut least = f64::INFINITY;
    all.retain(|partial| {
        let better = partial.loss < least;
        least = least.min(partial.loss);
        better
    });
    if all.len() > KEPT {
        all.sort_by(|a, b| a.excess.total_cmp(&b.excess).then(a.bytes.cmp(&b.bytes)));
        all.truncate(KEPT);
        all.sort_by_key(|partial| partial.bytes);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn total(tensors: &[Vec<Cost>], choice: &[usize]) -> (u64, f64) {
        let chosen = tensors.iter().zip(choice).map(|(options, &option)| options[option]);
        chosen.fold((0, 0.0), |(bytes, loss), cost| (bytes + cost.bytes, loss + cost.loss))
    }

    /// The least loss of all choices within the budget.
    fn brute_force(tensors: &[Vec<Cost>], budget: u64) -> Option<f64> {
        let Some((first, rest)) = tensors.split_first() else { return Some(0.0) };
        let fits = first.iter().filter(|cost| cost.bytes <= budget);
        fits.filter_map(|cost| Some(cost.loss + brute_force(rest, budget - cost.bytes)?)).min_by(f64::total_cmp)
    }

    fn tensors(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Vec<Cost>>> {
        let cost = (1u64..200, 0u32..1000).prop_map(|(bytes, loss)| Cost { bytes, loss: f64::from(loss) / 64.0 });
        prop::collection::vec(prop::collection::vec(cost, 1..6), count)
    }

    proptest! {
        #[test]
        fn no_choice_within_the_budget_is_better(tensors in tensors(1..6), budget in 0u64..1200) {
            let smallest = tensors.iter().map(|t| t.iter().map(|c| c.bytes).min().unwrap()).sum::<u64>();
            match (choose(&tensors, budget), brute_force(&tensors, budget)) {
                (Ok(choice), Some(least)) => {
                    let (bytes, loss) = total(&tensors, &choice);
                    prop_assert!(bytes <= budget, "{bytes} > {budget}");
                    prop_assert!(loss <= least + 1e-9, "{loss} > {least}");
                }
                (Err(needed), None) => prop_assert_eq!(needed, smallest),
                other => prop_assert!(false, "{other:?}"),
            }
        }

        #[test]
        fn more_bytes_never_lose(tensors in tensors(1..40), budget in 0u64..6000, more in 0u64..500) {
            if let Ok(choice) = choose(&tensors, budget) {
                let richer = choose(&tensors, budget + more).unwrap();
                prop_assert!(total(&tensors, &richer).1 <= total(&tensors, &choice).1 + 1e-9);
            }
        }
    }

    #[test]
    fn a_model_of_hundreds_of_layers_fills_its_budget() {
        // Errors fall fourfold per bit; layers differ a millionfold in what an error of theirs costs.
        let elements = |i: u64| 256 * [16384, 65536, 229_376][i as usize % 3];
        let tensors: Vec<Vec<Cost>> = (0..560)
            .map(|i| {
                let weight = (1.0 + (i * 7919 % 997) as f64).powi(2);
                let cost = |t: Type| Cost { bytes: t.size(elements(i)), loss: weight * 4f64.powf(-t.bits()) };
                candidates(256).into_iter().map(cost).collect()
            })
            .collect();
        for bits in [3.0, 4.5, 6.1] {
            let budget = (bits * (0..560).map(elements).sum::<u64>() as f64 / 8.0) as u64;
            let (bytes, _) = total(&tensors, &choose(&tensors, budget).unwrap());
            assert!(bytes <= budget && budget - bytes < budget / 10_000, "{bytes} of {budget}");
        }
    }

    #[test]
    fn without_a_limit_every_tensor_gets_its_best() {
        let tensors =
            vec![vec![Cost { bytes: 3, loss: 0.5 }, Cost { bytes: 9, loss: 0.5 }, Cost { bytes: 5, loss: 0.1 }]];
        assert_eq!(choose(&tensors, u64::MAX), Ok(vec![2]));
        assert_eq!(choose(&tensors, 4), Ok(vec![0]));
        assert_eq!(choose(&tensors, 2), Err(3));
        assert_eq!(choose(&[], 0), Ok(vec![]));
    }

    #[test]
    fn the_candidates_are_what_rows_divide_into() {
        let names = |columns| candidates(columns).iter().map(|t| t.name()).collect::<Vec<_>>();
        let wide = "Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ3_S IQ2_S IQ4_XS IQ1_M";
        assert_eq!(names(512).join(" "), wide);
        assert_eq!(names(96), ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"]);
        assert_eq!(names(33), [""; 0]);
    }
}
