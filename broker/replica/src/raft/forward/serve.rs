//! The leader's end of a link.

use std::{future::ready, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use raftmq_remoting::RemotingCommand;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, timeout_at},
};

use super::{
    clock::{self, millis},
    frames::{decode_request, encode_answer, encode_clock},
};
use crate::raft::{
    peer::{PeerConnection, PeerReader, PeerWriter},
    wire::{Kind, malformed},
};

/// Forwarded requests of one peer that are handled, or whose answers wait to be written, at the same
/// time. Beyond it no more are read.
const FORWARDS_MAX: usize = 1024;

/// How a forwarded request ended.
#[derive(Debug)]
pub enum ForwardOutcome {
    /// Handled; a oneway request has no answer.
    Handled(Option<Box<RemotingCommand>>),
    /// This node is not the serving leader; nothing was done.
    NotLeader,
    /// Nobody waits for the answer any more; nothing was done.
    Late,
}

/// What the leader does with a request that another broker forwards.
pub trait ForwardHandler: Send + Sync {
    /// Handles `command` of the client at `peer`, unless it comes to it only after the deadline. What
    /// has begun goes on when the returned future is dropped.
    fn handle(
        &self,
        command: RemotingCommand,
        peer: SocketAddr,
        deadline: Instant,
    ) -> BoxFuture<'static, ForwardOutcome>;
}

/// An answer on its way out, and the place that its request takes until then.
type Outgoing = (Bytes, OwnedSemaphorePermit);

/// Handles what the peer forwards, concurrently, until the connection ends. Answers carry the id of
/// their request. The reader may wait for the writer, which waits for nobody but the peer.
pub(in crate::raft) async fn serve(
    connection: PeerConnection,
    handler: &dyn ForwardHandler,
) -> Result<(), io::Error> {
    let PeerConnection { reader, writer, .. } = connection;
    let begun = Instant::now();
    let (answers, ready) = mpsc::channel(FORWARDS_MAX);
    tokio::select! {
        biased;
        ended = write_answers(writer, ready, begun) => ended,
        ended = read_requests(reader, handler, &answers, begun) => ended,
    }
}

async fn write_answers(
    mut writer: PeerWriter,
    mut ready: mpsc::Receiver<Outgoing>,
    begun: Instant,
) -> Result<(), io::Error> {
    loop {
        writer.send(&encode_clock(millis(begun.elapsed()))).await?;
        let clock_due = Instant::now() + clock::INTERVAL;
        // Under load there is always an answer ready; the clock is told all the same.
        while Instant::now() < clock_due {
            match timeout_at(clock_due, ready.recv()).await {
                Ok(Some((answer, place))) => {
                    writer.send(&answer).await?;
                    drop(place);
                }
                Ok(None) => return Ok(()),
                Err(_) => break,
            }
        }
    }
}

async fn read_requests(
    mut reader: PeerReader,
    handler: &dyn ForwardHandler,
    answers: &mpsc::Sender<Outgoing>,
    begun: Instant,
) -> Result<(), io::Error> {
    let places = Arc::new(Semaphore::new(FORWARDS_MAX));
    // Dropped with the connection: nobody is left to get these answers.
    let mut tasks = JoinSet::new();
    while let Some((kind, body)) = reader.next().await? {
        if kind != Kind::Forward {
            return Err(malformed("forward"));
        }
        while tasks.try_join_next().is_some() {}
        let request = decode_request(body)?;
        let place = Arc::clone(&places).acquire_owned().await;
        let place = place.map_err(io::Error::other)?;
        let deadline = begun.checked_add(Duration::from_millis(request.deadline_ms));
        let deadline = deadline.ok_or_else(|| malformed("forward"))?;
        let work = if Instant::now() < deadline {
            handler.handle(request.command, request.peer, deadline)
        } else {
            Box::pin(ready(ForwardOutcome::Late))
        };
        let answers = answers.clone();
        tasks.spawn(async move {
            let answer = encode_answer(request.id, work.await);
            // There is room for as many as there are places. The connection may have ended.
            let _ = answers.send((answer, place)).await;
        });
    }
    Ok(())
}
