//! What can go wrong between here and the hub, and what helps.

use super::Repository;
use super::environment::Environment;
use crate::error::{Error, Kind};
use std::time::Duration;

/// A server that asks for more patience than this is not waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A request that failed.
#[derive(Debug)]
pub enum Failure {
    /// The server answered, but not with what was asked for.
    Status {
        /// HTTP's number for it.
        code: u16,
        /// The hub's own name for it (`X-Error-Code`), or nothing.
        name: String,
        /// What the server says, or nothing.
        message: String,
        /// How long it asks to wait.
        wait: Option<Duration>,
    },
    /// There was no answer, or it ended early.
    Network(Box<dyn std::error::Error + Send + Sync>),
    /// It is not the network's fault: the user asked to stop, or the disk is full.
    Local(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Local(error)
    }
}

impl Failure {
    /// How long to wait before the same may work; none if it will not. `usual`: what to wait where the server says nothing.
    pub fn again_in(&self, usual: Duration) -> Option<Duration> {
        match self {
            Failure::Status { code: 408 | 429 | 500 | 502 | 503 | 504, wait, .. } => {
                Some(wait.unwrap_or(usual)).filter(|wait| *wait <= LONGEST_WAIT)
            }
            Failure::Network(_) => Some(usual),
            _ => None,
        }
    }

    /// The error that a user sees. `what`: what was being done, as in "cannot fetch config.json of org/name".
    pub fn explain(self, what: &str, repository: &Repository, environment: &Environment) -> Error {
        let (endpoint, id) = (&environment.endpoint, &repository.id);
        let page = format!("{endpoint}/{}", repository.path());
        let token = environment.token.is_some();
        let (code, name, message, wait) = match self {
            Failure::Local(error) if error.kind() == Kind::Interrupted => {
                return error.hint("what has arrived is kept, and the same command goes on with it");
            }
            Failure::Local(error) => return error,
            Failure::Network(cause) => {
                return Error::new(format!("{what}: no answer from {endpoint}, or only a part of it"))
                    .because(cause)
                    .hint(
                        "check the connection, and HF_ENDPOINT and HTTPS_PROXY if you use them; what has arrived is kept, \
                         and the same command goes on with it",
                    );
            }
            Failure::Status { code, name, message, wait } => (code, name, message, wait),
        };
        let says = if message.is_empty() { String::new() } else { format!(": \"{message}\"") };
        let error = |text: String| Error::new(format!("{what}: {text} (HTTP {code}{says})"));
        let tokens = format!("{endpoint}/settings/tokens");
        let gated = name == "GatedRepo";
        let absent = name == "RepoNotFound";
        match code {
            401 | 403 if gated && !token => error(format!("{id} is gated"))
                .hint(format!("accept the licence at {page} and set HF_TOKEN to a token from {tokens}")),
            401 | 403 if gated => error(format!("{id} is gated, and the account of your token has no access"))
                .hint(format!("accept the licence at {page} with that account, or set HF_TOKEN to another's token")),
            401 if token && !absent => error("the hub refuses the token".into())
                .hint(format!("set HF_TOKEN to a valid token from {tokens}, or unset it for public repositories")),
            403 => error("the token does not allow that".into())
                .hint(format!("give it access to {id} at {tokens}: to read, and to publish also to write")),
            412 => error(format!("{id} has changed meanwhile"))
                .hint("look at what is there now, and run the same command again"),
            404 if name == "RevisionNotFound" => {
                error(format!("{id} has no revision '{}'", repository.revision)).hint(format!(
                    "the branches and tags are listed at {page}/tree/main; without @{} it is the main branch",
                    repository.revision
                ))
            }
            404 if name == "EntryNotFound" => {
                error(format!("{id} has no such file")).hint(format!("its files are listed at {page}/tree/main"))
            }
            401 | 404 => {
                let here = if repository.dataset { "" } else { "there is no folder of that name here either: " };
                let private = format!(", or set HF_TOKEN to a token from {tokens} if it is private");
                let private = if token { "" } else { &private };
                error(format!("{id} does not exist, or it is private"))
                    .hint(format!("{here}check the spelling at {page}{private}"))
            }
            429 => {
                let wait = wait.map_or("wait some minutes".into(), |wait| format!("wait {} s", wait.as_secs()));
                let limit = if token { "" } else { ", or set HF_TOKEN: with a token the limit is higher" };
                error("the hub gets too many requests from here".into()).hint(wait + limit)
            }
            500.. => error(format!("{endpoint} has a problem of its own"))
                .hint("try again later; what has arrived is kept, and the same command goes on with it"),
            _ => error("an answer that makes no sense here".into())
                .hint("check HF_ENDPOINT and HTTPS_PROXY, if you use them"),
        }
    }
}
