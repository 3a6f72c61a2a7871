//! The store of a RaftMQ broker: the Raft log that is the commit log, votes, checkpoints and the
//! consume queue index. Synchronous; every file goes through [`disk::Disk`]; it starts no threads.
//!
//! The log: [`CommitLog`] takes entries and gives them back; [`Flusher`] and [`Preallocator`] are
//! driven by one thread each. Reading order for newcomers: `record.rs` (the bytes), `commit_log.rs`
//! (appending), `flush.rs` (group commit), `recover.rs` (what a restart trusts and why).
//! What the store keeps true:
//! - S1: a completion that said `Ok` under [`FlushPolicy::Sync`] names bytes that survive a crash.
//! - S2: bytes at an address are equal on all replicas with the same header CRC there.
//! - S3: recovery cuts only bytes that were never synced; anything else that is damaged is refused,
//!   and mended from peers ([`Survey`], [`Mender`]) or, if that cannot be, given up under S5.
//! - S4: after a failed write or sync nothing is acknowledged any more.
//! - S5: before a synced end is given up, it is durably noted that the node must not vote.

pub mod checkpoint;
pub mod disk;
pub mod error;
pub mod index;

mod behind;
mod blocks;
mod commit_log;
mod config;
mod cut;
mod dump;
mod flush;
mod identity;
mod mend;
mod position;
mod prealloc;
mod range;
mod read;
mod record;
mod recover;
mod repair;
mod reserve;
mod scrub;
mod segment;
mod space;
mod sparse;
mod survey;
#[cfg(test)]
mod survey_tests;
mod sync;
mod tail;
mod verified;
mod vote;

#[cfg(test)]
mod test_disk;

#[cfg(feature = "interleavings")]
#[cfg(test)]
mod interleavings_tests;

#[cfg(test)]
mod log_tests;

#[cfg(test)]
mod recover_tests;

#[cfg(test)]
mod repair_tests;

pub use commit_log::{CommitLog, Completion};
pub use config::{FlushPolicy, LogConfig};
pub use disk::{Disk, DiskFile, DiskLock, DiskSpace, RealDisk};
pub use dump::{dump, synced_watermark};
pub use error::StoreError;
pub use flush::{FlushOutcome, Flusher};
pub use identity::{FORMAT_VERSION, Identity, lock_folder};
pub use mend::{LiveDamage, end_guard};
pub use position::LogPosition;
pub use prealloc::{PreallocOutcome, Preallocator};
pub use range::{RangeAnswer, RangeRequest, RangeSource};
pub use record::{EntryKind, HEADER_BYTES, LogId, NewEntry, PAYLOAD_BYTES_MAX, StoredEntry};
pub use recover::{RecoveryReport, TornEnd};
pub use repair::{Damage, Mender, Taken};
pub use reserve::Reserve;
pub use scrub::{Scrub, Scrubbed};
pub use survey::{Found, Survey};
pub use vote::{VOTE_BYTES_MAX, has_log};
