//! What the handlers of a broker share: configuration, replicated data, proposer, sessions.
//!
//! Locks of the process, each owned by one type and never held across an await: the state
//! (`machine`) and its last changes of topics, the log tail (`raftmq_store`), the sessions
//! (`session`), the parked pulls (`long_poll`), the time of orderly locks (`handler/lock.rs`);
//! besides them one small lock for each connection's answer buffer and one for the proposer's
//! intake. No code takes two of them except apply, which wakes pulls after the state lock is
//! released, and the gathered offset commits, which look at the state under their own.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock, atomic::AtomicUsize},
};

use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

use crate::{
    budget::{self, Account, Budget},
    clock::Clock,
    cold_read::ColdReads,
    config::BrokerConfig,
    disk_guard::DiskGuard,
    handler::{KeptUnits, LockTime},
    long_poll::LongPoll,
    machine::Machine,
    metrics::Metrics,
    offset_commits::OffsetCommits,
    proposer::Proposer,
    raft::Consensus,
    session::Sessions,
    stats::Stats,
};

/// Searches for messages by key that run at a time, of all clients together. Each keeps a thread
/// and the disk busy for up to half a second; those threads also serve retention and checkpoints.
const SEARCHES_MAX: usize = 2;

/// Shared by all handlers of one broker process.
#[derive(Debug)]
pub struct Broker {
    /// Configuration, validated.
    pub config: BrokerConfig,
    /// Address at which clients find the leader: `leaderServiceAddress`, else
    /// `brokerIP1:listenPort`. Part of every offset message id.
    pub store_host: SocketAddr,
    /// Wall clock.
    pub clock: Arc<dyn Clock>,
    /// State machine, consume queue, commit log.
    pub machine: Arc<Machine>,
    /// Parked pulls.
    pub long_poll: Arc<LongPoll>,
    /// Connected clients.
    pub sessions: Sessions,
    /// Consumer offsets that wait to be committed together.
    pub offset_commits: OffsetCommits,
    /// Prometheus metrics.
    pub metrics: Arc<Metrics>,
    /// Counters in RocketMQ's shape, for `mqadmin` and dashboards.
    pub stats: Stats,
    /// Start of this process. Unit: ms since 1970.
    pub boot_timestamp_ms: u64,
    /// The same by a clock that nobody sets: what is measured from here has no steps.
    started: Instant,
    /// Time in which orderly locks grow old.
    pub(crate) lock_time: LockTime,
    /// The memory that clients may hold.
    pub(crate) budget: Arc<Budget>,
    /// The account of what other replicas forward.
    pub(crate) forwarded: Arc<Account>,
    /// Searches for messages by key that may run.
    pub(crate) searches: Semaphore,
    /// Bytes of requests that wait for a leader; bounded in `server/dispatch.rs`.
    pub(crate) held_bytes: AtomicUsize,
    /// Reads that leave the workers.
    pub(crate) cold_reads: ColdReads,
    /// Parts of the consume queue that were read last.
    pub(crate) kept_units: Arc<KeptUnits>,
    /// What the disk still takes.
    pub disk: DiskGuard,
    /// Wakes the retention: somebody asks that what has expired be deleted now.
    pub(crate) clean_asked: Notify,
    consensus: OnceLock<Arc<Consensus>>,
    proposer: OnceLock<Arc<Proposer>>,
}

/// What a broker is made of before Raft is started.
#[derive(Debug)]
pub(crate) struct BrokerParts {
    pub config: BrokerConfig,
    pub store_host: SocketAddr,
    pub clock: Arc<dyn Clock>,
    pub machine: Arc<Machine>,
    pub long_poll: Arc<LongPoll>,
    pub metrics: Arc<Metrics>,
}

