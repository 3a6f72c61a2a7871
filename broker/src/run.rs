//! The composition root: opens the store, starts Raft, opens the ports, and stops in reverse.

mod admin;
mod disk_threads;
mod disk_watch;
mod repair;
mod stop;
mod store;
mod tasks;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use raftmq_store::StoreError;
use tokio::{sync::watch, task::JoinSet, time::sleep};

use self::{
    admin::Admin,
    disk_threads::start_disk_threads,
    stop::StopClock,
    tasks::{background_tasks, registration},
};
use crate::{
    broker::{Broker, BrokerParts},
    budget,
    config::{BrokerConfig, NamesrvConfig},
    disk_guard::RoomLimits,
    disk_space,
    host::{Host, blocking},
    http::{self, AdminOps},
    long_poll::LongPoll,
    machine::Machine,
    metrics::Metrics,
    namesrv::{self, NamesrvError, Registrar},
    net::{Listener, Net, TcpNet},
    proposer::Proposer,
    raft::{Consensus, ConsensusParts},
    server::{self, ForwardedRequests},
    status::NodeAddresses,
};

/// How long gathered offset commits may take; without a quorum they would never go.
const COMMITS_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a stopping leader tries to hand over before it stops anyway.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the entries of a leader that handed over may take to be committed by the next one, and
/// the pause between two looks.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);
const SETTLE_POLL: Duration = Duration::from_millis(1);
/// How long name servers get to take the broker out.
const UNREGISTER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long clients get for the answers to what was read: a little longer than `server` gives them.
const CLIENTS_TIMEOUT: Duration = Duration::from_secs(4);
/// `httpPort` when the file does not set it, and how many ports from there on are tried.
const HTTP_PORT_DEFAULT: u16 = 5557;
const HTTP_PORT_TRIES: u16 = 16;
/// How often a taken port is tried again, and the pause before each try: five seconds in all.
const BIND_RETRIES: u32 = 50;
const BIND_PAUSE: Duration = Duration::from_millis(100);

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
    /// `brokerIP1` or `leaderServiceAddress` is not an address clients can dial.
    #[error("{key}={value} cannot be resolved to an address; set it to the address clients dial")]
    Address {
        /// Key.
        key: &'static str,
        /// Its value.
        value: String,
    },
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
    Ok(namesrv::serve(config, Arc::new(TcpNet), shutdown).await?)
}

/// Runs a broker until `shutdown` turns true.
///
/// # Errors
/// When the data folder or a port cannot be used, or a server breaks.
pub async fn run_broker(
    config: BrokerConfig,
    shutdown: watch::Receiver<bool>,
) -> Result<(), RunError> {
    run_broker_on(Host::of_this_machine(), config, shutdown).await
}

/// As [`run_broker`], on a machine of the caller's choice.
///
/// # Errors
/// When the data folder or a port cannot be used, or a server breaks.
pub async fn run_broker_on(
    host: Host,
    config: BrokerConfig,
    shutdown: watch::Receiver<bool>,
) -> Result<(), RunError> {
    let Host {
        net,
        clock,
        disk,
        admin,
    } = host;
    let metrics = Arc::new(Metrics::new());
    let store_host = store_host(&config).await?;
    let raft_listener = bind(&net, raft_address(&config), "dLegerPeers").await?;
    let client_address = SocketAddr::new(config.bind_address, config.listen_port);
    let client_listener = bind(&net, client_address, "listenPort").await?;
    let start = repair::open(
        &config,
        &disk,
        &net,
        raft_listener,
        &metrics,
        shutdown.clone(),
    );
    let Some((opened, raft_listener)) = start.await? else {
        return Ok(());
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
        incarnation: opened.incarnation,
        addresses: addresses(&config),
        net: Arc::clone(&net),
        listener: raft_listener,
        machine,
        checkpoints: opened.checkpoints,
        applied: opened.applied,
        membership: opened.membership,
        checkpoint_physical: opened.checkpoint_physical,
        forwards: Arc::new(ForwardedRequests(Arc::downgrade(&broker), runtime)),
        room: RoomLimits::of_segment(config.segment_bytes),
        metrics: Arc::clone(&metrics),
    })
    .await
    .map_err(RunError::Raft)?;
    let proposer = Proposer::start(&consensus, Arc::clone(&clock), Arc::clone(&metrics));
    broker.join(Arc::clone(&consensus), proposer);
    // Before the first client: its message may be the one too many.
    disk_space::look(&broker);
    admin.send_replace(Some(Arc::new(Admin(Arc::clone(&broker)))));
    serve_until(broker, net, client_listener, shutdown).await
}

