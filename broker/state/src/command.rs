//! Commands: what a Raft entry asks of the state machine, and the stable bytes of each.
//!
//! ```text
//! command := tag u8 | 0 0 0 | body length u32 | body              (all little endian)
//!
//! tag  command        body
//!   1  Append         tags_code i64 | record
//!   2  AppendBatch    count u32 | (tags_code i64 | length u32 | record)*
//!   3  PutTopic       only_if_absent u8 | TopicConfig as JSON
//!   4  DeleteTopic    topic
//!   5  PutGroup       only_if_absent u8 | SubscriptionGroupConfig as JSON
//!   6  DeleteGroup    clean_offset u8 | group
//!   7  CommitOffsets  count u32 | (group | topic | queue_id u32 | offset u64 | mode u8)*
//!   8  LockQueues     now_ms u64 | group | client_id | count u32 | (topic | queue_id u32)*
//!   9  UnlockQueues   group | client_id | count u32 | (topic | queue_id u32)*
//!  10  Deliver        level u32 | expected u64 | next u64 | count u32 | (as in AppendBatch)*
//!  11  PutKv          namespace | key | value
//!  12  DeleteKv       namespace | key
//!  13  ChangeTopic    TopicConfig as JSON, attributes as changes
//!  14  ChangeGroup    SubscriptionGroupConfig as JSON, attributes as changes
//! ```
//! Text is `length u32 | UTF-8`. A tag is never given a second meaning.

use bytes::{BufMut, Bytes, BytesMut};
use raftmq_remoting::body::{SubscriptionGroupConfig, TopicConfig};
use raftmq_remoting::message::{MessageError, MessageRecord};

use crate::codec::{DecodeError, Reader, config_json, put_text, read_config};
use crate::command_body::{
    DeliverBody, Records, put_change, put_commits, put_config, put_queues, put_records, put_texts,
    read_append, read_commits, read_delete_group, read_put, read_queues, read_texts, records_bytes,
};

/// Length of tag, padding and body length. Unit: bytes.
pub(crate) const COMMAND_HEAD_BYTES: usize = 8;

/// One change of the replicated state.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Stores one message in the queue its record names.
    Append {
        /// Hash of the tag, kept in the consume queue for filtering.
        tags_code: i64,
        /// RocketMQ stored record; queueOffset and physicalOffset are 0.
        record: Bytes,
    },
    /// Stores the messages of a batch at consecutive offsets of one queue: all or none.
    AppendBatch {
        /// (tags_code, record) of each message.
        records: Vec<(i64, Bytes)>,
    },
    /// Creates or reconfigures a topic.
    PutTopic {
        /// The whole new configuration.
        config: TopicConfig,
        /// Leave a topic that exists as it is.
        only_if_absent: bool,
    },
    /// Deletes a topic with its queues, consumer offsets and locks.
    DeleteTopic {
        /// Name of the topic.
        topic: String,
    },
    /// Creates or reconfigures a subscription group.
    PutGroup {
        /// The whole new configuration.
        config: SubscriptionGroupConfig,
        /// Leave a group that exists as it is.
        only_if_absent: bool,
    },
    /// Deletes a subscription group and its locks.
    DeleteGroup {
        /// Name of the group.
        group: String,
        /// Delete its consumer offsets too.
        clean_offset: bool,
    },
    /// Creates or reconfigures a topic, see [`crate::changed_attributes`]. Two changes at a time
    /// both count, since each meets the attributes that are there when it is applied.
    ChangeTopic {
        /// The new configuration; its attributes are changes of the present ones.
        config: TopicConfig,
    },
    /// Creates or reconfigures a subscription group, likewise.
    ChangeGroup {
        /// The new configuration; its attributes are changes of the present ones.
        config: SubscriptionGroupConfig,
    },
    /// Commits consumer offsets, of many groups at once.
    CommitOffsets {
        /// The commits, in order.
        commits: Vec<OffsetCommit>,
    },
    /// Takes or refreshes orderly locks.
    LockQueues {
        /// Subscription group.
        group: String,
        /// Client that wants the queues.
        client_id: String,
        /// (topic, queue_id) of each queue.
        queues: Vec<(String, u32)>,
        /// The leader's clock when it proposed. Unit: ms since 1970.
        now_ms: u64,
    },
    /// Gives orderly locks back.
    UnlockQueues {
        /// Subscription group.
        group: String,
        /// Client that holds the queues.
        client_id: String,
        /// (topic, queue_id) of each queue.
        queues: Vec<(String, u32)>,
    },
    /// Moves the progress of a delay level and stores the messages that are due, as one step.
    Deliver {
        /// Delay level.
        level: u32,
        /// Progress this delivery starts from; any other makes it stale.
        expected: u64,
        /// Progress after it. Larger than `expected`.
        next: u64,
        /// (tags_code, record) of each message; records may go to different topics.
        records: Vec<(i64, Bytes)>,
    },
    /// Sets a key.
    PutKv {
        /// Namespace.
        namespace: String,
        /// Key.
        key: String,
        /// New value.
        value: String,
    },
    /// Deletes a key.
    DeleteKv {
        /// Namespace.
        namespace: String,
        /// Key.
        key: String,
    },
}

