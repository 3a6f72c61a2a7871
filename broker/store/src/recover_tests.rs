//! Properties of opening a log after crashes, torn writes and damage.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::log_tests::{DIR, append_flushed, config, entry, open};
use crate::test_disk::MemoryDisk;
use crate::*;

fn segment(base: u64) -> PathBuf {
    Path::new(DIR).join(format!("{base:020}"))
}

/// Content of all files, to see that a refused open changes nothing.
fn everything(disk: &MemoryDisk) -> Vec<(String, Vec<u8>)> {
    let names = disk.list(Path::new(DIR)).unwrap();
    names
        .into_iter()
        .map(|n| (n.clone(), disk.content(&Path::new(DIR).join(n))))
        .collect()
}

#[test]
fn a_batch_torn_at_any_byte_is_cut_back_to_whole_entries() {
    let disk = MemoryDisk::default();
    let (log, ..) = open(&disk, None).unwrap();
    append_flushed(&log, 1, 3, 20);
    let before = log.max_physical();
    let lengths = [0u64, 7, 30];
    // Written without being acknowledged: what follows was in flight at the crash.
    let synced = disk.fork();
    let mut ends = vec![before];
    for (index, length) in (3..).zip(lengths) {
        append_flushed(&log, 1, 1, length as usize);
        ends.push(log.max_physical());
        assert_eq!(log.last_id().unwrap().index, index);
    }
    let full = disk.content(&segment(0));
    for to in before as usize..=full.len() {
        for zeros_behind in [0, 100] {
            let torn = synced.fork();
            torn.edit(&segment(0), |bytes| {
                *bytes = full[..to].to_vec();
                bytes.resize(to + zeros_behind, 0);
            });
            let (log, .., report) = open(&torn, None).unwrap();
            let whole = *ends.iter().rfind(|end| **end as usize <= to).unwrap();
            assert_eq!(log.max_physical(), whole, "torn at {to}");
            assert_eq!(
                report.cut.is_some(),
                whole != to as u64 && { full[whole as usize..to].iter().any(|byte| *byte != 0) }
            );
            // And the log goes on from there.
            append_flushed(&log, 2, 2, 50);
            drop(log);
            torn.crash();
            let next = open(&torn, None).unwrap().0.last_id().unwrap().index + 1;
            assert_eq!(
                next,
                3 + ends.iter().position(|end| *end == whole).unwrap() as u64 + 2
            );
        }
    }
}

#[test]
fn a_batch_with_a_lost_middle_is_cut_where_it_was_lost() {
    let disk = MemoryDisk::default();
    let (log, ..) = open(&disk, None).unwrap();
    append_flushed(&log, 1, 2, 20);
    let synced = disk.fork();
    let cut_at = log.max_physical();
    append_flushed(&log, 1, 5, 20);
    let full = disk.content(&segment(0));
    synced.edit(&segment(0), |bytes| {
        *bytes = full.clone();
        bytes[cut_at as usize..cut_at as usize + 84].fill(0);
    });
    let (log, .., report) = open(&synced, None).unwrap();
    assert_eq!(log.max_physical(), cut_at);
    assert_eq!(report.cut.unwrap().physical_offset, cut_at);
}

#[test]
fn any_damage_below_the_synced_watermark_is_refused_without_a_change() {
    let disk = MemoryDisk::default();
    let (log, mut flusher, ..) = open(&disk, None).unwrap();
    append_flushed(&log, 1, 4, 30);
    append_flushed(&log, 2, 3, 2000);
    log.close();
    while flusher.run_once() != FlushOutcome::Stopped {}
    let bases = log.segment_bases();
    assert!(bases.len() >= 2);
    for base in bases {
        let len = disk.content(&segment(base)).len();
        for at in (0..len).step_by(11) {
            let damaged = disk.fork();
            damaged.edit(&segment(base), |bytes| bytes[at] ^= 0x10);
            let before = everything(&damaged);
            let refused = open(&damaged, None).map(|_| ()).unwrap_err();
            assert!(
                matches!(refused, StoreError::Corrupt { .. }),
                "{base}+{at}: {refused}"
            );
            assert_eq!(everything(&damaged), before);
        }
        for cut in [0, 1, len - 1] {
            let damaged = disk.fork();
            damaged.edit(&segment(base), |bytes| bytes.truncate(cut));
            let refused = open(&damaged, None).map(|_| ()).unwrap_err();
            assert!(
                matches!(refused, StoreError::Corrupt { .. }),
                "{base} cut at {cut}"
            );
        }
        let damaged = disk.fork();
        damaged.remove(&segment(base)).unwrap();
        let refused = open(&damaged, None).map(|_| ()).unwrap_err();
        assert!(
            matches!(refused, StoreError::Corrupt { .. }),
            "{base} missing"
        );
    }
}

