//! A small hub on the loopback interface: one server that answers as huggingface.co does, and a second one for large files, to which it
//! redirects, and which stores those that are uploaded.

use super::{BINARY, Run, run, upload};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// The token that opens gated repositories, and may write.
pub const TOKEN: &str = "hf_good";

/// One revision of a repository.
#[derive(Clone, Default)]
pub struct Repo {
    /// `org/name`, or `datasets/org/name`.
    pub id: String,
    pub revision: String,
    pub commit: String,
    pub files: BTreeMap<String, Vec<u8>>,
    pub gated: bool,
    /// What the hub says of the content of large files, where that is a lie.
    pub called: Option<String>,
    /// What the hub says of a file's length, where that is a lie.
    pub claimed: Option<u64>,
}

/// Something that goes wrong.
#[derive(Clone)]
pub enum Fault {
    /// This answer, with these headers.
    Status(u16, Vec<(&'static str, String)>),
    /// The connection ends behind so many bytes of a body.
    Cut(usize),
    /// Nothing more comes behind so many bytes of a body.
    Stall(usize),
    /// The server knows no ranges.
    NoRanges,
    /// It is done, and nobody hears of it.
    Lost,
}

/// A request that arrived.
#[derive(Debug, Clone)]
pub struct Request {
    /// Whether it came to the server of large files.
    pub cdn: bool,
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
    /// Bytes of the body that was sent.
    pub served: usize,
    /// Bytes of the body that arrived.
    pub received: usize,
}

#[derive(Default)]
pub struct State {
    pub repos: Vec<Repo>,
    /// Large files that were uploaded, by SHA-256.
    pub objects: BTreeMap<String, Vec<u8>>,
    /// Parts of such files, by SHA-256 and number.
    pub parts: BTreeMap<(String, usize), Vec<u8>>,
    /// A part of a path, what happens there, and how often.
    faults: Vec<(String, Fault, usize)>,
    /// A part of a path, and what is done when a request for one that holds it has arrived; once.
    events: Vec<(String, Box<dyn FnOnce() + Send>)>,
    requests: Vec<Request>,
    pub cdn: String,
    /// This server.
    pub own: String,
}

/// The hub.
pub struct Hub {
    /// What HF_ENDPOINT has to be.
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

/// A commit's name, from one digit.
pub fn commit(digit: char) -> String {
    digit.to_string().repeat(40)
}

impl Repo {
    /// The files of a folder, as a model's main branch.
    pub fn of_folder(id: &str, folder: &Path) -> Repo {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let files = entries.filter(|path| path.is_file());
        let files = files.map(|p| (p.file_name().unwrap().to_str().unwrap().into(), fs::read(&p).unwrap()));
        Repo { id: id.into(), revision: "main".into(), commit: commit('a'), files: files.collect(), ..Repo::default() }
    }

    /// A repository of one file.
    pub fn of_file(id: &str, name: &str, content: Vec<u8>) -> Repo {
        let files = [(name.to_owned(), content)].into();
        Repo { id: id.into(), revision: "main".into(), commit: commit('d'), files, ..Repo::default() }
    }
}

impl Hub {
    /// A hub with these repositories.
    pub fn new(repos: Vec<Repo>) -> Hub {
        let state = Arc::new(Mutex::new(State { repos, ..State::default() }));
        let cdn = serve(state.clone(), true);
        state.lock().unwrap().cdn = cdn;
        let endpoint = serve(state.clone(), false);
        state.lock().unwrap().own = endpoint.clone();
        Hub { endpoint, state }
    }

    /// Something goes wrong at the next `times` requests whose path holds `path`.
    pub fn fault(&self, path: &str, fault: Fault, times: usize) {
        lock(&self.state).faults.push((path.into(), fault, times));
    }

    /// Does something when the next request whose path holds `path` has arrived, and before it is answered.
    pub fn meanwhile(&self, path: &str, event: impl FnOnce() + Send + 'static) {
        lock(&self.state).events.push((path.into(), Box::new(event)));
    }

    /// Nothing goes wrong any more.
    pub fn mend(&self) {
        lock(&self.state).faults.clear();
    }

    /// A repository as it is now.
    pub fn repo(&self, id: &str) -> Option<Repo> {
        lock(&self.state).repos.iter().find(|repo| repo.id == id).cloned()
    }

    /// Changes what is stored.
    pub fn change(&self, how: impl FnOnce(&mut State)) {
        how(&mut lock(&self.state));
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut lock(&self.state).requests)
    }

    /// A command with no variables but those of this hub. `home`: HF_HOME.
    pub fn command<S: AsRef<OsStr>>(&self, home: &Path, args: &[S]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(args).env_clear().env("HF_HOME", home).env("HF_ENDPOINT", &self.endpoint);
        command
    }

    /// Runs llmq against this hub.
    pub fn llmq<S: AsRef<OsStr>>(&self, home: &Path, args: &[S]) -> Run {
        run(&mut self.command(home, args))
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap()
}

/// Starts a server that lives as long as the test.
fn serve(state: Arc<Mutex<State>>, cdn: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = state.clone();
            std::thread::spawn(move || answer(stream, &state, cdn));
        }
    });
    address
}

