//! The bytes of a whole state: the part of a checkpoint, and of a Raft snapshot, that this crate
//! owns. Messages are not in it, so it stays small; it takes time linear in topics, groups,
//! offsets and locks.
//!
//! ```text
//! checkpoint := magic u32 "RQST" | version u8 = 1 | 0 0 0
//!               applied_index u64 | next_queue_number u32
//!               topic version | group version            (counter, timestamp_ms, state_version u64)
//!               topics  count u32 (JSON | queues u32 (number u32 | next_offset u64)*)*
//!               groups  count u32 (JSON)*
//!               offsets groups u32 (group | topics u32 (topic | queues u32 (queue_id u32 | u64)*)*)*
//!               locks   likewise, with client_id | locked_at_ms u64 as the value
//!               levels  count u32 (level u32 | progress u64)*
//!               kv      namespaces u32 (namespace | keys u32 (key | value)*)*
//!               CRC-32 of everything before it
//! ```
//! All little endian; JSON and text have a `u32` length. Equal states have equal bytes.

use std::collections::BTreeMap;

use bytes::BufMut;

use crate::State;
use crate::codec::{
    DecodeError, Reader, config_json, put_bytes, put_length, put_text, read_config,
};
use crate::group::GroupTable;
use crate::key_value::KeyValues;
use crate::limits::{CONSUMER_OFFSETS_MAX, KEY_VALUES_MAX, QUEUE_LOCKS_MAX, SCHEDULE_LEVELS_MAX};
use crate::per_queue::PerQueue;
use crate::queue_lock::QueueLock;
use crate::schedule::ScheduleProgress;
use crate::topic::{DataVersion, QueueState, Topic, TopicTable};

/// "RQST".
const MAGIC: u32 = u32::from_le_bytes(*b"RQST");
const VERSION: u8 = 1;
/// Bytes of magic, version, applied index and next queue number.
const HEAD_BYTES: usize = 20;

impl State {
    /// The whole state in its stable bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES + self.size_guess());
        out.put_u32_le(MAGIC);
        out.put_u32_le(u32::from(VERSION));
        out.put_u64_le(self.applied_index);
        out.put_u32_le(self.topics.next_queue_number);
        put_version(&mut out, self.topics.version);
        put_version(&mut out, self.groups.version);
        put_topics(&mut out, &self.topics.topics);
        put_length(&mut out, self.groups.groups.len());
        for config in self.groups.groups.values() {
            put_bytes(&mut out, &config_json(config));
        }
        put_per_queue(&mut out, &self.offsets, |out, offset| {
            out.put_u64_le(*offset)
        });
        put_per_queue(&mut out, &self.locks, |out, lock| {
            put_text(out, &lock.client_id);
            out.put_u64_le(lock.locked_at_ms);
        });
        put_length(&mut out, self.schedule.levels.len());
        for (level, progress) in &self.schedule.levels {
            out.put_u32_le(*level);
            out.put_u64_le(*progress);
        }
        put_length(&mut out, self.key_values.namespaces.len());
        for (namespace, keys) in &self.key_values.namespaces {
            put_text(&mut out, namespace);
            put_length(&mut out, keys.len());
            for (key, value) in keys {
                put_text(&mut out, key);
                put_text(&mut out, value);
            }
        }
        let checksum = crc32fast::hash(&out);
        out.put_u32_le(checksum);
        out
    }

    /// Reads a state back. It is checked before it is returned: bytes that decode to a state with
    /// a broken invariant are refused.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (content, checksum) = bytes
            .split_last_chunk::<4>()
            .ok_or(DecodeError::Truncated {
                position: bytes.len(),
            })?;
        let (found, computed) = (u32::from_le_bytes(*checksum), crc32fast::hash(content));
        if found != computed {
            return Err(DecodeError::Checksum { found, computed });
        }
        let mut reader = Reader::new(content);
        let state = Self::read(&mut reader)?;
        reader.finish()?;
        state.check()?;
        Ok(state)
    }

    /// FNV-1a of `encode`: equal on every replica that applied the same log (invariant S1).
    pub fn hash(&self) -> u64 {
        self.encode()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
            })
    }

    /// Reads what `encode` wrote, without the checksum.
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let magic = reader.u32()?;
        if magic != MAGIC {
            return Err(DecodeError::IllegalValue {
                field: "magic",
                value: u64::from(magic),
            });
        }
        let [version, padding @ ..] = reader.u32()?.to_le_bytes();
        if version != VERSION || padding != [0; 3] {
            return Err(DecodeError::UnknownVersion { version });
        }
        let applied_index = reader.u64()?;
        let next_queue_number = reader.u32()?;
        let topic_version = read_version(reader)?;
        let group_version = read_version(reader)?;
        let topics = read_map(reader, usize::MAX, read_topic)?;
        let groups = read_map(reader, usize::MAX, |reader| {
            let config: raftmq_remoting::body::SubscriptionGroupConfig =
                read_config(reader.bytes()?)?;
            Ok((config.group_name.clone(), config))
        })?;
        let offsets = read_per_queue(reader, CONSUMER_OFFSETS_MAX, Reader::u64)?;
        let locks = read_per_queue(reader, QUEUE_LOCKS_MAX, |reader| {
            Ok(QueueLock {
                client_id: reader.text()?.to_owned(),
                locked_at_ms: reader.u64()?,
            })
        })?;
        let levels = read_map(reader, SCHEDULE_LEVELS_MAX, |reader| {
            Ok((reader.u32()?, reader.u64()?))
        })?;
        let namespaces = read_map(reader, KEY_VALUES_MAX, |reader| {
            let namespace = reader.text()?.to_owned();
            let keys = read_non_empty(reader, |reader| {
                Ok((reader.text()?.to_owned(), reader.text()?.to_owned()))
            })?;
            Ok((namespace, keys))
        })?;
        Ok(Self {
            applied_index,
            topics: TopicTable::restored(topics, topic_version, next_queue_number),
            groups: GroupTable {
                groups,
                version: group_version,
            },
            offsets,
            locks,
            schedule: ScheduleProgress { levels },
            key_values: KeyValues { namespaces },
        })
    }

    /// About how long `encode` gets, so that it grows its memory rarely.
    fn size_guess(&self) -> usize {
        let configs = self.topics.topics.len() + self.groups.groups.len();
        configs * 320 + self.offsets.len() * 24 + self.locks.len() * 48
    }
}

