//! Parses a message: the operation that failed, its volume and gRPC status, and the remaining text.

use crate::Message;
use crate::driver::{self, StorageKind};
use crate::phrase::{Beginnings, Word, after, occurs, words};

/// The operation that a message reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// `AttachVolume.Attach`, "Multi-Attach", "Waiting for detach", `attachError`.
    Attach,
    /// `DetachVolume.Detach`, `detachError`.
    Detach,
    /// `MountVolume.WaitForAttach`: kubelet checks the VolumeAttachment.
    WaitForAttach,
    /// `MountVolume.MountDevice`: CSI NodeStage.
    MountDevice,
    /// `MountVolume.SetUp`: CSI NodePublish, and everything that kubelet makes itself.
    SetUp,
    /// `MapVolume.*`: a raw block volume.
    Map,
    /// A mount whose operation the message does not name.
    Mount,
    /// `UnmountVolume.*`, `UnmountDevice`, `UnmapVolume.*`.
    Unmount,
    /// Placement of a pod by the scheduler.
    Scheduling,
    /// Creation of a volume by the provisioner.
    Provision,
    /// Deletion of a volume by the provisioner.
    Delete,
    /// Growth of a volume by the resizer or kubelet.
    Resize,
}

impl Operation {
    /// Does the attach/detach controller or the CSI controller do this operation?
    pub(crate) fn is_controller_side(self) -> bool {
        matches!(self, Self::Attach | Self::Detach)
    }

    /// Does kubelet or the CSI node plugin do this operation?
    pub(crate) fn is_node_side(self) -> bool {
        matches!(
            self,
            Self::WaitForAttach
                | Self::MountDevice
                | Self::SetUp
                | Self::Map
                | Self::Mount
                | Self::Unmount
        )
    }
}

/// gRPC status codes by their names in `google.rpc.Code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GrpcCode {
    Canceled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

const CODES: &[(&str, GrpcCode)] = &[
    ("canceled", GrpcCode::Canceled),
    ("cancelled", GrpcCode::Canceled),
    ("unknown", GrpcCode::Unknown),
    ("invalidargument", GrpcCode::InvalidArgument),
    ("deadlineexceeded", GrpcCode::DeadlineExceeded),
    ("notfound", GrpcCode::NotFound),
    ("alreadyexists", GrpcCode::AlreadyExists),
    ("permissiondenied", GrpcCode::PermissionDenied),
    ("resourceexhausted", GrpcCode::ResourceExhausted),
    ("failedprecondition", GrpcCode::FailedPrecondition),
    ("aborted", GrpcCode::Aborted),
    ("outofrange", GrpcCode::OutOfRange),
    ("unimplemented", GrpcCode::Unimplemented),
    ("internal", GrpcCode::Internal),
    ("unavailable", GrpcCode::Unavailable),
    ("dataloss", GrpcCode::DataLoss),
    ("unauthenticated", GrpcCode::Unauthenticated),
];

/// Maximum number of characters that are read of a text. An Event's message has at most 1 kB; only log lines are longer.
const MAX_TEXT: usize = 16 * 1024;

/// Maximum number of words outside names and parentheses between an operation and the colon before its error, as in
/// `from node "n"`, `pod "p"`, `with`.
const MAX_FRAME_WORDS: usize = 8;

/// Operation names as kubelet and the attach/detach controller print them, in lower case. The first in the text wins, then
/// the longest.
const OPERATIONS: &[(&str, Operation)] = &[
    ("mountvolume.waitforattach", Operation::WaitForAttach),
    ("verifyvolumesareattached", Operation::WaitForAttach),
    ("verifycontrollerattachedvolume", Operation::WaitForAttach),
    ("mountvolume.mountdevice", Operation::MountDevice),
    ("mountvolume.setup", Operation::SetUp),
    ("unmountvolume.", Operation::Unmount),
    ("unmountdevice", Operation::Unmount),
    ("unmapvolume.", Operation::Unmount),
    ("unmapdevice", Operation::Unmount),
    ("mountvolume.", Operation::Mount),
    ("mapvolume.waitforattach", Operation::WaitForAttach),
    ("mapvolume.", Operation::Map),
    ("attachvolume.", Operation::Attach),
    ("detachvolume.", Operation::Detach),
    ("multi-attach", Operation::Attach),
    ("expandvolume", Operation::Resize),
    ("nodeexpandvolume", Operation::Resize),
];

