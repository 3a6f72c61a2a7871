//! Applying payloads: the one match over commands. Storing messages works on borrowed bytes and
//! allocates nothing beyond the output; everything else is rare and decodes into owned commands.

use bytes::Bytes;
use raftmq_remoting::message::MessageView;

use crate::State;
use crate::codec::DecodeError;
use crate::command::{Command, CommitMode, OffsetCommit, RawCommand, Tag};
use crate::command_body::{DeliverBody, Records, read_append};
use crate::limits::{
    CLIENT_ID_BYTES_MAX, CONSUMER_OFFSETS_MAX, METADATA_COMMAND_BYTES_MAX, QUEUE_OFFSET_MAX,
};
use crate::output::{Appended, ApplyError, EntryPosition, Output, Reject, Reply};
use crate::payload::{RawCommands, position_in};
use crate::topic::{QueueState, TopicTable, name_is_legal};

impl State {
    /// Applies one entry of the log: adds one reply per command, and the effects, to `out`.
    ///
    /// Deterministic (invariant S1). After an error the state is half applied: it must be dropped
    /// and the process must stop.
    pub fn apply(
        &mut self,
        at: EntryPosition,
        payload: &Bytes,
        out: &mut Output,
    ) -> Result<(), ApplyError> {
        let EntryPosition {
            index,
            payload_physical_offset,
        } = at;
        // A1: an entry applied twice would store its messages twice.
        self.check_ahead(index)?;
        let end = payload_physical_offset.checked_add(payload.len() as u64);
        if end.is_none_or(|end| end > i64::MAX as u64) {
            return Err(ApplyError::PhysicalOffsetOutOfRange {
                index,
                payload_physical_offset,
            });
        }
        self.apply_commands(payload_physical_offset, payload, out)
            .map_err(|source| ApplyError::Payload { index, source })?;
        self.applied_index = index;
        Ok(())
    }

    /// Notes an entry that carries no payload (blank or membership) as applied.
    pub fn skip(&mut self, index: u64) -> Result<(), ApplyError> {
        self.check_ahead(index)?;
        self.applied_index = index;
        Ok(())
    }

    fn check_ahead(&self, index: u64) -> Result<(), ApplyError> {
        if index <= self.applied_index {
            let applied_index = self.applied_index;
            return Err(ApplyError::IndexNotAhead {
                index,
                applied_index,
            });
        }
        Ok(())
    }

    fn apply_commands(
        &mut self,
        physical_offset: u64,
        payload: &Bytes,
        out: &mut Output,
    ) -> Result<(), DecodeError> {
        let mut commands = RawCommands::read(payload)?;
        out.replies.reserve(commands.len_at_most());
        let store_timestamp_ms = commands.store_timestamp_ms;
        let entry = Entry {
            payload,
            physical_offset,
            store_timestamp_ms,
        };
        while let Some(raw) = commands.next()? {
            let result = match raw.tag {
                Tag::Append => append(&mut self.topics, &entry, raw.body, &mut out.appended)?,
                Tag::AppendBatch => {
                    let records = Records::read(raw.body)?;
                    append_batch(&mut self.topics, &entry, &records, &mut out.appended)?
                }
                Tag::Deliver => self.deliver(&entry, DeliverBody::read(raw.body)?, out)?,
                Tag::PutTopic
                | Tag::PutGroup
                | Tag::ChangeTopic
                | Tag::ChangeGroup
                | Tag::PutKv
                    if raw.body.len() > METADATA_COMMAND_BYTES_MAX =>
                {
                    Err(Reject::LimitReached)
                }
                Tag::PutTopic
                | Tag::DeleteTopic
                | Tag::PutGroup
                | Tag::ChangeTopic
                | Tag::ChangeGroup
                | Tag::DeleteGroup
                | Tag::CommitOffsets
                | Tag::LockQueues
                | Tag::UnlockQueues
                | Tag::PutKv
                | Tag::DeleteKv => self.apply_metadata(&entry, &raw, out)?,
            };
            out.replies
                .push(result.unwrap_or_else(|reason| Reply::Rejected { reason }));
        }
        Ok(())
    }

    fn deliver(
        &mut self,
        entry: &Entry<'_>,
        body: DeliverBody<'_>,
        out: &mut Output,
    ) -> Result<Result<Reply, Reject>, DecodeError> {
        let DeliverBody {
            level,
            expected,
            next,
            mut records,
        } = body;
        // D1: progress and messages move together or not at all.
        if let Err(reason) = self.schedule.advance(level, expected, next) {
            return Ok(Err(reason));
        }
        while let Some((tags_code, record)) = records.next()? {
            // One message whose topic was deleted must not hold up all those behind it.
            match find_queue(&mut self.topics, record) {
                Ok(queue) => out.appended.push(entry.place(queue, tags_code, record)),
                Err(_) => out.undeliverable += 1,
            }
        }
        Ok(Ok(Reply::Done))
    }

