//! CloudDetach: detach at the cloud, with a proof, when Kubernetes' own detach is stuck. What it shares with CloudForce stands
//! here.

use super::StepKind;
use super::cx::StepCx;
use super::spec::{Describe, EffectClass, Lost, Role, StepSpec, Words};
use crate::cloud::{CloudJob, VolumeState};
use crate::fact::Missing;
use crate::journal::Outcome;
use crate::loss::PodsGo;
use crate::plan::general;
use crate::run::orders::Fate;
use crate::run::pace::{BUSY, later};
use crate::run::reconcile::{lost, unreachable};
use crate::run::{Action, Effect, Next, StepState};
use jiff::{SignedDuration, Timestamp};

/// A plain detach has so long before a forced one takes over, where the plan has one.
const PLAIN_FOR: SignedDuration = SignedDuration::from_secs(60);

pub(super) const SPEC: StepSpec = StepSpec {
    kind: StepKind::CloudDetach,
    title: "detach at the cloud",
    colour: "cloud",
    role: Role::Acts,
    effect_class: EffectClass::Once,
    lost: Lost::Order(|cx, started| cx.detached(started)),
    frees: true,
    pods_go: PodsGo::None,
    repeats: false,
    undone_by: None,
    starts_work: true,
    goes_on: false,
    reaches_node: false,
    locks_node: false,
    patient: false,
    available_if: |a| a.detaches,
    describe,
    next: |cx| cx.cloud_detach(),
};

fn describe(d: &Describe<'_>) -> Words {
    Words {
        what: format!(
            "if Kubernetes' own detach is stuck: detach volume {} from instance {} at the cloud",
            d.pins.volume, d.pins.holder
        ),
        precondition: "kubelet reports, after the last pod ended, that it does not use the volume; the VolumeAttachment is being deleted; the cloud still names this instance, read again",
        command: d.commands.detach.to_owned(),
        risk: "a cloud that is busy or has locked the volume refuses; the workload is then put back as it was and a person paged",
        observed_by: "no holder, and no job pending on the volume",
    }
}

impl StepCx<'_> {
    pub(crate) fn cloud_detach(&self) -> Next {
        self.detach_at_the_cloud(false)
    }

    pub(super) fn detach_at_the_cloud(&self, force: bool) -> Next {
        if let Some(taken) = self.taken_over() {
            return taken;
        }
        let Ok(cloud) = self.evidence.cloud_volume() else {
            return self.poll("the cloud must be read");
        };
        let pending = match self.evidence.jobs().ok() {
            Some(jobs) => jobs.iter().any(CloudJob::is_pending),
            None => return self.poll("the provider's job history must be read"),
        };
        let forced_next = self
            .plan
            .find(StepKind::CloudForce)
            .is_some_and(|f| f > self.ix);
        match self.state.step(self.ix) {
            StepState::Issued { outcome, at, .. } if outcome.applied() => {
                return if self.cloud_is_free(cloud) && !pending {
                    self.completed("the cloud names no holder and no job is pending")
                } else if forced_next && self.cx.now >= later(*at, PLAIN_FOR) {
                    self.skipped(&format!(
                        "the plain detach has not ended after {} s",
                        PLAIN_FOR.as_secs()
                    ))
                } else {
                    self.poll("the cloud's detach is under way")
                };
            }
            StepState::Issued {
                outcome: Outcome::NotApplied { why, retry: false },
                ..
            } => {
                return self.failed(why);
            }
            _ => {}
        }
        if let Some(pause) = self.before_retry(self.ix, "the detach", BUSY) {
            return pause;
        }
        if self.cloud_is_free(cloud) && !pending {
            return self.skipped("the cloud names no holder already");
        }
        // A plain detach that does not end is what a forced one is for; it may be the driver's.
        if pending && !force {
            let hangs = cloud.state == VolumeState::Detaching
                && self.cx.now >= later(self.entered, PLAIN_FOR);
            if forced_next && hangs {
                let why = "a detach by another client has been under way for more than";
                return self.skipped(&format!("{why} {} s", PLAIN_FOR.as_secs()));
            }
            return self.poll("a job on the volume is pending at the provider");
        }
        self.propose_detach(force)
    }

    /// What comes next where a detach is due: the detach, if nothing stands against it.
    pub(crate) fn propose_detach(&self, force: bool) -> Next {
        let pins = &self.plan.pins;
        let Ok(attachments) = self.evidence.attachments() else {
            return self.poll("the VolumeAttachments must be read");
        };
        // One that is not going would be published again by external-attacher (measured).
        if let Some(va) = self
            .old_records(attachments)
            .iter()
            .find(|a| a.deleting_since.is_none())
        {
            return self.poll(&format!(
                "VolumeAttachment {} is not being deleted yet",
                va.name
            ));
        }
        if let Some(other) = general(self.evidence, &self.scope()).first() {
            return self.poll(&other.to_string());
        }
        if let Some(change) = self.boot_change() {
            return self.refused(&change);
        }
        if let Some(line) = self.user_again().or_else(|| self.handshake_begins()) {
            return line;
        }
        if let Some(not_held) = self.no_pod_may_come() {
            return not_held;
        }
        match self.proof() {
            Ok(proof) if force && !proof.shows_off_or_gone() => self
                .skipped("only an instance that is proven off or gone may lose a volume by force"),
            Ok(proof) => Next::Act(Action {
                step: self.ix,
                intent: format!(
                    "detach volume {} from instance {} at the cloud{}",
                    pins.volume,
                    pins.holder,
                    if force { " by force" } else { "" }
                ),
                effect: if force {
                    Effect::CloudForce { proof }
                } else {
                    Effect::CloudDetach { proof }
                },
            }),
            Err(missing) => self.asks_again().unwrap_or_else(|| self.poll(&missing)),
        }
    }

    /// What became of a detach whose reply was lost: the cloud's history shows it. The holder alone does not: a request that is
    /// still on its way would be carried out on the next holder.
    pub(crate) fn detached(&self, started: Timestamp) -> Next {
        let known = match self.fate_of_detach(self.ix, started) {
            Fate::Unread(what) => return self.poll(what),
            Fate::Unreachable => return self.poll(&unreachable("the detach")),
            Fate::Pending => return self.poll("a job on the volume is pending at the provider"),
            Fate::Unseen => return self.poll(&lost("the detach")),
            Fate::Ended { seen, .. } | Fate::Over(seen) => seen,
        };
        let (free, says) = match self.evidence.cloud_volume() {
            // What was read is another volume's.
            _ if self.is_unreachable() => (false, "the cloud could not be asked"),
            Ok(volume) if volume.holders.contains(&self.plan.pins.holder) => {
                (false, "the cloud still names the holder")
            }
            Ok(_) => (true, "the cloud no longer names the holder"),
            Err(Missing::Absent) => (true, "the cloud has no such volume"),
            Err(_) => (false, "the cloud could not be asked"),
        };
        self.observed(free, &format!("{known}; {says}"))
    }
}
