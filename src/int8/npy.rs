//! NumPy's `.npy`: a header that is a Python dictionary, and the numbers behind it, read row by row.
//!
//! The format is described in `numpy/lib/_format_impl.py`: the magic bytes, a version, the header's length, and the header
//! as text. Nothing is executed: only the three keys that NumPy writes, with the values that it writes, are understood.
//!
//! The crates npyz and ndarray-npy read that text by py_literal's grammar of Python: 12 further crates, one of which assembles code, and
//! the larger part of this file would stay: the limits, the types that become two, and what is said of each fault.

use super::samples::Values;
use half::f16;
use std::io::{self, Read};

/// Headers longer than this are refused; NumPy's own have 128 bytes.
const LONGEST_HEADER: usize = 1 << 16;

/// More axes than this are refused; NumPy itself stops at 64.
const MOST_AXES: usize = 64;

/// The most numbers that one run of the graph takes for an input: a gigabyte of them in memory. Compressed, so many zeros have
/// a few hundred kilobytes.
const LARGEST_ROW: usize = 1 << 28;

/// Bytes that are read at a time, so that a header which lies about its rows costs no memory.
const PIECE: usize = 1 << 20;

/// The types of numbers that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `f2`.
    F16,
    /// `f4`.
    F32,
    /// `f8`.
    F64,
    /// `i4`.
    I32,
    /// `i8`.
    I64,
    /// `u1`.
    U8,
    /// `b1`.
    Bool,
}

impl Kind {
    /// From NumPy's description, for instance `<f4`. The second part is whether the bytes are in big-endian order.
    fn parse(text: &str) -> Option<(Kind, bool)> {
        let mut chars = text.chars();
        let order = chars.next()?;
        let kind = match chars.as_str() {
            "f2" => Kind::F16,
            "f4" => Kind::F32,
            "f8" => Kind::F64,
            "i4" => Kind::I32,
            "i8" => Kind::I64,
            "u1" => Kind::U8,
            "b1" => Kind::Bool,
            _ => return None,
        };
        matches!(order, '<' | '>' | '=' | '|').then_some((kind, order == '>'))
    }

    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Kind::Bool | Kind::U8 => 1,
            Kind::F16 => 2,
            Kind::F32 | Kind::I32 => 4,
            Kind::F64 | Kind::I64 => 8,
        }
    }

    /// Whether it is for fractions.
    pub fn is_float(self) -> bool {
        matches!(self, Kind::F16 | Kind::F32 | Kind::F64)
    }

    /// NumPy's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::F16 => "float16",
            Kind::F32 => "float32",
            Kind::F64 => "float64",
            Kind::I32 => "int32",
            Kind::I64 => "int64",
            Kind::U8 => "uint8",
            Kind::Bool => "bool",
        }
    }
}

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The type of the numbers.
    pub kind: Kind,
    /// Whether the most significant byte comes first.
    big_endian: bool,
    /// The axes, the slowest first.
    pub shape: Vec<usize>,
}

impl Header {
    /// Reads the header, and leaves the reader at the first number.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence that begins with the name of the file.
    pub fn read(from: &mut dyn Read) -> Result<Header, String> {
        let mut start = [0; 8];
        from.read_exact(&mut start).map_err(|e| short(&e, "the beginning"))?;
        if &start[..6] != b"\x93NUMPY" {
            return Err("is no .npy: its first bytes are not NumPy's".into());
        }
        let version = start[6];
        let length = match version {
            1 => {
                let mut length = [0; 2];
                from.read_exact(&mut length).map_err(|e| short(&e, "the header's length"))?;
                usize::from(u16::from_le_bytes(length))
            }
            2 | 3 => {
                let mut length = [0; 4];
                from.read_exact(&mut length).map_err(|e| short(&e, "the header's length"))?;
                u32::from_le_bytes(length) as usize
            }
            _ => return Err(format!("has version {version} of the .npy format; 1 to 3 are known")),
        };
        if length > LONGEST_HEADER {
            return Err(format!("has a header of {length} bytes, more than {LONGEST_HEADER}"));
        }
        let mut text = vec![0; length];
        from.read_exact(&mut text).map_err(|e| short(&e, "the header"))?;
        Header::parse(&String::from_utf8_lossy(&text))
    }

