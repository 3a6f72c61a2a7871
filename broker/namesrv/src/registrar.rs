//! Keeps a broker registered with every name server, RocketMQ's or ours.
//!
//! One task per name server, so that a dead one delays nobody. A change of role is sent at once,
//! behind the frame that is being written and before any answer; a change of topics goes topic by
//! topic (217) where the name server can take it, else with all topics; everything again each period;
//! and at the stop the broker is taken out.
//!
//! A RocketMQ name server carries out requests of one connection on several threads, so a role that
//! overtook something is told once more when nothing else is under way.

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use raftmq_remoting::body::TopicConfig;
use raftmq_remoting::{RemotingCommand, RequestCode, ResponseCode};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::LEADER_BROKER_ID;
use super::announcement::{Announcement, RegisteredRole, RegistrarInput, topic_request};
use super::link::{Link, LinkError, LinkEvent};
use raftmq_config::BrokerConfig;
use raftmq_host::limits::{
    NAMESRV_DEMOTION_PAUSE, NAMESRV_PAUSE_PER_TOPIC, NAMESRV_REGISTER_RETRY,
    NAMESRV_REGISTER_TIMEOUT, NAMESRV_TOPICS_IN_FLIGHT_MAX, NAMESRV_TOPICS_PAUSE,
    NAMESRV_UNREGISTER_TIMEOUT,
};
use raftmq_host::net::{Net, Stream};
use raftmq_telemetry::metrics::Metrics;

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
    /// Starts one task per address in `addresses`. `input` is `None` until the broker knows its
    /// role, and never again; when `shutdown` turns true it is taken out, see [`Self::stopped`].
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
                connection: Connection::Waiting(Instant::now()),
                held_since: None,
                replaced: None,
                registered: BTreeMap::new(),
                said: None,
                demoted_due: None,
                to_tell: VecDeque::new(),
                takes_topics: true,
                not_before: Instant::now(),
                period_due: Instant::now(),
                all_topics_due: Instant::now(),
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

/// What a request under way is about.
#[derive(Debug)]
enum Question {
    Register,
    /// A topic that was put by the change of that number.
    Topic(u64),
    Unregister {
        address: String,
    },
}

