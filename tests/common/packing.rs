//! eval/tiny as other quantizers would store it: its linear layers packed, and what their numbers are then.

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// A tensor as a file has it.
#[derive(Debug, Clone)]
pub struct Raw {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// A checkpoint, and the numbers that its linear layers stand for.
#[derive(Debug, Clone)]
pub struct Model {
    pub config: Value,
    pub tensors: BTreeMap<String, Raw>,
    pub values: BTreeMap<String, Vec<f32>>,
}

/// Who packed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// The first version of GPTQ's format, and the second.
    Gptq(u32),
    Awq,
    /// compressed-tensors, zero points packed or in bytes.
    Compressed,
    CompressedBytes,
}

/// Which zero points the groups have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zeros {
    Eight,
    /// A power of two, whose product with a scale has as few bits as the scale.
    Power,
    Any,
}

/// A matrix in codes: `(q − zero)·scale`.
struct Codes {
    rows: usize,
    columns: usize,
    group: usize,
    q: Vec<u32>,      // [rows, columns]
    zeros: Vec<u32>,  // [rows, columns / group]
    scales: Vec<f16>, // [rows, columns / group]
}

impl Codes {
    fn of(w: &[f32], [rows, columns]: [usize; 2], group: usize, zeros: Zeros) -> Codes {
        let mut codes = Codes { rows, columns, group, q: Vec::new(), zeros: Vec::new(), scales: Vec::new() };
        for (i, w) in w.chunks(group).enumerate() {
            let zero = match zeros {
                Zeros::Eight => 8,
                Zeros::Power => [4, 8][i % 2],
                Zeros::Any => [7, 8, 5, 11][i % 4],
            };
            let scale = f16::from_f32(w.iter().fold(1e-3f32, |most, x| most.max(x.abs())) / 8.0);
            let code = |x: &f32| (x / scale.to_f32() + zero as f32).round().clamp(0.0, 15.0) as u32;
            codes.q.extend(w.iter().map(code));
            codes.zeros.push(zero);
            codes.scales.push(scale);
        }
        codes
    }

    fn values(&self) -> Vec<f32> {
        let value = |(i, &q): (usize, &u32)| {
            (q as f32 - self.zeros[i / self.group] as f32) * self.scales[i / self.group].to_f32()
        };
        self.q.iter().enumerate().map(value).collect()
    }

    fn groups(&self) -> usize {
        self.columns / self.group
    }
}

/// A matrix whose number in row `i` and column `j` is `of(i, j)`, in nibbles of words: `place(i, j)` says in which word, by row
/// and column, and in which nibble.
fn nibbles(
    [rows, columns]: [usize; 2],
    words: [usize; 2],
    of: impl Fn(usize, usize) -> u32,
    place: impl Fn(usize, usize) -> (usize, usize, usize),
) -> Raw {
    let mut out = vec![0u32; words[0] * words[1]];
    for i in 0..rows {
        for j in 0..columns {
            let (row, column, nibble) = place(i, j);
            out[row * words[1] + column] |= of(i, j) << (4 * nibble);
        }
    }
    Raw { dtype: Dtype::I32, shape: words.to_vec(), bytes: out.iter().flat_map(|word| word.to_le_bytes()).collect() }
}

/// Half-precision numbers, `of(i, j)` in row `i` and column `j`.
fn halves([rows, columns]: [usize; 2], of: impl Fn(usize, usize) -> f16) -> Raw {
    let numbers = (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j)));
    let bytes = numbers.flat_map(|(i, j)| of(i, j).to_le_bytes()).collect();
    Raw { dtype: Dtype::F16, shape: vec![rows, columns], bytes }
}

/// The outputs of a word of AWQ, from its lowest nibble on.
const AWQ: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

impl Layout {
    fn description(self, group: usize, zeros: Zeros) -> Value {
        let symmetric = zeros == Zeros::Eight;
        match self {
            Layout::Gptq(version) => json!({
                "quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": false, "sym": symmetric,
                "checkpoint_format": if version == 1 { "gptq" } else { "gptq_v2" },
            }),
            Layout::Awq => json!({
                "quant_method": "awq", "bits": 4, "group_size": group, "zero_point": true, "version": "gemm",
            }),
            _ => json!({
                "quant_method": "compressed-tensors", "format": "pack-quantized",
                "config_groups": { "group_0": { "targets": ["Linear"], "weights": {
                    "num_bits": 4, "type": "int", "strategy": "group", "group_size": group, "symmetric": symmetric,
                } } },
            }),
        }
    }

