//! Inputs to begin with, for the targets of the broker itself.

use std::path::Path;
use std::sync::Arc;

use bytes::BytesMut;
use raftmq::config::{BrokerConfig, NamesrvConfig, Surroundings};
use raftmq::fuzzing;
use raftmq_remoting::{RemotingCommand, RequestCode, frame};
use raftmq_store::Disk;
use raftmq_store::index::{IndexUnit, QueueIndex};

use super::corpus::{position, state};
use super::stored::join;
use crate::sim::disk::SimDisk;

const PEERS: &str = "n0-10.0.0.1:40911;n1-raft-a-2.peers:40911;n2-[::1]:40912";
const MEMBERSHIP: &[u8] =
    br#"{"configs":[[1,2]],"nodes":{"1":"a:1","2":"b:2"},"incarnations":{"2":"x"}}"#;

/// Valid inputs of a target of the broker.
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "json_body" => bodies(),
        "checkpoint_sections" => vec![checkpoint_sections()],
        "queue_index" => vec![queue_index()],
        "raft_frame" => fuzzing::raft_frame_examples(),
        "raft_connection" => vec![connection()],
        "java_properties" => vec![
            b"# comment\nkey=value\na\\ b : \\u00e4\\\n  more\n! x\nk v\n".to_vec(),
            b"a=1\nb=\\t\\n\\\\\na=2".to_vec(),
        ],
        "raft_peers" => vec![PEERS.as_bytes().to_vec()],
        "broker_config" => broker_configs(),
        "namesrv_config" => vec![
            summary_of_namesrv(""),
            summary_of_namesrv("bindAddress=::1\nconfigBlackList=a;b c\nkvConfigPath=/a b\\\\"),
        ],
        "namesrv_requests" => vec![namesrv_requests()],
        "register_body" => vec![
            fuzzing::register_body_example(false),
            fuzzing::register_body_example(true),
            inflated_registration(),
        ],
        "kv_config" => {
            vec![br#"{"configTable":{"ORDER_TOPIC_CONFIG":{"T":"b:4","U":"b:1;c:2"}}}"#.to_vec()]
        }
        _ => Vec::new(),
    }
}

