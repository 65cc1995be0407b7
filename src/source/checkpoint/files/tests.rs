use super::*;

/// What is found in a folder of files with these names; an index has its text behind a colon.
fn found(names: &[&str]) -> Result<Files> {
    let folder = tempfile::tempdir().unwrap();
    for name in names {
        let (name, text) = name.split_once(':').unwrap_or((name, ""));
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    find(folder.path())
}

#[track_caller]
fn complaint(names: &[&str]) -> String {
    let error = found(names).unwrap_err();
    format!("{}; {}", error.chain().join(": "), error.hint_text().unwrap_or_default())
}

const A: &str = "model-00001-of-00002.safetensors";
const B: &str = "model-00002-of-00002.safetensors";
const INDEX: &str = r#"model.safetensors.index.json:{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;

#[test]
fn a_whole_file_wins_over_an_index_and_shards_of_another_save() {
    for shards in [&[A, B][..], &[A], &[]] {
        let files = found(&[&["model.safetensors", INDEX][..], shards].concat()).unwrap();
        assert_eq!((&files.names[..], files.listed.len()), (&["model.safetensors".to_owned()][..], 0));
        assert!(files.notes[0].contains("model.safetensors.index.json is left aside"), "{:?}", files.notes);
    }
    let damaged = found(&["model.safetensors", "model.safetensors.index.json:{"]).unwrap();
    assert!(damaged.notes[0].contains("not valid JSON"), "{:?}", damaged.notes);
}

#[test]
fn a_file_that_the_index_names_among_others_is_a_shard() {
    let index = r#"model.safetensors.index.json:{"weight_map":{"a":"model.safetensors","b":"more.safetensors"}}"#;
    let files = found(&["model.safetensors", "more.safetensors", index]).unwrap();
    assert_eq!((files.names.len(), files.listed.len(), files.notes.len()), (2, 2, 0));
    let files = found(&["model.safetensors", index]).unwrap();
    assert_eq!((files.names.len(), files.listed.len(), files.notes.len()), (1, 0, 1));
}

#[test]
fn an_index_needs_its_shards() {
    let files = found(&[INDEX, A, B]).unwrap();
    assert_eq!((&files.names[..], files.listed["b"].as_str()), (&[A.to_owned(), B.to_owned()][..], B));
    assert!(files.notes.is_empty());
    let message = complaint(&[INDEX, A]);
    assert!(
        message.contains("lacks 1 of the files") && message.contains(B) && message.contains("download"),
        "{message}"
    );
    let message = complaint(&[INDEX]);
    assert!(message.contains("lacks 2 of the files"), "{message}");
    // What is there counts, whatever an index of shards that are all gone says.
    let files = found(&[INDEX, "pytorch_model.bin"]).unwrap();
    assert_eq!((&files.names[..], files.notes.len()), (&["pytorch_model.bin".to_owned()][..], 1));
}

#[test]
fn shards_without_an_index_are_read_if_none_is_missing() {
    let one = "model-00001-of-00001.safetensors";
    for names in [&[A, B][..], &[one], &["model.fp16.safetensors"], &["pytorch_model-00001-of-00001.bin"]] {
        let files = found(names).unwrap();
        assert_eq!(files.names, names);
        assert!(files.notes[0].contains("there is no") && files.notes[0].contains(names[0]), "{:?}", files.notes);
    }
    let message = complaint(&[B]);
    assert!(message.contains(&format!("holds {B}, but not {A}")), "{message}");
}

#[test]
fn the_layout_of_transformers_wins_over_mistrals_own_unless_only_that_has_a_configuration() {
    let own = "consolidated.safetensors";
    let first = |names: &[&str]| found(names).unwrap().names.swap_remove(0);
    assert_eq!(first(&["config.json", "params.json", own, "model.safetensors"]), "model.safetensors");
    assert_eq!(first(&["config.json", "params.json", own, A, B]), A);
    assert_eq!(first(&["params.json", own, "model.safetensors"]), own);
    assert_eq!(first(&["config.json", "params.json", own]), own);
    let shards = ["consolidated-00001-of-00002.safetensors", "consolidated-00002-of-00002.safetensors"];
    let index =
        format!(r#"consolidated.safetensors.index.json:{{"weight_map":{{"a":"{}","b":"{}"}}}}"#, shards[0], shards[1]);
    for names in [&["params.json", shards[0], shards[1]][..], &["params.json", shards[0], shards[1], &index]] {
        assert_eq!(found(names).unwrap().names, shards);
    }
}

#[test]
fn nothing_outside_of_the_folder_is_read() {
    for outside in ["../model.safetensors", "/etc/passwd", "a/b.safetensors", ".."] {
        let index = format!(r#"model.safetensors.index.json:{{"weight_map":{{"a":"{outside}"}}}}"#);
        let message = complaint(&[&index]);
        assert!(message.contains("no file name") && message.contains(outside), "{message}");
    }
    assert!(complaint(&[r#"model.safetensors.index.json:{"weight_map":{"a":7}}"#]).contains("no file name"));
    assert!(complaint(&["model.safetensors.index.json:{}"]).contains("lists no tensors"));
}

#[test]
fn what_is_there_instead_of_weights_is_named() {
    for (names, told) in [
        (&["config.json"][..], &["holds no weights", "model.safetensors"][..]),
        (&["llama.safetensors"], &["llama.safetensors", "call it so"]),
        (&["consolidated.00.pth"], &["consolidated.00.pth"]),
        (&["name.gguf"], &["GGUF", "give the file itself"]),
        (&["adapter_config.json:{}", "adapter_model.safetensors"], &["adapter", "merge"]),
        (&["a.bin", "b.bin", "c.bin", "d.bin", "e.bin", "f.bin"], &["a.bin, b.bin, c.bin, d.bin and 2 more"]),
    ] {
        let message = complaint(names);
        told.iter().for_each(|told| assert!(message.contains(told), "no {told:?} in {message}"));
    }
    let files = found(&["model.safetensors", "adapter_config.json:{}"]).unwrap();
    assert!(files.notes[0].contains("without the adapter"), "{:?}", files.notes);
}
