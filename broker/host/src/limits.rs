//! Every limit of the process with its reason. Limits of the wire format itself are in
//! `raftmq_remoting::limits`; what an operator may change is in `config`.

use std::time::Duration;

// --- connections -----------------------------------------------------------------------------

/// Connections the kernel keeps waiting for `accept`. Source: Netty's default in RocketMQ, 1024.
pub const ACCEPT_BACKLOG: u32 = 1024;

/// Connections one listener serves at a time. A quiet one holds a read buffer of
/// [`READ_BUFFER_BYTES_FIRST`] and a task: about 10 KB, so a full house costs some 100 MB.
/// Reached: the new connection is closed at once and counted.
pub const CONNECTIONS_MAX: usize = 10_000;

/// Shortest time between two log lines about refused connections: whoever connects in a loop must
/// not fill the disk with them. A metric counts each.
pub const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Longest wait for a TCP connection, name resolution included. Source: RocketMQ's
/// `connectTimeoutMillis`, 3 s.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Silence after which a connection is closed. Source: RocketMQ's
/// `serverChannelMaxIdleTimeSeconds`, 120 s; clients send a heartbeat every 30 s.
pub const CONNECTION_IDLE_TIMEOUT: Duration = Duration::from_secs(120);

// --- frames ----------------------------------------------------------------------------------

/// Size of a connection's read buffer. One read then takes in a burst of small requests; larger
/// frames grow the buffer, and are the last in it.
pub const READ_BUFFER_BYTES_MIN: usize = 16 * 1024;

/// Size of the read buffer of a connection that was never sent more in one go: most connections of
/// ten thousand send a heartbeat now and then.
pub const READ_BUFFER_BYTES_FIRST: usize = 2 * 1024;

/// Part of a read buffer that is left when another takes its place. Small requests that arrive one
/// by one so fill at least three quarters of a buffer, which lives as long as their bodies.
pub const READ_SPARE_PART: usize = 4;

/// Longest time from the first bytes of a frame to its last, while it is read at all. The largest,
/// 16 MiB, then needs 4.5 Mbit/s; a client has given its send up long before, after 3 s.
pub const FRAME_TIMEOUT: Duration = Duration::from_secs(30);

/// Capacity of a write buffer that is kept between writes; a larger one is given back after a
/// burst, so that ten thousand idle connections hold little.
pub const WRITE_BUFFER_BYTES_KEPT: usize = 256 * 1024;

/// Capacity of a write buffer that is kept by a connection that has nothing to write.
pub const WRITE_BUFFER_BYTES_IDLE: usize = 4 * 1024;

/// How long a connection has nothing to write before it gives its buffers back. A consumer pulls
/// again at once, and does not pay for a new buffer each time.
pub const WRITE_BUFFER_IDLE_TIME: Duration = Duration::from_secs(1);

/// A connection whose peer takes not one byte for this long is closed.
pub const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Slowest peer that is written to, beside [`WRITE_STALL_TIMEOUT`]. Unit: bytes/s. A consumer gives
/// a pull up after 30 s, and a full answer has 256 KiB: half of this rate is the least of any use.
pub const WRITE_BYTES_PER_SECOND_MIN: usize = 16 * 1024;

/// Longest text of a request that changes the configuration: each unknown key in it is compared with
/// all known ones. Unit: bytes. All keys with their values take about 5 KiB.
pub const CONFIG_REQUEST_BYTES_MAX: usize = 64 * 1024;

// --- name server -----------------------------------------------------------------------------

/// Broker names one name server knows. A registration beyond it is refused with SYSTEM_ERROR.
pub const NAMESRV_BROKER_NAMES_MAX: usize = 10_000;

/// Addresses one broker name may have (RocketMQ brokers of a group: 1 master, few slaves).
pub const NAMESRV_ADDRESSES_PER_BROKER_MAX: usize = 64;

/// Topics one registration may carry. Source: a broker with 100 k topics registers a body of
/// about 16 MiB uncompressed, the largest frame.
pub const NAMESRV_TOPICS_PER_BROKER_MAX: usize = 200_000;

/// Rows (topic, broker name) that one name server holds: a hundred brokers with ten thousand topics
/// each. A row takes some 200 bytes. A registration beyond it is refused with SYSTEM_ERROR.
pub const NAMESRV_TOPIC_ROWS_MAX: usize = 1_000_000;

/// Longest name of a cluster, broker or topic, and longest address, in a registration. Unit: bytes.
/// Source: topics have at most 127 and a prefix; host names at most 253 and a port.
pub const NAMESRV_NAME_BYTES_MAX: usize = 260;

/// Bytes a compressed registration may inflate to; keeps a small body from filling the memory.
pub const NAMESRV_REGISTER_INFLATED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Keys the key-value configuration holds in all namespaces together: one for each globally ordered
/// topic.
pub const NAMESRV_KV_KEYS_MAX: usize = 100_000;

/// Longest namespace or key of the key-value configuration. Unit: bytes.
pub const NAMESRV_KV_NAME_BYTES_MAX: usize = 1024;

/// Longest value of the key-value configuration: the queues of a topic on a thousand brokers.
/// Unit: bytes.
pub const NAMESRV_KV_VALUE_BYTES_MAX: usize = 64 * 1024;

/// Namespaces, keys and values of the key-value configuration together. Unit: bytes. Every change
/// writes all of them, and anybody may ask for all of them at any time.
pub const NAMESRV_KV_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Longest wait for the answer of a name server to a registration. Source: RocketMQ's
/// `registerBrokerTimeoutMills`, 24 s; ours is shorter because the next try is cheap.
pub const NAMESRV_REGISTER_TIMEOUT: Duration = Duration::from_secs(6);

/// Wait before a failed registration is tried again.
pub const NAMESRV_REGISTER_RETRY: Duration = Duration::from_secs(1);

/// Longest time for taking a broker out of a name server, and for the answer to an unregistration;
/// it is part of the stop of the process.
pub const NAMESRV_UNREGISTER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a leader of the past waits before it registers as a follower, or leaves at a stop: the
/// next one registers meanwhile, so that the route is never without a master. A new leader needs
/// some milliseconds, with 10,000 topics on a busy machine 100; until then the old one forwards.
pub const NAMESRV_DEMOTION_PAUSE: Duration = Duration::from_millis(500);

/// Time in which changes of topics are gathered after some were told to the name servers: short for
/// who waits for a topic, long beside the few hundred microseconds that creating one takes. A change
/// after a longer pause goes out at once.
pub const NAMESRV_TOPICS_PAUSE: Duration = Duration::from_millis(50);

/// Pause for each topic between two registrations that send all topics because of a change: encoding
/// and reading them takes a few microseconds each, so this keeps both sides below a tenth of a core.
pub const NAMESRV_PAUSE_PER_TOPIC: Duration = Duration::from_micros(30);

/// Changes of topics that are kept to be told one by one; a name server that is further behind gets
/// all topics. A thousand take some 200 KB.
pub const NAMESRV_TOPIC_CHANGES_KEPT: usize = 1024;

/// Single topics that are told to one name server before it has answered: enough for 10,000 a second
/// at a round trip of some milliseconds.
pub const NAMESRV_TOPICS_IN_FLIGHT_MAX: usize = 64;

/// A registration above this is sent compressed: far below the largest frame, far above the
/// topics of most brokers. Unit: bytes.
pub const NAMESRV_PLAIN_REGISTRATION_BYTES_MAX: usize = 1024 * 1024;
