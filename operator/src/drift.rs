//! Whether an object is what the operator wants it to be. The API server adds fields, so the
//! question is whether everything that is wanted is there; a field that is no longer wanted is
//! found by the hash that every object carries. Pure.

use serde_json::{Map, Value};

/// Whether `observed` has everything that `desired` asks for.
#[must_use]
pub fn matches(desired: &Value, observed: &Value) -> bool {
    matches_at(desired, observed, false)
}

/// `in_amounts`: below a field whose leaves are quantities, which the API server rewrites.
fn matches_at(desired: &Value, observed: &Value, in_amounts: bool) -> bool {
    match (desired, observed) {
        (Value::Object(desired), Value::Object(observed)) => desired.iter().all(|(key, value)| {
            let amounts = in_amounts || ["requests", "limits", "capacity"].contains(&key.as_str());
            field_matches(value, key, observed, amounts)
        }),
        (Value::Array(desired), Value::Array(observed)) => {
            let mut pairs = desired.iter().zip(observed);
            desired.len() == observed.len()
                && pairs.all(|(desired, observed)| matches_at(desired, observed, in_amounts))
        }
        (desired, observed) => desired == observed || in_amounts && same_amount(desired, observed),
    }
}

fn field_matches(
    desired: &Value,
    key: &str,
    observed: &Map<String, Value>,
    in_amounts: bool,
) -> bool {
    match observed.get(key) {
        Some(found) => matches_at(desired, found, in_amounts),
        // The API server leaves empty fields out.
        None => is_empty(desired),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// Whether two quantities are the same amount, such as `1000m` and `1`.
fn same_amount(desired: &Value, observed: &Value) -> bool {
    match (amount(desired), amount(observed)) {
        (Some(desired), Some(observed)) => {
            let tolerance = desired.abs() * f64::EPSILON * 4.0;
            (desired - observed).abs() <= tolerance
        }
        _ => false,
    }
}

/// Reads a Kubernetes quantity.
fn amount(value: &Value) -> Option<f64> {
    let text = match value {
        Value::Number(number) => return number.as_f64(),
        Value::String(text) => text.trim(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    if let Ok(plain) = text.parse() {
        return Some(plain);
    }
    let suffixes = [
        ("Ki", 1024.0),
        ("Mi", 1024f64.powi(2)),
        ("Gi", 1024f64.powi(3)),
        ("Ti", 1024f64.powi(4)),
        ("Pi", 1024f64.powi(5)),
        ("Ei", 1024f64.powi(6)),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    suffixes.iter().find_map(|(suffix, factor)| {
        let number: f64 = text.strip_suffix(suffix)?.parse().ok()?;
        Some(number * factor)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_that_the_server_adds_are_no_drift() {
        let desired = json!({"spec": {"ports": [{"port": 1}], "selector": {"a": "b"}}});
        let observed = json!({
            "spec": {"ports": [{"port": 1, "protocol": "TCP"}], "selector": {"a": "b"}, "x": 1},
            "status": {}
        });
        assert!(matches(&desired, &observed));
    }

    #[test]
    fn changed_missing_and_added_items_are_drift() {
        let desired = json!({"spec": {"ports": [{"port": 1}], "selector": {"a": "b"}}});
        for observed in [
            json!({"spec": {"ports": [{"port": 2}], "selector": {"a": "b"}}}),
            json!({"spec": {"ports": [{"port": 1}], "selector": {}}}),
            json!({"spec": {"ports": [{"port": 1}, {"port": 3}], "selector": {"a": "b"}}}),
            json!({"spec": {"selector": {"a": "b"}}}),
        ] {
            assert!(!matches(&desired, &observed), "{observed}");
        }
    }

    #[test]
    fn empty_fields_may_be_left_out() {
        let desired = json!({"a": {}, "b": [], "c": null, "d": false, "e": {"f": ""}});
        assert!(matches(&desired, &json!({})));
        assert!(!matches(&json!({"a": true}), &json!({})));
    }

    #[test]
    fn quantities_are_compared_by_amount_and_only_where_they_stand() {
        let amounts = |cpu: &str, memory: &str| json!({"requests": {"cpu": cpu, "memory": memory}});
        assert!(matches(&amounts("1000m", "1024Mi"), &amounts("1", "1Gi")));
        assert!(matches(&amounts("0.1", "1e3"), &amounts("100m", "1k")));
        assert!(!matches(&amounts("100m", "1Gi"), &amounts("200m", "1Gi")));
        assert!(!matches(
            &json!({"args": ["1000m"]}),
            &json!({"args": ["1"]})
        ));
    }
}
