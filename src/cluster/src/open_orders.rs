//! Notes of orders to the cloud whose outcome is not known yet, kept outside of the VolumeRecovery (safety rule S3).
//!
//! # Expected flow
//! An effect that is an order to the cloud writes a note right before the order is sent ([`note`]), in the same passage of
//! the gate. The run takes it away once the journal has the outcome, and at its end ([`settle`]). Where a VolumeRecovery was
//! deleted by force in between, the note is all that tells of the order: the janitor ([`list`]) leaves what the recovery put
//! there in force until the provider's history accounts for the order, or a person deletes the note.
//!
//! # Guarantees
//! No order is sent whose note is not stored. A note is taken away by recovery and step, never by age.
//!
//! # Assumptions
//! Notes are Leases beside the locks of nodes: the controller may write Leases there, and people of other namespaces may not.
//!
//! # Caveats
//! A Lease with our label whose content cannot be read counts as an open order about everything of its recovery.
//!
//! # Errors
//! [`note`] says why the order was not sent, as an [`Outcome`].

use crate::effects::node_lock;
use crate::gate::{EffectPass, TidyPass};
use crate::reply::{is_refused, said};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};
use reattach_core::cloud::PowerChange;
use reattach_core::evidence::CsiSource;
use reattach_core::ids::{InstanceId, NodeName, ObjectName, StepIx, Uid, VolumeId};
use reattach_core::journal::{NewestJob, Outcome};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The label of a note, with the UID of its recovery.
pub const ORDER_LABEL: &str = "reattach.dev/order-of";
/// The annotation with the note's content.
const CONTENT: &str = "reattach.dev/order";

/// What was ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ordered {
    /// To detach the volume.
    Detach,
    /// To change the power of the holder.
    Power(PowerChange),
    /// To switch the automatic restart of the holder off. Its note stays until the restart is on again.
    KeepOff,
}

/// An order to the cloud, with everything that its fate is found by when nothing else of its recovery is left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenOrder {
    /// The recovery.
    pub recovery: ObjectName,
    /// Its UID.
    pub uid: Uid,
    /// The step of its plan.
    pub step: StepIx,
    /// The claim.
    pub claim: ObjectName,
    /// The volume as the driver calls it. None: it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub csi: Option<CsiSource>,
    /// The volume as the cloud calls it.
    pub volume: VolumeId,
    /// The instance.
    pub holder: InstanceId,
    /// Its Node.
    pub node: NodeName,
    /// What was ordered.
    pub ordered: Ordered,
    /// The order in words.
    pub intent: String,
    /// When it was sent, at the latest.
    pub sent: Timestamp,
    /// The end of the provider's history before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_job: Option<NewestJob>,
    /// The run holds new pods of the claim away by admission.
    #[serde(default)]
    pub by_gate: bool,
}

/// A note as it was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// The Lease's name.
    pub name: String,
    /// The UID of the recovery.
    pub recovery: Uid,
    /// The order; one sentence where it cannot be read.
    pub order: Result<OpenOrder, String>,
}

impl Note {
    /// Whether it may be about this claim. One that cannot be read may be about any.
    pub fn may_be_about(&self, claim: &ObjectName) -> bool {
        self.order
            .as_ref()
            .map_or(true, |order| order.claim == *claim)
    }
}

/// The name of a note. It begins as every Lease of ours does.
pub fn name(recovery: &Uid, step: StepIx) -> String {
    format!("reattach-order-{recovery}-{}", step.0)
}

