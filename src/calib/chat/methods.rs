//! Methods of Python's strings and lists, as far as minijinja-contrib lacks them or makes less of them.

use super::arguments::{bind, required, text};
use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Calls a method, for the environment's callback.
///
/// # Errors
/// There is no such method, or its arguments are wrong. Methods that change a list or a mapping are none, as in transformers.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let found = match (value.as_str(), value.kind()) {
        (Some(text), _) => of_string(state, text, method, args)?,
        (None, ValueKind::Seq | ValueKind::Iterable) => of_list(value, method, args)?,
        (None, ValueKind::Map) if method == "copy" => Some(value.clone()),
        _ => None,
    };
    found.map_or_else(|| unknown_method_callback(state, value, method, args), Ok)
}

fn of_list(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(match method {
        "copy" => Some(value.clone()),
        "index" => {
            let [item] = bind(args, ["value"])?;
            let item = item.unwrap_or_default();
            let at = value.try_iter()?.position(|other| other == item);
            Some(Value::from(at.ok_or_else(|| refused(format!("{item} is not in the list")))?))
        }
        _ => None,
    })
}

fn of_string(state: &State, s: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = bind(args, ["chars"])?;
            let chars: Option<Vec<char>> = chars.map(|c| text(&c, "chars").map(|c| c.chars().collect())).transpose()?;
            let is_taken = |c: char| chars.as_ref().map_or_else(|| is_space(c), |chars| chars.contains(&c));
            Value::from(match method {
                "strip" => s.trim_matches(is_taken),
                "lstrip" => s.trim_start_matches(is_taken),
                _ => s.trim_end_matches(is_taken),
            })
        }
        "removeprefix" | "removesuffix" => {
            let [part] = bind(args, ["part"])?;
            let part = required(part, "part")?;
            let part = text(&part, "part")?;
            let rest = if method == "removeprefix" { s.strip_prefix(part) } else { s.strip_suffix(part) };
            Value::from(rest.unwrap_or(s))
        }
        "partition" | "rpartition" => {
            let [separator] = bind(args, ["sep"])?;
            let separator = filled(separator, "sep")?;
            let sep = text(&separator, "sep")?;
            let parts = match method {
                "partition" => s.split_once(sep).map_or([s, "", ""], |(before, after)| [before, sep, after]),
                _ => s.rsplit_once(sep).map_or(["", "", s], |(before, after)| [before, sep, after]),
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "split" | "rsplit" => {
            let [separator, most] = bind(args, ["sep", "maxsplit"])?;
            let most = most.map(i64::try_from).transpose()?.and_then(|most| usize::try_from(most).ok());
            let parts = most.map_or(usize::MAX, |most| most.saturating_add(1));
            match separator {
                Some(separator) => {
                    let separator = filled(Some(separator), "sep")?;
                    let sep = text(&separator, "sep")?;
                    if method == "split" {
                        s.splitn(parts, sep).map(Value::from).collect()
                    } else {
                        reversed(s.rsplitn(parts, sep).map(Value::from).collect())
                    }
                }
                None if method == "split" => words(s, parts).into_iter().map(Value::from).collect(),
                None => reversed(words_from_behind(s, parts).into_iter().map(Value::from).collect()),
            }
        }
        "splitlines" => {
            let [kept] = bind(args, ["keepends"])?;
            lines(s, kept.is_some_and(|kept| kept.is_true())).into_iter().map(Value::from).collect()
        }
        "startswith" | "endswith" => {
            let [part, start, end] = bind(args, ["part", "start", "end"])?;
            let part = required(part, "part")?;
            let (_, s) = slice(s, start, end)?;
            let fits = |part: &Value| {
                let part = text(part, "part")?;
                Ok::<bool, Error>(if method == "startswith" { s.starts_with(part) } else { s.ends_with(part) })
            };
            let mut any = false;
            if part.is_tuple() {
                for part in part.try_iter()? {
                    any |= fits(&part)?;
                }
            } else {
                any = fits(&part)?;
            }
            Value::from(any)
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let [part, start, end] = bind(args, ["sub", "start", "end"])?;
            let part = required(part, "sub")?;
            let part = text(&part, "sub")?;
            let (before, s) = slice(s, start, end)?;
            let at = if method.starts_with('r') { s.rfind(part) } else { s.find(part) };
            match (method, at.map(|at| before + s[..at].chars().count())) {
                ("count", _) => Value::from(s.matches(part).count()),
                (_, Some(at)) => Value::from(at),
                ("find" | "rfind", None) => Value::from(-1),
                (_, None) => return Err(refused(format!("'{part}' is not in the string"))),
            }
        }
        "title" => {
            let [] = bind(args, [])?;
            let mut is_inside = false;
            let mut out = String::with_capacity(s.len());
            for c in s.chars() {
                if is_inside {
                    out.extend(c.to_lowercase())
                } else {
                    out.extend(c.to_uppercase())
                }
                is_inside = c.is_alphabetic();
            }
            Value::from(out)
        }
        "swapcase" => {
            let [] = bind(args, [])?;
            let swapped = |c: char| -> String {
                if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
            };
            Value::from(s.chars().map(swapped).collect::<String>())
        }
        "ljust" | "rjust" | "center" | "zfill" => {
            let [width, fill] = bind(args, ["width", "fillchar"])?;
            let width = usize::try_from(required(width, "width")?)?;
            let missing = width.saturating_sub(s.chars().count());
            state.consume_fuel(missing as u64)?;
            let fill = fill.map(|fill| text(&fill, "fillchar").map(str::to_owned)).transpose()?;
            let fill = |n: usize| fill.as_deref().unwrap_or(" ").repeat(n);
            Value::from(match method {
                "ljust" => format!("{s}{}", fill(missing)),
                "rjust" => format!("{}{s}", fill(missing)),
                // Python puts the odd one to the left where the width is odd.
                "center" => {
                    let left = missing / 2 + (missing & width & 1);
                    format!("{}{s}{}", fill(left), fill(missing - left))
                }
                _ => {
                    let (sign, digits) = s.split_at(s.starts_with(['+', '-']).into());
                    format!("{sign}{}{digits}", "0".repeat(missing))
                }
            })
        }
        _ => return Ok(None),
    }))
}

