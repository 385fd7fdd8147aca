//! One run of any class, line by line, over evidence that answers to effects as the world would: what the classes' tests
//! and the properties about them share.

use jiff::{SignedDuration, Timestamp};
use reattach_core::budget::StuckPods;
use reattach_core::cloud::{
    CloudInstance, CloudScope, CloudSnapshot, InstanceObservation, InstanceState, JobStatus,
    PowerChange, PowerJob, VolumeState,
};
use reattach_core::diagnosis::Trouble;
use reattach_core::evidence::{Evidence, PodFacts};
use reattach_core::fact::{Fact, Known, Source};
use reattach_core::guest::{Answer, ScanResult};
use reattach_core::hold::hold_taint;
use reattach_core::ids::{InstanceId, NodeName, Uid};
use reattach_core::journal::{End, Entry, Event, Outcome};
use reattach_core::loss::EmptyDirs;
use reattach_core::plan::Refusal;
use reattach_core::plan::{Allowed, Commands, Plan, Request, Snapshots, SoundPlan};
use reattach_core::run::{Action, Context, Effect, Next, State, newest_job, next};
use reattach_core::runbook::Runbook;
use reattach_core::testkit::{
    Case, INSTANCE, NODE, OTHER_INSTANCE, OTHER_NODE, attachment, boot, volume_name,
};

mod cases;
mod hanging;

pub use cases::*;

/// What the world does besides.
#[derive(Clone, Copy, Debug, Default)]
pub struct World {
    /// The driver cannot detach.
    pub stuck: bool,
    /// kubelet keeps the volume in `volumesInUse`.
    pub lingers: bool,
    /// External-attacher attaches it again by itself after so many seconds.
    pub heals_after: Option<i64>,
    /// The node is back at this second.
    pub back_at: Option<i64>,
    /// A person aborts at this line.
    pub abort_at: Option<usize>,
    /// No other node would do: a pod that may not come to its own waits.
    pub alone: bool,
    /// The cloud takes a detach and does not end it for five minutes; only one by force works.
    pub hangs: Option<By>,
    /// Kubernetes deletes the old pod only so many seconds after the taint, when its replacement is there.
    pub deletes_after: Option<i64>,
    /// Snapshots fail.
    pub no_snapshot: bool,
    /// They cannot be read.
    pub blind: bool,
    /// What an agent that is asked says, if not that there is no such device.
    pub holder_says: Option<fn() -> Option<ScanResult>>,
}

/// Whose detach it is that does not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The CSI driver's.
    Driver,
    /// Ours.
    Us,
}

/// A world in which nothing else happens.
pub const QUIET: World = World {
    stuck: false,
    lingers: false,
    heals_after: None,
    back_at: None,
    abort_at: None,
    alone: false,
    hangs: None,
    deletes_after: None,
    no_snapshot: false,
    blind: false,
    holder_says: None,
};

/// A run.
#[derive(Clone)]
pub struct Walk {
    /// The evidence as it stands, and now.
    pub case: Case,
    /// The plan.
    pub plan: SoundPlan,
    /// Its journal.
    pub journal: Vec<Entry>,
    /// The leader's term.
    pub term: u64,
    /// The effects that were issued.
    pub effects: Vec<Effect>,
    world: World,
    begun: Timestamp,
    /// When the taint was put on, or the pod released: Kubernetes follows a little later.
    set_free: Option<Timestamp>,
    power_off: Option<Timestamp>,
    held: bool,
    /// Since when a detach is under way at the cloud.
    detaching: Option<Timestamp>,
    /// What the cloud has of snapshots.
    pub snapshots: Vec<CloudSnapshot>,
}

/// Everything that people may allow.
pub const ALL: Allowed = Allowed {
    power_off: true,
    power_on: true,
    keep_off: true,
    force: true,
    snapshot: Snapshots::Never,
    empty_dirs: EmptyDirs::Lose,
    stuck_pods: StuckPods::Evict,
};

