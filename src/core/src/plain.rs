//! Text that others wrote, made plain.
//!
//! Event texts, names, labels, reasons, annotations and the words of a cloud are data: a tenant, an agent or a cloud
//! chose every character of them. They reach terminals, logs, statuses, Events and reports only through this module.
//! A character that is not shown (control characters, terminal escapes, line breaks, characters that reorder text or
//! have no width) never passes as it is. A text has a bound, and a text that was cut says so.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::io;

/// Maximum length of a sentence that a status, a condition or an Event carries, in characters. An Event's note may have
/// 1,024 bytes.
pub const SENTENCE_CHARS: usize = 1_024;

/// Maximum length of any other text in a record of ours, in characters: a line of the journal, a fact of the diagnosis.
pub const TEXT_CHARS: usize = 2_048;

/// Maximum length of one log line, in characters. A record that is deleted is exported to the log as one line, and a
/// status alone may have half a MiB.
pub const LOG_LINE_CHARS: usize = 2 << 20;

/// Whether a terminal, an editor or a browser does not show the character: control characters (C0, C1 and DEL), line
/// and paragraph separators, characters that reorder text, and characters without width.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// The text with a space in place of every hidden character, so that it can neither move a cursor, begin a line nor hide
/// a part of itself.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if is_hidden(c) { ' ' } else { c })
        .collect()
}

/// The text cleaned, with its line breaks kept: for texts of ours that have several lines.
pub fn page(text: &str) -> String {
    text.chars()
        .map(|c| if is_hidden(c) && c != '\n' { ' ' } else { c })
        .collect()
}

/// The text cleaned, on one line, with single spaces between words, and of at most `most` characters.
pub fn line(text: &str, most: usize) -> String {
    cut(
        &clean(text).split_whitespace().collect::<Vec<_>>().join(" "),
        most,
    )
}

/// A sentence for a status, a condition, an Event or a record: as [`line()`], and what looks like a credential is masked.
pub fn sentence(text: &str, most: usize) -> String {
    line(&quoted(text), most)
}

/// The text, or its beginning with an ellipsis: at most `most` characters. Where there is room for it, the cut text says
/// how long the whole was.
pub fn cut(text: &str, most: usize) -> String {
    let all = text.chars().count();
    if all <= most {
        return text.to_owned();
    }
    let note = if most >= 80 {
        format!("… (cut: {all} characters in all)")
    } else {
        "…".to_owned()
    };
    let kept = most.saturating_sub(note.chars().count());
    text.chars()
        .take(kept)
        .chain(note.chars())
        .take(most)
        .collect()
}

/// Text from outside as it may be shown and sent on: [`clean`], and what looks like a credential masked. That is the word
/// after `Bearer`, what follows `token`, `password`, `secret`, `apikey` or `authorization` with `:` or `=`, and any run
/// of 32 or more letters and digits with a digit among them (API tokens), unless it belongs to a path, a `csi-…` name or
/// a `sha256:` digest.
pub fn quoted(text: &str) -> String {
    let mut mask_next = false;
    let words: Vec<String> = clean(text)
        .split(' ')
        .map(|word| {
            let masked = if word.is_empty() {
                false
            } else {
                std::mem::take(&mut mask_next)
            };
            let bare = word
                .trim_matches(|c: char| !c.is_alphanumeric())
                .to_lowercase();
            if bare == "bearer" || (masked && bare == "basic") {
                mask_next = true;
                return word.to_owned();
            }
            if masked {
                return mask(0, word);
            }
            if let Some(at) = word
                .find(['=', ':'])
                .filter(|at| names_a_secret(&word[..*at]))
            {
                mask_next = at + 1 == word.len();
                return if mask_next {
                    word.to_owned()
                } else {
                    mask(at + 1, word)
                };
            }
            let token = |run: &str| run.len() >= 32 && run.contains(|c: char| c.is_ascii_digit());
            let name = word.contains('/') || word.contains("csi-") || word.contains("sha256:");
            let has_token = !name && word.split(|c: char| !c.is_ascii_alphanumeric()).any(token);
            if has_token {
                mask(0, word)
            } else {
                word.to_owned()
            }
        })
        .collect();
    words.join(" ")
}

fn names_a_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    [
        "token",
        "password",
        "passwd",
        "secret",
        "apikey",
        "api_key",
        "authorization",
    ]
    .iter()
    .any(|n| name.ends_with(n))
}

