//! The lock of one node: while a recovery fences it, no other remediator does (safety rule S4).
//!
//! # Expected flow
//! An effect on a whole node [`take`]s the lock right before it acts, which also renews it; a run that lives [`renew`]s it
//! every few minutes; the effect that undoes it, or the end of the recovery, [`release`]s it.
//!
//! # Guarantees
//! A lock that another holds and that has not expired is never taken; only a lock of our own is released. Both are
//! compare-and-swap on the Lease's resourceVersion.
//!
//! # Assumptions
//! Other remediators use the same Lease. In the namespace `medik8s-leases` it is the one of the medik8s
//! operators: Lease `node-<node>`, 3600 s, deleted when it is released (`pkg/lease` of `github.com/medik8s/common`).
//!
//! # Caveats
//! Expiry is judged by wall clocks, ours and the holder's: against an hour their difference does not count. A Lease that
//! does not say until when it holds counts as held.
//!
//! # Errors
//! [`take`] says why the effect was not issued, as an [`Outcome`].

use crate::conditional::{delete_version, write_lease};
use crate::gate::EffectPass;
use crate::reply::{is_refused, said};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{Api, Client};
use reattach_api::metadata;
use reattach_core::ids::{NodeName, ObjectName};
use reattach_core::journal::Outcome;

/// How long the lock lasts without being renewed, in seconds: what medik8s takes (`pkg/lease` of medik8s/common).
const DURATION_SECONDS: i32 = 3600;

/// How every holder of ours begins.
const OURS: &str = "reattach/";

/// The Lease's name for a node: the scheme of medik8s/common.
pub fn name(node: &NodeName) -> String {
    format!("node-{node}")
}

/// A recovery as the holder of a lock.
pub fn holder(recovery: &ObjectName) -> String {
    format!("{OURS}{}/{}", recovery.namespace, recovery.name)
}

/// The recovery behind a holder; `None`: it is none of ours.
pub fn recovery_of(holder: &str) -> Option<ObjectName> {
    let (namespace, name) = holder.strip_prefix(OURS)?.split_once('/')?;
    Some(ObjectName::new(namespace, name))
}

/// How a lock stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lock {
    /// No holder.
    Free,
    /// A holder whose time has run out.
    Expired {
        /// The holder.
        holder: String,
    },
    /// A holder whose time has not run out.
    Held {
        /// The holder.
        holder: String,
    },
}

/// Judges a lock by its Lease. Pure.
fn judge(lease: Option<&Lease>, now: Timestamp) -> Lock {
    let Some(spec) = lease.and_then(|l| l.spec.as_ref()) else {
        return Lock::Free;
    };
    let Some(holder) = spec.holder_identity.clone().filter(|h| !h.is_empty()) else {
        return Lock::Free;
    };
    let lasts = spec
        .lease_duration_seconds
        .map(|s| SignedDuration::from_secs(s.into()));
    let until = spec
        .renew_time
        .as_ref()
        .zip(lasts)
        .and_then(|(t, d)| t.0.checked_add(d).ok());
    if until.is_some_and(|until| until < now) {
        Lock::Expired { holder }
    } else {
        Lock::Held { holder }
    }
}

/// Returns the holder of a node's lock.
///
/// # Errors
/// The API server's error.
pub async fn read(
    client: &Client,
    namespace: &str,
    node: &NodeName,
    now: Timestamp,
) -> Result<Lock, kube::Error> {
    let lease = Api::<Lease>::namespaced(client.clone(), namespace)
        .get_opt(&name(node))
        .await?;
    Ok(judge(lease.as_ref(), now))
}

