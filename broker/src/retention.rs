//! Retention: which part of the log may go, by RocketMQ's rules.
//!
//! Segments expire after `fileReservedTime` and are deleted in the hours of `deleteWhen`, at any
//! hour when the disk is fuller than `diskMaxUsedSpaceRatio`, and before they expire when it is
//! fuller than `diskSpaceCleanForciblyRatio`. Deleting means: the checkpoint at a segment boundary
//! becomes the Raft snapshot, and Raft purges the log up to it. Every replica decides for itself.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::sleep;

use crate::{broker::Broker, checkpoint::RollPoint};

/// Pause between looks. RocketMQ's `cleanResourceInterval`, 10 s.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
const MS_PER_HOUR: u64 = 3_600_000;

/// What the decision depends on.
#[derive(Clone, Copy, Debug)]
struct Situation {
    now_ms: u64,
    /// Whether the local hour is one of `deleteWhen`.
    delete_hour: bool,
    /// Used space of the file system. Unit: percent.
    disk_used: u8,
    reserved_ms: u64,
    max_used: u8,
    clean_forcibly: u8,
}

/// The point up to which the log should be purged now. `rolls` is ordered, oldest first.
fn decide(situation: Situation, rolls: &[RollPoint], purged: Option<u64>) -> Option<RollPoint> {
    let candidates: Vec<&RollPoint> = rolls
        .iter()
        .filter(|roll| purged.is_none_or(|purged| roll.id.index > purged))
        .collect();
    let expired = |roll: &&&RollPoint| {
        // Without a message there is nothing to expire, and nothing gained.
        let has_messages = roll.last_store_timestamp_ms > 0;
        has_messages
            && roll
                .last_store_timestamp_ms
                .saturating_add(situation.reserved_ms)
                <= situation.now_ms
    };
    let due = situation.delete_hour || situation.disk_used >= situation.max_used;
    let newest_expired = candidates.iter().rev().find(expired).filter(|_| due);
    if let Some(roll) = newest_expired {
        return Some(**roll);
    }
    // Nothing expired helps: give up the oldest segment, one at a time.
    (situation.disk_used >= situation.clean_forcibly)
        .then(|| candidates.first().map(|roll| **roll))
        .flatten()
}

/// Looks for as long as the process runs.
pub(crate) async fn run(broker: Arc<Broker>) {
    loop {
        sleep(LOOK_INTERVAL).await;
        let Some(consensus) = broker.consensus() else {
            continue;
        };
        let situation = observe(&broker);
        let full = situation.disk_used >= broker.config.disk_warning_ratio;
        if full != broker.disk_full.swap(full, Ordering::Relaxed) {
            tracing::warn!(full, disk_used = situation.disk_used, "disk");
        }
        let rolls = consensus.checkpoints().rolls();
        let purged = broker.machine.log().purged_id().map(|id| id.index);
        if let Some(roll) = decide(situation, &rolls, purged) {
            tracing::info!(
                index = roll.id.index,
                physical_offset = roll.physical_offset,
                disk_used = situation.disk_used,
                "purge the log"
            );
            if let Err(error) = consensus.purge(roll.id.index).await {
                tracing::warn!(%error, "purge the log");
            }
        }
        broker
            .machine
            .index()
            .set_min_physical(broker.machine.log().min_physical());
    }
}

fn observe(broker: &Broker) -> Situation {
    let config = &broker.config;
    let now_ms = broker.clock.now_ms();
    let hour = (now_ms + broker.clock.local_offset_ms()) / MS_PER_HOUR % 24;
    Situation {
        now_ms,
        delete_hour: config
            .delete_when_hours
            .iter()
            .any(|when| u64::from(*when) == hour),
        disk_used: disk_used_percent(broker),
        reserved_ms: config.file_reserved_hours * MS_PER_HOUR,
        max_used: config.disk_max_used_ratio,
        clean_forcibly: config.disk_clean_forcibly_ratio,
    }
}

/// Used space of the log's file system. Unit: percent, 0-100; 0 when it cannot be told.
pub(crate) fn disk_used_percent(broker: &Broker) -> u8 {
    match broker.machine.log().disk_space() {
        Ok((free, total)) if total > 0 => {
            u8::try_from((total - free.min(total)) * 100 / total).unwrap_or(100)
        }
        Ok(_) => 0,
        Err(error) => {
            tracing::warn!(%error, "read free disk space");
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use raftmq_store::LogId;

    use super::*;

    fn roll(index: u64, last_store_timestamp_ms: u64) -> RollPoint {
        let id = LogId {
            term: 1,
            node: 0,
            index,
        };
        RollPoint {
            id,
            physical_offset: index * 100,
            last_store_timestamp_ms,
        }
    }

    fn situation(delete_hour: bool, disk_used: u8) -> Situation {
        Situation {
            now_ms: 1000,
            delete_hour,
            disk_used,
            reserved_ms: 100,
            max_used: 75,
            clean_forcibly: 85,
        }
    }

    #[test]
    fn expired_segments_go_at_the_hour_or_under_pressure() {
        let rolls = [roll(10, 500), roll(20, 900), roll(30, 950)];
        assert_eq!(decide(situation(true, 10), &rolls, None), Some(rolls[1]));
        assert_eq!(decide(situation(false, 75), &rolls, None), Some(rolls[1]));
        assert_eq!(decide(situation(false, 74), &rolls, None), None);
        assert_eq!(decide(situation(true, 10), &rolls, Some(20)), None);
    }

    #[test]
    fn a_point_whose_newest_message_is_unknown_is_never_expired() {
        assert_eq!(decide(situation(true, 80), &[roll(10, 0)], None), None);
    }

    #[test]
    fn a_full_disk_gives_up_the_oldest_segment_only() {
        let rolls = [roll(10, 990), roll(20, 995)];
        assert_eq!(decide(situation(true, 84), &rolls, None), None);
        assert_eq!(decide(situation(false, 85), &rolls, None), Some(rolls[0]));
        assert_eq!(
            decide(situation(false, 85), &rolls, Some(10)),
            Some(rolls[1])
        );
        assert_eq!(decide(situation(false, 99), &rolls, Some(20)), None);
    }
}
