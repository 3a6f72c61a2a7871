//! Attributes of topics and groups: named texts that are changed one by one.

use std::collections::BTreeMap;

use crate::limits::ATTRIBUTES_BYTES_MAX;
use crate::output::Reject;

/// `present` after `changes`: a key `-name` removes an attribute, `+name` or a plain name sets one.
/// Removals come last, in the order of the keys.
///
/// # Errors
/// [`Reject::LimitReached`] when they would be longer than [`ATTRIBUTES_BYTES_MAX`] together.
pub fn changed_attributes(
    present: Option<&BTreeMap<String, String>>,
    changes: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, Reject> {
    let mut attributes = present.cloned().unwrap_or_default();
    for (key, value) in changes {
        if let Some(name) = key.strip_prefix('-') {
            attributes.remove(name);
        } else {
            let name = key.strip_prefix('+').unwrap_or(&key);
            attributes.insert(name.to_owned(), value);
        }
    }
    let bytes: usize = attributes
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if bytes > ATTRIBUTES_BYTES_MAX {
        return Err(Reject::LimitReached);
    }
    Ok(attributes)
}
