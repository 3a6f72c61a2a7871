//! `raftmq bench consume`: one task per connection, one long-polling pull in flight per queue.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use raftmq_remoting::frame;
use raftmq_remoting::message::views;
use raftmq_remoting::properties::PROPERTY_UNIQ_KEY;
use raftmq_remoting::{RemotingCommand, SerializeType};
use raftmq_remoting::{RequestCode, ResponseCode};
use tokio::time::{Instant, MissedTickBehavior};

use super::BenchError;
use super::args::StartFrom;
use super::connection::Connection;
use super::message_log::MessageLog;
use super::route::{Router, check};
use super::run::{Run, TICK};
use super::schedule::nanos;
use super::stats::{Failure, Tally};
use super::window::{Waiting, Window};
use raftmq_host::clock::Clock;

/// How long the broker may hold a pull that finds nothing. Source: the stock push consumer, 15 s.
const SUSPEND_TIMEOUT_MS: &str = "15000";

/// Longest wait for the answer to a pull. Source: the stock push consumer, 30 s.
const PULL_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest wait for the answer to a question about offsets.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// Bytes that one pull asks for. Source: the stock client's `pullBatchSizeInBytes`, 256 KiB.
const PULL_BYTES: &str = "262144";

/// sysFlag bits of a pull: commit an offset, hold when empty, the subscription is in the request.
const SYS_FLAG_COMMIT: u32 = 1;
const SYS_FLAG_SUSPEND: u32 = 2;
const SYS_FLAG_SUBSCRIPTION: u32 = 4;

/// What the connections of a run read.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    pub topic: String,
    pub group: String,
    pub serialize: SerializeType,
    pub from: StartFrom,
    pub batch: u32,
    pub until_empty: bool,
    pub commit: bool,
    /// Stop after this many messages of the whole run.
    pub messages: Option<u64>,
}

/// One connection of the run.
pub(crate) struct Consumer {
    pub run: Arc<Run>,
    pub reading: Reading,
    pub router: Arc<Router>,
    pub tally: Rc<RefCell<Tally>>,
    pub message_log: Option<MessageLog>,
    pub broker_name: String,
    /// The queues of that broker that this connection reads.
    pub queue_ids: Vec<u32>,
}

/// Where a consumer is in one queue.
#[derive(Debug)]
struct Queue {
    queue_id: u32,
    /// Queue offset of the next pull; unknown until the broker was asked.
    next_offset: Option<u64>,
    /// Queue offset of the next message, when one was seen: tells gaps.
    expected: Option<u64>,
    waiting: bool,
    at_end: bool,
}

/// What changes with every pull.
struct Pulling {
    window: Window,
    queues: Vec<Queue>,
    paused_until: Option<Instant>,
    misplaced: bool,
}

impl Consumer {
    /// Pulls until the run ends, connecting again as often as needed.
    pub(crate) async fn drive(self) {
        let queue = |queue_id: &u32| Queue {
            queue_id: *queue_id,
            next_offset: None,
            expected: None,
            waiting: false,
            at_end: false,
        };
        let mut pulling = Pulling {
            window: Window::new(u32::try_from(self.queue_ids.len()).unwrap_or(u32::MAX)),
            queues: self.queue_ids.iter().map(queue).collect(),
            paused_until: None,
            misplaced: false,
        };
        let mut attempt = 0;
        while !self.is_done(&pulling) {
            match self.reach(&mut pulling, attempt).await {
                Ok(mut connection) => {
                    let lost = self.serve(&mut pulling, &mut connection).await.is_err();
                    if self.is_done(&pulling) && !lost {
                        self.commit_all(&pulling, &mut connection).await;
                    }
                    for _ in pulling.window.give_up(|_| true) {
                        if lost {
                            self.fail(Failure::ConnectionLost);
                        }
                    }
                }
                Err(_) => self.tally.borrow_mut().vain_attempts += 1,
            }
            attempt += 1;
            if !self.is_done(&pulling) {
                tokio::time::sleep(self.run.retry_pause).await;
            }
        }
    }

    /// Connects, and asks for the first offset of every queue that has none yet.
    async fn reach(&self, pulling: &mut Pulling, attempt: usize) -> Result<Connection, BenchError> {
        let place = self.router.place_of(&self.broker_name, attempt).await?;
        let mut connection = Connection::open(self.run.net.as_ref(), &place.address).await?;
        for queue in &mut pulling.queues {
            queue.waiting = false;
            if queue.next_offset.is_none() {
                queue.next_offset = Some(
                    self.first_offset(&mut connection, &place.address, queue)
                        .await?,
                );
            }
        }
        Ok(connection)
    }

