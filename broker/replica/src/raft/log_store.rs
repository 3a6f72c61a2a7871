//! openraft's log storage over the commit log: entries go to the segment files, votes and the
//! committed hint to the vote file. The only state here is a handle; the commit log owns the rest.

use std::{
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds, RangeInclusive},
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
    vote::leader_id_std,
};
use raftmq_store::{CommitLog, LogId as StoreLogId, StoreError};
use tokio::time::{Instant, sleep};

use super::boundary::SnapshotBoundaries;
use super::repair;
use super::types::{Entry, LogId, TypeConfig, Vote, from_stored, log_id, store_id, to_stored};
use crate::host::simulated;

/// Most bytes of entries one read for replication returns (at least one entry always).
/// Bounds the size of an append request; larger ones gain nothing on loopback or a LAN.
const REPLICATION_READ_BYTES: u64 = 1 << 20;
/// Most bytes of entries one step of a read for applying returns.
const APPLY_READ_BYTES: u64 = 4 << 20;

/// Pause between looks whether a damaged entry is mended.
const MEND_PAUSE: Duration = Duration::from_millis(20);
/// How long a leader waits for a damaged entry. To find the damage takes a read of its segment, of 1
/// GiB, which a slow disk gives in 10 s, and peers answer within seconds. After that nobody has the
/// entry for now: the process ends, and a node leads that may not need it. A follower waits for as
/// long as it takes, since it votes and acknowledges meanwhile.
const LEADER_MEND_WAIT: Duration = Duration::from_secs(30);

/// Shared by whoever receives or installs a snapshot.
pub(crate) type SnapshotBoundary = Arc<SnapshotBoundaries>;

/// Raft's view of the commit log.
#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    log: Arc<CommitLog>,
    boundary: SnapshotBoundary,
    /// This node.
    id: u64,
}

impl LogStore {
    /// A view of `log`, of node `id`; `boundary` is shared with the snapshot receiver.
    pub(crate) fn new(log: Arc<CommitLog>, boundary: SnapshotBoundary, id: u64) -> Self {
        Self { log, boundary, id }
    }

    /// Entries from the log. A damaged one is waited for while somebody mends it: to Raft every
    /// error of its log is the end.
    async fn read(&self, from: u64, to: u64, bytes_max: u64) -> Result<Vec<Entry>, io::Error> {
        let began = Instant::now();
        loop {
            let read = if self.log.is_in_tail(from) {
                self.log.read(from, to, bytes_max)
            } else {
                // Old entries: the disk may take its time, and their CRCs take some.
                let log = Arc::clone(&self.log);
                repair::blocking(move || log.read(from, to, bytes_max)).await
            };
            match read {
                Err(error) if self.is_waited_for(&error, began) => {
                    tracing::debug!(from, %error, "wait for a damaged entry");
                    sleep(MEND_PAUSE).await;
                }
                Err(error) => return Err(storage_error(error)),
                Ok(entries) => return entries.into_iter().map(from_stored).collect(),
            }
        }
    }

    /// Whether the read that began then may be repeated until somebody has mended what it met. What
    /// nobody has is not waited for: the process ends, and another node leads.
    fn is_waited_for(&self, error: &StoreError, began: Instant) -> bool {
        let is_mendable = matches!(error, StoreError::Corrupt { physical_offset, .. }
            if *physical_offset >= self.log.gone_until())
            && self.log.is_repairable();
        is_mendable && (began.elapsed() < LEADER_MEND_WAIT || !self.leads())
    }

    /// Whether this node leads, as far as its vote says.
    fn leads(&self) -> bool {
        let vote = self.log.read_vote();
        let vote = vote.and_then(|bytes| decode_vote(&bytes).ok());
        vote.is_some_and(|vote| vote.committed && vote.leader_id.voted_for == self.id)
    }

