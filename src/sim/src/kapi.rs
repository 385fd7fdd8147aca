//! A thin JSON client over `kube::Client`, and a cache that follows a collection.
//!
//! The simulated components work on JSON: they must run against any API server version, and read few fields.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use kube::Client;
use kube::core::WatchEvent;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// Content type of a merge patch.
pub const MERGE: &str = "application/merge-patch+json";
/// Content type of a strategic merge patch.
pub const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// Locks; a panic elsewhere under the lock does not spread.
pub fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The HTTP code of an API error; 0 for everything else.
pub fn code_of(e: &kube::Error) -> u16 {
    match e {
        kube::Error::Api(status) => status.code,
        _ => 0,
    }
}

/// JSON requests by path.
#[derive(Clone)]
pub struct Kapi {
    /// The client.
    pub client: Client,
}

impl Kapi {
    /// A client of JSON requests.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        content: &str,
        body: Option<&Value>,
    ) -> Result<Value, kube::Error> {
        let bytes = match body {
            Some(v) => serde_json::to_vec(v).map_err(kube::Error::SerdeError)?,
            None => Vec::new(),
        };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content)
            .body(bytes)
            .map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }

    /// One object; `None` when it does not exist.
    pub async fn get(&self, path: &str) -> Result<Option<Value>, kube::Error> {
        match self.send("GET", path, "application/json", None).await {
            Ok(v) => Ok(Some(v)),
            Err(e) if code_of(&e) == 404 => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Creates an object in the collection at `path`.
    pub async fn create(&self, path: &str, body: &Value) -> Result<Value, kube::Error> {
        self.send("POST", path, "application/json", Some(body))
            .await
    }

    /// Patches the object at `path`; `content` is the content type of the patch.
    pub async fn patch(
        &self,
        path: &str,
        content: &str,
        body: &Value,
    ) -> Result<Value, kube::Error> {
        self.send("PATCH", path, content, Some(body)).await
    }

    /// Deletes; an object that is gone already is fine.
    pub async fn delete(&self, path: &str, options: &Value) -> Result<(), kube::Error> {
        match self
            .send("DELETE", path, "application/json", Some(options))
            .await
        {
            Ok(_) => Ok(()),
            Err(e) if code_of(&e) == 404 => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// Tasks that end when this is dropped.
#[derive(Debug, Default)]
pub struct Tasks(Mutex<Vec<AbortHandle>>);

impl Tasks {
    /// Spawns a task.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        lock(&self.0).push(tokio::spawn(future).abort_handle());
    }

    /// Returns whether no task was spawned since the last [`Tasks::abort_all`].
    pub fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }

    /// Aborts all tasks.
    pub fn abort_all(&self) {
        for handle in lock(&self.0).drain(..) {
            handle.abort();
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.abort_all();
    }
}

type Key = (String, String);

#[derive(Default)]
struct Cache {
    objects: Mutex<BTreeMap<Key, Arc<Value>>>,
    seen: AtomicU64,
    moved: Notify,
}

/// A collection, followed by list and watch. Clones share one cache.
#[derive(Clone)]
pub struct Informer {
    cache: Arc<Cache>,
}

/// Pause after a failed list or a broken watch.
const RETRY: Duration = Duration::from_secs(1);

fn key(object: &Value) -> Key {
    let meta = &object["metadata"];
    let text = |f: &str| meta[f].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"]
        .as_str()
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

impl Informer {
    /// Follows `path` (a collection, with `fieldSelector` if wanted) and wakes `wake` after each change.
    pub fn spawn(tasks: &Tasks, client: Client, path: &str, wake: Arc<Notify>) -> Self {
        let informer = Self {
            cache: Arc::default(),
        };
        let (cache, path) = (informer.cache.clone(), path.to_owned());
        tasks.spawn(async move {
            loop {
                if let Err(e) = follow(&cache, &client, &path, &wake).await {
                    tracing::debug!(path, error = %e, "following failed, listing again");
                }
                tokio::time::sleep(RETRY).await;
            }
        });
        informer
    }

    /// Returns all objects of the collection.
    pub fn all(&self) -> Vec<Arc<Value>> {
        lock(&self.cache.objects).values().cloned().collect()
    }

    /// Returns one object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Value>> {
        lock(&self.cache.objects)
            .get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
    }

    /// True once the first list is in.
    pub fn synced(&self) -> bool {
        self.cache.seen.load(Ordering::Relaxed) > 0
    }

    /// Waits until the cache has seen what was `written` (at most 5 s), so that the next decision counts it.
    pub async fn saw(&self, written: &Value) {
        let want = version(written);
        let caught_up = async {
            loop {
                let moved = self.cache.moved.notified();
                tokio::pin!(moved);
                moved.as_mut().enable();
                if self.cache.seen.load(Ordering::Relaxed) >= want {
                    return;
                }
                moved.await;
            }
        };
        // Later is no harm: the next change wakes the owner of the cache again.
        let _late = tokio::time::timeout(Duration::from_secs(5), caught_up).await;
    }
}

async fn follow(
    cache: &Cache,
    client: &Client,
    path: &str,
    wake: &Notify,
) -> Result<(), kube::Error> {
    let request = |uri: String| {
        http::Request::get(uri)
            .body(Vec::new())
            .map_err(kube::Error::HttpError)
    };
    let list: Value = client.request(request(path.to_owned())?).await?;
    let rv = version(&list);
    let items = list["items"].as_array().cloned().unwrap_or_default();
    *lock(&cache.objects) = items.into_iter().map(|o| (key(&o), Arc::new(o))).collect();
    cache.seen.store(rv.max(1), Ordering::Relaxed);
    cache.moved.notify_waiters();
    wake.notify_one();
    let mut rv = rv.to_string();
    loop {
        let glue = if path.contains('?') { '&' } else { '?' };
        let uri = format!(
            "{path}{glue}watch=true&allowWatchBookmarks=true&timeoutSeconds=290&resourceVersion={rv}"
        );
        let mut events = client.request_events::<Value>(request(uri)?).await?.boxed();
        while let Some(event) = events.try_next().await? {
            let object = match event {
                WatchEvent::Added(o) | WatchEvent::Modified(o) => {
                    lock(&cache.objects).insert(key(&o), Arc::new(o.clone()));
                    o
                }
                WatchEvent::Deleted(o) => {
                    lock(&cache.objects).remove(&key(&o));
                    o
                }
                WatchEvent::Bookmark(b) => {
                    json!({"metadata": {"resourceVersion": b.metadata.resource_version}})
                }
                WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
            };
            let at = version(&object);
            rv = at.to_string();
            cache.seen.fetch_max(at, Ordering::Relaxed);
            cache.moved.notify_waiters();
            wake.notify_one();
        }
    }
}
