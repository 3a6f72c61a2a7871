//! Locks of orderly consumption: one client of a group consumes a queue at a time. They are in
//! the log, so that a new leader honours the locks its predecessor gave.

use crate::limits::{QUEUE_LOCK_EXPIRY_MS, QUEUE_LOCKS_MAX};
use crate::per_queue::PerQueue;

/// The lock of one queue within one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueLock {
    /// Client that holds it, `ip@pid` as in the heartbeat.
    pub client_id: String,
    /// When the owner last asked for it, on the leader's clock. Unit: ms since 1970.
    pub locked_at_ms: u64,
}

impl QueueLock {
    /// Whether another client may take it: the owner has not asked for more than 60 s.
    pub fn is_expired(&self, now_ms: u64) -> bool {
        // A new leader's clock may be behind: then the lock is young.
        now_ms.saturating_sub(self.locked_at_ms) > QUEUE_LOCK_EXPIRY_MS
    }
}

/// Every lock that was given and not given back.
pub(crate) type QueueLocks = PerQueue<QueueLock>;

impl QueueLocks {
    /// Takes or refreshes a lock. Returns whether the client holds it now (invariant L1).
    pub(crate) fn lock(
        &mut self,
        group: &str,
        client_id: &str,
        topic: &str,
        queue_id: u32,
        now_ms: u64,
    ) -> bool {
        let Some(lock) = self.get_mut(group, topic, queue_id) else {
            if self.len() >= QUEUE_LOCKS_MAX {
                return false;
            }
            let lock = QueueLock {
                client_id: client_id.to_owned(),
                locked_at_ms: now_ms,
            };
            self.insert(group, topic, queue_id, lock);
            return true;
        };
        if lock.client_id == client_id {
            // Never back: a refresh under a slower clock must not shorten the lock.
            lock.locked_at_ms = lock.locked_at_ms.max(now_ms);
            return true;
        }
        if lock.is_expired(now_ms) {
            *lock = QueueLock {
                client_id: client_id.to_owned(),
                locked_at_ms: now_ms,
            };
            return true;
        }
        false
    }

    /// Gives locks back, those that the client holds.
    pub(crate) fn unlock_all(&mut self, group: &str, client_id: &str, queues: &[(String, u32)]) {
        for (topic, queue_id) in queues {
            self.unlock(group, client_id, topic, *queue_id);
        }
    }

    /// Gives a lock back, if the client holds it.
    fn unlock(&mut self, group: &str, client_id: &str, topic: &str, queue_id: u32) {
        if self
            .get(group, topic, queue_id)
            .is_some_and(|lock| lock.client_id == client_id)
        {
            self.remove(group, topic, queue_id);
        }
    }
}
