//! Answers of EC2's Query API: XML, error codes, broken bodies.

use crate::{faults::ErrorBody, http};
use axum::{body::Body, http::Response};
use std::fmt::Write;

/// The namespace of the API's one version.
const NAMESPACE: &str = "http://ec2.amazonaws.com/doc/2016-11-15/";

/// Every answer of this simulator carries the same request identifier.
const REQUEST_ID: &str = "59dbff89-35bd-4eac-99ed-be587EXAMPLE";

/// A builder of XML text.
#[derive(Clone, Debug, Default)]
pub(super) struct Xml(String);

impl Xml {
    /// Adds an element with a text.
    pub(super) fn text(&mut self, name: &str, value: impl std::fmt::Display) -> &mut Self {
        let value = value.to_string();
        let escaped = value
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;");
        let _ = write!(self.0, "<{name}>{escaped}</{name}>");
        self
    }

    /// Adds an element with child elements.
    pub(super) fn with(&mut self, name: &str, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let _ = write!(self.0, "<{name}>");
        fill(self);
        let _ = write!(self.0, "</{name}>");
        self
    }

    /// Adds a list with one `item` for each value.
    pub(super) fn items<T>(
        &mut self,
        name: &str,
        all: impl IntoIterator<Item = T>,
        fill: impl Fn(&mut Self, T),
    ) -> &mut Self {
        self.with(name, |list| {
            for one in all {
                list.with("item", |item| fill(item, one));
            }
        })
    }
}

/// A refusal with EC2's code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    status: u16,
    code: String,
    message: String,
}

impl Refusal {
    pub(super) fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.to_owned(),
            message: message.into(),
        }
    }
}

/// Converts a text such as "OperationNotPermitted: words", which begins with its code. A text without a code gets
/// `InternalError` with a 5xx status and `IncorrectState` otherwise.
pub(super) fn coded(status: u16, text: &str) -> Refusal {
    let is_code = |word: &str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '.')
    };
    match text.split_once(": ") {
        Some((code, message)) if is_code(code) => Refusal::new(status, code, message),
        _ => Refusal::new(
            status,
            if status >= 500 {
                "InternalError"
            } else {
                "IncorrectState"
            },
            text,
        ),
    }
}

#[derive(Clone, Debug)]
enum Content {
    Xml(String),
    Html(String),
    Empty,
    Truncated,
}

#[derive(Clone, Debug)]
pub(super) struct Reply {
    status: u16,
    content: Content,
    retry_after: Option<u64>,
    cut: bool,
}

impl Reply {
    fn new(status: u16, content: Content) -> Self {
        Self {
            status,
            content,
            retry_after: None,
            cut: false,
        }
    }

    /// A successful answer to this action.
    pub(super) fn ok(action: &str, body: &Xml) -> Self {
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{action}Response xmlns=\"{NAMESPACE}\"><requestId>{REQUEST_ID}\
             </requestId>{}</{action}Response>",
            body.0
        );
        Self::new(200, Content::Xml(text))
    }

    pub(super) fn refused(refusal: &Refusal) -> Self {
        let mut body = Xml::default();
        body.with("Response", |response| {
            response.with("Errors", |errors| {
                errors.with("Error", |error| {
                    error
                        .text("Code", &refusal.code)
                        .text("Message", &refusal.message);
                });
            });
            response.text("RequestID", REQUEST_ID);
        });
        let text = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}", body.0);
        Self::new(refusal.status, Content::Xml(text))
    }

    /// EC2 answers throttling with 503 and documents no `Retry-After`.
    pub(super) fn throttled(retry_after: Option<u64>) -> Self {
        let refusal = Refusal::new(503, "RequestLimitExceeded", "Request limit exceeded.");
        Self {
            retry_after,
            ..Self::refused(&refusal)
        }
    }

    pub(super) fn broken(status: u16, reason: &str, body: ErrorBody) -> Self {
        match body {
            ErrorBody::Json => Self::refused(&coded(status, reason)),
            ErrorBody::Html => {
                let name = http::status_name(status);
                let page = format!(
                    "<html><head><title>{status} {name}</title></head><body><h1>{name}</h1></body></html>"
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

    pub(super) fn is_success(&self) -> bool {
        self.status < 300 && !self.cut
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
            Content::Xml(text) => (Some("text/xml;charset=UTF-8"), text),
            Content::Html(page) => (Some("text/html"), page),
            Content::Empty => (None, String::new()),
            Content::Truncated => (
                Some("text/xml;charset=UTF-8"),
                "<?xml version=\"1.0\"?>\n<Response><Err".to_owned(),
            ),
        };
        let wait = self
            .retry_after
            .map(|seconds| ("retry-after", seconds.to_string()));
        http::answer(self.status, kind, body, wait)
    }
}
