//! A node that nobody hears of any more, and whose pod writes on: nothing may take its volume.

use crate::REAL;
use crate::common::LIMIT;
use crate::scene::{APP, Scene};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::DeleteParams};
use reattach_tests_controlplane::eventually;

pub async fn a_partitioned_node_keeps_its_volume() {
    let scene = Scene::share(&REAL, "keeps", 1).await;
    let volume = scene.canary("keeps-1").await;
    for program in ["kubelet", "agent"] {
        scene.machine("keeps-1").kill(program).expect("it ran");
    }
    scene.say("kubelet and agent are gone, the pod is not");
    scene.await_node("keeps-1", false).await;
    scene.say("the Node is not Ready");
    // A person who does not know better, and a pod that will be Terminating for ever.
    let pods: Api<Pod> = Api::namespaced(scene.stage.admin.clone(), scene.namespace());
    let pod = scene.pod().await;
    pods.delete(&pod.name_any(), &DeleteParams::default()).await.expect("deleted");
    let judged = eventually("a recovery that says why it waits", LIMIT, async || {
        let newest = scene.stage.recoveries(scene.namespace()).await.pop()?;
        let status = newest.status?;
        (!status.message.is_empty()).then_some(status)
    });
    let judged = judged.await.expect("the claim is looked at");
    scene.say(&format!("{:?}: {}", judged.phase, judged.message));

    // 400 writes are 20 s and more.
    scene.await_canary("keeps-1", 400).await;
    let console = scene.console("keeps-1");
    assert_eq!(console.one_after_another().expect("a writer"), 1);
    assert!(console.0.iter().all(|s| s.error.is_none()), "a write failed");
    let worst = console.0.windows(2).map(|p| p[1].at - p[0].at).max().unwrap_or_default();
    scene.say(&format!("{} writes, none failed, at most {:.1} s apart", console.0.len(), worst as f64 / 1e9));

    assert_eq!(scene.stage.cloud_mutations(), []);
    let holder = scene.stage.cloud.volume(volume).expect("a volume").holder;
    assert_eq!(holder.map(|i| i.0), Some(scene.stage.instance_number(1)));
    assert!(
        scene.hypervisor.device(scene.stage.instance_number(1), volume).is_some(),
        "the guest has its device"
    );
    assert_eq!(
        scene.stage.count(scene.namespace(), "Deployment", APP).await,
        (1, false),
        "nothing was scaled"
    );
    let effects: Vec<_> =
        scene.stage.recoveries(scene.namespace()).await.into_iter().filter_map(|r| r.status).collect();
    assert!(effects.iter().all(|s| s.journal.is_empty()), "{effects:#?}");
}
