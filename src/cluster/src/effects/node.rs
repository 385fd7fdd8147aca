//! Our taints on a Node: out-of-service while its machine is off or gone, quarantine until its agent answers clean, and the
//! closing taint of a hold where the cluster cannot hold pods away by admission.
//!
//! # Expected flow
//! Each function reads the Node right before it writes, and changes the one taint that it is about.
//!
//! # Guarantees
//! The list of taints is written as a whole, on condition of the Node's UID and of the resourceVersion that was read, so
//! that no other taint is lost. A taint that is not ours is never changed. The out-of-service taint is never put on a
//! Node that is Ready: the attach/detach controller would pull volumes that are mounted (measured).
//!
//! The out-of-service taint needs a proof about the whole node and the node's lock ([`super::node_lock`]). The other taints need
//! no lock: they keep new pods away, and get in no other remediator's way.
//!
//! # Caveats
//! A Node has at most one taint per key and effect: where another recovery has quarantined it already, that one stays.
//!
//! # Errors
//! [`Outcome`] says what is known of the write.

use crate::effects::node_lock;
use crate::gate::EffectPass;
use crate::reply::{applied, failure, outcome, require_proof, said};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use reattach_api::metadata;
use reattach_core::hold::{HOLD_TAINT_PREFIX, hold_taint};
use reattach_core::ids::{NodeName, ObjectName, Uid};
use reattach_core::journal::Outcome;
use reattach_core::names::{OUT_OF_SERVICE_TAINT, QUARANTINE_TAINT, TAINT_VALUE};
use reattach_core::proof::FenceProof;
use serde_json::json;

/// Whether the Node is Ready by its own condition.
pub fn is_ready(node: &Node) -> bool {
    ready_condition(node).is_some_and(|c| c.status == "True")
}

fn ready_condition(node: &Node) -> Option<&NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == "Ready")
}

/// Whether its kubelet has stopped posting (`Ready` is `Unknown`), and when the control plane last changed that condition.
pub fn silence(node: &Node) -> (bool, Option<Timestamp>) {
    let unknown = ready_condition(node).filter(|c| c.status == "Unknown");
    let since = unknown.and_then(|c| c.last_transition_time.as_ref());
    (unknown.is_some(), since.map(|t| t.0))
}

/// Whether the Node carries the out-of-service taint with our value.
pub fn is_out_of_service_by_us(node: &Node) -> bool {
    taints(node).iter().any(is_ours)
}

/// Whether the Node carries our quarantine, whatever its value.
pub fn is_quarantined(node: &Node) -> bool {
    taints(node).iter().any(|t| t.key == QUARANTINE_TAINT)
}

/// The recovery (its UID) that has the Node in quarantine. A taint without a value belongs to no recovery.
pub fn quarantined_by(node: &Node) -> Option<Uid> {
    let taint = taints(node).iter().find(|t| t.key == QUARANTINE_TAINT)?;
    taint
        .value
        .as_deref()
        .filter(|uid| !uid.is_empty())
        .map(Uid::from)
}

fn taints(node: &Node) -> &[Taint] {
    node.spec
        .as_ref()
        .and_then(|s| s.taints.as_deref())
        .unwrap_or_default()
}

fn is_ours(taint: &Taint) -> bool {
    taint.key == OUT_OF_SERVICE_TAINT && taint.value.as_deref() == Some(TAINT_VALUE)
}

/// Fences a Node by the out-of-service taint, under the node's lock. Kubernetes then removes every pod of the Node and detaches
/// every volume.
pub async fn fence(
    pass: &EffectPass,
    proof: &FenceProof,
    name: &NodeName,
    uid: &Uid,
    recovery: &ObjectName,
    now: Timestamp,
) -> Outcome {
    if let Err(outcome) = require_proof(proof, now) {
        return outcome;
    }
    if !proof.fences_the_node() {
        let why = "the proof is about the volume and not about the whole node".to_owned();
        return Outcome::NotApplied { why, retry: false };
    }
    match node_lock::take(pass, name, recovery, now).await {
        Ok(()) => taint_out_of_service(pass, name, uid).await,
        Err(outcome) => outcome,
    }
}

/// Removes our out-of-service taint and then releases the node's lock.
pub async fn unfence(
    pass: &EffectPass,
    name: &NodeName,
    uid: &Uid,
    recovery: &ObjectName,
) -> Outcome {
    let outcome = untaint(pass, name, uid).await;
    node_lock::release_after(pass, name, recovery, &outcome).await;
    outcome
}

/// Puts the out-of-service taint on a Node that is not Ready.
pub(crate) async fn taint_out_of_service(pass: &EffectPass, name: &NodeName, uid: &Uid) -> Outcome {
    let node = match read_node(pass, name, uid).await {
        Ok(node) => node,
        Err(outcome) => return outcome,
    };
    if is_ready(&node) {
        return not_yet(format!("Node {name} is Ready"));
    }
    let ours = taint(OUT_OF_SERVICE_TAINT, Some(TAINT_VALUE), "NoExecute");
    if taints(&node)
        .iter()
        .any(|t| is_ours(t) && t.effect == ours.effect)
    {
        return applied("the node has the taint already");
    }
    if let Some(other) = taints(&node)
        .iter()
        .find(|t| t.key == ours.key && !is_ours(t))
    {
        let value = other.value.as_deref().unwrap_or_default();
        let why = format!(
            "Node {name} has the taint {}={value}, which is not from reattach",
            other.key
        );
        return Outcome::NotApplied { why, retry: false };
    }
    add_taint(pass, &node, ours, "tainted out-of-service").await
}

