//! Connected clients: producers and consumers by group, as their heartbeats tell. Volatile and
//! never replicated; every broker a client is connected to knows it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use raftmq_remoting::body::{ConsumerData, HeartbeatData, SubscriptionData};
use tokio::time::Instant;

use crate::server::Connection;

/// A client is forgotten after this silence. Source: RocketMQ's channel expiry, 120 s; heartbeats
/// come every 30 s.
pub(crate) const CLIENT_EXPIRY: Duration = Duration::from_secs(120);

/// One connected client of a group.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// `ip@pid` or what the client chose.
    pub client_id: String,
    /// Its connection; requests to the client go there.
    pub connection: Arc<Connection>,
    /// Language code of its heartbeat.
    pub language: u8,
    /// Version ordinal of its heartbeat.
    pub version: i32,
    /// Time of its last heartbeat, for those who look at it. Unit: ms since 1970.
    pub last_update_ms: u64,
    /// The same by a clock that nobody sets.
    pub seen: Instant,
}

/// A consumer group with its members and what they subscribed to.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConsumerGroup {
    /// `CONSUME_ACTIVELY` or `CONSUME_PASSIVELY`.
    pub consume_type: String,
    /// `CLUSTERING` or `BROADCASTING`.
    pub message_model: String,
    /// `CONSUME_FROM_LAST_OFFSET` and so on.
    pub consume_from_where: String,
    /// Members by client id.
    pub clients: BTreeMap<String, Client>,
    /// Subscriptions by topic; the newest version of each wins.
    pub subscriptions: BTreeMap<String, SubscriptionData>,
}

#[derive(Debug, Default)]
struct Inner {
    consumers: BTreeMap<String, ConsumerGroup>,
    producers: BTreeMap<String, BTreeMap<String, Client>>,
}

/// All sessions of this broker. Owns its lock; taken for map operations only.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    inner: Mutex<Inner>,
}

/// What a heartbeat or a leaving client changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Groups whose members or subscriptions changed: their members must rebalance.
    pub groups: BTreeSet<String>,
}

impl ConsumerGroup {
    /// Takes over what `data` says; true when members or subscriptions changed. `with_topics`:
    /// the heartbeat carries the subscriptions.
    fn update(&mut self, data: &ConsumerData, client: Client, with_topics: bool) -> bool {
        self.consume_type.clone_from(&data.consume_type);
        self.message_model.clone_from(&data.message_model);
        self.consume_from_where.clone_from(&data.consume_from_where);
        let connection = client.connection.id;
        let known = self.clients.insert(client.client_id.clone(), client);
        let mut changed = known.is_none_or(|known| known.connection.id != connection);
        if !with_topics {
            return changed;
        }
        for subscription in &data.subscription_data_set {
            match self.subscriptions.get_mut(&subscription.topic) {
                Some(known) if subscription.sub_version > known.sub_version => {
                    *known = subscription.clone();
                }
                Some(_) => {}
                None => {
                    self.subscriptions
                        .insert(subscription.topic.clone(), subscription.clone());
                    changed = true;
                }
            }
        }
        let wanted: BTreeSet<&String> = data
            .subscription_data_set
            .iter()
            .map(|subscription| &subscription.topic)
            .collect();
        let before = self.subscriptions.len();
        self.subscriptions.retain(|topic, _| wanted.contains(topic));
        changed || self.subscriptions.len() != before
    }
}

impl Sessions {
    /// Takes in a heartbeat of `client`.
    pub(crate) fn heartbeat(&self, data: &HeartbeatData, client: &Client) -> Changed {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = Changed::default();
        for producer in &data.producer_data_set {
            inner
                .producers
                .entry(producer.group_name.clone())
                .or_default()
                .insert(client.client_id.clone(), client.clone());
        }
        for consumer in &data.consumer_data_set {
            let group = inner
                .consumers
                .entry(consumer.group_name.clone())
                .or_default();
            if group.update(consumer, client.clone(), !data.without_sub) {
                changed.groups.insert(consumer.group_name.clone());
            }
        }
        changed
    }