/// The way to the name server.
enum Connection {
    /// None; the next attempt is due at that time.
    Waiting(Instant),
    Connecting(BoxFuture<'static, io::Result<Stream>>),
    Open(Link<Question>),
}

/// What happened on the way to the name server.
enum Event {
    Due,
    Connected(io::Result<Stream>),
    Link(Result<LinkEvent<Question>, LinkError>),
}

/// What was asked of the name server over the open connection.
#[derive(Debug)]
struct Said {
    role: RegisteredRole,
    /// Changes of topics up to this one are told, or in `to_tell`.
    version: u64,
    /// The role has to be told once more.
    again: bool,
}

/// The registration with one name server.
struct Registration {
    identity: Identity,
    net: Arc<dyn Net>,
    status: Arc<NamesrvStatus>,
    metrics: Arc<Metrics>,
    connection: Connection,
    /// Since when the open connection holds a registration.
    held_since: Option<Instant>,
    /// A connection that holds the registration and answers no more. It stays open until another
    /// one holds it: a name server drops a broker with its connection.
    replaced: Option<Link<Question>>,
    /// Broker id by address: what the name server may know of this broker and nobody else
    /// registers. An address leaves only when the name server has confirmed that.
    registered: BTreeMap<String, u64>,
    said: Option<Said>,
    /// This broker led and does not any more: the next leader may register until then.
    demoted_due: Option<Instant>,
    /// Single topics, each with the number of its change.
    to_tell: VecDeque<(u64, Arc<TopicConfig>)>,
    /// Whether this name server knows requests for single topics; those before RocketMQ 5 do not.
    takes_topics: bool,
    /// A request was refused: nothing but a new role is sent until then.
    not_before: Instant,
    period_due: Instant,
    /// When all topics may be sent again because of a change.
    all_topics_due: Instant,
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
        loop {
            let wanted = input.borrow_and_update().clone();
            if let Some(wanted) = &wanted {
                self.note_demotion(&wanted.role);
            }
            let wake = wanted.as_ref().map(|wanted| self.advance(wanted));
            // Every branch can be dropped: what is under way is kept in `self`.
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = changed(&mut input) => {}
                event = self.connection.event(), if wanted.is_some() => self.take(event),
                () = until(wake.flatten()) => {}
            }
        }
        if timeout(NAMESRV_UNREGISTER_TIMEOUT, self.withdraw())
            .await
            .is_err()
        {
            // It drops the broker with the connection.
            tracing::debug!(name_server = %self.status.address, "not taken out in time");
        }
        self.status.registered.store(false, Ordering::Relaxed);
    }

    /// A name server that hears of the follower before it hears of the next leader has no master for
    /// the group. An address of its own that the leader had stays registered in any case.
    fn note_demotion(&mut self, wanted: &RegisteredRole) {
        if wanted.broker_id == LEADER_BROKER_ID {
            self.demoted_due = None;
            return;
        }
        let led = self.said.as_ref().is_some_and(|said| {
            said.role.broker_id == LEADER_BROKER_ID
                && said.role.broker_address == wanted.broker_address
        });
        if led && self.demoted_due.is_none() {
            self.demoted_due = Some(Instant::now() + NAMESRV_DEMOTION_PAUSE);
        }
    }

    /// Begins what is to be done next; returns when to look again, if nothing happens before.
    fn advance(&mut self, wanted: &RegistrarInput) -> Option<Instant> {
        match &self.connection {
            Connection::Waiting(due) if *due <= Instant::now() => {
                self.connect();
                None
            }
            Connection::Open(link) if link.can_ask() => self.ask_next(wanted),
            _ => None,
        }
    }

    fn connect(&mut self) {
        let (net, address) = (Arc::clone(&self.net), self.status.address.clone());
        let connecting = async move { net.connect(&address).await };
        self.connection = Connection::Connecting(Box::pin(connecting));
        self.said = None;
        self.to_tell.clear();
    }

    /// What is most urgent goes first. Only a role goes out while an answer is awaited, and single
    /// topics, which do not concern each other.
    fn ask_next(&mut self, wanted: &RegistrarInput) -> Option<Instant> {
        let now = Instant::now();
        let said = self.said.as_ref();
        let said = said.filter(|said| said.role == wanted.role);
        let Some((again, version)) = said.map(|said| (said.again, said.version)) else {
            return match self.demoted_due {
                Some(due) if due > now => Some(due),
                _ => self.register(wanted),
            };
        };
        if self.not_before > now {
            return Some(self.not_before);
        }
        let Connection::Open(link) = &self.connection else {
            return None;
        };
        let awaited = link.awaited().count();
        let only_topics = link
            .awaited()
            .all(|asked| matches!(asked, Question::Topic(_)));
        if awaited > 0 && !(only_topics && awaited < NAMESRV_TOPICS_IN_FLIGHT_MAX) {
            return None;
        }
        if let Some((number, config)) = self.to_tell.pop_front() {
            let request = topic_request(&self.identity.broker_name, &config);
            self.ask(request, Question::Topic(number), NAMESRV_REGISTER_TIMEOUT);
            return None;
        }
        if awaited > 0 {
            return None;
        }
        if again || self.period_due <= now {
            return self.register(wanted);
        }
        let current = &wanted.role.broker_address;
        let mut others = self
            .registered
            .iter()
            .filter(|(other, _)| *other != current);
        if let Some((address, broker_id)) = others.next() {
            let (address, broker_id) = (address.clone(), *broker_id);
            self.unregister(address, broker_id);
            return None;
        }
        // The topics of a broker name are those of its leader; a follower's go with its period.
        if wanted.role.broker_id == LEADER_BROKER_ID && wanted.topics.version > version {
            return self.tell_topics(wanted, version);
        }
        Some(self.period_due)
    }

    fn tell_topics(&mut self, wanted: &RegistrarInput, version: u64) -> Option<Instant> {
        let changed = wanted.topics.changed_after(version);
        let Some(changed) = changed.filter(|_| self.takes_topics) else {
            if self.all_topics_due > Instant::now() {
                return Some(self.all_topics_due.min(self.period_due));
            }
            return self.register(wanted);
        };
        self.to_tell.extend(changed);
        if let Some(said) = &mut self.said {
            said.version = wanted.topics.version;
        }
        self.ask_next(wanted)
    }

    fn register(&mut self, wanted: &RegistrarInput) -> Option<Instant> {
        let Connection::Open(link) = &self.connection else {
            return None;
        };
        // What this one overtakes may be carried out after it: both are told again. The topics are
        // told after the role, since one that is told with an equal version changes none of them.
        let again = link.awaited().next().is_some();
        let topics = link.awaited().filter_map(|asked| match asked {
            Question::Topic(number) => Some(number.saturating_sub(1)),
            Question::Register | Question::Unregister { .. } => None,
        });
        let before = self.said.as_ref().filter(|said| said.again);
        let overtaken = topics.chain(before.map(|said| said.version)).min();
        let (request, version, topics) = match register_request(&self.identity, wanted) {
            Ok(encoded) => encoded,
            Err(error) => {
                self.note_failure(&error);
                self.not_before = Instant::now() + NAMESRV_REGISTER_RETRY;
                return Some(self.not_before);
            }
        };
        let role = wanted.role.clone();
        if !role.address_is_shared {
            self.registered
                .insert(role.broker_address.clone(), role.broker_id);
        }
        self.said = Some(Said {
            role,
            version: overtaken.map_or(version, |overtaken| overtaken.min(version)),
            again,
        });
        self.to_tell.clear();
        self.demoted_due = None;
        let now = Instant::now();
        self.period_due = now + self.identity.period;
        let topics = u32::try_from(topics).unwrap_or(u32::MAX);
        self.all_topics_due =
            now + NAMESRV_TOPICS_PAUSE + NAMESRV_PAUSE_PER_TOPIC.saturating_mul(topics);
        self.ask(request, Question::Register, NAMESRV_REGISTER_TIMEOUT);
        None
    }

    fn unregister(&mut self, address: String, broker_id: u64) {
        let request = RemotingCommand::request(RequestCode::UNREGISTER_BROKER)
            .with_ext("brokerName", self.identity.broker_name.as_str())
            .with_ext("brokerAddr", address.as_str())
            .with_ext("clusterName", self.identity.cluster_name.as_str())
            .with_ext("brokerId", broker_id.to_string());
        let question = Question::Unregister { address };
        self.ask(request, question, NAMESRV_UNREGISTER_TIMEOUT);
    }

    fn ask(&mut self, request: RemotingCommand, question: Question, timeout: Duration) {
        if let Connection::Open(link) = &mut self.connection {
            link.ask(request, question, timeout);
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Due | Event::Link(Ok(LinkEvent::Written)) => {}
            Event::Connected(Ok(stream)) => {
                self.connection = Connection::Open(Link::new(stream));
                self.held_since = None;
                self.takes_topics = true;
            }
            Event::Connected(Err(error)) => {
                self.metrics.requests.registration(false);
                self.note_failure(&error);
                self.wait(NAMESRV_REGISTER_RETRY);
            }
            Event::Link(Ok(LinkEvent::Answered(question, response))) => {
                self.answered(question, &response);
            }
            Event::Link(Err(error)) => self.lost(&error),
        }
    }

    fn answered(&mut self, question: Question, response: &RemotingCommand) {
        let succeeded = response.code == ResponseCode::SUCCESS.0;
        match question {
            Question::Register => {
                self.metrics.requests.registration(succeeded);
                if succeeded {
                    self.confirmed();
                    return;
                }
            }
            Question::Topic(_) if succeeded => return,
            Question::Topic(_) => {
                self.takes_topics = false;
                self.to_tell.clear();
                if let Some(said) = &mut self.said {
                    said.version = 0;
                }
                if response.code == ResponseCode::REQUEST_CODE_NOT_SUPPORTED.0 {
                    return;
                }
            }
            Question::Unregister { address } if succeeded => {
                self.registered.remove(&address);
                return;
            }
            Question::Unregister { .. } => {}
        }
        if let Some(said) = &mut self.said {
            said.again = true;
        }
        self.not_before = Instant::now() + NAMESRV_REGISTER_RETRY;
        let remark = response.remark.as_deref().unwrap_or_default();
        let refused = format!("refused with code {}: {remark}", response.code);
        self.note_failure(&refused);
    }

    fn confirmed(&mut self) {
        self.replaced = None;
        self.status.registered.store(true, Ordering::Relaxed);
        self.status.successes.fetch_add(1, Ordering::Relaxed);
        self.held_since.get_or_insert_with(Instant::now);
    }

    /// The connection is of no more use.
    fn lost(&mut self, error: &LinkError) {
        let now = Instant::now();
        let last = std::mem::replace(&mut self.connection, Connection::Waiting(now));
        if let Connection::Open(link) = last {
            if link
                .awaited()
                .any(|asked| matches!(asked, Question::Register))
            {
                self.metrics.requests.registration(false);
            }
            if error.is_timeout() && self.held_since.is_some() {
                self.replaced = Some(link);
            }
        }
        self.note_failure(error);
        // A name server drops a broker with its connection, so one that stood for a while is made
        // anew at once. Most likely the name server stops; a little later it listens again.
        let stood = self
            .held_since
            .is_some_and(|since| now - since >= NAMESRV_REGISTER_RETRY);
        self.wait(if stood {
            Duration::ZERO
        } else {
            NAMESRV_REGISTER_RETRY
        });
    }

    fn wait(&mut self, pause: Duration) {
        self.connection = Connection::Waiting(Instant::now() + pause);
    }

    /// Takes out what may be registered, over the open connection or another one.
    async fn withdraw(&mut self) {
        if let Some(due) = self.demoted_due {
            sleep_until(due).await;
        }
        while let Some((address, broker_id)) = self.registered.first_key_value() {
            let (address, broker_id) = (address.clone(), *broker_id);
            match &self.connection {
                Connection::Waiting(due) if *due <= Instant::now() => self.connect(),
                // What is under way comes first, and a frame is not cut.
                Connection::Open(link) if link.can_ask() && link.awaited().next().is_none() => {
                    self.unregister(address, broker_id);
                }
                _ => {}
            }
            let event = self.connection.event().await;
            self.take(event);
            sleep_until(self.not_before).await;
        }
    }

    /// Logs the first failure after a success; the following ones are only counted.
    fn note_failure(&self, why: &dyn std::fmt::Display) {
        let address = &self.status.address;
        let first = self.status.failures.fetch_add(1, Ordering::Relaxed) == 0;
        if self.status.registered.swap(false, Ordering::Relaxed) || first {
            tracing::warn!(name_server = %address, "registration lost: {why}");
        }
    }
}

