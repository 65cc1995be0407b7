//! Models by name, against a small hub on the loopback interface: what is fetched, kept, resumed and refused.

mod common;

use common::checkpoint::Shape;
use common::hub::{Fault, Hub, Repo, Request, TOKEN, commit, etag, sha256};
use common::{Run, folder, llmq, names, run, tiny};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const MODEL: &str = "org/tiny";
const HINT: &str = "\nhint: ";

/// What `quantize` needs at least, and quickly.
const QUICK: [&str; 4] = ["--type", "Q4_0", "--method", "rtn"];

fn hub() -> Hub {
    Hub::new(vec![Repo::of_folder(MODEL, &tiny())])
}

/// Quantizes in a working folder, without saying where to.
fn quantize(hub: &Hub, home: &Path, place: &Path, model: &str) -> Run {
    let args = [&["quantize", model], &QUICK[..]].concat();
    run(hub.command(home, &args).current_dir(place))
}

/// The file that the folder itself becomes.
fn expected() -> Vec<u8> {
    let out = folder();
    llmq!["quantize", tiny(), "-o", out.path().join("x.gguf"); QUICK].ok();
    fs::read(out.path().join("x.gguf")).unwrap()
}

fn paths(requests: &[Request]) -> Vec<&str> {
    requests.iter().map(|request| request.path.as_str()).collect()
}

/// The requests for the content of weights.
fn weights(requests: &[Request]) -> Vec<&Request> {
    requests.iter().filter(|r| r.cdn && r.path.ends_with(".safetensors")).collect()
}

/// The incomplete blobs in a home.
fn incomplete(home: &Path) -> Vec<u64> {
    let blobs = home.join("hub/models--org--tiny/blobs");
    let names = if blobs.exists() { names(&blobs) } else { vec![] };
    let parts = names.iter().filter(|name| name.ends_with(".incomplete"));
    parts.map(|name| blobs.join(name).metadata().unwrap().len()).collect()
}

#[test]
fn a_model_is_fetched_once_and_the_file_is_called_after_it() {
    let mut repo = Repo::of_folder(MODEL, &tiny());
    for other in ["pytorch_model.bin", "tiny-Q4_0.gguf", "onnx/model.onnx", "original/consolidated.00.pth"] {
        repo.files.insert(other.into(), b"not needed".to_vec());
    }
    let hub = Hub::new(vec![repo]);
    let (home, place) = (folder(), folder());
    let run = quantize(&hub, home.path(), place.path(), MODEL).ok();
    assert!(run.stderr.contains("fetching org/tiny from http://127.0.0.1"), "{}", run.stderr);
    assert_eq!(names(place.path()), ["tiny.Q4_0.gguf"]);
    let file = place.path().join("tiny.Q4_0.gguf");
    assert!(fs::read(&file).unwrap() == expected(), "other bytes than the folder gives");
    let requests = hub.requests();
    let unwanted = ["README", ".bin", ".gguf", "onnx", ".pth"];
    assert!(!requests.iter().any(|r| unwanted.iter().any(|end| r.path.contains(end))), "{:?}", paths(&requests));

    // As huggingface_hub keeps it.
    let kept = home.path().join("hub/models--org--tiny");
    assert_eq!(fs::read_to_string(kept.join("refs/main")).unwrap(), commit('a'));
    let snapshot = kept.join("snapshots").join(commit('a'));
    let wanted =
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names(&snapshot), wanted);
    for name in wanted {
        let content = fs::read(tiny().join(name)).unwrap();
        let called = if name.ends_with(".safetensors") { sha256(&content) } else { etag(&content) };
        let blob = format!("../../blobs/{}", called.trim_matches('"'));
        #[cfg(unix)]
        assert_eq!(fs::read_link(snapshot.join(name)).unwrap(), Path::new(&blob));
        assert!(fs::read(snapshot.join(&blob)).unwrap() == content, "{name}");
    }

    // A second run asks only whether there is something new; without a network, nothing.
    fs::remove_file(&file).unwrap();
    quantize(&hub, home.path(), place.path(), MODEL).ok();
    assert_eq!(paths(&hub.requests()), ["/api/models/org/tiny/revision/main"]);
    fs::remove_file(&file).unwrap();
    let args = [&["quantize", MODEL], &QUICK[..]].concat();
    common::run(hub.command(home.path(), &args).env("HF_HUB_OFFLINE", "1").current_dir(place.path())).ok();
    assert!(fs::read(&file).unwrap() == expected());
    assert_eq!(hub.requests().len(), 0);
    // The snapshot's own folder is called after the model, too.
    let path = snapshot.to_str().unwrap();
    quantize(&hub, home.path(), place.path(), path).failed(2, &["tiny.Q4_0.gguf", HINT]);
}

