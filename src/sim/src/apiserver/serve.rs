//! The HTTP face.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use tower::{BoxError, Service};

use super::hooks::{AuditEntry, Fault};
use super::request::{ApiRequest, Target, Verb, parse_path, verb_of};
use super::selector::Selector;
use super::state::State;
use super::status::ApiStatus;
use super::store::{metadata_only, shown};
use super::{ApiServer, discovery, watch};
use crate::kapi::lock;
use crate::object;

/// Body of a response.
pub type ReplyBody = UnsyncBoxBody<Bytes, BoxError>;

/// The server for one client identity.
#[derive(Debug, Clone)]
pub struct ApiService {
    server: ApiServer,
    user: Arc<str>,
}

impl ApiService {
    pub(super) fn new(server: ApiServer, user: &str) -> Self {
        Self {
            server,
            user: user.into(),
        }
    }
}

impl<B> Service<http::Request<B>> for ApiService
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Response = http::Response<ReplyBody>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let (server, user) = (self.server.clone(), self.user.clone());
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map_err(Into::into)?.to_bytes();
            server.answer(&head, &body, &user).await
        })
    }
}

/// The answer to a request. Stored objects are not copied for it.
enum Answer {
    Made(Value),
    Object(Arc<Value>),
    List {
        kind: String,
        version: String,
        metadata: Value,
        items: Vec<Arc<Value>>,
    },
}

impl Serialize for Answer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Made(object) => object.serialize(serializer),
            Self::Object(object) => object.as_ref().serialize(serializer),
            Self::List {
                kind,
                version,
                metadata,
                items,
            } => {
                let items: Vec<&Value> = items.iter().map(AsRef::as_ref).collect();
                let mut list = serializer.serialize_struct("List", 4)?;
                list.serialize_field("kind", kind)?;
                list.serialize_field("apiVersion", version)?;
                list.serialize_field("metadata", metadata)?;
                list.serialize_field("items", &items)?;
                list.end()
            }
        }
    }
}

impl Answer {
    /// `metadata.name` of an object; empty for anything else.
    fn name(&self) -> &str {
        let object = match self {
            Self::Made(object) => object,
            Self::Object(object) => object,
            Self::List { .. } => return "",
        };
        object::name(object)
    }
}

fn reply(code: u16, body: &impl Serialize) -> Result<http::Response<ReplyBody>, BoxError> {
    let bytes = Bytes::from(serde_json::to_vec(body)?);
    let body = Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync();
    Ok(http::Response::builder()
        .status(code)
        .header("content-type", "application/json")
        .body(body)?)
}

/// A refusal before any resource was found. A path that no handler serves is answered in plain text by the real server's
/// router, without a Status.
fn refuse(e: &ApiStatus) -> Result<http::Response<ReplyBody>, BoxError> {
    if e.code != 404 {
        return reply(e.code, &e.body());
    }
    let body = Full::new(Bytes::from_static(b"404 page not found\n"))
        .map_err(|never| match never {})
        .boxed_unsync();
    let plain = "text/plain; charset=utf-8";
    Ok(http::Response::builder()
        .status(404)
        .header("content-type", plain)
        .body(body)?)
}

impl ApiServer {
    async fn answer(
        &self,
        head: &http::request::Parts,
        body: &Bytes,
        user: &str,
    ) -> Result<http::Response<ReplyBody>, BoxError> {
        let req = match parse_path(head.uri.path()) {
            Ok(Target::Meta(segments)) => return self.discover(&segments),
            Ok(target) => self.resource_request(head, target, user),
            Err(e) => Err(e),
        };
        let req = match req {
            Ok(req) => req,
            Err(e) => return refuse(&e),
        };
        let parsed: Value = if body.is_empty() {
            Value::Null
        } else {
            match serde_json::from_slice(body) {
                Ok(v) => v,
                Err(e) => {
                    let e =
                        ApiStatus::bad_request(format!("the body of the request is not JSON: {e}"));
                    return reply(e.code, &e.body());
                }
            }
        };

        let faults = lock(&self.inner.state).faults_for(&req);
        let mut after = None;
        for fault in faults {
            match fault {
                Fault::Latency(d) => tokio::time::sleep(d).await,
                Fault::Hang => std::future::pending::<()>().await,
                Fault::Status {
                    after_effect: false,
                    ..
                }
                | Fault::Disconnect {
                    after_effect: false,
                } => {
                    return self.fail(&req, &parsed, &fault);
                }
                Fault::Status { .. } | Fault::Disconnect { .. } => after = Some(fault),
            }
        }
        if req.verb == Verb::Watch {
            return self.watch(&req);
        }
        let (code, answer) = self.act(&req, &parsed);
        if let Some(fault) = after {
            return self.fail(&req, &parsed, &fault);
        }
        self.record(&req, &parsed, code, answer.name());
        reply(code, &answer)
    }

