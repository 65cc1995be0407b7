//! The encoders that llama.cpp calls `bert`: BERT, DistilBERT and RoBERTa, their tensors and keys.

use super::layers::Role;
use crate::error::{Error, Result};
use crate::source::checkpoint::Checkpoint;
use crate::source::config::Config;
use crate::source::pooling::{self, Pooling};
use crate::source::value::{Metadata, Value};
use crate::source::vocabulary::Vocabulary;

/// What distinguishes a family: how its configuration and its tensors are called.
struct Family {
    model_type: &'static str,
    /// What stands in front of all names where a head was saved with the encoder.
    prefix: &'static str,
    hidden: &'static str,
    blocks: &'static str,
    heads: &'static str,
    ffn: &'static str,
    activation: &'static str,
    /// What its layer norms add to a variance where the configuration does not say.
    epsilon: f64,
    block: &'static str,
    /// Names within a block, in the order of [`PARTS`].
    parts: [&'static str; PARTS.len()],
}

/// Names of a block's layers and norms in GGUF, with the rows and columns of their weights.
const PARTS: [(&str, Size, Option<Size>); 8] = [
    ("attn_q", Size::Hidden, Some(Size::Hidden)),
    ("attn_k", Size::Hidden, Some(Size::Hidden)),
    ("attn_v", Size::Hidden, Some(Size::Hidden)),
    ("attn_output", Size::Hidden, Some(Size::Hidden)),
    ("attn_output_norm", Size::Hidden, None),
    ("ffn_up", Size::Ffn, Some(Size::Hidden)),
    ("ffn_down", Size::Hidden, Some(Size::Ffn)),
    ("layer_output_norm", Size::Hidden, None),
];

#[derive(Clone, Copy)]
enum Size {
    Hidden,
    Ffn,
}

const BERT: Family = Family {
    model_type: "bert",
    prefix: "bert.",
    hidden: "hidden_size",
    blocks: "num_hidden_layers",
    heads: "num_attention_heads",
    ffn: "intermediate_size",
    activation: "hidden_act",
    epsilon: 1e-12,
    block: "encoder.layer",
    parts: [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "attention.output.LayerNorm",
        "intermediate.dense",
        "output.dense",
        "output.LayerNorm",
    ],
};

const FAMILIES: [Family; 3] = [
    BERT,
    Family { model_type: "roberta", prefix: "roberta.", ..BERT },
    Family {
        model_type: "distilbert",
        prefix: "distilbert.",
        hidden: "dim",
        blocks: "n_layers",
        heads: "n_heads",
        ffn: "hidden_dim",
        activation: "activation",
        epsilon: 1e-12,
        block: "transformer.layer",
        parts: [
            "attention.q_lin",
            "attention.k_lin",
            "attention.v_lin",
            "attention.out_lin",
            "sa_layer_norm",
            "ffn.lin1",
            "ffn.lin2",
            "output_layer_norm",
        ],
    },
];

/// One tensor of the GGUF.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Its name in the checkpoint.
    pub source: String,
    /// Its name in GGUF.
    pub gguf: String,
    /// Its shape in the checkpoint.
    pub shape: Vec<usize>,
    /// Rows that are left out at its start.
    pub skip: usize,
    /// What it is.
    pub role: Role,
    /// Whether it may be quantized.
    pub matrix: bool,
}

/// An encoder as GGUF has it.
pub struct Bert {
    /// Its keys behind `general.*`, the tokenizer's included.
    pub metadata: Metadata,
    /// Its tensors, in file order.
    pub tensors: Vec<Tensor>,
    /// Where llama.cpp will not do what the checkpoint does, or what it is not told.
    pub notes: Vec<String>,
}

