//! `apply` against a naive model: the same commands, told in vectors and linear searches.

use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::{Appended, Reject, Reply};

const TOPICS: [&str; 3] = ["T", "U", "V"];
const GROUPS: [&str; 2] = ["g", "h"];
const CLIENTS: [&str; 2] = ["a", "b"];

/// (group, topic, queue_id).
type Key = (String, String, u32);

/// The state as one would write it on a sheet of paper.
#[derive(Debug, Default)]
struct Model {
    /// Topic and the numbers of its queues.
    topics: Vec<(String, Vec<u32>)>,
    next_number: u32,
    groups: Vec<String>,
    /// Every message ever stored: its queue number.
    stored: Vec<u32>,
    offsets: Vec<(Key, u64)>,
    locks: Vec<(Key, String, u64)>,
    progress: Vec<(u32, u64)>,
    keys: Vec<(String, String)>,
    /// What this entry stored: queue, queue_offset, record.
    entry: Vec<(u32, u64, Bytes)>,
}

fn rejected(reason: Reject) -> Reply {
    Reply::Rejected { reason }
}

impl Model {
    fn number(&self, topic: &str, queue_id: u32) -> Result<u32, Reject> {
        let (_, numbers) = self
            .topics
            .iter()
            .find(|(name, _)| name == topic)
            .ok_or(Reject::TopicNotExist)?;
        numbers
            .get(queue_id as usize)
            .copied()
            .ok_or(Reject::QueueIdOutOfRange)
    }

    fn store(&mut self, record: &Bytes) -> Result<u64, Reject> {
        let view = raftmq_remoting::message::MessageView::new(record).unwrap();
        let number = self.number(view.topic(), view.queue_id())?;
        let queue_offset = self
            .stored
            .iter()
            .filter(|stored| **stored == number)
            .count() as u64;
        self.stored.push(number);
        self.entry.push((number, queue_offset, record.clone()));
        Ok(queue_offset)
    }

    fn put_topic(&mut self, topic: &str, queues: u32) {
        if !self.topics.iter().any(|(name, _)| name == topic) {
            self.topics.push((topic.to_owned(), vec![]));
        }
        let (_, numbers) = self
            .topics
            .iter_mut()
            .find(|(name, _)| name == topic)
            .unwrap();
        while numbers.len() < queues as usize {
            numbers.push(self.next_number);
            self.next_number += 1;
        }
    }

    fn lock(&mut self, key: Key, client: &str, now_ms: u64) -> bool {
        if self.number(&key.1, key.2).is_err() {
            return false;
        }
        if let Some((_, owner, at)) = self.locks.iter().find(|(lock, ..)| *lock == key).cloned() {
            if owner != client && now_ms.saturating_sub(at) <= 60_000 {
                return false;
            }
            let at = if owner == client {
                at.max(now_ms)
            } else {
                now_ms
            };
            self.locks.retain(|(lock, ..)| *lock != key);
            self.locks.push((key, client.to_owned(), at));
            return true;
        }
        self.locks.push((key, client.to_owned(), now_ms));
        true
    }

    fn commit(&mut self, commit: &OffsetCommit) -> Result<(), Reject> {
        self.number(&commit.topic, commit.queue_id)?;
        let key = (commit.group.clone(), commit.topic.clone(), commit.queue_id);
        let present = self
            .offsets
            .iter()
            .find(|(offset, _)| *offset == key)
            .map(|(_, at)| *at);
        let offset = match (present, commit.mode) {
            (Some(present), CommitMode::Max) => present.max(commit.offset),
            _ => commit.offset,
        };
        self.offsets.retain(|(offset, _)| *offset != key);
        self.offsets.push((key, offset));
        Ok(())
    }

    /// The reply, with physical offsets left 0: the caller checks them by the bytes.
    fn apply(&mut self, command: &Command) -> Reply {
        match command {
            Command::Append { record, .. } => match self.store(record) {
                Ok(queue_offset) => Reply::Appended {
                    queue_offset,
                    physical_offset: 0,
                },
                Err(reason) => rejected(reason),
            },
            Command::AppendBatch { records } => {
                let stored: Result<Vec<u64>, Reject> = records
                    .iter()
                    .map(|(_, record)| self.store(record))
                    .collect();
                match stored {
                    Ok(offsets) => Reply::AppendedBatch {
                        first_queue_offset: offsets[0],
                        physical_offsets: vec![0; offsets.len()],
                    },
                    Err(reason) => rejected(reason),
                }
            }
            Command::Deliver {
                level,
                expected,
                next,
                records,
            } => {
                let present = self.progress.iter().find(|(at, _)| at == level);
                if present.map_or(0, |(_, progress)| *progress) != *expected {
                    return rejected(Reject::StaleDelivery);
                }
                self.progress.retain(|(at, _)| at != level);
                self.progress.push((*level, *next));
                for (_, record) in records {
                    let _ = self.store(record);
                }
                Reply::Done
            }
            Command::LockQueues {
                group,
                client_id,
                queues,
                now_ms,
            } => {
                let mut locked = queues.clone();
                locked.retain(|(topic, queue_id)| {
                    self.lock(
                        (group.clone(), topic.clone(), *queue_id),
                        client_id,
                        *now_ms,
                    )
                });
                Reply::Locked(locked)
            }
            Command::CommitOffsets { commits } => {
                let results: Vec<_> = commits.iter().map(|commit| self.commit(commit)).collect();
                match results.iter().all(Result::is_err) {
                    true => rejected(results[0].unwrap_err()),
                    false => Reply::Done,
                }
            }
            other => {
                self.apply_done(other);
                Reply::Done
            }
        }
    }

