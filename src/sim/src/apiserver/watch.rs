//! Watch streams.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use http_body::Frame;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::BoxError;

use super::ApiServer;
use super::hooks::WatchBreak;
use super::request::ApiRequest;
use super::selector::Selector;
use super::state::OpenWatch;
use super::status::ApiStatus;
use super::store::{Change, LogEntry, metadata_only, shown};
use crate::kapi::lock;

/// How often a watch that asked for bookmarks gets one.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// Annotation of the bookmark that ends the initial events of a streaming list.
const INITIAL_END: &str = "k8s.io/initial-events-end";

struct Watcher {
    server: ApiServer,
    id: u64,
    req: ApiRequest,
    selector: Selector,
    seen: u64,
    pending: VecDeque<Bytes>,
    bookmarks: bool,
    next_bookmark: Instant,
    ends: Option<Instant>,
    done: bool,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        lock(&self.server.inner.state).watches.remove(&self.id);
    }
}

/// A line of a watch: an object that is encoded already, with what happened to it.
fn encoded_line(kind: &str, object: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(object.len() + 40);
    out.extend_from_slice(format!("{{\"type\":\"{kind}\",\"object\":").as_bytes());
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
    Bytes::from(out)
}

fn line(kind: &str, object: &Value) -> Bytes {
    encoded_line(kind, object.to_string().as_bytes())
}

impl Watcher {
    fn shown(&self, object: &Arc<Value>) -> Arc<Value> {
        let out = shown(&self.req.rt, object);
        if self.req.metadata_only {
            Arc::new(metadata_only(&out))
        } else {
            out
        }
    }

    fn bookmark(&self, rv: u64, initial_end: bool) -> Bytes {
        let mut object = json!({
            "kind": self.req.rt.kind, "apiVersion": self.req.rt.api_version(),
            "metadata": {"resourceVersion": rv.to_string(), "creationTimestamp": null},
        });
        if initial_end {
            object["metadata"]["annotations"] = json!({INITIAL_END: "true"});
        }
        line("BOOKMARK", &object)
    }

    /// The event that this watcher sees for a change, after its selectors.
    fn event(&self, entry: &LogEntry) -> Option<Bytes> {
        let is = self.selector.matches(&entry.object) && entry.change != Change::Deleted;
        let was = entry
            .previous
            .as_ref()
            .is_some_and(|p| self.selector.matches(p));
        let kind = match (was, is) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => return None,
        };
        if self.req.metadata_only || self.req.rt.is_new_event() {
            return Some(line(kind, &self.shown(&entry.object)));
        }
        let encode = || Bytes::from(shown(&self.req.rt, &entry.object).to_string());
        Some(encoded_line(kind, entry.encoded.get_or_init(encode)))
    }

    /// Takes over new changes; an error ends the stream.
    fn collect(&mut self) -> Result<(), WatchBreak> {
        let server = self.server.clone();
        let state = lock(&server.inner.state);
        if let Some(how) = state.watches.get(&self.id).and_then(|w| w.broken) {
            return Err(how);
        }
        if self.seen < state.store.compacted() {
            return Err(WatchBreak::Expired);
        }
        let store = self.req.rt.store();
        let ns = self.req.namespace.clone();
        let named = self.req.name.clone();
        for entry in state.store.since(self.seen) {
            let ours = entry.store == store
                && ns.as_deref().is_none_or(|n| n == entry.namespace)
                && named
                    .as_deref()
                    .is_none_or(|n| entry.object["metadata"]["name"] == n);
            if ours && let Some(event) = self.event(entry) {
                self.pending.push_back(event);
            }
        }
        self.seen = state.store.rv();
        Ok(())
    }

    async fn next(&mut self) -> Option<Result<Frame<Bytes>, BoxError>> {
        loop {
            if let Some(bytes) = self.pending.pop_front() {
                return Some(Ok(Frame::data(bytes)));
            }
            if self.done {
                return None;
            }
            // Registered before the look at the log, so that no change falls between.
            let server = self.server.clone();
            let notified = server.inner.changed.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            match self.collect() {
                Ok(()) if !self.pending.is_empty() => continue,
                Ok(()) => {}
                Err(WatchBreak::End) => return None,
                Err(WatchBreak::Disconnect) => {
                    self.done = true;
                    return Some(Err("connection reset by peer".into()));
                }
                Err(WatchBreak::Expired) => {
                    let gone =
                        ApiStatus::new(410, format!("too old resource version: {}", self.seen));
                    self.done = true;
                    self.pending.push_back(line("ERROR", &gone.body()));
                    continue;
                }
            }
            let ends = self.ends;
            tokio::select! {
                biased;
                () = &mut notified => {}
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark += BOOKMARK_EVERY;
                    let bookmark = self.bookmark(self.seen, false);
                    self.pending.push_back(bookmark);
                }
                () = async { match ends { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } => {
                    self.done = true;
                }
            }
        }
    }
}

/// Opens a watch.
pub(super) fn open(
    server: &ApiServer,
    req: ApiRequest,
) -> Result<impl Stream<Item = Result<Frame<Bytes>, BoxError>> + Send + use<>, ApiStatus> {
    let selector = Selector::parse(req.query("labelSelector"), req.query("fieldSelector"))?;
    let now = Instant::now();
    let ends = req
        .query("timeoutSeconds")
        .and_then(|t| t.parse().ok())
        .map(|s| now + Duration::from_secs(s));
    let initial = req.flag("sendInitialEvents");
    let version = req.query("resourceVersion").unwrap_or("0").to_owned();
    let from: u64 = version
        .parse()
        .map_err(|_| ApiStatus::bad_request(format!("invalid resource version {version:?}")))?;
    let mut state = lock(&server.inner.state);
    let id = state.next_watch;
    state.next_watch += 1;
    let mut watcher = Watcher {
        server: server.clone(),
        id,
        selector,
        seen: from,
        pending: VecDeque::new(),
        bookmarks: req.flag("allowWatchBookmarks"),
        next_bookmark: now + BOOKMARK_EVERY,
        ends,
        done: false,
        req,
    };
    if initial || from == 0 {
        let objects = state
            .store
            .list(&watcher.req.rt.store(), watcher.req.namespace.as_deref());
        let named = watcher.req.name.clone();
        for object in objects.into_iter().filter(|o| {
            watcher.selector.matches(o)
                && named.as_deref().is_none_or(|n| o["metadata"]["name"] == n)
        }) {
            let event = line("ADDED", &watcher.shown(&object));
            watcher.pending.push_back(event);
        }
        watcher.seen = state.store.rv();
        if initial && watcher.bookmarks {
            let end = watcher.bookmark(watcher.seen, true);
            watcher.pending.push_back(end);
        }
    }
    state.watches.insert(
        id,
        OpenWatch {
            request: watcher.req.clone(),
            broken: None,
        },
    );
    drop(state);
    Ok(futures::stream::unfold(
        Arc::new(tokio::sync::Mutex::new(watcher)),
        |w| async move {
            let next = w.lock().await.next().await;
            next.map(|item| (item, w))
        },
    ))
}