/// One consumer offset to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetCommit {
    /// Subscription group.
    pub group: String,
    /// Topic.
    pub topic: String,
    /// Queue of the topic.
    pub queue_id: u32,
    /// Queue offset of the next message to consume.
    pub offset: u64,
    /// What to do when an offset is there already.
    pub mode: CommitMode,
}

/// How a committed offset meets the one that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitMode {
    /// Replaces it: resets and ordinary commits, which RocketMQ lets go back.
    Set,
    /// Keeps the larger one (invariant O2).
    Max,
}

/// A command in its bytes, ready to be copied into a payload. Cheap to build in a handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedCommand(BytesMut);

impl EncodedCommand {
    /// An Append of a message, encoded straight into the command.
    pub fn append_record(tags_code: i64, record: &MessageRecord) -> Result<Self, MessageError> {
        let mut encoded = Ok(());
        let command = Self::build(Tag::Append, 8 + record.encoded_bytes(), |out| {
            out.put_i64_le(tags_code);
            encoded = record.encode(out);
        });
        encoded.map(|()| command)
    }

    /// An Append of an encoded record.
    pub fn append(tags_code: i64, record: &[u8]) -> Self {
        Self::build(Tag::Append, 8 + record.len(), |out| {
            out.put_i64_le(tags_code);
            out.put_slice(record);
        })
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Length in a payload. Unit: bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never true: a command has a head.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn build(tag: Tag, body_bytes: usize, write: impl FnOnce(&mut BytesMut)) -> Self {
        let mut out = BytesMut::with_capacity(COMMAND_HEAD_BYTES + body_bytes);
        out.put_u32_le(u32::from(tag as u8));
        out.put_u32_le(0);
        write(&mut out);
        let length = u32::try_from(out.len() - COMMAND_HEAD_BYTES)
            .expect("a command comes from frames of at most 16 MiB");
        out[4..COMMAND_HEAD_BYTES].copy_from_slice(&length.to_le_bytes());
        Self(out)
    }
}

impl Command {
    /// The stable bytes of the command.
    pub fn encode(&self) -> EncodedCommand {
        match self {
            Self::Append { tags_code, record } => EncodedCommand::append(*tags_code, record),
            Self::AppendBatch { records } => {
                let bytes = 4 + records_bytes(records);
                EncodedCommand::build(Tag::AppendBatch, bytes, |out| put_records(out, records))
            }
            Self::Deliver {
                level,
                expected,
                next,
                records,
            } => EncodedCommand::build(Tag::Deliver, 24 + records_bytes(records), |out| {
                out.put_u32_le(*level);
                out.put_u64_le(*expected);
                out.put_u64_le(*next);
                put_records(out, records);
            }),
            Self::PutTopic {
                config,
                only_if_absent,
            } => put_config(Tag::PutTopic, *only_if_absent, &config_json(config)),
            Self::PutGroup {
                config,
                only_if_absent,
            } => put_config(Tag::PutGroup, *only_if_absent, &config_json(config)),
            Self::ChangeTopic { config } => put_change(Tag::ChangeTopic, &config_json(config)),
            Self::ChangeGroup { config } => put_change(Tag::ChangeGroup, &config_json(config)),
            Self::DeleteTopic { topic } => put_texts(Tag::DeleteTopic, &[topic]),
            Self::DeleteGroup {
                group,
                clean_offset,
            } => EncodedCommand::build(Tag::DeleteGroup, 5 + group.len(), |out| {
                out.put_u8(u8::from(*clean_offset));
                put_text(out, group);
            }),
            Self::CommitOffsets { commits } => put_commits(commits),
            Self::LockQueues {
                group,
                client_id,
                queues,
                now_ms,
            } => EncodedCommand::build(Tag::LockQueues, 8 + queues.len() * 32, |out| {
                out.put_u64_le(*now_ms);
                put_queues(out, group, client_id, queues);
            }),
            Self::UnlockQueues {
                group,
                client_id,
                queues,
            } => EncodedCommand::build(Tag::UnlockQueues, queues.len() * 32, |out| {
                put_queues(out, group, client_id, queues);
            }),
            Self::PutKv {
                namespace,
                key,
                value,
            } => put_texts(Tag::PutKv, &[namespace, key, value]),
            Self::DeleteKv { namespace, key } => put_texts(Tag::DeleteKv, &[namespace, key]),
        }
    }

