//! Processes that die, and records that vanish, in the middle of a recovery.

use crate::common::{AWAY, LIMIT, Stage, StageOptions};
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};
use reattach_api::{Phase, VolumeRecovery};
use reattach_core::policy::Mode;
use reattach_sim::kubelet::DiskAfter;
use reattach_tests_controlplane::{CsiFaults, Unpublish, eventually, say};
use std::collections::BTreeSet;

const APP: &str = "redis";

/// Breaks the volume, and stops the recovery where the workload is at zero and Kubernetes cannot detach.
async fn in_the_middle(stage: &Stage) -> VolumeRecovery {
    stage
        .plane
        .csi_faults(Unpublish::Hang)
        .await
        .expect("the switch moves");
    stage.kubelet("node-1").recycle(DiskAfter::Kept, AWAY).await;
    let zero = eventually("a workload at zero", LIMIT, async || {
        (stage.count("shop", "Deployment", APP).await == (0, true)).then_some(())
    });
    zero.await
        .unwrap_or_else(|e| panic!("{e}\n{}", stage.logs()));
    stage.await_phase("shop", APP, &[Phase::Running]).await
}

async fn healed(stage: &Stage) -> VolumeRecovery {
    stage
        .plane
        .csi_faults(CsiFaults::default())
        .await
        .expect("the switch moves");
    let recovery = stage.await_phase("shop", APP, &[Phase::Recovered]).await;
    stage.await_ready("shop", APP, 1).await;
    assert_eq!(stage.count("shop", "Deployment", APP).await, (1, false));
    stage.await_nothing_left().await;
    recovery
}

/// The writers of the journal, whose terms only grow.
fn writers(recovery: &VolumeRecovery) -> BTreeSet<String> {
    let journal = recovery.history().expect("it can be read").1;
    assert!(journal.is_sorted_by_key(|e| e.term), "{journal:#?}");
    // The next leader observes what the dead one had no time to write down.
    let words = [
        "stamped and scaled to 0",
        "has 0 replicas, stamp of ours: true",
    ];
    let scaled = |mark: &str| words.iter().any(|w| mark.contains(w));
    let scales = journal
        .iter()
        .filter(|e| scaled(&format!("{:?}", e.event)))
        .count();
    assert_eq!(scales, 1, "{journal:#?}");
    journal
        .iter()
        .map(|e| format!("{} (term {})", e.by, e.term))
        .collect()
}

pub async fn another_controller_resumes_after_a_crash() {
    let stage = Stage::set(StageOptions::default()).await;
    stage.namespace("shop").await;
    let volume = stage.deployment("shop", APP, "node-1").await;
    stage.await_ready("shop", APP, 1).await;

    let begun = in_the_middle(&stage).await;
    let first = stage.leader().await;
    stage.kill_controller(first);
    let next = stage.leader().await;
    assert_ne!(first, next);
    let recovery = healed(&stage).await;
    let by = writers(&recovery);
    say!("killed, and another went on: {by:?}");
    assert!(recovery.uid() == begun.uid() && by.len() == 2, "{by:?}");

    // SIGTERM: the turn under way ends and the Lease is released, so that the next controller does not wait for its expiry.
    let begun = in_the_middle(&stage).await;
    stage.start_controller().await;
    let leader = stage.leader().await;
    stage.stop_controller(leader);
    let next = stage.leader().await;
    let recovery = healed(&stage).await;
    let by = writers(&recovery);
    say!("told to end, and another went on: {by:?}");
    assert!(
        next != leader && recovery.uid() == begun.uid() && by.len() == 2,
        "{by:?}"
    );

    let begun = in_the_middle(&stage).await;
    // No other recovery shall begin.
    stage.policy(Mode::Observe).await;
    let api: Api<VolumeRecovery> = Api::namespaced(stage.admin.clone(), "shop");
    api.delete(&begun.name_any(), &DeleteParams::default())
        .await
        .expect("marked");
    let gone = eventually("the deleted VolumeRecovery's end", LIMIT, async || {
        api.get_opt(&begun.name_any())
            .await
            .ok()?
            .is_none()
            .then_some(())
    });
    gone.await
        .unwrap_or_else(|e| panic!("{e}\n{}", stage.logs()));
    say!(
        "deleted in the middle: {:?}",
        stage.count("shop", "Deployment", APP).await
    );
    assert_eq!(stage.count("shop", "Deployment", APP).await, (1, false));
    stage.policy(Mode::Auto).await;
    healed(&stage).await;
    stage.assert_one_holder(&[volume]);
}
