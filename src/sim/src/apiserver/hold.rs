//! reattach's MutatingAdmissionPolicy, as `deploy/base/hold.yaml` installs it.
//!
//! Expressions are not evaluated: this is what that policy does, written out. It is in force while the policy and its
//! binding exist and their kinds are served (Kubernetes 1.36 and later), so a test may delete either, or have an older
//! API server. Like the policy it leaves a pod alone that names its node already, since the server would refuse it.

use serde_json::{Value, json};

use super::resource::StoreId;
use super::rules::gates;
use super::state::State;
use crate::object::{items, name, text};
use crate::rng::Rng;

const GROUP: &str = "admissionregistration.k8s.io";
const POLICIES: &str = "mutatingadmissionpolicies";
const BINDINGS: &str = "mutatingadmissionpolicybindings";
/// Name of the policy and of its binding.
const NAME: &str = "reattach-hold";
/// Label on a VolumeRecovery.
const LABEL: &str = "reattach.dev/hold";
/// Scheduling gate on pods.
const GATE: &str = "reattach.dev/hold";

fn store(plural: &str) -> StoreId {
    (GROUP.into(), plural.into())
}

impl State {
    /// Stores the policy and its binding.
    pub fn install_hold(&mut self, seed: u64, created: &str) {
        // Draws of its own: the UIDs of everything else stay what they are without it.
        let mut rng = Rng::new(seed, "hold");
        let match_labels = json!({ LABEL: "true" });
        let policy = json!({
            "paramKind": {"apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery"}, "failurePolicy": "Ignore",
            "reinvocationPolicy": "IfNeeded",
        });
        let binding = json!({
            "policyName": NAME,
            "paramRef": {"parameterNotFoundAction": "Allow", "selector": {"matchLabels": match_labels}},
        });
        for (plural, kind, spec) in [
            (POLICIES, "MutatingAdmissionPolicy", policy),
            (BINDINGS, "MutatingAdmissionPolicyBinding", binding),
        ] {
            let object = json!({
                "apiVersion": format!("{GROUP}/v1"), "kind": kind, "spec": spec,
                "metadata": {"name": NAME, "uid": rng.uuid(), "creationTimestamp": created, "generation": 1},
            });
            self.store.put(&store(plural), "", NAME, object);
        }
    }

    /// Serves no policies that change objects, as Kubernetes 1.35 and earlier do by default.
    pub fn drop_mutating_policies(&mut self) {
        for plural in [POLICIES, BINDINGS] {
            self.types.retain(|t| !t.is(GROUP, plural));
            for object in self.store.list(&store(plural), None) {
                self.store.remove(&store(plural), "", name(&object));
            }
        }
    }

    /// Whether policies that change objects are served.
    pub fn has_mutating_policies(&self) -> bool {
        self.types.iter().any(|t| t.is(GROUP, POLICIES))
    }

    /// Gives a new pod the gate if a recovery of its namespace holds one of its claims.
    pub fn hold(&self, namespace: &str, pod: &mut Value) {
        let present = |plural| self.store.get(&store(plural), "", NAME).is_some();
        if !(present(POLICIES) && present(BINDINGS)) {
            return;
        }
        let bound = !text(pod, "/spec/nodeName").is_empty();
        if bound || gates(pod).iter().any(|gate| *gate == GATE) {
            return;
        }
        let recoveries = ("reattach.dev".to_owned(), "volumerecoveries".to_owned());
        let held = self
            .store
            .list(&recoveries, Some(namespace))
            .into_iter()
            .any(|recovery| {
                let claim = &recovery["spec"]["claimName"];
                let uses = |volume: &Value| volume["persistentVolumeClaim"]["claimName"] == *claim;
                recovery["metadata"]["labels"][LABEL] == "true"
                    && claim.is_string()
                    && items(pod, "/spec/volumes").any(uses)
            });
        if !held {
            return;
        }
        match pod["spec"]["schedulingGates"].as_array_mut() {
            Some(list) => list.push(json!({"name": GATE})),
            None => pod["spec"]["schedulingGates"] = json!([{"name": GATE}]),
        }
    }
}
