//! Conversations as the text that a model sees: through the checkpoint's own chat template, as transformers renders it.
//!
//! A template comes from whoever made the checkpoint. It can reach nothing but the conversation, and its steps, its depth and the
//! text that it writes are bounded.
//!
//! What still differs from Jinja is more lenient (a loop over none, `tojson` of a generator, comparing unlike things) or hardly ever met:
//! `~` writes floating-point numbers from 1e16 on without an exponent, and `+` does not escape what is added to `'…' | safe`.

mod arguments;
mod date;
mod filters;
mod methods;
mod print;
mod source;
#[cfg(test)]
mod tests;

use crate::error::{Context, Error, Result};
use crate::source::value::{self, Metadata, Value};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, context};
use minijinja_contrib::globals::{cycler, joiner};
use serde_json::{Map, Value as Json, json};

/// The template for every conversation, and the one for those with tools, where a checkpoint has two.
const DEFAULT: &str = "chat_template";
const WITH_TOOLS: &str = "chat_template.tool_use";

/// Steps of a template (of minijinja: instructions, and data by 64 bytes) for the shortest conversation, and for each byte of one. The
/// templates of Llama, Qwen, Gemma, gpt-oss and others take a twentieth of it and less.
const STEPS: u64 = 200_000;
const STEPS_PER_BYTE: u64 = 10;

/// Bytes of stack that a template has; more for each of its bytes, since a chain of operators is compiled by recursion; and more for
/// each step, since one may nest a list once more, which is freed by recursion. Only what is used takes memory.
const STACK: u64 = 16 << 20;
const STACK_PER_BYTE: u64 = 1024;
const STACK_PER_STEP: u64 = 128;

/// A chat template, ready to be used.
pub struct Chat {
    environment: Environment<'static>,
    /// Names and texts of special tokens, as transformers gives them to templates.
    tokens: Map<String, Json>,
    /// The BOS, where the tokenizer puts one in front, so that the template's own would be a second one.
    own_bos: Option<String>,
}

impl Chat {
    /// The template among a model's keys; none where it has none. `adds_bos`: the tokenizer puts a BOS in front of every text.
    ///
    /// # Errors
    /// As [`Chat::new`].
    pub fn of(metadata: &Metadata, adds_bos: bool) -> Result<Option<Chat>> {
        let template = |name: &str| value::get(metadata, &format!("tokenizer.{name}")).and_then(Value::as_str);
        let Some(default) = template(DEFAULT).or_else(|| template(WITH_TOOLS)) else { return Ok(None) };
        let texts = value::get(metadata, "tokenizer.ggml.tokens").and_then(Value::as_strs).unwrap_or_default();
        let names = [
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("unk_token", "unknown"),
            ("sep_token", "seperator"),
            ("pad_token", "padding"),
            ("cls_token", "cls"),
            ("mask_token", "mask"),
        ];
        let tokens = names.iter().filter_map(|(name, key)| {
            let id = value::get(metadata, &format!("tokenizer.ggml.{key}_token_id")).and_then(Value::as_u64)?;
            Some(((*name).to_owned(), texts.get(usize::try_from(id).ok()?)?.clone()))
        });
        let mut chat = Chat::new(default, tokens, adds_bos)?;
        if let Some(with_tools) = template(WITH_TOOLS) {
            chat.add(WITH_TOOLS, with_tools)?;
        }
        Ok(Some(chat))
    }

