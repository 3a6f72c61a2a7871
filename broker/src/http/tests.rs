//! The HTTP port, served on a free port of the loopback device and called over it.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use raftmq_api::admin::admin_client::AdminClient;
use raftmq_api::admin::{self as api};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::Channel;

use super::service::{STREAMS_MAX, StatusFeed, check_address, check_voters, progress_interval};
use super::{AdminError, AdminOps, serve_on};
use crate::metrics::{LogReading, Metrics};
use crate::net::{Net as _, TcpNet};
use crate::status::{Member, RaftRole, RaftStatus, sample};

/// Longest wait for anything in these tests.
const PATIENCE: Duration = Duration::from_secs(20);

/// A Raft side that notes what it is asked and answers what it is told.
struct FakeRaft {
    status: watch::Sender<Arc<RaftStatus>>,
    asked: Mutex<Vec<String>>,
    stuck: Mutex<Option<String>>,
    answer: Mutex<Result<(), AdminError>>,
}

impl FakeRaft {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            status: watch::Sender::new(Arc::new(sample::leader())),
            asked: Mutex::new(Vec::new()),
            stuck: Mutex::new(None),
            answer: Mutex::new(Ok(())),
        })
    }

    fn change(&self, change: impl FnOnce(&mut RaftStatus)) {
        self.status
            .send_modify(|status| change(Arc::make_mut(status)));
    }

    fn note(&self, asked: String) -> BoxFuture<'_, Result<(), AdminError>> {
        self.asked.lock().unwrap().push(asked);
        Box::pin(ready(self.answer.lock().unwrap().clone()))
    }
}

impl AdminOps for FakeRaft {
    fn status(&self) -> watch::Receiver<Arc<RaftStatus>> {
        self.status.subscribe()
    }

    fn log(&self) -> LogReading {
        LogReading::default()
    }

    fn transfer_leader(&self, to: Option<u64>) -> BoxFuture<'_, Result<(), AdminError>> {
        self.note(format!("transfer_leader {to:?}"))
    }

    fn add_learner(
        &self,
        id: u64,
        address: String,
        incarnation: String,
    ) -> BoxFuture<'_, Result<(), AdminError>> {
        self.note(format!("add_learner {id} {address} {incarnation}"))
    }

    fn form_group(
        &self,
        incarnation: String,
        members: Vec<Member>,
    ) -> BoxFuture<'_, Result<bool, AdminError>> {
        let members: Vec<_> = members
            .iter()
            .map(|member| format!("{} {} {}", member.id, member.address, member.incarnation))
            .collect();
        let noted = self.note(format!("form_group {incarnation}: {}", members.join(", ")));
        Box::pin(async move { noted.await.map(|()| true) })
    }

    fn change_membership(&self, voters: BTreeSet<u64>) -> BoxFuture<'_, Result<(), AdminError>> {
        self.note(format!("change_membership {voters:?}"))
    }

    fn ready(&self) -> Result<(), String> {
        match &self.status.borrow().not_ready_reason {
            Some(reason) => Err(reason.clone()),
            None => Ok(()),
        }
    }

    fn live(&self) -> Result<(), String> {
        self.stuck.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

/// A served port and what is behind it.
struct Served {
    address: SocketAddr,
    raft: Arc<FakeRaft>,
    stop: watch::Sender<bool>,
    server: JoinHandle<io::Result<()>>,
}

impl Served {
    async fn start() -> Self {
        let raft = FakeRaft::new();
        Self::start_with(Arc::clone(&raft), Some(raft)).await
    }

    async fn start_with(raft: Arc<FakeRaft>, admin: Option<Arc<FakeRaft>>) -> Self {
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = TcpNet.bind(any_port).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopping) = watch::channel(false);
        let admin = admin.map(|admin| admin as Arc<dyn AdminOps>);
        let metrics = Arc::new(Metrics::new());
        let server = tokio::spawn(serve_on(listener, admin, metrics, stopping));
        Self {
            address,
            raft,
            stop,
            server,
        }
    }

    /// One HTTP/1.1 GET: the head and the body of the answer.
    async fn get(&self, path: &str) -> (String, String) {
        let mut stream = TcpNet.connect(&self.address.to_string()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: raftmq\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase(), body.to_owned())
    }

    async fn client(&self) -> AdminClient<Channel> {
        AdminClient::connect(format!("http://{}", self.address))
            .await
            .unwrap()
    }

    /// Stops the port and waits for its end.
    async fn stop(self) {
        self.stop.send_replace(true);
        let ended = tokio::time::timeout(PATIENCE, self.server).await.unwrap();
        ended.unwrap().unwrap();
    }
}

