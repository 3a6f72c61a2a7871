//! Power cuts at every point: a workload runs on a disk that writes down each change it is asked
//! for; then, for every prefix of these changes, the disks that a crash there may leave are made,
//! and the log is opened on each of them. What must hold is in `crash_points/verdict.rs`.
//!
//! Then bits turn over on these disks (`crash_points/damage.rs`), which mend from a peer with power cuts in
//! the middle (`crash_points/mending.rs`), and disks fail while the store works
//! (`crash_points/failing.rs`).
//!
//! `RAFTMQ_CRASH_CHANGES` sets the number of changes, `RAFTMQ_CRASH_SEED` the workload,
//! `RAFTMQ_CRASH_FAILURES` the number of failing disks. With `RAFTMQ_CRASH_ALL=1` a torn write is torn
//! at every sector, and more disks with a part of it are made.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test program: whatever is not as expected ends it"
)]

#[path = "crash_points/damage.rs"]
mod damage;
#[path = "crash_points/failing.rs"]
mod failing;
#[path = "crash_points/history.rs"]
mod history;
#[path = "crash_points/mending.rs"]
mod mending;
#[path = "crash_points/verdict.rs"]
mod verdict;
#[path = "crash_points/workload.rs"]
mod workload;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use raftmq_store::{CommitLog, FlushPolicy};
use raftmq_tests::sim::disk::{Change, SimDisk};
use raftmq_tests::sim::faults::{Operation, Rule};
use raftmq_tests::sim::image::{Crash, Standing, sectors};
use raftmq_tests::sim::random::Random;

use damage::Outcome;
use history::History;
use workload::{Recording, record};

const ASYNC: FlushPolicy = FlushPolicy::Async {
    interval: Duration::from_millis(50),
};
const THREADS: usize = 2;
/// Every so many points the process dies first and the power goes right after the next start.
const SECOND_CRASH_EVERY: usize = 5;
/// Every so many points bits turn over on the disk that is left.
const DAMAGE_EVERY: usize = 4;

/// How closely a recording is looked at.
#[derive(Debug, Clone, Copy)]
struct Depth {
    /// Splits of one torn write; a write of more sectors is split at some of them.
    splits_max: usize,
    /// Disks that hold a random part of what was not durable, for each point.
    random_disks: u64,
}

impl Depth {
    fn chosen() -> Self {
        let (splits_max, random_disks) = match setting("RAFTMQ_CRASH_ALL", 0) {
            0 => (4, 2),
            _ => (usize::MAX, 8),
        };
        Self {
            splits_max,
            random_disks,
        }
    }
}

/// How many disks were made and opened.
#[derive(Debug, Default)]
struct Counters {
    whole: AtomicU64,
    torn: AtomicU64,
    random: AtomicU64,
    second: AtomicU64,
    refused: AtomicU64,
    harmless: AtomicU64,
}