    /// A template in Jinja, as transformers understands it, and the special tokens that it may name, as `("bos_token", "<s>")`.
    ///
    /// # Errors
    /// It is no valid template (its line is named), or `SOURCE_DATE_EPOCH` is no time.
    pub fn new(template: &str, tokens: impl Iterator<Item = (String, String)>, adds_bos: bool) -> Result<Chat> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.context(|| "cannot read chat templates".into())?);
        environment.set_formatter(print::format);
        environment.set_unknown_method_callback(methods::call);
        filters::add_to(&mut environment);
        environment.add_function("cycler", cycler);
        environment.add_function("joiner", joiner);
        let now = date::now()?;
        environment.add_function("strftime_now", move |format: &str| date::strftime(format, now));
        environment.add_function("raise_exception", |text: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, text))
        });
        let tokens: Map<String, Json> = tokens.map(|(name, text)| (name, text.into())).collect();
        let bos = tokens.get("bos_token").and_then(Json::as_str).filter(|bos| adds_bos && !bos.is_empty());
        let mut chat = Chat { environment, own_bos: bos.map(str::to_owned), tokens };
        chat.add(DEFAULT, template)?;
        Ok(chat)
    }

    fn add(&mut self, name: &'static str, template: &str) -> Result<()> {
        let source = source::translate(template);
        let stack = STACK + STACK_PER_BYTE * source.len() as u64;
        on_stack(stack, || self.environment.add_template_owned(name, source))?.map_err(|cause| {
            Error::new("the checkpoint's chat template cannot be used")
                .because(cause)
                .hint("convert the conversations to lines of {\"text\": …} yourself")
        })
    }

    /// The text of a conversation, to its last message.
    ///
    /// # Errors
    /// It is no list of messages, or the template refuses it, stumbles over it, or takes more steps than any template should.
    pub fn render(&self, messages: &Json, tools: Option<&Json>) -> Result<String> {
        let messages = conversation(messages)?;
        let name = tools.and_then(|_| self.environment.get_template(WITH_TOOLS).ok()).map_or(DEFAULT, |_| WITH_TOOLS);
        let length = messages.to_string().len() + tools.map_or(0, |tools| tools.to_string().len());
        let steps = STEPS + STEPS_PER_BYTE * length as u64;
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(steps));
        let context = context! {
            messages => Serde(messages), tools => Serde(&tools), documents => (), add_generation_prompt => false,
            ..minijinja::Value::from(Serde(self.tokens.clone()))
        };
        let render = || environment.get_template(name).and_then(|template| template.render(context));
        let text = on_stack(STACK + STACK_PER_STEP * steps, render)?.map_err(|cause| {
            if cause.kind() == ErrorKind::OutOfFuel {
                return Error::new(format!("the checkpoint's chat template takes more than {steps} steps, and was stopped"))
                    .hint("it writes without end, or far more than the conversation holds; look at it before you use this checkpoint");
            }
            Error::new("the checkpoint's chat template refuses the messages")
                .because(cause)
                .hint("a line should look like {\"messages\": [{\"role\": \"user\", \"content\": \"…\"}, …]}, with the roles that the model knows")
        })?;
        Ok(match self.own_bos.as_deref().and_then(|bos| text.strip_prefix(bos)) {
            Some(rest) => rest.to_owned(),
            None => text,
        })
    }
}

/// Does something in a thread with a stack of so many bytes.
fn on_stack<T: Send>(bytes: u64, work: impl FnOnce() -> T + Send) -> Result<T> {
    let thread = std::thread::Builder::new().stack_size(usize::try_from(bytes).unwrap_or(usize::MAX));
    let done = std::thread::scope(|scope| thread.spawn_scoped(scope, work).map(|thread| thread.join()));
    let done =
        done.context(|| format!("there is no room for the {bytes} bytes of stack that the chat template may need"))?;
    done.map_err(|_| Error::new("the checkpoint's chat template met a defect in the program"))
}

/// Messages as transformers hands them to a template: without keys that are null, and with a model's reasoning under the names that
/// templates know it by.
fn conversation(messages: &Json) -> Result<Json> {
    let wrong = |what: &str| {
        Error::new(format!("\"messages\" is {what}"))
            .hint("a line should look like {\"messages\": [{\"role\": \"user\", \"content\": \"…\"}, …]}")
    };
    let list = messages.as_array().ok_or_else(|| wrong("no list"))?;
    if list.is_empty() {
        return Err(wrong("empty"));
    }
    let messages = list.iter().enumerate().map(|(i, message)| {
        let message =
            message.as_object().ok_or_else(|| wrong(&format!("a list whose entry {} is no object", i + 1)))?;
        let mut message: Map<String, Json> = message
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let reasoning =
            ["reasoning_content", "thinking", "reasoning"].iter().find_map(|key| message.get(*key)).cloned();
        if let Some(reasoning) = reasoning {
            let thinking = message.remove("thinking").unwrap_or_else(|| reasoning.clone());
            message.shift_insert(0, "thinking".into(), thinking);
            message.insert("reasoning_content".into(), reasoning);
        }
        Ok(Json::Object(message))
    });
    Ok(json!(messages.collect::<Result<Vec<_>>>()?))
}