impl Connection {
    /// What happens next. Cancel-safe.
    async fn event(&mut self) -> Event {
        match self {
            Self::Waiting(due) => {
                sleep_until(*due).await;
                Event::Due
            }
            Self::Connecting(connecting) => Event::Connected(connecting.await),
            Self::Open(link) => Event::Link(link.event().await),
        }
    }
}

/// Resolves at the next value of `input`, never when its sender is gone: then the stop signal is
/// on its way.
async fn changed(input: &mut watch::Receiver<Option<RegistrarInput>>) {
    if input.changed().await.is_err() {
        pending::<()>().await;
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

/// The request, the newest change of topics in it, and how many topics it holds.
fn register_request(
    identity: &Identity,
    input: &RegistrarInput,
) -> io::Result<(RemotingCommand, u64, usize)> {
    let topics: &Announcement = &input.topics;
    let body = topics.body()?;
    let RegisteredRole {
        broker_id,
        broker_address,
        ..
    } = &input.role;
    let request = RemotingCommand::request(RequestCode::REGISTER_BROKER)
        .with_ext("brokerName", identity.broker_name.as_str())
        .with_ext("brokerAddr", broker_address.as_str())
        .with_ext("clusterName", identity.cluster_name.as_str())
        // Replication does not go through this address; the field is required, though.
        .with_ext("haServerAddr", broker_address.as_str())
        .with_ext("brokerId", broker_id.to_string())
        .with_ext("enableActingMaster", "false");
    Ok((body.complete(request), body.version, body.topics))
}
