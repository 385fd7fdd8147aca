//! The cases, the figures that they measure, and the comparison of two clusters.

use std::time::Duration;

use serde_json::json;

use crate::fixture::{CaseError, DETACH, Fixture, READY, SOON};
use reattach_sim::object::{terminating, text};

/// How long a case watches for an event that must not occur. The mount attempts of a new pod at 0, 0.6, 1.7, 3.8, 8, 16 and
/// 32 s fall into it, the next one (64 s) does not.
const WATCH: Duration = Duration::from_secs(45);
/// The attempts within [`WATCH`].
const ATTEMPTS: i64 = 7;
/// How long one more than [`ATTEMPTS`] is watched for: half of the time until it is due.
const PAUSE: Duration = Duration::from_secs(15);
/// One detach or attach job at the cloud is 2 s; the rest of the limits is room for a loaded machine.
const CLOUD: Duration = Duration::from_secs(30);
/// Longest wait for external-attacher's comparison with the cloud (once a minute) and its attach.
const COMPARE: Duration = Duration::from_secs(90);
/// Longest wait for the mount attempt after that one: at 64 or 128 s after the node's return.
const NEXT_ATTEMPT: Duration = Duration::from_secs(150);

/// Annotation that the case `last-writer` writes.
const NOTE: &str = "reattach.dev/note";

/// One measured figure of a case.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Name of the figure.
    pub what: &'static str,
    /// The figure: seconds, or a count.
    pub value: f64,
    /// Smallest and greatest value measured on a stock cluster, with room for a loaded machine.
    pub bounds: (f64, f64),
    /// Largest difference between two clusters. `None`: the phases of the clusters differ, and only the bounds count.
    pub tolerance: Option<f64>,
}

impl Figure {
    fn seconds(what: &'static str, value: Duration, bounds: (f64, f64)) -> Self {
        Self {
            what,
            value: value.as_secs_f64(),
            bounds,
            tolerance: None,
        }
    }

    /// An outcome that leaves no room.
    fn exactly(what: &'static str, value: usize, expected: u32) -> Self {
        let value = u32::try_from(value).map_or(f64::INFINITY, f64::from);
        Self {
            what,
            value,
            bounds: (f64::from(expected), f64::from(expected)),
            tolerance: Some(0.0),
        }
    }

    /// The failed attempts within [`WATCH`]: [`ATTEMPTS`], and one less on a machine that is slow.
    fn attempts(what: &'static str, value: i64) -> Self {
        let value = u32::try_from(value).map_or(f64::INFINITY, f64::from);
        Self {
            what,
            value,
            bounds: (6.0, 7.0),
            tolerance: Some(1.0),
        }
    }

    /// Returns whether the figure is within its bounds.
    #[must_use]
    pub fn fits(&self) -> bool {
        (self.bounds.0..=self.bounds.1).contains(&self.value)
    }

    /// Returns whether the same figure of another cluster agrees within the tolerance.
    #[must_use]
    pub fn agrees(&self, other: &Self) -> bool {
        self.what == other.what
            && self
                .tolerance
                .is_none_or(|t| (self.value - other.value).abs() <= t)
    }
}

/// Names of all cases, for [`Fixture::run`].
pub const CASES: [&str; 7] = [
    "delete-the-pod",
    "scale-back-early",
    "scale-and-wait",
    "mount-back-off",
    "re-publish",
    "two-attachments",
    "last-writer",
];

impl Fixture {
    /// Runs a case by name.
    ///
    /// # Errors
    /// [`CaseError`]; also for a name that is not in [`CASES`].
    pub async fn run(&self, name: &str) -> Result<Vec<Figure>, CaseError> {
        match name {
            "delete-the-pod" => self.delete_the_pod().await,
            "scale-back-early" => self.scale_back_early().await,
            "scale-and-wait" => self.scale_and_wait().await,
            "mount-back-off" => self.mount_back_off().await,
            "re-publish" => self.re_publish().await,
            "two-attachments" => self.two_attachments().await,
            "last-writer" => self.last_writer().await,
            other => Err(CaseError::Fixture(format!("there is no case {other:?}"))),
        }
    }

