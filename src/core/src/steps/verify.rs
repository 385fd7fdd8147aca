//! Verify: the end of every order, whether the pod is Ready with its volume and exactly one holder, or what is left.

use super::StepKind;
use super::cx::StepCx;
use super::spec::{Describe, EffectClass, Lost, Role, StepSpec, Words};
use crate::diagnosis::{Verdict, diagnose};
use crate::evidence::PodFacts;
use crate::ids::InstanceId;
use crate::journal::{End, Event};
use crate::loss::PodsGo;
use crate::plan::Releases;
use crate::run::Next;
use crate::run::pace::{later, wait};
use jiff::SignedDuration;

/// How long a pod must have been Ready before the run counts as recovered.
const SETTLED: SignedDuration = SignedDuration::from_secs(3);

/// Two of external-attacher's reconciliations, which put an attachment right where the driver tells which nodes have the
/// volume, and the device's time to appear. Source: external-attacher, flag `--reconcile-sync`, 1 min.
const ATTACHER_SYNCS: SignedDuration = SignedDuration::from_secs(150);

pub(super) const SPEC: StepSpec = StepSpec {
    kind: StepKind::Verify,
    title: "verify",
    colour: "verify",
    role: Role::Verifies,
    effect_class: EffectClass::Repeatable,
    lost: Lost::NoEffect,
    frees: false,
    pods_go: PodsGo::None,
    repeats: false,
    undone_by: None,
    starts_work: false,
    goes_on: false,
    reaches_node: false,
    locks_node: false,
    patient: false,
    available_if: |_| true,
    describe,
    next: |cx| cx.verify(),
};

fn describe(d: &Describe<'_>) -> Words {
    Words {
        what: "wait until the pod is Ready with the volume".to_owned(),
        precondition: "none",
        command: d.watch_pods(),
        risk: "a pod that stays unready for another reason ends the run as failed, with the workload restored",
        observed_by: "pod Ready for 3 s, one holder, the pinned identity and size",
    }
}

impl StepCx<'_> {
    pub(crate) fn verify(&self) -> Next {
        let (Some(pods), Some(cloud), Some(attachments)) = (
            self.evidence.pods().ok(),
            self.evidence.cloud_volume().ok(),
            self.evidence.attachments().ok(),
        ) else {
            return self.poll("pods, cloud and VolumeAttachments must be read");
        };
        let pins = &self.plan.pins;
        if cloud.identity != pins.identity || cloud.size_gib != pins.size_gib {
            return self.failed("the cloud volume's identity or size is not the pinned one");
        }
        // A pod of before may be Ready on a dead mount, or where the volume was.
        let counts = |p: &PodFacts| {
            let new = !pins.pods.iter().any(|(_, old)| *old == p.uid);
            let waited_elsewhere = || self.instance_of(p).is_some_and(|i| *i != pins.holder);
            new || self.plan.releases() == Releases::OldHolder && waited_elsewhere()
        };
        let Some(pod) = pods
            .iter()
            .find(|p| p.ready && p.deleting_since.is_none() && counts(p))
        else {
            return self
                .another_trouble()
                .unwrap_or_else(|| self.poll("no pod of the claim is Ready"));
        };
        let instance = self.instance_of(pod);
        let attached = attachments.iter().any(|a| {
            Some(&a.node) == pod.node.as_ref() && a.attached && a.deleting_since.is_none()
        });
        if !attached || instance.is_none() || cloud.holders.iter().ne(instance) {
            return self.poll(
                "the pod is Ready; its node must be the only holder by Kubernetes and by the cloud",
            );
        }
        let settled = later(pod.ready_since.unwrap_or(self.cx.now), SETTLED);
        if self.cx.now < settled && !self.is_settled_by_its_node(pod) {
            let soon = later(self.cx.now, SETTLED);
            return wait(format!("pod {} is Ready", pod.name), settled.min(soon));
        }
        self.completed(&format!(
            "pod {} is Ready on {} with the volume",
            pod.name,
            pod.node.as_ref().map_or("", |n| n.as_str())
        ))
    }

    /// Whether the pod has been Ready for long enough by the clock of its own node, on which kubelet renews its Lease. A
    /// node whose clock is ahead of ours would otherwise have us wait until the deadline.
    fn is_settled_by_its_node(&self, pod: &PodFacts) -> bool {
        let node = pod.node.as_ref().and_then(|n| self.evidence.node(n).ok());
        let renewed = node.and_then(|n| n.lease_renewed);
        renewed
            .zip(pod.ready_since)
            .is_some_and(|(renewed, since)| renewed >= later(since, SETTLED))
    }

    /// The old holder may have let go and the pod still not get the volume, such as where its own node has the old one's
    /// name and a VolumeAttachment that calls the volume attached: trouble of another class, with an order of its own.
    fn another_trouble(&self) -> Option<Next> {
        if self.cx.now < later(self.entered, ATTACHER_SYNCS) {
            return None;
        }
        let Verdict::Ours { trouble } = diagnose(self.evidence).verdict else {
            return None;
        };
        if trouble.class() == self.plan.class() {
            return None;
        }
        let why = format!(
            "the original problem is fixed; a different one remains and gets its own recovery: {trouble}"
        );
        Some(Next::Record(Event::Ended {
            end: End::Failed { why },
        }))
    }

    fn instance_of(&self, pod: &PodFacts) -> Option<&InstanceId> {
        let node = pod.node.as_ref().and_then(|n| self.evidence.node(n).ok());
        node.and_then(|n| n.instance.as_ref())
    }
}
