//! Parked pulls: consumers that asked for messages which do not exist yet.
//!
//! A pull parks under its queue with the tag hashes it wants; the apply task wakes those that a
//! new message matches. The map holds only senders, so a pull whose client went away is dropped
//! at the next wake of its queue or when its handler gives up.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use raftmq_state::Appended;
use tokio::sync::oneshot;

/// Tag hashes a consumer wants, sorted; `None` = all messages.
pub type TagFilter = Option<Arc<[i64]>>;

/// One parked pull.
#[derive(Debug)]
struct Parked {
    filter: TagFilter,
    wake: oneshot::Sender<()>,
}

impl Parked {
    fn wants(&self, tags_code: i64) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|codes| codes.binary_search(&tags_code).is_ok())
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// By queue, in the order in which they came. Leaving is cheap with any number beside it: all
    /// that look again and park anew would otherwise be quadratic.
    queues: HashMap<u32, BTreeMap<u64, Parked>>,
    next_id: u64,
    /// Nobody is to wait any more.
    closed: bool,
}

/// All parked pulls of this node. Owns its lock; taken for a map operation only.
#[derive(Debug, Default)]
pub struct LongPoll {
    inner: Mutex<Inner>,
    /// Number of parked pulls, so that applying without any costs no lock.
    count: AtomicUsize,
}

/// A place in the map; leaves it when dropped.
#[derive(Debug)]
pub struct Ticket {
    poll: Arc<LongPoll>,
    queue: u32,
    id: u64,
    woken: oneshot::Receiver<()>,
}

impl Ticket {
    /// Ready when a matching message was appended to the queue after parking.
    pub async fn woken(&mut self) {
        // An error means that the sender was dropped without a wake (queue removed): look again.
        let _ = (&mut self.woken).await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.poll.leave(self.queue, self.id);
    }
}

impl LongPoll {
    /// Parks a pull on `queue`. The caller must look at the queue once more after parking and
    /// before waiting: a message may have come in between.
    #[must_use]
    pub fn park(self: &Arc<Self>, queue: u32, filter: TagFilter) -> Ticket {
        let (wake, woken) = oneshot::channel();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let id = inner.next_id;
        inner.next_id += 1;
        inner
            .queues
            .entry(queue)
            .or_default()
            .insert(id, Parked { filter, wake });
        self.count.fetch_add(1, Ordering::SeqCst);
        Ticket {
            poll: Arc::clone(self),
            queue,
            id,
            woken,
        }
    }

    /// Wakes all and lets nobody wait any more: the process stops.
    pub fn close(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.closed = true;
        // Dropping the senders reads as a wake.
        inner.queues.clear();
        self.count.store(0, Ordering::SeqCst);
    }

    /// Whether a pull that finds nothing is to be answered instead of parked.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.closed
    }

    /// Number of pulls parked now.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Wakes the pulls that want one of `appended`.
    pub fn wake(&self, appended: &[Appended]) {
        if self.parked() == 0 {
            return;
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for unit in appended {
            let Some(parked) = inner.queues.get_mut(&unit.queue) else {
                continue;
            };
            let woken = parked.extract_if(.., |_, pull| pull.wants(unit.tags_code));
            for (_, pull) in woken {
                self.count.fetch_sub(1, Ordering::SeqCst);
                // The receiver may have given up at this very moment; then nobody waits.
                let _ = pull.wake.send(());
            }
        }
    }

    fn leave(&self, queue: u32, id: u64) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(parked) = inner.queues.get_mut(&queue) else {
            return;
        };
        let left = usize::from(parked.remove(&id).is_some());
        if parked.is_empty() {
            inner.queues.remove(&queue);
        }
        self.count.fetch_sub(left, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn appended(queue: u32, tags_code: i64) -> Appended {
        Appended {
            queue,
            queue_offset: 0,
            physical_offset: 0,
            size: 1,
            tags_code,
            store_timestamp_ms: 0,
        }
    }

    #[tokio::test]
    async fn a_matching_message_wakes_and_others_do_not() {
        let poll = Arc::new(LongPoll::default());
        let mut all = poll.park(1, None);
        let mut tagged = poll.park(1, Some(Arc::from([7])));
        let mut other_queue = poll.park(2, None);
        poll.wake(&[appended(1, 3)]);
        all.woken().await;
        assert!(tagged.woken.try_recv().is_err());
        poll.wake(&[appended(1, 7)]);
        tagged.woken().await;
        assert!(other_queue.woken.try_recv().is_err());
        assert_eq!(poll.parked(), 1);
    }

    #[tokio::test]
    async fn a_lone_message_wakes_a_lone_pull() {
        let poll = Arc::new(LongPoll::default());
        let mut ticket = poll.park(1, None);
        assert!(ticket.woken.try_recv().is_err());
        poll.wake(&[appended(1, 3)]);
        assert!(ticket.woken.try_recv().is_ok());
    }

    #[tokio::test]
    async fn a_stop_wakes_everybody_and_lets_nobody_wait() {
        let poll = Arc::new(LongPoll::default());
        let mut ticket = poll.park(1, None);
        assert!(!poll.is_closed());
        poll.close();
        ticket.woken().await;
        assert!(poll.is_closed());
        drop(ticket);
        assert_eq!(poll.parked(), 0);
    }

    #[test]
    fn a_dropped_ticket_leaves_nothing_behind() {
        let poll = Arc::new(LongPoll::default());
        drop(poll.park(1, None));
        assert_eq!(poll.parked(), 0);
        assert!(poll.inner.lock().unwrap().queues.is_empty());
    }
}
