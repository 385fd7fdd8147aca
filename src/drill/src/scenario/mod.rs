//! The scenarios.

mod fencing;
mod incident;
mod records;
mod refusals;
mod small;

use crate::app::App;
use crate::stage::{Sink, Stage};
use crate::timeline::Actor;
use crate::world::WorldError;
use futures::future::{BoxFuture, FutureExt};
use jiff::Timestamp;
use reattach_api::Phase;
use std::time::Duration;

/// How long a scenario may take in virtual time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As long as it took: hours behind a provider's lock.
    Full,
    /// Waits in which nothing happens are cut to minutes.
    Short,
}

/// A scenario.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// Summary for `--list`.
    pub summary: &'static str,
    /// The title of its post-mortem.
    pub title: &'static str,
    play: fn(u64, Pace, Sink) -> BoxFuture<'static, Result<Stage, WorldError>>,
}

impl Scenario {
    /// The scenario of this name.
    pub fn named(name: &str) -> Option<Self> {
        SCENARIOS.iter().find(|s| s.name == name).copied()
    }

    /// Plays it; must run on a paused clock.
    pub(crate) async fn play(self, seed: u64, pace: Pace, sink: Sink) -> Result<Stage, WorldError> {
        (self.play)(seed, pace, sink).await
    }
}

/// All of them; the first is the default.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "incident-2021-07-11",
        summary: "the founding incident: recycled nodes leave class B (phantom attachment), the provider locks one volume, and two pods fail for reasons of their own; first in mode DryRun, then in mode Auto",
        title: "2021-07-11: cascading node failures and ensuing volume problems (drill)",
        play: |seed, pace, sink| incident::play(seed, pace, sink).boxed(),
    },
    Scenario {
        name: "stuck-unpublish",
        summary: "class B (phantom attachment) with a CSI driver that cannot detach: reattach detaches at the cloud, with a proof that no machine writes to the volume",
        title: "Kubernetes cannot detach (drill)",
        play: |seed, _, sink| small::stuck_unpublish(seed, sink).boxed(),
    },
    Scenario {
        name: "hold-and-release",
        summary: "class B (phantom attachment) with the lightest runbook: new pods are gated for seconds and the stuck pods evicted. No replica count changes and the cloud is not called, even for an ordered StatefulSet with three stuck pods, which could not be scaled to zero",
        title: "Hold and release (drill)",
        play: |seed, _, sink| small::hold_and_release(seed, sink).boxed(),
    },
    Scenario {
        name: "hold-by-taint",
        summary: "as hold-and-release, on a cluster that cannot gate pods by admission (before Kubernetes 1.36): reattach closes the node with a taint, and the pods start on another node",
        title: "Hold by a taint (drill)",
        play: |seed, _, sink| small::hold_by_taint(seed, sink).boxed(),
    },
    Scenario {
        name: "hold-stuck-unpublish",
        summary: "as hold-and-release, with a CSI driver that cannot detach: reattach detaches at the cloud during the hold, with a proof",
        title: "Hold and release, and Kubernetes cannot detach (drill)",
        play: |seed, _, sink| small::hold_stuck_unpublish(seed, sink).boxed(),
    },
    Scenario {
        name: "abort",
        summary: "a person aborts a recovery in the middle: the replicas are restored, and no recovery begins until a person asks for one",
        title: "A recovery is aborted (drill)",
        play: |seed, _, sink| small::abort(seed, sink).boxed(),
    },
    Scenario {
        name: "leader-crash",
        summary: "the leading controller is killed in the middle of a recovery, at a point that the seed decides; the other replica continues the recovery",
        title: "The leader is killed (drill)",
        play: |seed, _, sink| small::leader_crash(seed, sink).boxed(),
    },
    Scenario {
        name: "lost-reply",
        summary: "the cloud carries out one detach and answers with an HTML error page; it loses the request of another detach",
        title: "The cloud's replies are lost (drill)",
        play: |seed, _, sink| small::lost_reply(seed, sink).boxed(),
    },
    Scenario {
        name: "refusals",
        summary: "fourteen workloads that must not be scaled to zero: each is refused with the object that forbids it, and nothing is changed",
        title: "What reattach refuses (drill)",
        play: |seed, _, sink| refusals::play(seed, sink).boxed(),
    },
    Scenario {
        name: "approve",
        summary: "a policy in mode Approve: the plan waits until a person approves exactly that plan",
        title: "A plan waits for approval (drill)",
        play: |seed, _, sink| small::approve(seed, sink).boxed(),
    },
    Scenario {
        name: "dead-node",
        summary: "class A (held by a dead node): a node's kernel hangs with four volumes attached. reattach powers the machine off, proves that it is off, and taints the Node until the volumes are detached; beside it, what stock Kubernetes does",
        title: "A dead node holds volumes (drill)",
        play: |seed, _, sink| fencing::dead_node(seed, sink).boxed(),
    },
    Scenario {
        name: "dead-node-no-permission",
        summary: "class A (held by a dead node) without permission to power off: the plan is shown, and nothing is changed until a person has shut the machine down",
        title: "A dead node and no permission to fence it (drill)",
        play: |seed, _, sink| fencing::no_permission(seed, sink).boxed(),
    },
    Scenario {
        name: "partition",
        summary: "class A (held by a dead node), but the node is only cut off and its pods keep writing: no volume is detached, and no write is lost when the node is back",
        title: "A node is cut off (drill)",
        play: |seed, _, sink| fencing::partition(seed, sink).boxed(),
    },
    Scenario {
        name: "partition-fenced",
        summary: "as partition, with permission to power off: the machine is powered off before its volumes move, and powered on again at the end",
        title: "A node is cut off and fenced (drill)",
        play: |seed, _, sink| fencing::partition_fenced(seed, sink).boxed(),
    },
    Scenario {
        name: "dead-node-returns",
        summary: "class A (held by a dead node): the fenced machine is booted while its Node is tainted. The taint is removed at once, and no pod starts there before the agent has answered clean",
        title: "A fenced node returns (drill)",
        play: |seed, _, sink| fencing::returns(seed, sink).boxed(),
    },
    Scenario {
        name: "lost-attachment",
        summary: "class C (lost attachment): a reboot drops the attachments and Kubernetes makes them again; reattach only waits",
        title: "A reboot drops attachments (drill)",
        play: |seed, _, sink| records::lost(seed, sink).boxed(),
    },
    Scenario {
        name: "lost-attachment-unpublished",
        summary: "class C (lost attachment) with a driver that does not report which nodes have a volume: hold, release, attach again",
        title: "A reboot drops attachments for good (drill)",
        play: |seed, _, sink| records::lost_for_good(seed, sink).boxed(),
    },
    Scenario {
        name: "detach-error",
        summary: "class D (stuck record): the driver fails every detach from a Ready node; reattach detaches at the cloud, with kubelet's own report as the proof",
        title: "Detaches fail (drill)",
        play: |seed, _, sink| records::detach_error(seed, sink).boxed(),
    },
    Scenario {
        name: "node-deleted",
        summary: "class D (stuck record): a Node was deleted and its machine is off; reattach heals it minutes before Kubernetes' rule of six minutes",
        title: "A Node is deleted (drill)",
        play: |seed, _, sink| records::node_deleted(seed, sink).boxed(),
    },
    Scenario {
        name: "manager-restarted",
        summary: "class D (stuck record): after a restart of kube-controller-manager a dead node's VolumeAttachment blocks the volume; only the out-of-service taint unblocks it",
        title: "The controller-manager restarts (drill)",
        play: |seed, _, sink| records::manager_restarted(seed, sink).boxed(),
    },
    Scenario {
        name: "missing-objects",
        summary: "class D (stuck record): a Secret and a PersistentVolume are missing. reattach names them and calls a person; the volumes heal once both are back",
        title: "Objects are missing (drill)",
        play: |seed, _, sink| records::missing_objects(seed, sink).boxed(),
    },
    Scenario {
        name: "driver-uninstalled",
        summary: "class D (stuck record): the CSI driver is uninstalled while volumes are attached. reattach names it and calls a person; the volumes heal once the driver is back",
        title: "The CSI driver is uninstalled (drill)",
        play: |seed, _, sink| records::driver_uninstalled(seed, sink).boxed(),
    },
    Scenario {
        name: "detach-locked",
        summary: "class D (stuck record): the provider keeps one volume locked, one busy and one detaching. reattach calls a person; the volumes heal once the provider has finished",
        title: "The provider does not detach (drill)",
        play: |seed, _, sink| records::locked(seed, sink).boxed(),
    },
    Scenario {
        name: "orphan",
        summary: "class E (orphan attachment): a node was replaced under its old name; reattach detaches the volume from the old instance, by its ID",
        title: "A replaced node leaves an orphan (drill)",
        play: |seed, _, sink| records::orphan(seed, sink).boxed(),
    },
    Scenario {
        name: "orphan-gone",
        summary: "class E (orphan attachment): as orphan, with the old instance deleted",
        title: "A deleted node leaves an orphan (drill)",
        play: |seed, _, sink| records::orphan_of_a_deleted(seed, sink).boxed(),
    },
];

