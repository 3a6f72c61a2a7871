//! What must hold of a disk that a crash has left.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use raftmq_store::checkpoint::CheckpointDir;
use raftmq_store::{
    CommitLog, Disk, EntryKind, FlushPolicy, Identity, LogId, LogPosition, NewEntry,
    RecoveryReport, StoreError, StoredEntry,
};
use raftmq_tests::sim::disk::{Change, SimDisk};
use raftmq_tests::sim::image::{Crash, Standing};

use super::history::{History, Version};
use super::workload::{CHECKPOINT_DIR, DATA_DIR, POSITION, Recording, config, identity};

/// What a log says of itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Facts {
    last: Option<LogId>,
    purged: Option<LogId>,
    committed: Option<LogId>,
    vote: Option<Vec<u8>>,
    /// Address of the oldest byte.
    pub begin_physical: u64,
    pub entries: Vec<StoredEntry>,
}

/// Opens the log on a disk that a crash after `at` changes has left; what it says of itself, or what
/// is wrong.
pub fn check(
    disk: &SimDisk,
    recording: &Recording,
    at: usize,
    crash: Crash,
) -> Result<Facts, String> {
    let (first, _, report) = open(disk, recording, None)?;
    check_facts(&first, &recording.history, at)?;
    // With asynchronous flush an acknowledgement is no promise that the power may go.
    if recording.policy == FlushPolicy::Sync || crash == Crash::Kept {
        check_promises(&first, &recording.history, at, &report)?;
    }
    check_identity(disk, recording, at)?;
    let position = check_checkpoints(disk, recording, at)?;
    let (again, log, second) = open(disk, recording, position.as_ref())?;
    if again != first {
        return Err("a second start finds another log than the first".to_owned());
    }
    if second.cut.is_some() {
        return Err(format!("the second start cuts again: {:?}", second.cut));
    }
    goes_on(&log, again.last).map_err(|error| format!("it takes no entry: {error}"))?;
    drop(log);
    let (after, _, _) = open(disk, recording, None)?;
    let next = again.last.map_or(0, |last| last.index + 1);
    if after.last.map(|last| last.index) != Some(next) {
        return Err(format!(
            "an entry appended after the start is gone: {:?}",
            after.last
        ));
    }
    Ok(first)
}

/// A process dies and the next one opens the log, which may stand in the page cache only; then the
/// power goes. What the second process found and may have told others must still be there.
pub fn check_second(
    standing: &Standing,
    recording: &Recording,
    last: &Change,
) -> Result<(), String> {
    let (disk, mut standing) = standing.resume();
    let (found, log, _) = open(&disk, recording, None)?;
    drop(log);
    for change in disk.changes() {
        standing.apply(&change);
    }
    let (after, ..) = open(&standing.after(Crash::Lost, last), recording, None)?;
    if after != found {
        let facts = |facts: &Facts| {
            let vote = facts.vote.as_deref().map(String::from_utf8_lossy);
            format!("{:?}, {:?}, {vote:?}", facts.last, facts.purged)
        };
        return Err(format!("{} became {}", facts(&found), facts(&after)));
    }
    Ok(())
}

/// Opens the log and reads everything in it.
fn open(
    disk: &SimDisk,
    recording: &Recording,
    start: Option<&LogPosition>,
) -> Result<(Facts, Arc<CommitLog>, RecoveryReport), String> {
    try_open(disk, recording, start).map_err(|error| format!("it does not open: {error}"))
}

/// As [`open`], with the error of the store.
pub fn try_open(
    disk: &SimDisk,
    recording: &Recording,
    start: Option<&LogPosition>,
) -> Result<(Facts, Arc<CommitLog>, RecoveryReport), StoreError> {
    let opened = CommitLog::open(Arc::new(disk.clone()), config(recording.policy), start);
    let (log, _, _, report) = opened?;
    let (from, last) = (log.first_index(), log.last_id());
    let mut entries: Vec<StoredEntry> = Vec::new();
    let to = last.map_or(0, |last| last.index + 1);
    if from < to {
        entries = log.read(from, to, u64::MAX)?;
    }
    let facts = Facts {
        last,
        purged: log.purged_id(),
        committed: log.committed(),
        vote: log.read_vote(),
        begin_physical: log.min_physical(),
        entries,
    };
    Ok((facts, log, report))
}

