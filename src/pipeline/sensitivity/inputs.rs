//! What the layers of a half of a block read, measured on all windows.

use super::feedback::Feedback;
use crate::calib::squares::Squares;
use crate::error::Result;
use crate::model::block::{Block, Half};
use crate::model::{Kind, Part, Role, Site, TensorSpec};
use candle_core::Tensor;

/// What a matrix of a block reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// The activations of a site.
    Site(Site),
    /// Those of the MLP's input that go to experts, weighed as the router weighs what they make of it: the stack of all experts is
    /// one tensor of one type, whose loss is the sum of theirs.
    Routed,
    /// What is inside the experts, weighed in the same way.
    Inside,
    /// Something that is not looked at: the layers behind a narrow vector.
    Narrow,
}

impl Reads {
    /// What a tensor reads; none if it is no matrix of a block.
    pub fn of(spec: &TensorSpec) -> Option<Reads> {
        let Role::Block(part, Kind::Weight) = spec.role else { return None };
        match part {
            Part::ExpertGates | Part::ExpertUps => Some(Reads::Routed),
            Part::ExpertDowns => Some(Reads::Inside),
            Part::QB | Part::KB | Part::VB => Some(Reads::Narrow),
            _ => part.site().map(Reads::Site),
        }
    }

    /// All that there is in a half.
    pub fn of_half(half: Half) -> Vec<Reads> {
        let sites = [Reads::Site(half.input()), Reads::Site(half.inner())];
        let others = match half {
            Half::Attention => [Reads::Narrow].as_slice(),
            Half::Mlp => &[Reads::Routed, Reads::Inside],
        };
        [&sites, others].concat()
    }
}

/// Activations that some matrices read.
pub struct Inputs {
    /// Which ones.
    pub reads: Reads,
    squares: Squares,
    feedback: Option<Feedback>,
}

impl Inputs {
    /// `fed`: the method feeds errors back.
    ///
    /// # Errors
    /// The device has no room.
    pub fn new(reads: Reads, columns: usize, fed: bool) -> Result<Inputs> {
        let feedback = fed.then(|| Feedback::new(columns)).transpose()?;
        Ok(Inputs { reads, squares: Squares::new(columns), feedback })
    }

    fn add(&mut self, x: &Tensor) -> Result<()> {
        self.squares.add(x)?;
        self.feedback.as_mut().map_or(Ok(()), |feedback| feedback.add(x))
    }

    /// The sums of squares of each input, if any was seen, and what the method leaves of the error of rounding to nearest.
    pub fn finish(self) -> (Option<Vec<f32>>, f64) {
        let sums = Some(self.squares.sums()).filter(|sums| sums.iter().any(|&sum| sum > 0.0));
        (sums, self.feedback.map_or(1.0, Feedback::left))
    }
}

/// Shows a half's activations to all who measure them, and moves the stream behind it. `h`: the stream in front of the half, and
/// `before` of the block: `[tokens, hidden]`.
///
/// # Errors
/// Shapes that do not fit, or activations that are no numbers.
pub fn observe(block: &Block, half: Half, h: &Tensor, before: &Tensor, all: &mut [Inputs]) -> Result<Tensor> {
    let mut tell = |reads: Reads, x: &Tensor| {
        all.iter_mut().filter(|inputs| inputs.reads == reads).try_for_each(|inputs| inputs.add(x))
    };
    let input = block.input(half, h, before)?;
    tell(Reads::Site(half.input()), &input)?;
    if half == Half::Attention || !block.has_experts() {
        let inner = block.inner(half, &input)?;
        tell(Reads::Site(half.inner()), &inner)?;
        return block.output(half, h, &inner);
    }
    for (expert, route) in block.routes(&input)?.iter().enumerate().filter(|(_, route)| !route.tokens.is_empty()) {
        let own = route.select(&input)?;
        tell(Reads::Routed, &route.weigh(&own)?)?;
        let inner = block.expert_inner(expert, &own, &|part| block.expert(part, expert))?;
        tell(Reads::Inside, &route.weigh(&inner)?)?;
    }
    if block.has_shared_expert() {
        tell(Reads::Site(half.inner()), &block.inner(half, &input)?)?;
    }
    block.half(half, h, before)
}
