//! The rows of behaviour on the real control plane: the very functions and bounds that the cluster in memory is held to.

use crate::common::{Stage, StageOptions};
use futures::future::join_all;
use reattach_sim::cloud::SimulatedCloud;
use reattach_sim::rows::{ROWS, Rig};
use reattach_tests_controlplane::{CsiFaults, Unpublish};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// The row that makes every Unpublish fail; it would disturb the others.
const DISTURBING: &str = "two-attachments";

#[tokio::test(flavor = "multi_thread")]
async fn every_row_stays_within_what_was_measured() {
    let nodes = 2 * u64::try_from(ROWS.len()).expect("few rows");
    let options = StageOptions { nodes, mode: None, controllers: 0, ..StageOptions::default() };
    let stage = Arc::new(Stage::set(options).await);
    let mut rigs = Vec::new();
    for (at, row) in ROWS.into_iter().enumerate() {
        rigs.push((row, rig(&stage, at).await));
    }
    let (last, rest): (Vec<_>, Vec<_>) = rigs.into_iter().partition(|(row, _)| *row == DISTURBING);
    let mut seen = join_all(rest.iter().map(|(row, rig)| async move { (*row, rig.row(row).await) })).await;
    for (row, rig) in &last {
        seen.push((*row, rig.row(row).await));
    }
    assert!(last.len() == 1 && seen.len() == ROWS.len(), "{DISTURBING} is not among {ROWS:?}");
    let mut wrong = Vec::new();
    for (row, result) in seen {
        match result {
            Err(error) => wrong.push(format!("{row}: {error}")),
            Ok(figures) => {
                for seen in figures {
                    println!("{row:<18} {:>6.1} {} (allowed {:?})", seen.value, seen.what, seen.bounds);
                    if !seen.fits() {
                        wrong.push(format!("{row}: {seen:?}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A StatefulSet of its own on two nodes of its own.
async fn rig(stage: &Arc<Stage>, at: usize) -> Rig {
    let set = format!("row{at}");
    let own = &stage.kubelets[2 * at..2 * at + 2];
    let names: Vec<&str> = own.iter().map(|k| k.node()).collect();
    let here = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": names}]}]}}});
    let volumes = stage
        .stateful_set_with("default", &set, 1, names[0], |object| {
            let spec = &mut object["spec"]["template"]["spec"];
            spec.as_object_mut().expect("a spec").remove("nodeSelector");
            spec["affinity"] = here;
        })
        .await;
    stage.await_ready("default", &set, 1).await;
    let label = stage.cloud.volume(volumes[0]).expect("a volume").label;
    let switch = stage.clone();
    Rig {
        client: stage.admin.clone(),
        kubelets: own.iter().map(|k| (k.node().to_owned(), k.clone())).collect(),
        cloud: Arc::new(SimulatedCloud::new(stage.cloud.clone())),
        unpublish_fails: Arc::new(move |fails| {
            let unpublish = if fails { Unpublish::Fail } else { Unpublish::Ok };
            let moved = switch.plane.csi_faults(CsiFaults { unpublish });
            let handle = tokio::runtime::Handle::current();
            tokio::task::block_in_place(|| handle.block_on(moved)).expect("the switch moves");
        }),
        driver: "linodebs.csi.linode.com".to_owned(),
        namespace: "default".to_owned(),
        set,
        handle: format!("{}-{label}", volumes[0]),
        look: Duration::from_millis(50),
    }
}
