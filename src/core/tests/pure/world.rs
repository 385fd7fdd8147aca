//! A tiny pure model of the world around one recovery: a workload, its pod, kubelet's status tick, the
//! VolumeAttachment and its two controllers, and the cloud. It behaves as `kubernetes-behaviour` measured, no finer.

use jiff::{SignedDuration, Timestamp};
use reattach_core::cloud::{CloudJob, JobKind, JobStatus};
use reattach_core::evidence::{Evidence, PodFacts};
use reattach_core::fact::{Fact, Known};
use reattach_core::ids::Uid;
use reattach_core::journal::Outcome;
use reattach_core::plan::SoundPlan;
use reattach_core::run::Effect;
use reattach_core::stamp::Stamp;
use reattach_core::testkit::{Case, INSTANCE, NODE, attachment, start, volume_name};
use std::sync::OnceLock;

/// A pod of the workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pod {
    pub number: u32,
    pub deleting: bool,
    pub ready_since: Option<i64>,
    /// It carries our scheduling gate and is bound to no node.
    pub gated: bool,
}

/// The VolumeAttachment of the node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Va {
    pub number: u32,
    pub attached: bool,
    pub deleting: bool,
    pub error: bool,
    pub version: u32,
}

/// What the annotation on the workload is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Mark {
    None,
    Ours,
    /// Ours, with another count.
    Recounted,
    Edited,
    Another,
}

/// The whole world. Times are seconds from the start.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub now: i64,
    /// The runbook holds by admission instead of scaling to zero.
    pub by_gate: bool,
    /// The label of the hold is on: new pods are gated.
    pub hold: bool,
    pub replicas: i32,
    pub stamp: Mark,
    pub version: u32,
    pub pod: Option<Pod>,
    pub in_use: bool,
    pub volumes_attached: bool,
    pub lease: i64,
    pub boot: u32,
    pub va: Option<Va>,
    pub held: bool,
    pub device: bool,
    /// A detach job at the cloud, by whom and when it ends.
    pub job: Option<(Issuer, i64)>,
    /// Detach jobs that have ended: the cloud's history goes back to the start.
    pub ended: u32,
    /// An attach by the CSI driver ends then.
    pub attaching: Option<i64>,
    /// ControllerUnpublish fails while the cloud names a holder.
    pub unpublish_fails: bool,
    /// How long a detach takes at the cloud.
    pub cloud_lag: i64,
    /// The cloud's API does not answer.
    pub outage: bool,
    /// Cloud detaches of ours that were accepted.
    pub detaches: u32,
    pub pods_made: u32,
    pub records_made: u32,
    /// Facts of these kinds are not readable at the moment.
    pub blind: Blind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Issuer {
    Us,
    Kubernetes,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Blind {
    pub workload: bool,
    pub volume: bool,
    pub node: bool,
    pub attachments: bool,
    pub pods: bool,
}

fn base() -> &'static Case {
    static BASE: OnceLock<Case> = OnceLock::new();
    BASE.get_or_init(|| Case::deployment().holdable())
}

/// The plan by the founding runbook.
pub fn plan() -> &'static SoundPlan {
    static PLAN: OnceLock<SoundPlan> = OnceLock::new();
    PLAN.get_or_init(|| {
        base()
            .plan()
            .expect("the phantom is plannable")
            .sound()
            .expect("its hash")
    })
}

/// The plan by the runbook that holds.
pub fn hold_plan() -> &'static SoundPlan {
    static PLAN: OnceLock<SoundPlan> = OnceLock::new();
    PLAN.get_or_init(|| {
        base()
            .plan_by("lightest-first", None, false)
            .expect("the phantom can be held")
            .sound()
            .expect("its hash")
    })
}

/// Seconds as a moment.
pub fn at(seconds: i64) -> Timestamp {
    start() + SignedDuration::from_secs(seconds)
}

fn present<T>(fact: &mut Fact<T>, now: Timestamp) -> &mut T {
    fact.at = now;
    match &mut fact.value {
        Known::Present(value) => value,
        _ => panic!("the base has every fact"),
    }
}

fn blind<T>(fact: &mut Fact<T>, is: bool) {
    if is {
        fact.value = Known::Unknown {
            why: "the API server timed out".into(),
        };
    }
}