/// Nothing is there that was never written, and nothing older than what was saved for certain.
pub fn check_facts(facts: &Facts, history: &History, at: usize) -> Result<(), String> {
    if !history.votes.may_be(facts.vote.as_ref(), at) {
        return Err(format!("the vote is {:?}", facts.vote));
    }
    if !history.purges.may_be(facts.purged.as_ref(), at) {
        return Err(format!("purged up to {:?}", facts.purged));
    }
    if let Some(id) = facts
        .committed
        .filter(|id| !history.may_be_committed(*id, at))
    {
        return Err(format!("{id} is remembered as committed"));
    }
    let first = facts.purged.map_or(0, |purged| purged.index + 1);
    let end = facts.last.map_or(0, |last| last.index + 1);
    if facts.entries.len() as u64 != end.saturating_sub(first) {
        return Err(format!(
            "{first}..{end} gives {} entries",
            facts.entries.len()
        ));
    }
    for (index, found) in (first..end).zip(&facts.entries) {
        let was_written = history.at_index(index).any(|version| {
            version.appended_at <= at
                && version.cut.is_none_or(|cut| !cut.is_done(at))
                && is_same(version, found)
        });
        if !was_written {
            return Err(format!("entry {index} was never written as it is found"));
        }
    }
    Ok(())
}

/// Everything acknowledged is there.
fn check_promises(
    facts: &Facts,
    history: &History,
    at: usize,
    report: &RecoveryReport,
) -> Result<(), String> {
    let first = facts.purged.map_or(0, |purged| purged.index + 1);
    let promised = history.behind(first).filter(|version| {
        let is_acknowledged = version.acknowledged_at.is_some_and(|when| when <= at);
        is_acknowledged && version.cut.is_none_or(|cut| !cut.may_be_begun(at))
    });
    for version in promised {
        let found = facts.entries.get((version.id.index - first) as usize);
        if found.is_none_or(|found| !is_same(version, found)) {
            let id = version.id;
            return Err(format!(
                "entry {id} was acknowledged and is gone ({report:?})"
            ));
        }
    }
    Ok(())
}

fn is_same(version: &Version, found: &StoredEntry) -> bool {
    version.id == found.id && version.payload == found.payload
}

/// The identity is the last one that was written, or the one that was being written.
fn check_identity(disk: &SimDisk, recording: &Recording, at: usize) -> Result<(), String> {
    let dir = Path::new(DATA_DIR);
    let is_there = disk.exists(&dir.join("identity"));
    let mut found = None;
    if is_there.map_err(|error| format!("identity: {error}"))? {
        let opened = Identity::open_or_create(disk, dir, &identity(), "", true);
        found = Some(opened.map_err(|error| format!("identity: {error}"))?);
    }
    let incarnation = found.map(|identity| identity.incarnation);
    if !recording
        .history
        .identities
        .may_be(incarnation.as_ref(), at)
    {
        return Err(format!("the incarnation is {incarnation:?}"));
    }
    Ok(())
}

/// The newest checkpoint that was written is there, whole; its position in the log.
fn check_checkpoints(
    disk: &SimDisk,
    recording: &Recording,
    at: usize,
) -> Result<Option<LogPosition>, String> {
    let fail = |error: StoreError| format!("checkpoints: {error}");
    let folder =
        CheckpointDir::open(Arc::new(disk.clone()), Path::new(CHECKPOINT_DIR)).map_err(fail)?;
    let newest = folder.newest_valid().map_err(fail)?;
    if let Some(skipped) = newest.skipped.first() {
        return Err(format!("checkpoint {} is damaged", skipped.index));
    }
    let found = newest.checkpoint;
    let index = found.as_ref().map(|checkpoint| checkpoint.id.index);
    if !recording.history.checkpoints.may_be(index.as_ref(), at) {
        return Err(format!("the newest checkpoint is {index:?}"));
    }
    let position = found.and_then(|mut checkpoint| checkpoint.sections.remove(&POSITION));
    let position = position.map(|bytes| LogPosition::decode(&bytes));
    position.transpose().map_err(fail)
}

/// Appends an entry behind `last` and flushes it.
pub fn goes_on(log: &CommitLog, last: Option<LogId>) -> Result<(), StoreError> {
    let entry = NewEntry {
        id: LogId {
            term: last.map_or(1, |last| last.term + 1),
            node: 0,
            index: last.map_or(0, |last| last.index + 1),
        },
        kind: EntryKind::Normal,
        count: 1,
        payload: Bytes::from_static(b"after the crash"),
    };
    log.append(vec![entry], Box::new(|_| {}))?;
    log.flush()
}
