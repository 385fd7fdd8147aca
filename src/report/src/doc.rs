//! A small document model, so that the Markdown and the HTML post-mortem say the same.

/// A piece of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Inline {
    /// Plain text.
    Text(String),
    /// Emphasised text.
    Strong(String),
    /// A name, hash or command.
    Code(String),
    /// How something stands.
    Badge(Tone, String),
}

/// How good news is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it should be.
    Good,
    /// Under way, or waiting for someone else.
    Wait,
    /// A person is needed.
    Bad,
    /// Left alone.
    Plain,
}

/// A line.
pub(crate) type Line = Vec<Inline>;

/// A block of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// A heading of level 1 to 4.
    Heading(u8, String),
    /// A paragraph.
    Para(Line),
    /// A list.
    List(Vec<Line>),
    /// A table.
    Table {
        /// The column heads.
        head: Vec<&'static str>,
        /// The rows; each has as many cells as the head.
        rows: Vec<Vec<Line>>,
    },
    /// Text to be copied as it stands, with what it is.
    Copy(String, String),
    /// The place of the timeline picture.
    Picture,
}

/// Plain text as a line.
pub(crate) fn text(text: impl Into<String>) -> Line {
    vec![Inline::Text(text.into())]
}

/// A name as a line.
pub(crate) fn code(text: impl Into<String>) -> Line {
    vec![Inline::Code(text.into())]
}

/// A label and what it says.
pub(crate) fn labelled(label: &str, words: impl Into<String>) -> Line {
    vec![
        Inline::Strong(format!("{label}.")),
        Inline::Text(format!(" {}", words.into())),
    ]
}
