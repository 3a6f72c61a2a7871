//! Properties of a damaged log that nobody can mend any more.

use std::sync::Arc;

use crate::log_tests::{DIR, append_flushed, config, open};
use crate::repair_tests::{segment, whole_log};
use crate::test_disk::MemoryDisk;
use crate::*;

#[test]
fn what_is_whole_in_a_damaged_segment_is_read_and_a_peer_that_deleted_it_says_so() {
    let (whole, bases) = whole_log();
    let position = {
        let (log, ..) = open(&whole.fork(), None).unwrap();
        log.position_at(log.last_id().unwrap().index).unwrap()
    };
    let last = position.id.index;
    let addresses: Vec<u64> = {
        let (log, ..) = open(&whole.fork(), None).unwrap();
        let entries = log.read(0, last + 1, u64::MAX).unwrap();
        entries.iter().map(|entry| entry.physical_offset).collect()
    };
    // The last one is where the start begins to read.
    for (broken, physical) in addresses.iter().enumerate().take(last as usize) {
        let base = *bases.iter().rev().find(|base| *base <= physical).unwrap();
        if base == *physical {
            // Nothing leads into the segment then, but what comes behind.
            continue;
        }
        let damaged = whole.fork();
        for base in &bases {
            // Nobody knows where entries begin.
            let _ = damaged.remove(&segment(*base).with_extension("sparse"));
        }
        damaged.edit(&segment(base), |bytes| {
            bytes[(physical - base) as usize + 8] ^= 1;
        });
        let (log, ..) = open(&damaged, Some(&position)).unwrap();
        for index in 0..=last {
            let read = log.read(index, index + 1, u64::MAX);
            assert_eq!(read.is_ok(), index != broken as u64, "{broken}: {index}");
        }
    }
    let deleted = whole.fork();
    deleted.remove(&segment(bases[0])).unwrap();
    let source = RangeSource::new(Arc::new(deleted), DIR);
    let wanted = RangeRequest {
        physical: 0,
        previous_crc: 0,
        skip: 0,
    };
    assert_eq!(source.read(wanted, 1 << 20).unwrap(), RangeAnswer::Purged);
}

/// The position before a segment of a whole log.
fn position_before(whole: &MemoryDisk, base: u64) -> LogPosition {
    let (log, ..) = open(&whole.fork(), None).unwrap();
    let entries = log.read(0, u64::MAX, u64::MAX).unwrap();
    let before = entries.iter().find(|entry| entry.end_physical() == base);
    log.position_at(before.unwrap().id.index).unwrap()
}

#[test]
fn damage_is_never_given_up_with_what_follows_it() {
    let (whole, bases) = whole_log();
    let damaged = whole.fork();
    damaged.edit(&segment(bases[1]), |bytes| bytes[70] ^= 1);
    let before = damaged.content(&segment(bases[1]));
    let mut survey = Survey::begin(Arc::new(damaged.clone()), config(), None).unwrap();
    assert!(matches!(survey.next_damage().unwrap(), Found::Damage(_)));
    survey.give_end_up().unwrap_err();
    assert!(matches!(survey.next_damage().unwrap(), Found::Damage(_)));
    assert_eq!(damaged.content(&segment(bases[1])), before);
}

#[test]
fn a_log_begins_behind_damage_and_keeps_the_rest_wherever_that_is_interrupted() {
    let (whole, bases) = whole_log();
    let position = position_before(&whole, bases[2]);
    let (log, ..) = open(&whole.fork(), None).unwrap();
    let from = position.id.index + 1;
    let expected = log.read(from, u64::MAX, u64::MAX).unwrap();
    let damaged = whole.fork();
    damaged.edit(&segment(bases[1]), |bytes| bytes[9] ^= 1);
    let begin = |disk: &MemoryDisk| {
        let mut survey = Survey::begin(Arc::new(disk.clone()), config(), None)?;
        if let Found::Damage(_) = survey.next_damage()? {
            survey.begin_at(&position)?;
        }
        assert!(matches!(survey.next_damage()?, Found::End));
        Ok::<_, StoreError>(())
    };
    for changes in 0.. {
        let mut done = true;
        for power_cut in [false, true] {
            let disk = damaged.fork();
            disk.stop_after(Some(changes));
            done &= begin(&disk).is_ok() && open(&disk, None).is_ok();
            disk.stop_after(None);
            if power_cut {
                disk.crash();
            }
            begin(&disk).unwrap();
            let (log, ..) = open(&disk, None).unwrap();
            assert_eq!(log.purged_id(), Some(position.id));
            assert_eq!(log.read(from, u64::MAX, u64::MAX).unwrap(), expected);
            assert!(!log.is_guarded());
        }
        if done {
            return;
        }
        assert!(changes < 100);
    }
}

