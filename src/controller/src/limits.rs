//! What limits a recovery besides its own plan: the policy that rules its claim, budgets, and other runs.

use crate::policies::ruling_policy;
use crate::recovery::{Limits, Ruling};
use kube::ResourceExt;
use reattach_api::{
    Opaque, Phase, PowerOffRule, RecoveryPolicy, RecoveryPolicySpec, Retries, StuckPodRule,
    VolumeRecovery,
};
use reattach_cluster::cache::Cache;
use reattach_core::authority::Ceiling;
use reattach_core::ids::ObjectName;
use reattach_core::plan::Plan;

pub(crate) fn phase(recovery: &VolumeRecovery) -> Phase {
    recovery
        .status
        .as_ref()
        .map(|s| s.phase)
        .unwrap_or_default()
}

/// Whether a run of this recovery has begun and is not over.
pub(crate) fn has_a_run(recovery: &VolumeRecovery) -> bool {
    let begun = recovery
        .status
        .as_ref()
        .is_some_and(|s| !s.journal.is_empty());
    begun && !phase(recovery).is_final()
}

/// Is the recovery for this claim?
pub(crate) fn is_for(recovery: &VolumeRecovery, claim: &ObjectName) -> bool {
    recovery.metadata.namespace.as_deref() == Some(&claim.namespace)
        && recovery.spec.claim_name == claim.name
}

/// Recoveries whose runs take a place of the budgets, and their nodes. One that is stuck takes none: it does nothing until
/// a person has looked at it, and ten of them must not keep every other claim waiting.
pub(crate) fn running(cache: &Cache) -> Vec<(ObjectName, String)> {
    let runs = |r: &VolumeRecovery| has_a_run(r) && phase(r) != Phase::Stuck;
    let node = |r: &VolumeRecovery| {
        // A plan of another version most likely still names its node there, and that run counts, too.
        let node = |p: &Opaque<Plan>| match p.get() {
            Ok(plan) => plan.pins.node.to_string(),
            Err(plan) => plan.raw()["pins"]["node"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        };
        r.status
            .as_ref()
            .and_then(|s| s.plan.as_ref())
            .map(node)
            .unwrap_or_default()
    };
    cache
        .recoveries
        .named(runs)
        .into_iter()
        .map(|(name, r)| (name, node(&r)))
        .collect()
}

/// What limits the recovery `name` now. `controller` is the user name of the controller.
pub fn limits(cache: &Cache, name: &ObjectName, controller: &str) -> Limits {
    let own = cache.recoveries.get(&name.namespace, &name.name);
    let claim = own
        .as_ref()
        .map(|r| ObjectName::new(name.namespace.as_str(), r.spec.claim_name.as_str()));
    let running: Vec<_> = running(cache)
        .into_iter()
        .filter(|(n, _)| n != name)
        .collect();
    let rival = cache
        .recoveries
        // One that is stuck, too: something of it may be in force.
        .named(|r| has_a_run(r) && claim.as_ref().is_some_and(|claim| is_for(r, claim)))
        .into_iter()
        .map(|(rival, _)| rival)
        .find(|rival| rival != name);
    let policy = claim.and_then(|c| ruling_policy(cache, &c));
    let spec = policy.as_ref().map(|p| &p.spec);
    Limits {
        budgets: spec.map(|p| p.budgets.clone()).unwrap_or_default(),
        running,
        rival,
        made_by_policy: own.is_some_and(|r| r.spec.requester == controller),
        ruling: policy.as_deref().map(Ruling::of),
        ceiling: policy.as_ref().map(|p| ceiling(p.name_any(), &p.spec)),
        rules: spec.map(Into::into).unwrap_or_default(),
        retries: policy.as_deref().and_then(retries),
        escalate_after_seconds: spec.map(|p| p.escalate_after_seconds),
    }
}

/// When this policy lets an attempt be made again. None: it lets nothing be done.
pub(crate) fn retries(policy: &RecoveryPolicy) -> Option<Retries> {
    let spec = &policy.spec;
    spec.mode.may_act().then(|| spec.retries.clone())
}

/// How far a policy lets anybody go who has no right at cluster scope.
pub fn ceiling(policy: String, spec: &RecoveryPolicySpec) -> Ceiling {
    Ceiling {
        policy,
        mode: spec.mode,
        runbook: spec.runbook.clone(),
        power_off: spec.counting_power_off() != PowerOffRule::Never,
        deletes_stuck_pods: spec.stuck_pods == StuckPodRule::DeleteByUid,
        nodes: spec.counting_nodes().map(Into::into),
    }
}
