//! Properties of the index that the comparison with the model does not show.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;

use super::manifest::{Manifest, QueueRow};
use super::merge::{RUNS_PER_MERGE, pick};
use super::run::run_name;
use super::{IndexUnit, QueueIndex, QueueNo};
use crate::disk::{Disk, RealDisk};
use crate::error::StoreError;
use crate::test_disk::MemoryDisk;

fn unit(number: u64) -> IndexUnit {
    IndexUnit {
        physical_offset: number * 100,
        size: 100,
        tags_code: -(number as i64),
        store_timestamp_ms: number,
    }
}

fn open(disk: &MemoryDisk, manifest: Option<&[u8]>) -> Result<QueueIndex, StoreError> {
    QueueIndex::open(Arc::new(disk.clone()), Path::new("/index"), manifest)
}

fn append(index: &QueueIndex, queue: QueueNo, units: u64) {
    let (_, max) = index.bounds(queue);
    let batch: Vec<_> = (max..max + units)
        .map(|offset| (queue, offset, unit(offset)))
        .collect();
    index.append(&batch);
}

fn checkpoint(index: &QueueIndex) -> Vec<u8> {
    let frozen = index.freeze();
    index.write_frozen(&frozen).unwrap().unwrap()
}

fn run_path(run_id: u64) -> PathBuf {
    Path::new("/index").join(run_name(run_id))
}

fn is_corrupt<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Corrupt { .. }))
}

/// The format is a promise to stored files: this text changes only with the version number.
#[test]
fn the_bytes_of_a_run_file_are_frozen() {
    let disk = MemoryDisk::default();
    let index = open(&disk, None).unwrap();
    index.begin_queue(0x0102, 0x0a0b);
    let unit = IndexUnit {
        physical_offset: 0x1122_3344_5566,
        size: 0x77,
        tags_code: -2,
        store_timestamp_ms: 0x0199_aabb_ccdd,
    };
    index.append(&[(0x0102, 0x0a0b, unit)]);
    checkpoint(&index);
    let bytes = disk.content(&run_path(0));
    let hex = |range: std::ops::Range<usize>| -> String {
        bytes[range]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    };
    assert_eq!(bytes.len(), 4096 + 4096 + 16);
    assert_eq!(
        hex(0..24),
        "524d51580100000000000000000000000000000001000000"
    );
    assert_eq!(hex(24..40), "01000000000000006655443322110000");
    assert_eq!(hex(44..60), "00".repeat(16));
    assert_eq!(hex(64..4096), "00".repeat(4032));
    assert_eq!(
        hex(4096..4124),
        "665544332211000077000000feffffffffffffffddccbbaa99010000"
    );
    assert_eq!(hex(4124..8188), "00".repeat(4064));
    assert_eq!(hex(8192..8208), "02010000010000000b0a000000000000");
    let crcs = [hex(40..44), hex(60..64), hex(8188..8192)];
    assert_eq!(crcs, ["a6f92ff2", "5a175a36", "7fd2e107"]);
}

#[test]
fn every_flipped_byte_of_a_run_file_is_noticed() {
    let disk = MemoryDisk::default();
    let index = open(&disk, None).unwrap();
    append(&index, 3, 200);
    append(&index, 9, 10);
    let manifest = checkpoint(&index);
    let length = disk.content(&run_path(0)).len();
    // The header page is zeros after its 64 bytes; every byte elsewhere counts.
    for at in (0..64).chain((4096..length).step_by(7)) {
        disk.edit(&run_path(0), |bytes| bytes[at] ^= 0x20);
        let damaged = open(&disk, Some(&manifest));
        let noticed = match &damaged {
            Ok(index) => is_corrupt(&index.read(3, 0, 1000)) || is_corrupt(&index.read(9, 0, 1000)),
            Err(_) => is_corrupt(&damaged),
        };
        assert!(noticed, "byte {at}");
        disk.edit(&run_path(0), |bytes| bytes[at] ^= 0x20);
    }
    assert_eq!(
        open(&disk, Some(&manifest))
            .unwrap()
            .read(3, 0, 1000)
            .unwrap()
            .len(),
        200
    );
}

