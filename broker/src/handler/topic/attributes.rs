//! Attributes of topics: `+key=value` sets one, `-key` removes one.

use std::collections::BTreeMap;

use raftmq_remoting::ResponseCode;

use crate::handler::Refusal;

/// Attributes a topic may have, with their values. Source: RocketMQ `TopicAttributes`, without
/// what this version does not do (batch queues, compaction, mixed types).
const ATTRIBUTES: [(&str, &[&str]); 3] = [
    ("cleanup.policy", &["DELETE"]),
    (
        "message.type",
        &["UNSPECIFIED", "NORMAL", "FIFO", "DELAY", "TRANSACTION"],
    ),
    ("queue.type", &["SimpleCQ"]),
];

/// A key with its new value, `None` to remove it.
pub(in crate::handler) type Change = (String, Option<String>);

/// One change as tools write it: `+key=value` or `-key`.
pub(super) fn parse_change(text: &str) -> Result<Change, Refusal> {
    if let Some(key) = text.strip_prefix('-') {
        return Ok((key.trim().to_owned(), None));
    }
    let change = text
        .strip_prefix('+')
        .and_then(|change| change.split_once('='));
    let (key, value) = change.ok_or_else(|| {
        let remark = format!("attribute '{text}' must be '+key=value' or '-key'");
        Refusal::new(ResponseCode::INVALID_PARAMETER, remark)
    })?;
    Ok((key.trim().to_owned(), Some(value.trim().to_owned())))
}

/// One change out of a JSON table: keys carry the sign, or none for plain values.
pub(in crate::handler) fn marked_change((key, value): (String, String)) -> Change {
    match key.strip_prefix('-') {
        Some(key) => (key.to_owned(), None),
        None => (
            key.strip_prefix('+').unwrap_or(&key).to_owned(),
            Some(value),
        ),
    }
}

/// Changes as a command holds them; refuses keys and values that topics do not have here.
pub(super) fn checked_changes(changes: Vec<Change>) -> Result<BTreeMap<String, String>, Refusal> {
    let invalid = |remark: String| Refusal::new(ResponseCode::INVALID_PARAMETER, remark);
    for (key, value) in &changes {
        let Some(value) = value else { continue };
        if key == "message.type" && value == "MIXED" {
            return Err(invalid("MIXED message type is not supported.".to_owned()));
        }
        let known = ATTRIBUTES.iter().find(|(name, _)| name == key);
        let (_, values) = known.ok_or_else(|| invalid(format!("unsupported key: {key}")))?;
        if !values.contains(&value.as_str()) {
            let wanted = values.join(", ");
            return Err(invalid(format!(
                "value of {key} must be {wanted}, not '{value}'"
            )));
        }
    }
    Ok(marked(changes))
}

/// Changes in their order as a table with one sign for each key; the last change of a key counts.
pub(in crate::handler) fn marked(
    changes: impl IntoIterator<Item = Change>,
) -> BTreeMap<String, String> {
    let last: BTreeMap<String, Option<String>> = changes.into_iter().collect();
    let sign = |(key, value): (String, Option<String>)| match value {
        Some(value) => (format!("+{key}"), value),
        None => (format!("-{key}"), String::new()),
    };
    last.into_iter().map(sign).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_added_changed_and_removed() {
        let changes = ["+queue.type=SimpleCQ", "+message.type=FIFO", "-queue.type"];
        let changes = changes.map(|change| parse_change(change).unwrap());
        let changed = checked_changes(changes.into()).unwrap();
        let expected = [("+message.type", "FIFO"), ("-queue.type", "")];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(changed, BTreeMap::from(expected));
        for bad in [
            "+message.type=MIXED",
            "+message.type=X",
            "+nothing=1",
            "+queue.type=BatchCQ",
        ] {
            let changes = vec![parse_change(bad).unwrap()];
            assert!(checked_changes(changes).is_err(), "{bad}");
        }
        assert!(parse_change("message.type=FIFO").is_err());
    }
}
