//! The tensors of a block: what they are called, what they read, and what each is for.

use super::mixer::Place;
use std::ops::Range;

/// A tensor's place in a block, by what GGUF calls it behind `blk.N.`. Each mixer names its own beside its forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Part(pub &'static str);

impl Part {
    /// The norm in front of a block's first half.
    pub const ATTN_NORM: Part = Part("attn_norm");
    /// The norm behind attention.
    pub const ATTN_POST_NORM: Part = Part("post_attention_norm");
    /// The norm in front of an MLP.
    pub const FFN_NORM: Part = Part("ffn_norm");
    /// The norm behind an MLP.
    pub const FFN_POST_NORM: Part = Part("post_ffw_norm");
}

/// Weight or bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Kind {
    Weight,
    Bias,
}

impl Kind {
    /// What names end with.
    pub fn suffix(self) -> &'static str {
        match self {
            Kind::Weight => "weight",
            Kind::Bias => "bias",
        }
    }
}

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TensorRole {
    /// Token embedding, `[vocab, hidden]`.
    Embedding,
    /// Embedding of positions, `[context, hidden]`.
    Positions,
    /// Embedding of tokens for each block, and what is added to it ([`super::per_layer`]).
    PerLayer(Part),
    /// What makes several residual streams of one, and one of several ([`super::streams`]).
    Streams(Part),
    /// Output matrix, `[vocab, hidden]`.
    Output,
    /// The norm behind the last block.
    Norm(Kind),
    /// A tensor of a block.
    Block(Part, Kind),
    /// Something that the forward pass does not use by itself.
    Other,
}

/// What activations a linear layer reads: layers that share a site share a Hessian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// The half of its block.
    pub half: usize,
    /// Where in the half.
    pub place: Place,
}

impl Site {
    /// Whether one layer reads it, which writes to the residual stream.
    pub fn is_inner(self) -> bool {
        self.place == Place::Inner
    }
}

/// What a matrix of a block reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reads {
    /// The activations of a site.
    Site(Place),
    /// What a router sends to each expert.
    Routed,
    /// What is inside each expert.
    RoutedInner,
    /// Something between the two that is not looked at: the layers behind a narrow vector.
    Between,
}

/// How rows are ordered in the file, seen from the checkpoint's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// Unchanged.
    AsIs,
    /// Within each head of `head_dim` rows, row `i` and row `i + head_dim/2` become neighbours.
    Interleaved {
        /// Rows per head.
        head_dim: usize,
    },
}

impl RowOrder {
    /// For each row of the file, the row of the checkpoint that it holds; `None` where nothing moves.
    pub fn sources(self, rows: usize) -> Option<Vec<usize>> {
        match self {
            RowOrder::AsIs => None,
            RowOrder::Interleaved { head_dim } => {
                let half = head_dim / 2;
                Some((0..rows).map(|r| r / head_dim * head_dim + r % head_dim / 2 + r % 2 * half).collect())
            }
        }
    }
}

/// A tensor of a block, as a mixer or a half declares it.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockTensor {
    /// Its place.
    pub part: Part,
    /// What most checkpoints call it, behind the block's prefix; `{}` stands for the number of an expert or of a head.
    pub source: &'static str,
    /// `[rows, columns]` of a matrix, `[n]` of a vector, `[count, rows, columns]` of a stack.
    pub shape: Vec<usize>,
    /// Whether there is a bias beside it.
    pub bias: bool,
    /// What it reads, where it is a linear layer.
    pub reads: Option<Reads>,
    /// The order of its rows in the file.
    pub order: RowOrder,
    /// What its name in GGUF ends with; nothing at all where it is empty.
    pub ending: &'static str,
    /// The checkpoint's name has no ending.
    pub bare: bool,
    /// Nothing but a product is made with it, so that its rows may be dequantized on the fly.
    pub only_multiplied: bool,
    /// Rows, or columns of a half's last layer, that are heads of values: a rotation within each head passes.
    pub values: bool,
}

impl BlockTensor {
    /// A vector or a norm's gain.
    pub fn new(part: Part, source: &'static str, shape: &[usize]) -> BlockTensor {
        BlockTensor {
            part,
            source,
            shape: shape.to_vec(),
            bias: false,
            reads: None,
            order: RowOrder::AsIs,
            ending: "weight",
            bare: false,
            only_multiplied: false,
            values: false,
        }
    }

    /// A linear layer.
    pub fn linear(part: Part, source: &'static str, shape: &[usize], reads: Reads) -> BlockTensor {
        BlockTensor { reads: Some(reads), only_multiplied: true, ..BlockTensor::new(part, source, shape) }
    }

    /// With a bias beside it, or without.
    #[must_use]
    pub fn bias(self, bias: bool) -> BlockTensor {
        BlockTensor { bias, ..self }
    }

    /// With its rows in some order.
    #[must_use]
    pub fn order(self, order: RowOrder) -> BlockTensor {
        BlockTensor { order, ..self }
    }

    /// Whose name ends otherwise in GGUF, and with nothing in the checkpoint.
    #[must_use]
    pub fn bare(self, ending: &'static str) -> BlockTensor {
        BlockTensor { ending, bare: true, ..self }
    }

    /// Whose rows or columns are heads of values.
    #[must_use]
    pub fn values(self, values: bool) -> BlockTensor {
        BlockTensor { values, ..self }
    }
}

/// What can absorb factors of a site's channels: a norm's gain, or the rows of a linear layer whose output only gets mixed or
/// multiplied on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absorber {
    /// The tensor.
    pub part: Part,
    /// Which of its channels makes each column of the site.
    pub channels: Vec<usize>,
    /// What stands between squares them, so that a channel takes the root of its column's factor.
    pub squared: bool,
}

impl Absorber {
    /// A tensor that makes one column with each of some of its channels.
    pub fn of(part: Part, channels: Range<usize>) -> Absorber {
        Absorber { part, channels: channels.collect(), squared: false }
    }

    /// By what each channel is multiplied, where each column is divided by its scale.
    pub fn factors(&self, scales: &[f32]) -> Vec<f32> {
        let mut factors = vec![1.0; self.channels.iter().max().map_or(0, |last| last + 1)];
        for (&channel, scale) in self.channels.iter().zip(scales) {
            factors[channel] = if self.squared { 1.0 / scale.sqrt() } else { 1.0 / scale };
        }
        factors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_take_what_their_columns_lose() {
        let absorber = Absorber { channels: vec![1, 0, 1], ..Absorber::of(Part::FFN_NORM, 0..0) };
        assert_eq!(absorber.factors(&[4.0, 2.0, 4.0]), [0.5, 0.25]);
        assert_eq!(Absorber { squared: true, ..absorber }.factors(&[4.0, 16.0, 4.0]), [0.25, 0.5]);
    }

    #[test]
    fn interleaving_makes_the_halves_of_a_head_neighbours() {
        let order = RowOrder::Interleaved { head_dim: 4 };
        assert_eq!(order.sources(8).unwrap(), [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(RowOrder::AsIs.sources(8), None);
    }
}
