//! Links over a network in memory whose pipes hold 64 KiB, in paused time.

use std::{
    future::pending,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures::future::{BoxFuture, join_all};
use raftmq_remoting::{RequestCode, ResponseCode};
use tokio::{sync::watch, task::JoinHandle, time::sleep};

use super::*;
use crate::{
    cancellation::poll_times,
    net::{Net, Stream, memory::MemoryNet},
    raft::{peer::Local, wire},
};

const LEADER: &str = "127.0.0.1:7001";
/// What a client waits for.
const PATIENCE: Duration = Duration::from_millis(2_800);

/// Answers after a while with a body of `bytes`, and counts what it carries out.
struct Handler {
    pause: Duration,
    bytes: usize,
    carried_out: AtomicUsize,
}

impl Handler {
    fn new(pause: Duration, bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            pause,
            bytes,
            carried_out: AtomicUsize::new(0),
        })
    }

    fn carried_out(&self) -> usize {
        self.carried_out.load(Ordering::SeqCst)
    }
}

impl ForwardHandler for Handler {
    fn handle(
        &self,
        command: RemotingCommand,
        _: SocketAddr,
        _: Instant,
    ) -> BoxFuture<'static, ForwardOutcome> {
        self.carried_out.fetch_add(1, Ordering::SeqCst);
        let answer = RemotingCommand::response_to(&command, ResponseCode::SUCCESS)
            .with_body(vec![7; self.bytes]);
        let pause = self.pause;
        Box::pin(async move {
            sleep(pause).await;
            ForwardOutcome::Handled(Some(Box::new(answer)))
        })
    }
}

/// A leader that takes any number of links.
async fn lead(net: &MemoryNet, handler: &Arc<Handler>) -> JoinHandle<()> {
    let mut listener = net.bind(LEADER.parse().unwrap()).await.unwrap();
    let handler = Arc::clone(handler);
    tokio::spawn(async move {
        let mut links = tokio::task::JoinSet::new();
        while let Ok(accepted) = listener.accept().await {
            let handler = Arc::clone(&handler);
            links.spawn(async move {
                let accepted = peer::accept(accepted.stream, &Local::of_test(1)).await;
                serve(accepted.unwrap().0, &*handler).await
            });
        }
    })
}

fn forwarder(net: impl Net + 'static) -> Forwarder {
    let transport = Transport::on(net, Local::of_test(2));
    Forwarder::new(transport, tokio::runtime::Handle::current())
}

fn request(bytes: usize) -> RemotingCommand {
    RemotingCommand::request(RequestCode::SEND_MESSAGE_V2.0).with_body(vec![1; bytes])
}

async fn forward(forwarder: &Forwarder, command: &RemotingCommand, limit: Duration) -> Answer {
    let client = "127.0.0.1:9".parse().unwrap();
    let deadline = Instant::now() + limit;
    forwarder
        .forward((1, LEADER), (client, command), pending(), deadline)
        .await
}

/// Whether nothing that a caller has begun is left behind.
fn is_idle(forwarder: &Forwarder) -> bool {
    let links = forwarder.links.lock().unwrap();
    links.values().all(|link| {
        link.waiting.len() == 0
            && link.room.available_permits() == QUEUE_BYTES_MAX
            && link.queue.capacity() == QUEUE_MAX
    })
}

#[tokio::test(start_paused = true)]
async fn large_requests_and_large_answers_pass_each_other() {
    let net = MemoryNet::default();
    let handler = Handler::new(Duration::ZERO, 1 << 20);
    let _leader = lead(&net, &handler).await;
    let forwarder = forwarder(net);
    let command = request(1 << 20);
    let begin = Instant::now();
    for _ in 0..3 {
        let requests = (0..8).map(|_| forward(&forwarder, &command, PATIENCE));
        let answers = join_all(requests).await;
        assert!(answers.iter().all(Result::is_ok));
    }
    assert!(begin.elapsed() < PATIENCE);
    assert!(is_idle(&forwarder));
}

