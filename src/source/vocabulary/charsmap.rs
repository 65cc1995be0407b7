//! SentencePiece's table of characters that are replaced before anything else happens (`precompiled_charsmap`).
//!
//! Four bytes of length, a double-array trie of that many bytes (32-bit units), and the replacements, each ended by a zero. A
//! unit has a label in bits 0–7 and 31, whether it ends a key in bit 8, and an offset, in 256ths if bit 9 is set, from bit 10.
//! Both llama.cpp and the tokenizers crate follow the offsets of a table as they stand, and stop the program where one leads
//! out of it; so a table is walked here before it is used or written.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::error::{Context, Error, Result};

/// Decodes a table from base64, as `tokenizer.json` holds it, and checks it.
///
/// # Errors
/// No base64, or as [`check`].
pub(in crate::source) fn check_base64(text: &str) -> Result<Vec<u8>> {
    let table = STANDARD.decode(text).context(|| "precompiled_charsmap is not base64".into())?;
    check(&table)?;
    Ok(table)
}

/// Whether every walk through the trie stays inside, and ends at a replacement.
///
/// # Errors
/// It does not.
pub(super) fn check(table: &[u8]) -> Result<()> {
    let damaged = |what: &str| Error::new(format!("precompiled_charsmap: {what}")).hint("the file is damaged");
    let split = table
        .split_first_chunk::<4>()
        .and_then(|(size, rest)| rest.split_at_checked(u32::from_le_bytes(*size) as usize));
    let (trie, replacements) = split.ok_or_else(|| damaged("it is cut off"))?;
    let replacements = std::str::from_utf8(replacements).map_err(|_| damaged("a replacement is not UTF-8"))?;
    let units: Vec<u32> =
        trie.chunks_exact(4).map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]])).collect();
    let offset = |unit: u32| ((unit >> 10) << ((unit & 1 << 9) >> 6)) as usize;
    let outside = || damaged("its trie leads outside of it");

    let root = offset(*units.first().ok_or_else(|| damaged("its trie is empty"))?);
    let (mut seen, mut waiting) = (vec![false; units.len()], vec![root]);
    while let Some(node) = waiting.pop() {
        // Any byte can follow, and is looked up even where it leads nowhere.
        if node | 0xff >= units.len() {
            return Err(outside());
        }
        if std::mem::replace(&mut seen[node], true) {
            continue;
        }
        for byte in 1..=0xff {
            let unit = units[node ^ byte];
            if unit & (1 << 31 | 0xff) != byte as u32 {
                continue;
            }
            let child = node ^ byte ^ offset(unit);
            if unit >> 8 & 1 == 1 {
                let at = (*units.get(child).ok_or_else(outside)? & !(1 << 31)) as usize;
                let rest = replacements.get(at..).ok_or_else(|| damaged("a key has no replacement"))?;
                if !rest.contains('\0') {
                    return Err(damaged("its last replacement does not end"));
                }
            }
            waiting.push(child);
        }
    }
    Ok(())
}

/// Tables for tests.
#[cfg(test)]
pub(super) mod write {
    /// A table that replaces a byte by a text.
    pub fn table(byte: u8, text: &str) -> Vec<u8> {
        let mut units = vec![0u32; 768];
        units[0] = 256 << 10;
        // At 256 ^ byte stands the key's unit, whose offset leads to 512, where the replacement's place is.
        let at = 256 ^ byte as usize;
        units[at] = u32::from(byte) | 1 << 8 | ((at as u32 ^ 512) << 10);
        units[512] = 1 << 31;
        let trie: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        [&(trie.len() as u32).to_le_bytes()[..], &trie, text.as_bytes(), b"\0"].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokenizers::normalizers::Precompiled;

    #[test]
    fn a_table_replaces_what_it_lists() {
        let table = write::table(b'x', "yz");
        check(&table).unwrap();
        assert_eq!(Precompiled::from(&table).unwrap().normalize_string("axé"), "ayzé");
        assert_eq!(check_base64(&STANDARD.encode(&table)).unwrap(), table);
        assert!(check_base64("?").unwrap_err().to_string().contains("base64"));
    }

    #[test]
    fn damage_is_refused() {
        let whole = write::table(b'x', "yz");
        let error = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut table = whole.clone();
            change(&mut table);
            check(&table).unwrap_err().to_string()
        };
        assert!(error(&|table| table.truncate(3)).contains("cut off"));
        assert!(error(&|table| table.truncate(100)).contains("cut off"));
        assert!(check(&[0; 9]).unwrap_err().to_string().contains("empty"));
        assert!(error(&|table| table[6] = 0xff).contains("outside"));
        assert!(error(&|table| table.truncate(table.len() - 1)).contains("does not end"));
        assert!(error(&|table| *table.last_mut().unwrap() = 0xff).contains("UTF-8"));
        assert!(error(&|table| table[4 + 4 * 512] = 9).contains("no replacement"));
    }

    proptest! {
        /// What passes the check can be used.
        #[test]
        fn no_damage_makes_the_tokenizers_crate_panic(changes in proptest::collection::vec((0usize..3080, any::<u8>()), 1..4)) {
            let mut table = write::table(b'x', "yz");
            for (at, byte) in changes {
                let at = at % table.len();
                table[at] = byte;
            }
            if check(&table).is_ok() {
                let table = Precompiled::from(&table).unwrap();
                for text in ["x", "axb", "é\u{301}x\u{1F680}"] {
                    table.normalize_string(text);
                }
            }
        }
    }
}