/// Event reasons and status fields in lower case; used where the text names no operation.
const REASONS: &[(&str, Operation)] = &[
    ("detacherror", Operation::Detach),
    ("attacherror", Operation::Attach),
    ("faileddetach", Operation::Detach),
    ("failedattach", Operation::Attach),
    ("failedscheduling", Operation::Scheduling),
    ("faileddelete", Operation::Delete),
    ("provisioningfailed", Operation::Provision),
    ("failedbinding", Operation::Provision),
    ("resizefailed", Operation::Resize),
    ("failedunmount", Operation::Unmount),
    ("failedunmap", Operation::Unmount),
    ("failedmap", Operation::Map),
    ("failedmount", Operation::Mount),
];

/// Wordings of an operation where neither a name nor a reason tells. The first match wins.
const WORDINGS: &[(&str, Operation)] = &[
    ("node available|unavailable", Operation::Scheduling),
    ("not deleted|delete volume|disk", Operation::Delete),
    (
        "failed|cannot|error to? delet~ * volume|disk|pv",
        Operation::Delete,
    ),
    ("failed|cannot|error to? provision~", Operation::Provision),
    (
        "failed|cannot|error to? creat~ * volume|disk",
        Operation::Provision,
    ),
    ("failed|cannot|error to? expand|resiz~", Operation::Resize),
    ("waiting for|on detach", Operation::Attach),
    (
        "failed|cannot|error|unpublish to? detach~",
        Operation::Detach,
    ),
    (
        "detach volume|disk|# * failed|error|timeout",
        Operation::Detach,
    ),
    ("failed|cannot|error to? unpublish", Operation::Detach),
    ("failed|cannot|error to? attach~", Operation::Attach),
    ("failed|cannot|error to? publish volume", Operation::Attach),
    (
        "attach volume|disk|# * failed|error|timeout",
        Operation::Attach,
    ),
    (
        "failed|cannot|error to? stage|mount~|format",
        Operation::Mount,
    ),
];

/// Wordings of kubelet's summary of a pod's volumes, over kubelet's versions.
const UMBRELLA: &[&str] = &[
    "unmounted volumes",
    "cannot attach or|and mount volumes",
    "waiting for volumes to attach or|and mount",
    "cannot mount volumes for pod",
];

/// A parsed message. The phrase families read its `body`.
#[derive(Clone, Debug)]
pub(crate) struct Structure {
    pub operation: Option<Operation>,
    pub volume: Option<String>,
    pub node: Option<String>,
    pub driver: Option<String>,
    pub storage: StorageKind,
    pub code: Option<GrpcCode>,
    /// Does the text announce a gRPC status ("rpc error"), with or without a code?
    pub is_rpc: bool,
    /// Is it kubelet's summary "Unable to attach or mount volumes"?
    pub is_umbrella: bool,
    /// Text without the operation's prefix and without gRPC framing.
    pub body_text: String,
    pub body: Vec<Word>,
    /// Filter over the body's words.
    beginnings: Beginnings,
    /// All words of the message.
    pub all: Vec<Word>,
}

