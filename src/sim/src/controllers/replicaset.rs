//! ReplicaSets: as many active pods as asked for; a terminating pod does not count.

use serde_json::json;
use tokio::time::Instant;

use super::Context;
use super::workload::{
    Controller, active, controller_of, delete_pod, pod_of, pod_ready, write_status,
};
use crate::kapi::Informer;
use crate::object::{name, namespace, terminating, text, uid};

pub(super) async fn run(ctx: Context) {
    let mut c = Controller::new(
        ctx,
        "system:serviceaccount:kube-system:replicaset-controller",
    );
    let sets = c.follow("/apis/apps/v1/replicasets");
    let pods = c.follow("/api/v1/pods");
    let mut at = None;
    loop {
        c.next(at).await;
        at = c.after(look(&c, &sets, &pods).await);
    }
}

async fn look(
    c: &Controller,
    sets: &Informer,
    pods: &Informer,
) -> Result<Option<Instant>, kube::Error> {
    for set in sets.all().iter().filter(|s| !terminating(s)) {
        let all = pods.all();
        let mut ours: Vec<_> = all
            .iter()
            .filter(|p| controller_of(p) == uid(set) && active(p))
            .collect();
        let want = usize::try_from(set["spec"]["replicas"].as_i64().unwrap_or(1)).unwrap_or(0);
        let collection = format!("/api/v1/namespaces/{}/pods", namespace(set));
        let mut failure = None;
        for _ in ours.len()..want {
            let mut pod = pod_of(&set["spec"]["template"], "ReplicaSet", set);
            pod["metadata"]["generateName"] = json!(format!("{}-", name(set)));
            match c.kapi.create(&collection, &pod).await {
                Ok(made) => pods.saw(&made).await,
                Err(e) => {
                    failure = Some(e);
                    break;
                }
            }
        }
        // Unbound and unready pods go first.
        ours.sort_by_key(|p| (pod_ready(p), !text(p, "/spec/nodeName").is_empty()));
        for pod in ours.iter().take(ours.len().saturating_sub(want)) {
            if let Err(e) = delete_pod(&c.kapi, pod, json!({})).await {
                failure = Some(e);
            }
        }
        let all = pods.all();
        let ours: Vec<_> = all
            .iter()
            .filter(|p| controller_of(p) == uid(set) && active(p))
            .collect();
        let ready = ours.iter().filter(|p| pod_ready(p)).count();
        let status = json!({"replicas": ours.len(), "readyReplicas": ready, "availableReplicas": ready,
            "fullyLabeledReplicas": ours.len(), "observedGeneration": set["metadata"]["generation"]});
        write_status(&c.kapi, "replicasets", set, &status).await?;
        if let Some(e) = failure {
            return Err(e);
        }
    }
    Ok(None)
}
