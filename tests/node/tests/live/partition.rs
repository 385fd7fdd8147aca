//! A node that is cut off and whose pod keeps writing: its volume must not be detached.

use crate::REAL;
use crate::common::LIMIT;
use crate::fixture::{APP, Fixture};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::DeleteParams};
use reattach_tests_controlplane::eventually;

pub async fn a_partitioned_node_keeps_its_volume() {
    let fixture = Fixture::share(&REAL, "keeps", 1).await;
    let volume = fixture.canary("keeps-1").await;
    for program in ["kubelet", "agent"] {
        fixture.machine("keeps-1").kill(program).expect("it ran");
    }
    fixture.say("kubelet and agent are gone, the pod is not");
    fixture.await_node("keeps-1", false).await;
    fixture.say("the Node is not Ready");
    // A person deletes the pod, which stays Terminating for ever.
    let pods: Api<Pod> = Api::namespaced(fixture.stage.admin.clone(), fixture.namespace());
    let pod = fixture.pod().await;
    pods.delete(&pod.name_any(), &DeleteParams::default())
        .await
        .expect("deleted");
    let judged = eventually("a recovery that says why it waits", LIMIT, async || {
        let newest = fixture.stage.recoveries(fixture.namespace()).await.pop()?;
        let status = newest.status?;
        (!status.message.is_empty()).then_some(status)
    });
    let judged = judged.await.expect("the claim is looked at");
    fixture.say(&format!("{:?}: {}", judged.phase, judged.message));

    // 400 writes are 20 s and more.
    fixture.await_canary("keeps-1", 400).await;
    let console = fixture.console("keeps-1");
    assert_eq!(console.one_after_another().expect("a writer"), 1);
    assert!(
        console.0.iter().all(|s| s.error.is_none()),
        "a write failed"
    );
    let worst = console
        .0
        .windows(2)
        .map(|p| p[1].at - p[0].at)
        .max()
        .unwrap_or_default();
    fixture.say(&format!(
        "{} writes, none failed, at most {:.1} s apart",
        console.0.len(),
        worst as f64 / 1e9
    ));

    assert_eq!(fixture.stage.cloud_mutations(), []);
    let holder = fixture.stage.cloud.volume(volume).expect("a volume").holder;
    assert_eq!(holder.map(|i| i.0), Some(fixture.stage.instance_number(1)));
    assert!(
        fixture
            .hypervisor
            .device(fixture.stage.instance_number(1), volume)
            .is_some(),
        "the guest has its device"
    );
    assert_eq!(
        fixture
            .stage
            .count(fixture.namespace(), "Deployment", APP)
            .await,
        (1, false),
        "nothing was scaled"
    );
    let effects: Vec<_> = fixture
        .stage
        .recoveries(fixture.namespace())
        .await
        .into_iter()
        .filter_map(|r| r.status)
        .collect();
    assert!(effects.iter().all(|s| s.journal.is_empty()), "{effects:#?}");
}
