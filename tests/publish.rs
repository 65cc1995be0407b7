//! `llmq publish`, against a small hub on the loopback interface: what is sent, what is not sent again, and what is refused.

mod common;

use common::hub::{Fault, Hub, Repo, Request, TOKEN, commit};
use common::upload::{PART, READER};
use common::{Run, folder, llmq, names, rounded, run, tiny};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const HINT: &str = "\nhint: ";
const TO: &str = "org/tiny-GGUF";

/// What is published: a file, its card and report, and an importance matrix. Made once; whoever changes them copies them.
fn made() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("published");
        if out.exists() {
            fs::remove_dir_all(&out).unwrap();
        }
        fs::create_dir(&out).unwrap();
        let file = rounded(&out, "Q4_0");
        let [page, card, imatrix] = ["report.html", "card.md", "imatrix.gguf"].map(|name| out.join(name));
        let short = ["-c", "128", "--chunks", "4"];
        llmq!["eval", &file, "--reference", tiny(), "--report", page, "--model-card", card; short].ok();
        llmq!["imatrix", tiny(), "-o", &imatrix, "--chunks", "2"].ok();
        out
    })
}

fn all() -> [PathBuf; 4] {
    ["Q4_0.gguf", "card.md", "report.html", "imatrix.gguf"].map(|name| made().join(name))
}

fn publish(hub: &Hub, files: &[PathBuf], token: &str, options: &[&str]) -> Run {
    let home = folder();
    let mut command = hub.command(home.path(), &["publish"]);
    run(command.args(files).arg(TO).args(options).env("HF_TOKEN", token))
}

fn puts(requests: &[Request]) -> Vec<&Request> {
    requests.iter().filter(|request| request.method == "PUT").collect()
}

/// A repository of the hub's has these files of [`made`].
#[track_caller]
fn has(hub: &Hub, files: &[(&str, &Path)]) {
    let repo = hub.repo(TO).expect("a repository");
    assert_eq!(repo.files.len(), files.len(), "{:?}", repo.files.keys());
    for (name, path) in files {
        assert!(repo.files[*name] == fs::read(path).unwrap(), "{name}");
    }
}

#[test]
fn everything_arrives_in_one_commit_and_nothing_twice() {
    let hub = Hub::new(vec![]);
    let [file, card, report, imatrix] = all();
    let shown = publish(&hub, &all(), TOKEN, &["--yes"]).ok();
    let wanted = [("Q4_0.gguf", &*file), ("README.md", &*card), ("report.html", &*report), ("imatrix.gguf", &*imatrix)];
    has(&hub, &wanted);
    assert!(shown.stdout.contains("would be made, public"), "{}", shown.stdout);
    assert!(shown.stdout.lines().any(|line| line.contains("README.md") && line.ends_with("new")), "{}", shown.stdout);
    let page = format!("{}/{TO}/commit/{}", hub.endpoint, hub.repo(TO).unwrap().commit);
    assert!(shown.stderr.contains(&page), "{}", shown.stderr);
    let requests = hub.requests();
    let size = |path: &Path| path.metadata().unwrap().len() as usize;
    assert!(size(&file) > 2 * PART && size(&imatrix) < PART, "in parts, and in one piece");
    assert_eq!(puts(&requests).len(), size(&file).div_ceil(PART) + 1);
    assert_eq!(requests.iter().filter(|r| r.path.contains("/commit/")).count(), 1);

    // All of it is there now.
    let again = publish(&hub, &all(), TOKEN, &["--yes"]).ok();
    assert!(again.stderr.contains("all of it is there already"), "{}", again.stderr);
    let requests = hub.requests();
    assert!(requests.iter().all(|r| r.method == "GET" || r.path.contains("paths-info")), "{requests:?}");

    // A changed text alone is a commit of its own, and no weights are sent.
    let out = folder();
    let changed = out.path().join("report.html");
    fs::write(&changed, "<!doctype html>changed").unwrap();
    let files = [file.clone(), card.clone(), changed.clone()];
    let before = hub.repo(TO).unwrap().commit;
    let summary = publish(&hub, &files, TOKEN, &["--yes", "--json"]).ok();
    let statuses: Vec<_> = summary.lines("file").iter().map(|file| file["status"].clone()).collect();
    assert_eq!(statuses, ["same", "same", "differs"]);
    assert_eq!(summary.summary()["sent"], 0);
    has(&hub, &[wanted[0], wanted[1], ("report.html", &changed), wanted[3]]);
    assert_ne!(hub.repo(TO).unwrap().commit, before);
    assert_eq!(puts(&hub.requests()).len(), 0);
}

