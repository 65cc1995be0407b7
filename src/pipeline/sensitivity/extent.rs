//! How much text a measurement needs, and can afford.

use crate::pipeline::Calibration;

/// Tokens that the inputs of layers are measured on, at most: a sixteenth of the text, where that is less.
const SEEN: usize = 1 << 13;

/// Tokens per window, at most.
const WINDOW: usize = 1 << 9;

/// Tokens in each probed stream, at most.
const PROBED: usize = 1 << 10;

/// Tokens in each probed stream that there should be even where the calibration text is short, as long as all streams
/// together stay within [`STREAMS`].
const ENOUGH: usize = 1 << 8;

/// Bytes of probed streams that are no matter.
const STREAMS: usize = 256 << 20;

/// How much text is looked at.
pub struct Extent {
    /// Tokens per window.
    pub length: usize,
    /// Windows that the inputs of layers are measured on.
    pub windows: usize,
    /// How many of these go through probed streams, too.
    pub probed: usize,
}

impl Extent {
    /// All probed streams together hold half as many tokens as the calibration text, so that they take half the room that the
    /// residual stream of a calibrated run takes, and a fraction of its time.
    pub fn new(c: &Calibration, streams: usize, hidden: usize) -> Extent {
        let text = c.samples.saturating_mul(c.positions);
        let (streams, row) = (streams.max(1), 4 * hidden.max(1));
        let tokens = (text / 2 / streams).max(ENOUGH.min(STREAMS / row / streams)).clamp(32, PROBED).min(text.max(1));
        let length = c.positions.min(WINDOW).min(tokens);
        let probed = (tokens / length).max(1);
        Extent { length, windows: (SEEN.min(text / 16) / length).max(probed), probed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calib::corpus::Corpus;

    #[test]
    fn probed_streams_take_a_part_of_the_calibration_text() {
        let text = |samples, positions| Calibration { corpus: Corpus::default(), samples, positions, seed: 0 };
        let extent = |text: Calibration, streams, hidden| {
            let Extent { length, windows, probed } = Extent::new(&text, streams, hidden);
            (length, windows, probed)
        };
        // A model of 21 M weights, one of 8 G, one of 70 G, and next to no text.
        assert_eq!(extent(text(128, 512), 43, 512), (512, 8, 1));
        assert_eq!(extent(text(128, 2048), 226, 4096), (512, 16, 1));
        assert_eq!(extent(text(128, 2048), 562, 8192), (233, 35, 1));
        assert_eq!(extent(text(1, 16), 29, 256), (16, 1, 1));
        assert_eq!(extent(text(8, 128), 29, 256), (128, 2, 2));
    }
}
