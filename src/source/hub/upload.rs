//! Files into a repository of the hub, in one commit.
//!
//! The protocol is that of the Python package huggingface_hub (`_commit_api.py`, `lfs.py`): the hub says which files are large
//! (`preupload`); those go to its storage by Git LFS's batch interface, in one piece or in several, unless it has their SHA-256
//! already; and a commit names them and brings the small files along. hf-hub 1.0 does the same by Xet only, with 142 more crates.

mod storage;

use super::fetch::Environment;
use super::fetch::client::Client;
use super::fetch::failure::Failure;
use super::fetch::transfer::patiently;
use super::{Repository, Watch};
use crate::error::{Context, Error, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const JSON: &str = "application/json";
const LFS: &str = "application/vnd.git-lfs+json";
const LINES: &str = "application/x-ndjson";

/// Bytes of a file that the hub looks at to say whether it is large.
const SAMPLE: u64 = 512;

/// A file that is to be there.
#[derive(Debug, Clone)]
pub struct LocalFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its path in the repository.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
    /// When it was last written to before that was computed, where the system knows.
    pub modified: Option<SystemTime>,
}

impl LocalFile {
    /// Whether it is the file that was hashed: the hub would take another one under that hash.
    fn check_unchanged(&self) -> Result<()> {
        let now = self.path.metadata().context(|| format!("cannot read {}", self.path.display()))?;
        if now.len() == self.size && now.modified().ok() == self.modified {
            return Ok(());
        }
        let what = format!("{} was written to while it was published", self.path.display());
        Err(Error::new(format!("{what} ({} bytes before, {} now); there is no commit", self.size, now.len()))
            .hint("run the same command again when nothing writes to it any more"))
    }
}

/// How a file stands on the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// There is none of that name.
    New,
    /// One of that name has other content, and so many bytes.
    Differs(u64),
    /// It has that content.
    Same,
}

/// A repository as it was found.
#[derive(Debug)]
pub struct Remote {
    /// The commit that the branch is at.
    commit: String,
    /// How each of the local files stands.
    pub files: Vec<Status>,
}

/// A commit that was made.
#[derive(Debug)]
pub struct Commit {
    /// Its page.
    pub url: String,
    /// Bytes that were sent to the storage of large files; what it had already is not counted.
    pub sent: u64,
}

/// Writes to a repository.
pub struct Upload<'a> {
    repository: &'a Repository,
    environment: Environment,
    client: Client,
    watch: &'a dyn Watch,
}

/// What the hub says of a path.
#[derive(Deserialize)]
struct PathInfo {
    path: String,
    size: u64,
    lfs: Option<Large>,
}

#[derive(Deserialize)]
struct Large {
    oid: String,
}

/// What the hub says will become of a file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mode {
    path: String,
    upload_mode: String,
    #[serde(default)]
    should_ignore: bool,
}

