//! Every tensor of a model: its names, its shape, and what it is for.

use super::mapping::{Pick, TensorMapping};
use super::part::{BlockTensor, Kind, Part, Reads, RowOrder, Site, TensorRole};
use super::{Model, Norm, per_layer::PerLayer};

/// One tensor: where it comes from, where it goes, what it is for.
#[derive(Debug, Clone)]
pub struct TensorSpec {
    /// Its name in the checkpoint.
    pub source: String,
    /// Its name in GGUF.
    pub gguf: String,
    /// `[rows, columns]` of a matrix, `[n]` of a vector, `[experts, rows, columns]` of a stack.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: TensorRole,
    /// The block that it belongs to.
    pub block: Option<usize>,
    /// The half of the block.
    pub half: usize,
    /// What it reads, where it is a linear layer of a block.
    pub reads: Option<Reads>,
    /// The order of its rows in the file.
    pub order: RowOrder,
    /// What happens to the checkpoint's numbers.
    pub mapping: TensorMapping,
    /// Nothing but a product is made with it.
    pub only_multiplied: bool,
    /// Its rows, or its columns if it is a half's last layer, are heads of values.
    pub values: bool,
}

impl TensorSpec {
    /// One outside the blocks that goes into the file as it is.
    pub fn plain(source: String, gguf: String, shape: Vec<usize>, role: TensorRole) -> TensorSpec {
        TensorSpec {
            source,
            gguf,
            shape,
            role,
            block: None,
            half: 0,
            reads: None,
            order: RowOrder::AsIs,
            mapping: TensorMapping::AS_IS,
            only_multiplied: false,
            values: false,
        }
    }

    /// How many numbers it holds.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// How many rows it has: steps along all dimensions but the last. A vector is one row.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// Numbers in a row.
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Which activations it reads, for the weight of a linear layer that a site has.
    pub fn site(&self) -> Option<Site> {
        match self.reads {
            Some(Reads::Site(place)) => Some(Site { half: self.half, place }),
            _ => None,
        }
    }

    /// Whether it holds a layer of every expert.
    pub fn is_of_experts(&self) -> bool {
        matches!(self.reads, Some(Reads::Routed | Reads::RoutedInner))
    }

    /// Its part, if it is the weight of a block.
    pub fn weight_of(&self) -> Option<Part> {
        match self.role {
            TensorRole::Block(part, Kind::Weight) => Some(part),
            _ => None,
        }
    }
}

impl Model {
    /// The tensors that come before the blocks; the embedding is the first.
    pub fn head(&self) -> Vec<TensorSpec> {
        let mut head = vec![self.embedding()];
        head.extend(self.position_embedding());
        head.extend(self.per_layer_tensors());
        head.extend(self.stream_tensors());
        head.extend(self.low_state());
        head
    }

    /// The token embedding.
    pub fn embedding(&self) -> TensorSpec {
        let (source, shape) = (self.architecture.outside().embedding, vec![self.vocab, self.hidden]);
        let embedding = self.outside(source, "token_embd", shape, TensorRole::Embedding);
        match &self.embedding_source {
            Some(source) => TensorSpec { source: source.clone(), ..embedding },
            None => embedding,
        }
    }

    /// The embedding of positions.
    pub fn position_embedding(&self) -> Option<TensorSpec> {
        let shape = vec![self.context, self.hidden];
        let own = || self.outside(self.architecture.outside().positions, "position_embd", shape, TensorRole::Positions);
        self.positions.then(own)
    }

    /// What makes the embeddings of tokens for each block.
    pub fn per_layer_tensors(&self) -> Vec<TensorSpec> {
        let Some(PerLayer { width, rows, .. }) = self.per_layer else { return Vec::new() };
        let all = self.blocks.len() * width;
        let tensor = |part: Part, source: &str, shape: Vec<usize>| {
            self.outside(source, part.0, shape, TensorRole::PerLayer(part))
        };
        let embedding = tensor(Part::PER_LAYER_TOKEN_EMBD, "model.embed_tokens_per_layer", vec![self.vocab, all]);
        let mapping = match rows < self.vocab {
            true => {
                Pick::Rows { rows: (0..self.vocab).map(|row| if row < rows { row } else { 0 }).collect(), of: rows }
                    .into()
            }
            false => embedding.mapping.clone(),
        };
        vec![
            TensorSpec { mapping, ..embedding },
            tensor(Part::PER_LAYER_MODEL_PROJ, "model.per_layer_model_projection", vec![all, self.hidden]),
            tensor(Part::PER_LAYER_PROJ_NORM, "model.per_layer_projection_norm", vec![width]),
        ]
    }

    /// The last norm: its gain, and its bias, if it has them.
    pub fn output_norm(&self) -> Vec<TensorSpec> {
        let kinds: &[Kind] = match self.norm.kind {
            Norm::Bare => &[],
            _ if self.norm.bias => &[Kind::Weight, Kind::Bias],
            _ => &[Kind::Weight],
        };
        let norm = |&kind: &Kind| TensorSpec {
            mapping: if kind == Kind::Bias { TensorMapping::AS_IS } else { self.architecture.norm_mapping() },
            ..TensorSpec::plain(
                self.named(format!("{}.{}", self.architecture.outside().norm, kind.suffix())),
                format!("{}.{}", self.norm.part.0, kind.suffix()),
                vec![self.hidden],
                TensorRole::Norm(kind),
            )
        };
        kinds.iter().map(norm).collect()
    }

