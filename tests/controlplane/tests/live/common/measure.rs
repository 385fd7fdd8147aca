//! How long a recovery took, whose time it was, and whether each effect was journaled first.

use super::Stage;
use super::logs::{AGENT, CONTROLLER, hold_label, is_workload, journal, line, replicas};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use reattach_api::VolumeRecovery;
use reattach_cloud_simulator::{JobAction, VolumeNo};
use reattach_core::plan::Plan;
use reattach_core::runbook::Holding;
use reattach_tests_controlplane::{AuditEvent, say};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Between the end of an answer and its line in the audit log some time may pass; a client may be quicker than that.
const AUDIT_LAG: SignedDuration = SignedDuration::from_millis(5);

/// The moments of one healed volume, all from the audit log.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// The claim.
    pub claim: String,
    /// The agent's answer to this recovery's challenge was stored.
    pub fact: Timestamp,
    /// We asked for zero replicas, or for the eviction of the stuck pod.
    pub begun: Timestamp,
    /// external-attacher took its finalizer off the VolumeAttachment: it is gone.
    pub gone: Timestamp,
    /// We asked for the old count, or for the end of the hold.
    pub restored: Timestamp,
    /// kubelet's report that the pod is Ready was stored.
    pub ready: Timestamp,
    /// Duration of the cloud's own jobs on the volume between `fact` and `ready`.
    pub cloud: SignedDuration,
}

impl Timeline {
    /// From the deciding fact to the Ready pod, less the cloud's own time.
    pub fn whole(&self) -> SignedDuration {
        self.ready.duration_since(self.fact) - self.cloud
    }

    /// Kubernetes' own detach: from the eviction until the VolumeAttachment is gone, the cloud's time for it included.
    pub fn detach(&self) -> SignedDuration {
        self.gone.duration_since(self.begun)
    }

    /// Our own share: until the stuck pod has to go, and from the moment at which nothing stands in the way until pods may
    /// come again.
    pub fn own(&self) -> SignedDuration {
        self.begun.duration_since(self.fact) + self.restored.duration_since(self.gone)
    }
}

/// Whether this run has the machine to itself (`tests/run --deep`): what is measured is then held against the goal.
pub fn by_itself() -> bool {
    std::env::var_os("REATTACH_DEEP").is_some()
}

/// Duration of a small write at the API server, sampled all the time: tests that compute meanwhile slow everything down, and this
/// says how much.
pub struct Pace {
    samples: Arc<Mutex<Vec<SignedDuration>>>,
    task: tokio::task::AbortHandle,
}

impl Pace {
    /// Duration of that write on an idle machine with two processors.
    const IDLE: SignedDuration = SignedDuration::from_millis(10);