/// The plan of a case by the default runbook.
pub fn plan(case: &Case, allowed: Allowed) -> Result<Plan, Vec<Refusal>> {
    let runbook = Runbook::built_in("lightest-first").unwrap();
    let request = Request {
        runbook: &runbook,
        confirm_workload: None,
        commands: Commands::default(),
        for_show: false,
        allowed,
    };
    case.plan_for(&request)
}

fn cloud() -> Source {
    Source::Cloud("linode".to_owned())
}

pub fn change<T>(fact: &mut Fact<T>, change: impl FnOnce(&mut T)) {
    match &mut fact.value {
        Known::Present(value) => change(value),
        _ => panic!("the fact from {} is not present", fact.source),
    }
}

pub fn sighting(state: Option<InstanceState>, at: Timestamp) -> InstanceObservation {
    InstanceObservation {
        instance: INSTANCE.into(),
        scope: CloudScope("account".into()),
        state,
        kept_off: None,
        at,
    }
}

/// The machine was shut down by somebody at that moment, and the job took ten seconds.
fn shut_down(e: &mut Evidence, at: Timestamp) {
    change(
        e.instances.get_mut(&InstanceId::from(INSTANCE)).unwrap(),
        |i| i.state = InstanceState::Off,
    );
    let job = PowerJob {
        id: "77".into(),
        change: PowerChange::Off,
        status: JobStatus::Finished,
        by: Some("reattach".into()),
        created: at,
        finished: Some(at + SignedDuration::from_secs(10)),
    };
    change(e.power.get_mut(&InstanceId::from(INSTANCE)).unwrap(), |p| {
        p.jobs.push(job)
    });
}

impl Walk {
    /// A run of the case's plan with everything allowed.
    pub fn new(case: Case, world: World) -> Self {
        Self::with(case, world, ALL)
    }

    /// A run in a quiet world whose first effect of this kind got this outcome.
    pub fn answered(case: Case, kind: impl Fn(&Effect) -> bool, outcome: Outcome) -> Self {
        let mut walk = Self::new(case, QUIET);
        walk.answer(|e| kind(e).then(|| outcome.clone()), |_| {});
        walk
    }

    /// The cloud's view of the holder.
    pub fn instance(&mut self) -> &mut Fact<CloudInstance> {
        let instances = &mut self.case.evidence.instances;
        instances.get_mut(&InstanceId::from(INSTANCE)).unwrap()
    }

    /// The same, with this allowed.
    pub fn with(case: Case, world: World, allowed: Allowed) -> Self {
        let plan = plan(&case, allowed)
            .unwrap_or_else(|r| panic!("no plan: {r:?}"))
            .sound()
            .unwrap();
        let begun = case.now;
        let mut walk = Self {
            case,
            journal: Vec::new(),
            term: 1,
            effects: Vec::new(),
            world,
            begun,
            set_free: None,
            power_off: None,
            held: false,
            detaching: None,
            snapshots: Vec::new(),
            plan,
        };
        let (plan_hash, authority) = (walk.plan.hash.to_string(), "test".to_owned());
        walk.record(Event::Accepted {
            plan_hash,
            authority,
        });
        walk
    }

    /// The state that the journal adds up to.
    pub fn state(&self) -> State {
        State::replay(&self.plan, &self.journal).unwrap_or_else(|e| panic!("{e}\n{}", self.story()))
    }

    /// What the machine says now.
    pub fn ask(&self) -> Next {
        let (recovery, aborted) = (
            Case::recovery(),
            self.world.abort_at.is_some_and(|n| self.journal.len() >= n),
        );
        let cx = Context {
            aborted_by: aborted.then_some("jane"),
            ..self.context(&recovery)
        };
        next(&self.plan, &self.state(), &self.case.evidence, &cx)
    }

