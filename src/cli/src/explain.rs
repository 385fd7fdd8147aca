//! `explain`: says what an event, an error or a log line means. Needs no cluster.

use crate::exit::Exit;
use crate::fail::{Fail, one_line};
use crate::output::{note, print, print_json_line, print_line, width};
use anyhow::Result;
use clap::{Args, ValueEnum};
use reattach_core::plain;
use reattach_messages::{Explanation, Message, Remedy, explain};
use reattach_report::paragraph;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};

/// Explains an event, error or log line; needs no cluster.
///
/// Says what the text means, which facts decide, and which remedies can help. The input has one message per line. A line is plain text, or a JSON object with `message` and,
/// if known, `reason`, `source_component` and `driver`. A text alone decides nothing. It only says what to look at.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kubectl reattach explain --message 'Multi-Attach error for volume \"pv\" ...'
  kubectl get events -A -o json | jq -c '.items[] | {reason, message}' |
    kubectl reattach explain -
  kubectl reattach explain -o jsonl events.jsonl | jq -r '.remedies[0]' | sort | uniq -c

Remedies: force-detach, delete-volumeattachment, wait, escalate, not-ours.
Exit codes: 0 every line was answered; 1 some lines could not be read; 2 wrong usage.")]
pub struct ExplainArgs {
    /// File with one message per line; `-` is standard input.
    #[arg(value_name = "FILE", conflicts_with = "message")]
    file: Option<PathBuf>,
    /// The message itself.
    #[arg(long, short = 'm', value_name = "TEXT")]
    message: Option<String>,
    /// Reason of the event, such as FailedMount.
    #[arg(long, requires = "message")]
    reason: Option<String>,
    /// Name of the CSI driver.
    #[arg(long, requires = "message")]
    driver: Option<String>,
    /// Output format; jsonl answers each line as it comes.
    #[arg(long, short, value_enum, default_value_t)]
    output: Form,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Paragraphs for people.
    #[default]
    Table,
    /// One JSON array.
    Json,
    /// One JSON object per line of input.
    Jsonl,
}

/// Explains each message. A line that cannot be read makes the exit code 1, and the other lines are answered all the same.
pub fn run(args: ExplainArgs) -> Result<Exit> {
    let mut sink = Sink {
        form: args.output,
        first: true,
    };
    if let Some(message) = args.message {
        let message = Message {
            message,
            reason: args.reason,
            driver: args.driver,
            source_component: None,
        };
        sink.answer(&message)?;
        sink.close()?;
        return Ok(Exit::Done);
    }
    let (mut reader, name) = open(args.file.as_deref())?;
    let (mut number, mut bad) = (0_u64, 0_u64);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        let read = reader.read_until(b'\n', &mut bytes);
        if read.map_err(|e| Fail::Other(format!("cannot read {name}: {e}")))? == 0 {
            break;
        }
        number += 1;
        // A log line may contain any bytes. Invalid UTF-8 becomes U+FFFD.
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.is_empty() {
            continue;
        }
        match message_of(text) {
            Ok(message) => sink.answer(&message)?,
            Err(why) => {
                bad += 1;
                note(&format!("error: {name}, line {number}: {why}"));
                sink.error(number, &why)?;
            }
        }
    }
    sink.close()?;
    if bad > 0 {
        return Err(Fail::Other(format!(
            "{bad} of {number} lines of {name} could not be read; the others are answered"
        ))
        .into());
    }
    Ok(Exit::Done)
}

fn open(file: Option<&Path>) -> Result<(Box<dyn BufRead>, String)> {
    match file {
        Some(path) if path != Path::new("-") => {
            let name = path.display().to_string();
            let file =
                File::open(path).map_err(|e| Fail::Usage(format!("cannot read {name}: {e}")))?;
            Ok((Box::new(BufReader::new(file)), name))
        }
        None if std::io::stdin().is_terminal() => Err(Fail::Usage(
            "nothing to explain: give a FILE, - for standard input, or --message TEXT".to_owned(),
        )
        .into()),
        _ => Ok((
            Box::new(std::io::stdin().lock()),
            "standard input".to_owned(),
        )),
    }
}

