//! A template's source, written anew where minijinja reads it otherwise than Jinja with transformers' extension.

use super::filters::PERCENT;

/// The source with line ends as Jinja has them; with `generation` blocks, which mark what a loss is computed on and print what is
/// in them, as `with` blocks, since both keep what is set inside; and with `a % b` as a filter, since the operator is not for strings.
/// Lines stay where they are. What is no template stays as it is, for the parser to complain about.
pub(super) fn translate(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(at) = rest.find("{") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let Some((opening, body, closing)) = code(tag) else {
            // Data, or a comment.
            let length = if tag.starts_with("{#") { tag.find("#}").map_or(tag.len(), |end| end + 2) } else { 1 };
            out.push_str(&tag[..length]);
            rest = &tag[length..];
            continue;
        };
        rest = &tag[opening.len() + body.len() + closing.len()..];
        out.push_str(opening);
        let tokens = tokens(body);
        let remainders = tokens.iter().filter(|token| token.text == "%").count();
        match tokens[..] {
            _ if remainders > DEEPEST => out.push_str(body),
            [Token { text: word @ ("generation" | "endgeneration"), .. }] if opening.starts_with("{%") => {
                out.push_str(&body.replace(word, &word.replace("generation", "with")));
            }
            _ => {
                out.push_str(&expression(&tokens));
                out.push_str(&body[body.trim_end_matches(is_space).len()..]);
            }
        }
        out.push_str(closing);
        if matches!(tokens[..], [Token { text: "raw", .. }]) && opening.starts_with("{%") {
            let end = rest.find("endraw").unwrap_or(rest.len());
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    out + rest
}

/// How deep brackets are followed, and how many remainders of one tag: minijinja's parser has had enough before that.
const DEEPEST: usize = 200;

/// The opening, the inside and the closing of a statement or an expression, signs that trim space with the delimiters; none where none
/// begins, or it does not end.
fn code(tag: &str) -> Option<(&str, &str, &str)> {
    let (end, signs) = match tag.get(..2)? {
        "{%" => ("%}", &['-', '+'][..]),
        "{{" => ("}}", &['-'][..]),
        _ => return None,
    };
    let start = 2 + usize::from(tag[2..].starts_with(['-', '+']));
    let (mut at, mut depth) = (start, 0usize);
    loop {
        let rest = &tag[at..];
        let sign = usize::from(rest.starts_with(signs));
        if depth == 0 && rest[sign..].starts_with(end) {
            return Some((&tag[..start], &tag[start..at], &rest[..sign + 2]));
        }
        let c = rest.chars().next().filter(|_| depth < DEEPEST)?;
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += if matches!(c, '"' | '\'') { string(rest)? } else { c.len_utf8() };
    }
}

/// The length of the string that begins here, with its quotes.
fn string(text: &str) -> Option<usize> {
    let quote = text.chars().next()?;
    let mut is_escaped = false;
    let end = text.char_indices().skip(1).find(|&(_, c)| {
        let ends = c == quote && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        ends
    })?;
    Some(end.0 + 1)
}

/// A word, a number, a string or an operator, and the space before it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Token<'s> {
    space: &'s str,
    text: &'s str,
}

fn is_space(c: char) -> bool {
    c.is_whitespace()
}

fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = code;
    loop {
        let text = rest.trim_start_matches(is_space);
        let space = &rest[..rest.len() - text.len()];
        let Some(c) = text.chars().next() else { return tokens };
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let length = match c {
            '"' | '\'' => string(text).unwrap_or(text.len()),
            '0'..='9' => number(text),
            c if is_word(c) => text.find(|c| !is_word(c)).unwrap_or(text.len()),
            _ if ["**", "//", "==", "!=", "<=", ">="].iter().any(|two| text.starts_with(two)) => 2,
            c => c.len_utf8(),
        };
        tokens.push(Token { space, text: &text[..length] });
        rest = &text[length..];
    }
}

/// The length of the number that begins here.
fn number(text: &str) -> usize {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.');
    let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
    let has_exponent = text[..end].ends_with(['e', 'E']) && text[end..].starts_with(['+', '-']);
    if has_exponent { end + 1 + number(&text[end + 1..]) } else { end }
}

