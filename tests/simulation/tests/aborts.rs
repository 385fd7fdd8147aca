//! A person aborts at every point of a recovery, right before a request of the controller leaves.

use kube::ResourceExt;
use reattach_api::{Phase, VolumeRecovery};
use reattach_core::hold::{HOLD_GATE, HOLD_LABEL};
use reattach_core::policy::Mode;
use reattach_core::runbook::{DEFAULT_RUNBOOK, SCALE_TO_ZERO};
use reattach_core::stamp::STAMP_ANNOTATION;
use reattach_drill::in_virtual_time;
use reattach_drill::request_log::Entry;
use reattach_drill::stage::{Expect, recovery_of};
use reattach_drill::world::WorldError;
use reattach_tests_simulation::fixture::{abort_before, new_stage, recycle_redis};
use reattach_tests_simulation::{NODES, Part, parts, redis, seeds};
use serde_json::Value;
use std::time::Duration;

/// The end of one aborted run.
struct AbortedRun {
    /// Of each recovery, and whether it was aborted. Afterwards the same volume may be in trouble of another kind.
    phases: Vec<(bool, Phase)>,
    /// The requests of the controller from the abort on; `None`: there was nothing to abort yet.
    after: Option<Vec<Entry>>,
    requests: u64,
    workload: Value,
    /// A label or a gate of a hold is left.
    held: bool,
}

/// One app on a recycled node; `number` is the request before which the abort is stored.
async fn play(
    runbook: &'static str,
    seed: u64,
    unpublish_fails: bool,
    number: Option<u64>,
) -> Result<AbortedRun, WorldError> {
    let mut s = new_stage(seed, &NODES).await?;
    let app = redis();
    s.add(app.clone(), Expect::Restored).await?;
    s.world.policy("everything", Mode::Auto, 0, runbook).await?;
    s.running(&["redis"], Duration::from_secs(180)).await?;
    s.world.csi.set_unpublish_fails(unpublish_fails);
    s.start_replica("reattach-controller-0", None);
    s.pass(Duration::from_secs(5)).await;
    let aborted = number.map(|number| abort_before(&s, number));
    recycle_redis(&mut s).await?;
    let over = |r: VolumeRecovery| r.status.is_some_and(|st| st.phase.is_final());
    let watched = app.clone();
    s.until_stored("the recovery over", Duration::from_secs(900), move |w| {
        recovery_of(w, &watched).is_some_and(over)
    })
    .await?;
    s.pass(Duration::from_secs(90)).await;
    let at = aborted.and_then(|at| *at.lock().expect("unpoisoned"));
    let entries = s.world.request_log.entries();
    Ok(AbortedRun {
        phases: s
            .world
            .recoveries()
            .into_iter()
            .map(|r| (r.spec.abort.is_some(), r.status.unwrap_or_default().phase))
            .collect(),
        after: at.map(|at| entries[at..].to_vec()),
        requests: s.replicas[0].requests(),
        held: s
            .world
            .recoveries()
            .iter()
            .any(|r| r.labels().contains_key(HOLD_LABEL))
            || s.world.server().list("", "pods", None).iter().any(|p| {
                p["spec"]["schedulingGates"]
                    .as_array()
                    .is_some_and(|g| g.iter().any(|g| g["name"] == HOLD_GATE))
            }),
        workload: app
            .read(s.world.server())
            .map(|w| (*w).clone())
            .unwrap_or_default(),
    })
}

fn aborted_run(
    runbook: &'static str,
    seed: u64,
    unpublish_fails: bool,
    number: Option<u64>,
) -> AbortedRun {
    let played =
        in_virtual_time(move || async move { play(runbook, seed, unpublish_fails, number).await });
    played
        .expect("virtual time")
        .unwrap_or_else(|e| panic!("{runbook}, seed {seed}, abort at {number:?}: {e}"))
}

/// The intent of an effect that this request journals as started, if it was stored.
fn started(entry: &Entry) -> Option<&str> {
    if !entry.accepted()
        || entry.resource().1 != "volumerecoveries"
        || !entry.path.ends_with("/status")
    {
        return None;
    }
    let last = entry.body.pointer("/status/journal")?.as_array()?.last()?;
    last.pointer("/mark/intent")
        .or_else(|| last.get("intent"))?
        .as_str()
}

parts!(
    an_aborted_run_begins_nothing_and_restores {
        part_1,
        part_2,
        part_3,
        part_4
    } | part
        | { aborts(SCALE_TO_ZERO, part) }
);

parts!(
    an_aborted_hold_begins_nothing_and_is_lifted {
        part_1,
        part_2,
        part_3,
        part_4
    } | part
        | { aborts(DEFAULT_RUNBOOK, part) }
);

fn aborts(runbook: &'static str, part: Part) {
    let mut aborted = 0;
    for seed in seeds(1) {
        for unpublish_fails in [false, true] {
            let calm = aborted_run(runbook, seed, unpublish_fails, None);
            assert_eq!(calm.phases, [(false, Phase::Recovered)]);
            for number in part.of(1..=calm.requests) {
                let run = aborted_run(runbook, seed, unpublish_fails, Some(number));
                let case = format!(
                    "{runbook}, seed {seed}, Unpublish fails {unpublish_fails}, abort before request {number}"
                );
                let Some(after) = run.after else { continue };
                aborted += 1;
                let intents: Vec<&str> = after.iter().filter_map(started).collect();
                let freeing = |i: &&str| {
                    !i.contains("back to")
                        && !i.contains("remove the stamp")
                        && !i.contains("end the hold")
                };
                assert!(
                    !intents.iter().any(freeing),
                    "{case}: it still began {intents:?}"
                );
                let ended = |(aborted, phase): &(bool, Phase)| {
                    !aborted || matches!(phase, Phase::Aborted | Phase::Recovered)
                };
                assert!(run.phases.iter().all(ended), "{case}: {:?}", run.phases);
                assert_eq!(run.workload["spec"]["replicas"], 1, "{case}");
                assert!(
                    run.workload["metadata"]["annotations"][STAMP_ANNOTATION].is_null(),
                    "{case}"
                );
                assert!(!run.held, "{case}: a hold is left");
            }
        }
    }
    assert!(
        aborted * part.count > 20,
        "only {aborted} aborts found something to abort in {part:?}"
    );
}