    /// Takes a client out of the groups it names.
    pub(crate) fn unregister(
        &self,
        client_id: &str,
        producer_group: Option<&str>,
        consumer_group: Option<&str>,
    ) -> Changed {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(clients) = producer_group.and_then(|group| inner.producers.get_mut(group)) {
            clients.remove(client_id);
        }
        let mut changed = Changed::default();
        if let Some(name) = consumer_group
            && let Some(group) = inner.consumers.get_mut(name)
            && group.clients.remove(client_id).is_some()
        {
            changed.groups.insert(name.to_owned());
        }
        inner.drop_empty();
        changed
    }

    /// Takes every client of a closed connection out.
    pub(crate) fn connection_closed(&self, connection: u64) -> Changed {
        self.retain(|client| client.connection.id != connection)
    }

    /// Takes clients out that were silent for [`CLIENT_EXPIRY`] and closes their connections.
    pub(crate) fn expire(&self, now: Instant) -> Changed {
        self.retain(|client| {
            let alive = client.seen + CLIENT_EXPIRY > now;
            if !alive {
                client.connection.close();
            }
            alive
        })
    }

    fn retain(&self, mut keep: impl FnMut(&Client) -> bool) -> Changed {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = Changed::default();
        for clients in inner.producers.values_mut() {
            clients.retain(|_, client| keep(client));
        }
        for (name, group) in &mut inner.consumers {
            let before = group.clients.len();
            group.clients.retain(|_, client| keep(client));
            if group.clients.len() != before {
                changed.groups.insert(name.clone());
            }
        }
        inner.drop_empty();
        changed
    }

    /// Client ids of a consumer group, sorted: every member computes the same assignment from it.
    #[must_use]
    pub(crate) fn consumer_ids(&self, group: &str) -> Vec<String> {
        self.with_group(group, |group| group.clients.keys().cloned().collect())
            .unwrap_or_default()
    }

    /// What a consumer group subscribed to on `topic`.
    #[must_use]
    pub(crate) fn subscription(&self, group: &str, topic: &str) -> Option<SubscriptionData> {
        self.with_group(group, |group| group.subscriptions.get(topic).cloned())
            .flatten()
    }

    /// Whether a consumer group has members here.
    #[must_use]
    pub(crate) fn has_consumers(&self, group: &str) -> bool {
        self.with_group(group, |_| ()).is_some()
    }

    /// Whether every member of a consumer group gets every message.
    #[must_use]
    pub(crate) fn is_broadcasting(&self, group: &str) -> bool {
        self.with_group(group, |group| group.message_model == "BROADCASTING")
            .unwrap_or(false)
    }

    /// A copy of a consumer group.
    #[must_use]
    pub(crate) fn consumer_group(&self, group: &str) -> Option<ConsumerGroup> {
        self.with_group(group, Clone::clone)
    }

    /// One member of a consumer group.
    #[must_use]
    pub(crate) fn consumer(&self, group: &str, client_id: &str) -> Option<Client> {
        self.with_group(group, |group| group.clients.get(client_id).cloned())
            .flatten()
    }

    /// Names of groups whose members subscribe to `topic`.
    #[must_use]
    pub(crate) fn groups_of_topic(&self, topic: &str) -> Vec<String> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner
            .consumers
            .iter()
            .filter(|(_, group)| group.subscriptions.contains_key(topic))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// A producer, whatever group it is in.
    #[must_use]
    pub(crate) fn producer(&self, client_id: &str) -> Option<Client> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner
            .producers
            .values()
            .find_map(|clients| clients.get(client_id).cloned())
    }

    /// Members of a producer group.
    #[must_use]
    pub(crate) fn producers(&self, group: &str) -> Vec<Client> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner
            .producers
            .get(group)
            .map(|clients| clients.values().cloned().collect())
            .unwrap_or_default()
    }

    /// All producer groups with their members.
    #[must_use]
    pub(crate) fn all_producers(&self) -> BTreeMap<String, Vec<Client>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner
            .producers
            .iter()
            .map(|(group, clients)| (group.clone(), clients.values().cloned().collect()))
            .collect()
    }

    fn with_group<T>(&self, group: &str, read: impl FnOnce(&ConsumerGroup) -> T) -> Option<T> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.consumers.get(group).map(read)
    }
}

impl Inner {
    fn drop_empty(&mut self) {
        self.producers.retain(|_, clients| !clients.is_empty());
        self.consumers.retain(|_, group| !group.clients.is_empty());
    }
}
