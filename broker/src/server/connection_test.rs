//! Tests of client connections.

use std::sync::Mutex;

use bytes::Bytes;
use raftmq_remoting::{RequestCode, ResponseCode};
use tokio::{io::AsyncWriteExt, task::JoinSet};

use super::*;
use crate::budget::{BUDGET_BYTES_MIN, Budget, SHARE_BYTES};

const MIB: usize = 1 << 20;
const LONG: Duration = Duration::from_secs(120);

fn request(opaque: i32, bytes: usize) -> RemotingCommand {
    let mut command = RemotingCommand::request(RequestCode::SEND_MESSAGE_V2);
    command.opaque = opaque;
    command.with_body(Bytes::from(vec![0; bytes]))
}

/// Serves connections; `handle` gets each request.
struct Server<H> {
    budget: Arc<Budget>,
    handle: H,
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl<H> Server<H>
where
    H: Fn(&Arc<Connection>, RemotingCommand, InFlight) + Clone + Send + 'static,
{
    fn new(handle: H) -> Self {
        Self {
            budget: Budget::unseen(BUDGET_BYTES_MIN),
            handle,
            tasks: JoinSet::new(),
            stop: watch::Sender::new(false),
        }
    }

    /// The client's end of a new connection that holds 64 KiB in each direction.
    fn connect(&mut self) -> (Stream, Arc<Account>) {
        let (near, far) = tokio::io::duplex(64 << 10);
        let account = self.budget.account();
        let accepted = Accepted {
            id: 1,
            peer: SocketAddr::from(([127, 0, 0, 1], 1)),
            stream: Box::new(far),
            account: Arc::clone(&account),
        };
        let (handle, stopping) = (self.handle.clone(), self.stop.subscribe());
        self.tasks.spawn(serve(accepted, stopping, handle, || ()));
        (Box::new(near), account)
    }
}

/// Answers every request at once.
fn answer(connection: &Arc<Connection>, command: RemotingCommand, in_flight: InFlight) {
    let response = RemotingCommand::response_to(&command, ResponseCode::SUCCESS);
    connection.send(&response.with_body(command.body));
    drop(in_flight);
}

#[tokio::test(start_paused = true)]
async fn half_frames_of_many_hold_less_than_the_budget_and_others_are_served() {
    let mut server = Server::new(answer);
    let mut accounts = Vec::new();
    let mut clients = JoinSet::new();
    for opaque in 0..200 {
        let (mut stream, account) = server.connect();
        accounts.push(account);
        clients.spawn(async move {
            let mut bytes = BytesMut::new();
            frame::encode(&request(opaque, 15 * MIB), &mut bytes);
            // All but the last byte; whoever is refused reads on. Cut at the end.
            let _ = stream.write_all(&bytes[..bytes.len() - 1]).await;
            tokio::time::sleep(LONG).await;
        });
    }
    let (stream, _account) = server.connect();
    let (mut reader, mut writer) = frame_io::open(stream, LONG);
    for opaque in 0..40 {
        writer
            .send(&request(opaque, SHARE_BYTES / 4))
            .await
            .unwrap();
        let response = reader.next().await.unwrap().unwrap();
        assert_eq!((response.opaque, response.code), (opaque, 0));
        let held: usize = accounts.iter().map(|account| account.held_bytes()).sum();
        let bound = BUDGET_BYTES_MIN as usize + accounts.len() * SHARE_BYTES;
        assert!(held <= bound, "{held} bytes are held");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // Frames have a deadline: nobody holds anything for ever.
    tokio::time::sleep(LONG).await;
    assert!(accounts.iter().all(|account| account.is_closed()));
}

#[tokio::test(start_paused = true)]
async fn a_frame_without_memory_is_refused_and_the_connection_goes_on() {
    let mut server = Server::new(answer);
    let other = server.budget.account();
    let all = other.take(Holder::Answers, BUDGET_BYTES_MIN as usize);
    let (stream, account) = server.connect();
    let (mut reader, mut writer) = frame_io::open(stream, LONG);
    for (opaque, bytes, code) in [
        (1, MIB, ResponseCode::SYSTEM_BUSY),
        // Within its share.
        (2, 1000, ResponseCode::SUCCESS),
        (3, 5 * MIB, ResponseCode::SYSTEM_BUSY),
    ] {
        let sent = request(opaque, bytes);
        let (sent, response) = tokio::join!(writer.send(&sent), reader.next());
        sent.unwrap();
        let response = response.unwrap().unwrap();
        assert_eq!(
            (response.opaque, ResponseCode(response.code)),
            (opaque, code)
        );
    }
    drop(all);
    writer.send(&request(4, MIB)).await.unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap().body.len(), MIB);
    tokio::task::yield_now().await;
    assert_eq!(account.held_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_not_read() {
    let dispatched = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&dispatched);
    let mut server = Server::new(move |connection: &_, command: RemotingCommand, in_flight| {
        *counted.lock().unwrap() += 1;
        answer(connection, command, in_flight);
    });
    let (mut stream, account) = server.connect();
    let mut bytes = BytesMut::new();
    frame::encode(&request(1, MIB / 2), &mut bytes);
    let send = async { while stream.write_all(&bytes).await.is_ok() {} };
    assert!(timeout(LONG / 4, send).await.is_err());
    // Unwritten answers of 2 MiB, what the stream holds, and the one that passed the bound.
    assert!(*dispatched.lock().unwrap() <= 6);
    assert!(account.unsent_bytes() <= UNSENT_BYTES_MAX + MIB);
    // It takes nothing for long, and is closed.
    tokio::time::sleep(LONG).await;
    assert!(account.is_closed());
    assert_eq!(account.held_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn buffers_go_when_there_is_nothing_to_write() {
    let connected = Arc::new(Mutex::new(None));
    let place = Arc::clone(&connected);
    let mut server = Server::new(move |connection: &Arc<Connection>, command, in_flight| {
        *place.lock().unwrap() = Some(Arc::clone(connection));
        answer(connection, command, in_flight);
    });
    let (stream, _account) = server.connect();
    let (mut reader, mut writer) = frame_io::open(stream, LONG);
    for opaque in 0..3 {
        writer.send(&request(opaque, 200 << 10)).await.unwrap();
        reader.next().await.unwrap().unwrap();
    }
    tokio::time::sleep(2 * WRITE_BUFFER_IDLE_TIME).await;
    let connection = connected.lock().unwrap().take().unwrap();
    assert_eq!(connection.out().frames.capacity(), 0);
}