#[test]
fn a_dry_run_and_a_question_that_nobody_answers_change_nothing() {
    let repo = Repo::of_file(TO, "Q4_0.gguf", b"an older one".to_vec());
    let hub = Hub::new(vec![repo]);
    let run = publish(&hub, &all(), TOKEN, &["--dry-run", "--json"]).ok();
    let statuses: Vec<_> = run.lines("file").iter().map(|file| file["status"].clone()).collect();
    assert_eq!(statuses, ["differs", "new", "new", "new"]);
    assert_eq!((&run.summary()["dry_run"], &run.summary()["commit"]), (&true.into(), &().into()));
    let shown = publish(&hub, &all(), TOKEN, &["--dry-run"]).ok().stdout;
    assert!(shown.contains(&format!("{}/{TO}", hub.endpoint)) && shown.contains("replaces 0.01 kB"), "{shown}");
    assert!(hub.requests().iter().all(|r| r.method == "GET" || r.path.contains("paths-info")));
    // There is no terminal here.
    publish(&hub, &all(), TOKEN, &[]).failed(2, &["no terminal", HINT, "--yes", "--dry-run"]);
    assert_eq!(hub.requests().len(), 0);
    assert_eq!(hub.repo(TO).unwrap().commit, commit('d'));
}

#[test]
fn weights_that_nobody_compared_are_refused() {
    let hub = Hub::new(vec![]);
    let [file, card, ..] = all();
    let alone = [file.clone()];
    let told = ["Q4_0.gguf", "no model card", HINT, "llmq eval", "--model-card README.md", "--unproven"];
    publish(&hub, &alone, TOKEN, &["--yes"]).failed(2, &told);
    // The card of another file with that name, and a card that somebody else wrote.
    let out = folder();
    let other = out.path().join("Q4_0.gguf");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&other, bytes).unwrap();
    publish(&hub, &[other, card.clone()], TOKEN, &["--yes"]).failed(2, &["the model card judges another Q4_0.gguf"]);
    let foreign = out.path().join("README.md");
    let text = fs::read_to_string(&card).unwrap();
    fs::write(&foreign, text.replace("quantized_by: llmq\n", "")).unwrap();
    publish(&hub, &[file.clone(), foreign], TOKEN, &["--yes"]).failed(2, &["no model card"]);
    // The original's own hash proves nothing.
    let original = tiny().join("model.safetensors");
    publish(&hub, &[original, card], TOKEN, &["--yes"]).failed(2, &["model.safetensors", "no model card"]);
    // Weights in another format.
    for name in ["model.onnx", "pytorch_model.bin"] {
        let other = out.path().join(name);
        fs::write(&other, "weights").unwrap();
        publish(&hub, &[other], TOKEN, &["--yes"]).failed(2, &[name, "no model card", HINT, "--unproven"]);
    }
    assert_eq!(hub.requests().len(), 0);
    let run = publish(&hub, &alone, TOKEN, &["--yes", "--unproven"]).ok();
    assert!(run.stderr.contains("note: ") && run.stderr.contains("no model card"), "{}", run.stderr);
    has(&hub, &[("Q4_0.gguf", &file)]);
}

#[test]
fn no_right_to_write_is_said_before_anything_is_sent() {
    let hub = Hub::new(vec![Repo::of_file(TO, "README.md", b"# Mine".to_vec())]);
    let place = format!("{}/settings/tokens", hub.endpoint);
    publish(&hub, &all(), "hf_old", &["--yes"]).failed(1, &["refuses the token", "HTTP 401", HINT, &place]);
    publish(&hub, &all(), READER, &["--yes"]).failed(1, &["does not allow that", "HTTP 403", HINT, "write", &place]);
    let home = folder();
    run(&mut hub.command(home.path(), &["publish", "--yes", "README.md", TO]))
        .failed(1, &["needs a token", HINT, "HF_TOKEN"]);
    let mut offline = hub.command(home.path(), &["publish", "--yes", "README.md", TO]);
    run(offline.env("HF_HUB_OFFLINE", "1")).failed(1, &["HF_HUB_OFFLINE", HINT]);
    let empty = Hub::new(vec![]);
    publish(&empty, &all(), READER, &["--yes"]).failed(1, &["HTTP 403", TO]);
    assert_eq!((puts(&hub.requests()).len(), puts(&empty.requests()).len()), (0, 0));
    has(
        &hub,
        &[("README.md", &{
            let path = home.path().join("README.md");
            fs::write(&path, "# Mine").unwrap();
            path
        })],
    );
}