fn put_version(out: &mut Vec<u8>, version: DataVersion) {
    out.put_u64_le(version.counter);
    out.put_u64_le(version.timestamp_ms);
    out.put_u64_le(version.state_version);
}

fn read_version(reader: &mut Reader<'_>) -> Result<DataVersion, DecodeError> {
    Ok(DataVersion {
        counter: reader.u64()?,
        timestamp_ms: reader.u64()?,
        state_version: reader.u64()?,
    })
}

fn put_topics(out: &mut Vec<u8>, topics: &BTreeMap<String, Topic>) {
    put_length(out, topics.len());
    for topic in topics.values() {
        put_bytes(out, &config_json(&topic.config));
        put_length(out, topic.queues.len());
        for queue in &topic.queues {
            out.put_u32_le(queue.number);
            out.put_u64_le(queue.next_offset);
        }
    }
}

fn read_topic(reader: &mut Reader<'_>) -> Result<(String, Topic), DecodeError> {
    let config: raftmq_remoting::body::TopicConfig = read_config(reader.bytes()?)?;
    let count = reader.count(12)?;
    let mut queues = Vec::with_capacity(count);
    for _ in 0..count {
        queues.push(QueueState {
            number: reader.u32()?,
            next_offset: reader.u64()?,
        });
    }
    Ok((config.topic_name.clone(), Topic { config, queues }))
}

fn put_per_queue<V>(
    out: &mut Vec<u8>,
    per_queue: &PerQueue<V>,
    put_value: impl Fn(&mut Vec<u8>, &V),
) {
    put_length(out, per_queue.nested().len());
    for (group, topics) in per_queue.nested() {
        put_text(out, group);
        put_length(out, topics.len());
        for (topic, queues) in topics {
            put_text(out, topic);
            put_length(out, queues.len());
            for (queue_id, value) in queues {
                out.put_u32_le(*queue_id);
                put_value(out, value);
            }
        }
    }
}

fn read_per_queue<'a, V>(
    reader: &mut Reader<'a>,
    len_max: usize,
    read_value: impl Fn(&mut Reader<'a>) -> Result<V, DecodeError>,
) -> Result<PerQueue<V>, DecodeError> {
    let groups = read_map(reader, len_max, |reader| {
        let group = reader.text()?.to_owned();
        let topics = read_non_empty(reader, |reader| {
            let topic = reader.text()?.to_owned();
            let queues = read_non_empty(reader, |reader| Ok((reader.u32()?, read_value(reader)?)))?;
            Ok((topic, queues))
        })?;
        Ok((group, topics))
    })?;
    let per_queue = PerQueue::restored(groups);
    within(per_queue.len(), len_max)?;
    Ok(per_queue)
}

fn read_non_empty<'a, K: Ord, V>(
    reader: &mut Reader<'a>,
    read_item: impl Fn(&mut Reader<'a>) -> Result<(K, V), DecodeError>,
) -> Result<BTreeMap<K, V>, DecodeError> {
    let map = read_map(reader, usize::MAX, read_item)?;
    match map.is_empty() {
        true => Err(DecodeError::IllegalValue {
            field: "count",
            value: 0,
        }),
        false => Ok(map),
    }
}

/// Reads a map of at most `len_max` items, whose keys must differ and ascend as `encode` wrote
/// them: a state has one encoding.
fn read_map<'a, K: Ord, V>(
    reader: &mut Reader<'a>,
    len_max: usize,
    read_item: impl Fn(&mut Reader<'a>) -> Result<(K, V), DecodeError>,
) -> Result<BTreeMap<K, V>, DecodeError> {
    // No item is shorter than the length of its first text or JSON.
    let count = reader.count(4)?;
    within(count, len_max)?;
    let mut map = BTreeMap::new();
    for _ in 0..count {
        let position = reader.position() as u64;
        let (key, value) = read_item(reader)?;
        if map.last_key_value().is_some_and(|(last, _)| *last >= key) {
            return Err(DecodeError::IllegalValue {
                field: "order of keys",
                value: position,
            });
        }
        map.insert(key, value);
    }
    Ok(map)
}

fn within(count: usize, max: usize) -> Result<(), DecodeError> {
    match count > max {
        true => Err(DecodeError::IllegalValue {
            field: "count",
            value: count as u64,
        }),
        false => Ok(()),
    }
}