impl Broker {
    /// A broker that is not part of its group yet: [`join`](Self::join) must follow before the
    /// remoting port opens.
    pub(crate) fn new(parts: BrokerParts) -> Arc<Self> {
        let bytes = budget::bytes_of(parts.config.memory_budget_bytes);
        let budget = Budget::new(
            bytes,
            &parts.metrics.memory.budget_bytes,
            &parts.metrics.memory.held_bytes,
        );
        Arc::new(Self {
            forwarded: budget.account(),
            budget,
            searches: Semaphore::new(SEARCHES_MAX),
            boot_timestamp_ms: parts.clock.now_ms(),
            started: Instant::now(),
            lock_time: LockTime::default(),
            stats: Stats::new(0),
            disk: DiskGuard::new(&parts.config),
            clean_asked: Notify::new(),
            config: parts.config,
            store_host: parts.store_host,
            clock: parts.clock,
            machine: parts.machine,
            long_poll: parts.long_poll,
            sessions: Sessions::default(),
            offset_commits: OffsetCommits::default(),
            cold_reads: ColdReads::default(),
            kept_units: Arc::default(),
            metrics: parts.metrics,
            held_bytes: AtomicUsize::new(0),
            consensus: OnceLock::new(),
            proposer: OnceLock::new(),
        })
    }

    /// Time since this process was started. Unit: ms.
    #[must_use]
    pub fn uptime_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Connects the broker to its started group. Called once.
    pub(crate) fn join(&self, consensus: Arc<Consensus>, proposer: Arc<Proposer>) {
        let first = self.consensus.set(consensus).is_ok() && self.proposer.set(proposer).is_ok();
        assert!(first, "a broker joins its group once");
    }

    /// Raft. `None` only while the process starts.
    #[must_use]
    pub fn consensus(&self) -> Option<&Arc<Consensus>> {
        self.consensus.get()
    }

    /// The proposer.
    ///
    /// # Panics
    /// Before [`join`](Self::join); the ports open after it.
    #[must_use]
    pub fn proposer(&self) -> &Arc<Proposer> {
        self.proposer
            .get()
            .expect("the remoting port opens after the broker has joined its group")
    }

    /// Whether this node leads and its state contains everything acknowledged before.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.consensus()
            .is_some_and(|consensus| consensus.role().borrow().serving)
    }

    /// The term in which this node serves; `None` when it does not.
    #[must_use]
    pub(crate) fn serving_term(&self) -> Option<u64> {
        let role = self.consensus()?.role();
        let role = role.borrow();
        role.serving.then_some(role.term)
    }

    /// Whether this node serves and a quorum confirms it: what it has applied is all that was
    /// shown to anybody, by whichever node.
    pub(crate) async fn serves_for_certain(&self) -> bool {
        let Some(consensus) = self.consensus() else {
            return false;
        };
        let serving = consensus.role().borrow().serving_term();
        serving.is_some() && is_confirmed(serving, consensus.confirm_leadership().await)
    }

    /// Waits until this node serves, so that tasks of the leader cost a follower nothing. Returns
    /// at once when the process is stopping.
    pub(crate) async fn until_serving(&self) {
        if let Some(consensus) = self.consensus() {
            // An error means that the process is stopping.
            let _ = consensus.role().wait_for(|role| role.serving).await;
        }
    }

    /// Whether a message of `bytes` bytes may be stored now, or the disk is too full for it.
    #[must_use]
    pub fn takes_message(&self, bytes: usize) -> bool {
        let waiting = self.proposer().waiting_bytes();
        self.disk.takes_message(self.machine.log(), waiting, bytes)
    }

    /// Whether offsets and metadata may be stored now: longer than messages on a full disk.
    #[must_use]
    pub fn takes_note(&self) -> bool {
        self.disk.takes_note(self.machine.log())
    }
}

/// Whether a quorum has confirmed the very term that this node serves in. A leader that was replaced
/// and elected again leads in a later one, and may not have applied yet what was acknowledged in
/// between.
fn is_confirmed(serving: Option<u64>, confirmed: Option<u64>) -> bool {
    serving.is_some() && serving == confirmed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_that_confirms_a_later_term_confirms_nothing() {
        assert!(is_confirmed(Some(5), Some(5)));
        assert!(!is_confirmed(Some(5), Some(7)));
        assert!(!is_confirmed(Some(5), None));
        assert!(!is_confirmed(None, None));
    }
}
