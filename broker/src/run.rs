//! The composition root: opens the store, starts Raft, opens the ports, and stops in reverse.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use raftmq_state::State;
use raftmq_store::{
    CommitLog, Disk, FORMAT_VERSION, FlushOutcome, FlushPolicy, Flusher, Identity, LogConfig,
    LogId, PreallocOutcome, Preallocator, RealDisk, StoreError, index::QueueIndex,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    broker::{Broker, BrokerParts},
    checkpoint::{Checkpoints, MembershipRecord, Restored},
    clock::{Clock, SystemClock},
    config::{BrokerConfig, FlushDiskType, NamesrvConfig},
    handler,
    http::{self, AdminError, AdminOps},
    long_poll::LongPoll,
    machine::Machine,
    metrics::Metrics,
    namesrv::{self, NamesrvError, Registrar, RegistrarInput},
    net::{Listener, Net, TcpNet},
    offset_commits::OffsetCommits,
    proposer::Proposer,
    raft::{ChangeError, Consensus, ConsensusParts},
    retention, schedule,
    server::{self, ForwardedRequests},
    stats::Stats,
    status::{NodeAddresses, RaftStatus},
};

/// How long a stopping leader tries to hand over before it stops anyway.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long name servers get to take the broker out.
const UNREGISTER_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between looks for silent clients.
const SESSION_SCAN_INTERVAL: Duration = Duration::from_secs(10);
/// Pause between looks at the age of the oldest unflushed write.
const DISK_WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// A leader whose oldest unflushed write is older hands over: its disk is stalled.
const DISK_STALL_MAX: Duration = Duration::from_millis(500);

/// `httpPort` when the file does not set it, and how many ports from there on are tried.
const HTTP_PORT_DEFAULT: u16 = 5557;
const HTTP_PORT_TRIES: u16 = 16;

