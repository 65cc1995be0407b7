//! Mixers: what stands between the norm of a half and its way back to the residual stream.
//!
//! A mixer declares its tensors and what each of them reads, runs over whole windows, and goes on from a state, one position or
//! many. Nobody outside asks which one it is. To add one, write one file and add it to `mixers!`.

pub mod routing;

use super::layers::Layers;
use super::part::{Absorber, BlockTensor, Part};
use super::rope::Rope;
use super::states::{MixerState, States};
use crate::error::Result;
use candle_core::{Device, Tensor};
use std::fmt::Debug;
use std::ops::Deref;

/// Where in a half activations are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// What its first linear layers read.
    Input,
    /// What its last linear layer reads.
    Inner,
}

impl Place {
    /// In the order in which a half reaches them.
    pub const ALL: [Place; 2] = [Place::Input, Place::Inner];
}

/// What a mixer costs, for a plan.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Numbers per token that its first layers give, and those of copies on the way to its last layer.
    pub between: usize,
    /// Numbers per token that its last layer reads.
    pub inner: usize,
    /// Multiplications per token and position of a window: attention's products.
    pub per_position: f64,
    /// Multiplications per token of products between the layers, however long the window is.
    pub per_token: f64,
    /// Numbers per token that norms, rotations and gates go through.
    pub elementwise: f64,
}

impl Cost {
    /// Multiplications per token of products between the layers, in windows of so many positions.
    pub fn mixing(&self, positions: usize) -> f64 {
        // Each position sees half of them on average, once with keys and once with values.
        self.per_position * positions as f64 + self.per_token
    }
}

/// What llama.cpp keeps of a sequence for a mixer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Numbers of keys and values for each position.
    pub per_position: usize,
    /// They are kept of so many positions only, and of those that are computed at once.
    pub window: Option<usize>,
    /// Numbers of states in single precision, however long the sequence is.
    pub states: usize,
}

impl Memory {
    /// States of these sizes.
    pub fn states(sizes: &[usize]) -> Memory {
        Memory { states: sizes.iter().sum(), ..Memory::default() }
    }
}

/// A half on its way: where its positions are, and what goes on from one window to the next.
pub struct At<'c> {
    /// The stream in front of the half, and what goes along with it.
    pub states: &'c States,
    /// What is left of the window's earlier positions; none for whole windows.
    pub state: Option<&'c mut MixerState>,
}

/// What stands between the norm of a half and its last layer's result.
pub trait Mix: Debug {
    /// Its tensors, in file order. `hidden`: the width of the residual stream.
    fn tensors(&self, hidden: usize) -> Vec<BlockTensor>;

    /// The last linear layer, which writes to the residual stream; none where only experts do.
    fn last(&self) -> Option<Part>;

    /// What the last linear layer reads, `[tokens, columns]`. `x`: the half's input, `[tokens, hidden]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn inner(&self, layers: &Layers, x: &Tensor, at: &mut At) -> Result<Tensor>;

    /// What goes to the residual stream, `[tokens, hidden]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn output(&self, layers: &Layers, x: &Tensor, at: &mut At) -> Result<Tensor> {
        let inner = self.inner(layers, x, at)?;
        layers.last(&inner)
    }

    /// What can absorb factors of the channels that the last layer reads, exactly.
    fn absorber(&self) -> Option<Absorber> {
        None
    }

    /// Whether all that reads the half's norm is rounded together, so that the norm can absorb factors.
    fn may_scale_input(&self) -> bool {
        true
    }

    /// Why a rotation of the residual stream cannot pass, if it cannot.
    fn obstacle_to_rotation(&self) -> Option<&'static str> {
        None
    }

    /// Why gradients cannot be carried back through it, if they cannot.
    fn obstacle_to_backward(&self) -> Option<&'static str> {
        Some("it has layers without a backward pass")
    }

    /// The size of a head of values that a rotation can turn, if there is one.
    fn rotated_values(&self) -> Option<usize> {
        None
    }

    /// Whether a token's result depends on others of its window.
    fn mixes_positions(&self) -> bool {
        false
    }

    /// Its experts, if it has some.
    fn experts(&self) -> Option<&experts::Experts> {
        None
    }

    /// What it keeps for later blocks beside the stream, for each token; none usually.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn kept(&self, _layers: &Layers, _x: &Tensor, _at: &mut At) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// Numbers per token that [`Mix::kept`] gives.
    fn kept_columns(&self) -> usize {
        0
    }

    /// Its rotary embedding, if it has one.
    fn rope(&self) -> Option<&Rope> {
        None
    }

    /// What a window of up to `capacity` positions needs to go on.
    ///
    /// # Errors
    /// The device has no room.
    fn state(&self, _capacity: usize, _device: &Device) -> Result<MixerState> {
        Ok(MixerState::default())
    }

    /// What llama.cpp keeps of a sequence.
    fn memory(&self) -> Memory {
        Memory::default()
    }

    /// What it costs.
    fn cost(&self) -> Cost;
}

/// The list of mixers: a module and a variant for each.
macro_rules! mixers {
    ($($module:ident $name:ident),*) => {
        $(pub mod $module; pub use $module::$name;)*

        /// Any of them.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs)]
        pub enum Mixer { $($name(Box<$name>)),* }

        impl Deref for Mixer {
            type Target = dyn Mix;

            fn deref(&self) -> &Self::Target {
                match self { $(Mixer::$name(mixer) => &**mixer),* }
            }
        }

        $(impl From<$name> for Mixer {
            fn from(mixer: $name) -> Mixer {
                Mixer::$name(Box::new(mixer))
            }
        })*
    };
}

mixers!(attention Attention, latent_attention LatentAttention, gated_delta_net GatedDeltaNet,
    kimi_delta_attention KimiDeltaAttention, mamba Mamba, mamba2 Mamba2,
    short_conv ShortConv, mlp Mlp, xielu Xielu, experts Experts, laurel Laurel, per_layer_gate PerLayerGate);
