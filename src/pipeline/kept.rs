//! What goes into the last layer of a half, from the statistics of its site to the output of the half.

use super::scratch::{Scratch, WIDTH, from_bf16, to_bf16};
use crate::error::Result;
use candle_core::Tensor;
use llmq_kernels::memory::unwritten;

/// Inner activations, batch by batch, as bfloat16: in memory, or in a file where they are too many. Which of the two changes no byte of
/// what is made of them.
pub(super) struct Kept {
    columns: usize,
    batches: Vec<Share>,
    place: Place,
}

/// A batch.
#[derive(Debug, Clone, Copy)]
struct Share {
    /// Where its bytes begin.
    first: usize,
    tokens: usize,
    /// Tokens that the original model has, too.
    compared: usize,
}

enum Place {
    Memory(Vec<Vec<u8>>),
    File(Scratch),
}

impl Kept {
    /// Room for activations of `columns` numbers. `batches`: the tokens of each, and how many of them the original model has, too;
    /// `file`: opens that for more than `most` bytes.
    ///
    /// # Errors
    /// The disk has no room.
    pub fn new(
        columns: usize,
        batches: impl Iterator<Item = (usize, usize)>,
        most: usize,
        file: impl FnOnce() -> Result<Scratch>,
    ) -> Result<Kept> {
        let mut size = 0;
        let share = |(tokens, compared)| {
            let first = size;
            size += (tokens + compared) * columns * WIDTH;
            Share { first, tokens, compared }
        };
        let batches: Vec<Share> = batches.map(share).collect();
        if size <= most {
            return Ok(Kept { columns, batches, place: Place::Memory(Vec::new()) });
        }
        let file = file()?;
        file.reserve(size as u64)?;
        Ok(Kept { columns, batches, place: Place::File(file) })
    }

    /// Keeps batch `i`, the next one: `[tokens, columns]` each.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn push(&mut self, i: usize, x: &Tensor, original: Option<&Tensor>) -> Result<()> {
        let Share { first, tokens, compared } = self.batches[i];
        let mut bytes = unwritten((tokens + compared) * self.columns * WIDTH);
        let (own, other) = bytes.split_at_mut(tokens * self.columns * WIDTH);
        to_bf16(own, x)?;
        original.map_or(Ok(()), |x| to_bf16(other, x))?;
        match &mut self.place {
            Place::Memory(batches) => batches.push(bytes),
            Place::File(file) => file.write(first as u64, &bytes)?,
        }
        Ok(())
    }

    /// Batch `i`, once: what was pushed.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn take(&mut self, i: usize) -> Result<(Tensor, Option<Tensor>)> {
        let (columns, Share { first, tokens, compared }) = (self.columns, self.batches[i]);
        let bytes = match &mut self.place {
            Place::Memory(batches) => std::mem::take(&mut batches[i]),
            Place::File(file) => file.read(first as u64, (tokens + compared) * columns * WIDTH)?,
        };
        let (own, other) = bytes.split_at(tokens * columns * WIDTH);
        let other = (compared > 0).then(|| from_bf16(other, compared, columns)).transpose()?;
        Ok((from_bf16(own, tokens, columns)?, other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn memory_and_file_give_back_the_same_numbers_rounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inner");
        let batch = |tokens: usize, seed: f32| {
            let x: Vec<f32> = (0..tokens * 5).map(|i| (i as f32 * seed).sin()).collect();
            Tensor::from_vec(x, (tokens, 5), &Device::Cpu).unwrap()
        };
        let taken = |most| {
            let file = || Scratch::open(&path, 0);
            let mut kept = Kept::new(5, [(3, 0), (4, 4), (1, 1)].into_iter(), most, file).unwrap();
            for (i, (tokens, compared)) in [(3, false), (4, true), (1, true)].into_iter().enumerate() {
                let other = compared.then(|| batch(tokens, 0.7));
                kept.push(i, &batch(tokens, 0.3), other.as_ref()).unwrap();
            }
            let flat = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            (0..3).map(|i| kept.take(i).unwrap()).map(|(x, other)| (flat(x), other.map(flat))).collect::<Vec<_>>()
        };
        let (memory, file) = (taken(usize::MAX), taken(0));
        assert!(path.exists());
        assert_eq!(memory, file);
        let wanted: Vec<f32> = (0..20).map(|i| half::bf16::from_f32((i as f32 * 0.7).sin()).to_f32()).collect();
        assert_eq!(memory[1].1.as_ref(), Some(&wanted));
        assert_eq!(memory[0].1, None);
    }
}
