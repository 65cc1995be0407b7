//! compressed-tensors' `pack-quantized`, as llm-compressor stores it: what transformers loads on any machine.

use super::{Described, Matrix, Packing, plan};
use crate::format::integer::Content;
use crate::source::checkpoint::compressed::{codes, zeros};
use crate::writer::safetensors::TensorPlan;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

/// The format.
pub struct Compressed;

impl Packing for Compressed {
    fn name(&self) -> &'static str {
        "compressed-tensors"
    }

    fn usual(&self) -> &'static str {
        "W4A16"
    }

    fn parts(&self, stem: &str, rows: usize, columns: usize, content: Content) -> Vec<TensorPlan> {
        let groups = columns / content.group;
        let mut parts = vec![
            plan(stem, ".weight_shape", Dtype::I64, &[2]),
            plan(stem, ".weight_packed", Dtype::I32, &codes(content.bits).shape(rows, columns)),
            plan(stem, ".weight_scale", Dtype::F16, &[rows, groups]),
        ];
        if content.zeros {
            let shape = zeros(content.bits).shape(rows, groups);
            parts.push(plan(stem, ".weight_zero_point", Dtype::I32, &shape));
        }
        parts
    }

    fn pack(&self, matrix: &Matrix) -> Vec<Vec<u8>> {
        let Matrix { rows, columns, content, .. } = *matrix;
        let mut parts = vec![
            [rows, columns].iter().flat_map(|&n| (n as i64).to_le_bytes()).collect(),
            codes(content.bits).pack(&matrix.codes, rows, columns),
            matrix.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect(),
        ];
        if content.zeros {
            parts.push(zeros(content.bits).pack(&matrix.zeros, rows, matrix.groups()));
        }
        parts
    }

    fn description(&self, described: &Described) -> Value {
        let Content { bits, group, zeros } = described.content;
        let mut ignore: Vec<&str> = vec!["lm_head"];
        ignore.extend(described.kept.iter().map(String::as_str));
        json!({
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "global_compression_ratio": null,
            "kv_cache_scheme": null,
            "ignore": ignore,
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {
                        "num_bits": bits,
                        "type": "int",
                        "symmetric": !zeros,
                        "strategy": "group",
                        "group_size": group,
                        "dynamic": false,
                    },
                    "input_activations": null,
                    "output_activations": null,
                },
            },
        })
    }
}