#[tokio::test]
async fn probes_follow_the_raft_side_and_say_why() {
    let served = Served::start().await;
    let (head, body) = served.get("/readyz").await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert_eq!(body, "ok\n");

    served.raft.change(|status| {
        status.ready = false;
        status.not_ready_reason = Some("no leader is known".to_owned());
    });
    let (head, body) = served.get("/readyz").await;
    assert!(head.starts_with("http/1.1 503"), "{head}");
    assert_eq!(body, "no leader is known\n");
    let (head, _) = served.get("/livez").await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    *served.raft.stuck.lock().unwrap() = Some("raft does not answer".to_owned());
    let (head, body) = served.get("/livez").await;
    assert!(head.starts_with("http/1.1 503"), "{head}");
    assert_eq!(body, "raft does not answer\n");
    served.stop().await;
}

#[tokio::test]
async fn metrics_and_status_show_the_newest_status() {
    let served = Served::start().await;
    served.raft.change(|status| status.term = 8);
    let (head, body) = served.get("/metrics").await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(
        head.contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    assert!(body.contains("\nraftmq_raft_term 8\n"), "{body}");
    assert!(
        body.contains("\nraftmq_connections{listener=\"http\"} 1\n"),
        "{body}"
    );

    let (head, body) = served.get("/status").await;
    assert!(head.contains("content-type: application/json"), "{head}");
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(json["term"], 8);
    assert_eq!(json["leader"], 1);
    let (head, _) = served.get("/unknown").await;
    assert!(head.starts_with("http/1.1 404"), "{head}");
    served.stop().await;
}

#[tokio::test]
async fn a_status_stream_tells_a_role_change_at_once_and_ends_with_the_node() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let request = api::WatchStatusRequest {
        progress_interval_ms: 30_000,
    };
    let mut stream = client.watch_status(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(first.role(), api::Role::Leader);
    assert_eq!(first.term, 7);
    assert_eq!(first.voters.len(), 3);
    assert_eq!(first.purged_index, None);
    assert_eq!(first.peers[0].lag_entries, 3);
    assert_eq!(first.addresses.unwrap().broker, "127.0.0.1:30911");

    served.raft.change(|status| {
        status.role = RaftRole::Follower;
        status.term = 8;
        status.leader_id = Some(2);
    });
    let next = tokio::time::timeout(PATIENCE, stream.message()).await;
    let next = next.unwrap().unwrap().unwrap();
    assert_eq!(next.role(), api::Role::Follower);
    assert_eq!((next.term, next.leader_id), (8, Some(2)));

    served.stop().await;
    let end = stream.message().await.unwrap_err();
    assert_eq!(end.code(), Code::Unavailable);
}

#[tokio::test]
async fn operations_arrive_checked_and_failures_tell_the_reaction() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let status = client.get_status(api::GetStatusRequest {}).await.unwrap();
    assert_eq!(status.into_inner().group, "broker-a");

    client
        .transfer_leader(api::TransferLeaderRequest { to: 0 })
        .await
        .unwrap();
    let learner = api::AddLearnerRequest {
        id: 4,
        address: "n4.peers:40911".to_owned(),
        incarnation: "disk-4".to_owned(),
    };
    client.add_learner(learner).await.unwrap();
    let voters = api::ChangeMembershipRequest {
        voters: vec![4, 2, 1],
    };
    client.change_membership(voters.clone()).await.unwrap();
    let nobody = api::ChangeMembershipRequest { voters: vec![] };
    let refused = client.change_membership(nobody).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(
        *served.raft.asked.lock().unwrap(),
        [
            "transfer_leader None",
            "add_learner 4 n4.peers:40911 disk-4",
            "change_membership {1, 2, 4}",
        ]
    );

    *served.raft.answer.lock().unwrap() = Err(AdminError::NotLeader { leader: Some(3) });
    let elsewhere = client.change_membership(voters).await.unwrap_err();
    assert_eq!(elsewhere.code(), Code::FailedPrecondition);
    let leader = elsewhere.metadata().get("raftmq-leader-id").unwrap();
    assert_eq!(leader.to_str().unwrap(), "3");
    served.stop().await;
}

