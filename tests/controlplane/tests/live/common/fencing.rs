//! Nodes that die, what reattach writes on them, and how long their volumes take to come back.

use super::logs::{AGENT, CONTROLLER, hold_label, journal, line};
use super::workloads::is_ready;
use super::{LIMIT, Process, Stage};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams};
use kube::{Api, ResourceExt};
use reattach_api::{NodeVolumeReport, Phase, VolumeRecovery};
use reattach_cloud_simulator::{InstanceNo, InstanceStatus, JobAction, VolumeNo};
use reattach_core::journal::{Entry, Event};
use reattach_core::names::{OUT_OF_SERVICE_TAINT, QUARANTINE_TAINT, TAINT_VALUE};
use reattach_core::plan::Plan;
use reattach_core::steps::StepKind;
use reattach_tests_controlplane::{AuditEvent, eventually, say};
use serde_json::{Value, json};
use std::time::Duration;

/// A dead node takes its time: kube-controller-manager calls it NotReady after 50 s, the runbook waits another minute, the
/// cloud shuts down, and pods are collected every 20 s.
pub const DEATH: Duration = Duration::from_secs(900);

/// Plan and journal of a recovery.
pub fn history(recovery: &VolumeRecovery) -> (&Plan, Vec<&Entry>) {
    let (plan, journal) = recovery.history().expect("it can be read");
    (plan.expect("a plan"), journal)
}

/// When a step was completed; none if it was skipped or never reached.
pub fn completed(recovery: &VolumeRecovery, kind: StepKind) -> Option<Timestamp> {
    let (plan, journal) = history(recovery);
    journal.iter().find_map(|e| match &e.event {
        Event::Completed { step, .. } if plan.steps.get(step.index())?.kind == kind => Some(e.at),
        _ => None,
    })
}

/// The kinds of the steps that were started, in order: the effects.
pub fn effects(recovery: &VolumeRecovery) -> Vec<StepKind> {
    let (plan, journal) = history(recovery);
    let started = journal.iter().filter_map(|e| match &e.event {
        Event::Started { step, .. } => Some(plan.steps.get(step.index())?.kind),
        _ => None,
    });
    started.collect()
}

