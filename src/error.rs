//! What went wrong: names and numbers, the causes behind it, and a separate hint with the next thing to type.

use std::fmt;

/// The result of everything that can fail in llmq.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Who has to act on an [`Error`]; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The work failed: exit code 1.
    Failed,
    /// The command line asked for something impossible: exit code 2.
    Usage,
    /// The user pressed Ctrl-C: exit code 130.
    Interrupted,
}

/// One failure: a sentence that names files, tensors and numbers, its causes, and a hint.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    what: String,
    hint: Option<String>,
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error that says `what` failed.
    pub fn new(what: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind: Kind::Failed, what: what.into(), hint: None, cause: None }))
    }

    /// An error in how the program was called (exit code 2).
    pub fn usage(what: impl Into<String>) -> Self {
        let mut error = Self::new(what);
        error.0.kind = Kind::Usage;
        error
    }

    /// A name that is none of those that are known; the hint says which it is like, and lists them. `what`: what it should be, for
    /// example `type`.
    pub fn unknown(what: &str, name: &str, known: &[&str]) -> Self {
        let like = |other: &str| strsim::jaro_winkler(&name.to_lowercase(), &other.to_lowercase());
        let nearest =
            known.iter().copied().max_by(|a, b| like(a).total_cmp(&like(b))).filter(|other| like(other) > 0.8);
        let meant = nearest.map_or(String::new(), |other| format!("did you mean {other}? "));
        Self::usage(format!("unknown {what} '{name}'")).hint(format!("{meant}the {what}s are {}", known.join(", ")))
    }

    /// The user asked to stop (exit code 130).
    pub fn interrupted() -> Self {
        let mut error = Self::new("interrupted");
        error.0.kind = Kind::Interrupted;
        error
    }

    /// Adds the next thing to try.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds the error that led to this one.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// Who has to act.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The hint nearest to the top of the chain of causes.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref().or_else(|| {
            let cause = self.0.cause.as_deref()?;
            cause.downcast_ref::<Error>()?.hint_text()
        })
    }

    /// This error and its causes, outermost first.
    pub fn chain(&self) -> Vec<String> {
        let mut lines = vec![self.to_string()];
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            lines.push(error.to_string());
            next = error.source();
        }
        lines
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.what)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.cause.as_deref().map(|cause| cause as _)
    }
}

impl From<candle_core::Error> for Error {
    fn from(cause: candle_core::Error) -> Self {
        Self::new("a tensor operation failed").because(cause)
    }
}

/// Says what was being done when something failed.
pub trait Context<T> {
    /// Wraps the error in one that says `what()` failed; an interruption stays one.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync>>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| {
            let cause = cause.into();
            let kind = cause.downcast_ref::<Error>().map_or(Kind::Failed, Error::kind);
            let mut error = Error::new(what());
            error.0.kind = kind;
            error.0.cause = Some(cause);
            error
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_are_compared_with_known_ones() {
        let hint = |name: &str| Error::unknown("type", name, &["Q4_K_M", "Q8_0"]).hint_text().unwrap().to_owned();
        assert_eq!(hint("q4_km"), "did you mean Q4_K_M? the types are Q4_K_M, Q8_0");
        assert_eq!(hint("int4"), "the types are Q4_K_M, Q8_0");
    }

    #[test]
    fn the_chain_and_the_nearest_hint_are_kept() {
        let inner = Error::new("inner").hint("try this");
        let outer = Err::<(), _>(inner).context(|| "outer".into()).unwrap_err();
        assert_eq!(outer.chain(), ["outer", "inner"]);
        assert_eq!(outer.hint_text(), Some("try this"));
    }

    #[test]
    fn an_interruption_stays_one_under_context() {
        let error = Err::<(), _>(Error::interrupted()).context(|| "block 3".into()).unwrap_err();
        assert_eq!(error.kind(), Kind::Interrupted);
    }
}
