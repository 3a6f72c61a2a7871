//! Properties of mending a damaged log from others.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;

use crate::log_tests::{DIR, append_flushed, config, open};
use crate::test_disk::MemoryDisk;
use crate::*;

/// Bytes a peer gives at a time: less than most entries here have.
const PIECE_BYTES: usize = 300;

pub(crate) fn segment(base: u64) -> PathBuf {
    Path::new(DIR).join(format!("{base:020}"))
}

/// A closed log of several segments, with the vote file as a start leaves it.
pub(crate) fn whole_log() -> (MemoryDisk, Vec<u64>) {
    let disk = MemoryDisk::default();
    let (log, mut flusher, ..) = open(&disk, None).unwrap();
    append_flushed(&log, 1, 4, 30);
    append_flushed(&log, 2, 4, 2000);
    append_flushed(&log, 2, 9, 100);
    append_flushed(&log, 3, 1, 9000);
    append_flushed(&log, 3, 12, 200);
    log.close();
    while flusher.run_once() != FlushOutcome::Stopped {}
    let bases = log.segment_bases();
    assert!(bases.len() >= 4, "{bases:?}");
    (disk, bases)
}

/// Asks the peers for a range, one after the other, as long as one of them has more.
fn fetch(
    disk: &MemoryDisk,
    damage: Damage,
    peers: &[MemoryDisk],
) -> Result<Option<Mender>, StoreError> {
    let mut mender = Mender::new(Arc::new(disk.clone()), damage)?;
    for first in 0..peers.len() {
        let mut idle = 0;
        for at in (first..first + peers.len()).cycle() {
            let source = RangeSource::new(Arc::new(peers[at % peers.len()].clone()), DIR);
            let before = mender.wanted();
            while let RangeAnswer::Bytes(bytes) = source.read(mender.wanted(), PIECE_BYTES)? {
                match mender.take(&bytes)? {
                    Taken::More => {}
                    Taken::Proven => return Ok(Some(mender)),
                    Taken::Wrong => break,
                }
            }
            idle = if mender.wanted() == before {
                idle + 1
            } else {
                0
            };
            if idle == peers.len() {
                break;
            }
        }
        mender.start_again();
    }
    Ok(None)
}

/// Mends everything. Returns the ranges, and whether an end was given up; an error when no peer has
/// a range.
fn repair(
    disk: &MemoryDisk,
    start: Option<&LogPosition>,
    peers: &[MemoryDisk],
) -> Result<(Vec<(u64, u64)>, bool), StoreError> {
    let mut survey = Survey::begin(Arc::new(disk.clone()), config(), start)?;
    let (mut ranges, mut lost) = (Vec::new(), false);
    loop {
        match survey.next_damage()? {
            Found::End => return Ok((ranges, lost)),
            Found::LostEnd { .. } => {
                survey.give_end_up()?;
                lost = true;
            }
            Found::Damage(damage) => {
                let from = damage.from_physical();
                let Some(mender) = fetch(disk, damage, peers)? else {
                    return Err(StoreError::decode("a range", "no peer has it"));
                };
                ranges.push((from, from + mender.bytes()));
                survey.mend(&mender)?;
            }
        }
    }
}

/// The entries of all segments.
fn text(disk: &MemoryDisk) -> String {
    dump(disk, Path::new(DIR)).unwrap()
}

fn assert_equal(disk: &MemoryDisk, whole: &MemoryDisk, bases: &[u64], what: &str) {
    for (at, base) in bases.iter().enumerate() {
        let (found, expected) = (
            disk.content(&segment(*base)),
            whole.content(&segment(*base)),
        );
        let common = found.len().min(expected.len());
        assert!(found[..common] == expected[..common], "{what}: {base}");
        // Only the ground behind the last entry may be gone.
        let rest = &expected[common..];
        let is_last = at + 1 == bases.len();
        assert!(
            rest.is_empty() || is_last && rest.iter().all(|byte| *byte == 0),
            "{what}: {base}"
        );
    }
    assert!(!disk.exists(&Path::new(DIR).join("repair.new")).unwrap());
}

