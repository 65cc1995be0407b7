//! Text from files, as pages, cards and shells take it: whatever it says, it stays text.

use std::fmt::{Display, Formatter, Result};

/// Characters of a text that are shown; what is longer is cut.
const SHOWN: usize = 300;

/// A text in HTML or SVG, between tags or in a quoted attribute.
pub struct Html<'a>(pub &'a str);

impl Display for Html<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        for (i, c) in self.0.chars().enumerate() {
            match c {
                _ if i >= SHOWN => return f.write_str("…"),
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // Neither controls nor what turns the direction of writing around, which lets a text look like another.
                c if c.is_control() || is_invisible(c) => f.write_str("\u{fffd}")?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

/// A text in Markdown: no markup, no HTML, on one line.
pub struct Markdown<'a>(pub &'a str);

impl Display for Markdown<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        for (i, c) in self.0.chars().enumerate() {
            match c {
                _ if i >= SHOWN => return f.write_str("…"),
                c if c.is_control() || is_invisible(c) => f.write_str("\u{fffd}")?,
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '\\' | '`' | '*' | '[' | ']' | '(' | ')' | '!' | '#' | '|' | '~' | '>' => write!(f, "\\{c}")?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

/// Text in a code span or block of Markdown. There nothing can be escaped: backticks and new lines are left out.
pub fn code(text: &str) -> String {
    text.chars().filter(|&c| c != '`' && !c.is_control() && !is_invisible(c)).take(SHOWN).collect()
}

/// A scalar of YAML: always quoted, as JSON, which is YAML.
pub fn yaml(text: &str) -> String {
    let shown: String = text.chars().filter(|&c| !c.is_control() && !is_invisible(c)).take(SHOWN).collect();
    serde_json::Value::from(shown).to_string()
}

/// JSON within `<script>`: no tag can begin in it.
pub fn json(value: &serde_json::Value) -> String {
    value.to_string().replace('<', "\\u003c")
}

fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "</script><img src=x onerror='alert(\"1\")'>\n---\n`[a](b)|\u{202e}";

    #[test]
    fn no_tag_and_no_quote_is_left_in_html() {
        let html = Html(HOSTILE).to_string();
        assert!(!html.contains(['<', '>', '"', '\'', '\n', '\u{202e}']), "{html}");
        assert_eq!(Html("a & b").to_string(), "a &amp; b");
        assert_eq!(Html(&"x".repeat(1000)).to_string().chars().count(), SHOWN + 1);
    }

    #[test]
    fn nothing_is_markup_in_markdown() {
        let shown = Markdown(HOSTILE).to_string();
        assert!(!shown.contains(['<', '\n']) && shown.contains("\\[a\\]\\(b\\)\\|"), "{shown}");
        assert_eq!(Markdown("a_b.Q4_0-x").to_string(), "a_b.Q4_0-x");
        assert_eq!(code("a`b\nc"), "abc");
    }

    #[test]
    fn a_scalar_of_yaml_is_one_string() {
        assert_eq!(yaml("a: b\"\n- c"), r#""a: b\"- c""#);
        assert_eq!(yaml("no"), "\"no\"");
    }

    #[test]
    fn json_cannot_end_the_script() {
        let value = serde_json::json!({ "a": "</script><!--" });
        let text = json(&value);
        assert!(!text.contains('<'), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