/// A journal as text, for people.
pub fn told(recovery: &VolumeRecovery) -> String {
    let (plan, journal) = history(recovery);
    let lines = journal.iter().map(|e| {
        let step = match &e.event {
            Event::Started { step, .. }
            | Event::Outcome { step, .. }
            | Event::Completed { step, .. }
            | Event::Skipped { step, .. } => plan.steps.get(step.index()).map(|s| s.kind),
            _ => None,
        };
        format!("    {} {step:?} {:?}", e.at, e.event)
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// How long a volume took from a moment on until its pod was Ready.
pub struct Return {
    /// Its claim.
    pub claim: String,
    /// From the moment to the Ready pod, less the cloud's own jobs on the volume.
    pub took: SignedDuration,
    /// The cloud's own jobs on the volume in between.
    pub cloud: SignedDuration,
    /// From the moment until pod garbage collection, which looks every 20 s, took the dead node's pods away.
    pub collected: SignedDuration,
}

impl Return {
    /// Less the wait for pod garbage collection, too.
    pub fn without_collection(&self) -> SignedDuration {
        self.took - self.collected
    }
}

/// Prints one line per volume; gives the medians with and without the wait for pod garbage collection.
pub fn print_returns(what: &str, all: &[Return]) -> (SignedDuration, SignedDuration) {
    for one in all {
        say!(
            "{what}: {:>12}: {:5.1} s without the cloud's {:.1} s; {:.1} s of it until the old pod was collected",
            one.claim,
            one.took.as_secs_f64(),
            one.cloud.as_secs_f64(),
            one.collected.as_secs_f64(),
        );
    }
    let whole = super::measure::median(all.iter().map(|r| r.took).collect());
    let rest = super::measure::median(all.iter().map(Return::without_collection).collect());
    say!(
        "{what}: median {:.1} s, {:.1} s without the wait for pod garbage collection ({} volumes)",
        whole.as_secs_f64(),
        rest.as_secs_f64(),
        all.len()
    );
    (whole, rest)
}

impl Stage {
    /// The instance behind a node of the stage.
    pub fn instance(&self, node: &str) -> InstanceNo {
        super::stage::instance_of(self.kubelet(node))
    }

    fn agent_of(&self, node: &str) -> usize {
        self.kubelets
            .iter()
            .position(|k| k.node() == node)
            .expect("a node of the stage")
    }

    /// The kernel of a node hangs, its agent with it; the cloud goes on calling it running.
    pub fn hang(&mut self, node: &str) {
        self.kubelet(node).hang();
        let agent = self.agent_of(node);
        if let Some(agent) = self.agents.get_mut(agent) {
            agent.kill();
        }
    }

    /// Cuts (true) or restores a node's connection to the API server; its pods run on. Its agent is cut off, too.
    pub async fn partition(&mut self, node: &str, cut: bool) {
        self.kubelet(node).partition(cut);
        let at = self.agent_of(node);
        if cut {
            self.agents[at].kill();
        } else {
            self.agents[at] = self.start_agent(node).await;
        }
    }

    /// A node loses power, its agent with it.
    pub async fn lose_power(&mut self, node: &str) {
        self.kubelet(node).power_off().await;
        self.hang(node);
    }

    /// Boots the instance, as a person or the cloud's watchdog would; the node is back with its agent.
    pub async fn boot(&mut self, node: &str) {
        // Refused while the watchdog is at it, or the instance runs.
        if self.cloud.boot(self.instance(node)).is_ok() {
            self.await_instance(node, &InstanceStatus::Running).await;
        }
        self.kubelet(node).power_on().await;
        let at = self.agent_of(node);
        if at < self.agents.len() {
            self.agents[at] = self.start_agent(node).await;
        }
    }

    /// The machine behind a node is replaced by another instance under the same name, as some node pools do.
    pub async fn replace(&mut self, node: &str, instance: u64) {
        let at = self.agent_of(node);
        self.kubelets[at] = self.machine(node, instance, 8).await;
        self.await_node(node, true).await;
        if at < self.agents.len() {
            self.agents[at] = self.start_agent(node).await;
        }
    }

    /// Nothing new is scheduled to a node.
    pub async fn cordon(&self, node: &str) {
        let nodes: Api<Node> = Api::all(self.admin.clone());
        let body = json!({"spec": {"unschedulable": true}});
        nodes
            .patch(node, &PatchParams::default(), &Patch::Merge(&body))
            .await
            .expect("cordoned");
    }

    /// Nothing new is scheduled to a node, and the pods of a workload there are deleted.
    pub async fn move_away(&self, namespace: &str, app: &str, node: &str) {
        self.cordon(node).await;
        let pods: Api<Pod> = Api::namespaced(self.admin.clone(), namespace);
        for pod in self.pods(namespace, app).await {
            pods.delete(&pod.name_any(), &DeleteParams::default())
                .await
                .expect("deleted");
        }
    }

    async fn start_agent(&self, node: &str) -> Process {
        let config = self.agent_config(node).await;
        let host = self.folder.join("hosts").join(node);
        let boot = host.join("proc/sys/kernel/random/boot_id");
        let shown = eventually("the host's boot ID", LIMIT, async || {
            boot.exists().then_some(())
        });
        shown.await.expect("the machine is on");
        let host = host.display().to_string();
        let log = self.folder.join(format!("agent-{node}-again.log"));
        let arguments = ["--host-root", &host, "--node-name", node, "--rescan", "5s"];
        Process::start(
            "reattach-agent",
            &log,
            &arguments,
            &[("KUBECONFIG", config)],
        )
    }

    /// Waits until the cloud says this of a node's instance.
    pub async fn await_instance(&self, node: &str, status: &InstanceStatus) {
        let instance = self.instance(node);
        let what = format!("instance {instance} {}", status.word());
        let there = eventually(&what, LIMIT, async || {
            self.cloud
                .instance(instance)
                .is_some_and(|i| i.status == *status)
                .then_some(())
        });
        there.await.expect(&what);
    }

    /// A node's machine hangs and is shut down at the cloud, and somebody deletes its Node. Before that a controller has
    /// recorded the machine: one that reattach never saw behind a Node is not this cluster's (S10).
    pub async fn delete_dead_node(&mut self, node: &str) {
        let instance = self.instance(node);
        let reports: Api<NodeVolumeReport> = Api::all(self.admin.clone());
        let what = format!("instance {instance} recorded as the machine of {node}");
        let recorded = eventually(&what, LIMIT, async || {
            let report = reports.get_opt(node).await.ok()??;
            let mut machines = report.spec.machines.iter().filter_map(|m| m.get().ok());
            machines
                .any(|m| m.instance.as_str() == instance.to_string())
                .then_some(())
        });
        recorded.await.expect(&what);
        self.hang(node);
        self.cloud
            .shutdown(instance)
            .expect("it runs, says the cloud");
        self.await_instance(node, &InstanceStatus::Offline).await;
        Api::<Node>::all(self.admin.clone())
            .delete(node, &DeleteParams::default())
            .await
            .expect("deleted");
    }

    /// A Node; none if it does not exist.
    pub async fn node(&self, name: &str) -> Option<Node> {
        Api::<Node>::all(self.admin.clone())
            .get_opt(name)
            .await
            .expect("the API server answers")
    }

    /// The taints of a Node with these keys.
    pub async fn taints(&self, node: &str, of: impl Fn(&Taint) -> bool) -> Vec<Taint> {
        let node = self.node(node).await;
        let all = node.and_then(|n| n.spec?.taints).unwrap_or_default();
        all.into_iter().filter(|t| of(t)).collect()
    }

    /// Whether a Node has our out-of-service taint.
    pub async fn is_out_of_service(&self, node: &str) -> bool {
        let ours =
            |t: &Taint| t.key == OUT_OF_SERVICE_TAINT && t.value.as_deref() == Some(TAINT_VALUE);
        !self.taints(node, ours).await.is_empty()
    }

    /// Waits until a Node is Ready, or is not.
    pub async fn await_node(&self, name: &str, ready: bool) {
        let what = format!("Node {name} {}", if ready { "Ready" } else { "NotReady" });
        let seen = eventually(&what, LIMIT, async || {
            let node = self.node(name).await?;
            let conditions = node.status?.conditions.unwrap_or_default();
            let is = conditions
                .iter()
                .any(|c| c.type_ == "Ready" && c.status == "True");
            (is == ready).then_some(())
        });
        seen.await.expect(&what);
    }

    /// The node of the only pod of a workload.
    pub async fn node_of(&self, namespace: &str, app: &str) -> String {
        let on = |p: &Pod| p.spec.as_ref().and_then(|s| s.node_name.clone());
        self.pods(namespace, app)
            .await
            .iter()
            .find_map(on)
            .expect("a bound pod")
    }

    /// Waits until a live pod of a workload is Ready on `node`; its name.
    pub async fn await_ready_on(&self, namespace: &str, app: &str, node: &str) -> String {
        let what = format!("{namespace}/{app} Ready on {node}");
        let found = eventually(&what, DEATH, async || {
            let pods = self.pods(namespace, app).await;
            let on = |p: &Pod| p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(node);
            pods.iter()
                .find(|p| on(p) && is_ready(p))
                .map(ResourceExt::name_any)
        });
        match found.await {
            Ok(name) => name,
            Err(error) => panic!("{error}\n{}\n{}", self.story(namespace).await, self.logs()),
        }
    }

    /// The VolumeAttachments of a claim made by [`Stage::bound_claim`].
    pub async fn attachments(&self, namespace: &str, claim: &str) -> Vec<VolumeAttachment> {
        let api: Api<VolumeAttachment> = Api::all(self.admin.clone());
        let pv = format!("pv-{namespace}-{claim}");
        let all = api
            .list(&ListParams::default())
            .await
            .expect("listed")
            .items;
        let of = |va: &VolumeAttachment| {
            va.spec.source.persistent_volume_name.as_deref() == Some(pv.as_str())
        };
        all.into_iter().filter(of).collect()
    }

    /// The locks of nodes that have a holder.
    pub async fn node_locks(&self) -> Vec<String> {
        let api: Api<Lease> = Api::namespaced(self.admin.clone(), super::cluster::SYSTEM);
        let all = api
            .list(&ListParams::default())
            .await
            .expect("listed")
            .items;
        let locks = all
            .iter()
            .map(ResourceExt::name_any)
            .filter(|n| n.starts_with("node-"));
        locks.filter(|n| !self.is_name_of_another(n)).collect()
    }

    /// Waits until the newest recovery of a claim is as wanted, for as long as a node takes to die.
    pub async fn await_recovery(
        &self,
        namespace: &str,
        claim: &str,
        what: &str,
        wanted: impl Fn(&VolumeRecovery) -> bool,
    ) -> VolumeRecovery {
        let what = format!("{claim}: {what}");
        let found = eventually(&what, DEATH, async || {
            let mut all = self.recoveries(namespace).await;
            all.retain(|r| r.spec.claim_name == claim);
            all.pop().filter(|r| wanted(r))
        });
        match found.await {
            Ok(recovery) => recovery,
            Err(error) => panic!("{error}\n{}\n{}", self.story(namespace).await, self.logs()),
        }
    }

    /// Waits until every recovery of a namespace is over.
    pub async fn await_all_over(&self, namespace: &str) {
        let over = |r: &VolumeRecovery| r.status.as_ref().is_some_and(|s| s.phase.is_final());
        let what = format!("an end of all recoveries in {namespace}");
        let found = eventually(&what, DEATH, async || {
            self.recoveries(namespace)
                .await
                .iter()
                .all(over)
                .then_some(())
        });
        if let Err(error) = found.await {
            panic!("{error}\n{}\n{}", self.story(namespace).await, self.logs());
        }
    }

    /// Waits until the newest recovery of a claim that had something to do is over, and well.
    pub async fn await_recovered(&self, namespace: &str, claim: &str) -> VolumeRecovery {
        let ended = self
            .await_recovery(namespace, claim, "an end", |r| {
                match r.status.as_ref().map(|s| s.phase) {
                    // A slow attach, or a pod that is not called unready yet, may have been looked at and have come right by itself.
                    Some(Phase::Recovered) => !effects(r).is_empty(),
                    Some(phase) => {
                        (phase.is_final() && phase != Phase::Resolved) || phase == Phase::Stuck
                    }
                    None => false,
                }
            })
            .await;
        let phase = ended.status.as_ref().map(|s| s.phase);
        assert_eq!(
            phase,
            Some(Phase::Recovered),
            "{}\n{}",
            self.story(namespace).await,
            self.logs()
        );
        ended
    }

    /// How long `pod` took to be Ready, from `from` on.
    pub fn back_after(
        &self,
        namespace: &str,
        claim: &str,
        pod: &str,
        volume: VolumeNo,
        from: Timestamp,
    ) -> Return {
        let events = self.audit();
        let became_ready = |e: &&AuditEvent| {
            let conditions = e
                .body
                .as_ref()
                .and_then(|b| b.pointer("/status/conditions")?.as_array());
            e.resource == "pods"
                && e.subresource.as_deref() == Some("status")
                && e.namespace.as_deref() == Some(namespace)
                && e.name.as_deref() == Some(pod)
                && e.took_effect()
                && e.received > from
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
        let of_it = |action| matches!(action, JobAction::VolumeDetach | JobAction::VolumeAttach);
        let jobs = self
            .cloud
            .jobs()
            .into_iter()
            .filter(|j| j.volume == Some(volume) && of_it(j.action));
        let within = jobs.filter(|j| j.created >= from && j.created <= ready);
        let cloud = within
            .filter_map(|j| Some(j.due?.duration_since(j.created)))
            .sum();
        let gone = |e: &&AuditEvent| {
            e.user_agent.ends_with("pod-garbage-collector")
                && e.verb == "delete"
                && e.namespace.as_deref() == Some(namespace)
                && e.took_effect()
                && e.received > from
        };
        let collected = events
            .iter()
            .find(gone)
            .map_or(SignedDuration::ZERO, |e| e.reached.duration_since(from));
        Return {
            claim: claim.to_owned(),
            took: ready.duration_since(from) - cloud,
            cloud,
            collected,
        }
    }

    /// How many writes of reattach put a taint with this key on a Node.
    pub fn taint_writes(&self, node: &str, key: &str) -> usize {
        let has = |e: &AuditEvent| {
            let taints = e
                .body
                .as_ref()
                .and_then(|b| b.pointer("/spec/taints")?.as_array());
            taints.is_some_and(|all| all.iter().any(|t| t["key"] == key))
        };
        let events = self.audit();
        let ours = events.iter().filter(|e| {
            e.user == CONTROLLER
                && e.resource == "nodes"
                && e.name.as_deref() == Some(node)
                && e.took_effect()
        });
        // A write carries the whole list: only the first of a row with it puts it there.
        let mut before = false;
        ours.filter(|e| !std::mem::replace(&mut before, has(e)) && has(e))
            .count()
    }

    /// The objects of a node that must not change: pods by UID and whether they are being deleted, VolumeAttachments by UID and
    /// whether they are, the cloud's holders.
    pub async fn untouched(&self, namespace: &str, volumes: &[VolumeNo]) -> Vec<String> {
        let pods: Api<Pod> = Api::namespaced(self.admin.clone(), namespace);
        let pods = pods
            .list(&ListParams::default())
            .await
            .expect("listed")
            .items;
        let attachments: Api<VolumeAttachment> = Api::all(self.admin.clone());
        let attachments = attachments
            .list(&ListParams::default())
            .await
            .expect("listed")
            .items;
        let of = |m: &ObjectMeta| {
            format!(
                "{:?} {:?}, deleted {}",
                m.name,
                m.uid,
                m.deletion_timestamp.is_some()
            )
        };
        let mut all: Vec<String> = pods.iter().map(|p| of(&p.metadata)).collect();
        let own = |va: &&VolumeAttachment| {
            let volume = va.spec.source.persistent_volume_name.as_ref();
            !volume.is_some_and(|volume| self.is_name_of_another(volume))
        };
        all.extend(attachments.iter().filter(own).map(|va| of(&va.metadata)));
        all.extend(volumes.iter().map(|v| {
            format!(
                "{v} held by {:?}",
                self.cloud.volume(*v).and_then(|v| v.holder)
            )
        }));
        all.sort();
        all
    }

    /// S3 and S7 for everything that reattach changed: it is pinned by one of these recoveries, and that recovery's last
    /// stored journal line then was the start of just this. Gives how many effects there were.
    pub fn assert_pinned_and_journaled(&self, recoveries: &[VolumeRecovery]) -> usize {
        let events = self.audit();
        let writes: Vec<&AuditEvent> = events
            .iter()
            .filter(|e| {
                (e.user == CONTROLLER || e.user == AGENT)
                    && e.is_write()
                    && !super::logs::is_record(e)
            })
            .collect();
        let mut count = 0;
        for (at, write) in writes.iter().enumerate() {
            // The lock of a node belongs to the effect that it is taken for; what only takes our marks off a Node may be the
            // janitor's, which keeps no journal.
            let lock = write.resource == "leases"
                || (write.resource == "nodes" && !marks(write, &writes[..at]));
            let by = recoveries.iter().find(|r| {
                names(r, write)
                    .is_some_and(|kinds| lock || begun(&events, r, write.received, kinds))
            });
            assert!(
                by.is_some(),
                "not pinned, or not journaled first:\n{}",
                line(write)
            );
            count += usize::from(write.resource != "leases");
        }
        for request in self.cloud_mutations() {
            let by = recoveries.iter().find(|r| {
                let pins = &history(r).0.pins;
                let kinds: &[StepKind] = match request.path.rsplit('/').next() {
                    Some("shutdown") => &[StepKind::PowerOff],
                    Some("boot") => &[StepKind::PowerOn],
                    _ => &[StepKind::CloudDetach, StepKind::CloudForce],
                };
                let about = [
                    format!("/volumes/{}/detach", pins.volume),
                    format!("/instances/{}/", pins.holder),
                ];
                about.iter().any(|a| request.path.contains(a))
                    && begun(&events, r, request.at, kinds)
            });
            assert!(
                by.is_some(),
                "not pinned, or not journaled first: {request:#?}"
            );
            count += 1;
        }
        count
    }
}

/// Whether a write puts a taint of ours on a Node that the last write of ours there did not have. Such a write carries all taints
/// of the Node, so one that takes a mark off may name others.
fn marks(write: &AuditEvent, earlier: &[&AuditEvent]) -> bool {
    let on_same_node =
        |e: &&&AuditEvent| e.resource == "nodes" && e.name == write.name && e.took_effect();
    let before = earlier
        .iter()
        .rev()
        .find(on_same_node)
        .map(|e| our_taints(e))
        .unwrap_or_default();
    our_taints(write)
        .iter()
        .any(|taint| !before.contains(taint))
}

/// The keys of our taints in a write of a Node.
fn our_taints(write: &AuditEvent) -> Vec<String> {
    let taints = write
        .body
        .as_ref()
        .and_then(|b| b.pointer("/spec/taints"))
        .and_then(Value::as_array);
    let ours = taints
        .into_iter()
        .flatten()
        .filter(|t| t["value"] == TAINT_VALUE || t["key"] == QUARANTINE_TAINT);
    ours.map(|taint| taint["key"].to_string()).collect()
}

/// The steps of a recovery that may make this write; none: the recovery pins nothing of it.
fn names<'a>(recovery: &VolumeRecovery, write: &AuditEvent) -> Option<&'a [StepKind]> {
    let pins = &history(recovery).0.pins;
    let name = write.name.as_deref().unwrap_or_default();
    let uid = |path: &str| {
        write
            .body
            .as_ref()
            .and_then(|b| b.pointer(path)?.as_str())
            .unwrap_or_default()
            .to_owned()
    };
    match (write.resource.as_str(), write.subresource.as_deref()) {
        ("nodes", None) if name == pins.node.as_str() => Some(&[
            StepKind::TaintOutOfService,
            StepKind::Untaint,
            StepKind::Quarantine,
        ]),
        // A lock is created without its name in the request's path.
        ("leases", None) if write.namespace.as_deref() == Some(super::cluster::SYSTEM) => {
            let lock = format!("node-{}", pins.node);
            (name == lock || uid("/metadata/name") == lock).then_some(&[])
        }
        ("volumeattachments", None) if write.verb == "delete" => pins
            .is_attachment(&uid("/preconditions/uid").into())
            .then_some(&[StepKind::DeleteAttachment]),
        ("volumeattachments", None) => Some(&[StepKind::Requeue]),
        ("volumerecoveries", None) if name == recovery.name_any() => {
            let off = hold_label(write).is_some_and(Value::is_null);
            Some(if off {
                &[StepKind::Lift]
            } else {
                &[StepKind::Hold]
            })
        }
        ("pods", Some("eviction")) => {
            let pinned = pins.pods.iter().any(|(pod, _)| pod.name == name);
            pinned.then_some(&[StepKind::Release])
        }
        ("pods", None) if write.verb == "patch" => Some(&[StepKind::Lift]),
        _ => None,
    }
}

/// Whether the last journal line that a recovery had stored at `at` says that one of these steps is started.
fn begun(
    events: &[AuditEvent],
    recovery: &VolumeRecovery,
    at: Timestamp,
    kinds: &[StepKind],
) -> bool {
    let name = recovery.name_any();
    let mut saved = events.iter().filter(|e| {
        e.resource == "volumerecoveries"
            && e.subresource.as_deref() == Some("status")
            && e.name.as_deref() == Some(name.as_str())
            && e.took_effect()
            && e.received < at
    });
    let last = saved
        .next_back()
        .and_then(|s| journal(s).last().cloned())
        .unwrap_or_default();
    let step = last
        .pointer("/mark/step")
        .and_then(Value::as_u64)
        .and_then(|s| usize::try_from(s).ok());
    let kind = step
        .and_then(|s| history(recovery).0.steps.get(s))
        .map(|s| s.kind);
    last.pointer("/mark/mark").is_some_and(|m| m == "started")
        && kind.is_some_and(|k| kinds.contains(&k))
}