/// Parses a message.
pub(crate) fn structure(message: &Message) -> Structure {
    let text = plain_text(&message.message);
    let all = words(&text);
    let prefix = split_prefix(&text);
    let (code, is_rpc, body_text) = strip_rpc(prefix.body);
    let body = words(&body_text);

    let field = message
        .driver
        .as_deref()
        .map(str::trim)
        .filter(|d| !d.is_empty() && !d.eq_ignore_ascii_case("any"));
    let driver = field.map(str::to_owned).or_else(|| driver::named_in(&all));
    let shown = driver::of_words(&body);
    let named = driver
        .as_deref()
        .map_or(StorageKind::Unknown, driver::of_name);
    // A driver of attached disks may serve a share from one of them. There the text outranks the name.
    let storage = if shown.never_attached() || named == StorageKind::Unknown {
        shown
    } else {
        named
    };

    let by_reason = operation_of_event(message);
    let umbrella = UMBRELLA.iter().any(|phrase| occurs(phrase, &all));
    let operation = match (prefix.operation, by_reason) {
        (None, None | Some(Operation::Mount)) if umbrella => Some(Operation::Mount),
        (Some(operation), _) => Some(operation),
        // "FailedMount" was also the reason of failed attaches before Kubernetes 1.7.
        (None, Some(Operation::Mount)) => operation_by_wording(&all)
            .filter(|o| o.is_controller_side())
            .or(Some(Operation::Mount)),
        (None, Some(operation)) => Some(operation),
        (None, None) => operation_by_wording(&all),
    };
    Structure {
        operation,
        volume: prefix
            .volume
            .or_else(|| name_after("volume|disk|pv", &text)),
        node: name_after("node", &text),
        driver,
        storage,
        code,
        is_rpc,
        is_umbrella: umbrella,
        body_text,
        beginnings: Beginnings::of(&body),
        body,
        all,
    }
}

/// Returns the text without escapes and with single spaces, cut at [`MAX_TEXT`].
fn plain_text(text: &str) -> String {
    let text = match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => &text[..end],
        None => text,
    };
    let text = text.replace("\\\"", "\"").replace("\\n", " ");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn operation_of_event(message: &Message) -> Option<Operation> {
    let reason = message.lower_reason();
    let component = message
        .source_component
        .as_deref()
        .unwrap_or_default()
        .to_lowercase();
    let by_component = match component.as_str() {
        c if c.contains("scheduler") => Some(Operation::Scheduling),
        c if c.contains("provisioner") => Some(Operation::Provision),
        c if c.contains("resizer") => Some(Operation::Resize),
        _ => None,
    };
    REASONS
        .iter()
        .find(|(part, _)| reason.contains(part))
        .map(|(_, operation)| *operation)
        .or(by_component)
}

fn operation_by_wording(all: &[Word]) -> Option<Operation> {
    WORDINGS
        .iter()
        .find(|(phrase, _)| occurs(phrase, all))
        .map(|(_, operation)| *operation)
}

struct Prefix<'t> {
    operation: Option<Operation>,
    volume: Option<String>,
    body: &'t str,
}

/// Finds `Operation failed for volume "NAME" (…) on node "N" : BODY`, wherever it stands in the text.
fn split_prefix(text: &str) -> Prefix<'_> {
    // ASCII lower case keeps byte positions.
    let lower = text.to_ascii_lowercase();
    let found = OPERATIONS
        .iter()
        .filter_map(|(name, operation)| lower.find(name).map(|at| (at, name.len(), *operation)))
        .min_by_key(|(at, length, _)| (*at, std::cmp::Reverse(*length)));
    let Some((at, length, operation)) = found else {
        return Prefix {
            operation: None,
            volume: None,
            body: text,
        };
    };
    let rest = &text[at + length..];
    let (volume, rest) = match rest.to_ascii_lowercase().find("volume ") {
        // Only a name within 40 bytes of the operation is the operation's own; later mentions belong to the body.
        Some(i) if i < 40 && !rest[..i].contains(':') => {
            let rest = &rest[i + "volume ".len()..];
            take_name(rest).map_or((None, rest), |(name, rest)| (Some(name), rest))
        }
        _ => (None, rest),
    };
    // `Multi-Attach error for volume "v" Volume is already …` has no colon, so the rest is the body.
    Prefix {
        operation: Some(operation),
        volume,
        body: after_colon(rest).unwrap_or(rest),
    }
}