fn bodies() -> Vec<Vec<u8>> {
    [
        r#"{"clientID":"c@1","producerDataSet":[{"groupName":"p"}],"consumerDataSet":[{"groupName":"g","consumeType":"CONSUME_PASSIVELY","messageModel":"CLUSTERING","consumeFromWhere":"CONSUME_FROM_LAST_OFFSET","subscriptionDataSet":[{"topic":"t","subString":"a || b","tagsSet":["a","b"],"codeSet":[97,98],"subVersion":5,"expressionType":"TAG"}],"unitMode":false}]}"#,
        r#"{"consumerGroup":"g","clientId":"c","mqSet":[{"topic":"t","brokerName":"b","queueId":3}],"onlyThisBroker":false}"#,
        r#"{"offsetTable":{{"brokerName":"b","queueId":0,"topic":"t"}:{"brokerOffset":5,"consumerOffset":3,"lastTimestamp":7}},"consumeTps":1.5}"#,
        r#"{"offsetTable":{{"brokerName":"b","queueId":0,"topic":"t"}:{"minOffset":0,"maxOffset":9,"lastUpdateTimestamp":7}}}"#,
        r#"{"offsetTable":{{"brokerName":"b","queueId":0,"topic":"t"}:12}}"#,
        r#"{"brokerDatas":[{"brokerAddrs":{0:"a:1",1:"b:2"},"brokerName":"b","cluster":"c"}],"filterServerTable":{},"queueDatas":[{"brokerName":"b","perm":6,"readQueueNums":4,"topicSysFlag":0,"writeQueueNums":4}]}"#,
        r#"{"brokerAddrTable":{"b":{"brokerAddrs":{0:"a:1"},"brokerName":"b","cluster":"c"}},"clusterAddrTable":{"c":["b"]}}"#,
        r#"{"groupName":"g","consumeEnable":true,"retryQueueNums":1,"retryMaxTimes":16,"brokerId":0,"groupRetryPolicy":{"type":"CUSTOMIZED"},"attributes":{"a":"b"}}"#,
        r#"{"clientId":"c","group":"g","subscriptionData":{"topic":"t","subString":"*","tagsSet":[],"codeSet":[]},"namespace":null}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// A manifest and the two runs that it names.
fn queue_index() -> Vec<u8> {
    let (disk, dir) = (SimDisk::default(), Path::new("/index"));
    let index = QueueIndex::open(Arc::new(disk.clone()), dir, None).expect("an empty folder opens");
    let mut manifest = None;
    for round in 0..2 {
        for (queue, units) in [(0, 150), (2, 3), (7, 1)] {
            let (_, next) = index.bounds(queue);
            for offset in next..next + units {
                let unit = IndexUnit {
                    physical_offset: 1000 * round + offset * 100,
                    size: 100,
                    tags_code: 5,
                    store_timestamp_ms: 1000 + offset,
                };
                index.append(&[(queue, offset, unit)]);
            }
        }
        manifest = index.write_frozen(&index.freeze()).expect("the disk works");
    }
    let mut parts = vec![manifest.expect("the newest freeze is written")];
    for name in disk.list(dir).expect("the disk works") {
        let file = disk.open(&dir.join(name)).expect("it is there");
        let mut run = vec![0; file.len().expect("the disk works") as usize];
        file.read_exact_at(&mut run, 0).expect("the disk works");
        parts.push(run);
    }
    join(&parts)
}

fn checkpoint_sections() -> Vec<u8> {
    let mut membership = vec![1];
    membership.extend_from_slice(&2_u64.to_le_bytes());
    membership.extend_from_slice(&1_u64.to_le_bytes());
    membership.extend_from_slice(MEMBERSHIP);
    join(&[
        state().encode(),
        position(),
        membership,
        b"a manifest".to_vec(),
        7_u64.to_le_bytes().to_vec(),
    ])
}

/// Hello first, then the other frames.
fn connection() -> Vec<u8> {
    let mut frames = fuzzing::raft_frame_examples();
    let hello = frames.iter().position(|frame| frame.get(4) == Some(&1));
    frames.swap(0, hello.expect("there is a hello"));
    frames.concat()
}

fn surroundings() -> Surroundings {
    Surroundings {
        home: "/home/u".into(),
        host_name: "machine".to_owned(),
        local_ip: "10.0.0.7".to_owned(),
    }
}

fn broker_configs() -> Vec<Vec<u8>> {
    let group = format!(
        "enableDLegerCommitLog=true\ndLegerPeers={PEERS}\ndLegerSelfId=n1\ndLegerGroup=g\n\
         brokerRole=SYNC_MASTER\nflushDiskType=ASYNC_FLUSH\nnamesrvAddr=a:1;b:2\nraftFormGroup=admin\n"
    );
    [
        "",
        "listenPort=10912\ndeleteWhen=04;16\nmessageDelayLevel=1s 5m 2h\n",
        &group,
    ]
    .into_iter()
    .flat_map(|text| {
        let (config, _) = BrokerConfig::parse_in(text, "f", &surroundings()).expect("valid");
        [text.as_bytes().to_vec(), config.summary().into_bytes()]
    })
    .collect()
}

fn summary_of_namesrv(text: &str) -> Vec<u8> {
    let config = NamesrvConfig::parse_in(text, "f", &surroundings());
    config.expect("valid").0.summary().into_bytes()
}

fn namesrv_requests() -> Vec<u8> {
    let kv = |code: RequestCode| {
        RemotingCommand::request(code.0)
            .with_ext("namespace", "n")
            .with_ext("key", "k")
            .with_ext("value", "v")
    };
    let registration = RemotingCommand::request(RequestCode::REGISTER_BROKER.0)
        .with_ext("brokerName", "b")
        .with_ext("brokerAddr", "10.0.0.1:10911")
        .with_ext("clusterName", "c")
        .with_ext("brokerId", "0")
        .with_ext("compressed", "true")
        .with_body(fuzzing::register_body_example(true));
    let named =
        |code: RequestCode, field, value| RemotingCommand::request(code.0).with_ext(field, value);
    let commands = [
        registration,
        kv(RequestCode::PUT_KV_CONFIG),
        kv(RequestCode::GET_KV_CONFIG),
        kv(RequestCode::GET_KVLIST_BY_NAMESPACE),
        kv(RequestCode::DELETE_KV_CONFIG),
        named(RequestCode::GET_ROUTEINFO_BY_TOPIC, "topic", "T"),
        named(RequestCode::GET_BROKER_MEMBER_GROUP, "brokerName", "b"),
        named(RequestCode::WIPE_WRITE_PERM_OF_BROKER, "brokerName", "b"),
        named(RequestCode::DELETE_TOPIC_IN_NAMESRV, "topic", "U"),
        named(
            RequestCode::QUERY_DATA_VERSION,
            "brokerAddr",
            "10.0.0.1:10911",
        )
        .with_body(&br#"{"counter":7,"stateVersion":3,"timestamp":5}"#[..]),
        RemotingCommand::request(RequestCode::UPDATE_NAMESRV_CONFIG.0)
            .with_body(&b"orderMessageEnable=true"[..]),
        RemotingCommand::request(RequestCode::GET_NAMESRV_CONFIG.0),
        RemotingCommand::request(RequestCode::GET_BROKER_CLUSTER_INFO.0),
        named(
            RequestCode::UNREGISTER_BROKER,
            "brokerAddr",
            "10.0.0.1:10911",
        ),
    ];
    let mut out = BytesMut::new();
    for command in &commands {
        frame::encode(command, &mut out);
    }
    out.to_vec()
}

/// What is inside a compressed registration.
fn inflated_registration() -> Vec<u8> {
    let sized = |text: &str| [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat();
    [
        sized(r#"{"counter":7,"stateVersion":3,"timestamp":5}"#),
        2_u32.to_be_bytes().to_vec(),
        sized("T 4 8 6 SINGLE_TAG {}"),
        sized("U 1 1 4 SINGLE_TAG"),
        sized("[]"),
        0_u32.to_be_bytes().to_vec(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::stored::split;

    #[test]
    fn decoders_take_the_examples() {
        for (target, decode) in [
            (
                "raft_frame",
                fuzzing::raft_frame as fn(&[u8]) -> Option<Vec<u8>>,
            ),
            ("java_properties", fuzzing::java_properties),
            ("raft_peers", fuzzing::raft_peers),
            ("kv_config", fuzzing::kv_config),
        ] {
            let examples = of(target);
            assert!(examples.iter().all(|one| decode(one).is_some()), "{target}");
        }
        for example in of("checkpoint_sections") {
            assert!(fuzzing::checkpoint_sections(&split(&example)).is_some());
        }
        let topics = of("register_body").into_iter();
        let topics: Vec<usize> = topics.map(|body| fuzzing::register_body(&body)).collect();
        assert_eq!(topics, [2, 2, 2]);
        assert_eq!(fuzzing::namesrv_requests(&namesrv_requests()), 14);
        let frames = fuzzing::raft_frame_examples().len();
        assert_eq!(fuzzing::raft_connection(&connection()), frames - 1);
    }

    #[test]
    fn the_example_of_an_index_is_two_runs_in_their_order() {
        let example = queue_index();
        let parts = split(&example);
        let files = (0..).zip(&parts[1..]).map(|(number, run)| {
            let path = Path::new("/index").join(format!("{number:020}.run"));
            (path, run.to_vec())
        });
        let disk = Arc::new(SimDisk::of_files(files));
        let index = QueueIndex::open(disk, Path::new("/index"), Some(parts[0])).unwrap();
        assert_eq!((index.runs(), index.bounds(0)), (2, (0, 300)));
        assert_eq!(index.read(0, 0, 1000).unwrap().len(), 300);
    }
}
