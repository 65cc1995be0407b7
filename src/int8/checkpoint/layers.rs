//! Which tensors of a checkpoint are the weights of linear layers, without a graph that would say so.
//!
//! Names and shapes tell. The weight of a `Linear` is `X.weight` `[out, in]`, and nothing but a linear layer has a bias of
//! `[out]` beside a matrix. Where there is no bias, only names that are known to be linear layers count: what is taken for one
//! and is none makes a checkpoint that does not load, what is left alone merely stays as large as it was.

use std::collections::BTreeMap;

/// What a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The weight of a linear layer.
    Linear,
    /// Rows that are looked up.
    Embedding,
    /// The weight of an output layer over the vocabulary, as a rule tied to the embedding.
    Head,
    /// The weight of a convolution.
    Convolution,
    /// A matrix of which nothing says that it is a linear layer.
    Unsure,
    /// The weight of a linear layer stored `[in, out]`, as transformers' `Conv1D` has it.
    Transposed,
    /// Whatever else there is: biases, norms, buffers.
    Other,
}

impl Role {
    /// How it is called where roles are shown.
    pub fn name(self) -> &'static str {
        match self {
            Role::Linear => "linear",
            Role::Embedding => "embedding",
            Role::Head => "output layer",
            Role::Convolution => "convolution",
            Role::Unsure => "unknown matrix",
            Role::Transposed => "transposed linear",
            Role::Other => "other",
        }
    }
}

/// Linear layers that have no bias in some models, by the last part of their names.
const LINEAR: &[&str] = &[
    "query",
    "key",
    "value",
    "dense",
    "q",
    "k",
    "v",
    "o",
    "wi",
    "wi_0",
    "wi_1",
    "wo",
    "Wqkv",
    "Wo",
    "Wi",
    "qkv",
    "fc",
    "fc1",
    "fc2",
    "linear",
    "linear1",
    "linear2",
    "q_lin",
    "k_lin",
    "v_lin",
    "out_lin",
    "lin1",
    "lin2",
    "w1",
    "w2",
    "w3",
    "proj",
    "in_proj",
    "out_proj",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "up_proj",
    "down_proj",
    "gate_proj",
    "pos_proj",
    "pos_key_proj",
    "pos_query_proj",
    "linear_q",
    "linear_k",
    "linear_v",
    "linear_out",
    "linear_pos",
    "visual_projection",
    "text_projection",
    "classifier",
    "pre_classifier",
    "score",
];

/// Parts of the names of output layers over the vocabulary, and of what stands before these.
const HEADS: &[&str] = &[
    "lm_head",
    "cls",
    "predictions",
    "vocab_projector",
    "vocab_transform",
    "generator_lm_head",
    "generator_predictions",
    "lm_predictions",
    "embed_out",
];

/// Rows that are looked up, by the last part of their names, where that does not contain "embed".
const LOOKED_UP: &[&str] = &["wte", "wpe", "shared", "relative_attention_bias", "tokens_emb", "pos_emb"];

/// The roles of all tensors. `shapes`: by name; `vocab`: the size of the vocabulary, where there is one.
pub fn roles<'a>(shapes: &BTreeMap<&'a str, &[usize]>, vocab: Option<usize>) -> BTreeMap<&'a str, Role> {
    shapes.keys().map(|&name| (name, role(name, shapes, vocab))).collect()
}

fn role(name: &str, shapes: &BTreeMap<&str, &[usize]>, vocab: Option<usize>) -> Role {
    let shape = shapes[name];
    let embeds = |text: &str| text.contains("embed");
    let Some(module) = name.strip_suffix(".weight") else {
        return if shape.len() > 1 && embeds(name) { Role::Embedding } else { Role::Other };
    };
    let last = module.rsplit('.').next().unwrap_or(module);
    let &[rows, columns] = shape else {
        return if shape.len() > 2 { Role::Convolution } else { Role::Other };
    };
    let bias = shapes.get(format!("{module}.bias").as_str()).copied();
    let looked_up = bias.is_none() && (embeds(module) && !LINEAR.contains(&last) || LOOKED_UP.contains(&last));
    if looked_up {
        return Role::Embedding;
    }
    if Some(rows) == vocab || module.split('.').any(|part| HEADS.contains(&part)) {
        return Role::Head;
    }
    match bias {
        Some([n]) if *n == rows => Role::Linear,
        Some([n]) if *n == columns => Role::Transposed,
        Some(_) => Role::Unsure,
        None if LINEAR.contains(&last) => Role::Linear,
        None => Role::Unsure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tensors: &[(&str, &[usize])], vocab: Option<usize>) -> Vec<Role> {
        let roles = roles(&tensors.iter().copied().collect(), vocab);
        tensors.iter().map(|(name, _)| roles[name]).collect()
    }

    #[test]
    fn names_and_shapes_tell_linear_layers() {
        use Role::*;
        let bert: &[(&str, &[usize])] = &[
            ("bert.embeddings.word_embeddings.weight", &[100, 8]),
            ("bert.embeddings.position_embeddings.weight", &[16, 8]),
            ("bert.embeddings.position_ids", &[1, 16]),
            ("bert.embeddings.LayerNorm.weight", &[8]),
            ("bert.encoder.layer.0.attention.self.query.weight", &[8, 8]),
            ("bert.encoder.layer.0.attention.self.query.bias", &[8]),
            ("bert.pooler.dense.weight", &[8, 8]),
            ("bert.pooler.dense.bias", &[8]),
            ("cls.predictions.transform.dense.weight", &[8, 8]),
            ("cls.predictions.transform.dense.bias", &[8]),
            ("cls.predictions.decoder.weight", &[100, 8]),
        ];
        let wanted = [Embedding, Embedding, Embedding, Other, Linear, Other, Linear, Other, Head, Other, Head];
        assert_eq!(of(bert, Some(100)), wanted);

        let others: &[(&str, &[usize])] = &[
            ("vit.embeddings.patch_embeddings.projection.weight", &[8, 3, 4, 4]),
            ("vit.embeddings.position_embeddings", &[1, 5, 8]),
            ("blocks.0.attn.qkv.weight", &[24, 8]),
            ("blocks.0.attn.qkv.bias", &[24]),
            ("model.encoder.conv1.weight", &[8, 4, 3]),
            ("model.encoder.embed_positions.weight", &[15, 8]),
            ("model.encoder.layers.0.self_attn.k_proj.weight", &[8, 8]),
            ("proj_out.weight", &[50, 8]),
            ("encoder.embedding_hidden_mapping_in.weight", &[8, 4]),
            ("encoder.embedding_hidden_mapping_in.bias", &[8]),
            ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", &[32, 4]),
            ("shared.weight", &[50, 8]),
            ("mixer.router.weight", &[4, 8]),
            ("h.0.mlp.c_fc.weight", &[8, 32]),
            ("h.0.mlp.c_fc.bias", &[32]),
        ];
        let wanted = [
            Convolution,
            Embedding,
            Linear,
            Other,
            Convolution,
            Embedding,
            Linear,
            Head,
            Linear,
            Other,
            Embedding,
            Embedding,
            Unsure,
            Transposed,
            Other,
        ];
        assert_eq!(of(others, Some(50)), wanted);
    }
}
