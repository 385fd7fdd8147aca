//! The PodDisruptionBudgets that cover pods of a claim, read on demand: only where a pod is to be evicted.

use crate::view::View;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ListParams;
use kube::core::{Selector, SelectorExt};
use kube::{Api, Client, ResourceExt};
use reattach_core::budget::{BudgetFacts, BudgetLimit, UnhealthyPods};
use reattach_core::evidence::PodFacts;
use reattach_core::fact::{Fact, Source};
use reattach_core::ids::Uid;

/// The PodDisruptionBudgets of the namespace that cover one of these pods. One that cannot be read is not known, which keeps
/// nothing from being tried: the API server itself refuses an eviction that a budget forbids.
pub async fn read(
    client: &Client,
    view: &View,
    pods: &[PodFacts],
    now: Timestamp,
) -> Fact<Vec<BudgetFacts>> {
    let source = Source::Kubernetes("PodDisruptionBudgets".to_owned());
    let Some(first) = pods.first() else {
        return Fact::present(Vec::new(), source, now);
    };
    let api: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), &first.name.namespace);
    let list = match api.list(&ListParams::default()).await {
        Ok(list) => list.items,
        Err(error) => return Fact::unknown(error.to_string(), source, now),
    };
    let known: Vec<&Pod> = view.pods.iter().map(AsRef::as_ref).collect();
    let covering = list.iter().filter_map(|b| facts(b, pods, &known));
    let mut budgets: Vec<_> = covering.collect();
    budgets.sort();
    Fact::present(budgets, source, now)
}

/// A budget that covers one of these pods; none if it covers none of them.
fn facts(budget: &PodDisruptionBudget, pods: &[PodFacts], known: &[&Pod]) -> Option<BudgetFacts> {
    let spec = budget.spec.as_ref()?;
    // A budget without a selector covers nothing; one whose selector is empty, each pod of the namespace.
    let selector = Selector::try_from(spec.selector.clone()?).ok()?;
    let covered = |facts: &&PodFacts| {
        let pod = known
            .iter()
            .find(|p| p.metadata.uid.as_deref() == Some(facts.uid.as_str()));
        pod.is_some_and(|p| selector.matches(p.labels()))
    };
    let pods: Vec<Uid> = pods.iter().filter(covered).map(|p| p.uid.clone()).collect();
    if pods.is_empty() {
        return None;
    }
    let limit = match (&spec.min_available, &spec.max_unavailable) {
        (Some(value), _) => BudgetLimit::MinAvailable(written(value)),
        (None, Some(value)) => BudgetLimit::MaxUnavailable(written(value)),
        (None, None) => BudgetLimit::Unset,
    };
    // Kubernetes refuses as long as there is no status.
    let status = budget.status.clone().unwrap_or_default();
    Some(BudgetFacts {
        name: budget.name_any(),
        limit,
        unhealthy: match spec.unhealthy_pod_eviction_policy.as_deref() {
            Some("AlwaysAllow") => UnhealthyPods::AlwaysAllow,
            _ => UnhealthyPods::IfHealthyBudget,
        },
        current_healthy: status.current_healthy,
        desired_healthy: status.desired_healthy,
        disruptions_allowed: status.disruptions_allowed,
        pods,
    })
}

fn written(value: &IntOrString) -> String {
    match value {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(text) => text.clone(),
    }
}