#[test]
fn a_log_that_begins_beyond_its_end_is_empty_there_and_a_lost_end_behind_its_beginning_is_guarded()
{
    let (whole, bases) = whole_log();
    let end = {
        let (log, ..) = open(&whole.fork(), None).unwrap();
        log.position_at(log.last_id().unwrap().index).unwrap()
    };
    let beyond = LogPosition {
        id: LogId {
            index: end.id.index + 20,
            ..end.id
        },
        end_physical: end.end_physical + 5000,
        crc: 7,
        term_starts: Vec::new(),
    };
    let disk = whole.fork();
    let mut survey = Survey::begin(Arc::new(disk.clone()), config(), None).unwrap();
    survey.begin_at(&beyond).unwrap();
    assert!(matches!(survey.next_damage().unwrap(), Found::End));
    drop(survey);
    let (log, ..) = open(&disk, None).unwrap();
    assert_eq!((log.last_id(), log.is_guarded()), (Some(beyond.id), false));

    let disk = whole.fork();
    let position = position_before(&whole, bases[2]);
    for base in &bases {
        disk.remove(&segment(*base)).unwrap();
    }
    let mut survey = Survey::begin(Arc::new(disk.clone()), config(), None).unwrap();
    survey.begin_at(&position).unwrap();
    assert!(matches!(
        survey.next_damage().unwrap(),
        Found::LostEnd { .. }
    ));
    survey.give_end_up().unwrap();
    drop(survey);
    let (log, ..) = open(&disk, None).unwrap();
    assert_eq!((log.last_id(), log.is_guarded()), (Some(position.id), true));
}

#[test]
fn what_follows_another_entry_than_the_new_beginning_goes_wherever_that_is_interrupted() {
    let (whole, bases) = whole_log();
    // The same shape, with other terms from the fifth entry on.
    let other = MemoryDisk::default();
    let (log, ..) = open(&other, None).unwrap();
    append_flushed(&log, 1, 4, 30);
    append_flushed(&log, 5, 4, 2000);
    append_flushed(&log, 5, 9, 100);
    append_flushed(&log, 5, 1, 9000);
    append_flushed(&log, 5, 12, 200);
    drop(log);
    let position = position_before(&other, bases[2]);
    let begin = |disk: &MemoryDisk| {
        let mut survey = Survey::begin(Arc::new(disk.clone()), config(), None)?;
        survey.begin_at(&position)?;
        assert!(matches!(survey.next_damage()?, Found::End));
        Ok::<_, StoreError>(())
    };
    for changes in 0.. {
        let disk = whole.fork();
        disk.stop_after(Some(changes));
        let done = begin(&disk).is_ok();
        disk.stop_after(None);
        disk.crash();
        begin(&disk).unwrap();
        let (log, ..) = open(&disk, None).unwrap();
        assert_eq!(log.last_id(), Some(position.id));
        assert!(!log.is_guarded());
        if done {
            return;
        }
    }
}

#[test]
fn an_open_log_tells_what_it_has_purged_from_what_it_has_not_got_yet() {
    let (whole, bases) = whole_log();
    let (log, ..) = open(&whole, None).unwrap();
    let at = |physical| {
        let wanted = RangeRequest {
            physical,
            previous_crc: 0,
            skip: 0,
        };
        log.range_source().read(wanted, 1 << 20).unwrap()
    };
    let end = log.max_physical();
    assert_eq!(at(end), RangeAnswer::Behind);
    assert_eq!(at(end + 100), RangeAnswer::Behind);
    assert_eq!(at(1), RangeAnswer::Missing);
    log.purge_upto(position_before(&whole.fork(), bases[1]).id)
        .unwrap();
    assert_eq!(at(1), RangeAnswer::Purged);
    let last = log.last_id().unwrap();
    let beyond = LogId {
        index: last.index + 9,
        ..last
    };
    log.reset(beyond, end + 100, 7).unwrap();
    assert_eq!(at(end), RangeAnswer::Purged);
    assert_eq!(at(end + 100), RangeAnswer::Behind);
}