#[test]
fn a_broken_connection_costs_one_part() {
    let hub = Hub::new(vec![]);
    let [file, card, ..] = all();
    hub.fault("part-2", Fault::Cut(100_000), 1);
    publish(&hub, &[file.clone(), card.clone()], TOKEN, &["--yes"]).ok();
    has(&hub, &[("Q4_0.gguf", &file), ("README.md", &card)]);
    let requests = hub.requests();
    let size = file.metadata().unwrap().len() as usize;
    assert_eq!(puts(&requests).len(), size.div_ceil(PART) + 1);
    assert_eq!(puts(&requests).iter().map(|r| r.received).sum::<usize>(), size + 100_000);
}

#[test]
fn what_the_hub_has_is_not_sent_again() {
    let hub = Hub::new(vec![]);
    let files = all();
    // The second large file never arrives: there is no commit, but the first is in the storage.
    let size = |path: &Path| path.metadata().unwrap().len() as usize;
    let single = size(&files[3]);
    hub.fault("part-0", Fault::Cut(10), usize::MAX);
    publish(&hub, &files, TOKEN, &["--yes"])
        .failed(1, &["cannot publish to", "no answer", HINT, "the same command goes on"]);
    assert_eq!(hub.repo(TO).unwrap().files.len(), 0);
    hub.change(|state| assert_eq!(state.objects.len(), 1));
    hub.mend();
    hub.requests();
    let run = publish(&hub, &files, TOKEN, &["--yes", "--json"]).ok();
    assert!(run.stderr.contains("Q4_0.gguf is in the hub's storage already"), "{}", run.stderr);
    assert_eq!(run.summary()["sent"], single);
    let requests = hub.requests();
    let sent: Vec<usize> = puts(&requests).iter().map(|r| r.received).collect();
    assert_eq!(sent, [single]);
    assert_eq!(hub.repo(TO).unwrap().files.len(), 4);
}

#[test]
fn a_commit_is_tried_again_and_not_made_twice() {
    let hub = Hub::new(vec![]);
    let [file, card, report, _] = all();
    let files = [file.clone(), card.clone()];
    let commits = |hub: &Hub| hub.requests().iter().filter(|r| r.path.contains("/commit/")).count();
    hub.fault("/commit/", Fault::Status(503, vec![]), 1);
    publish(&hub, &files, TOKEN, &["--yes"]).ok();
    assert_eq!(commits(&hub), 2);
    hub.mend();
    hub.fault("/commit/", Fault::Lost, 1);
    publish(&hub, &[file.clone(), card.clone(), report.clone()], TOKEN, &["--yes"]).ok();
    assert_eq!(commits(&hub), 1);
    has(&hub, &[("Q4_0.gguf", &file), ("README.md", &card), ("report.html", &report)]);
}

#[test]
fn a_file_that_changes_meanwhile_is_not_committed() {
    // Before it is sent, behind its last part, and while the answer to the only question about a small file is on its way.
    for (name, at) in [
        ("Q4_0.gguf", "/preupload/"),
        ("Q4_0.gguf", "part-3"),
        ("imatrix.gguf", "part-0"),
        ("README.md", "/preupload/"),
    ] {
        let hub = Hub::new(vec![]);
        let place = folder();
        let files = ["Q4_0.gguf", "README.md", "imatrix.gguf"].map(|name| place.path().join(name));
        for (from, to) in [0, 1, 3].map(|i| all()[i].clone()).iter().zip(&files) {
            fs::copy(from, to).unwrap();
        }
        let changed = place.path().join(name);
        let mut bytes = fs::read(&changed).unwrap();
        bytes.push(0);
        hub.meanwhile(at, move || fs::write(changed, bytes).unwrap());
        publish(&hub, &files, TOKEN, &["--yes"]).failed(1, &[name, "was written to", "there is no commit", HINT]);
        assert_eq!(hub.repo(TO).unwrap().files.len(), 0, "{name} at {at}");
    }
}

#[test]
fn addresses_that_hold_no_longer_are_told_apart_from_a_token_without_rights() {
    let hub = Hub::new(vec![]);
    let [file, card, ..] = all();
    let files = [file.clone(), card.clone()];
    hub.fault("part-2", Fault::Status(403, vec![]), 1);
    publish(&hub, &files, TOKEN, &["--yes"]).failed(1, &["storage", "Q4_0.gguf", "HTTP 403", HINT, "the same command"]);
    assert_eq!(hub.repo(TO).unwrap().files.len(), 0);
    publish(&hub, &files, TOKEN, &["--yes"]).ok();
    has(&hub, &[("Q4_0.gguf", &file), ("README.md", &card)]);
}

