//! The two faces of an Event: core/v1 and events.k8s.io/v1 share one store, as in a real API server.

use serde_json::{Map, Value, json};

const RENAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("count", "deprecatedCount"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("source", "deprecatedSource"),
];

fn rename(map: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(v) = map.remove(from) {
        map.insert(to.to_owned(), v);
    }
}

/// From core/v1 field names to those of events.k8s.io/v1.
pub(super) fn to_new(event: &mut Value) {
    if let Some(map) = event.as_object_mut() {
        for (old, new) in RENAMES {
            rename(map, old, new);
        }
    }
}

/// From events.k8s.io/v1 field names to those of core/v1.
pub(super) fn to_core(event: &mut Value) {
    if let Some(map) = event.as_object_mut() {
        for (old, new) in RENAMES {
            rename(map, new, old);
        }
        map.insert("apiVersion".into(), json!("v1"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_the_conversion_to_v1_and_back() {
        let core = json!({"apiVersion": "v1", "involvedObject": {"name": "p"}, "message": "m", "count": 3});
        let mut e = core.clone();
        to_new(&mut e);
        assert_eq!(e["note"], "m");
        assert_eq!(e["regarding"]["name"], "p");
        to_core(&mut e);
        assert_eq!(e, core);
    }
}