/// Removes our out-of-service taint. A Node that is gone has none.
pub(crate) async fn untaint(pass: &EffectPass, name: &NodeName, uid: &Uid) -> Outcome {
    let done = "the out-of-service taint is off";
    remove_taints(pass, name, uid, is_ours, done).await
}

/// Puts our quarantine on the Node, with the recovery's UID as its value.
pub async fn quarantine(pass: &EffectPass, name: &NodeName, uid: &Uid, recovery: &Uid) -> Outcome {
    let node = match read_node(pass, name, uid).await {
        Ok(node) => node,
        Err(outcome) => return outcome,
    };
    if is_quarantined(&node) {
        return applied(&match quarantined_by(&node) {
            Some(by) => format!("the node is in quarantine already, by recovery {by}"),
            None => {
                "the node is in quarantine already, by a taint that names no recovery".to_owned()
            }
        });
    }
    let ours = taint(QUARANTINE_TAINT, Some(recovery.as_str()), "NoSchedule");
    add_taint(pass, &node, ours, "put into quarantine").await
}

/// The recoveries (their UIDs) whose closing taints are on the Node.
pub fn closed_by(node: &Node) -> Vec<Uid> {
    taints(node)
        .iter()
        .filter_map(|t| {
            t.key
                .strip_prefix(HOLD_TAINT_PREFIX)
                .filter(|uid| !uid.is_empty())
        })
        .map(Uid::from)
        .collect()
}

/// Closes the Node to new pods, by a taint with this recovery's own key.
pub async fn close(pass: &EffectPass, name: &NodeName, uid: &Uid, recovery: &Uid) -> Outcome {
    let node = match read_node(pass, name, uid).await {
        Ok(node) => node,
        Err(outcome) => return outcome,
    };
    if closed_by(&node).contains(recovery) {
        return applied("it is closed already");
    }
    let ours = taint(&hold_taint(recovery), None, "NoSchedule");
    add_taint(pass, &node, ours, "closed to new pods").await
}

/// Removes this recovery's closing taint. A Node that is gone has none.
pub async fn open(pass: &EffectPass, name: &NodeName, uid: &Uid, recovery: &Uid) -> Outcome {
    let key = hold_taint(recovery);
    remove_taints(pass, name, uid, |t| t.key == key, "open to new pods").await
}

/// Removes the quarantine of this recovery. A Node that is gone has none.
pub async fn unquarantine(
    pass: &EffectPass,
    name: &NodeName,
    uid: &Uid,
    recovery: &Uid,
) -> Outcome {
    let its =
        |t: &Taint| t.key == QUARANTINE_TAINT && t.value.as_deref() == Some(recovery.as_str());
    remove_taints(pass, name, uid, its, "the quarantine is off").await
}

fn taint(key: &str, value: Option<&str>, effect: &str) -> Taint {
    Taint {
        key: key.to_owned(),
        value: value.map(str::to_owned),
        effect: effect.to_owned(),
        time_added: None,
    }
}

/// Adds a taint to those that the Node has.
async fn add_taint(pass: &EffectPass, node: &Node, taint: Taint, done: &str) -> Outcome {
    let mut all = taints(node).to_vec();
    all.push(taint);
    write(pass, node, &all, done).await
}

/// Removes the taints that `which` picks. A Node that is gone has none.
async fn remove_taints(
    pass: &EffectPass,
    name: &NodeName,
    uid: &Uid,
    which: impl Fn(&Taint) -> bool,
    done: &str,
) -> Outcome {
    let node = match Api::<Node>::all(pass.client().clone())
        .get_opt(name.as_str())
        .await
    {
        Ok(Some(node)) if node.uid().as_deref() == Some(uid.as_str()) => node,
        Ok(_) => return applied("that Node is gone"),
        Err(error) => return failure(error),
    };
    let rest: Vec<Taint> = taints(&node)
        .iter()
        .filter(|t| !which(t))
        .cloned()
        .collect();
    if rest.len() == taints(&node).len() {
        return applied("it is not there");
    }
    write(pass, &node, &rest, done).await
}

/// The Node as it is now, if it is the one that was meant.
async fn read_node(pass: &EffectPass, name: &NodeName, uid: &Uid) -> Result<Node, Outcome> {
    match Api::<Node>::all(pass.client().clone())
        .get_opt(name.as_str())
        .await
    {
        Ok(Some(node)) if node.uid().as_deref() == Some(uid.as_str()) => Ok(node),
        Ok(Some(_)) => Err(not_yet(format!("Node {name} is another one now"))),
        Ok(None) => Err(not_yet(format!("Node {name} does not exist any more"))),
        // Nothing was written yet.
        Err(error) => Err(not_yet(format!(
            "Node {name} could not be read: {}",
            said(&error)
        ))),
    }
}

/// `spec.taints` is an atomic list (Kubernetes `api/core/v1/types.go`): it is replaced as a whole.
async fn write(pass: &EffectPass, node: &Node, taints: &[Taint], done: &str) -> Outcome {
    let (uid, version) = match metadata::of(node).condition() {
        Ok(condition) => condition,
        Err(missing) => return missing.into(),
    };
    let body = json!({
        "metadata": { "uid": uid, "resourceVersion": version },
        "spec": { "taints": taints },
    });
    let api: Api<Node> = Api::all(pass.client().clone());
    outcome(
        api.patch(
            &node.name_any(),
            &PatchParams::default(),
            &Patch::Merge(&body),
        )
        .await,
        done,
    )
}

/// Nothing was written, and a later attempt may succeed.
fn not_yet(why: String) -> Outcome {
    Outcome::NotApplied { why, retry: true }
}
