//! `raftmq bench produce`: one task per connection, many messages per task.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raftmq_remoting::ResponseCode;
use raftmq_remoting::{RemotingCommand, SerializeType};
use tokio::sync::Notify;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::BenchError;
use super::connection::Connection;
use super::message_log::MessageLog;
use super::route::{Place, Router};
use super::run::{Run, TICK};
use super::schedule::{Schedule, nanos};
use super::stats::{Failure, Tally};
use super::template::{SendFields, SendTemplate};
use super::window::{Waiting, Window};
use raftmq_host::clock::Clock;

/// Bytes that wait to be written from which no further message is encoded: the next burst is
/// encoded while the kernel sends this one.
const OUTPUT_BYTES_MAX: usize = 256 * 1024;

/// The producer group of the generator.
const PRODUCER_GROUP: &str = "raftmq_bench_producer";

/// What the connections of a run send.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub topic: String,
    pub serialize: SerializeType,
    pub body: Bytes,
    pub in_flight: u32,
    pub timeout: Duration,
    /// Open loop: when each message is due.
    pub schedule: Option<Schedule>,
    /// Messages of the whole run; each connection sends its share.
    pub messages: Option<u64>,
    pub connections: u32,
    /// First half of the message keys, the same in the whole run but for its low 16 bits, which
    /// are the connection's.
    pub key_prefix: u64,
}

impl Load {
    /// Messages that `connection` sends; what does not divide evenly goes to the first ones.
    fn share(&self, connection: usize) -> u64 {
        let Some(messages) = self.messages else {
            return u64::MAX;
        };
        let connections = u64::from(self.connections);
        messages / connections + u64::from((connection as u64) < messages % connections)
    }
}

/// One connection of the run.
pub(crate) struct Producer {
    pub index: usize,
    pub run: Arc<Run>,
    pub load: Load,
    pub router: Arc<Router>,
    pub tally: Rc<RefCell<Tally>>,
    /// Open loop: told when a message is due.
    pub due: Arc<Notify>,
    pub ack_log: Option<MessageLog>,
}

/// What changes with every message.
struct Sending {
    window: Window,
    /// One for each queue of the broker.
    templates: Vec<SendTemplate>,
    /// Messages encoded so far.
    sent: u64,
    /// No message is encoded before this moment.
    paused_until: Option<Instant>,
    /// An answer says that this is no longer the right broker.
    misplaced: bool,
}

impl Producer {
    /// Sends until the run ends, connecting again as often as needed.
    pub(crate) async fn drive(self) {
        let mut sending = Sending {
            window: Window::new(self.load.in_flight),
            templates: Vec::new(),
            sent: 0,
            paused_until: None,
            misplaced: false,
        };
        let mut attempt = 0;
        while !self.is_done(&sending) {
            match self.reach(attempt).await {
                Ok((place, mut connection)) => {
                    sending.templates = self.templates(&place);
                    let served = self.serve(&mut sending, &mut connection, &place, attempt);
                    if served.await.is_err() {
                        for _ in sending.window.give_up(|_| true) {
                            self.fail(Failure::ConnectionLost);
                        }
                        tokio::time::sleep(self.run.retry_pause).await;
                    }
                }
                Err(_) => {
                    self.tally.borrow_mut().vain_attempts += 1;
                    tokio::time::sleep(self.run.retry_pause).await;
                }
            }
            attempt += 1;
        }
        if let Some(schedule) = self.load.schedule {
            let due = self.run.due_share(schedule, self.index);
            let due = due.min(self.load.share(self.index));
            self.tally.borrow_mut().unsent += due.saturating_sub(sending.sent);
        }
    }

    async fn reach(&self, attempt: usize) -> Result<(Place, Connection), BenchError> {
        let place = self.router.place(self.index, attempt).await?;
        let connection = Connection::open(self.run.net.as_ref(), &place.address).await?;
        Ok((place, connection))
    }

    /// Sends until the connection fails, another broker turns out to be the right one, or the run
    /// ends.
    async fn serve(
        &self,
        sending: &mut Sending,
        connection: &mut Connection,
        place: &Place,
        attempt: usize,
    ) -> Result<(), BenchError> {
        sending.misplaced = false;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.is_done(sending) {
            self.fill(sending, connection);
            self.wait(sending, connection, &mut tick).await?;
            while let Some(answer) = connection.next_answer()? {
                self.take_answer(sending, &answer);
            }
            // Requests in flight may still be answered here; leave when none is left.
            if sending.misplaced && sending.window.is_empty() {
                let now = self.router.place(self.index, attempt + 1).await;
                if now.is_ok_and(|now| now.address != place.address) {
                    return Ok(());
                }
                sending.misplaced = false;
            }
        }
        Ok(())
    }

    /// Returns when answers have come in, a message is due, a pause is over or a tick has passed.
    async fn wait(
        &self,
        sending: &mut Sending,
        connection: &mut Connection,
        tick: &mut Interval,
    ) -> Result<(), BenchError> {
        let paused = sending.paused_until.is_some();
        let resume = sending.paused_until.unwrap_or_else(Instant::now);
        tokio::select! { biased;
            turn = connection.turn() => turn?,
            () = self.due.notified(), if self.load.schedule.is_some() => {}
            () = tokio::time::sleep_until(resume), if paused => {}
            _ = tick.tick() => self.give_up_old(sending),
        }
        Ok(())
    }

