//! The scenarios.

mod incident;

use crate::stage::{Sink, Stage, recovery_of};
use crate::world::WorldError;
use futures::future::{BoxFuture, FutureExt};
use jiff::Timestamp;
use reattach_api::Phase;
use std::time::Duration;

/// A scenario.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it shows, in one sentence.
    pub summary: &'static str,
    /// The title of its post-mortem.
    pub title: &'static str,
    play: fn(u64, Sink) -> BoxFuture<'static, Result<Stage, WorldError>>,
}

impl Scenario {
    /// The scenario of this name.
    pub fn named(name: &str) -> Option<Self> {
        SCENARIOS.iter().find(|s| s.name == name).copied()
    }

    /// Plays it; must run on a paused clock.
    pub(crate) async fn play(self, seed: u64, sink: Sink) -> Result<Stage, WorldError> {
        (self.play)(seed, sink).await
    }
}

/// All of them; the first is the default.
pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "incident-2021-07-11",
    summary: "the founding incident: recycled nodes, phantom volumes, a provider's lock, two pods that are not ours",
    title: "2021-07-11: cascading node failures and ensuing volume problems (drill)",
    play: |seed, sink| incident::play(seed, sink).boxed(),
}];

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
