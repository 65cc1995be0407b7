//! A value of GGUF's key-value section.

use std::fmt;

/// One metadata value. The order of the variants is that of GGUF's type numbers 0–12.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A homogeneous array of GGUF. Arrays of arrays exist in the format's grammar, but in no real file.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    Str(Vec<String>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// Keys and values in file order.
pub type Metadata = Vec<(String, Value)>;

/// The value of `key`, or `None` when the file does not have it.
pub fn get<'a>(metadata: &'a Metadata, key: &str) -> Option<&'a Value> {
    metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value)
}

/// GGUF's type number of arrays, the one type that [`for_each_type`] leaves out.
pub(crate) const ARRAY_TYPE: u32 = 9;

/// The one table of GGUF's element types: calls the macro `$with` with the type number, the variant, the Rust type
/// and the name of each.
macro_rules! for_each_type {
    ($with:ident) => {
        $with! {
            0 U8 u8 "u8",
            1 I8 i8 "i8",
            2 U16 u16 "u16",
            3 I16 i16 "i16",
            4 U32 u32 "u32",
            5 I32 i32 "i32",
            6 F32 f32 "f32",
            7 Bool bool "bool",
            8 Str String "str",
            10 U64 u64 "u64",
            11 I64 i64 "i64",
            12 F64 f64 "f64",
        }
    };
}
pub(crate) use for_each_type;

macro_rules! implement {
    ($($id:literal $variant:ident $type:ident $name:literal,)*) => {
        impl Value {
            /// GGUF's number of this value's type.
            pub fn type_id(&self) -> u32 {
                match self {
                    $(Value::$variant(_) => $id,)*
                    Value::Array(_) => ARRAY_TYPE,
                }
            }

            /// The type as a reader expects it to be spelt: `u32`, or `[u32]` for an array.
            pub fn type_name(&self) -> &'static str {
                match self {
                    $(Value::$variant(_) => $name,
                      Value::Array(Array::$variant(_)) => concat!("[", $name, "]"),)*
                }
            }
        }

        impl Array {
            /// GGUF's number of the elements' type.
            pub fn type_id(&self) -> u32 {
                match self {
                    $(Array::$variant(_) => $id,)*
                }
            }

            /// The number of elements.
            pub fn len(&self) -> usize {
                match self {
                    $(Array::$variant(items) => items.len(),)*
                }
            }

            /// Drops all but the first `n` elements.
            pub fn truncate(&mut self, n: usize) {
                match self {
                    $(Array::$variant(items) => items.truncate(n),)*
                }
            }

            /// Element `index` as a value of its own, or `None` past the end.
            pub fn get(&self, index: usize) -> Option<Value> {
                match self {
                    $(Array::$variant(items) => items.get(index).cloned().map(Value::$variant),)*
                }
            }
        }

        $(
            impl From<$type> for Value {
                fn from(value: $type) -> Self {
                    Value::$variant(value)
                }
            }

            impl From<Vec<$type>> for Value {
                fn from(items: Vec<$type>) -> Self {
                    Value::Array(Array::$variant(items))
                }
            }
        )*
    };
}
for_each_type!(implement);

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Str(text.to_owned())
    }
}

impl From<Array> for Value {
    fn from(array: Array) -> Self {
        Value::Array(array)
    }
}

impl Value {
    /// The number in any of the integer types, because writers disagree on them; `None` for a negative number.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            Value::U64(n) => Some(n),
            Value::I8(n) => n.try_into().ok(),
            Value::I16(n) => n.try_into().ok(),
            Value::I32(n) => n.try_into().ok(),
            Value::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// The number in any of the numeric types; integers beyond 2^53 are rounded.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(x) => Some(x.into()),
            Value::F64(x) => Some(x),
            Value::I64(n) => Some(n as f64),
            Value::I32(n) => Some(n.into()),
            Value::I16(n) => Some(n.into()),
            Value::I8(n) => Some(n.into()),
            _ => self.as_u64().map(|n| n as f64),
        }
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The truth value; integers are not taken for one.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(yes) => Some(yes),
            _ => None,
        }
    }

    /// The array, of whatever element type.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }

    /// The strings of an array of strings.
    pub fn as_strs(&self) -> Option<&[String]> {
        match self {
            Value::Array(Array::Str(items)) => Some(items),
            _ => None,
        }
    }
}

impl Array {
    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The start of `text`, quoted and escaped, so that a damaged or hostile file cannot flood or steer the terminal.
pub(crate) fn quoted(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{:?}… ({} bytes)", &text[..end], text.len()),
        None => format!("{text:?}"),
    }
}