    /// Commands that are always done.
    fn apply_done(&mut self, command: &Command) {
        match command {
            Command::PutTopic {
                config,
                only_if_absent,
            } => {
                let present = self
                    .topics
                    .iter()
                    .any(|(name, _)| *name == config.topic_name);
                if !(present && *only_if_absent) {
                    let queues = config.read_queue_nums.max(config.write_queue_nums);
                    self.put_topic(&config.topic_name, queues);
                }
            }
            Command::DeleteTopic { topic } => {
                self.topics.retain(|(name, _)| name != topic);
                self.offsets.retain(|((_, name, _), _)| name != topic);
                self.locks.retain(|((_, name, _), ..)| name != topic);
            }
            Command::PutGroup { config, .. } => {
                self.groups.retain(|group| *group != config.group_name);
                self.groups.push(config.group_name.clone());
            }
            Command::DeleteGroup {
                group,
                clean_offset,
            } => {
                self.groups.retain(|name| name != group);
                self.locks.retain(|((name, ..), ..)| name != group);
                self.offsets
                    .retain(|((name, ..), _)| !(*clean_offset && name == group));
            }
            Command::UnlockQueues {
                group,
                client_id,
                queues,
            } => {
                self.locks.retain(|((name, topic, queue_id), owner, _)| {
                    let named = queues.contains(&(topic.clone(), *queue_id));
                    !(name == group && owner == client_id && named)
                });
            }
            Command::PutKv { key, value, .. } => {
                self.keys.retain(|(name, _)| name != key);
                self.keys.push((key.clone(), value.clone()));
            }
            Command::DeleteKv { key, .. } => self.keys.retain(|(name, _)| name != key),
            other => panic!("not always done: {other:?}"),
        }
    }

    fn assert_equals(&self, state: &State) {
        let mut topics: Vec<_> = self.topics.clone();
        topics.sort();
        let theirs: Vec<_> = state
            .topics()
            .map(|topic| {
                let numbers = topic
                    .queues
                    .iter()
                    .map(|queue| queue.number)
                    .collect::<Vec<_>>();
                (topic.config.topic_name.clone(), numbers)
            })
            .collect();
        assert_eq!(theirs, topics);
        for queue in state.topics().flat_map(|topic| &topic.queues) {
            let stored = self
                .stored
                .iter()
                .filter(|stored| **stored == queue.number)
                .count();
            assert_eq!(queue.next_offset, stored as u64);
        }
        let mut groups = self.groups.clone();
        groups.sort();
        let theirs: Vec<_> = state
            .groups()
            .map(|group| group.group_name.clone())
            .collect();
        assert_eq!(theirs, groups);
        let mut offsets = self.offsets.clone();
        offsets.sort();
        let theirs: Vec<_> = state
            .consumer_offsets()
            .map(|(group, topic, queue_id, offset)| {
                ((group.to_owned(), topic.to_owned(), queue_id), offset)
            })
            .collect();
        assert_eq!(theirs, offsets);
        for ((group, topic, queue_id), owner, at) in &self.locks {
            let lock = state.lock_owner(group, topic, *queue_id).unwrap();
            assert_eq!((&lock.client_id, lock.locked_at_ms), (owner, *at));
        }
        assert_eq!(state.locks.iter().count(), self.locks.len());
        assert_eq!(state.locks.len(), self.locks.len());
        assert_eq!(state.offsets.len(), self.offsets.len());
        let mut progress = self.progress.clone();
        progress.sort_unstable();
        assert_eq!(state.schedule_levels().collect::<Vec<_>>(), progress);
        let mut keys = self.keys.clone();
        keys.sort();
        let theirs: Vec<_> = state
            .kv_entries("n")
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        assert_eq!(theirs, keys);
    }
}

/// Checks that every unit points at its record in the log, and gives the replies without
/// physical offsets.
fn replies_by_bytes(out: &Output, base: u64, payload: &Bytes, model: &Model) -> Vec<Reply> {
    assert_eq!(out.appended.len(), model.entry.len());
    for (unit, (queue, queue_offset, record)) in out.appended.iter().zip(&model.entry) {
        let Appended {
            physical_offset,
            size,
            ..
        } = *unit;
        assert_eq!((unit.queue, unit.queue_offset), (*queue, *queue_offset));
        let stored = &payload[(physical_offset - base) as usize..][..size as usize];
        let mut stamped = record.to_vec();
        raftmq_remoting::message::patch_store_timestamp(&mut stamped, unit.store_timestamp_ms);
        assert_eq!(stored, stamped);
    }
    let mut replies = out.replies.clone();
    for reply in &mut replies {
        match reply {
            Reply::Appended {
                physical_offset, ..
            } => *physical_offset = 0,
            Reply::AppendedBatch {
                physical_offsets, ..
            } => physical_offsets.fill(0),
            Reply::Locked(_) | Reply::Done | Reply::Rejected { .. } => {}
        }
    }
    replies
}