#[tokio::test]
async fn a_group_is_formed_of_well_formed_members_and_a_wrong_node_says_so() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let member = |id: u64, address: &str| api::Member {
        id,
        address: address.to_owned(),
        incarnation: format!("disk-{id}"),
    };
    let request = |members: &[api::Member]| api::FormGroupRequest {
        incarnation: "disk-1".to_owned(),
        members: members.to_vec(),
    };
    let good = request(&[member(1, "n1:1"), member(2, "n2:1")]);
    let formed = client.form_group(good.clone()).await.unwrap().into_inner();
    assert!(formed.already_formed);
    assert_eq!(
        *served.raft.asked.lock().unwrap(),
        ["form_group disk-1: 1 n1:1 disk-1, 2 n2:1 disk-2"]
    );
    for bad in [
        request(&[]),
        request(&[member(0, "n1:1")]),
        request(&[member(1, "n1")]),
        request(&[member(1, "n1:1"), member(1, "n2:1")]),
        api::FormGroupRequest {
            incarnation: "a b".to_owned(),
            ..good.clone()
        },
    ] {
        let refused = client.form_group(bad).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    let reason = "this node's incarnation is disk-9, not disk-1".to_owned();
    *served.raft.answer.lock().unwrap() = Err(AdminError::Precondition(reason.clone()));
    let refused = client.form_group(good).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.message(), reason);
    assert!(refused.metadata().get("raftmq-leader-id").is_none());
    served.stop().await;
}

#[tokio::test]
async fn without_raft_there_are_metrics_and_probes_only() {
    let served = Served::start_with(FakeRaft::new(), None).await;
    for (path, code) in [
        ("/metrics", "200"),
        ("/livez", "200"),
        ("/readyz", "200"),
        ("/status", "404"),
    ] {
        let (head, _) = served.get(path).await;
        assert!(
            head.starts_with(&format!("http/1.1 {code}")),
            "{path}: {head}"
        );
    }
    served.stop().await;
}

#[tokio::test]
async fn status_streams_are_bounded() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let request = api::WatchStatusRequest::default();
    let mut streams = Vec::new();
    for _ in 0..STREAMS_MAX {
        streams.push(client.watch_status(request).await.unwrap());
    }
    let refused = client.watch_status(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    served.stop().await;
}

#[tokio::test]
async fn progress_alone_waits_for_its_interval() {
    let raft = FakeRaft::new();
    let (_stop, stopping) = watch::channel(false);
    let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    let mut feed = StatusFeed::new(raft.status(), stopping, PATIENCE, permit);
    feed.next().await.unwrap().unwrap();
    raft.change(|status| status.last_index = Some(121));
    assert!(feed.next().now_or_never().is_none());
    raft.change(|status| status.leader_id = None);
    let message = feed.next().now_or_never().unwrap().unwrap().unwrap();
    assert_eq!((message.last_index, message.leader_id), (Some(121), None));
}

#[test]
fn arguments_are_checked_for_form() {
    for good in ["n1:40911", "10.0.0.1:1", "[::1]:40911", "a.b.svc:65535"] {
        assert_eq!(check_address(good), Ok(()), "{good}");
    }
    for bad in [
        "",
        "n1",
        ":40911",
        "n1:",
        "n1:0",
        "n1:65536",
        "::1:40911",
        "n 1:40911",
    ] {
        assert!(check_address(bad).is_err(), "{bad}");
    }
    assert_eq!(check_voters(&[3, 1]), Ok(BTreeSet::from([1, 3])));
    for bad in [&[][..], &[0], &[1, 1], &[1; 32]] {
        assert!(check_voters(bad).is_err(), "{bad:?}");
    }
    assert_eq!(progress_interval(0), Duration::from_secs(1));
    assert_eq!(progress_interval(1), Duration::from_millis(100));
    assert_eq!(progress_interval(u32::MAX), Duration::from_secs(30));
}
