//! Answers of Linode's API: status, JSON or broken bodies, scope and rate-limit headers.

use super::scope::Scope;
use crate::{
    faults::ErrorBody,
    http::{self, Limits},
};
use axum::{body::Body, http::Response};
use jiff::fmt::rfc2822;
use serde_json::{Value, json};

#[derive(Clone, Debug)]
enum Content {
    Json(Value),
    Html(String),
    Empty,
    Truncated,
}

#[derive(Clone, Debug)]
pub(super) struct Reply {
    status: u16,
    content: Content,
    headers: Vec<(&'static str, String)>,
    cut: bool,
}

impl Reply {
    fn new(status: u16, content: Content) -> Self {
        Self {
            status,
            content,
            headers: Vec::new(),
            cut: false,
        }
    }

    pub(super) fn ok(body: Value) -> Self {
        Self::new(200, Content::Json(body))
    }

    pub(super) fn error(status: u16, reason: &str, field: Option<&str>) -> Self {
        let mut error = json!({ "reason": reason });
        if let Some(field) = field {
            error["field"] = json!(field);
        }
        Self::new(status, Content::Json(json!({ "errors": [error] })))
    }

    pub(super) fn not_found() -> Self {
        Self::error(404, "Not found", None)
    }

    pub(super) fn broken(status: u16, reason: &str, body: ErrorBody) -> Self {
        match body {
            ErrorBody::Json => Self::error(status, reason, None),
            ErrorBody::Html => {
                let name = http::status_name(status);
                let page = format!(
                    "<html>\r\n<head><title>{status} {name}</title></head>\r\n<body>\r\n<center><h1>{status} {name}\
                     </h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
                );
                Self::new(status, Content::Html(page))
            }
            ErrorBody::Empty => Self::new(status, Content::Empty),
            ErrorBody::Truncated => Self::new(status, Content::Truncated),
        }
    }

    pub(super) fn cut() -> Self {
        Self {
            cut: true,
            ..Self::new(200, Content::Empty)
        }
    }

    pub(super) fn status(&self) -> u16 {
        self.status
    }

    pub(super) fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn with_retry_after(self, seconds: u64) -> Self {
        self.with_header("retry-after", seconds.to_string())
    }

    pub(super) fn with_scopes(self, granted: &[String], needed: &[Scope]) -> Self {
        let needed: Vec<_> = needed.iter().map(|s| s.word()).collect();
        self.with_header("x-oauth-scopes", granted.join(","))
            .with_header("x-accepted-oauth-scopes", needed.join(","))
    }

    /// Adds the headers of the rate limit, and the date that the end of its window is compared with.
    pub(super) fn with_limits(self, limits: &Limits) -> Self {
        let date = rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&limits.now);
        let dated = match date {
            Ok(date) => self.with_header("date", date),
            // A year of more than four digits.
            Err(_) => self,
        };
        dated
            .with_header("x-ratelimit-limit", limits.limit.to_string())
            .with_header("x-ratelimit-remaining", limits.remaining.to_string())
            .with_header("x-ratelimit-reset", limits.reset.as_second().to_string())
    }
}

impl http::Reply for Reply {
    fn status(&self) -> Option<u16> {
        (!self.cut).then_some(self.status)
    }

    fn into_response(self) -> Response<Body> {
        if self.cut {
            return http::cut();
        }
        let (kind, body) = match self.content {
            Content::Json(value) => (Some("application/json"), value.to_string()),
            Content::Html(page) => (Some("text/html"), page),
            Content::Empty => (None, String::new()),
            Content::Truncated => (Some("application/json"), "{\"errors\": [{\"rea".to_owned()),
        };
        http::answer(self.status, kind, body, self.headers)
    }
}