#[test]
fn variables_say_where_files_are_kept() {
    let hub = hub();
    let (home, cache) = (folder(), folder());
    let args = ["eval", MODEL, "--perplexity", "--chunks", "2", "--json"];
    run(hub.command(home.path(), &args).env("HF_HUB_CACHE", cache.path())).ok();
    assert_eq!(names(home.path()), [""; 0]);
    assert_eq!(names(cache.path()), [".locks", "models--org--tiny"]);
}

#[test]
fn eval_takes_names_for_the_model_and_its_reference() {
    let hub = hub();
    let (home, out) = (folder(), folder());
    let file = out.path().join("x.gguf");
    llmq!["quantize", tiny(), "-o", &file; QUICK].ok();
    let file = file.to_str().unwrap();
    let of = |run: Run| run.ok().summary()["kl_divergence"].as_f64().unwrap();
    let common = ["--chunks", "4", "--json"];
    let named = of(hub.llmq(home.path(), &[&["eval", file, "--reference", MODEL], &common[..]].concat()));
    assert_eq!(named, of(llmq!["eval", file, "--reference", tiny(); common]));
    assert!(named > 0.0);
    let same = hub.llmq(home.path(), &[&["eval", MODEL, "--reference", MODEL], &common[..]].concat());
    assert!(of(same).abs() < 1e-9);
}

#[test]
fn a_revision_is_a_branch_or_a_commit() {
    let mut other = Repo::of_folder(MODEL, &tiny());
    (other.revision, other.commit) = ("refs/pr/2".into(), commit('b'));
    let config = String::from_utf8(other.files["config.json"].clone()).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["max_position_embeddings"] = 128.into();
    other.files.insert("config.json".into(), config.to_string().into_bytes());
    let hub = Hub::new(vec![Repo::of_folder(MODEL, &tiny()), other]);
    let home = folder();
    let context = |model: &str| {
        let out = folder();
        let file = out.path().join("x.gguf");
        let args = [&["quantize", model, "-o", file.to_str().unwrap()], &QUICK[..]].concat();
        hub.llmq(home.path(), &args).ok();
        let keys = llmq!["inspect", &file, "--json"].ok().lines("metadata");
        keys.iter().find(|key| key["key"] == "llama.context_length").unwrap()["value"].as_u64().unwrap()
    };
    let main = context(MODEL);
    assert!(main > 128);
    assert_eq!(context("org/tiny@refs/pr/2"), 128);
    hub.requests();
    // A commit never changes, so nobody need be asked; and what both have was not fetched twice.
    assert_eq!(context(&format!("org/tiny@{}", commit('b'))), 128);
    assert_eq!(hub.requests().len(), 0);
    assert_eq!(names(&home.path().join("hub/models--org--tiny/blobs")).len(), 6);
    assert_eq!(context(&format!("org/tiny@{}", commit('a'))), main);
    let wrong = hub.llmq(home.path(), &["plan", "org/tiny@v9"]);
    wrong.failed(1, &["has no revision 'v9'", "HTTP 404", HINT, "main branch"]);
}

