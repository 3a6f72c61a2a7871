//! Which broker serves which topic at which address: the name server's table, as a value.
//!
//! No clock, no I/O; times come in as arguments. Broker id 0 is the leader of a group (RocketMQ's
//! master), every other id a follower. Two invariants:
//! N1: a broker name has at most one address per broker id, and an address has one broker id.
//! N2: an address is in `brokers` exactly when it is in `live`, under the same broker name.

use std::collections::{BTreeMap, BTreeSet};

use raftmq_remoting::body::DataVersion;

use raftmq_host::limits::{
    NAMESRV_ADDRESSES_PER_BROKER_MAX, NAMESRV_BROKER_NAMES_MAX, NAMESRV_NAME_BYTES_MAX,
    NAMESRV_TOPIC_ROWS_MAX,
};

/// Broker id of the leader.
pub const LEADER_BROKER_ID: u64 = 0;

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

/// The topics of all broker names. A topic without a row is not there.
#[derive(Debug, Default)]
struct Topics {
    /// Topic to broker name to queues.
    by_name: BTreeMap<String, BTreeMap<String, Queues>>,
    /// Rows (topic, broker name).
    rows: usize,
}

impl Topics {
    /// Whether these topics of a broker name fit.
    fn check_room<'a>(
        &self,
        topics: impl ExactSizeIterator<Item = &'a str>,
        broker_name: &str,
    ) -> Result<(), RegisterError> {
        if self.rows + topics.len() <= NAMESRV_TOPIC_ROWS_MAX {
            return Ok(());
        }
        let is_new = |topic: &&str| {
            let on = self.by_name.get(*topic);
            on.is_none_or(|on| !on.contains_key(broker_name))
        };
        if self.rows + topics.filter(is_new).count() > NAMESRV_TOPIC_ROWS_MAX {
            return Err(RegisterError::Full("topics"));
        }
        Ok(())
    }

    /// Sets a row; one that is there changes only with `replace`.
    fn set(&mut self, topic: &str, broker_name: &str, queues: Queues, replace: bool) {
        let Some(on) = self.by_name.get_mut(topic) else {
            let on = BTreeMap::from([(broker_name.to_owned(), queues)]);
            self.by_name.insert(topic.to_owned(), on);
            self.rows += 1;
            return;
        };
        if let Some(present) = on.get_mut(broker_name) {
            if replace {
                *present = queues;
            }
        } else {
            on.insert(broker_name.to_owned(), queues);
            self.rows += 1;
        }
    }

    /// Drops the rows of a broker name whose topics are meant.
    fn drop_rows(&mut self, broker_name: &str, goes: impl Fn(&str) -> bool) {
        let rows = &mut self.rows;
        self.by_name.retain(|topic, on| {
            if goes(topic) && on.remove(broker_name).is_some() {
                *rows -= 1;
            }
            !on.is_empty()
        });
    }

    /// Drops the rows of a topic whose broker names are meant.
    fn drop_rows_of(&mut self, topic: &str, goes: impl Fn(&String) -> bool) {
        let Some(on) = self.by_name.get_mut(topic) else {
            return;
        };
        let before = on.len();
        on.retain(|name, _| !goes(name));
        self.rows -= before - on.len();
        if on.is_empty() {
            self.by_name.remove(topic);
        }
    }
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct RouteTable {
    brokers: BTreeMap<String, Broker>,
    /// By address.
    live: BTreeMap<String, Live>,
    topics: Topics,
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
        let answer = self.leader_of(broker_name, *broker_id);
        if is_first {
            self.take_topics(&registration, changed);
        }
        self.debug_check();
        Ok(answer)
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
        let on = self.topics.by_name.get(topic)?;
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
            .by_name
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
            .by_name
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
        let names = cluster_name.map(|cluster_name| self.names_of_cluster(cluster_name));
        let goes = |name: &String| names.as_ref().is_none_or(|names| names.contains(name));
        self.topics.drop_rows_of(topic, goes);
    }

    /// Adds one topic of brokers whose leader, or the lowest id while there is none, is registered
    /// over this connection. From others it is ignored: a deposed leader may be late.
    pub(super) fn register_topic(
        &mut self,
        topic: &str,
        on: Vec<(String, Queues)>,
        connection: ConnectionId,
    ) -> Result<(), RegisterError> {
        if topic.len() > NAMESRV_NAME_BYTES_MAX {
            return Err(RegisterError::Full("bytes of a topic's name"));
        }
        for (name, queues) in on {
            if self.speaks_for(connection, &name) {
                self.topics.check_room([topic].into_iter(), &name)?;
                self.topics.set(topic, &name, queues, true);
            }
        }
        Ok(())
    }

    fn speaks_for(&self, connection: ConnectionId, broker_name: &str) -> bool {
        let broker = self.brokers.get(broker_name);
        let first = broker.and_then(|broker| broker.addresses.values().next());
        let live = first.and_then(|address| self.live.get(address));
        live.is_some_and(|live| live.connection == connection)
    }

    fn check(&self, registration: &Registration) -> Result<(), RegisterError> {
        let Registration {
            broker_name,
            broker_id,
            ..
        } = registration;
        let topics = registration.topics.iter().map(|(topic, _)| topic.as_str());
        self.topics.check_room(topics, broker_name)?;
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
        for address in same_role.iter().chain([broker_address]) {
            let Some(live) = self.live.remove(address) else {
                continue;
            };
            if live.broker_name != *broker_name {
                self.remove_address(&live.broker_name, address);
            } else if let Some(broker) = self.brokers.get_mut(broker_name) {
                // The topics of the name stay: the route must not vanish while the role moves.
                broker.addresses.retain(|_, other| other != address);
            }
        }
        true
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
            self.topics.drop_rows(name, |topic| !kept.contains(topic));
        }
        let acting =
            registration.broker_id != LEADER_BROKER_ID && registration.enable_acting_master;
        for (topic, queues) in &registration.topics {
            let mut queues = *queues;
            if acting {
                queues.perm &= !PERM_WRITE;
            }
            self.topics.set(topic, name, queues, changed);
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
            .by_name
            .values_mut()
            .filter_map(|on| on.get_mut(broker_name));
        on.map(|queues| queues.perm = change(queues.perm)).count()
    }

    fn remove_where(&mut self, gone: impl Fn(&Live) -> bool) -> Vec<String> {
        let mut removed = Vec::new();
        self.live.retain(|address, live| {
            let keep = !gone(live);
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
            self.topics.drop_rows(broker_name, |_| true);
        }
    }

    fn debug_check(&self) {
        if cfg!(debug_assertions) {
            let rows: usize = self.topics.by_name.values().map(BTreeMap::len).sum();
            assert_eq!(rows, self.topics.rows, "every row is counted");
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
