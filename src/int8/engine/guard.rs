//! What the engine panics with, as errors: it does not expect every odd graph.

use crate::error::{Error, Result};
use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::thread;

/// How the names of the engine's own threads begin.
const THREADS: &str = "rten-";

thread_local! {
    /// Whether this thread is in the engine.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Calls the engine. Its state is not to be used again after an error.
///
/// # Errors
/// What the engine says, or what it panicked with.
pub fn guarded<T, E: std::error::Error>(call: impl FnOnce() -> Result<T, E>) -> Result<T> {
    silence();
    let outside = INSIDE.replace(true);
    let done = panic::catch_unwind(AssertUnwindSafe(call));
    INSIDE.set(outside);
    match done {
        Ok(result) => result.map_err(|cause| Error::new(cause.to_string())),
        Err(payload) => Err(Error::new(format!("it broke off: {}", message(&*payload)))
            .hint("the engine, rten, did not expect such a graph; onnx.checker may say what is odd about it")),
    }
}

/// Keeps the engine's panics, which become errors, off the terminal; those of everyone else are shown as usual.
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
        let told = |call: fn() -> Result<u8, std::fmt::Error>| guarded(call).map_err(|error| error.to_string());
        assert_eq!(told(|| Ok(3)), Ok(3));
        assert_eq!(told(|| Err(std::fmt::Error)), Err(std::fmt::Error.to_string()));
        assert_eq!(told(|| panic!("a text")), Err("it broke off: a text".into()));
        assert_eq!(told(|| panic!("number {}", std::process::id() / u32::MAX)), Err("it broke off: number 0".into()));
        assert_eq!(told(|| panic::panic_any(7)), Err("it broke off: it gave no reason".into()));
        assert!(!INSIDE.get());
    }
}
