//! What would make a run fit the memory that there is.

use super::Job;
use super::shape::BlockShape;

/// Changes that make a run fit, each by itself; none where that change is not enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryAdvice {
    /// The most windows of the same length, if there can be any.
    pub samples: Option<usize>,
    /// The longest windows, a power of two, if as many of them are to stay.
    pub positions: Option<usize>,
    /// Rounding without calibration.
    pub rtn: bool,
}

/// How many numbers of windows are tried at most.
const TRIED: usize = 4096;

/// The shortest windows that are worth anything.
const SHORTEST: usize = 64;

/// What makes a run fit `ram` bytes. `own`: what the program holds anyway.
pub fn advise(job: &Job, shapes: &[BlockShape], own: u64, ram: u64) -> MemoryAdvice {
    let fits = |job: Job| job.peak(shapes, own).bytes() <= ram;
    // Memory does not only grow with windows: inner activations that become too large are not kept. So one by one.
    let step = job.samples.div_ceil(TRIED).max(1);
    let samples = (1..=job.samples).rev().step_by(step).find(|&samples| fits(Job { samples, ..*job }));
    let halves = std::iter::successors(Some(job.positions.next_power_of_two() / 2), |n| Some(n / 2));
    let positions = halves.take_while(|&n| n >= SHORTEST).find(|&positions| fits(Job { positions, ..*job }));
    let rtn = crate::method::by_name("rtn").is_ok_and(|method| fits(Job { method, ..*job }));
    MemoryAdvice { samples, positions, rtn }
}
