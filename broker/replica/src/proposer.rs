//! The proposer: one task that gathers what handlers want to write into Raft entries.
//!
//! It takes whatever waits into one entry, up to a byte limit, and keeps up to four entries in flight.
//! There is no timer: a lone command leaves at once, and while four entries are being flushed the
//! next one fills. The store timestamp of a batch is set here and never goes back.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use raftmq_state::{EncodedCommand, PayloadBuilder, Reply};
use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot},
    time::{Instant, sleep_until},
};

use crate::{
    clock::Clock,
    metrics::Metrics,
    raft::{Consensus, IntakeGate, ProposeError, timed},
};

/// Bytes after which an entry is closed. Larger ones gain nothing (measured) and delay their
/// first command.
const ENTRY_BYTES: usize = 256 << 10;
/// Commands in one entry at most; bounds the time one apply holds the state lock.
const ENTRY_COMMANDS_MAX: u32 = 4096;
/// Entries in flight. With real processes four gave a quarter more than two (`broker/README.md`,
/// Measured); more was not measured.
const IN_FLIGHT_MAX: usize = 4;
/// Bytes of commands that may wait. Beyond it, clients are told that the broker is busy.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// How long a command may wait for its outcome. RocketMQ clients give up after 3 s.
const OUTCOME_TIMEOUT: Duration = Duration::from_millis(2_900);

/// How a submitted command ended.
pub type Outcome = Result<Reply, SubmitError>;

/// Why a command was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Too much is waiting; nothing was done.
    #[error("too many bytes wait to be replicated")]
    Busy,
    /// This node does not lead; nothing was done.
    #[error("not the leader")]
    NotLeader,
    /// The command may or may not be applied later.
    #[error("in-sync replicas not enough, outcome unknown")]
    Unknown,
    /// The node is stopping.
    #[error("broker is stopping")]
    Stopped,
}

impl From<ProposeError> for SubmitError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NotLeader => Self::NotLeader,
            ProposeError::Unknown(_) => Self::Unknown,
            ProposeError::Stopped(_) => Self::Stopped,
        }
    }
}

/// Runs once with the outcome; must not block, since it runs on a runtime's thread.
type Done = Box<dyn FnOnce(Outcome) + Send>;

struct Waiting {
    command: EncodedCommand,
    /// The term in which it may be proposed; `None` = any.
    term: Option<u64>,
    done: Done,
    since: Instant,
}

/// The commands of one entry that wait for its outcome. Whoever takes the list answers it: the
/// apply task, or the proposer when it takes too long.
type Batch = Arc<Mutex<Vec<Done>>>;

struct InFlight {
    batch: Batch,
    deadline: Instant,
}

#[derive(Default)]
struct Intake {
    waiting: Vec<Waiting>,
    closed: bool,
}

/// Handle to the proposer task. Owns the intake lock; taken for a push or a swap only.
pub struct Proposer {
    intake: Mutex<Intake>,
    bytes: AtomicUsize,
    arrived: Notify,
    finished: Notify,
    in_flight: AtomicUsize,
    metrics: Arc<Metrics>,
    /// Where answers are made: one task an entry, so that Raft's thread wakes one worker for all
    /// the clients of an entry instead of one for each.
    answering: Handle,
}

