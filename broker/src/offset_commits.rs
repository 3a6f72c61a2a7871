//! Consumer offsets on their way into the log, gathered for a moment.
//!
//! Clients commit each queue every five seconds and with many pulls; each commit as an entry of
//! its own would fill the log. They wait here up to [`GATHER`] and go in as one command. An offset
//! counts only once it is applied: what is asked for is always answered from the state, so an
//! answer never goes back after a failover.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use raftmq_state::{Command, CommitMode, OffsetCommit};
use tokio::{sync::Notify, time::sleep};

use crate::broker::Broker;

/// How long commits gather. Far below the client's five seconds between commits.
const GATHER: Duration = Duration::from_millis(100);
/// Queues whose commits may wait; beyond it commits are dropped (clients repeat them).
const QUEUES_MAX: usize = 200_000;
/// Commits in one command. Bounds the size of an entry to about 1 MiB.
const COMMITS_MAX: usize = 4096;

type QueueKey = (String, String, u32);

/// Owns its lock; taken for an insert or a swap only.
#[derive(Debug, Default)]
pub struct OffsetCommits {
    waiting: Mutex<BTreeMap<QueueKey, (u64, CommitMode)>>,
    arrived: Notify,
    /// Held while commits are on their way, so that they are applied in order.
    flushing: tokio::sync::Mutex<()>,
}

impl OffsetCommits {
    /// Queues a commit that nobody waits for.
    pub fn add(&self, commit: OffsetCommit) {
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let key = (commit.group, commit.topic, commit.queue_id);
            let known = waiting.get(&key).copied();
            if known.is_none() && waiting.len() >= QUEUES_MAX {
                return;
            }
            let merged = match (known, commit.mode) {
                (Some((offset, mode)), CommitMode::Max) => (offset.max(commit.offset), mode),
                _ => (commit.offset, commit.mode),
            };
            waiting.insert(key, merged);
        }
        self.arrived.notify_one();
    }

    /// Forgets what waits: this node does not lead any more, and a late commit could take an
    /// offset back that its client has committed at the new leader since.
    pub(crate) fn clear(&self) {
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    fn take(&self) -> BTreeMap<QueueKey, (u64, CommitMode)> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Commits what gathers for as long as the process runs.
    pub(crate) async fn run(broker: Arc<Broker>) {
        loop {
            broker.offset_commits.arrived.notified().await;
            sleep(GATHER).await;
            if !broker.is_serving() {
                broker.offset_commits.clear();
                continue;
            }
            broker.offset_commits.flush(&broker).await;
        }
    }

    /// Makes sure that what came in before is applied: a consumer that takes over a queue asks
    /// for the offset right after the one before it has committed.
    pub(crate) async fn settle(&self, broker: &Broker) {
        let idle = self
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty();
        if !idle || self.flushing.try_lock().is_err() {
            self.flush(broker).await;
        }
    }

    /// Commits what waits now, after what is on its way. False when the disk is too full even for
    /// that: then it goes on waiting, until the next commit of any client.
    pub(crate) async fn flush(&self, broker: &Broker) -> bool {
        if !broker.takes_note() {
            return false;
        }
        let _order = self.flushing.lock().await;
        let commits: Vec<OffsetCommit> = self
            .take()
            .into_iter()
            .map(|((group, topic, queue_id), (offset, mode))| OffsetCommit {
                group,
                topic,
                queue_id,
                offset,
                mode,
            })
            .collect();
        for commits in commits.chunks(COMMITS_MAX) {
            let command = Command::CommitOffsets {
                commits: commits.to_vec(),
            }
            .encode();
            if let Err(error) = broker.proposer().propose(command).await {
                tracing::debug!(%error, "commit consumer offsets; clients repeat them");
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(offset: u64, mode: CommitMode) -> OffsetCommit {
        OffsetCommit {
            group: "g".into(),
            topic: "t".into(),
            queue_id: 0,
            offset,
            mode,
        }
    }

    #[test]
    fn a_commit_that_rides_on_a_pull_never_takes_a_waiting_one_back() {
        let commits = OffsetCommits::default();
        commits.add(commit(9, CommitMode::Set));
        commits.add(commit(5, CommitMode::Max));
        let key = ("g".to_owned(), "t".to_owned(), 0);
        assert_eq!(commits.take().get(&key), Some(&(9, CommitMode::Set)));
        commits.add(commit(9, CommitMode::Set));
        commits.add(commit(5, CommitMode::Set));
        assert_eq!(commits.take().get(&key), Some(&(5, CommitMode::Set)));
        assert!(commits.take().is_empty());
    }
}