    /// Encodes every message that may leave now.
    fn fill(&self, sending: &mut Sending, connection: &mut Connection) {
        let paused = sending
            .paused_until
            .is_some_and(|until| until > Instant::now());
        if sending.misplaced || paused {
            return;
        }
        sending.paused_until = None;
        let sent_ns = self.run.now_ns();
        let born_ms = self.run.clock.now_ms();
        let share = self.load.share(self.index);
        while sending.sent < share
            && connection.output.len() < OUTPUT_BYTES_MAX
            && !self.run.is_over(sent_ns)
        {
            let tag = sending.sent;
            let started_ns = match self.load.schedule {
                Some(schedule) => schedule.due_ns(self.index as u64, tag),
                None => sent_ns,
            };
            if started_ns > sent_ns {
                return;
            }
            let waiting = Waiting {
                started_ns,
                sent_ns,
                tag,
            };
            let Some(opaque) = sending.window.take(waiting) else {
                return;
            };
            sending.sent += 1;
            let queue = (tag as usize).wrapping_add(self.index) % sending.templates.len();
            sending.templates[queue].write(opaque, born_ms, tag, &mut connection.output);
        }
    }

    fn take_answer(&self, sending: &mut Sending, answer: &RemotingCommand) {
        let Some(waiting) = sending.window.finish(answer.opaque) else {
            return;
        };
        if is_stored(answer.code) {
            self.succeed(&waiting, answer);
        } else {
            self.fail(Failure::Code(answer.code));
            sending.paused_until = Some(Instant::now() + self.run.retry_pause);
            sending.misplaced |= is_misplaced(answer.code);
        }
    }

    fn succeed(&self, waiting: &Waiting, answer: &RemotingCommand) {
        let now_ns = self.run.now_ns();
        self.run.live.succeed(1, now_ns);
        if let Some(log) = &self.ack_log {
            let field = |name| answer.ext_fields.get(name).unwrap_or("-");
            let key = format!("{:016X}{:016X}", self.key_prefix(), waiting.tag);
            log.line(&key, field("queueId"), field("queueOffset"));
        }
        if waiting.started_ns < self.run.measured_from_ns {
            return;
        }
        let mut tally = self.tally.borrow_mut();
        tally.succeeded += 1;
        tally.messages += 1;
        tally.bytes += self.load.body.len() as u64;
        tally.record_latency(now_ns.saturating_sub(waiting.started_ns));
        tally.last_success_ns = now_ns;
        if answer.code != ResponseCode::SUCCESS.0 {
            *tally.weak.entry(answer.code).or_insert(0) += 1;
        }
    }

    fn give_up_old(&self, sending: &mut Sending) {
        let now_ns = self.run.now_ns();
        let oldest_ns = now_ns.saturating_sub(nanos(self.load.timeout));
        for _ in sending
            .window
            .give_up(|waiting| waiting.sent_ns < oldest_ns)
        {
            self.fail(Failure::Timeout);
            sending.misplaced = true;
        }
    }

    fn fail(&self, failure: Failure) {
        self.run.live.fail();
        self.tally.borrow_mut().fail(failure);
    }

    fn is_done(&self, sending: &Sending) -> bool {
        let sent_all = sending.sent >= self.load.share(self.index);
        sending.window.is_empty() && (sent_all || self.run.is_over(self.run.now_ns()))
    }

    fn templates(&self, place: &Place) -> Vec<SendTemplate> {
        let fields = SendFields {
            topic: &self.load.topic,
            producer_group: PRODUCER_GROUP,
            broker_name: &place.broker_name,
            key_prefix: self.key_prefix(),
            serialize: self.load.serialize,
        };
        let queues = 0..place.queues.max(1);
        queues
            .map(|queue_id| SendTemplate::new(&fields, queue_id, self.load.body.clone()))
            .collect()
    }

    fn key_prefix(&self) -> u64 {
        self.load.key_prefix | self.index as u64
    }
}

/// Whether the message is stored: 10, 11 and 12 say that flushing or replicating it took too long.
fn is_stored(code: i32) -> bool {
    [
        ResponseCode::SUCCESS,
        ResponseCode::FLUSH_DISK_TIMEOUT,
        ResponseCode::SLAVE_NOT_AVAILABLE,
        ResponseCode::FLUSH_SLAVE_TIMEOUT,
    ]
    .iter()
    .any(|stored| stored.0 == code)
}

/// Whether the answer may mean that another broker leads now. Java brokers answer 14, and 16 from
/// a broker that became a slave.
fn is_misplaced(code: i32) -> bool {
    [
        ResponseCode::SYSTEM_ERROR,
        ResponseCode::SERVICE_NOT_AVAILABLE,
        ResponseCode::NO_PERMISSION,
    ]
    .iter()
    .any(|misplaced| misplaced.0 == code)
}
