//! A map from (group, topic, queue_id) to a value, looked up by borrowed names. Consumer offsets
//! and queue locks are both of this shape.

use std::collections::BTreeMap;

/// Values by group, then topic, then queue_id. No inner map is ever empty, so that equal contents
/// always have equal encodings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PerQueue<V> {
    groups: BTreeMap<String, Topics<V>>,
    len: usize,
}

impl<V> Default for PerQueue<V> {
    fn default() -> Self {
        Self {
            groups: BTreeMap::new(),
            len: 0,
        }
    }
}

/// Values of one group by topic and queue_id.
pub(crate) type Topics<V> = BTreeMap<String, BTreeMap<u32, V>>;

impl<V> PerQueue<V> {
    /// A map read from a checkpoint; no inner map may be empty.
    pub(crate) fn restored(groups: BTreeMap<String, Topics<V>>) -> Self {
        let len = groups
            .values()
            .flat_map(BTreeMap::values)
            .map(BTreeMap::len)
            .sum();
        Self { groups, len }
    }

    /// The nested maps, for a checkpoint.
    pub(crate) fn nested(&self) -> &BTreeMap<String, Topics<V>> {
        &self.groups
    }

    pub(crate) fn get(&self, group: &str, topic: &str, queue_id: u32) -> Option<&V> {
        self.groups.get(group)?.get(topic)?.get(&queue_id)
    }

    pub(crate) fn get_mut(&mut self, group: &str, topic: &str, queue_id: u32) -> Option<&mut V> {
        self.groups
            .get_mut(group)?
            .get_mut(topic)?
            .get_mut(&queue_id)
    }

    pub(crate) fn insert(&mut self, group: &str, topic: &str, queue_id: u32, value: V) {
        let queues = self
            .groups
            .entry(group.to_owned())
            .or_default()
            .entry(topic.to_owned())
            .or_default();
        if queues.insert(queue_id, value).is_none() {
            self.len += 1;
        }
    }

    pub(crate) fn remove(&mut self, group: &str, topic: &str, queue_id: u32) {
        let Some(topics) = self.groups.get_mut(group) else {
            return;
        };
        let Some(queues) = topics.get_mut(topic) else {
            return;
        };
        if queues.remove(&queue_id).is_some() {
            self.len -= 1;
        }
        if queues.is_empty() {
            topics.remove(topic);
        }
        if topics.is_empty() {
            self.groups.remove(group);
        }
    }

    pub(crate) fn remove_group(&mut self, group: &str) {
        let removed = self.groups.remove(group).unwrap_or_default();
        self.len -= removed.values().map(BTreeMap::len).sum::<usize>();
    }

    pub(crate) fn remove_topic(&mut self, topic: &str) {
        let len = &mut self.len;
        self.groups.retain(|_, topics| {
            *len -= topics.remove(topic).map_or(0, |queues| queues.len());
            !topics.is_empty()
        });
    }

    /// Number of values. Unit: (group, topic, queue_id) triples.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Every value with its key, sorted by it.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str, u32, &V)> {
        self.groups.iter().flat_map(|(group, topics)| {
            topics.iter().flat_map(move |(topic, queues)| {
                queues.iter().map(move |(queue_id, value)| {
                    (group.as_str(), topic.as_str(), *queue_id, value)
                })
            })
        })
    }

    /// Every value of a group with its topic and queue_id, sorted by them.
    pub(crate) fn of_group(&self, group: &str) -> impl Iterator<Item = (&str, u32, &V)> {
        self.groups
            .get(group)
            .into_iter()
            .flatten()
            .flat_map(|(topic, queues)| {
                queues
                    .iter()
                    .map(move |(queue_id, value)| (topic.as_str(), *queue_id, value))
            })
    }

    pub(crate) fn groups_of_topic(&self, topic: &str) -> impl Iterator<Item = &str> {
        self.groups
            .iter()
            .filter(move |(_, topics)| topics.contains_key(topic))
            .map(|(group, _)| group.as_str())
    }
}
