//! Retention: which part of the log may go, by RocketMQ's rules.
//!
//! Segments expire after `fileReservedTime` and are deleted in the hours of `deleteWhen`, at any
//! hour when the disk is fuller than `diskMaxUsedSpaceRatio` or when request 329 asks for it, and,
//! unless `cleanFileForciblyEnable` is false, before they expire when it is fuller than
//! `diskSpaceCleanForciblyRatio`. Deleting means: the checkpoint at a segment boundary becomes the
//! Raft snapshot, and Raft purges the log up to it. Every replica decides for itself.
//!
//! A damaged range that all peers have deleted can be mended by nobody, so it is deleted here too,
//! with what lies before it.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{broker::Broker, checkpoint::RollPoint, host::blocking, raft::Consensus};

/// Pause between cleanings. RocketMQ's `cleanResourceInterval`, 10 s.
const CLEAN_INTERVAL: Duration = Duration::from_secs(10);
/// Pause while unexpired segments have to go: each pass gives up one of them, and the writes that
/// fill the disk go on meanwhile.
const FORCED_INTERVAL: Duration = Duration::from_secs(1);
const MS_PER_HOUR: u64 = 3_600_000;

/// What the decision depends on.
#[derive(Clone, Copy, Debug)]
struct Situation {
    now_ms: u64,
    /// Whether the local hour is one of `deleteWhen`, or somebody asks for it.
    delete_now: bool,
    /// Used space of the file system. Unit: percent.
    disk_used: u8,
    reserved_ms: u64,
    max_used: u8,
    /// `None`: unexpired segments stay.
    clean_forcibly: Option<u8>,
    /// The log has damage before this address that nobody can mend.
    gone_until: Option<u64>,
}

/// The point up to which the log should be purged now. `rolls` is ordered, oldest first.
fn decide(situation: Situation, rolls: &[RollPoint], purged: Option<u64>) -> Option<RollPoint> {
    let candidates: Vec<&RollPoint> = rolls
        .iter()
        .filter(|roll| purged.is_none_or(|purged| roll.id.index > purged))
        .collect();
    if let Some(until) = situation.gone_until
        && let Some(roll) = candidates.iter().find(|roll| roll.physical_offset >= until)
    {
        return Some(**roll);
    }
    let expired = |roll: &&&RollPoint| {
        // Without a message there is nothing to expire, and nothing gained.
        let has_messages = roll.last_store_timestamp_ms > 0;
        has_messages
            && roll
                .last_store_timestamp_ms
                .saturating_add(situation.reserved_ms)
                <= situation.now_ms
    };
    let due = situation.delete_now || situation.disk_used > situation.max_used;
    let newest_expired = candidates.iter().rev().find(expired).filter(|_| due);
    if let Some(roll) = newest_expired {
        return Some(**roll);
    }
    // Nothing expired helps: give up the oldest segment, one at a time.
    situation
        .clean_forcibly
        .filter(|limit| situation.disk_used > *limit)
        .and_then(|_| candidates.first().map(|roll| **roll))
}

/// Cleans for as long as the process runs.
pub(crate) async fn run(broker: Arc<Broker>) {
    let mut cleaned = Instant::now();
    loop {
        let asked = tokio::select! {
            biased;
            () = broker.clean_asked.notified() => true,
            () = sleep(FORCED_INTERVAL) => false,
        };
        let Some(consensus) = broker.consensus().cloned() else {
            continue;
        };
        let situation = observe(&broker, asked);
        let is_forced = situation
            .clean_forcibly
            .is_some_and(|limit| situation.disk_used > limit);
        let is_damaged = situation.gone_until.is_some();
        if asked || is_forced || is_damaged || cleaned.elapsed() >= CLEAN_INTERVAL {
            clean(&broker, &consensus, situation).await;
            cleaned = Instant::now();
        }
    }
}

