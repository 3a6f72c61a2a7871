//! Owns the error type of the store. Variants are named by the reaction they need from the caller.

use std::io;
use std::path::PathBuf;

/// Everything that can go wrong in the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk refused an operation. From an append, a flush or a truncation this is fatal: the
    /// process must end, because the state of the pages behind a failed sync is unknown.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was being done, for example `open` or `fdatasync`.
        operation: &'static str,
        /// The file or folder concerned.
        path: PathBuf,
        /// The reason given by the operating system.
        source: io::Error,
    },
    /// Stored bytes are damaged where they were known to be whole. The node must not vote,
    /// acknowledge or serve them; it repairs the range from its peers or stops. Nothing was changed.
    #[error("{segment} is corrupt at physical offset {physical_offset}: {reason}")]
    Corrupt {
        /// Name of the damaged file.
        segment: String,
        /// Physical offset of the first damaged entry (or position in the file, outside the log).
        physical_offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// The log begins after `purged`, and no checkpoint here that is whole reaches so far. The node
    /// gets one from its peers or stops. Nothing was changed.
    #[error("the log begins after {purged}, and no checkpoint that is whole reaches so far")]
    NoCheckpoint {
        /// Id of the last purged entry.
        purged: String,
        /// Physical offset where the log begins.
        physical_offset: u64,
    },
    /// An earlier write or sync failed; the log takes nothing more until the process restarts.
    #[error("the store has failed and takes no more writes: {0}")]
    Failed(String),
    /// The store was closed by its owner.
    #[error("the store is closed")]
    Closed,
    /// The caller broke the order of the log: indexes without a gap, terms that never fall.
    #[error("entry {found} does not follow: expected index {expected}")]
    NotContinuous {
        /// The index that had to come next.
        expected: u64,
        /// The id that came instead.
        found: String,
    },
    /// The caller asked for something outside what is stored (purged, cut, or not yet written).
    #[error("{what} {wanted} is outside the stored range [{min}, {max})")]
    OutOfRange {
        /// What was asked for: `index` or `physical offset`.
        what: &'static str,
        /// The value asked for.
        wanted: u64,
        /// First stored value.
        min: u64,
        /// One past the last stored value.
        max: u64,
    },
    /// A value exceeds a limit of the format.
    #[error("{what} has {size} bytes, the limit is {max}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// Another process holds the data folder.
    #[error("the data folder {0} is in use by another process; give each broker its own folder")]
    Locked(PathBuf),
    /// The data folder belongs to another broker; the text names both values and what to do.
    #[error("{0}")]
    Identity(String),
    /// Bytes handed to a decoder are not what it reads.
    #[error("cannot decode {what}: {reason}")]
    Decode {
        /// What was being decoded.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl StoreError {
    /// An I/O error with the operation and the file it happened on.
    pub fn io(operation: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io {
            operation,
            path: path.into(),
            source,
        }
    }

    /// Whether the file system, or a quota on it, had no space left for the operation.
    pub fn is_out_of_space(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ))
    }

    /// Whether stored bytes are damaged.
    pub fn is_corrupt(&self) -> bool {
        matches!(self, Self::Corrupt { .. })
    }

    /// A decoding error.
    pub fn decode(what: &'static str, reason: impl Into<String>) -> Self {
        Self::Decode {
            what,
            reason: reason.into(),
        }
    }
}
