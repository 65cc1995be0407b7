//! Requests to the hub: redirects followed by hand, so that the token stays with the hub, and bodies that arrive on a thread
//! of their own, so that Ctrl-C need not wait for a server.

use super::environment::Environment;
use super::failure::Failure;
use crate::error::Error;
use crate::interrupt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Take};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body, SendBody};

/// Bytes that are handed on at once, and how many such pieces may wait.
const PIECE: usize = 1 << 18;
const PIECES: usize = 4;

/// How often a silent server is left for a look at Ctrl-C.
const LOOK: Duration = Duration::from_millis(50);

/// More redirects than this lead nowhere.
const HOPS: usize = 10;

/// What answers may be written in.
const ACCEPTED: &str = "application/vnd.git-lfs+json, application/json";

/// Asks a hub.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// What is known of a file without its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The name of its content.
    pub etag: Option<String>,
    /// The commit that the revision stands for.
    pub commit: Option<String>,
    /// Its length in bytes.
    pub size: Option<u64>,
}

/// A body on its way.
pub struct Stream {
    /// The place in the file of the first byte.
    pub from: u64,
    messages: Messages,
    left: Option<u64>,
}

type Messages = Receiver<Result<Message, Failure>>;
type Sender = SyncSender<Result<Message, Failure>>;

enum Message {
    /// The body begins at this byte of the file, and has this length if that is known.
    Begins(u64, Option<u64>),
    Piece(Vec<u8>),
    Facts(Facts),
    /// So many bytes more of a file have left.
    Sent(u64),
    End,
}

impl Client {
    /// A client of the hub that the environment names.
    pub fn new(environment: &Environment) -> Client {
        let patience = Some(environment.patience);
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_resolve(patience)
            .timeout_connect(patience)
            .timeout_recv_response(patience)
            .timeout_per_read(patience)
            .user_agent(concat!("llmq/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity") // a length that counts what arrives, and ranges that mean the file
            .build()
            .into();
        Client { agent, endpoint: environment.endpoint.clone(), token: environment.token.clone() }
    }

    /// What the hub knows of a file, without a look at its content.
    ///
    /// # Errors
    /// There is no such file, or no answer.
    pub fn facts(&self, url: &str) -> Result<Facts, Failure> {
        let (client, url) = (self.clone(), url.to_owned());
        let messages = spawn(move |send| {
            send.send(Ok(Message::Facts(client.head(&url)?))).ok();
            Ok(())
        })?;
        match wait(&messages)? {
            Message::Facts(facts) => Ok(facts),
            _ => Err(early()),
        }
    }

    /// The bytes of a file from `from` on, and before `to` if there is one. A server may ignore that and send all:
    /// [`Stream::from`] says where its answer begins.
    ///
    /// # Errors
    /// There is no such file, or no answer.
    pub fn open(&self, url: &str, from: u64, to: Option<u64>) -> Result<Stream, Failure> {
        let (client, url) = (self.clone(), url.to_owned());
        let messages = spawn(move |send| client.send(&url, from, to, send))?;
        match wait(&messages)? {
            Message::Begins(from, left) => Ok(Stream { from, messages, left }),
            _ => Err(early()),
        }
    }

    /// Some bytes of a file, `from..to`.
    ///
    /// # Errors
    /// As [`Client::open`].
    pub fn read(&self, url: &str, from: u64, to: u64) -> Result<Vec<u8>, Failure> {
        let mut stream = self.open(url, from, Some(to))?;
        let skipped = from.checked_sub(stream.from).ok_or_else(early)? as usize;
        let wanted = (to - from) as usize;
        let mut bytes = Vec::new();
        while bytes.len() < skipped + wanted
            && let Some(piece) = stream.piece()?
        {
            bytes.extend(piece);
        }
        bytes.get(skipped..skipped + wanted).map(<[u8]>::to_vec).ok_or_else(early)
    }

    /// A whole body that is known to be small.
    ///
    /// # Errors
    /// As [`Client::open`], or a body of more than 64 MB.
    pub fn all(&self, url: &str) -> Result<Vec<u8>, Failure> {
        const MOST: usize = 64 << 20;
        let mut stream = self.open(url, 0, None)?;
        let mut bytes = Vec::new();
        while let Some(piece) = stream.piece()? {
            bytes.extend(piece);
            if bytes.len() > MOST {
                return Err(Error::new(format!("{url} has more than {MOST} bytes")).into());
            }
        }
        Ok(bytes)
    }

    /// Sends a small body, and gives the whole answer. `kind`: its media type.
    ///
    /// # Errors
    /// The server refuses, or there is no answer.
    pub fn post(&self, url: &str, kind: &'static str, body: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let (client, mut url) = (self.clone(), url.to_owned());
        let messages = spawn(move |send| {
            for _ in 0..HOPS {
                let mut request = client.agent.post(&url).header("Content-Type", kind).header("Accept", ACCEPTED);
                if let Some(token) = client.token_for(&url) {
                    request = request.header("Authorization", format!("Bearer {token}"));
                }
                let response = request.send(&body).map_err(network)?;
                match location(&url, &response)? {
                    Some(target) => url = target,
                    None if response.status().is_success() => {
                        let answer = response.into_body().read_to_vec().map_err(network)?;
                        send.send(Ok(Message::Piece(answer))).ok();
                        return Ok(());
                    }
                    None => return Err(refused(response)),
                }
            }
            Err(circle(&url))
        })?;
        match wait(&messages)? {
            Message::Piece(answer) => Ok(answer),
            _ => Err(early()),
        }
    }

    /// Sends a part of a file, `length` bytes from `from` on, to an address that needs no token. `sent` is told how many bytes more
    /// have left. Returns the ETag that the server gives the part.
    ///
    /// # Errors
    /// The file cannot be read, the server refuses, or the connection breaks.
    pub fn put(
        &self,
        url: &str,
        path: &Path,
        from: u64,
        length: u64,
        sent: &dyn Fn(u64),
    ) -> Result<Option<String>, Failure> {
        let unreadable = |cause| Error::new(format!("cannot read {}", path.display())).because(cause);
        let mut file = File::open(path).map_err(unreadable)?;
        file.seek(SeekFrom::Start(from)).map_err(unreadable)?;
        let (client, url) = (self.clone(), url.to_owned());
        let messages = spawn(move |send| {
            let mut part = Leaving { file: file.take(length), send };
            // Storage refuses bodies whose length it is not told first.
            let request = client.agent.put(&url).header("Content-Length", length);
            let response = request.send(SendBody::from_reader(&mut part)).map_err(network)?;
            if !response.status().is_success() {
                return Err(refused(response));
            }
            let etag = text(response.headers(), "etag");
            send.send(Ok(Message::Facts(Facts { etag, ..Facts::default() }))).ok();
            Ok(())
        })?;
        loop {
            match wait(&messages)? {
                Message::Sent(bytes) => sent(bytes),
                Message::Facts(facts) => return Ok(facts.etag),
                _ => return Err(early()),
            }
        }
    }

    /// Follows redirects on the same server only: behind another one, there is just the content.
    fn head(&self, url: &str) -> Result<Facts, Failure> {
        let mut url = url.to_owned();
        let mut commit = None;
        for _ in 0..HOPS {
            let mut request = self.agent.head(&url);
            if let Some(token) = self.token_for(&url) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(network)?;
            let headers = response.headers();
            let target = location(&url, &response)?;
            let linked = text(headers, "x-linked-etag");
            commit = text(headers, "x-repo-commit").or(commit);
            match target {
                Some(target) if linked.is_none() && origin(&target) == origin(&url) => url = target,
                None if !response.status().is_success() => return Err(refused(response)),
                target => {
                    let etag = linked.or_else(|| text(headers, "etag"));
                    // The length of a redirect is not that of the file.
                    let length = if target.is_some() { None } else { text(headers, "content-length") };
                    let size = text(headers, "x-linked-size").or(length);
                    return Ok(Facts {
                        etag: etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned()),
                        commit,
                        size: size.and_then(|size| size.parse().ok()),
                    });
                }
            }
        }
        Err(circle(&url))
    }