/// Writes the note of an order that is about to be sent.
///
/// # Errors
/// The outcome of the effect that the note is for: not applied, since nothing may be sent without a note.
pub async fn note(pass: &EffectPass, order: &OpenOrder) -> Result<(), Outcome> {
    let name = name(&order.uid, order.step);
    let failed = |why: String, retry| {
        let place = format!("Lease {}/{name}", pass.locks());
        Outcome::NotApplied {
            why: format!("the order could not be noted ({place}): {why}"),
            retry,
        }
    };
    let content = serde_json::to_string(order).map_err(|error| failed(error.to_string(), false))?;
    let said_no = |error: kube::Error| failed(said(&error), !is_refused(&error));
    let api: Api<Lease> = Api::namespaced(pass.client().clone(), pass.locks());
    let old = api.get_opt(&name).await.map_err(said_no)?;
    let metadata = ObjectMeta {
        name: Some(name.clone()),
        labels: Some(BTreeMap::from([(
            ORDER_LABEL.to_owned(),
            order.uid.to_string(),
        )])),
        annotations: Some(BTreeMap::from([(CONTENT.to_owned(), content)])),
        resource_version: old
            .as_ref()
            .and_then(|l| l.metadata.resource_version.clone()),
        ..ObjectMeta::default()
    };
    let holder_identity = Some(node_lock::holder(&order.recovery));
    let lease = Lease {
        metadata,
        spec: Some(LeaseSpec {
            holder_identity,
            ..LeaseSpec::default()
        }),
    };
    let params = PostParams::default();
    let written = match old {
        Some(_) => api.replace(&name, &params, &lease).await,
        None => api.create(&params, &lease).await,
    };
    written.map(drop).map_err(said_no)
}

/// Takes the note of an order away whose outcome is known. It is no error if there is none.
///
/// # Errors
/// The API server's error.
pub async fn settle(pass: &TidyPass, note: &str) -> Result<(), kube::Error> {
    let pass = pass.as_effect();
    let api: Api<Lease> = Api::namespaced(pass.client().clone(), pass.locks());
    match api.delete(note, &DeleteParams::default()).await {
        Err(kube::Error::Api(s)) if s.is_not_found() => Ok(()),
        reply => reply.map(drop),
    }
}

/// Every note, read live.
///
/// # Errors
/// The API server's error: nothing may be concluded then.
pub async fn list(client: &Client, namespace: &str) -> Result<Vec<Note>, kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let all = api.list(&ListParams::default().labels(ORDER_LABEL)).await?;
    Ok(all.items.iter().filter_map(read).collect())
}

fn read(lease: &Lease) -> Option<Note> {
    let recovery = Uid::from(lease.labels().get(ORDER_LABEL)?.as_str());
    let name = lease.name_any();
    let order = match lease.annotations().get(CONTENT) {
        Some(content) => {
            serde_json::from_str::<OpenOrder>(content).map_err(|error| error.to_string())
        }
        None => Err(format!("annotation {CONTENT} is missing")),
    };
    let order = order.map_err(|why| format!("the note of an order cannot be read: {why}"));
    Some(Note {
        name,
        recovery,
        order,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> OpenOrder {
        OpenOrder {
            recovery: ObjectName::new("shop", "data-1"),
            uid: Uid::from("u-1"),
            step: StepIx(4),
            claim: ObjectName::new("shop", "data"),
            csi: None,
            volume: VolumeId::from("7001"),
            holder: InstanceId::from("101"),
            node: NodeName::from("node-a"),
            ordered: Ordered::Power(PowerChange::Off),
            intent: "power instance 101 (node-a) off".to_owned(),
            sent: Timestamp::UNIX_EPOCH,
            newest_job: Some(NewestJob::Nothing),
            by_gate: true,
        }
    }

    fn lease(content: &str) -> Lease {
        let metadata = ObjectMeta {
            name: Some(name(&order().uid, order().step)),
            labels: Some(BTreeMap::from([(ORDER_LABEL.to_owned(), "u-1".to_owned())])),
            annotations: Some(BTreeMap::from([(CONTENT.to_owned(), content.to_owned())])),
            ..ObjectMeta::default()
        };
        Lease {
            metadata,
            spec: None,
        }
    }

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let note = read(&lease(&serde_json::to_string(&order()).unwrap())).unwrap();
        assert_eq!(
            (note.name.as_str(), note.order.as_ref()),
            ("reattach-order-u-1-4", Ok(&order()))
        );
        assert!(
            note.may_be_about(&order().claim)
                && !note.may_be_about(&ObjectName::new("shop", "other"))
        );
    }

    #[test]
    fn a_note_that_cannot_be_read_may_be_about_any_claim() {
        let note = read(&lease("{}")).unwrap();
        assert!(note.order.is_err() && note.may_be_about(&ObjectName::new("shop", "other")));
        assert_eq!(read(&Lease::default()), None);
    }
}