    /// The tensors of a weight, by what is added to the layer's name.
    fn pack(self, codes: &Codes) -> Vec<(&'static str, Raw)> {
        let (rows, columns, groups) = (codes.rows, codes.columns, codes.groups());
        let q = |i: usize, j: usize| codes.q[i * columns + j];
        let zero = |i: usize, g: usize| codes.zeros[i * groups + g];
        let scale = |i: usize, g: usize| codes.scales[i * groups + g];
        match self {
            Layout::Gptq(version) => {
                let less = 2 - version;
                let index = (0..columns as u32).flat_map(|j| (j / codes.group as u32).to_le_bytes()).collect();
                vec![
                    ("qweight", nibbles([rows, columns], [columns / 8, rows], q, |i, j| (j / 8, i, j % 8))),
                    (
                        "qzeros",
                        nibbles([rows, groups], [groups, rows / 8], |i, g| zero(i, g) - less, |i, g| (g, i / 8, i % 8)),
                    ),
                    ("scales", halves([groups, rows], |g, i| scale(i, g))),
                    ("g_idx", Raw { dtype: Dtype::I32, shape: vec![columns], bytes: index }),
                ]
            }
            Layout::Awq => {
                let nibble = |i: usize| AWQ.iter().position(|&output| output == i % 8).unwrap();
                vec![
                    ("qweight", nibbles([rows, columns], [columns, rows / 8], q, |i, j| (j, i / 8, nibble(i)))),
                    ("qzeros", nibbles([rows, groups], [groups, rows / 8], zero, |i, g| (g, i / 8, nibble(i)))),
                    ("scales", halves([groups, rows], |g, i| scale(i, g))),
                ]
            }
            Layout::Compressed | Layout::CompressedBytes => {
                let shape = [rows as u64, columns as u64].iter().flat_map(|n| n.to_le_bytes()).collect();
                let mut parts = vec![
                    ("weight_packed", nibbles([rows, columns], [rows, columns / 8], q, |i, j| (i, j / 8, j % 8))),
                    ("weight_scale", halves([rows, groups], scale)),
                    ("weight_shape", Raw { dtype: Dtype::I64, shape: vec![2], bytes: shape }),
                ];
                if codes.zeros.iter().any(|&zero| zero != 8) {
                    let bytes = codes.zeros.iter().map(|&zero| (zero as i8 - 8) as u8).collect();
                    let zeros = match self {
                        Layout::Compressed => {
                            nibbles([rows, groups], [rows / 8, groups], zero, |i, g| (i / 8, g, i % 8))
                        }
                        _ => Raw { dtype: Dtype::I8, shape: vec![rows, groups], bytes },
                    };
                    parts.push(("weight_zero_point", zeros));
                }
                parts
            }
        }
    }
}