    /// The context of a run that nobody has said anything about.
    pub fn context<'a>(&self, recovery: &'a Uid) -> Context<'a> {
        Context {
            recovery,
            aborted_by: None,
            confirm_workload: None,
            term: self.term,
            nothing_under_way: None,
            withdrawn: None,
            unattended: SignedDuration::ZERO,
            now: self.case.now,
        }
    }

    /// Takes the run to the first effect for which `reply` has an answer of its own, journals that, and lets the world change.
    pub fn answer(
        &mut self,
        reply: impl Fn(&Effect) -> Option<Outcome>,
        world: impl FnOnce(&mut Self),
    ) {
        for _ in 0..1_000 {
            match self.ask() {
                Next::Record(event) => self.record(event),
                Next::Wait { .. } => self.pass(1),
                Next::Done(end) => panic!("{end:?}\n{}", self.story()),
                Next::Act(action) => {
                    if let Some(outcome) = reply(&action.effect) {
                        self.issue(action, outcome);
                        return world(self);
                    }
                    self.react(&action.effect);
                    self.issue(
                        action,
                        Outcome::Applied {
                            detail: "200".into(),
                        },
                    );
                }
            }
        }
        panic!("no such effect\n{}", self.story())
    }

    /// Takes the run to its end, at most an hour away. `see` is shown each walk right before an effect.
    pub fn run(&mut self, mut see: impl FnMut(&Self, &Action)) -> End {
        for _ in 0..3_000 {
            if let Some(end) = self.once_seen(&mut see) {
                return end;
            }
        }
        panic!("no end\n{}", self.story())
    }

    /// One line, one effect or one second further; the end, if it has come.
    pub fn once(&mut self) -> Option<End> {
        self.once_seen(&mut |_, _| {})
    }

    fn once_seen(&mut self, see: &mut impl FnMut(&Self, &Action)) -> Option<End> {
        match self.ask() {
            Next::Record(event) => self.record(event),
            Next::Act(action) => {
                see(self, &action);
                self.react(&action.effect);
                self.issue(
                    action,
                    Outcome::Applied {
                        detail: "200".into(),
                    },
                );
                self.pass(0);
            }
            Next::Wait { .. } => self.pass(1),
            Next::Done(end) => return Some(end),
        }
        None
    }

    /// Everything is read anew by a process whose clock shows so many seconds more; no time passes.
    pub fn clock_jumps(&mut self, seconds: i64) {
        self.case.now += SignedDuration::from_secs(seconds);
        let of_the_nodes: Vec<_> = self
            .case
            .evidence
            .nodes
            .values()
            .map(|f| f.shown().and_then(|n| n.lease_renewed))
            .collect();
        self.read_anew();
        for (fact, renewed) in self.case.evidence.nodes.values_mut().zip(of_the_nodes) {
            if let Known::Present(node) = &mut fact.value {
                node.lease_renewed = renewed;
            }
        }
    }

    /// Journals an effect and what came of it.
    pub fn issue(&mut self, action: Action, outcome: Outcome) {
        let proof = match &action.effect {
            Effect::CloudDetach { proof }
            | Effect::CloudForce { proof }
            | Effect::TaintOutOfService { proof, .. }
            | Effect::DeleteAttachment { proof, .. } => Some(proof.kind().clone()),
            _ => None,
        };
        let newest_job = newest_job(&action.effect, &self.case.evidence);
        self.record(Event::Started {
            step: action.step,
            intent: action.intent,
            proof,
            newest_job,
        });
        self.effects.push(action.effect);
        self.record(Event::Outcome {
            step: action.step,
            outcome,
        });
    }

    /// The kinds of the effects that were issued, in order.
    pub fn kinds(&self) -> Vec<String> {
        let word = |e: &Effect| {
            format!("{e:?}")
                .split([' ', '{'])
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        self.effects.iter().map(word).collect()
    }

    /// The journal for people.
    pub fn story(&self) -> String {
        let line = |e: &Entry| {
            format!(
                "{} {:?}",
                e.at.duration_since(self.begun).as_secs(),
                e.event
            )
        };
        self.journal.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    pub fn record(&mut self, event: Event) {
        let seq = u32::try_from(self.journal.len()).unwrap();
        self.journal.push(Entry {
            seq,
            at: self.case.now,
            term: self.term,
            by: "test".into(),
            event,
        });
    }

    /// The world does what the effect asks of it.
    pub fn react(&mut self, effect: &Effect) {
        let e = &mut self.case.evidence;
        let node = NodeName::from(NODE);
        match effect {
            Effect::Hold => self.held = true,
            Effect::Lift { .. } => self.held = false,
            Effect::Release { .. } | Effect::DeletePod { .. } => {
                let at = self.case.now;
                self.case = self.case.clone().pod(|p| p.deleting_since = Some(at));
                self.set_free = Some(at);
            }
            Effect::CloseNode { .. } => {
                change(e.nodes.get_mut(&node).unwrap(), |n| {
                    n.taints.push(hold_taint(&Case::recovery()))
                });
            }
            Effect::OpenNode { .. } => {
                let key = hold_taint(&Case::recovery());
                change(e.nodes.get_mut(&node).unwrap(), |n| {
                    n.taints.retain(|t| *t != key)
                });
            }
            Effect::PowerOff { .. } => self.power_off = Some(self.case.now),
            Effect::Quarantine { .. } => {
                change(e.nodes.get_mut(&node).unwrap(), |n| n.quarantined = true)
            }
            Effect::TaintOutOfService { .. } => {
                change(e.nodes.get_mut(&node).unwrap(), |n| {
                    n.out_of_service_by_us = true
                });
                self.set_free = Some(self.case.now);
            }
            Effect::Untaint { .. } => change(e.nodes.get_mut(&node).unwrap(), |n| {
                n.out_of_service_by_us = false
            }),
            Effect::DeleteAttachment { uid, .. } => {
                let at = self.case.now;
                change(&mut e.attachments, |all| {
                    all.iter_mut()
                        .filter(|a| a.uid == *uid)
                        .for_each(|a| a.deleting_since = Some(at))
                });
                self.set_free = Some(at);
                self.world.lingers = false;
            }
            Effect::CloudDetach { .. } if self.world.hangs.is_some() => self.begin_detaching(),
            Effect::CloudDetach { .. } | Effect::CloudForce { .. } => self.detached(),
            Effect::Snapshot { .. } => self.begin_snapshot(),
            Effect::Challenge { node: asked } => {
                let epoch = e.asked.as_ref().map_or(0, |a| a.1) + 1;
                e.asked = Some((Case::recovery(), epoch));
                e.answers.clear();
                let seen = self
                    .world
                    .holder_says
                    .map_or(Some(ScanResult::NoDevice), |says| says());
                let said = seen.map(|seen| {
                    self.case
                        .clone()
                        .answer(seen)
                        .evidence
                        .answers
                        .remove(&node)
                });
                self.case
                    .evidence
                    .answers
                    .extend(said.flatten().map(|answer| {
                        (
                            asked.clone(),
                            Answer {
                                epoch,
                                boot_id: boot(asked.as_str()),
                                scanned_at: self.case.now,
                                ..answer
                            },
                        )
                    }));
            }
            Effect::PowerOn { .. } | Effect::Requeue { .. } => {}
            Effect::KeepOff { .. } | Effect::LetBoot { .. } => {
                let on = matches!(effect, Effect::LetBoot { .. });
                let instance = e.instances.get_mut(&InstanceId::from(INSTANCE)).unwrap();
                change(instance, |i| i.auto_restart = on);
            }
            Effect::ScaleToZero { .. } | Effect::Restore { .. } => {
                panic!("nothing is scaled: {effect:?}")
            }
        }
    }

    /// Time passes, and everything is read anew.
    pub fn pass(&mut self, seconds: i64) {
        self.case.now += SignedDuration::from_secs(seconds);
        let now = self.case.now;
        let since = |at: Option<Timestamp>| at.map_or(-1, |at| now.duration_since(at).as_secs());
        if since(self.power_off) == 10 {
            shut_down(&mut self.case.evidence, now - SignedDuration::from_secs(10));
            self.power_off = None;
        }
        let age = now.duration_since(self.begun).as_secs();
        if self.world.back_at == Some(age) {
            self.case = self
                .case
                .clone()
                .node(|n| (n.ready, n.boot_id) = (true, "a later boot".into()));
        }
        if self.world.heals_after == Some(age) {
            self.case = self
                .case
                .clone()
                .cloud(|c| c.holders = vec![INSTANCE.into()])
                .device_in_use()
                .pod_ready();
        }
        if since(self.set_free) >= 3 && !self.world.stuck {
            self.let_go();
        }
        if since(self.set_free) >= 3 && self.world.stuck {
            let at = now;
            self.case = self.case.clone().attachment(|a| {
                a.deleting_since = a.deleting_since.or(Some(at));
                a.detach_error = Some("no".into());
            });
        }
        self.cloud_works();
        self.pods();
        self.read_anew();
    }

    /// Kubernetes and the cloud let go of the old holder; who waits gets the volume.
    fn let_go(&mut self) {
        let whole = matches!(
            self.plan.releases(),
            reattach_core::plan::Releases::Everyone
        ) || self.plan.closes_node;
        if whole && self.world.lingers {
            return;
        }
        let e = &mut self.case.evidence;
        if let Trouble::Orphan { .. } = self.plan.trouble {
            // No record speaks for the old holder.
            return change(&mut e.cloud_volume, |c| c.holders.clear());
        }
        for fact in e
            .nodes
            .values_mut()
            .filter(|f| matches!(f.value, Known::Present(_)))
        {
            change(fact, |n| {
                n.volumes_in_use.retain(|v| *v != volume_name());
                n.volumes_attached.retain(|v| *v != volume_name());
            });
        }
        change(&mut e.cloud_volume, |c| c.holders.clear());
        change(&mut e.attachments, |all| {
            all.retain(|a| a.node.as_str() != NODE)
        });
    }

    /// Pods go and come; one that may be on a node gets the volume once nobody has it.
    fn pods(&mut self) {
        let now = self.case.now;
        let (held, closed) = (self.held, self.is_closed());
        let waits_alone = closed && self.world.alone;
        // The pods of an orphan's claim are on other machines.
        let here_too = !matches!(self.plan.trouble, Trouble::Orphan { .. });
        let released = here_too
            && self
                .set_free
                .is_some_and(|at| now.duration_since(at).as_secs() >= 1);
        change(&mut self.case.evidence.workload, |w| {
            w.dry_run_held = Some(held)
        });
        let free = self
            .case
            .evidence
            .attachments
            .shown()
            .is_some_and(|a| a.iter().all(|a| a.node.as_str() != NODE));
        let replacement = |p: &mut PodFacts| {
            p.uid = "pod-2".into();
            (p.node, p.held, p.deleting_since) = (None, held, None);
        };
        let deleted = self.world.deletes_after.is_none_or(|seconds| {
            self.set_free
                .is_some_and(|at| now.duration_since(at).as_secs() >= seconds)
        });
        self.case = self.case.clone().pods(|pods| {
            pods.retain(|p| !deleted || p.uid.as_str() != "old");
            let mut old = None;
            for pod in pods.iter_mut() {
                let here = pod.node.as_ref().is_some_and(|n| n.as_str() == NODE);
                if here && released && pod.uid.as_str() == "pod-1" {
                    old = Some(PodFacts {
                        uid: "old".into(),
                        deleting_since: Some(now),
                        ..pod.clone()
                    });
                    replacement(pod);
                }
                if pod.held && !held {
                    pod.held = false;
                }
                if pod.node.is_none() && !pod.held && (free || closed) && !waits_alone {
                    pod.node = Some(OTHER_NODE.into());
                }
            }
            pods.extend(old.filter(|_| !deleted));
        });
        let e = &mut self.case.evidence;
        let there = |n: &NodeName| n.as_str() == OTHER_NODE;
        let came = e
            .pods
            .shown()
            .is_some_and(|p| p.iter().any(|p| p.node.as_ref().is_some_and(there)));
        change(&mut e.attachments, |all| {
            if closed && came && !all.iter().any(|a| there(&a.node)) {
                all.push(reattach_core::evidence::AttachmentFacts {
                    attached: false,
                    attach_error: Some("volume 5551 is already attached".into()),
                    ..attachment("csi-redis-2", OTHER_NODE)
                });
            }
        });
        let nobody = e.cloud_volume.shown().is_some_and(|c| c.holders.is_empty());
        let waits = e.pods.shown().is_some_and(|p| {
            p.iter()
                .any(|p| p.node.as_ref().is_some_and(|n| n.as_str() == OTHER_NODE))
        });
        if nobody && free && waits && !self.held {
            change(&mut e.cloud_volume, |c| {
                (c.holders, c.state) = (vec![OTHER_INSTANCE.into()], VolumeState::Active)
            });
            change(&mut e.attachments, |all| {
                *all = vec![attachment("csi-redis-2", OTHER_NODE)]
            });
            self.case = self.case.clone().pods(|pods| {
                for pod in pods.iter_mut().filter(|p| !p.ready) {
                    (pod.ready, pod.ready_since) = (true, Some(now));
                }
            });
        }
    }

    fn read_anew(&mut self) {
        self.read_what_is_asked_for();
        let now = self.case.now;
        let e = &mut self.case.evidence;
        e.collected_at = now;
        let lease = |n: &mut reattach_core::evidence::NodeFacts| {
            if n.ready {
                n.lease_renewed = Some(now);
            }
        };
        e.nodes.values_mut().for_each(|f| {
            f.at = now;
            if let Known::Present(n) = &mut f.value {
                lease(n);
            }
        });
        e.guests.values_mut().for_each(|f| f.at = now);
        e.instances.values_mut().for_each(|f| f.at = now);
        e.power.values_mut().for_each(|f| f.at = now);
        e.node_pods.values_mut().for_each(|f| f.at = now);
        e.node_losses.values_mut().for_each(|f| f.at = now);
        e.node_claims.values_mut().for_each(|f| f.at = now);
        e.down.iter_mut().for_each(|f| f.at = now);
        e.mandate.iter_mut().for_each(|f| f.at = now);
        e.budgets.iter_mut().for_each(|f| f.at = now);
        (e.claim.at, e.volume.at, e.attachments.at, e.pods.at) = (now, now, now, now);
        (
            e.workload.at,
            e.cloud_volume.at,
            e.identity.at,
            e.machines.at,
        ) = (now, now, now, now);
        if let Some(policy) = &mut e.hold_policy {
            policy.at = now;
        }
        let state = e.instances[&InstanceId::from(INSTANCE)]
            .shown()
            .map(|i| i.state.clone());
        if e.sightings.last().is_none_or(|s| s.state != state) {
            e.sightings.push(sighting(state, now));
        }
    }

    /// Whether nothing of ours is left on the node or the claim.
    pub fn is_clean(&self) -> bool {
        let node = self.case.evidence.nodes[&NodeName::from(NODE)].shown();
        !self.held && node.is_none_or(|n| !n.out_of_service_by_us) && !self.is_closed()
    }

    fn is_closed(&self) -> bool {
        let node = self.case.evidence.nodes[&NodeName::from(NODE)].shown();
        node.is_some_and(|n| n.is_closed_by(&Case::recovery()))
    }
}
