//! The watches: one reflector per kind, and a number that grows with every change.
//!
//! Level-triggered: readers judge from what is there now. A watch that fails is retried with back-off; until it works
//! again everything read from the cache carries the time of its last good moment and turns stale by itself.

use crate::Clock;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Event, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, VolumeAttachment};
use kube::core::{ClusterResourceScope, NamespaceResourceScope};
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::watcher::{self, Event as Change, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use reattach_api::metadata::{self, MissingField};
use reattach_api::{NodeVolumeReport, RecoveryPolicy, VolumeRecovery};
use reattach_core::ids::{ObjectName, Uid};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// First and longest pause after a watch that failed.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// What can be kept in the cache.
pub trait Cached:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}
impl<K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static>
    Cached for K
{
}

/// The objects of one kind, as its watch last showed them.
#[derive(Clone)]
pub struct Watched<K: Cached> {
    store: Store<K>,
}

impl<K: Cached> Watched<K> {
    /// One object; `namespace` is empty for cluster-scoped kinds.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let reference = ObjectRef::new(name);
        self.store.get(&if namespace.is_empty() {
            reference
        } else {
            reference.within(namespace)
        })
    }

    /// UIDs of every object that matches.
    pub fn uids(&self, keep: impl Fn(&K) -> bool) -> BTreeSet<Uid> {
        let all = self.filter(keep).into_iter();
        // The watch takes no object without one ([`is_whole`]).
        all.filter_map(|object| metadata::of(&*object).uid().ok())
            .collect()
    }

    /// Every object that matches, sorted by namespace and name.
    pub fn filter(&self, keep: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        let mut found: Vec<Arc<K>> = self.store.state().into_iter().filter(|o| keep(o)).collect();
        // Compared in place: thousands of objects are sorted each time that something changes.
        found.sort_by(|a, b| place(&**a).cmp(&place(&**b)));
        found
    }
}

impl<K: Cached + Resource<Scope = NamespaceResourceScope>> Watched<K> {
    /// Every object that matches, with namespace and name, sorted by them.
    pub fn named(&self, keep: impl Fn(&K) -> bool) -> Vec<(ObjectName, Arc<K>)> {
        let all = self.filter(keep).into_iter();
        // The watch takes no object of a namespaced kind without them ([`is_whole`]), so none is left out here.
        all.filter_map(|object| Some((metadata::of(&*object).object_name().ok()?, object)))
            .collect()
    }
}

fn place<K: Cached>(object: &K) -> (Option<&str>, Option<&str>) {
    (
        object.meta().namespace.as_deref(),
        object.meta().name.as_deref(),
    )
}

/// Every watched kind.
#[derive(Clone)]
pub struct Cache {
    /// Pods.
    pub pods: Watched<Pod>,
    /// PersistentVolumeClaims.
    pub claims: Watched<PersistentVolumeClaim>,
    /// PersistentVolumes.
    pub volumes: Watched<PersistentVolume>,
    /// VolumeAttachments.
    pub attachments: Watched<VolumeAttachment>,
    /// Nodes.
    pub nodes: Watched<Node>,
    /// CSINodes.
    pub csi_nodes: Watched<CSINode>,
    /// CSIDrivers.
    pub drivers: Watched<CSIDriver>,
    /// Namespaces.
    pub namespaces: Watched<Namespace>,
    /// Warning events.
    pub events: Watched<Event>,
    /// Recoveries.
    pub recoveries: Watched<VolumeRecovery>,
    /// Policies.
    pub policies: Watched<RecoveryPolicy>,
    /// Agents' reports.
    pub reports: Watched<NodeVolumeReport>,
    changes: watch::Sender<u64>,
    broken: Arc<Mutex<Broken>>,
    clock: Clock,
}