/// Returns the text after the first colon outside parentheses (`(UniqueName: "…")`) and quotes.
///
/// `None` if more than [`MAX_FRAME_WORDS`] words stand before it: then the colon belongs to the error itself.
fn after_colon(text: &str) -> Option<&str> {
    let mut depth = 0_usize;
    let mut quoted = false;
    let mut frame_words = 0_usize;
    for (i, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth = depth.saturating_sub(1),
            ' ' if !quoted && depth == 0 => frame_words += 1,
            // A colon inside a word ("aws://", "system:node") does not separate.
            ':' if !quoted && depth == 0 && text[i + 1..].starts_with(char::is_whitespace) => {
                return (frame_words <= MAX_FRAME_WORDS).then(|| text[i + 1..].trim_start());
            }
            _ => {}
        }
    }
    None
}

/// Returns the name at the beginning of the text, with or without quotes, and the text after it.
fn take_name(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start();
    let opening = text.chars().next()?;
    let closing = match opening {
        '"' | '\'' | '`' => opening,
        '“' => '”',
        '‘' => '’',
        _ => {
            let end = text
                .find(|c: char| c.is_whitespace() || matches!(c, ':' | ',' | ')'))
                .unwrap_or(text.len());
            return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
        }
    };
    let inner = &text[opening.len_utf8()..];
    let end = inner.find(closing)?;
    Some((inner[..end].to_owned(), &inner[end + closing.len_utf8()..]))
}

/// Returns the name after one of the given words: `node "n"`, `volume pvc-1`. Without quotes a name must have a digit or a
/// hyphen, since any other word may follow as well.
pub(crate) fn name_after(kinds: &str, text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    kinds
        .split('|')
        .flat_map(|kind| {
            lower
                .match_indices(kind)
                .map(|(i, k)| (i, i + k.len()))
                .collect::<Vec<_>>()
        })
        .filter(|(start, _)| !lower[..*start].ends_with(|c: char| c.is_alphanumeric()))
        .filter_map(|(start, end)| {
            let rest = text[end..]
                .trim_start_matches("s ")
                .trim_start_matches(":")
                .trim_start_matches("(s)");
            let rest = rest
                .strip_prefix(' ')
                .or_else(|| rest.starts_with('(').then(|| &rest[1..]))?;
            let rest = rest
                .strip_prefix("with ID ")
                .or_else(|| rest.strip_prefix("ID "))
                .unwrap_or(rest);
            let quoted = rest.starts_with(['"', '\'', '`', '“', '‘']);
            let (name, _) = take_name(rest)?;
            let name = name.trim_end_matches(['.', ';']).to_owned();
            let plausible = !name.is_empty()
                && !name.contains(char::is_whitespace)
                && (quoted || name.chars().any(|c| c.is_ascii_digit()) || name.contains('-'));
            plausible.then_some((start, name))
        })
        .min_by_key(|(start, _)| *start)
        .map(|(_, name)| name)
}

/// Removes every "rpc error: code = X desc =". Returns the innermost code that is not Unknown or Internal, whether a gRPC
/// status was announced, and the remaining text.
fn strip_rpc(body: &str) -> (Option<GrpcCode>, bool, String) {
    let mut code = None;
    let mut is_rpc = false;
    let mut out = String::with_capacity(body.len());
    let mut rest = body;
    while let Some(at) = rest.to_ascii_lowercase().find("rpc error") {
        is_rpc = true;
        out.push_str(&rest[..at]);
        out.push(' ');
        rest = rest[at + "rpc error".len()..].trim_start_matches([':', ' ']);
        if let Some(value) = strip_key(rest, "code") {
            let end = value
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(value.len());
            let name = value[..end].to_ascii_lowercase();
            let known = CODES
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, code)| *code);
            // An outer code often only wraps the inner one.
            code = match (code, known) {
                (Some(outer), Some(GrpcCode::Unknown | GrpcCode::Internal)) => Some(outer),
                (outer, inner) => inner.or(outer),
            };
            rest = value[end..].trim_start_matches([',', ':', ' ']);
        }
        if let Some(value) = strip_key(rest, "desc") {
            rest = value;
        }
    }
    out.push_str(rest);
    (code, is_rpc, out.trim().to_owned())
}

