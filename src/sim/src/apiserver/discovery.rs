//! `/version`, `/api` and `/apis`: enough for clients that discover resources.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::resource::ResourceType;
use super::status::ApiStatus;

/// The minor version and version that the server reports: that of the measured control plane.
const VERSION: (&str, &str) = ("36", "v1.36.3");
/// Discovery of a server without MutatingAdmissionPolicy.
const OLDER: (&str, &str) = ("35", "v1.35.0");

/// Answers a path that names no resource; `older`: as Kubernetes 1.35.
pub(super) fn answer(
    types: &[ResourceType],
    older: bool,
    segments: &[String],
) -> Result<Value, ApiStatus> {
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["version"] => {
            let (minor, version) = if older { OLDER } else { VERSION };
            Ok(json!({
                "major": "1", "minor": minor, "gitVersion": version, "gitCommit": "", "gitTreeState": "clean",
                "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "", "platform": "linux/amd64",
            }))
        }
        ["healthz" | "livez" | "readyz", ..] => Ok(json!("ok")),
        ["api"] => {
            Ok(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}))
        }
        ["apis"] => {
            let groups: Vec<Value> = groups(types)
                .iter()
                .map(|(g, versions)| group(g, versions))
                .collect();
            Ok(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", name] => {
            let groups = groups(types);
            let versions = groups.get(*name).ok_or_else(ApiStatus::no_such_path)?;
            let mut found = group(name, versions);
            found["kind"] = json!("APIGroup");
            found["apiVersion"] = json!("v1");
            Ok(found)
        }
        ["api", version] => resources(types, "", version),
        ["apis", group, version] => resources(types, group, version),
        _ => Err(ApiStatus::no_such_path()),
    }
}

fn groups(types: &[ResourceType]) -> BTreeMap<String, Vec<String>> {
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for t in types.iter().filter(|t| !t.group.is_empty()) {
        let versions = groups.entry(t.group.clone()).or_default();
        if !versions.contains(&t.version) {
            versions.push(t.version.clone());
        }
    }
    groups
}

fn group(name: &str, versions: &[String]) -> Value {
    let list: Vec<Value> = versions
        .iter()
        .map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v}))
        .collect();
    json!({"name": name, "versions": list, "preferredVersion": list[0]})
}

fn resources(types: &[ResourceType], group: &str, version: &str) -> Result<Value, ApiStatus> {
    let verbs = json!([
        "create",
        "delete",
        "deletecollection",
        "get",
        "list",
        "patch",
        "update",
        "watch"
    ]);
    let mut list = Vec::new();
    for t in types
        .iter()
        .filter(|t| t.group == group && t.version == version)
    {
        let singular = t.kind.to_lowercase();
        list.push(json!({"name": t.plural, "singularName": singular, "namespaced": t.namespaced, "kind": t.kind, "verbs": verbs}));
        let mut sub = |name: &str, kind: &str, verbs: &[&str]| {
            list.push(json!({"name": format!("{}/{name}", t.plural), "singularName": "", "namespaced": t.namespaced, "kind": kind, "verbs": verbs}));
        };
        if t.status {
            sub("status", &t.kind, &["get", "patch", "update"]);
        }
        if t.scale.is_some() {
            sub("scale", "Scale", &["get", "patch", "update"]);
        }
        if t.is_pod() {
            sub("eviction", "Eviction", &["create"]);
            sub("binding", "Binding", &["create"]);
        }
    }
    if list.is_empty() {
        return Err(ApiStatus::no_such_path());
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    Ok(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list}),
    )
}
