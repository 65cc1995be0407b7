use super::date::{now, strftime};
use super::*;
use serde_json::json;

type Tokens = std::vec::IntoIter<(String, String)>;

fn tokens() -> Tokens {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")];
    tokens.map(|(name, text)| (name.to_owned(), text.to_owned())).to_vec().into_iter()
}

fn render(template: &str, adds_bos: bool, messages: Json) -> Result<String> {
    Chat::new(template, tokens(), adds_bos)?.render(&messages, None)
}

fn greeting() -> Json {
    json!([{ "role": "user", "content": "Hi" }])
}

/// The error of a template that asks for too much, from its beginning to its hint.
fn refusal(template: &str) -> String {
    let error = render(template, false, greeting()).expect_err(template);
    format!("{}; {}", error.chain().join(": "), error.hint_text().unwrap_or_default())
}

/// What transformers made of the constructs of scripts/golden_templates.py.
#[test]
fn constructs_are_rendered_as_transformers_renders_them() {
    let golden: Json = serde_json::from_str(include_str!("transformers.json")).unwrap();
    let constructs = golden["constructs"].as_array().unwrap();
    assert!(constructs.len() > 100);
    let different = constructs.iter().filter_map(|construct| {
        let template = construct["template"].as_str().unwrap();
        let rendered = Chat::new(template, tokens(), false)
            .and_then(|chat| chat.render(&golden["messages"], Some(&golden["tools"])));
        let wanted = construct["rendered"].as_str();
        let name = &construct["name"];
        (rendered.as_deref().ok() != wanted).then(|| format!("{name}\n{template}\n{rendered:?}\n{wanted:?}\n"))
    });
    let different: Vec<String> = different.collect();
    assert!(different.is_empty(), "{}", different.join("\n"));
}

/// Qwen's and many others' format, with what their templates use of Jinja and Python.
const CHATML: &str = "{{ bos_token }}{% for message in messages %}\n    {%- if loop.first and message['role'] != 'system' -%}\n<|im_start|>system\nYou help.<|im_end|>\n{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message.content.strip() + '<|im_end|>' + '\n' }}{% endfor %}\n{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

#[test]
fn a_conversation_becomes_what_the_template_says() {
    let messages = json!([{ "role": "user", "content": " Hi " }, { "role": "assistant", "content": "Ho" }]);
    let wanted = "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n";
    assert_eq!(render(CHATML, true, messages.clone()).unwrap(), wanted);
    assert_eq!(render(CHATML, false, messages).unwrap(), format!("<s>{wanted}"));
}

#[test]
fn refusals_and_mistakes_are_errors_with_their_reason() {
    assert!(refusal("{{ raise_exception('roles must alternate') }}").contains("roles must alternate"));
    assert!(refusal("{% if %}").starts_with("the checkpoint's chat template cannot be used"));
    assert!(refusal("a\nb{{ 'x' | nonsense }}").contains("nonsense is unknown (in chat_template:2)"));
    for (messages, word) in [(json!({}), "no list"), (json!([]), "empty"), (json!([{}, 1]), "entry 2 is no object")] {
        let error = render("", false, messages).unwrap_err();
        assert!(error.to_string().contains(word) && error.hint_text().is_some(), "{error}");
    }
}

