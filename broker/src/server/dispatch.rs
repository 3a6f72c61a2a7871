//! Which requests are handled here, which go to the leader, and which wait for one.
//!
//! A replica forwards what only the leader can answer. While there is no leader, such requests
//! wait: a failover then costs clients a pause instead of an error. Sends on the leader take a way
//! of their own without a task each: the task that answers an entry answers all of its sends.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::future::BoxFuture;
use raftmq_remoting::{RemotingCommand, RequestCode, ResponseCode};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout_at},
};

use super::{Connection, InFlight};
use crate::framing::intake::REQUEST_COST_BYTES;
use crate::{
    broker::Broker,
    budget::{Holder, NoRoom, Shown},
    handler::{self, Refusal, Request, Room, send},
    proposer::SubmitError,
    raft::{ForwardError, ForwardHandler, ForwardOutcome},
};

/// How long a request waits for a leader and its answer. RocketMQ clients give up a send after 3 s.
const HOLD_TIMEOUT: Duration = Duration::from_millis(2_800);
/// The same for a request that wants no answer: its client repeats a commit of an offset after 5 s,
/// and an election takes less. Short, so that they do not use up what a connection may have under
/// way, which would keep the others on it waiting.
const ONEWAY_HOLD_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of requests that may wait for a leader, of all clients together.
const HELD_BYTES_MAX: usize = 64 << 20;
/// Pause before a request is tried again when the role has not changed meanwhile: the addressed
/// leader was just stepping down, or its connection broke.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// The dispatcher of one connection.
pub(super) fn dispatcher(
    broker: Arc<Broker>,
) -> impl FnMut(&Arc<Connection>, RemotingCommand, InFlight) {
    move |connection, command, in_flight| {
        let code = RequestCode(command.code);
        let is_commit = code == RequestCode::UPDATE_CONSUMER_OFFSET && command.is_oneway();
        if send::is_send(code) && broker.is_serving() {
            start_send(&broker, connection, command, in_flight);
        } else if is_commit && broker.is_serving() {
            let handled = handler::update_one_way(&broker, &command);
            let response = handled.unwrap_or_else(|refusal| refusal.response(&command));
            respond(&broker, connection, &command, &response);
            drop(in_flight);
        } else {
            spawn(&broker, connection, command, in_flight);
        }
    }
}

/// Handles a request in a task of its own.
fn spawn(
    broker: &Arc<Broker>,
    connection: &Arc<Connection>,
    command: RemotingCommand,
    in_flight: InFlight,
) {
    let (broker, connection) = (Arc::clone(broker), Arc::clone(connection));
    tokio::spawn(async move {
        let request = Request {
            peer: connection.peer,
            connection: Some(Arc::clone(&connection)),
            command,
            room: Room::default(),
        };
        if let Some(response) = handle(&broker, &request).await {
            respond(&broker, &connection, &request.command, &response);
        }
        drop(in_flight);
    });
}

fn respond(
    broker: &Broker,
    connection: &Connection,
    request: &RemotingCommand,
    response: &RemotingCommand,
) {
    let code = RequestCode(request.code).name().unwrap_or("UNKNOWN");
    let result = ResponseCode(response.code).name().unwrap_or("UNKNOWN");
    broker.metrics.request_answered(code, result);
    if !request.is_oneway() {
        connection.send(response);
    }
}

/// The fast way of a send on the leader: laid out here, answered with its entry.
fn start_send(
    broker: &Arc<Broker>,
    connection: &Arc<Connection>,
    command: RemotingCommand,
    mut in_flight: InFlight,
) {
    let started = Instant::now();
    let prepared = match send::prepare(broker, &command, connection.peer) {
        Ok(send::Preparation::Ready(prepared)) => prepared,
        // Its topic has to be created first, which takes a task.
        Ok(send::Preparation::MissingTopic(_)) => {
            spawn(broker, connection, command, in_flight);
            return;
        }
        Err(refusal) => {
            respond(broker, connection, &command, &refusal.response(&command));
            return;
        }
    };
    let send::Prepared {
        command: proposal,
        answer,
    } = prepared;
    let (broker_done, connection) = (Arc::clone(broker), Arc::clone(connection));
    let runtime = tokio::runtime::Handle::current();
    in_flight.becomes(Holder::Proposer);
    broker.proposer().submit(proposal, move |outcome| {
        let broker = broker_done;
        match send::answer(&broker, &command, &answer, outcome) {
            Ok(response) => {
                observe_send(&broker, started);
                respond(&broker, &connection, &command, &response);
            }
            Err(send::Moved) => {
                let _guard = runtime.enter();
                in_flight.becomes(Holder::Received);
                spawn(&broker, &connection, command, in_flight);
                return;
            }
        }
        drop(in_flight);
    });
}