    /// Deleting the stuck pod seldom heals (measured: 5 of 57): the replacement is there before kubelet's next status.
    /// Here the deletion stays clear of the tick, so it never does; see [`Fixture::deletion_heals`] for other moments.
    async fn delete_the_pod(&self) -> Result<Vec<Figure>, CaseError> {
        let node = self.phantom().await?;
        self.only(&node, true).await?;
        let replaced = self.replace_the_pod().await?;
        let healed = self
            .within(WATCH, async || self.ready().await)
            .await?
            .is_some();
        let attempts = self.failed_attempts().await?;
        let stayed = self.node().await? == node;
        self.only(&node, false).await?;
        self.heal().await?;
        Ok(vec![
            Figure::seconds("s until the pod is replaced", replaced, (0.5, 8.0)),
            Figure::exactly("replacements on the same node", stayed.into(), 1),
            Figure::attempts("failed mount attempts of the replacement", attempts.count),
            Figure::exactly("heals of one deletion of the stuck pod", healed.into(), 0),
        ])
    }

    /// Returns whether deleting the stuck pod [`Fixture::settle`] after it was noticed heals it on its node.
    ///
    /// # Errors
    /// [`CaseError`].
    pub async fn deletion_heals(&self) -> Result<bool, CaseError> {
        let node = self.phantom().await?;
        self.only(&node, true).await?;
        self.replace_the_pod().await?;
        let healed = self
            .within(WATCH, async || self.ready().await)
            .await?
            .is_some();
        self.only(&node, false).await?;
        self.heal().await?;
        Ok(healed)
    }

    async fn replace_the_pod(&self) -> Result<Duration, CaseError> {
        let uid = self.pod_uid().await?;
        self.delete_pod().await?;
        let other = async || {
            Ok(self
                .pod_object()
                .await?
                .is_some_and(|p| text(&p, "/metadata/uid") != uid))
        };
        let replaced = self.must("a replacement of the pod", SOON, other).await?;
        self.must("the replacement bound to a node", SOON, async || {
            Ok(self.bound().await?.is_some())
        })
        .await?;
        Ok(replaced)
    }

    /// Scaling to zero and back as soon as the pod is gone heals nothing (measured: 0 of 7).
    async fn scale_back_early(&self) -> Result<Vec<Figure>, CaseError> {
        let node = self.phantom().await?;
        self.only(&node, true).await?;
        self.scale(0).await?;
        self.must("the pod gone", SOON, async || {
            Ok(self.pod_object().await?.is_none())
        })
        .await?;
        self.scale(1).await?;
        self.must("the new pod bound to a node", SOON, async || {
            Ok(self.bound().await?.is_some())
        })
        .await?;
        let healed = self
            .within(WATCH, async || self.ready().await)
            .await?
            .is_some();
        let attempts = self.failed_attempts().await?;
        self.only(&node, false).await?;
        self.heal().await?;
        Ok(vec![
            Figure::attempts("failed mount attempts of the new pod", attempts.count),
            Figure::exactly("heals of one early scale-back", healed.into(), 0),
        ])
    }

    /// Scaling to zero, waiting until the VolumeAttachment is gone, and back: heals every time. The wait is kubelet's
    /// status tick of 10 s, then one detach at the cloud. Back on the same node kubelet needs its next tick before it may
    /// mount (measured: 7.4 to 10.9 s); when its attempt after 8 s comes just before that tick, the next is 8 s later.
    async fn scale_and_wait(&self) -> Result<Vec<Figure>, CaseError> {
        let node = self.phantom().await?;
        self.only(&node, true).await?;
        let (gone, unused, detached) = self.scale_to_zero(&node).await?;
        self.scale(1).await?;
        let ready = self
            .must("the pod Ready after scaling back", READY, async || {
                self.ready().await
            })
            .await?;
        let stayed = self.node().await? == node;
        self.only(&node, false).await?;
        Ok(vec![
            Figure::seconds("s until the pod is gone", gone, (0.5, 6.0)),
            Figure::seconds(
                "s from then until the status tick empties volumesInUse",
                unused.saturating_sub(gone),
                (0.0, 12.5),
            ),
            Figure::seconds(
                "s until the VolumeAttachment is gone",
                detached,
                (3.0, 22.0),
            ),
            Figure::seconds("s from scaling back to Ready", ready, (4.0, 25.0)),
            Figure::exactly("heals on the same node", stayed.into(), 1),
        ])
    }

