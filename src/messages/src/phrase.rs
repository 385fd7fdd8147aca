//! Cuts a message into words, and finds phrases in them.
//!
//! The words are lower-case and normalised, so that versions and drivers that spell one thing differently read alike:
//!
//! - Quotes and brackets vanish.
//! - `InvalidVolume.NotFound`, `invalid_volume_not_found` and "invalid volume not found" become the same four words.
//! - "can't", "cannot", "could not" and "unable" become one word. Articles and auxiliaries are dropped.
//! - Names, numbers, paths and domain names stay whole, so that the name of a volume is not read as part of the sentence.

/// Maximum number of words that are read of a message. An Event has at most 1 kB; log lines may be longer.
const MAX_WORDS: usize = 600;

/// Maximum number of words that `*` in a phrase skips.
const SHORT_GAP: usize = 4;

/// Maximum number of words that `**` in a phrase skips.
const LONG_GAP: usize = 14;

/// One word of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub text: String,
    /// Is it a name, number, path or domain name rather than a word of the language?
    pub name: bool,
}

/// Words that are dropped, because they tell no two meanings apart.
const DROPPED: &[&str] = &[
    "the", "a", "an", "is", "are", "was", "were", "be", "been", "has", "have", "had", "this",
    "that", "it", "its", "does", "do", "did", "will", "would", "please",
];

/// Spellings, and the words that each becomes.
const SPELLINGS: &[(&str, &[&str])] = &[
    ("volumeattachment", &["volume", "attachment"]),
    ("volumeattachments", &["volume", "attachment"]),
    ("attachments", &["attachment"]),
    ("configmap", &["config", "map"]),
    ("configmaps", &["config", "map"]),
    ("secrets", &["secret"]),
    ("hostpath", &["host", "path"]),
    ("subpath", &["sub", "path"]),
    ("persistentvolume", &["pv"]),
    ("persistentvolumes", &["pv"]),
    ("persistentvolumeclaim", &["pvc"]),
    ("persistentvolumeclaims", &["pvc"]),
    ("csinode", &["csi", "node"]),
    ("csinodes", &["csi", "node"]),
    ("nodes", &["node"]),
    ("serviceaccount", &["service", "account"]),
    ("serviceaccounts", &["service", "account"]),
    ("volumemode", &["volume", "mode"]),
    ("fstype", &["fs", "type"]),
    ("fsgroup", &["fs", "group"]),
    ("filesystem", &["fs"]),
    ("timedout", &["timeout"]),
    ("inuse", &["in", "use"]),
    ("multiattach", &["multi", "attach"]),
    ("couldnt", &["cannot"]),
    ("cant", &["cannot"]),
    ("unable", &["cannot"]),
    ("isnt", &["not"]),
    ("arent", &["not"]),
    ("wasnt", &["not"]),
    ("hasnt", &["not"]),
    ("havent", &["not"]),
    ("doesnt", &["not"]),
    ("dont", &["not"]),
    ("didnt", &["not"]),
    ("wont", &["cannot"]),
];

/// Cuts a text into normalised words, at most about [`MAX_WORDS`].
pub(crate) fn words(text: &str) -> Vec<Word> {
    let mut out: Vec<Word> = Vec::new();
    for piece in pieces(text) {
        if out.len() >= MAX_WORDS {
            break;
        }
        piece_words(&piece, &mut out);
    }
    out
}

/// A run of characters without white space.
struct Piece {
    text: String,
    /// Did quotes stand around exactly this run?
    quoted: bool,
}

fn is_quote(c: char) -> bool {
    matches!(c, '"' | '\'' | '`' | '“' | '”' | '‘' | '’' | '«' | '»')
}

fn is_separator(c: char) -> bool {
    c.is_whitespace()
        || matches!(
            c,
            '(' | ')' | '[' | ']' | '{' | '}' | '<' | '>' | ',' | ';' | '=' | '#' | '|' | '\\'
        )
}

