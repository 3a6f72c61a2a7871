//! Golden vectors of the 5.5.0 codec, and properties of the frame decoder.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use crate::{LanguageCode, RemotingCommand, RequestCode, ResponseCode, SerializeType, body, frame};

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|at| u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).unwrap())
        .collect()
}

fn route_request() -> RemotingCommand {
    let mut command =
        RemotingCommand::request(RequestCode::GET_ROUTEINFO_BY_TOPIC).with_ext("topic", "T");
    command.opaque = 1;
    command.language = LanguageCode::JAVA;
    command
}

fn to_bytes(command: &RemotingCommand) -> Bytes {
    let mut out = BytesMut::new();
    frame::encode(command, &mut out);
    out.freeze()
}

fn decode_one(bytes: &[u8]) -> RemotingCommand {
    let mut buffer = BytesMut::from(bytes);
    let command = frame::decode(&mut buffer).unwrap().unwrap();
    assert!(buffer.is_empty());
    command
}

#[test]
fn the_json_frame_is_that_of_java() {
    let header = br#"{"code":105,"extFields":{"topic":"T"},"flag":0,"language":"JAVA","opaque":1,"serializeTypeCurrentRPC":"JSON","version":513}"#;
    let mut expected = hex("0000007f0000007b");
    expected.extend_from_slice(header);
    assert_eq!(to_bytes(&route_request()), expected);
    assert_eq!(decode_one(&expected), route_request());
}

#[test]
fn the_binary_frame_is_that_of_java() {
    let expected =
        hex("000000250100002100690002010000000100000000000000000000000c0005746f7069630000000154");
    let mut command = route_request();
    command.serialize = SerializeType::RocketMq;
    assert_eq!(to_bytes(&command), expected);
    assert_eq!(decode_one(&expected), command);
}

#[test]
fn a_response_has_the_opaque_and_encoding_of_its_request() {
    let mut request = route_request();
    request.serialize = SerializeType::RocketMq;
    let response = RemotingCommand::response_to(&request, ResponseCode::TOPIC_NOT_EXIST);
    assert!(response.is_response() && !response.is_oneway());
    assert_eq!(
        (response.opaque, response.serialize),
        (1, SerializeType::RocketMq)
    );
}

#[test]
fn any_legal_json_header_is_read() {
    let header = r#" { "version" : 409 , "remark" : null, "language":"GO", "x":[1,{"y":[]}],
        "extFields" : {"a":"\u0041\n\"","b":7,"c":true,"d":null,"a":"2"}, "opaque":"-3",
        "flag":1,"code":0 } "#;
    let mut bytes = ((header.len() + 4) as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(&(header.len() as u32).to_be_bytes());
    bytes.extend_from_slice(header.as_bytes());
    let command = decode_one(&bytes);
    assert_eq!(
        (command.version, command.opaque, command.flag),
        (409, -3, 1)
    );
    assert_eq!(command.language, LanguageCode(9));
    let fields: Vec<_> = command.ext_fields.iter().collect();
    assert_eq!(fields, [("a", "2"), ("b", "7"), ("c", "true")]);
}

#[test]
fn lengths_that_lie_close_the_connection() {
    for bytes in [
        "01000001000000000000",
        "0000000300000000",
        "0000000800000009",
        "0000000802000001",
    ] {
        assert!(
            frame::decode(&mut BytesMut::from(&hex(bytes)[..])).is_err(),
            "{bytes}"
        );
    }
    let mut partial = BytesMut::from(&hex("0000007f0000007b7b")[..]);
    assert_eq!(frame::decode(&mut partial), Ok(None));
}

