//! Hands jobs to the one task that does them, and tells how many are not done yet. A job counts from
//! before it is handed over until its [`Pending`] is dropped, however its work ends.

use std::sync::Arc;

use tokio::sync::mpsc;

// A model of this file puts its own atomics there.
use super::sync::atomic::{AtomicUsize, Ordering};

/// Jobs that may wait or be under way. Beyond it no checkpoint is taken: the next one covers it.
const JOBS_MAX: usize = 4;

/// The end that hands over. There is one at a time that does so.
#[derive(Debug)]
pub(crate) struct Jobs<J> {
    pub(super) queue: mpsc::Sender<J>,
    pending: Arc<AtomicUsize>,
}

/// The end that does the work, one job at a time.
#[derive(Debug)]
pub(crate) struct Inbox<J> {
    queue: mpsc::Receiver<J>,
    pending: Arc<AtomicUsize>,
}

/// Counts a job as not done.
#[derive(Debug)]
pub(crate) struct Pending(Arc<AtomicUsize>);

/// Two ends of one hand-over. The inbox ends when the last of the others is dropped.
pub(crate) fn jobs<J>() -> (Jobs<J>, Inbox<J>) {
    let (sender, receiver) = mpsc::channel(JOBS_MAX);
    let pending = Arc::new(AtomicUsize::new(0));
    let jobs = Jobs {
        queue: sender,
        pending: Arc::clone(&pending),
    };
    let inbox = Inbox {
        queue: receiver,
        pending,
    };
    (jobs, inbox)
}

impl<J> Jobs<J> {
    /// Whether nothing waits or is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.load(Ordering::SeqCst) == 0
    }

    /// Whether [`submit`](Self::submit) takes a job as long as the inbox is there.
    pub(crate) fn has_room(&self) -> bool {
        self.pending.load(Ordering::SeqCst) < JOBS_MAX
    }

    /// Hands a job over; it comes back when there is no room or no inbox.
    pub(crate) fn submit(&self, job: J) -> Result<(), J> {
        // First: a job may be done before this returns.
        self.pending.fetch_add(1, Ordering::SeqCst);
        self.queue.try_send(job).map_err(|error| {
            self.pending.fetch_sub(1, Ordering::SeqCst);
            error.into_inner()
        })
    }
}

impl<J> Clone for Jobs<J> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            pending: Arc::clone(&self.pending),
        }
    }
}

impl<J> Inbox<J> {
    /// Waits for the next job; `None` when there will be none.
    pub(crate) async fn next(&mut self) -> Option<(J, Pending)> {
        let job = self.queue.recv().await?;
        Some((job, Pending(Arc::clone(&self.pending))))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
