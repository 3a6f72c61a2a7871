//! The name server: listener, connections, and the state behind them.
//!
//! Owns the one lock of the name server ([`Shared::state`]), held only while a request is answered
//! from memory, never across an await, and the file of the key-value configuration. A broker whose connection closes is dropped at once.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use raftmq_remoting::{RemotingCommand, ResponseCode, frame};
use tokio::sync::watch;
use tokio::time::Instant;

use bytes::BytesMut;

use super::kv_config::{KvConfig, KvFile};
use super::requests::{Reject, Request};
use super::route_table::{ConnectionId, RouteTable};
use super::state::{Answer, State};
use raftmq_config::NamesrvConfig;
use raftmq_host::budget::{self, Account, Budget, Holder};
use raftmq_host::framing::frame_io::{self, ConnectionError, FrameWriter};
use raftmq_host::framing::intake::{Intake, Received};
use raftmq_host::limits::CONNECTIONS_MAX;
use raftmq_host::net::{Accepted, Listener, Net};
use raftmq_host::process::blocking;

/// Why the name server ended.
#[derive(Debug, thiserror::Error)]
pub enum NamesrvError {
    /// The port is taken or the address is not of this machine.
    #[error("name server: listen on {address}: {source}")]
    Bind {
        /// As configured.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// The file of the key-value configuration cannot be read.
    #[error("name server: read key-value configuration {}: {source}", path.display())]
    LoadKv {
        /// As configured.
        path: PathBuf,
        /// The system's answer, or what is wrong with the text.
        source: io::Error,
    },
    /// The listener failed.
    #[error("name server: accept connection: {0}")]
    Accept(#[from] io::Error),
}

/// Listens as configured and serves until `shutdown` is true or its sender is gone.
pub async fn serve(
    config: NamesrvConfig,
    net: Arc<dyn Net>,
    shutdown: watch::Receiver<bool>,
) -> Result<(), NamesrvError> {
    let address = config.listen_address();
    let listener = net
        .bind(address)
        .await
        .map_err(|source| NamesrvError::Bind { address, source })?;
    serve_on(listener, config, shutdown).await
}

/// As [`serve`], on a listener that is bound already.
pub async fn serve_on(
    listener: Box<dyn Listener>,
    config: NamesrvConfig,
    shutdown: watch::Receiver<bool>,
) -> Result<(), NamesrvError> {
    let shared = Arc::new(Shared::new(config)?);
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "name server serves");
    }
    let connection_ids = AtomicU64::new(0);
    let serve_one = |accepted: Accepted| {
        let connection = Connection {
            id: ConnectionId(connection_ids.fetch_add(1, Ordering::Relaxed)),
            account: shared.budget.account(),
        };
        serve_connection(Arc::clone(&shared), accepted, connection, shutdown.clone())
    };
    let stop = stopped(shutdown.clone());
    tokio::select! {
        biased;
        served = frame_io::accept_loop(listener, CONNECTIONS_MAX, stop, serve_one, || ()) => Ok(served?),
        () = expire_silent(&shared) => Ok(()),
    }
}

/// Resolves when the process is to stop.
async fn stopped(mut shutdown: watch::Receiver<bool>) {
    // A sender that is gone means the same as a stop.
    let _ = shutdown.wait_for(|stop| *stop).await;
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Held while the file is written, by the thread that writes it.
    kv_file: Arc<tokio::sync::Mutex<KvFile>>,
    /// The memory that clients may hold.
    budget: Arc<Budget>,
    /// Ages are measured from here, by a clock that nobody sets.
    started: Instant,
}

