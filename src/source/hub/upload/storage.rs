//! Large files into the hub's storage, by Git LFS's batch interface, with the hub's own transfer `multipart` beside `basic`.

use super::{JSON, LFS, LocalFile, Upload};
use crate::error::Error;
use crate::source::hub::fetch::failure::Failure;
use crate::source::hub::fetch::transfer::{abreast, patiently};
use serde::Deserialize;
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the storage wants to be done with an object.
#[derive(Deserialize)]
struct Object {
    oid: String,
    actions: Option<Actions>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Actions {
    upload: Action,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: BTreeMap<String, Value>,
}

/// A part of a file on its way.
struct Part<'a> {
    file: &'a LocalFile,
    url: String,
    from: u64,
    length: u64,
}

impl Upload<'_> {
    /// Brings large files to the storage. Returns how many bytes it did not have.
    pub(super) fn store(&self, files: &[&LocalFile]) -> Result<u64, Failure> {
        #[derive(Deserialize)]
        struct Answer {
            objects: Vec<Object>,
        }
        if files.is_empty() {
            return Ok(0);
        }
        // The same content under two names is one object.
        let first = |&(i, file): &(usize, &&LocalFile)| files[..i].iter().all(|other| other.sha256 != file.sha256);
        let files: Vec<&LocalFile> = files.iter().enumerate().filter(first).map(|(_, file)| *file).collect();
        let objects: Vec<Value> = files.iter().map(|f| json!({ "oid": f.sha256, "size": f.size })).collect();
        let body = json!({
            "operation": "upload", "transfers": ["basic", "multipart"], "objects": objects, "hash_algo": "sha256",
            "ref": { "name": self.repository.revision },
        });
        let Answer { objects } =
            self.post(&format!("/{}.git/info/lfs/objects/batch", self.repository.id), LFS, &body)?;
        let mut parts = Vec::new();
        let mut wanted = Vec::new();
        for &file in &files {
            let object = objects.iter().find(|object| object.oid == file.sha256);
            let object = object.ok_or_else(|| self.nonsense(&format!("nothing of {}", file.name)))?;
            if let Some(error) = &object.error {
                let says = error["message"].as_str().unwrap_or("no reason given");
                return Err(Error::new(format!("the hub does not take {} ({} bytes): {says}", file.name, file.size))
                    .hint("files of at most 45 GB always go: llmq quantize --max-shard-size 45G")
                    .into());
            }
            let Some(actions) = &object.actions else {
                self.watch.note(&format!("{} is in the hub's storage already", file.name));
                continue;
            };
            let own = self.parts(file, &actions.upload)?;
            wanted.push((file, actions, parts.len()..parts.len() + own.len()));
            parts.extend(own);
        }
        let bytes: u64 = parts.iter().map(|part| part.length).sum();
        let many = if wanted.len() == 1 { "1 file".into() } else { format!("{} files", wanted.len()) };
        if bytes > 0 {
            self.watch.begin(&format!("sending {many} to {},", self.environment.endpoint), bytes);
        }
        // Uploads in parts are completed as soon as their last part is there, so that a later failure costs no other file.
        let etags: Vec<Mutex<Option<String>>> = parts.iter().map(|_| Mutex::new(None)).collect();
        let left: Vec<Mutex<usize>> = wanted.iter().map(|(_, _, range)| Mutex::new(range.len())).collect();
        let numbered: Vec<(usize, &Part)> = parts.iter().enumerate().collect();
        abreast(&numbered, |&(i, part)| {
            let etag = self.send(part)?;
            *lock(&etags[i]) = etag;
            let Some(at) = wanted.iter().position(|(_, _, range)| range.contains(&i)) else { return Ok(()) };
            let (file, actions, range) = &wanted[at];
            {
                let mut left = lock(&left[at]);
                *left -= 1;
                if *left > 0 {
                    return Ok(());
                }
            }
            let etags: Vec<Option<String>> = etags[range.clone()].iter().map(|etag| lock(etag).clone()).collect();
            self.complete(file, actions, &etags)
        })?;
        Ok(bytes)
    }

    /// The parts that an upload consists of: one, or as many as there are addresses (the hub's transfer `multipart`).
    fn parts<'f>(&self, file: &'f LocalFile, upload: &Action) -> Result<Vec<Part<'f>>, Failure> {
        let Some(size) = upload.header.get("chunk_size") else {
            return Ok(vec![Part { file, url: upload.href.clone(), from: 0, length: file.size }]);
        };
        let number = size.as_u64().or_else(|| size.as_str()?.parse().ok()).filter(|&n| n > 0);
        let size = number.ok_or_else(|| self.nonsense(&format!("parts of {size} bytes")))?;
        let numbered = upload.header.iter().filter_map(|(key, url)| Some((key.parse::<u64>().ok()?, url.as_str()?)));
        let urls: BTreeMap<u64, &str> = numbered.collect();
        if urls.len() as u64 != file.size.div_ceil(size) || !urls.keys().copied().eq(1..=urls.len() as u64) {
            let what = format!("{} parts of {size} bytes for the {} bytes of {}", urls.len(), file.size, file.name);
            return Err(self.nonsense(&what));
        }
        let part = |(number, url): (&u64, &&str)| {
            let from = (number - 1) * size;
            Part { file, url: (*url).to_owned(), from, length: size.min(file.size - from) }
        };
        Ok(urls.iter().map(part).collect())
    }

    /// Sends a part, again where the connection broke.
    fn send(&self, part: &Part) -> Result<Option<String>, Failure> {
        let Part { file, url, from, length } = part;
        // Bytes that were told, in whichever attempt: what leaves again is not counted again.
        let told = Cell::new(0);
        let sent = patiently(self.watch, || {
            // A file that has become shorter would look like a connection that breaks.
            file.check_unchanged()?;
            let gone = Cell::new(0);
            self.client.put(url, &file.path, *from, *length, &|bytes| {
                gone.set(gone.get() + bytes);
                if gone.get() > told.get() {
                    self.watch.advance(gone.get() - told.get());
                    told.set(gone.get());
                }
            })
        });
        // No token goes with a part: its address is signed, and holds for a time.
        sent.map_err(|failure| match failure {
            Failure::Status { code: 403, .. } => Error::new(format!(
                "the hub's storage takes no more of {} at the address that it gave (HTTP 403)",
                file.name
            ))
            .hint(
                "such an address holds for some hours; the same command asks for new ones, and sends what is not there",
            )
            .into(),
            other => other,
        })
    }

    /// Ends an upload: puts its parts together, and lets the hub look at it.
    fn complete(&self, file: &LocalFile, actions: &Actions, etags: &[Option<String>]) -> Result<(), Failure> {
        file.check_unchanged()?;
        if actions.upload.header.contains_key("chunk_size") {
            let etag = |(i, etag): (usize, &Option<String>)| match etag {
                Some(etag) => Ok(json!({ "partNumber": i + 1, "etag": etag })),
                None => Err(self.nonsense(&format!("no ETag for part {} of {}", i + 1, file.name))),
            };
            let parts = etags.iter().enumerate().map(etag).collect::<Result<Vec<Value>, Failure>>()?;
            let body = json!({ "oid": file.sha256, "parts": parts }).to_string().into_bytes();
            patiently(self.watch, || self.client.post(&actions.upload.href, LFS, body.clone()))?;
        }
        if let Some(verify) = &actions.verify {
            let body = json!({ "oid": file.sha256, "size": file.size }).to_string().into_bytes();
            patiently(self.watch, || self.client.post(&verify.href, JSON, body.clone()))?;
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
