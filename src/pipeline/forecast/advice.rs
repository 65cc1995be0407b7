//! Whether quantizing is worth it, said honestly.

/// A piece of advice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// What it is about, in one word or two, for programs.
    pub kind: &'static str,
    /// The advice.
    pub text: String,
}

/// What advice depends on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Situation<'a> {
    /// Bytes of a file of 16 bits per weight.
    pub half: u64,
    /// Whether that fits the GPU; none where it is not known how much the GPU has.
    pub half_fits: Option<bool>,
    /// How the source is quantized, if it is.
    pub quantized: Option<&'a str>,
    /// llmq has a forward pass for the model.
    pub can_run: bool,
    /// The type that was asked for, and its bits per weight.
    pub asked: (&'a str, f64),
    /// Whether it fits.
    pub asked_fits: Option<bool>,
    /// The best type that fits, where that is known, and its bits per weight.
    pub largest: Option<(&'a str, f64)>,
    /// The best of Q8_0 and Q6_K that fits, or Q8_0 where nothing is known.
    pub careful: Option<&'a str>,
}

/// A model of fewer bytes than this in 16 bits is small.
const SMALL: u64 = 1_000_000_000;

/// Bits per weight from which on almost nothing is lost.
const CAREFUL: f64 = 6.0;

/// What someone who is about to quantize should hear, the weightiest first.
pub fn advice(s: &Situation) -> Vec<Advice> {
    let mut all = Vec::new();
    let mut say = |kind, text: String| all.push(Advice { kind, text });
    let (asked, bits) = s.asked;
    if let Some(how) = s.quantized {
        say(
            "quantized already",
            format!(
                "the model is quantized already ({how}): quantizing it again adds a second error to the first, and no type brings \
                 back what is lost. Start from the original checkpoint; llmq refuses this one without --allow-requantize"
            ),
        );
    }
    if !s.can_run {
        say(
            "only rtn",
            "llmq cannot run this model, so nothing can be calibrated: only --method rtn works, best with --imatrix FILE"
                .into(),
        );
    }
    let small = s.half < SMALL && s.half_fits != Some(false);
    if small && s.quantized.is_none() {
        say(
            "small",
            format!(
                "the model is small: in 16 bits it has {:.0} MB. Small models lose most by quantizing and there is least to gain: \
                 keep 16 bits, or take Q8_0",
                s.half as f64 / 1e6
            ),
        );
    }
    if s.half_fits == Some(true) && s.quantized.is_none() && !small {
        say(
            "plenty of memory",
            "16 bits fit your GPU with this context: you need not quantize for memory. A smaller file still makes tokens \
             faster, because each of them reads all weights; Q8_0 does that at next to no loss"
                .into(),
        );
    }
    if s.half_fits != Some(true) && s.asked_fits == Some(true) {
        match s.largest {
            Some((name, most)) if most > bits + 0.05 => {
                say("room for more", format!("{name} fits, too, and loses less than {asked}: --type {name}"));
            }
            _ => {}
        }
    }
    if s.asked_fits == Some(false) {
        let instead = match s.largest {
            Some((name, _)) => format!("the best that does is {name}: --type {name}, or a shorter --context"),
            None => {
                "no type does: some layers will have to stay in main memory (llama.cpp's --n-gpu-layers), or take a \
                     smaller model or a shorter --context"
                    .into()
            }
        };
        say("does not fit", format!("{asked} does not fit your GPU with this context; {instead}"));
    }
    if bits < CAREFUL && s.quantized.is_none() {
        let instead = match s.careful {
            Some(name) => format!("take {name} (--type {name}) or keep 16 bits"),
            None => "neither Q8_0 nor Q6_K fits your GPU: run one of them from main memory".into(),
        };
        say(
            "accuracy",
            format!(
                "where every answer counts (code, mathematics, rare languages, long context), {instead}, and measure: `llmq \
                 eval FILE --reference MODEL`"
            ),
        );
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: Situation = Situation {
        half: 16_000_000_000,
        half_fits: None,
        quantized: None,
        can_run: true,
        asked: ("Q4_K_M", 4.85),
        asked_fits: None,
        largest: None,
        careful: Some("Q8_0"),
    };

    fn kinds(situation: &Situation) -> Vec<&'static str> {
        advice(situation).iter().map(|advice| advice.kind).collect()
    }

    #[test]
    fn a_large_model_is_worth_it_unless_accuracy_is_everything() {
        assert_eq!(kinds(&LARGE), ["accuracy"]);
        assert_eq!(kinds(&Situation { asked: ("Q8_0", 8.5), ..LARGE }), [""; 0]);
        let fits =
            Situation { half_fits: Some(false), asked_fits: Some(true), largest: Some(("Q4_K_M", 4.85)), ..LARGE };
        assert_eq!(kinds(&fits), ["accuracy"]);
        assert_eq!(kinds(&Situation { largest: Some(("Q6_K", 6.6)), ..fits }), ["room for more", "accuracy"]);
    }

    #[test]
    fn small_models_and_plenty_of_memory_need_no_quantizing() {
        let small = Situation { half: 999_999_999, ..LARGE };
        assert_eq!(kinds(&small), ["small", "accuracy"]);
        assert_eq!(kinds(&Situation { half_fits: Some(true), asked_fits: Some(true), ..small }), ["small", "accuracy"]);
        let tight = Situation { half_fits: Some(false), asked_fits: Some(true), ..small };
        assert_eq!(kinds(&tight), ["accuracy"]);
        let plenty = Situation { half_fits: Some(true), asked_fits: Some(true), ..LARGE };
        assert_eq!(kinds(&plenty), ["plenty of memory", "accuracy"]);
    }

    #[test]
    fn what_is_quantized_or_cannot_be_run_says_so_first() {
        let twice = Situation { quantized: Some("Q4_K"), half: 1, ..LARGE };
        assert_eq!(kinds(&twice), ["quantized already"]);
        assert!(advice(&twice)[0].text.contains("(Q4_K)"));
        assert_eq!(kinds(&Situation { can_run: false, ..LARGE }), ["only rtn", "accuracy"]);
    }

    #[test]
    fn what_does_not_fit_names_what_does() {
        let over = Situation { half_fits: Some(false), asked_fits: Some(false), careful: None, ..LARGE };
        assert_eq!(kinds(&over), ["does not fit", "accuracy"]);
        assert!(advice(&over)[0].text.contains("no type does"));
        let over = Situation { largest: Some(("Q2_K", 2.9)), ..over };
        assert!(advice(&over)[0].text.contains("--type Q2_K"));
    }
}
