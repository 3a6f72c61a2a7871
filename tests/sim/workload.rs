//! What clients do to a cluster, and the history that they write down meanwhile.
//!
//! Producers send to random queues through random replicas and try again elsewhere after a failure.
//! Pullers read every queue from its beginning, and ask where it ends. Consumers go on from the committed offset of their
//! group, one for each group and queue, and commit what they have read. An administrator makes the
//! topic larger and asks for the deletion of what has expired.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use raftmq::net::Net;
use tokio::time::sleep;

use super::client::{Client, Pulled};
use super::history::{End, History, OffsetKind, OffsetStep, Outcome, Pull, Send};
use super::random::Random;

/// Times that a producer sends one message before it gives up, as RocketMQ's.
const ATTEMPTS: u32 = 3;
/// Queues at the beginning, and most queues later.
const QUEUES: (u64, u64) = (4, 8);
/// Ids of messages that ask whether a cluster works.
const PROBES_FROM: u64 = 1 << 40;
/// One of so many requests is given up at once where clients do so, and after how long at most.
const DROPS_ONE_IN: u64 = 12;
/// See [`DROPS_ONE_IN`]. Unit: ms.
const DROPPED_AFTER_MS: u64 = 60;
/// Groups of consumers; pullers have the next one.
const GROUPS: u32 = 2;

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Clients that send.
    pub producers: u64,
    /// Clients that read everything.
    pub pullers: u64,
    /// Mean pause between two requests of a client. Unit: ms.
    pub pause_ms: u64,
    /// Whether expired segments are asked to be deleted now and then.
    pub deletes: bool,
    /// Whether clients close connections now and then before they have an answer.
    pub drops: bool,
}

/// What all clients share.
#[derive(Debug)]
pub struct Workload {
    history: Mutex<History>,
    brokers: Arc<Mutex<Vec<String>>>,
    load: Load,
    messages: AtomicU64,
    probes: AtomicU64,
    /// Connections that clients have closed without an answer.
    pub dropped: AtomicU64,
    queues: AtomicU64,
    stopped: AtomicBool,
}

impl Workload {
    /// A workload on brokers with these addresses, which may change.
    pub fn new(brokers: Arc<Mutex<Vec<String>>>, load: Load) -> Arc<Self> {
        Arc::new(Self {
            history: Mutex::default(),
            brokers,
            load,
            messages: AtomicU64::new(0),
            probes: AtomicU64::new(PROBES_FROM),
            dropped: AtomicU64::new(0),
            queues: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        })
    }

    /// Starts all clients on the runtime of the caller; they end after [`Workload::stop`].
    pub fn start(self: &Arc<Self>, net: &Arc<dyn Net>, seed: u64) {
        let mut seeds = Random::new(seed);
        let mut worker = || Worker {
            work: Arc::clone(self),
            client: Client::new(Arc::clone(net)),
            random: Random::new(seeds.number()),
        };
        for _ in 0..self.load.producers {
            tokio::spawn(worker().produce());
        }
        for _ in 0..self.load.pullers {
            tokio::spawn(worker().pull());
        }
        for group in 0..GROUPS {
            tokio::spawn(worker().consume(group));
        }
        tokio::spawn(worker().administrate());
    }

    /// Sends one message more through a broker; whether it was taken.
    pub async fn probe(&self, net: Arc<dyn Net>, broker: &str) -> bool {
        let id = self.probes.fetch_add(1, Ordering::Relaxed);
        let begin = self.history().tick();
        let unknown = Send {
            id,
            queue: 0,
            span: (begin, begin),
            outcome: Outcome::Unknown,
        };
        // Whoever waits for this may give up; it may be stored all the same.
        let place = {
            let mut history = self.history();
            history.sends.push(unknown);
            history.sends.len() - 1
        };
        let outcome = Client::new(net).send(broker, 0, id).await;
        let mut history = self.history();
        let span = (begin, history.tick());
        history.sends[place].span = span;
        history.sends[place].outcome = outcome;
        matches!(outcome, Outcome::Done(_))
    }