impl Cache {
    /// Starts every watch on `tasks`; they run until the set is dropped.
    pub fn start(client: &Client, clock: Clock, tasks: &mut JoinSet<()>) -> Self {
        let (changes, _) = watch::channel(0);
        let broken = Arc::default();
        let mut spawner = Spawner {
            client,
            changes: &changes,
            broken: &broken,
            clock: &clock,
            tasks,
        };
        let warnings = watcher::Config::default().fields("type=Warning");
        Self {
            pods: spawner.watch(watcher::Config::default()),
            claims: spawner.watch(watcher::Config::default()),
            volumes: spawner.watch_cluster(watcher::Config::default()),
            attachments: spawner.watch_cluster(watcher::Config::default()),
            nodes: spawner.watch_cluster(watcher::Config::default()),
            csi_nodes: spawner.watch_cluster(watcher::Config::default()),
            drivers: spawner.watch_cluster(watcher::Config::default()),
            namespaces: spawner.watch_cluster(watcher::Config::default()),
            events: spawner.watch(warnings),
            recoveries: spawner.watch(watcher::Config::default()),
            policies: spawner.watch_cluster(watcher::Config::default()),
            reports: spawner.follow(
                watcher::Config::default(),
                is_whole,
                |report: &NodeVolumeReport| {
                    report.said().err().map(|why| {
                        format!("{why}: this node's agent counts as one that has not answered")
                    })
                },
            ),
            changes,
            broken,
            clock,
        }
    }

    /// Waits until every kind has been listed once.
    pub async fn ready(&self) {
        // A dropped writer means that the process is stopping; the caller sees that by itself.
        let _ = self.pods.store.wait_until_ready().await;
        let _ = self.claims.store.wait_until_ready().await;
        let _ = self.volumes.store.wait_until_ready().await;
        let _ = self.attachments.store.wait_until_ready().await;
        let _ = self.nodes.store.wait_until_ready().await;
        let _ = self.csi_nodes.store.wait_until_ready().await;
        let _ = self.drivers.store.wait_until_ready().await;
        let _ = self.namespaces.store.wait_until_ready().await;
        let _ = self.events.store.wait_until_ready().await;
        let _ = self.recoveries.store.wait_until_ready().await;
        let _ = self.policies.store.wait_until_ready().await;
        let _ = self.reports.store.wait_until_ready().await;
    }

    /// A receiver that wakes at every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The age of what the cache says: now, or the moment at which the first watch that is broken now broke.
    pub fn as_of(&self) -> Timestamp {
        lock(&self.broken)
            .values()
            .min()
            .copied()
            .unwrap_or_else(|| self.clock.now())
    }
}

struct Spawner<'a> {
    client: &'a Client,
    changes: &'a watch::Sender<u64>,
    broken: &'a Arc<Mutex<Broken>>,
    clock: &'a Clock,
    tasks: &'a mut JoinSet<()>,
}

