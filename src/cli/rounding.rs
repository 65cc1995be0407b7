//! The options that say how weights are rounded.

use crate::error::{Error, Result};
use crate::method::{self, Method, Options};

#[derive(Debug, clap::Args)]
pub struct How {
    /// How weights are rounded: auto (for each site whichever of the others errs least on windows held out), awq+gptq, gptq,
    /// awq, or rtn (to the nearest value, without calibration)
    #[arg(short, long, default_value = "auto")]
    method: String,

    /// What is added to the Hessian's diagonal, as a fraction of its mean
    #[arg(long, value_name = "X", default_value_t = 0.01)]
    damp: f64,

    /// Round columns in storage order instead of the largest activations first
    #[arg(long)]
    no_order: bool,

    /// Sweeps of coordinate descent over the codes that GPTQ has chosen
    #[arg(long, value_name = "N", default_value_t = method::Options::default().sweeps)]
    sweeps: usize,

    /// Leave the scales alone in these sweeps
    #[arg(long)]
    no_scale_sweeps: bool,

    /// Do not run the original model beside the quantized one, by which layers mend what those before them have lost
    #[arg(long)]
    no_gptaq: bool,
}

impl How {
    /// The method.
    ///
    /// # Errors
    /// A name that no method has.
    pub fn method(&self) -> Result<&'static dyn Method> {
        method::by_name(&self.method)
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
        Ok(Options { damp: self.damp, order, sweeps: self.sweeps, scales })
    }

    /// Whether the original model runs beside the quantized one.
    pub fn asymmetric(&self, method: &dyn Method) -> bool {
        method.calibrated() && !self.no_gptaq
    }
}