fn pieces(text: &str) -> Vec<Piece> {
    let chars: Vec<char> = text.chars().collect();
    let mut out = Vec::new();
    let mut current = String::new();
    let mut opened = false;
    for (i, &c) in chars.iter().enumerate() {
        let apostrophe = matches!(c, '\'' | '’' | '‘' | '`')
            && i > 0
            && chars[i - 1].is_alphabetic()
            && chars.get(i + 1).is_some_and(|n| n.is_alphabetic());
        if apostrophe {
            continue;
        }
        if is_quote(c) {
            let quoted = opened && !current.is_empty();
            flush(&mut current, quoted, &mut out);
            opened = !quoted;
        } else if is_separator(c) {
            flush(&mut current, false, &mut out);
            opened = false;
        } else {
            current.push(c);
        }
    }
    flush(&mut current, false, &mut out);
    out
}

fn flush(current: &mut String, quoted: bool, out: &mut Vec<Piece>) {
    let text =
        current.trim_matches(|c: char| matches!(c, ':' | '.' | '!' | '?' | '*' | '-' | '…' | '~'));
    if !text.is_empty() {
        out.push(Piece {
            text: text.to_owned(),
            quoted,
        });
    }
    current.clear();
}

/// Is the text a path, and not a pair of plain words such as `attach/detach` or `I/O`?
fn is_path(text: &str) -> bool {
    match text.matches('/').count() {
        0 => false,
        1 => text
            .split('/')
            .any(|side| side.is_empty() || !side.chars().all(|c| c.is_ascii_alphabetic())),
        _ => true,
    }
}

/// Is the text a domain name such as a CSI driver's: lower case with two dots or more?
fn is_domain(text: &str) -> bool {
    text.matches('.').count() >= 2 && !text.chars().any(char::is_uppercase)
}

/// Is the piece the quoted name of an object, and not part of the sentence? `'in-use'` is a state and no name.
fn is_quoted_name(piece: &Piece) -> bool {
    piece.quoted && piece.text.contains('-') && !piece.text.eq_ignore_ascii_case("in-use")
}

fn piece_words(piece: &Piece, out: &mut Vec<Word>) {
    let text = piece.text.as_str();
    if is_path(text)
        || is_domain(text)
        || is_quoted_name(piece)
        || text.chars().any(|c| c.is_ascii_digit())
    {
        out.push(Word {
            text: text.to_lowercase(),
            name: true,
        });
        return;
    }
    for part in text.split([
        '-', '_', '.', ':', '/', '~', '+', '%', '@', '$', '&', '*', '^', '!', '?',
    ]) {
        for word in camel(part) {
            push_word(&word.to_lowercase(), out);
        }
    }
}

