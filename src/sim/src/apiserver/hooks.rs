//! Hooks of tests in the API server: the audit log, faults and admission.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::request::{ApiRequest, Verb};
use super::status::ApiStatus;
use super::store::Store;

/// One answered request.
#[derive(Debug, Clone)]
pub struct AuditEntry {
    /// When it was answered (a watch: when it began), by the server's clock.
    pub at: Timestamp,
    /// The verb.
    pub verb: Verb,
    /// API group, empty for core.
    pub group: String,
    /// Plural name of the resource.
    pub resource: String,
    /// Subresource, if any.
    pub subresource: Option<String>,
    /// Namespace; empty for cluster-scoped resources and all-namespace reads.
    pub namespace: String,
    /// Name; empty for collections, and for a create that failed before the name was known.
    pub name: String,
    /// User of the request: the identity of the client handle.
    pub user: String,
    /// The `User-Agent` header; the user where there is none.
    pub user_agent: String,
    /// The query parameter `fieldManager`; empty where there is none.
    pub field_manager: String,
    /// Whether `dryRun=All` was set.
    pub dry_run: bool,
    /// HTTP status code; 0 when the connection was cut.
    pub code: u16,
    /// Request body of a mutation.
    pub body: Option<Arc<Value>>,
}

/// Selects requests; every field that is set must match.
#[derive(Debug, Clone, Default)]
pub struct RequestMatch {
    /// Verb.
    pub verb: Option<Verb>,
    /// Any mutating verb.
    pub mutations_only: bool,
    /// Plural name of the resource.
    pub resource: Option<String>,
    /// Subresource; `Some("")` means the main resource only.
    pub subresource: Option<String>,
    /// Namespace.
    pub namespace: Option<String>,
    /// Name.
    pub name: Option<String>,
    /// Beginning of the user or of the user agent.
    pub client: Option<String>,
}

impl RequestMatch {
    pub(super) fn matches(&self, req: &ApiRequest) -> bool {
        let same = |want: &Option<String>, have: &str| want.as_deref().is_none_or(|w| w == have);
        self.verb.is_none_or(|v| v == req.verb)
            && (!self.mutations_only || req.verb.mutates())
            && same(&self.resource, &req.rt.plural)
            && same(
                &self.subresource,
                req.subresource.as_deref().unwrap_or_default(),
            )
            && same(&self.namespace, req.ns())
            && same(&self.name, req.name())
            && self
                .client
                .as_deref()
                .is_none_or(|c| req.user.starts_with(c) || req.user_agent.starts_with(c))
    }
}

/// The kind of a fault.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The request takes longer.
    Latency(Duration),
    /// An error instead of the answer.
    Status {
        /// The answer that the client reads.
        status: ApiStatus,
        /// True: the effect has happened nevertheless.
        after_effect: bool,
        /// Value of a `Retry-After` header, in seconds.
        retry_after: Option<u64>,
    },
    /// The connection breaks without an answer.
    Disconnect {
        /// True: the effect has happened nevertheless.
        after_effect: bool,
    },
    /// No answer ever; the effect does not happen.
    Hang,
}

/// A fault for some requests.
#[derive(Debug, Clone)]
pub struct FaultRule {
    /// Which requests.
    pub requests: RequestMatch,
    /// The fault of these requests.
    pub fault: Fault,
    /// With which probability (1.0: always), drawn from the server's seed.
    pub probability: f64,
    /// How often at most; `None`: until removed.
    pub times: Option<u32>,
}

impl FaultRule {
    /// A rule that always applies.
    #[must_use]
    pub fn always(requests: RequestMatch, fault: Fault) -> Self {
        Self {
            requests,
            fault,
            probability: 1.0,
            times: None,
        }
    }

    /// At most `n` times.
    #[must_use]
    pub fn times(mut self, n: u32) -> Self {
        self.times = Some(n);
        self
    }
}

/// Identifies a fault rule for its removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FaultId(pub(super) u64);

/// How an open watch ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchBreak {
    /// The stream ends, as after a server's time-out.
    End,
    /// An `ERROR` event with code 410: the client must list again.
    Expired,
    /// The connection breaks in the middle.
    Disconnect,
}

/// A request as an admission function gets it.
#[derive(Debug)]
pub struct AdmissionRequest<'a> {
    /// Create, Update, Patch (as the resulting object) or Delete.
    pub verb: Verb,
    /// API group.
    pub group: &'a str,
    /// Plural name of the resource.
    pub resource: &'a str,
    /// Subresource.
    pub subresource: Option<&'a str>,
    /// Namespace, empty for cluster-scoped resources.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
    /// User of the request.
    pub user: &'a str,
    /// The object as it would be stored; `None` for a deletion.
    pub object: Option<&'a Value>,
    /// The object as it is stored; `None` for a creation.
    pub old: Option<&'a Value>,
    /// Whether this is a dry run.
    pub dry_run: bool,
    pub(super) store: &'a Store,
}

impl AdmissionRequest<'_> {
    /// Reads another object (as admission policies read their parameter).
    #[must_use]
    pub fn read(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<Value>> {
        self.store
            .get(&(group.to_owned(), plural.to_owned()), namespace, name)
    }

    /// Lists other objects of a namespace, or of all.
    #[must_use]
    pub fn list(&self, group: &str, plural: &str, namespace: Option<&str>) -> Vec<Arc<Value>> {
        self.store
            .list(&(group.to_owned(), plural.to_owned()), namespace)
    }
}

/// Judges a mutation: a JSON patch for the object (empty: unchanged), or the refusal.
///
/// Runs while the server is locked: it must not call the server other than through the request.
pub type AdmissionFn =
    Arc<dyn Fn(&AdmissionRequest<'_>) -> Result<json_patch::Patch, ApiStatus> + Send + Sync>;

/// Answers a `SelfSubjectAccessReview`: the user and `spec.resourceAttributes`.
pub type AccessFn = Arc<dyn Fn(&str, &Value) -> bool + Send + Sync>;