/// A network whose connections stop to carry anything while they are told so, in either direction.
#[derive(Clone, Debug)]
struct Stopping(MemoryNet, watch::Receiver<bool>);

impl Net for Stopping {
    fn bind(
        &self,
        address: SocketAddr,
    ) -> BoxFuture<'_, io::Result<Box<dyn crate::net::Listener>>> {
        self.0.bind(address)
    }

    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let far = self.0.connect(address).await?;
            let (near, between) = tokio::io::duplex(64 << 10);
            let (from_near, to_near) = tokio::io::split(between);
            let (from_far, to_far) = tokio::io::split(far);
            tokio::spawn(carry(from_near, to_far, self.1.clone()));
            tokio::spawn(carry(from_far, to_near, self.1.clone()));
            Ok(Box::new(near) as Stream)
        })
    }
}

async fn carry(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    mut stopped: watch::Receiver<bool>,
) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if stopped.wait_for(|stopped| !stopped).await.is_err()
            || to.write_all(&buffer[..read]).await.is_err()
        {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_does_not_answer_leaves_the_outcome_unknown_at_the_deadline() {
    let net = MemoryNet::default();
    let handler = Handler::new(Duration::from_secs(3600), 0);
    let _leader = lead(&net, &handler).await;
    let forwarder = forwarder(net);
    let begin = Instant::now();
    let answer = forward(&forwarder, &request(10), PATIENCE).await;
    assert!(matches!(answer, Err(ForwardError::Unknown)), "{answer:?}");
    assert_eq!(begin.elapsed().as_millis(), PATIENCE.as_millis());
    assert!(is_idle(&forwarder));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_be_dialed_in_time_has_done_nothing() {
    let net = MemoryNet::default();
    // Accepts and says nothing, like a process that is paused.
    let mut listener = net.bind(LEADER.parse().unwrap()).await.unwrap();
    let dials = Arc::new(AtomicUsize::new(0));
    let dialed = Arc::clone(&dials);
    let _silent = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok(accepted) = listener.accept().await {
            dialed.fetch_add(1, Ordering::SeqCst);
            open.push(accepted);
        }
    });
    let forwarder = forwarder(net);
    let command = request(10);
    let limit = Duration::from_secs(1);
    let answers = join_all((0..500).map(|_| forward(&forwarder, &command, limit))).await;
    let nothing_done = |answer: &Answer| matches!(answer, Err(ForwardError::Unreachable(_)));
    assert!(answers.iter().all(nothing_done));
    assert_eq!(dials.load(Ordering::SeqCst), 1, "all wait for one dial");
}

