//! The committed CustomResourceDefinitions are those of this build, and say what the rest relies on.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use reattach_api::{
    Abort, Approval, Budgets, Declaration, Escalation, NodePolicy, NodeVolumeReport,
    NodeVolumeReportSpec, NodeVolumeReportStatus, PhaseTiming, PolicySelector, PowerOff,
    RecoveryPolicy, RecoveryPolicySpec, Retries, VolumeRecovery, VolumeRecoverySpec,
    VolumeRecoveryStatus, all_crds, crd_yaml,
};
use reattach_core::policy::Mode;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/crds"))
}

fn crd(plural: &str) -> CustomResourceDefinition {
    all_crds()
        .into_iter()
        .find(|crd| crd.spec.names.plural == plural)
        .expect("a definition of that name")
}

/// The schema of the only version.
fn schema(crd: &CustomResourceDefinition) -> JSONSchemaProps {
    let [version] = crd.spec.versions.as_slice() else {
        panic!("more than one version")
    };
    version
        .schema
        .clone()
        .and_then(|s| s.open_api_v3_schema)
        .expect("a schema")
}

/// The schema of a property, by path.
fn at(crd: &CustomResourceDefinition, path: &[&str]) -> JSONSchemaProps {
    path.iter().fold(schema(crd), |schema, name| {
        schema
            .properties
            .unwrap_or_default()
            .remove(*name)
            .unwrap_or_else(|| panic!("no {name} in {path:?}"))
    })
}

#[test]
fn the_committed_files_are_current_and_complete() {
    let mut expected = BTreeSet::from(["kustomization.yaml".to_owned()]);
    let list =
        std::fs::read_to_string(folder().join("kustomization.yaml")).expect("kustomization.yaml");
    for crd in all_crds() {
        let (name, body) = crd_yaml(&crd).expect("YAML");
        let committed = std::fs::read_to_string(folder().join(&name)).unwrap_or_default();
        assert!(
            committed == body,
            "deploy/crds/{name} is not current: cargo run -p reattach-api --bin crdgen"
        );
        assert!(
            list.lines().any(|line| line == format!("- {name}")),
            "kustomization.yaml lacks {name}"
        );
        expected.insert(name);
    }
    let found: BTreeSet<String> = std::fs::read_dir(folder())
        .expect("deploy/crds")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    assert_eq!(found, expected);
    assert_eq!(
        list.lines().filter(|line| line.starts_with("- ")).count(),
        expected.len() - 1
    );
}

#[test]
fn names_scopes_and_subresources() {
    let facts: Vec<Value> = all_crds()
        .iter()
        .map(|crd| {
            let [version] = crd.spec.versions.as_slice() else {
                panic!("more than one version")
            };
            let status = version
                .subresources
                .as_ref()
                .is_some_and(|s| s.status.is_some());
            let names = &crd.spec.names;
            let columns: Vec<&str> = version
                .additional_printer_columns
                .iter()
                .flatten()
                .map(|c| c.name.as_str())
                .collect();
            json!([
                crd.spec.scope,
                names.plural,
                names.short_names,
                names.categories,
                version.name,
                status,
                columns
            ])
        })
        .collect();
    assert_eq!(
        Value::from(facts),
        json!([
            [
                "Namespaced",
                "volumerecoveries",
                ["vrec"],
                ["reattach"],
                "v1alpha1",
                true,
                ["Claim", "Mode", "Class", "Phase", "Message", "Age"]
            ],
            // No status: nothing about a policy is ours to write.
            [
                "Cluster",
                "recoverypolicies",
                ["rpol"],
                ["reattach"],
                "v1alpha1",
                false,
                ["Mode", "Runbook", "Precedence", "Age"]
            ],
            [
                "Cluster",
                "nodevolumereports",
                ["nvr"],
                ["reattach"],
                "v1alpha1",
                true,
                ["Boot", "Booted", "Age"]
            ],
        ])
    );
}

#[test]
fn only_fields_without_a_safe_default_are_required() {
    for plural in ["volumerecoveries", "recoverypolicies"] {
        let mode = at(&crd(plural), &["spec", "mode"]);
        assert_eq!(mode.default.map(|d| d.0), Some(json!("DryRun")), "{plural}");
        let modes: Vec<Value> = mode.enum_.into_iter().flatten().map(|v| v.0).collect();
        assert_eq!(modes, ["Observe", "DryRun", "Approve", "Auto"], "{plural}");
    }
    let recovery = at(&crd("volumerecoveries"), &["spec"]);
    assert_eq!(
        recovery.required,
        Some(vec![
            "claimName".into(),
            "requester".into(),
            "runbook".into()
        ])
    );
    let budgets = at(&crd("recoverypolicies"), &["spec", "budgets", "cluster"]);
    assert_eq!((budgets.minimum, budgets.maximum), (Some(1.0), Some(100.0)));
}

