//! The logits that llama-perplexity saves, and every row of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmq::eval::saved::SavedLogits;
use llmq_fuzz::{InputFile, alone};
use std::sync::LazyLock;

static FILE: LazyLock<InputFile> = LazyLock::new(|| {
    alone();
    InputFile::new("base.kld", &[])
});

fuzz_target!(|bytes: &[u8]| {
    let path = FILE.holds(bytes);
    let Ok(saved) = SavedLogits::open(path) else { return };
    assert!(SavedLogits::is_one(path));
    let scored = saved.windows().len() * (saved.context() - 1 - saved.context() / 2);
    for token in 0..scored {
        let Ok(row) = saved.rows(token, 1, 0..saved.vocab()) else { continue };
        assert!(row.iter().all(|x| x.is_finite()), "{row:?}");
        let _ = saved.check_total(token, row.iter().map(|&x| f64::from(x).exp()).sum());
    }
});
