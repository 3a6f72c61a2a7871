//! Which broker serves which topic at which address: the name server's table, as a value.
//!
//! No clock, no I/O; times come in as arguments. Broker id 0 is the leader of a group (RocketMQ's
//! master), every other id a follower. Two invariants:
//! N1: a broker name has at most one address per broker id, and an address has one broker id.
//! N2: an address is in `brokers` exactly when it is in `live`, under the same broker name.

use std::collections::{BTreeMap, BTreeSet};

use raftmq_remoting::body::DataVersion;

use crate::limits::{NAMESRV_ADDRESSES_PER_BROKER_MAX, NAMESRV_BROKER_NAMES_MAX};

/// Broker id of the leader.
pub(crate) const LEADER_BROKER_ID: u64 = 0;

/// Silence after which a broker is dropped unless it asks for another time. Unit: ms.
/// Source: RocketMQ, 2 minutes.
const EXPIRE_AFTER_MS: u64 = 120_000;

/// Write permission bit of a topic.
const PERM_WRITE: i32 = 2;
/// Read permission bit of a topic.
const PERM_READ: i32 = 4;

/// A connection to this name server; ids are never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ConnectionId(pub(super) u64);

/// The queues of a topic on one broker name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Queues {
    pub(super) read_queue_nums: u32,
    pub(super) write_queue_nums: u32,
    pub(super) perm: i32,
    pub(super) topic_sys_flag: i32,
}

/// What a broker says of itself.
#[derive(Debug, Clone)]
pub(super) struct Registration {
    pub(super) cluster_name: String,
    pub(super) broker_name: String,
    pub(super) broker_address: String,
    pub(super) broker_id: u64,
    pub(super) ha_server_address: String,
    /// Silence after which it wants to be dropped. Unit: ms.
    pub(super) heartbeat_timeout_ms: Option<u64>,
    pub(super) enable_acting_master: bool,
    /// Our brokers put the Raft term of their role into its state version.
    pub(super) version: DataVersion,
    pub(super) topics: Vec<(String, Queues)>,
    /// Topics that are not in `topics` are to be dropped for this broker name.
    pub(super) topics_are_all: bool,
    pub(super) connection: ConnectionId,
}

/// What a broker is told about its leader; both empty when it is the leader or none is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Registered {
    pub(super) master_address: String,
    pub(super) ha_server_address: String,
}

/// Why a registration was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RegisterError {
    /// Another broker holds this broker id with a higher `state_version`: this one lost its role.
    #[error(
        "broker id {broker_id} of {broker_name} is held by {holder} with a newer state version"
    )]
    Stale {
        broker_name: String,
        broker_id: u64,
        holder: String,
    },
    /// A limit of the name server.
    #[error("name server has reached its limit of {0}")]
    Full(&'static str),
}

/// A broker name: one Raft group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Broker {
    pub(super) cluster_name: String,
    /// Address per broker id.
    pub(super) addresses: BTreeMap<u64, String>,
    pub(super) enable_acting_master: bool,
}

/// Where a topic is, broker by broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) brokers: Vec<(String, Broker)>,
    pub(super) queues: Vec<(String, Queues)>,
}

