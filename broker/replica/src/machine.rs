//! The replicated data of this node as the handlers see it: the state machine, the consume queue
//! and the commit log. Entries are applied here, in log order, by one task; everything else reads.
//!
//! Owns the state lock. It is held for one entry at a time, never across an await, and no other
//! lock is taken while it is held except the ones inside the consume queue and the long poll.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use raftmq_state::{ApplyError, EntryPosition, Output, Reply, State};
use raftmq_store::{
    CommitLog, StoreError,
    index::{IndexUnit, QueueIndex},
};
use tokio::sync::watch;

use crate::{
    checkpoint::begin_index_anew, limits::NAMESRV_TOPIC_CHANGES_KEPT, long_poll::LongPoll,
};

/// Why an entry could not be applied. Each of them ends the process: going on would let this
/// replica differ from the others.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The entry's payload is not one that any version of this program wrote.
    #[error("apply entry {index}: {source}")]
    Apply {
        /// Log index of the entry.
        index: u64,
        /// What the state machine says.
        source: ApplyError,
    },
}

/// Topics that changed lately, by the counter of the topic table. Noted after they are visible.
#[derive(Debug)]
struct TopicChanges {
    /// Changes up to this one are not remembered.
    forgotten: u64,
    newest: u64,
    names: VecDeque<(u64, String)>,
}

impl TopicChanges {
    fn after(counter: u64) -> Self {
        Self {
            forgotten: counter,
            newest: counter,
            names: VecDeque::new(),
        }
    }

    fn note(&mut self, changes: impl Iterator<Item = (u64, String)>) {
        for (counter, name) in changes {
            self.newest = counter;
            self.names.push_back((counter, name));
            if self.names.len() > NAMESRV_TOPIC_CHANGES_KEPT
                && let Some((forgotten, _)) = self.names.pop_front()
            {
                self.forgotten = forgotten;
            }
        }
    }

    fn names_after(&self, counter: u64) -> Option<BTreeSet<String>> {
        let names = self.names.iter().rev();
        let newer = names.take_while(|(number, _)| *number > counter);
        (counter >= self.forgotten).then(|| newer.map(|(_, name)| name.clone()).collect())
    }
}

/// State machine, consume queue and commit log of this node.
#[derive(Debug)]
pub struct Machine {
    state: RwLock<State>,
    index: Arc<QueueIndex>,
    log: Arc<CommitLog>,
    long_poll: Arc<LongPoll>,
    /// Counts changes of topics and groups; the registrar and the caches of handlers watch it.
    metadata_version: watch::Sender<u64>,
    topic_changes: Mutex<TopicChanges>,
    /// Store timestamp of the newest applied entry. Unit: ms since 1970.
    last_store_timestamp_ms: AtomicU64,
}

impl Machine {
    /// The machine over recovered parts: `state` and `index` as of the same checkpoint.
    #[must_use]
    pub fn new(
        state: State,
        index: Arc<QueueIndex>,
        log: Arc<CommitLog>,
        long_poll: Arc<LongPoll>,
        last_store_timestamp_ms: u64,
    ) -> Self {
        Self {
            topic_changes: Mutex::new(TopicChanges::after(state.topic_version().counter)),
            state: RwLock::new(state),
            index,
            log,
            long_poll,
            metadata_version: watch::Sender::new(0),
            last_store_timestamp_ms: AtomicU64::new(last_store_timestamp_ms),
        }
    }

    /// Read access to the replicated state. Hold it briefly: applying waits meanwhile.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        // A poisoned lock means that applying panicked, and then the process is going down.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The consume queue.
    #[must_use]
    pub fn index(&self) -> &Arc<QueueIndex> {
        &self.index
    }

    /// The commit log.
    #[must_use]
    pub fn log(&self) -> &Arc<CommitLog> {
        &self.log
    }

    /// Fires at every change of topics or groups.
    #[must_use]
    pub fn metadata_changes(&self) -> watch::Receiver<u64> {
        self.metadata_version.subscribe()
    }

    /// Number of the newest change of topics, and the names of those that changed after the change
    /// of number `counter`, deleted ones too. `None`: too many to remember.
    pub fn topics_changed_after(&self, counter: u64) -> (u64, Option<BTreeSet<String>>) {
        let changes = self.topic_changes();
        (changes.newest, changes.names_after(counter))
    }

    fn topic_changes(&self) -> MutexGuard<'_, TopicChanges> {
        self.topic_changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Store timestamp of the newest applied entry. Unit: ms since 1970; 0 = none yet.
    #[must_use]
    pub fn last_store_timestamp_ms(&self) -> u64 {
        self.last_store_timestamp_ms.load(Ordering::Relaxed)
    }

    /// Bytes of one stored message record, as committed: offset fields still zero.
    ///
    /// # Errors
    /// When the range is not (or no longer) in the log, or cannot be read.
    pub fn read_record(&self, physical_offset: u64, size: u32) -> Result<Bytes, StoreError> {
        self.log.read_bytes(physical_offset, size as usize)
    }

    /// Applies one normal entry. The state counts from 1, since 0 means that nothing is applied;
    /// the first index of a log is 0. Order: state, then index, then wake-ups, in this order, so that a woken
    /// reader finds the message.
    pub fn apply(
        &self,
        index: u64,
        payload_physical_offset: u64,
        payload: &Bytes,
        output: &mut Output,
    ) -> Result<Vec<Reply>, MachineError> {
        output.clear();
        {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            state
                .apply(
                    EntryPosition {
                        index: index + 1,
                        payload_physical_offset,
                    },
                    payload,
                    output,
                )
                .map_err(|source| MachineError::Apply { index, source })?;
        }
        for queue in &output.removed_queues {
            self.index.remove_queue(*queue);
        }
        if let Some(last) = output.appended.last() {
            self.last_store_timestamp_ms
                .fetch_max(last.store_timestamp_ms, Ordering::Relaxed);
            let units: Vec<_> = output
                .appended
                .iter()
                .map(|unit| {
                    let entry = IndexUnit {
                        physical_offset: unit.physical_offset,
                        size: unit.size,
                        tags_code: unit.tags_code,
                        store_timestamp_ms: unit.store_timestamp_ms,
                    };
                    (unit.queue, unit.queue_offset, entry)
                })
                .collect();
            self.index.append(&units);
            self.long_poll.wake(&output.appended);
        }
        if !output.topics_changed.is_empty() {
            self.topic_changes().note(output.topics_changed.drain(..));
        }
        if output.metadata_changed {
            self.metadata_version.send_modify(|version| *version += 1);
        }
        Ok(std::mem::take(&mut output.replies))
    }

    /// Notes an entry without commands (blank, membership) in the state.
    pub fn skip(&self, index: u64) -> Result<(), MachineError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state
            .skip(index + 1)
            .map_err(|source| MachineError::Apply { index, source })
    }

    /// Replaces everything with the state of a snapshot. The consume queue starts empty: each
    /// queue begins at its next offset, since older messages are not on this node.
    pub fn restore(&self, restored: State, last_store_timestamp_ms: u64) {
        self.last_store_timestamp_ms
            .store(last_store_timestamp_ms, Ordering::Relaxed);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        begin_index_anew(&self.index, &restored);
        let counter = restored.topic_version().counter;
        let replaced = std::mem::replace(&mut *state, restored);
        drop(state);
        // A large one takes a while to give its memory back.
        drop(replaced);
        *self.topic_changes() = TopicChanges::after(counter);
        self.metadata_version.send_modify(|version| *version += 1);
    }
}
