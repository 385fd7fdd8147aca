//! The cloud takes the device away under a live mount: the pod stays Running and Ready, and every write fails.

use crate::REAL;
use crate::common::LIMIT;
use crate::scene::{APP, Scene};
use kube::Api;
use reattach_api::{NodeVolumeReport, Phase};
use reattach_tests_controlplane::eventually;

pub async fn a_device_lost_under_a_ready_pod() {
    let scene = Scene::share(&REAL, "device", 1).await;
    let volume = scene.canary("device-1").await;
    let trouble = scene.stage.cloud.now();
    scene.stage.cloud.make_phantom(volume).expect("a volume");
    let failing = async || scene.console("device-1").0.iter().find_map(|s| s.error);
    let errno = eventually("a write that fails", LIMIT, failing).await.expect("the device is gone");
    scene.say(&format!("the canary's writes fail with errno {errno}"));
    assert!(matches!(errno, 5 | 30), "EIO, or EROFS once ext4 has given up: {errno}");
    scene.stage.await_ready(scene.namespace(), APP, 1).await;

    let reports: Api<NodeVolumeReport> = Api::all(scene.stage.admin.clone());
    let seen = eventually("a dead mount in the agent's report", LIMIT, async || {
        let status = reports.get_opt("device-1").await.ok()??.status?;
        let inventory = status.inventory?;
        let volumes = &inventory.get().ok()?.csi_volumes;
        volumes.iter().flat_map(|v| &v.mounts).find(|m| m.dead).map(|m| m.path.clone())
    });
    scene.say(&format!("the agent says: dead mount at {}", seen.await.expect("the agent reports it")));
    let recovery = scene.await_healed(volume, trouble).await;
    let diagnosis = recovery.status.and_then(|s| s.diagnosis).expect("a diagnosis");
    let facts = &diagnosis.get().expect("it can be read").facts;
    assert!(facts.iter().any(|f| f.contains("a dead mount remains")), "{facts:#?}");
}

/// kubelet cannot unmount: the Node's `volumesInUse` keeps naming the volume, and that is a veto for as long as it lasts.
pub async fn a_volume_in_use_is_not_detached() {
    let scene = Scene::share(&REAL, "in-use", 1).await;
    let volume = scene.canary("in-use-1").await;
    scene.machine("in-use-1").switches(r#"{"unstageFails": true}"#).expect("the switch moves");
    let trouble = scene.stage.cloud.now();
    scene.stage.cloud.make_phantom(volume).expect("a volume");
    scene.stage.await_phase(scene.namespace(), APP, &[Phase::Running]).await;
    // kubelet tries at 0.5, 1, 2, 4, 8, 16 s: the sixth failure is half a minute of a Ready Node that says "in use".
    let refused = async || {
        let said =
            scene.machine("in-use-1").log("csi-node").matches("NodeUnstageVolume failed to unmount").count();
        (said >= 6).then_some(said)
    };
    let refused = eventually("six failures to unmount", LIMIT, refused).await.expect("kubelet tries");
    scene.await_node("in-use-1", true).await;
    scene.say(&format!("{refused} times kubelet could not unmount"));
    assert_eq!(
        scene.stage.cloud_mutations(),
        [],
        "nothing is detached while a Ready Node says that it is in use"
    );
    let holder = scene.stage.cloud.volume(volume).expect("a volume").holder;
    assert_eq!(holder.map(|i| i.0), Some(scene.stage.instance_number(1)), "and by nobody else either");
    scene.machine("in-use-1").switches("{}").expect("the switch moves");
    scene.await_healed(volume, trouble).await;
}
