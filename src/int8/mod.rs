//! INT8 for what is no language model: encoders of text, images and sound.

pub mod bert;
pub mod folder;
pub mod layers;
pub mod rows;
pub mod scheme;
