//! `llmq archs`: which models can be quantized, and what applies to them.

use super::output;
use crate::error::Result;
use crate::model::{ARCHITECTURES, Architecture, MlpLayers, Site};
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
    /// Whether its blocks have experts.
    experts: bool,
}

impl Applies {
    fn to(architecture: &dyn Architecture) -> Applies {
        let form = architecture.form();
        let experts = form.experts.is_some();
        let absorbed = |site: &Site| form.absorber(*site, experts).is_some();
        let layers = |site: Site| match site {
            Site::AttnIn if form.latent.is_some() => Some("attn_q_a, attn_kv_a_mqa"),
            Site::AttnIn if form.fused_qkv => Some("attn_qkv"),
            Site::AttnIn => Some("attn_q, attn_k, attn_v"),
            Site::AttnOut => Some("attn_output"),
            // Those of experts get none.
            Site::FfnIn | Site::FfnMid if experts => None,
            Site::FfnIn if form.mlp.layers == MlpLayers::Gated => Some("ffn_gate, ffn_up"),
            Site::FfnIn => Some("ffn_up"),
            Site::FfnMid => Some("ffn_down"),
        };
        let awq = Site::ALL.into_iter().filter(absorbed).filter_map(layers).collect();
        Applies { awq, obstacle: architecture.obstacle_to_rotation(&form), experts }
    }
}

pub fn run(args: &Args) -> Result<()> {
    if !args.json {
        output::line(format!("{:12} {:28} {:6} {:64} --rotate", "GGUF name", "model_type", "GPTQ", "AWQ scales of"));
    }
    for architecture in ARCHITECTURES {
        let Applies { awq, obstacle, experts } = Applies::to(*architecture);
        let (name, types) = (architecture.gguf(), architecture.model_types());
        if args.json {
            let fields = json!({
                "gguf": name, "model_types": types, "gptq": true, "awq": awq, "rotate": obstacle.is_none(),
                "experts": experts, "why_not_rotate": obstacle,
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
