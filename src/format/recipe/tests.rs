use super::*;
use crate::format::mix::{all, named};
use crate::model::ARCHITECTURES;

/// What llama.cpp itself chooses.
const TABLE: &str = include_str!("llama_cpp.txt");

fn facts() -> Facts {
    Facts { architecture: "llama".into(), blocks: 6, group: 2, experts: 0, tied: true, importance: true }
}

/// The type of the tensor of that name.
fn kind(recipe: &mut Recipe, tied: bool, name: &str) -> &'static str {
    let facts = Facts { tied, ..facts() };
    recipe.choose(&format!("{name}.weight"), &[512, 512], &facts).map_or("as it is", |c| c.kind.name())
}

fn plain(name: &str) -> Recipe {
    Recipe::new(named(name).unwrap(), TypeRequest::default()).unwrap()
}

/// A model of the table: what mixes know of it, and the names and shapes of its matrices.
struct Shape {
    facts: Facts,
    tensors: Vec<(String, Vec<usize>)>,
}

impl Shape {
    fn parse(words: &[&str]) -> Shape {
        let number = |key: &str| -> usize {
            let word = words.iter().find_map(|w| w.strip_prefix(key)?.strip_prefix('='));
            word.unwrap_or_else(|| panic!("no {key}")).parse().unwrap()
        };
        let (hidden, ffn, experts) = (number("hidden"), number("ffn"), number("experts"));
        let kv = hidden / number("heads") * number("kv");
        let facts = Facts {
            architecture: "llama".into(),
            blocks: number("blocks"),
            group: number("heads") / number("kv"),
            experts,
            tied: number("tied") == 1,
            importance: false,
        };
        let mut tensors = vec![("token_embd".to_owned(), vec![512, hidden])];
        if !facts.tied {
            tensors.push(("output".into(), vec![512, hidden]));
        }
        for i in 0..facts.blocks {
            let mut add = |part: &str, rows: usize, columns: usize, stacked: bool| {
                let shape = if stacked { vec![experts, rows, columns] } else { vec![rows, columns] };
                tensors.push((format!("blk.{i}.{part}"), shape));
            };
            add("attn_q", hidden, hidden, false);
            add("attn_k", kv, hidden, false);
            add("attn_v", kv, hidden, false);
            add("attn_output", hidden, hidden, false);
            let (suffix, stacked) = if experts > 0 { ("_exps", true) } else { ("", false) };
            add(&format!("ffn_gate{suffix}"), ffn, hidden, stacked);
            add(&format!("ffn_up{suffix}"), ffn, hidden, stacked);
            add(&format!("ffn_down{suffix}"), hidden, ffn, stacked);
        }
        Shape { facts, tensors }
    }
}

/// The types that a line of the table names, one per block: `part=4*Q6_K,Q4_K`.
fn expected<'a>(words: &[&'a str], part: &str) -> Option<Vec<&'a str>> {
    let runs = words.iter().find_map(|w| w.strip_prefix(part)?.strip_prefix('='))?;
    let run = |run: &'a str| match run.split_once('*') {
        Some((n, kind)) => vec![kind; n.parse().unwrap()],
        None => vec![run],
    };
    Some(runs.split(',').flat_map(run).collect())
}

#[test]
fn every_mix_gives_the_types_that_llama_cpp_gives() {
    let mut model = None;
    let mut checked = 0;
    for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        if words[0] == "model" {
            model = Some(Shape::parse(&words));
            continue;
        }
        let Shape { facts, tensors } = model.as_ref().unwrap();
        let importances: &[bool] = match words.get(1) {
            Some(&"with") => &[true],
            Some(&"without") => &[false],
            _ => &[false, true],
        };
        for &importance in importances {
            let facts = Facts { importance, ..facts.clone() };
            let mut recipe = plain(words[0]);
            let base = recipe.mix().base.name();
            for (name, shape) in tensors {
                let part = name.rsplit('.').next().unwrap();
                let block = crate::format::mix::block(name).unwrap_or_default();
                let wanted = expected(&words, part).map_or(base, |kinds| kinds[block]);
                let choice = recipe.choose(&format!("{name}.weight"), shape, &facts).unwrap();
                assert_eq!(choice.kind.name(), wanted, "{name} of {line}");
                checked += 1;
            }
        }
    }
    assert!(checked > 10_000, "{checked}");
    // Every mix of few bits is in the table, but for the one that llama.cpp has no name for.
    for mix in all().filter(|m| m.base.is_quantized() && m.name != "MXFP4") {
        assert!(TABLE.lines().any(|line| line.split(' ').next() == Some(mix.name)), "{}", mix.name);
    }
}

#[test]
fn output_and_tied_embedding_get_six_bits_or_more_and_norms_stay_as_they_are() {
    let mut recipe = plain("q4_0");
    assert_eq!(kind(&mut recipe, false, "output"), "Q6_K");
    assert_eq!(kind(&mut recipe, true, "token_embd"), "Q6_K");
    assert_eq!(kind(&mut recipe, false, "token_embd"), "Q4_0");
    assert_eq!(kind(&mut recipe, true, "output_norm"), "as it is");
    assert_eq!(kind(&mut recipe, true, "blk.0.ffn_gate_inp"), "as it is");
    assert!(recipe.choose("blk.0.attn_q.bias", &[512], &facts()).is_none());
    assert_eq!(kind(&mut plain("F16"), false, "output"), "F16");
    assert_eq!(kind(&mut plain("Q8_0"), false, "output"), "Q8_0");
    assert_eq!(kind(&mut recipe, true, "blk.0.ssm_alpha"), "Q8_0");
    assert_eq!(kind(&mut recipe, true, "blk.0.ssm_out"), "Q4_0");
    assert_eq!(kind(&mut recipe, true, "blk.0.ssm_conv1d"), "as it is");
    let wishes = TypeRequest { pure: true, ..TypeRequest::default() };
    let mut pure = Recipe::new(named("Q4_K_M").unwrap(), wishes).unwrap();
    assert_eq!(kind(&mut pure, true, "token_embd"), "Q4_K");
    assert_eq!(kind(&mut pure, true, "blk.5.attn_v"), "Q4_K");
}