    fn apply_metadata(
        &mut self,
        entry: &Entry<'_>,
        raw: &RawCommand<'_>,
        out: &mut Output,
    ) -> Result<Result<Reply, Reject>, DecodeError> {
        let now_ms = entry.store_timestamp_ms;
        let result = match Command::from_raw(raw, entry.payload)? {
            // These three are applied from their bytes and never get here.
            Command::Append { .. } | Command::AppendBatch { .. } | Command::Deliver { .. } => {
                Err(Reject::InvalidCommand)
            }
            Command::PutTopic {
                config,
                only_if_absent,
            } => {
                let topic = config.topic_name.clone();
                let put = self.topics.put(config, only_if_absent, now_ms);
                put.map(|changed| self.note_topic(topic, changed, out))
            }
            Command::ChangeTopic { config } => {
                let topic = config.topic_name.clone();
                let put = self.topics.change(config, now_ms);
                put.map(|changed| self.note_topic(topic, changed, out))
            }
            Command::ChangeGroup { config } => self
                .groups
                .change(config, now_ms)
                .map(|changed| out.metadata_changed |= changed),
            Command::PutGroup {
                config,
                only_if_absent,
            } => self
                .groups
                .put(config, only_if_absent, now_ms)
                .map(|changed| out.metadata_changed |= changed),
            Command::DeleteTopic { topic } => {
                self.delete_topic(&topic, now_ms, out);
                Ok(())
            }
            Command::DeleteGroup {
                group,
                clean_offset,
            } => {
                out.metadata_changed |= self.delete_group(&group, clean_offset, now_ms);
                Ok(())
            }
            Command::CommitOffsets { commits } => self.commit_offsets(&commits),
            Command::LockQueues {
                group,
                client_id,
                queues,
                now_ms,
            } => {
                return Ok(self.lock_queues(&group, &client_id, queues, now_ms));
            }
            Command::UnlockQueues {
                group,
                client_id,
                queues,
            } => {
                self.locks.unlock_all(&group, &client_id, &queues);
                Ok(())
            }
            Command::PutKv {
                namespace,
                key,
                value,
            } => self.key_values.put(namespace, key, value),
            Command::DeleteKv { namespace, key } => {
                self.key_values.delete(&namespace, &key);
                Ok(())
            }
        };
        Ok(result.map(|()| Reply::Done))
    }

    fn delete_group(&mut self, group: &str, clean_offset: bool, now_ms: u64) -> bool {
        self.locks.remove_group(group);
        if clean_offset {
            self.offsets.remove_group(group);
        }
        self.groups.delete(group, now_ms)
    }

    fn delete_topic(&mut self, topic: &str, now_ms: u64, out: &mut Output) {
        let Some(removed) = self.topics.delete(topic, now_ms) else {
            return;
        };
        out.removed_queues
            .extend(removed.queues.iter().map(|queue| queue.number));
        self.note_topic(topic.to_owned(), true, out);
        // O1, L2: a topic of the same name created later starts without a past.
        self.offsets.remove_topic(topic);
        self.locks.remove_topic(topic);
    }

    fn note_topic(&self, topic: String, changed: bool, out: &mut Output) {
        if changed {
            out.metadata_changed = true;
            out.topics_changed
                .push((self.topics.version.counter, topic));
        }
    }

    /// Commits come from many clients in one command, so a bad one is left out and the others
    /// count. Only when all are bad is the command rejected, for the reason of the first.
    fn commit_offsets(&mut self, commits: &[OffsetCommit]) -> Result<(), Reject> {
        let mut first_reason = None;
        let mut committed = false;
        for commit in commits {
            match self.commit_offset(commit) {
                Ok(()) => committed = true,
                Err(reason) => first_reason = first_reason.or(Some(reason)),
            }
        }
        match first_reason {
            Some(reason) if !committed => Err(reason),
            _ => Ok(()),
        }
    }

    fn commit_offset(&mut self, commit: &OffsetCommit) -> Result<(), Reject> {
        let OffsetCommit {
            group,
            topic,
            queue_id,
            offset,
            mode,
        } = commit;
        if !name_is_legal(group) || *offset > QUEUE_OFFSET_MAX {
            return Err(Reject::InvalidCommand);
        }
        self.topics.queue_mut(topic, *queue_id)?;
        if let Some(present) = self.offsets.get_mut(group, topic, *queue_id) {
            *present = match mode {
                CommitMode::Set => *offset,
                CommitMode::Max => *offset.max(present),
            };
            return Ok(());
        }
        if self.offsets.len() >= CONSUMER_OFFSETS_MAX {
            return Err(Reject::LimitReached);
        }
        self.offsets.insert(group, topic, *queue_id, *offset);
        Ok(())
    }

