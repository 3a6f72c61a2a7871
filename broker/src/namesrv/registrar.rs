//! Keeps a broker registered with every name server, RocketMQ's or ours.
//!
//! One task per name server, so that a dead one delays nobody. A change of role or topics is sent
//! at once, everything again each period, and at the stop the broker is taken out.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use raftmq_remoting::body::{self, RegisterBrokerBody};
use raftmq_remoting::{RemotingCommand, RequestCode, ResponseCode};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::register_body;
use crate::config::BrokerConfig;
use crate::limits::{
    NAMESRV_PLAIN_REGISTRATION_BYTES_MAX, NAMESRV_REGISTER_RETRY, NAMESRV_REGISTER_TIMEOUT,
    NAMESRV_UNREGISTER_TIMEOUT,
};
use crate::metrics::Metrics;
use crate::net::Net;
use crate::server::frame_io::{CallError, FrameClient};

/// What is registered; a new value is sent to every name server at once.
#[derive(Debug, Clone)]
pub struct RegistrarInput {
    /// 0 while this broker leads, else [`crate::config::RaftPeer::id`].
    pub broker_id: u64,
    /// `host:port` clients are to connect to in this role.
    pub broker_address: String,
    /// The address moves with the role (`leaderServiceAddress`): this broker does not take it out,
    /// since the next leader may have registered it already. When nobody has, the name server
    /// drops it with the connection.
    pub address_is_shared: bool,
    /// Raft term of the role. It is sent as the state version of the topics, by which a name
    /// server tells a deposed leader from the new one.
    pub role_epoch: u64,
    /// The topics of the broker with their version.
    pub topics: Arc<RegisterBrokerBody>,
}

/// How it goes with one name server.
#[derive(Debug)]
pub struct NamesrvStatus {
    /// `host:port` as configured.
    pub address: String,
    /// Whether the last attempt succeeded and the connection stands.
    pub registered: AtomicBool,
    /// Successful registrations.
    pub successes: AtomicU64,
    /// Failed attempts.
    pub failures: AtomicU64,
}

/// The running registration.
#[derive(Debug)]
pub struct Registrar {
    tasks: JoinSet<()>,
    status: Arc<[Arc<NamesrvStatus>]>,
}

/// What does not change while the process runs.
#[derive(Debug, Clone)]
struct Identity {
    cluster_name: String,
    broker_name: String,
    period: Duration,
}

impl Registrar {
    /// Starts one task per address in `addresses`. While `input` is `None` the broker is not
    /// registered; when `shutdown` turns true it is taken out, see [`Self::stopped`].
    #[must_use]
    pub fn start(
        config: &BrokerConfig,
        addresses: &[String],
        net: &Arc<dyn Net>,
        input: &watch::Receiver<Option<RegistrarInput>>,
        shutdown: &watch::Receiver<bool>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let identity = Identity {
            cluster_name: config.cluster_name.clone(),
            broker_name: config.broker_name.clone(),
            period: Duration::from_millis(config.register_name_server_period_ms),
        };
        let status: Arc<[_]> = addresses
            .iter()
            .map(|address| {
                Arc::new(NamesrvStatus {
                    address: address.clone(),
                    registered: AtomicBool::new(false),
                    successes: AtomicU64::new(0),
                    failures: AtomicU64::new(0),
                })
            })
            .collect();
        let mut tasks = JoinSet::new();
        for status in status.iter() {
            let registration = Registration {
                identity: identity.clone(),
                net: Arc::clone(net),
                status: Arc::clone(status),
                metrics: Arc::clone(metrics),
                client: None,
                sent: None,
            };
            tasks.spawn(registration.run(input.clone(), shutdown.clone()));
        }
        Self { tasks, status }
    }

    /// One per name server, in the order of the addresses.
    #[must_use]
    pub fn status(&self) -> Arc<[Arc<NamesrvStatus>]> {
        Arc::clone(&self.status)
    }

