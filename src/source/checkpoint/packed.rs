//! Weights that are stored as something other than plain numbers.
//!
//! To add a way of packing, write one file that implements [`Packing`] and [`Packed`] and add it to [`PACKINGS`].

use super::coded::Coded;
use super::place::{Place, Shard};
use super::quantization::Quantization;
use super::{awq, compressed, gptq, mxfp4, scaled};
use crate::error::{Error, Result};
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::ops::Range;

/// Every way of packing.
pub static PACKINGS: &[&dyn Packing] =
    &[&gptq::Gptq, &awq::Awq, &compressed::Compressed, &scaled::Scaled, &mxfp4::Mxfp4];

/// A way in which some program stores weights.
pub trait Packing: Sync {
    /// Whether it is the way of a description.
    fn reads(&self, quantization: &Quantization) -> bool;

    /// The weight that the tensor called `name` is the main part of; none if it is no such part.
    ///
    /// # Errors
    /// Another part is missing, or their shapes or types do not belong together.
    fn find(&self, name: &str, parts: &Parts) -> Result<Option<Found>>;
}

/// A weight that was found.
pub struct Found {
    /// The name that it would have unpacked.
    pub name: String,
    /// What it is.
    pub weight: Box<dyn Packed>,
    /// The tensors that make it, which are no weights themselves.
    pub parts: Vec<String>,
}

/// One packed weight, `[rows, columns]`, or a stack of them.
pub trait Packed: Send + Sync {
    /// What it is called where types are shown.
    fn kind(&self) -> &str;

    /// `[rows, columns]`, or that of a stack.
    fn shape(&self) -> &[usize];

    /// The tensors that make it.
    fn parts(&self) -> Vec<&Place>;

    /// Some rows in `f32`: steps along the first dimension.
    ///
    /// # Errors
    /// What is stored makes no sense.
    fn numbers(&self, shards: &[Shard], rows: Range<usize>) -> Result<Vec<f32>>;

    /// The weight as codes with scales, if that is what it is.
    fn codes(&self) -> Option<&Coded> {
        None
    }
}

/// The tensors of a checkpoint, among which parts of weights are looked for.
pub struct Parts<'a> {
    /// The files.
    pub shards: &'a [Shard],
    /// Where each tensor is.
    pub tensors: &'a BTreeMap<String, Place>,
    /// What the checkpoint says of itself.
    pub quantization: Option<&'a Quantization>,
    /// Whether there are scales beside weights of eight bits.
    pub has_scales: bool,
}

impl Parts<'_> {
    /// The description of the checkpoint, if it is of this method.
    pub fn described(&self, method: &str) -> Option<&Quantization> {
        self.quantization.filter(|quantization| quantization.method == method)
    }

    /// A tensor of one of these types that lies in one piece.
    ///
    /// # Errors
    /// It is missing or something else.
    pub fn part(&self, name: &str, types: &[Dtype]) -> Result<&Place> {
        let place = self.tensors.get(name).ok_or_else(|| {
            let files: Vec<_> = self.shards.iter().take(1).map(|shard| shard.path.display().to_string()).collect();
            Error::new(format!("{}: there is no tensor '{name}', which belongs to a packed weight", files.concat()))
                .hint("a shard may be missing; download the checkpoint again")
        })?;
        let path = place.path(self.shards).display();
        if !types.contains(&place.dtype) || place.strides.is_some() {
            let turned = if place.strides.is_some() { " in another order" } else { "" };
            return Err(Error::new(format!(
                "{path}: tensor '{name}' is of type {:?}{turned}, not {types:?}",
                place.dtype
            ))
            .hint("it was packed in a way that is not known: start from the original checkpoint"));
        }
        Ok(place)
    }

    /// A tensor of one of these types and of this shape.
    ///
    /// # Errors
    /// As [`Parts::part`], or another shape.
    pub fn shaped(&self, name: &str, types: &[Dtype], shape: &[usize]) -> Result<&Place> {
        let place = self.part(name, types)?;
        if place.shape != shape {
            return Err(self.misfit(name, place, &format!("not {shape:?} as the other parts of its weight make it")));
        }
        Ok(place)
    }

    /// How many numbers a dimension of a packed tensor unpacks to, `each` for each of its `n`. A tensor without any numbers
    /// takes no bytes, so that its other dimensions may be anything.
    ///
    /// # Errors
    /// More than can be counted.
    pub fn times(&self, name: &str, place: &Place, n: usize, each: usize) -> Result<usize> {
        n.checked_mul(each).ok_or_else(|| self.misfit(name, place, "more than can be unpacked"))
    }

    /// An error about a tensor's shape. `why`: how it goes on.
    pub fn misfit(&self, name: &str, place: &Place, why: &str) -> Error {
        let path = place.path(self.shards).display();
        Error::new(format!("{path}: tensor '{name}' has shape {:?}, {why}", place.shape))
            .hint("the checkpoint is damaged, or its configuration belongs to another one; download it again")
    }
}

/// The types that scales have.
pub const FLOATS: [Dtype; 3] = [Dtype::F16, Dtype::BF16, Dtype::F32];

/// A part and the name under which errors speak of it.
#[derive(Debug, Clone)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub place: Place,
}

#[cfg(test)]
mod tests;
