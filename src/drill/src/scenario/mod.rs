//! The scenarios.

mod fencing;
mod incident;
mod records;
mod refusals;
mod small;

use crate::stage::{Sink, Stage, recovery_of};
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
    /// What it shows, in one sentence.
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
        summary: "the founding incident: recycled nodes, phantom volumes, a provider's lock, two pods that are not ours; first as dry run, then for real",
        title: "2021-07-11: cascading node failures and ensuing volume problems (drill)",
        play: |seed, pace, sink| incident::play(seed, pace, sink).boxed(),
    },
    Scenario {
        name: "stuck-unpublish",
        summary: "the CSI driver cannot detach: reattach detaches at the cloud, with a proof that nobody writes",
        title: "Kubernetes cannot detach (drill)",
        play: |seed, _, sink| small::stuck_unpublish(seed, sink).boxed(),
    },
    Scenario {
        name: "hold-and-release",
        summary: "the lightest way: new pods are held away for seconds, the stuck ones evicted; no replica is touched, the cloud is not called; three stuck pods of one ordered StatefulSet, which could not be scaled to zero",
        title: "Hold and release (drill)",
        play: |seed, _, sink| small::hold_and_release(seed, sink).boxed(),
    },
    Scenario {
        name: "hold-by-taint",
        summary: "the same on a cluster that cannot hold pods away by admission (before Kubernetes 1.36): the node is closed by a taint, and the pods start elsewhere",
        title: "Hold by a taint (drill)",
        play: |seed, _, sink| small::hold_by_taint(seed, sink).boxed(),
    },
    Scenario {
        name: "hold-stuck-unpublish",
        summary: "the same with a CSI driver that cannot detach: reattach detaches at the cloud under the hold, with a proof",
        title: "Hold and release, and Kubernetes cannot detach (drill)",
        play: |seed, _, sink| small::hold_stuck_unpublish(seed, sink).boxed(),
    },
    Scenario {
        name: "abort",
        summary: "a person aborts in the middle: the replicas are restored, and nothing begins again until asked",
        title: "A recovery is aborted (drill)",
        play: |seed, _, sink| small::abort(seed, sink).boxed(),
    },
    Scenario {
        name: "leader-crash",
        summary: "the leader is killed in the middle of a recovery (where: by the seed); the other replica goes on",
        title: "The leader is killed (drill)",
        play: |seed, _, sink| small::leader_crash(seed, sink).boxed(),
    },
    Scenario {
        name: "lost-reply",
        summary: "the cloud answers a detach with an HTML error page after doing it, and drops another unheard",
        title: "The cloud's replies are lost (drill)",
        play: |seed, _, sink| small::lost_reply(seed, sink).boxed(),
    },
    Scenario {
        name: "refusals",
        summary: "fourteen workloads that must not be scaled to zero, each with the object that says so: nothing is touched",
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
        summary: "class A (held by a dead node): a node's kernel hangs with four volumes on it; it is powered off, proven off, tainted, freed, untainted; beside it what stock Kubernetes does",
        title: "A dead node holds volumes (drill)",
        play: |seed, _, sink| fencing::dead_node(seed, sink).boxed(),
    },
    Scenario {
        name: "dead-node-no-permission",
        summary: "class A without the right to power off: the plan is shown and nothing is done until a person has shut the machine down",
        title: "A dead node and no permission to fence it (drill)",
        play: |seed, _, sink| fencing::no_permission(seed, sink).boxed(),
    },
    Scenario {
        name: "partition",
        summary: "class A (held by a dead node): a node cannot be reached and its pods write on: nothing is freed, and nothing is lost when it is back",
        title: "A node is cut off (drill)",
        play: |seed, _, sink| fencing::partition(seed, sink).boxed(),
    },
    Scenario {
        name: "partition-fenced",
        summary: "the same with the right to power off: the writer is stopped before its volumes move; the machine is powered on again",
        title: "A node is cut off and fenced (drill)",
        play: |seed, _, sink| fencing::partition_fenced(seed, sink).boxed(),
    },
    Scenario {
        name: "dead-node-returns",
        summary: "class A (held by a dead node): the fenced machine is booted while its Node is tainted: the taint goes at once, no pod comes before its agent answers clean",
        title: "A fenced node returns (drill)",
        play: |seed, _, sink| fencing::returns(seed, sink).boxed(),
    },
    Scenario {
        name: "lost-attachment",
        summary: "class C (lost attachment): a reboot drops the attachments and Kubernetes makes them again: we only wait",
        title: "A reboot drops attachments (drill)",
        play: |seed, _, sink| records::lost(seed, sink).boxed(),
    },
    Scenario {
        name: "lost-attachment-unpublished",
        summary: "class C with a driver that does not tell where volumes are: hold, release, attach anew",
        title: "A reboot drops attachments for good (drill)",
        play: |seed, _, sink| records::lost_for_good(seed, sink).boxed(),
    },
    Scenario {
        name: "detach-error",
        summary: "class D (stuck record): the driver fails every detach from a Ready node; the volume is freed at the cloud by kubelet's own word",
        title: "Detaches fail (drill)",
        play: |seed, _, sink| records::detach_error(seed, sink).boxed(),
    },
    Scenario {
        name: "node-deleted",
        summary: "class D (stuck record): a Node was deleted and its machine is off: minutes sooner than the 6-minute rule",
        title: "A Node is deleted (drill)",
        play: |seed, _, sink| records::node_deleted(seed, sink).boxed(),
    },
    Scenario {
        name: "manager-restarted",
        summary: "class D (stuck record): after a controller-manager restart a dead node's record blocks the volume; only the taint unblocks it",
        title: "The controller-manager restarts (drill)",
        play: |seed, _, sink| records::manager_restarted(seed, sink).boxed(),
    },
    Scenario {
        name: "missing-objects",
        summary: "class D (stuck record): a Secret and a PersistentVolume are missing: named, a person called, healed when they are back",
        title: "Objects are missing (drill)",
        play: |seed, _, sink| records::missing_objects(seed, sink).boxed(),
    },
    Scenario {
        name: "driver-uninstalled",
        summary: "class D (stuck record): the CSI driver is uninstalled under attached volumes: named, a person called, healed when it is back",
        title: "The CSI driver is uninstalled (drill)",
        play: |seed, _, sink| records::driver_uninstalled(seed, sink).boxed(),
    },
    Scenario {
        name: "detach-locked",
        summary: "class D (stuck record): volumes that are locked, busy and detaching for ever: a person is called, healed when the provider is done",
        title: "The provider does not let go (drill)",
        play: |seed, _, sink| records::locked(seed, sink).boxed(),
    },
    Scenario {
        name: "orphan",
        summary: "class E (orphan attachment): a node was replaced under its old name; the volume is freed from the old instance, by its ID",
        title: "A replaced node leaves an orphan (drill)",
        play: |seed, _, sink| records::orphan(seed, sink).boxed(),
    },
    Scenario {
        name: "orphan-gone",
        summary: "class E (orphan attachment): the same with the old instance deleted",
        title: "A deleted node leaves an orphan (drill)",
        play: |seed, _, sink| records::orphan_of_a_deleted(seed, sink).boxed(),
    },
];

/// Lets time pass until a moment.
async fn after(s: &mut Stage, moment: &str) {
    let at: Timestamp = moment.parse().unwrap_or_else(|_| s.world.now());
    s.pass(Duration::try_from(at.duration_since(s.world.now())).unwrap_or_default())
        .await;
}

/// Whether the newest recovery of an app reads this phase.
fn reading(s: &Stage, app: &str, phase: Phase) -> bool {
    let recovery = s
        .workloads
        .get(app)
        .and_then(|c| recovery_of(&s.world, &c.app));
    recovery
        .and_then(|r| r.status)
        .is_some_and(|st| st.phase == phase)
}