#[test]
fn damage_anywhere_is_mended_byte_by_byte_or_the_lost_end_is_guarded() {
    let (whole, bases) = whole_log();
    let last_entry = {
        let (log, ..) = open(&whole.fork(), None).unwrap();
        let last = log.last_id().unwrap().index;
        log.position_at(last - 1).unwrap().end_physical
    };
    let mut mended = 0;
    for base in &bases {
        let len = whole.content(&segment(*base)).len();
        let flips = (0..len).step_by(13).map(|at| (at, at + 1, true));
        let zeroed = (0..len)
            .step_by(170)
            .map(|at| (at, (at + 600).min(len), false));
        for (from, to, flip) in flips.chain(zeroed) {
            let what = format!("{from}..{to} of {base}, flip {flip}");
            let damaged = whole.fork();
            damaged.edit(&segment(*base), |bytes| {
                for byte in &mut bytes[from..to] {
                    *byte = if flip { *byte ^ 0x10 } else { 0 };
                }
            });
            let begins_before_last = base + (from as u64) < last_entry;
            let reaches_last_header = base + (to as u64) > last_entry;
            let (ranges, lost) = repair(&damaged, None, &[whole.fork()]).unwrap();
            let (log, .., report) = open(&damaged, None).unwrap();
            assert_eq!(log.is_guarded(), lost, "{what}");
            if lost {
                assert!(reaches_last_header, "{what}");
                assert!(log.max_physical() <= last_entry, "{what}");
            } else {
                assert_equal(&damaged, &whole, &bases, &what);
                assert!(report.cut.is_none() || !begins_before_last, "{what}");
            }
            mended += ranges.len();
        }
    }
    assert!(mended > 500, "{mended}");
}

#[test]
fn a_segment_that_is_missing_or_cut_short_is_made_again() {
    let (whole, bases) = whole_log();
    let inner = &bases[..bases.len() - 1];
    for base in inner {
        let len = whole.content(&segment(*base)).len();
        for cut in [None, Some(0), Some(1), Some(len / 2), Some(len - 1)] {
            let damaged = whole.fork();
            match cut {
                None => damaged.remove(&segment(*base)).unwrap(),
                Some(cut) => damaged.edit(&segment(*base), |bytes| bytes.truncate(cut)),
            }
            assert!(open(&damaged, None).is_err());
            let (ranges, lost) = repair(&damaged, None, &[whole.fork()]).unwrap();
            // An entry whose header is left is mended by itself.
            assert!(!lost && (1..=2).contains(&ranges.len()), "{ranges:?}");
            assert_equal(&damaged, &whole, &bases, &format!("{base} cut at {cut:?}"));
            open(&damaged, None).unwrap();
        }
    }
    let damaged = whole.fork();
    for base in &inner[1..] {
        damaged.remove(&segment(*base)).unwrap();
    }
    repair(&damaged, None, &[whole.fork()]).unwrap();
    assert_equal(&damaged, &whole, &bases, "all inner segments missing");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn three_logs_with_damage_at_disjoint_places_mend_one_another(
        places in prop::collection::vec((0usize..1000, 0usize..3), 1..12),
        zero in any::<bool>(),
    ) {
        let (whole, bases) = whole_log();
        let starts: Vec<(u64, u64)> = entries(&whole);
        // One entry is damaged at one node at most, and the last one at none.
        let mut owners = std::collections::BTreeMap::new();
        for (place, node) in places {
            owners.insert(place % (starts.len() - 1), node);
        }
        let disks = [whole.fork(), whole.fork(), whole.fork()];
        for (entry, node) in &owners {
            let (from, to) = starts[*entry];
            let base = *bases.iter().rfind(|base| **base <= from).unwrap();
            disks[*node].edit(&segment(base), |bytes| {
                let (from, to) = ((from - base) as usize, (to - base) as usize);
                if zero { bytes[from..to].fill(0) } else { bytes[(from + to) / 2] ^= 4 }
            });
        }
        for node in 0..3 {
            let others: Vec<MemoryDisk> =
                (0..3).filter(|other| *other != node).map(|other| disks[other].clone()).collect();
            let (_, lost) = repair(&disks[node], None, &others).unwrap();
            prop_assert!(!lost);
        }
        for disk in &disks {
            assert_equal(disk, &whole, &bases, "disjoint");
            prop_assert!(open(disk, None).is_ok());
        }
    }
}