/// A registered address.
#[derive(Debug, Clone)]
struct Live {
    broker_name: String,
    connection: ConnectionId,
    version: DataVersion,
    ha_server_address: String,
    seen_ms: u64,
    expire_after_ms: u64,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct RouteTable {
    brokers: BTreeMap<String, Broker>,
    /// By address.
    live: BTreeMap<String, Live>,
    /// Topic to broker name to queues.
    topics: BTreeMap<String, BTreeMap<String, Queues>>,
}

impl RouteTable {
    /// Takes a registration. An address that held the same broker id is dropped until it registers
    /// again, and the same address under another id is moved: a role switch never shows two
    /// leaders and never an address in two roles.
    pub(super) fn register(
        &mut self,
        registration: Registration,
        now_ms: u64,
    ) -> Result<Registered, RegisterError> {
        self.check(&registration)?;
        let Registration {
            cluster_name,
            broker_name,
            broker_address,
            broker_id,
            ..
        } = &registration;
        let moved = self.displace(&registration);
        let known = self.version(broker_address);
        let broker = self.brokers.entry(broker_name.clone()).or_default();
        broker.cluster_name.clone_from(cluster_name);
        broker.enable_acting_master = registration.enable_acting_master;
        broker.addresses.insert(*broker_id, broker_address.clone());

        let changed = moved || known != Some(registration.version);
        let is_first = broker.addresses.keys().next() == Some(broker_id);
        if is_first {
            self.take_topics(&registration, changed);
        }
        self.live.insert(
            broker_address.clone(),
            Live {
                broker_name: broker_name.clone(),
                connection: registration.connection,
                version: registration.version,
                ha_server_address: registration.ha_server_address.clone(),
                seen_ms: now_ms,
                expire_after_ms: registration.heartbeat_timeout_ms.unwrap_or(EXPIRE_AFTER_MS),
            },
        );
        self.debug_check();
        Ok(self.leader_of(broker_name, *broker_id))
    }

    /// Drops an address; no error when it is not there.
    pub(super) fn unregister(&mut self, address: &str) {
        if let Some(live) = self.live.remove(address) {
            self.remove_address(&live.broker_name, address);
        }
        self.debug_check();
    }

    /// Drops what was registered over a connection that is closed now; returns the addresses.
    pub(super) fn connection_closed(&mut self, connection: ConnectionId) -> Vec<String> {
        self.remove_where(|live| live.connection == connection)
    }

    /// Drops every broker that was silent for too long; returns the addresses.
    pub(super) fn expire(&mut self, now_ms: u64) -> Vec<String> {
        self.remove_where(|live| now_ms.saturating_sub(live.seen_ms) > live.expire_after_ms)
    }

    /// Notes a sign of life.
    pub(super) fn seen(&mut self, address: &str, now_ms: u64) {
        if let Some(live) = self.live.get_mut(address) {
            live.seen_ms = now_ms;
        }
    }

    /// The version an address registered last.
    pub(super) fn version(&self, address: &str) -> Option<DataVersion> {
        self.live.get(address).map(|live| live.version)
    }

    /// Where `topic` is; `None` when no registered broker has it.
    pub(super) fn route(&self, topic: &str) -> Option<Route> {
        let on = self.topics.get(topic)?;
        let registered = |name: &String| {
            self.brokers
                .get(name)
                .map(|found| (name.clone(), found.clone()))
        };
        let route = Route {
            brokers: on.keys().filter_map(registered).collect(),
            queues: on
                .iter()
                .map(|(name, queues)| (name.clone(), *queues))
                .collect(),
        };
        if route.brokers.is_empty() {
            None
        } else {
            Some(route)
        }
    }

    /// Every broker name.
    pub(super) fn brokers(&self) -> &BTreeMap<String, Broker> {
        &self.brokers
    }

    /// Broker names by cluster.
    pub(super) fn clusters(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut clusters: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, broker) in &self.brokers {
            clusters.entry(&broker.cluster_name).or_default().push(name);
        }
        clusters
    }

    /// Every topic whose system flags fit `wanted`, each once.
    pub(super) fn topics_where(&self, wanted: impl Fn(i32) -> bool) -> Vec<String> {
        let fits = |on: &BTreeMap<String, Queues>| {
            on.values()
                .next()
                .is_some_and(|queues| wanted(queues.topic_sys_flag))
        };
        self.topics
            .iter()
            .filter(|(_, on)| fits(on))
            .map(|(topic, _)| topic.clone())
            .collect()
    }

    /// Every topic of a cluster.
    pub(super) fn topics_of_cluster(&self, cluster_name: &str) -> Vec<String> {
        let names = self.names_of_cluster(cluster_name);
        let fits = |on: &BTreeMap<String, Queues>| on.keys().any(|name| names.contains(name));
        self.topics
            .iter()
            .filter(|(_, on)| fits(on))
            .map(|(topic, _)| topic.clone())
            .collect()
    }