/// The start of `text` in one line, for what would be hard to read with quotes in quotes.
pub(crate) fn shortened(text: &str) -> String {
    const LIMIT: usize = 300;
    let start: String = text.chars().take(LIMIT).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if start.len() < text.len() { format!("{start}… ({} bytes)", text.len()) } else { start }
}

/// Short enough for one line of `inspect`: long strings and arrays show their start and their length.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Characters shown of a string that stands alone.
        const LONG: usize = 72;
        /// Characters shown of a string inside an array.
        const SHORT: usize = 24;
        /// Elements shown of an array.
        const ELEMENTS: usize = 8;
        fn scalar(value: &Value, limit: usize) -> String {
            match value {
                Value::U8(n) => n.to_string(),
                Value::I8(n) => n.to_string(),
                Value::U16(n) => n.to_string(),
                Value::I16(n) => n.to_string(),
                Value::U32(n) => n.to_string(),
                Value::I32(n) => n.to_string(),
                Value::F32(x) => format!("{x:?}"),
                Value::Bool(yes) => yes.to_string(),
                Value::Str(text) => quoted(text, limit),
                Value::Array(array) => list(array),
                Value::U64(n) => n.to_string(),
                Value::I64(n) => n.to_string(),
                Value::F64(x) => format!("{x:?}"),
            }
        }
        fn list(array: &Array) -> String {
            let shown = (0..ELEMENTS).map_while(|i| array.get(i)).map(|item| scalar(&item, SHORT));
            let shown = shown.collect::<Vec<_>>().join(", ");
            match array.len() {
                n if n > ELEMENTS => format!("[{shown}, … {} more]", n - ELEMENTS),
                _ => format!("[{shown}]"),
            }
        }
        f.write_str(&scalar(self, LONG))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_integer_type_reads_as_u64() {
        let sevens: [Value; 8] =
            [7u8.into(), 7i8.into(), 7u16.into(), 7i16.into(), 7u32.into(), 7i32.into(), 7u64.into(), 7i64.into()];
        for value in sevens {
            assert_eq!(value.as_u64(), Some(7), "{}", value.type_name());
            assert_eq!(value.as_f64(), Some(7.0), "{}", value.type_name());
        }
        assert_eq!(Value::I32(-1).as_u64(), None);
        assert_eq!(Value::I32(-1).as_f64(), Some(-1.0));
        assert_eq!(Value::F32(7.0).as_u64(), None);
        assert_eq!(Value::U64(u64::MAX).as_u64(), Some(u64::MAX));
    }

    #[test]
    fn accessors_do_not_convert_between_kinds() {
        assert_eq!(Value::from("x").as_str(), Some("x"));
        assert_eq!(Value::from(true).as_bool(), Some(true));
        assert_eq!(Value::U8(1).as_bool(), None);
        assert_eq!(Value::from(vec!["a".to_owned()]).as_strs(), Some(&["a".to_owned()][..]));
        assert_eq!(Value::from(vec![1u8]).as_strs(), None);
        assert!(Value::from(Vec::<f32>::new()).as_array().is_some_and(Array::is_empty));
    }

    #[test]
    fn types_have_numbers_and_names() {
        assert_eq!((Value::from(1.5f32).type_id(), Value::from(1.5f32).type_name()), (6, "f32"));
        assert_eq!((Value::from(vec![1u64]).type_id(), Value::from(vec![1u64]).type_name()), (9, "[u64]"));
        assert_eq!(Array::U64(vec![1]).type_id(), 10);
    }

    #[test]
    fn get_finds_a_key() {
        let metadata = vec![("a".to_owned(), Value::U8(1)), ("b".to_owned(), Value::U8(2))];
        assert_eq!(get(&metadata, "b"), Some(&Value::U8(2)));
        assert_eq!(get(&metadata, "c"), None);
    }

    #[test]
    fn display_is_short_and_escaped() {
        assert_eq!(Value::from("a\n\u{1b}[31m").to_string(), r#""a\n\u{1b}[31m""#);
        assert_eq!(Value::from("é".repeat(100)).to_string(), format!("{:?}… (200 bytes)", "é".repeat(72)));
        assert_eq!(Value::from(1e-5f32).to_string(), "1e-5");
        assert_eq!(Value::from(vec![true, false]).to_string(), "[true, false]");
        assert_eq!(Value::from((0..100i32).collect::<Vec<_>>()).to_string(), "[0, 1, 2, 3, 4, 5, 6, 7, … 92 more]");
        assert_eq!(Value::from(vec!["a".repeat(30)]).to_string(), format!("[{:?}… (30 bytes)]", "a".repeat(24)));
        assert_eq!(Value::from(Vec::<u8>::new()).to_string(), "[]");
    }
}