impl World {
    /// A phantom, with a CSI driver that can detach or cannot.
    pub fn new(unpublish_fails: bool) -> Self {
        Self {
            now: 0,
            by_gate: false,
            hold: false,
            replicas: 1,
            stamp: Mark::None,
            version: 100,
            pod: Some(Pod {
                number: 1,
                deleting: false,
                ready_since: None,
                gated: false,
            }),
            in_use: true,
            volumes_attached: true,
            lease: 0,
            boot: 1,
            va: Some(Va {
                number: 1,
                attached: true,
                deleting: false,
                error: false,
                version: 50,
            }),
            held: true,
            device: false,
            job: None,
            ended: 0,
            attaching: None,
            unpublish_fails,
            cloud_lag: 2,
            outage: false,
            detaches: 0,
            pods_made: 1,
            records_made: 1,
            blind: Blind::default(),
        }
    }

    /// The same for the runbook that holds.
    pub fn held_by_gate(unpublish_fails: bool) -> Self {
        Self {
            by_gate: true,
            ..Self::new(unpublish_fails)
        }
    }

    /// The plan of this world's run.
    pub fn plan(&self) -> &'static SoundPlan {
        if self.by_gate { hold_plan() } else { plan() }
    }

    /// A pod that is on a node.
    fn bound(&self) -> Option<&Pod> {
        self.pod.as_ref().filter(|p| !p.gated)
    }

    /// Whether the first VolumeAttachment is still there.
    pub fn old_record(&self) -> bool {
        self.va.as_ref().is_some_and(|v| v.number == 1)
    }

    /// Whether the workload is as it was and the volume is in a healthy pod.
    pub fn healed(&self) -> bool {
        self.replicas == 1
            && self.stamp == Mark::None
            && !self.hold
            && self.device
            && self.pod.as_ref().is_some_and(|p| p.ready_since.is_some())
    }

    fn pod_facts(&self, pod: &Pod) -> PodFacts {
        let mut facts = base().evidence.pods.shown().unwrap()[0].clone();
        facts.uid = Uid::new(format!("pod-{}", pod.number));
        facts.ready = pod.ready_since.is_some();
        facts.ready_since = pod.ready_since.map(at);
        facts.deleting_since = pod.deleting.then(|| at(0));
        if pod.gated {
            (facts.held, facts.node) = (true, None);
        }
        facts
    }

    /// What a collector reads now.
    pub fn evidence(&self) -> Evidence {
        let now = at(self.now);
        let mut e = base().evidence.clone();
        e.collected_at = now;
        present(&mut e.claim, now);
        present(&mut e.volume, now);
        let pods: Vec<PodFacts> = self.pod.iter().map(|p| self.pod_facts(p)).collect();
        present(&mut e.pods, now).clone_from(&pods);
        let w = present(&mut e.workload, now);
        w.replicas = self.replicas;
        w.resource_version = self.version.to_string().into();
        w.pods = pods;
        w.dry_run_held = Some(self.hold);
        let stamp = |recovery: Uid| Stamp {
            replicas: 1,
            workload: "workload-1".into(),
            recovery,
            at: at(0),
        };
        w.stamp = match self.stamp {
            Mark::None => None,
            Mark::Ours => Some(Ok(stamp(Case::recovery()))),
            Mark::Recounted => Some(Ok(Stamp {
                replicas: 5_000,
                ..stamp(Case::recovery())
            })),
            Mark::Another => Some(Ok(stamp("recovery-2".into()))),
            Mark::Edited => Some(Err("annotation is not a stamp of ours".into())),
        };
        present(&mut e.attachments, now).clear();
        if let Some(va) = &self.va {
            let mut facts = attachment("csi-redis-1", NODE);
            if va.number > 1 {
                facts.uid = format!("uid-{}", va.number).into();
            }
            facts.attached = va.attached;
            facts.deleting_since = va.deleting.then(|| at(0));
            facts.detach_error = va.error.then(|| "Unpublish failed".to_owned());
            facts.resource_version = va.version.to_string().into();
            present(&mut e.attachments, now).push(facts);
        }
        e.hold_policy.iter_mut().for_each(|fact| fact.at = now);
        e.mandate.iter_mut().for_each(|fact| fact.at = now);
        let node = present(e.nodes.get_mut(&NODE.into()).unwrap(), now);
        node.volumes_in_use = if self.in_use {
            vec![volume_name()]
        } else {
            Vec::new()
        };
        node.volumes_attached = if self.volumes_attached {
            vec![volume_name()]
        } else {
            Vec::new()
        };
        node.lease_renewed = Some(at(self.lease - 4));
        if self.boot > 1 {
            node.boot_id = format!("boot-{}", self.boot).into();
        }
        present(&mut e.cloud_volume, now).holders = if self.held {
            vec![INSTANCE.into()]
        } else {
            Vec::new()
        };
        let jobs = present(&mut e.jobs, now);
        let pending = self.job.iter().map(|_| JobStatus::Started);
        let statuses = (0..self.ended).map(|_| JobStatus::Finished).chain(pending);
        jobs.extend(statuses.enumerate().map(|(number, status)| CloudJob {
            id: number.to_string(),
            kind: JobKind::Detach,
            action: "volume_detach".into(),
            status,
            volume: Some("5551".into()),
            instance: Some(INSTANCE.into()),
            created: now,
        }));
        present(&mut e.identity, now);
        present(&mut e.machines, now);
        blind(&mut e.cloud_volume, self.outage);
        blind(&mut e.jobs, self.outage);
        blind(&mut e.workload, self.blind.workload);
        blind(&mut e.volume, self.blind.volume);
        blind(&mut e.attachments, self.blind.attachments);
        blind(&mut e.pods, self.blind.pods);
        blind(e.nodes.get_mut(&NODE.into()).unwrap(), self.blind.node);
        e
    }

    /// An effect arrives at its target. Errors are broken promises.
    pub fn issue(&mut self, effect: &Effect, unwinding: bool) -> Result<Outcome, String> {
        let conflict = || {
            Ok(Outcome::NotApplied {
                why: "409".into(),
                retry: true,
            })
        };
        let applied = || {
            Ok(Outcome::Applied {
                detail: "200".into(),
            })
        };
        match effect {
            Effect::ScaleToZero {
                resource_version,
                stamp,
                ..
            } => {
                if resource_version.as_str() != self.version.to_string() {
                    return conflict();
                }
                if stamp.replicas != 1 || stamp.recovery != Case::recovery() {
                    return Err(format!("a stamp that does not restore: {stamp:?}"));
                }
                self.replicas = 0;
                self.stamp = Mark::Ours;
                self.version += 1;
                applied()
            }
            Effect::Restore {
                resource_version,
                replicas,
                ..
            } => {
                if resource_version.as_str() != self.version.to_string() {
                    return conflict();
                }
                if !matches!(self.stamp, Mark::Ours | Mark::Recounted) {
                    return Err("restored without an intact stamp".into());
                }
                if let Some(count) = replicas {
                    if *count != 1 || self.replicas != 0 {
                        return Err(format!("restored {} to {count}", self.replicas));
                    }
                    if matches!(self.job, Some((Issuer::Us, _))) {
                        return Err("restored while our cloud detach is in flight".into());
                    }
                    if !unwinding && (self.old_record() || self.held) {
                        return Err(
                            "restored before the VolumeAttachment was gone and the cloud had let go".into()
                        );
                    }
                    self.replicas = *count;
                }
                self.stamp = Mark::None;
                self.version += 1;
                applied()
            }
            Effect::CloudForce { .. }
            | Effect::Snapshot { .. }
            | Effect::PowerOff { .. }
            | Effect::PowerOn { .. }
            | Effect::KeepOff { .. }
            | Effect::LetBoot { .. }
            | Effect::TaintOutOfService { .. }
            | Effect::Untaint { .. }
            | Effect::Quarantine { .. }
            | Effect::CloseNode { .. }
            | Effect::OpenNode { .. }
            | Effect::Challenge { .. }
            | Effect::DeleteAttachment { .. } => {
                Err(format!("{effect:?} has no place in class B's world"))
            }
            Effect::CloudDetach { proof } => {
                if proof.holder().as_str() != INSTANCE || proof.volume().as_str() != "5551" {
                    return Err("a detach of something else".into());
                }
                if matches!(self.job, Some((Issuer::Us, _))) {
                    return Err("two cloud detaches in flight".into());
                }
                if self.bound().is_some() || self.in_use {
                    return Err("a cloud detach under a user".into());
                }
                if !self.held {
                    return Ok(Outcome::NotApplied {
                        why: "not attached".into(),
                        retry: false,
                    });
                }
                self.detaches += 1;
                self.job = Some((Issuer::Us, self.now + self.cloud_lag));
                applied()
            }
            Effect::Hold => {
                self.hold = true;
                applied()
            }
            Effect::Release { uid, .. } | Effect::DeletePod { uid, .. } => match &mut self.pod {
                Some(pod) if uid.as_str() == format!("pod-{}", pod.number) => {
                    if !self.hold {
                        return Err("a pod evicted while another may come".into());
                    }
                    if pod.gated || pod.ready_since.is_some() {
                        return Err(format!("evicted {pod:?}"));
                    }
                    pod.deleting = true;
                    applied()
                }
                _ => conflict(),
            },
            Effect::Lift { pods } => {
                if matches!(self.job, Some((Issuer::Us, _))) {
                    return Err("lifted while our cloud detach is in flight".into());
                }
                if !unwinding && self.hold && (self.old_record() || self.held) {
                    return Err(
                        "lifted before the VolumeAttachment was gone and the cloud had let go"
                            .into(),
                    );
                }
                self.hold = false;
                if let Some(pod) = &mut self.pod {
                    let named = pods
                        .iter()
                        .any(|(_, uid)| uid.as_str() == format!("pod-{}", pod.number));
                    pod.gated &= !named;
                }
                applied()
            }
            Effect::Requeue {
                uid,
                resource_version,
                ..
            } => match &mut self.va {
                Some(va)
                    if va.version.to_string() == resource_version.as_str()
                        && uid.as_str() == "uid-csi-redis-1"
                        && va.number == 1 =>
                {
                    va.version += 1;
                    va.error = false;
                    applied()
                }
                _ => conflict(),
            },
        }
    }

    /// The pod's next step of life: deleted at zero, made at one.
    pub fn workload_controller(&mut self) {
        match (&mut self.pod, self.replicas) {
            (Some(pod), _) if pod.deleting => self.pod = None,
            (Some(pod), 0) => pod.deleting = true,
            (None, 1..) => {
                self.pods_made += 1;
                let gated = self.hold;
                self.pod = Some(Pod {
                    number: self.pods_made,
                    deleting: false,
                    ready_since: None,
                    gated,
                });
            }
            _ => {}
        }
    }

    /// kubelet's tick of 10 s: what it uses, and its Lease.
    pub fn kubelet_tick(&mut self) {
        self.in_use = self.bound().is_some();
        self.lease = self.now;
    }

    /// The attach/detach controller.
    pub fn attach_detach_controller(&mut self) {
        if self.bound().is_none() && !self.in_use {
            if let Some(va) = &mut self.va {
                va.deleting = true;
                self.volumes_attached = false;
            }
        } else if self.bound().is_some() && self.va.is_none() {
            self.records_made += 1;
            self.va = Some(Va {
                number: self.records_made,
                attached: false,
                deleting: false,
                error: false,
                version: 50,
            });
        }
    }

    /// external-attacher with the CSI driver.
    pub fn attacher(&mut self) {
        let Some(va) = &mut self.va else { return };
        if va.deleting && self.held {
            if self.unpublish_fails {
                va.error = true;
            } else if self.job.is_none() {
                self.job = Some((Issuer::Kubernetes, self.now + self.cloud_lag));
            }
        } else if va.deleting && !va.error {
            self.va = None;
        } else if !va.attached && !va.deleting && self.attaching.is_none() && self.job.is_none() {
            self.attaching = Some(self.now + self.cloud_lag);
        }
    }

    /// The cloud finishes what is due.
    pub fn cloud(&mut self) {
        if self.job.is_some_and(|(_, end)| end <= self.now) {
            self.job = None;
            self.ended += 1;
            self.held = false;
            self.device = false;
        }
        if self.attaching.is_some_and(|end| end <= self.now) {
            self.attaching = None;
            if let Some(va) = &mut self.va {
                va.attached = true;
                (self.held, self.device, self.volumes_attached) = (true, true, true);
            }
        }
    }

    /// kubelet mounts what may be mounted.
    pub fn mount(&mut self) {
        let ready = self.device
            && self.in_use
            && self.volumes_attached
            && self.va.as_ref().is_some_and(|v| v.attached && !v.deleting);
        let now = self.now;
        if let Some(pod) = self
            .pod
            .as_mut()
            .filter(|p| ready && !p.gated && !p.deleting && p.ready_since.is_none())
        {
            pod.ready_since = Some(now);
        }
    }

    /// One second passes.
    pub fn second(&mut self) {
        self.now += 1;
        self.cloud();
        self.attacher();
        self.attach_detach_controller();
        if self.now % 10 == 0 {
            self.kubelet_tick();
        }
        // The attacher's own retry, at its longest back-off.
        if self.now % 300 == 0 {
            self.va.iter_mut().for_each(|v| v.error = false);
        }
        self.workload_controller();
        self.mount();
    }
}