    async fn first_offset(
        &self,
        connection: &mut Connection,
        address: &str,
        queue: &Queue,
    ) -> Result<u64, BenchError> {
        if self.reading.from == StartFrom::Committed {
            let request = self.queue_request(RequestCode::QUERY_CONSUMER_OFFSET, queue);
            let answer = connection.call(&request, CALL_TIMEOUT).await?;
            if answer.code != ResponseCode::QUERY_NOT_FOUND.0 {
                check(address, &answer)?;
                return offset_of(address, &answer, "offset");
            }
        }
        let code = match self.reading.from {
            StartFrom::First | StartFrom::Committed => RequestCode::GET_MIN_OFFSET,
            StartFrom::Last => RequestCode::GET_MAX_OFFSET,
        };
        let answer = connection
            .call(&self.queue_request(code, queue), CALL_TIMEOUT)
            .await?;
        check(address, &answer)?;
        offset_of(address, &answer, "offset")
    }

    /// Pulls until the connection fails, the broker turns out to be the wrong one, or the run ends.
    async fn serve(
        &self,
        pulling: &mut Pulling,
        connection: &mut Connection,
    ) -> Result<(), BenchError> {
        pulling.misplaced = false;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.is_done(pulling) && !pulling.misplaced {
            self.fill(pulling, connection);
            let paused = pulling.paused_until.is_some();
            let resume = pulling.paused_until.unwrap_or_else(Instant::now);
            tokio::select! { biased;
                turn = connection.turn() => turn?,
                () = tokio::time::sleep_until(resume), if paused => {}
                _ = tick.tick() => self.give_up_old(pulling),
            }
            while let Some(answer) = connection.next_answer()? {
                self.take_answer(pulling, &answer)?;
            }
        }
        Ok(())
    }

    /// Sends a pull for every queue that has none in flight.
    fn fill(&self, pulling: &mut Pulling, connection: &mut Connection) {
        if pulling
            .paused_until
            .is_some_and(|until| until > Instant::now())
        {
            return;
        }
        pulling.paused_until = None;
        let now_ns = self.run.now_ns();
        for (place, queue) in pulling.queues.iter_mut().enumerate() {
            let done = self.reading.until_empty && queue.at_end;
            if queue.waiting || done {
                continue;
            }
            let waiting = Waiting {
                started_ns: now_ns,
                sent_ns: now_ns,
                tag: place as u64,
            };
            let Some(opaque) = pulling.window.take(waiting) else {
                return;
            };
            queue.waiting = true;
            let mut request = self.pull_request(queue);
            request.opaque = opaque;
            frame::encode(&request, &mut connection.output);
        }
    }

    fn pull_request(&self, queue: &Queue) -> RemotingCommand {
        let next_offset = queue.next_offset.unwrap_or(0);
        let mut sys_flag = SYS_FLAG_SUBSCRIPTION;
        if !self.reading.until_empty {
            sys_flag |= SYS_FLAG_SUSPEND;
        }
        // As a stock consumer does: nothing to commit before the first message.
        if self.reading.commit && queue.expected.is_some() {
            sys_flag |= SYS_FLAG_COMMIT;
        }
        self.queue_request(RequestCode::PULL_MESSAGE, queue)
            .with_ext("queueOffset", next_offset)
            .with_ext("maxMsgNums", self.reading.batch)
            .with_ext("sysFlag", sys_flag)
            .with_ext("commitOffset", next_offset)
            .with_ext("suspendTimeoutMillis", SUSPEND_TIMEOUT_MS)
            .with_ext("subscription", "*")
            .with_ext("subVersion", "0")
            .with_ext("expressionType", "TAG")
            .with_ext("maxMsgBytes", PULL_BYTES)
    }

    /// A request with the three fields that every question about a queue has.
    fn queue_request(&self, code: RequestCode, queue: &Queue) -> RemotingCommand {
        let mut request = RemotingCommand::request(code)
            .with_ext("consumerGroup", &self.reading.group)
            .with_ext("topic", &self.reading.topic)
            .with_ext("queueId", queue.queue_id);
        request.serialize = self.reading.serialize;
        request
    }