    /// Waits until the broker is taken out of every name server that answers.
    pub async fn stopped(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The registration with one name server.
#[derive(Debug)]
struct Registration {
    identity: Identity,
    net: Arc<dyn Net>,
    status: Arc<NamesrvStatus>,
    metrics: Arc<Metrics>,
    client: Option<FrameClient>,
    /// What the name server may know of this broker.
    sent: Option<Sent>,
}

/// What was registered last.
#[derive(Debug, Clone)]
struct Sent {
    broker_id: u64,
    address: String,
    is_shared: bool,
}

impl Registration {
    async fn run(
        mut self,
        mut input: watch::Receiver<Option<RegistrarInput>>,
        shutdown: watch::Receiver<bool>,
    ) {
        let stop = async move {
            let mut shutdown = shutdown;
            // A sender that is gone means the same as a stop.
            let _ = shutdown.wait_for(|stop| *stop).await;
        };
        tokio::pin!(stop);
        'serving: loop {
            let wanted = input.borrow_and_update().clone();
            let mut wait = tokio::select! {
                biased;
                () = &mut stop => break,
                // A newer state makes the one under way pointless; its response is dropped.
                () = changed(&mut input) => continue,
                wait = self.send(wanted.as_ref()) => wait,
            };
            loop {
                tokio::select! {
                    biased;
                    () = &mut stop => break 'serving,
                    () = changed(&mut input) => break,
                    () = tokio::time::sleep(wait) => break,
                    () = connection_lost(&mut self.client) => {
                        // Most likely the name server stops; a little later it listens again.
                        self.client = None;
                        self.note_lost(&"connection closed");
                        wait = NAMESRV_REGISTER_RETRY;
                    }
                }
            }
        }
        // A name server that cannot be told drops the broker by itself.
        let _ = self.withdraw().await;
        self.status.registered.store(false, Ordering::Relaxed);
    }

    /// Brings the name server to `wanted`; returns the time until the next attempt.
    async fn send(&mut self, wanted: Option<&RegistrarInput>) -> Duration {
        let sent = match wanted {
            Some(input) => self.register(input).await,
            None => self.withdraw().await,
        };
        if wanted.is_some() {
            self.metrics.requests.registration(sent.is_ok());
        }
        match sent {
            Ok(()) => {
                self.status
                    .registered
                    .store(wanted.is_some(), Ordering::Relaxed);
                self.status
                    .successes
                    .fetch_add(u64::from(wanted.is_some()), Ordering::Relaxed);
                self.identity.period
            }
            Err(error) => {
                self.status.failures.fetch_add(1, Ordering::Relaxed);
                self.client = None;
                self.note_lost(&error);
                NAMESRV_REGISTER_RETRY
            }
        }
    }

    async fn register(&mut self, input: &RegistrarInput) -> Result<(), CallError> {
        let request = register_request(&self.identity, input)?;
        let before = self.sent.replace(Sent {
            broker_id: input.broker_id,
            address: input.broker_address.clone(),
            is_shared: input.address_is_shared,
        });
        self.call(request, NAMESRV_REGISTER_TIMEOUT).await?;
        match before {
            Some(before) if before.address != input.broker_address => {
                self.unregister(&before).await
            }
            _ => Ok(()),
        }
    }

    async fn withdraw(&mut self) -> Result<(), CallError> {
        if let Some(sent) = self.sent.clone() {
            self.unregister(&sent).await?;
            self.sent = None;
        }
        Ok(())
    }

    /// Takes out what was registered, unless another broker may hold it by now.
    async fn unregister(&mut self, sent: &Sent) -> Result<(), CallError> {
        if sent.is_shared {
            return Ok(());
        }
        let request = RemotingCommand::request(RequestCode::UNREGISTER_BROKER)
            .with_ext("brokerName", self.identity.broker_name.as_str())
            .with_ext("brokerAddr", sent.address.as_str())
            .with_ext("clusterName", self.identity.cluster_name.as_str())
            .with_ext("brokerId", sent.broker_id.to_string());
        self.call(request, NAMESRV_UNREGISTER_TIMEOUT).await
    }

    async fn call(&mut self, request: RemotingCommand, timeout: Duration) -> Result<(), CallError> {
        let client = match &mut self.client {
            Some(client) => client,
            none => {
                let client = FrameClient::connect(self.net.as_ref(), &self.status.address).await?;
                none.insert(client)
            }
        };
        let response = client.call(request, timeout).await?;
        if response.code == ResponseCode::SUCCESS.0 {
            return Ok(());
        }
        let remark = response.remark.unwrap_or_default();
        Err(io::Error::other(format!("refused with code {}: {remark}", response.code)).into())
    }

    /// Logs the first failure after a success; the following ones are only counted.
    fn note_lost(&self, why: &dyn std::fmt::Display) {
        let address = &self.status.address;
        let first = self.status.failures.load(Ordering::Relaxed) == 1;
        if self.status.registered.swap(false, Ordering::Relaxed) || first {
            tracing::warn!(name_server = %address, "registration lost: {why}");
        }
    }
}

/// Resolves at the next value of `input`, never when its sender is gone: then the stop signal is
/// on its way.
async fn changed(input: &mut watch::Receiver<Option<RegistrarInput>>) {
    if input.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Resolves when the open connection is closed by the other side.
async fn connection_lost(client: &mut Option<FrameClient>) {
    match client {
        Some(client) => client.closed().await,
        None => std::future::pending().await,
    }
}

fn register_request(
    identity: &Identity,
    input: &RegistrarInput,
) -> Result<RemotingCommand, CallError> {
    let mut body = RegisterBrokerBody::clone(&input.topics);
    let epoch = i64::try_from(input.role_epoch).unwrap_or(i64::MAX);
    body.topic_config_serialize_wrapper
        .data_version
        .state_version = epoch;
    let plain = body::encode(&body);
    let compressed = plain.len() > NAMESRV_PLAIN_REGISTRATION_BYTES_MAX;
    let bytes = if compressed {
        Bytes::from(register_body::deflate(&body)?)
    } else {
        plain
    };
    Ok(RemotingCommand::request(RequestCode::REGISTER_BROKER)
        .with_ext("brokerName", identity.broker_name.as_str())
        .with_ext("brokerAddr", input.broker_address.as_str())
        .with_ext("clusterName", identity.cluster_name.as_str())
        // Replication does not go through this address; the field is required, though.
        .with_ext("haServerAddr", input.broker_address.as_str())
        .with_ext("brokerId", input.broker_id.to_string())
        .with_ext("enableActingMaster", "false")
        .with_ext("compressed", compressed.to_string())
        .with_ext("bodyCrc32", register_body::checksum(&bytes).to_string())
        .with_body(bytes))
}