#[test]
fn one_content_under_two_names_is_sent_once() {
    let hub = Hub::new(vec![]);
    let place = folder();
    let [file, card, ..] = all();
    let copy = place.path().join("copy.gguf");
    fs::copy(&file, &copy).unwrap();
    publish(&hub, &[file.clone(), card.clone(), copy.clone()], TOKEN, &["--yes"]).ok();
    has(&hub, &[("Q4_0.gguf", &file), ("README.md", &card), ("copy.gguf", &copy)]);
    let size = file.metadata().unwrap().len() as usize;
    assert_eq!(puts(&hub.requests()).iter().map(|r| r.received).sum::<usize>(), size);
}

#[test]
fn what_is_another_file_there_is_told() {
    let hub = Hub::new(vec![Repo::of_file(TO, "notes.txt", b"mine".to_vec())]);
    let wrong = "ab".repeat(32);
    hub.change(|state| state.repos[0].called = Some(wrong));
    let [file, card, ..] = all();
    let run = publish(&hub, &[file, card], TOKEN, &["--yes"]);
    run.failed(1, &["was published, but Q4_0.gguf is not what", "SHA-256", HINT, "/tree/main"]);
}

#[test]
fn names_and_files_that_make_no_sense_are_refused() {
    let hub = Hub::new(vec![]);
    let out = folder();
    let [file, card, ..] = all();
    let home = folder();
    let bad = |args: &[&str]| run(hub.command(home.path(), args).env("HF_TOKEN", TOKEN));
    bad(&["publish", "a.gguf", "tiny", "--yes"]).failed(2, &["'tiny' is not the name of a repository", HINT]);
    bad(&["publish", "none.gguf", TO, "--yes"]).failed(1, &["cannot read none.gguf"]);
    bad(&["publish", out.path().to_str().unwrap(), TO, "--yes"]).failed(2, &["is not a file", HINT]);
    bad(&["publish", TO]).failed(2, &["ORG/NAME"]);
    let second = out.path().join("README.md");
    fs::copy(&card, &second).unwrap();
    publish(&hub, &[file, card, second], TOKEN, &["--yes"]).failed(2, &["would both be README.md", HINT]);
    assert_eq!(hub.requests().len(), 0);
    assert_eq!(names(out.path()), ["README.md"]);
}

#[test]
fn one_command_quantizes_judges_and_publishes() {
    let hub = Hub::new(vec![Repo::of_folder("org/tiny", &tiny())]);
    let (home, place) = (folder(), folder());
    let job = |options: &[&str]| {
        let args = ["quantize", "org/tiny", "--types", "Q4_0,Q8_0", "--method", "rtn", "--publish", TO];
        let mut command = hub.command(home.path(), &args);
        run(command.args(options).env("HF_TOKEN", TOKEN).current_dir(place.path()))
    };
    // What would be in the way at the end is said first.
    job(&[]).failed(2, &["no terminal", HINT, "--yes"]);
    assert_eq!(names(place.path()), [""; 0]);
    job(&["--yes"]).ok();
    let files = ["tiny.Q4_0.gguf", "tiny.Q8_0.gguf", "tiny.README.md", "tiny.report.html"];
    assert_eq!(names(place.path()), files);
    let path = |i: usize| place.path().join(files[i]);
    let (four, eight, card, report) = (path(0), path(1), path(2), path(3));
    has(&hub, &[(files[0], &four), (files[1], &eight), ("README.md", &card), (files[3], &report)]);
    let alone = folder();
    assert!(fs::read(&four).unwrap() == fs::read(rounded(alone.path(), "Q4_0")).unwrap(), "as --type makes it");
    let text = fs::read_to_string(&card).unwrap();
    assert!(text.contains("\nllmq compare tiny.Q4_0.gguf tiny.Q8_0.gguf --reference org/tiny\n"), "{text}");
    assert!(text.contains("base_model: \"org/tiny\""), "{text}");

    // Several types without a hub; a type that is none costs no run.
    let more = folder();
    let mut command = std::process::Command::new(common::BINARY);
    let all = ["--types", "Q5_0,Q6_K", "--method", "rtn"];
    run(command.arg("quantize").arg(tiny()).args(all).current_dir(more.path())).ok();
    assert_eq!(names(more.path()), ["tiny.Q5_0.gguf", "tiny.Q6_K.gguf"]);
    llmq!["quantize", tiny(), "--types", "Q8_0,Q9"].failed(2, &["Q9"]);
    llmq!["plan", tiny(), "--types", "Q8_0,Q4_0"].failed(2, &["--types", HINT]);
}
