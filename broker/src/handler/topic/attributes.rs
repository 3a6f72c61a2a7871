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

/// `attributes` after `changes`; refuses keys and values that topics do not have here.
pub(super) fn changed_attributes(
    mut attributes: BTreeMap<String, String>,
    changes: Vec<Change>,
) -> Result<BTreeMap<String, String>, Refusal> {
    let invalid = |remark: String| Refusal::new(ResponseCode::INVALID_PARAMETER, remark);
    for (key, value) in changes {
        let Some(value) = value else {
            attributes.remove(&key);
            continue;
        };
        if key == "message.type" && value == "MIXED" {
            return Err(invalid("MIXED message type is not supported.".to_owned()));
        }
        let known = ATTRIBUTES.iter().find(|(name, _)| *name == key);
        let (_, values) = known.ok_or_else(|| invalid(format!("unsupported key: {key}")))?;
        if !values.contains(&value.as_str()) {
            let wanted = values.join(", ");
            return Err(invalid(format!(
                "value of {key} must be {wanted}, not '{value}'"
            )));
        }
        attributes.insert(key, value);
    }
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_added_changed_and_removed() {
        let present = BTreeMap::from([("queue.type".to_owned(), "SimpleCQ".to_owned())]);
        let changes = vec![
            parse_change("+message.type=FIFO").unwrap(),
            parse_change("-queue.type").unwrap(),
        ];
        let changed = changed_attributes(present, changes).unwrap();
        assert_eq!(
            changed,
            BTreeMap::from([("message.type".to_owned(), "FIFO".to_owned())])
        );
        for bad in [
            "+message.type=MIXED",
            "+message.type=X",
            "+nothing=1",
            "+queue.type=BatchCQ",
        ] {
            let changes = vec![parse_change(bad).unwrap()];
            assert!(
                changed_attributes(BTreeMap::new(), changes).is_err(),
                "{bad}"
            );
        }
        assert!(parse_change("message.type=FIFO").is_err());
    }
}
