//! `explain` and the help texts, as scripts and people get them.
#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

#[path = "common/golden.rs"]
mod golden;

use golden::golden;
use serde_json::Value;
use std::io::Write;
use std::process::{Command, Output, Stdio};

const CATALOGUE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/mount-events.jsonl"
);

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-reattach"));
    command
        .args(args)
        .env_clear()
        .env("COLUMNS", "100")
        .stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn with_input(args: &[&str], input: &[u8]) -> Output {
    let mut child = command(args).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn objects(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

fn rows() -> Vec<Value> {
    std::fs::read_to_string(CATALOGUE)
        .unwrap()
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

#[track_caller]
fn assert_answers(rows: &[Value], answers: &[Value]) {
    assert_eq!(rows.len(), answers.len());
    for (row, answer) in rows.iter().zip(answers) {
        let remedies = answer["remedies"].as_array().unwrap();
        assert!((1..=3).contains(&remedies.len()), "{answer}");
        assert!(remedies.contains(&row["remedy"]), "{row}\n{answer}");
        let not_ours = row["remedy"] == "not-ours";
        assert_eq!(
            not_ours,
            remedies.iter().any(|r| r == "not-ours"),
            "{row}\n{answer}"
        );
        assert!(!not_ours || remedies.len() == 1, "{answer}");
        assert!(
            answer["meaning"].is_string() && answer["sentence"].as_str().unwrap().len() > 40,
            "{answer}"
        );
        assert!(
            answer["facts"]
                .as_array()
                .unwrap()
                .iter()
                .all(Value::is_string),
            "{answer}"
        );
        assert!(!answer["facts"].as_array().unwrap().is_empty(), "{answer}");
    }
}

#[test]
fn every_row_of_the_catalogue_from_a_file() {
    let output = command(&["explain", "-o", "jsonl", CATALOGUE])
        .output()
        .unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    assert_eq!(rows().len(), 54);
    assert_answers(&rows(), &objects(&output));
}

#[test]
fn every_row_as_plain_text_on_standard_input() {
    let text: String = rows()
        .iter()
        .map(|r| format!("{}\n", r["message"].as_str().unwrap().replace('\n', " ")))
        .collect();
    let output = with_input(&["explain", "-o", "jsonl", "-"], text.as_bytes());
    assert!(output.status.success(), "{output:?}");
    assert_answers(&rows(), &objects(&output));
}

#[test]
fn blank_lines_are_skipped_and_broken_ones_named() {
    let input = b"\xef\xbb\xbf{\"message\": \"secret \\\"x\\\" not found\"}\r\n\n   \n{\"message\": 5}\n{\"reason\": \"FailedMount\"}\n{\"mess\n{\"message\": \"a\", \"driver\": 7}\nMultiAttach \xff error\n{\"message\": \"no newline at the end\"}";
    let output = with_input(&["explain", "-o", "jsonl", "-"], input);
    let answers = objects(&output);
    assert_eq!(output.status.code(), Some(1));
    let errors: Vec<Option<u64>> = answers.iter().map(|a| a["line"].as_u64()).collect();
    assert_eq!(
        errors,
        [None, Some(4), Some(5), Some(6), Some(7), None, None]
    );
    assert_eq!(answers[0]["meaning"], "secret-missing");
    let stderr = String::from_utf8(output.stderr).unwrap();
    for part in [
        "line 4: the JSON object has no text field \"message\"",
        "line 6: not a JSON object",
        "line 7: reason, source_component and driver must be texts",
        "4 of 9 lines",
    ] {
        assert!(stderr.contains(part), "{part} is not in {stderr}");
    }
}

#[test]
fn a_line_is_answered_before_the_next_one_comes() {
    use std::io::{BufRead, BufReader};
    let mut child = command(&["explain", "-o", "jsonl", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, mut output) = (
        child.stdin.take().unwrap(),
        BufReader::new(child.stdout.take().unwrap()),
    );
    for _ in 0..3 {
        input.write_all(b"secret \"x\" not found\n").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert!(line.contains("secret-missing"), "{line}");
    }
    // The reader goes away: that is no error.
    drop(output);
    let _ = input.write_all(&b"secret \"x\" not found\n".repeat(10_000));
    drop(input);
    let ended = child.wait_with_output().unwrap();
    assert!(
        ended.status.success() && ended.stderr.is_empty(),
        "{ended:?}"
    );
}

#[test]
fn json_output_empty_input_and_missing_files() {
    let output = command(&["explain", "-o", "json", CATALOGUE])
        .output()
        .unwrap();
    let all: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_answers(&rows(), &all);
    let output = with_input(&["explain", "-o", "json", "-"], b"\n");
    assert_eq!(output.stdout, b"[]\n");
    let output = command(&["explain", "/nonexistent"]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .starts_with("error: cannot read /nonexistent: No such file")
    );
}

#[test]
fn the_explanation_for_people() {
    let picked: Vec<Value> = rows()
        .into_iter()
        .filter(|r| r["source"].as_str().unwrap().contains("linode") || r["remedy"] == "escalate")
        .take(4)
        .collect();
    let input: String = picked.iter().map(|r| format!("{r}\n")).collect();
    let output = with_input(&["explain", "-"], input.as_bytes());
    golden("explain.txt", std::str::from_utf8(&output.stdout).unwrap());
}

#[test]
fn help_texts() {
    let mut all = String::new();
    for verb in [
        "", "explain", "diagnose", "plan", "recover", "approve", "declare", "abort", "status",
        "report",
    ] {
        let args: Vec<&str> = [verb, "--help"]
            .into_iter()
            .filter(|a| !a.is_empty())
            .collect();
        let output = command(&args).output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("Usage: kubectl reattach"), "{text}");
        assert!(
            !text.contains("kubectl-reattach"),
            "the binary's own name is not what people type: {text}"
        );
        assert!(
            verb.is_empty() || text.contains("Examples:\n  kubectl reattach "),
            "{verb} has no examples"
        );
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        all.push_str(&format!(
            "$ kubectl reattach {}\n{}\n\n",
            args.join(" "),
            lines.join("\n")
        ));
    }
    assert!(all.contains("Exit codes:\n    0  done"));
    golden("help.txt", &all);
}
