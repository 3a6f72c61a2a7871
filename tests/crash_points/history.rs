//! What a workload did and was told, each with the number of changes that the disk had been asked
//! for before and after.

use std::collections::BTreeMap;

use bytes::Bytes;
use raftmq_store::LogId;

/// One entry that was ever appended. An index may have several, one after the other.
#[derive(Debug, Clone)]
pub struct Version {
    pub id: LogId,
    pub payload: Bytes,
    pub appended_at: usize,
    /// When its completion said that it is flushed.
    pub acknowledged_at: Option<usize>,
    /// When cutting it away began and was done.
    pub cut: Option<Span>,
}

/// Something that took several changes.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    pub begun: usize,
    /// `None` while it lasts.
    pub done: Option<usize>,
}

impl Span {
    /// Whether a crash after so many changes may find it begun.
    pub fn may_be_begun(&self, at: usize) -> bool {
        self.begun < at
    }

    /// Whether a crash after so many changes must find it done.
    pub fn is_done(&self, at: usize) -> bool {
        self.done.is_some_and(|done| done <= at)
    }
}

/// Values of something that is saved again and again, the newest last.
#[derive(Debug, Clone)]
pub struct Saves<T>(Vec<(T, Span)>);

impl<T> Default for Saves<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Clone + PartialEq> Saves<T> {
    /// Notes that saving a value begins.
    pub fn begin(&mut self, value: T, at: usize) {
        let span = Span {
            begun: at,
            done: None,
        };
        self.0.push((value, span));
    }

    /// Notes that it is done.
    pub fn done(&mut self, at: usize) {
        if let Some((_, span)) = self.0.last_mut() {
            span.done = Some(at);
        }
    }

    /// Whether saving this value was begun before a crash after so many changes.
    fn was_begun(&self, wanted: &T, at: usize) -> bool {
        let mut all = self.0.iter();
        all.any(|(value, span)| value == wanted && span.begun <= at)
    }

    /// Whether a crash after so many changes may find this value: the last one that was saved, or
    /// the one that was being saved.
    pub fn may_be(&self, found: Option<&T>, at: usize) -> bool {
        let last_done = self.0.iter().rposition(|(_, span)| span.is_done(at));
        let from = last_done.unwrap_or(0);
        if last_done.is_none() && found.is_none() {
            return true;
        }
        let candidates = self.0[from..].iter();
        let mut candidates =
            candidates.filter(|(_, span)| span.is_done(at) || span.may_be_begun(at));
        candidates.any(|(value, _)| Some(value) == found)
    }
}

/// Everything.
#[derive(Debug, Default)]
pub struct History {
    /// In the order of the appends.
    pub entries: Vec<Version>,
    /// Where the versions of each index stand among them.
    versions: BTreeMap<u64, Vec<usize>>,
    pub votes: Saves<Vec<u8>>,
    pub purges: Saves<LogId>,
    /// Indexes of checkpoints.
    pub checkpoints: Saves<u64>,
    /// Incarnations in the identity file.
    pub identities: Saves<String>,
    /// What was told to be committed, and when.
    pub committed: Vec<(LogId, usize)>,
}

impl History {
    /// Notes an entry that is about to be appended.
    pub fn append(&mut self, version: Version) {
        let at = self.entries.len();
        self.versions.entry(version.id.index).or_default().push(at);
        self.entries.push(version);
    }

    /// Every version that ever stood at an index.
    pub fn at_index(&self, index: u64) -> impl Iterator<Item = &Version> {
        let places = self.versions.get(&index).into_iter().flatten();
        places.map(|at| &self.entries[*at])
    }

    /// Every version that stood at this index or a later one.
    pub fn behind(&self, index: u64) -> impl Iterator<Item = &Version> {
        let places = self.versions.range(index..).flat_map(|(_, places)| places);
        places.map(|at| &self.entries[*at])
    }

    /// Cutting away every version after an index begins, or is done.
    pub fn cut_after(&mut self, index: Option<u64>, span: Span) {
        for version in &mut self.entries {
            let is_there = version.cut.is_none_or(|cut| cut.done.is_none());
            if Some(version.id.index) > index && is_there {
                version.cut = Some(span);
            }
        }
    }

    /// Whether this may be remembered as committed after so many changes.
    pub fn may_be_committed(&self, id: LogId, at: usize) -> bool {
        let mut told = self.committed.iter();
        // What a purge or a snapshot has taken the place of is committed too.
        self.purges.was_begun(&id, at) || told.any(|(told, when)| *told == id && *when <= at)
    }
}