#[test]
fn bodies_of_java_are_read_and_written() {
    let route = r#"{"brokerDatas":[{"brokerAddrs":{0:"127.0.0.1:10911",1:"127.0.0.1:10921"},"brokerName":"b0","cluster":"C","enableActingMaster":false}],"filterServerTable":{},"queueDatas":[{"brokerName":"b0","perm":6,"readQueueNums":4,"topicSysFlag":0,"writeQueueNums":4}]}"#;
    let decoded: body::TopicRouteData = body::decode(route.as_bytes()).unwrap();
    assert_eq!(decoded.broker_datas[0].broker_addrs[&1], "127.0.0.1:10921");
    let standard = route.replace("{0:", "{\"0\":").replace(",1:", ",\"1\":");
    assert_eq!(body::encode(&decoded), standard);

    let heartbeat = r#"{"clientID":"1.2.3.4@99","consumerDataSet":[{"consumeFromWhere":"CONSUME_FROM_LAST_OFFSET","consumeType":"CONSUME_PASSIVELY","groupName":"g","messageModel":"CLUSTERING","subscriptionDataSet":[{"classFilterMode":false,"codeSet":[65,66],"expressionType":"TAG","subString":"A || B","subVersion":1795350187586,"tagsSet":["A","B"],"topic":"T"}],"unitMode":false}],"heartbeatFingerprint":0,"producerDataSet":[{"groupName":"p"}],"withoutSub":false}"#;
    let decoded: body::HeartbeatData = body::decode(heartbeat.as_bytes()).unwrap();
    assert_eq!(body::encode(&decoded), heartbeat);

    let group = r#"{"attributes":{},"brokerId":0,"consumeBroadcastEnable":true,"consumeEnable":true,"consumeFromMinEnable":true,"consumeMessageOrderly":false,"consumeTimeoutMinute":15,"groupName":"g","groupRetryPolicy":{"type":"CUSTOMIZED"},"groupSysFlag":0,"notifyConsumerIdsChangedEnable":true,"retryMaxTimes":16,"retryQueueNums":1,"whichBrokerWhenConsumeSlowly":1}"#;
    assert_eq!(
        body::encode(&body::SubscriptionGroupConfig::new("g")),
        group
    );

    let lock = r#"{"clientId":"c","consumerGroup":"g","mqSet":[{"brokerName":"b0","queueId":0,"topic":"T"}],"onlyThisBroker":false}"#;
    let decoded: body::LockBatchRequest = body::decode(lock.as_bytes()).unwrap();
    assert_eq!(body::encode(&decoded), lock);

    let topic = r#"{"attributes":{},"order":false,"perm":6,"readQueueNums":4,"topicFilterType":"SINGLE_TAG","topicName":"T","topicSysFlag":0,"writeQueueNums":4}"#;
    assert_eq!(body::encode(&body::TopicConfig::new("T", 4, 6)), topic);
}

/// Reads `text` as a `T` and checks that writing it gives the same text.
fn goes_both_ways<T: serde::Serialize + serde::de::DeserializeOwned>(text: &str) -> T {
    let decoded: T = body::decode(text.as_bytes()).unwrap();
    assert_eq!(body::encode(&decoded), text);
    decoded
}