#[test]
fn damage_with_a_later_flush_behind_it_is_corruption_even_without_a_watermark() {
    let disk = MemoryDisk::default();
    let big = LogConfig {
        segment_bytes: 1 << 20,
        ..config()
    };
    let (log, ..) = CommitLog::open(Arc::new(disk.clone()), big.clone(), None).unwrap();
    append_flushed(&log, 1, 1, 100);
    let vote = disk.content(&Path::new(DIR).join("vote"));
    append_flushed(&log, 1, 1, 100);
    append_flushed(&log, 1, 1, 70_000);
    append_flushed(&log, 1, 1, 100);
    for payload in [false, true] {
        let damaged = disk.fork();
        // The watermark of a while ago, as a power loss leaves it.
        damaged.edit(&Path::new(DIR).join("vote"), |bytes| *bytes = vote.clone());
        damaged.edit(&segment(0), |bytes| {
            bytes[164 + if payload { 80 } else { 9 }] ^= 1
        });
        let opened = CommitLog::open(Arc::new(damaged), big.clone(), None);
        assert!(matches!(
            opened,
            Err(StoreError::Corrupt {
                physical_offset: 164,
                ..
            })
        ));
    }
}

#[test]
fn a_stale_entry_ends_the_log() {
    let disk = MemoryDisk::default();
    let (log, ..) = open(&disk, None).unwrap();
    append_flushed(&log, 1, 3, 20);
    let end = log.max_physical() as usize;
    let old = disk.content(&segment(0));
    disk.edit(&segment(0), |bytes| {
        bytes.truncate(end);
        bytes.extend_from_slice(&old[84..168]);
    });
    drop(log);
    let (log, .., report) = {
        let forked = disk.fork();
        open(&forked, None).unwrap()
    };
    assert_eq!(log.max_physical(), end as u64);
    assert!(report.cut.unwrap().reason.contains("another address"));
}

#[test]
fn an_entry_that_followed_another_one_ends_the_log() {
    // Two logs of the same shape: what the second overwrote an end of the first with.
    let entries = [7, 8].map(|byte| {
        let disk = MemoryDisk::default();
        let (log, ..) = open(&disk, None).unwrap();
        let append = |index, payload: &[u8]| {
            let done = Box::new(|done: std::io::Result<()>| done.unwrap());
            log.append(vec![entry(1, index, payload)], done).unwrap();
            log.flush().unwrap();
        };
        append(0, &[byte; 20]);
        let synced = disk.fork();
        let first_end = log.max_physical() as usize;
        append(1, &[1; 20]);
        (synced, first_end, disk.content(&segment(0)))
    });
    let [(disk, first_end, _), (.., other)] = entries;
    // A crash left the first entry of one and the second of the other.
    disk.edit(&segment(0), |bytes| {
        bytes.truncate(first_end);
        bytes.extend_from_slice(&other[first_end..]);
    });
    let (log, .., report) = open(&disk, None).unwrap();
    assert_eq!(log.last_id().unwrap().index, 0);
    assert_eq!(report.cut.unwrap().physical_offset, first_end as u64);
}

