//! The day on which every template runs: 26 July 2024, at midnight, unless `SOURCE_DATE_EPOCH` says another.
//!
//! With the day of the calendar the same input would give other bytes tomorrow. This one is what the templates of Llama 3 write where
//! there is no clock; the variable is what reproducible builds agreed on (reproducible-builds.org).

use std::env;

use chrono::format::{Item, StrftimeItems};
use chrono::{DateTime, Utc};

use crate::error::{Error, Result};

/// 26 July 2024, in seconds.
const USUAL: i64 = 1_721_952_000;

/// The day that templates are told.
///
/// # Errors
/// `SOURCE_DATE_EPOCH` is set, and no number of seconds since 1970.
pub(super) fn now() -> Result<DateTime<Utc>> {
    let Some(given) = env::var_os("SOURCE_DATE_EPOCH") else { return Ok(at(USUAL).unwrap_or_default()) };
    given.to_str().and_then(|seconds| seconds.parse().ok()).and_then(at).ok_or_else(|| {
        Error::new(format!("SOURCE_DATE_EPOCH is {given:?}, which is no number of seconds since 1970"))
            .hint("unset it: templates that ask for the date are told 26 July 2024")
    })
}

fn at(seconds: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(seconds, 0)
}

/// Python's `strftime` of a time without a zone; what it does not know stays as it is.
pub(super) fn strftime(format: &str, time: DateTime<Utc>) -> String {
    let mut out = String::new();
    let mut rest = format;
    while let Some((before, directive)) = rest.split_once('%') {
        out.push_str(before);
        // Without the zero in front, or with a space instead.
        let length = 1 + usize::from(directive.starts_with(['-', '_']));
        let end = directive.char_indices().nth(length).map_or(directive.len(), |(at, _)| at);
        let (directive, behind) = directive.split_at(end);
        rest = behind;
        match directive {
            "f" => out.push_str("000000"),
            "z" | "Z" => {}
            "c" => out.push_str(&time.format("%a %b %e %H:%M:%S %Y").to_string()),
            _ => {
                let directive = format!("%{directive}");
                let unknown = StrftimeItems::new(&directive).any(|item| item == Item::Error);
                out.push_str(&if unknown { directive.clone() } else { time.format(&directive).to_string() });
            }
        }
    }
    out + rest
}