impl Bert {
    /// Reads configuration and tokenizer, and looks for all tensors. `pooling` overrides what the folder says.
    ///
    /// # Errors
    /// Another family, or a variation that llama.cpp does not have; a tensor that is missing or has another shape; a tokenizer
    /// that cannot be used.
    pub fn open(checkpoint: &Checkpoint, config: &Config, pooling: Option<Pooling>) -> Result<Bert> {
        let found = config.string("model_type")?;
        let family = FAMILIES.iter().find(|family| family.model_type == found).ok_or_else(|| {
            config.unsupported(&format!("no GGUF is made here for model_type '{found}'")).hint(
                "encoders: bert, distilbert and roberta; llmq quantize makes GGUFs of language models; without --gguf, llmq \
                 int8 takes any checkpoint of linear layers",
            )
        })?;
        family.check(config)?;
        let (hidden, ffn) = (config.size(family.hidden)?, config.size(family.ffn)?);
        let (blocks, heads, rows) =
            (config.size(family.blocks)?, config.size(family.heads)?, config.size("vocab_size")?);
        if hidden % heads != 0 {
            return Err(config.unsupported(&format!("{hidden} columns do not divide into {heads} heads")));
        }
        let positions = config.size("max_position_embeddings")?;
        // RoBERTa counts positions from behind that of its padding.
        let skip = match found.as_str() {
            "roberta" => config.get("pad_token_id").and_then(|id| id.as_u64()).unwrap_or(1) as usize + 1,
            _ => 0,
        };
        if skip >= positions {
            return Err(config.unsupported(&format!("there are {positions} positions, of which {skip} are never used")));
        }
        let types = if found == "distilbert" { 0 } else { config.maybe_size("type_vocab_size")?.unwrap_or(2) };
        let epsilon = config.maybe_positive("layer_norm_eps")?.unwrap_or(family.epsilon);

        let mut list = List { checkpoint, prefix: prefix(checkpoint, family)?, tensors: Vec::new() };
        list.push(EMBEDDING, "token_embd.weight", vec![rows, hidden], 0, Role::Embedding, true)?;
        list.norm("embeddings.LayerNorm", "token_embd_norm", hidden)?;
        // llama.cpp adds rows of these two as they are, in single precision.
        let position = "embeddings.position_embeddings.weight";
        list.push(position, "position_embd.weight", vec![positions, hidden], skip, Role::Embedding, false)?;
        if types > 0 {
            let source = "embeddings.token_type_embeddings.weight";
            list.push(source, "token_types.weight", vec![types, hidden], 0, Role::Embedding, false)?;
        }
        for block in 0..blocks {
            for ((gguf, rows, columns), part) in PARTS.iter().zip(family.parts) {
                let size = |size: Size| if matches!(size, Size::Ffn) { ffn } else { hidden };
                let (source, gguf) = (format!("{}.{block}.{part}", family.block), format!("blk.{block}.{gguf}"));
                match columns {
                    None => list.norm(&source, &gguf, size(*rows))?,
                    Some(columns) => {
                        let shape = vec![size(*rows), size(*columns)];
                        list.push(
                            &format!("{source}.weight"),
                            &format!("{gguf}.weight"),
                            shape,
                            0,
                            Role::Linear,
                            true,
                        )?;
                        let bias = (format!("{source}.bias"), format!("{gguf}.bias"));
                        list.push(&bias.0, &bias.1, vec![size(*rows)], 0, Role::Other, false)?;
                    }
                }
            }
        }
        let folder = checkpoint.folder();
        let mut vocabulary = match found.as_str() {
            "roberta" => Vocabulary::from_files(folder, rows, config.json(), None)?,
            _ => Vocabulary::of_word_pieces(folder, rows, config.json())?,
        };
        if found == "roberta" && vocabulary.pre == "gpt-2" {
            vocabulary.pre = "roberta-bpe".into();
        }
        let mut notes = vocabulary.notes.clone();
        let pooling = match pooling {
            Some(pooling) => Some(pooling),
            None => pooling::pooling_of(folder)?,
        };
        if pooling.is_none() {
            notes.push(
                "no file says how a text's vectors become one: llama.cpp leaves that to its user (--pooling sets it)"
                    .into(),
            );
        }
        if let Some(head) = checkpoint.tensors().find(|tensor| tensor.name.starts_with("classifier.")) {
            notes.push(format!("the classifier ('{}') is left out: the GGUF is for embeddings", head.name));
        }
        let key = |key: &str| format!("bert.{key}");
        let number = |n: usize| Value::U32(n as u32);
        let mut metadata: Metadata = vec![
            (key("block_count"), number(blocks)),
            (key("context_length"), number(positions - skip)),
            (key("embedding_length"), number(hidden)),
            (key("feed_forward_length"), number(ffn)),
            (key("attention.head_count"), number(heads)),
            (key("attention.layer_norm_epsilon"), Value::F32(epsilon as f32)),
            (key("attention.causal"), Value::Bool(false)),
        ];
        metadata.extend(pooling.map(|pooling| (key("pooling_type"), Value::U32(pooling as u32))));
        // llama.cpp refuses a file without the number of types, even where there are none.
        metadata.push(("tokenizer.ggml.token_type_count".into(), number(types.max(1))));
        metadata.extend(vocabulary.to_metadata());
        Ok(Bert { metadata, tensors: list.tensors, notes })
    }
}

