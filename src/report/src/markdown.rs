//! Renders the post-mortem as GitHub-flavoured Markdown.

use crate::doc::{Block, Inline, Line};
use crate::{Incident, postmortem};
use reattach_core::plain::{clean, is_hidden, page};

/// Renders the post-mortem as Markdown: what was down, why and for how long, what was done under which authority, what was
/// left alone, and what still needs a person.
pub fn markdown(incident: &Incident) -> String {
    let mut out = String::new();
    for block in postmortem::document(incident) {
        let piece = match &block {
            Block::Heading(level, text) => {
                format!("{} {}\n", "#".repeat((*level).into()), escape(text))
            }
            Block::Para(line) => format!("{}\n", inline(line, false)),
            Block::List(lines) => lines
                .iter()
                .map(|l| format!("- {}\n", inline(l, false)))
                .collect(),
            Block::Table { head, rows } => table(head, rows),
            Block::Copy(what, text) => format!("{}\n\n{}", escape(what), fenced(text)),
            Block::Picture => continue,
        };
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&piece);
    }
    out
}

fn table(head: &[&str], rows: &[Vec<Line>]) -> String {
    let mut out = format!(
        "| {} |\n|{}\n",
        head.join(" | "),
        " --- |".repeat(head.len())
    );
    for row in rows {
        let cells: Vec<String> = row.iter().map(|c| inline(c, true)).collect();
        out.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    out
}

fn inline(line: &Line, in_table: bool) -> String {
    line.iter()
        .map(|piece| match piece {
            Inline::Text(text) => escape(text),
            Inline::Strong(text) | Inline::Badge(_, text) => format!("**{}**", escape(text)),
            Inline::Code(text) => code_span(text, in_table),
        })
        .collect()
}

/// Escapes characters that Markdown, or HTML inside it, reads as markup. Underscores inside words are no markup.
fn escape(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let word = |i: Option<usize>| {
        i.and_then(|i| chars.get(i))
            .is_some_and(|c| c.is_alphanumeric())
    };
    let mut out = String::with_capacity(text.len());
    for (i, c) in chars.iter().enumerate() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '_' if word(i.checked_sub(1)) && word(Some(i + 1)) => out.push('_'),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' => out.extend(['\\', *c]),
            '#' if i == 0 => out.push_str("\\#"),
            c if is_hidden(*c) => out.push(' '),
            c => out.push(*c),
        }
    }
    out
}

/// Makes a code span. Its fence is longer than any run of backticks in the text. In a table cell, pipes are escaped even
/// inside code.
fn code_span(text: &str, in_table: bool) -> String {
    let text = clean(text);
    let text = if in_table {
        text.replace('|', "\\|")
    } else {
        text
    };
    let ticks = "`".repeat(longest_run(&text) + 1);
    let pad = if text.starts_with('`') || text.ends_with('`') {
        " "
    } else {
        ""
    };
    format!("{ticks}{pad}{text}{pad}{ticks}")
}

fn fenced(text: &str) -> String {
    let text = page(text);
    let fence = "`".repeat((longest_run(&text) + 1).max(3));
    format!("{fence}text\n{}\n{fence}\n", text.trim_end())
}

fn longest_run(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_text_is_escaped() {
        assert_eq!(
            escape("a|b <script>*x*</script> [l](u) `c` no_device _e_"),
            "a\\|b &lt;script&gt;\\*x\\*&lt;/script&gt; \\[l\\](u) \\`c\\` no_device \\_e\\_"
        );
        assert_eq!(escape("# head & tail"), "\\# head &amp; tail");
    }

    #[test]
    fn code_cannot_leave_its_fence() {
        assert_eq!(code_span("a`b", false), "``a`b``");
        assert_eq!(code_span("`", false), "`` ` ``");
        assert_eq!(code_span("a|b", true), "`a\\|b`");
        assert_eq!(fenced("x\n```\ny"), "````text\nx\n```\ny\n````\n");
    }
}
