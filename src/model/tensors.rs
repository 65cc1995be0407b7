//! Every tensor of a model: its names, its shape, and what it is for.

use super::rope::Scaling;
use super::{HeadNorms, Kind, Latent, Made, MlpLayers, Model, Norm, Part, QueryRows, Role, RowOrder, gguf_keys};

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
    pub role: Role,
    /// The block that it belongs to.
    pub block: Option<usize>,
    /// The order of its rows in the file.
    pub order: RowOrder,
    /// What happens to the checkpoint's numbers.
    pub made: Made,
}

impl TensorSpec {
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
}

/// What prefixes of names may be in a checkpoint: from what they usually are to what they are there.
const RENAMED: [(&str, &str); 4] =
    [("", ""), ("transformer.", ""), ("", "language_model."), ("model.", "model.language_model.")];

impl Model {
    /// The tensors that come before the blocks; the embedding is the first.
    pub fn head(&self) -> Vec<TensorSpec> {
        let mut head = vec![self.embedding()];
        head.extend(self.positions());
        head
    }

    /// The token embedding.
    pub fn embedding(&self) -> TensorSpec {
        self.end(self.architecture.ends().embedding, "token_embd", vec![self.vocab, self.hidden], Role::Embedding)
    }

    /// The embedding of positions.
    pub fn positions(&self) -> Option<TensorSpec> {
        let shape = vec![self.context, self.hidden];
        let own = || self.end(self.architecture.ends().positions, "position_embd", shape, Role::Positions);
        self.form.positions.then(own)
    }

    /// The last norm: its gain, and its bias if it has one.
    pub fn output_norm(&self) -> Vec<TensorSpec> {
        let kinds: &[Kind] = if self.form.norm == Norm::Layer { &[Kind::Weight, Kind::Bias] } else { &[Kind::Weight] };
        let norm = |&kind: &Kind| TensorSpec {
            source: self.named(format!("{}.{}", self.architecture.ends().norm, kind.suffix())),
            gguf: format!("output_norm.{}", kind.suffix()),
            role: Role::Norm(kind),
            made: self.architecture.made(self, Part::AttnNorm, kind),
            ..self.end("", "", vec![self.hidden], Role::Other)
        };
        kinds.iter().map(norm).collect()
    }

    /// The output matrix; for tied models, the embedding.
    pub fn output(&self) -> TensorSpec {
        if self.tied {
            return self.embedding();
        }
        self.end(self.architecture.ends().output, "output", vec![self.vocab, self.hidden], Role::Output)
    }

    /// The tensors that come after the blocks.
    pub fn tail(&self) -> Vec<TensorSpec> {
        let mut tail = self.output_norm();
        if !self.tied {
            tail.push(self.output());
        }
        tail
    }

