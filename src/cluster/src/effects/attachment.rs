//! Requeueing and deleting a VolumeAttachment.

use crate::conditional::{delete_uid, require_uid};
use crate::gate::EffectPass;
use crate::reply::{applied, outcome, require_proof};
use jiff::Timestamp;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::Api;
use kube::api::{Patch, PatchParams};
use reattach_core::ids::{ResourceVersion, Uid};
use reattach_core::journal::Outcome;
use reattach_core::proof::FenceProof;
use serde_json::json;

/// The annotation that a requeue touches.
const REQUEUE_ANNOTATION: &str = "reattach.dev/requeued";

/// Touches a VolumeAttachment so that external-attacher looks at it at once (any change but its own error fields does).
pub async fn requeue(
    pass: &EffectPass,
    name: &str,
    uid: &Uid,
    version: &ResourceVersion,
    at: Timestamp,
) -> Outcome {
    let api: Api<VolumeAttachment> = Api::all(pass.client().clone());
    let body = json!({
        "metadata": { "uid": uid, "resourceVersion": version, "annotations": { REQUEUE_ANNOTATION: at.to_string() } }
    });
    outcome(
        api.patch(name, &PatchParams::default(), &Patch::Merge(&body))
            .await,
        "touched",
    )
}

/// Deletes a VolumeAttachment whose holder is proven not to write.
pub async fn delete_attachment(
    pass: &EffectPass,
    proof: &FenceProof,
    name: &str,
    uid: &Uid,
    now: Timestamp,
) -> Outcome {
    match require_proof(proof, now) {
        Ok(()) => delete_by_uid(pass, name, uid).await,
        Err(outcome) => outcome,
    }
}

/// Deletes a VolumeAttachment by its UID: names of VolumeAttachments are used again, since they follow from volume, driver
/// and node. One that is gone counts as deleted.
pub(crate) async fn delete_by_uid(pass: &EffectPass, name: &str, uid: &Uid) -> Outcome {
    if let Err(refused) = require_uid(uid) {
        return refused;
    }
    let api: Api<VolumeAttachment> = Api::all(pass.client().clone());
    match api.delete(name, &delete_uid(uid)).await {
        Err(kube::Error::Api(s)) if s.is_not_found() => applied("the VolumeAttachment is gone"),
        reply => outcome(reply, "deleted"),
    }
}