#[test]
fn damage_does_not_spread_to_other_blocks() {
    let disk = MemoryDisk::default();
    let index = open(&disk, None).unwrap();
    append(&index, 1, 1000);
    checkpoint(&index);
    // Block 2 holds the units 292..438.
    disk.edit(&run_path(0), |bytes| bytes[3 * 4096 + 5] ^= 1);
    assert_eq!(index.read(1, 0, 292).unwrap().len(), 292);
    assert!(is_corrupt(&index.read(1, 0, 293)));
    assert!(is_corrupt(&index.read(1, 437, 1)));
    assert_eq!(index.read(1, 438, 1000).unwrap().len(), 562);
    // A search that meets the damage names it as the first unit, whose read then reports it.
    index.set_min_physical(400 * 100);
    let (min, max) = index.bounds(1);
    assert!(is_corrupt(&index.read(1, min, 1)), "min {min}");
    assert_eq!(max, 1000);
}

#[test]
fn a_truncated_or_missing_run_file_fails_the_open() {
    let disk = MemoryDisk::default();
    let index = open(&disk, None).unwrap();
    append(&index, 1, 1000);
    let manifest = checkpoint(&index);
    let whole = disk.content(&run_path(0));
    for length in [0, 10, 4095, 4096, whole.len() - 1] {
        disk.edit(&run_path(0), |bytes| bytes.truncate(length));
        assert!(is_corrupt(&open(&disk, Some(&manifest))), "length {length}");
        disk.edit(&run_path(0), |bytes| *bytes = whole.clone());
    }
    disk.remove(&run_path(0)).unwrap();
    assert!(matches!(
        open(&disk, Some(&manifest)),
        Err(StoreError::Io { .. })
    ));
}

#[test]
fn a_merge_of_a_damaged_run_fails_and_leaves_everything_as_it_was() {
    let disk = MemoryDisk::default();
    let index = open(&disk, None).unwrap();
    for _ in 0..RUNS_PER_MERGE {
        append(&index, 1, 100);
        checkpoint(&index);
    }
    disk.edit(&run_path(3), |bytes| bytes[5000] ^= 1);
    assert!(is_corrupt(&index.merge_step()));
    assert_eq!(index.runs(), RUNS_PER_MERGE);
    assert_eq!(
        disk.list(Path::new("/index")).unwrap().len(),
        RUNS_PER_MERGE
    );
    assert_eq!(index.read(1, 0, 300).unwrap().len(), 300);
}

#[test]
fn replaced_runs_stay_on_disk_until_no_manifest_names_them() {
    let disk = MemoryDisk::default();
    let index = open(&disk, None).unwrap();
    let mut before = Vec::new();
    for _ in 0..RUNS_PER_MERGE {
        append(&index, 1, 100);
        before = checkpoint(&index);
    }
    assert!(index.merge_step().unwrap());
    assert!(!index.merge_step().unwrap());
    assert_eq!(index.runs(), 1);
    assert_eq!(index.retire(&[&before]).unwrap(), 0);
    let fork = disk.fork();
    assert_eq!(
        open(&fork, Some(&before))
            .unwrap()
            .read(1, 0, 1000)
            .unwrap()
            .len(),
        800
    );
    let after = checkpoint(&index);
    assert_eq!(index.retire(&[&before, &after]).unwrap(), 0);
    assert_eq!(index.retire(&[&after]).unwrap(), RUNS_PER_MERGE);
    assert_eq!(disk.list(Path::new("/index")).unwrap().len(), 1);
    assert_eq!(
        open(&disk, Some(&after))
            .unwrap()
            .read(1, 0, 1000)
            .unwrap()
            .len(),
        800
    );
}

#[test]
fn the_number_of_runs_stays_small() {
    let disk = MemoryDisk::default();
    let index = open(&disk, None).unwrap();
    for _ in 0..600 {
        append(&index, 1, 1);
        checkpoint(&index);
        while index.merge_step().unwrap() {}
        assert!(index.runs() <= 4 * (RUNS_PER_MERGE - 1));
    }
    let units = index.read(1, 0, 1000).unwrap();
    assert_eq!(units, (0..600).map(unit).collect::<Vec<_>>());
}

#[test]
fn purged_units_and_removed_queues_leave_with_a_merge() {
    let disk = MemoryDisk::default();
    let index = open(&disk, None).unwrap();
    for _ in 0..RUNS_PER_MERGE {
        append(&index, 1, 100);
        append(&index, 2, 100);
        checkpoint(&index);
    }
    index.set_min_physical(250 * 100);
    index.remove_queue(2);
    assert_eq!(index.runs(), 6);
    for _ in 0..2 {
        append(&index, 1, 100);
        checkpoint(&index);
    }
    assert!(index.merge_step().unwrap());
    assert_eq!(index.total_units(), 1000 - 250);
    assert_eq!(index.bounds(1), (250, 1000));
    assert_eq!(index.bounds(2), (0, 0));
}

