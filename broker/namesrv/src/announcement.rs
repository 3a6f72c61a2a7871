//! What name servers are to know of this broker: its role, and its topics, as a whole for whoever
//! knows nothing and change by change for the others.
//!
//! A registration with all topics is encoded when the first name server needs it, once for all of
//! them. A change costs as much as the topics that it touches, however many others there are.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use raftmq_remoting::RemotingCommand;
use raftmq_remoting::RequestCode;
use raftmq_remoting::body::{self, QueueData, RegisterBrokerBody, TopicConfig, TopicRouteData};

use super::register_body;
use raftmq_host::limits::{NAMESRV_PLAIN_REGISTRATION_BYTES_MAX, NAMESRV_TOPIC_CHANGES_KEPT};

/// Bytes that a topic takes in a plain registration besides its name and attributes, at least.
const TOPIC_JSON_BYTES: usize = 180;

/// Reads all topics as they are now.
pub type ReadTopics = Arc<dyn Fn() -> RegisterBrokerBody + Send + Sync>;

/// What a broker is in its group, as it is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredRole {
    /// 0 while this broker leads, else [`raftmq_config::RaftPeer::id`].
    pub broker_id: u64,
    /// `host:port` clients are to connect to in this role.
    pub broker_address: String,
    /// The address moves with the role (`leaderServiceAddress`): this broker does not take it out,
    /// since the next leader may have registered it already. When nobody has, the name server
    /// drops it with the connection.
    pub address_is_shared: bool,
    /// Raft term of the role. It is sent as the state version of the topics, by which a name
    /// server tells a deposed leader from the new one.
    pub role_epoch: u64,
}

/// What is registered; a new role is sent to every name server at once.
#[derive(Debug, Clone)]
pub struct RegistrarInput {
    /// The role.
    pub role: RegisteredRole,
    /// The topics.
    pub topics: Arc<Announcement>,
}

/// The topics at one moment, and what changed before it.
pub struct Announcement {
    /// Number of the newest change.
    pub version: u64,
    /// Every change with a larger number is in `changed`.
    complete_after: u64,
    /// Topics that were put lately, each with the number of its change.
    changed: Vec<(u64, Arc<TopicConfig>)>,
    role_epoch: u64,
    read: ReadTopics,
    body: OnceLock<Result<Arc<Body>, String>>,
}

/// The body of a registration.
#[derive(Debug)]
pub(super) struct Body {
    /// Number of the newest change in it.
    pub(super) version: u64,
    /// Topics in it.
    pub(super) topics: usize,
    bytes: Bytes,
    checksum: i32,
    compressed: bool,
}

impl fmt::Debug for Announcement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Announcement")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

impl Announcement {
    /// The topics that changed after `version`; `None`: one was deleted, or there were too many
    /// changes, and only a registration with all topics tells.
    pub(super) fn changed_after(&self, version: u64) -> Option<Vec<(u64, Arc<TopicConfig>)>> {
        if version < self.complete_after {
            return None;
        }
        let mut newest = BTreeMap::new();
        for (number, config) in self.changed.iter().filter(|(number, _)| *number > version) {
            newest.insert(&config.topic_name, (*number, Arc::clone(config)));
        }
        Some(newest.into_values().collect())
    }

    /// Encodes all topics now, so that the tasks of the name servers do not wait for each other.
    pub fn prepare(&self) {
        // An error is told to each who asks.
        let _ = self.body();
    }

    /// All topics, encoded by the first who asks.
    ///
    /// Encoding ten thousand topics takes a worker some 10 ms. It is not handed to the threads that
    /// wait for disks: a new leader must be registered however long those queue.
    pub(super) fn body(&self) -> io::Result<Arc<Body>> {
        let body = self.body.get_or_init(|| {
            let encoded = Body::encode((self.read)(), self.role_epoch);
            encoded.map(Arc::new).map_err(|error| error.to_string())
        });
        body.clone().map_err(io::Error::other)
    }
}

impl Body {
    fn encode(mut body: RegisterBrokerBody, role_epoch: u64) -> io::Result<Self> {
        let wrapper = &mut body.topic_config_serialize_wrapper;
        wrapper.data_version.state_version = i64::try_from(role_epoch).unwrap_or(i64::MAX);
        let version = u64::try_from(wrapper.data_version.counter).unwrap_or(0);
        let topics = wrapper.topic_config_table.len();
        let compressed = plain_bytes(&body) > NAMESRV_PLAIN_REGISTRATION_BYTES_MAX;
        let bytes = if compressed {
            Bytes::from(register_body::deflate(&body)?)
        } else {
            body::encode(&body)
        };
        Ok(Self {
            version,
            topics,
            checksum: register_body::checksum(&bytes),
            bytes,
            compressed,
        })
    }

    /// Puts the body into a request that has the other fields already.
    pub(super) fn complete(&self, request: RemotingCommand) -> RemotingCommand {
        request
            .with_ext("compressed", self.compressed.to_string())
            .with_ext("bodyCrc32", self.checksum.to_string())
            .with_body(self.bytes.clone())
    }
}

/// About how long the plain form is.
fn plain_bytes(body: &RegisterBrokerBody) -> usize {
    let table = &body.topic_config_serialize_wrapper.topic_config_table;
    let bytes = |(topic, config): (&String, &TopicConfig)| {
        let attributes = config.attributes.iter();
        let attributes: usize = attributes.map(|(key, value)| key.len() + value.len()).sum();
        TOPIC_JSON_BYTES + 2 * topic.len() + attributes
    };
    table.iter().map(bytes).sum()
}

