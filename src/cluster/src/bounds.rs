//! The admission policies that bound the controller, and whether they name this process's account.
//!
//! RBAC gives the controller more than it needs: it cannot say "pods as a dry run only" or "taints only". Admission policies
//! take the rest away, from the user name that they are written for. Under another ServiceAccount or namespace they bind
//! no account, and nothing would show it.

use crate::rights::review_self;
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::authorization::v1::ResourceAttributes;
use kube::Api;
use std::fmt;

/// Policies that bound each controller: `deploy/admission/controller-bounds.yaml` and `deploy/base/hold-authority.yaml`.
pub const ALWAYS: [&str; 7] = [
    "reattach-controller-pods",
    "reattach-controller-volumeattachments",
    "reattach-controller-volumeattachment-deletions",
    "reattach-controller-nodes",
    "reattach-controller-gates",
    "reattach-controller-evictions",
    "reattach-controller-pod-deletions",
];

/// Policies that bound a controller that may scale workloads: `deploy/components/scaler`.
pub const SCALING: [&str; 2] = [
    "reattach-controller-workloads",
    "reattach-controller-claim-retention",
];

/// Why a policy does not bound this account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gap {
    /// There is no such policy, or no binding of it.
    Missing,
    /// It is not for this account.
    OtherAccount,
    /// It or its binding lets through what it should refuse: another failure policy, action or reach than as shipped.
    Weakened,
}

/// A policy that does not bound this account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unbound {
    /// Its name.
    pub policy: &'static str,
    /// Why.
    pub gap: Gap,
}

impl fmt::Display for Unbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.gap {
            Gap::Missing => "is not installed",
            Gap::OtherAccount => "is for another account",
            Gap::Weakened => "is not as shipped",
        };
        write!(f, "{} {why}", self.policy)
    }
}

/// The condition by which a shipped policy is for this user.
fn condition(user: &str) -> String {
    format!("request.userInfo.username == '{user}'")
}

/// Returns the policies that do not bound this user. `records` is the client for our own records: it asks whether the user may
/// scale.
///
/// # Errors
/// The API server's error: a policy that cannot be read is not known to bound.
pub async fn unbound(records: &kube::Client, user: &str) -> Result<Vec<Unbound>, kube::Error> {
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(records.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(records.clone());
    let scaling: &[&'static str] = if may_scale(records).await? {
        &SCALING
    } else {
        &[]
    };
    let mut unbound = Vec::new();
    for policy in ALWAYS.iter().chain(scaling).copied() {
        let found = policies
            .get_opt(policy)
            .await?
            .zip(bindings.get_opt(policy).await?);
        let gap = match found {
            None => Some(Gap::Missing),
            Some((policy, binding)) => gap(&policy, &binding, user),
        };
        unbound.extend(gap.map(|gap| Unbound { policy, gap }));
    }
    Ok(unbound)
}

fn gap(
    policy: &ValidatingAdmissionPolicy,
    binding: &ValidatingAdmissionPolicyBinding,
    user: &str,
) -> Option<Gap> {
    let name = policy.metadata.name.as_deref();
    let (Some(policy), Some(binding)) = (policy.spec.as_ref(), binding.spec.as_ref()) else {
        return Some(Gap::Weakened);
    };
    let conditions = policy.match_conditions.as_deref().unwrap_or_default();
    let [only] = conditions else {
        return Some(Gap::Weakened);
    };
    if only.expression.trim() != condition(user) {
        return Some(Gap::OtherAccount);
    }
    let denies = binding
        .validation_actions
        .iter()
        .flatten()
        .any(|action| action == "Deny");
    let as_shipped = denies
        && policy.failure_policy.as_deref().unwrap_or("Fail") == "Fail"
        && binding.match_resources.is_none()
        && binding.param_ref.is_none()
        && binding.policy_name.as_deref() == name;
    (!as_shipped).then_some(Gap::Weakened)
}

async fn may_scale(records: &kube::Client) -> Result<bool, kube::Error> {
    for resource in ["deployments", "statefulsets"] {
        let asked = ResourceAttributes {
            group: Some("apps".to_owned()),
            resource: Some(resource.to_owned()),
            verb: Some("patch".to_owned()),
            ..ResourceAttributes::default()
        };
        let status = review_self(records, asked).await?;
        if status.is_some_and(|status| status.allowed) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const ME: &str = "system:serviceaccount:reattach-system:reattach-controller";

    fn gap_of(change: impl Fn(&mut Value, &mut Value)) -> Option<Gap> {
        let expression = format!("request.userInfo.username == '{ME}'");
        let mut policy = json!({
            "metadata": {"name": "p"},
            "spec": {"failurePolicy": "Fail", "matchConditions": [{"name": "by", "expression": expression}]},
        });
        let mut binding = json!({"metadata": {"name": "p"}, "spec": {"policyName": "p", "validationActions": ["Deny"]}});
        change(&mut policy, &mut binding);
        gap(
            &serde_json::from_value(policy).unwrap(),
            &serde_json::from_value(binding).unwrap(),
            ME,
        )
    }

    #[test]
    fn a_policy_bounds_only_the_account_that_it_names() {
        assert_eq!(gap_of(|_, _| {}), None);
        for other in [
            "system:serviceaccount:rescue:reattach-controller",
            "admin",
            "",
        ] {
            let gap = gap_of(|policy, _| {
                policy["spec"]["matchConditions"][0]["expression"] = json!(condition(other));
            });
            assert_eq!(gap, Some(Gap::OtherAccount), "{other}");
        }
        type Change = fn(&mut Value, &mut Value);
        let weaker: [(&str, Change); 6] = [
            ("it fails open", |p, _| {
                p["spec"]["failurePolicy"] = json!("Ignore")
            }),
            ("one more condition", |p, _| {
                let one = p["spec"]["matchConditions"][0].clone();
                p["spec"]["matchConditions"] =
                    json!([one, {"name": "never", "expression": "false"}]);
            }),
            ("no spec", |p, _| p["spec"] = Value::Null),
            ("it only warns", |_, b| {
                b["spec"]["validationActions"] = json!(["Warn"])
            }),
            ("one namespace only", |_, b| {
                b["spec"]["matchResources"] = json!({"namespaceSelector": {}})
            }),
            ("another policy's binding", |_, b| {
                b["spec"]["policyName"] = json!("q")
            }),
        ];
        for (what, change) in weaker {
            assert_eq!(gap_of(change), Some(Gap::Weakened), "{what}");
        }
    }
}
