//! Properties of a damaged log that nobody can mend any more.

use std::sync::Arc;

use crate::log_tests::{DIR, config, open};
use crate::repair_tests::{segment, whole_log};
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

#[test]
fn a_range_that_every_peer_deleted_is_given_up_with_all_behind_it_and_votes_are_withheld() {
    let (whole, bases) = whole_log();
    let damaged = whole.fork();
    damaged.edit(&segment(bases[1]), |bytes| bytes[70] ^= 1);
    open(&damaged, None).unwrap_err();
    let mut survey = Survey::begin(Arc::new(damaged.clone()), config(), None).unwrap();
    let Found::Damage(damage) = survey.next_damage().unwrap() else {
        panic!("a damaged range");
    };
    survey.give_end_up().unwrap();
    assert!(matches!(survey.next_damage().unwrap(), Found::End));
    drop(survey);
    let (log, ..) = open(&damaged, None).unwrap();
    assert_eq!(log.max_physical(), damage.from_physical());
    assert!(log.is_guarded());
}