/// The two nodes of most scenarios.
const TWO_NODES: [(&str, u64); 2] = [("lke-pool-node-1", 5_001), ("lke-pool-node-2", 5_002)];

fn redis() -> App {
    App::deployment("redis", 7_001, "pvcbb1d06139b334c1f", "the cache")
}

fn postgres() -> App {
    App::stateful_set("postgres", 7_002, "pvc5c1f6f0e6a0d4d0e", 1, "the database")
}

/// Detaches by the CSI driver fail from now on, or work again.
fn fail_detaches(s: &mut Stage, fail: bool) {
    s.world.csi.set_unpublish_fails(fail);
    let text = match fail {
        true => "the CSI driver's controller fails every detach from now on",
        false => "the CSI driver works again",
    };
    s.tell(Actor::Provider, "", text);
}

/// Passes virtual time until a moment.
async fn after(s: &mut Stage, moment: &str) {
    let at: Timestamp = moment.parse().unwrap_or_else(|_| s.world.now());
    s.pass(Duration::try_from(at.duration_since(s.world.now())).unwrap_or_default())
        .await;
}

/// Whether the newest recovery of an app reads this phase.
fn reading(s: &Stage, app: &str, phase: Phase) -> bool {
    s.recovery_of(app)
        .and_then(|r| r.status)
        .is_some_and(|st| st.phase == phase)
}