    /// The tensors of block `i`, in file order.
    pub fn block(&self, i: usize) -> Vec<TensorSpec> {
        let (architecture, form) = (self.architecture, &self.form);
        let (h, d) = (self.hidden, self.head_dim);
        let (q, kv) = (self.heads * d, self.kv_heads * d);
        let turned = match architecture.query_rows() {
            QueryRows::Interleaved => RowOrder::Interleaved { head_dim: d },
            QueryRows::Halves | QueryRows::Neighbours => RowOrder::AsIs,
        };
        let norm_bias = form.norm == Norm::Layer;
        let mut parts: Vec<(Part, Vec<usize>, bool, RowOrder)> = Vec::new();
        let mut put = |part: Part, shape: &[usize], bias: bool| {
            let order = if matches!(part, Part::Q | Part::K) { turned } else { RowOrder::AsIs };
            parts.push((part, shape.to_vec(), bias, order));
        };
        if form.pre_norms {
            put(Part::AttnNorm, &[h], norm_bias);
        }
        if let Some(latent) = &form.latent {
            let Latent { query, latent: n, turned, value } = *latent;
            match query {
                None => put(Part::Q, &[q, h], false),
                Some(width) => {
                    put(Part::QA, &[width, h], false);
                    put(Part::QANorm, &[width], false);
                    put(Part::QB, &[q, width], false);
                }
            }
            put(Part::KvA, &[n + turned, h], false);
            put(Part::KvANorm, &[n], false);
            put(Part::KB, &[self.heads, n, d - turned], false);
            put(Part::VB, &[self.heads, value, n], false);
        } else if form.fused_qkv {
            put(Part::Qkv, &[q + 2 * kv, h], form.qkv_bias);
        } else {
            put(Part::Q, &[q, h], form.qkv_bias);
            put(Part::K, &[kv, h], form.qkv_bias);
            put(Part::V, &[kv, h], form.qkv_bias);
        }
        match form.head_norms {
            HeadNorms::None => {}
            HeadNorms::PerHead => [Part::QNorm, Part::KNorm].into_iter().for_each(|part| put(part, &[d], false)),
            HeadNorms::Centred => {
                put(Part::QNorm, &[self.heads, d], false);
                put(Part::KNorm, &[self.kv_heads, d], false);
            }
            HeadNorms::Whole => {
                put(Part::QNorm, &[q], false);
                put(Part::KNorm, &[kv], false);
            }
        }
        if form.sinks {
            put(Part::Sinks, &[self.heads], false);
        }
        put(Part::O, &[h, form.latent.map_or(q, |latent| self.heads * latent.value)], form.o_bias);
        if form.post_norms {
            put(Part::AttnPostNorm, &[h], norm_bias);
        }
        if form.pre_norms && !form.shared_norm {
            put(Part::FfnNorm, &[h], norm_bias);
        }
        let experts = self.experts(i);
        if let Some(experts) = &experts {
            let (n, f) = (experts.count, experts.ffn);
            put(Part::Router, &[n, h], experts.bias);
            if experts.favours {
                put(Part::Favours, &[n], false);
            }
            put(Part::ExpertGates, &[n, f, h], experts.bias);
            put(Part::ExpertUps, &[n, f, h], experts.bias);
            put(Part::ExpertDowns, &[n, h, f], experts.bias);
            if experts.shared_gate {
                put(Part::SharedRouter, &[1, h], false);
            }
        }
        let f = self.mlp_width(i);
        if f > 0 {
            match form.mlp.layers {
                MlpLayers::Gated => {
                    put(Part::Gate, &[f, h], form.mlp_bias);
                    put(Part::Up, &[f, h], form.mlp_bias);
                }
                MlpLayers::Fused => put(Part::GateUp, &[2 * f, h], form.mlp_bias),
                MlpLayers::Plain => put(Part::Up, &[f, h], form.mlp_bias),
            }
            put(Part::Down, &[h, f], form.mlp_bias);
        }
        if form.post_norms {
            put(Part::FfnPostNorm, &[h], norm_bias);
        }
        let mut tensors = Vec::new();
        for (part, shape, bias, order) in parts {
            let gguf = architecture.gguf_name(part);
            // The expert that every token goes to has an MLP's layers.
            let is_shared = experts.is_some() && matches!(part, Part::Gate | Part::Up | Part::Down);
            let (source, gguf) = match is_shared {
                true => (architecture.shared_source(part), format!("{gguf}_shexp")),
                false => (architecture.source(part).to_owned(), gguf.to_owned()),
            };
            let tensor = |kind: Kind, shape: Vec<usize>| {
                let end = architecture.suffix(part, kind);
                // A bias that has no weight beside it.
                let own = if part == Part::Favours { Kind::Bias } else { kind };
                TensorSpec {
                    source: self.named(format!("{}.{i}.{source}{end}", architecture.ends().blocks)),
                    gguf: format!("blk.{i}.{gguf}.{}", own.suffix()),
                    shape,
                    role: Role::Block(part, kind),
                    block: Some(i),
                    order,
                    made: architecture.made(self, part, kind),
                }
            };
            let rows = shape[..shape.len().max(2) - 1].to_vec();
            tensors.push(tensor(Kind::Weight, shape));
            if bias {
                tensors.push(tensor(Kind::Bias, rows));
            }
        }
        tensors
    }

    /// Whether queries and keys are turned in a block.
    pub fn turns(&self, block: usize) -> bool {
        self.rope.as_ref().is_some_and(|rope| rope.turns(block))
    }

    /// Every tensor, in file order; one by one, because a damaged file may claim any number of blocks.
    pub fn tensors(&self) -> impl Iterator<Item = TensorSpec> {
        let blocks = (0..self.blocks).flat_map(|i| self.block(i));
        self.head().into_iter().chain(blocks).chain(self.tail())
    }

    /// Vectors that GGUF has and the checkpoint has not, with their names.
    pub fn extras(&self) -> Vec<(&'static str, Vec<f32>)> {
        match self.rope.as_ref().map(|rope| &rope.scaling) {
            Some(Scaling::Factors(factors)) => vec![(gguf_keys::ROPE_FACTORS, factors.clone())],
            Some(Scaling::Long { short, long, .. }) => {
                vec![(gguf_keys::ROPE_LONG, long.clone()), (gguf_keys::ROPE_SHORT, short.clone())]
            }
            _ => Vec::new(),
        }
    }

    /// Finds out by which names a checkpoint has its tensors: some are saved without the prefix of their class, some with that of a
    /// model that sees, too. `has`: whether there is a tensor of a name.
    pub fn settle(&mut self, has: impl Fn(&str) -> bool) {
        self.renamed = ("", "");
        let embedding = self.embedding().source;
        let fits =
            |&(from, to): &(&str, &str)| embedding.strip_prefix(from).is_some_and(|rest| has(&format!("{to}{rest}")));
        self.renamed = RENAMED.into_iter().find(fits).unwrap_or(("", ""));
    }

    fn named(&self, source: String) -> String {
        match source.strip_prefix(self.renamed.0) {
            Some(rest) => format!("{}{rest}", self.renamed.1),
            None => source,
        }
    }

    fn end(&self, source: &str, gguf: &str, shape: Vec<usize>, role: Role) -> TensorSpec {
        let weight = |name: &str| format!("{name}.weight");
        let (source, gguf, order) = (self.named(weight(source)), weight(gguf), RowOrder::AsIs);
        TensorSpec { source, gguf, shape, role, block: None, order, made: Made::AsIs }
    }
}