#[test]
fn the_first_override_wins_one_equal_to_the_base_is_honoured_and_an_unused_one_is_an_error() {
    let tensors = ["ATTN_V=q4_k", "output=Q4_0", "nothing=F16"].map(String::from).to_vec();
    let mut recipe = Recipe::new(named("Q4_K_M").unwrap(), TypeRequest { tensors, ..TypeRequest::default() }).unwrap();
    assert_eq!(kind(&mut recipe, false, "blk.5.attn_v"), "Q4_K");
    assert_eq!(kind(&mut recipe, false, "output"), "Q4_0");
    let error = recipe.check_all_used().unwrap_err();
    assert!(error.to_string().contains("nothing=F16"), "{error}");
}

#[test]
fn an_override_that_matches_only_what_stays_as_it_is_counts_as_unused() {
    let wishes = TypeRequest { tensors: vec!["attn_norm=Q8_0".into()], ..TypeRequest::default() };
    let mut recipe = Recipe::new(named("Q4_0").unwrap(), wishes).unwrap();
    assert_eq!(kind(&mut recipe, true, "blk.0.attn_norm"), "as it is");
    assert!(recipe.check_all_used().is_err());
}

#[test]
fn rows_that_do_not_divide_fall_back_and_say_so() {
    for (columns, chosen) in [(512, "Q4_K"), (320, "Q5_0"), (40, "F16")] {
        let choice = plain("Q4_K_S").choose("blk.5.attn_q.weight", &[512, columns], &facts()).unwrap();
        assert_eq!((choice.kind.name(), choice.instead_of.is_some()), (chosen, columns != 512));
    }
}

#[test]
fn layers_that_steer_others_keep_eight_bits_in_every_mix() {
    let shape = [48, 512];
    for part in ["ssm_alpha", "ssm_beta", "ssm_ba", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj"] {
        let name = format!("blk.1.{part}.weight");
        let choose = |recipe: &mut Recipe| recipe.choose(&name, &shape, &facts()).unwrap();
        for mix in all().filter(|mix| mix.base.is_quantized()) {
            let choice = choose(&mut plain(mix.name));
            assert_eq!(choice.kind.name(), "Q8_0", "{part} in {}", mix.name);
            let has_eight = ["Q8_0", "MXFP4_MOE"].contains(&mix.name);
            // Parts of the names are those of other layers, by which some mixes of few bits go.
            let wanted = (!has_eight).then(|| mix.choose(&name, 512, false, &facts()).name());
            assert_eq!(choice.raised_from.map(|kind| kind.name()), wanted, "{part} in {}", mix.name);
            // A budget does not take it back.
            assert_eq!(choice.free, has_eight, "{part} in {}", mix.name);
        }
        assert_eq!(choose(&mut plain("BF16")).kind.name(), "BF16");
        let pure = TypeRequest { pure: true, ..TypeRequest::default() };
        let named_one = TypeRequest { tensors: vec![format!("{part}=Q5_K")], ..TypeRequest::default() };
        for (wishes, kind) in [(pure, "Q4_K"), (named_one, "Q5_K")] {
            let choice = choose(&mut Recipe::new(named("Q4_K_M").unwrap(), wishes).unwrap());
            assert_eq!((choice.kind.name(), choice.raised_from.is_none()), (kind, true), "{part}");
        }
        // A folder has one type for all.
        let even = Mix::even("Q4_0", 2, by_name("Q4_0").unwrap());
        assert_eq!(choose(&mut Recipe::new(even, TypeRequest::default()).unwrap()).kind.name(), "Q4_0");
    }
    assert_eq!(kind(&mut plain("Q4_0"), true, "blk.1.ssm_out"), "Q4_0");
}

#[test]
fn a_matrix_of_one_row_is_a_vector() {
    let name = "blk.0.ffn_gate_inp_shexp.weight";
    assert!(plain("Q4_0").choose(name, &[1, 512], &facts()).is_none());
    assert!(plain("Q4_0").choose(name, &[2, 512], &facts()).is_some());
}

#[test]
fn the_experts_of_a_model_count() {
    let model = |name: &str| ARCHITECTURES.iter().find(|a| a.gguf() == name).unwrap().sample();
    assert_eq!(Facts::of(&model("qwen3moe"), false).experts, 2);
    assert_eq!(Facts::of(&model("qwen3"), false).experts, 0);
}

#[test]
fn bad_overrides_are_usage_errors() {
    for text in ["attn_v", "attn_v=Q9_9", "(=Q8_0"] {
        let wishes = TypeRequest { tensors: vec![text.into()], ..TypeRequest::default() };
        assert!(Recipe::new(named("Q4_0").unwrap(), wishes).is_err(), "{text}");
    }
}

#[test]
fn overrides_are_read_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("types");
    std::fs::write(&path, "attn_v=Q8_0 ffn_down=Q6_K\nblk\\.0=F16\n").unwrap();
    assert_eq!(overrides_in(&path).unwrap(), ["attn_v=Q8_0", "ffn_down=Q6_K", "blk\\.0=F16"]);
    std::fs::write(&path, " \n").unwrap();
    assert!(overrides_in(&path).unwrap_err().to_string().contains("no overrides"));
    assert!(overrides_in(&folder.path().join("none")).is_err());
}
