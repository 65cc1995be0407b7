//! Conversations as the text that a model sees: through the checkpoint's own chat template.

use crate::error::{Context, Error, Result};
use crate::source::value::{self, Metadata, Value};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, ErrorKind, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use regex::Regex;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io;

/// The name of the only template.
const NAME: &str = "chat_template";

/// A chat template, ready to be used.
pub struct Chat {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    /// The tokenizer puts a BOS in front, so that the template's own would be a second one.
    adds_bos: bool,
}

impl Chat {
    /// The template among a model's keys; none where it has none. `adds_bos`: the tokenizer puts a BOS in front of every text.
    ///
    /// # Errors
    /// As [`Chat::new`].
    pub fn of(metadata: &Metadata, adds_bos: bool) -> Result<Option<Chat>> {
        let Some(template) = value::get(metadata, "tokenizer.chat_template").and_then(Value::as_str) else {
            return Ok(None);
        };
        let tokens = value::get(metadata, "tokenizer.ggml.tokens").and_then(Value::as_strs).unwrap_or_default();
        let token = |key: &str| {
            let id = value::get(metadata, key).and_then(Value::as_u64)?;
            tokens.get(usize::try_from(id).ok()?).cloned()
        };
        let (bos, eos) = (token("tokenizer.ggml.bos_token_id"), token("tokenizer.ggml.eos_token_id"));
        Chat::new(template, bos.unwrap_or_default(), eos.unwrap_or_default(), adds_bos).map(Some)
    }

    /// A template in Jinja, as transformers understands it, and the text of the tokens that it may name.
    ///
    /// # Errors
    /// It is no valid template; its line is named.
    pub fn new(template: &str, bos: String, eos: String, adds_bos: bool) -> Result<Chat> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.context(|| "cannot read chat templates".into())?);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", to_json);
        // There is no `strftime_now`, on purpose: templates that ask for it have a fixed date without it, and the same input shall
        // give the same bytes tomorrow.
        environment.add_function("raise_exception", |text: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, text))
        });
        // It marks what a loss is computed on, and prints nothing.
        let marks = Regex::new(r"\{%-?\s*(end)?generation\s*-?%\}").expect("a valid expression");
        environment.add_template_owned(NAME, marks.replace_all(template, "").into_owned()).map_err(|cause| {
            Error::new("the checkpoint's chat template cannot be used")
                .because(cause)
                .hint("convert the conversations to lines of {\"text\": …} yourself")
        })?;
        Ok(Chat { environment, bos, eos, adds_bos })
    }

    /// The text of a conversation, to its last message.
    ///
    /// # Errors
    /// The template refuses it, or stumbles over it.
    pub fn render(&self, messages: &serde_json::Value, tools: Option<&serde_json::Value>) -> Result<String> {
        let template = self.environment.get_template(NAME);
        let text = template.and_then(|template| {
            let (messages, tools) = (Serde(messages), Serde(&tools));
            let (bos_token, eos_token) = (&self.bos, &self.eos);
            template.render(context! { messages, tools, bos_token, eos_token, add_generation_prompt => false })
        });
        let text = text.map_err(|cause| {
            Error::new("the checkpoint's chat template refuses the messages")
                .because(cause)
                .hint("a line should look like {\"messages\": [{\"role\": \"user\", \"content\": \"…\"}, …]}, with the roles that the model knows")
        })?;
        let own = if self.adds_bos && !self.bos.is_empty() { text.strip_prefix(&self.bos) } else { None };
        Ok(own.map_or_else(|| text.clone(), str::to_owned))
    }
}

/// JSON as Python writes it, which is how transformers defines this filter.
fn to_json(value: minijinja::Value, options: Kwargs) -> Result<minijinja::Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Whatever else Python's function takes changes nothing here.
    let mut bytes = Vec::new();
    let written = match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut bytes, Spaced)),
        Some(n) => {
            let spaces = vec![b' '; n];
            value.serialize(&mut Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(&spaces)))
        }
    };
    let wrong = |text: String| minijinja::Error::new(ErrorKind::BadSerialization, text);
    written.map_err(|cause| wrong(cause.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|cause| wrong(cause.to_string()))?;
    Ok(minijinja::Value::from_safe_string(text))
}

/// A space behind each comma and colon.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(template: &str, adds_bos: bool, messages: serde_json::Value) -> Result<String> {
        Chat::new(template, "<s>".into(), "</s>".into(), adds_bos)?.render(&messages, None)
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
    fn json_is_written_as_python_writes_it() {
        let messages = json!([{ "z": [1, "é<&"], "a": { "b": null, "c": 1.5 } }]);
        let text = render("{{ messages[0] | tojson }}", false, messages.clone()).unwrap();
        assert_eq!(text, r#"{"z": [1, "é<&"], "a": {"b": null, "c": 1.5}}"#);
        let text = render("{{ messages[0].a | tojson(indent=2) }}", false, messages).unwrap();
        assert_eq!(text, "{\n  \"b\": null,\n  \"c\": 1.5\n}");
    }

    #[test]
    fn what_training_and_the_calendar_add_is_left_out() {
        let template =
            "{% generation %}{{ strftime_now('%d') if strftime_now is defined else '26 Jul 2024' }}{% endgeneration %}";
        assert_eq!(render(template, false, json!([])).unwrap(), "26 Jul 2024");
    }

    #[test]
    fn refusals_and_mistakes_are_errors_with_their_reason() {
        let error = render("{{ raise_exception('roles must alternate') }}", false, json!([])).unwrap_err();
        assert!(error.chain().join(": ").contains("roles must alternate"), "{error:?}");
        assert!(error.hint_text().is_some());
        let error = render("{% if %}", false, json!([])).unwrap_err();
        assert!(error.to_string().contains("chat template") && error.hint_text().is_some());
    }

    #[test]
    fn the_template_and_its_tokens_are_found_among_the_keys() {
        let keys: Metadata = vec![
            ("tokenizer.chat_template".into(), "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}".into()),
            ("tokenizer.ggml.tokens".into(), vec!["a".to_owned(), "<b>".into(), "<e>".into()].into()),
            ("tokenizer.ggml.bos_token_id".into(), 1u32.into()),
            ("tokenizer.ggml.eos_token_id".into(), 2u32.into()),
        ];
        let chat = Chat::of(&keys, false).unwrap().unwrap();
        assert_eq!(chat.render(&json!([{ "content": "x" }]), None).unwrap(), "<b>x<e>");
        assert!(Chat::of(&keys[1..].to_vec(), false).unwrap().is_none());
    }
}
