//! What a run spends on quality, in one word instead of a handful of options.

use clap::ValueEnum;

/// How much time goes into the quality of the file. The figures behind these are in `eval/effort.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Effort {
    /// A quarter of the time, for some per cent
    Fast,
    /// What the time is well spent on
    Balanced,
    /// Twice the time, for the last one per cent
    Best,
}

/// What is used where no option says otherwise.
#[derive(Debug, Clone, Copy)]
pub struct Preset {
    /// The method's name.
    pub method: &'static str,
    /// Windows of calibration text.
    pub samples: usize,
    /// Sweeps of coordinate descent.
    pub sweeps: usize,
}

impl Effort {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Effort::Fast => "fast",
            Effort::Balanced => "balanced",
            Effort::Best => "best",
        }
    }

    /// What it stands for.
    pub fn preset(self) -> Preset {
        match self {
            Effort::Fast => Preset { method: "auto", samples: 16, sweeps: 1 },
            Effort::Balanced => Preset { method: "auto", samples: 128, sweeps: 3 },
            Effort::Best => Preset { method: "auto", samples: 256, sweeps: 8 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_effort_is_what_the_method_itself_takes_for_usual() {
        let (preset, usual) = (Effort::Balanced.preset(), crate::method::Options::default());
        assert_eq!(preset.sweeps, usual.sweeps);
        for effort in Effort::value_variants() {
            assert!(crate::method::by_name(effort.preset().method).is_ok());
        }
    }
}