impl Family {
    /// Refuses variations that llama.cpp does not have.
    fn check(&self, config: &Config) -> Result<()> {
        let activation = config.maybe_string(self.activation)?.unwrap_or("gelu".into());
        if !activation.starts_with("gelu") {
            return Err(config.unsupported(&format!(
                "{} is '{activation}', and llama.cpp's encoder has GELU only",
                self.activation
            )));
        }
        let kind = config.maybe_string("position_embedding_type")?.unwrap_or("absolute".into());
        if kind != "absolute" {
            return Err(
                config.unsupported(&format!("positions are '{kind}', and llama.cpp's encoder has absolute ones only"))
            );
        }
        if config.flag("is_decoder")? {
            return Err(config.unsupported("it is a decoder, and llama.cpp's bert looks in both directions"));
        }
        Ok(())
    }
}

/// The tensor that every encoder has, and has once.
const EMBEDDING: &str = "embeddings.word_embeddings.weight";

/// What stands in front of all names: the family's own prefix, nothing, or what a model that holds an encoder calls it, as
/// sentence-transformers' `auto_model.` and `0.auto_model.`.
fn prefix(checkpoint: &Checkpoint, family: &Family) -> Result<String> {
    let found = checkpoint.tensors().filter_map(|tensor| tensor.name.strip_suffix(EMBEDDING));
    let found: Vec<&str> = found.filter(|prefix| prefix.is_empty() || prefix.ends_with('.')).collect();
    match (found[..].iter().find(|prefix| [family.prefix, ""].contains(*prefix)), &found[..]) {
        (Some(usual), _) => Ok((*usual).to_owned()),
        (None, []) => Ok(String::new()),
        (None, [only]) => Ok((*only).to_owned()),
        (None, several) => Err(Error::new(format!(
            "{} holds {} encoders: the names of their tensors begin with {}",
            checkpoint.folder().display(),
            several.len(),
            several.join(", ")
        ))
        .hint("save the one that is wanted in a folder of its own")),
    }
}

/// The tensors found so far.
struct List<'a> {
    checkpoint: &'a Checkpoint,
    prefix: String,
    tensors: Vec<Tensor>,
}

impl List<'_> {
    fn norm(&mut self, source: &str, gguf: &str, columns: usize) -> Result<()> {
        // What BERT's first checkpoints called them, before they were converted from TensorFlow's names.
        for (kind, old) in [("weight", "gamma"), ("bias", "beta")] {
            let (new, old) = (format!("{source}.{kind}"), format!("{source}.{old}"));
            let is_old = !self.has(&new) && self.has(&old);
            let source = if is_old { old } else { new };
            self.push(&source, &format!("{gguf}.{kind}"), vec![columns], 0, Role::Other, false)?;
        }
        Ok(())
    }

    fn has(&self, name: &str) -> bool {
        self.checkpoint.contains(name) || self.checkpoint.contains(&format!("{}{name}", self.prefix))
    }

    fn push(
        &mut self,
        source: &str,
        gguf: &str,
        shape: Vec<usize>,
        skip: usize,
        role: Role,
        matrix: bool,
    ) -> Result<()> {
        let prefixed = format!("{}{source}", self.prefix);
        let source = if self.checkpoint.contains(&prefixed) { prefixed } else { source.to_owned() };
        self.checkpoint.check(&source, &shape)?;
        self.tensors.push(Tensor { source, gguf: gguf.into(), shape, skip, role, matrix });
        Ok(())
    }
}
