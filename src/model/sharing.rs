//! Blocks that use keys and values of earlier ones (Gemma 3n, Gemma 4).

use super::Model;
use super::mixer::Mix;
use super::mixer::attention::KeysValues;

impl Model {
    /// Lets so many blocks, the last ones, use keys and values of the last block of their kind in front of them: blocks with a window are
    /// of one kind, the others of another.
    pub(super) fn share_keys_values(&mut self, shared: usize) {
        let first_shared = self.blocks.len() - shared;
        let local: Vec<bool> = self.attentions().map(|(_, own)| own.window.is_some()).collect();
        let keeper = |kind: bool| (0..first_shared).rev().find(|&i| local[i] == kind);
        // The first column of what a block of each kind has kept, and how many there are.
        let (mut first, mut columns) = ([None; 2], 0);
        for (i, own) in self.attentions().filter(|_| shared > 0) {
            let kind = &mut first[usize::from(local[i])];
            if Some(i) == keeper(local[i]) {
                own.keeps = true;
                *kind = Some(columns);
                columns += own.kept_columns();
            } else if let Some(first) = kind.filter(|_| i >= first_shared) {
                own.keys_values = KeysValues::Shared { first };
            }
        }
    }
}