#[test]
fn a_queue_whose_units_are_all_purged_keeps_its_offset_over_a_restart() {
    let disk = MemoryDisk::default();
    let index = open(&disk, None).unwrap();
    append(&index, 1, 100);
    index.begin_queue(2, 77);
    index.set_min_physical(u64::MAX);
    let manifest = checkpoint(&index);
    let index = open(&disk, Some(&manifest)).unwrap();
    assert_eq!(index.bounds(1), (100, 100));
    assert_eq!(index.bounds(2), (77, 77));
}

#[test]
fn clear_during_a_write_keeps_the_written_run_out() {
    let disk = MemoryDisk::default();
    let index = open(&disk, None).unwrap();
    append(&index, 1, 100);
    let frozen = index.freeze();
    index.clear();
    assert_eq!(index.write_frozen(&frozen).unwrap(), None);
    assert_eq!(index.runs(), 0);
    assert_eq!(index.bounds(1), (0, 0));
    assert!(disk.list(Path::new("/index")).unwrap().is_empty());
}

#[test]
fn a_freeze_that_a_later_one_took_up_has_no_manifest() {
    let disk = MemoryDisk::default();
    let index = open(&disk, None).unwrap();
    append(&index, 1, 100);
    let first = index.freeze();
    append(&index, 1, 50);
    let second = index.freeze();
    assert_eq!(index.write_frozen(&first).unwrap(), None);
    let manifest = index.write_frozen(&second).unwrap().unwrap();
    append(&index, 1, 10);
    let reopened = open(&disk, Some(&manifest)).unwrap();
    assert_eq!(reopened.bounds(1), (0, 150));
    assert_eq!(reopened.read(1, 0, 1000).unwrap().len(), 150);
}

#[test]
fn a_freeze_without_units_has_a_manifest_until_a_later_one_is_written() {
    let disk = MemoryDisk::default();
    let index = open(&disk, None).unwrap();
    append(&index, 1, 100);
    checkpoint(&index);
    let (early, late) = (index.freeze(), index.freeze());
    assert_eq!(early.units(), 0);
    let manifest = index.write_frozen(&early).unwrap().unwrap();
    assert_eq!(open(&disk, Some(&manifest)).unwrap().bounds(1), (0, 100));
    append(&index, 1, 1);
    checkpoint(&index);
    assert_eq!(index.write_frozen(&late).unwrap(), None);
}

/// What the install of a snapshot does: queues that begin behind messages of other nodes.
#[test]
fn queues_that_were_begun_come_back_without_a_unit() {
    let disk = MemoryDisk::default();
    let index = open(&disk, None).unwrap();
    append(&index, 1, 100);
    let stale = index.freeze();
    index.clear();
    index.begin_queue(1, 250);
    index.begin_queue(2, 0);
    let frozen = index.freeze();
    assert_eq!(index.write_frozen(&stale).unwrap(), None);
    let manifest = index.write_frozen(&frozen).unwrap().unwrap();
    let index = open(&disk, Some(&manifest)).unwrap();
    assert_eq!((index.bounds(1), index.bounds(2)), ((250, 250), (0, 0)));
    append(&index, 1, 3);
    assert_eq!(index.bounds(1), (250, 253));
}

#[test]
fn readers_see_everything_during_freezes_and_merges() {
    const UNITS: u64 = 40_000;
    let disk = MemoryDisk::default();
    let index = open(&disk, None).unwrap();
    let (appended, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let reader = |from: u64| {
            let (index, appended, done) = (&index, &appended, &done);
            move || {
                let mut next = from;
                while !done.load(Ordering::Acquire) {
                    let max = appended.load(Ordering::Acquire);
                    let (low, high) = index.bounds(1);
                    assert!(low == 0 && high >= max);
                    next = if next < max { next } else { next % 97 };
                    let wanted = 500.min(max.saturating_sub(next));
                    let units = index.read(1, next, wanted as usize).unwrap();
                    assert_eq!(units, (next..next + wanted).map(unit).collect::<Vec<_>>());
                    next += wanted + 1;
                }
            }
        };
        scope.spawn(reader(0));
        scope.spawn(reader(UNITS / 2));
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                index.merge_step().unwrap();
                std::thread::yield_now();
            }
        });
        for round in 0..UNITS / 100 {
            append(&index, 1, 50);
            let frozen = index.freeze();
            append(&index, 1, 50);
            appended.store((round + 1) * 100, Ordering::Release);
            let manifest = index.write_frozen(&frozen).unwrap().unwrap();
            index.retire(&[manifest]).unwrap();
        }
        done.store(true, Ordering::Release);
    });
    assert_eq!(index.bounds(1), (0, UNITS));
}