/// The word with everything from a byte on masked, except the punctuation that ends it.
fn mask(from: usize, word: &str) -> String {
    // A text may pass here more than once on its way.
    if word[from..].trim_matches(|c: char| !c.is_alphanumeric()) == "masked" {
        return word.to_owned();
    }
    let end = word
        .trim_end_matches(['.', ',', ';', ':', ')', ']', '"'])
        .len()
        .max(from);
    format!("{}[masked]{}", &word[..from], &word[end..])
}

/// A JSON text with every hidden character in it as a `\u` escape: the value is the same, and a terminal shows it as it
/// is. Line breaks of the layout are kept.
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut units = [0_u16; 2];
    for c in text.chars() {
        if c == '\n' || !is_hidden(c) {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut units) {
            // Writing to a String never fails.
            let _ = write!(out, "\\u{unit:04x}");
        }
    }
    out
}

/// Changes every text in a JSON value, names of fields included.
pub fn every_text(value: &mut Value, change: &impl Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = change(text),
        Value::Array(items) => items.iter_mut().for_each(|item| every_text(item, change)),
        Value::Object(fields) => {
            let old = std::mem::take(fields);
            for (name, mut inner) in old {
                every_text(&mut inner, change);
                fields.insert(change(&name), inner);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The same value with every text in it cleaned, and cut to `most` characters. The value comes back as it was where it
/// cannot be read again without what was taken out.
pub fn made_plain<T: Serialize + DeserializeOwned + Clone>(value: &T, most: usize) -> T {
    let plain = serde_json::to_value(value).ok().and_then(|mut json| {
        every_text(&mut json, &|text| cut(&clean(text), most));
        serde_json::from_value(json).ok()
    });
    plain.unwrap_or_else(|| value.clone())
}

/// One log line in text form: every hidden character as a visible escape, so that a text can neither begin a line of its
/// own nor steer the terminal of a reader; bounded.
pub fn log_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => out.push(' '),
            c if is_hidden(c) => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    cut(&out, LOG_LINE_CHARS)
}

/// One log line in JSON: as [`log_line`], and still JSON. The texts in a line that is too long are cut.
pub fn json_log_line(text: &str) -> String {
    let text = json(text).replace('\n', " ");
    if text.chars().count() <= LOG_LINE_CHARS {
        return text;
    }
    let Ok(mut value) = serde_json::from_str::<Value>(&text) else {
        return cut(&text, LOG_LINE_CHARS);
    };
    every_text(&mut value, &|text| cut(text, SENTENCE_CHARS));
    json(&value.to_string())
}

/// The form of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogForm {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Writes log lines, each made plain. A log library hands over one whole event with each write, and what stands inside
/// an event never makes a second line.
#[derive(Debug)]
pub struct LogLines<W> {
    to: W,
    form: LogForm,
}

impl<W: io::Write> LogLines<W> {
    /// Lines of this form, written to `to`.
    pub fn new(to: W, form: LogForm) -> Self {
        Self { to, form }
    }
}

impl<W: io::Write> io::Write for LogLines<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text: Cow<'_, str> = String::from_utf8_lossy(event);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let mut line = match self.form {
            LogForm::Text => log_line(text),
            LogForm::Json => json_log_line(text),
        };
        line.push('\n');
        self.to.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    /// Every character that must not pass, and words around them.
    const EVIL: &str = "a\u{1b}[2Jb\nc\rd\u{0}e\u{7f}f\u{9b}31mg\u{202e}h\u{2066}i\u{200b}j\u{feff}k\u{2028}l\u{e0041}m\u{ad}n\u{61c}o";

    fn shows_all(text: &str) -> bool {
        !text.contains(is_hidden)
    }

    #[test]
    fn hidden_characters_become_spaces() {
        assert_eq!(
            clean("a\u{1b}[1m\u{202e}b\u{200b}c\u{9b}d\ne"),
            "a [1m b c d e"
        );
        assert!(
            shows_all(&clean(EVIL))
                && shows_all(&line(EVIL, 100))
                && shows_all(&sentence(EVIL, 100))
        );
        assert_eq!(clean(EVIL).chars().count(), EVIL.chars().count());
        assert_eq!(clean("Grüße, 日本語 – ok…"), "Grüße, 日本語 – ok…");
        assert_eq!(page("a\u{1b}b\n\u{202e}c\r\n"), "a b\n c \n");
    }

    #[test]
    fn every_control_and_reordering_character_is_hidden() {
        let mut all: Vec<char> = (0..0x20_u8).chain(0x7f..=0x9f).map(char::from).collect();
        all.extend('\u{202a}'..='\u{202e}');
        all.extend('\u{2066}'..='\u{2069}');
        all.extend('\u{200b}'..='\u{200f}');
        for c in all {
            assert!(is_hidden(c), "{c:?}");
        }
        assert!(!" ~ü…日–".contains(is_hidden));
    }

    #[test]
    fn long_texts_are_cut_with_a_mark() {
        let long = "x".repeat(5_000);
        for most in [1, 5, 79, 80, 100, 1_024] {
            let cut = cut(&long, most);
            assert_eq!(cut.chars().count(), most);
            assert!(cut.contains('…'), "{cut}");
            assert_eq!(cut.contains("5000 characters in all"), most >= 80, "{cut}");
        }
        assert_eq!(cut("short", 5), "short");
        assert_eq!(line("  a \n\n b ", 80), "a b");
        let once = sentence(&long, SENTENCE_CHARS);
        assert_eq!(
            sentence(&once, SENTENCE_CHARS),
            once,
            "a cut text is not cut again"
        );
    }

    #[test]
    fn credentials_are_masked_and_names_are_not() {
        let cases = [
            (
                "Authorization: Bearer abc123) failed",
                "Authorization: Bearer [masked]) failed",
            ),
            (
                "token=xyz, Password: hunter2 end",
                "token=[masked], Password: [masked] end",
            ),
            (
                "sent 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.",
                "sent [masked].",
            ),
        ];
        for (text, want) in cases {
            assert_eq!(quoted(text), want);
            assert_eq!(quoted(want), want, "masking twice changes nothing");
        }
        let hash = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        for name in [
            "volume 1042 (pvcbb1d06139b334c1f) on lke13311-16405-5fafd1b46dcf, uid 6f1d2c3b-0000-4000-8000-000000000001",
            &format!("VolumeAttachment csi-{hash}: attached"),
            &format!("/var/lib/kubelet/plugins/kubernetes.io/csi/driver/{hash}/globalmount"),
            "secret \"site-config\" not found; a token bucket",
            "(persistentVolumeClaimRetentionPolicy.whenScaled is Delete)",
        ] {
            assert_eq!(quoted(name), name);
        }
    }

    #[test]
    fn json_keeps_its_value_and_escapes_hidden_characters() {
        let value = serde_json::json!({ "message": EVIL, "nested": [{ "k\u{202e}": "v\u{9b}" }] });
        for text in [
            value.to_string(),
            serde_json::to_string_pretty(&value).unwrap(),
        ] {
            let safe = json(&text);
            assert!(shows_all(&safe.replace('\n', " ")), "{safe:?}");
            assert_eq!(serde_json::from_str::<Value>(&safe).unwrap(), value);
        }
    }

    #[test]
    fn every_text_of_a_value_is_made_plain() {
        let value = serde_json::json!({ "a\u{1b}": [EVIL, 1, null, { "b": "x".repeat(300) }] });
        let plain = made_plain(&value, 100);
        let text = plain.to_string();
        assert!(
            shows_all(&text) && text.contains("300 characters in all"),
            "{text}"
        );
        assert_eq!(plain["a "][1], 1);
    }

    #[test]
    fn a_log_event_is_one_line() {
        let event = format!("INFO reattach: error={EVIL}\nERROR reattach: forged\n");
        let mut out = Vec::new();
        LogLines::new(&mut out, LogForm::Text)
            .write_all(event.as_bytes())
            .unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(
            text.ends_with("forged\n") && text.contains("\\nERROR"),
            "{text}"
        );
        assert!(shows_all(text.trim_end_matches('\n')), "{text:?}");
    }

    #[test]
    fn a_json_log_event_is_one_line_and_json() {
        for long in [10, 100_000] {
            let event =
                serde_json::json!({ "level": "INFO", "fields": { "message": EVIL.repeat(long) } });
            let mut out = Vec::new();
            LogLines::new(&mut out, LogForm::Json)
                .write_all(format!("{event}\n").as_bytes())
                .unwrap();
            let text = String::from_utf8(out).unwrap();
            assert_eq!(text.lines().count(), 1);
            assert!(
                text.chars().count() <= LOG_LINE_CHARS && shows_all(text.trim_end_matches('\n'))
            );
            let read: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(read["level"], "INFO");
        }
    }
}
