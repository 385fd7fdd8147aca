//! Which policy rules a claim.

use kube::ResourceExt;
use reattach_api::{RecoveryPolicy, RecoveryPolicySpec};
use reattach_core::evidence::Evidence;
use std::cmp::Reverse;
use std::sync::Arc;

/// The policy that rules this claim, with its name: the highest precedence; among equals the most cautious mode, then
/// the name. None: no policy selects it, and nothing is done.
pub fn ruling<'a>(policies: &'a [Arc<RecoveryPolicy>], evidence: &Evidence) -> Option<&'a RecoveryPolicy> {
    let matching = policies.iter().filter(|p| selects(&p.spec, evidence));
    matching.map(AsRef::as_ref).min_by_key(|p| (Reverse(p.spec.precedence), p.spec.mode, p.name_any()))
}

fn selects(spec: &RecoveryPolicySpec, evidence: &Evidence) -> bool {
    let s = &spec.selector;
    let Some(claim) = evidence.claim.shown() else { return false };
    let driver = evidence.volume.shown().and_then(|v| v.csi.as_ref()).map(|c| c.driver.as_str());
    let listed = |list: &[String], value: Option<&str>| list.is_empty() || value.is_some_and(|v| list.iter().any(|l| l == v));
    listed(&s.namespaces, Some(&evidence.claim_name.namespace))
        && listed(&s.storage_classes, claim.storage_class.as_deref())
        && listed(&s.drivers, driver)
        && s.claim_labels.iter().all(|(k, v)| claim.labels.get(k) == Some(v))
}