/// Handles a request wherever it must be handled; `None` = no answer is wanted.
async fn handle(broker: &Arc<Broker>, request: &Request) -> Option<RemotingCommand> {
    let code = RequestCode(request.command.code);
    if !code.needs_leader() {
        return Some(handler::handle(broker, request).await);
    }
    let limit = if request.command.is_oneway() {
        ONEWAY_HOLD_TIMEOUT
    } else {
        HOLD_TIMEOUT
    };
    let deadline = Instant::now() + limit;
    let mut held = None;
    let mut is_known = true;
    loop {
        if broker.is_serving() {
            if let Some(response) = serve(broker, request).await {
                return Some(response);
            }
        } else {
            match forward(broker, request, deadline).await {
                Forwarded::Answered(response) => return response,
                Forwarded::Unknown if !is_repeatable(code) => {
                    return Some(no_leader(&request.command, false));
                }
                Forwarded::Unknown => is_known = false,
                Forwarded::NoLeader => {}
            }
        }
        if held.is_none() {
            held = Hold::begin(broker, &request.command);
        }
        let Some(hold) = &mut held else {
            return Some(no_leader(&request.command, is_known));
        };
        if !wait_for_leader(broker, deadline).await {
            hold.result = "expired";
            return Some(no_leader(&request.command, is_known));
        }
    }
}

/// Whether carrying a request out twice does no harm, also when the first time comes last: a request
/// whose connection broke may still wait at its leader, and an offset would go back then.
fn is_repeatable(code: RequestCode) -> bool {
    !send::is_send(code)
        && !matches!(
            code,
            RequestCode::UPDATE_CONSUMER_OFFSET
                | RequestCode::CONSUMER_SEND_MSG_BACK
                | RequestCode::SEND_REPLY_MESSAGE
                | RequestCode::SEND_REPLY_MESSAGE_V2
        )
}

/// The answer without a leader. `is_known`: nothing was done, which is what code 14 promises.
fn no_leader(command: &RemotingCommand, is_known: bool) -> RemotingCommand {
    let (code, remark) = if is_known {
        let remark = "no leader was elected in time; the broker group has no quorum or is electing";
        (ResponseCode::SERVICE_NOT_AVAILABLE, remark)
    } else {
        let remark = "the leader went away, outcome unknown: the request may or may not have been \
                      carried out";
        (ResponseCode::SYSTEM_ERROR, remark)
    };
    Refusal::new(code, remark).response(command)
}

/// Handles a request on the serving leader; `None` = it stopped serving before anything was done.
async fn serve(broker: &Arc<Broker>, request: &Request) -> Option<RemotingCommand> {
    let code = RequestCode(request.command.code);
    if code.needs_confirmed_leader() {
        // Another node may take over while commits are settled, so that is asked last.
        broker.offset_commits.settle(broker).await;
        if !broker.serves_for_certain().await {
            return None;
        }
    }
    let response = if send::is_send(code) {
        send_and_wait(broker, request).await?
    } else {
        handler::handle(broker, request).await
    };
    // Handlers answer 14 when their proposal was refused: nothing was done.
    (response.code != ResponseCode::SERVICE_NOT_AVAILABLE.0 || broker.is_serving())
        .then_some(response)
}

/// A send that waits in this task for its outcome.
async fn send_and_wait(broker: &Arc<Broker>, request: &Request) -> Option<RemotingCommand> {
    let started = Instant::now();
    let command = &request.command;
    let mut prepared = send::prepare(broker, command, request.peer);
    if let Ok(send::Preparation::MissingTopic(topic)) = &prepared {
        if let Err(refusal) = send::create_topic(broker, command, topic).await {
            return Some(refusal.response(command));
        }
        prepared = send::prepare(broker, command, request.peer);
    }
    let prepared = match prepared {
        Ok(send::Preparation::Ready(prepared)) => prepared,
        Ok(send::Preparation::MissingTopic(topic)) => {
            return Some(Refusal::topic_not_exist(&topic).response(command));
        }
        Err(refusal) => return Some(refusal.response(command)),
    };
    let (sender, receiver) = oneshot::channel();
    broker.proposer().submit(prepared.command, move |outcome| {
        // The task may be gone with its connection; the message is stored all the same.
        let _ = sender.send(outcome);
    });
    // A callback that is gone says nothing about the entry: Raft was stopped with it under way.
    let outcome = receiver.await.unwrap_or(Err(SubmitError::Unknown));
    let response = send::answer(broker, command, &prepared.answer, outcome).ok()?;
    observe_send(broker, started);
    Some(response)
}

/// Counts an answered send, whether a client or another replica brought it.
fn observe_send(broker: &Broker, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    broker.metrics.requests.send_seconds.observe(seconds);
}

