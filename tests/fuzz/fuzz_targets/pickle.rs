//! What `torch.save` wrote: a whole zip, or the pickle alone, around which the zip is made, with a storage of 64 bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmq::source::checkpoint::Checkpoint;
use llmq_fuzz::{InputFile, alone, zip};
use std::sync::LazyLock;

static FILE: LazyLock<InputFile> = LazyLock::new(|| {
    alone();
    InputFile::new("pytorch_model.bin", &[])
});

fuzz_target!(|bytes: &[u8]| {
    let folder = match bytes.starts_with(b"PK") {
        true => FILE.folder_holds(bytes),
        false => FILE.folder_holds(&zip(&[("p/data.pkl", bytes), ("p/data/0", &[1; 64])])),
    };
    if let Ok(checkpoint) = Checkpoint::open(folder) {
        llmq_fuzz::read_all(&checkpoint);
    }
});
