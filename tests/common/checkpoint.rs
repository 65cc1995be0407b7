//! Llama checkpoints of random weights, in every variation that the tests need.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;
use safetensors::tensor::{View, serialize_to_file};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// Rows of the embedding: as many as eval/tiny's tokenizer has tokens.
pub const VOCAB: usize = 2048;

/// The sizes and variations of a model. The default is as small as grouped-query attention and two blocks allow.
#[derive(Debug, Clone)]
pub struct Shape {
    pub vocab: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// Written to config.json if there.
    pub head_dim: Option<usize>,
    pub ffn: usize,
    pub blocks: usize,
    pub tied: bool,
    pub attention_bias: bool,
    pub mlp_bias: bool,
    /// `rope_scaling` of config.json.
    pub rope: Value,
    pub seed: u64,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            vocab: VOCAB,
            hidden: 64,
            heads: 4,
            kv_heads: 2,
            head_dim: None,
            ffn: 96,
            blocks: 2,
            tied: true,
            attention_bias: false,
            mlp_bias: false,
            rope: Value::Null,
            seed: 1,
        }
    }
}

/// One tensor.
#[derive(Debug, Clone)]
pub struct Weights {
    pub shape: Vec<usize>,
    pub numbers: Vec<f32>,
}

/// A checkpoint that can be tampered with before it is written.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    pub config: Value,
    pub tensors: BTreeMap<String, Weights>,
    pub dtype: Dtype,
    /// How many files; one has no index.
    pub shards: usize,
}

impl Shape {
    /// Random weights of this shape: activations of about one, and attention that looks at something.
    pub fn checkpoint(&self) -> Checkpoint {
        let (h, f) = (self.hidden, self.ffn);
        let head_dim = self.head_dim.unwrap_or(h / self.heads);
        let (q, kv) = (self.heads * head_dim, self.kv_heads * head_dim);
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let mut tensors = BTreeMap::new();
        let mut put = |name: String, shape: &[usize], middle: f32, around: f32| {
            let n = shape.iter().product();
            let numbers = (0..n).map(|_| middle + around * random.random_range(-1.0..1.0f32)).collect();
            tensors.insert(name, Weights { shape: shape.into(), numbers });
        };
        put("model.embed_tokens.weight".into(), &[self.vocab, h], 0.0, 0.3);
        for i in 0..self.blocks {
            let linears = [
                ("self_attn.q_proj", q, h, self.attention_bias, 3.0),
                ("self_attn.k_proj", kv, h, self.attention_bias, 3.0),
                ("self_attn.v_proj", kv, h, self.attention_bias, 1.0),
                ("self_attn.o_proj", h, q, self.attention_bias, 1.0),
                ("mlp.gate_proj", f, h, self.mlp_bias, 1.0),
                ("mlp.up_proj", f, h, self.mlp_bias, 1.0),
                ("mlp.down_proj", h, f, self.mlp_bias, 1.0),
            ];
            for (name, rows, columns, bias, scale) in linears {
                let around = scale * (3.0 / columns as f32).sqrt();
                put(format!("model.layers.{i}.{name}.weight"), &[rows, columns], 0.0, around);
                if bias {
                    put(format!("model.layers.{i}.{name}.bias"), &[rows], 0.0, 0.3);
                }
            }
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                put(format!("model.layers.{i}.{norm}.weight"), &[h], 1.0, 0.2);
            }
        }
        put("model.norm.weight".into(), &[h], 1.0, 0.2);
        if !self.tied {
            put("lm_head.weight".into(), &[self.vocab, h], 0.0, 0.3);
        }
        Checkpoint { config: self.config(), tensors, dtype: Dtype::F32, shards: 1 }
    }

    /// Writes random weights of this shape as one F32 file.
    pub fn write(&self, folder: &Path) {
        self.checkpoint().write(folder);
    }

    fn config(&self) -> Value {
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": self.attention_bias,
            "bos_token_id": 2046,
            "eos_token_id": 2047,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "max_position_embeddings": 512,
            "mlp_bias": self.mlp_bias,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.blocks,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-5,
            "rope_scaling": self.rope,
            "rope_theta": 10000.0,
            "tie_word_embeddings": self.tied,
            "vocab_size": self.vocab,
        });
        if let Some(head_dim) = self.head_dim {
            config["head_dim"] = head_dim.into();
        }
        config
    }
}

impl Checkpoint {
    /// The numbers of a tensor, to be changed.
    pub fn numbers(&mut self, name: &str) -> &mut [f32] {
        &mut self.tensors.get_mut(name).unwrap_or_else(|| panic!("no tensor {name}")).numbers
    }

    /// Writes config.json, the tokenizer of eval/tiny and the weights, with an index if there are several files.
    pub fn write(&self, folder: &Path) {
        std::fs::create_dir_all(folder).expect("a folder");
        for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            std::fs::copy(super::tiny().join(name), folder.join(name)).expect("a copy of the tokenizer");
        }
        std::fs::write(folder.join("config.json"), self.config.to_string()).expect("config.json");
        let mut files: Vec<Vec<(&String, Stored)>> = (0..self.shards).map(|_| Vec::new()).collect();
        let mut map = BTreeMap::new();
        for (i, (name, weights)) in self.tensors.iter().enumerate() {
            let shard = i % self.shards;
            map.insert(name, self.file(shard));
            files[shard].push((name, Stored { dtype: self.dtype, shape: &weights.shape, bytes: self.bytes(weights) }));
        }
        for (shard, tensors) in files.into_iter().enumerate() {
            serialize_to_file(tensors, None, &folder.join(self.file(shard))).expect("a safetensors file");
        }
        if self.shards > 1 {
            let index = json!({ "metadata": {}, "weight_map": map });
            std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).expect("an index");
        }
    }

    /// The name of a file of weights.
    pub fn file(&self, shard: usize) -> String {
        match self.shards {
            1 => "model.safetensors".into(),
            n => format!("model-{:05}-of-{n:05}.safetensors", shard + 1),
        }
    }

    fn bytes(&self, weights: &Weights) -> Vec<u8> {
        let numbers = weights.numbers.iter();
        match self.dtype {
            Dtype::F32 => numbers.flat_map(|x| x.to_le_bytes()).collect(),
            Dtype::F16 => numbers.flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
            Dtype::BF16 => numbers.flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
            other => panic!("no test needs {other:?}"),
        }
    }
}

/// A tensor as the safetensors crate takes it.
struct Stored<'a> {
    dtype: Dtype,
    shape: &'a [usize],
    bytes: Vec<u8>,
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
