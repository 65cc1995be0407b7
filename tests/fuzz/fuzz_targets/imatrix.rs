//! An importance matrix of either format, its means, and its sum with itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmq::source::imatrix::Imatrix;
use llmq_fuzz::InputFile;
use std::hint::black_box;
use std::sync::LazyLock;

static FILE: LazyLock<InputFile> = LazyLock::new(|| InputFile::new("imatrix.gguf", &[]));

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut imatrix) = Imatrix::read(FILE.holds(bytes)) else { return };
    for entry in imatrix.entries.values() {
        (0..entry.counts.len()).for_each(|matrix| drop(black_box(entry.means(matrix))));
    }
    let same = imatrix.clone();
    // Sums may become too large, which is an error.
    let _ = imatrix.merge(same);
});