enum Forwarded {
    Answered(Option<RemotingCommand>),
    /// Nothing was done.
    NoLeader,
    /// It may have been carried out.
    Unknown,
}

async fn forward(broker: &Broker, request: &Request, deadline: Instant) -> Forwarded {
    let Some(consensus) = broker.consensus() else {
        return Forwarded::NoLeader;
    };
    let result = consensus
        .forward(request.peer, &request.command, deadline)
        .await;
    let forwards = &broker.metrics.requests.forwards_total;
    match result {
        Ok(response) => {
            forwards.with_label_values(&["answered"]).inc();
            // The leader answered in the encoding of the request, with its opaque.
            Forwarded::Answered(response)
        }
        Err(error) => {
            forwards.with_label_values(&["failed"]).inc();
            match error {
                ForwardError::NotLeader | ForwardError::Unreachable(_) | ForwardError::Late => {
                    Forwarded::NoLeader
                }
                ForwardError::Unknown => Forwarded::Unknown,
            }
        }
    }
}

/// Waits until it is worth trying again; false when the time is up.
async fn wait_for_leader(broker: &Broker, deadline: Instant) -> bool {
    let Some(consensus) = broker.consensus() else {
        return false;
    };
    let mut role = consensus.role();
    let known = role.borrow_and_update().clone();
    // False: Raft has stopped, so the process is stopping, and no leader will ever be known here.
    let pause = async {
        if known.serving || known.leader.is_some() {
            // Somebody leads, but did not take it: try again shortly, or at a change.
            tokio::select! {
                biased;
                () = sleep(RETRY_PAUSE) => true,
                changed = role.changed() => changed.is_ok(),
            }
        } else {
            role.wait_for(|role| role.serving || role.leader.is_some())
                .await
                .is_ok()
        }
    };
    timeout_at(deadline, pause).await == Ok(true) && Instant::now() < deadline
}

/// Counts the bytes of a request that waits for a leader.
struct Hold<'a> {
    broker: &'a Broker,
    bytes: usize,
    _shown: Shown,
    /// How the wait ended, as a label of `holds_total`.
    result: &'static str,
}

impl<'a> Hold<'a> {
    /// `None` when too much is waiting already.
    fn begin(broker: &'a Broker, command: &RemotingCommand) -> Option<Self> {
        let bytes = command.body.len() + 512;
        if broker.held_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > HELD_BYTES_MAX {
            broker.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
            broker.metrics.limit_reached("held_bytes_max");
            broker.metrics.requests.hold_ended("refused");
            return None;
        }
        broker.metrics.requests.held(bytes);
        Some(Self {
            broker,
            bytes,
            _shown: broker.budget.show(Holder::Held, bytes),
            result: "served",
        })
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.broker
            .held_bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
        let requests = &self.broker.metrics.requests;
        requests.released(self.bytes);
        requests.hold_ended(self.result);
    }
}

/// Requests that other replicas forward to this node. Never forwards again: two replicas with
/// different ideas of the leader would pass a request back and forth.
#[derive(Debug)]
pub(crate) struct ForwardedRequests(pub std::sync::Weak<Broker>, pub tokio::runtime::Handle);

impl ForwardHandler for ForwardedRequests {
    fn handle(
        &self,
        command: RemotingCommand,
        peer: SocketAddr,
        deadline: Instant,
    ) -> BoxFuture<'static, ForwardOutcome> {
        let Some(broker) = self.0.upgrade() else {
            return Box::pin(async { ForwardOutcome::NotLeader });
        };
        // On the broker's runtime: Raft's own thread must not do the work of handlers.
        let task = self.1.spawn(async move {
            if Instant::now() >= deadline {
                return ForwardOutcome::Late;
            }
            if !broker.is_serving() {
                return ForwardOutcome::NotLeader;
            }
            let bytes = REQUEST_COST_BYTES + 2 * command.body.len();
            let taken = broker.forwarded.wait_to_take(Holder::Received, bytes).await;
            let Ok(_permit) = taken else {
                broker.metrics.limit_reached("memory_budget");
                let busy = Refusal::from(NoRoom::Busy).response(&command);
                return ForwardOutcome::Handled((!command.is_oneway()).then(|| Box::new(busy)));
            };
            let request = Request {
                command,
                peer,
                connection: None,
                room: Room::default(),
            };
            match serve(&broker, &request).await {
                Some(_) if request.command.is_oneway() => ForwardOutcome::Handled(None),
                Some(response) => ForwardOutcome::Handled(Some(Box::new(response))),
                None => ForwardOutcome::NotLeader,
            }
        });
        Box::pin(async move {
            task.await.unwrap_or_else(|error| {
                tracing::error!(%error, "forwarded request");
                ForwardOutcome::Handled(None)
            })
        })
    }
}