    /// From the dictionary's text.
    fn parse(text: &str) -> Result<Header, String> {
        let broken = |what: &str| format!("has a header whose {what} cannot be read: {:?}", shortened(text));
        let descr = after(text, "descr").ok_or_else(|| broken("'descr'"))?;
        let quote = descr.chars().next().filter(|c| matches!(c, '\'' | '"'));
        let Some(descr) = quote.and_then(|q| descr[1..].split(q).next()) else {
            return Err("holds records of several fields; plain numbers are needed".into());
        };
        let Some((kind, big_endian)) = Kind::parse(descr) else {
            return Err(format!(
                "holds numbers of type {:?}; float16, float32, float64, int32, int64, uint8 and bool are read",
                shortened(descr)
            ));
        };
        let order = after(text, "fortran_order").ok_or_else(|| broken("'fortran_order'"))?;
        let fortran = order.starts_with("True");
        if !fortran && !order.starts_with("False") {
            return Err(broken("'fortran_order'"));
        }
        let shape = after(text, "shape").and_then(|s| s.strip_prefix('(')).and_then(|s| s.split(')').next());
        let axes = shape.ok_or_else(|| broken("'shape'"))?.split(',').map(str::trim).filter(|a| !a.is_empty());
        let shape: Vec<usize> = axes.map(|a| a.parse().map_err(|_| broken("'shape'"))).collect::<Result<_, _>>()?;
        if shape.len() > MOST_AXES {
            return Err(format!("has {} axes, more than {MOST_AXES}", shape.len()));
        }
        if shape.iter().try_fold(kind.bytes(), |n, &axis| n.checked_mul(axis)).is_none() {
            return Err(format!("claims the shape {shape:?}, more than any machine can hold"));
        }
        if fortran && shape.iter().filter(|&&n| n != 1).count() > 1 {
            return Err("is in Fortran order, where no sample is in one piece: save np.ascontiguousarray(x)".into());
        }
        Ok(Header { kind, big_endian, shape })
    }

    /// Reads the next `count` numbers, as floats if `float` says so and as integers otherwise.
    ///
    /// # Errors
    /// The data ends too early, a number does not fit, or there are more than any sample can have.
    pub fn values(&self, from: &mut dyn Read, count: usize, float: bool) -> Result<Values, String> {
        let size = self.kind.bytes();
        if count > LARGEST_ROW {
            return Err(format!("has samples of {count} numbers, more than {LARGEST_ROW}"));
        }
        let mut left = count * size;
        let mut values = if float { Values::Float(Vec::new()) } else { Values::Integer(Vec::new()) };
        let mut bytes = vec![0; left.min(PIECE)];
        while left > 0 {
            let piece = &mut bytes[..left.min(PIECE)];
            from.read_exact(piece).map_err(|e| short(&e, "its last sample"))?;
            if self.big_endian {
                piece.chunks_exact_mut(size).for_each(<[u8]>::reverse);
            }
            left -= piece.len();
            match &mut values {
                Values::Float(floats) => self.floats(piece, floats),
                Values::Integer(integers) => self.integers(piece, integers)?,
            }
        }
        Ok(values)
    }

    fn floats(&self, bytes: &[u8], to: &mut Vec<f32>) {
        match self.kind {
            Kind::F16 => to.extend(bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32())),
            Kind::F32 => to.extend(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b))),
            Kind::F64 => to.extend(bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32)),
            Kind::I32 => to.extend(bytes.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b) as f32)),
            Kind::I64 => to.extend(bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b) as f32)),
            Kind::U8 | Kind::Bool => to.extend(bytes.iter().map(|&b| f32::from(b))),
        }
    }

    /// The engine's integers have 32 bits; larger ones would be other numbers.
    fn integers(&self, bytes: &[u8], to: &mut Vec<i32>) -> Result<(), String> {
        match self.kind {
            Kind::I32 => to.extend(bytes.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b))),
            Kind::U8 | Kind::Bool => to.extend(bytes.iter().map(|&b| i32::from(b))),
            Kind::I64 => {
                for &b in bytes.as_chunks().0 {
                    let wide = i64::from_le_bytes(b);
                    to.push(i32::try_from(wide).map_err(|_| format!("holds the integer {wide}, beyond 32 bits"))?);
                }
            }
            Kind::F16 | Kind::F32 | Kind::F64 => {
                return Err(format!("holds {} where integers are needed", self.kind.name()));
            }
        }
        Ok(())
    }
}

/// What follows a key and its colon.
fn after<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let at = ['\'', '"'].into_iter().find_map(|q| text.split_once(&format!("{q}{key}{q}")))?.1;
    Some(at.trim_start().strip_prefix(':')?.trim_start())
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

fn short(error: &io::Error, what: &str) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => format!("ends before {what} is complete"),
        _ => format!("cannot be read: {error}"),
    }
}

