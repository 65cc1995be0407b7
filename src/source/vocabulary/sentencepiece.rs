//! `tokenizer.model`, the file of the SentencePiece library: those fields of its protobuf that matter to GGUF.
//!
//! The message is `ModelProto` of sentencepiece_model.proto. Of what protobuf can say only this is needed: a message is a
//! row of fields, each with a number and one of four wire types, and unknown fields are passed over.

use std::path::Path;

use super::files::{MAX_BYTES, too_large};
use super::slots::MAX_ROWS;
use super::token_type;
use crate::error::{Context, Error, Result};
use crate::source::lfs;

/// A SentencePiece model.
#[derive(Debug, Default)]
pub(super) struct SentencePiece {
    /// The pieces; their places are their ids.
    pub pieces: Vec<Piece>,
    /// How text is cut into pieces: 1 unigram, 2 BPE, 3 words, 4 characters.
    pub algorithm: u64,
    /// The ids that the file gives to `unk`, `bos`, `eos` and `pad`; a negative number means none.
    pub special: [i32; 4],
    /// Text gets a space in front.
    pub add_dummy_prefix: bool,
    /// Runs of spaces become one, and spaces at both ends vanish.
    pub remove_extra_whitespaces: bool,
    /// The space of a word stands behind it.
    pub whitespace_as_suffix: bool,
    /// Characters are replaced before anything else happens, by Unicode's NFKC for example.
    pub normalizes: bool,
}

/// One piece of the vocabulary.
#[derive(Debug)]
pub(super) struct Piece {
    /// Its text, with U+2581 for each space.
    pub text: String,
    /// How soon it is made, or how likely it is.
    pub score: f32,
    /// One of [`token_type`], whose numbers are SentencePiece's own.
    pub kind: i32,
}

impl SentencePiece {
    /// Reads `tokenizer.model`; none if there is no such file.
    pub fn open(path: &Path) -> Result<Option<SentencePiece>> {
        let unreadable = || format!("cannot read {}", path.display());
        let size = match std::fs::metadata(path) {
            Ok(about) => about.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context(unreadable),
        };
        if size > MAX_BYTES {
            return Err(too_large(path));
        }
        let bytes = std::fs::read(path).context(unreadable)?;
        lfs::refuse_pointer(path, &bytes)?;
        SentencePiece::parse(&bytes).map(Some).map_err(|cause| {
            Error::new(format!("{} is not a SentencePiece model", path.display()))
                .because(cause)
                .hint("the download may be incomplete; fetch the file again")
        })
    }

    /// Reads a `ModelProto`.
    pub fn parse(bytes: &[u8]) -> Result<SentencePiece> {
        let mut model = SentencePiece {
            algorithm: 1,
            special: [0, 1, 2, -1],
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            ..Default::default()
        };
        for field in Fields(bytes) {
            match field? {
                (1, Wire::Bytes(bytes)) => {
                    let id = model.pieces.len();
                    if id == MAX_ROWS {
                        return Err(Error::new(format!("it has more than {MAX_ROWS} pieces")));
                    }
                    model.pieces.push(Piece::parse(bytes).context(|| format!("piece {id}"))?);
                }
                (2, Wire::Bytes(bytes)) => model.trainer(bytes).context(|| "its trainer_spec".into())?,
                (3, Wire::Bytes(bytes)) => model.normalizer(bytes).context(|| "its normalizer_spec".into())?,
                _ => {}
            }
        }
        if model.pieces.is_empty() {
            return Err(Error::new("it has no pieces"));
        }
        Ok(model)
    }

    fn trainer(&mut self, bytes: &[u8]) -> Result<()> {
        for field in Fields(bytes) {
            match field? {
                (3, Wire::Varint(algorithm)) => self.algorithm = algorithm,
                (24, Wire::Varint(flag)) => self.whitespace_as_suffix = flag != 0,
                // An int32 that is negative is stored as the 64 bits of its long form.
                (number @ 40..=43, Wire::Varint(id)) => self.special[number as usize - 40] = id as i32,
                _ => {}
            }
        }
        Ok(())
    }

