//! `llmq archs`: which models can be quantized, and what applies to them.

use super::output;
use crate::error::Result;
use crate::model::{ARCHITECTURES, Architecture, MlpLayers};
use serde_json::json;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// One JSON object a line on standard output
    #[arg(long)]
    json: bool,
}

/// What applies to a family.
struct Applies {
    /// The layers into whose inputs AWQ can put scales.
    awq: Vec<&'static str>,
    /// Why a rotation does not apply, if it does not.
    obstacle: Option<&'static str>,
}

impl Applies {
    fn to(architecture: &dyn Architecture) -> Applies {
        let form = architecture.form();
        let fused = form.mlp.layers == MlpLayers::Fused;
        let mut awq = Vec::new();
        if form.pre_norms {
            awq.push(if form.fused_qkv { "attn_qkv" } else { "attn_q, attn_k, attn_v" });
        }
        if !architecture.has_latent_attention() {
            awq.push("attn_output");
        }
        if form.pre_norms && !architecture.has_experts() {
            let gates = if form.mlp.layers == MlpLayers::Gated { "ffn_gate, ffn_up" } else { "ffn_up" };
            awq.push(gates);
        }
        if (form.mlp.layers == MlpLayers::Gated || fused) && !architecture.has_experts() {
            awq.push("ffn_down");
        }
        let obstacle = match architecture {
            _ if architecture.has_experts() => Some("it has experts"),
            _ => architecture.obstacle_to_rotation(&form),
        };
        Applies { awq, obstacle }
    }
}

pub fn run(args: &Args) -> Result<()> {
    if !args.json {
        output::line(format!("{:12} {:28} {:6} {:64} --rotate", "GGUF name", "model_type", "GPTQ", "AWQ scales of"));
    }
    for architecture in ARCHITECTURES {
        let Applies { awq, obstacle } = Applies::to(*architecture);
        let (name, types) = (architecture.gguf(), architecture.model_types());
        if args.json {
            let fields = json!({
                "gguf": name, "model_types": types, "gptq": true, "awq": awq, "rotate": obstacle.is_none(),
                "experts": architecture.has_experts(), "why_not_rotate": obstacle,
            });
            output::json("architecture", fields);
        } else {
            let (types, awq) = (types.join(", "), awq.join(", "));
            let rotate = obstacle.map_or("yes".to_owned(), |why| format!("no: {why}"));
            output::line(format!("{name:12} {types:28} {:6} {awq:64} {rotate}", "yes"));
        }
    }
    if !args.json {
        output::note(
            "Experts are rounded with GPTQ on the tokens that the router sends to them; Mixtral is of type mixtral under llama.",
        );
    }
    Ok(())
}
