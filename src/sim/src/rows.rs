//! What a stock cluster does with a phantom volume by itself, row by row: the same function runs on the cluster in memory
//! (virtual time) and on a real control plane (real time), and both must stay within the same measured bounds.
//!
//! Every row begins and ends with the subject's pod Ready with its volume.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cloud::CloudApi;
use crate::kapi::{Kapi, MERGE, condition, items, terminating, text};
use crate::kubelet::{DiskAfter, SimKubelet};
use crate::names::{attachment_name, unique_volume_name};

/// Longest wait for a step that must come to pass.
const LIMIT: Duration = Duration::from_secs(240);
/// How long a row watches for what must not come to pass.
const WATCH: Duration = Duration::from_secs(60);

/// A cluster to run the rows on, and the one StatefulSet that they are about.
pub struct Rig {
    /// A client with every right.
    pub client: Client,
    /// The nodes; at least two.
    pub kubelets: BTreeMap<String, SimKubelet>,
    /// The cloud behind the CSI driver.
    pub cloud: Arc<dyn CloudApi>,
    /// Makes Unpublish fail while the volume is attached, or work again.
    pub unpublish_fails: Arc<dyn Fn(bool) + Send + Sync>,
    /// The CSI driver.
    pub driver: String,
    /// The namespace.
    pub namespace: String,
    /// A StatefulSet of one replica with one volume; its pod is `NAME-0`.
    pub set: String,
    /// The volume's handle.
    pub handle: String,
    /// How often the cluster is looked at.
    pub look: Duration,
}

/// Why a row could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// A request failed.
    #[error("a request failed: {0}")]
    Kubernetes(#[from] kube::Error),
    /// A step that every row relies on did not come to pass.
    #[error("{what} did not come to pass within {seconds} s")]
    TooLate {
        /// What.
        what: &'static str,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The rig is not what it should be.
    #[error("{0}")]
    Rig(String),
}

/// One figure of a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// What was measured.
    pub what: &'static str,
    /// The figure: seconds, or a count.
    pub value: f64,
    /// Smallest and greatest value that a stock cluster was measured to show, with room for a loaded machine.
    pub bounds: (f64, f64),
}

impl Seen {
    /// Whether the figure is within the bounds.
    #[must_use]
    pub fn fits(&self) -> bool {
        (self.bounds.0..=self.bounds.1).contains(&self.value)
    }
}

/// Names of all rows, for [`Rig::row`].
pub const ROWS: [&str; 6] = [
    "delete-the-pod",
    "scale-back-early",
    "scale-and-wait",
    "mount-back-off",
    "re-publish",
    "two-attachments",
];

impl Rig {
    /// Runs a row by name.
    ///
    /// # Errors
    /// [`RowError`]; also for a name that is not in [`ROWS`].
    pub async fn row(&self, name: &str) -> Result<Vec<Seen>, RowError> {
        match name {
            "delete-the-pod" => self.delete_the_pod().await,
            "scale-back-early" => self.scale_back_early().await,
            "scale-and-wait" => self.scale_and_wait().await,
            "mount-back-off" => self.mount_back_off().await,
            "re-publish" => self.re_publish().await,
            "two-attachments" => self.two_attachments().await,
            other => Err(RowError::Rig(format!("there is no row {other:?}"))),
        }
    }

    /// Deleting the stuck pod seldom heals (measured: 5 of 57): the replacement is there before kubelet's next status.
    /// Two tries, because one in eleven hits the right phase of the tick.
    async fn delete_the_pod(&self) -> Result<Vec<Seen>, RowError> {
        let mut healed = 0.0;
        for _ in 0..2 {
            self.phantom().await?;
            let uid = text(&self.pod_object().await?.unwrap_or_default(), "/metadata/uid").to_owned();
            self.kapi().delete(&self.pod_path(), &json!({})).await?;
            let other =
                async || Ok(self.pod_object().await?.is_some_and(|p| text(&p, "/metadata/uid") != uid));
            self.must("a replacement of the pod", other).await?;
            healed += f64::from(u8::from(self.within(WATCH, async || self.ready().await).await?.is_some()));
            self.heal().await?;
        }
        Ok(vec![Seen { what: "heals of two deletions of the stuck pod", value: healed, bounds: (0.0, 1.0) }])
    }

