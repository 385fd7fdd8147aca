//! A CSI node plugin that does not do its work.

use crate::REAL;
use crate::common::LIMIT;
use crate::fixture::{APP, Fixture};
use reattach_api::Phase;
use reattach_tests_controlplane::eventually;
use reattach_tests_node::{Disk, Program};

/// The device is there: whatever the plugin says, the volume is not lost and nothing is done to it.
pub async fn a_plugin_that_gives_up_is_not_ours() {
    let fixture = Fixture::share(&REAL, "gives-up", 1).await;
    fixture
        .machine("gives-up-1")
        .switches(r#"{"stage": "deadline"}"#)
        .expect("the switch moves");
    let volume = fixture.canary_unawaited("gives-up-1").await;
    let refused = async || {
        let log = fixture.machine("gives-up-1").log("csi-node");
        (log.matches("DeadlineExceeded").count() >= 3).then_some(())
    };
    eventually("three refusals to stage", LIMIT, refused)
        .await
        .expect("kubelet tries");
    let status = fixture
        .stage
        .await_phase(fixture.namespace(), APP, &[Phase::NotOurs])
        .await
        .status
        .expect("a status");
    fixture.say(&format!("not ours: {}", status.message));
    assert!(
        status.message.contains("DeadlineExceeded") && status.journal.is_empty(),
        "{}",
        status.message
    );
    fixture.stage.assert_only_records(&[]);
    fixture
        .machine("gives-up-1")
        .switches("{}")
        .expect("the switch moves");
    fixture.await_canary("gives-up-1", 10).await;
    fixture.stage.assert_one_holder(&[volume]);
}

/// After a recycle the plugin hangs in NodeStageVolume. kubelet gives it two minutes, says nothing meanwhile, and reports the volume as in
/// use: a veto, until the plugin goes on.
pub async fn a_plugin_that_hangs_only_delays() {
    let fixture = Fixture::share(&REAL, "hangs", 1).await;
    let volume = fixture.canary("hangs-1").await;
    fixture
        .machine("hangs-1")
        .switches(r#"{"stage": "hang"}"#)
        .expect("the switch moves");
    let trouble = fixture.recycle("hangs-1", Disk::Kept).await;
    fixture.await_count(0, true).await;
    fixture.say("scaled to zero");
    // Two more status reports of kubelet, 10 s apart, while it waits for the plugin.
    let beats = fixture.heartbeats("hangs-1").await + 3;
    let beating = async || (fixture.heartbeats("hangs-1").await >= beats).then_some(());
    eventually("kubelet's next Lease renewals", LIMIT, beating)
        .await
        .expect("kubelet runs");
    let holder = fixture.stage.cloud.volume(volume).expect("a volume").holder;
    assert_eq!(
        holder.map(|i| i.0),
        Some(fixture.stage.instance_number(1)),
        "kubelet says that it is in use"
    );
    assert_eq!(
        fixture
            .stage
            .count(fixture.namespace(), "Deployment", APP)
            .await,
        (0, true)
    );
    fixture.say("three Lease renewals later it is attached as before");
    fixture
        .machine("hangs-1")
        .switches("{}")
        .expect("the switch moves");
    fixture.await_healed(volume, trouble).await;
    assert_eq!(
        fixture.console("hangs-1").writers().len(),
        2,
        "one before, one after"
    );
}

/// After a recycle the plugin does not register with kubelet until later.
pub async fn a_plugin_that_is_not_registered_only_delays() {
    let fixture = Fixture::share(&REAL, "unregistered", 1).await;
    let volume = fixture.canary("unregistered-1").await;
    fixture
        .machine("unregistered-1")
        .switches(r#"{"unregistered": true}"#)
        .expect("the switch moves");
    let trouble = fixture.recycle("unregistered-1", Disk::ReImaged).await;
    let said = async || {
        let log = fixture.machine("unregistered-1").log("kubelet");
        log.contains("not found in the list of registered CSI drivers")
            .then_some(())
    };
    eventually("kubelet's complaint", LIMIT, said)
        .await
        .expect("it has no driver");
    fixture.say("kubelet does not know the driver");
    {
        let mut machine = fixture.machine("unregistered-1");
        machine.switches("{}").expect("the switch moves");
        machine.kill("csi-node").expect("it ran");
        machine.start(&Program::CsiNode).expect("it starts");
    }
    fixture.await_healed(volume, trouble).await;
    assert_eq!(
        fixture.console("unregistered-1").writers().len(),
        2,
        "one before, one after"
    );
}