/// Writes code with every `%` as a filter of what is to its left: `x * 2 % n` as `((x * 2)|python_percent(n))`.
fn expression(tokens: &[Token]) -> String {
    let mut out = String::new();
    // Where the operand of a `%` would begin.
    let mut operand = 0;
    let mut at = 0;
    while at < tokens.len() {
        let token = tokens[at];
        if token.text == "%" {
            let end = at + 1 + right_operand(&tokens[at + 1..]);
            let left = out.split_off(operand);
            let space = &left[..left.len() - left.trim_start_matches(is_space).len()];
            let right = expression(&tokens[at + 1..end]);
            out += &format!("{space}(({}){}|{PERCENT}({right}))", left.trim_start_matches(is_space), token.space);
            at = end;
            continue;
        }
        out += token.space;
        out += token.text;
        at += 1;
        if let Some(inside) = group(&tokens[at - 1..]) {
            out += &expression(&tokens[at..at + inside]);
            at += inside;
        } else if ends_operand(tokens, at - 1) {
            operand = out.len();
        }
    }
    out
}

/// How many tokens are within the bracket that opens here.
fn group(tokens: &[Token]) -> Option<usize> {
    let mut depth = 0usize;
    for (i, token) in tokens.iter().enumerate() {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return i.checked_sub(1);
        }
    }
    None
}

/// How many tokens the operand has that begins here.
fn right_operand(tokens: &[Token]) -> usize {
    let mut at = 0;
    while at < tokens.len() {
        if matches!(tokens[at].text, "%" | "*" | "/" | "//") || ends_operand(tokens, at) {
            break;
        }
        at += 1 + group(&tokens[at..]).map_or(0, |inside| inside + 1);
    }
    at
}

/// Whether a token binds less than `%` does: an operand of `%` ends before it, and another begins behind it.
fn ends_operand(tokens: &[Token], at: usize) -> bool {
    const WORDS: [&str; 12] = ["and", "or", "not", "in", "is", "if", "else", "elif", "for", "set", "print", "call"];
    let before = at.checked_sub(1).map(|before| tokens[before].text);
    match tokens[at].text {
        "+" | "-" => {
            // A sign belongs to its operand.
            let is_sign = before.is_none_or(|text| {
                matches!(text, "(" | "[" | "{" | "%" | "*" | "/" | "//" | "**") || ends_operand(tokens, at - 1)
            });
            !is_sign
        }
        "~" | "==" | "!=" | "<" | "<=" | ">" | ">=" | "," | ":" | "=" => true,
        word => WORDS.contains(&word) && !matches!(before, Some("." | "|")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainders_become_filters_of_their_operands() {
        for (source, wanted) in [
            ("{{ a % b }}", "{{ ((a)|_(b)) }}"),
            ("{{ x + a * b % c - 1 }}", "{{ x + ((a * b)|_(c)) - 1 }}"),
            ("{{ a % b % c }}", "{{ ((((a)|_(b)))|_(c)) }}"),
            ("{{ -a % -b ** 2 ~ 'c % d' }}", "{{ ((-a)|_(-b ** 2)) ~ 'c % d' }}"),
            ("{{ f(x.y[1] | length % 2, '%s' % (a, b)) }}", "{{ f(((x.y[1] | length)|_(2)), (('%s')|_((a, b)))) }}"),
            ("{%- if a is defined and not 1e-5 % 2 == 0 -%}", "{%- if a is defined and not ((1e-5)|_(2)) == 0 -%}"),
            ("{% set x = {'a': 5 % 3} %}{{ x }} 5 % 3", "{% set x = {'a': ((5)|_(3))} %}{{ x }} 5 % 3"),
            ("{# a % b #}{% raw %}{{ a % b }}{% endraw %}", "{# a % b #}{% raw %}{{ a % b }}{% endraw %}"),
        ] {
            // With the space in front of the operator, which means nothing.
            let found = translate(source).replace(PERCENT, "_").replace(" |_", "|_").replace("_( ", "_(");
            assert_eq!(found, wanted, "{source}");
        }
    }

    #[test]
    fn what_is_no_template_stays_as_it_is() {
        for source in [
            "{{ 'a",
            "{% if",
            "{{ a }",
            "{",
            "{#",
            "a {{ '%' }} é {% raw %} {{",
            "{{ ) % ( }}",
            "{%%}",
            "{{%}}",
            "{{ % }}",
        ] {
            let translated = translate(source);
            assert!(translated == source || source.contains(" % ") || source.contains("{%}"), "{source} {translated}");
        }
    }
}