#[test]
fn what_is_here_comes_first() {
    let hub = hub();
    let (home, place) = (folder(), folder());
    Shape::default().write(&place.path().join("org/tiny"));
    let args = ["inspect", MODEL, "--json"];
    let run = run(hub.command(home.path(), &args).current_dir(place.path())).ok();
    assert_ne!(run.summary()["elements"], llmq!["inspect", tiny(), "--json"].ok().summary()["elements"]);
    assert_eq!((hub.requests().len(), names(home.path()).len()), (0, 0));
    // What cannot be a name of the hub's is a path.
    for path in ["./org/none", "org/none.gguf", "org/none/", "none"] {
        hub.llmq(home.path(), &["inspect", path]).failed(1, &[path.trim_end_matches('/')]);
    }
    assert_eq!(hub.requests().len(), 0);
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let mut repo = Repo::of_folder(MODEL, &tiny());
    repo.gated = true;
    let hub = Hub::new(vec![repo]);
    for how in ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HOME"] {
        let (home, place) = (folder(), folder());
        let file = if how == "HF_HOME" { home.path().join("token") } else { place.path().join("secret") };
        fs::write(&file, format!("{TOKEN}\n")).unwrap();
        let mut command = hub.command(home.path(), &["inspect", MODEL]);
        match how {
            "HF_TOKEN" => command.env(how, TOKEN),
            "HF_TOKEN_PATH" => command.env(how, &file),
            _ => &mut command,
        };
        run(&mut command).ok();
        let mut command = hub.command(home.path(), &["eval", MODEL, "--perplexity", "--chunks", "2"]);
        run(command.env("HF_TOKEN", TOKEN)).ok();
        let requests = hub.requests();
        let wanted = format!("Bearer {TOKEN}");
        assert!(requests.iter().filter(|r| !r.cdn).all(|r| r.authorization.as_ref() == Some(&wanted)), "{how}");
        assert!(requests.iter().any(|r| r.cdn), "{how}");
        assert!(requests.iter().filter(|r| r.cdn).all(|r| r.authorization.is_none()), "{how}");
    }
}

#[test]
fn no_access_says_how_to_get_it() {
    let mut repo = Repo::of_folder(MODEL, &tiny());
    repo.gated = true;
    let hub = Hub::new(vec![repo]);
    let home = folder();
    let licence = format!("accept the licence at {}/org/tiny", hub.endpoint);
    let run = hub.llmq(home.path(), &["plan", MODEL]);
    run.failed(1, &["org/tiny is gated", "HTTP 401", "must be authenticated", HINT, &licence, "set HF_TOKEN"]);
    let with =
        |token: &str, model: &str| common::run(hub.command(home.path(), &["plan", model]).env("HF_TOKEN", token));
    with("hf_other", MODEL).failed(1, &["has no access", "HTTP 403", HINT, &licence, "with that account"]);
    with("hf_other", "org/none")
        .failed(1, &["org/none does not exist, or it is private", "HTTP 404", HINT, "spelling"]);
    let run = hub.llmq(home.path(), &["plan", "org/none"]);
    run.failed(
        1,
        &["org/none does not exist, or it is private", "HTTP 401", HINT, "no folder of that name", "set HF_TOKEN"],
    );
    hub.fault("/api/models", Fault::Status(401, vec![]), 1);
    with("hf_old", MODEL).failed(1, &["the hub refuses the token", HINT, "settings/tokens"]);
    with("hf old", MODEL).failed(2, &["token", HINT, "HF_TOKEN"]);
}

