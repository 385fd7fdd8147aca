//! The cloud takes the device away under a live mount: the pod stays Running and Ready, and every write fails.

use crate::REAL;
use crate::common::LIMIT;
use crate::fixture::{APP, Fixture};
use kube::Api;
use reattach_api::{NodeVolumeReport, Phase};
use reattach_tests_controlplane::eventually;

pub async fn a_device_lost_under_a_ready_pod() {
    let fixture = Fixture::share(&REAL, "device", 1).await;
    let volume = fixture.canary("device-1").await;
    let trouble = fixture.stage.cloud.now();
    fixture.stage.cloud.make_phantom(volume).expect("a volume");
    let failing = async || fixture.console("device-1").0.iter().find_map(|s| s.error);
    let errno = eventually("a write that fails", LIMIT, failing)
        .await
        .expect("the device is gone");
    fixture.say(&format!("the canary's writes fail with errno {errno}"));
    assert!(
        matches!(errno, 5 | 30),
        "EIO, or EROFS once ext4 has given up: {errno}"
    );
    fixture.stage.await_ready(fixture.namespace(), APP, 1).await;

    let reports: Api<NodeVolumeReport> = Api::all(fixture.stage.admin.clone());
    let seen = eventually("a dead mount in the agent's report", LIMIT, async || {
        let status = reports.get_opt("device-1").await.ok()??.status?;
        let inventory = status.inventory?;
        let volumes = &inventory.get().ok()?.csi_volumes;
        volumes
            .iter()
            .flat_map(|v| &v.mounts)
            .find(|m| m.dead)
            .map(|m| m.path.clone())
    });
    fixture.say(&format!(
        "the agent says: dead mount at {}",
        seen.await.expect("the agent reports it")
    ));
    let recovery = fixture.await_healed(volume, trouble).await;
    let diagnosis = recovery
        .status
        .and_then(|s| s.diagnosis)
        .expect("a diagnosis");
    let facts = &diagnosis.get().expect("it can be read").facts;
    assert!(
        facts.iter().any(|f| f.contains("a dead mount remains")),
        "{facts:#?}"
    );
}

/// kubelet cannot unmount: the Node's `volumesInUse` keeps naming the volume, and that is a veto for as long as it lasts.
pub async fn a_volume_in_use_is_not_detached() {
    let fixture = Fixture::share(&REAL, "in-use", 1).await;
    let volume = fixture.canary("in-use-1").await;
    fixture
        .machine("in-use-1")
        .switches(r#"{"unstageFails": true}"#)
        .expect("the switch moves");
    let trouble = fixture.stage.cloud.now();
    fixture.stage.cloud.make_phantom(volume).expect("a volume");
    fixture
        .stage
        .await_phase(fixture.namespace(), APP, &[Phase::Running])
        .await;
    // kubelet tries at 0.5, 1, 2, 4, 8, 16 s: the sixth failure is half a minute of a Ready Node that says "in use".
    let refused = async || {
        let said = fixture
            .machine("in-use-1")
            .log("csi-node")
            .matches("NodeUnstageVolume failed to unmount")
            .count();
        (said >= 6).then_some(said)
    };
    let refused = eventually("six failures to unmount", LIMIT, refused)
        .await
        .expect("kubelet tries");
    fixture.await_node("in-use-1", true).await;
    fixture.say(&format!("{refused} times kubelet could not unmount"));
    assert_eq!(
        fixture.stage.cloud_mutations(),
        [],
        "nothing is detached while a Ready Node says that it is in use"
    );
    let holder = fixture.stage.cloud.volume(volume).expect("a volume").holder;
    assert_eq!(
        holder.map(|i| i.0),
        Some(fixture.stage.instance_number(1)),
        "and by nobody else either"
    );
    fixture
        .machine("in-use-1")
        .switches("{}")
        .expect("the switch moves");
    fixture.await_healed(volume, trouble).await;
}