/// Address and end of every entry.
fn entries(disk: &MemoryDisk) -> Vec<(u64, u64)> {
    let (log, ..) = open(&disk.fork(), None).unwrap();
    let read = log.read(0, u64::MAX, u64::MAX).unwrap();
    read.iter()
        .map(|entry| (entry.physical_offset, entry.end_physical()))
        .collect()
}

#[test]
fn a_repair_interrupted_anywhere_is_finished_by_the_next_start() {
    let (whole, bases) = whole_log();
    let damaged = whole.fork();
    damaged.edit(&segment(bases[1]), |bytes| bytes[40..3000].fill(0));
    damaged.remove(&segment(bases[2])).unwrap();
    let mut interrupted = 0;
    for changes in 0.. {
        let mut left = Vec::new();
        for power_cut in [false, true] {
            let disk = damaged.fork();
            disk.stop_after(Some(changes));
            let result = repair(&disk, None, &[whole.fork()]);
            disk.stop_after(None);
            if power_cut {
                disk.crash();
            }
            left.push((disk, result.is_ok()));
        }
        for (disk, _) in &left {
            repair(disk, None, &[whole.fork()]).unwrap();
            open(disk, None).unwrap();
            assert_equal(disk, &whole, &bases, &format!("{changes} changes"));
        }
        if left.iter().all(|(_, done)| *done) {
            break;
        }
        interrupted += 1;
    }
    assert!(interrupted > 15, "{interrupted}");
}

#[test]
fn bytes_of_another_log_are_never_written() {
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
    let damaged = whole.fork();
    let at = entries(&whole)[4].0;
    damaged.edit(&segment(bases[0]), |bytes| bytes[at as usize + 8] ^= 1);
    let before = text(&damaged);
    let refused = repair(&damaged, None, &[other.fork()]);
    assert!(matches!(refused, Err(StoreError::Decode { .. })));
    assert_eq!(text(&damaged), before);
    // Though it is asked first, the one that has the range mends it.
    repair(&damaged, None, &[other, whole.fork()]).unwrap();
    assert_equal(&damaged, &whole, &bases, "a peer with another log");
}

#[test]
fn entries_that_a_checkpoint_covers_are_mended_although_nothing_follows_them() {
    let (whole, bases) = whole_log();
    let position = {
        let (log, ..) = open(&whole.fork(), None).unwrap();
        log.position_at(log.last_id().unwrap().index).unwrap()
    };
    let last = *bases.last().unwrap();
    for cut in [0, 1, 100, 270, 600] {
        let damaged = whole.fork();
        damaged.edit(&segment(last), |bytes| bytes.truncate(cut));
        open(&damaged, Some(&position)).unwrap_err();
        let (_, lost) = repair(&damaged, Some(&position), &[whole.fork()]).unwrap();
        assert!(!lost);
        let (log, ..) = open(&damaged, Some(&position)).unwrap();
        assert_eq!(log.max_physical(), position.end_physical);
        assert!(!log.is_guarded());
        assert_equal(&damaged, &whole, &bases, &format!("cut at {cut}"));
    }
}

#[test]
fn an_end_is_never_cut_without_the_guard_wherever_that_is_interrupted() {
    let (whole, bases) = whole_log();
    let [.., before_last, last] = bases[..] else {
        unreachable!()
    };
    let damaged = whole.fork();
    damaged.edit(&segment(before_last), |bytes| bytes.fill(0));
    damaged.edit(&segment(last), |bytes| bytes.fill(0));
    for changes in 0.. {
        let mut done = true;
        for power_cut in [false, true] {
            let disk = damaged.fork();
            disk.stop_after(Some(changes));
            let result = repair(&disk, None, &[]);
            done &= result.is_ok();
            disk.stop_after(None);
            if power_cut {
                disk.crash();
            }
            match open(&disk, None) {
                Ok((log, ..)) => {
                    assert!(log.is_guarded(), "{changes} changes");
                    assert!(log.max_physical() <= before_last);
                }
                Err(error) => assert!(error.is_corrupt(), "{error}"),
            }
        }
        if done {
            break;
        }
        assert!(changes < 100);
    }
}