    /// When the pod was gone, volumesInUse without the volume, and the VolumeAttachment gone, since the scaling.
    async fn scale_to_zero(&self, node: &str) -> Result<(Duration, Duration, Duration), CaseError> {
        let start = tokio::time::Instant::now();
        self.scale(0).await?;
        self.must("the pod gone", SOON, async || {
            Ok(self.pod_object().await?.is_none())
        })
        .await?;
        let gone = start.elapsed();
        self.must("volumesInUse without the volume", SOON, async || {
            Ok(!self.in_use(node).await?)
        })
        .await?;
        let unused = start.elapsed();
        let absent = async || Ok(self.attachment(node).await?.is_none());
        self.must("the VolumeAttachment gone", DETACH, absent)
            .await?;
        Ok((gone, unused, start.elapsed()))
    }

    /// kubelet tries at 0, 0.6, 1.7, 3.8, 8, 16, 32 and 64 s: one event with a growing count.
    async fn mount_back_off(&self) -> Result<Vec<Figure>, CaseError> {
        self.phantom_at_once().await?;
        let enough = async || Ok(self.failed_attempts().await?.count >= ATTEMPTS);
        self.must("the seventh mount attempt", READY, enough)
            .await?;
        let seventh = self.failed_attempts().await?;
        let more = async || Ok(self.failed_attempts().await?.count > ATTEMPTS);
        let eighth = self.within(PAUSE, more).await?.is_some();
        self.heal().await?;
        Ok(vec![
            Figure::seconds(
                "s from the first to the seventh failed attempt",
                seventh.lasted,
                (30.0, 45.0),
            ),
            Figure::exactly("further attempts within 15 s", eighth.into(), 0),
        ])
    }

    /// A cloud detach behind Kubernetes' back is undone: external-attacher publishes the volume to the same node again,
    /// for the same VolumeAttachment (measured: the device is back after 12 to 62 s), and kubelet's next attempt mounts
    /// it (measured: Ready after 42 to 113 s).
    async fn re_publish(&self) -> Result<Vec<Figure>, CaseError> {
        let node = self.phantom_at_once().await?;
        let before = self.attachment(&node).await?.unwrap_or_default();
        let holder = self.holder();
        let start = tokio::time::Instant::now();
        let detach = self.cloud.detach(&self.handle);
        detach.map_err(|e| CaseError::Fixture(format!("the cloud refuses the detach: {e}")))?;
        self.must("the cloud's detach", CLOUD, async || {
            Ok(self.holder().is_none())
        })
        .await?;
        self.must("the volume published again", COMPARE, async || {
            Ok(self.holder().is_some())
        })
        .await?;
        let published = start.elapsed();
        let same_holder = self.holder() == holder;
        let ready = async || self.ready().await;
        self.must(
            "the pod Ready after the volume was published again",
            NEXT_ATTEMPT,
            ready,
        )
        .await?;
        let healed = start.elapsed();
        let after = self.attachment(&node).await?.unwrap_or_default();
        let same =
            text(&after, "/metadata/uid") == text(&before, "/metadata/uid") && !terminating(&after);
        Ok(vec![
            Figure::seconds(
                "s until the volume is published again",
                published,
                (1.0, 80.0),
            ),
            Figure::exactly("times to the same instance", same_holder.into(), 1),
            Figure::exactly("times for the same VolumeAttachment", same.into(), 1),
            Figure::seconds(
                "s until kubelet's next attempt has mounted it",
                healed,
                (3.0, 160.0),
            ),
        ])
    }