#[test]
fn memory_per_queue_is_bounded_with_100k_queues() {
    const QUEUES: u32 = 100_000;
    let disk = MemoryDisk::default();
    let index = open(&disk, None).unwrap();
    let add_one_each = |round: u64| {
        let batch: Vec<_> = (0..QUEUES)
            .map(|queue| (queue, round, unit(round)))
            .collect();
        index.append(&batch);
    };
    for round in 0..10 {
        add_one_each(round);
        checkpoint(&index);
        while index.merge_step().unwrap() {}
    }
    let written = index.memory_bytes() / QUEUES as usize;
    add_one_each(10);
    let frozen = index.freeze();
    add_one_each(11);
    let worst = index.memory_bytes() / QUEUES as usize;
    assert!(
        written <= 200,
        "{written} bytes per queue when all is written"
    );
    assert!(
        worst <= 600,
        "{worst} bytes per queue in the middle of a checkpoint"
    );
    index.write_frozen(&frozen).unwrap();
    assert!(index.memory_bytes() / QUEUES as usize <= 512);
    assert_eq!(index.read(QUEUES - 1, 0, 100).unwrap().len(), 12);
}

#[test]
fn the_index_works_on_a_real_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let index = QueueIndex::open(Arc::new(RealDisk), dir.path(), None).unwrap();
    for _ in 0..RUNS_PER_MERGE {
        append(&index, 5, 1000);
        checkpoint(&index);
    }
    assert!(index.merge_step().unwrap());
    let manifest = checkpoint(&index);
    assert_eq!(index.retire(&[&manifest]).unwrap(), RUNS_PER_MERGE);
    drop(index);
    let index = QueueIndex::open(Arc::new(RealDisk), dir.path(), Some(&manifest)).unwrap();
    let units = index.read(5, 0, usize::MAX).unwrap();
    assert_eq!(units, (0..8000).map(unit).collect::<Vec<_>>());
}

#[test]
fn merges_take_the_oldest_neighbours_and_leave_full_runs_alone() {
    let small = [(0, 10); 8];
    assert_eq!(pick(&small[..7], 1000), None);
    assert_eq!(pick(&small, 1000), Some(0..8));
    assert_eq!(
        pick(&[[(1, 80)].as_slice(), &small].concat(), 1000),
        Some(1..9)
    );
    assert_eq!(
        pick(&[[(0, 501)].as_slice(), &small].concat(), 1000),
        Some(1..9)
    );
    assert_eq!(pick(&[(0, 400); 8], 1000), Some(0..2));
    assert_eq!(pick(&[(0, 501); 20], 1000), None);
}

proptest! {
    #[test]
    fn a_manifest_comes_back_as_it_was(
        runs in prop::collection::vec(0..u64::MAX, 0..40),
        queues: std::collections::BTreeMap<u32, (u64, u64)>,
        min_physical: u64,
    ) {
        let queues = queues.into_iter().map(|(queue, (next, born))| QueueRow { queue, next, born });
        let queues = queues.collect();
        let made = Manifest { next_run_id: u64::MAX, min_physical, runs, queues };
        prop_assert_eq!(Manifest::decode(&made.encode()).unwrap(), made);
    }

    #[test]
    fn a_manifest_of_any_bytes_does_not_panic(mut bytes: Vec<u8>) {
        let _ = Manifest::decode(&bytes);
        bytes.splice(0..0, 1u32.to_le_bytes());
        let _ = Manifest::decode(&bytes);
    }

    #[test]
    fn a_run_file_of_any_content_does_not_panic(
        at in prop::collection::vec((0usize..9000, any::<u8>()), 1..20),
        fix_crc: bool,
    ) {
        let disk = MemoryDisk::default();
        let index = open(&disk, None).unwrap();
        append(&index, 1, 100);
        append(&index, 2, 10);
        let manifest = checkpoint(&index);
        disk.edit(&run_path(0), |bytes| {
            for (place, value) in at {
                if let Some(byte) = bytes.get_mut(place) {
                    *byte = value;
                }
            }
            if fix_crc {
                let directory = crc32c::crc32c(&bytes[8192..]).to_le_bytes();
                bytes[40..44].copy_from_slice(&directory);
                let header = crc32c::crc32c(&bytes[..60]).to_le_bytes();
                bytes[60..64].copy_from_slice(&header);
            }
        });
        if let Ok(index) = open(&disk, Some(&manifest)) {
            let _ = index.read(1, 0, 1000);
            let _ = index.read(2, 0, 1000);
        }
    }
}