#[test]
fn opening_from_a_position_equals_a_full_scan() {
    let disk = MemoryDisk::default();
    let (log, ..) = open(&disk, None).unwrap();
    for term in 1..20 {
        append_flushed(&log, term, term % 4 + 1, (term as usize * 331) % 1500);
    }
    log.purge_upto(log.entry_id(9).unwrap().unwrap()).unwrap();
    let last = log.last_id().unwrap().index;
    let (whole, .., full_report) = open(&disk.fork(), None).unwrap();
    for index in 9..=last {
        let position = log.position_at(index).unwrap();
        let decoded = LogPosition::decode(&position.encode()).unwrap();
        assert_eq!(decoded, position);
        let (part, .., report) = open(&disk.fork(), Some(&position)).unwrap();
        assert_eq!(part.term_starts(), whole.term_starts());
        assert_eq!(part.segment_bases(), whole.segment_bases());
        assert_eq!(report.last_id, full_report.last_id);
        assert!(report.scanned_bytes == log.max_physical() - position.end_physical);
        for from in 10..=last {
            let read = part.read(from, last + 1, 3000).unwrap();
            assert_eq!(read, whole.read(from, last + 1, 3000).unwrap());
            assert_eq!(
                part.position_at(from).unwrap(),
                whole.position_at(from).unwrap()
            );
        }
        append_flushed(&part, 50, 3, 900);
        assert_eq!(
            part.read(10, last + 4, u64::MAX).unwrap().len() as u64,
            last + 4 - 10
        );
    }
}

#[test]
fn a_log_that_ends_before_its_checkpoint_is_refused() {
    let disk = MemoryDisk::default();
    let (log, ..) = open(&disk, None).unwrap();
    append_flushed(&log, 1, 3, 20);
    let old = disk.fork();
    append_flushed(&log, 1, 3, 20);
    let position = log.position_at(5).unwrap();
    let refused = open(&old, Some(&position)).map(|_| ()).unwrap_err();
    assert!(matches!(refused, StoreError::Corrupt { .. }), "{refused}");
}

#[test]
fn a_sidecar_is_used_and_a_damaged_one_does_no_harm() {
    let disk = MemoryDisk::default();
    let big = LogConfig {
        segment_bytes: 1 << 20,
        tail_bytes: 0,
        ..config()
    };
    let (log, _, mut preallocator, _) =
        CommitLog::open(Arc::new(disk.clone()), big.clone(), None).unwrap();
    append_flushed(&log, 1, 1000, 2000);
    preallocator.run_ready();
    let sidecar = Path::new(DIR).join("00000000000000000000.sparse");
    assert!(disk.exists(&sidecar).unwrap());
    let position = log.position_at(999).unwrap();
    for damage in [false, true] {
        let copy = disk.fork();
        if damage {
            copy.edit(&sidecar, |bytes| bytes[30] ^= 1);
        }
        let (log, ..) = CommitLog::open(Arc::new(copy), big.clone(), Some(&position)).unwrap();
        for index in [0, 1, 300, 506, 507, 508, 999] {
            assert_eq!(log.read(index, index + 1, 0).unwrap()[0].id.index, index);
        }
    }
}

#[test]
fn a_folder_is_opened_once() {
    let disk = MemoryDisk::default();
    let opened = open(&disk, None).unwrap();
    assert!(matches!(open(&disk, None), Err(StoreError::Locked(_))));
    drop(opened);
    open(&disk, None).unwrap();
}

/// Runs `change` with the power lost after every possible number of disk changes, and checks that
/// the log opens and holds what `verify` accepts.
fn at_every_crash_point(
    prepared: &MemoryDisk,
    change: impl Fn(&CommitLog) -> Result<(), StoreError>,
    verify: impl Fn(&CommitLog, bool),
) {
    for changes in 0.. {
        for pages_survive in [false, true] {
            let disk = prepared.fork();
            let (log, ..) = open(&disk, None).unwrap();
            disk.stop_after(Some(changes));
            let finished = change(&log).is_ok();
            drop(log);
            disk.stop_after(None);
            if !pages_survive {
                disk.crash();
            }
            let (log, ..) = open(&disk, None)
                .unwrap_or_else(|error| panic!("power lost after {changes} changes: {error}"));
            verify(&log, finished);
            append_flushed(&log, 90, 2, 100);
            if finished && pages_survive {
                return;
            }
        }
    }
}

fn prepared() -> MemoryDisk {
    let disk = MemoryDisk::default();
    let (log, ..) = open(&disk, None).unwrap();
    append_flushed(&log, 1, 20, 1000);
    assert!(log.segment_bases().len() >= 4);
    disk.fork()
}

#[test]
fn a_truncation_interrupted_anywhere_leaves_a_prefix() {
    for keep in [None, Some(0), Some(3), Some(9), Some(18)] {
        let change = |log: &CommitLog| log.truncate_after(keep);
        at_every_crash_point(&prepared(), change, |log, finished| {
            let last = log.last_id().map(|id| id.index);
            assert!(last >= keep && last <= Some(19));
            assert!(!finished || last == keep, "{last:?}");
            let next = last.map_or(0, |last| last + 1);
            assert_eq!(log.read(0, next, u64::MAX).unwrap().len() as u64, next);
        });
    }
}

