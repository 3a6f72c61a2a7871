//! Owns the settings of the log.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::flush::ASYNC_UNSYNCED_BYTES_MAX;

/// When an append counts as done (`flushDiskType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlushPolicy {
    /// After fdatasync.
    Sync,
    /// After the write; an fdatasync follows within `interval`.
    Async {
        /// Longest time written bytes stay without a sync.
        interval: Duration,
    },
}

/// Settings of the log.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Data folder: segments, `vote`, `lock`.
    pub dir: PathBuf,
    /// Size of a segment in bytes, 4 KiB or more. Must be the same on all replicas. Source:
    /// RocketMQ `mappedFileSizeCommitLog`.
    pub segment_bytes: u64,
    /// Memory for the newest entries, in bytes.
    pub tail_bytes: u64,
    /// How far ahead of the last entry the file is filled with zeros, in bytes; 0 turns it off.
    pub preallocate_bytes: u64,
    /// When an append counts as done.
    pub flush: FlushPolicy,
    /// Most bytes of one write; one larger entry is written alone. At least 64 KiB.
    pub flush_batch_bytes_max: u64,
    /// The monotonic clock by which waiting and upkeep are measured.
    pub now: fn() -> Instant,
}

impl LogConfig {
    /// The defaults, for a data folder.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            segment_bytes: 1024 * 1024 * 1024,
            tail_bytes: 32 * 1024 * 1024,
            preallocate_bytes: 64 * 1024 * 1024,
            flush: FlushPolicy::Sync,
            flush_batch_bytes_max: 4 * 1024 * 1024,
            now: Instant::now,
        }
    }

    /// Most bytes that may be written and not synced at any time: the largest torn end.
    pub(crate) fn unsynced_bytes_max(&self) -> u64 {
        match self.flush {
            FlushPolicy::Sync => self.flush_batch_bytes_max,
            FlushPolicy::Async { .. } => ASYNC_UNSYNCED_BYTES_MAX + self.flush_batch_bytes_max,
        }
    }
}