    /// Begins to sample, with writes on an object of the stage's own.
    pub fn start(stage: &Stage) -> Self {
        let api: Api<ConfigMap> = Api::namespaced(stage.admin.clone(), "default");
        let name = format!("pace-{}", stage.name.as_deref().unwrap_or("own"));
        let samples = Arc::new(Mutex::new(Vec::new()));
        let kept = samples.clone();
        let sampling = async move {
            let apply = PatchParams::apply("pace").force();
            for count in 0_u64.. {
                let data = json!({"count": count.to_string()});
                let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data});
                let began = Instant::now();
                match api.patch(&name, &apply, &Patch::Apply(&object)).await {
                    Ok(_) => {
                        let took = SignedDuration::try_from(began.elapsed()).expect("a short time");
                        kept.lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(took);
                    }
                    // A cluster that was taken down answers nothing more.
                    Err(error) => say!("the pace of writes: {error}"),
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        Self {
            samples,
            task: tokio::spawn(sampling).abort_handle(),
        }
    }

    /// How many times as long as on an idle machine a write took.
    fn slower(&self) -> i32 {
        let samples = self
            .samples
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        assert!(!samples.is_empty(), "no write of the pace came through");
        let (count, middle) = (samples.len(), median(samples));
        let times = (middle.as_secs_f64() / Self::IDLE.as_secs_f64())
            .ceil()
            .max(1.0);
        say!(
            "a write took {:.3} s, the median of {count}",
            middle.as_secs_f64()
        );
        times as i32
    }

    /// Asserts that something took no longer than its goal. Where other tests compute meanwhile it may take ten times as long
    /// for each time that a write is slower than on an idle machine.
    pub fn at_most(&self, what: &str, took: SignedDuration, goal: SignedDuration) {
        let limit = if by_itself() {
            goal
        } else {
            goal * 10 * self.slower()
        };
        say!(
            "{what}: {:.2} s, the goal is {goal:#}, the limit of this run {limit:#}",
            took.as_secs_f64()
        );
        assert!(took < limit, "{what}: {took:#}");
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The middle of some durations; of an even number the greater one.
pub fn median(mut all: Vec<SignedDuration>) -> SignedDuration {
    all.sort();
    all[all.len() / 2]
}

/// Prints one line per volume and median and maximum; gives the medians of the whole and of our own share.
pub fn summary(timelines: &[Timeline]) -> (SignedDuration, SignedDuration) {
    for t in timelines {
        let (whole, own) = (t.whole().as_secs_f64(), t.own().as_secs_f64());
        let (down, detach) = (t.begun.duration_since(t.fact), t.detach());
        let back = t.restored.duration_since(t.gone);
        say!(
            "{:>16}: {whole:5.1} s without the cloud's {:.1} s; ours {own:.3} s (to the first effect on the pod {:.3}, detached after {:.1}, to letting pods come {:.3})",
            t.claim,
            t.cloud.as_secs_f64(),
            down.as_secs_f64(),
            detach.as_secs_f64(),
            back.as_secs_f64(),
        );
    }
    let all = |of: fn(&Timeline) -> SignedDuration| timelines.iter().map(of).collect::<Vec<_>>();
    let (whole, own) = (all(Timeline::whole), all(Timeline::own));
    let max = |d: &[SignedDuration]| d.iter().max().map_or(0.0, SignedDuration::as_secs_f64);
    let (whole_max, own_max) = (max(&whole), max(&own));
    let (whole, own) = (median(whole), median(own));
    say!(
        "deciding fact to Ready, less the cloud's time: median {:.1} s, max {whole_max:.1} s; our own share: median {:.3} s, max {own_max:.3} s ({} volumes)",
        whole.as_secs_f64(),
        own.as_secs_f64(),
        timelines.len(),
    );
    (whole, own)
}

fn plan(recovery: &VolumeRecovery) -> &Plan {
    recovery
        .history()
        .expect("it can be read")
        .0
        .expect("a plan")
}

impl Stage {
    /// The timeline of a recovery that healed `volume`; `pod` is the pod that came back.
    pub fn timeline(&self, recovery: &VolumeRecovery, volume: VolumeNo, pod: &str) -> Timeline {
        let events = self.audit();
        let (plan, uid) = (plan(recovery), recovery.uid().expect("a UID"));
        let workload = plan.pins.workload.name.name.as_str();
        let held = plan.holding() == Holding::ByGate;
        let begun = match held {
            true => evictions(&events, recovery, plan).next(),
            false => ours_on(&events, recovery, workload).find(|e| replicas(e) == Some(0)),
        };
        let begun = begun.expect("the stuck pod had to go").received;
        let restored =
            match held {
                true => labellings(&events, recovery)
                    .find(|e| hold_label(e).is_some_and(Value::is_null)),
                false => ours_on(&events, recovery, workload)
                    .find(|e| replicas(e).is_some_and(|n| n > 0)),
            };
        let restored = restored.expect("pods were let come again").received;
        let answers = |e: &&AuditEvent| {
            let list = e
                .body
                .as_ref()
                .and_then(|b| b.pointer("/status/answers"))
                .and_then(Value::as_array);
            e.user == AGENT
                && e.took_effect()
                && list.is_some_and(|l| l.iter().any(|a| a["recovery"] == uid.as_str()))
        };
        let fact = events
            .iter()
            .find(answers)
            .expect("the agent answered")
            .reached;
        let released = |e: &&AuditEvent| {
            e.resource == "volumeattachments"
                && e.name.as_deref() == Some(plan.pins.attachment_name())
                && e.user.ends_with("csi-attacher")
                && e.subresource.is_none()
                && e.took_effect()
                && e.reached <= restored + AUDIT_LAG
        };
        let gone = events
            .iter()
            .filter(released)
            .map(|e| e.reached)
            .max()
            .expect("the VolumeAttachment went");
        let became_ready = |e: &&AuditEvent| {
            let conditions = e
                .body
                .as_ref()
                .and_then(|b| b.pointer("/status/conditions"))
                .and_then(Value::as_array);
            e.resource == "pods"
                && e.subresource.as_deref() == Some("status")
                && e.name.as_deref() == Some(pod)
                && e.namespace == recovery.namespace()
                && e.took_effect()
                && e.received > restored
                && conditions.is_some_and(|c| {
                    c.iter()
                        .any(|c| c["type"] == "Ready" && c["status"] == "True")
                })
        };
        let ready = events
            .iter()
            .find(became_ready)
            .expect("the pod became Ready")
            .reached;
        let of_the_volume =
            |action| matches!(action, JobAction::VolumeDetach | JobAction::VolumeAttach);
        let jobs = self
            .cloud
            .jobs()
            .into_iter()
            .filter(|j| j.volume == Some(volume) && of_the_volume(j.action));
        let within = jobs.filter(|j| j.created >= fact && j.created <= ready);
        let cloud = within
            .filter_map(|j| Some(j.due?.duration_since(j.created)))
            .sum();
        Timeline {
            claim: recovery.spec.claim_name.clone(),
            fact,
            begun,
            gone,
            restored,
            ready,
            cloud,
        }
    }

    /// S3: every write of ours on the recovery's workload, on a VolumeAttachment, and every request to change something at
    /// the cloud came after the status write that journals its start and before any later one. Gives how many.
    pub fn assert_journaled_first(&self, recovery: &VolumeRecovery, volume: VolumeNo) -> usize {
        let events = self.audit();
        let plan = plan(recovery);
        let saves: Vec<&AuditEvent> = events
            .iter()
            .filter(|e| {
                e.resource == "volumerecoveries" && e.subresource.as_deref() == Some("status")
            })
            .filter(|e| e.name.as_deref() == Some(&recovery.name_any()) && e.took_effect())
            .collect();
        let check = |what: &str, received: Timestamp, kinds: &[&str]| {
            let before = saves.iter().rfind(|s| s.received < received);
            let last = before
                .and_then(|s| journal(s).last())
                .unwrap_or(&Value::Null);
            let step = last
                .pointer("/mark/step")
                .and_then(Value::as_u64)
                .and_then(|s| usize::try_from(s).ok());
            let kind = step
                .and_then(|s| plan.steps.get(s))
                .map(|s| format!("{:?}", s.kind))
                .unwrap_or_default();
            let journaled = last.pointer("/mark/mark").is_some_and(|m| m == "started")
                && kinds.contains(&kind.as_str());
            assert!(journaled, "{what} was issued after the journal said {last}");
            let stored = before.map(|s| s.reached).unwrap_or(Timestamp::MAX);
            assert!(
                stored <= received + AUDIT_LAG,
                "{what} was issued before its journal line was stored ({stored})"
            );
        };
        let mut count = 0;
        for event in ours_on(&events, recovery, &plan.pins.workload.name.name) {
            let kinds: &[&str] = if replicas(event) == Some(0) {
                &["ScaleToZero"]
            } else {
                &["Restore", "ScaleToZero"]
            };
            check(&line(event), event.received, kinds);
            count += 1;
        }
        for event in labellings(&events, recovery) {
            let kind = if hold_label(event).is_some_and(Value::is_null) {
                "Lift"
            } else {
                "Hold"
            };
            check(&line(event), event.received, &[kind]);
            count += 1;
        }
        for event in evictions(&events, recovery, plan) {
            check(&line(event), event.received, &["Release"]);
            count += 1;
        }
        let touched = |e: &&AuditEvent| {
            e.user == CONTROLLER
                && e.is_write()
                && e.name.as_deref() == Some(plan.pins.attachment_name())
        };
        for event in events.iter().filter(touched) {
            check(&line(event), event.received, &["Requeue"]);
            count += 1;
        }
        let path = format!("/volumes/{volume}/");
        for request in self
            .cloud_mutations()
            .iter()
            .filter(|r| r.path.contains(&path))
        {
            check(
                &format!("{} {}", request.method, request.path),
                request.at,
                &["CloudDetach"],
            );
            count += 1;
        }
        count
    }
}

/// Our accepted writes of the hold's label on a recovery.
fn labellings<'a>(
    events: &'a [AuditEvent],
    recovery: &VolumeRecovery,
) -> impl Iterator<Item = &'a AuditEvent> {
    let name = recovery.name_any();
    events.iter().filter(move |e| {
        e.user == CONTROLLER
            && e.name.as_deref() == Some(name.as_str())
            && hold_label(e).is_some()
            && e.took_effect()
    })
}

/// Our accepted evictions of the pods that a recovery's plan names.
fn evictions<'a>(
    events: &'a [AuditEvent],
    recovery: &VolumeRecovery,
    plan: &'a Plan,
) -> impl Iterator<Item = &'a AuditEvent> {
    let namespace = recovery.namespace();
    events.iter().filter(move |e| {
        e.user == CONTROLLER
            && e.subresource.as_deref() == Some("eviction")
            && e.namespace == namespace
            && plan
                .pins
                .pods
                .iter()
                .any(|(pod, _)| e.name.as_deref() == Some(pod.name.as_str()))
            && e.took_effect()
    })
}

/// Our accepted writes on a recovery's workload.
fn ours_on<'a>(
    events: &'a [AuditEvent],
    recovery: &VolumeRecovery,
    workload: &'a str,
) -> impl Iterator<Item = &'a AuditEvent> {
    let namespace = recovery.namespace();
    let ours = move |e: &&AuditEvent| {
        e.user == CONTROLLER
            && is_workload(e)
            && e.namespace == namespace
            && e.name.as_deref() == Some(workload)
            && e.took_effect()
    };
    events.iter().filter(ours)
}
