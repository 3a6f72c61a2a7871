//! Writes checkpoints beside the apply task that takes them.

use std::{sync::Arc, time::Duration};

use raftmq_store::{CommitLog, index::QueueIndex};
use tokio::time::sleep;

use super::{
    Checkpoints, Job, is_flushed,
    jobs::{Jobs, jobs},
};
use crate::host::blocking;

/// Runs of the index are merged only while the disk is not fuller: a merge needs as much space as
/// its runs have. Unit: percent.
const MERGE_USED_MAX: u8 = 90;
/// Pause between looks at the flushed index, and how often to look before giving up.
const FLUSH_WAIT: Duration = Duration::from_millis(2);
/// See [`FLUSH_WAIT`].
const FLUSH_WAITS_MAX: u32 = 5_000;

/// Hands checkpoints to the task that writes them.
#[derive(Clone, Debug)]
pub struct CheckpointWriter {
    jobs: Jobs<Job>,
}

#[derive(Clone)]
struct Files {
    checkpoints: Arc<Checkpoints>,
    log: Arc<CommitLog>,
    index: Arc<QueueIndex>,
}

impl CheckpointWriter {
    /// Starts the writer; it ends when the last handle is dropped.
    pub fn start(
        checkpoints: Arc<Checkpoints>,
        log: Arc<CommitLog>,
        index: Arc<QueueIndex>,
    ) -> Self {
        let files = Files {
            checkpoints,
            log,
            index,
        };
        let (jobs, mut inbox) = jobs::<Job>();
        tokio::spawn(async move {
            files.run(|files| files.checkpoints.hold_reserve()).await;
            while let Some((job, pending)) = inbox.next().await {
                let at = job.id.index;
                if files.until_flushed(at).await {
                    files.run(move |files| files.write(job)).await;
                } else {
                    tracing::error!(index = at, "a checkpoint's entry is not flushed after 10 s");
                }
                drop(pending);
                files.run(Files::tidy).await;
            }
        });
        Self { jobs }
    }

    /// Whether nothing is queued or being written.
    pub fn is_idle(&self) -> bool {
        self.jobs.is_idle()
    }

    /// Whether [`submit`](Self::submit) would accept a job. There is one submitter, the apply task.
    pub fn has_room(&self) -> bool {
        self.jobs.has_room()
    }

    /// Queues `job`. The caller has seen [`has_room`](Self::has_room), so that no frozen index
    /// memory is ever dropped unwritten.
    pub(crate) fn submit(&self, job: Job) {
        if self.jobs.submit(job).is_err() {
            tracing::error!("checkpoint writer is gone; a restart will begin from an older one");
        }
    }
}

impl Files {
    /// Does work on the files away from tasks that must not wait for the disk.
    async fn run(&self, work: impl FnOnce(&Self) + Send + 'static) {
        let files = self.clone();
        if let Err(error) = blocking(move || work(&files)).await {
            tracing::error!(%error, "write checkpoints");
        }
    }

    /// Waits until the entry at `index` is flushed; false when it takes too long.
    async fn until_flushed(&self, index: u64) -> bool {
        for _ in 0..FLUSH_WAITS_MAX {
            if is_flushed(&self.log, index) {
                return true;
            }
            sleep(FLUSH_WAIT).await;
        }
        false
    }

    fn write(&self, job: Job) {
        let index = job.id.index;
        match self.checkpoints.write(job, &self.log, &self.index) {
            Ok(()) => tracing::debug!(index, "wrote checkpoint"),
            // Not fatal: a restart begins from an older checkpoint.
            Err(error) => tracing::error!(index, %error, "write checkpoint"),
        }
    }

    fn tidy(&self) {
        let space = self.checkpoints.space().unwrap_or_default();
        if space.used_percent() <= MERGE_USED_MAX
            && let Err(error) = self.index.merge_step()
        {
            tracing::error!(%error, "merge index runs");
        }
        self.checkpoints.hold_reserve();
    }
}
