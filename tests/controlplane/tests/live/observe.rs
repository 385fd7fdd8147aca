//! Observe and DryRun write nothing but records, and what DryRun shows is what Auto does.

use crate::STOCK;
use crate::common::{AWAY, LIMIT, Stage, StageOptions};
use reattach_api::{Phase, VolumeRecovery};
use reattach_core::policy::Mode;
use reattach_sim::kubelet::DiskAfter;
use reattach_tests_controlplane::{eventually, say};

/// Waits until a recovery of the claim in this mode is in this phase.
async fn in_mode(stage: &Stage, claim: &str, mode: Mode, phase: Phase) -> VolumeRecovery {
    let what = format!("a recovery of {claim} in mode {mode}, {phase:?}");
    let found = eventually(&what, LIMIT, async || {
        let all = stage.recoveries("observe").await;
        let there = |r: &VolumeRecovery| r.status.as_ref().is_some_and(|s| s.phase == phase);
        all.into_iter()
            .find(|r| r.spec.claim_name == claim && r.spec.mode == mode && there(r))
    });
    found.await.expect("in time")
}

pub async fn observe_only_records_and_auto_runs_the_shown_plan() {
    let stage = Stage::share(
        &STOCK,
        "observe",
        StageOptions {
            mode: Some(Mode::Observe),
            ..StageOptions::default()
        },
    )
    .await;
    stage.namespace("observe").await;
    let redis = stage.deployment("observe", "redis", "observe-1").await;
    let sql = stage.stateful_set("observe", "sql", 1, "observe-1").await[0];
    for app in ["redis", "sql"] {
        stage.await_ready("observe", app, 1).await;
    }
    stage
        .kubelet("observe-1")
        .recycle(DiskAfter::Kept, AWAY)
        .await;
    for claim in ["redis", "data-sql-0"] {
        let status = in_mode(&stage, claim, Mode::Observe, Phase::Planned)
            .await
            .status
            .expect("a status");
        assert!(
            status.plan.is_none() && status.journal.is_empty(),
            "{status:#?}"
        );
        say!("Observe: {claim}: {}", status.message);
    }
    stage.assert_only_records(&[]);

    stage.policy(Mode::DryRun).await;
    let mut shown = Vec::new();
    for claim in ["redis", "data-sql-0"] {
        let status = in_mode(&stage, claim, Mode::DryRun, Phase::Planned)
            .await
            .status
            .expect("a status");
        assert!(status.journal.is_empty());
        shown.push(
            status
                .plan
                .expect("a plan")
                .get()
                .expect("it can be read")
                .clone(),
        );
    }
    stage.assert_only_records(&[]);
    for (kind, name) in [("Deployment", "redis"), ("StatefulSet", "sql")] {
        assert_eq!(stage.count("observe", kind, name).await, (1, false));
    }

    stage.policy(Mode::Auto).await;
    for (claim, plan) in ["redis", "data-sql-0"].into_iter().zip(shown) {
        let recovery = in_mode(&stage, claim, Mode::Auto, Phase::Recovered).await;
        let run = recovery.status.expect("a status").plan.expect("a plan");
        let run = run.get().expect("it can be read");
        assert_eq!(*run, plan, "what was shown is what was done");
        let steps: Vec<String> = run.steps.iter().map(|s| format!("{:?}", s.kind)).collect();
        say!(
            "DryRun and Auto: {claim}: plan {} ({})",
            run.hash,
            steps.join(", ")
        );
        let old = in_mode(&stage, claim, Mode::DryRun, Phase::Aborted).await;
        say!(
            "  the dry run gave way: {}",
            old.status.expect("a status").message
        );
    }
    for app in ["redis", "sql"] {
        stage.await_ready("observe", app, 1).await;
    }
    stage.assert_one_holder(&[redis, sql]);
    stage.await_nothing_left().await;
}
