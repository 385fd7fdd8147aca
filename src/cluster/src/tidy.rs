//! Removes what reattach itself left behind, or keeps it in force while an order of a recovery that is gone may still
//! be carried out. Every function takes a [`TidyPass`], acts on nothing that does not carry a mark of ours, and ends within
//! the pass's deadline.

use crate::effects::{self, hold, node, node_lock};
use crate::gate::{EffectPass, TidyPass};
use crate::reply::outcome;
use jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use reattach_api::VolumeRecovery;
use reattach_api::metadata;
use reattach_core::ids::{NodeName, ObjectName, ResourceVersion, Uid};
use reattach_core::journal::Outcome;
use reattach_core::workload::{ScalePath, WorkloadRef};
use serde_json::Value;
use std::future::Future;

/// Removes our out-of-service taint from a Node.
pub async fn untaint(pass: &TidyPass, name: &NodeName, uid: &Uid) -> Outcome {
    in_time(pass.as_effect(), |pass| node::untaint(pass, name, uid)).await
}

/// Removes a recovery's quarantine from a Node.
pub async fn unquarantine(pass: &TidyPass, name: &NodeName, uid: &Uid, recovery: &Uid) -> Outcome {
    in_time(pass.as_effect(), |pass| {
        node::unquarantine(pass, name, uid, recovery)
    })
    .await
}

/// Removes a recovery's closing taint from a Node.
pub async fn open(pass: &TidyPass, name: &NodeName, uid: &Uid, recovery: &Uid) -> Outcome {
    in_time(pass.as_effect(), |pass| {
        node::open(pass, name, uid, recovery)
    })
    .await
}

/// Releases a node's lock, if the recovery has it.
pub async fn release_lock(pass: &TidyPass, node: &NodeName, recovery: &ObjectName) -> Outcome {
    in_time(pass.as_effect(), async |pass| {
        outcome(
            node_lock::release(pass, node, recovery).await,
            "the lock is released",
        )
    })
    .await
}

/// Removes our scheduling gate from a pod.
pub async fn ungate(pass: &TidyPass, pod: &ObjectName, uid: &Uid) -> Outcome {
    in_time(pass.as_effect(), |pass| hold::ungate(pass, pod, uid)).await
}

/// Removes the label of a hold from a VolumeRecovery.
pub async fn unhold(pass: &TidyPass, recovery: &VolumeRecovery) -> Outcome {
    in_time(pass.as_effect(), |pass| {
        hold::label(pass, recovery, Value::Null, "the label is off")
    })
    .await
}

/// Restores the replicas of a workload, if given, and removes the stamp.
pub async fn restore(
    pass: &TidyPass,
    workload: &WorkloadRef,
    version: &ResourceVersion,
    path: ScalePath,
    replicas: Option<i32>,
) -> Outcome {
    in_time(pass.as_effect(), |pass| {
        effects::workload::restore(pass, workload, version, path, replicas)
    })
    .await
}

/// Renews a node's lock for a recovery that is gone, while an order of it may still be carried out.
pub async fn keep_lock(
    pass: &TidyPass,
    node: &NodeName,
    recovery: &ObjectName,
    now: Timestamp,
) -> Outcome {
    in_time(pass.as_effect(), async |pass| {
        outcome(
            node_lock::renew(pass, node, recovery, now).await,
            "the lock is renewed",
        )
    })
    .await
}

/// Makes a VolumeRecovery with the label of a hold, in place of one that was deleted while an order of it may still be carried
/// out.
pub async fn keep_held(pass: &TidyPass, recovery: &VolumeRecovery) -> Outcome {
    in_time(pass.as_effect(), async |pass| {
        let name = match metadata::of(recovery).object_name() {
            Ok(name) => name,
            Err(missing) => return missing.into(),
        };
        let api: Api<VolumeRecovery> = Api::namespaced(pass.client().clone(), &name.namespace);
        outcome(
            api.create(&PostParams::default(), recovery).await,
            "new pods of the claim are held",
        )
    })
    .await
}

async fn in_time<'a, F: Future<Output = Outcome>>(
    pass: &'a EffectPass,
    effect: impl FnOnce(&'a EffectPass) -> F,
) -> Outcome {
    match tokio::time::timeout_at(pass.deadline(), effect(pass)).await {
        Ok(outcome) => outcome,
        Err(_) => Outcome::Unknown {
            why: "no answer before the deadline".to_owned(),
        },
    }
}