    fn normalizer(&mut self, bytes: &[u8]) -> Result<()> {
        for field in Fields(bytes) {
            match field? {
                (2, Wire::Bytes(charsmap)) => self.normalizes = !charsmap.is_empty(),
                (3, Wire::Varint(flag)) => self.add_dummy_prefix = flag != 0,
                (4, Wire::Varint(flag)) => self.remove_extra_whitespaces = flag != 0,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Piece {
    fn parse(bytes: &[u8]) -> Result<Piece> {
        let mut piece = Piece { text: String::new(), score: 0.0, kind: token_type::NORMAL };
        for field in Fields(bytes) {
            match field? {
                (1, Wire::Bytes(text)) => {
                    piece.text = String::from_utf8(text.to_vec()).context(|| "its text is not UTF-8".into())?;
                }
                (2, Wire::Fixed32(score)) => piece.score = f32::from_le_bytes(score),
                (3, Wire::Varint(kind)) => {
                    let known = |kind: &i32| (token_type::NORMAL..=token_type::BYTE).contains(kind);
                    piece.kind = i32::try_from(kind)
                        .ok()
                        .filter(known)
                        .ok_or_else(|| Error::new(format!("type {kind} is none that SentencePiece has")))?;
                }
                _ => {}
            }
        }
        if piece.score.is_nan() {
            return Err(Error::new("its score is not a number"));
        }
        Ok(piece)
    }
}

/// The value of a field as it is stored.
enum Wire<'a> {
    Varint(u64),
    Fixed32([u8; 4]),
    Bytes(&'a [u8]),
    /// Eight bytes, which no field that is read here has.
    Other,
}

/// The fields of a message, with their numbers; after an error there are no more.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| Error::new("a field is cut off or is no protobuf")))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => self.take(8).map(|_| Wire::Other)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed32(self.take(4)?.try_into().ok()?),
            _ => return None,
        };
        Some((tag >> 3, value))
    }

    /// Seven bits a byte, the lowest first; the top bit says that more follow.
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

/// Messages for tests.
#[cfg(test)]
pub(super) mod write {
    use super::Piece;

    fn varint(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    pub fn number(field: u64, value: u64) -> Vec<u8> {
        [varint(field << 3), varint(value)].concat()
    }

    pub fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
        [varint(field << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
    }

    pub fn piece(piece: &Piece) -> Vec<u8> {
        let score = [varint(2 << 3 | 5), piece.score.to_le_bytes().to_vec()].concat();
        bytes(1, &[bytes(1, piece.text.as_bytes()), score, number(3, piece.kind as u64)].concat())
    }

    /// A BPE model whose pieces have the given texts, scores and kinds.
    pub fn model(pieces: &[(&str, f32, i32)], add_dummy_prefix: bool) -> Vec<u8> {
        let pieces = pieces.iter().map(|&(text, score, kind)| piece(&Piece { text: text.into(), score, kind }));
        let spec = [number(3, add_dummy_prefix.into()), number(4, 0)].concat();
        pieces.chain([bytes(2, &number(3, 2)), bytes(3, &spec)]).collect::<Vec<_>>().concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let mut bytes = write::model(&[("<unk>", 0.0, 2), ("\u{2581}a", -1.5, 1), ("<0x0A>", 0.0, 6)], false);
        bytes.extend(write::bytes(2, &[write::number(24, 1), write::number(42, u64::MAX), vec![0x71; 9]].concat()));
        bytes.extend(write::bytes(3, &write::bytes(2, b"charsmap")));
        bytes.extend(write::number(99, 7));
        bytes
    }

    #[test]
    fn every_field_is_read_and_others_are_passed_over() {
        let model = SentencePiece::parse(&sample()).unwrap();
        let pieces: Vec<_> = model.pieces.iter().map(|p| (p.text.as_str(), p.score, p.kind)).collect();
        assert_eq!(pieces, [("<unk>", 0.0, 2), ("\u{2581}a", -1.5, 1), ("<0x0A>", 0.0, 6)]);
        assert_eq!((model.algorithm, model.special), (2, [0, 1, -1, -1]));
        assert!(!model.add_dummy_prefix && !model.remove_extra_whitespaces);
        assert!(model.whitespace_as_suffix && model.normalizes);
    }

    #[test]
    fn what_a_file_does_not_say_is_as_in_sentencepiece() {
        let model = SentencePiece::parse(&write::bytes(1, &write::bytes(1, b"a"))).unwrap();
        assert_eq!((model.pieces[0].kind, model.pieces[0].score), (token_type::NORMAL, 0.0));
        assert_eq!((model.algorithm, model.special), (1, [0, 1, 2, -1]));
        assert!(model.add_dummy_prefix && model.remove_extra_whitespaces);
        assert!(!model.whitespace_as_suffix && !model.normalizes);
    }

    #[test]
    fn broken_files_are_refused() {
        let error = |bytes: &[u8]| SentencePiece::parse(bytes).unwrap_err().chain().join(": ");
        assert!(error(&[]).contains("no pieces"));
        assert!(error(&write::bytes(1, &write::bytes(1, &[0xff]))).contains("piece 0: its text is not UTF-8"));
        assert!(error(&write::bytes(1, &write::number(3, 7))).contains("piece 0: type 7"));
        let nan = Piece { text: "a".into(), score: f32::NAN, kind: 1 };
        assert!(error(&write::piece(&nan)).contains("score is not a number"));
        // A length beyond the end, a group, a number without end.
        for bytes in [&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f][..], &[0x0b, 0], &[0xff; 20]] {
            assert!(error(bytes).contains("cut off"));
        }
        let whole = sample();
        let ends: Vec<_> = (0..whole.len()).filter(|&end| SentencePiece::parse(&whole[..end]).is_ok()).collect();
        assert_eq!(ends.len(), 7, "only a file that ends with a field can be read: {ends:?}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = SentencePiece::parse(&bytes);
        }

        #[test]
        fn no_damage_makes_it_panic(at in 0usize..60, byte in any::<u8>()) {
            let mut bytes = sample();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = SentencePiece::parse(&bytes);
        }
    }
}