/// An answer in the making.
pub struct Answer {
    code: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    pub fn new(code: u16, body: Vec<u8>) -> Answer {
        Answer { code, headers: vec![], body }
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Answer {
        self.headers.push((name.into(), value.to_string()));
        self
    }

    pub fn refused(code: u16, name: &str, message: &str) -> Answer {
        Answer::new(code, json!({ "error": message }).to_string().into_bytes())
            .with("X-Error-Code", name)
            .with("X-Error-Message", message)
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>, cdn: bool) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut lines = reader.by_ref().lines();
    let Some(Ok(first)) = lines.next() else { return };
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    let (mut range, mut authorization, mut length) = (None, None, None);
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').unwrap();
        match name.to_lowercase().as_str() {
            "range" => range = Some(value.trim().to_owned()),
            "authorization" => authorization = Some(value.trim().to_owned()),
            "content-length" => length = Some(value.trim().parse::<usize>().unwrap()),
            _ => {}
        }
    }
    let fault = {
        let mut state = lock(state);
        let fault = state.faults.iter_mut().find(|(part, _, left)| *left > 0 && path.contains(part.as_str()));
        // What ends a body does nothing to an answer without one.
        let fault = fault.filter(|(_, fault, _)| {
            matches!(fault, Fault::Status(..) | Fault::Lost)
                || method == "PUT"
                || (method == "GET" && (cdn || path.contains("/api/resolve-cache")))
        });
        fault.map(|(_, fault, left)| {
            *left -= 1;
            fault.clone()
        })
    };
    let event = {
        let mut state = lock(state);
        let found = state.events.iter().position(|(part, _)| path.contains(part.as_str()));
        found.map(|at| state.events.swap_remove(at).1)
    };
    if let Some(event) = event {
        event();
    }
    let cut = match fault {
        Some(Fault::Cut(bytes)) if method == "PUT" => Some(bytes),
        _ => None,
    };
    let mut body = vec![0; length.unwrap_or(0).min(cut.unwrap_or(usize::MAX))];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let answer = match &fault {
        Some(Fault::Status(code, headers)) => {
            headers.iter().fold(Answer::new(*code, vec![]), |answer, (name, value)| answer.with(name, value))
        }
        _ if method == "POST" || method == "PUT" => {
            let sent = upload::Sent { path: &path, authorization: authorization.as_deref(), body: &body, length };
            if cut.is_some() { Answer::new(0, vec![]) } else { upload::respond(&mut lock(state), cdn, &sent) }
        }
        _ => respond(&lock(state), cdn, &path, authorization.as_deref()),
    };
    let answer = ranged(answer, range.as_deref().filter(|_| !matches!(fault, Some(Fault::NoRanges))));
    let end = match fault {
        Some(Fault::Cut(bytes) | Fault::Stall(bytes)) => bytes.min(answer.body.len()),
        _ => answer.body.len(),
    };
    let served = if method == "HEAD" { 0 } else { end };
    let received = body.len();
    lock(state).requests.push(Request { cdn, method, path, range, authorization, served, received });
    if cut.is_some() || matches!(fault, Some(Fault::Lost)) {
        return;
    }
    let mut head =
        format!("HTTP/1.1 {} x\r\nContent-Length: {}\r\nConnection: close\r\n", answer.code, answer.body.len());
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    // A client that has gone away is no concern of the server's.
    let _ = stream.write_all((head + "\r\n").as_bytes()).and_then(|()| stream.write_all(&answer.body[..served]));
    if let Some(Fault::Stall(_)) = fault {
        std::thread::sleep(Duration::from_secs(60));
    }
}