impl<'a> Upload<'a> {
    /// The repository, as this process may write to it.
    ///
    /// # Errors
    /// The environment forbids it, or makes no sense.
    pub fn new(repository: &'a Repository, watch: &'a dyn Watch) -> Result<Upload<'a>> {
        let environment = Environment::read()?;
        if environment.offline {
            return Err(Error::new(format!("HF_HUB_OFFLINE is set: nothing can be published to {}", repository.id))
                .hint("unset it"));
        }
        let client = Client::new(&environment);
        Ok(Upload { repository, environment, client, watch })
    }

    /// The repository's page.
    pub fn page(&self) -> String {
        format!("{}/{}", self.environment.endpoint, self.repository.id)
    }

    /// Refuses to go on without a token.
    ///
    /// # Errors
    /// There is none.
    pub fn check_token(&self) -> Result<()> {
        if self.environment.token.is_some() {
            return Ok(());
        }
        let endpoint = &self.environment.endpoint;
        Err(Error::new(format!("publishing to {} needs a token", self.repository.id))
            .hint(format!("set HF_TOKEN to one with the right to write, from {endpoint}/settings/tokens")))
    }

    /// How files stand there; none if there is no such repository, or it is private and not the token's.
    ///
    /// # Errors
    /// There is no answer.
    pub fn remote(&self, files: &[LocalFile]) -> Result<Option<Remote>> {
        match self.look(files) {
            Err(Failure::Status { code: 401 | 404, name, .. }) if name == "RepoNotFound" => Ok(None),
            found => found.map(Some).map_err(|failure| self.explain(failure)),
        }
    }

    /// Makes the repository; one that is there already is no error.
    ///
    /// # Errors
    /// The token does not allow it.
    pub fn create(&self, private: bool) -> Result<()> {
        let (organization, name) = self.repository.id.split_once('/').unwrap_or(("", &self.repository.id));
        let body = json!({ "name": name, "organization": organization, "type": "model", "private": private });
        match self.post::<Value>("/api/repos/create", JSON, &body) {
            // Somebody else has just made it, or this did and the answer was lost.
            Ok(_) | Err(Failure::Status { code: 409, .. }) => Ok(()),
            Err(failure) => Err(self.explain(failure)),
        }
    }

    /// Makes a commit of those files that are not the same there, and looks whether they arrived as they are here.
    /// `remote`: what [`Upload::remote`] found.
    ///
    /// # Errors
    /// The hub refuses, a connection breaks, or a file is another one there.
    pub fn commit(&self, files: &[LocalFile], remote: &Remote, message: &str) -> Result<Commit> {
        let files = files.iter().zip(&remote.files).filter(|(_, status)| **status != Status::Same);
        let files: Vec<&LocalFile> = files.map(|(file, _)| file).collect();
        self.commit_of(&files, remote, message).map_err(|failure| self.explain(failure))
    }

    fn commit_of(&self, files: &[&LocalFile], remote: &Remote, message: &str) -> Result<Commit, Failure> {
        let large = self.large(files)?;
        let sent = self.store(&files.iter().zip(&large).filter(|(_, l)| **l).map(|(f, _)| *f).collect::<Vec<_>>())?;
        let header = json!({ "summary": message, "description": "", "parentCommit": remote.commit });
        let mut lines = json!({ "key": "header", "value": header }).to_string();
        for (file, large) in files.iter().zip(large) {
            let LocalFile { name, size, sha256, .. } = file;
            let line = match large {
                true => {
                    json!({ "key": "lfsFile", "value": { "path": name, "algo": "sha256", "oid": sha256, "size": size } })
                }
                false => {
                    let content = STANDARD.encode(read(&file.path, u64::MAX)?);
                    json!({ "key": "file", "value": { "path": name, "encoding": "base64", "content": content } })
                }
            };
            lines += &format!("\n{line}");
        }
        files.iter().try_for_each(|file| file.check_unchanged())?;
        let owned: Vec<LocalFile> = files.iter().map(|&file| file.clone()).collect();
        let url = format!("{}/commit/{}", self.api(), self.revision());
        let made = patiently(self.watch, || match self.client.post(&url, LINES, lines.clone().into_bytes()) {
            Ok(_) => Ok(()),
            // Perhaps only the answer was lost.
            Err(failure) => match self.look(&owned) {
                Ok(now) if now.commit != remote.commit && now.files.iter().all(|status| *status == Status::Same) => {
                    Ok(())
                }
                _ => Err(failure),
            },
        });
        made?;
        let now = self.look(&owned)?;
        match owned.iter().zip(&now.files).find(|(_, status)| **status != Status::Same) {
            Some((file, _)) => Err(Error::new(format!(
                "{} was published, but {} is not what {} is (SHA-256 {})",
                self.repository.id,
                file.name,
                file.path.display(),
                file.sha256
            ))
            .hint(format!("look at {}/tree/main, and run the same command again", self.page()))
            .into()),
            None => Ok(Commit { url: format!("{}/commit/{}", self.page(), now.commit), sent }),
        }
    }

    /// Which files are large, as the hub sees them.
    fn large(&self, files: &[&LocalFile]) -> Result<Vec<bool>, Failure> {
        #[derive(Deserialize)]
        struct Answer {
            files: Vec<Mode>,
        }
        let sample = |file: &&LocalFile| -> Result<Value> {
            let sample = STANDARD.encode(read(&file.path, SAMPLE)?);
            Ok(json!({ "path": file.name, "sample": sample, "size": file.size }))
        };
        let body = json!({ "files": files.iter().map(sample).collect::<Result<Vec<Value>>>()? });
        let Answer { files: modes } =
            self.post(&format!("{}/preupload/{}", self.own_api(), self.revision()), JSON, &body)?;
        let mode = |file: &&LocalFile| -> Result<bool, Failure> {
            let found = modes.iter().find(|mode| mode.path == file.name);
            match found.map(|mode| (mode.upload_mode.as_str(), mode.should_ignore)) {
                Some((_, true)) => {
                    Err(Error::new(format!("{} is ignored by {}'s .gitignore", file.name, self.repository.id))
                        .hint("give it another name, or change that file there")
                        .into())
                }
                // The storage takes no empty files.
                Some(("lfs", _)) => Ok(file.size > 0),
                Some(("regular", _)) => Ok(false),
                other => Err(self.nonsense(&format!("how to send {}: {other:?}", file.name))),
            }
        };
        files.iter().map(mode).collect()
    }

    /// The commit of the branch, and how files stand there.
    fn look(&self, files: &[LocalFile]) -> Result<Remote, Failure> {
        #[derive(Deserialize)]
        struct Info {
            sha: String,
        }
        let url = format!("{}/revision/{}", self.api(), self.revision());
        let body = patiently(self.watch, || self.client.all(&url))?;
        let Info { sha: commit } = self.parsed(&body)?;
        let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
        let place = format!("{}/paths-info/{commit}", self.own_api());
        let found: Vec<PathInfo> = self.post(&place, JSON, &json!({ "paths": names, "expand": false }))?;
        let status = |file: &LocalFile| {
            let Some(there) = found.iter().find(|info| info.path == file.name) else { return Ok(Status::New) };
            let same = match &there.lfs {
                Some(lfs) => lfs.oid.eq_ignore_ascii_case(&file.sha256),
                // Git's name for it is no SHA-256; small files are soon read.
                None => {
                    there.size == file.size && {
                        let url = self.repository.url(&self.environment.endpoint, &commit, &file.name);
                        patiently(self.watch, || self.client.all(&url))? == read(&file.path, u64::MAX)?
                    }
                }
            };
            Ok(if same { Status::Same } else { Status::Differs(there.size) })
        };
        let files = files.iter().map(status).collect::<Result<_, Failure>>()?;
        Ok(Remote { commit, files })
    }

    fn post<T: DeserializeOwned>(&self, place: &str, kind: &'static str, body: &Value) -> Result<T, Failure> {
        let (url, body) = (format!("{}{place}", self.environment.endpoint), body.to_string().into_bytes());
        let answer = patiently(self.watch, || self.client.post(&url, kind, body.clone()))?;
        self.parsed(&answer)
    }

    fn parsed<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, Failure> {
        serde_json::from_slice(body).map_err(|cause| self.nonsense(&cause.to_string()))
    }

    /// The repository's address for programs, without the endpoint.
    fn own_api(&self) -> String {
        format!("/api/models/{}", self.repository.id)
    }

    fn api(&self) -> String {
        self.environment.endpoint.clone() + &self.own_api()
    }

    fn revision(&self) -> String {
        self.repository.revision.replace('/', "%2F")
    }

    fn nonsense(&self, what: &str) -> Failure {
        Error::new(format!("{} answers what is not the hub's protocol: {what}", self.environment.endpoint))
            .hint("check HF_ENDPOINT and HTTPS_PROXY, if you use them; a newer llmq may know more")
            .into()
    }

    fn explain(&self, failure: Failure) -> Error {
        failure.explain(&format!("cannot publish to {}", self.repository.id), self.repository, &self.environment)
    }
}

/// The first bytes of a file, at most `most`.
fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes));
    read.context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes)
}