/// What a recovery is about and who spoke in it stays as it was written.
#[test]
fn immutable_fields_have_a_transition_rule() {
    let spec = at(&crd("volumerecoveries"), &["spec"]);
    let rules = spec.x_kubernetes_validations.unwrap_or_default();
    let fields: BTreeSet<String> = spec.properties.unwrap_or_default().into_keys().collect();
    assert!(fields.len() >= 8, "{fields:?}");
    let free: Vec<&String> = fields
        .iter()
        .filter(|field| {
            !rules
                .iter()
                .any(|r| r.rule.contains(&format!("== oldSelf.{field}")))
        })
        .collect();
    // A person's word is given anew when it does not count any more, or not for a later order: by whom is admission's
    // business. It is never taken back.
    assert_eq!(
        free,
        ["declaration", "nothingUnderWay"],
        "fields that may be changed afterwards"
    );
    for field in free {
        let kept = format!("!has(oldSelf.{field}) || has(self.{field})");
        assert!(rules.iter().any(|r| r.rule == kept), "{kept}");
    }
}

fn every(schema: &JSONSchemaProps, path: &str, visit: &mut impl FnMut(&str, &JSONSchemaProps)) {
    visit(path, schema);
    for (name, inner) in schema.properties.iter().flatten() {
        every(inner, &format!("{path}.{name}"), visit);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(inner)) = &schema.items {
        every(inner, &format!("{path}[]"), visit);
    }
}

#[test]
fn every_rule_has_a_message_and_every_list_a_bound() {
    for crd in all_crds() {
        let root = crd.spec.names.plural.clone();
        every(&schema(&crd), &root, &mut |path, schema| {
            for rule in schema.x_kubernetes_validations.iter().flatten() {
                assert!(
                    rule.message.as_ref().is_some_and(|m| !m.is_empty()),
                    "{path}: {}",
                    rule.rule
                );
            }
            if schema.type_.as_deref() == Some("array") {
                assert!(schema.max_items.is_some(), "{path} may grow without bound");
            }
        });
    }
}

/// Is the text a description for `kubectl explain`: at least three words, and at least one whole sentence?
fn describes(text: &str) -> bool {
    let sentence = text.split_whitespace().any(|word| word.ends_with('.'));
    text.split_whitespace().count() >= 3 && sentence && !text.contains("Auto-generated")
}

#[test]
fn every_kind_and_property_has_a_description() {
    let mut bare = Vec::new();
    for crd in all_crds() {
        let root = crd.spec.names.plural.clone();
        every(&schema(&crd), &root, &mut |path, schema| {
            let is_item = path.ends_with("[]");
            if !is_item && !schema.description.as_deref().is_some_and(describes) {
                bare.push(format!("{path}: {:?}", schema.description));
            }
        });
    }
    assert!(
        bare.is_empty(),
        "no useful description:\n{}",
        bare.join("\n")
    );
}

/// A tenant, a driver or a cloud wrote a part of every text. Objects without a schema are the controller's and the agent's
/// own, who bound them.
#[test]
fn every_text_has_a_bound() {
    for crd in all_crds() {
        let root = crd.spec.names.plural.clone();
        let schema = schema(&crd);
        for part in ["spec", "status"] {
            let Some(schema) = schema.properties.as_ref().and_then(|p| p.get(part)) else {
                continue;
            };
            every(schema, &format!("{root}.{part}"), &mut |path, schema| {
                let is_word =
                    schema.enum_.is_some() || schema.format.as_deref() == Some("date-time");
                if schema.type_.as_deref() == Some("string") && !is_word {
                    assert!(schema.max_length.is_some(), "{path} may be of any length");
                }
                if schema.additional_properties.is_some() {
                    assert!(
                        schema.max_properties.is_some(),
                        "{path} may have any number of fields"
                    );
                }
            });
        }
    }
    let abort = at(&crd("volumerecoveries"), &["spec", "abort", "reason"]);
    assert_eq!(abort.max_length, Some(1_024));
}