    /// `range` as `[from, to)`, clipped to the entries that exist.
    fn clip(&self, range: &impl RangeBounds<u64>) -> (u64, u64) {
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(index) => index.saturating_add(1),
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        let end = self.log.last_id().map_or(0, |id| id.index + 1);
        (from, to.min(end))
    }
}

/// Runs blocking file work away from the Raft runtime, so that heartbeats go on meanwhile.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, io::Error> {
    repair::blocking(work).await.map_err(storage_error)
}

/// The store's error as the `io::Error` that openraft takes as fatal.
pub(crate) fn storage_error(error: StoreError) -> io::Error {
    io::Error::other(error)
}

/// A vote as the fixed bytes of the vote file: term, node (little endian), committed.
fn encode_vote(vote: &Vote) -> [u8; 17] {
    let mut bytes = [0; 17];
    bytes[..8].copy_from_slice(&vote.leader_id.term.to_le_bytes());
    bytes[8..16].copy_from_slice(&vote.leader_id.voted_for.to_le_bytes());
    bytes[16] = u8::from(vote.committed);
    bytes
}

pub(super) fn decode_vote(bytes: &[u8]) -> Result<Vote, io::Error> {
    let invalid = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("decode vote: {} bytes instead of 17", bytes.len()),
        )
    };
    let (term, rest) = bytes.split_first_chunk::<8>().ok_or_else(invalid)?;
    let (node, rest) = rest.split_first_chunk::<8>().ok_or_else(invalid)?;
    let [committed] = rest else {
        return Err(invalid());
    };
    Ok(Vote {
        leader_id: leader_id_std::LeaderId {
            term: u64::from_le_bytes(*term),
            voted_for: u64::from_le_bytes(*node),
        },
        committed: *committed != 0,
    })
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = self.clip(&range);
        // What is purged may be missing here; not in `entries_stream`, by which Raft applies.
        let mut from = from.max(self.log.first_index());
        let mut entries = Vec::new();
        while from < to {
            let read = self.read(from, to, APPLY_READ_BYTES).await?;
            let Some(last) = read.last() else { break };
            from = last.log_id.index() + 1;
            entries.extend(read);
        }
        Ok(entries)
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = self.clip(&range);
        let store = self.clone();
        // Bounded steps instead of one vector: after a restart the range may be the whole log.
        let steps = stream::unfold(from, move |from| {
            let store = store.clone();
            async move {
                if from >= to {
                    return None;
                }
                let read = store.read(from, to, APPLY_READ_BYTES).await;
                let next = match &read {
                    Ok(entries) => entries.last().map_or(to, |entry| entry.log_id.index() + 1),
                    Err(_) => to,
                };
                let items: Vec<Result<Entry, io::Error>> = match read {
                    Ok(entries) => entries.into_iter().map(Ok).collect(),
                    Err(error) => vec![Err(error)],
                };
                Some((stream::iter(items), next))
            }
        });
        Box::pin(steps.flatten())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        let bytes = self.log.read_vote();
        bytes.as_deref().map(decode_vote).transpose()
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, REPLICATION_READ_BYTES).await
    }

    /// The last log id of every term in `range`, from the term boundaries that the commit log
    /// keeps in memory: openraft's default would look for them with a binary search that reads
    /// cold segments at every start. (The trait's text speaks of the first id of each leader;
    /// its default implementation and all users mean the last.)
    async fn get_key_log_ids(
        &mut self,
        range: RangeInclusive<LogId>,
    ) -> Result<Vec<LogId>, io::Error> {
        Ok(last_of_each_term(
            &self.log.term_starts(),
            *range.start(),
            *range.end(),
        ))
    }
}