    /// Scaling to zero and back as soon as the pod is gone heals nothing (measured: 0 of 7).
    async fn scale_back_early(&self) -> Result<Vec<Seen>, RowError> {
        let mut healed = 0.0;
        for _ in 0..2 {
            self.phantom().await?;
            self.scale(0).await?;
            self.must("the pod gone", async || Ok(self.pod_object().await?.is_none())).await?;
            self.scale(1).await?;
            healed += f64::from(u8::from(self.within(WATCH, async || self.ready().await).await?.is_some()));
            self.heal().await?;
        }
        Ok(vec![Seen { what: "heals of two early scale-backs", value: healed, bounds: (0.0, 1.0) }])
    }

    /// Scaling to zero, waiting until the VolumeAttachment is gone, and back: heals every time. The wait is kubelet's
    /// status tick of 10 s, then one detach at the cloud.
    async fn scale_and_wait(&self) -> Result<Vec<Seen>, RowError> {
        self.phantom().await?;
        let node = self.node().await?;
        let start = Instant::now();
        self.scale(0).await?;
        self.must("the pod gone", async || Ok(self.pod_object().await?.is_none())).await?;
        let pod_gone = start.elapsed();
        self.must("volumesInUse empty", async || Ok(!self.in_use(&node).await?)).await?;
        let unused = start.elapsed();
        self.must("the VolumeAttachment gone", async || Ok(!self.attachment(&node).await?.is_object()))
            .await?;
        let detached = start.elapsed();
        self.scale(1).await?;
        let ready = self.must("the pod Ready", async || self.ready().await).await?;
        Ok(vec![
            Seen { what: "s until the pod is gone", value: pod_gone.as_secs_f64(), bounds: (0.5, 6.0) },
            Seen {
                what: "s from then until the status tick empties volumesInUse",
                value: unused.saturating_sub(pod_gone).as_secs_f64(),
                bounds: (0.0, 12.5),
            },
            Seen {
                what: "s until the VolumeAttachment is gone",
                value: detached.as_secs_f64(),
                bounds: (3.0, 22.0),
            },
            Seen { what: "s from scaling back to Ready", value: ready.as_secs_f64(), bounds: (4.0, 20.0) },
        ])
    }

    /// kubelet tries at 0, 0.6, 1.7, 3.8, 8, 16 and 32 s: one event with a growing count.
    async fn mount_back_off(&self) -> Result<Vec<Seen>, RowError> {
        self.phantom().await?;
        tokio::time::sleep(Duration::from_secs(33)).await;
        let events = self
            .kapi()
            .get(&format!("/api/v1/namespaces/{}/events", self.namespace))
            .await?
            .unwrap_or_default();
        let uid = text(&self.pod_object().await?.unwrap_or_default(), "/metadata/uid").to_owned();
        let own = |e: &&Value| e["reason"] == "FailedMount" && text(e, "/involvedObject/uid") == uid;
        let newest =
            items(&events, "/items").filter(own).filter_map(|e| e["count"].as_i64()).max().unwrap_or(0);
        self.heal().await?;
        Ok(vec![Seen {
            what: "FailedMount events in the first 45 s",
            value: newest as f64,
            bounds: (5.0, 9.0),
        }])
    }

    /// A cloud detach behind Kubernetes' back is undone: external-attacher publishes the volume to the same node again
    /// (measured: 12 to 94 s), and after kubelet's next attempt the pod runs.
    async fn re_publish(&self) -> Result<Vec<Seen>, RowError> {
        self.phantom().await?;
        let detach = self.cloud.detach(&self.handle).await;
        detach.map_err(|e| RowError::Rig(format!("the cloud refuses the detach: {e}")))?;
        self.must("the cloud's detach", async || Ok(self.holder().await.is_none())).await?;
        let again =
            self.must("the volume published again", async || Ok(self.holder().await.is_some())).await?;
        self.must("the pod Ready", async || self.ready().await).await?;
        Ok(vec![Seen {
            what: "s until the volume is published again",
            value: again.as_secs_f64(),
            bounds: (0.0, 130.0),
        }])
    }

    /// After one failed detach the volume is attached elsewhere while the first VolumeAttachment still exists.
    async fn two_attachments(&self) -> Result<Vec<Seen>, RowError> {
        self.phantom().await?;
        let node = self.node().await?;
        (self.unpublish_fails)(true);
        self.cordon(&node, true).await?;
        self.kapi().delete(&self.pod_path(), &json!({})).await?;
        let two = self
            .must("two VolumeAttachments of one volume", async || Ok(self.attachments().await? >= 2))
            .await;
        (self.unpublish_fails)(false);
        self.cordon(&node, false).await?;
        let after = two?;
        self.heal().await?;
        Ok(vec![Seen {
            what: "s until a second VolumeAttachment exists beside the stuck one",
            value: after.as_secs_f64(),
            bounds: (0.0, 120.0),
        }])
    }

