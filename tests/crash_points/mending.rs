//! Damaged logs that mend from a peer, and power cuts in the middle of that.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use raftmq_store::{
    Disk, Found, Mender, RangeAnswer, RangeSource, StoreError, StoredEntry, Survey, Taken,
};
use raftmq_tests::sim::disk::{Change, SimDisk};
use raftmq_tests::sim::image::{Crash, Standing, sectors};
use raftmq_tests::sim::random::Random;

use super::verdict::{Facts, try_open};
use super::workload::{LOG_DIR, Recording, config};

/// Bytes a peer gives at a time: less than a large entry has.
const PIECE_BYTES: usize = 1000;
/// Power cuts in the middle of each repair.
const CUTS: u64 = 3;

/// Mends `damaged` from `whole`, which is what it was, once in peace and then with power cuts at
/// random points. Each time everything is there in the end; an end behind which nothing told what it
/// was may be gone from the damaged entry (number `damaged_from`) on, if the log says so by its guard.
pub fn check(
    damaged: &SimDisk,
    whole: &SimDisk,
    (facts, damaged_from): (&Facts, usize),
    recording: &Recording,
    random: &mut Random,
) -> Result<(), String> {
    let judge = |disk: &SimDisk| judge(disk, facts, damaged_from, recording);
    let (disk, begun) = recording_copy(damaged)?;
    mend(&disk, whole, recording).map_err(|error| format!("mend: {error}"))?;
    judge(&disk)?;
    let changes = disk.changes();
    for _ in 0..CUTS {
        let steps = (changes.len() - begun) as u64;
        let at = begun + random.below(steps.max(1)) as usize;
        let mut standing = Standing::default();
        let last = changes.get(at).unwrap_or(&changes[changes.len() - 1]);
        for change in &changes[..(at + 1).min(changes.len())] {
            standing.apply(change);
        }
        let crash = crash(last, random);
        let left = SimDisk::of_files(standing.after(crash, last).files());
        let cut = |problem| {
            format!(
                "power cut after change {} of a repair, {crash:?}: {problem}",
                at - begun
            )
        };
        match try_open(&SimDisk::of_files(left.files()), recording, None) {
            // Refused: mended by the next start.
            Err(StoreError::Corrupt { .. }) => {
                mend(&left, whole, recording).map_err(|error| cut(error.to_string()))?;
            }
            Err(error) => return Err(cut(error.to_string())),
            Ok(_) => {}
        }
        judge(&left).map_err(cut)?;
    }
    Ok(())
}

fn crash(last: &Change, random: &mut Random) -> Crash {
    match (last, random.below(4)) {
        (_, 0) => Crash::Kept,
        (_, 1) => Crash::Lost,
        (Change::Write(_, offset, bytes), 2) if sectors(*offset, bytes.len()) > 1 => Crash::Torn {
            at: 1 + random.below(sectors(*offset, bytes.len()) as u64 - 1) as usize,
            end: random.below(2) == 0,
        },
        _ => Crash::Some(random.number()),
    }
}

/// The same files, all of them durable, on a disk that writes down its changes; and how many of them
/// that took.
fn recording_copy(disk: &SimDisk) -> Result<(SimDisk, usize), String> {
    let copy = SimDisk::recording();
    let mut folders = BTreeSet::new();
    for (path, content) in disk.files() {
        let write = || {
            let file = copy.create(&path)?;
            file.write_all_at(&content, 0)?;
            file.sync_data()
        };
        write().map_err(|error| error.to_string())?;
        folders.extend(path.parent().map(Path::to_owned));
    }
    for folder in folders {
        copy.sync_dir(&folder).map_err(|error| error.to_string())?;
    }
    let count = copy.changes_count();
    Ok((copy, count))
}

/// Mends every range, and gives up an end that is lost.
fn mend(disk: &SimDisk, whole: &SimDisk, recording: &Recording) -> Result<(), StoreError> {
    let peer = RangeSource::new(Arc::new(SimDisk::of_files(whole.files())), LOG_DIR);
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let mut survey = Survey::begin(Arc::clone(&disk), config(recording.policy), None)?;
    loop {
        match survey.next_damage()? {
            Found::End => return Ok(()),
            Found::LostEnd { .. } => survey.give_end_up()?,
            Found::Damage(damage) => {
                let mut mender = Mender::new(Arc::clone(&disk), damage)?;
                loop {
                    let RangeAnswer::Bytes(bytes) = peer.read(mender.wanted(), PIECE_BYTES)? else {
                        return Err(StoreError::decode("a range", "the peer has not got it"));
                    };
                    match mender.take(&bytes)? {
                        Taken::More => {}
                        Taken::Proven => break,
                        Taken::Wrong => {
                            return Err(StoreError::decode("a range", "it is another log's"));
                        }
                    }
                }
                survey.mend(&mender)?;
            }
        }
    }
}

fn judge(
    disk: &SimDisk,
    facts: &Facts,
    damaged_from: usize,
    recording: &Recording,
) -> Result<(), String> {
    let opened = try_open(&SimDisk::of_files(disk.files()), recording, None);
    let (found, log, _) = opened.map_err(|error| format!("a mended log does not open: {error}"))?;
    // An entry was appended after the facts were taken.
    let is_whole = found.entries.starts_with(&facts.entries);
    let is_beginning = facts.entries.starts_with(&found.entries)
        && found.entries.len() >= damaged_from
        && log.is_guarded();
    if is_whole || is_beginning {
        return Ok(());
    }
    let last = |entries: &[StoredEntry]| entries.last().map(|entry| entry.id);
    Err(format!(
        "mended up to {:?} of {:?}, guarded {}",
        last(&found.entries),
        last(&facts.entries),
        log.is_guarded()
    ))
}