    /// `managedFields` names the last writer that changed a field. A writer that sends the value that is there, or that claims
    /// another's name, shows how far that is a proof.
    async fn last_writer(&self) -> Result<Vec<Figure>, CaseError> {
        self.must("the pod Ready at the start", READY, async || {
            self.ready().await
        })
        .await?;
        let note = |value: serde_json::Value| json!({"metadata": {"annotations": {NOTE: value}}});
        let path = ["f:metadata", "f:annotations", &format!("f:{NOTE}")];
        self.write_as("first/1", &note(json!("1"))).await?;
        self.write_as("second/1", &note(json!("1"))).await?;
        let written = self.writers(&path).await?;
        self.write_as("second/1", &note(json!("2"))).await?;
        let changed = self.writers(&path).await?;
        self.write_as("first/1", &note(json!("3"))).await?;
        let claimed = self.writers(&path).await?;
        self.write_as("third/1", &note(serde_json::Value::Null))
            .await?;
        let removed = self.writers(&path).await?;
        let is = |seen: &[String], expected: &str| usize::from(seen == [expected]);
        Ok(vec![
            Figure::exactly("writers: the first one", is(&written, "first/1"), 1),
            Figure::exactly(
                "writers: the one that changed the value",
                is(&changed, "second/1"),
                1,
            ),
            Figure::exactly(
                "writers: the name that the request gives",
                is(&claimed, "first/1"),
                1,
            ),
            Figure::exactly("writers of what was removed", removed.len(), 0),
        ])
    }

    /// After one failed detach the volume is attached elsewhere while the first VolumeAttachment still exists, and only
    /// the driver stops the second attach.
    async fn two_attachments(&self) -> Result<Vec<Figure>, CaseError> {
        let node = self.phantom_at_once().await?;
        (self.unpublish_fails)(true);
        self.close(&node, true).await?;
        let result = self.second_attachment(&node).await;
        (self.unpublish_fails)(false);
        self.close(&node, false).await?;
        let seen = result?;
        self.heal().await?;
        Ok(seen)
    }

    async fn second_attachment(&self, node: &str) -> Result<Vec<Figure>, CaseError> {
        self.delete_pod().await?;
        let two = async || Ok(self.attachments().await?.len() >= 2);
        let after = self
            .must("two VolumeAttachments of one volume", DETACH, two)
            .await?;
        let refusal = async || {
            let second = self
                .attachments()
                .await?
                .into_iter()
                .find(|va| text(va, "/spec/nodeName") != node);
            let said = second.map(|va| text(&va, "/status/attachError/message").to_owned());
            Ok(said.is_some_and(|m| m.contains("is already attached to linode")))
        };
        self.must("the driver's refusal of the second attach", SOON, refusal)
            .await?;
        let first = self.attachment(node).await?.unwrap_or_default();
        let stuck = terminating(&first)
            && first["status"]["attached"] == json!(true)
            && text(&first, "/status/detachError/message").contains("detach volume");
        let old = self.kubelets.get(node).map(|k| k.instance().to_owned());
        Ok(vec![
            Figure::seconds(
                "s until a second VolumeAttachment exists beside the stuck one",
                after,
                (0.5, 30.0),
            ),
            Figure::exactly(
                "VolumeAttachments of the one volume",
                self.attachments().await?.len(),
                2,
            ),
            Figure::exactly(
                "of them attached, being deleted and in error",
                stuck.into(),
                1,
            ),
            Figure::exactly(
                "holders at the cloud that are the first node",
                (self.holder() == old).into(),
                1,
            ),
        ])
    }
}

/// Returns one sentence for each figure in which two clusters disagree.
#[must_use]
pub fn disagreements(case: &str, here: &[Figure], there: &[Figure]) -> Vec<String> {
    let mut all = Vec::new();
    if here.len() != there.len() {
        all.push(format!(
            "{case}: {} figures here, {} there",
            here.len(),
            there.len()
        ));
    }
    for (a, b) in here.iter().zip(there).filter(|(a, b)| !a.agrees(b)) {
        all.push(format!(
            "{case}: {} is {} here; {} is {} there",
            a.what, a.value, b.what, b.value
        ));
    }
    all
}
