//! The options that say how weights are rounded.

use super::effort::{Effort, Preset};
use crate::error::{Error, Result};
use crate::method::{self, Method, Options};

#[derive(Debug, Clone, clap::Args)]
pub struct How {
    /// How much time goes into the quality of the file: decides about whatever of --method, --samples and --sweeps is not given
    #[arg(long, value_enum, default_value_t = Effort::Balanced)]
    pub(super) effort: Effort,

    /// Take the best --method, --samples and --sweeps that fit this time, for example 90m or 2h, by this machine's speed; they are said,
    /// so that the same file can be made again
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with_all = ["effort", "method", "samples", "sweeps", "no_gptaq"])]
    pub(super) time: Option<f64>,

    /// How weights are rounded: auto (for each site whichever of the others errs least on windows held out), awq+gptq, gptq,
    /// awq, or rtn (to the nearest value, without calibration) [default: auto]
    #[arg(short, long)]
    method: Option<String>,

    /// How many windows of calibration text [default: 128; 16 with --effort fast, 256 with --effort best]
    #[arg(long, value_name = "N")]
    samples: Option<usize>,

    /// What is added to the Hessian's diagonal, as a fraction of its mean
    #[arg(long, value_name = "X", default_value_t = 0.01)]
    damp: f64,

    /// Round columns in storage order instead of the largest activations first
    #[arg(long)]
    no_order: bool,

    /// Sweeps of coordinate descent over the codes that GPTQ has chosen [default: 3; 1 with --effort fast, 8 with --effort best]
    #[arg(long, value_name = "N")]
    sweeps: Option<usize>,

    /// Leave the scales alone in these sweeps
    #[arg(long)]
    no_scale_sweeps: bool,

    /// Carry the error of a row on to other rows, too, by how errors at the outputs of layers move the model's predictions: measured by a
    /// backward pass over a part of the calibration text
    #[arg(long)]
    output_feedback: bool,

    /// Do not run the original model beside the quantized one, by which layers mend what those before them have lost
    #[arg(long)]
    no_gptaq: bool,
}

/// Seconds of a number with s, m or h behind it.
fn time(text: &str) -> std::result::Result<f64, String> {
    let unit = [("s", 1.0), ("m", 60.0), ("h", 3600.0)].into_iter().find_map(|(unit, seconds)| {
        let number = text.strip_suffix(unit)?.parse::<f64>().ok()?;
        Some(number * seconds).filter(|seconds| seconds.is_finite() && *seconds > 0.0)
    });
    unit.ok_or_else(|| "a time is a number with s, m or h behind it, for example 90m or 2h".into())
}

impl How {
    /// The same with a method, windows and sweeps that are settled.
    pub fn settled(&self, preset: Preset) -> How {
        let Preset { method, samples, sweeps } = preset;
        How { time: None, method: Some(method.into()), samples: Some(samples), sweeps: Some(sweeps), ..self.clone() }
    }

    /// The method.
    ///
    /// # Errors
    /// A name that no method has.
    pub fn method(&self) -> Result<&'static dyn Method> {
        method::by_name(self.method.as_deref().unwrap_or(self.effort.preset().method))
    }

    /// Whether these options ask for what an effort stands for and nothing else.
    pub fn is(&self, effort: Effort) -> bool {
        self.effort == effort
            && self.method.is_none()
            && self.samples.is_none()
            && self.sweeps.is_none()
            && !self.no_gptaq
    }

    /// What is left to the effort.
    pub fn decided(&self, method: &dyn Method) -> Vec<String> {
        let Preset { samples, sweeps, .. } = self.effort.preset();
        let calibrated = method.calibrated();
        let left = [
            (self.method.is_none(), format!("method {}", method.name())),
            (calibrated && self.samples.is_none(), format!("{samples} windows")),
            (calibrated && self.sweeps.is_none(), format!("{sweeps} sweeps")),
        ];
        left.into_iter().filter(|(open, _)| *open).map(|(_, what)| what).collect()
    }

    /// How many windows of calibration text.
    ///
    /// # Errors
    /// None at all.
    pub fn samples(&self) -> Result<usize> {
        match self.samples {
            Some(0) => Err(Error::usage("--samples must be at least 1")),
            given => Ok(given.unwrap_or(self.effort.preset().samples)),
        }
    }

    /// What it is told.
    ///
    /// # Errors
    /// Damping that is none.
    pub fn options(&self) -> Result<Options> {
        if !(self.damp.is_finite() && self.damp > 0.0) {
            return Err(Error::usage(format!("--damp must be above zero, not {}", self.damp)));
        }
        let (order, scales) = (!self.no_order, !self.no_scale_sweeps);
        let sweeps = self.sweeps.unwrap_or(self.effort.preset().sweeps);
        Ok(Options { damp: self.damp, order, sweeps, scales, outputs: self.output_feedback, ..Options::default() })
    }

    /// The options that decide about the bytes of a file made with this method, as they are typed.
    ///
    /// # Errors
    /// As [`How::samples`] and [`How::options`].
    pub fn words(&self, method: &dyn Method) -> Result<Vec<String>> {
        let mut words = vec!["--method".to_owned(), method.name().into()];
        if !method.calibrated() {
            return Ok(words);
        }
        let (options, usual) = (self.options()?, Options::default());
        words.extend(["--samples".into(), self.samples()?.to_string()]);
        words.extend(["--sweeps".into(), options.sweeps.to_string()]);
        if options.damp != usual.damp {
            words.extend(["--damp".into(), options.damp.to_string()]);
        }
        let flags = [
            ("--no-order", !options.order),
            ("--no-scale-sweeps", !options.scales),
            ("--output-feedback", options.outputs),
            ("--no-gptaq", !self.asymmetric(method)),
        ];
        words.extend(flags.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag.to_owned()));
        Ok(words)
    }

    /// Whether the original model runs beside the quantized one.
    pub fn asymmetric(&self, method: &dyn Method) -> bool {
        method.calibrated() && !self.no_gptaq
    }
}
