//! What is private to the broker: peers, configuration, the name server.

use std::path::PathBuf;

use raftmq::config::{BrokerConfig, NamesrvConfig, Surroundings};
use raftmq::fuzzing;

/// What a decoder makes of its own output is the same again.
pub fn settles(decode: impl Fn(&[u8]) -> Option<Vec<u8>>, bytes: &[u8]) {
    let Some(once) = decode(bytes) else { return };
    let again = decode(&once);
    assert_eq!(again, Some(once), "it means the same");
}

/// A frame between brokers, of any kind.
pub fn raft_frame(bytes: &[u8]) {
    settles(fuzzing::raft_frame, bytes);
}

/// A connection from a peer: a hello and frames behind it.
pub fn raft_connection(bytes: &[u8]) {
    assert!(fuzzing::raft_connection(bytes) <= bytes.len());
}

/// A properties file.
pub fn java_properties(bytes: &[u8]) {
    settles(fuzzing::java_properties, bytes);
}

/// `dLegerPeers`.
pub fn raft_peers(bytes: &[u8]) {
    settles(fuzzing::raft_peers, bytes);
}

fn surroundings() -> Surroundings {
    Surroundings {
        home: PathBuf::from("/home/u"),
        host_name: "machine".to_owned(),
        local_ip: "10.0.0.7".to_owned(),
    }
}

/// `broker.conf`: what a broker says it is configured with configures another one equally.
pub fn broker_config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok((config, _)) = BrokerConfig::parse_in(text, "f", &surroundings()) {
        let again = BrokerConfig::parse_in(&config.summary(), "f", &surroundings());
        assert_eq!(again.map(|(again, _)| again), Ok(config));
    }
}

/// `namesrv.conf`.
pub fn namesrv_config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok((config, _)) = NamesrvConfig::parse_in(text, "f", &surroundings()) {
        let again = NamesrvConfig::parse_in(&config.summary(), "f", &surroundings());
        assert_eq!(again.map(|(again, _)| again), Ok(config));
    }
}

/// Requests to a name server.
pub fn namesrv_requests(bytes: &[u8]) {
    assert!(fuzzing::namesrv_requests(bytes) <= bytes.len());
}

/// The body of a registration.
pub fn register_body(bytes: &[u8]) {
    // What the name server takes is at most what a registration may have; three readings.
    assert!(fuzzing::register_body(bytes) <= 3 * raftmq::limits::NAMESRV_TOPICS_PER_BROKER_MAX);
}

/// The key-value configuration.
pub fn kv_config(bytes: &[u8]) {
    settles(fuzzing::kv_config, bytes);
}