/// Cuts at capitals: `AttachDiskWhile` becomes three words, `RESOURCE` one.
fn camel(part: &str) -> Vec<String> {
    let chars: Vec<char> = part.chars().collect();
    let mut words = Vec::new();
    let mut word = String::new();
    for (i, &c) in chars.iter().enumerate() {
        let after_lower = i > 0 && chars[i - 1].is_lowercase();
        let starts_word = i > 0
            && chars[i - 1].is_uppercase()
            && chars.get(i + 1).is_some_and(|n| n.is_lowercase());
        if c.is_uppercase() && (after_lower || starts_word) && !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        word.push(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

fn push_word(word: &str, out: &mut Vec<Word>) {
    if word.is_empty() || DROPPED.contains(&word) {
        return;
    }
    if let Some((_, spelled)) = SPELLINGS.iter().find(|(one, _)| *one == word) {
        for part in *spelled {
            push_plain(part, out);
        }
        return;
    }
    push_plain(word, out);
}

/// Adds a word. Pairs that are also written as one word are joined: "could not", "timed out", "persistent volume".
fn push_plain(word: &str, out: &mut Vec<Word>) {
    let previous = out.last().filter(|w| !w.name).map(|w| w.text.as_str());
    let previous = previous.map(str::to_owned);
    let joined = match (previous.as_deref(), word) {
        (Some("can" | "could"), "not") => Some("cannot"),
        (Some("timed" | "time" | "times"), "out") => Some("timeout"),
        (Some("persistent"), "volume" | "volumes") => Some("pv"),
        (Some("pv"), "claim" | "claims") => Some("pvc"),
        (Some("file"), "system") => Some("fs"),
        // "unable to", "failed to"
        (Some(verb @ ("cannot" | "failed")), "to") => Some(verb),
        _ => None,
    };
    match joined {
        Some(joined) => {
            out.pop();
            out.push(Word {
                text: joined.to_owned(),
                name: false,
            });
        }
        None => out.push(Word {
            text: word.to_owned(),
            name: false,
        }),
    }
}

/// Does the phrase occur anywhere in the words?
///
/// A phrase is a list of terms. A term is a word, alternatives (`node|instance`), the beginning of a word
/// (`attach~`), any of these made optional by a final `?`, `#` for one name, `*` for up to four words of any kind, or
/// `**` for up to fourteen.
pub(crate) fn occurs(phrase: &str, words: &[Word]) -> bool {
    (0..words.len()).any(|start| matches_from(Some(phrase), &words[start..]).is_some())
}

/// Filter over the first letters of a message's words: one bit for each beginning, with collisions.
///
/// Almost none of the phrases occurs in a given message, and the first letters of the first term exclude nearly all of
/// them. Without the filter, each message would be matched against every phrase in full.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beginnings(u64);

impl Beginnings {
    /// Makes the filter of these words.
    pub(crate) fn of(words: &[Word]) -> Self {
        Self(
            words
                .iter()
                .fold(0, |bits, word| bits | Self::bit(word.text.as_bytes())),
        )
    }

    /// Returns the bit of a word, by its first two bytes.
    fn bit(word: &[u8]) -> u64 {
        let first = word.first().copied().unwrap_or_default();
        let second = word.get(1).copied().unwrap_or_default();
        1 << ((first.wrapping_mul(31) ^ second) & 63)
    }

    /// May the phrase occur? `false` is certain, `true` is not.
    pub(crate) fn admit(self, phrase: &str) -> bool {
        let first = phrase.split_once(' ').map_or(phrase, |(first, _)| first);
        // A name or a gap can begin with any letters, and an optional term may be absent.
        if first.contains(['#', '*', '?']) {
            return true;
        }
        first.split('|').any(|alternative| {
            let one_letter_prefix = alternative.len() <= 2 && alternative.ends_with('~');
            one_letter_prefix || self.0 & Self::bit(alternative.as_bytes()) != 0
        })
    }
}

/// Returns the words after the first occurrence of a phrase.
pub(crate) fn after<'w>(phrase: &str, words: &'w [Word]) -> Option<&'w [Word]> {
    (0..words.len()).find_map(|start| matches_from(Some(phrase), &words[start..]))
}

fn matches_from<'w>(phrase: Option<&str>, words: &'w [Word]) -> Option<&'w [Word]> {
    let Some(phrase) = phrase else {
        return Some(words);
    };
    let (term, rest) = phrase
        .split_once(' ')
        .map_or((phrase, None), |(term, rest)| (term, Some(rest)));
    let gap = match term {
        "*" => Some(SHORT_GAP),
        "**" => Some(LONG_GAP),
        _ => None,
    };
    if let Some(gap) = gap {
        return (0..=gap.min(words.len())).find_map(|skip| matches_from(rest, &words[skip..]));
    }
    let (term, optional) = match term.strip_suffix('?') {
        Some(term) => (term, true),
        None => (term, false),
    };
    let taken = words
        .split_first()
        .filter(|(word, _)| term_matches(term, word))
        .and_then(|(_, following)| matches_from(rest, following));
    match taken {
        Some(end) => Some(end),
        None if optional => matches_from(rest, words),
        None => None,
    }
}

