//! For `raftmq::fuzzing`: what a name server is sent, and what it keeps.

use std::{io::Write, path::PathBuf};

use bytes::BytesMut;
use flate2::{Compression, write::ZlibEncoder};
use raftmq_remoting::{
    body::{RegisterBrokerBody, TopicConfig},
    frame,
};

use super::{
    kv_config::KvConfig,
    register_body,
    requests::Request,
    route_table::{ConnectionId, RouteTable},
    state::State,
};
use raftmq_config::{NamesrvConfig, Surroundings};

/// Requests of one connection in a row, each answered; how many were understood.
#[must_use]
pub fn namesrv_requests(bytes: &[u8]) -> usize {
    let surroundings = Surroundings {
        home: PathBuf::from("/home/u"),
        host_name: "machine".to_owned(),
        local_ip: "10.0.0.7".to_owned(),
    };
    let mut state = State {
        table: RouteTable::default(),
        kv: KvConfig::default(),
        kv_changes: 0,
        config: NamesrvConfig::defaults(&surroundings),
    };
    let (mut buffer, mut understood) = (BytesMut::from(bytes), 0);
    while let Ok(Some(command)) = frame::decode(&mut buffer) {
        if let Ok(request) = Request::decode(&command, ConnectionId(1)) {
            understood += 1;
            // A refusal is an answer, too.
            let _ = state.answer(request, understood);
        }
    }
    usize::try_from(understood).unwrap_or(usize::MAX)
}

/// The body of a registration, in the plain and, if it reads as that, in the compressed form; and
/// the bytes as what is inside a compressed one.
#[must_use]
pub fn register_body(bytes: &[u8]) -> usize {
    let mut topics = register_body::count_topics(bytes, false);
    topics += register_body::count_topics(bytes, true);
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    if encoder.write_all(bytes).is_ok()
        && let Ok(compressed) = encoder.finish()
    {
        topics += register_body::count_topics(&compressed, true);
    }
    topics
}

/// A body as our registrar sends it, compressed or not.
#[must_use]
pub fn register_body_example(compressed: bool) -> Vec<u8> {
    let mut body = RegisterBrokerBody::default();
    let table = &mut body.topic_config_serialize_wrapper.topic_config_table;
    for topic in ["T", "U"] {
        table.insert(topic.to_owned(), TopicConfig::new(topic, 4, 6));
    }
    if compressed {
        register_body::deflate(&body).unwrap_or_default()
    } else {
        raftmq_remoting::body::encode(&body).to_vec()
    }
}

/// The file of the key-value configuration.
#[must_use]
pub fn kv_config(bytes: &[u8]) -> Option<Vec<u8>> {
    let config: KvConfig = serde_json::from_slice(bytes).ok()?;
    serde_json::to_vec(&config).ok()
}
