//! A small replicated key-value table by namespace, for what has no table of its own (dynamic
//! broker configuration, for one).

use std::collections::BTreeMap;

use crate::limits::KEY_VALUES_MAX;
use crate::output::Reject;

/// Values by namespace, then key. No namespace is ever empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct KeyValues {
    pub(crate) namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

impl KeyValues {
    pub(crate) fn get(&self, namespace: &str, key: &str) -> Option<&str> {
        self.namespaces.get(namespace)?.get(key).map(String::as_str)
    }

    pub(crate) fn len(&self) -> usize {
        self.namespaces.values().map(BTreeMap::len).sum()
    }

    pub(crate) fn put(
        &mut self,
        namespace: String,
        key: String,
        value: String,
    ) -> Result<(), Reject> {
        if self.get(&namespace, &key).is_none() && self.len() >= KEY_VALUES_MAX {
            return Err(Reject::LimitReached);
        }
        self.namespaces
            .entry(namespace)
            .or_default()
            .insert(key, value);
        Ok(())
    }

    pub(crate) fn delete(&mut self, namespace: &str, key: &str) {
        let Some(keys) = self.namespaces.get_mut(namespace) else {
            return;
        };
        keys.remove(key);
        if keys.is_empty() {
            self.namespaces.remove(namespace);
        }
    }

    pub(crate) fn iter(&self, namespace: &str) -> impl Iterator<Item = (&str, &str)> {
        self.namespaces
            .get(namespace)
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }
}
