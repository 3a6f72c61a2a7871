//! What the broker still takes as its disk fills up.
//!
//! A failed write of the log ends the process, so writing has to stop before the disk is full. Two
//! things are looked at: how full the file systems are, for RocketMQ's watermarks, and how many
//! bytes are left. Bytes that are left may be taken by another process at any moment; the ground
//! behind the log's end (zero-filled, see `raftmq_store`) may not. So
//!
//! - messages need space that is left: they never live on the ground alone,
//! - offsets and metadata may use the ground, up to a rest,
//! - a follower takes the leader's entries on its ground, up to a smaller rest,
//! - Raft's own entries may have that rest, and a node without it does not stand for election.
//!
//! What is held back for checkpoints counts as taken even while it is not: it is released when one
//! needs it and taken again right after, faster than anybody looks.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use raftmq_store::CommitLog;

use crate::config::BrokerConfig;

/// Space that must be left for messages besides what waits already. The largest entry, 16 MiB.
const MESSAGE_SPACE: u64 = 16 << 20;
/// Room that offsets and metadata leave: twice their largest entry.
const NOTE_ROOM: u64 = 2 << 20;
/// Room that a follower leaves.
const FOLLOWER_ROOM: u64 = 1 << 20;
/// Room for Raft's own entries, below which a node does not stand for election. A new leader
/// writes about 100 bytes.
const ELECTION_ROOM: u64 = 64 << 10;
/// With small segments there is less ground: a segment and its successor. The room required is at
/// most this part of a segment.
const SEGMENT_PART: u64 = 2;

/// How many bytes must be left for what; see the head of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomLimits {
    message_space: u64,
    note_room: u64,
    /// Least room a follower keeps when it takes an entry.
    pub follower_room: u64,
    /// Least room with which a node stands for election.
    pub election_room: u64,
}

impl RoomLimits {
    /// The limits for segments of this size.
    pub fn of_segment(segment_bytes: u64) -> Self {
        let most = segment_bytes / SEGMENT_PART;
        let scaled = |limit: u64| limit.min(most / (MESSAGE_SPACE / limit));
        Self {
            message_space: scaled(MESSAGE_SPACE),
            note_room: scaled(NOTE_ROOM),
            follower_room: scaled(FOLLOWER_ROOM),
            election_room: scaled(ELECTION_ROOM),
        }
    }
}

/// Bytes the log can still grow by: its ground and what the file system has.
pub fn room(log: &CommitLog) -> u64 {
    log.ground_bytes().saturating_add(log.available_bytes())
}

/// What is known of the disk. Written by the look, read for every send.
#[derive(Debug)]
pub struct DiskGuard {
    limits: RoomLimits,
    warning_percent: u8,
    clean_forcibly_percent: u8,
    used_percent: AtomicU8,
    /// Above the watermark, as RocketMQ counts.
    above: AtomicBool,
}

impl DiskGuard {
    /// The guard of a broker with this configuration.
    #[must_use]
    pub fn new(config: &BrokerConfig) -> Self {
        Self {
            limits: RoomLimits::of_segment(config.segment_bytes),
            warning_percent: config.disk_warning_ratio,
            clean_forcibly_percent: config.disk_clean_forcibly_ratio,
            used_percent: AtomicU8::new(0),
            above: AtomicBool::new(false),
        }
    }

    /// Used part of the fullest file system. Unit: percent.
    pub fn used_percent(&self) -> u8 {
        self.used_percent.load(Ordering::Relaxed)
    }

    /// Whether a message of `bytes` bytes may be proposed while `waiting` bytes are under way.
    pub fn takes_message(&self, log: &CommitLog, waiting: usize, bytes: usize) -> bool {
        let wanted = self.limits.message_space + waiting as u64 + bytes as u64;
        !self.above.load(Ordering::Relaxed) && log.available_bytes() >= wanted
    }

    /// Whether offsets or metadata may be proposed.
    pub fn takes_note(&self, log: &CommitLog) -> bool {
        room(log) >= self.limits.note_room
    }

    /// Whether a node with this log may stand for election.
    pub fn may_lead(&self, log: &CommitLog) -> bool {
        room(log) >= self.limits.election_room
    }

    /// Takes in how full the file systems are.
    pub fn note_used(&self, percent: u8) {
        self.used_percent.store(percent, Ordering::Relaxed);
        let was = self.above.load(Ordering::Relaxed);
        let is = is_above(
            was,
            percent,
            self.warning_percent,
            self.clean_forcibly_percent,
        );
        if is != was {
            self.above.store(is, Ordering::Relaxed);
            tracing::warn!(
                refuse_messages = is,
                used_percent = percent,
                "disk watermark"
            );
        }
    }
}

/// RocketMQ's rule: messages are refused above `diskSpaceWarningLevelRatio` until the disk is no
/// longer above `diskSpaceCleanForciblyRatio`.
fn is_above(was: bool, used: u8, warning: u8, clean_forcibly: u8) -> bool {
    used > warning || (was && used > clean_forcibly)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_refused_above_the_watermark_until_cleaning_is_done() {
        let rows = [
            (false, 90, false),
            (false, 91, true),
            (true, 90, true),
            (true, 86, true),
            (true, 85, false),
            (false, 86, false),
        ];
        for (was, used, expected) in rows {
            assert_eq!(is_above(was, used, 90, 85), expected, "{was} {used}");
        }
    }

    #[test]
    fn the_rests_are_ordered_and_fit_into_one_segment() {
        for segment_bytes in [1 << 20, 4 << 20, 64 << 20, 1 << 30] {
            let limits = RoomLimits::of_segment(segment_bytes);
            let RoomLimits {
                message_space,
                note_room,
                follower_room,
                election_room,
            } = limits;
            assert!(message_space <= segment_bytes / 2);
            assert!(note_room < message_space && follower_room < note_room);
            assert!(election_room < follower_room && election_room >= 2048);
        }
        let whole = RoomLimits::of_segment(1 << 30);
        assert_eq!(whole.message_space, MESSAGE_SPACE);
        assert_eq!(whole.election_room, ELECTION_ROOM);
    }
}
