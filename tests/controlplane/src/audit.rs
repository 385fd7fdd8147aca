//! The API server's audit log: requests with their users and results.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::HarnessError;

/// Audit policy: one event per request at its end (for a watch also at its start). Writes with their body, which is
/// where a delete or an eviction says that it is a dry run; secrets, tokens and reads without; health checks and
/// discovery not at all.
pub(crate) fn policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            { "level": "None", "nonResourceURLs": ["*"] },
            { "level": "Metadata", "resources": [{ "group": "", "resources": ["secrets", "serviceaccounts/token"] }] },
            { "level": "Metadata", "resources": [{ "group": "authentication.k8s.io" }] },
            { "level": "Request", "verbs": ["create", "update", "patch", "delete", "deletecollection"] },
            { "level": "Metadata" },
        ],
    })
}

/// One event of the audit log.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditEvent {
    /// ID that all stages of one request share.
    pub id: String,
    /// `ResponseComplete`; `ResponseStarted` for a watch that runs, and the only one for a token that is refused;
    /// `Panic`.
    pub stage: String,
    /// The user that the API server authenticated, e.g. `system:serviceaccount:reattach:controller`; empty when it
    /// refused the token.
    pub user: String,
    /// Its groups.
    pub groups: Vec<String>,
    /// Value of the client's `User-Agent`; a stock controller's ends with its name, e.g. `/attachdetach-controller`.
    pub user_agent: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: String,
    /// The API group, empty for the core group.
    pub group: String,
    /// The plural resource name.
    pub resource: String,
    /// The subresource, e.g. `status`, `scale`, `eviction`.
    pub subresource: Option<String>,
    /// The namespace of a namespaced object.
    pub namespace: Option<String>,
    /// The object's name; none for a list, and for a create whose name the server made.
    pub name: Option<String>,
    /// Whether the request was `dryRun=All`, in its query or in its body.
    pub dry_run: bool,
    /// The HTTP status of the answer; none while a watch runs.
    pub code: Option<u16>,
    /// Path and query as requested.
    pub uri: String,
    /// When the request came.
    pub received: Timestamp,
    /// When this stage was reached.
    pub reached: Timestamp,
    /// The body of a write.
    pub body: Option<Value>,
}

impl AuditEvent {
    /// Whether the request asked for a change (a dry run asks too, see [`AuditEvent::took_effect`]).
    pub fn is_write(&self) -> bool {
        matches!(
            self.verb.as_str(),
            "create" | "update" | "patch" | "delete" | "deletecollection"
        )
    }

    /// Whether something was changed: a write that was accepted, and not as a dry run.
    pub fn took_effect(&self) -> bool {
        self.is_write()
            && !self.dry_run
            && self.stage == "ResponseComplete"
            && self.code.is_some_and(|code| (200..300).contains(&code))
    }
}

/// The part of the log that has been read. A control plane that carries many tests writes a long one, and tests look at it often.
#[derive(Default)]
pub(crate) struct Reader {
    /// Bytes that were read.
    at: u64,
    events: Vec<AuditEvent>,
}

impl Reader {
    /// Reads on as far as the log is written, and returns all events; a last line without its end is left for the next time.
    pub fn read(&mut self, log: &Path) -> Result<&[AuditEvent], HarnessError> {
        let cannot = |e| HarnessError::io(format!("cannot read {}", log.display()))(e);
        let mut file = match File::open(log) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(&self.events),
            Err(e) => return Err(cannot(e)),
        };
        file.seek(SeekFrom::Start(self.at)).map_err(cannot)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(cannot)?;
        for line in text
            .split_inclusive(|byte| *byte == b'\n')
            .filter(|line| line.ends_with(b"\n"))
        {
            let raw: Raw =
                serde_json::from_slice(line).map_err(|source| HarnessError::AuditLine {
                    line: self.events.len() + 1,
                    source,
                })?;
            self.events.push(raw.into());
            self.at += line.len() as u64;
        }
        Ok(&self.events)
    }
}

/// The wire form, `audit.k8s.io/v1` Event.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(rename = "auditID")]
    audit_id: String,
    stage: String,
    #[serde(rename = "requestURI")]
    request_uri: String,
    verb: String,
    user: RawUser,
    #[serde(default)]
    user_agent: String,
    #[serde(default)]
    object_ref: RawObject,
    response_status: Option<RawStatus>,
    request_object: Option<Value>,
    request_received_timestamp: Timestamp,
    stage_timestamp: Timestamp,
}

