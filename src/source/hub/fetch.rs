//! Fetching.
//!
//! Files are kept in the folder that all of Hugging Face's tools share, so that what one has fetched is there for the others.
//! Names, addresses and the layout of that folder are those of the hf-hub crate. Its transfers are not used: they send the token
//! on to wherever the hub redirects to, know neither `HF_TOKEN` nor `HF_HUB_OFFLINE`, and take an error page for a file.

mod cache;
pub(super) mod client;
mod digest;
mod environment;
pub(super) mod failure;
mod files;
mod headers;
mod part;
pub(super) mod transfer;

pub use environment::Environment;
pub use part::{Part, whole};

use super::{Found, Need, Repository, Watch};
use crate::error::{Error, Result};
use cache::Kept;
use client::Client;
use failure::Failure;
use files::Choice;
use hf_hub::{Repo, RepoType};
use transfer::{abreast, facts, fetch, patiently};

impl Repository {
    fn repo(&self) -> Repo {
        let kind = if self.dataset { RepoType::Dataset } else { RepoType::Model };
        Repo::with_revision(self.id.clone(), kind, self.revision.clone())
    }

    /// Its path on the hub.
    fn path(&self) -> String {
        self.repo().url()
    }

    /// The address of a file. `revision`: a commit, or this revision's own name.
    pub(super) fn url(&self, endpoint: &str, revision: &str, file: &str) -> String {
        format!("{endpoint}/{}/resolve/{}/{file}", self.path(), revision.replace('/', "%2F"))
    }
}

/// A hub, with what this process's environment says about it.
struct Hub<'a> {
    repository: &'a Repository,
    environment: &'a Environment,
    client: Client,
    kept: Kept,
    watch: &'a dyn Watch,
}

/// The folder of a model: that of its snapshot in the cache, after whatever is not there yet has been fetched. Where only headers are
/// needed, weights are not fetched: a temporary folder holds their files with nothing but holes behind their headers.
///
/// # Errors
/// There is no such model, no access, no network or no room; each with what helps.
pub fn resolve(repository: &Repository, need: Need, watch: &dyn Watch) -> Result<Found> {
    let environment = Environment::read()?;
    let client = Client::new(&environment);
    let kept = Kept::new(repository, &environment);
    let hub = Hub { repository, environment: &environment, client, kept, watch };
    if environment.offline {
        return hub.offline("HF_HUB_OFFLINE is set");
    }
    if let Some(commit) = hub.kept.commit().filter(|commit| *commit == repository.revision)
        && files::is_complete(&hub.kept.snapshot(&commit))
    {
        return Ok(Found::local(&hub.kept.snapshot(&commit)));
    }
    let listing = match hub.list() {
        Ok(listing) => listing,
        Err(failure @ Failure::Network(_)) => {
            let Ok(found) = hub.offline("there is no network") else {
                return Err(failure.explain(&format!("cannot fetch {}", repository.id), repository, &environment));
            };
            watch.note(&format!(
                "{} does not answer: what was fetched of {} before is used",
                environment.endpoint, repository.id
            ));
            return Ok(found);
        }
        Err(failure) => {
            return Err(failure.explain(&format!("cannot fetch {}", repository.id), repository, &environment));
        }
    };
    hub.kept.remember(&listing.commit)?;
    let choice = files::choose(repository, &listing.files)?;
    hub.online(&listing.commit, &choice, need)
        .map_err(|failure| failure.explain(&format!("cannot fetch {}", repository.id), repository, &environment))
}

/// What the hub says a revision is.
struct Listing {
    commit: String,
    files: Vec<String>,
}

