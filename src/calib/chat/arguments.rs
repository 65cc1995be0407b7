//! Arguments of filters and methods.

use minijinja::value::{Kwargs, from_args};
use minijinja::{Error, ErrorKind, Value};

/// Arguments as Python binds them: by place, then by name; none for what is not given, or none.
///
/// # Errors
/// More arguments than names, or one of another name.
pub(super) fn bind<const N: usize>(args: &[Value], names: [&str; N]) -> Result<[Option<Value>; N], Error> {
    let (by_place, by_name) = from_args::<(&[Value], Kwargs)>(args)?;
    if by_place.len() > N {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut bound = [const { None }; N];
    for (i, name) in names.iter().enumerate() {
        bound[i] = match by_place.get(i) {
            Some(value) => Some(value.clone()).filter(|value| !value.is_none()),
            None => by_name.get(name)?,
        };
    }
    by_name.assert_all_used()?;
    Ok(bound)
}

/// An argument that has to be there.
pub(super) fn required(value: Option<Value>, name: &str) -> Result<Value, Error> {
    value.ok_or_else(|| Error::new(ErrorKind::MissingArgument, format!("'{name}' is missing")))
}

/// The text of an argument that has to be a string.
pub(super) fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str, Error> {
    value.as_str().ok_or_else(|| {
        Error::new(ErrorKind::InvalidOperation, format!("'{name}' is of kind {}, not a string", value.kind()))
    })
}
