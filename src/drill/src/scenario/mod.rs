//! The scenarios.

mod incident;
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
];

/// Lets time pass until a moment.
async fn after(s: &mut Stage, moment: &str) {
    let at: Timestamp = moment.parse().unwrap_or_else(|_| s.world.now());
    s.pass(Duration::try_from(at.duration_since(s.world.now())).unwrap_or_default()).await;
}

/// Whether the newest recovery of an app reads this phase.
fn reading(s: &Stage, app: &str, phase: Phase) -> bool {
    let recovery = s.cast.get(app).and_then(|c| recovery_of(&s.world, &c.app));
    recovery.and_then(|r| r.status).is_some_and(|st| st.phase == phase)
}