/// Templates that would run or grow for ever end in an error that says so, whichever way they take.
#[test]
fn steps_depth_and_size_are_bounded() {
    let loops = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
    let doubled = "{% set ns = namespace(x='ab') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    let wide = "{% set ns = namespace(x=[1]) %}{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
    for template in [
        loops.to_owned(),
        "{{ 'x' * 99999999 }}".into(),
        "{{ 'x'.ljust(99999999999) }}".into(),
        "{{ 'x' | center(99999999999) }}".into(),
        "{{ 'x' | indent(99999999999, true) }}".into(),
        "{{ '%99999999d' % 7 }}".into(),
        "{{ [1] | tojson(indent=99999999999) }}".into(),
        doubled.into(),
        format!("{wide}{{{{ ns.x }}}}"),
        format!("{wide}{{{{ ns.x | tojson }}}}"),
        format!("{wide}{{{{ ns.x | string }}}}"),
    ] {
        let told = refusal(&template);
        assert!(told.contains("takes more than 20") && told.contains("was stopped"), "{template}: {told}");
    }
    let nested = |times: usize, value: &str| {
        format!(
            "{{% set ns = namespace(x=0) %}}{{% for a in range({times}) %}}{{% set ns.x = {value} %}}{{% endfor %}}"
        )
    };
    for filter in ["", " | tojson", " | string", " | indent"] {
        let told = refusal(&format!("{}{{{{ ns.x{filter} }}}}", nested(300, "[ns.x]")));
        assert!(told.contains("nested more than 200 levels deep"), "{told}");
    }
    // As deep as the steps go, which the stack has to stand.
    let [lists, maps] = [["[", "]"], ["{'a': ", "}"]].map(|[open, close]| open.repeat(60) + "ns.x" + &close.repeat(60));
    for value in ["[ns.x]", "{'a': ns.x}", "(ns.x,)", "namespace(x=ns.x)", "dict(x=ns.x)", &lists, &maps] {
        let told = refusal(&nested(99_999, value));
        assert!(told.contains("was stopped"), "{value}: {told}");
    }
    let endless = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    assert!(refusal(endless).contains("recursion"), "{}", refusal(endless));
}

/// So do templates that are hard to read.
#[test]
fn deep_and_long_sources_are_refused_or_read() {
    let parts = ["(", "[", "{", "{{", "{%", "{#", "'", "{{ a", "{{ (", "{{ -", "{{ a.", "{{ a | b(", "{{ [a] % ("];
    for part in parts {
        for times in [3_000, 20_000] {
            let told = refusal(&format!("{{{{ {}", format!("{part}\n").repeat(times)));
            assert!(told.contains("cannot be used"), "{part}: {told}");
        }
    }
    for block in ["{% if a %}", "{% for a in b %}", "{% with %}", "{% generation %}", "{% filter upper %}"] {
        assert!(refusal(&block.repeat(3_000)).contains("cannot be used"), "{block}");
    }
    for part in [" % 2", " ~ 'a'", " + 1", " | string", "[0]", ".a", " if a", " or a", " == 1", " ** 1"] {
        let told = render(&format!("{{{{ 7{} }}}}", part.repeat(7_000)), false, greeting());
        assert!(told.is_err() || told.is_ok_and(|text| text.len() < 50_000), "{part}");
    }
}

/// A long conversation has the steps that it needs.
#[test]
fn steps_grow_with_the_conversation() {
    let message = json!({ "role": "user", "content": "a few words that somebody wrote" });
    let messages = Json::Array(vec![message; 20_000]);
    let text = render(CHATML.trim_start_matches("{{ bos_token }}"), false, messages).unwrap();
    assert_eq!(text.matches("<|im_start|>user\na few words").count(), 20_000);
}

#[test]
fn dates_are_always_the_same_day() {
    let today = |format| strftime(format, now().unwrap());
    assert_eq!(
        today("%d %b %Y, %-d. %B %y, %A at %H:%M:%S (%j)"),
        "26 Jul 2024, 26. July 24, Friday at 00:00:00 (208)"
    );
    assert_eq!(today("%-m/%m 100%% %Q %"), "7/07 100% %Q %");
    // As Python's `datetime(2024, 7, 26).strftime`.
    assert_eq!(
        today("%a %e %h %k %l|%I %p %r %R %T|%u %w %U %V %W %G %g %C|%x %X %D %F|%f%z%Z|%c%n%t-%é"),
        concat!(
            "Fri 26 Jul  0 12|12 AM 12:00:00 AM 00:00 00:00:00|5 5 29 30 30 2024 24 20|",
            "07/26/24 00:00:00 07/26/24 2024-07-26|000000|Fri Jul 26 00:00:00 2024\n\t-%é"
        )
    );
}

#[test]
fn templates_and_their_tokens_are_found_among_the_keys() {
    let keys: Metadata = vec![
        (
            "tokenizer.chat_template".into(),
            "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}".into(),
        ),
        ("tokenizer.ggml.tokens".into(), vec!["a".to_owned(), "<b>".into(), "<e>".into()].into()),
        ("tokenizer.ggml.bos_token_id".into(), 1u32.into()),
        ("tokenizer.ggml.eos_token_id".into(), 2u32.into()),
        ("tokenizer.chat_template.tool_use".into(), "{{ tools | length }}".into()),
    ];
    let chat = Chat::of(&keys, false).unwrap().unwrap();
    assert_eq!(chat.render(&greeting(), None).unwrap(), "<b>Hi<e>");
    assert_eq!(chat.render(&greeting(), Some(&json!([{}, {}]))).unwrap(), "2");
    assert!(Chat::of(&keys[1..4].to_vec(), false).unwrap().is_none());
}