#[test]
fn bodies_of_tools_go_both_ways() {
    goes_both_ways::<body::TopicConfigSerializeWrapper>(
        r#"{"dataVersion":{"counter":1,"stateVersion":2,"timestamp":3},"topicConfigTable":{"T":{"attributes":{"+message.type":"NORMAL"},"order":false,"perm":6,"readQueueNums":4,"topicFilterType":"SINGLE_TAG","topicName":"T","topicSysFlag":0,"writeQueueNums":4}}}"#,
    );
    goes_both_ways::<body::ConsumerConnection>(
        r#"{"connectionSet":[{"clientAddr":"1.1.1.1:1","clientId":"c","language":"JAVA","version":513}],"consumeFromWhere":"CONSUME_FROM_LAST_OFFSET","consumeType":"CONSUME_PASSIVELY","messageModel":"CLUSTERING","subscriptionTable":{}}"#,
    );
    goes_both_ways::<body::ProducerTableInfo>(
        r#"{"data":{"p":[{"clientId":"c","language":"JAVA","lastUpdateTimestamp":2,"remoteIP":"1.1.1.1:1","version":1}]}}"#,
    );
    goes_both_ways::<body::BrokerStatsData>(
        r#"{"statsDay":{"avgpt":0.0,"sum":0,"tps":0.0},"statsHour":{"avgpt":0.0,"sum":0,"tps":0.0},"statsMinute":{"avgpt":0.0,"sum":0,"tps":0.0}}"#,
    );
    goes_both_ways::<body::KvTable>(r#"{"table":{"a":"b"}}"#);
    goes_both_ways::<body::TopicList>(r#"{"topicList":["T"]}"#);
    goes_both_ways::<body::GroupList>(r#"{"groupList":["g"]}"#);
    goes_both_ways::<body::ConsumerListByGroup>(r#"{"consumerIdList":["c1"]}"#);
    let lock = r#"{"lockOKMQSet":[{"brokerName":"b0","queueId":0,"topic":"T"}]}"#;
    goes_both_ways::<body::LockBatchResponse>(lock);
    let topic = r#"{"attributes":{},"order":false,"perm":6,"readQueueNums":4,"topicFilterType":"SINGLE_TAG","topicName":"T","topicSysFlag":0,"writeQueueNums":4}"#;
    let mapping = goes_both_ways::<body::TopicConfigAndQueueMapping>(topic);
    assert_eq!(mapping.config, body::TopicConfig::new("T", 4, 6));
    let group = r#"{"customizedRetryPolicy":{"next":[1000,5000]},"type":"CUSTOMIZED"}"#;
    goes_both_ways::<body::GroupRetryPolicy>(group);
}

#[test]
fn fastjson_keys_are_read_in_every_map() {
    let info: body::ClusterInfo = body::decode(
        br#"{"brokerAddrTable":{"b0":{"brokerAddrs":{0:"127.0.0.1:10911",1:"127.0.0.1:10921"},"brokerName":"b0","cluster":"C","enableActingMaster":false}},"clusterAddrTable":{"C":["b0"]}}"#,
    )
    .unwrap();
    assert_eq!(
        info.broker_addr_table["b0"].broker_addrs[&0],
        "127.0.0.1:10911"
    );
    for text in [
        r#"{"offsetTable":{"T@g":{0:5}}}"#,
        r#"{"offsetTable":{"T@g":{"0":5}}}"#,
    ] {
        let offsets: body::ConsumerOffsetSerializeWrapper = body::decode(text.as_bytes()).unwrap();
        assert_eq!(offsets.offset_table["T@g"][&0], 5);
    }
    assert!(body::decode::<body::KvTable>(br#"{"table":{"a":{}}}"#).is_err());
    assert!(body::decode::<body::KvTable>(b"\xff").is_err());
}

#[test]
fn a_frame_is_found_wherever_the_stream_is_cut() {
    let mut command = route_request();
    command.body = Bytes::from_static(b"body");
    let one = to_bytes(&command);
    let stream = [&one[..], &one[..]].concat();
    for cut in 0..stream.len() {
        let mut buffer = BytesMut::from(&stream[..cut]);
        let mut seen = 0;
        while let Some(read) = frame::decode(&mut buffer).unwrap() {
            assert_eq!(read, command);
            seen += 1;
        }
        assert_eq!(seen, cut / one.len());
        buffer.extend_from_slice(&stream[cut..]);
        while frame::decode(&mut buffer).unwrap().is_some() {
            seen += 1;
        }
        assert_eq!(seen, 2);
    }
}

#[test]
fn the_head_alone_leaves_room_for_the_body() {
    let mut command = route_request();
    command.body = Bytes::from_static(b"body");
    let mut head = BytesMut::new();
    frame::encode_head(&command, 4, &mut head);
    head.extend_from_slice(b"body");
    assert_eq!(head, to_bytes(&command));
}

#[test]
fn headers_with_too_many_fields_or_too_much_text_are_refused() {
    let mut command = route_request();
    for number in 0..crate::limits::EXT_FIELDS_MAX {
        command.ext_fields.insert(&format!("field{number}"), number);
    }
    for serialize in [SerializeType::Json, SerializeType::RocketMq] {
        command.serialize = serialize;
        let error = frame::decode(&mut BytesMut::from(&to_bytes(&command)[..])).unwrap_err();
        assert_eq!(error.to_string(), "the header has more than 1024 extFields");
    }
    let long = RemotingCommand::request(1).with_remark("x".repeat(crate::limits::HEADER_BYTES_MAX));
    let error = frame::decode(&mut BytesMut::from(&to_bytes(&long)[..])).unwrap_err();
    assert!(matches!(error, frame::FrameError::HeaderLength { .. }));
}

#[test]
fn binary_headers_cut_large_codes_as_java_does() {
    let mut command = RemotingCommand::request(RequestCode::POP_MESSAGE);
    command.serialize = SerializeType::RocketMq;
    assert_eq!(decode_one(&to_bytes(&command)).code, 3442);
}

proptest! {
    #[test]
    fn commands_survive_both_encodings(
        code in 0..32767_i32,
        opaque: i32,
        remark in proptest::option::of("\\PC{1,20}"),
        fields in proptest::collection::btree_map("[a-zA-Z]{1,8}", "\\PC{1,12}", 0..8),
        payload: Vec<u8>,
        binary: bool,
    ) {
        let mut command = RemotingCommand::request(RequestCode(code));
        command.opaque = opaque;
        command.remark = remark;
        for (key, value) in &fields {
            command.ext_fields.insert(key, value);
        }
        command.body = Bytes::from(payload);
        command.serialize = if binary { SerializeType::RocketMq } else { SerializeType::Json };
        prop_assert_eq!(decode_one(&to_bytes(&command)), command);
    }

    #[test]
    fn damaged_frames_are_read_or_refused_without_panic(
        at in 0..200_usize,
        byte: u8,
        binary: bool,
    ) {
        let mut command = route_request().with_ext("k", "v").with_remark("why");
        command.serialize = if binary { SerializeType::RocketMq } else { SerializeType::Json };
        let mut buffer = BytesMut::from(&to_bytes(&command)[..]);
        let at = at % buffer.len();
        buffer[at] = byte;
        let _ = frame::decode(&mut buffer);
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let mut buffer = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = frame::decode(&mut buffer) {}
        let _ = body::decode::<body::HeartbeatData>(&bytes);
        let bytes = Bytes::from(bytes);
        let _ = crate::message::MessageRecord::decode(&bytes);
        let _: Vec<_> = crate::batch::items(&bytes).collect();
    }
}