#[test]
fn a_hub_that_is_busy_or_broken_is_asked_again() {
    let hub = hub();
    let home = folder();
    let soon = || vec![("Retry-After", "1".to_owned())];
    hub.fault("/api/models", Fault::Status(429, soon()), 1);
    hub.fault("config.json", Fault::Status(503, vec![]), 2);
    let started = Instant::now();
    hub.llmq(home.path(), &["inspect", MODEL]).ok();
    assert!(started.elapsed() >= Duration::from_secs(1));
    hub.mend();
    // Not for ever.
    let home = folder();
    let later = vec![("RateLimit", "\"api\";r=0;t=290".to_owned())];
    hub.fault("/api/models", Fault::Status(429, later), 1);
    hub.llmq(home.path(), &["inspect", MODEL])
        .failed(1, &["too many requests", "HTTP 429", HINT, "wait 290 s", "HF_TOKEN"]);
    hub.fault("/api/models", Fault::Status(500, vec![]), usize::MAX);
    hub.requests();
    hub.llmq(home.path(), &["inspect", MODEL]).failed(1, &["HTTP 500", HINT, "try again later"]);
    assert_eq!(hub.requests().len(), 5);
}

#[test]
fn a_broken_transfer_goes_on_where_it_ended() {
    let hub = hub();
    let (home, place) = (folder(), folder());
    hub.fault(".safetensors", Fault::Cut(1_000_000), 2);
    quantize(&hub, home.path(), place.path(), MODEL).ok();
    assert!(fs::read(place.path().join("tiny.Q4_0.gguf")).unwrap() == expected());
    let requests = hub.requests();
    let ranges: Vec<_> = weights(&requests).iter().map(|r| r.range.clone()).collect();
    assert_eq!(ranges, [None, Some("bytes=1000000-".into()), Some("bytes=2000000-".into())]);
    let served: usize = weights(&requests).iter().map(|r| r.served).sum();
    assert_eq!(served as u64, tiny().join("model.safetensors").metadata().unwrap().len());
    assert_eq!(incomplete(home.path()), [0; 0]);
}

#[test]
fn a_transfer_that_cannot_be_finished_is_resumed_by_the_next_run() {
    let hub = hub();
    let (home, place) = (folder(), folder());
    hub.fault(".safetensors", Fault::Cut(700_000), 1);
    hub.fault(".safetensors", Fault::Cut(0), usize::MAX);
    let run = quantize(&hub, home.path(), place.path(), MODEL);
    run.failed(
        1,
        &["cannot fetch org/tiny: no answer from", "only a part", "caused by", HINT, "the same command goes on"],
    );
    assert_eq!(names(place.path()), [""; 0]);
    assert_eq!(incomplete(home.path()), [700_000]);
    hub.mend();
    hub.requests();
    quantize(&hub, home.path(), place.path(), MODEL).ok();
    assert_eq!(weights(&hub.requests())[0].range.as_deref(), Some("bytes=700000-"));
    assert!(fs::read(place.path().join("tiny.Q4_0.gguf")).unwrap() == expected());
}

/// A mirror or a disk that damages a file is told, and what it gave is not kept.
#[test]
fn content_of_another_digest_is_not_kept() {
    let mut repo = Repo::of_folder(MODEL, &tiny());
    let right = sha256(&repo.files["model.safetensors"]);
    let wrong = sha256(b"something else");
    repo.called = Some(wrong.clone());
    let hub = Hub::new(vec![repo]);
    let (home, place) = (folder(), folder());
    let digests = [&right, &wrong].map(|digest| digest.trim_matches('"').to_owned());
    quantize(&hub, home.path(), place.path(), MODEL)
        .failed(1, &["model.safetensors arrived damaged", &digests[0], &digests[1], HINT, "fetches it again"]);
    assert_eq!(names(place.path()), [""; 0]);
    assert_eq!(incomplete(home.path()), [0; 0]);
    let blobs = names(&home.path().join("hub/models--org--tiny/blobs"));
    assert!(!digests.iter().any(|digest| blobs.contains(digest)), "{blobs:?}");
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let hub = hub();
    let (home, place) = (folder(), folder());
    hub.fault(".safetensors", Fault::Cut(900_000), 1);
    hub.fault(".safetensors", Fault::NoRanges, 1);
    quantize(&hub, home.path(), place.path(), MODEL).ok();
    assert!(fs::read(place.path().join("tiny.Q4_0.gguf")).unwrap() == expected());
}