    /// The pod's node is recycled uncleanly; returns once kubelet has complained.
    async fn phantom(&self) -> Result<(), RowError> {
        self.must("the pod Ready", async || self.ready().await).await?;
        let node = self.node().await?;
        let kubelet = self.kubelets.get(&node).ok_or_else(|| RowError::Rig(format!("no kubelet {node}")))?;
        kubelet.recycle(DiskAfter::Kept, Duration::from_secs(4)).await;
        self.must("the pod unready", async || Ok(!self.ready().await?)).await?;
        // As long as a person needs to notice: the status tick has passed.
        tokio::time::sleep(Duration::from_secs(12)).await;
        Ok(())
    }

    /// The way that always heals.
    async fn heal(&self) -> Result<(), RowError> {
        self.scale(0).await?;
        self.must("no VolumeAttachment left", async || Ok(self.attachments().await? == 0)).await?;
        self.scale(1).await?;
        self.must("the pod Ready", async || self.ready().await).await.map(|_| ())
    }

    fn kapi(&self) -> Kapi {
        Kapi::new(self.client.clone())
    }

    async fn within<F>(&self, limit: Duration, look: impl Fn() -> F) -> Result<Option<Duration>, RowError>
    where
        F: Future<Output = Result<bool, RowError>>,
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

    async fn must<F>(&self, what: &'static str, look: impl Fn() -> F) -> Result<Duration, RowError>
    where
        F: Future<Output = Result<bool, RowError>>,
    {
        self.within(LIMIT, look).await?.ok_or(RowError::TooLate { what, seconds: LIMIT.as_secs() })
    }

    fn pod_path(&self) -> String {
        format!("/api/v1/namespaces/{}/pods/{}-0", self.namespace, self.set)
    }

    async fn pod_object(&self) -> Result<Option<Value>, RowError> {
        Ok(self.kapi().get(&self.pod_path()).await?)
    }

    async fn ready(&self) -> Result<bool, RowError> {
        Ok(self.pod_object().await?.is_some_and(|p| condition(&p, "Ready") == "True" && !terminating(&p)))
    }

    async fn node(&self) -> Result<String, RowError> {
        let node = self.pod_object().await?.map(|p| text(&p, "/spec/nodeName").to_owned());
        node.filter(|n| !n.is_empty()).ok_or_else(|| RowError::Rig("the pod is on no node".into()))
    }

    async fn scale(&self, replicas: i64) -> Result<(), RowError> {
        let path = format!("/apis/apps/v1/namespaces/{}/statefulsets/{}", self.namespace, self.set);
        self.kapi().patch(&path, MERGE, &json!({"spec": {"replicas": replicas}})).await?;
        Ok(())
    }

    async fn cordon(&self, node: &str, on: bool) -> Result<(), RowError> {
        let body = json!({"spec": {"unschedulable": if on { json!(true) } else { Value::Null }}});
        self.kapi().patch(&format!("/api/v1/nodes/{node}"), MERGE, &body).await?;
        Ok(())
    }

    async fn in_use(&self, node: &str) -> Result<bool, RowError> {
        let name = unique_volume_name(&self.handle, &self.driver);
        let node = self.kapi().get(&format!("/api/v1/nodes/{node}")).await?.unwrap_or_default();
        Ok(items(&node, "/status/volumesInUse").any(|v| *v == name))
    }

    async fn attachment(&self, node: &str) -> Result<Value, RowError> {
        let name = attachment_name(&self.handle, &self.driver, node);
        Ok(self
            .kapi()
            .get(&format!("/apis/storage.k8s.io/v1/volumeattachments/{name}"))
            .await?
            .unwrap_or_default())
    }

    async fn attachments(&self) -> Result<usize, RowError> {
        let mut found = 0;
        for node in self.kubelets.keys() {
            found += usize::from(self.attachment(node).await?.is_object());
        }
        Ok(found)
    }

    async fn holder(&self) -> Option<String> {
        self.cloud.volume(&self.handle).await.ok().and_then(|v| v.holder)
    }
}
