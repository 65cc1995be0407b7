//! Constants in a file without a name: what a stage reads is in memory while it runs, and on the disk otherwise.

use crate::error::{Error, Result};
use crate::int8::onnx::file::{external, mapped};
use prost::bytes::Bytes;
use std::fs::File;
use std::io::{BufWriter, IntoInnerError, Write};

/// Such a file while it is written. The system removes it as soon as nothing has it open or mapped.
pub struct Constants {
    file: BufWriter<File>,
    written: u64,
}

impl Constants {
    /// Makes one in the folder for temporary files.
    ///
    /// # Errors
    /// The system refused.
    pub fn create() -> Result<Self> {
        Ok(Self { file: BufWriter::new(kept(tempfile::tempfile())?), written: 0 })
    }

    /// Maps it.
    ///
    /// # Errors
    /// The system refused.
    pub fn map(self) -> Result<Bytes> {
        let file = self.file.into_inner().map_err(IntoInnerError::into_error);
        kept(file.and_then(|file| mapped::map_file(&file)))
    }
}

impl external::Values for Constants {
    fn written(&self) -> u64 {
        self.written
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        kept(self.file.write_all(bytes))
    }
}

fn kept<T>(done: std::io::Result<T>) -> Result<T> {
    let folder = std::env::temp_dir();
    done.map_err(|cause| {
        Error::new(format!("cannot keep the model's constants in a temporary file in {}", folder.display()))
            .because(cause)
            .hint("make room there, or name another folder in the environment variable TMPDIR")
    })
}
