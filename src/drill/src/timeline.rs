//! The live timeline: one line per thing that happened, was concluded or was done.

use jiff::Timestamp;
use serde::Serialize;

/// Columns of the terminal that the text is made for.
pub const WIDTH: usize = 110;

/// The program or person that a line is about: its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Actor {
    /// A heading of the drill itself.
    Drill,
    /// The cloud provider.
    Provider,
    /// Kubernetes and what it shows.
    Kubernetes,
    /// A person.
    Person,
    /// The product.
    Reattach,
}

impl Actor {
    fn word(self) -> &'static str {
        match self {
            Self::Drill => "",
            Self::Provider => "provider",
            Self::Kubernetes => "kubernetes",
            Self::Person => "person",
            Self::Reattach => "reattach",
        }
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Virtual time.
    pub at: Timestamp,
    /// The subject.
    #[serde(rename = "who")]
    pub actor: Actor,
    /// The app or node that the line is about. Empty: all of them.
    pub about: String,
    /// The text after the subject, without it.
    pub text: String,
    /// Further lines as they are, for example a plan.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub block: Vec<String>,
}

const TIME: usize = 8;
const ACTOR: usize = 10;
const ABOUT: usize = 10;

impl Line {
    /// The line as text of at most [`WIDTH`] columns (a word that is longer alone stands out). Headings stand alone.
    pub fn render(&self) -> String {
        if self.actor == Actor::Drill {
            let mut out = format!("\n== {}  {}\n", self.at.strftime("%H:%M:%S"), self.text);
            for line in &self.block {
                out.push_str(&format!("   {line}\n"));
            }
            return out;
        }
        let mut head = format!(
            "{}  {:<ACTOR$}  {:<ABOUT$}",
            self.at.strftime("%H:%M:%S"),
            self.actor.word(),
            self.about
        );
        let indent = TIME + 2 + ACTOR + 2 + ABOUT + 2;
        // A long name pushes its own text to the right, not that of other lines.
        head.push_str("  ");
        let first = head.chars().count();
        let mut out = wrap(&head, first, indent, &self.text, WIDTH);
        for line in &self.block {
            out.push_str(&format!("{:TIME$}  | {line}\n", ""));
        }
        out
    }
}

/// `head` and `text`, wrapped; the first line has `first` columns taken, the others begin at `indent`.
fn wrap(head: &str, first: usize, indent: usize, text: &str, width: usize) -> String {
    let mut out = head.to_owned();
    let (mut column, mut fresh) = (first, true);
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if !fresh && column + 1 + length > width {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            (column, fresh) = (indent, true);
        }
        if !fresh {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        (column, fresh) = (column + length, false);
    }
    out.push('\n');
    out
}

/// Text wrapped to [`WIDTH`] with a hanging indent, for paragraphs outside the timeline.
pub fn paragraph(indent: usize, text: &str) -> String {
    wrap(&" ".repeat(indent), indent, indent, text, WIDTH)
}

/// Text for [`Line::block`]: wrapped so that it fits beside the bar, with a hanging indent.
pub(crate) fn block(indent: usize, text: &str) -> Vec<String> {
    wrap("", 0, indent, text, WIDTH - TIME - 4)
        .lines()
        .map(str::to_owned)
        .collect()
}

/// A table with a header line; cells are cut nowhere.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |n: usize| {
        rows.iter()
            .filter_map(|r| r.get(n))
            .map(|c| c.chars().count())
            .chain([header[n].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(c, w)| format!("{c:<w$}"))
            .collect();
        format!("  {}\n", padded.join("  ").trim_end())
    };
    let mut out = line(&header.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>());
    out.push_str(&line(
        &widths.iter().map(|w| "-".repeat(*w)).collect::<Vec<_>>(),
    ));
    for row in rows {
        out.push_str(&line(row));
    }
    out
}

/// A duration in words: `17.2 s`, `4 min 5 s`, `5 h 20 min`.
pub fn span(seconds: f64) -> String {
    let whole = seconds.round() as i64;
    match whole {
        ..100 => format!("{seconds:.1} s"),
        100..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_wrapped_with_a_hanging_indent() {
        let line = Line {
            at: "2021-07-11T01:13:05Z".parse().expect("a time"),
            actor: Actor::Reattach,
            about: "redis".to_owned(),
            text: "word ".repeat(60),
            block: vec![],
        };
        let text = line.render();
        assert!(text.lines().count() > 2);
        assert!(text.lines().all(|l| l.chars().count() <= WIDTH), "{text}");
        assert!(
            text.starts_with("01:13:05  reattach    redis       word"),
            "{text}"
        );
        assert!(
            text.lines()
                .skip(1)
                .all(|l| l.starts_with(&" ".repeat(34)) && !l.starts_with(&" ".repeat(35))),
            "{text}"
        );
    }

    #[test]
    fn durations_are_written_in_words() {
        assert_eq!(
            [span(0.04), span(17.24), span(245.0), span(19_200.0)],
            ["0.0 s", "17.2 s", "4 min 5 s", "5 h 20 min"]
        );
    }
}