    fn discover(&self, segments: &[String]) -> Result<http::Response<ReplyBody>, BoxError> {
        let (types, older) = {
            let state = lock(&self.inner.state);
            (state.types.clone(), !state.has_mutating_policies())
        };
        match discovery::answer(&types, older, segments) {
            Ok(found) => reply(200, &found),
            Err(e) => refuse(&e),
        }
    }

    fn watch(&self, req: &ApiRequest) -> Result<http::Response<ReplyBody>, BoxError> {
        match watch::open(self, req.clone()) {
            Ok(stream) => {
                self.record(req, &Value::Null, 200, "");
                let body = StreamBody::new(stream).boxed_unsync();
                Ok(http::Response::builder()
                    .status(200)
                    .header("content-type", "application/json")
                    .body(body)?)
            }
            Err(e) => {
                self.record(req, &Value::Null, e.code, "");
                reply(e.code, &e.body())
            }
        }
    }

    /// Carries the request out and wakes the watches if it changed something.
    fn act(&self, req: &ApiRequest, body: &Value) -> (u16, Answer) {
        let mut state = lock(&self.inner.state);
        let before = state.store.rv();
        let result = dispatch(&mut state, req, body, self.inner.clock.now());
        let changed = state.store.rv() != before;
        drop(state);
        if changed {
            self.inner.changed.notify_waiters();
        }
        result.unwrap_or_else(|e| (e.code, Answer::Made(e.body())))
    }

    fn fail(
        &self,
        req: &ApiRequest,
        body: &Value,
        fault: &Fault,
    ) -> Result<http::Response<ReplyBody>, BoxError> {
        match fault {
            Fault::Status {
                status,
                retry_after,
                ..
            } => {
                self.record(req, body, status.code, "");
                let mut response = reply(status.code, &status.body())?;
                if let Some(seconds) = retry_after {
                    response
                        .headers_mut()
                        .insert("retry-after", (*seconds).into());
                }
                Ok(response)
            }
            _ => {
                self.record(req, body, 0, "");
                Err("connection reset by peer".into())
            }
        }
    }

    fn resource_request(
        &self,
        head: &http::request::Parts,
        target: Target,
        user: &str,
    ) -> Result<ApiRequest, ApiStatus> {
        let Target::Resource {
            group,
            version,
            plural,
            namespace,
            name,
            subresource,
        } = target
        else {
            return Err(ApiStatus::no_such_path());
        };
        let query: BTreeMap<String, String> = head
            .uri
            .query()
            .map(|q| form_urlencoded::parse(q.as_bytes()).into_owned().collect())
            .unwrap_or_default();
        let verb = verb_of(&head.method, name.is_some(), &query)?;
        let rt = lock(&self.inner.state)
            .types
            .iter()
            .find(|t| t.is(&group, &plural) && t.version == version)
            .cloned()
            .ok_or_else(ApiStatus::no_such_path)?;
        if rt.namespaced && namespace.is_none() && (name.is_some() || verb == Verb::Create) {
            return Err(ApiStatus::method_not_allowed());
        }
        let header = |key: &str| {
            head.headers
                .get(key)
                .and_then(|v| v.to_str().ok())
                .unwrap_or_default()
                .to_owned()
        };
        let mut user_agent = header("user-agent");
        if user_agent.is_empty() {
            user.clone_into(&mut user_agent);
        }
        Ok(ApiRequest {
            verb,
            namespace: namespace.filter(|_| rt.namespaced),
            rt,
            name,
            written_through: subresource.clone(),
            subresource,
            dry_run: query.get("dryRun").is_some_and(|d| d == "All"),
            query,
            content_type: header("content-type"),
            metadata_only: header("accept").contains("as=PartialObjectMetadata"),
            user: user.to_owned(),
            user_agent,
        })
    }

