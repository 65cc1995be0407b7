//! What a checkpoint says about its own quantization.

use super::place::Place;
use crate::error::{Error, Result};
use crate::source::config::Config;
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::path::Path;

/// What stands for the name of a method that a description leaves out.
const UNNAMED: &str = "an unnamed method";

/// The method that a checkpoint was quantized with, and the settings beside its name.
pub struct Quantization {
    /// Its name in lower case, as `quant_method` has it.
    pub method: String,
    /// The object that names it.
    pub config: Config,
}

impl Quantization {
    /// Looks where such a description may be; none if there is none.
    ///
    /// # Errors
    /// A description of another kind than all others.
    pub fn find(folder: &Path) -> Result<Option<Quantization>> {
        // Whoever needs the configuration says what is wrong with it.
        let open = |name: &str| Config::open(&folder.join(name)).ok();
        let config = open("config.json");
        let text = config.as_ref().and_then(|config| config.object("text_config").ok().flatten());
        for place in config.iter().chain(&text) {
            for key in ["quantization_config", "compression_config"] {
                if let Some(found) = place.object(key)? {
                    let method = found.maybe_string("quant_method")?.unwrap_or(UNNAMED.into()).to_lowercase();
                    return Ok(Some(Quantization { method, config: found }));
                }
            }
        }
        // From before descriptions were part of config.json: AutoGPTQ's and AutoAWQ's own files.
        for (name, method) in [("quantize_config.json", "gptq"), ("quant_config.json", "awq")] {
            if let Some(config) = open(name) {
                let method = config.maybe_string("quant_method")?.map_or(method.to_owned(), |name| name.to_lowercase());
                return Ok(Some(Quantization { method, config }));
            }
        }
        Ok(None)
    }

    /// Whether the checkpoint names the method.
    pub fn is_named(&self) -> bool {
        self.method != UNNAMED
    }

    /// The method, with the name of its format where there is one.
    pub fn name(&self) -> String {
        let format = ["format", "checkpoint_format", "version"].iter().find_map(|key| self.config.get(key)?.as_str());
        match format {
            Some(format) if format != self.method => format!("{} ({format})", self.method),
            _ => self.method.clone(),
        }
    }

    /// What is said about a tensor that cannot be had because nothing here reads the method. `cause`: what is wrong with it.
    pub fn refusal(&self, cause: &Error) -> Error {
        refusal(self.config.path(), &self.name(), cause)
    }
}

/// An error about a tensor of a checkpoint that is quantized in a way that is not read. `path`: what says so.
pub fn refusal(path: &Path, method: &str, cause: &Error) -> Error {
    let path = path.display();
    Error::new(format!("{path}: the checkpoint is quantized with {method}, which llmq does not read"))
        .because(cause.to_string())
        .hint(
            "start from the original checkpoint in 16 bits; of quantized ones, GPTQ, AWQ (GEMM), compressed-tensors \
             (pack-quantized, int-quantized, float-quantized), FP8 and MXFP4 are read",
        )
}

/// Who quantized the weight `name`, as the tensors beside it tell: many checkpoints do not describe themselves. None if they
/// tell nothing, or something that is read.
pub fn recognized(name: &str, tensors: &BTreeMap<String, Place>) -> Option<&'static str> {
    let stem = name.strip_suffix("weight")?;
    let dtype = |name: &str| tensors.get(name).map(|place| place.dtype);
    let beside = |ending: &str| tensors.contains_key(&format!("{stem}{ending}"));
    match dtype(name) {
        Some(Dtype::U32) if beside("scales") => Some("MLX"),
        Some(Dtype::U8) if beside("weight.absmax") || beside("weight.quant_map") => Some("bitsandbytes in 4 bits"),
        Some(Dtype::I8) if beside("SCB") => Some("bitsandbytes in 8 bits"),
        None if beside("qweight") => Some("GPTQ or AWQ but has no description (quantization_config)"),
        None if beside("weight_packed") => Some("compressed-tensors but has no description (quantization_config)"),
        _ => None,
    }
}