impl Counters {
    fn damaged(&self, outcome: Option<Outcome>) {
        let counter = match outcome {
            Some(Outcome::Refused) => &self.refused,
            Some(Outcome::Harmless) => &self.harmless,
            None => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn setting(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn a_crash_at_any_point_loses_nothing_that_was_acknowledged() {
    let changes = setting("RAFTMQ_CRASH_CHANGES", 10_000) as usize;
    let seed = setting("RAFTMQ_CRASH_SEED", 1);
    run("SYNC_FLUSH", &record(FlushPolicy::Sync, seed, changes));
}

#[test]
fn a_crash_with_asynchronous_flush_leaves_a_prefix_of_what_was_written() {
    let changes = setting("RAFTMQ_CRASH_CHANGES", 10_000) as usize / 5;
    let seed = setting("RAFTMQ_CRASH_SEED", 1);
    run("ASYNC_FLUSH", &record(ASYNC, seed, changes));
}

#[test]
fn a_disk_that_fails_ends_the_log_and_loses_nothing_that_was_acknowledged() {
    let seeds = setting("RAFTMQ_CRASH_FAILURES", 1500);
    let first = setting("RAFTMQ_CRASH_SEED", 1) << 32;
    let (mut failures, mut fatal, mut silent, mut disks) = (0, 0, 0, 0);
    for seed in first..first + seeds {
        let policy = match seed % 4 {
            0 => ASYNC,
            _ => FlushPolicy::Sync,
        };
        let outcome = failing::run(policy, seed);
        let outcome = outcome.unwrap_or_else(|problem| panic!("seed {seed}: {problem}"));
        failures += outcome.failures;
        fatal += u64::from(outcome.fatal);
        silent += u64::from(outcome.failures == 0);
        disks += outcome.disks;
    }
    println!(
        "failing disks: {seeds} runs with {failures} failed operations, {fatal} of them fatal, {silent} \
         without any; {disks} starts afterwards: all correct"
    );
    assert!(fatal > seeds / 4, "most failures matter");
}

#[test]
fn a_vote_that_a_failed_sync_left_in_memory_is_saved_by_the_start_that_goes_by_it() {
    let open = |disk: &SimDisk| {
        let disk = Arc::new(disk.clone());
        CommitLog::open(disk, workload::config(FlushPolicy::Sync), None).unwrap()
    };
    let disk = SimDisk::recording();
    let (log, ..) = open(&disk);
    log.save_vote(b"old").unwrap();
    disk.fail(Rule {
        path: "vote".to_owned(),
        ..Rule::next(Operation::Sync)
    });
    log.save_vote(b"new").unwrap_err();
    let mut standing = Standing::default();
    for change in disk.changes() {
        standing.apply(&change);
    }
    let (disk, mut standing) = standing.resume();
    let found = open(&disk).0.read_vote();
    for change in disk.changes() {
        standing.apply(&change);
    }
    let left = standing.after(Crash::Lost, &Change::SyncDir("/".into()));
    assert_eq!(
        found,
        Some(b"new".to_vec()),
        "Linux takes the pages for written"
    );
    assert_eq!(open(&left).0.read_vote(), found);
}

#[test]
fn a_recording_is_the_same_each_time() {
    let record = || record(ASYNC, 7, 1500).changes;
    assert!(record() == record());
}

/// Checks every point of a recording.
fn run(name: &str, recording: &Recording) {
    let (counters, depth) = (Counters::default(), Depth::chosen());
    thread::scope(|scope| {
        for part in 0..THREADS {
            let counters = &counters;
            scope.spawn(move || check_part(recording, part, depth, counters));
        }
    });
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let History { entries, .. } = &recording.history;
    println!(
        "{name}: {} changes, {} entries; {} crashes that leave all or nothing, {} torn writes, {} that \
         leave a part, {} power cuts after a start: all recovered; {} damaged logs refused, {} opened \
         without harm: none cut in silence",
        recording.changes.len(),
        entries.len(),
        count(&counters.whole),
        count(&counters.torn),
        count(&counters.random),
        count(&counters.second),
        count(&counters.refused),
        count(&counters.harmless),
    );
}

/// Every thread goes through all changes and looks at its share of the points.
fn check_part(recording: &Recording, part: usize, depth: Depth, counters: &Counters) {
    let mut standing = Standing::default();
    for (number, change) in recording.changes.iter().enumerate() {
        standing.apply(change);
        if number % THREADS != part {
            continue;
        }
        for (crash, counter) in crashes(number, change, depth, counters) {
            if let Err(problem) = check_crash(recording, &standing, number, crash, counters) {
                let kind = describe(change);
                panic!("after change {number} ({kind}), {crash:?}: {problem}");
            }
            counter.fetch_add(1, Ordering::Relaxed);
        }
        if number % SECOND_CRASH_EVERY == 0 {
            if let Err(problem) = verdict::check_second(&standing, recording, change) {
                panic!("a power cut after the start after change {number}: {problem}");
            }
            counters.second.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn check_crash(
    recording: &Recording,
    standing: &Standing,
    number: usize,
    crash: Crash,
    counters: &Counters,
) -> Result<(), String> {
    let (at, change) = (number + 1, &recording.changes[number]);
    let disk = standing.after(crash, change);
    // Both threads together meet every kind of crash this way.
    if number % (DAMAGE_EVERY * THREADS) >= THREADS {
        return verdict::check(&disk, recording, at, crash).map(drop);
    }
    let left = SimDisk::of_files(disk.files());
    let facts = verdict::check(&disk, recording, at, crash)?;
    let mut random = Random::new(number as u64);
    let anywhere = damage::check_anywhere(&left, &facts, recording, at, &mut random)?;
    counters.damaged(anywhere);
    counters.damaged(damage::check_found(&disk, &facts, recording, &mut random)?);
    Ok(())
}

/// The crashes that are looked at after a change.
fn crashes<'a>(
    number: usize,
    change: &Change,
    depth: Depth,
    counters: &'a Counters,
) -> Vec<(Crash, &'a AtomicU64)> {
    let mut found = vec![
        (Crash::Kept, &counters.whole),
        (Crash::Lost, &counters.whole),
    ];
    if let Change::Write(_, offset, bytes) = change {
        let sectors = sectors(*offset, bytes.len());
        let step = sectors.div_ceil(depth.splits_max).max(1);
        for at in (1..sectors).step_by(step) {
            found.push((Crash::Torn { at, end: false }, &counters.torn));
            found.push((Crash::Torn { at, end: true }, &counters.torn));
        }
    }
    for seed in 0..depth.random_disks {
        let seed = number as u64 * depth.random_disks + seed;
        found.push((Crash::Some(seed), &counters.random));
    }
    found
}

fn describe(change: &Change) -> String {
    match change {
        Change::Write(id, offset, bytes) => format!("{} bytes at {offset} of {id}", bytes.len()),
        other => format!("{other:?}"),
    }
}
