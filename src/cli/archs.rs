//! `llmq archs`: which models can be quantized, and what applies to them.

use super::output;
use crate::error::Result;
use crate::model::rotation::obstacle;
use crate::model::{ARCHITECTURES, Architecture};
use serde_json::json;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// One JSON object a line on standard output
    #[arg(long)]
    json: bool,
}

/// What applies to a family.
struct Applies {
    /// The layers into whose inputs AWQ can put scales: for each site, those that read it.
    awq: Vec<String>,
    /// Why a rotation does not apply, if it does not.
    obstacle: Option<&'static str>,
    /// Whether its blocks have experts.
    experts: bool,
}

impl Applies {
    fn to(architecture: &'static dyn Architecture) -> Applies {
        let model = architecture.sample();
        let mut awq: Vec<String> = Vec::new();
        for (i, block) in model.blocks.iter().enumerate() {
            let specs = model.block(i);
            for site in block.sites().filter(|site| block.absorber(*site, model.hidden).is_some()) {
                let readers = specs.iter().filter(|spec| spec.site() == Some(site));
                let names: Vec<&str> = readers.filter_map(|spec| spec.gguf.split('.').nth(2)).collect();
                awq.extend((!names.is_empty()).then(|| names.join(", ")).filter(|names| !awq.contains(names)));
            }
        }
        let experts = model.blocks.iter().flat_map(|block| block.mixers()).any(|mixer| mixer.experts().is_some());
        Applies { awq, obstacle: obstacle(&model), experts }
    }
}

pub fn run(args: &Args) -> Result<()> {
    if !args.json {
        output::line(format!("{:12} {:38} {:8} {}", "GGUF name", "model_type", "--rotate", "models"));
    }
    for &architecture in ARCHITECTURES {
        let Applies { awq, obstacle, experts } = Applies::to(architecture);
        let (name, types, examples) = (architecture.gguf(), architecture.model_types(), architecture.examples());
        if args.json {
            let fields = json!({
                "gguf": name, "model_types": types, "models": examples, "gptq": true, "awq": awq, "rotate": obstacle.is_none(),
                "experts": experts, "why_not_rotate": obstacle,
            });
            output::json("architecture", fields);
        } else {
            let rotate = if obstacle.is_none() { "yes" } else { "no" };
            output::line(format!("{name:12} {:38} {rotate:8} {examples}", types.join(", ")));
        }
    }
    if !args.json {
        output::note(
            "GPTQ, AWQ and auto apply to all of them; experts are rounded on the tokens that the router sends to them. --json says more.",
        );
    }
    Ok(())
}
