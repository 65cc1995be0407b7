//! `--override-kv KEY=TYPE:VALUE`, as llama.cpp's tools take it.

use crate::error::{Error, Result};
use crate::source::value::Value;

/// A key and its value.
///
/// # Errors
/// Another form, or a value that is none of its type.
pub fn parse(text: &str) -> Result<(String, Value)> {
    let wrong = |what: &str| {
        Error::usage(format!("--override-kv '{text}': {what}"))
            .hint("write it as KEY=TYPE:VALUE, for example tokenizer.ggml.add_bos_token=bool:false")
    };
    let (key, rest) = text.split_once('=').ok_or_else(|| wrong("there is no '='"))?;
    let (kind, value) = rest.split_once(':').ok_or_else(|| wrong("there is no ':' behind the type"))?;
    if key.is_empty() {
        return Err(wrong("the key is empty"));
    }
    let value = match kind {
        // The smallest type that holds it, as GGUF's keys usually have it.
        "int" => match value.parse::<i64>() {
            Ok(n) if u32::try_from(n).is_ok() => Value::U32(n as u32),
            Ok(n) if i32::try_from(n).is_ok() => Value::I32(n as i32),
            Ok(n) => Value::I64(n),
            Err(_) => return Err(wrong("the value is not a whole number")),
        },
        "float" => match value.parse::<f32>() {
            Ok(x) if x.is_finite() => Value::F32(x),
            _ => return Err(wrong("the value is not a finite number")),
        },
        "bool" => match value {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            _ => return Err(wrong("the value is neither true nor false")),
        },
        "str" => Value::Str(value.into()),
        _ => return Err(wrong("the types are int, float, bool and str")),
    };
    Ok((key.into(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_read() {
        for (text, key, value) in [
            ("a.b=int:7", "a.b", Value::U32(7)),
            ("a=int:-7", "a", Value::I32(-7)),
            ("a=int:5000000000", "a", Value::I64(5_000_000_000)),
            ("a=float:1e-5", "a", Value::F32(1e-5)),
            ("a=bool:false", "a", Value::Bool(false)),
            ("a=str:x=y:z", "a", Value::Str("x=y:z".into())),
        ] {
            assert_eq!(parse(text).unwrap(), (key.to_owned(), value), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, wanted) in [
            ("a", "no '='"),
            ("a=7", "no ':'"),
            ("=int:7", "key is empty"),
            ("a=int:x", "not a whole number"),
            ("a=float:nan", "not a finite number"),
            ("a=bool:1", "neither true nor false"),
            ("a=u32:1", "the types are"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(wanted) && error.contains(text), "{error}");
        }
    }
}
