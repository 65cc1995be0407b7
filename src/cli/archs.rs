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
                let names: Vec<&str> = readers.filter_map(|spec| of_block(&spec.gguf)).collect();
                awq.extend((!names.is_empty()).then(|| names.join(", ")).filter(|names| !awq.contains(names)));
            }
        }
        let experts = model.blocks.iter().flat_map(|block| block.mixers()).any(|mixer| mixer.experts().is_some());
        Applies { awq, obstacle: obstacle(&model), experts }
    }
}

/// What a tensor of a block is called, without its block and ending.
fn of_block(name: &str) -> Option<&str> {
    let part = name.splitn(3, '.').nth(2)?;
    Some(part.strip_suffix(".weight").unwrap_or(part))
}

/// The llama.cpp that the tests load a file of every family into.
const LLAMA_CPP: &str = "llama.cpp v0.5.0 of September 2026";

pub fn run(args: &Args) -> Result<()> {
    let wide = |of: &dyn Fn(&dyn Architecture) -> usize| ARCHITECTURES.iter().map(|&own| of(own)).max().unwrap_or(0);
    let (gguf, kind) = (
        wide(&|own| own.gguf().len()),
        wide(&|own| own.model_types().iter().map(|kind| kind.len()).max().unwrap_or(0)),
    );
    let row = |name: &str, rotate: &str, kind_of: &str, models: &str| {
        output::line(format!("{name:gguf$}  {rotate:8}  {kind_of:kind$}  {models}").trim_end());
    };
    if !args.json {
        row("GGUF name", "--rotate", "model_type", "models");
    }
    for &architecture in ARCHITECTURES {
        let Applies { awq, obstacle, experts } = Applies::to(architecture);
        let (name, types, examples) = (architecture.gguf(), architecture.model_types(), architecture.examples());
        if args.json {
            let fields = json!({
                "gguf": name, "model_types": types, "models": examples, "gptq": true, "awq": awq, "rotate": obstacle.is_none(),
                "experts": experts, "why_not_rotate": obstacle, "tested_with": LLAMA_CPP,
            });
            output::json("architecture", fields);
        } else {
            let rotate = if obstacle.is_none() { "yes" } else { "no" };
            let (first, others) = types.split_first().unwrap_or((&"(by other keys)", &[]));
            row(name, rotate, first, examples);
            others.iter().for_each(|kind| row("", "", kind, ""));
        }
    }
    if !args.json {
        output::note(&format!(
            "GPTQ, AWQ and auto apply to all of them; experts are rounded on the tokens that the router sends to them. Tested with \
             {LLAMA_CPP}: an older one may not know the newer families. --json says more."
        ));
    }
    Ok(())
}
