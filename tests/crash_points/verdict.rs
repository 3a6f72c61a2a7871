//! What must hold of a disk that a crash has left.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use raftmq_store::checkpoint::CheckpointDir;
use raftmq_store::{
    CommitLog, EntryKind, FlushPolicy, LogId, NewEntry, RecoveryReport, StoredEntry,
};
use raftmq_tests::sim::disk::{Change, SimDisk};
use raftmq_tests::sim::image::{Crash, Standing};

use super::history::Version;
use super::workload::{CHECKPOINT_DIR, Recording, config};

/// What a log says of itself.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    last: Option<LogId>,
    purged: Option<LogId>,
    vote: Option<Vec<u8>>,
    entries: Vec<StoredEntry>,
}

/// Opens the log on a disk that a crash after `at` changes has left; what is wrong, if anything.
pub fn check(disk: &SimDisk, recording: &Recording, at: usize, crash: Crash) -> Result<(), String> {
    let (first, _, report) = open(disk, recording)?;
    check_facts(&first, recording, at, crash, &report)?;
    check_checkpoints(disk, recording, at)?;
    let (again, log, second) = open(disk, recording)?;
    if again != first {
        return Err("a second start finds another log than the first".to_owned());
    }
    if second.cut.is_some() {
        return Err(format!("the second start cuts again: {:?}", second.cut));
    }
    goes_on(&log, &again)?;
    drop(log);
    let (after, _, _) = open(disk, recording)?;
    let next = again.last.map_or(0, |last| last.index + 1);
    if after.last.map(|last| last.index) != Some(next) {
        return Err(format!(
            "an entry appended after the start is gone: {:?}",
            after.last
        ));
    }
    Ok(())
}

/// A process dies and the next one opens the log, which may stand in the page cache only; then the
/// power goes. What the second process found and may have told others must still be there.
pub fn check_second(
    standing: &Standing,
    recording: &Recording,
    last: &Change,
) -> Result<(), String> {
    let (disk, mut standing) = standing.resume();
    let (found, log, _) = open(&disk, recording)?;
    drop(log);
    for change in disk.changes() {
        standing.apply(&change);
    }
    let (after, ..) = open(&standing.after(Crash::Lost, last), recording)?;
    if after != found {
        let (before, now) = (found.last, after.last);
        return Err(format!("the log ended at {before:?} and now at {now:?}"));
    }
    Ok(())
}

/// Opens the log and reads everything in it.
fn open(
    disk: &SimDisk,
    recording: &Recording,
) -> Result<(Facts, Arc<CommitLog>, RecoveryReport), String> {
    let opened = CommitLog::open(Arc::new(disk.clone()), config(recording.policy), None);
    let (log, _, _, report) = opened.map_err(|error| format!("it does not open: {error}"))?;
    let (from, last) = (log.first_index(), log.last_id());
    let mut entries: Vec<StoredEntry> = Vec::new();
    let to = last.map_or(0, |last| last.index + 1);
    if from < to {
        entries = log
            .read(from, to, u64::MAX)
            .map_err(|error| format!("{from}..{to} cannot be read: {error}"))?;
    }
    let facts = Facts {
        last,
        purged: log.purged_id(),
        vote: log.read_vote(),
        entries,
    };
    Ok((facts, log, report))
}

fn check_facts(
    facts: &Facts,
    recording: &Recording,
    at: usize,
    crash: Crash,
    report: &RecoveryReport,
) -> Result<(), String> {
    let history = &recording.history;
    if !history.votes.may_be(facts.vote.as_ref(), at) {
        return Err(format!("the vote is {:?}", facts.vote));
    }
    if !history.purges.may_be(facts.purged.as_ref(), at) {
        return Err(format!("purged up to {:?}", facts.purged));
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
        if !was_written(history.entries.iter(), index, found, at) {
            return Err(format!("entry {index} was never written as it is found"));
        }
    }
    // With asynchronous flush an acknowledgement is no promise that the power may go.
    if recording.policy != FlushPolicy::Sync && crash != Crash::Kept {
        return Ok(());
    }
    let promised = history.entries.iter().filter(|version| {
        version
            .acknowledged_at
            .is_some_and(|acknowledged| acknowledged <= at)
            && version.cut.is_none_or(|cut| !cut.may_be_begun(at))
            && version.id.index >= first
    });
    for version in promised {
        let found = facts.entries.get((version.id.index - first) as usize);
        if found.is_none_or(|found| !is_same(version, found)) {
            return Err(format!(
                "entry {} was acknowledged and is gone ({report:?})",
                version.id
            ));
        }
    }
    Ok(())
}

fn was_written<'a>(
    mut versions: impl Iterator<Item = &'a Version>,
    index: u64,
    found: &StoredEntry,
    at: usize,
) -> bool {
    versions.any(|version| {
        version.id.index == index
            && version.appended_at <= at
            && version.cut.is_none_or(|cut| !cut.is_done(at))
            && is_same(version, found)
    })
}

fn is_same(version: &Version, found: &StoredEntry) -> bool {
    version.id == found.id && version.payload == found.payload
}

/// The newest checkpoint that was written is there, whole.
fn check_checkpoints(disk: &SimDisk, recording: &Recording, at: usize) -> Result<(), String> {
    let folder = CheckpointDir::open(Arc::new(disk.clone()), Path::new(CHECKPOINT_DIR));
    let folder = folder.map_err(|error| format!("checkpoints: {error}"))?;
    let newest = folder
        .newest_valid()
        .map_err(|error| format!("checkpoints: {error}"))?;
    if let Some(skipped) = newest.skipped.first() {
        return Err(format!("checkpoint {} is damaged", skipped.index));
    }
    let index = newest.checkpoint.map(|checkpoint| checkpoint.id.index);
    if !recording.history.checkpoints.may_be(index.as_ref(), at) {
        return Err(format!("the newest checkpoint is {index:?}"));
    }
    Ok(())
}

/// The log takes an entry and says when it is on disk.
fn goes_on(log: &CommitLog, facts: &Facts) -> Result<(), String> {
    let id = LogId {
        term: facts.last.map_or(1, |last| last.term + 1),
        node: 0,
        index: facts.last.map_or(0, |last| last.index + 1),
    };
    let entry = NewEntry {
        id,
        kind: EntryKind::Normal,
        count: 1,
        payload: Bytes::from_static(b"after the crash"),
    };
    log.append(vec![entry], Box::new(|_| {}))
        .and_then(|()| log.flush())
        .map_err(|error| format!("it takes no entry after the start: {error}"))
}
