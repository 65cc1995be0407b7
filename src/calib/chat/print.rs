//! Values as Python prints them: `str`, `repr` and `json.dumps`.

use super::arguments::bind;
use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Error, ErrorKind, Output, State, Value};

/// How deep values may be nested; JSON that is read here may be 128 deep.
const DEEPEST: usize = 200;

/// What `{{ value }}` prints, for the environment's formatter.
pub(super) fn format(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let written = match value.as_str() {
        Some(text) => out.write_str(text),
        None => out.write_str(&str(state, value)?),
    };
    written.map_err(|cause| Error::new(ErrorKind::WriteFailure, "cannot print a value").with_source(cause))
}

/// Python's `str(value)`.
pub(super) fn str(state: &State, value: &Value) -> Result<String, Error> {
    let mut printer = Printer { state, text: String::new() };
    match value.as_str() {
        Some(text) => printer.push(text)?,
        None if value.is_undefined() => {}
        None => printer.repr(value, 0)?,
    }
    Ok(printer.text)
}

/// The filter `tojson` as transformers defines it: `json.dumps` with some of its arguments.
pub(super) fn to_json(state: &State, value: Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ascii, indent, separators, sorted] = bind(&args.into_values(), names)?;
    let indent = match indent {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
        Some(width) => {
            let width = usize::try_from(i64::try_from(width)?.max(0)).unwrap_or(usize::MAX);
            state.consume_fuel(width as u64)?;
            Some(" ".repeat(width))
        }
    };
    let (comma, colon) = match separators {
        Some(pair) => {
            let text = |i| pair.get_item_by_index(i).map(|text| text.as_str().unwrap_or_default().to_owned());
            (text(0)?, text(1)?)
        }
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let is_set = |flag: Option<Value>| flag.is_some_and(|flag| flag.is_true());
    let style = Json { ascii: is_set(ascii), sorted: is_set(sorted), indent, comma, colon };
    let mut printer = Printer { state, text: String::new() };
    printer.json(&value, &style, 0)?;
    Ok(printer.text)
}

/// How JSON is written.
struct Json {
    ascii: bool,
    sorted: bool,
    /// What one level is indented by; none: all in one line.
    indent: Option<String>,
    comma: String,
    colon: String,
}

/// Text that grows at the expense of the template's steps, since a value may hold another one many times.
struct Printer<'a, 't, 'e> {
    state: &'a State<'t, 'e>,
    text: String,
}

impl Printer<'_, '_, '_> {
    fn push(&mut self, text: &str) -> Result<(), Error> {
        self.state.consume_fuel(1 + text.len() as u64 / 64)?;
        self.text.push_str(text);
        Ok(())
    }

    /// Python's `repr(value)`.
    fn repr(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        shallow(depth)?;
        match value.kind() {
            ValueKind::String => self.push(&quoted(value.as_str().unwrap_or_default())),
            ValueKind::Number if !value.is_integer() => self.push(&float(f64::try_from(value.clone())?)),
            ValueKind::Undefined => self.push("Undefined"),
            ValueKind::Map => {
                self.push("{")?;
                for (i, key) in value.try_iter()?.enumerate() {
                    self.push(if i > 0 { ", " } else { "" })?;
                    self.repr(&key, depth + 1)?;
                    self.push(": ")?;
                    self.repr(&value.get_item(&key)?, depth + 1)?;
                }
                self.push("}")
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let is_tuple = value.is_tuple();
                self.push(if is_tuple { "(" } else { "[" })?;
                for (i, item) in value.try_iter()?.checked().enumerate() {
                    self.push(if i > 0 { ", " } else { "" })?;
                    self.repr(&item?, depth + 1)?;
                }
                self.push(match (is_tuple, value.len()) {
                    (true, Some(1)) => ",)",
                    (true, _) => ")",
                    _ => "]",
                })
            }
            _ => self.push(&value.to_string()),
        }
    }

    fn json(&mut self, value: &Value, style: &Json, depth: usize) -> Result<(), Error> {
        shallow(depth)?;
        match value.kind() {
            ValueKind::None => self.push("null"),
            ValueKind::Bool => self.push(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.push(&value.to_string()),
            ValueKind::Number => self.push(&json_float(f64::try_from(value.clone())?)),
            ValueKind::String => self.push(&json_string(value.as_str().unwrap_or_default(), style.ascii)),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if style.sorted {
                    keys.sort();
                }
                self.json_items(["{", "}"], keys.into_iter().map(Ok), style, depth, |printer, key| {
                    let name = json_key(&key)?;
                    printer.push(&json_string(&name, style.ascii))?;
                    printer.push(&style.colon)?;
                    printer.json(&value.get_item(&key)?, style, depth + 1)
                })
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.checked();
                self.json_items(["[", "]"], items, style, depth, |printer, item| printer.json(&item, style, depth + 1))
            }
            kind => Err(Error::new(ErrorKind::BadSerialization, format!("a value of kind {kind} has no form in JSON"))),
        }
    }

    /// What stands between brackets, with everything that separates it.
    fn json_items(
        &mut self,
        brackets: [&str; 2],
        items: impl Iterator<Item = Result<Value, Error>>,
        style: &Json,
        depth: usize,
        write: impl Fn(&mut Self, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.push(brackets[0])?;
        let mut is_empty = true;
        for item in items {
            if !is_empty {
                self.push(&style.comma)?;
            }
            is_empty = false;
            self.new_line(style, depth + 1)?;
            write(self, item?)?;
        }
        if !is_empty {
            self.new_line(style, depth)?;
        }
        self.push(brackets[1])
    }

    fn new_line(&mut self, style: &Json, depth: usize) -> Result<(), Error> {
        let Some(indent) = &style.indent else { return Ok(()) };
        self.push("\n")?;
        (0..depth).try_for_each(|_| self.push(indent))
    }
}

fn shallow(depth: usize) -> Result<(), Error> {
    if depth < DEEPEST {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidOperation, format!("a value is nested more than {DEEPEST} levels deep")))
}

/// A key of an object: `json.dumps` makes strings of numbers and constants.
fn json_key(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number if key.is_integer() => Ok(key.to_string()),
        ValueKind::Number => Ok(json_float(f64::try_from(key.clone())?)),
        kind => Err(Error::new(ErrorKind::BadSerialization, format!("a value of kind {kind} is no key in JSON"))),
    }
}

fn json_string(text: &str, ascii: bool) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            c if c < ' ' || (ascii && !(' '..='~').contains(&c)) => {
                c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn json_float(value: f64) -> String {
    match value {
        _ if value.is_nan() => "NaN".into(),
        _ if value.is_infinite() => if value > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        _ => float(value),
    }
}

/// The shortest digits that give the number back, with an exponent below 1e-4 and from 1e16 on.
fn float(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() {
            "nan"
        } else if value > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .into();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        exponent @ -4..16 => {
            let plain = format!("{value}");
            if exponent < 15 && plain.contains('.') { plain } else { format!("{plain}.0") }
        }
        exponent => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.unsigned_abs()),
    }
}

/// A string's `repr`.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => out.push_str(&match u32::from(c) {
                code @ ..0x100 => format!("\\x{code:02x}"),
                code @ ..0x10000 => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            }),
        }
    }
    out.push(quote);
    out
}

/// Rust escapes what Python does, and a mark that would combine with the quote before it, which a letter keeps away.
fn is_printable(c: char) -> bool {
    matches!(c, '\'' | '"') || format!("a{c}").escape_debug().count() == 2
}
