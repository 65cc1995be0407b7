//! INT8 for what is no language model: encoders of text, images and sound.

pub mod checkpoint;
