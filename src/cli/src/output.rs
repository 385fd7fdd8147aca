//! Standard output: text, JSON and YAML. A closed pipe is an error like any other and ends the command quietly.

use anyhow::Result;
use clap::ValueEnum;
use reattach_core::plain;
use serde::Serialize;
use std::io::{IsTerminal, Write};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Text for people.
    #[default]
    Table,
    /// One JSON value.
    Json,
    /// The JSON value as YAML.
    Yaml,
}

/// Writes text to standard output. No hidden character but the line break passes: names and messages in the text were
/// written by others.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(plain::page(text).as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// Writes a line to standard output.
pub fn print_line(text: &str) -> Result<()> {
    print(&format!("{text}\n"))
}

/// Writes a JSON value on one line to standard output. Hidden characters stand as `\u` escapes, so that a script reads
/// the same value and a terminal shows it as it is.
pub fn print_json_line(value: &impl Serialize) -> Result<()> {
    print_line(&plain::json(&serde_json::to_string(value)?))
}

/// Writes a line of progress or advice to standard error, so that standard output stays for the result. Hidden characters
/// do not pass, as in [`print()`].
pub fn note(text: &str) {
    // A closed standard error loses nothing that a script relies on.
    let _ = writeln!(std::io::stderr().lock(), "{}", plain::page(text));
}

/// Writes a question to standard error, without a line break behind it.
pub fn prompt(text: &str) -> Result<()> {
    let mut stderr = std::io::stderr().lock();
    write!(stderr, "{}", plain::page(text))?;
    stderr.flush()?;
    Ok(())
}

/// Writes a value as JSON or YAML; `Format::Table` prints JSON too (callers print their own tables).
pub fn print_value(format: Format, value: &impl Serialize) -> Result<()> {
    match format {
        // By way of JSON, so that both show the same names and number types.
        Format::Yaml => print(&serde_saphyr::to_string(&serde_json::to_value(value)?)?),
        Format::Json | Format::Table => {
            print_line(&plain::json(&serde_json::to_string_pretty(value)?))
        }
    }
}

/// Returns the columns to print on: `COLUMNS` if set, otherwise the terminal's. `None` when standard output is no terminal: lines
/// are not cut then.
pub fn width() -> Option<usize> {
    let set = std::env::var("COLUMNS")
        .ok()
        .and_then(|c| c.parse().ok())
        .filter(|c| *c >= 40);
    let stdout = std::io::stdout();
    let seen = || terminal_size::terminal_size_of(&stdout).map(|(w, _)| usize::from(w.0));
    if stdout.is_terminal() {
        set.or_else(seen)
    } else {
        set
    }
}
