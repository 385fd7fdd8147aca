//! Errors as one clear sentence each: what, where, and the fix.

use crate::exit::Exit;
use reattach_api::metadata::MissingField;
use reattach_cluster::client::NoUserName;
use reattach_core::plain;
use std::error::Error as _;

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Fail {
    /// Something given on the command line cannot be used.
    #[error("{0}")]
    Usage(String),
    #[error(
        "there is no PersistentVolumeClaim {name:?} in namespace {namespace:?}; kubectl get pvc -A lists them, and -n NAMESPACE chooses another namespace"
    )]
    NoClaim { namespace: String, name: String },
    #[error(
        "there is no VolumeRecovery in namespace {namespace:?} that is named {name:?} or is for a claim of that name; kubectl reattach status -A lists them"
    )]
    NoRecovery { namespace: String, name: String },
    #[error(
        "the API server at {server} does not answer ({why}); check the network, --kubeconfig and --context"
    )]
    Unreachable { server: String, why: String },
    /// Status code 401.
    #[error(
        "the API server at {server} does not accept the credentials of this kubeconfig ({why}); log in again, or choose another --context"
    )]
    Unauthorized { server: String, why: String },
    /// Status code 403, as a sentence.
    #[error("{0}")]
    Forbidden(String),
    /// Any other refusal of the API server, such as by admission or validation.
    #[error("the API server refused to {doing}: {why}")]
    Api { doing: String, why: String },
    /// Any other error of one sentence.
    #[error("{0}")]
    Other(String),
}

/// An object of the API server that lacks a field which every stored object has.
impl From<MissingField> for Fail {
    fn from(missing: MissingField) -> Self {
        Self::Other(format!(
            "{missing}, so the answer of the API server cannot be used"
        ))
    }
}

impl Fail {
    /// Returns the exit code of a command that ends with this error.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            _ => Exit::Error,
        }
    }

    /// Describes a client's error; `doing` completes "to …".
    pub fn kubernetes(error: &kube::Error, server: &str, doing: &str) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 401 => Self::Unauthorized {
                server: server.to_owned(),
                why: one_line(&status.message),
            },
            kube::Error::Api(status) if status.code == 403 => {
                Self::Forbidden(forbidden(&status.message, doing))
            }
            kube::Error::Api(status) => {
                let why = if status.message.is_empty() {
                    &status.reason
                } else {
                    &status.message
                };
                Self::Api {
                    doing: doing.to_owned(),
                    why: format!("{} ({})", one_line(why), status.code),
                }
            }
            // The API server answered, and its answer cannot be used.
            kube::Error::Service(answer)
                if answer.is::<MissingField>() || answer.is::<NoUserName>() =>
            {
                Self::Other(format!("cannot {doing}: {answer}"))
            }
            kube::Error::Service(_) | kube::Error::HyperError(_) => Self::Unreachable {
                server: server.to_owned(),
                why: innermost(error),
            },
            other => Self::Other(format!("cannot {doing} at {server}: {}", innermost(other))),
        }
    }
}

/// Returns the text of the innermost error, which names the cause.
fn innermost(error: &kube::Error) -> String {
    let mut last: &dyn std::error::Error = error;
    let mut cause = error.source();
    while let Some(inner) = cause {
        last = inner;
        cause = inner.source();
    }
    one_line(&last.to_string())
}

/// Describes a refusal with the code 403: by RBAC with the right that is missing, and by admission in the server's words.
fn forbidden(message: &str, doing: &str) -> String {
    match missing_right(message) {
        Some(right) => {
            format!("{right}, which is needed to {doing}; ask an administrator for that right")
        }
        None => format!("the API server refused to {doing}: {}", one_line(message)),
    }
}

/// Reads user, verb, resource and scope from the API server's own sentence (Kubernetes
/// `staging/src/k8s.io/apiserver/pkg/endpoints/handlers/responsewriters/errors.go`, `forbiddenMessage`).
fn missing_right(message: &str) -> Option<String> {
    let quoted = |after: &str| {
        let (_, rest) = message.split_once(after)?;
        Some(rest.split_once('"')?.0)
    };
    let user = quoted("User \"")?;
    let (_, rest) = message.split_once("\" cannot ")?;
    let (verb, _) = rest.split_once(' ')?;
    let resource = quoted("resource \"")?;
    let resource = match (quoted("API group \""), resource.split_once('/')) {
        (None | Some(""), _) => resource.to_owned(),
        // A subresource stands behind the group: deployments.apps/scale.
        (Some(group), Some((main, sub))) => format!("{main}.{group}/{sub}"),
        (Some(group), None) => format!("{resource}.{group}"),
    };
    let scope = match quoted("in the namespace \"") {
        Some(namespace) => format!("in namespace {namespace:?}"),
        None => "in the whole cluster".to_owned(),
    };
    Some(format!("user {user:?} may not {verb} {resource} {scope}"))
}

/// Maximum length of a text from outside in a sentence of this command, in characters.
const TEXT_CHARS: usize = 4_096;

/// Returns the text on one line, without hidden characters, of at most [`TEXT_CHARS`] characters.
pub fn one_line(text: &str) -> String {
    plain::line(text, TEXT_CHARS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    fn api(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Box::new(Status {
            code,
            message: message.to_owned(),
            ..Status::default()
        }))
    }

    #[test]
    fn a_403_names_verb_resource_and_user() {
        let table = [
            (
                r#"volumerecoveries.reattach.dev is forbidden: User "jane" cannot create resource "volumerecoveries" in API group "reattach.dev" in the namespace "db""#,
                "user \"jane\" may not create volumerecoveries.reattach.dev in namespace \"db\", which is needed to ask; ask an administrator for that right",
            ),
            (
                r#"nodes "n1" is forbidden: User "jane" cannot get resource "nodes" in API group "" at the cluster scope"#,
                "user \"jane\" may not get nodes in the whole cluster, which is needed to ask; ask an administrator for that right",
            ),
            (
                r#"deployments.apps "web" is forbidden: User "jane" cannot patch resource "deployments/scale" in API group "apps" in the namespace "a""#,
                "user \"jane\" may not patch deployments.apps/scale in namespace \"a\", which is needed to ask; ask an administrator for that right",
            ),
            (
                "ValidatingAdmissionPolicy 'x' denied request:\n spec.requester must be your own user name",
                "the API server refused to ask: ValidatingAdmissionPolicy 'x' denied request: spec.requester must be your own user name",
            ),
        ];
        for (message, sentence) in table {
            assert_eq!(
                Fail::kubernetes(&api(403, message), "https://api", "ask").to_string(),
                sentence
            );
        }
    }

    #[test]
    fn other_answers_keep_the_servers_words() {
        let fail = Fail::kubernetes(&api(401, "Unauthorized"), "https://api/", "ask");
        assert!(
            fail.to_string().contains("does not accept the credentials"),
            "{fail}"
        );
        let fail = Fail::kubernetes(
            &api(422, "spec.runbook: Invalid value"),
            "https://api/",
            "ask",
        );
        assert_eq!(
            fail.to_string(),
            "the API server refused to ask: spec.runbook: Invalid value (422)"
        );
        assert_eq!(fail.exit(), Exit::Error);
        assert_eq!(Fail::Usage("x".into()).exit(), Exit::Usage);
    }
}
