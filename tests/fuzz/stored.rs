//! What a data folder holds.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use raftmq_store::checkpoint::Checkpoint;
use raftmq_store::{CommitLog, Identity, LogConfig, LogPosition};

use crate::sim::disk::SimDisk;

const DIR: &str = "/data";
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

/// The vote file, a segment, a second one, and the identity: opening them never panics, changes
/// nothing when it refuses, and finds the same again when it does not.
pub fn data_folder(bytes: &[u8]) {
    let names = [
        "vote",
        "00000000000000000000",
        "00000000000000004096",
        "identity",
    ];
    let files: Vec<(PathBuf, Vec<u8>)> = names
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
