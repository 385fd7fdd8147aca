//! The StatefulSet of a case, and reads of its state.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};
use tokio::time::Instant;

use reattach_sim::cloud::CloudApi;
use reattach_sim::kapi::{Kapi, MERGE, condition, items, terminating, text};
use reattach_sim::kubelet::{DiskAfter, SimKubelet};
use reattach_sim::names::{attachment_name, unique_volume_name};

/// Longest wait for a controller that needs neither a tick nor a sync.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// Longest wait for a VolumeAttachment to go: kubelet's tick (10 s), the detach, and a retry after a refused one, which
/// external-attacher puts off by up to 5 min (its flag `--retry-interval-max`).
pub(crate) const DETACH: Duration = Duration::from_secs(330);
/// Longest wait for a pod to be Ready once nothing is in its way: scheduling, attach, mount, and a retry of each, which
/// kube-controller-manager and kubelet put off by up to 2 min 2 s (Kubernetes
/// `pkg/util/goroutinemap/exponentialbackoff`).
pub(crate) const READY: Duration = Duration::from_secs(180);
/// How long a recycled machine is off.
const AWAY: Duration = Duration::from_secs(4);

/// The reason for which a case could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// A request failed.
    #[error("a request failed: {0}")]
    Kubernetes(#[from] kube::Error),
    /// A step of the case took too long.
    #[error("{what} did not come to pass within {seconds} s")]
    TooLate {
        /// The awaited condition.
        what: &'static str,
        /// The time limit.
        seconds: u64,
    },
    /// The fixture is not as the case needs it.
    #[error("{0}")]
    Fixture(String),
}

/// A cluster to run the cases on, and their StatefulSet.
pub struct Fixture {
    /// A client with every right.
    pub client: Client,
    /// Nodes for the pod of the StatefulSet, at least two. Cordoning them moves no pod of another fixture.
    pub kubelets: BTreeMap<String, SimKubelet>,
    /// The cloud behind the CSI driver.
    pub cloud: Arc<dyn CloudApi>,
    /// Makes Unpublish of the volume fail while it is attached, or work again.
    pub unpublish_fails: Arc<dyn Fn(bool) + Send + Sync>,
    /// The CSI driver.
    pub driver: String,
    /// The namespace.
    pub namespace: String,
    /// A StatefulSet of one replica with one volume; its pod is `NAME-0`.
    pub set: String,
    /// The volume's handle.
    pub handle: String,
    /// Poll interval.
    pub look: Duration,
    /// How long a person needs to notice a stuck pod. Kubelet's first status tick is 10 s after its start, so 12 s are
    /// clear of it and of the next.
    pub settle: Duration,
}

/// Failed mount attempts of a pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Attempts {
    /// How many.
    pub count: i64,
    /// From the first to the last, to the second.
    pub lasted: Duration,
}

impl Fixture {
    /// The pod's node is recycled uncleanly, and a person has noticed; answers the node.
    pub(crate) async fn phantom(&self) -> Result<String, CaseError> {
        let node = self.phantom_at_once().await?;
        tokio::time::sleep(self.settle).await;
        Ok(node)
    }

    /// The pod's node is recycled uncleanly; answers the node as soon as its pod is seen to be stuck.
    pub(crate) async fn phantom_at_once(&self) -> Result<String, CaseError> {
        self.must("the pod Ready at the start", READY, async || {
            self.ready().await
        })
        .await?;
        let node = self.node().await?;
        let kubelet = self
            .kubelets
            .get(&node)
            .ok_or_else(|| CaseError::Fixture(format!("no kubelet {node}")))?;
        kubelet.recycle(DiskAfter::Kept, AWAY).await;
        self.must("the pod unready", SOON, async || Ok(!self.ready().await?))
            .await?;
        Ok(node)
    }

    /// The way that always heals.
    pub(crate) async fn heal(&self) -> Result<(), CaseError> {
        self.scale(0).await?;
        let none = async || Ok(self.attachments().await?.is_empty());
        self.must("no VolumeAttachment left", DETACH, none).await?;
        self.scale(1).await?;
        self.must("the pod Ready at the end", READY, async || {
            self.ready().await
        })
        .await
        .map(|_| ())
    }

    fn kapi(&self) -> Kapi {
        Kapi::new(self.client.clone())
    }

    /// Returns the time until `look` is true, or `None` when it is not within the limit.
    pub(crate) async fn within<F>(
        &self,
        limit: Duration,
        look: impl Fn() -> F,
    ) -> Result<Option<Duration>, CaseError>
    where
        F: Future<Output = Result<bool, CaseError>>,
    {
        let start = Instant::now();
        loop {
            if look().await? {
                return Ok(Some(start.elapsed()));
            }
            if start.elapsed() >= limit {
                return Ok(None);
            }
            tokio::time::sleep(self.look).await;
        }
    }

    /// As [`Fixture::within`]; too late is an error.
    pub(crate) async fn must<F>(
        &self,
        what: &'static str,
        limit: Duration,
        look: impl Fn() -> F,
    ) -> Result<Duration, CaseError>
    where
        F: Future<Output = Result<bool, CaseError>>,
    {
        self.within(limit, look).await?.ok_or(CaseError::TooLate {
            what,
            seconds: limit.as_secs(),
        })
    }

    fn pod_path(&self) -> String {
        format!("/api/v1/namespaces/{}/pods/{}-0", self.namespace, self.set)
    }

    pub(crate) async fn pod_object(&self) -> Result<Option<Value>, CaseError> {
        Ok(self.kapi().get(&self.pod_path()).await?)
    }