/// The bytes of an array as NumPy writes them, for tests.
#[cfg(test)]
pub fn npy(shape: &[usize], descr: &str, data: &[u8]) -> Vec<u8> {
    let axes: String = shape.iter().map(|n| format!("{n}, ")).collect();
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({axes}), }}");
    let padded = (10 + header.len() + 1).next_multiple_of(64) - 11;
    header.extend(std::iter::repeat_n(' ', padded - header.len()));
    header.push('\n');
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), data].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8], count: usize, float: bool) -> Result<(Header, Values), String> {
        let mut from = bytes;
        let header = Header::read(&mut from)?;
        let values = header.values(&mut from, count, float)?;
        Ok((header, values))
    }

    #[test]
    fn every_type_is_read_in_both_orders() {
        let cases: [(&str, Vec<u8>); 8] = [
            ("<f2", [1.5f32, -2.0].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect()),
            ("<f4", [1.5f32, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect()),
            (">f4", [1.5f32, -2.0].iter().flat_map(|x| x.to_be_bytes()).collect()),
            ("<f8", [1.5f64, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect()),
            ("<i4", [3i32, -7].iter().flat_map(|x| x.to_le_bytes()).collect()),
            (">i8", [3i64, -7].iter().flat_map(|x| x.to_be_bytes()).collect()),
            ("|u1", vec![3, 200]),
            ("|b1", vec![0, 1]),
        ];
        for (descr, data) in cases {
            let float = descr.contains('f');
            let (header, values) = read(&npy(&[1, 2], descr, &data), 2, float).unwrap();
            assert_eq!(header.shape, [1, 2], "{descr}");
            match (descr, values) {
                (_, Values::Float(x)) => assert_eq!(x, [1.5, -2.0], "{descr}"),
                ("|u1", Values::Integer(x)) => assert_eq!(x, [3, 200]),
                ("|b1", Values::Integer(x)) => assert_eq!(x, [0, 1]),
                (_, Values::Integer(x)) => assert_eq!(x, [3, -7], "{descr}"),
            }
        }
    }

    #[test]
    fn hostile_headers_are_refused_with_what_is_wrong() {
        let header = |dict: &str| {
            let length = (dict.len() as u16).to_le_bytes();
            [b"\x93NUMPY\x01\x00", &length[..], dict.as_bytes()].concat()
        };
        let dict = |descr: &str, order: &str, shape: &str| {
            header(&format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"))
        };
        let huge = [b"\x93NUMPY\x02\x00", &u32::MAX.to_le_bytes()[..]].concat();
        let cases = [
            (b"PK\x03\x04 no npy".to_vec(), "is no .npy"),
            (b"\x93NUM".to_vec(), "ends before the beginning"),
            (b"\x93NUMPY\x09\x00".to_vec(), "version 9"),
            (huge, "header of 4294967295 bytes"),
            (dict("'<f4'", "False", "(3,")[..40].to_vec(), "ends before the header"),
            (dict("'<c8'", "False", "(3,)"), "numbers of type \"<c8\""),
            (dict("'|O'", "False", "(3,)"), "numbers of type \"|O\""),
            (dict("[('a', '<f4')]", "False", "(3,)"), "records of several fields"),
            (dict("'<f4'", "Maybe", "(3,)"), "'fortran_order'"),
            (dict("'<f4'", "True", "(3, 2)"), "np.ascontiguousarray"),
            (dict("'<f4'", "False", "(-3,)"), "'shape'"),
            (dict("'<f4'", "False", "3"), "'shape'"),
            (dict("'<f4'", "False", "(4611686018427387904, 4611686018427387904)"), "more than any machine"),
            (header("{}"), "'descr'"),
        ];
        for (bytes, wanted) in cases {
            let message = Header::read(&mut &bytes[..]).unwrap_err();
            assert!(message.contains(wanted), "{wanted}: {message}");
        }
    }

    #[test]
    fn rows_that_are_not_there_cost_no_memory() {
        let bytes = npy(&[1 << 40], "<f4", &[0; 8]);
        assert!(read(&bytes, 1 << 28, true).unwrap_err().contains("ends before its last sample"));
        assert!(read(&bytes, (1 << 28) + 1, true).unwrap_err().contains("268435457 numbers, more than 268435456"));
        let wide = npy(&[1], "<i8", &(1i64 << 40).to_le_bytes());
        assert!(read(&wide, 1, false).unwrap_err().contains("1099511627776, beyond 32 bits"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0..150usize, by in any::<u8>()) {
            let _ = Header::read(&mut &bytes[..]);
            let mut damaged = npy(&[2, 3], "<f4", &[0; 24]);
            let at = at % damaged.len();
            damaged[at] = by;
            let _ = read(&damaged, 6, true);
        }
    }
}