/// The part of a body that was asked for.
fn ranged(mut answer: Answer, range: Option<&str>) -> Answer {
    let Some(range) = range.filter(|_| answer.code == 200) else { return answer };
    let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let size = answer.body.len();
    let from: usize = from.parse().unwrap();
    let to = to.parse().map_or(size, |last: usize| size.min(last + 1));
    if from >= size {
        return Answer::new(416, vec![]);
    }
    answer.code = 206;
    answer.body = answer.body[from..to].to_vec();
    answer.with("Content-Range", format!("bytes {from}-{}/{size}", to - 1))
}

fn respond(state: &State, cdn: bool, path: &str, authorization: Option<&str>) -> Answer {
    let known = authorization == Some(&format!("Bearer {TOKEN}"));
    if cdn {
        // /id:commit:file
        let mut parts = path[1..].split(':');
        let (id, commit, file) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        let repo = state.repos.iter().find(|repo| repo.id == id && repo.commit == commit).unwrap();
        return Answer::new(200, repo.files[file].clone()).with("ETag", "\"of the second server\"");
    }
    if let Some(rest) = path.strip_prefix("/api/resolve-cache/") {
        let mut parts = rest.split(':');
        let (id, commit, file) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        let repo = state.repos.iter().find(|repo| repo.id == id && repo.commit == commit).unwrap();
        return content(repo, file);
    }
    let (id, revision, file) = match path.strip_prefix("/api/models/") {
        Some(rest) => {
            let (id, revision) = rest.split_once("/revision/").unwrap();
            (id, revision, None)
        }
        None => {
            let (id, rest) = path[1..].split_once("/resolve/").unwrap();
            let (revision, file) = rest.split_once('/').unwrap();
            (id, revision, Some(file))
        }
    };
    let revision = revision.replace("%2F", "/");
    let mut repos = state.repos.iter().filter(|repo| repo.id == id).peekable();
    if repos.peek().is_none() {
        let code = if authorization.is_some() { 404 } else { 401 };
        return Answer::refused(code, "RepoNotFound", "Repository not found");
    }
    let Some(repo) = repos.find(|repo| repo.revision == revision || repo.commit == revision) else {
        return Answer::refused(404, "RevisionNotFound", &format!("Invalid rev id: {revision}"));
    };
    let Some(file) = file else {
        let siblings: Vec<_> = repo.files.keys().map(|name| json!({ "rfilename": name })).collect();
        let info = json!({ "id": repo.id, "sha": repo.commit, "siblings": siblings, "private": false });
        return Answer::new(200, info.to_string().into_bytes());
    };
    if repo.gated && !known {
        let (code, message) = match authorization {
            None => (401, "Access to model is restricted. You must be authenticated"),
            Some(_) => (403, "Access to model is restricted and you are not in the authorized list"),
        };
        return Answer::refused(code, "GatedRepo", message);
    }
    if !repo.files.contains_key(file) {
        return Answer::refused(404, "EntryNotFound", "Entry not found");
    }
    let place = format!("{}:{}:{file}", repo.id, repo.commit);
    if [".safetensors", ".gz", ".parquet"].iter().any(|end| file.ends_with(end)) {
        let size = repo.claimed.unwrap_or(repo.files[file].len() as u64);
        return Answer::new(302, vec![])
            .with("Location", format!("{}/{place}", state.cdn))
            .with("X-Linked-Etag", repo.called.clone().unwrap_or(sha256(&repo.files[file])))
            .with("X-Linked-Size", size)
            .with("X-Repo-Commit", &repo.commit);
    }
    if file == "tokenizer.json" {
        // As the hub does for small files.
        return Answer::new(307, vec![]).with("Location", format!("/api/resolve-cache/{place}"));
    }
    content(repo, file)
}

fn content(repo: &Repo, file: &str) -> Answer {
    let content = &repo.files[file];
    Answer::new(200, content.clone()).with("ETag", etag(content)).with("X-Repo-Commit", &repo.commit)
}

/// What small files are called after.
pub fn etag(content: &[u8]) -> String {
    format!("\"{}\"", blake3::hash(content).to_hex().split_at(40).0)
}

/// What large files are called after.
pub fn sha256(content: &[u8]) -> String {
    let digest: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("\"{digest}\"")
}