#[test]
fn a_silent_server_is_left() {
    let hub = hub();
    let (home, place) = (folder(), folder());
    hub.fault(".safetensors", Fault::Stall(2_000_000), 1);
    let args = [&["quantize", MODEL], &QUICK[..]].concat();
    let mut command = hub.command(home.path(), &args);
    run(command.env("HF_HUB_DOWNLOAD_TIMEOUT", "1").current_dir(place.path())).ok();
    assert!(fs::read(place.path().join("tiny.Q4_0.gguf")).unwrap() == expected());
    assert_eq!(weights(&hub.requests())[1].range.as_deref(), Some("bytes=2000000-"));
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_download_at_once_and_keeps_what_has_come() {
    use std::process::{Command, Stdio};
    let hub = hub();
    let (home, place) = (folder(), folder());
    hub.fault(".safetensors", Fault::Stall(1_500_000), 1);
    let args = [&["quantize", MODEL], &QUICK[..]].concat();
    let mut command = hub.command(home.path(), &args);
    let child = command.current_dir(place.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while incomplete(home.path()) != [1_500_000] {
        assert!(started.elapsed() < Duration::from_secs(60), "nothing came");
        std::thread::sleep(Duration::from_millis(20));
    }
    run(Command::new("kill").args(["-INT", child.id().to_string().as_str()])).ok();
    let asked = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("interrupted; what has arrived is kept"), "{stderr}");
    assert_eq!(incomplete(home.path()), [1_500_000]);
    assert_eq!(names(place.path()), [""; 0]);
}

#[test]
fn without_a_network_what_is_kept_is_used_or_missed_by_name() {
    let hub = hub();
    let home = folder();
    let offline = |home: &Path| run(hub.command(home, &["inspect", MODEL]).env("HF_HUB_OFFLINE", "yes"));
    let nothing = ["HF_HUB_OFFLINE is set", "nothing of org/tiny", HINT, "unset HF_HUB_OFFLINE"];
    offline(home.path()).failed(1, &nothing);
    let nowhere = |home: &Path| run(hub.command(home, &["inspect", MODEL]).env("HF_ENDPOINT", "http://127.0.0.1:9"));
    nowhere(home.path()).failed(1, &["no answer from http://127.0.0.1:9", "caused by", HINT, "HF_ENDPOINT"]);
    // Headers are not kept, weights are.
    hub.llmq(home.path(), &["inspect", MODEL]).ok();
    offline(home.path()).failed(1, &["only a part of org/tiny"]);
    hub.llmq(home.path(), &["eval", MODEL, "--perplexity", "--chunks", "2"]).ok();
    hub.requests();
    let kept = offline(home.path()).ok().stdout;
    let run = nowhere(home.path()).ok();
    assert_eq!(run.stdout, kept);
    assert!(run.stderr.contains("note: http://127.0.0.1:9 does not answer"), "{}", run.stderr);
    assert_eq!(hub.requests().len(), 0);
}

#[test]
fn plans_and_dry_runs_fetch_headers_only() {
    let root = folder();
    // Called as the model is, for names are a part of sizes.
    let model = root.path().join("tiny");
    let mut checkpoint = Shape { hidden: 256, ffn: 512, blocks: 4, ..Shape::default() }.checkpoint();
    checkpoint.shards = 3;
    checkpoint.write(&model);
    let hub = Hub::new(vec![Repo::of_folder(MODEL, &model)]);
    let home = folder();
    let header = |i: usize| {
        let bytes = fs::read(model.join(checkpoint.file(i))).unwrap();
        8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
    };
    let headers: usize = (0..3).map(header).sum();
    let sizes = |run: Run| run.ok().lines("size").iter().map(|size| size["bytes"].clone()).collect::<Vec<_>>();
    assert_eq!(sizes(hub.llmq(home.path(), &["plan", MODEL, "--json"])), sizes(llmq!["plan", &model, "--json"]));
    let of_weights = |requests: &[Request]| weights(requests).iter().map(|r| r.served).sum::<usize>();
    assert_eq!(of_weights(&hub.requests()), headers);
    let dry = |run: Run| run.ok().summary()["bytes"].clone();
    let named = dry(hub.llmq(home.path(), &["quantize", MODEL, "--dry-run", "--json"]));
    assert_eq!(named, dry(llmq!["quantize", &model, "--dry-run", "--json"]));
    let shown = hub.llmq(home.path(), &["inspect", MODEL]).ok().stdout;
    assert_eq!(shown, llmq!["inspect", &model].ok().stdout);
    assert_eq!(of_weights(&hub.requests()), 2 * headers);
    let snapshot = home.path().join("hub/models--org--tiny/snapshots").join(commit('a'));
    assert!(names(&snapshot).iter().all(|name| !name.ends_with(".safetensors")), "{:?}", names(&snapshot));
}

#[test]
fn shards_are_fetched_as_their_index_says() {
    let root = folder();
    let model = root.path().join("tiny");
    let mut checkpoint = Shape::default().checkpoint();
    checkpoint.shards = 3;
    checkpoint.write(&model);
    let mut repo = Repo::of_folder(MODEL, &model);
    repo.files.insert("model-00009-of-00009.safetensors".into(), b"left over".to_vec());
    let hub = Hub::new(vec![repo]);
    let (home, place) = (folder(), folder());
    quantize(&hub, home.path(), place.path(), MODEL).ok();
    let out = place.path().join("local.gguf");
    llmq!["quantize", &model, "-o", &out; QUICK].ok();
    assert!(fs::read(place.path().join("tiny.Q4_0.gguf")).unwrap() == fs::read(&out).unwrap());
    assert_eq!(weights(&hub.requests()).len(), 3);
}

#[test]
fn repositories_without_a_checkpoint_say_what_they_hold() {
    let of = |id: &str, names: &[&str]| {
        let mut repo = Repo { id: id.into(), revision: "main".into(), commit: commit('c'), ..Repo::default() };
        repo.files.extend(names.iter().map(|name| ((*name).to_owned(), b"x".to_vec())));
        repo
    };
    let hub = Hub::new(vec![
        of("org/gguf", &["README.md", "m-Q4_K_M.gguf"]),
        of("org/bin", &["config.json", "pytorch_model.bin"]),
        of("org/none", &["README.md"]),
    ]);
    let home = folder();
    let refused = |id: &str, wanted: &[&str]| {
        hub.llmq(home.path(), &["plan", id]).failed(1, &[&[id, HINT], wanted].concat());
    };
    refused("org/gguf", &["m-Q4_K_M.gguf", "made from"]);
    refused("org/bin", &["pytorch_model.bin", "safetensors", "refs/pr/N"]);
    refused("org/none", &["nor weights of any other kind"]);
    assert!(hub.requests().iter().all(|r| r.path.starts_with("/api/")));
}

#[test]
fn no_room_is_said_before_anything_comes() {
    let mut repo = Repo::of_folder(MODEL, &tiny());
    repo.claimed = Some(1 << 60);
    let hub = Hub::new(vec![repo]);
    let (home, place) = (folder(), folder());
    let run = quantize(&hub, home.path(), place.path(), MODEL);
    run.failed(1, &["no room for the download: 1152921504606846976 bytes", HINT, "HF_HUB_CACHE"]);
    assert_eq!(weights(&hub.requests()).len(), 0);
}

#[test]
fn an_output_in_the_way_is_said_before_anything_comes() {
    let hub = hub();
    let (home, place) = (folder(), folder());
    fs::write(place.path().join("tiny.Q4_0.gguf"), "precious").unwrap();
    quantize(&hub, home.path(), place.path(), MODEL).failed(2, &["tiny.Q4_0.gguf", HINT, "--force"]);
    assert_eq!(hub.requests().len(), 0);
    assert_eq!(fs::read(place.path().join("tiny.Q4_0.gguf")).unwrap(), b"precious");
}
