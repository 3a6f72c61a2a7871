//! Which checkpoint serves when the one that is wanted is damaged, or none reaches far enough. Each
//! is read as a whole before it is chosen: a list of names and positions says nothing of its bytes.

use std::{ops::RangeInclusive, sync::atomic::Ordering};

use bytes::Bytes;
use raftmq_state::State;
use raftmq_store::{StoreError, checkpoint::Checkpoint, index::QueueIndex};

use super::{Checkpoints, Restored, restore};

/// Lets each queue begin at its next offset, without any message before.
pub fn begin_index_anew(index: &QueueIndex, state: &State) {
    index.clear();
    for topic in state.topics() {
        for queue in &topic.queues {
            index.begin_queue(queue.number, queue.next_offset);
        }
    }
}

impl Checkpoints {
    /// A whole checkpoint to be sent to another node: the one at `wanted`, or else the newest at an
    /// index of `among`.
    pub fn whole_one(&self, wanted: u64, among: RangeInclusive<u64>) -> Option<Checkpoint> {
        let first = self.known().contains_key(&wanted).then_some(wanted);
        let others = self.known_in(among).into_iter().rev();
        let candidates = first.into_iter().chain(others);
        let mut whole = candidates.filter_map(|index| self.read_whole(index));
        whole.next().map(|(checkpoint, _)| checkpoint)
    }

    /// The oldest whole checkpoint at an index of `among` whose position passes: what lies behind it
    /// in the log is kept.
    pub fn oldest_whole(
        &self,
        among: RangeInclusive<u64>,
        passes: impl Fn(&Restored) -> bool,
    ) -> Option<(Checkpoint, Restored)> {
        let known = self.known_in(among);
        let mut whole = known.into_iter().filter_map(|index| self.read_whole(index));
        whole.find(|(_, restored)| passes(restored))
    }

    /// The oldest whole checkpoint that stands at the end of a segment, behind an address, at
    /// `index_max` at most: there the log can begin.
    pub fn roll_behind(&self, physical: u64, index_max: u64) -> Option<Restored> {
        let rolls = self.rolls().into_iter();
        let behind = rolls.filter(|roll| roll.physical_offset > physical);
        let reached = behind.take_while(|roll| roll.id.index <= index_max);
        reached
            .map(|roll| roll.id.index)
            .find_map(|index| self.read_whole(index).map(|(_, restored)| restored))
    }

    fn known_in(&self, among: RangeInclusive<u64>) -> Vec<u64> {
        if among.is_empty() {
            return Vec::new();
        }
        let known = self.known();
        known.range(among).map(|(index, _)| *index).collect()
    }

    /// The checkpoint at `index`; one that is damaged is good for nothing from then on.
    fn read_whole(&self, index: u64) -> Option<(Checkpoint, Restored)> {
        if !self.known().contains_key(&index) {
            return None;
        }
        let read = self.dir.read(index).and_then(|checkpoint| {
            let restored = restore(&checkpoint)?;
            Ok((checkpoint, restored))
        });
        read.inspect_err(|error| self.found_damaged(index, error))
            .ok()
    }

    /// Takes note of a damaged checkpoint. The state machine takes another one soon.
    pub(super) fn found_damaged(&self, index: u64, error: &StoreError) {
        if self.known().remove(&index).is_some() {
            tracing::error!(index, %error, "a checkpoint is damaged; another one is used or made");
            self.wanted.store(true, Ordering::SeqCst);
        }
    }

    /// Whether a damaged one is to be replaced; asked by whoever takes checkpoints.
    pub fn is_one_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    /// Takes note that one is being taken.
    pub fn one_is_taken(&self) {
        self.wanted.store(false, Ordering::SeqCst);
    }

    /// Reads the checkpoint at `index` as a whole. Returns its bytes, 0 when it is gone; `None` when
    /// it is damaged.
    pub fn scrub(&self, index: u64) -> Option<u64> {
        if !self.known().contains_key(&index) {
            return Some(0);
        }
        let read = self.dir.read(index).and_then(|checkpoint| {
            restore(&checkpoint)?;
            Ok(checkpoint.encoded_bytes() as u64)
        });
        read.or_else(|error| {
            // Newer ones may have taken its place under the read.
            if self.known().contains_key(&index) {
                self.found_damaged(index, &error);
                return Err(error);
            }
            Ok(0)
        })
        .ok()
    }

    /// Indexes of all that are good for something, rising.
    pub fn indexes(&self) -> Vec<u64> {
        self.known().keys().copied().collect()
    }

    /// Stores a checkpoint with which the next start shall begin, although the consume queue does not
    /// reach from there: each queue begins anew. `index` is open for this only; no other file of it
    /// changes before the checkpoint is stored.
    pub fn adopt(
        &self,
        checkpoint: Checkpoint,
        restored: &Restored,
        index: &QueueIndex,
    ) -> Result<(), StoreError> {
        begin_index_anew(index, &restored.state);
        let manifest = index.write_frozen(&index.freeze())?;
        let manifest = manifest.ok_or_else(|| {
            StoreError::Failed("the consume queue was changed while it was begun anew".to_owned())
        })?;
        self.install(checkpoint, manifest)
    }

    /// Part of the file of a checkpoint for a peer, with its length.
    pub fn read_part(
        &self,
        index: u64,
        offset: u64,
        bytes_max: usize,
    ) -> Result<(Bytes, u64), StoreError> {
        self.dir.read_part(index, offset, bytes_max)
    }
}