    fn lock_queues(
        &mut self,
        group: &str,
        client_id: &str,
        mut queues: Vec<(String, u32)>,
        now_ms: u64,
    ) -> Result<Reply, Reject> {
        let client_fits = (1..=CLIENT_ID_BYTES_MAX).contains(&client_id.len());
        if !name_is_legal(group) || !client_fits {
            return Err(Reject::InvalidCommand);
        }
        queues.retain(|(topic, queue_id)| {
            self.topics.has_queue(topic, *queue_id)
                && self.locks.lock(group, client_id, topic, *queue_id, now_ms)
        });
        Ok(Reply::Locked(queues))
    }
}

/// What every command of an entry shares.
struct Entry<'a> {
    payload: &'a Bytes,
    /// Address of the payload.
    physical_offset: u64,
    store_timestamp_ms: u64,
}

impl Entry<'_> {
    /// Gives a record the next offset of the queue (invariant Q1).
    #[inline]
    fn place(&self, queue: &mut QueueState, tags_code: i64, record: &[u8]) -> Appended {
        let queue_offset = queue.next_offset;
        queue.next_offset += 1;
        Appended {
            queue: queue.number,
            queue_offset,
            physical_offset: self.physical_offset + position_in(self.payload, record) as u64,
            // A command's body length is a u32, and a record is a part of it.
            size: record.len() as u32,
            tags_code,
            store_timestamp_ms: self.store_timestamp_ms,
        }
    }
}

#[inline]
fn append(
    topics: &mut TopicTable,
    entry: &Entry<'_>,
    body: &[u8],
    appended: &mut Vec<Appended>,
) -> Result<Result<Reply, Reject>, DecodeError> {
    let (tags_code, record) = read_append(body)?;
    let queue = match find_queue(topics, record) {
        Ok(queue) => queue,
        Err(reason) => return Ok(Err(reason)),
    };
    let unit = entry.place(queue, tags_code, record);
    appended.push(unit);
    let Appended {
        queue_offset,
        physical_offset,
        ..
    } = unit;
    Ok(Ok(Reply::Appended {
        queue_offset,
        physical_offset,
    }))
}

fn append_batch(
    topics: &mut TopicTable,
    entry: &Entry<'_>,
    records: &Records<'_>,
    appended: &mut Vec<Appended>,
) -> Result<Result<Reply, Reject>, DecodeError> {
    let (topic, queue_id) = match batch_destination(records)? {
        Ok(destination) => destination,
        Err(reason) => return Ok(Err(reason)),
    };
    let queue = match topics.queue_mut(topic, queue_id) {
        Ok(queue) => queue,
        Err(reason) => return Ok(Err(reason)),
    };
    let first_queue_offset = queue.next_offset;
    let mut physical_offsets = Vec::with_capacity(records.len());
    let mut records = records.clone();
    while let Some((tags_code, record)) = records.next()? {
        let unit = entry.place(queue, tags_code, record);
        physical_offsets.push(unit.physical_offset);
        appended.push(unit);
    }
    Ok(Ok(Reply::AppendedBatch {
        first_queue_offset,
        physical_offsets,
    }))
}

/// The one queue all records of a batch go to. Reads every record before any is stored: a batch
/// is stored whole or not at all.
fn batch_destination<'a>(
    records: &Records<'a>,
) -> Result<Result<(&'a str, u32), Reject>, DecodeError> {
    let mut records = records.clone();
    let mut destination = None;
    while let Some((_, record)) = records.next()? {
        let Some(this) = record_destination(record) else {
            return Ok(Err(Reject::MalformedRecord));
        };
        if *destination.get_or_insert(this) != this {
            return Ok(Err(Reject::MalformedRecord));
        }
    }
    Ok(destination.ok_or(Reject::MalformedRecord))
}

#[inline]
fn find_queue<'a>(topics: &'a mut TopicTable, record: &[u8]) -> Result<&'a mut QueueState, Reject> {
    let (topic, queue_id) = record_destination(record).ok_or(Reject::MalformedRecord)?;
    topics.queue_mut(topic, queue_id)
}

/// Topic and queue_id named in a record, or `None` when the bytes are not exactly one record.
#[inline]
fn record_destination(record: &[u8]) -> Option<(&str, u32)> {
    let view = MessageView::new(record).ok()?;
    (view.total_size() as usize == record.len()).then(|| (view.topic(), view.queue_id()))
}