    pub(crate) async fn pod_uid(&self) -> Result<String, CaseError> {
        Ok(text(
            &self.pod_object().await?.unwrap_or_default(),
            "/metadata/uid",
        )
        .to_owned())
    }

    pub(crate) async fn delete_pod(&self) -> Result<(), CaseError> {
        Ok(self.kapi().delete(&self.pod_path(), &json!({})).await?)
    }

    pub(crate) async fn ready(&self) -> Result<bool, CaseError> {
        Ok(self
            .pod_object()
            .await?
            .is_some_and(|p| condition(&p, "Ready") == "True" && !terminating(&p)))
    }

    /// The pod's node, once it has one.
    pub(crate) async fn bound(&self) -> Result<Option<String>, CaseError> {
        let node = self
            .pod_object()
            .await?
            .map(|p| text(&p, "/spec/nodeName").to_owned());
        Ok(node.filter(|n| !n.is_empty()))
    }

    pub(crate) async fn node(&self) -> Result<String, CaseError> {
        self.bound()
            .await?
            .ok_or_else(|| CaseError::Fixture("the pod is on no node".into()))
    }

    pub(crate) async fn scale(&self, replicas: i64) -> Result<(), CaseError> {
        self.kapi()
            .patch(
                &self.set_path(),
                MERGE,
                &json!({"spec": {"replicas": replicas}}),
            )
            .await?;
        Ok(())
    }

    /// Changes the StatefulSet, or a subresource of it, under the name of a field manager.
    pub(crate) async fn write_as(
        &self,
        manager: &str,
        part: &str,
        body: &Value,
    ) -> Result<(), CaseError> {
        let path = format!("{}{part}?fieldManager={manager}", self.set_path());
        self.kapi().patch(&path, MERGE, body).await?;
        Ok(())
    }

    /// The field managers that have a field of the StatefulSet, each with the subresource that it wrote through.
    pub(crate) async fn writers(&self, field: &[&str]) -> Result<Vec<String>, CaseError> {
        let set = self.kapi().get(&self.set_path()).await?.unwrap_or_default();
        let has = |entry: &&Value| {
            field
                .iter()
                .try_fold(&entry["fieldsV1"], |at, key| at.get(key))
                .is_some()
        };
        let name = |e: &Value| format!("{} {}", text(e, "/manager"), text(e, "/subresource"));
        let all = set["metadata"]["managedFields"].as_array();
        Ok(all.into_iter().flatten().filter(has).map(name).collect())
    }

    fn set_path(&self) -> String {
        format!(
            "/apis/apps/v1/namespaces/{}/statefulsets/{}",
            self.namespace, self.set
        )
    }

    /// Cordons a node, or takes that back.
    pub(crate) async fn close(&self, node: &str, closed: bool) -> Result<(), CaseError> {
        let body =
            json!({"spec": {"unschedulable": if closed { json!(true) } else { Value::Null }}});
        self.kapi()
            .patch(&format!("/api/v1/nodes/{node}"), MERGE, &body)
            .await?;
        Ok(())
    }

    /// Leaves the scheduler no node but this one, or takes that back.
    pub(crate) async fn only(&self, node: &str, only: bool) -> Result<(), CaseError> {
        for other in self.kubelets.keys().filter(|n| *n != node) {
            self.close(other, only).await?;
        }
        Ok(())
    }

    pub(crate) async fn in_use(&self, node: &str) -> Result<bool, CaseError> {
        let name = unique_volume_name(&self.handle, &self.driver);
        let node = self
            .kapi()
            .get(&format!("/api/v1/nodes/{node}"))
            .await?
            .unwrap_or_default();
        Ok(items(&node, "/status/volumesInUse").any(|v| *v == name))
    }

    pub(crate) async fn attachment(&self, node: &str) -> Result<Option<Value>, CaseError> {
        let name = attachment_name(&self.handle, &self.driver, node);
        Ok(self
            .kapi()
            .get(&format!("/apis/storage.k8s.io/v1/volumeattachments/{name}"))
            .await?)
    }

    /// The volume's VolumeAttachments on all nodes of the fixture.
    pub(crate) async fn attachments(&self) -> Result<Vec<Value>, CaseError> {
        let mut found = Vec::new();
        for node in self.kubelets.keys() {
            found.extend(self.attachment(node).await?);
        }
        Ok(found)
    }

    pub(crate) async fn holder(&self) -> Option<String> {
        self.cloud
            .volume(&self.handle)
            .await
            .ok()
            .and_then(|v| v.holder)
    }

    /// The failed attempts of the present pod in this boot of its node, from kubelet's event.
    pub(crate) async fn failed_attempts(&self) -> Result<Attempts, CaseError> {
        let path = format!("/api/v1/namespaces/{}/events", self.namespace);
        let events = self.kapi().get(&path).await?.unwrap_or_default();
        let uid = self.pod_uid().await?;
        let ours = items(&events, "/items").filter(|e| {
            e["reason"] == "FailedMount"
                && text(e, "/involvedObject/uid") == uid
                && text(e, "/message").contains("Unable to find device path")
        });
        let newest = ours.max_by_key(|e| text(e, "/lastTimestamp").to_owned());
        Ok(newest.map_or_else(Attempts::default, |e| {
            let at = |field: &str| text(e, field).parse::<Timestamp>().unwrap_or_default();
            let lasted = at("/lastTimestamp").duration_since(at("/firstTimestamp"));
            Attempts {
                count: e["count"].as_i64().unwrap_or(0),
                lasted: lasted.try_into().unwrap_or(Duration::ZERO),
            }
        }))
    }
}
