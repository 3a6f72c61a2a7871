//! A connection to a name server that can always be let go and taken up again: what is written and
//! what is read is kept here, not in a future. Whoever waits may be dropped at any await, and no
//! frame is ever cut.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use raftmq_remoting::RemotingCommand;
use raftmq_remoting::frame::{self, FrameError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout_at};

use raftmq_host::limits::WRITE_BUFFER_BYTES_KEPT;
use raftmq_host::net::Stream;

/// Room for one read. Answers of name servers are short.
const READ_BYTES: usize = 4096;

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// A request was not written and answered in time. The connection itself may still stand.
    #[error("no response in {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The name server closed it.
    #[error("connection closed")]
    Closed,
    /// The stream failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The name server sent something that is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl LinkError {
    /// Whether the name server may only be slow.
    pub(super) fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout(_))
    }
}

/// What happened on a connection.
#[derive(Debug)]
pub(super) enum LinkEvent<Q> {
    /// The request that was asked last is on its way: the next one may be.
    Written,
    /// A request is answered.
    Answered(Q, RemotingCommand),
}

#[derive(Debug)]
struct Awaited<Q> {
    opaque: i32,
    question: Q,
    deadline: Instant,
    timeout: Duration,
}

/// A connection with requests under way; `Q` is what its owner remembers of each.
pub(super) struct Link<Q> {
    stream: Stream,
    /// Rest of the one frame that is being written.
    outgoing: BytesMut,
    unflushed: bool,
    incoming: BytesMut,
    opaque: i32,
    /// In the order in which they were asked.
    awaited: VecDeque<Awaited<Q>>,
}

impl<Q> std::fmt::Debug for Link<Q> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Link")
            .field("outgoing", &self.outgoing.len())
            .field("awaited", &self.awaited.len())
            .finish_non_exhaustive()
    }
}