    fn get(&self, url: &str, from: u64, to: Option<u64>) -> Result<Response<Body>, Failure> {
        let mut url = url.to_owned();
        for _ in 0..HOPS {
            let mut request = self.agent.get(&url);
            if let Some(token) = self.token_for(&url) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            match to {
                Some(to) => request = request.header("Range", format!("bytes={from}-{}", to - 1)),
                None if from > 0 => request = request.header("Range", format!("bytes={from}-")),
                None => {}
            }
            let response = request.call().map_err(network)?;
            match location(&url, &response)? {
                Some(target) => url = target,
                None if response.status().is_success() => return Ok(response),
                None => return Err(refused(response)),
            }
        }
        Err(circle(&url))
    }

    /// Sends a body, piece by piece, until it ends or nobody listens any more.
    fn send(&self, url: &str, from: u64, to: Option<u64>, send: &Sender) -> Result<(), Failure> {
        let response = self.get(url, from, to)?;
        let headers = response.headers();
        let begins = match response.status().as_u16() {
            206 => text(headers, "content-range")
                .and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok())
                .ok_or_else(|| Error::new(format!("{url}: a part of a file, but the server does not say which")))?,
            _ => 0,
        };
        let length = text(headers, "content-length").and_then(|length| length.parse().ok());
        let mut listening = send.send(Ok(Message::Begins(begins, length))).is_ok();
        let mut body = response.into_body().into_reader();
        while listening {
            let mut piece = vec![0; PIECE];
            let n = body.read(&mut piece).map_err(|cause| Failure::Network(cause.into()))?;
            piece.truncate(n);
            listening = send.send(Ok(if n == 0 { Message::End } else { Message::Piece(piece) })).is_ok() && n > 0;
        }
        Ok(())
    }

    /// The token, where a server may see it.
    fn token_for(&self, url: &str) -> Option<&str> {
        self.token.as_deref().filter(|_| origin(url) == origin(&self.endpoint))
    }
}

