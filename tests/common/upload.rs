//! How the small hub takes files: huggingface.co's protocol, as the Python package huggingface_hub speaks it.

use super::hub::{Answer, Repo, State, TOKEN, commit, etag, sha256};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// Files of more bytes than this are uploaded in parts of this size.
pub const PART: usize = 700_000;

/// A token that may only read.
pub const READER: &str = "hf_reader";

/// A request with a body.
pub struct Sent<'a> {
    pub path: &'a str,
    pub authorization: Option<&'a str>,
    pub body: &'a [u8],
    /// What the request said of the body's length.
    pub length: Option<usize>,
}

fn done(value: Value) -> Answer {
    Answer::new(200, value.to_string().into_bytes())
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// A file's SHA-256 without quotes.
fn oid(content: &[u8]) -> String {
    sha256(content).trim_matches('"').to_owned()
}

/// Answers a POST or a PUT.
pub fn respond(state: &mut State, cdn: bool, sent: &Sent) -> Answer {
    // Neither the hub nor its storage takes a body of unknown length.
    if sent.length.is_none() {
        return Answer::new(411, vec![]);
    }
    if cdn {
        return store(state, sent);
    }
    let token = sent.authorization.and_then(|value| value.strip_prefix("Bearer "));
    let path = sent.path;
    if let Some((id, _)) = path.strip_prefix("/api/models/").and_then(|rest| rest.split_once("/paths-info/")) {
        return paths_info(state, id, sent);
    }
    match token {
        None | Some("hf_old") => return Answer::refused(401, "", "Invalid username or password."),
        Some(TOKEN) => {}
        Some(_) => return Answer::refused(403, "", "You don't have the rights to write to this repository"),
    }
    if path.starts_with("/complete/") {
        return complete(state, sent);
    }
    let body = || serde_json::from_slice::<Value>(sent.body).expect("JSON");
    if path == "/api/repos/create" {
        let (org, name) = (text(&body(), "organization").to_owned(), text(&body(), "name").to_owned());
        let (id, revision) = (format!("{org}/{name}"), "main".to_owned());
        state.repos.push(Repo { id: id.clone(), revision, commit: commit('0'), ..Repo::default() });
        return done(json!({ "url": id }));
    }
    if let Some(id) = path.strip_suffix(".git/info/lfs/objects/batch") {
        assert!(state.repos.iter().any(|repo| repo.id == id[1..]));
        let objects = body()["objects"].as_array().unwrap().clone();
        let objects: Vec<Value> = objects.iter().map(|object| batch(state, object)).collect();
        return done(json!({ "transfer": "basic", "objects": objects }));
    }
    if path.ends_with(".git/info/lfs/verify") {
        let held = state.objects.get(text(&body(), "oid")).map(Vec::len);
        return if held.map(|n| n as u64) == body()["size"].as_u64() {
            done(json!({}))
        } else {
            Answer::new(404, vec![])
        };
    }
    let rest = path.strip_prefix("/api/models/").unwrap_or_else(|| panic!("{path}"));
    if rest.contains("/preupload/") {
        let files = body()["files"].as_array().unwrap().clone();
        let mode = |file: &Value| {
            let large = text(file, "path").ends_with(".gguf");
            assert!(STANDARD.decode(text(file, "sample")).unwrap().len() <= 512);
            json!({ "path": file["path"], "uploadMode": if large { "lfs" } else { "regular" }, "shouldIgnore": false })
        };
        return done(json!({ "files": files.iter().map(mode).collect::<Vec<_>>() }));
    }
    let (id, revision) = rest.split_once("/commit/").unwrap_or_else(|| panic!("{path}"));
    committed(state, id, &revision.replace("%2F", "/"), sent)
}

fn paths_info(state: &State, id: &str, sent: &Sent) -> Answer {
    let (_, revision) = sent.path.rsplit_once('/').unwrap();
    let Some(repo) = state.repos.iter().find(|repo| repo.id == id && repo.commit == revision) else {
        return Answer::refused(404, "RepoNotFound", "Repository not found");
    };
    let body: Value = serde_json::from_slice(sent.body).unwrap();
    let info = |path: &Value| {
        let (name, content) = repo.files.get_key_value(path.as_str().unwrap())?;
        let large = json!({ "oid": repo.called.clone().unwrap_or(oid(content)), "size": content.len() });
        let large = if name.ends_with(".gguf") { large } else { Value::Null };
        Some(json!({ "type": "file", "path": name, "size": content.len(), "oid": etag(content), "lfs": large }))
    };
    done(body["paths"].as_array().unwrap().iter().filter_map(info).collect())
}

/// What is to be done with an object: nothing if it is there, else an upload in one piece or in several.
fn batch(state: &State, object: &Value) -> Value {
    let (oid, size) = (text(object, "oid"), object["size"].as_u64().unwrap() as usize);
    let mut answer = json!({ "oid": oid, "size": size });
    if !state.objects.contains_key(oid) {
        let verify = json!({ "href": format!("{}/org.git/info/lfs/verify", state.own) });
        let address = |part: usize| format!("{}/put/{oid}/part-{part}", state.cdn);
        let upload = if size <= PART {
            json!({ "href": address(0) })
        } else {
            let mut header = json!({ "chunk_size": PART.to_string() });
            // In no order, and with as many digits as the last one.
            (1..=size.div_ceil(PART)).rev().for_each(|part| header[format!("{part:05}")] = address(part).into());
            json!({ "href": format!("{}/complete/{oid}", state.own), "header": header })
        };
        answer["actions"] = json!({ "upload": upload, "verify": verify });
    }
    answer
}

fn store(state: &mut State, sent: &Sent) -> Answer {
    let mut words = sent.path.trim_start_matches("/put/").split('/');
    let (name, part) =
        (words.next().unwrap().to_owned(), words.next().unwrap().trim_start_matches("part-").parse().unwrap());
    assert!(sent.authorization.is_none(), "the token is the hub's");
    if part == 0 {
        assert_eq!(oid(sent.body), name);
        state.objects.insert(name, sent.body.to_vec());
    } else {
        state.parts.insert((name, part), sent.body.to_vec());
    }
    Answer::new(200, vec![]).with("ETag", etag(sent.body))
}

fn complete(state: &mut State, sent: &Sent) -> Answer {
    let name = sent.path.trim_start_matches("/complete/");
    let body: Value = serde_json::from_slice(sent.body).unwrap();
    let mut content = Vec::new();
    for (i, part) in body["parts"].as_array().unwrap().iter().enumerate() {
        let held = &state.parts[&(name.to_owned(), i + 1)];
        assert_eq!((part["partNumber"].as_u64(), text(part, "etag")), (Some(i as u64 + 1), etag(held).as_str()));
        content.extend_from_slice(held);
    }
    assert_eq!((oid(&content).as_str(), text(&body, "oid")), (name, name));
    state.objects.insert(name.to_owned(), content);
    done(json!({}))
}

fn committed(state: &mut State, id: &str, revision: &str, sent: &Sent) -> Answer {
    let objects = &state.objects;
    let repo = state.repos.iter_mut().find(|repo| repo.id == id && repo.revision == revision).unwrap();
    let lines = std::str::from_utf8(sent.body).unwrap().lines();
    for line in lines.map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let value = &line["value"];
        match text(&line, "key") {
            "header" if text(value, "parentCommit") != repo.commit => {
                return Answer::refused(412, "", "A commit has happened since. Please refresh and try again.");
            }
            "header" => assert!(!text(value, "summary").is_empty()),
            "file" => {
                repo.files.insert(text(value, "path").into(), STANDARD.decode(text(value, "content")).unwrap());
            }
            "lfsFile" => {
                let content = objects.get(text(value, "oid")).expect("an object that was uploaded");
                assert_eq!(value["size"].as_u64(), Some(content.len() as u64));
                repo.files.insert(text(value, "path").into(), content.clone());
            }
            other => panic!("{other}"),
        }
    }
    repo.commit = oid(&[repo.commit.as_bytes(), sent.body].concat())[..40].to_owned();
    done(json!({ "commitOid": repo.commit, "success": true }))
}
