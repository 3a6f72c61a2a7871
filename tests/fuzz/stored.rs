//! What a data folder holds.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use raftmq_store::checkpoint::Checkpoint;
use raftmq_store::index::{IndexUnit, QueueIndex};
use raftmq_store::{CommitLog, Disk, Identity, LogConfig, LogPosition};

use crate::sim::disk::SimDisk;

const DIR: &str = "/data";
/// Queues of [`queue_index`] that are looked at.
const QUEUES: [u32; 5] = [0, 1, 2, 7, u32::MAX];
/// Units of one read.
const UNITS_MAX: usize = 50;
/// Header and blocks of a run file. Unit: bytes.
const PAGE_BYTES: usize = 4096;
/// Files of [`data_folder`].
pub const DATA_FILES: [&str; 4] = [
    "vote",
    "00000000000000000000",
    "00000000000000004096",
    "identity",
];
/// Splits the input of [`data_folder`] into files.
const SPLIT: &[u8] = b"\xffFILE\xff";

/// A checkpoint file.
pub fn checkpoint(bytes: &[u8]) {
    let Ok(checkpoint) = Checkpoint::decode(Bytes::copy_from_slice(bytes)) else {
        return;
    };
    let again = Checkpoint::decode(checkpoint.encode());
    assert!(
        again.is_ok_and(|again| again == checkpoint),
        "it means the same"
    );
}

/// Where a log goes on after a snapshot.
pub fn log_position(bytes: &[u8]) {
    if let Ok(position) = LogPosition::decode(bytes) {
        let again = LogPosition::decode(&position.encode());
        assert!(
            again.is_ok_and(|again| again == position),
            "it means the same"
        );
    }
}

/// The vote file, two segments and the identity: opening them never panics, changes
/// nothing when it refuses, and finds the same again when it does not.
pub fn data_folder(bytes: &[u8]) {
    let files: Vec<(PathBuf, Vec<u8>)> = DATA_FILES
        .iter()
        .zip(split(bytes))
        .map(|(name, content)| (Path::new(DIR).join(name), content.to_vec()))
        .collect();
    let disk = SimDisk::of_files(files);
    let expected = Identity {
        cluster: "c".to_owned(),
        group: "g".to_owned(),
        node_id: 1,
        incarnation: String::new(),
        format_version: raftmq_store::FORMAT_VERSION,
    };
    let _ = Identity::open_or_create(&disk, Path::new(DIR), &expected, "fresh", true);
    let Ok(last) = open(&disk) else { return };
    assert_eq!(open(&disk), Ok(last), "a second start finds the same");
}

fn open(disk: &SimDisk) -> Result<Option<u64>, String> {
    let config = LogConfig {
        segment_bytes: 4096,
        tail_bytes: 2000,
        preallocate_bytes: 0,
        ..LogConfig::new(DIR)
    };
    let opened = CommitLog::open(Arc::new(disk.clone()), config, None);
    let (log, ..) = opened.map_err(|error| error.to_string())?;
    let last = log.last_id().map(|last| last.index);
    let (from, to) = (log.first_index(), last.map_or(0, |last| last + 1));
    if from < to {
        log.read(from, to, u64::MAX)
            .map_err(|error| error.to_string())?;
    }
    Ok(last)
}

/// The sections of a checkpoint: state, position, membership, index manifest, timestamp.
pub fn checkpoint_sections(bytes: &[u8]) {
    let Some(once) = raftmq::fuzzing::checkpoint_sections(&split(bytes)) else {
        return;
    };
    let sections: Vec<&[u8]> = once.iter().map(Vec::as_slice).collect();
    let again = raftmq::fuzzing::checkpoint_sections(&sections);
    assert_eq!(again.as_ref(), Some(&once), "it means the same");
}

/// The manifest of a consume queue and its first runs, as they are and with checksums that fit:
/// what opens is read without a panic, and is the same after it was written and opened again.
pub fn queue_index(bytes: &[u8]) {
    let parts = split(bytes);
    let (manifest, runs) = parts.split_first().expect("a part is always there");
    let resealed: Vec<Vec<u8>> = runs.iter().map(|run| resealed(run)).collect();
    check_index(manifest, runs.iter().map(|run| run.to_vec()));
    check_index(manifest, resealed);
}

fn check_index(manifest: &[u8], runs: impl IntoIterator<Item = Vec<u8>>) {
    let files = (0..).zip(runs).map(|(number, run)| {
        let name = format!("{number:020}.run");
        (Path::new(DIR).join(name), run)
    });
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::of_files(files));
    let open =
        |manifest: &[u8]| QueueIndex::open(Arc::clone(&disk), Path::new(DIR), Some(manifest));
    let Ok(index) = open(manifest) else { return };
    let seen = look_at(&index);
    let frozen = index.freeze();
    let written = index.write_frozen(&frozen).expect("the disk works");
    let written = written.expect("this is the only freeze");
    let again = open(&written).expect("what was written is read");
    assert_eq!(look_at(&again), seen, "an index means the same");
}

/// Bounds of some queues, and the units that can be read at both ends.
fn look_at(index: &QueueIndex) -> Vec<(u64, u64, Vec<IndexUnit>)> {
    let queues = QUEUES.into_iter().map(|queue| {
        let (min, max) = index.bounds(queue);
        assert!(min <= max, "the bounds of a queue");
        let mut units = Vec::new();
        for from in [min, max.saturating_sub(5), 0] {
            let read = index.read(queue, from, UNITS_MAX);
            let read = read.unwrap_or_default();
            assert!(read.len() <= UNITS_MAX);
            units.extend(read);
        }
        for time in [0, 1005, u64::MAX] {
            if let Ok(offset) = index.offset_by_time(queue, time) {
                assert!(offset <= max, "an offset within the queue");
            }
        }
        (min, max, units)
    });
    queues.collect()
}

/// A run file with checksums that fit, so that more than its checksums is looked at.
fn resealed(run: &[u8]) -> Vec<u8> {
    let mut run = run.to_vec();
    let Some(units) = run.get(24..32).and_then(|bytes| bytes.first_chunk::<8>()) else {
        return run;
    };
    let blocks = (u64::from_le_bytes(*units).div_ceil(146)) as usize;
    let directory = blocks.saturating_add(1).saturating_mul(PAGE_BYTES);
    for block in run.chunks_exact_mut(PAGE_BYTES).skip(1).take(blocks) {
        let crc = crc32c::crc32c(&block[..PAGE_BYTES - 4]);
        block[PAGE_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    }
    if let Some(rows) = run.get(directory..) {
        let crc = crc32c::crc32c(rows);
        run[40..44].copy_from_slice(&crc.to_le_bytes());
    }
    if run.len() >= 64 {
        let crc = crc32c::crc32c(&run[..60]);
        run[60..64].copy_from_slice(&crc.to_le_bytes());
    }
    run
}

/// The files that an input stands for.
pub fn split(bytes: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut rest = bytes;
    while let Some(at) = rest.windows(SPLIT.len()).position(|window| window == SPLIT) {
        parts.push(&rest[..at]);
        rest = &rest[at + SPLIT.len()..];
    }
    parts.push(rest);
    parts
}

/// The input that stands for these files.
pub fn join(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.join(SPLIT)
}