#[test]
fn a_purge_interrupted_anywhere_keeps_everything_after_it() {
    for upto in [0, 3, 11, 19] {
        let change = |log: &CommitLog| log.purge_upto(log.entry_id(upto).unwrap().unwrap());
        at_every_crash_point(&prepared(), change, |log, finished| {
            let purged = log.purged_id().map(|id| id.index);
            assert!(purged == Some(upto) || (!finished && purged.is_none()));
            let first = log.first_index();
            assert_eq!(
                log.read(first, 20, u64::MAX).unwrap().len() as u64,
                20 - first
            );
        });
    }
}

#[test]
fn a_reset_interrupted_anywhere_is_not_seen_or_completed() {
    for physical in [5_000, 1_000_000] {
        let purged = LogId {
            term: 9,
            node: 1,
            index: 500,
        };
        let change = |log: &CommitLog| log.reset(purged, physical, 7);
        at_every_crash_point(&prepared(), change, |log, finished| {
            let last = log.last_id().unwrap();
            assert!(last == purged || (!finished && last.index == 19));
            if last == purged {
                assert_eq!(
                    (log.min_physical(), log.max_physical()),
                    (physical, physical)
                );
                assert_eq!(log.position_at(500).unwrap().crc, 7);
            }
        });
    }
}

#[test]
fn an_append_interrupted_anywhere_keeps_what_was_acknowledged() {
    let change = |log: &CommitLog| {
        let entries = (20..26).map(|index| entry(2, index, &[5; 900])).collect();
        log.append(entries, Box::new(|_| ()))?;
        log.flush()
    };
    at_every_crash_point(&prepared(), change, |log, finished| {
        let last = log.last_id().unwrap().index;
        assert!((19..=25).contains(&last) && (!finished || last == 25));
    });
}

thread_local! {
    static PASSED: std::cell::Cell<std::time::Duration> = const { std::cell::Cell::new(std::time::Duration::ZERO) };
}

/// The clock of a test, which moves it.
fn now() -> std::time::Instant {
    static BEGIN: std::sync::LazyLock<std::time::Instant> =
        std::sync::LazyLock::new(std::time::Instant::now);
    *BEGIN + PASSED.get()
}

#[test]
fn after_a_power_cut_damage_to_what_was_written_over_a_second_ago_is_not_taken_for_a_torn_write() {
    let disk = MemoryDisk::default();
    let config = LogConfig { now, ..config() };
    let (log, ..) = CommitLog::open(Arc::new(disk.clone()), config, None).unwrap();
    let mut ends = Vec::new();
    for milliseconds in [0, 400, 1100, 300] {
        PASSED.set(PASSED.get() + std::time::Duration::from_millis(milliseconds));
        append_flushed(&log, 1, 1, 100);
        ends.push(log.max_physical());
    }
    drop(log);
    disk.crash();
    for (at, end) in ends.iter().enumerate() {
        let damaged = disk.fork();
        damaged.edit(&segment(0), |bytes| bytes[*end as usize - 1] ^= 1);
        let opened = open(&damaged, None);
        assert_eq!(opened.is_err(), at < 3, "entry {at}");
    }
}

#[test]
fn a_committed_hint_counts_only_for_the_entry_that_stands_there() {
    let purged = entry(1, 1, &[]).id;
    for (hint, expected) in [
        ((1, 4), true),
        ((2, 4), false),
        ((2, 6), true),
        ((1, 6), false),
    ] {
        let disk = MemoryDisk::default();
        let (log, mut flusher, preallocator, _) = open(&disk, None).unwrap();
        append_flushed(&log, 1, 5, 100);
        append_flushed(&log, 2, 5, 100);
        log.purge_upto(purged).unwrap();
        let hint = entry(hint.0, hint.1, &[]).id;
        log.save_committed(hint).unwrap();
        log.close();
        while flusher.run_once() != FlushOutcome::Stopped {}
        drop((log, flusher, preallocator));
        let (log, ..) = open(&disk, None).unwrap();
        assert_eq!(log.committed(), expected.then_some(hint), "{hint}");
    }
}