fn refused(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// A separator, which may not be empty.
fn filled(value: Option<Value>, name: &str) -> Result<Value, Error> {
    let value = required(value, name)?;
    if text(&value, name)?.is_empty() {
        return Err(refused(format!("'{name}' is empty")));
    }
    Ok(value)
}

fn reversed(mut values: Vec<Value>) -> Value {
    values.reverse();
    Value::from(values)
}

/// What Python's `str.isspace` holds for: White_Space and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Words between spaces, the last of `parts` with everything behind it.
fn words(s: &str, parts: usize) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = s.trim_start_matches(is_space);
    while !rest.is_empty() {
        let end = if words.len() + 1 == parts { None } else { rest.find(is_space) };
        let (word, behind) = rest.split_at(end.unwrap_or(rest.len()));
        words.push(word);
        rest = behind.trim_start_matches(is_space);
    }
    words
}

/// As [`words`], from the last to the first.
fn words_from_behind(s: &str, parts: usize) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = s.trim_end_matches(is_space);
    while !rest.is_empty() {
        let space = if words.len() + 1 == parts { None } else { rest.rfind(is_space) };
        let start = space.map_or(0, |at| at + rest[at..].chars().next().map_or(0, char::len_utf8));
        words.push(&rest[start..]);
        rest = rest[..start].trim_end_matches(is_space);
    }
    words
}

/// Lines as `str.splitlines` gives them, at every line end that Python knows; `kept`: with their ends.
pub(super) fn lines(s: &str, kept: bool) -> Vec<&str> {
    const ENDS: [char; 10] = ['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}'];
    let mut lines = Vec::new();
    let mut rest = s;
    while let Some(at) = rest.find(ENDS) {
        let end = if rest[at..].starts_with("\r\n") { 2 } else { rest[at..].chars().next().map_or(0, char::len_utf8) };
        lines.push(&rest[..if kept { at + end } else { at }]);
        rest = &rest[at + end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// `s[start:end]`, and how many characters are before it.
fn slice(s: &str, start: Option<Value>, end: Option<Value>) -> Result<(usize, &str), Error> {
    let count = s.chars().count();
    let place = |value: Option<Value>, default: usize| -> Result<usize, Error> {
        let Some(value) = value else { return Ok(default) };
        let at = i64::try_from(value)?;
        let at = if at < 0 { at.saturating_add_unsigned(count as u64).max(0) } else { at };
        Ok(usize::try_from(at).unwrap_or(usize::MAX).min(count))
    };
    let (start, end) = (place(start, 0)?, place(end, count)?);
    let byte = |at: usize| s.char_indices().nth(at).map_or(s.len(), |(byte, _)| byte);
    Ok((start, if start < end { &s[byte(start)..byte(end)] } else { "" }))
}