impl Model {
    /// eval/tiny as it is.
    pub fn tiny() -> Model {
        let bytes = std::fs::read(super::tiny().join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let raw = |t: TensorView| Raw { dtype: t.dtype(), shape: t.shape().to_vec(), bytes: t.data().to_vec() };
        let config = std::fs::read_to_string(super::tiny().join("config.json")).unwrap();
        Model {
            config: serde_json::from_str(&config).unwrap(),
            tensors: file.tensors().into_iter().map(|(name, tensor)| (name, raw(tensor))).collect(),
            values: BTreeMap::new(),
        }
    }

    /// eval/tiny with its linear layers in codes.
    pub fn packed(layout: Layout, group: usize, zeros: Zeros) -> Model {
        let mut model = Model::tiny();
        for (name, raw) in model.take_linears() {
            let codes = Codes::of(&numbers(&raw), [raw.shape[0], raw.shape[1]], group, zeros);
            let stem = name.strip_suffix("weight").unwrap();
            model.tensors.extend(layout.pack(&codes).into_iter().map(|(part, raw)| (format!("{stem}{part}"), raw)));
            model.values.insert(name, codes.values());
        }
        model.config["quantization_config"] = layout.description(group, zeros);
        model
    }

    /// eval/tiny with its linear layers in FP8 with a scale per block of 128 x 128, as DeepSeek has them.
    pub fn fp8() -> Model {
        // The positive numbers of E4M3 in the order of their bytes: subnormals, then octaves in eight steps.
        let octaves = (0..15).flat_map(|e| (8..16).map(move |m| m as f32 * 2f32.powi(e - 9)));
        let table: Vec<f32> = (0..8).map(|m| m as f32 / 512.0).chain(octaves).take(127).collect();
        let mut model = Model::tiny();
        for (name, raw) in model.take_linears() {
            let (w, rows, columns) = (numbers(&raw), raw.shape[0], raw.shape[1]);
            let across = columns.div_ceil(128);
            let mut scales = vec![0f32; rows.div_ceil(128) * across];
            let block = |i: usize| i / columns / 128 * across + i % columns / 128;
            w.iter().enumerate().for_each(|(i, x)| scales[block(i)] = scales[block(i)].max(x.abs() / 448.0));
            let (mut bytes, mut values) = (Vec::new(), Vec::new());
            for (i, x) in w.iter().enumerate() {
                let wanted = x.abs() / scales[block(i)];
                let code = table.partition_point(|&own| own < wanted).min(126);
                let sign = if *x < 0.0 { -1.0 } else { 1.0 };
                bytes.push(code as u8 | if sign < 0.0 { 0x80 } else { 0 });
                values.push(sign * table[code] * scales[block(i)]);
            }
            let shape = vec![rows.div_ceil(128), across];
            let scales = scales.iter().flat_map(|x| x.to_le_bytes()).collect();
            model.tensors.insert(format!("{name}_scale_inv"), Raw { dtype: Dtype::F32, shape, bytes: scales });
            model.tensors.insert(name.clone(), Raw { dtype: Dtype::F8_E4M3, shape: raw.shape, bytes });
            model.values.insert(name, values);
        }
        model.config["quantization_config"] = json!({ "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128] });
        model
    }

    fn take_linears(&mut self) -> Vec<(String, Raw)> {
        let names: Vec<String> = self.tensors.keys().filter(|name| name.ends_with("_proj.weight")).cloned().collect();
        names.into_iter().map(|name| (name.clone(), self.tensors.remove(&name).unwrap())).collect()
    }

    /// Writes it as one file of safetensors.
    pub fn write(&self, folder: &Path) {
        self.write_rest(folder);
        let views = self.tensors.iter().map(|(name, raw)| {
            (name.as_str(), TensorView::new(raw.dtype, raw.shape.clone(), &raw.bytes).expect("bytes of that shape"))
        });
        serialize_to_file(views, None, &folder.join("model.safetensors")).expect("a safetensors file");
    }

    /// Writes everything but the weights.
    pub fn write_rest(&self, folder: &Path) {
        std::fs::create_dir_all(folder).expect("a folder");
        for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            std::fs::copy(super::tiny().join(name), folder.join(name)).expect("a copy of the tokenizer");
        }
        std::fs::write(folder.join("config.json"), self.config.to_string()).expect("config.json");
    }

    /// What a GGUF of the model holds, by its names there: the linear layers' numbers, each in the row order of that file.
    pub fn in_gguf(&self) -> BTreeMap<String, Vec<f32>> {
        let named = |(name, values): (&String, &Vec<f32>)| {
            let parts: Vec<&str> = name.split('.').collect();
            let (block, layer) = (parts[2], parts[4]);
            let own = match layer {
                "q_proj" => "attn_q",
                "k_proj" => "attn_k",
                "v_proj" => "attn_v",
                "o_proj" => "attn_output",
                "gate_proj" => "ffn_gate",
                "up_proj" => "ffn_up",
                "down_proj" => "ffn_down",
                other => panic!("{other}"),
            };
            let columns = self.columns(layer);
            // llama.cpp pairs neighbours where Hugging Face pairs the halves of a head.
            let turned = ["q_proj", "k_proj"].contains(&layer);
            let rows = values.chunks(columns).collect::<Vec<_>>();
            let head = self.config["head_dim"].as_u64().unwrap() as usize;
            let order = (0..rows.len()).map(|r| match turned {
                true => r / head * head + r % head / 2 + r % 2 * (head / 2),
                false => r,
            });
            (format!("blk.{block}.{own}.weight"), order.flat_map(|r| rows[r].iter().copied()).collect())
        };
        self.values.iter().map(named).collect()
    }

    fn columns(&self, layer: &str) -> usize {
        let size = |key: &str| self.config[key].as_u64().unwrap() as usize;
        match layer {
            "o_proj" => size("num_attention_heads") * size("head_dim"),
            "down_proj" => size("intermediate_size"),
            _ => size("hidden_size"),
        }
    }
}

/// The numbers of a BF16 tensor.
fn numbers(raw: &Raw) -> Vec<f32> {
    assert_eq!(raw.dtype, Dtype::BF16);
    raw.bytes.chunks(2).map(|bytes| bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32()).collect()
}