    /// Reads one encoded command. Records share the memory of `encoded`.
    pub fn decode(encoded: &Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(encoded);
        let raw = RawCommand::read(&mut reader)?;
        reader.finish()?;
        Self::from_raw(&raw, encoded)
    }

    /// Reads the body of a command found in `owner`.
    pub(crate) fn from_raw(raw: &RawCommand<'_>, owner: &Bytes) -> Result<Self, DecodeError> {
        let body = raw.body;
        match raw.tag {
            Tag::Append => read_append(body).map(|(tags_code, record)| {
                let record = owner.slice_ref(record);
                Self::Append { tags_code, record }
            }),
            Tag::AppendBatch => Records::read(body)?
                .to_owned(owner)
                .map(|records| Self::AppendBatch { records }),
            Tag::Deliver => {
                let DeliverBody {
                    level,
                    expected,
                    next,
                    records,
                } = DeliverBody::read(body)?;
                let records = records.to_owned(owner)?;
                Ok(Self::Deliver {
                    level,
                    expected,
                    next,
                    records,
                })
            }
            Tag::PutTopic => read_put(body).map(|(config, only_if_absent)| Self::PutTopic {
                config,
                only_if_absent,
            }),
            Tag::PutGroup => read_put(body).map(|(config, only_if_absent)| Self::PutGroup {
                config,
                only_if_absent,
            }),
            Tag::ChangeTopic => read_config(body).map(|config| Self::ChangeTopic { config }),
            Tag::ChangeGroup => read_config(body).map(|config| Self::ChangeGroup { config }),
            Tag::DeleteTopic => read_texts(body).map(|[topic]| Self::DeleteTopic { topic }),
            Tag::DeleteGroup => {
                read_delete_group(body).map(|(group, clean_offset)| Self::DeleteGroup {
                    group,
                    clean_offset,
                })
            }
            Tag::CommitOffsets => read_commits(body).map(|commits| Self::CommitOffsets { commits }),
            Tag::LockQueues => {
                let mut reader = Reader::new(body);
                let now_ms = reader.u64()?;
                let (group, client_id, queues) = read_queues(reader.rest())?;
                Ok(Self::LockQueues {
                    group,
                    client_id,
                    queues,
                    now_ms,
                })
            }
            Tag::UnlockQueues => {
                read_queues(body).map(|(group, client_id, queues)| Self::UnlockQueues {
                    group,
                    client_id,
                    queues,
                })
            }
            Tag::PutKv => read_texts(body).map(|[namespace, key, value]| Self::PutKv {
                namespace,
                key,
                value,
            }),
            Tag::DeleteKv => {
                read_texts(body).map(|[namespace, key]| Self::DeleteKv { namespace, key })
            }
        }
    }
}

/// The numbers of the commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Tag {
    Append = 1,
    AppendBatch = 2,
    PutTopic = 3,
    DeleteTopic = 4,
    PutGroup = 5,
    DeleteGroup = 6,
    CommitOffsets = 7,
    LockQueues = 8,
    UnlockQueues = 9,
    Deliver = 10,
    PutKv = 11,
    DeleteKv = 12,
    ChangeTopic = 13,
    ChangeGroup = 14,
}

impl TryFrom<u8> for Tag {
    type Error = DecodeError;

    #[inline]
    fn try_from(tag: u8) -> Result<Self, DecodeError> {
        Ok(match tag {
            1 => Self::Append,
            2 => Self::AppendBatch,
            3 => Self::PutTopic,
            4 => Self::DeleteTopic,
            5 => Self::PutGroup,
            6 => Self::DeleteGroup,
            7 => Self::CommitOffsets,
            8 => Self::LockQueues,
            9 => Self::UnlockQueues,
            10 => Self::Deliver,
            11 => Self::PutKv,
            12 => Self::DeleteKv,
            13 => Self::ChangeTopic,
            14 => Self::ChangeGroup,
            _ => return Err(DecodeError::UnknownTag { tag }),
        })
    }
}

/// A command whose body is not read yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawCommand<'a> {
    pub(crate) tag: Tag,
    pub(crate) body: &'a [u8],
}

impl<'a> RawCommand<'a> {
    #[inline]
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let [tag, padding @ ..] = reader.u32()?.to_le_bytes();
        let tag = Tag::try_from(tag)?;
        if padding != [0; 3] {
            let [a, b, c] = padding.map(u64::from);
            let value = a | b << 8 | c << 16;
            return Err(DecodeError::IllegalValue {
                field: "padding",
                value,
            });
        }
        Ok(Self {
            tag,
            body: reader.bytes()?,
        })
    }
}
