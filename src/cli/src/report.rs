//! `report`: writes the post-mortem of recoveries.

use crate::exit::Exit;
use crate::fail::Fail;
use crate::output::{note, print, print_line};
use crate::records;
use crate::session::{Global, Session};
use anyhow::Result;
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use reattach_report::{Incident, Record, html, json, markdown};
use std::path::PathBuf;

/// Writes the post-mortem of recoveries.
///
/// It says what was wrong, what was done, when and by whom, how long it took, and what a person still has to do.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kubectl reattach report data-redis-0 -n cache > post-mortem.md
  kubectl reattach report -A --since 6h --html post-mortem.html
  kubectl reattach report data-redis-0 -o json | jq '.volumes[].healMillis'")]
pub struct ReportArgs {
    /// VolumeRecoveries or claims. Without them: all recoveries of the namespace.
    #[arg(value_name = "RECOVERY|CLAIM", conflicts_with = "all_namespaces")]
    names: Vec<String>,
    /// All namespaces.
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Only recoveries that were created within this time.
    #[arg(long, value_name = "DURATION", conflicts_with = "names", value_parser = since)]
    since: Option<jiff::SignedDuration>,
    /// Title of the post-mortem.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "Volume recovery post-mortem"
    )]
    title: String,
    /// Also write the post-mortem as one self-contained HTML file with a timeline picture.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Format on standard output.
    #[arg(long, short, value_enum, default_value_t)]
    output: Form,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Markdown text.
    #[default]
    Markdown,
    /// One JSON value.
    Json,
}

pub async fn run(args: ReportArgs, global: &Global) -> Result<Exit> {
    let session = Session::open(global).await?;
    let now = session.clock.now();
    let mut found = Vec::new();
    if args.names.is_empty() {
        found = records::list(
            &session,
            (!args.all_namespaces).then_some(session.namespace.as_str()),
        )
        .await?;
        if let Some(since) = args.since {
            let from = now.saturating_sub(since).unwrap_or(Timestamp::MIN);
            found.retain(|r| r.created() >= from);
        }
    }
    for name in &args.names {
        found.push(records::find(&session, name).await?);
    }
    if found.is_empty() {
        let place = if args.all_namespaces {
            "any namespace".to_owned()
        } else {
            format!("namespace {:?}", session.namespace)
        };
        return Err(Fail::Other(format!(
            "there is no recovery in {place} to report on; -A searches all namespaces"
        ))
        .into());
    }
    let (mut readable, mut left_out) = (Vec::new(), Vec::new());
    for recovery in &found {
        match recovery.record(None) {
            Ok(record) => readable.push(record),
            Err(unreadable) => left_out.push(format!(
                "recovery {} is left out: {}",
                recovery.name(),
                records::unreadable_sentence(&unreadable)
            )),
        }
    }
    if readable.is_empty() {
        return Err(Fail::Other(left_out.join("; ")).into());
    }
    left_out
        .iter()
        .for_each(|why| note(&format!("error: {why}")));
    let incident = incident(args.title, readable, now);
    if let Some(file) = &args.html {
        let written = std::fs::write(file, html(&incident));
        written.map_err(|e| Fail::Other(format!("cannot write --html {}: {e}", file.display())))?;
        note(&format!("{} was written.", file.display()));
    }
    match args.output {
        Form::Markdown => print(&markdown(&incident))?,
        Form::Json => print_line(&json(&incident))?,
    }
    // A script must not take an incomplete post-mortem for a whole one.
    Ok(if left_out.is_empty() {
        Exit::Done
    } else {
        Exit::Error
    })
}

/// Makes the incident, from the first creation to the last line of a journal, or to now while a recovery is not over.
fn incident(title: String, records: Vec<Record>, now: Timestamp) -> Incident {
    let from = records.iter().map(|r| r.created).min().unwrap_or(now);
    let last = records
        .iter()
        .filter_map(|r| r.journal.last().map(|e| e.at))
        .max();
    let to = if records.iter().all(|r| r.phase.is_final()) {
        last.unwrap_or(now)
    } else {
        now
    };
    Incident {
        title,
        from,
        to: to.max(from),
        records,
        notes: Vec::new(),
    }
}

fn since(text: &str) -> Result<jiff::SignedDuration, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is no duration such as 90m, 6h or 2d 12h"))
}
