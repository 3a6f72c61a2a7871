//! JSON bodies, also in fastjson's own form.

use raftmq_remoting::body;

/// Reads the bytes as a body of each of these types: what was encoded means the same.
macro_rules! as_each {
    ($bytes:expr; $($body:ty),* $(,)?) => {$(
        if let Ok(read) = body::decode::<$body>($bytes) {
            let once = body::encode(&read);
            let again = body::decode::<$body>(&once).expect("what was encoded is read");
            assert_eq!(body::encode(&again), once, stringify!($body));
        }
    )*};
}

/// As [`as_each`], for bodies that are encoded in fastjson's form.
macro_rules! as_each_object_keyed {
    ($bytes:expr; $($body:ty),* $(,)?) => {$(
        if let Ok(read) = body::decode::<$body>($bytes) {
            let once = read.encode();
            let again = body::decode::<$body>(&once).expect("what was encoded is read");
            assert_eq!(again.encode(), once, stringify!($body));
        }
    )*};
}

/// A body of any type that a broker reads.
pub fn json_body(bytes: &[u8]) {
    as_each!(bytes;
        body::HeartbeatData,
        body::LockBatchRequest,
        body::CheckClientConfig,
        body::TopicConfig,
        body::SubscriptionGroupConfig,
        body::DataVersion,
        body::TopicRouteData,
        body::RegisterBrokerBody,
        body::ClusterInfo,
    );
    as_each_object_keyed!(bytes; body::ConsumeStats, body::TopicStatsTable, body::ResetOffsetBody);
}
