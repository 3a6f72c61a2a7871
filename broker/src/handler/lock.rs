//! Locks of orderly consumption: 41 LOCK_BATCH_MQ, 42 UNLOCK_BATCH_MQ. They are replicated, so that
//! a new leader honours what the old one gave.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use raftmq_remoting::body::{self, LockBatchRequest, LockBatchResponse, MessageQueue};
use raftmq_state::{Command, Reply};
use tokio::time::Instant;

use super::{Handled, Request, propose, success};
use crate::broker::Broker;

/// Locks queues for a client; the answer names those it holds now.
pub(super) async fn lock(broker: &Arc<Broker>, request: &Request) -> Handled {
    let asked: LockBatchRequest = body::decode(&request.command.body)?;
    let mut held = BTreeSet::new();
    let queues = queues_of(&asked.mq_set);
    if !queues.is_empty() {
        let command = Command::LockQueues {
            group: asked.consumer_group,
            client_id: asked.client_id,
            queues,
            now_ms: lock_time_ms(broker),
        };
        if let Reply::Locked(queues) = propose(broker, command).await? {
            held = queues.into_iter().collect();
        }
    }
    let is_held = |queue: &MessageQueue| key_of(queue).is_some_and(|key| held.contains(&key));
    let lock_ok_mq_set = asked.mq_set.into_iter().filter(is_held).collect();
    Ok(success(request).with_body(body::encode(&LockBatchResponse { lock_ok_mq_set })))
}

/// Gives queues back.
pub(super) async fn unlock(broker: &Arc<Broker>, request: &Request) -> Handled {
    let asked: LockBatchRequest = body::decode(&request.command.body)?;
    let queues = queues_of(&asked.mq_set);
    if !queues.is_empty() {
        let command = Command::UnlockQueues {
            group: asked.consumer_group,
            client_id: asked.client_id,
            queues,
        };
        propose(broker, command).await?;
    }
    Ok(success(request))
}

/// Time in which locks grow old: it begins, with each term, where the newest lock stands and goes on
/// by a clock that nobody sets. A step of the wall clock, or a new leader whose clock is ahead,
/// takes no lock from its owner; the lock of a client that is gone may last 60 s into a new term.
#[derive(Debug, Default)]
pub(crate) struct LockTime(Mutex<Option<Beginning>>);

#[derive(Clone, Copy, Debug)]
struct Beginning {
    term: u64,
    at: Instant,
    /// Unit: ms since 1970 by the clock of the leader that gave the first lock.
    time_ms: u64,
}

impl LockTime {
    /// The time now; `None` before it has begun in that term.
    fn now_ms(&self, term: u64) -> Option<u64> {
        let beginning = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = beginning.filter(|begun| begun.term == term)?;
        let passed = u64::try_from(begun.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        Some(begun.time_ms.saturating_add(passed))
    }

    /// Begins at `time_ms`, unless it has begun in that term.
    fn begin(&self, term: u64, time_ms: u64) {
        let mut beginning = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if beginning.is_none_or(|begun| begun.term != term) {
            let at = Instant::now();
            *beginning = Some(Beginning { term, at, time_ms });
        }
    }
}

fn lock_time_ms(broker: &Broker) -> u64 {
    let role = broker
        .consensus()
        .map(|consensus| consensus.role().borrow().clone());
    // Before it serves, this node may not know the newest lock: then no lock is old.
    let Some(role) = role.filter(|role| role.serving) else {
        return 0;
    };
    broker.lock_time.now_ms(role.term).unwrap_or_else(|| {
        let newest = broker.machine.state().newest_lock_ms();
        let begin_ms = newest.unwrap_or_else(|| broker.clock.now_ms());
        broker.lock_time.begin(role.term, begin_ms);
        begin_ms
    })
}

fn key_of(queue: &MessageQueue) -> Option<(String, u32)> {
    Some((queue.topic.clone(), u32::try_from(queue.queue_id).ok()?))
}

/// The queues a command takes: each once, in order.
fn queues_of(queues: &[MessageQueue]) -> Vec<(String, u32)> {
    let unique: BTreeSet<_> = queues.iter().filter_map(key_of).collect();
    unique.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn locks_grow_old_by_the_time_that_passes_in_a_term() {
        let time = LockTime::default();
        assert_eq!(time.now_ms(1), None);
        time.begin(1, 5_000);
        tokio::time::advance(std::time::Duration::from_secs(7)).await;
        time.begin(1, 999_000);
        assert_eq!(time.now_ms(1), Some(12_000));
        // The next term begins at the newest lock, whatever the clocks say.
        assert_eq!(time.now_ms(2), None);
        time.begin(2, 9_000);
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        assert_eq!(time.now_ms(2), Some(10_000));
    }

    #[test]
    fn a_command_names_each_legal_queue_once() {
        let queue = |queue_id| MessageQueue {
            topic: "T".into(),
            queue_id,
            ..Default::default()
        };
        let queues = queues_of(&[queue(2), queue(-1), queue(0), queue(2)]);
        assert_eq!(queues, [("T".to_owned(), 0), ("T".to_owned(), 2)]);
    }
}