/// The paths of a value that the API server would drop, because the schema does not know them.
fn dropped(schema: &JSONSchemaProps, value: &Value, path: &str, into: &mut Vec<String>) {
    if schema.x_kubernetes_preserve_unknown_fields == Some(true) {
        return;
    }
    match value {
        Value::Object(fields) if schema.additional_properties.is_none() => {
            for (name, inner) in fields {
                let path = format!("{path}.{name}");
                match schema.properties.as_ref().and_then(|p| p.get(name)) {
                    Some(schema) => dropped(schema, inner, &path, into),
                    None => into.push(path),
                }
            }
        }
        Value::Array(items) => {
            if let Some(JSONSchemaPropsOrArray::Schema(schema)) = &schema.items {
                items
                    .iter()
                    .for_each(|item| dropped(schema, item, &format!("{path}[]"), into));
            }
        }
        _ => {}
    }
}

#[test]
fn no_field_that_we_write_is_dropped() {
    let text = || Some("text".to_owned());
    let groups = || vec!["sre".to_owned()];
    let mut recovery = VolumeRecovery::new(
        "r",
        VolumeRecoverySpec {
            claim_name: "data".into(),
            mode: Mode::Approve,
            runbook: "scale-to-zero".into(),
            reason: text(),
            requester: "jane".into(),
            requester_groups: groups(),
            attempt: 2,
            confirm_workload: text(),
            abort: Some(Abort {
                by: "jane".into(),
                reason: text(),
            }),
            approval: Some(Approval {
                plan_hash: "0123456789abcdef".into(),
                approver: "jane".into(),
                groups: groups(),
            }),
            declaration: Some(Declaration {
                holder: "1".into(),
                declared_by: "jane".into(),
                reason: "r".into(),
                at: serde_json::from_value(json!("2026-01-02T03:04:05Z")).expect("a time"),
                of_this_cluster: true,
                groups: groups(),
            }),
            power_off: Some(PowerOff {
                allowed_by: "jane".into(),
                groups: groups(),
            }),
            nothing_under_way: None,
        },
    );
    let started: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time =
        serde_json::from_value(json!("2026-01-02T03:04:05Z")).expect("a time");
    recovery.status = Some(VolumeRecoveryStatus {
        class: text(),
        message: "text".into(),
        refusals: vec!["text".into()],
        plan_hash: text(),
        conditions: serde_json::from_value(json!([{
            "type": "Recovered", "status": "True", "reason": "R", "message": "", "observedGeneration": 1,
            "lastTransitionTime": "2026-01-02T03:04:05Z",
        }]))
        .expect("conditions"),
        timings: vec![PhaseTiming { name: "Verify".into(), started: started.clone(), millis: 1 }],
        next_attempt: Some(started.clone()),
        escalation: Some(Escalation { since: started, summary: "text".into(), ticket: text() }),
        left_out: text(),
        observed_generation: Some(1),
        ..Default::default()
    });
    let policy = RecoveryPolicy::new(
        "p",
        RecoveryPolicySpec {
            selector: PolicySelector {
                namespaces: vec!["a".to_owned()],
                claim_labels: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
                ..Default::default()
            },
            mode: Mode::Auto,
            runbook: "scale-to-zero".into(),
            precedence: 1,
            budgets: Budgets::default(),
            power_off: Default::default(),
            snapshot_before_force: Default::default(),
            empty_dirs: Default::default(),
            stuck_pods: Default::default(),
            budget_patience_seconds: 120,
            escalate_after_seconds: 1800,
            retries: Retries {
                attempts: Some(3),
                longest_pause_seconds: 60,
            },
            nodes: Some(NodePolicy {
                match_labels: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
                ..NodePolicy::default()
            }),
        },
    );
    let mut report = NodeVolumeReport::new("n", NodeVolumeReportSpec::default());
    report.status = Some(NodeVolumeReportStatus {
        observed_generation: Some(1),
        ..Default::default()
    });
    let all = [
        ("volumerecoveries", serde_json::to_value(recovery)),
        ("recoverypolicies", serde_json::to_value(policy)),
        ("nodevolumereports", serde_json::to_value(report)),
    ];
    for (plural, value) in all {
        let value = value.expect("JSON");
        let (crd, mut lost) = (crd(plural), Vec::new());
        for part in ["spec", "status"] {
            let Some(value) = value.get(part) else {
                continue;
            };
            assert!(
                value.as_object().is_some_and(|o| !o.is_empty()),
                "{plural}.{part} is empty"
            );
            dropped(
                &at(&crd, &[part]),
                value,
                &format!("{plural}.{part}"),
                &mut lost,
            );
        }
        assert_eq!(lost, Vec::<String>::new());
    }
}