#[test]
fn the_guard_outlasts_restarts_purges_and_resets_and_ends_when_told() {
    let (disk, bases) = whole_log();
    disk.edit(&segment(*bases.last().unwrap()), |bytes| {
        bytes[300..].fill(0)
    });
    let (_, lost) = repair(&disk, None, &[]).unwrap();
    assert!(lost);
    for round in 0..3 {
        let (log, mut flusher, ..) = open(&disk, None).unwrap();
        assert!(log.is_guarded(), "round {round}");
        append_flushed(&log, 4, 3, 500);
        let id = log
            .entry_id(log.last_id().unwrap().index - 1)
            .unwrap()
            .unwrap();
        match round {
            0 => log.purge_upto(id).unwrap(),
            _ => log
                .reset(
                    LogId {
                        index: id.index + 50,
                        ..id
                    },
                    1 << 20,
                    7,
                )
                .unwrap(),
        }
        log.close();
        while flusher.run_once() != FlushOutcome::Stopped {}
        disk.crash();
    }
    open(&disk, None).unwrap().0.end_guard().unwrap();
    disk.crash();
    assert!(!open(&disk, None).unwrap().0.is_guarded());
    let (log, ..) = open(&disk, None).unwrap();
    log.begin_guard().unwrap();
    assert!(end_guard(&disk, log.dir()).is_err(), "the log is in use");
    let dir = log.dir().to_owned();
    drop(log);
    disk.crash();
    assert!(open(&disk, None).unwrap().0.is_guarded());
    assert!(end_guard(&disk, &dir).unwrap());
    disk.crash();
    assert!(!end_guard(&disk, &dir).unwrap());
    assert!(!open(&disk, None).unwrap().0.is_guarded());
}

#[test]
fn damage_of_an_open_log_is_found_by_the_scrub_and_mended_in_place() {
    let (whole, bases) = whole_log();
    let disk = whole.fork();
    let (log, ..) = open(&disk, None).unwrap();
    let mut scrub = Scrub::default();
    let pass = |scrub: &mut Scrub| {
        let (mut bytes, mut damaged) = (0, Vec::new());
        loop {
            match log.scrub_step(scrub).unwrap() {
                Scrubbed::Whole(more) => bytes += more,
                Scrubbed::Damaged(at) => damaged.push(at),
                Scrubbed::Over => return (bytes, damaged),
            }
        }
    };
    let sealed = *bases.last().unwrap();
    assert_eq!(pass(&mut scrub), (sealed, Vec::new()));
    let starts = entries(&whole);
    let sealed_entries = starts.iter().filter(|(_, end)| *end <= sealed);
    for (from, to) in sealed_entries {
        let base = *bases.iter().rfind(|base| **base <= *from).unwrap();
        for at in [*from + 9, *to - 1] {
            disk.edit(&segment(base), |bytes| bytes[(at - base) as usize] ^= 1);
            let (_, damaged) = pass(&mut scrub);
            assert_eq!(damaged, [*from]);
            assert_eq!(log.take_damaged(), Some(*from));
            let found = log.locate_damage(*from).unwrap().unwrap();
            assert_eq!(found.damage.from_physical(), *from);
            let mender = fetch(&disk, found.damage.clone(), std::slice::from_ref(&whole))
                .unwrap()
                .unwrap();
            assert!(log.mend(&found, &mender).unwrap());
            assert_equal(&disk, &whole, &bases, &format!("{at}"));
            assert!(log.locate_damage(*from).unwrap().is_none());
        }
    }
    assert_eq!(pass(&mut scrub), (sealed, Vec::new()));
}

#[test]
fn a_range_proven_before_the_log_was_cut_is_not_written_after() {
    let (whole, bases) = whole_log();
    let disk = whole.fork();
    let (log, ..) = open(&disk, None).unwrap();
    let (from, _) = entries(&whole)[5];
    let base = *bases.iter().rfind(|base| **base <= from).unwrap();
    disk.edit(&segment(base), |bytes| {
        bytes[(from - base) as usize + 70] ^= 1
    });
    let found = log.locate_damage(from).unwrap().unwrap();
    let mender = fetch(&disk, found.damage.clone(), &[whole])
        .unwrap()
        .unwrap();
    log.truncate_after(Some(3)).unwrap();
    append_flushed(&log, 9, 8, 700);
    let before = text(&disk);
    assert!(!log.mend(&found, &mender).unwrap());
    assert_eq!(text(&disk), before);
}