    /// Asks one broker for so long, without a pause, what only a leader knows.
    pub async fn ask_at(self: Arc<Self>, net: Arc<dyn Net>, broker: &str, number: u32, ms: u64) {
        let mut client = Client::new(net);
        let end = tokio::time::Instant::now() + Duration::from_millis(ms);
        while tokio::time::Instant::now() < end && self.queues() > 0 {
            let begin = self.history().tick();
            let queue = number % self.queues() as u32;
            if number.is_multiple_of(2) {
                if let Some(end) = client.end(broker, queue).await {
                    let mut history = self.history();
                    let span = (begin, history.tick());
                    history.ends.push(End { queue, span, end });
                }
            } else {
                let place = (number / 2 % GROUPS, queue);
                if let Ok(committed) = client.committed(broker, place).await {
                    let mut history = self.history();
                    let span = (begin, history.tick());
                    let kind = OffsetKind::Read(committed);
                    history.offsets.push(OffsetStep { place, span, kind });
                }
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Lets every client end after what it is doing.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// What was written down so far.
    pub fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().expect("a panic ends the test")
    }

    /// Queues that are known to be there.
    pub fn queues(&self) -> u64 {
        self.queues.load(Ordering::Relaxed)
    }

    /// Group of clients that commit nothing.
    pub fn pullers_group() -> u32 {
        GROUPS
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

struct Worker {
    work: Arc<Workload>,
    client: Client,
    random: Random,
}

impl Worker {
    /// Waits until something can be done; false when it is time to end.
    async fn next(&mut self) -> bool {
        let mean = self.work.load.pause_ms;
        let pause = Duration::from_millis(self.random.below(2 * mean + 1));
        sleep(pause).await;
        if self.work.load.drops && self.random.once_in(DROPS_ONE_IN) {
            let ms = self.random.below(DROPPED_AFTER_MS);
            self.client.patience = Duration::from_millis(ms);
            self.work.dropped.fetch_add(1, Ordering::Relaxed);
        }
        while self.work.queues() == 0 && !self.work.is_stopped() {
            sleep(Duration::from_millis(100)).await;
        }
        !self.work.is_stopped()
    }

    fn broker(&mut self) -> String {
        let brokers = self.work.brokers.lock().expect("a panic ends the test");
        brokers[self.random.below(brokers.len() as u64) as usize].clone()
    }

    fn queue(&mut self) -> u32 {
        self.random.below(self.work.queues()) as u32
    }

    async fn produce(mut self) {
        while self.next().await {
            let id = self.work.messages.fetch_add(1, Ordering::Relaxed);
            let queue = self.queue();
            for _ in 0..ATTEMPTS {
                let broker = self.broker();
                let begin = self.work.history().tick();
                let outcome = self.client.send(&broker, queue, id).await;
                tracing::debug!(id, queue, broker, ?outcome, "sent");
                let mut history = self.work.history();
                let span = (begin, history.tick());
                history.sends.push(Send {
                    id,
                    queue,
                    span,
                    outcome,
                });
                if matches!(outcome, Outcome::Done(_)) {
                    break;
                }
            }
        }
    }

    async fn pull(mut self) {
        let mut next = vec![0; QUEUES.1 as usize];
        while self.next().await {
            let queue = self.queue();
            let from = next[queue as usize];
            let place = (Workload::pullers_group(), queue);
            next[queue as usize] = self.pull_once(place, from).await;
            if self.random.once_in(4) {
                self.ask_for_end().await;
            }
        }
    }

    async fn ask_for_end(&mut self) {
        let (broker, queue) = (self.broker(), self.queue());
        let begin = self.work.history().tick();
        if let Some(end) = self.client.end(&broker, queue).await {
            let mut history = self.work.history();
            let span = (begin, history.tick());
            history.ends.push(End { queue, span, end });
        }
    }

    /// Pulls once and writes it down; where to go on.
    async fn pull_once(&mut self, place: (u32, u32), from: u64) -> u64 {
        let broker = self.broker();
        let wait = self.random.once_in(4);
        let pulled = self.client.pull(&broker, place, from, wait).await;
        let mut history = self.work.history();
        history.tick();
        let queue = place.1;
        match pulled {
            Pulled::Nothing => from,
            Pulled::Moved(next) => {
                tracing::debug!(?place, broker, from, next, "told to go on");
                history.moves.push((queue, from, next));
                next
            }
            Pulled::Found(messages) => {
                let next = messages.last().map_or(from, |(offset, _)| offset + 1);
                history.pulls.push(Pull {
                    queue,
                    from,
                    messages,
                });
                next
            }
        }
    }

    async fn consume(mut self, group: u32) {
        while self.next().await {
            let place = (group, self.queue());
            let broker = self.broker();
            let begin = self.work.history().tick();
            let Ok(committed) = self.client.committed(&broker, place).await else {
                continue;
            };
            tracing::debug!(?place, broker, ?committed, "offset read");
            self.note(place, begin, OffsetKind::Read(committed));
            let from = committed.unwrap_or(0);
            let next = self.pull_once(place, from).await;
            if next == from {
                continue;
            }
            let broker = self.broker();
            let begin = self.work.history().tick();
            let outcome = self.client.commit(&broker, place, next).await;
            tracing::debug!(?place, broker, next, ?outcome, "offset committed");
            self.note(place, begin, OffsetKind::Commit(next, outcome));
        }
    }

    fn note(&self, place: (u32, u32), begin: u64, kind: OffsetKind) {
        let mut history = self.work.history();
        let span = (begin, history.tick());
        history.offsets.push(OffsetStep { place, span, kind });
    }

    async fn administrate(mut self) {
        while !self.work.is_stopped() {
            let broker = self.broker();
            let queues = self.work.queues();
            let wanted = if queues == 0 { QUEUES.0 } else { queues + 1 };
            if wanted <= QUEUES.1 && self.client.create_topic(&broker, wanted as u32).await {
                self.work.queues.store(wanted, Ordering::Relaxed);
            }
            if self.work.queues() == 0 {
                sleep(Duration::from_millis(100)).await;
                continue;
            }
            if self.work.load.deletes {
                self.client.delete_expired(&broker).await;
            }
            let seconds = 20 + self.random.below(60);
            for _ in 0..seconds {
                sleep(Duration::from_secs(1)).await;
                if self.work.is_stopped() {
                    return;
                }
            }
        }
    }
}