impl Stream {
    /// The next piece; none behind the last.
    ///
    /// # Errors
    /// The connection broke, or the user asked to stop.
    pub fn piece(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        match wait(&self.messages)? {
            Message::Piece(piece) => {
                if let Some(left) = &mut self.left {
                    *left = left.checked_sub(piece.len() as u64).ok_or_else(early)?;
                }
                Ok(Some(piece))
            }
            Message::End if self.left.unwrap_or(0) > 0 => Err(early()),
            Message::End => Ok(None),
            _ => Err(early()),
        }
    }
}

/// A part of a file on its way out: each piece is told, and nothing more leaves when nobody listens.
struct Leaving<'a> {
    file: Take<File>,
    send: &'a Sender,
}

impl Read for Leaving<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(bytes)?;
        let told = self.send.send(Ok(Message::Sent(n as u64)));
        told.map_err(|_| std::io::Error::other("given up"))?;
        Ok(n)
    }
}

/// Work on a thread of its own, and what it has to say.
fn spawn(work: impl FnOnce(&Sender) -> Result<(), Failure> + Send + 'static) -> Result<Messages, Failure> {
    let (send, receive) = sync_channel(PIECES);
    std::thread::Builder::new()
        .name("hub".into())
        .spawn(move || {
            if let Err(failure) = work(&send) {
                // Nobody may be left to be told.
                send.send(Err(failure)).ok();
            }
        })
        .map_err(|cause| Error::new("cannot start a thread").because(cause))?;
    Ok(receive)
}

/// The next message. The client's timeouts bound how long that takes.
fn wait(messages: &Messages) -> Result<Message, Failure> {
    loop {
        interrupt::check()?;
        match messages.recv_timeout(LOOK) {
            Ok(message) => return message,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(early()),
        }
    }
}

fn early() -> Failure {
    Failure::Network("the connection ended before the file did".into())
}

fn network(cause: ureq::Error) -> Failure {
    Failure::Network(cause.into())
}

fn circle(url: &str) -> Failure {
    Error::new(format!("{url}: more than {HOPS} redirects")).hint("check HF_ENDPOINT and HTTPS_PROXY").into()
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.trim().to_owned())
}

/// Scheme, host and port of an address.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    url[host..].find(['/', '?', '#']).map_or(url, |end| &url[..host + end])
}

/// Where a redirect leads to.
fn location(url: &str, response: &Response<Body>) -> Result<Option<String>, Failure> {
    if !response.status().is_redirection() {
        return Ok(None);
    }
    let Some(target) = text(response.headers(), "location") else {
        return Err(Error::new(format!("{url}: a redirect that leads nowhere")).into());
    };
    let origin = origin(url);
    Ok(Some(match target {
        target if target.starts_with("http://") || target.starts_with("https://") => target,
        target if target.starts_with("//") => format!("{}:{target}", origin.split(':').next().unwrap_or("https")),
        target => format!("{origin}/{}", target.trim_start_matches('/')),
    }))
}

/// What a server says that refuses.
fn refused(response: Response<Body>) -> Failure {
    let headers = response.headers();
    let code = response.status().as_u16();
    let name = text(headers, "x-error-code").unwrap_or_default();
    let seconds = text(headers, "retry-after").and_then(|text| text.parse().ok()).or_else(|| {
        // The hub's own: `"api";r=0;t=55`, with t the seconds until it counts anew.
        let limit = text(headers, "ratelimit")?;
        limit.split(';').find_map(|part| part.trim().strip_prefix("t=")?.parse().ok())
    });
    let mut message = text(headers, "x-error-message").unwrap_or_default();
    if message.is_empty() {
        let mut body = String::new();
        // Only for the message; without it the number has to do.
        response.into_body().into_reader().take(4096).read_to_string(&mut body).ok();
        let json: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
        message = json["error"].as_str().unwrap_or_default().to_owned();
    }
    Failure::Status { code, name, message, wait: seconds.map(Duration::from_secs) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_stays_with_the_hub() {
        let agent = Agent::new_with_defaults();
        let client = Client { agent, endpoint: "https://hub.example".into(), token: Some("hf_x".into()) };
        assert_eq!(client.token_for("https://hub.example/a/b?c"), Some("hf_x"));
        for other in
            ["https://cdn.example/a", "http://hub.example/a", "https://hub.example:8443/a", "https://hub.example.evil"]
        {
            assert_eq!(client.token_for(other), None, "{other}");
        }
    }

    #[test]
    fn redirects_lead_where_they_say() {
        let lead = |target: &str| {
            let response = Response::builder().status(302).header("location", target);
            location("https://hub.example/a/b", &response.body(Body::builder().data("")).unwrap()).unwrap().unwrap()
        };
        assert_eq!(lead("https://cdn.example/x"), "https://cdn.example/x");
        assert_eq!(lead("/api/x"), "https://hub.example/api/x");
        assert_eq!(lead("//cdn.example/x"), "https://cdn.example/x");
    }
}
