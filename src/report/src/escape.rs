//! Escapes text from outside for HTML and SVG.

use reattach_core::plain::is_hidden;

/// Escapes text for element content and quoted attributes. Hidden characters become spaces.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if is_hidden(c) => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
