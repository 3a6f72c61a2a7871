//! Where the log continues after a snapshot that another node sent.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use raftmq_store::{LogId, LogPosition};

/// Positions after snapshots, each noted by whoever receives or installs the snapshot and taken when
/// Raft purges the log up to it. A snapshot that Raft does not take in the end has no effect on the
/// position after another.
#[derive(Debug, Default)]
pub(crate) struct SnapshotBoundaries(Mutex<BTreeMap<Key, LogPosition>>);

/// Index and term of the last entry in the snapshot.
type Key = (u64, u64);

fn key(id: &LogId) -> Key {
    (id.index, id.term)
}

impl SnapshotBoundaries {
    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<Key, LogPosition>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn note(&self, position: LogPosition) {
        self.with(|noted| noted.insert(key(&position.id), position));
    }

    /// Takes no notice any more of a snapshot that Raft has refused.
    pub(super) fn forget(&self, id: &LogId) {
        self.with(|noted| noted.remove(&key(id)));
    }

    /// The position after `id`, and the end of what was noted up to there: nothing asks for what is
    /// purged.
    pub(super) fn take(&self, id: &LogId) -> Option<LogPosition> {
        self.with(|noted| {
            let later = noted.split_off(&(id.index + 1, 0));
            std::mem::replace(noted, later).remove(&key(id))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(term: u64, index: u64) -> LogPosition {
        LogPosition {
            id: LogId {
                term,
                node: 0,
                index,
            },
            end_physical: 100 * index,
            crc: 1,
            term_starts: Vec::new(),
        }
    }

    #[test]
    fn a_snapshot_does_not_take_the_place_of_another() {
        let boundaries = SnapshotBoundaries::default();
        for position in [after(3, 90), after(2, 50), after(4, 95), after(1, 90)] {
            boundaries.note(position);
        }
        boundaries.forget(&after(4, 95).id);
        assert_eq!(boundaries.take(&after(3, 90).id), Some(after(3, 90)));
        assert_eq!(boundaries.take(&after(2, 50).id), None, "purged with it");
        boundaries.note(after(4, 99));
        assert_eq!(boundaries.take(&after(4, 98).id), None);
        assert_eq!(boundaries.take(&after(4, 99).id), Some(after(4, 99)));
    }
}
