//! Reads of messages that are not in memory. They wait for the disk, perhaps for long, and must not
//! do so on the threads that serve connections: a few of them would stop everything.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, task::JoinError, time::timeout};

use crate::host::blocking;

/// Reads at a time: more than a disk gains from, and few beside the 512 threads that retention,
/// checkpoints and the disk guard need too.
const COLD_READS_MAX: usize = 64;
/// Longest wait for one. Clients give up a pull that asks for messages after 10 s.
const COLD_READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a read gave nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ColdReadError {
    #[error("the disk did not answer for {0:?}")]
    Late(Duration),
    #[error("the read ended early: {0}")]
    Ended(#[from] JoinError),
}

/// Where reads go that leave the worker of their request.
#[derive(Debug)]
pub(crate) struct ColdReads {
    permits: Arc<Semaphore>,
}

impl Default for ColdReads {
    fn default() -> Self {
        Self {
            permits: Arc::new(Semaphore::new(COLD_READS_MAX)),
        }
    }
}

impl ColdReads {
    /// Does `work` on a thread that may wait for the disk.
    ///
    /// # Errors
    /// When it takes too long; it is then still done, and counts as long as it is.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ColdReadError> {
        let permits = Arc::clone(&self.permits);
        let read = async {
            let permit = permits.acquire_owned().await;
            blocking(move || {
                let done = work();
                drop(permit);
                done
            })
            .await
        };
        let late = |_| ColdReadError::Late(COLD_READ_TIMEOUT);
        Ok(timeout(COLD_READ_TIMEOUT, read).await.map_err(late)??)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    use futures::{FutureExt, future::join_all};

    use super::*;

    #[tokio::test]
    async fn a_read_that_waits_leaves_the_thread_to_others() {
        let reads = ColdReads::default();
        let (go_on, may_go_on) = mpsc::channel();
        let mut waits = Box::pin(reads.run(move || may_go_on.recv()));
        // This test has one thread, like a worker.
        assert!(waits.as_mut().now_or_never().is_none());
        go_on.send(7).unwrap();
        assert_eq!(waits.await.unwrap(), Ok(7));
    }

    #[tokio::test]
    async fn reads_at_a_time_are_bounded_also_when_nobody_waits_for_them_any_more() {
        let reads = ColdReads::default();
        let (under_way, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let one = |_| {
            let (under_way, most) = (Arc::clone(&under_way), Arc::clone(&most));
            reads.run(move || {
                let now = under_way.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(1));
                under_way.fetch_sub(1, Ordering::SeqCst);
            })
        };
        for read in (0..COLD_READS_MAX).map(one) {
            // Begun and given up.
            assert!(Box::pin(read).now_or_never().is_none());
        }
        join_all((0..4 * COLD_READS_MAX).map(one)).await;
        assert!(most.load(Ordering::SeqCst) <= COLD_READS_MAX);
    }
}