/// Why a server process ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The data folder cannot be used.
    #[error("open data folder {}: {source}", path.display())]
    Store {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        source: StoreError,
    },
    /// A port is taken or an address is not of this machine.
    #[error("listen on {address} ({purpose}): {source}")]
    Bind {
        /// Address.
        address: SocketAddr,
        /// Key that sets it.
        purpose: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// `brokerIP1` is not an address clients can dial.
    #[error("brokerIP1={0} cannot be resolved to an address; set it to the address clients dial")]
    Address(String),
    /// Raft could not be started.
    #[error("start raft: {0}")]
    Raft(io::Error),
    /// A server ended.
    #[error("serve: {0}")]
    Serve(#[from] io::Error),
    /// The name server ended.
    #[error(transparent)]
    Namesrv(#[from] NamesrvError),
}

/// Runs a name server until `shutdown` turns true.
///
/// # Errors
/// When its port or its key-value file cannot be used.
pub async fn run_namesrv(
    config: NamesrvConfig,
    shutdown: watch::Receiver<bool>,
) -> Result<(), RunError> {
    Ok(namesrv::serve(config, Arc::new(TcpNet), Arc::new(SystemClock), shutdown).await?)
}

/// The opened data folder.
struct Opened {
    log: Arc<CommitLog>,
    index: Arc<QueueIndex>,
    checkpoints: Arc<Checkpoints>,
    state: State,
    applied: Option<LogId>,
    membership: MembershipRecord,
    checkpoint_physical: u64,
    last_store_timestamp_ms: u64,
    flusher: Flusher,
    preallocator: Preallocator,
}

/// Runs a broker until `shutdown` turns true.
///
/// # Errors
/// When the data folder or a port cannot be used, or a server breaks.
pub async fn run_broker(
    config: BrokerConfig,
    shutdown: watch::Receiver<bool>,
) -> Result<(), RunError> {
    let net: Arc<dyn Net> = Arc::new(TcpNet);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let metrics = Arc::new(Metrics::new());
    let store_host = store_host(&config).await?;
    let raft_listener = bind(&net, raft_address(&config), "dLegerPeers").await?;
    let client_address = SocketAddr::new(config.bind_address, config.listen_port);
    let client_listener = bind(&net, client_address, "listenPort").await?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let opened = {
        let config = config.clone();
        tokio::task::spawn_blocking(move || open_store(&config, disk))
            .await
            .map_err(io::Error::other)??
    };
    start_disk_threads(opened.flusher, opened.preallocator, &metrics)?;
    let long_poll = Arc::new(LongPoll::default());
    let machine = Arc::new(Machine::new(
        opened.state,
        opened.index,
        Arc::clone(&opened.log),
        Arc::clone(&long_poll),
        opened.last_store_timestamp_ms,
    ));
    let broker = Broker::new(BrokerParts {
        config: config.clone(),
        store_host,
        clock: Arc::clone(&clock),
        machine: Arc::clone(&machine),
        long_poll,
        metrics: Arc::clone(&metrics),
    });
    let runtime = tokio::runtime::Handle::current();
    let consensus = Consensus::start(ConsensusParts {
        cluster: config.cluster_name.clone(),
        raft: config.raft.clone(),
        addresses: addresses(&config),
        net: Arc::clone(&net),
        listener: raft_listener,
        machine,
        checkpoints: opened.checkpoints,
        applied: opened.applied,
        membership: opened.membership,
        checkpoint_physical: opened.checkpoint_physical,
        forwards: Arc::new(ForwardedRequests(Arc::downgrade(&broker), runtime)),
    })
    .await
    .map_err(RunError::Raft)?;
    let proposer = Proposer::start(&consensus, Arc::clone(&clock), Arc::clone(&metrics));
    broker.join(Arc::clone(&consensus), proposer);
    serve_until(broker, net, clock, client_listener, shutdown).await
}

/// Starts the ports and background tasks of a joined broker and stops them at `shutdown`.
async fn serve_until(
    broker: Arc<Broker>,
    net: Arc<dyn Net>,
    clock: Arc<dyn Clock>,
    client_listener: Box<dyn Listener>,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), RunError> {
    let config = &broker.config;
    // Ports close only after the leadership has moved and the name servers know.
    let (close_ports, ports_closing) = watch::channel(false);
    let mut servers: JoinSet<Result<(), RunError>> = JoinSet::new();
    if config.http_port != 0 {
        let listener = bind_http(config, &net).await?;
        let admin: Arc<dyn AdminOps> = Arc::new(Admin(Arc::clone(&broker)));
        let metrics = Arc::clone(&broker.metrics);
        let closing = ports_closing.clone();
        servers.spawn(
            async move { Ok(http::serve_on(listener, Some(admin), metrics, closing).await?) },
        );
    }
    if let Some(port) = config.namesrv_port {
        let namesrv = embedded_namesrv(config, port);
        let (net, clock, closing) = (Arc::clone(&net), clock, ports_closing.clone());
        servers.spawn(async move { Ok(namesrv::serve(namesrv, net, clock, closing).await?) });
    }
    let registration = registration(&broker);
    let (unregister, unregistering) = watch::channel(false);
    let registrar = Registrar::start(
        config,
        &name_servers(config),
        &net,
        &registration,
        &unregistering,
    );
    let mut tasks = background_tasks(&broker);
    let clients = Arc::clone(&broker);
    servers.spawn(async move { Ok(server::serve(clients, client_listener, ports_closing).await?) });
    tracing::info!(
        broker = config.broker_name,
        address = config.broker_address(),
        node = config.raft.self_id,
        "broker serves"
    );
    let ended = tokio::select! {
        biased;
        _ = shutdown.wait_for(|stop| *stop) => None,
        ended = servers.join_next() => ended,
    };
    stop(&broker, registrar, &unregister, &close_ports).await;
    tasks.shutdown().await;
    match ended {
        Some(ended) => ended.map_err(io::Error::other)?,
        None => Ok(()),
    }
}

/// Stops in an order that costs clients least: hand over, leave the name servers, close.
async fn stop(
    broker: &Broker,
    registrar: Registrar,
    unregister: &watch::Sender<bool>,
    close_ports: &watch::Sender<bool>,
) {
    let Some(consensus) = broker.consensus() else {
        return;
    };
    if broker.is_serving() && broker.config.raft.peers.len() > 1 {
        match timeout(HAND_OVER_TIMEOUT, consensus.transfer_leader(None)).await {
            Ok(Ok(to)) => tracing::info!(to, "handed the leadership over"),
            Ok(Err(error)) => tracing::warn!(%error, "hand over"),
            Err(_) => tracing::warn!("nobody took the leadership over in time"),
        }
    }
    broker.offset_commits.flush(broker).await;
    unregister.send_replace(true);
    if timeout(UNREGISTER_TIMEOUT, registrar.stopped())
        .await
        .is_err()
    {
        tracing::warn!("a name server did not take the broker out in time");
    }
    broker.proposer().close();
    close_ports.send_replace(true);
    consensus.stop().await;
    if let Err(error) = broker.machine.log().flush() {
        tracing::warn!(%error, "flush the log");
    }
    broker.machine.log().close();
}

async fn bind(
    net: &Arc<dyn Net>,
    address: SocketAddr,
    purpose: &'static str,
) -> Result<Box<dyn Listener>, RunError> {
    net.bind(address).await.map_err(|source| RunError::Bind {
        address,
        purpose,
        source,
    })
}

/// Binds the HTTP port. Classic properties files know no `httpPort`, and three of them on one
/// machine must work: when the default port is taken, the next ones are tried.
async fn bind_http(
    config: &BrokerConfig,
    net: &Arc<dyn Net>,
) -> Result<Box<dyn Listener>, RunError> {
    let tries = if config.http_port == HTTP_PORT_DEFAULT {
        HTTP_PORT_TRIES
    } else {
        1
    };
    let mut address = SocketAddr::new(config.http_bind_address, config.http_port);
    for _ in 1..tries {
        match net.bind(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                tracing::info!(%address, "the default HTTP port is taken; try the next one");
                address.set_port(address.port() + 1);
            }
            Ok(listener) => {
                tracing::info!(%address, "HTTP port");
                return Ok(listener);
            }
            Err(source) => {
                return Err(RunError::Bind {
                    address,
                    purpose: "httpPort",
                    source,
                });
            }
        }
    }
    bind(net, address, "httpPort").await
}

/// Where this node's Raft port listens: the port of its own entry in `dLegerPeers`.
fn raft_address(config: &BrokerConfig) -> SocketAddr {
    let port = config
        .raft
        .self_peer()
        .map_or(0, crate::config::RaftPeer::port);
    SocketAddr::new(config.raft.bind_address, port)
}

fn addresses(config: &BrokerConfig) -> NodeAddresses {
    let http = SocketAddr::new(config.http_bind_address, config.http_port);
    NodeAddresses {
        broker: config.broker_address(),
        raft: config
            .raft
            .self_peer()
            .map(|peer| peer.address.clone())
            .unwrap_or_default(),
        http: if config.http_port == 0 {
            String::new()
        } else {
            http.to_string()
        },
    }
}

/// The address that goes into message ids. A name is resolved once.
async fn store_host(config: &BrokerConfig) -> Result<SocketAddr, RunError> {
    let unresolved = || RunError::Address(config.broker_ip1.clone());
    if let Ok(ip) = config.broker_ip1.parse() {
        return Ok(SocketAddr::new(ip, config.listen_port));
    }
    crate::net::resolve(&config.broker_address())
        .await
        .map_err(|_| unresolved())
}

/// Name servers to register with: the configured ones, and the one inside this process.
fn name_servers(config: &BrokerConfig) -> Vec<String> {
    let mut addresses = config.namesrv_addrs.clone();
    if let Some(port) = config.namesrv_port {
        let own = format!("127.0.0.1:{port}");
        if addresses.is_empty() {
            addresses.push(own);
        }
    }
    addresses
}

fn embedded_namesrv(config: &BrokerConfig, port: u16) -> NamesrvConfig {
    let mut namesrv = NamesrvConfig::defaults(&crate::config::Surroundings::of_this_machine());
    namesrv.listen_port = port;
    namesrv.bind_address = config.bind_address;
    namesrv.kv_config_path = config.store_root.join("namesrv").join("kvConfig.json");
    namesrv
}

fn open_store(config: &BrokerConfig, disk: Arc<dyn Disk>) -> Result<Opened, RunError> {
    let root = config.store_root.clone();
    open_folders(config, disk, &root).map_err(|source| RunError::Store { path: root, source })
}

fn open_folders(
    config: &BrokerConfig,
    disk: Arc<dyn Disk>,
    root: &Path,
) -> Result<Opened, StoreError> {
    let expected = Identity {
        cluster: config.cluster_name.clone(),
        group: config.raft.group.clone(),
        node_id: config.raft.self_id,
        incarnation: String::new(),
        format_version: FORMAT_VERSION,
    };
    Identity::open_or_create(&*disk, root, &expected)?;
    let checkpoints = Arc::new(Checkpoints::open(
        Arc::clone(&disk),
        &root.join("checkpoint"),
    )?);
    let restored = checkpoints.newest()?;
    let log_config = LogConfig {
        segment_bytes: config.segment_bytes,
        tail_bytes: config.tail_bytes,
        preallocate_bytes: config.preallocate_bytes,
        flush: match config.flush {
            FlushDiskType::SyncFlush => FlushPolicy::Sync,
            FlushDiskType::AsyncFlush => FlushPolicy::Async {
                interval: Duration::from_millis(config.flush_interval_commit_log_ms),
            },
        },
        ..LogConfig::new(&config.store_commitlog)
    };
    let position = restored.as_ref().map(|restored| &restored.position);
    let (log, flusher, preallocator, report) =
        CommitLog::open(Arc::clone(&disk), log_config, position)?;
    tracing::info!(?report, "opened the log");
    let (index, restored) = open_index(&disk, root, &log, restored)?;
    index.set_min_physical(log.min_physical());
    let last_store_timestamp_ms = restored
        .as_ref()
        .map_or(0, |restored| restored.last_store_timestamp_ms);
    let (state, applied, membership, checkpoint_physical) = match restored {
        Some(restored) => {
            let physical = restored.position.end_physical;
            (
                restored.state,
                Some(restored.id),
                restored.membership,
                physical,
            )
        }
        None => (
            State::new(),
            None,
            MembershipRecord::default(),
            log.min_physical(),
        ),
    };
    Ok(Opened {
        log,
        index: Arc::new(index),
        checkpoints,
        state,
        applied,
        membership,
        checkpoint_physical,
        last_store_timestamp_ms,
        flusher,
        preallocator,
    })
}

/// Opens the consume queue that belongs to the restored checkpoint. When it is damaged and the
/// log is still whole from its beginning, everything is rebuilt from the log instead.
fn open_index(
    disk: &Arc<dyn Disk>,
    root: &Path,
    log: &CommitLog,
    restored: Option<Restored>,
) -> Result<(QueueIndex, Option<Restored>), StoreError> {
    let dir = root.join("consumequeue");
    let Some(restored) = restored else {
        return Ok((QueueIndex::open(Arc::clone(disk), &dir, None)?, None));
    };
    if log
        .last_id()
        .is_none_or(|last| last.index < restored.id.index)
    {
        // The process ended between installing a snapshot and moving the log there.
        let position = &restored.position;
        log.reset(position.id, position.end_physical, position.crc)?;
    }
    match QueueIndex::open(Arc::clone(disk), &dir, restored.index_manifest.as_deref()) {
        Ok(index) => Ok((index, Some(restored))),
        Err(error) if log.purged_id().is_none() => {
            tracing::warn!(%error, "the consume queue is damaged; rebuild it from the log");
            Ok((QueueIndex::open(Arc::clone(disk), &dir, None)?, None))
        }
        Err(error) => Err(error),
    }
}

/// The flush thread and the preallocation thread. Either one's failure ends the process: a node
/// that cannot write must not answer as if it could.
fn start_disk_threads(
    mut flusher: Flusher,
    mut preallocator: Preallocator,
    metrics: &Arc<Metrics>,
) -> Result<(), RunError> {
    let metrics = Arc::clone(metrics);
    std::thread::Builder::new()
        .name("flush".into())
        .spawn(move || {
            loop {
                match flusher.run_once() {
                    FlushOutcome::Flushed { bytes, took, .. } => metrics.flushed(bytes, took),
                    FlushOutcome::Idle => {}
                    FlushOutcome::Stopped => return,
                    FlushOutcome::Failed(reason) => {
                        tracing::error!(reason, "the log cannot be written; the process ends");
                        std::process::abort();
                    }
                }
            }
        })?;
    std::thread::Builder::new()
        .name("preallocate".into())
        .spawn(move || {
            loop {
                match preallocator.run_once() {
                    PreallocOutcome::Stopped => return,
                    PreallocOutcome::Failed(error) => {
                        // Appends then grow the file themselves, slower but safe.
                        tracing::warn!(%error, "fill the log ahead");
                        std::thread::sleep(Duration::from_secs(1));
                    }
                    _ => {}
                }
            }
        })?;
    Ok(())
}

fn background_tasks(broker: &Arc<Broker>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(OffsetCommits::run(Arc::clone(broker)));
    tasks.spawn(schedule::run(Arc::clone(broker)));
    tasks.spawn(retention::run(Arc::clone(broker)));
    tasks.spawn(expire_sessions(Arc::clone(broker)));
    tasks.spawn(Stats::run(Arc::clone(broker)));
    tasks.spawn(watch_disk(Arc::clone(broker)));
    tasks.spawn(create_system_topics(Arc::clone(broker)));
    tasks
}

/// Each new leader makes sure that the system topics exist.
async fn create_system_topics(broker: Arc<Broker>) {
    let Some(consensus) = broker.consensus() else {
        return;
    };
    let mut role = consensus.role();
    loop {
        if role.wait_for(|role| role.serving).await.is_err() {
            return;
        }
        handler::topic::create_system_topics(&broker).await;
        if role.wait_for(|role| !role.serving).await.is_err() {
            return;
        }
        broker.offset_commits.clear();
    }
}

async fn expire_sessions(broker: Arc<Broker>) {
    loop {
        sleep(SESSION_SCAN_INTERVAL).await;
        let changed = broker.sessions.expire(broker.clock.now_ms());
        handler::notify_changed(&broker, changed);
    }
}

/// Heartbeats do not hide a stalled disk: a leader that cannot flush hands over.
async fn watch_disk(broker: Arc<Broker>) {
    let Some(consensus) = broker.consensus() else {
        return;
    };
    loop {
        sleep(DISK_WATCH_INTERVAL).await;
        let stalled = broker.machine.log().oldest_unflushed_since();
        if broker.is_serving() && stalled.is_some_and(|age| age > DISK_STALL_MAX) {
            tracing::warn!(age = ?stalled, "the disk is stalled; hand over");
            if let Err(error) = consensus.transfer_leader(None).await {
                tracing::warn!(%error, "hand over from a stalled disk");
            }
        }
    }
}

/// What is registered at the name servers: changes with the role and with the topics.
fn registration(broker: &Arc<Broker>) -> watch::Receiver<Option<RegistrarInput>> {
    let (sender, receiver) = watch::channel(None);
    let broker = Arc::clone(broker);
    tokio::spawn(async move {
        let Some(consensus) = broker.consensus() else {
            return;
        };
        let mut role = consensus.role();
        let mut metadata = broker.machine.metadata_changes();
        loop {
            let current = role.borrow_and_update().clone();
            metadata.borrow_and_update();
            // Unknown to itself and the others, a node is not registered.
            let input = (current.serving || current.leader.is_some()).then(|| RegistrarInput {
                broker_id: broker.broker_id(),
                broker_address: broker.config.broker_address(),
                role_epoch: current.term,
                topics: Arc::new(handler::topic::topics_wrapper(&broker)),
            });
            if input.is_some() && sender.send(input).is_err() {
                return;
            }
            let ended = tokio::select! {
                biased;
                changed = role.changed() => changed.is_err(),
                changed = metadata.changed() => changed.is_err(),
            };
            if ended {
                return;
            }
        }
    });
    receiver
}

/// The broker as the admin service sees it.
struct Admin(Arc<Broker>);

impl Admin {
    fn consensus(&self) -> Result<&Arc<Consensus>, AdminError> {
        self.0
            .consensus()
            .ok_or_else(|| AdminError::Unavailable("raft is starting".into()))
    }

    fn error(&self, error: ChangeError) -> AdminError {
        match error {
            ChangeError::NotLeader => AdminError::NotLeader {
                leader: self.status().borrow().leader_id,
            },
            ChangeError::Invalid(reason) => AdminError::Invalid(reason),
            ChangeError::Timeout(..) => AdminError::Unknown(error.to_string()),
            ChangeError::Raft(reason) => AdminError::Unavailable(reason),
        }
    }
}

impl AdminOps for Admin {
    fn status(&self) -> watch::Receiver<Arc<RaftStatus>> {
        self.0
            .consensus()
            .expect("the HTTP port opens after raft has started")
            .status()
    }

    fn transfer_leader(
        &self,
        to: Option<u64>,
    ) -> futures::future::BoxFuture<'_, Result<(), AdminError>> {
        Box::pin(async move {
            let moved = self.consensus()?.transfer_leader(to).await;
            moved.map(|_| ()).map_err(|error| self.error(error))
        })
    }

    fn add_learner(
        &self,
        id: u64,
        address: String,
    ) -> futures::future::BoxFuture<'_, Result<(), AdminError>> {
        Box::pin(async move {
            let added = self.consensus()?.add_learner(id, address).await;
            added.map_err(|error| self.error(error))
        })
    }

    fn change_membership(
        &self,
        voters: std::collections::BTreeSet<u64>,
    ) -> futures::future::BoxFuture<'_, Result<(), AdminError>> {
        Box::pin(async move {
            let voters = voters.into_iter().collect();
            let changed = self.consensus()?.change_membership(voters).await;
            changed.map_err(|error| self.error(error))
        })
    }

    fn ready(&self) -> Result<(), String> {
        let status = self.status();
        let status = status.borrow();
        if status.ready {
            return Ok(());
        }
        Err(status
            .not_ready_reason
            .clone()
            .unwrap_or_else(|| "not ready".into()))
    }

    fn live(&self) -> Result<(), String> {
        Ok(())
    }
}
