//! A CSI node plugin that does not do its work.

use crate::REAL;
use crate::common::LIMIT;
use crate::scene::{APP, Scene};
use reattach_api::Phase;
use reattach_tests_controlplane::eventually;
use reattach_tests_node::{Disk, Program};

/// The device is there: whatever the plugin says, the volume is not lost and nothing is done to it.
pub async fn a_plugin_that_gives_up_is_not_ours() {
    let scene = Scene::share(&REAL, "gives-up", 1).await;
    scene.machine("gives-up-1").switches(r#"{"stage": "deadline"}"#).expect("the switch moves");
    let volume = scene.canary_unawaited("gives-up-1").await;
    let refused = async || {
        let log = scene.machine("gives-up-1").log("csi-node");
        (log.matches("DeadlineExceeded").count() >= 3).then_some(())
    };
    eventually("three refusals to stage", LIMIT, refused).await.expect("kubelet tries");
    let status =
        scene.stage.await_phase(scene.namespace(), APP, &[Phase::NotOurs]).await.status.expect("a status");
    scene.say(&format!("not ours: {}", status.message));
    assert!(status.message.contains("DeadlineExceeded") && status.journal.is_empty(), "{}", status.message);
    scene.stage.assert_only_records(&[]);
    scene.machine("gives-up-1").switches("{}").expect("the switch moves");
    scene.await_canary("gives-up-1", 10).await;
    scene.stage.assert_one_holder(&[volume]);
}

/// After a recycle the plugin hangs in NodeStageVolume. kubelet gives it two minutes, says nothing meanwhile, and reports the volume as in
/// use: a veto, until the plugin goes on.
pub async fn a_plugin_that_hangs_only_delays() {
    let scene = Scene::share(&REAL, "hangs", 1).await;
    let volume = scene.canary("hangs-1").await;
    scene.machine("hangs-1").switches(r#"{"stage": "hang"}"#).expect("the switch moves");
    let trouble = scene.recycle("hangs-1", Disk::Kept).await;
    scene.await_count(0, true).await;
    scene.say("scaled to zero");
    // Two more status reports of kubelet, 10 s apart, while it waits for the plugin.
    let beats = scene.heartbeats("hangs-1").await + 3;
    let beating = async || (scene.heartbeats("hangs-1").await >= beats).then_some(());
    eventually("kubelet's next Lease renewals", LIMIT, beating).await.expect("kubelet runs");
    let holder = scene.stage.cloud.volume(volume).expect("a volume").holder;
    assert_eq!(holder.map(|i| i.0), Some(scene.stage.instance_number(1)), "kubelet says that it is in use");
    assert_eq!(scene.stage.count(scene.namespace(), "Deployment", APP).await, (0, true));
    scene.say("three Lease renewals later it is attached as before");
    scene.machine("hangs-1").switches("{}").expect("the switch moves");
    scene.await_healed(volume, trouble).await;
    assert_eq!(scene.console("hangs-1").writers().len(), 2, "one before, one after");
}

/// After a recycle the plugin does not register with kubelet until later.
pub async fn a_plugin_that_is_not_registered_only_delays() {
    let scene = Scene::share(&REAL, "unregistered", 1).await;
    let volume = scene.canary("unregistered-1").await;
    scene.machine("unregistered-1").switches(r#"{"unregistered": true}"#).expect("the switch moves");
    let trouble = scene.recycle("unregistered-1", Disk::ReImaged).await;
    let said = async || {
        let log = scene.machine("unregistered-1").log("kubelet");
        log.contains("not found in the list of registered CSI drivers").then_some(())
    };
    eventually("kubelet's complaint", LIMIT, said).await.expect("it has no driver");
    scene.say("kubelet does not know the driver");
    {
        let mut machine = scene.machine("unregistered-1");
        machine.switches("{}").expect("the switch moves");
        machine.kill("csi-node").expect("it ran");
        machine.start(&Program::CsiNode).expect("it starts");
    }
    scene.await_healed(volume, trouble).await;
    assert_eq!(scene.console("unregistered-1").writers().len(), 2, "one before, one after");
}