fn term_matches(term: &str, word: &Word) -> bool {
    term.split('|').any(
        |alternative| match (alternative, alternative.strip_suffix('~')) {
            ("#", _) => word.name,
            (_, Some(beginning)) => word.text.starts_with(beginning),
            (whole, None) => word.text == whole,
        },
    )
}

/// Returns a term for which a phrase could never occur, because [`words`] never yields it.
///
/// The tests of the tables use it: a phrase in a spelling that is normalised away would match nothing, unnoticed.
#[cfg(test)]
pub(crate) fn dead_term(phrase: &str) -> Option<String> {
    for term in phrase.split(' ') {
        let term = term.strip_suffix('?').unwrap_or(term);
        for alternative in term.split('|') {
            let plain = alternative.strip_suffix('~').unwrap_or(alternative);
            if matches!(alternative, "*" | "**" | "#") || alternative.ends_with('~') {
                continue;
            }
            let read = words(plain);
            if read.len() != 1 || read[0].text != plain {
                return Some(alternative.to_owned());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> String {
        words(text)
            .iter()
            .map(|w| w.text.as_str())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn spellings_of_one_thing_read_alike() {
        assert_eq!(plain("InvalidVolume.NotFound"), "invalid volume not found");
        assert_eq!(
            plain("INVALID_VOLUME-not_found:"),
            "invalid volume not found"
        );
        assert_eq!(
            plain("couldn't be attached"),
            plain("could not be attached")
        );
        assert_eq!(plain("unable to find"), plain("can't find"));
        assert_eq!(
            plain("the VolumeAttachment is gone"),
            plain("volumeattachments gone")
        );
        assert_eq!(plain("I/O error"), "i o error");
        assert_eq!(
            plain("AttachDiskWhileBeingDetached"),
            "attach disk while being detached"
        );
        assert_eq!(plain("Currently in 'in-use'"), "currently in in use");
    }

    #[test]
    fn names_stay_whole() {
        assert_eq!(
            plain("secret \"server-locked\" not found"),
            "secret server-locked not found"
        );
        assert_eq!(
            plain("driver linodebs.csi.linode.com not found"),
            "driver linodebs.csi.linode.com not found"
        );
        assert_eq!(plain("/dev/disk/by-id/x"), "/dev/disk/by-id/x");
    }

    #[test]
    fn phrases() {
        let text = words("volume pvc-1 is currently attached to different node node-b");
        assert!(occurs("attached to another|different node", &text));
        assert!(occurs("volume # current~ attached", &text));
        assert!(occurs("volume ** node", &text));
        assert!(occurs("volume * still? attached", &text));
        assert!(!occurs("volume attached", &text));
        assert_eq!(after("different node", &text).map(<[Word]>::len), Some(2));
    }

    #[test]
    fn beginnings_never_hide_a_phrase() {
        let text = words("volume pvc-1 is currently attached to node node-b: I/O error");
        let beginnings = Beginnings::of(&text);
        for phrase in [
            "volume # current~ attached",
            "x|attached",
            "still? attached",
            "# current~",
            "i o error",
            "v~",
            "* to",
        ] {
            assert!(
                occurs(phrase, &text) && beginnings.admit(phrase),
                "{phrase}"
            );
        }
        assert!(!Beginnings::of(&[]).admit("volume * attached"));
    }

    #[test]
    fn gaps_are_bounded() {
        let far = format!("volume {} gone", "x ".repeat(SHORT_GAP + 1));
        assert!(!occurs("volume * gone", &words(&far)));
        assert!(occurs("volume ** gone", &words(&far)));
        assert!(words(&"word ".repeat(5_000)).len() <= MAX_WORDS + 8);
    }
}