    /// The output matrix; for tied models, the embedding.
    pub fn output(&self) -> TensorSpec {
        if self.tied {
            return self.embedding();
        }
        let (source, shape) = (self.architecture.outside().output, vec![self.vocab, self.hidden]);
        let output = self.outside(source, "output", shape, TensorRole::Output);
        match &self.output_source {
            Some(source) => TensorSpec { source: source.clone(), ..output },
            None => output,
        }
    }

    /// The tensors that come after the blocks.
    pub fn tail(&self) -> Vec<TensorSpec> {
        let mut tail = self.tail.clone();
        tail.extend(self.output_norm());
        if !self.tied {
            tail.push(self.output());
        }
        tail
    }

    /// The tensors of block `i`, in file order. They are those of another block where it repeats that.
    pub fn block(&self, i: usize) -> Vec<TensorSpec> {
        let block = &self.blocks[i];
        let mut tensors = Vec::new();
        let of_streams = self.streams.iter().flat_map(|streams| streams.tensors(self.hidden)).map(|tensor| (0, tensor));
        for (half, tensor) in block.tensors(self.hidden).into_iter().chain(of_streams) {
            tensors.push(self.block_tensor(i, half, &tensor, Kind::Weight));
            if tensor.bias {
                tensors.push(self.block_tensor(i, half, &tensor, Kind::Bias));
            }
        }
        tensors
    }

    /// What names of a block's tensors begin with in the checkpoint.
    fn block_source(&self, i: usize) -> String {
        match self.looped {
            None => format!("{}.{i}", self.architecture.outside().blocks),
            Some(looped) => {
                let stack = if looped.is_low(i) { "L" } else { "H" };
                format!("model.{stack}_module.layers.{}", i % looped.layers)
            }
        }
    }

    pub(super) fn block_tensor(&self, i: usize, half: usize, tensor: &BlockTensor, kind: Kind) -> TensorSpec {
        let architecture = self.architecture;
        let name = architecture.gguf_name(tensor.part);
        let ending = if kind == Kind::Bias { kind.suffix() } else { architecture.ending(tensor) };
        let in_file = self.looped.map_or(i, |looped| looped.in_file(i));
        let shape = match kind {
            Kind::Weight => tensor.shape.clone(),
            Kind::Bias => tensor.shape[..tensor.shape.len().max(2) - 1].to_vec(),
        };
        let experts = self.expert_layout.fused(architecture.source(tensor), tensor);
        let joined = if self.joined { architecture.joined(tensor) } else { None };
        let (source, suffix, mapping) = match (experts, joined) {
            (Some((source, mapping)), _) => (source, String::new(), mapping),
            (None, Some((source, mapping))) => (source.to_owned(), architecture.suffix(tensor, kind), mapping),
            (None, None) => {
                let mapping = architecture.mapping(&self.blocks[i], tensor, kind);
                (architecture.source(tensor).to_owned(), architecture.suffix(tensor, kind), mapping)
            }
        };
        TensorSpec {
            source: self.named(format!("{}.{source}{suffix}", self.block_source(i))),
            gguf: format!("blk.{in_file}.{name}{}{ending}", if ending.is_empty() { "" } else { "." }),
            shape,
            role: TensorRole::Block(tensor.part, kind),
            block: Some(i),
            half,
            reads: tensor.reads.filter(|_| kind == Kind::Weight),
            order: tensor.order,
            mapping: self.multiplied(TensorRole::Block(tensor.part, kind), mapping),
            only_multiplied: tensor.only_multiplied,
            values: tensor.values,
        }
    }

    /// Every tensor, in file order; one by one, because a model may have many.
    pub fn tensors(&self) -> impl Iterator<Item = TensorSpec> {
        let own = (0..self.blocks.len()).filter(|&i| self.repeats(i).is_none());
        let blocks = own.flat_map(|i| self.block(i));
        self.head().into_iter().chain(blocks).chain(self.tail())
    }

    /// A name as this checkpoint has it.
    pub fn named(&self, source: String) -> String {
        match source.strip_prefix(self.renamed.0) {
            Some(rest) => format!("{}{rest}", self.renamed.1),
            None => source,
        }
    }

    pub(super) fn outside(&self, source: &str, gguf: &str, shape: Vec<usize>, role: TensorRole) -> TensorSpec {
        let source = self.named(format!("{source}.weight"));
        let mapping = self.multiplied(role, TensorMapping::AS_IS);
        TensorSpec { mapping, ..TensorSpec::plain(source, format!("{gguf}.weight"), shape, role) }
    }

    fn multiplied(&self, role: TensorRole, mapping: TensorMapping) -> TensorMapping {
        let own = self.factors.iter().find(|(of, _)| *of == role);
        TensorMapping { factors: own.map(|(_, factors)| factors.clone()), ..mapping }
    }
}