#[tokio::test(start_paused = true)]
async fn what_waited_too_long_on_its_way_is_not_carried_out() {
    let (stop, stopped) = watch::channel(false);
    let net = Stopping(MemoryNet::default(), stopped);
    let handler = Handler::new(Duration::ZERO, 10);
    let _leader = lead(&net.0, &handler).await;
    let forwarder = forwarder(net);
    let command = request(10);
    for pause in [3, 4, 600] {
        assert!(forward(&forwarder, &command, PATIENCE).await.is_ok());
        let before = handler.carried_out();
        stop.send_replace(true);
        // Requests that want no answer are given up like the others.
        let late = (0..100).map(|_| forward(&forwarder, &command, PATIENCE));
        let late = join_all(late).await;
        assert!(late.iter().all(Result::is_err));
        assert!(is_idle(&forwarder), "nothing piles up");
        sleep(Duration::from_secs(pause)).await;
        stop.send_replace(false);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(handler.carried_out(), before, "after {pause} s");
    }
    assert!(forward(&forwarder, &command, PATIENCE).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_link_on_which_nothing_comes_is_replaced() {
    let (stop, stopped) = watch::channel(false);
    let net = Stopping(MemoryNet::default(), stopped.clone());
    let handler = Handler::new(Duration::ZERO, 10);
    let _leader = lead(&net.0, &handler).await;
    let forwarder = forwarder(net);
    let command = request(10);
    assert!(forward(&forwarder, &command, PATIENCE).await.is_ok());
    let first = Arc::clone(&forwarder.links.lock().unwrap()[&1].waiting);
    sleep(Duration::from_secs(3600)).await;
    assert!(!first.is_closed(), "an idle link lives");
    stop.send_replace(true);
    sleep(clock::SILENCE_MAX + Duration::from_secs(1)).await;
    assert!(first.is_closed());
    stop.send_replace(false);
    assert!(forward(&forwarder, &command, PATIENCE).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_does_not_read_ends_the_link_and_what_was_not_written_was_not_done() {
    let net = MemoryNet::default();
    let mut listener = net.bind(LEADER.parse().unwrap()).await.unwrap();
    let _deaf = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok(accepted) = listener.accept().await {
            let (mut connection, _) = peer::accept(accepted.stream, &Local::of_test(1))
                .await
                .unwrap();
            connection.writer.send(&encode_clock(0)).await.unwrap();
            open.push(connection);
        }
    });
    let forwarder = forwarder(net);
    let command = request(1 << 20);
    let limit = Duration::from_secs(60);
    let answers = join_all((0..3).map(|_| forward(&forwarder, &command, limit))).await;
    assert!(matches!(answers[0], Err(ForwardError::Unknown)));
    for answer in &answers[1..] {
        assert!(
            matches!(answer, Err(ForwardError::Unreachable(_))),
            "{answer:?}"
        );
    }
    let links = forwarder.links.lock().unwrap();
    assert!(links.values().all(|link| link.waiting.is_closed()));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_is_dropped_at_any_await_leaves_nothing_behind() {
    let net = MemoryNet::default();
    let handler = Handler::new(Duration::from_millis(10), 100 << 10);
    let _leader = lead(&net, &handler).await;
    let forwarder = forwarder(net);
    let command = request(200 << 10);
    // At first on a new link each time, then on one that is open.
    for is_open in [false, true] {
        for polls in 1.. {
            if !is_open {
                forwarder.links.lock().unwrap().clear();
            }
            let answered = poll_times(forward(&forwarder, &command, PATIENCE), polls).await;
            if let Some(answer) = answered {
                assert!(answer.unwrap().is_some());
                break;
            }
            // Whether it was carried out or not: the next one is answered, and with its own answer.
            let answer = forward(&forwarder, &request(10), PATIENCE).await;
            assert_eq!(answer.unwrap().unwrap().body.len(), 100 << 10);
            sleep(Duration::from_secs(1)).await;
            assert!(is_idle(&forwarder), "dropped at poll {polls}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_is_waited_for_until_the_deadline() {
    let net = MemoryNet::default();
    let _listener = net.bind(LEADER.parse().unwrap()).await.unwrap();
    let forwarder = forwarder(net);
    let command = request(4 << 20);
    let limit = Duration::from_secs(1);
    let answers = join_all((0..40).map(|_| forward(&forwarder, &command, limit))).await;
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Err(ForwardError::Unreachable(_))))
    );
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let client: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let mut inner = BytesMut::new();
    frame::encode(&request(3), &mut inner);
    let whole = encode_request(5, 77, client, &inner);
    let (_, body) = wire::take_frame(&mut BytesMut::from(&whole[..]))
        .unwrap()
        .unwrap();
    let decoded = decode_request(body.clone()).unwrap();
    assert_eq!(
        (decoded.id, decoded.deadline_ms, decoded.peer),
        (5, 77, client)
    );
    for cut in 0..body.len() {
        assert!(decode_request(body.slice(..cut)).is_err(), "cut at {cut}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_clock_of_the_leader_goes_on_from_what_was_told_and_never_ahead() {
    let clock = LeaderClock::new(1000);
    let told = Instant::now();
    assert_eq!(clock.at(told + PATIENCE), 3800);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(clock.at(told + PATIENCE), 3800);
    clock.set(3100);
    assert_eq!(clock.at(Instant::now()), 3100);
    assert_eq!(clock.at(told), 3100);
}
