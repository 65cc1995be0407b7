//! Filters and tests of Jinja, where minijinja's differ from them or are none.

use super::arguments::{bind, text};
use super::methods::lines;
use super::print;
use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};

/// The filter that stands for the operator `%`, which here is for numbers only; no template can use it by itself.
pub(super) const PERCENT: &str = "python_percent";

/// Puts all of them into an environment.
pub(super) fn add_to(environment: &mut Environment) {
    environment.add_filter("tojson", print::to_json);
    environment.add_filter("string", string);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("dictsort", dict_sort);
    environment.add_filter("indent", indent);
    environment.add_filter("truncate", truncate);
    environment.add_filter("center", center);
    environment.add_filter("e", escape);
    environment.add_filter("escape", escape);
    environment
        .add_filter("forceescape", |state: &State, value: Value| Ok::<_, Error>(escaped(&print::str(state, &value)?)));
    environment.add_filter(PERCENT, percent);
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    // What has a length and items by their place or key.
    environment.add_test("sequence", |value: &Value| value.is_undefined() || value.len().is_some());
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
}

fn string(state: &State, value: Value) -> Result<Value, Error> {
    if value.as_str().is_some() { Ok(value) } else { Ok(Value::from(print::str(state, &value)?)) }
}

fn default(value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let [other, lax] = bind(&args.into_values(), ["default_value", "boolean"])?;
    let is_missing = value.is_undefined() || (lax.is_some_and(|lax| lax.is_true()) && !value.is_true());
    Ok(if is_missing { other.unwrap_or_else(|| Value::from("")) } else { value })
}

fn dict_sort(state: &State, value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let names = ["case_sensitive", "by", "reverse"];
    let bound = bind(&args.into_values(), names)?;
    state.consume_fuel(value.len().unwrap_or_default() as u64)?;
    let given = names.into_iter().zip(bound).filter_map(|(name, value)| Some((name, value?)));
    filters::dictsort(&value, Kwargs::from_iter(given))
}

fn indent(state: &State, value: Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let [width, first, blank] = bind(&args.into_values(), ["width", "first", "blank"])?;
    let is_set = |flag: Option<Value>| flag.is_some_and(|flag| flag.is_true());
    let (first, blank) = (is_set(first), is_set(blank));
    let width = width.unwrap_or_else(|| Value::from(4));
    let space = match width.as_str() {
        Some(text) => text.to_owned(),
        None => {
            let width = usize::try_from(width)?;
            state.consume_fuel(width as u64)?;
            " ".repeat(width)
        }
    };
    // Jinja adds a line end, so that an empty last line counts as one.
    let text = print::str(state, &value)? + "\n";
    let lines = lines(&text, false);
    state.consume_fuel((lines.len() as u64).saturating_mul(1 + space.len() as u64 / 64))?;
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if if i == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&space);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn truncate(state: &State, value: Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let [length, kills_words, end, leeway] = bind(&args.into_values(), ["length", "killwords", "end", "leeway"])?;
    let number = |value: Option<Value>, default| value.map_or(Ok(default), usize::try_from);
    let (length, leeway) = (number(length, 255)?, number(leeway, 5)?);
    let end = end.map_or(Ok("...".to_owned()), |end| text(&end, "end").map(str::to_owned))?;
    let whole = print::str(state, &value)?;
    if whole.chars().count() <= length.saturating_add(leeway) {
        return Ok(whole);
    }
    let Some(kept) = length.checked_sub(end.chars().count()) else {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("cannot truncate to {length} characters, with '{end}'"),
        ));
    };
    let mut cut: String = whole.chars().take(kept).collect();
    if !kills_words.is_some_and(|kills| kills.is_true()) {
        cut.truncate(cut.rfind(' ').unwrap_or(cut.len()));
    }
    Ok(cut + &end)
}

fn center(state: &mut State, value: Value, width: Option<Value>) -> Result<Value, Error> {
    let text = Value::from(print::str(state, &value)?);
    text.call_method(state, "center", &[width.unwrap_or_else(|| Value::from(80))])
}

fn escape(state: &State, value: Value) -> Result<Value, Error> {
    if value.is_safe() { Ok(value) } else { Ok(escaped(&print::str(state, &value)?)) }
}

/// As markupsafe writes it.
fn escaped(text: &str) -> Value {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Value::from_safe_string(text.replace('\'', "&#39;").replace('"', "&#34;"))
}

/// `left % right`: what is left of a division, or a format and its values.
fn percent(state: &mut State, left: Value, right: Value) -> Result<Value, Error> {
    if let Some(pattern) = left.as_str() {
        let mut args = vec![Value::from(pattern)];
        match right.kind() {
            ValueKind::Seq if right.is_tuple() => args.extend(right.try_iter()?),
            ValueKind::Map => {
                let named = right.try_iter()?.map(|key| Ok((key.to_string(), right.get_item(&key)?)));
                args.push(Value::from(Kwargs::from_iter(named.collect::<Result<Vec<_>, Error>>()?)));
            }
            _ => args.push(right),
        }
        return state.apply_filter("format", &args);
    }
    let unlike = || Error::new(ErrorKind::InvalidOperation, format!("cannot take {} % {}", left.kind(), right.kind()));
    let by_zero = || Error::new(ErrorKind::InvalidOperation, "division by zero");
    let is_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if !is_number(&left) || !is_number(&right) {
        return Err(unlike());
    }
    state.consume_fuel(1)?;
    match (i128::try_from(left.clone()), i128::try_from(right.clone())) {
        (Ok(a), Ok(b)) if is_whole(&left) && is_whole(&right) => {
            let rest = a.checked_rem(b).ok_or_else(by_zero)?;
            Ok(Value::from(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }))
        }
        _ => {
            let (a, b) = (f64::try_from(left.clone())?, f64::try_from(right.clone())?);
            if b == 0.0 {
                return Err(by_zero());
            }
            let rest = a % b;
            Ok(Value::from(if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }))
        }
    }
}

fn is_whole(value: &Value) -> bool {
    value.is_integer() || value.kind() == ValueKind::Bool
}
