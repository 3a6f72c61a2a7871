//! Readers and writers of command bodies. The layouts are drawn in `command`.

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{DecodeError, Reader, put_bytes, put_length, put_text, read_config};
use crate::command::{CommitMode, EncodedCommand, OffsetCommit, Tag};

/// Reads the body of an Append: (tags_code, record). The record ends with the body.
#[inline]
pub(crate) fn read_append(body: &[u8]) -> Result<(i64, &[u8]), DecodeError> {
    let mut reader = Reader::new(body);
    let tags_code = reader.i64()?;
    Ok((tags_code, reader.rest()))
}

/// The records of a batch or a delivery, read one by one.
#[derive(Debug, Clone)]
pub(crate) struct Records<'a> {
    reader: Reader<'a>,
    left: usize,
}

/// Bytes of a record's tags_code and length.
pub(crate) const RECORD_HEAD_BYTES: usize = 12;

impl<'a> Records<'a> {
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let left = reader.count(RECORD_HEAD_BYTES)?;
        Ok(Self { reader, left })
    }

    pub(crate) fn len(&self) -> usize {
        self.left
    }

    /// The next (tags_code, record); `None` when the bytes end with the last one.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<Option<(i64, &'a [u8])>, DecodeError> {
        if self.left == 0 {
            self.reader.finish()?;
            return Ok(None);
        }
        self.left -= 1;
        let tags_code = self.reader.i64()?;
        Ok(Some((tags_code, self.reader.bytes()?)))
    }

    pub(crate) fn to_owned(&self, owner: &Bytes) -> Result<Vec<(i64, Bytes)>, DecodeError> {
        let mut records = self.clone();
        let mut owned = Vec::with_capacity(records.len());
        while let Some((tags_code, record)) = records.next()? {
            owned.push((tags_code, owner.slice_ref(record)));
        }
        Ok(owned)
    }
}

/// Bytes of a Deliver's level and progress.
pub(crate) const DELIVER_HEAD_BYTES: usize = 20;

/// The body of a Deliver.
#[derive(Debug, Clone)]
pub(crate) struct DeliverBody<'a> {
    pub(crate) level: u32,
    pub(crate) expected: u64,
    pub(crate) next: u64,
    pub(crate) records: Records<'a>,
}

impl<'a> DeliverBody<'a> {
    pub(crate) fn read(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let level = reader.u32()?;
        let expected = reader.u64()?;
        let next = reader.u64()?;
        Ok(Self {
            level,
            expected,
            next,
            records: Records::read(reader.rest())?,
        })
    }
}

pub(crate) fn records_bytes(records: &[(i64, Bytes)]) -> usize {
    records
        .iter()
        .map(|(_, record)| RECORD_HEAD_BYTES + record.len())
        .sum()
}

pub(crate) fn put_records(out: &mut BytesMut, records: &[(i64, Bytes)]) {
    put_length(out, records.len());
    for (tags_code, record) in records {
        out.put_i64_le(*tags_code);
        put_bytes(out, record);
    }
}

pub(crate) fn put_config(tag: Tag, only_if_absent: bool, json: &[u8]) -> EncodedCommand {
    EncodedCommand::build(tag, 1 + json.len(), |out| {
        out.put_u8(u8::from(only_if_absent));
        out.put_slice(json);
    })
}

pub(crate) fn put_change(tag: Tag, json: &[u8]) -> EncodedCommand {
    EncodedCommand::build(tag, json.len(), |out| out.put_slice(json))
}

pub(crate) fn read_put<T: serde::de::DeserializeOwned>(
    body: &[u8],
) -> Result<(T, bool), DecodeError> {
    let mut reader = Reader::new(body);
    let only_if_absent = reader.bool("only_if_absent")?;
    Ok((read_config(reader.rest())?, only_if_absent))
}

pub(crate) fn put_texts(tag: Tag, texts: &[&str]) -> EncodedCommand {
    let bytes = texts.iter().map(|text| 4 + text.len()).sum();
    EncodedCommand::build(tag, bytes, |out| {
        for text in texts {
            put_text(out, text);
        }
    })
}

pub(crate) fn read_texts<const N: usize>(body: &[u8]) -> Result<[String; N], DecodeError> {
    let mut reader = Reader::new(body);
    let mut texts = [const { String::new() }; N];
    for text in &mut texts {
        *text = reader.text()?.to_owned();
    }
    reader.finish()?;
    Ok(texts)
}

pub(crate) fn read_delete_group(body: &[u8]) -> Result<(String, bool), DecodeError> {
    let mut reader = Reader::new(body);
    let clean_offset = reader.bool("clean_offset")?;
    let [group] = read_texts(reader.rest())?;
    Ok((group, clean_offset))
}

pub(crate) fn put_commits(commits: &[OffsetCommit]) -> EncodedCommand {
    EncodedCommand::build(Tag::CommitOffsets, 4 + commits.len() * 64, |out| {
        put_length(out, commits.len());
        for commit in commits {
            put_text(out, &commit.group);
            put_text(out, &commit.topic);
            out.put_u32_le(commit.queue_id);
            out.put_u64_le(commit.offset);
            out.put_u8(match commit.mode {
                CommitMode::Set => 0,
                CommitMode::Max => 1,
            });
        }
    })
}

pub(crate) fn read_commits(body: &[u8]) -> Result<Vec<OffsetCommit>, DecodeError> {
    let mut reader = Reader::new(body);
    let count = reader.count(21)?;
    let mut commits = Vec::with_capacity(count);
    for _ in 0..count {
        commits.push(OffsetCommit {
            group: reader.text()?.to_owned(),
            topic: reader.text()?.to_owned(),
            queue_id: reader.u32()?,
            offset: reader.u64()?,
            mode: match reader.bool("mode")? {
                false => CommitMode::Set,
                true => CommitMode::Max,
            },
        });
    }
    reader.finish()?;
    Ok(commits)
}

pub(crate) fn put_queues(
    out: &mut BytesMut,
    group: &str,
    client_id: &str,
    queues: &[(String, u32)],
) {
    put_text(out, group);
    put_text(out, client_id);
    put_length(out, queues.len());
    for (topic, queue_id) in queues {
        put_text(out, topic);
        out.put_u32_le(*queue_id);
    }
}

pub(crate) type GroupClientQueues = (String, String, Vec<(String, u32)>);

pub(crate) fn read_queues(body: &[u8]) -> Result<GroupClientQueues, DecodeError> {
    let mut reader = Reader::new(body);
    let group = reader.text()?.to_owned();
    let client_id = reader.text()?.to_owned();
    let count = reader.count(8)?;
    let mut queues = Vec::with_capacity(count);
    for _ in 0..count {
        queues.push((reader.text()?.to_owned(), reader.u32()?));
    }
    reader.finish()?;
    Ok((group, client_id, queues))
}
