//! Label and field selectors.

use serde_json::Value;

use super::status::ApiStatus;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Op {
    Eq(String),
    Ne(String),
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Missing,
}

/// A parsed selector pair of a list or watch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Selector {
    labels: Vec<(String, Op)>,
    fields: Vec<(String, Op)>,
}

impl Selector {
    /// Parses the two query parameters.
    pub fn parse(labels: Option<&str>, fields: Option<&str>) -> Result<Self, ApiStatus> {
        let bad = |s: &str| ApiStatus::bad_request(format!("unable to parse requirement: {s:?}"));
        let mut out = Self::default();
        for part in split_top(labels.unwrap_or_default()) {
            out.labels
                .push(parse_label(&part).ok_or_else(|| bad(&part))?);
        }
        for part in split_top(fields.unwrap_or_default()) {
            out.fields
                .push(parse_equality(&part).ok_or_else(|| bad(&part))?);
        }
        Ok(out)
    }

    /// Whether `object` is selected.
    pub fn matches(&self, object: &Value) -> bool {
        self.labels
            .iter()
            .all(|(key, op)| holds(op, object["metadata"]["labels"][key.as_str()].as_str()))
            && self.fields.iter().all(|(path, op)| {
                let found = field(object, path);
                holds(op, Some(found.as_deref().unwrap_or_default()))
            })
    }
}

fn holds(op: &Op, value: Option<&str>) -> bool {
    match op {
        Op::Eq(want) => value == Some(want),
        Op::Ne(want) => value != Some(want),
        Op::In(set) => value.is_some_and(|v| set.iter().any(|s| s == v)),
        Op::NotIn(set) => value.is_none_or(|v| set.iter().all(|s| s != v)),
        Op::Exists => value.is_some(),
        Op::Missing => value.is_none(),
    }
}

fn field(object: &Value, path: &str) -> Option<String> {
    let found = path.split('.').try_fold(object, |at, key| at.get(key))?;
    match found {
        Value::String(s) => Some(s.clone()),
        Value::Null => None,
        other => Some(other.to_string()),
    }
}

/// Splits at commas that are not inside parentheses.
fn split_top(text: &str) -> Vec<String> {
    let (mut parts, mut depth, mut current) = (Vec::new(), 0, String::new());
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(std::mem::take(&mut current));
                continue;
            }
            _ => {}
        }
        current.push(c);
    }
    parts.push(current);
    parts
        .into_iter()
        .map(|p| p.trim().to_owned())
        .filter(|p| !p.is_empty())
        .collect()
}

fn parse_equality(part: &str) -> Option<(String, Op)> {
    let (key, op) = if let Some((k, v)) = part.split_once("!=") {
        (k, Op::Ne(v.trim().into()))
    } else if let Some((k, v)) = part.split_once("==") {
        (k, Op::Eq(v.trim().into()))
    } else {
        let (k, v) = part.split_once('=')?;
        (k, Op::Eq(v.trim().into()))
    };
    Some((key.trim().into(), op))
}

fn parse_label(part: &str) -> Option<(String, Op)> {
    if let Some((head, set)) = part.split_once('(') {
        let set = set
            .strip_suffix(')')?
            .split(',')
            .map(|s| s.trim().to_owned())
            .collect();
        let mut words = head.split_whitespace();
        let key = words.next()?.to_owned();
        return match words.next()? {
            "in" => Some((key, Op::In(set))),
            "notin" => Some((key, Op::NotIn(set))),
            _ => None,
        };
    }
    if let Some(key) = part.strip_prefix('!') {
        return Some((key.trim().into(), Op::Missing));
    }
    parse_equality(part).or_else(|| (!part.contains(' ')).then(|| (part.into(), Op::Exists)))
}

/// Whether a `metav1.LabelSelector` selects these labels. An empty selector selects everything, a null one nothing.
pub(super) fn label_selector_matches(selector: &Value, labels: &Value) -> bool {
    if selector.is_null() {
        return false;
    }
    let equal = selector["matchLabels"]
        .as_object()
        .is_none_or(|m| m.iter().all(|(k, v)| labels[k.as_str()] == *v));
    let expressions = selector["matchExpressions"].as_array().is_none_or(|list| {
        list.iter().all(|e| {
            let value = labels[e["key"].as_str().unwrap_or_default()].as_str();
            let set: Vec<String> = e["values"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|v| v.as_str().map(Into::into))
                .collect();
            match e["operator"].as_str() {
                Some("In") => holds(&Op::In(set), value),
                Some("NotIn") => holds(&Op::NotIn(set), value),
                Some("Exists") => value.is_some(),
                Some("DoesNotExist") => value.is_none(),
                _ => false,
            }
        })
    });
    equal && expressions
}

/// A `metav1.LabelSelector` as the string form that `scale` reports.
pub(super) fn selector_string(selector: &Value) -> String {
    if let Some(text) = selector.as_str() {
        return text.into();
    }
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    labels
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_select() {
        let o = json!({"metadata": {"name": "a", "labels": {"app": "redis", "tier": "db"}}, "spec": {"nodeName": "n1"}});
        for (labels, fields, want) in [
            ("app=redis", "", true),
            ("app!=redis", "", false),
            ("app in (redis, pg),tier", "", true),
            ("app notin (redis)", "", false),
            ("!gone", "spec.nodeName=n1", true),
            ("", "spec.nodeName!=n1", false),
            ("", "metadata.name=a,spec.nodeName=n1", true),
        ] {
            let s = Selector::parse(Some(labels), Some(fields)).unwrap();
            assert_eq!(s.matches(&o), want, "{labels} {fields}");
        }
        assert!(Selector::parse(Some("a b c"), None).is_err());
    }

    #[test]
    fn unbound_pods_have_an_empty_node_name() {
        let s = Selector::parse(None, Some("spec.nodeName=")).unwrap();
        assert!(s.matches(&json!({"metadata": {"name": "a"}, "spec": {}})));
    }
}
