//! Linode's `X-Filter` header: field conditions, `+and`, `+or`, comparison operators and order.

use super::reply::Reply;
use serde_json::{Map, Value};
use std::cmp::Ordering;

/// Fields of a volume that the API description marks as filterable. `id` and `linode_id` are not.
pub(super) const VOLUMES: &[&str] = &["label", "tags"];
/// Filterable fields of an instance.
pub(super) const INSTANCES: &[&str] = &["id", "label", "region", "tags", "group", "ipv4"];
/// Filterable fields of an event.
pub(super) const EVENTS: &[&str] = &[
    "id",
    "action",
    "created",
    "read",
    "entity.id",
    "entity.type",
];

/// Returns the rows that match the filter, in the order that it asks for.
pub(super) fn apply(
    rows: Vec<Value>,
    header: Option<&str>,
    filterable: &'static [&'static str],
) -> Result<Vec<Value>, Reply> {
    let Some(header) = header.filter(|h| !h.trim().is_empty()) else {
        return Ok(rows);
    };
    let filter = match serde_json::from_str(header) {
        Ok(Value::Object(filter)) => filter,
        _ => return Err(refused("Invalid JSON")),
    };
    let mut kept = Vec::new();
    for row in rows {
        if all(&row, &filter, filterable)? {
            kept.push(row);
        }
    }
    if let Some(Value::String(field)) = filter.get("+order_by") {
        check(field, filterable)?;
        kept.sort_by(|a, b| compare(value(a, field), value(b, field)).unwrap_or(Ordering::Equal));
        if filter.get("+order").and_then(Value::as_str) == Some("desc") {
            kept.reverse();
        }
    }
    Ok(kept)
}

fn refused(reason: &str) -> Reply {
    Reply::error(400, reason, Some("X-Filter"))
}

fn check(field: &str, filterable: &[&str]) -> Result<(), Reply> {
    if filterable.contains(&field) {
        Ok(())
    } else {
        Err(refused(&format!("Cannot filter on {field}")))
    }
}

fn all(row: &Value, filter: &Map<String, Value>, filterable: &[&str]) -> Result<bool, Reply> {
    for (name, condition) in filter {
        let holds = match name.as_str() {
            "+order" | "+order_by" => true,
            "+and" => parts(condition)?.iter().try_fold(true, |so_far, part| {
                Ok::<_, Reply>(so_far & all(row, part, filterable)?)
            })?,
            "+or" => parts(condition)?.iter().try_fold(false, |so_far, part| {
                Ok::<_, Reply>(so_far | all(row, part, filterable)?)
            })?,
            field => {
                check(field, filterable)?;
                matches(value(row, field), condition)?
            }
        };
        if !holds {
            return Ok(false);
        }
    }
    Ok(true)
}

fn parts(condition: &Value) -> Result<Vec<&Map<String, Value>>, Reply> {
    let list = condition
        .as_array()
        .ok_or_else(|| refused("Must be a list"))?;
    list.iter()
        .map(|part| part.as_object().ok_or_else(|| refused("Must be an object")))
        .collect()
}

/// Returns the value of a field. A dot in the name leads into an object.
fn value<'a>(row: &'a Value, field: &str) -> &'a Value {
    field
        .split('.')
        .fold(row, |at, step| at.get(step).unwrap_or(&Value::Null))
}

fn matches(value: &Value, condition: &Value) -> Result<bool, Reply> {
    let Some(operators) = condition.as_object() else {
        return Ok(match value {
            Value::Array(items) => items.contains(condition),
            single => single == condition,
        });
    };
    for (operator, bound) in operators {
        let order = compare(value, bound);
        let holds = match operator.as_str() {
            "+gt" => order == Some(Ordering::Greater),
            "+gte" => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
            "+lt" => order == Some(Ordering::Less),
            "+lte" => matches!(order, Some(Ordering::Less | Ordering::Equal)),
            "+neq" => value != bound,
            "+contains" => value
                .as_str()
                .zip(bound.as_str())
                .is_some_and(|(text, part)| text.contains(part)),
            other => return Err(refused(&format!("Unknown operator {other}"))),
        };
        if !holds {
            return Ok(false);
        }
    }
    Ok(true)
}

fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64()?.partial_cmp(&b.as_f64()?),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rows() -> Vec<Value> {
        vec![
            json!({"id": 1, "label": "a", "tags": ["x"], "entity": {"id": 5, "type": "volume"}}),
            json!({"id": 2, "label": "b", "tags": [], "entity": {"id": 6, "type": "linode"}}),
            json!({"id": 3, "label": "ab", "tags": ["x", "y"], "entity": {"id": 5, "type": "linode"}}),
        ]
    }

    const FIELDS: &[&str] = &["id", "label", "tags", "entity.id", "entity.type"];

    fn ids(filter: &Value) -> Vec<u64> {
        let kept = apply(rows(), Some(&filter.to_string()), FIELDS).expect("a good filter");
        kept.iter().filter_map(|row| row["id"].as_u64()).collect()
    }

    #[test]
    fn conditions_select_rows() {
        let table = [
            (json!({"label": "a"}), vec![1]),
            (json!({"tags": "x"}), vec![1, 3]),
            (json!({"label": {"+contains": "a"}}), vec![1, 3]),
            (json!({"id": {"+gt": 1, "+lte": 3}}), vec![2, 3]),
            (json!({"+or": [{"id": 1}, {"id": 3}]}), vec![1, 3]),
            (
                json!({"+and": [{"id": {"+gte": 2}}, {"id": {"+lt": 3}}]}),
                vec![2],
            ),
            (json!({"entity.id": 5, "entity.type": "linode"}), vec![3]),
            (
                json!({"label": {"+neq": "a"}, "+order_by": "id", "+order": "desc"}),
                vec![3, 2],
            ),
            (json!({"id": 9}), vec![]),
        ];
        for (filter, expected) in table {
            assert_eq!(ids(&filter), expected, "{filter}");
        }
    }

    #[test]
    fn unknown_filters_are_refused() {
        for bad in [
            "{",
            "[]",
            r#"{"linode_id": 1}"#,
            r#"{"+or": 1}"#,
            r#"{"id": {"+like": 1}}"#,
        ] {
            assert!(apply(rows(), Some(bad), FIELDS).is_err(), "{bad}");
        }
    }
}