impl<Q> Link<Q> {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            outgoing: BytesMut::new(),
            unflushed: false,
            incoming: BytesMut::new(),
            opaque: 0,
            awaited: VecDeque::new(),
        }
    }

    /// Whether the frame before is written, so that another may begin.
    pub(super) fn can_ask(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// What is asked and not answered, the oldest first.
    pub(super) fn awaited(&self) -> impl Iterator<Item = &Q> {
        self.awaited.iter().map(|awaited| &awaited.question)
    }

    /// Begins a request; [`Self::event`] writes it and brings the answer. One request is being
    /// written at a time, see [`Self::can_ask`]: what is newest then comes next, and nothing queues.
    pub(super) fn ask(&mut self, mut request: RemotingCommand, question: Q, timeout: Duration) {
        assert!(self.can_ask(), "one frame is written at a time");
        self.opaque = self.opaque.wrapping_add(1);
        request.opaque = self.opaque;
        frame::encode(&request, &mut self.outgoing);
        self.awaited.push_back(Awaited {
            opaque: self.opaque,
            question,
            deadline: Instant::now() + timeout,
            timeout,
        });
    }

    /// Writes and reads until something happened. Cancel-safe. After an error the connection is of
    /// no more use.
    pub(super) async fn event(&mut self) -> Result<LinkEvent<Q>, LinkError> {
        let first = self.awaited.iter().min_by_key(|awaited| awaited.deadline);
        let Some((deadline, timeout)) = first.map(|first| (first.deadline, first.timeout)) else {
            return poll_fn(|context| self.poll_event(context)).await;
        };
        let event = poll_fn(|context| self.poll_event(context));
        match timeout_at(deadline, event).await {
            Ok(event) => event,
            Err(_) => Err(LinkError::Timeout(timeout)),
        }
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Result<LinkEvent<Q>, LinkError>> {
        if !self.outgoing.is_empty() && self.poll_write(context)?.is_ready() {
            return Poll::Ready(Ok(LinkEvent::Written));
        }
        if self.unflushed && Pin::new(&mut self.stream).poll_flush(context)?.is_ready() {
            self.unflushed = false;
        }
        loop {
            while let Some(command) = frame::decode(&mut self.incoming)? {
                if let Some(question) = self.question_of(&command) {
                    return Poll::Ready(Ok(LinkEvent::Answered(question, command)));
                }
            }
            ready!(self.poll_read(context))?;
        }
    }

    /// Ready when everything is written.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let written = Pin::new(&mut self.stream).poll_write(context, &self.outgoing);
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.outgoing.advance(count),
            }
            // Streams other than TCP may buffer.
            self.unflushed = true;
        }
        if self.outgoing.capacity() > WRITE_BUFFER_BYTES_KEPT {
            self.outgoing = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        let mut room = [0; READ_BYTES];
        let mut read = ReadBuf::new(&mut room);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut read))?;
        if read.filled().is_empty() {
            return Poll::Ready(Err(LinkError::Closed));
        }
        self.incoming.extend_from_slice(read.filled());
        Poll::Ready(Ok(()))
    }

    /// Takes the question that `command` answers; what the name server sends by itself has none.
    fn question_of(&mut self, command: &RemotingCommand) -> Option<Q> {
        let answers = |awaited: &Awaited<Q>| awaited.opaque == command.opaque;
        let place = self.awaited.iter().position(answers);
        let place = place.filter(|_| command.is_response())?;
        self.awaited.remove(place).map(|awaited| awaited.question)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use raftmq_remoting::{RequestCode, ResponseCode};
    use tokio::io::AsyncWriteExt;

    use super::*;
    use raftmq_host::framing::frame_io;

    const LIMIT: Duration = Duration::from_secs(6);

    fn request(bytes: usize) -> RemotingCommand {
        RemotingCommand::request(RequestCode::REGISTER_BROKER).with_body(vec![7; bytes])
    }

    /// Whoever waits gives up after each poll; the other side sees whole frames, and their answers
    /// arrive.
    #[tokio::test(start_paused = true)]
    async fn a_wait_may_be_dropped_at_every_await() {
        for pipe in [1, 7, 64, 4096] {
            let (near, far) = tokio::io::duplex(pipe);
            let mut link = Link::new(Box::new(near) as Stream);
            let (mut reader, mut writer) = frame_io::open(Box::new(far), LIMIT);
            tokio::spawn(async move {
                while let Ok(Some(command)) = reader.next().await {
                    let answer = RemotingCommand::response_to(&command, ResponseCode::SUCCESS);
                    let answer = answer.with_body(command.body.slice(..5));
                    writer.send(&answer).await.unwrap();
                }
            });
            let (mut asked, mut answered) = (0, 0);
            while answered < 20 {
                if link.can_ask() && asked < 20 {
                    link.ask(request(100 + asked), asked, LIMIT);
                    asked += 1;
                }
                match link.event().now_or_never() {
                    Some(Ok(LinkEvent::Answered(question, answer))) => {
                        assert_eq!((question, answer.body.len()), (answered, 5));
                        answered += 1;
                    }
                    Some(Ok(LinkEvent::Written)) => {}
                    Some(Err(error)) => panic!("{error}"),
                    None => tokio::task::yield_now().await,
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_taken_or_not_answered_in_time_is_an_error() {
        for bytes in [10, 100_000] {
            let (near, _far) = tokio::io::duplex(4096);
            let mut link = Link::new(Box::new(near) as Stream);
            link.ask(request(bytes), (), LIMIT);
            let begun = Instant::now();
            let error = loop {
                match link.event().await {
                    Ok(LinkEvent::Written) => {}
                    Ok(event) => panic!("{event:?}"),
                    Err(error) => break error,
                }
            };
            assert!(error.is_timeout());
            assert_eq!(begun.elapsed(), LIMIT);
        }
    }

    #[tokio::test]
    async fn a_name_server_that_closes_or_babbles_is_an_error() {
        let (near, far) = tokio::io::duplex(64);
        let mut link = Link::<()>::new(Box::new(near));
        drop(far);
        assert!(matches!(link.event().await, Err(LinkError::Closed)));
        let (near, mut far) = tokio::io::duplex(64);
        let mut link = Link::<()>::new(Box::new(near));
        far.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        assert!(matches!(link.event().await, Err(LinkError::Frame(_))));
    }
}