/// See [`LogStore::get_key_log_ids`]. `starts` is the first id of each term, in order.
fn last_of_each_term(starts: &[StoreLogId], first: LogId, last: LogId) -> Vec<LogId> {
    let mut ids: Vec<LogId> = starts
        .windows(2)
        .filter_map(|pair| {
            let [start, next] = pair else { return None };
            let end = next.index.checked_sub(1)?;
            (end >= first.index() && end < last.index())
                .then(|| LogId::new_term_index(start.term, end))
        })
        .collect();
    ids.push(last);
    ids
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let purged = self.log.purged_id().map(log_id);
        let last = self.log.last_id().map(log_id).or(purged);
        Ok(LogState {
            last_purged_log_id: purged,
            last_log_id: last,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let log = Arc::clone(&self.log);
        let bytes = encode_vote(vote);
        blocking(move || {
            // openraft orders votes and entries in one sequence and takes a saved vote for proof
            // that everything appended before it is on disk: it would then acknowledge entries of
            // the former leader that are not.
            if log.oldest_unflushed_since().is_some() {
                log.flush()?;
            }
            log.save_vote(&bytes)
        })
        .await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(committed) = committed {
            self.log
                .save_committed(store_id(&committed))
                .map_err(storage_error)?;
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.log.committed().map(log_id))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries
            .into_iter()
            .map(to_stored)
            .collect::<Result<Vec<_>, _>>()?;
        let ids = entries.first().zip(entries.last());
        let ids = ids.map(|(first, last)| (first.id, last.id));
        let done = move |result: io::Result<()>| {
            if let (Ok(()), Some((first, last))) = (&result, ids) {
                simulated(|simulation| simulation.acknowledgeable(first, last));
            }
            callback.io_completed(result);
        };
        self.log
            .append(entries, Box::new(done))
            .map_err(storage_error)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let log = Arc::clone(&self.log);
        blocking(move || log.truncate_after(last.map(|id| id.index()))).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let log = Arc::clone(&self.log);
        let id = store_id(&upto);
        let beyond_end = log.last_id().is_none_or(|last| last.index <= id.index);
        match self.boundary.take(&id) {
            // The log ends before the installed snapshot: continue right behind it.
            Some(position) if beyond_end => {
                blocking(move || log.reset(position.id, position.end_physical, position.crc)).await
            }
            _ => blocking(move || log.purge_upto(id)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use raftmq_store::{EntryKind, LogConfig, LogPosition, NewEntry, RealDisk};

    use super::*;

    #[test]
    fn a_vote_survives_its_byte_form() {
        let vote = Vote {
            leader_id: leader_id_std::LeaderId {
                term: 7,
                voted_for: 3,
            },
            committed: true,
        };
        assert_eq!(decode_vote(&encode_vote(&vote)).unwrap(), vote);
        assert!(decode_vote(&[0; 16]).is_err());
    }

    fn blank(index: u64) -> NewEntry {
        NewEntry {
            id: StoreLogId {
                term: 0,
                node: 0,
                index,
            },
            kind: EntryKind::Blank,
            count: 0,
            payload: Bytes::new(),
        }
    }

    #[tokio::test]
    async fn a_read_leaves_out_what_is_purged_and_a_read_for_applying_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig::new(dir.path());
        let (log, ..) = CommitLog::open(Arc::new(RealDisk), config, None).unwrap();
        log.append((0..5).map(blank).collect(), Box::new(|_| {}))
            .unwrap();
        log.purge_upto(blank(2).id).unwrap();
        let mut store = LogStore::new(log, SnapshotBoundary::default(), 1);
        let read = store.try_get_log_entries(0..100).await.unwrap();
        let indexes: Vec<u64> = read.iter().map(|entry| entry.log_id.index()).collect();
        assert_eq!(indexes, [3, 4]);
        assert_eq!(store.try_get_log_entries(0..3).await.unwrap(), []);
        let applied: Vec<_> = store.entries_stream(0..5).await.collect().await;
        assert!(matches!(&applied[..], [Err(_)]));
    }

    #[tokio::test]
    async fn a_log_goes_on_behind_a_snapshot_whatever_other_was_received_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig::new(dir.path());
        let (log, ..) = CommitLog::open(Arc::new(RealDisk), config, None).unwrap();
        let boundary = SnapshotBoundary::default();
        let mut store = LogStore::new(Arc::clone(&log), Arc::clone(&boundary), 1);
        for index in [90, 50, 95] {
            boundary.note(LogPosition {
                id: blank(index).id,
                end_physical: 100 * index,
                crc: 7,
                term_starts: vec![blank(0).id],
            });
        }
        store.purge(LogId::new_term_index(0, 90)).await.unwrap();
        assert_eq!(log.last_id(), Some(blank(90).id));
        assert_eq!(log.max_physical(), 9000);
    }

    #[tokio::test]
    async fn a_saved_vote_vouches_for_what_was_appended_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig::new(dir.path());
        // Nobody runs the flusher: entries stay in memory unless somebody asks for them.
        let (log, _flusher, _preallocator, _) =
            CommitLog::open(Arc::new(RealDisk), config, None).unwrap();
        log.append(vec![blank(0)], Box::new(|_| {})).unwrap();
        assert_eq!(log.flushed_index(), None);
        let mut store = LogStore::new(Arc::clone(&log), SnapshotBoundary::default(), 1);
        let vote = Vote {
            leader_id: leader_id_std::LeaderId {
                term: 1,
                voted_for: 1,
            },
            committed: false,
        };
        store.save_vote(&vote).await.unwrap();
        assert_eq!(log.flushed_index(), Some(0));
        assert_eq!(log.read_vote(), Some(encode_vote(&vote).to_vec()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_does_not_wait_for_ever_for_a_damaged_entry_and_a_follower_does() {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig::new(dir.path());
        let (log, ..) = CommitLog::open(Arc::new(RealDisk), config.clone(), None).unwrap();
        log.append((0..5).map(blank).collect(), Box::new(|_| {}))
            .unwrap();
        log.flush().unwrap();
        let position = log.position_at(4).unwrap();
        drop(log);
        let segment = dir.path().join(format!("{:020}", 0));
        let file = raftmq_store::Disk::open(&RealDisk, &segment).unwrap();
        file.write_all_at(&[9], 2 * 64 + 9).unwrap();
        let (log, ..) = CommitLog::open(Arc::new(RealDisk), config, Some(&position)).unwrap();
        log.set_repairable(true);
        for (leader, ends) in [(1, true), (2, false)] {
            let vote = Vote {
                leader_id: leader_id_std::LeaderId {
                    term: leader,
                    voted_for: leader,
                },
                committed: true,
            };
            let mut store = LogStore::new(Arc::clone(&log), SnapshotBoundary::default(), 1);
            store.save_vote(&vote).await.unwrap();
            let read = store.limited_get_log_entries(2, 3);
            let read = tokio::time::timeout(10 * LEADER_MEND_WAIT, read).await;
            assert_eq!(read.is_ok_and(|read| read.is_err()), ends, "{leader}");
        }
    }

    #[test]
    fn key_ids_are_the_last_of_each_term_in_the_range() {
        let start = |term, index| StoreLogId {
            term,
            node: 0,
            index,
        };
        let id = LogId::new_term_index;
        let starts = [start(2, 2), start(5, 4), start(6, 9)];
        assert_eq!(
            last_of_each_term(&starts, id(2, 2), id(6, 12)),
            [id(2, 3), id(5, 8), id(6, 12)]
        );
        assert_eq!(last_of_each_term(&starts, id(5, 5), id(5, 8)), [id(5, 8)]);
        assert_eq!(
            last_of_each_term(&starts, id(2, 3), id(6, 9)),
            [id(2, 3), id(5, 8), id(6, 9)]
        );
        assert_eq!(
            last_of_each_term(&[start(1, 0)], id(1, 0), id(1, 0)),
            [id(1, 0)]
        );
    }
}