impl Spawner<'_> {
    /// Follows one namespaced kind.
    fn watch<K>(&mut self, config: watcher::Config) -> Watched<K>
    where
        K: Cached + Resource<Scope = NamespaceResourceScope>,
    {
        let is_whole = |object: &K| {
            metadata::of(object).namespace()?;
            is_whole(object)
        };
        self.follow(config, is_whole, |_| None)
    }

    /// Follows one cluster-scoped kind.
    fn watch_cluster<K>(&mut self, config: watcher::Config) -> Watched<K>
    where
        K: Cached + Resource<Scope = ClusterResourceScope>,
    {
        self.follow(config, is_whole, |_| None)
    }

    /// Follows one kind. After an error everything of it is listed again: a watch that is merely opened again says
    /// nothing until an object changes, and what was missed meanwhile would look fresh. An object that is not whole is such an
    /// error, because without the object the cache would say that it does not exist.
    ///
    /// `complaint` says what is wrong with the content of an object. It is logged once for each object and reason.
    fn follow<K: Cached>(
        &mut self,
        config: watcher::Config,
        is_whole: impl Fn(&K) -> Result<(), MissingField> + Send + 'static,
        complaint: impl Fn(&K) -> Option<String> + Send + 'static,
    ) -> Watched<K> {
        let kind = K::kind(&()).into_owned();
        let (reader, mut writer) = store::<K>();
        let api = Api::<K>::all(self.client.clone());
        let (changes, broken, clock) = (
            self.changes.clone(),
            self.broken.clone(),
            self.clock.clone(),
        );
        self.tasks.spawn(async move {
            let mut pause = PAUSES.0;
            let mut complaints = Complaints::default();
            loop {
                let mut stream = std::pin::pin!(watcher(api.clone(), config.clone()));
                while let Some(event) = stream.next().await {
                    let event = event.map_err(|error| error.to_string());
                    let event = match event.and_then(|event| whole(event, &is_whole)) {
                        Ok(event) => without_managers(event),
                        Err(error) => {
                            tracing::warn!(kind, %error, "watch failed; it is tried again");
                            lock(&broken)
                                .entry(kind.clone())
                                .or_insert_with(|| clock.now());
                            break;
                        }
                    };
                    complaints.log(&kind, &event, &complaint);
                    writer.apply_watcher_event(&event);
                    // A list that has only begun has proven nothing yet.
                    if !matches!(event, Change::Init | Change::InitApply(_)) {
                        lock(&broken).remove(&kind);
                        pause = PAUSES.0;
                        changes.send_modify(|n| *n = n.wrapping_add(1));
                    }
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        });
        Watched { store: reader }
    }
}

/// The event, if its object is whole.
fn whole<K>(
    event: Change<K>,
    is_whole: impl Fn(&K) -> Result<(), MissingField>,
) -> Result<Change<K>, String> {
    match &event {
        Change::Apply(object) | Change::InitApply(object) | Change::Delete(object) => {
            is_whole(object).map_err(|missing| missing.to_string())?;
        }
        Change::Init | Change::InitDone => {}
    }
    Ok(event)
}

/// The event without `managedFields`, which no reader of the cache needs and which are the largest part of many objects.
fn without_managers<K: Cached>(mut event: Change<K>) -> Change<K> {
    if let Change::Apply(object) | Change::InitApply(object) | Change::Delete(object) = &mut event {
        object.managed_fields_mut().clear();
    }
    event
}

/// Has the object what the API server sets on every object of every kind?
fn is_whole<K: Cached>(object: &K) -> Result<(), MissingField> {
    let meta = metadata::of(object);
    meta.name()?;
    meta.condition()?;
    Ok(())
}

/// What was last said about which object.
#[derive(Default)]
struct Complaints(BTreeMap<(Option<String>, String), String>);

impl Complaints {
    /// Logs what is wrong with the event's object.
    fn log<K: Cached>(
        &mut self,
        kind: &str,
        event: &Change<K>,
        complaint: impl Fn(&K) -> Option<String>,
    ) {
        match event {
            Change::Apply(object) | Change::InitApply(object) => {
                if let Some(complaint) = self.news(object, complaint(object)) {
                    tracing::warn!(kind, name = object.name_any(), "{complaint}");
                }
            }
            Change::Delete(object) => drop(self.news(object, None)),
            Change::Init | Change::InitDone => {}
        }
    }

    /// The complaint, unless it was the last one about this object.
    fn news<K: Cached>(&mut self, object: &K, complaint: Option<String>) -> Option<String> {
        let name = (object.namespace(), object.name_any());
        let before = match &complaint {
            Some(now) => self.0.insert(name, now.clone()),
            None => self.0.remove(&name),
        };
        complaint.filter(|now| before.as_ref() != Some(now))
    }
}

type Broken = BTreeMap<String, Timestamp>;

fn lock(broken: &Mutex<Broken>) -> std::sync::MutexGuard<'_, Broken> {
    broken
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_without_a_uid_never_enters_the_cache() {
        let pod = |uid: Option<&str>| Pod {
            metadata: kube::api::ObjectMeta {
                name: Some("db-0".to_owned()),
                namespace: Some("shop".to_owned()),
                uid: uid.map(str::to_owned),
                resource_version: Some("1".to_owned()),
                ..Default::default()
            },
            ..Pod::default()
        };
        assert!(whole(Change::Apply(pod(Some("u"))), is_whole).is_ok());
        for event in [
            Change::Apply(pod(None)),
            Change::InitApply(pod(Some(""))),
            Change::Delete(pod(None)),
        ] {
            let refused = whole(event, is_whole).unwrap_err();
            assert_eq!(refused, "Pod shop/db-0 has no UID");
        }
        assert!(whole(Change::<Pod>::InitDone, is_whole).is_ok());
    }

    #[test]
    fn an_unreadable_object_is_reported_once_for_each_reason() {
        let report = |name: &str| NodeVolumeReport::new(name, Default::default());
        let mut complaints = Complaints::default();
        let mut news =
            |name: &str, why: Option<&str>| complaints.news(&report(name), why.map(str::to_owned));
        assert_eq!(news("a", Some("bad")).as_deref(), Some("bad"));
        assert_eq!(news("a", Some("bad")), None);
        assert_eq!(news("b", Some("bad")).as_deref(), Some("bad"));
        assert_eq!(news("a", Some("worse")).as_deref(), Some("worse"));
        assert_eq!(news("a", None), None);
        assert_eq!(
            news("a", Some("worse")).as_deref(),
            Some("worse"),
            "it was well in between"
        );
        assert_eq!(news("b", Some("bad")), None);
    }
}