/// Reads one line as a message. A line that begins like a JSON object must be one: a cut-off object read as text would be
/// answered as if its field names were words of the message.
fn message_of(text: &str) -> Result<Message, String> {
    if !text.starts_with('{') {
        return Ok(Message {
            message: text.to_owned(),
            ..Message::default()
        });
    }
    match serde_json::from_str::<Value>(text) {
        Err(e) => Err(format!("not a JSON object ({})", one_line(&e.to_string()))),
        Ok(value) if !value["message"].is_string() => {
            Err("the JSON object has no text field \"message\"".to_owned())
        }
        Ok(value) => serde_json::from_value(value).map_err(|e| {
            format!(
                "reason, source_component and driver must be texts ({})",
                one_line(&e.to_string())
            )
        }),
    }
}

/// Writer of the answers.
struct Sink {
    form: Form,
    /// Has nothing been written yet?
    first: bool,
}

impl Sink {
    fn answer(&mut self, message: &Message) -> Result<()> {
        let found = explain(message);
        match self.form {
            Form::Table => self.paragraphs(&message.message, &found),
            Form::Json | Form::Jsonl => self.object(&object(&found)),
        }
    }

    fn error(&mut self, number: u64, why: &str) -> Result<()> {
        match self.form {
            Form::Table => Ok(()),
            Form::Json | Form::Jsonl => self.object(&json!({ "line": number, "error": why })),
        }
    }

    fn object(&mut self, object: &Value) -> Result<()> {
        let first = std::mem::take(&mut self.first);
        match self.form {
            Form::Json => {
                let object = plain::json(&object.to_string());
                print(&format!("{}  {object}", if first { "[\n" } else { ",\n" }))
            }
            _ => print_json_line(object),
        }
    }

    fn close(&self) -> Result<()> {
        match self.form {
            Form::Json if self.first => print_line("[]"),
            Form::Json => print("\n]\n"),
            _ => Ok(()),
        }
    }

    fn paragraphs(&mut self, message: &str, found: &Explanation) -> Result<()> {
        let width = width().unwrap_or(100).min(110);
        let mut text = if std::mem::take(&mut self.first) {
            String::new()
        } else {
            "\n".to_owned()
        };
        text.push_str(&paragraph("", &one_line(message), width));
        let mut rows = |label: &str, lines: Vec<String>| {
            let labels = std::iter::once(label).chain(std::iter::repeat(""));
            for (label, line) in labels.zip(&lines) {
                text.push_str(&paragraph(&format!("  {label:<9} "), line, width));
            }
        };
        rows("means", vec![one_line(&found.sentence)]);
        let facts = found.deciding_facts.iter();
        rows("look at", facts.map(|f| f.in_words().to_owned()).collect());
        let remedies = found.remedies.iter();
        rows(
            "remedies",
            remedies
                .map(|r| format!("{}: {}", name(*r), r.in_words()))
                .collect(),
        );
        print(&text)
    }
}

/// Returns the explanation as a JSON object. The meaning's own fields stand under `details`.
fn object(found: &Explanation) -> Value {
    let mut details = match serde_json::to_value(&found.meaning) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let kind = details.remove("kind").unwrap_or(Value::Null);
    details.retain(|_, v| !v.is_null());
    let facts: Vec<&str> = found.deciding_facts.iter().map(|f| f.in_words()).collect();
    let remedies: Vec<&str> = found.remedies.iter().map(|r| name(*r)).collect();
    let mut object = json!({ "meaning": kind, "sentence": found.sentence, "facts": facts, "remedies": remedies });
    if !details.is_empty() {
        object["details"] = Value::Object(details);
    }
    object
}

fn name(remedy: Remedy) -> &'static str {
    match remedy {
        Remedy::ForceDetach => "force-detach",
        Remedy::DeleteVolumeattachment => "delete-volumeattachment",
        Remedy::Wait => "wait",
        Remedy::Escalate => "escalate",
        Remedy::NotOurs => "not-ours",
    }
}
