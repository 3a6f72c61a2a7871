//! The name server and the registrar together, over a network in memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use raftmq_remoting::body::{ClusterInfo, RegisterBrokerBody, TopicConfig, TopicRouteData};
use raftmq_remoting::{RemotingCommand, RequestCode, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{Announcements, RegisteredRole, Registrar, RegistrarInput, register_body, serve};
use raftmq_config::{BrokerConfig, NamesrvConfig, Surroundings};
use raftmq_host::framing::frame_io::{self, FrameClient, FrameReader, FrameWriter};
use raftmq_host::limits::{
    CONFIG_REQUEST_BYTES_MAX, NAMESRV_DEMOTION_PAUSE, NAMESRV_REGISTER_RETRY,
    NAMESRV_REGISTER_TIMEOUT, NAMESRV_UNREGISTER_TIMEOUT,
};
use raftmq_host::net::Net;
use raftmq_host::net::memory::MemoryNet;

/// Far above what a test needs; a test that runs into it has failed.
const LONG: Duration = Duration::from_secs(60);
/// Far below every timeout of the registrar.
const SOON: Duration = Duration::from_millis(500);

struct Namesrv {
    net: MemoryNet,
    address: String,
    shutdown: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

fn surroundings(home: &Path) -> Surroundings {
    Surroundings {
        home: home.to_owned(),
        host_name: "b".to_owned(),
        local_ip: "10.0.0.1".to_owned(),
    }
}

impl Namesrv {
    async fn start(net: &MemoryNet, port: u16, home: &Path) -> Self {
        Self::start_with(net, port, home, |_| ()).await
    }

    async fn start_with(
        net: &MemoryNet,
        port: u16,
        home: &Path,
        change: impl FnOnce(&mut NamesrvConfig),
    ) -> Self {
        let text = format!("listenPort={port}\nbindAddress=127.0.0.1\norderMessageEnable=true");
        let (mut config, _) = NamesrvConfig::parse_in(&text, "f", &surroundings(home)).unwrap();
        change(&mut config);
        let (shutdown, watched) = watch::channel(false);
        let served = serve(config, Arc::new(net.clone()), watched);
        let task = tokio::spawn(async move { served.await.unwrap() });
        Self {
            net: net.clone(),
            address: format!("127.0.0.1:{port}"),
            shutdown,
            task,
        }
    }

    /// Connects; the listener may not be there yet.
    async fn client(&self) -> FrameClient {
        loop {
            match FrameClient::connect(&self.net, &self.address).await {
                Ok(client) => return client,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    async fn stop(self) {
        self.shutdown.send_replace(true);
        self.task.await.unwrap();
    }
}

fn topics(text: &str) -> Bytes {
    let topic = format!(
        r#""{text}":{{"topicName":"{text}","readQueueNums":4,"writeQueueNums":4,"perm":6}}"#
    );
    Bytes::from(format!(
        r#"{{"topicConfigSerializeWrapper":{{"topicConfigTable":{{{topic}}},
            "dataVersion":{{"counter":1,"timestamp":1,"stateVersion":0}}}},"filterServerList":[]}}"#
    ))
}

fn register(address: &str, broker_id: u64) -> RemotingCommand {
    let body = topics("T");
    RemotingCommand::request(RequestCode::REGISTER_BROKER)
        .with_ext("brokerName", "b")
        .with_ext("brokerAddr", address)
        .with_ext("clusterName", "C")
        .with_ext("haServerAddr", "ha:1")
        .with_ext("brokerId", broker_id.to_string())
        .with_ext("bodyCrc32", register_body::checksum(&body).to_string())
        .with_body(body)
}

fn route(topic: &str) -> RemotingCommand {
    RemotingCommand::request(RequestCode::GET_ROUTEINFO_BY_TOPIC).with_ext("topic", topic)
}

async fn code(client: &mut FrameClient, request: RemotingCommand) -> ResponseCode {
    ResponseCode(client.call(request, LONG).await.unwrap().code)
}

/// Asks until the leader of broker `b` is at `address`, `None` = until there is no broker `b`.
async fn await_leader(client: &mut FrameClient, address: Option<&str>) {
    loop {
        let request = RemotingCommand::request(RequestCode::GET_BROKER_CLUSTER_INFO);
        let response = client.call(request, LONG).await.unwrap();
        let info: ClusterInfo = serde_json::from_slice(&response.body).unwrap();
        let broker = info.broker_addr_table.get("b");
        if broker
            .and_then(|broker| broker.broker_addrs.get(&0))
            .map(String::as_str)
            == address
            && (address.is_some() || broker.is_none())
        {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_registered_broker_is_in_the_route_until_its_connection_closes() {
    let home = tempfile::tempdir().unwrap();
    let namesrv = Namesrv::start(&MemoryNet::default(), 9876, home.path()).await;
    let mut broker = namesrv.client().await;
    let mut client = namesrv.client().await;
    assert_eq!(
        code(&mut client, route("T")).await,
        ResponseCode::TOPIC_NOT_EXIST
    );
    assert_eq!(
        code(&mut broker, register("a:1", 0)).await,
        ResponseCode::SUCCESS
    );

    let response = client.call(route("T"), LONG).await.unwrap();
    let data: TopicRouteData = serde_json::from_slice(&response.body).unwrap();
    assert_eq!(data.broker_datas[0].broker_addrs[&0], "a:1");
    assert_eq!(data.queue_datas[0].write_queue_nums, 4);

    let follower = broker.call(register("b:1", 2), LONG).await.unwrap();
    assert_eq!(follower.ext_fields.get("masterAddr"), Some("a:1"));
    assert_eq!(follower.ext_fields.get("haServerAddr"), Some("ha:1"));

    drop(broker);
    await_leader(&mut client, None).await;
    namesrv.stop().await;
}

#[tokio::test]
async fn requests_that_cannot_be_served_are_answered_with_their_reason() {
    let home = tempfile::tempdir().unwrap();
    let namesrv = Namesrv::start(&MemoryNet::default(), 9876, home.path()).await;
    let mut client = namesrv.client().await;
    let cases = [
        (
            RemotingCommand::request(RequestCode(9_999)),
            3,
            "request type 9999 not supported",
        ),
        (
            RemotingCommand::request(RequestCode::GET_ROUTEINFO_BY_TOPIC),
            1,
            "the custom field <topic> is null",
        ),
        (
            register("a:1", 0).with_ext("bodyCrc32", "1"),
            1,
            "register broker: bodyCrc32 does not match the body",
        ),
        (
            RemotingCommand::request(RequestCode::UPDATE_NAMESRV_CONFIG)
                .with_body(Bytes::from_static(b"kvConfigPath=/tmp/x")),
            16,
            "key 'kvConfigPath' may not be changed",
        ),
        (
            RemotingCommand::request(RequestCode::UPDATE_NAMESRV_CONFIG)
                .with_body(Bytes::from(vec![b'k'; CONFIG_REQUEST_BYTES_MAX + 1])),
            1,
            "the configuration is too long",
        ),
    ];
    for (request, code, remark) in cases {
        let response = client.call(request, LONG).await.unwrap();
        assert_eq!(
            (response.code, response.remark.as_deref()),
            (code, Some(remark))
        );
    }
    namesrv.stop().await;
}

#[tokio::test]
async fn configuration_is_changed_and_shown() {
    let home = tempfile::tempdir().unwrap();
    let namesrv = Namesrv::start(&MemoryNet::default(), 9876, home.path()).await;
    let mut client = namesrv.client().await;
    let update = RemotingCommand::request(RequestCode::UPDATE_NAMESRV_CONFIG)
        .with_body(Bytes::from_static(b"enableAllTopicList=false"));
    assert_eq!(code(&mut client, update).await, ResponseCode::SUCCESS);
    let list = RemotingCommand::request(RequestCode::GET_ALL_TOPIC_LIST_FROM_NAMESERVER);
    assert_eq!(code(&mut client, list).await, ResponseCode::SYSTEM_ERROR);
    let shown = RemotingCommand::request(RequestCode::GET_NAMESRV_CONFIG);
    let shown = client.call(shown, LONG).await.unwrap();
    assert!(String::from_utf8_lossy(&shown.body).contains("enableAllTopicList=false\n"));
    namesrv.stop().await;
}

#[tokio::test]
async fn key_values_outlive_the_process_and_order_the_route() {
    let home = tempfile::tempdir().unwrap();
    let net = MemoryNet::default();
    let namesrv = Namesrv::start(&net, 9876, home.path()).await;
    let mut client = namesrv.client().await;
    let put = RemotingCommand::request(RequestCode::PUT_KV_CONFIG)
        .with_ext("namespace", "ORDER_TOPIC_CONFIG")
        .with_ext("key", "T")
        .with_ext("value", "b:4");
    assert_eq!(code(&mut client, put).await, ResponseCode::SUCCESS);
    namesrv.stop().await;

    let namesrv = Namesrv::start(&net, 9877, home.path()).await;
    let mut client = namesrv.client().await;
    let registered = client.call(register("a:1", 0), LONG).await.unwrap();
    assert_eq!(&registered.body[..], br#"{"table":{"T":"b:4"}}"#);
    let response = client.call(route("T"), LONG).await.unwrap();
    let data: TopicRouteData = serde_json::from_slice(&response.body).unwrap();
    assert_eq!(data.order_topic_conf.as_deref(), Some("b:4"));
    namesrv.stop().await;
}

#[tokio::test]
async fn a_frame_above_the_limit_closes_the_connection() {
    let home = tempfile::tempdir().unwrap();
    let net = MemoryNet::default();
    let namesrv = Namesrv::start(&net, 9876, home.path()).await;
    drop(namesrv.client().await);
    let mut stream = net.connect("127.0.0.1:9876").await.unwrap();
    stream.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    let mut rest = Vec::new();
    assert_eq!(stream.read_to_end(&mut rest).await.unwrap(), 0);
    namesrv.stop().await;
}

fn input(broker_id: u64, address: &str, role_epoch: u64) -> Option<RegistrarInput> {
    input_of(broker_id, address, role_epoch, 1)
}

/// A broker with that many topics.
fn input_of(
    broker_id: u64,
    address: &str,
    role_epoch: u64,
    count: usize,
) -> Option<RegistrarInput> {
    Some(RegistrarInput {
        role: role(broker_id, address, role_epoch),
        topics: announcements(count, &Arc::default()).publish(role_epoch),
    })
}

fn role(broker_id: u64, address: &str, role_epoch: u64) -> RegisteredRole {
    RegisteredRole {
        broker_id,
        broker_address: address.to_owned(),
        address_is_shared: address == "leader:1",
        role_epoch,
    }
}

/// Announces topics T, T1, ... as of change number `version`.
fn announcements(count: usize, version: &Arc<AtomicI64>) -> Announcements {
    let mut topics: RegisterBrokerBody = serde_json::from_slice(&topics("T")).unwrap();
    let table = &mut topics.topic_config_serialize_wrapper.topic_config_table;
    for number in 1..count {
        let topic = format!("T{number}");
        table.insert(topic.clone(), TopicConfig::new(topic, 4, 6));
    }
    let version = Arc::clone(version);
    let read = move || {
        let mut topics = topics.clone();
        let wrapper = &mut topics.topic_config_serialize_wrapper;
        wrapper.data_version.counter = version.load(Ordering::Relaxed);
        topics
    };
    Announcements::new(Arc::new(read), 0)
}

#[tokio::test]
async fn the_registrar_follows_the_role_at_every_name_server_and_leaves_at_the_stop() {
    let home = tempfile::tempdir().unwrap();
    let net = MemoryNet::default();
    let first = Namesrv::start(&net, 9876, home.path()).await;
    let second = Namesrv::start(&net, 9877, home.path()).await;
    let mut clients = [first.client().await, second.client().await];

    let (config, _) =
        BrokerConfig::parse_in("brokerClusterName=C", "f", &surroundings(home.path())).unwrap();
    let (role, watched_role) = watch::channel(None);
    let (shutdown, watched_shutdown) = watch::channel(false);
    let addresses = ["127.0.0.1:9876", "127.0.0.1:9877", "127.0.0.1:1"]
        .map(str::to_owned)
        .to_vec();
    let net: Arc<dyn Net> = Arc::new(net);
    let metrics = Arc::new(raftmq_telemetry::metrics::Metrics::new());
    let registrar = Registrar::start(
        &config,
        &addresses,
        &net,
        &watched_role,
        &watched_shutdown,
        &metrics,
    );

    // A follower at its own address, then the leader at an address of the leader's.
    role.send_replace(input(2, "own:1", 1));
    for client in &mut clients {
        while code(client, route("T")).await != ResponseCode::SUCCESS {
            tokio::task::yield_now().await;
        }
    }
    role.send_replace(input(0, "leader:1", 2));
    for client in &mut clients {
        await_leader(client, Some("leader:1")).await;
    }
    // Its own address is taken out; without it the route has one address.
    for client in &mut clients {
        loop {
            let response = client.call(route("T"), LONG).await.unwrap();
            let data: TopicRouteData = serde_json::from_slice(&response.body).unwrap();
            if data.broker_datas[0].broker_addrs.len() == 1 {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    shutdown.send_replace(true);
    let status = registrar.status();
    registrar.stopped().await;
    for client in &mut clients {
        await_leader(client, None).await;
    }
    let failures = status
        .iter()
        .map(|one| one.failures.load(Ordering::Relaxed));
    let failures: Vec<_> = failures.map(|count| count > 0).collect();
    assert_eq!(failures, [false, false, true]);
    first.stop().await;
    second.stop().await;
}

/// A broker that registers with `addresses` what is sent to the returned role.
struct Registered {
    role: watch::Sender<Option<RegistrarInput>>,
    shutdown: watch::Sender<bool>,
    registrar: Registrar,
}

fn registered(net: &MemoryNet, home: &Path, addresses: &[&str]) -> Registered {
    let (config, _) =
        BrokerConfig::parse_in("brokerClusterName=C", "f", &surroundings(home)).unwrap();
    let (role, watched_role) = watch::channel(None);
    let (shutdown, watched_shutdown) = watch::channel(false);
    let addresses: Vec<_> = addresses
        .iter()
        .map(|&address| address.to_owned())
        .collect();
    let net: Arc<dyn Net> = Arc::new(net.clone());
    let metrics = Arc::new(raftmq_telemetry::metrics::Metrics::new());
    let registrar = Registrar::start(
        &config,
        &addresses,
        &net,
        &watched_role,
        &watched_shutdown,
        &metrics,
    );
    Registered {
        role,
        shutdown,
        registrar,
    }
}

async fn await_addresses(client: &mut FrameClient, wanted: &[(&str, &str)]) {
    let wanted = wanted
        .iter()
        .map(|(id, address)| ((*id).to_owned(), (*address).to_owned()))
        .collect();
    loop {
        let response = client.call(route("T"), LONG).await.unwrap();
        let data = serde_json::from_slice::<TopicRouteData>(&response.body);
        if data.is_ok_and(|data| addresses_of(&data) == wanted) {
            return;
        }
        tokio::task::yield_now().await;
    }
}

fn addresses_of(data: &TopicRouteData) -> BTreeMap<String, String> {
    let addresses = data.broker_datas[0].broker_addrs.iter();
    addresses
        .map(|(id, address)| (id.to_string(), address.clone()))
        .collect()
}

#[tokio::test]
async fn an_address_that_moves_with_the_role_stays_when_its_former_leader_stops() {
    let home = tempfile::tempdir().unwrap();
    let net = MemoryNet::default();
    let namesrv = Namesrv::start(&net, 9876, home.path()).await;
    let mut client = namesrv.client().await;
    let one = registered(&net, home.path(), &["127.0.0.1:9876"]);
    let two = registered(&net, home.path(), &["127.0.0.1:9876"]);

    one.role.send_replace(input(0, "leader:1", 1));
    two.role.send_replace(input(2, "two:1", 1));
    await_addresses(&mut client, &[("0", "leader:1"), ("2", "two:1")]).await;
    two.role.send_replace(input(0, "leader:1", 2));
    await_addresses(&mut client, &[("0", "leader:1")]).await;
    one.role.send_replace(input(1, "one:1", 2));
    await_addresses(&mut client, &[("0", "leader:1"), ("1", "one:1")]).await;

    one.shutdown.send_replace(true);
    one.registrar.stopped().await;
    await_addresses(&mut client, &[("0", "leader:1")]).await;
    // Nobody leads any more: the address goes with the connection of the last leader.
    two.shutdown.send_replace(true);
    two.registrar.stopped().await;
    await_leader(&mut client, None).await;
    namesrv.stop().await;
}

#[tokio::test]
async fn a_name_server_that_comes_up_late_is_found_and_delays_no_other() {
    let home = tempfile::tempdir().unwrap();
    let net = MemoryNet::default();
    let first = Namesrv::start(&net, 9876, home.path()).await;
    let broker = registered(&net, home.path(), &["127.0.0.1:9877", "127.0.0.1:9876"]);
    broker.role.send_replace(input(2, "two:1", 1));
    await_addresses(&mut first.client().await, &[("2", "two:1")]).await;
    let late = Namesrv::start(&net, 9877, home.path()).await;
    await_addresses(&mut late.client().await, &[("2", "two:1")]).await;
    first.stop().await;
    late.stop().await;
}

/// What a name server sees that takes frames only when it is told to.
struct Slow {
    listener: Box<dyn raftmq_host::net::Listener>,
}

impl Slow {
    async fn start(net: &MemoryNet) -> Self {
        let address = "127.0.0.1:9876".parse().unwrap();
        let listener = net.bind(address).await.unwrap();
        Self { listener }
    }

    async fn accept(&mut self) -> (FrameReader, FrameWriter) {
        let accepted = timeout(LONG, self.listener.accept()).await.unwrap();
        frame_io::open(accepted.unwrap().stream, LONG)
    }
}

async fn next(reader: &mut FrameReader) -> RemotingCommand {
    let frame = timeout(SOON, reader.next()).await.expect("a frame soon");
    frame.unwrap().expect("the connection stands")
}

fn named(command: &RemotingCommand) -> (i32, &str, &str) {
    let field = |name| command.ext_fields.get(name).unwrap_or_default();
    (command.code, field("brokerId"), field("brokerAddr"))
}

async fn take(writer: &mut FrameWriter, request: &RemotingCommand) {
    let response = RemotingCommand::response_to(request, ResponseCode::SUCCESS);
    writer.send(&response).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_role_goes_out_behind_a_registration_that_is_half_written() {
    let home = tempfile::tempdir().unwrap();
    let net = MemoryNet::default();
    let mut slow = Slow::start(&net).await;
    let broker = registered(&net, home.path(), &["127.0.0.1:9876"]);
    broker.role.send_replace(input_of(2, "own:1", 1, 2_000));
    let (mut reader, _writer) = slow.accept().await;
    sleep(SOON).await;
    broker.role.send_replace(input_of(0, "own:1", 2, 2_000));
    sleep(SOON).await;
    assert_eq!(named(&next(&mut reader).await), (103, "2", "own:1"));
    assert_eq!(named(&next(&mut reader).await), (103, "0", "own:1"));
}

#[tokio::test(start_paused = true)]
async fn an_address_is_taken_out_although_the_role_changed_again_meanwhile() {
    let home = tempfile::tempdir().unwrap();
    let net = MemoryNet::default();
    let mut slow = Slow::start(&net).await;
    let broker = registered(&net, home.path(), &["127.0.0.1:9876"]);
    broker.role.send_replace(input(2, "own:1", 1));
    let (mut reader, mut writer) = slow.accept().await;
    let first = next(&mut reader).await;
    take(&mut writer, &first).await;
    for epoch in 2..4 {
        broker.role.send_replace(input(0, "leader:1", epoch));
        sleep(SOON / 10).await;
    }
    loop {
        let request = next(&mut reader).await;
        take(&mut writer, &request).await;
        if request.code == RequestCode::UNREGISTER_BROKER.0 {
            assert_eq!(named(&request), (104, "2", "own:1"));
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_is_dropped_after_two_minutes_of_silence() {
    let home = tempfile::tempdir().unwrap();
    let namesrv = Namesrv::start(&MemoryNet::default(), 9876, home.path()).await;
    let mut broker = namesrv.client().await;
    let mut client = namesrv.client().await;
    broker.call(register("a:1", 0), LONG).await.unwrap();
    for _ in 0..2 {
        sleep(Duration::from_secs(59)).await;
        assert_eq!(code(&mut client, route("T")).await, ResponseCode::SUCCESS);
    }
    sleep(Duration::from_secs(8)).await;
    let answer = code(&mut client, route("T")).await;
    assert_eq!(answer, ResponseCode::TOPIC_NOT_EXIST);
    namesrv.stop().await;
}

/// A registered leader whose topics change, and the other end of its connection.
struct Telling {
    slow: Slow,
    broker: Registered,
    announcements: Announcements,
    version: Arc<AtomicI64>,
    reader: FrameReader,
    writer: FrameWriter,
    _home: tempfile::TempDir,
}

impl Telling {
    async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let net = MemoryNet::default();
        let mut slow = Slow::start(&net).await;
        let broker = registered(&net, home.path(), &["127.0.0.1:9876"]);
        broker.role.send_replace(input(0, "own:1", 1));
        let (mut reader, mut writer) = slow.accept().await;
        let first = next(&mut reader).await;
        take(&mut writer, &first).await;
        sleep(SOON).await;
        let version = Arc::default();
        Self {
            slow,
            broker,
            announcements: announcements(1, &version),
            version,
            reader,
            writer,
            _home: home,
        }
    }

    /// Publishes the topic as change `number`, in the role of term `epoch`.
    fn put(&mut self, number: u64, topic: &str, epoch: u64) {
        let config = TopicConfig::new(topic, 4, 6);
        self.announcements.note(number, Some(vec![config]));
        self.publish(epoch);
    }

    fn publish(&self, epoch: u64) {
        let version = self.announcements.version();
        self.version.store(version as i64, Ordering::Relaxed);
        self.broker.role.send_replace(Some(RegistrarInput {
            role: role(0, "own:1", epoch),
            topics: self.announcements.publish(epoch),
        }));
    }

    async fn expect(&mut self, request: &str) -> RemotingCommand {
        let command = next(&mut self.reader).await;
        let topic = command.ext_fields.get("topic").unwrap_or_default();
        assert_eq!(format!("{} {topic}", command.code).trim(), request);
        command
    }

    async fn serve(&mut self, request: &str) {
        let command = self.expect(request).await;
        take(&mut self.writer, &command).await;
    }

    async fn expect_nothing(&mut self) {
        assert!(timeout(SOON, self.reader.next()).await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_changes_is_told_alone() {
    let mut telling = Telling::start().await;
    telling.put(2, "A", 1);
    telling.serve("217 A").await;
    // Changes while the name server is slow come when it has answered, each topic once.
    telling.put(3, "B", 1);
    let pending = telling.expect("217 B").await;
    for number in 4..7 {
        telling.put(number, "C", 1);
    }
    telling.expect_nothing().await;
    take(&mut telling.writer, &pending).await;
    telling.serve("217 C").await;
    telling.expect_nothing().await;
    // One that is deleted is told by all that are left.
    telling.announcements.note(7, None);
    telling.publish(1);
    telling.serve("103").await;
    telling.expect_nothing().await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_of_the_past_lets_the_next_one_register_first() {
    let home = tempfile::tempdir().unwrap();
    let net = MemoryNet::default();
    let namesrv = Namesrv::start(&net, 9876, home.path()).await;
    let mut client = namesrv.client().await;
    let old = registered(&net, home.path(), &["127.0.0.1:9876"]);
    let new = registered(&net, home.path(), &["127.0.0.1:9876"]);
    old.role.send_replace(input(0, "old:1", 1));
    new.role.send_replace(input(2, "new:1", 1));
    await_addresses(&mut client, &[("0", "old:1"), ("2", "new:1")]).await;
    old.role.send_replace(input(1, "old:1", 2));
    sleep(NAMESRV_DEMOTION_PAUSE / 2).await;
    await_addresses(&mut client, &[("0", "old:1"), ("2", "new:1")]).await;
    new.role.send_replace(input(0, "new:1", 2));
    sleep(NAMESRV_DEMOTION_PAUSE).await;
    await_addresses(&mut client, &[("0", "new:1"), ("1", "old:1")]).await;
    // The same at a stop; nobody leads then, so the address goes all the same.
    new.role.send_replace(input(2, "new:1", 3));
    sleep(SOON / 10).await;
    new.shutdown.send_replace(true);
    sleep(NAMESRV_DEMOTION_PAUSE / 2).await;
    await_addresses(&mut client, &[("0", "new:1"), ("1", "old:1")]).await;
    new.registrar.stopped().await;
    await_addresses(&mut client, &[("1", "old:1")]).await;
    namesrv.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_role_overtakes_topics_and_both_are_told_again() {
    let mut telling = Telling::start().await;
    telling.put(2, "A", 1);
    let overtaken = telling.expect("217 A").await;
    telling.publish(2);
    let role = telling.expect("103").await;
    telling.expect_nothing().await;
    take(&mut telling.writer, &overtaken).await;
    take(&mut telling.writer, &role).await;
    telling.serve("103").await;
    telling.serve("217 A").await;
    telling.expect_nothing().await;
}

#[tokio::test(start_paused = true)]
async fn a_name_server_that_knows_no_single_topics_gets_all_but_not_at_each_change() {
    let mut telling = Telling::start().await;
    telling.put(2, "A", 1);
    let request = telling.expect("217 A").await;
    let code = ResponseCode::REQUEST_CODE_NOT_SUPPORTED;
    let unknown = RemotingCommand::response_to(&request, code);
    telling.writer.send(&unknown).await.unwrap();
    telling.serve("103").await;
    let mut registrations = 0;
    for number in 3..1_003 {
        telling.put(number, "B", 1);
        sleep(Duration::from_millis(1)).await;
        while let Ok(frame) = timeout(Duration::ZERO, telling.reader.next()).await {
            let command = frame.unwrap().unwrap();
            assert_eq!(command.code, 103);
            take(&mut telling.writer, &command).await;
            registrations += 1;
        }
    }
    assert!((10..=21).contains(&registrations), "{registrations}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_answers_no_more_stays_until_another_one_holds_the_registration() {
    let mut telling = Telling::start().await;
    telling.publish(2);
    telling.expect("103").await;
    sleep(NAMESRV_REGISTER_TIMEOUT).await;
    let (mut reader, mut writer) = telling.slow.accept().await;
    telling.expect_nothing().await;
    let again = next(&mut reader).await;
    assert_eq!(named(&again), (103, "0", "own:1"));
    telling.expect_nothing().await;
    take(&mut writer, &again).await;
    let ended = timeout(SOON, telling.reader.next()).await.unwrap();
    assert!(ended.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_refused_registration_is_tried_again_on_its_connection() {
    let mut telling = Telling::start().await;
    telling.publish(2);
    let request = telling.expect("103").await;
    let refused = RemotingCommand::response_to(&request, ResponseCode::SYSTEM_ERROR);
    telling.writer.send(&refused).await.unwrap();
    telling.expect_nothing().await;
    sleep(NAMESRV_REGISTER_RETRY).await;
    telling.serve("103").await;
    // A new role does not wait for the pause after a refusal.
    telling.publish(3);
    let request = telling.expect("103").await;
    let refused = RemotingCommand::response_to(&request, ResponseCode::SYSTEM_ERROR);
    telling.writer.send(&refused).await.unwrap();
    sleep(SOON / 10).await;
    telling.publish(4);
    telling.serve("103").await;
}

#[tokio::test(start_paused = true)]
async fn a_name_server_that_does_not_answer_delays_the_stop_for_a_bounded_time() {
    let Telling {
        broker, mut reader, ..
    } = Telling::start().await;
    let begun = tokio::time::Instant::now();
    broker.shutdown.send_replace(true);
    broker.registrar.stopped().await;
    assert_eq!(begun.elapsed(), NAMESRV_UNREGISTER_TIMEOUT);
    assert_eq!(named(&next(&mut reader).await), (104, "0", "own:1"));
}

/// Clients that ask for much and read nothing take memory from each other, and not all of it.
#[tokio::test(start_paused = true)]
async fn answers_that_nobody_reads_stay_within_the_budget() {
    let home = tempfile::tempdir().unwrap();
    let budget = |config: &mut NamesrvConfig| config.memory_budget_bytes = Some(1 << 20);
    let net = MemoryNet::default();
    let namesrv = Namesrv::start_with(&net, 9876, home.path(), budget).await;
    let mut client = namesrv.client().await;
    let value = "v".repeat(50 << 10);
    for key in ["1", "2", "3", "4"] {
        let put = RemotingCommand::request(RequestCode::PUT_KV_CONFIG)
            .with_ext("namespace", "N")
            .with_ext("key", key)
            .with_ext("value", &value);
        assert_eq!(code(&mut client, put).await, ResponseCode::SUCCESS);
    }
    let get = || {
        RemotingCommand::request(RequestCode::GET_KVLIST_BY_NAMESPACE).with_ext("namespace", "N")
    };
    assert_eq!(code(&mut client, get()).await, ResponseCode::SUCCESS);
    let mut silent = Vec::new();
    for _ in 0..20 {
        let (reader, mut writer) =
            frame_io::open(net.connect(&namesrv.address).await.unwrap(), LONG);
        writer.send(&get()).await.unwrap();
        silent.push((reader, writer));
        tokio::task::yield_now().await;
    }
    sleep(SOON).await;
    assert_eq!(code(&mut client, get()).await, ResponseCode::SYSTEM_BUSY);
    assert_eq!(
        code(&mut client, route("T")).await,
        ResponseCode::TOPIC_NOT_EXIST
    );
    drop(silent);
    sleep(SOON).await;
    assert_eq!(code(&mut client, get()).await, ResponseCode::SUCCESS);
    namesrv.stop().await;
}