fn topic() -> impl Strategy<Value = String> {
    select(&TOPICS[..]).prop_map(str::to_owned)
}

fn group() -> impl Strategy<Value = String> {
    select(&GROUPS[..]).prop_map(str::to_owned)
}

fn client() -> impl Strategy<Value = String> {
    select(&CLIENTS[..]).prop_map(str::to_owned)
}

fn queues() -> impl Strategy<Value = Vec<(String, u32)>> {
    proptest::collection::vec((topic(), 0..4u32), 0..4)
}

fn message() -> impl Strategy<Value = (i64, Bytes)> {
    (topic(), 0..4u32, "[a-z]{0,8}")
        .prop_map(|(topic, queue_id, body)| (body.len() as i64, record(&topic, queue_id, &body)))
}

fn offset_commit() -> impl Strategy<Value = OffsetCommit> {
    (group(), topic(), 0..4u32, 0..20u64, any::<bool>()).prop_map(
        |(group, topic, queue_id, offset, max)| {
            let mode = if max {
                CommitMode::Max
            } else {
                CommitMode::Set
            };
            OffsetCommit {
                group,
                topic,
                queue_id,
                offset,
                mode,
            }
        },
    )
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        6 => message().prop_map(|(tags_code, record)| Command::Append { tags_code, record }),
        2 => (message(), 1..4usize)
            .prop_map(|(message, count)| Command::AppendBatch { records: vec![message; count] }),
        4 => (topic(), 0..4u32, 0..4u32, any::<bool>()).prop_map(
            |(topic, read, write, only_if_absent)| Command::PutTopic {
                config: topic_config(&topic, read, write),
                only_if_absent,
            }
        ),
        1 => topic().prop_map(|topic| Command::DeleteTopic { topic }),
        1 => group().prop_map(|group| put_group(&group)),
        1 => (group(), any::<bool>())
            .prop_map(|(group, clean_offset)| Command::DeleteGroup { group, clean_offset }),
        3 => proptest::collection::vec(offset_commit(), 1..4)
            .prop_map(|commits| Command::CommitOffsets { commits }),
        3 => (group(), client(), queues(), 0..200_000u64).prop_map(
            |(group, client_id, queues, now_ms)| Command::LockQueues {
                group,
                client_id,
                queues,
                now_ms,
            }
        ),
        1 => (group(), client(), queues()).prop_map(|(group, client_id, queues)| {
            Command::UnlockQueues { group, client_id, queues }
        }),
        2 => (0..2u32, 0..4u64, 1..3u64, proptest::collection::vec(message(), 0..3)).prop_map(
            |(level, expected, step, records)| Command::Deliver {
                level,
                expected,
                next: expected + step,
                records,
            }
        ),
        1 => ("[kl]", "[a-z]{0,3}").prop_map(|(key, value)| put_kv("n", &key, &value)),
        1 => "[kl]".prop_map(|key| Command::DeleteKv { namespace: "n".to_owned(), key }),
    ]
}

/// Entries of a log: store time and commands.
fn log() -> impl Strategy<Value = Vec<(u64, Vec<Command>)>> {
    let entry = (0..1_000_000u64, proptest::collection::vec(command(), 0..6));
    proptest::collection::vec(entry, 0..20)
}

proptest! {
    #![proptest_config(proptest_config(100))]

    #[test]
    fn apply_equals_the_naive_model(log in log()) {
        let mut replica = Replica::default();
        let mut model = Model::default();
        for (store_timestamp_ms, commands) in &log {
            let base = replica.physical_offset + ENTRY_HEADER_BYTES;
            model.entry.clear();
            let expected: Vec<_> = commands.iter().map(|command| model.apply(command)).collect();
            let out = replica.apply(*store_timestamp_ms, commands);
            let payload = payload(*store_timestamp_ms, commands);
            prop_assert_eq!(replies_by_bytes(&out, base, &payload, &model), expected);
            model.assert_equals(&replica.state);
        }
    }

    /// S1, S2: a second replica that restarts from a checkpoint in the middle ends up the same.
    #[test]
    fn equal_logs_give_equal_replicas(log in log(), restart_at in 0..20usize) {
        let mut first = Replica::default();
        let mut second = Replica::default();
        for (i, (store_timestamp_ms, commands)) in log.iter().enumerate() {
            if i == restart_at {
                second.state = State::decode(&second.state.encode()).unwrap();
            }
            let outputs = [&mut first, &mut second]
                .map(|replica| replica.apply(*store_timestamp_ms, commands));
            prop_assert_eq!(&outputs[0], &outputs[1]);
        }
        prop_assert_eq!(first.state.hash(), second.state.hash());
        prop_assert_eq!(first.state, second.state);
    }
}