async fn clean(broker: &Broker, consensus: &Arc<Consensus>, situation: Situation) {
    let log = broker.machine.log();
    let rolls = consensus.checkpoints().rolls();
    let purged = log.purged_id().map(|id| id.index);
    if let Some(roll) = decide(situation, &rolls, purged) {
        tracing::info!(
            index = roll.id.index,
            physical_offset = roll.physical_offset,
            disk_used = situation.disk_used,
            "purge the log"
        );
        let before = log.segment_bases();
        if let Err(error) = consensus.purge(roll.id.index).await {
            tracing::warn!(%error, "purge the log");
        }
        let begin = log.min_physical();
        let removed = before.iter().filter(|base| **base < begin).count();
        let counter = &broker.metrics.log.segments_removed_total;
        counter.inc_by(removed as u64);
    }
    broker.machine.index().set_min_physical(log.min_physical());
    let checkpoints = Arc::clone(consensus.checkpoints());
    if let Err(error) = blocking(move || checkpoints.hold_reserve()).await {
        tracing::error!(%error, "hold the reserve");
    }
}

fn observe(broker: &Broker, asked: bool) -> Situation {
    let config = &broker.config;
    let log = broker.machine.log();
    let gone_until = log.gone_until();
    let now_ms = broker.clock.now_ms();
    let hour = (now_ms + broker.clock.local_offset_ms()) / MS_PER_HOUR % 24;
    let is_delete_hour = config
        .delete_when_hours
        .iter()
        .any(|when| u64::from(*when) == hour);
    Situation {
        now_ms,
        delete_now: asked || is_delete_hour,
        disk_used: broker.disk.used_percent(),
        reserved_ms: config.file_reserved_hours * MS_PER_HOUR,
        max_used: config.disk_max_used_ratio,
        clean_forcibly: config
            .clean_file_forcibly
            .then_some(config.disk_clean_forcibly_ratio),
        gone_until: (gone_until > log.min_physical()).then_some(gone_until),
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

    fn situation(delete_now: bool, disk_used: u8) -> Situation {
        Situation {
            now_ms: 1000,
            delete_now,
            disk_used,
            reserved_ms: 100,
            max_used: 75,
            clean_forcibly: Some(85),
            gone_until: None,
        }
    }

    #[test]
    fn expired_segments_go_at_the_hour_or_under_pressure() {
        let rolls = [roll(10, 500), roll(20, 900), roll(30, 950)];
        assert_eq!(decide(situation(true, 10), &rolls, None), Some(rolls[1]));
        assert_eq!(decide(situation(false, 76), &rolls, None), Some(rolls[1]));
        assert_eq!(decide(situation(false, 75), &rolls, None), None);
        assert_eq!(decide(situation(true, 10), &rolls, Some(20)), None);
    }

    #[test]
    fn a_point_whose_newest_message_is_unknown_is_never_expired() {
        assert_eq!(decide(situation(true, 80), &[roll(10, 0)], None), None);
    }

    #[test]
    fn what_nobody_can_mend_goes_with_what_lies_before_it() {
        let rolls = [roll(10, 990), roll(20, 995), roll(30, 996)];
        let damaged = Situation {
            gone_until: Some(1500),
            ..situation(false, 10)
        };
        assert_eq!(decide(damaged, &rolls, None), Some(rolls[1]));
        // No checkpoint behind it yet.
        assert_eq!(decide(damaged, &rolls[..1], None), None);
    }

    #[test]
    fn a_full_disk_gives_up_the_oldest_segment_only() {
        let rolls = [roll(10, 990), roll(20, 995)];
        assert_eq!(decide(situation(true, 85), &rolls, None), None);
        assert_eq!(decide(situation(false, 86), &rolls, None), Some(rolls[0]));
        assert_eq!(
            decide(situation(false, 86), &rolls, Some(10)),
            Some(rolls[1])
        );
        assert_eq!(decide(situation(false, 99), &rolls, Some(20)), None);
        let kept = Situation {
            clean_forcibly: None,
            ..situation(true, 99)
        };
        assert_eq!(decide(kept, &rolls, None), None);
    }
}
