//! The append stream to a peer: requests out, answers back, beside each other on one connection.

use std::{
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::BytesMut;
use futures::{FutureExt, Stream, StreamExt};
use openraft::{
    errors::RPCError,
    raft::{AppendEntriesRequest, StreamAppendResult},
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep_until},
};

use super::{
    peer::{PeerConnection, PeerReader, PeerWriter},
    transport::{Dialer, Slot, broken, unreachable},
    types::TypeConfig,
    wire::{self, Channel, Kind},
};

/// Longest wait for the answer to an append that is under way before the connection counts as
/// dead. A healthy follower answers within a disk sync.
pub(super) const APPEND_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of append requests after which no further one joins a write; a write buffer that grew
/// beyond it is given back.
const APPEND_WRITE_BYTES: usize = 512 << 10;

pub(super) type ResponseSender =
    mpsc::Sender<Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>;

/// Moves requests and responses of one append stream until either side ends. The connection goes
/// back to `slot` only when every request was answered; otherwise stray answers would follow.
pub(super) async fn pump<S>(
    dialer: Dialer,
    channel: Channel,
    input: S,
    responses: ResponseSender,
    slot: Slot,
) where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    let result = tokio::select! {
        biased;
        () = responses.closed() => return,
        result = run_stream(&dialer, channel, input, &responses, &slot) => result,
    };
    if let Err(error) = result {
        // openraft may have dropped the stream meanwhile; then nobody needs to know.
        let _ = responses.send(Err(error)).await;
    }
}

async fn run_stream<S>(
    dialer: &Dialer,
    channel: Channel,
    input: S,
    responses: &ResponseSender,
    slot: &Slot,
) -> Result<(), RPCError<TypeConfig>>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    // The first request before the connection: openraft sleeps in this stream when it backs off
    // from a peer that does not answer. Dialing first would dial without a pause.
    let mut input = Box::pin(input.peekable());
    if input.as_mut().peek().await.is_none() {
        return Ok(());
    }
    let PeerConnection {
        mut reader,
        mut writer,
        incarnation,
    } = match dialer.take(slot) {
        Some(connection) => connection,
        None => dialer
            .connect(channel)
            .await
            .map_err(|error| unreachable(&error))?,
    };
    let reusable = exchange(&mut reader, &mut writer, input, responses)
        .await
        .map_err(|error| broken(&error))?;
    if reusable {
        let connection = PeerConnection {
            reader,
            writer,
            incarnation,
        };
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }
    Ok(())
}

/// Returns whether the connection can be used again. Requests are written and answers read beside each
/// other: were the answers left unread during a write, both ends could wait for each other.
async fn exchange<S>(
    reader: &mut PeerReader,
    writer: &mut PeerWriter,
    input: S,
    responses: &ResponseSender,
) -> Result<bool, io::Error>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    let under_way = UnderWay::default();
    tokio::select! {
        biased;
        reusable = read_answers(reader, responses, &under_way) => reusable,
        // When all is written, the answers are still to come.
        Err(error) = write_requests(writer, input, &under_way) => Err(error),
    }
}

async fn write_requests<S>(
    writer: &mut PeerWriter,
    input: S,
    under_way: &UnderWay,
) -> Result<(), io::Error>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    // Fused: the look-ahead below may meet the end before the outer loop does.
    let mut input = input.fuse();
    let mut frames = BytesMut::new();
    while let Some(request) = input.next().await {
        let mut count = 1;
        wire::put_append(&mut frames, &request)?;
        drop(request);
        // Requests that are ready together leave in one write.
        while frames.len() < APPEND_WRITE_BYTES
            && let Some(Some(request)) = input.next().now_or_never()
        {
            wire::put_append(&mut frames, &request)?;
            count += 1;
        }
        under_way.begin(count);
        writer.send(&frames).await?;
        under_way.written();
        if frames.capacity() > APPEND_WRITE_BYTES {
            frames = BytesMut::new();
        }
        frames.clear();
    }
    under_way.end();
    Ok(())
}

async fn read_answers(
    reader: &mut PeerReader,
    responses: &ResponseSender,
    under_way: &UnderWay,
) -> Result<bool, io::Error> {
    loop {
        let Progress {
            waiting,
            since,
            ended,
        } = under_way.look();
        if ended && waiting == 0 {
            return Ok(true);
        }
        tokio::select! {
            biased;
            frame = reader.expect(Kind::AppendResult), if waiting > 0 => {
                let result = wire::decode_append_result(frame?)?;
                under_way.answered();
                let failed = result.is_err();
                if responses.send(Ok(result)).await.is_err() || failed {
                    return Ok(false);
                }
            }
            () = under_way.changed.notified() => {}
            () = no_answer(since) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Ready when the answer to what was written at `since` is overdue.
async fn no_answer(since: Option<Instant>) {
    match since {
        Some(since) => sleep_until(since + APPEND_ANSWER_TIMEOUT).await,
        None => std::future::pending().await,
    }
}

/// The requests of an append stream that have no answer yet.
#[derive(Debug, Default)]
struct UnderWay {
    progress: Mutex<Progress>,
    changed: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    waiting: usize,
    /// When the last write or answer was complete, if there is something to wait for.
    since: Option<Instant>,
    /// Nothing more is written.
    ended: bool,
}

impl UnderWay {
    fn look(&self) -> Progress {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Answers may come from here on.
    fn begin(&self, count: usize) {
        self.change(|progress| progress.waiting += count);
        self.changed.notify_one();
    }

    fn written(&self) {
        self.change(|progress| progress.since = (progress.waiting > 0).then(Instant::now));
        self.changed.notify_one();
    }

    fn answered(&self) {
        self.change(|progress| {
            progress.waiting -= 1;
            progress.since = (progress.waiting > 0).then(Instant::now);
        });
    }

    fn end(&self) {
        self.change(|progress| progress.ended = true);
        self.changed.notify_one();
    }
}
