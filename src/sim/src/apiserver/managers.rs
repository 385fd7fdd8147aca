//! `metadata.managedFields`: the last writer of each field.
//!
//! # Caveats
//! Kept for the workloads of `apps` alone, and there for labels, annotations and `spec.replicas` alone: that is what clients
//! of this server ask for. An apply is recorded as the writer of what it changes; the real server also records it for what it
//! leaves as it was. Objects that are put into the store without a request have no managers, and are followed from the first
//! request on; the real server follows none that it created without managers.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::request::ApiRequest;
use crate::clock::rfc3339;

/// From the object's root to a field.
type Path = Vec<String>;

/// The maps of which each entry is a field of its own.
const MAPS: [[&str; 2]; 2] = [["metadata", "annotations"], ["metadata", "labels"]];
/// The other fields that are followed.
const FIELDS: [[&str; 2]; 1] = [["spec", "replicas"]];

/// The managers that a written object begins with: those that the request sent along, or else those that are stored. A
/// client may rewrite the list, but not through a subresource.
pub(super) fn base(req: &ApiRequest, old: Option<&Value>, sent: &Value) -> Vec<Value> {
    let list = |v: &Value| v["metadata"]["managedFields"].as_array().cloned();
    let stored = || old.and_then(list).unwrap_or_default();
    if req.subresource.is_some() {
        return stored();
    }
    match list(sent) {
        // A list with nothing in it, or with one entry that says nothing, takes all managers away.
        Some(none)
            if none
                .iter()
                .all(|e| e.as_object().is_some_and(Map::is_empty)) =>
        {
            Vec::new()
        }
        Some(sent) => sent,
        None => stored(),
    }
}

/// Records the writer of what differs between `old` and `next` in `next`.
pub(super) fn track(
    req: &ApiRequest,
    old: Option<&Value>,
    next: &mut Value,
    mut entries: Vec<Value>,
    now: Timestamp,
) {
    let before = old.map(fields).unwrap_or_default();
    let after = fields(next);
    let written: BTreeSet<&Path> = after
        .iter()
        .filter(|(path, value)| before.get(*path) != Some(value))
        .map(|(path, _)| path)
        .collect();
    let gone: BTreeSet<&Path> = before
        .keys()
        .filter(|path| !after.contains_key(*path))
        .collect();
    if !written.is_empty() || !gone.is_empty() {
        let me = writer(req);
        let mut own = None;
        for entry in &mut entries {
            let mut paths = decode(&entry["fieldsV1"]);
            paths.retain(|p| !written.contains(p) && !gone.contains(p));
            if is_of(entry, &me) {
                own = Some(paths);
                entry["fieldsV1"] = json!({});
            } else {
                entry["fieldsV1"] = encode(&paths);
            }
        }
        let own: BTreeSet<Path> = own
            .into_iter()
            .flatten()
            .chain(written.into_iter().cloned())
            .collect();
        let mut entry = me;
        entry["time"] = json!(rfc3339(now));
        entry["fieldsType"] = json!("FieldsV1");
        entry["fieldsV1"] = encode(&own);
        entries.push(entry);
        entries.retain(|e| e["fieldsV1"].as_object().is_some_and(|f| !f.is_empty()));
    }
    if let Some(meta) = next["metadata"].as_object_mut() {
        meta.remove("managedFields");
        if !entries.is_empty() {
            meta.insert("managedFields".to_owned(), Value::Array(entries));
        }
    }
}

/// Whether the server keeps managers of the kind.
pub(super) fn are_kept(req: &ApiRequest) -> bool {
    req.rt.group == "apps"
}

/// An entry's identity: manager, operation, version, subresource.
fn writer(req: &ApiRequest) -> Value {
    let agent = req.user_agent.split('/').next().unwrap_or_default();
    let applies = req.content_type.starts_with("application/apply-patch");
    let mut entry = json!({
        "manager": req.query("fieldManager").unwrap_or(agent),
        "operation": if applies { "Apply" } else { "Update" },
        "apiVersion": req.rt.api_version(),
    });
    if let Some(part) = &req.written_through {
        entry["subresource"] = json!(part);
    }
    entry
}

fn is_of(entry: &Value, writer: &Value) -> bool {
    ["manager", "operation", "apiVersion", "subresource"]
        .iter()
        .all(|key| entry[key] == writer[key])
}

fn fields(object: &Value) -> BTreeMap<Path, Value> {
    let own = |path: &[&str]| path.iter().map(|p| (*p).to_owned()).collect::<Path>();
    let mut all = BTreeMap::new();
    for map in MAPS {
        for (key, value) in object[map[0]][map[1]].as_object().into_iter().flatten() {
            let mut path = own(&map);
            path.push(key.clone());
            all.insert(path, value.clone());
        }
    }
    for field in FIELDS {
        let value = &object[field[0]][field[1]];
        if !value.is_null() {
            all.insert(own(&field), value.clone());
        }
    }
    all
}

fn encode<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Value {
    let mut root = json!({});
    for path in paths {
        let mut at = &mut root;
        for part in path {
            let Some(map) = at.as_object_mut() else { break };
            at = map.entry(format!("f:{part}")).or_insert_with(|| json!({}));
        }
    }
    root
}

fn decode(fields: &Value) -> BTreeSet<Path> {
    let mut all = BTreeSet::new();
    walk(fields, &mut Vec::new(), &mut all);
    all
}

fn walk(at: &Value, path: &mut Path, all: &mut BTreeSet<Path>) {
    let inner: Vec<_> = at
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(k, v)| Some((k.strip_prefix("f:")?, v)))
        .collect();
    if inner.is_empty() && !path.is_empty() {
        all.insert(path.clone());
    }
    for (key, value) in inner {
        path.push(key.to_owned());
        walk(value, path, all);
        path.pop();
    }
}
