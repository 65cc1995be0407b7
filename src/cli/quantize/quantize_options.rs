//! What the options of `llmq quantize` ask for; `llmq plan` has the same ones.

use super::{Args, provenance};
use crate::cli::budget::SizeBudget;
use crate::cli::{output, override_kv};
use crate::error::{Error, Result};
use crate::format::mix::Mix;
use crate::format::recipe::{Recipe, TypeRequest, overrides_in};
use crate::format::{self, Type};
use crate::method::Method;
use crate::model::Model;
use crate::pipeline::plan::Request;
use crate::source::imatrix::Imatrix;
use crate::source::value::Metadata;

impl Args {
    /// The budget for types, if there is one.
    ///
    /// # Errors
    /// A number that makes no sense.
    pub(super) fn target(&self) -> Result<Option<SizeBudget>> {
        match self.target.budget()? {
            None if self.fit.context.is_none() || self.fit.budget()?.is_some() => self.fit.budget(),
            None => Err(Error::usage("--context is for --fit").hint("add --fit SIZE, the memory of a GPU")),
            budget => Ok(budget),
        }
    }

    /// What a plan is made from.
    ///
    /// # Errors
    /// Options that make no sense, or a file of them that cannot be read.
    pub(in crate::cli) fn request<'a>(
        &'a self,
        method: &dyn Method,
        imatrix: Option<&'a Imatrix>,
    ) -> Result<Request<'a>> {
        let outputs = self.outputs()?;
        Ok(Request {
            folders: outputs.beside(),
            recipe: self.recipe(outputs.mix(self.kind.as_deref(), self.group_size)?)?,
            pre: self.pre.as_deref(),
            calibrated: method.calibrated(),
            mtp: !self.no_mtp,
            imatrix: self.imatrix.as_deref().zip(imatrix),
            requantize: self.allow_requantize,
            rotate: self.rotate.then_some(self.seed),
            // Later ones replace earlier ones.
            keys: [
                provenance::keys(self, method)?,
                self.override_kv.iter().map(|text| override_kv::parse(text)).collect::<Result<Metadata>>()?,
            ]
            .concat(),
        })
    }

    /// Refuses what a plan, which is made for one type, cannot tell.
    ///
    /// # Errors
    /// There are several types.
    pub(in crate::cli) fn check_plan(&self) -> Result<()> {
        if self.types.is_empty() {
            return Ok(());
        }
        Err(Error::usage("--types is for `llmq quantize`: a plan is made for one type")
            .hint("name one of them with --type; the plan lists the sizes of all"))
    }

    /// A mix and what overrides it.
    ///
    /// # Errors
    /// Overrides that make no sense, or a file of them that cannot be read.
    pub(in crate::cli) fn recipe(&self, mix: Mix) -> Result<Recipe> {
        let named =
            |name: &Option<String>| -> Result<Option<Type>> { name.as_deref().map(format::by_name).transpose() };
        let mut tensors = self.tensor_type.clone();
        if let Some(path) = &self.tensor_type_file {
            tensors.extend(overrides_in(path)?);
        }
        let wishes = TypeRequest {
            pure: self.pure,
            output: named(&self.output_tensor_type)?,
            embedding: named(&self.token_embedding_type)?,
            tensors,
        };
        Recipe::new(mix, wishes)
    }

    /// Tokens per window of calibration text.
    ///
    /// # Errors
    /// Windows that are too short, or more tokens than can be meant.
    pub(in crate::cli) fn positions(&self, model: &Model) -> Result<usize> {
        const USUAL: usize = 2048;
        let positions = match self.seq_len {
            Some(n) if n < 2 => return Err(Error::usage("--seq-len must be at least 2")),
            Some(n) => {
                if n > model.context {
                    output::note(&format!(
                        "note: --seq-len {n} is longer than the model's context of {}",
                        model.context
                    ));
                }
                n
            }
            None => USUAL.min(model.context),
        };
        let samples = self.how.samples()?;
        if samples.saturating_mul(positions) > 1 << 32 {
            return Err(Error::usage(format!("{samples} windows of {positions} tokens are more than 2^32 tokens"))
                .hint("some hundred thousand tokens are enough: lower --samples or --seq-len"));
        }
        Ok(positions)
    }
}