impl Hub<'_> {
    fn list(&self) -> Result<Listing, Failure> {
        #[derive(serde::Deserialize)]
        struct Info {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(serde::Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let url = format!("{}/api/{}", self.environment.endpoint, self.repository.repo().api_url());
        let body = patiently(self.watch, || self.client.all(&url))?;
        let info: Info = serde_json::from_slice(&body).map_err(|cause| {
            Error::new(format!("{url}: the answer is not the hub's description of a model"))
                .because(cause)
                .hint("check HF_ENDPOINT and HTTPS_PROXY, if you use them")
        })?;
        Ok(Listing { commit: info.sha, files: info.siblings.into_iter().map(|sibling| sibling.rfilename).collect() })
    }

    /// The snapshot as it is in the cache. `why` nothing can be fetched.
    fn offline(&self, why: &str) -> Result<Found> {
        let Repository { id, revision, .. } = self.repository;
        let folder = self.kept.commit().map(|commit| self.kept.snapshot(&commit));
        match folder {
            Some(folder) if files::is_complete(&folder) => Ok(Found::local(&folder)),
            found => {
                let what = if found.is_some_and(|folder| folder.is_dir()) { "only a part" } else { "nothing" };
                let cache = self.environment.cache.display();
                Err(Error::new(format!("{why}, and {cache} holds {what} of {id} at revision '{revision}'"))
                    .hint(format!("fetch it once with a network: unset HF_HUB_OFFLINE, then `llmq quantize {id}`")))
            }
        }
    }

    fn online(&self, commit: &str, choice: &Choice, need: Need) -> Result<Found, Failure> {
        let small = self.facts(commit, &choice.small)?;
        abreast(&small, |wanted| fetch(&self.client, &self.kept, wanted, &Quiet(self.watch)))?;
        let snapshot = self.kept.snapshot(commit);
        let weights = match &choice.index {
            Some(index) => files::shards(&snapshot.join(index))?,
            None => choice.weights.clone(),
        };
        let missing: Vec<String> = weights.iter().filter(|file| !snapshot.join(file).exists()).cloned().collect();
        if missing.is_empty() {
            return Ok(Found::local(&snapshot));
        }
        let missing = self.facts(commit, &missing)?;
        if need == Need::Headers {
            return headers::folder(&self.client, self.repository, &snapshot, &missing, self.watch);
        }
        let bytes: u64 = missing.iter().filter_map(|wanted| wanted.facts.size).sum();
        let mut held = 0;
        for wanted in &missing {
            let (blob, part) = self.kept.blob(&wanted.file, &wanted.facts)?;
            held += [blob, part].iter().filter_map(|path| Some(path.metadata().ok()?.len())).max().unwrap_or(0);
        }
        self.kept.reserve(bytes.saturating_sub(held))?;
        let files = if missing.len() == 1 { "1 file".into() } else { format!("{} files", missing.len()) };
        let (id, endpoint) = (&self.repository.id, &self.environment.endpoint);
        self.watch.begin(&format!("fetching {id} from {endpoint}: {files},"), bytes);
        abreast(&missing, |wanted| fetch(&self.client, &self.kept, wanted, self.watch))?;
        Ok(Found::local(&snapshot))
    }

    fn facts(&self, commit: &str, files: &[String]) -> Result<Vec<transfer::RemoteFile>, Failure> {
        let snapshot = self.kept.snapshot(commit);
        // What is there need not be asked about.
        let files: Vec<String> = files.iter().filter(|file| !snapshot.join(file).exists()).cloned().collect();
        facts(&self.client, self.repository, commit, &files, &self.environment.endpoint, self.watch)
    }
}

/// Small files are not worth a bar.
struct Quiet<'a>(&'a dyn Watch);

impl Watch for Quiet<'_> {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn note(&self, text: &str) {
        self.0.note(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_hub() {
        let model = Repository::model("org/name@refs/pr/3").unwrap();
        assert_eq!(
            model.url("https://h", &model.revision, "a.json"),
            "https://h/org/name/resolve/refs%2Fpr%2F3/a.json"
        );
        assert_eq!(model.repo().api_url(), "models/org/name/revision/refs%2Fpr%2F3");
        let set = Repository::dataset("org/set");
        assert_eq!(set.url("https://h", "main", "en/a"), "https://h/datasets/org/set/resolve/main/en/a");
    }
}