impl std::fmt::Debug for Proposer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proposer")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Proposer {
    /// Starts the proposer task next to Raft's tasks. Outcomes are told on the runtime of the
    /// caller.
    pub fn start(
        consensus: &Arc<Consensus>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let proposer = Arc::new(Self {
            intake: Mutex::default(),
            bytes: AtomicUsize::new(0),
            arrived: Notify::new(),
            finished: Notify::new(),
            in_flight: AtomicUsize::new(0),
            metrics,
            answering: Handle::current(),
        });
        let task = Arc::clone(&proposer).run(Arc::clone(consensus), clock);
        consensus.runtime().spawn(timed("proposer", task));
        proposer
    }

    /// Queues `command`. `done` runs exactly once; it may run before this returns (when the
    /// command is refused) and must not block.
    pub fn submit(&self, command: EncodedCommand, done: impl FnOnce(Outcome) + Send + 'static) {
        self.submit_in(None, command, Box::new(done));
    }

    fn submit_in(&self, term: Option<u64>, command: EncodedCommand, done: Done) {
        let bytes = command.len();
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > WAITING_BYTES_MAX {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            done(Err(SubmitError::Busy));
            return;
        }
        let waiting = Waiting {
            command,
            term,
            done,
            since: Instant::now(),
        };
        let refused = {
            let mut intake = self.intake.lock().unwrap_or_else(PoisonError::into_inner);
            if intake.closed {
                Some(waiting)
            } else {
                intake.waiting.push(waiting);
                None
            }
        };
        match refused {
            Some(waiting) => {
                self.bytes.fetch_sub(bytes, Ordering::Relaxed);
                (waiting.done)(Err(SubmitError::Stopped));
            }
            None => self.arrived.notify_one(),
        }
    }

    /// Bytes of commands that wait for their entry, or for its outcome.
    pub fn waiting_bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Submits `command` and waits for its outcome.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub async fn propose(&self, command: EncodedCommand) -> Outcome {
        self.propose_in(None, command).await
    }

    /// As [`propose`](Self::propose), but only while this node leads in `term`.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub async fn propose_in_term(&self, command: EncodedCommand, term: u64) -> Outcome {
        self.propose_in(Some(term), command).await
    }

    async fn propose_in(&self, term: Option<u64>, command: EncodedCommand) -> Outcome {
        let (sender, receiver) = oneshot::channel();
        let done = move |outcome| {
            // The waiter may have given up; the command is applied all the same.
            let _ = sender.send(outcome);
        };
        self.submit_in(term, command, Box::new(done));
        receiver.await.unwrap_or(Err(SubmitError::Unknown))
    }

    /// Whether nothing waits and nothing has an unknown outcome.
    pub fn is_idle(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) == 0
    }

    /// Refuses everything from now on; what waits is answered.
    pub fn close(&self) {
        let waiting = {
            let mut intake = self.intake.lock().unwrap_or_else(PoisonError::into_inner);
            intake.closed = true;
            std::mem::take(&mut intake.waiting)
        };
        self.arrived.notify_one();
        for waiting in waiting {
            (waiting.done)(Err(SubmitError::Stopped));
        }
    }

    async fn run(self: Arc<Self>, consensus: Arc<Consensus>, clock: Arc<dyn Clock>) {
        let gate = consensus.intake();
        let mut in_flight: Vec<InFlight> = Vec::new();
        let mut open: std::vec::IntoIter<Waiting> = Vec::new().into_iter();
        let mut timestamp_ms = 0;
        loop {
            in_flight.retain(|entry| {
                !entry
                    .batch
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .is_empty()
            });
            if open.len() == 0 {
                let mut intake = self.intake.lock().unwrap_or_else(PoisonError::into_inner);
                if intake.closed {
                    drop(intake);
                    give_up(&mut in_flight, |_| true);
                    return;
                }
                open = std::mem::take(&mut intake.waiting).into_iter();
            }
            let may_send = self.in_flight.load(Ordering::SeqCst) < IN_FLIGHT_MAX && open.len() > 0;
            let pass = may_send.then(|| gate.pass()).flatten();
            if let Some(_until_raft_has_it) = pass {
                timestamp_ms = clock.now_ms().max(timestamp_ms);
                let entry = self.send(&consensus, &mut open, timestamp_ms).await;
                in_flight.extend(entry);
                continue;
            }
            let held = may_send.then_some(&gate);
            self.wait(&mut in_flight, &mut open, held).await;
        }
    }

    /// Waits until there may be something to do; answers what took too long. `held`: what holds
    /// back that which could be sent.
    async fn wait(
        &self,
        in_flight: &mut Vec<InFlight>,
        open: &mut std::vec::IntoIter<Waiting>,
        held: Option<&IntakeGate>,
    ) {
        let entry_deadline = in_flight.first().map(|entry| entry.deadline);
        let open_deadline = open
            .as_slice()
            .first()
            .map(|first| first.since + OUTCOME_TIMEOUT);
        let idle = Instant::now() + Duration::from_secs(3600);
        let deadline = entry_deadline
            .into_iter()
            .chain(open_deadline)
            .min()
            .unwrap_or(idle);
        let full = open.len() > 0;
        tokio::select! {
            biased;
            () = self.finished.notified() => {}
            () = self.arrived.notified(), if !full => {}
            () = opened(held), if held.is_some() => {}
            () = sleep_until(deadline) => self.expire(in_flight, open),
        }
    }

    fn expire(&self, in_flight: &mut Vec<InFlight>, open: &mut std::vec::IntoIter<Waiting>) {
        let now = Instant::now();
        give_up(in_flight, |entry| entry.deadline <= now);
        // What never left this task was certainly not written.
        while open
            .as_slice()
            .first()
            .is_some_and(|first| first.since + OUTCOME_TIMEOUT <= now)
        {
            if let Some(waiting) = open.next() {
                self.bytes
                    .fetch_sub(waiting.command.len(), Ordering::Relaxed);
                (waiting.done)(Err(SubmitError::NotLeader));
            }
        }
    }

    /// Proposes one entry of what waits.
    async fn send(
        self: &Arc<Self>,
        consensus: &Consensus,
        open: &mut std::vec::IntoIter<Waiting>,
        timestamp_ms: u64,
    ) -> Option<InFlight> {
        let mut payload = PayloadBuilder::new(timestamp_ms);
        let mut dones = Vec::with_capacity(open.len().min(ENTRY_COMMANDS_MAX as usize));
        let mut bytes = 0;
        let mut oldest = None;
        let mut term = None;
        while let Some(next) = open.as_slice().first() {
            let fits = payload.len() + next.command.len() <= ENTRY_BYTES;
            if payload.count() > 0 && (!fits || payload.count() >= ENTRY_COMMANDS_MAX) {
                break;
            }
            if term.is_some() && next.term.is_some() && term != next.term {
                break;
            }
            term = term.or(next.term);
            let Some(waiting) = open.next() else { break };
            payload.push(&waiting.command);
            bytes += waiting.command.len();
            oldest.get_or_insert(waiting.since);
            dones.push(waiting.done);
        }
        let oldest = oldest?;
        let count = payload.count();
        self.metrics.proposer_batch(count, bytes);
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let batch: Batch = Arc::new(Mutex::new(dones));
        let (answers, proposer) = (Arc::clone(&batch), Arc::clone(self));
        consensus
            .propose(payload.finish(), count, term, move |result| {
                proposer.bytes.fetch_sub(bytes, Ordering::Relaxed);
                proposer.in_flight.fetch_sub(1, Ordering::SeqCst);
                proposer.finished.notify_one();
                let dones =
                    std::mem::take(&mut *answers.lock().unwrap_or_else(PoisonError::into_inner));
                proposer
                    .answering
                    .spawn(async move { answer(dones, result) });
            })
            .await;
        Some(InFlight {
            batch,
            deadline: oldest + OUTCOME_TIMEOUT,
        })
    }
}

async fn opened(gate: Option<&IntakeGate>) {
    if let Some(gate) = gate {
        gate.opened().await;
    }
}

/// Waits no longer for the outcome of some entries.
fn give_up(in_flight: &mut Vec<InFlight>, is_late: impl Fn(&InFlight) -> bool) {
    in_flight.retain(|entry| {
        let late = is_late(entry);
        if late {
            let dones =
                std::mem::take(&mut *entry.batch.lock().unwrap_or_else(PoisonError::into_inner));
            for done in dones {
                done(Err(SubmitError::Unknown));
            }
        }
        !late
    });
}

/// Gives every command of an entry its reply.
fn answer(dones: Vec<Done>, result: Result<Vec<Reply>, ProposeError>) {
    match result {
        Ok(replies) => {
            assert!(
                dones.is_empty() || replies.len() == dones.len(),
                "every command of an entry has one reply"
            );
            for (done, reply) in dones.into_iter().zip(replies) {
                done(Ok(reply));
            }
        }
        Err(error) => {
            let error = SubmitError::from(error);
            for done in dones {
                done(Err(error.clone()));
            }
        }
    }
}
