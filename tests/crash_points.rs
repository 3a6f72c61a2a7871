//! Power cuts at every point: a workload runs on a disk that writes down each change it is asked
//! for; then, for every prefix of these changes, the disks that a crash there may leave are made,
//! and the log is opened on each of them. What must hold is in `crash_points/verdict.rs`.
//!
//! `RAFTMQ_CRASH_CHANGES` sets the number of changes, `RAFTMQ_CRASH_SEED` the workload.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test program: whatever is not as expected ends it"
)]

#[path = "crash_points/history.rs"]
mod history;
#[path = "crash_points/verdict.rs"]
mod verdict;
#[path = "crash_points/workload.rs"]
mod workload;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use raftmq_store::FlushPolicy;
use raftmq_tests::sim::disk::Change;
use raftmq_tests::sim::image::{Crash, Standing, sectors};

use history::History;
use workload::{Recording, record};

/// Splits of one torn write that are looked at; a write of more sectors is split at some of them.
const SPLITS_MAX: usize = 4;
/// Disks that hold a random part of what was not durable, for each point.
const RANDOM_DISKS: u64 = 2;
const THREADS: usize = 2;
/// Every so many points the process dies first and the power goes right after the next start.
const SECOND_CRASH_EVERY: usize = 5;

/// How many disks were made and opened.
#[derive(Debug, Default)]
struct Counters {
    whole: AtomicU64,
    torn: AtomicU64,
    random: AtomicU64,
    second: AtomicU64,
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
    let policy = FlushPolicy::Async {
        interval: Duration::from_millis(2),
    };
    run("ASYNC_FLUSH", &record(policy, seed, changes));
}

/// Checks every point of a recording.
fn run(name: &str, recording: &Recording) {
    let counters = Counters::default();
    thread::scope(|scope| {
        for part in 0..THREADS {
            let counters = &counters;
            scope.spawn(move || check_part(recording, part, counters));
        }
    });
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let History { entries, .. } = &recording.history;
    println!(
        "{name}: {} changes, {} entries; {} crashes that leave all or nothing, {} torn writes, {} that \
         leave a part, {} power cuts after a start: all recovered",
        recording.changes.len(),
        entries.len(),
        count(&counters.whole),
        count(&counters.torn),
        count(&counters.random),
        count(&counters.second),
    );
}

/// Every thread goes through all changes and looks at its share of the points.
fn check_part(recording: &Recording, part: usize, counters: &Counters) {
    let mut standing = Standing::default();
    for (number, change) in recording.changes.iter().enumerate() {
        standing.apply(change);
        if number % THREADS != part {
            continue;
        }
        for (crash, counter) in crashes(number, change, counters) {
            let disk = standing.after(crash, change);
            if let Err(problem) = verdict::check(&disk, recording, number + 1, crash) {
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

/// The crashes that are looked at after a change.
fn crashes<'a>(
    number: usize,
    change: &Change,
    counters: &'a Counters,
) -> Vec<(Crash, &'a AtomicU64)> {
    let mut found = vec![
        (Crash::Kept, &counters.whole),
        (Crash::Lost, &counters.whole),
    ];
    if let Change::Write(_, offset, bytes) = change {
        let sectors = sectors(*offset, bytes.len());
        let step = sectors.div_ceil(SPLITS_MAX).max(1);
        for at in (1..sectors).step_by(step) {
            found.push((Crash::Torn { at, end: false }, &counters.torn));
            found.push((Crash::Torn { at, end: true }, &counters.torn));
        }
    }
    for seed in 0..RANDOM_DISKS {
        let seed = number as u64 * RANDOM_DISKS + seed;
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