/// Starts the ports and background tasks of a joined broker and stops them at `shutdown`.
async fn serve_until(
    broker: Arc<Broker>,
    net: Arc<dyn Net>,
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
        let (net, closing) = (Arc::clone(&net), ports_closing.clone());
        servers.spawn(async move { Ok(namesrv::serve(namesrv, net, closing).await?) });
    }
    let registration = registration(&broker);
    let (unregister, unregistering) = watch::channel(false);
    let registrar = Registrar::start(
        config,
        &name_servers(config),
        &net,
        &registration,
        &unregistering,
        &broker.metrics,
    );
    let mut tasks = background_tasks(&broker);
    let (leave_clients, clients_leaving) = watch::channel(false);
    let served = Arc::clone(&broker);
    let mut clients =
        tokio::spawn(async move { server::serve(served, client_listener, clients_leaving).await });
    tracing::info!(
        broker = config.broker_name,
        address = config.broker_address(),
        node = config.raft.self_id,
        "broker serves"
    );
    let ended = tokio::select! {
        biased;
        _ = shutdown.wait_for(|stop| *stop) => Ok(()),
        Some(ended) = servers.join_next() => ended.map_err(io::Error::other)?,
        ended = &mut clients => Ok(ended.map_err(io::Error::other)??),
    };
    let clock = StopClock::start();
    hand_over(&broker, &clock).await;
    unregister.send_replace(true);
    clock
        .step(
            "leave the name servers",
            UNREGISTER_TIMEOUT,
            registrar.stopped(),
        )
        .await;
    leave_clients.send_replace(true);
    if !clients.is_finished()
        && let Some(Err(error)) = clock.step("answer clients", CLIENTS_TIMEOUT, clients).await
    {
        tracing::warn!(%error, "close client connections");
    }
    close(&broker, &close_ports, &clock).await;
    clock
        .last_step("end the background tasks", tasks.shutdown())
        .await;
    ended
}

/// Makes another node lead, if this one does, and waits for the outcome of what it proposed: the
/// new leader commits that, and this node has to stay until it has heard.
async fn hand_over(broker: &Broker, clock: &StopClock) {
    let Some(consensus) = broker.consensus() else {
        return;
    };
    let commits = broker.offset_commits.flush(broker);
    clock
        .step("commit consumer offsets", COMMITS_TIMEOUT, commits)
        .await;
    let voters = consensus.status().borrow().voters.len();
    if broker.is_serving() && voters > 1 {
        let transfer = consensus.transfer_leader(None);
        match clock
            .step("hand the leadership over", HAND_OVER_TIMEOUT, transfer)
            .await
        {
            Some(Ok(leader)) => tracing::info!(leader, "handed the leadership over"),
            Some(Err(error)) => tracing::warn!(%error, "hand over"),
            None => {}
        }
    }
    let settled = async {
        while !broker.proposer().is_idle() {
            sleep(SETTLE_POLL).await;
        }
    };
    clock
        .step("the outcome of some requests", SETTLE_TIMEOUT, settled)
        .await;
}

/// Stops everything that is left, from the ports to the disk.
async fn close(broker: &Broker, close_ports: &watch::Sender<bool>, clock: &StopClock) {
    let Some(consensus) = broker.consensus() else {
        return;
    };
    broker.proposer().close();
    close_ports.send_replace(true);
    clock.last_step("stop raft", consensus.stop()).await;
    let log = Arc::clone(broker.machine.log());
    let flushed = blocking(move || log.flush());
    match clock.last_step("flush the log", flushed).await {
        Some(Ok(Err(error))) => tracing::warn!(%error, "flush the log"),
        Some(Err(error)) => tracing::warn!(%error, "flush the log"),
        Some(Ok(Ok(()))) | None => {}
    }
    broker.machine.log().close();
}

/// Binds a port. RocketMQ's usual Raft ports lie in the ephemeral range, so that an outgoing
/// connection of any process may hold one for a moment: a taken port is tried again for a while.
async fn bind(
    net: &Arc<dyn Net>,
    address: SocketAddr,
    purpose: &'static str,
) -> Result<Box<dyn Listener>, RunError> {
    let mut bound = net.bind(address).await;
    for _ in 0..BIND_RETRIES {
        let taken = bound.as_ref().err().map(io::Error::kind) == Some(io::ErrorKind::AddrInUse);
        if !taken {
            break;
        }
        tracing::debug!(%address, purpose, "port is taken; try again");
        sleep(BIND_PAUSE).await;
        bound = net.bind(address).await;
    }
    bound.map_err(|source| RunError::Bind {
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

/// The address that goes into message ids: the one that clients find the leader at, so that ids
/// can be dialed as long as the group exists. A name is resolved once.
async fn store_host(config: &BrokerConfig) -> Result<SocketAddr, RunError> {
    let address = config.leader_address();
    if let Ok(address) = address.parse() {
        return Ok(address);
    }
    let (key, value) = match &config.leader_service_address {
        Some(service) => ("leaderServiceAddress", service),
        None => ("brokerIP1", &config.broker_ip1),
    };
    let unresolved = |_| RunError::Address {
        key,
        value: value.clone(),
    };
    crate::net::resolve(&address).await.map_err(unresolved)
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
    // Beside the broker's own: routes are short, and the memory is the broker's.
    namesrv.memory_budget_bytes = Some(budget::BUDGET_BYTES_MIN);
    namesrv
}