    fn record(&self, req: &ApiRequest, body: &Value, code: u16, created: &str) {
        let named = if req.name().is_empty() && req.verb == Verb::Create {
            created
        } else {
            req.name()
        };
        let entry = AuditEntry {
            at: self.inner.clock.now(),
            verb: req.verb,
            group: req.rt.group.clone(),
            resource: req.rt.plural.clone(),
            subresource: req.subresource.clone(),
            namespace: req.ns().to_owned(),
            name: named.to_owned(),
            user: req.user.clone(),
            user_agent: req.user_agent.clone(),
            field_manager: req.query("fieldManager").unwrap_or_default().to_owned(),
            dry_run: req.dry_run
                || (req.verb.mutates()
                    && ["/dryRun", "/deleteOptions/dryRun"]
                        .iter()
                        .any(|at| object::items(body, at).any(|x| x == "All"))),
            code,
            body: (req.verb.mutates() && !body.is_null()).then(|| Arc::new(body.clone())),
        };
        lock(&self.inner.state).audit.push(entry);
    }
}

fn dispatch(
    state: &mut State,
    req: &ApiRequest,
    body: &Value,
    now: jiff::Timestamp,
) -> Result<(u16, Answer), ApiStatus> {
    let part = |object: &Arc<Value>| {
        let out = shown(&req.rt, object);
        if req.metadata_only {
            Arc::new(metadata_only(&out))
        } else {
            out
        }
    };
    let made = |code: u16, answer: Value| Ok((code, Answer::Made(answer)));
    let object = |code: u16, object: &Arc<Value>| Ok((code, Answer::Object(part(object))));
    let list = |kind: String, version: String, metadata: Value, items: Vec<Arc<Value>>| {
        Ok((
            200,
            Answer::List {
                kind,
                version,
                metadata,
                items,
            },
        ))
    };
    match (req.verb, req.subresource.as_deref()) {
        (Verb::Create, Some("eviction")) if req.rt.is_pod() => {
            made(201, state.evict(req, body, now)?)
        }
        (Verb::Create, Some("binding")) if req.rt.is_pod() => {
            made(201, state.bind(req, body, now)?)
        }
        (_, Some("scale")) => made(200, state.scale(req, body, now)?),
        (Verb::Get, None | Some("status")) => {
            let found = state.existing(req)?;
            object(200, &state.as_read(req, &found))
        }
        (Verb::List, None) => {
            let selector = Selector::parse(req.query("labelSelector"), req.query("fieldSelector"))?;
            let objects = state.store.list(&req.rt.store(), req.namespace.as_deref());
            let items = objects
                .iter()
                .filter(|o| selector.matches(o))
                .map(|o| part(&state.as_read(req, o)))
                .collect();
            let (kind, version) = if req.metadata_only {
                (
                    "PartialObjectMetadataList".to_owned(),
                    "meta.k8s.io/v1".to_owned(),
                )
            } else {
                (format!("{}List", req.rt.kind), req.rt.api_version())
            };
            let rv = state.store.rv().to_string();
            list(kind, version, json!({"resourceVersion": rv}), items)
        }
        (Verb::Create, None) => {
            if let Some(answer) = state.review(req, body) {
                return made(201, answer);
            }
            object(201, &state.create(req, body.clone(), now)?)
        }
        (Verb::Update, None | Some("status")) => {
            object(200, &state.update(req, body.clone(), now)?)
        }
        (Verb::Patch, None | Some("status")) => {
            let (code, patched) = state.patch(req, body, now)?;
            object(code, &patched)
        }
        (Verb::Delete, None) => made(200, state.delete_request(req, body, now)?),
        (Verb::DeleteCollection, None) => {
            let selector = Selector::parse(req.query("labelSelector"), req.query("fieldSelector"))?;
            let objects = state.store.list(&req.rt.store(), req.namespace.as_deref());
            let mut items = Vec::new();
            for gone in objects.iter().filter(|o| selector.matches(o)) {
                let mut one = req.clone();
                one.verb = Verb::Delete;
                one.name = gone["metadata"]["name"].as_str().map(Into::into);
                one.namespace = gone["metadata"]["namespace"].as_str().map(Into::into);
                state.delete_request(&one, body, now)?;
                items.push(part(gone));
            }
            list(
                format!("{}List", req.rt.kind),
                req.rt.api_version(),
                json!({}),
                items,
            )
        }
        _ => Err(ApiStatus::no_such_path()),
    }
}