#[test]
fn a_damaged_node_gives_what_it_has_that_is_whole_and_nothing_else() {
    let (whole, _) = whole_log();
    let starts = entries(&whole);
    let (log, ..) = open(&whole.fork(), None).unwrap();
    let crc_before = |entry: usize| match entry.checked_sub(1) {
        Some(before) => log.position_at(before as u64).unwrap().crc,
        None => 0,
    };
    let damaged = whole.fork();
    let (bad, _) = starts[2];
    damaged.edit(&segment(0), |bytes| bytes[bad as usize + 80] ^= 1);
    let source = RangeSource::new(Arc::new(damaged), DIR);
    for (entry, (physical, end)) in starts.iter().enumerate() {
        let wanted = RangeRequest {
            physical: *physical,
            previous_crc: crc_before(entry),
            skip: 0,
        };
        let answer = source.read(wanted, 1 << 20).unwrap();
        match answer {
            RangeAnswer::Bytes(bytes) => {
                assert!(bytes.len() as u64 >= end - physical && entry != 2);
                assert!(entry > 2 || *physical + bytes.len() as u64 <= bad);
            }
            other => assert_eq!((entry, other), (2, RangeAnswer::Missing)),
        }
        if entry != 2 {
            let other_log = RangeRequest {
                previous_crc: !wanted.previous_crc,
                ..wanted
            };
            let answer = source.read(other_log, 1 << 20).unwrap();
            assert_eq!(answer, RangeAnswer::Different);
        }
        let inside = RangeRequest {
            physical: physical + 1,
            ..wanted
        };
        assert_eq!(source.read(inside, 1 << 20).unwrap(), RangeAnswer::Missing);
    }
    let beyond = RangeRequest {
        physical: 1 << 40,
        previous_crc: 0,
        skip: 0,
    };
    assert_eq!(source.read(beyond, 1 << 20).unwrap(), RangeAnswer::Missing);
}

#[test]
fn a_sector_that_cannot_be_read_is_mended_like_a_wrong_one() {
    // Segments of several sectors.
    let large = LogConfig {
        segment_bytes: 64 * 1024,
        ..config()
    };
    let whole = MemoryDisk::default();
    let open = |disk: &MemoryDisk| CommitLog::open(Arc::new(disk.clone()), large.clone(), None);
    let (log, mut flusher, ..) = open(&whole).unwrap();
    for round in 0..60 {
        append_flushed(&log, 1, 3, 100 + round * 37);
    }
    let bases = log.segment_bases();
    let last_entry = log
        .position_at(log.last_id().unwrap().index - 1)
        .unwrap()
        .end_physical;
    log.close();
    while flusher.run_once() != FlushOutcome::Stopped {}
    let mut checked = 0;
    for base in &bases {
        let len = whole.content(&segment(*base)).len() as u64;
        for sector in (0..len.div_ceil(4096)).filter(|at| base + (at + 1) * 4096 < last_entry) {
            let damaged = whole.fork();
            damaged.lose_sector(&segment(*base), sector);
            let refused = open(&damaged).map(|_| ()).unwrap_err();
            assert!(refused.is_corrupt(), "sector {sector} of {base}: {refused}");
            let mut survey = Survey::begin(Arc::new(damaged.clone()), large.clone(), None).unwrap();
            let Found::Damage(damage) = survey.next_damage().unwrap() else {
                panic!("sector {sector} of {base} is not found");
            };
            let mender = fetch(&damaged, damage, std::slice::from_ref(&whole))
                .unwrap()
                .unwrap();
            survey.mend(&mender).unwrap();
            assert!(matches!(survey.next_damage().unwrap(), Found::End));
            drop(survey);
            open(&damaged).unwrap();
            assert_equal(
                &damaged,
                &whole,
                &bases,
                &format!("sector {sector} of {base}"),
            );
            checked += 1;
        }
    }
    assert!(checked > 40, "{checked}");
}
