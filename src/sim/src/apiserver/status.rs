//! Errors as the API server words them: `Status` objects.

use serde_json::{Value, json};

use super::resource::ResourceType;

/// A failed request: HTTP code plus the fields of a `metav1.Status`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message} ({reason}, {code})")]
pub struct ApiStatus {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason, e.g. `Conflict`.
    pub reason: String,
    /// The sentence for humans.
    pub message: String,
    /// `status.details`, or null.
    pub details: Value,
}

impl ApiStatus {
    /// A status with the usual reason of `code`.
    #[must_use]
    pub fn new(code: u16, message: impl Into<String>) -> Self {
        let reason = match code {
            400 => "BadRequest",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            405 => "MethodNotAllowed",
            406 => "NotAcceptable",
            409 => "Conflict",
            410 => "Expired",
            413 => "RequestEntityTooLarge",
            415 => "UnsupportedMediaType",
            422 => "Invalid",
            429 => "TooManyRequests",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "InternalError",
        };
        Self {
            code,
            reason: reason.into(),
            message: message.into(),
            details: Value::Null,
        }
    }

    fn about(mut self, rt: &ResourceType, name: &str) -> Self {
        self.details = json!({"name": name, "kind": rt.plural});
        if !rt.group.is_empty() {
            self.details["group"] = json!(rt.group);
        }
        self
    }

    /// 404: the object does not exist.
    pub(super) fn not_found(rt: &ResourceType, name: &str) -> Self {
        Self::new(404, format!("{} \"{name}\" not found", rt.qualified())).about(rt, name)
    }

    /// 404: no such path.
    pub(super) fn no_such_path() -> Self {
        Self::new(404, "the server could not find the requested resource")
    }

    /// 405: the resource takes no such request.
    pub(super) fn method_not_allowed() -> Self {
        let why = "the server does not allow this method on the requested resource";
        Self::new(405, why)
    }

    /// 409 `AlreadyExists`.
    pub(super) fn already_exists(rt: &ResourceType, name: &str) -> Self {
        let why = format!("{} \"{name}\" already exists", rt.qualified());
        let mut status = Self::new(409, why).about(rt, name);
        status.reason = "AlreadyExists".into();
        status
    }

    /// 409 `Conflict` with `why`.
    pub(super) fn conflict(rt: &ResourceType, name: &str, why: &str) -> Self {
        Self::new(
            409,
            format!(
                "Operation cannot be fulfilled on {} \"{name}\": {why}",
                rt.qualified()
            ),
        )
        .about(rt, name)
    }

    /// 409 because of an old resourceVersion.
    pub(super) fn modified(rt: &ResourceType, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(rt, name, why)
    }

    /// 422 `Invalid`.
    pub(super) fn invalid(rt: &ResourceType, name: &str, why: &str) -> Self {
        Self::new(
            422,
            format!("{} \"{name}\" is invalid: {why}", rt.kind_qualified()),
        )
        .about(rt, name)
    }

    /// 400 `BadRequest`.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, message)
    }

    /// 403 `Forbidden` with `why`.
    pub(super) fn forbidden(rt: &ResourceType, name: &str, why: &str) -> Self {
        Self::new(
            403,
            format!("{} \"{name}\" is forbidden: {why}", rt.qualified()),
        )
        .about(rt, name)
    }

    /// The body of the response.
    pub(super) fn body(&self) -> Value {
        let mut body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            body["details"] = self.details.clone();
        }
        body
    }
}

/// The `Status` that answers a successful deletion or eviction.
pub(super) fn success(rt: &ResourceType, name: &str, uid: &str, code: u16) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code,
        "details": {"name": name, "group": rt.group, "kind": rt.plural, "uid": uid},
    })
}