fn strip_key<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    let head = text.get(..key.len())?;
    let rest = head
        .eq_ignore_ascii_case(key)
        .then(|| text[key.len()..].trim_start())?;
    Some(rest.strip_prefix(['=', ':'])?.trim_start())
}

impl Structure {
    /// Does any of the phrases occur in the body?
    pub(crate) fn says(&self, phrases: &[&str]) -> bool {
        phrases
            .iter()
            .any(|phrase| self.beginnings.admit(phrase) && occurs(phrase, &self.body))
    }

    /// Returns the first name within four words after a phrase in the body, in lower case.
    pub(crate) fn name_after_phrase(&self, phrase: &str) -> Option<String> {
        let rest = after(phrase, &self.body)?;
        rest.iter()
            .take(4)
            .find(|w| w.name)
            .map(|w| w.text.trim_matches(['.', ':']).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phrase::dead_term;

    fn of(text: &str) -> Structure {
        structure(&Message {
            message: text.to_owned(),
            ..Message::default()
        })
    }

    #[test]
    fn wordings_are_alive() {
        for (phrase, _) in WORDINGS {
            assert_eq!(dead_term(phrase), None, "{phrase}");
        }
    }

    #[test]
    fn prefix_of_an_event() {
        let s = of(
            "MountVolume.MountDevice failed for volume \"pvc-1\" : rpc error: code = NotFound desc = no disk: d",
        );
        assert_eq!(s.operation, Some(Operation::MountDevice));
        assert_eq!(s.volume.as_deref(), Some("pvc-1"));
        assert_eq!(s.code, Some(GrpcCode::NotFound));
        assert_eq!(s.body_text, "no disk: d");
    }

    #[test]
    fn prefix_of_a_log_line() {
        let s = of(
            "E0101 nested.go:1] Operation for \"{volumeName:kubernetes.io/csi/x^1}\" failed. Error: AttachVolume.Attach \
             failed for volume \"pvc-2\" (UniqueName: \"kubernetes.io/csi/x^1\") from node \"node-a\" : rpc error: code \
             = Aborted desc = try again",
        );
        assert_eq!(s.operation, Some(Operation::Attach));
        assert_eq!(s.volume.as_deref(), Some("pvc-2"));
        assert_eq!(s.node.as_deref(), Some("node-a"));
        assert_eq!(s.body_text, "try again");
    }

    #[test]
    fn codes_nest() {
        let s =
            of("rpc error: code = Internal desc = x: rpc error: code = DeadlineExceeded desc = y");
        assert_eq!(s.code, Some(GrpcCode::DeadlineExceeded));
        let s = of("rpc error: code = Aborted desc = x: rpc error: code = Unknown desc = y");
        assert_eq!(s.code, Some(GrpcCode::Aborted));
        assert_eq!(words(&s.body_text).len(), 2);
        assert_eq!(of("rpc error: <cut>").code, None);
        assert!(of("rpc error: <cut>").is_rpc);
    }

    #[test]
    fn an_event_reason_decides_where_the_text_does_not() {
        let mut message = Message {
            message: "volume is in use".to_owned(),
            ..Message::default()
        };
        message.reason = Some("VolumeAttachment.status.detachError".to_owned());
        assert_eq!(structure(&message).operation, Some(Operation::Detach));
        message.reason = Some("VolumeFailedDelete".to_owned());
        assert_eq!(structure(&message).operation, Some(Operation::Delete));
    }
}
