//! Renders the post-mortem as one HTML file: no scripts, no links to anything outside, light and dark.

use crate::doc::{Block, Inline, Line, Tone};
use crate::escape::escape;
use crate::{Incident, postmortem, svg};
use reattach_core::plain;
use std::fmt::Write;

const STYLE: &str = include_str!("style.css");

/// Renders the post-mortem as one self-contained HTML file with timeline pictures. All text from outside is escaped, and
/// the page's content security policy forbids every request.
pub fn html(incident: &Incident) -> String {
    let mut body = String::new();
    for block in postmortem::document(incident) {
        render(&block, incident, &mut body);
    }
    let title = escape(&plain::clean(&incident.title));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
}

// Writing to a String cannot fail, here and below.
fn render(block: &Block, incident: &Incident, out: &mut String) {
    let _ = match block {
        Block::Heading(level, text) => writeln!(out, "<h{level}>{}</h{level}>", escape(text)),
        Block::Para(line) => writeln!(out, "<p>{}</p>", inline(line)),
        Block::List(lines) => {
            let items: String = lines
                .iter()
                .map(|l| format!("<li>{}</li>\n", inline(l)))
                .collect();
            writeln!(out, "<ul>\n{items}</ul>")
        }
        Block::Table { head, rows } => {
            let head: String = head
                .iter()
                .map(|h| format!("<th scope=\"col\">{}</th>", escape(h)))
                .collect();
            let rows: String = rows
                .iter()
                .map(|row| {
                    let cells: String = row
                        .iter()
                        .map(|c| format!("<td>{}</td>", inline(c)))
                        .collect();
                    format!("<tr>{cells}</tr>\n")
                })
                .collect();
            writeln!(
                out,
                "<div class=\"scroll\"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>"
            )
        }
        Block::Copy(what, text) => {
            writeln!(
                out,
                "<p>{}</p>\n<pre>{}</pre>",
                escape(what),
                escape(text.trim_end())
            )
        }
        Block::Picture => {
            out.push_str(&svg::pictures(incident));
            Ok(())
        }
    };
}

fn inline(line: &Line) -> String {
    line.iter()
        .map(|piece| match piece {
            Inline::Text(text) => escape(text),
            Inline::Strong(text) => format!("<strong>{}</strong>", escape(text)),
            Inline::Code(text) => format!("<code>{}</code>", escape(text)),
            Inline::Badge(tone, text) => {
                let class = match tone {
                    Tone::Good => "good",
                    Tone::Wait => "wait",
                    Tone::Bad => "bad",
                    Tone::Plain => "plain",
                };
                format!("<span class=\"badge {class}\">{}</span>", escape(text))
            }
        })
        .collect()
}