#[derive(Deserialize)]
struct RawUser {
    #[serde(default)]
    username: String,
    #[serde(default)]
    groups: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawObject {
    resource: String,
    namespace: Option<String>,
    name: Option<String>,
    api_group: String,
    subresource: Option<String>,
}

#[derive(Deserialize)]
struct RawStatus {
    code: Option<u16>,
}

impl From<Raw> for AuditEvent {
    fn from(raw: Raw) -> Self {
        let dry_run = dry_run(&raw.request_uri, raw.request_object.as_ref());
        Self {
            id: raw.audit_id,
            stage: raw.stage,
            user: raw.user.username,
            groups: raw.user.groups,
            user_agent: raw.user_agent,
            verb: raw.verb,
            group: raw.object_ref.api_group,
            resource: raw.object_ref.resource,
            subresource: raw.object_ref.subresource,
            namespace: raw.object_ref.namespace,
            name: raw.object_ref.name,
            dry_run,
            code: raw.response_status.and_then(|status| status.code),
            uri: raw.request_uri,
            received: raw.request_received_timestamp,
            reached: raw.stage_timestamp,
            body: raw.request_object,
        }
    }
}

/// A delete carries `dryRun` in its DeleteOptions, an eviction in those within it, everything else in the query.
/// When a delete has a body, the API server ignores the query.
fn dry_run(uri: &str, body: Option<&Value>) -> bool {
    let in_query = || {
        let query = uri.split_once('?').map_or("", |(_, query)| query);
        query.split('&').any(|pair| pair == "dryRun=All")
    };
    let all = |options: &Value| {
        options
            .get("dryRun")
            .and_then(Value::as_array)
            .is_some_and(|list| list.iter().any(|v| v == "All"))
    };
    match body {
        Some(body) if body.get("kind").is_some_and(|kind| kind == "DeleteOptions") => all(body),
        Some(body) => in_query() || body.get("deleteOptions").is_some_and(all),
        None => in_query(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(verb: &str, uri: &str, code: u16, body: Value) -> String {
        json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Request", "auditID": "a-1",
            "stage": "ResponseComplete", "requestURI": uri, "verb": verb,
            "user": { "username": "jane", "groups": ["system:authenticated"] },
            "sourceIPs": ["127.0.0.1"], "userAgent": "test",
            "objectRef": { "resource": "pods", "namespace": "ns", "name": "p", "apiVersion": "v1" },
            "responseStatus": { "metadata": {}, "code": code },
            "requestObject": body,
            "requestReceivedTimestamp": "2026-01-02T03:04:05.000001Z",
            "stageTimestamp": "2026-01-02T03:04:05.100001Z",
        })
        .to_string()
    }

    fn parse(line: &str) -> AuditEvent {
        serde_json::from_str::<Raw>(line)
            .expect("an audit event")
            .into()
    }

    #[test]
    fn a_dry_run_is_recognised_in_query_and_body() {
        let options = json!({ "kind": "DeleteOptions", "apiVersion": "v1", "dryRun": ["All"] });
        let eviction = json!({ "kind": "Eviction", "deleteOptions": { "dryRun": ["All"] } });
        for (verb, uri, body) in [
            (
                "create",
                "/api/v1/namespaces/ns/pods?fieldManager=x&dryRun=All",
                json!({ "kind": "Pod" }),
            ),
            (
                "patch",
                "/api/v1/namespaces/ns/pods/p?dryRun=All",
                json!({ "metadata": {} }),
            ),
            (
                "delete",
                "/api/v1/namespaces/ns/pods/p?dryRun=All",
                Value::Null,
            ),
            ("delete", "/api/v1/namespaces/ns/pods/p", options),
            ("create", "/api/v1/namespaces/ns/pods/p/eviction", eviction),
        ] {
            let event = parse(&line(verb, uri, 200, body));
            assert!(
                event.dry_run && event.is_write() && !event.took_effect(),
                "{verb} {uri}"
            );
        }
    }

    #[test]
    fn a_real_write_takes_effect_only_when_accepted() {
        let real = json!({ "kind": "DeleteOptions", "apiVersion": "v1" });
        let event = parse(&line(
            "delete",
            "/api/v1/namespaces/ns/pods/p",
            200,
            real.clone(),
        ));
        assert!(event.took_effect());
        assert_eq!(
            (event.user.as_str(), event.name.as_deref(), event.code),
            ("jane", Some("p"), Some(200))
        );
        assert!(
            !parse(&line(
                "delete",
                "/api/v1/namespaces/ns/pods/p",
                409,
                real.clone()
            ))
            .took_effect()
        );
        // The query of a delete with a body counts for nothing: this one deletes.
        assert!(
            parse(&line(
                "delete",
                "/api/v1/namespaces/ns/pods/p?dryRun=All",
                200,
                real
            ))
            .took_effect()
        );
        assert!(
            !parse(&line(
                "get",
                "/api/v1/namespaces/ns/pods/p",
                200,
                Value::Null
            ))
            .is_write()
        );
    }
}