impl Shared {
    fn new(config: NamesrvConfig) -> Result<Self, NamesrvError> {
        let path = config.kv_config_path.clone();
        let kv = KvConfig::load(&path).map_err(|source| NamesrvError::LoadKv {
            path: path.clone(),
            source,
        })?;
        let bytes = budget::bytes_of(config.memory_budget_bytes);
        let state = State {
            table: RouteTable::default(),
            kv,
            kv_changes: 0,
            config,
        };
        Ok(Self {
            state: Mutex::new(state),
            kv_file: Arc::new(tokio::sync::Mutex::new(KvFile::new(path))),
            // A name server has no port for metrics.
            budget: Budget::unseen(bytes),
            started: Instant::now(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic ends the process in release builds; in tests the next user may go on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time since the name server began to serve. Unit: ms.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn respond(
        self: &Arc<Self>,
        command: &RemotingCommand,
        connection: ConnectionId,
    ) -> RemotingCommand {
        match self.answer(command, connection).await {
            Ok(answer) => {
                let response = RemotingCommand::response_to(command, ResponseCode::SUCCESS);
                let fields = answer.fields.into_iter();
                fields
                    .fold(response, |response, (name, value)| {
                        response.with_ext(name, value)
                    })
                    .with_body(answer.body)
            }
            Err(Reject(code, remark)) => {
                RemotingCommand::response_to(command, code).with_remark(remark)
            }
        }
    }

    async fn answer(
        self: &Arc<Self>,
        command: &RemotingCommand,
        connection: ConnectionId,
    ) -> Result<Answer, Reject> {
        let request = Request::decode(command, connection)?;
        let now_ms = self.now_ms();
        let (answer, number) = {
            let mut state = self.state();
            (state.answer(request, now_ms)?, state.kv_changes)
        };
        if answer.kv_changed {
            self.persist(number).await?;
        }
        Ok(answer)
    }

    /// Waits until the key-value configuration is on disk, as of change `number` or later: changes
    /// that come while it is written share the next write. One text of it exists at a time.
    async fn persist(self: &Arc<Self>, number: u64) -> Result<(), Reject> {
        let mut file = Arc::clone(&self.kv_file).lock_owned().await;
        if file.written() >= number {
            return Ok(());
        }
        let shared = Arc::clone(self);
        // The file goes along: nobody else writes it, even if this caller is gone.
        let write = move || {
            let (text, newest) = {
                let state = shared.state();
                (state.kv.text()?, state.kv_changes)
            };
            file.write(&text, newest)
        };
        let written = match blocking(write).await {
            Ok(written) => written,
            Err(error) => Err(io::Error::other(error)),
        };
        written.map_err(|error| {
            tracing::error!(%error, "write key-value configuration");
            let remark = format!("write key-value configuration: {error}");
            Reject(ResponseCode::SYSTEM_ERROR, remark)
        })
    }

    fn connection_closed(&self, connection: ConnectionId) {
        let dropped = self.state().table.connection_closed(connection);
        for address in dropped {
            tracing::info!(%address, "broker dropped: its connection closed");
        }
    }
}

/// Drops silent brokers, forever.
async fn expire_silent(shared: &Shared) {
    loop {
        let interval_ms = shared.state().config.scan_not_active_broker_interval_ms;
        tokio::time::sleep(Duration::from_millis(interval_ms)).await;
        let now_ms = shared.now_ms();
        let dropped = shared.state().table.expire(now_ms);
        for address in dropped {
            tracing::warn!(%address, "broker dropped: silent for too long");
        }
    }
}

/// A connection of the name server, and what its client holds.
struct Connection {
    id: ConnectionId,
    account: Arc<Account>,
}

/// One connection, request by request.
async fn serve_connection(
    shared: Arc<Shared>,
    accepted: Accepted,
    connection: Connection,
    shutdown: watch::Receiver<bool>,
) {
    let Accepted { stream, peer } = accepted;
    let idle_timeout = Duration::from_secs(shared.state().config.channel_max_idle_seconds);
    let (reader, mut writer) = frame_io::open(stream, idle_timeout);
    let mut intake = Intake::new(reader, Arc::clone(&connection.account));
    let stop = stopped(shutdown);
    tokio::pin!(stop);
    loop {
        let received = tokio::select! {
            biased;
            () = &mut stop => break,
            received = intake.next() => received,
        };
        let served = match received {
            Ok(Some(received)) => answer_one(&shared, received, &connection, &mut writer).await,
            Ok(None) => break,
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            tracing::debug!(%peer, %error, "connection closed");
            break;
        }
    }
    shared.connection_closed(connection.id);
    // Whether the peer hears of the end concerns nobody any more.
    let _ = writer.finish().await;
}

/// Answers one request. What it holds is given back when the answer is written: the next one is
/// read only then.
async fn answer_one(
    shared: &Arc<Shared>,
    received: Received,
    connection: &Connection,
    writer: &mut FrameWriter,
) -> Result<(), ConnectionError> {
    let (command, response, _held) = match received {
        Received::Taken(command, _) if command.is_response() => return Ok(()),
        Received::Taken(command, permit) => {
            let response = shared.respond(&command, connection.id).await;
            (command, response, Some(permit))
        }
        Received::Refused(command) if command.is_response() => return Ok(()),
        Received::Refused(command) => {
            let response = no_room(&command);
            (command, response, None)
        }
    };
    if command.is_oneway() {
        return Ok(());
    }
    let mut frame = BytesMut::new();
    frame::encode(&response, &mut frame);
    drop(response);
    // Nobody knows how long the client takes to read it. Every request may be repeated, and clients
    // ask the next name server.
    let held = connection.account.try_take(Holder::Answers, frame.len());
    if held.is_none() {
        frame.clear();
        frame::encode(&no_room(&command), &mut frame);
    }
    Ok(writer.write(&mut frame).await?)
}

/// Too much memory is held by clients that do not read their answers, or send no end.
fn no_room(command: &RemotingCommand) -> RemotingCommand {
    tracing::debug!(code = command.code, "no memory for a request");
    RemotingCommand::response_to(command, ResponseCode::SYSTEM_BUSY)
        .with_remark("[OVERLOAD]the name server has no memory for more requests")
}