    /// Makes every topic of a broker name read-only; returns how many topics it has.
    pub(super) fn wipe_write_perm(&mut self, broker_name: &str) -> usize {
        self.change_perm(broker_name, |perm| perm & !PERM_WRITE)
    }

    /// Makes every topic of a broker name readable and writable; returns how many topics it has.
    pub(super) fn add_write_perm(&mut self, broker_name: &str) -> usize {
        self.change_perm(broker_name, |perm| perm | PERM_READ | PERM_WRITE)
    }

    /// Forgets a topic, everywhere or in one cluster, until a broker registers it again.
    pub(super) fn delete_topic(&mut self, topic: &str, cluster_name: Option<&str>) {
        let Some(cluster_name) = cluster_name else {
            self.topics.remove(topic);
            return;
        };
        let names = self.names_of_cluster(cluster_name);
        if let Some(on) = self.topics.get_mut(topic) {
            on.retain(|name, _| !names.contains(name));
            if on.is_empty() {
                self.topics.remove(topic);
            }
        }
    }

    /// Adds one topic of brokers that are registered; others are ignored.
    pub(super) fn register_topic(&mut self, topic: &str, on: Vec<(String, Queues)>) {
        for (name, queues) in on {
            if self.brokers.contains_key(&name) {
                self.topics
                    .entry(topic.to_owned())
                    .or_default()
                    .insert(name, queues);
            }
        }
    }