    fn take_answer(
        &self,
        pulling: &mut Pulling,
        answer: &RemotingCommand,
    ) -> Result<(), BenchError> {
        let Some(waiting) = pulling.window.finish(answer.opaque) else {
            return Ok(());
        };
        let place = usize::try_from(waiting.tag).unwrap_or(usize::MAX);
        let Some(queue) = pulling.queues.get_mut(place) else {
            return Ok(());
        };
        queue.waiting = false;
        match ResponseCode(answer.code) {
            ResponseCode::SUCCESS => self.take_messages(queue, answer)?,
            ResponseCode::PULL_NOT_FOUND => {
                queue.at_end = true;
                self.tally.borrow_mut().empty += 1;
            }
            ResponseCode::PULL_RETRY_IMMEDIATELY | ResponseCode::PULL_OFFSET_MOVED => {
                self.tally.borrow_mut().empty += 1;
            }
            ResponseCode(code) => {
                self.fail(Failure::Code(code));
                pulling.paused_until = Some(Instant::now() + self.run.retry_pause);
                pulling.misplaced = true;
                return Ok(());
            }
        }
        queue.next_offset = Some(offset_of(&self.broker_name, answer, "nextBeginOffset")?);
        Ok(())
    }

    fn take_messages(&self, queue: &mut Queue, answer: &RemotingCommand) -> Result<(), BenchError> {
        let now_ns = self.run.now_ns();
        let now_ms = self.run.clock.now_ms();
        let measured = now_ns >= self.run.measured_from_ns;
        let mut count = 0;
        let mut tally = self.tally.borrow_mut();
        for message in views(&answer.body) {
            let message =
                message.map_err(|error| BenchError::bad_answer(&self.broker_name, &error))?;
            count += 1;
            let offset = message.queue_offset();
            match queue.expected {
                Some(expected) if offset > expected => {
                    tally.offsets_missing += offset.abs_diff(expected);
                }
                Some(expected) if offset < expected => tally.offsets_repeated += 1,
                Some(_) | None => {}
            }
            queue.expected = Some(queue.expected.map_or(offset + 1, |old| old.max(offset + 1)));
            if let Some(log) = &self.message_log {
                let key = message.property(PROPERTY_UNIQ_KEY).unwrap_or("-");
                log.line(key, queue.queue_id, offset);
            }
            if measured {
                tally.messages += 1;
                tally.bytes += message.body().len() as u64;
                let age_ms = now_ms.saturating_sub(message.born_timestamp_ms().unsigned_abs());
                tally.record_latency(nanos(Duration::from_millis(age_ms)));
            }
        }
        queue.at_end = false;
        if measured {
            tally.succeeded += 1;
            tally.last_success_ns = now_ns;
        }
        self.run.live.succeed(count, now_ns);
        let messages_max = self.reading.messages.unwrap_or(u64::MAX);
        if self.run.live.counts().0 >= messages_max {
            self.run.stop();
        }
        Ok(())
    }

    /// Commits where the run ended, as a stock consumer does when it shuts down.
    async fn commit_all(&self, pulling: &Pulling, connection: &mut Connection) {
        if !self.reading.commit {
            return;
        }
        for queue in &pulling.queues {
            let Some(offset) = queue.next_offset else {
                continue;
            };
            let request = self
                .queue_request(RequestCode::UPDATE_CONSUMER_OFFSET, queue)
                .with_ext("commitOffset", offset);
            match connection.call(&request, CALL_TIMEOUT).await {
                Ok(answer) if answer.code == ResponseCode::SUCCESS.0 => {}
                Ok(answer) => self.fail(Failure::Code(answer.code)),
                Err(_) => self.fail(Failure::Timeout),
            }
        }
    }

    fn give_up_old(&self, pulling: &mut Pulling) {
        let oldest_ns = self.run.now_ns().saturating_sub(nanos(PULL_TIMEOUT));
        for waiting in pulling
            .window
            .give_up(|waiting| waiting.sent_ns < oldest_ns)
        {
            self.fail(Failure::Timeout);
            pulling.misplaced = true;
            if let Some(queue) = pulling.queues.get_mut(waiting.tag as usize) {
                queue.waiting = false;
            }
        }
    }

    fn fail(&self, failure: Failure) {
        self.run.live.fail();
        self.tally.borrow_mut().fail(failure);
    }

    fn is_done(&self, pulling: &Pulling) -> bool {
        let all_read = pulling.queues.iter().all(|queue| queue.at_end);
        pulling.queues.is_empty()
            || (self.reading.until_empty && all_read)
            || self.run.is_over(self.run.now_ns())
    }
}

/// An offset in an answer's header.
fn offset_of(
    address: &str,
    answer: &RemotingCommand,
    name: &'static str,
) -> Result<u64, BenchError> {
    let offset = answer.ext_fields.required_i64(name);
    let offset = offset.map_err(|error| BenchError::bad_answer(address, &error))?;
    u64::try_from(offset).map_err(|error| BenchError::bad_answer(address, &error))
}
