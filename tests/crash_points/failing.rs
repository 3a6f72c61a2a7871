//! Disks that fail while the store works: nothing is acknowledged any more then, and what had been
//! is there after a start on a disk that works again.

use raftmq_store::{FlushPolicy, StoreError};
use raftmq_tests::sim::disk::{Change, SimDisk};
use raftmq_tests::sim::faults::{Operation, Rule};
use raftmq_tests::sim::image::{Crash, Standing};
use raftmq_tests::sim::random::Random;

use super::verdict;
use super::workload::{Recording, Workload, config};

/// Things done before and after the disk begins to fail.
const STEPS_MAX: u64 = 80;
/// Disks that hold a random part of what was not durable.
const RANDOM_DISKS: u64 = 3;

/// What happened in one run.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Operations of the disk that failed.
    pub failures: u64,
    /// Whether it ended the log.
    pub fatal: bool,
    /// Disks that were opened afterwards.
    pub disks: u64,
}

/// A workload on a disk that fails as the seed decides.
pub fn run(policy: FlushPolicy, seed: u64) -> Result<Outcome, String> {
    let disk = SimDisk::recording();
    let mut random = Random::new(seed);
    let begun = Workload::begin(disk.clone(), policy, random.number());
    let mut workload = begun.map_err(|error| error.to_string())?;
    for _ in 0..random.below(STEPS_MAX) {
        workload.step().map_err(|error| error.to_string())?;
    }
    let operation = break_disk(&disk, &mut random);
    let mut died = None;
    for _ in 0..STEPS_MAX {
        if let Err(error) = workload.step() {
            died = Some(error);
            break;
        }
    }
    // A read that failed changed nothing: the log may go on, though the broker does not.
    if let Some(error) = died.as_ref().filter(|_| operation != Some(Operation::Read)) {
        check_end(&workload, error)?;
    }
    let outcome = Outcome {
        failures: disk.failures(),
        fatal: died.is_some(),
        disks: 0,
    };
    let recording = workload.end();
    let disks = recover(&recording, seed)?;
    Ok(Outcome { disks, ..outcome })
}

/// What fails from now on; `None` when it is space.
fn break_disk(disk: &SimDisk, random: &mut Random) -> Option<Operation> {
    let operation = match random.below(7) {
        0 => Operation::Read,
        1 | 2 => Operation::Write,
        3..=5 => Operation::Sync,
        _ => {
            disk.set_quota(Some(disk.used_bytes() + random.below(6000)));
            return None;
        }
    };
    let path = ["", "commitlog", "vote", "000", "spare", "checkpoint"];
    disk.fail(Rule {
        operation,
        path: path[random.below(path.len() as u64) as usize].to_owned(),
        after: random.below(20),
        times: 1 + random.below(2) * u64::from(u32::MAX),
    });
    Some(operation)
}

/// After an error of a write or a sync the log takes nothing more.
fn check_end(workload: &Workload, error: &StoreError) -> Result<(), String> {
    let (Some(log), StoreError::Io { .. }) = (workload.log(), error) else {
        return Ok(());
    };
    match verdict::goes_on(log, log.last_id()) {
        Err(_) => Ok(()),
        Ok(()) => Err(format!("it acknowledged an entry after: {error}")),
    }
}

/// Starts on every disk that the failure and a crash may leave.
fn recover(recording: &Recording, seed: u64) -> Result<u64, String> {
    let mut standing = Standing::default();
    for change in &recording.changes {
        standing.apply(change);
    }
    let at = recording.changes.len();
    let nothing = Change::SyncDir(std::path::PathBuf::new());
    let last = recording.changes.last().unwrap_or(&nothing);
    let some = (0..RANDOM_DISKS).map(|number| Crash::Some(seed * RANDOM_DISKS + number));
    let crashes: Vec<Crash> = [Crash::Kept, Crash::Lost].into_iter().chain(some).collect();
    for crash in &crashes {
        let disk = standing.after(*crash, last);
        full_disk_opens(&disk, recording)
            .and_then(|()| verdict::check(&disk, recording, at, *crash).map(drop))
            .map_err(|problem| format!("{crash:?}: {problem}"))?;
    }
    verdict::check_second(&standing, recording, last)
        .map_err(|problem| format!("a power cut after the next start: {problem}"))?;
    Ok(crashes.len() as u64 + 1)
}

/// A disk without a free byte opens all the same, and takes votes.
fn full_disk_opens(left: &SimDisk, recording: &Recording) -> Result<(), String> {
    let disk = SimDisk::of_files(left.files());
    disk.set_quota(Some(disk.used_bytes()));
    let opened =
        raftmq_store::CommitLog::open(std::sync::Arc::new(disk), config(recording.policy), None);
    let (log, ..) = opened.map_err(|error| format!("a full disk does not open: {error}"))?;
    log.save_vote(b"a vote on a full disk")
        .map_err(|error| format!("a full disk takes no vote: {error}"))
}