/// One topic of a broker name, for a name server that knows the broker (217).
pub(super) fn topic_request(broker_name: &str, config: &TopicConfig) -> RemotingCommand {
    let queues = QueueData {
        broker_name: broker_name.to_owned(),
        perm: config.perm,
        read_queue_nums: config.read_queue_nums,
        topic_sys_flag: config.topic_sys_flag,
        write_queue_nums: config.write_queue_nums,
    };
    let route = TopicRouteData {
        queue_datas: vec![queues],
        ..TopicRouteData::default()
    };
    RemotingCommand::request(RequestCode::REGISTER_TOPIC_IN_NAMESRV)
        .with_ext("topic", config.topic_name.as_str())
        .with_body(body::encode(&route))
}

/// Makes announcements out of changes.
pub struct Announcements {
    read: ReadTopics,
    version: u64,
    complete_after: u64,
    changed: VecDeque<(u64, Arc<TopicConfig>)>,
}

impl fmt::Debug for Announcements {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Announcements")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

impl Announcements {
    /// Nothing is known of changes until `version`.
    pub fn new(read: ReadTopics, version: u64) -> Self {
        Self {
            read,
            version,
            complete_after: version,
            changed: VecDeque::new(),
        }
    }

    /// Number of the newest change that was noted.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Notes the changes up to `version`: these topics were put. `None`: any may have changed.
    pub fn note(&mut self, version: u64, put: Option<Vec<TopicConfig>>) {
        self.version = version;
        match put {
            Some(put) => {
                let numbered = put.into_iter().map(|config| (version, Arc::new(config)));
                self.changed.extend(numbered);
            }
            None => {
                self.changed.clear();
                self.complete_after = version;
            }
        }
        while self.changed.len() > NAMESRV_TOPIC_CHANGES_KEPT
            && let Some((forgotten, _)) = self.changed.pop_front()
        {
            self.complete_after = forgotten;
        }
    }

    /// What is to be known now, in a role of that term.
    pub fn publish(&self, role_epoch: u64) -> Arc<Announcement> {
        Arc::new(Announcement {
            version: self.version,
            complete_after: self.complete_after,
            changed: self.changed.iter().cloned().collect(),
            role_epoch,
            read: Arc::clone(&self.read),
            body: OnceLock::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn config(topic: &str, queues: u32) -> TopicConfig {
        TopicConfig::new(topic, queues, 6)
    }

    fn nothing() -> ReadTopics {
        Arc::new(RegisterBrokerBody::default)
    }

    fn names(changed: &[(u64, Arc<TopicConfig>)]) -> Vec<(&str, u32)> {
        changed
            .iter()
            .map(|(_, config)| (config.topic_name.as_str(), config.read_queue_nums))
            .collect()
    }

    #[test]
    fn the_newest_configuration_of_each_topic_that_changed_is_told() {
        let mut announcements = Announcements::new(nothing(), 10);
        announcements.note(12, Some(vec![config("A", 1), config("B", 1)]));
        announcements.note(13, Some(vec![config("A", 2)]));
        let topics = announcements.publish(1);
        let changed = topics.changed_after(10).unwrap();
        assert_eq!(names(&changed), [("A", 2), ("B", 1)]);
        let changed = topics.changed_after(12).unwrap();
        assert_eq!(names(&changed), [("A", 2)]);
        assert!(topics.changed_after(13).unwrap().is_empty());
        // What was before the first change is unknown here.
        assert!(topics.changed_after(9).is_none());
        announcements.note(14, None);
        assert!(announcements.publish(1).changed_after(13).is_none());
    }

    #[test]
    fn changes_that_are_forgotten_are_told_with_all_others() {
        let mut announcements = Announcements::new(nothing(), 0);
        let most = u64::try_from(NAMESRV_TOPIC_CHANGES_KEPT).unwrap();
        for number in 1..=most + 2 {
            announcements.note(number, Some(vec![config("A", 1)]));
        }
        let topics = announcements.publish(1);
        assert!(topics.changed_after(1).is_none());
        assert!(topics.changed_after(2).is_some());
    }

    #[test]
    fn all_topics_are_read_once_and_only_when_somebody_asks() {
        let reads = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&reads);
        let read: ReadTopics = Arc::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            RegisterBrokerBody::default()
        });
        let topics = Announcements::new(read, 0).publish(7);
        assert_eq!(reads.load(Ordering::Relaxed), 0);
        for _ in 0..3 {
            topics.body().unwrap();
        }
        assert_eq!(reads.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn many_topics_are_sent_compressed() {
        for (count, expected) in [(10, false), (10_000, true)] {
            let mut body = RegisterBrokerBody::default();
            let table = &mut body.topic_config_serialize_wrapper.topic_config_table;
            for number in 0..count {
                let topic = format!("topic-{number}");
                table.insert(topic.clone(), config(&topic, 4));
            }
            let body = Body::encode(body, 3).unwrap();
            assert_eq!((body.topics, body.compressed), (count, expected));
            let topics = register_body::count_topics(&body.bytes, body.compressed);
            assert_eq!(topics, count);
        }
    }
}
