//! The status stream to one pod: connected as long as the pod exists, broken the moment TCP says
//! so or the broker stays silent for too long, and tried again at once.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use raftmq_api::admin;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::{CONNECT_TIMEOUT, NodeView, connect, describe};
use crate::names::PORT_HTTP;

/// How often a broker speaks although nothing has happened. Two messages a second for each pod
/// cost the operator next to nothing. The broker promises that a silent stream is a broken one,
/// so there is no HTTP/2 ping beside it, which would not notice a broker that hangs.
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Silence after which a stream counts as broken: three messages in a row are missing. A killed
/// process is noticed at once through TCP; this is for nodes that lose power and for frozen
/// processes. A new leader announces itself through its own stream long before, so a shorter time
/// would only mistake busy brokers for dead ones.
const SILENCE_MAX: Duration = Duration::from_millis(1500);

/// Wait before the second try to connect, doubled up to [`RETRY_MAX`]. The first comes at once: a
/// stream may break while its broker lives.
const RETRY_MIN: Duration = Duration::from_millis(25);
/// Longest wait between two tries: what a restarted broker waits for the operator at most.
const RETRY_MAX: Duration = Duration::from_millis(400);

const _: () = assert!(PROGRESS_INTERVAL.as_millis() * 3 <= SILENCE_MAX.as_millis());

/// What is known of a pod's broker.
#[derive(Debug, Clone)]
pub struct Link {
    /// Counts connections: two breaks with the same number are the same break.
    pub epoch: u64,
    /// Since when the state holds.
    pub since: Instant,
    /// When the broker has spoken last.
    pub heard: Instant,
    /// The state.
    pub state: LinkState,
}

/// State of a [`Link`].
#[derive(Debug, Clone)]
pub enum LinkState {
    /// The first try is under way.
    Connecting,
    /// The stream is open; this is the newest status.
    Live(Arc<NodeView>),
    /// The stream is broken or could not be opened, and why.
    Broken(String),
}

/// The stream to one pod. Dropping it ends it.
#[derive(Debug)]
pub struct StatusStream {
    link: watch::Receiver<Link>,
    task: JoinHandle<()>,
}

impl StatusStream {
    /// Connects to the broker at `ip` and keeps trying; `changed` is notified of every change.
    #[must_use]
    pub fn start(ip: IpAddr, changed: Arc<Notify>) -> Self {
        let (sender, link) = watch::channel(Link {
            epoch: 0,
            since: Instant::now(),
            heard: Instant::now(),
            state: LinkState::Connecting,
        });
        let address = SocketAddr::new(ip, PORT_HTTP);
        let task = tokio::spawn(run(address, Reporter { sender, changed }));
        Self { link, task }
    }

    /// The newest state.
    #[must_use]
    pub fn link(&self) -> Link {
        self.link.borrow().clone()
    }
}

impl Drop for StatusStream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Reporter {
    sender: watch::Sender<Link>,
    changed: Arc<Notify>,
}

impl Reporter {
    fn live(&self, view: NodeView) {
        let mut is_news = true;
        self.sender.send_modify(|link| {
            match &link.state {
                LinkState::Live(before) => is_news = view.differs_beyond_progress(before),
                LinkState::Connecting | LinkState::Broken(_) => link.epoch += 1,
            }
            link.heard = Instant::now();
            if is_news {
                link.since = link.heard;
            }
            link.state = LinkState::Live(Arc::new(view));
        });
        if is_news {
            self.changed.notify_one();
        }
    }

    /// Reports a break once; later failures of the same break only change its reason.
    fn broken(&self, reason: String) {
        let mut is_news = true;
        self.sender.send_modify(|link| {
            is_news = !matches!(link.state, LinkState::Broken(_));
            if is_news {
                link.since = Instant::now();
            }
            link.state = LinkState::Broken(reason);
        });
        if is_news {
            self.changed.notify_one();
        }
    }
}

async fn run(address: SocketAddr, reporter: Reporter) {
    let mut wait = Duration::ZERO;
    loop {
        let mut heard = false;
        let reason = follow(address, &reporter, &mut heard).await;
        tracing::debug!(%address, reason, "status stream broken");
        reporter.broken(reason);
        if heard {
            wait = Duration::ZERO;
        }
        sleep(wait).await;
        wait = (wait * 2).clamp(RETRY_MIN, RETRY_MAX);
    }
}

/// Follows one stream to its end, and says why it ended.
async fn follow(address: SocketAddr, reporter: &Reporter, heard: &mut bool) -> String {
    let opening = async {
        let mut client = connect(address).await.map_err(|error| describe(&error))?;
        let request = admin::WatchStatusRequest {
            progress_interval_ms: u32::try_from(PROGRESS_INTERVAL.as_millis()).unwrap_or_default(),
        };
        let response = client.watch_status(request).await;
        response
            .map(tonic::Response::into_inner)
            .map_err(|status| describe_status(&status))
    };
    // The connection may stand while the process behind it is frozen.
    let mut stream = match timeout(CONNECT_TIMEOUT + SILENCE_MAX, opening).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(reason)) => return reason,
        Err(_) => return "it did not open in time".to_owned(),
    };
    loop {
        match timeout(SILENCE_MAX, stream.message()).await {
            Ok(Ok(Some(status))) => {
                *heard = true;
                reporter.live(status.into());
            }
            Ok(Ok(None)) => return "the broker ended it".to_owned(),
            Ok(Err(status)) => return describe_status(&status),
            Err(_) => return format!("silent for {} ms", SILENCE_MAX.as_millis()),
        }
    }
}

fn describe_status(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => describe(source),
        None => format!("{}: {}", status.code(), status.message()),
    }
}