/// Takes the lock for a recovery, or renews it.
///
/// # Errors
/// The outcome of the effect that the lock was taken for: not applied, naming the holder or the API server's answer.
pub async fn take(
    pass: &EffectPass,
    node: &NodeName,
    recovery: &ObjectName,
    now: Timestamp,
) -> Result<(), Outcome> {
    let api: Api<Lease> = Api::namespaced(pass.client().clone(), pass.locks());
    let (name, me) = (name(node), holder(recovery));
    let place = format!("the lock of node {node} (Lease {}/{name})", pass.locks());
    let failed = |error: kube::Error| Outcome::NotApplied {
        // Rights and a namespace that are missing stay so; anything else may go better the next time.
        retry: !is_refused(&error),
        why: format!("{place} could not be taken: {}", said(&error)),
    };
    let old = api.get_opt(&name).await.map_err(failed)?;
    let continued = match judge(old.as_ref(), now) {
        Lock::Held { holder } if holder != me => {
            // The journal stands in the recovery's namespace, whose people need not see the names of another one.
            let holder = match recovery_of(&holder) {
                Some(other) if other.namespace != recovery.namespace => {
                    "a recovery of another namespace".to_owned()
                }
                _ => holder,
            };
            return Err(Outcome::NotApplied {
                why: format!("{holder} has {place}"),
                retry: true,
            });
        }
        Lock::Held { .. } => true,
        Lock::Expired { .. } | Lock::Free => false,
    };
    let written = write_lease(&api, &name, old, |lease| {
        let spec = lease.spec.get_or_insert_default();
        let transitions = spec.lease_transitions.unwrap_or(0);
        *spec = LeaseSpec {
            holder_identity: Some(me),
            lease_duration_seconds: Some(DURATION_SECONDS),
            acquire_time: spec
                .acquire_time
                .take()
                .filter(|_| continued)
                .or(Some(MicroTime(now))),
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(match continued {
                true => transitions,
                false => transitions.saturating_add(1),
            }),
            ..LeaseSpec::default()
        };
    })
    .await;
    written.map(drop).map_err(failed)
}

/// Returns the Lease of a node's lock, if this recovery has it.
async fn own_lease(
    api: &Api<Lease>,
    node: &NodeName,
    recovery: &ObjectName,
) -> Result<Option<Lease>, kube::Error> {
    let is_own = |lease: &Lease| {
        let held_by = lease.spec.as_ref().and_then(|s| s.holder_identity.as_ref());
        held_by == Some(&holder(recovery))
    };
    Ok(api.get_opt(&name(node)).await?.filter(is_own))
}

/// Renews the lock if this recovery has it, also one that has expired and that has no other holder. Returns whether it has it. A lock
/// that it has not is never taken here.
///
/// # Errors
/// The API server's error, a conflict among them.
pub async fn renew(
    pass: &EffectPass,
    node: &NodeName,
    recovery: &ObjectName,
    now: Timestamp,
) -> Result<bool, kube::Error> {
    let api: Api<Lease> = Api::namespaced(pass.client().clone(), pass.locks());
    let Some(lease) = own_lease(&api, node, recovery).await? else {
        return Ok(false);
    };
    write_lease(&api, &name(node), Some(lease), |lease| {
        lease.spec.get_or_insert_default().renew_time = Some(MicroTime(now));
    })
    .await?;
    Ok(true)
}

/// Releases the lock if this recovery has it. Returns whether it had.
///
/// # Errors
/// The API server's error; the lock then expires by itself.
pub async fn release(
    pass: &EffectPass,
    node: &NodeName,
    recovery: &ObjectName,
) -> Result<bool, kube::Error> {
    let api: Api<Lease> = Api::namespaced(pass.client().clone(), pass.locks());
    let Some(lease) = own_lease(&api, node, recovery).await? else {
        return Ok(false);
    };
    let (uid, version) = metadata::of(&lease).condition()?;
    match api
        .delete(&name(node), &delete_version(&uid, &version))
        .await
    {
        // It is gone, or another holder took it in between.
        Err(kube::Error::Api(s)) if s.is_not_found() || s.is_conflict() => Ok(false),
        reply => reply.map(|_| true),
    }
}

/// Releases the lock after an effect that was applied. Best effort: the end of the recovery releases it again.
pub async fn release_after(
    pass: &EffectPass,
    node: &NodeName,
    recovery: &ObjectName,
    outcome: &Outcome,
) {
    if outcome.applied()
        && let Err(error) = release(pass, node, recovery).await
    {
        tracing::debug!(%node, %error, "the lock of the node is released later");
    }
}
