//! What the layers of a half of a block read, measured on all windows.

use super::feedback::Feedback;
use crate::calib::squares::Squares;
use crate::error::Result;
use crate::model::Reads;
use crate::model::block::Block;
use crate::model::mixer::Place;
use crate::model::mixer::experts::Routed;
use crate::model::states::States;
use candle_core::Tensor;

/// All that matrices of a half may read. What goes to experts is weighed as the router weighs what they make of it: the stack of all
/// experts is one tensor of one type, whose loss is the sum of theirs.
pub const ALL: [Reads; 5] =
    [Reads::Site(Place::Input), Reads::Site(Place::Inner), Reads::Between, Reads::Routed, Reads::RoutedInner];

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
    ///
    /// # Errors
    /// What computes them fails.
    pub fn finish(self) -> Result<(Option<Vec<f32>>, f64)> {
        let sums = Some(self.squares.sums()).filter(|sums| sums.iter().any(|&sum| sum > 0.0));
        Ok((sums, self.feedback.map_or(Ok(1.0), Feedback::left)?))
    }
}

/// Shows a half's activations to all who measure them, and moves the stream behind it. `states`: in front of the half, and `before` of
/// the block.
///
/// # Errors
/// Shapes that do not fit, or activations that are no numbers.
pub fn observe(block: &Block, half: usize, states: &States, before: &States, all: &mut [Inputs]) -> Result<States> {
    let mut tell = |reads: Reads, x: &Tensor| {
        all.iter_mut().filter(|inputs| inputs.reads == reads).try_for_each(|inputs| inputs.add(x))
    };
    let input = block.input(half, states, before)?;
    tell(Reads::Site(Place::Input), &input)?;
    let Some(Routed { x, routes }) = block.routed(half, &input, states)? else {
        let inner = block.inner(half, &input, states)?;
        tell(Reads::Site(Place::Inner), &inner)?;
        return block.output(half, states, before, &inner);
    };
    for (expert, route) in routes.iter().enumerate().filter(|(_, route)| !route.tokens.is_empty()) {
        let own = route.select(&x)?;
        tell(Reads::Routed, &route.weigh(&own)?)?;
        let inner = block.expert_inner(half, expert, &own, &|part| block.expert(half, part, expert))?;
        tell(Reads::RoutedInner, &route.weigh(&inner)?)?;
    }
    if block.has_last(half) {
        tell(Reads::Site(Place::Inner), &block.inner(half, &input, states)?)?;
    }
    block.half(half, states, before)
}
