//! Which policy rules a claim.

use kube::ResourceExt;
use reattach_api::{EmptyDirRule, RecoveryPolicy, RecoveryPolicySpec, SnapshotRule};
use reattach_cluster::cache::Cache;
use reattach_cluster::facts;
use reattach_core::budget::StuckPods;
use reattach_core::evidence::{ClaimFacts, Evidence};
use reattach_core::ids::ObjectName;
use std::cmp::Reverse;
use std::sync::Arc;

/// What policies look at.
pub struct Subject<'a> {
    /// The namespace.
    pub namespace: &'a str,
    /// The claim.
    pub claim: &'a ClaimFacts,
    /// The CSI driver, where the volume has one.
    pub driver: Option<&'a str>,
}

impl<'a> Subject<'a> {
    /// From evidence; `None` without a claim.
    pub fn of(evidence: &'a Evidence) -> Option<Self> {
        let driver = evidence
            .volume
            .shown()
            .and_then(|v| v.csi.as_ref())
            .map(|c| c.driver.as_str());
        Some(Self {
            namespace: &evidence.claim_name.namespace,
            claim: evidence.claim.shown()?,
            driver,
        })
    }
}

/// What a policy says about the steps and the losses of a plan, besides power-off. Default: what holds without a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlanRules {
    /// Whether the volume is snapshotted before it is detached by force.
    pub snapshot: SnapshotRule,
    /// What becomes of emptyDirs.
    pub empty_dirs: EmptyDirRule,
    /// What becomes of a stuck pod whose eviction a PodDisruptionBudget refuses.
    pub stuck_pods: StuckPods,
}

impl From<&RecoveryPolicySpec> for PlanRules {
    fn from(spec: &RecoveryPolicySpec) -> Self {
        Self {
            snapshot: spec.snapshot_before_force,
            empty_dirs: spec.empty_dirs,
            stuck_pods: spec.stuck_pods(),
        }
    }
}

/// The policy that rules this claim, with its name: the highest precedence; among equals the most cautious mode, then
/// the name. None: no policy selects it, and nothing is done.
pub fn ruling<'a>(
    policies: &'a [Arc<RecoveryPolicy>],
    subject: &Subject<'_>,
) -> Option<&'a RecoveryPolicy> {
    let matching = policies.iter().filter(|p| selects(&p.spec, subject));
    matching
        .map(AsRef::as_ref)
        .min_by_key(|p| (Reverse(p.spec.precedence), p.spec.mode, p.name_any()))
}

fn selects(spec: &RecoveryPolicySpec, subject: &Subject<'_>) -> bool {
    let s = &spec.selector;
    let listed = |list: &[String], value: Option<&str>| {
        list.is_empty() || value.is_some_and(|v| list.iter().any(|l| l == v))
    };
    listed(&s.namespaces, Some(subject.namespace))
        && listed(&s.storage_classes, subject.claim.storage_class.as_deref())
        && listed(&s.drivers, subject.driver)
        && s.claim_labels
            .iter()
            .all(|(k, v)| subject.claim.labels.get(k) == Some(v))
}

/// The policy that rules a claim now, as the watches have both.
pub(crate) fn ruling_policy(cache: &Cache, name: &ObjectName) -> Option<Arc<RecoveryPolicy>> {
    let claim = cache.claims.get(&name.namespace, &name.name)?;
    let pv = claim
        .spec
        .as_ref()
        .and_then(|s| s.volume_name.as_ref())
        .and_then(|pv| cache.volumes.get("", pv));
    let driver = pv
        .as_ref()
        .and_then(|v| v.spec.as_ref()?.csi.as_ref())
        .map(|c| c.driver.as_str());
    let subject = Subject {
        namespace: &name.namespace,
        // The watch takes no claim without a UID.
        claim: &facts::claim(&claim).ok()?,
        driver,
    };
    let policies = cache.policies.filter(|_| true);
    let ruling = ruling(&policies, &subject)?.name_any();
    policies.into_iter().find(|p| p.name_any() == ruling)
}