    fn check(&self, registration: &Registration) -> Result<(), RegisterError> {
        let Registration {
            broker_name,
            broker_id,
            ..
        } = registration;
        let Some(broker) = self.brokers.get(broker_name) else {
            return if self.brokers.len() >= NAMESRV_BROKER_NAMES_MAX {
                Err(RegisterError::Full("broker names"))
            } else {
                Ok(())
            };
        };
        let Some(holder) = broker.addresses.get(broker_id) else {
            return if broker.addresses.len() >= NAMESRV_ADDRESSES_PER_BROKER_MAX {
                Err(RegisterError::Full("addresses of a broker name"))
            } else {
                Ok(())
            };
        };
        match self.live.get(holder) {
            // Also for the same address from elsewhere, which two leaders share one after the
            // other: it would otherwise go with the connection of the deposed one.
            Some(held)
                if held.version.state_version > registration.version.state_version
                    && (*holder != registration.broker_address
                        || held.connection != registration.connection) =>
            {
                Err(RegisterError::Stale {
                    broker_name: broker_name.clone(),
                    broker_id: *broker_id,
                    holder: holder.clone(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Removes what contradicts a registration: another address under its broker id, its address
    /// under another id, name or cluster. Returns whether the address is new in this role.
    fn displace(&mut self, registration: &Registration) -> bool {
        let Registration {
            broker_name,
            broker_address,
            broker_id,
            ..
        } = registration;
        let same_role = self
            .brokers
            .get(broker_name)
            .and_then(|broker| broker.addresses.get(broker_id))
            .cloned();
        if same_role.as_ref() == Some(broker_address) {
            return false;
        }
        // The topics of the name stay: the route must not vanish while the role moves.
        let topics = self.topics_of(broker_name);
        self.remove_where_key(|address, live| {
            address == broker_address
                || (live.broker_name == *broker_name && same_role.as_ref() == Some(address))
        });
        for (topic, queues) in topics {
            self.topics
                .entry(topic)
                .or_default()
                .entry(broker_name.clone())
                .or_insert(queues);
        }
        true
    }

    fn topics_of(&self, broker_name: &str) -> Vec<(String, Queues)> {
        let on = |(topic, on): (&String, &BTreeMap<String, Queues>)| {
            on.get(broker_name).map(|queues| (topic.clone(), *queues))
        };
        self.topics.iter().filter_map(on).collect()
    }

    /// Takes the topics of the leader, or of the lowest id while there is no leader. Topics that
    /// are known already change only with the version, so that a wiped permission stays wiped.
    fn take_topics(&mut self, registration: &Registration, changed: bool) {
        let name = &registration.broker_name;
        if registration.topics_are_all && changed {
            let kept: BTreeSet<&str> = registration
                .topics
                .iter()
                .map(|(topic, _)| topic.as_str())
                .collect();
            self.topics.retain(|topic, on| {
                if !kept.contains(topic.as_str()) {
                    on.remove(name);
                }
                !on.is_empty()
            });
        }
        let acting =
            registration.broker_id != LEADER_BROKER_ID && registration.enable_acting_master;
        for (topic, queues) in &registration.topics {
            let mut queues = *queues;
            if acting {
                queues.perm &= !PERM_WRITE;
            }
            let on = self.topics.entry(topic.clone()).or_default();
            if changed || !on.contains_key(name) {
                on.insert(name.clone(), queues);
            }
        }
    }

    fn leader_of(&self, broker_name: &str, asking: u64) -> Registered {
        let broker = self
            .brokers
            .get(broker_name)
            .filter(|_| asking != LEADER_BROKER_ID);
        let Some(address) = broker.and_then(|broker| broker.addresses.get(&LEADER_BROKER_ID))
        else {
            return Registered::default();
        };
        let live = self.live.get(address);
        Registered {
            master_address: address.clone(),
            ha_server_address: live
                .map(|live| live.ha_server_address.clone())
                .unwrap_or_default(),
        }
    }

    fn names_of_cluster(&self, cluster_name: &str) -> BTreeSet<String> {
        let inside = self
            .brokers
            .iter()
            .filter(|(_, broker)| broker.cluster_name == cluster_name);
        inside.map(|(name, _)| name.clone()).collect()
    }

    fn change_perm(&mut self, broker_name: &str, change: impl Fn(i32) -> i32) -> usize {
        let on = self
            .topics
            .values_mut()
            .filter_map(|on| on.get_mut(broker_name));
        on.map(|queues| queues.perm = change(queues.perm)).count()
    }

    fn remove_where(&mut self, gone: impl Fn(&Live) -> bool) -> Vec<String> {
        self.remove_where_key(|_, live| gone(live))
    }

    fn remove_where_key(&mut self, gone: impl Fn(&String, &Live) -> bool) -> Vec<String> {
        let mut removed = Vec::new();
        self.live.retain(|address, live| {
            let keep = !gone(address, live);
            if !keep {
                removed.push((live.broker_name.clone(), address.clone()));
            }
            keep
        });
        for (name, address) in &removed {
            self.remove_address(name, address);
        }
        self.debug_check();
        removed.into_iter().map(|(_, address)| address).collect()
    }

    /// A broker name without addresses goes, with its topics.
    fn remove_address(&mut self, broker_name: &str, address: &str) {
        let Some(broker) = self.brokers.get_mut(broker_name) else {
            return;
        };
        broker.addresses.retain(|_, other| other != address);
        if broker.addresses.is_empty() {
            self.brokers.remove(broker_name);
            self.topics.retain(|_, on| {
                on.remove(broker_name);
                !on.is_empty()
            });
        }
    }

    fn debug_check(&self) {
        if cfg!(debug_assertions) {
            let registered = self.brokers.values().map(|broker| broker.addresses.len());
            assert_eq!(
                registered.sum::<usize>(),
                self.live.len(),
                "N2: one live entry per address"
            );
            for (address, live) in &self.live {
                let broker = &self.brokers[&live.broker_name];
                let ids = broker
                    .addresses
                    .values()
                    .filter(|other| *other == address)
                    .count();
                assert_eq!(ids, 1, "N1: {address} has one broker id");
            }
        }
    }
}

#[cfg(test)]
#[path = "route_table_test.rs"]
mod tests;
