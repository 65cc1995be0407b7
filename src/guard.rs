//! What other people's code panics with, as errors: it does not expect every odd file.

use crate::error::{Error, Result};
use std::any::Any;
use std::cell::Cell;
use std::fmt::Display;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::thread;

/// How the names of the threads of rten, which runs graphs, begin.
const THREADS: &str = "rten-";

thread_local! {
    /// Whether this thread is in such code.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Calls code that may panic. Its state is not to be used again after an error. `odd`: the hint where it did panic.
///
/// # Errors
/// What it says, or what it panicked with.
pub fn guarded<T, E: Display>(odd: &str, call: impl FnOnce() -> Result<T, E>) -> Result<T> {
    silence();
    let outside = INSIDE.replace(true);
    let done = panic::catch_unwind(AssertUnwindSafe(call));
    INSIDE.set(outside);
    match done {
        Ok(result) => result.map_err(|cause| Error::new(cause.to_string())),
        Err(payload) => Err(Error::new(format!("it broke off: {}", message(&*payload))).hint(odd)),
    }
}

/// Keeps panics that become errors off the terminal; others are shown as usual.
fn silence() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let own = thread::current().name().is_some_and(|name| name.starts_with(THREADS));
            if !own && !INSIDE.get() {
                usual(info);
            }
        }));
    });
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("it gave no reason")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_of_any_kind_become_errors() {
        let told = |call: fn() -> Result<u8, std::fmt::Error>| guarded("odd", call).map_err(|error| error.to_string());
        assert_eq!(told(|| Ok(3)), Ok(3));
        assert_eq!(told(|| Err(std::fmt::Error)), Err(std::fmt::Error.to_string()));
        assert_eq!(told(|| panic!("a text")), Err("it broke off: a text".into()));
        assert_eq!(told(|| panic!("number {}", std::process::id() / u32::MAX)), Err("it broke off: number 0".into()));
        assert_eq!(told(|| panic::panic_any(7)), Err("it broke off: it gave no reason".into()));
        assert!(!INSIDE.get());
    }
}
