//! Document model of the post-mortem. Markdown and HTML render the same document, so their content cannot differ.

/// Piece of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Inline {
    Text(String),
    Strong(String),
    /// Name, hash or command.
    Code(String),
    /// Standing of a recovery in a few words.
    Badge(Tone, String),
}

/// Colour of a badge, by what the reader has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Nothing: the pod runs with its volume.
    Good,
    /// The recovery is under way or waits.
    Wait,
    /// A person must act.
    Bad,
    /// reattach leaves the volume alone.
    Plain,
}

/// Line of pieces, without a line break.
pub(crate) type Line = Vec<Inline>;

/// Block of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// Heading of level 1 to 4.
    Heading(u8, String),
    Para(Line),
    List(Vec<Line>),
    Table {
        head: Vec<&'static str>,
        /// Each row has as many cells as the head.
        rows: Vec<Vec<Line>>,
    },
    /// Introduction, and a text to be copied as it stands.
    Copy(String, String),
    /// Place of the timeline pictures; only HTML has them.
    Picture,
}

/// Makes a line of plain text.
pub(crate) fn text(text: impl Into<String>) -> Line {
    vec![Inline::Text(text.into())]
}

/// Makes a line of one name.
pub(crate) fn code(text: impl Into<String>) -> Line {
    vec![Inline::Code(text.into())]
}

/// Makes a line of an emphasised label and its text.
pub(crate) fn labelled(label: &str, words: impl Into<String>) -> Line {
    vec![
        Inline::Strong(format!("{label}.")),
        Inline::Text(format!(" {}", words.into())),
    ]
}
