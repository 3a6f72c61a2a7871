//! Names of topics and groups: what is legal, what belongs to the system, what is derived.

use crate::limits::{GROUP_BYTES_MAX, RETRY_TOPIC_BYTES_MAX, TOPIC_BYTES_MAX};

/// Template of automatically created topics.
pub const AUTO_CREATE_TOPIC: &str = "TBW102";
/// Where delayed messages wait; queueId = delay level - 1.
pub const SCHEDULE_TOPIC: &str = "SCHEDULE_TOPIC_XXXX";
/// Topic of load generators.
pub const BENCHMARK_TOPIC: &str = "BenchmarkTest";
/// Where half messages wait.
pub const TRANSACTION_HALF_TOPIC: &str = "RMQ_SYS_TRANS_HALF_TOPIC";
/// Outcomes of half messages.
pub const TRANSACTION_OP_TOPIC: &str = "RMQ_SYS_TRANS_OP_HALF_TOPIC";
/// Half messages that were checked too often.
pub const TRANSACTION_CHECK_MAX_TOPIC: &str = "TRANS_CHECK_MAX_TIME_TOPIC";
/// Message traces of clients.
pub const TRACE_TOPIC: &str = "RMQ_SYS_TRACE_TOPIC";
/// Topic of self tests.
pub const SELF_TEST_TOPIC: &str = "SELF_TEST_TOPIC";
/// Events of moved offsets.
pub const OFFSET_MOVED_EVENT: &str = "OFFSET_MOVED_EVENT";
/// Checkpoint topic of the proxy.
pub const CHECKPOINT_TOPIC: &str = "CHECKPOINT_TOPIC";
/// Where timer messages wait.
pub const TIMER_TOPIC: &str = "rmq_sys_wheel_timer";
/// Prefix of further system topics.
pub const SYSTEM_TOPIC_PREFIX: &str = "rmq_sys_";
/// Prefix of retry topics.
pub const RETRY_PREFIX: &str = "%RETRY%";
/// Prefix of dead-letter topics.
pub const DLQ_PREFIX: &str = "%DLQ%";
/// Prefix of light queues.
pub const LMQ_PREFIX: &str = "%LMQ%";
/// Prefix of the broker's own consumer groups.
pub const SYSTEM_GROUP_PREFIX: &str = "CID_RMQ_SYS_";

const SYSTEM_TOPICS: [&str; 10] = [
    AUTO_CREATE_TOPIC,
    SCHEDULE_TOPIC,
    BENCHMARK_TOPIC,
    TRANSACTION_HALF_TOPIC,
    TRANSACTION_OP_TOPIC,
    TRACE_TOPIC,
    TRANSACTION_CHECK_MAX_TOPIC,
    SELF_TEST_TOPIC,
    OFFSET_MOVED_EVENT,
    CHECKPOINT_TOPIC,
];

const SEND_FORBIDDEN_TOPICS: [&str; 6] = [
    SCHEDULE_TOPIC,
    TRANSACTION_HALF_TOPIC,
    TRANSACTION_OP_TOPIC,
    TRANSACTION_CHECK_MAX_TOPIC,
    SELF_TEST_TOPIC,
    OFFSET_MOVED_EVENT,
];

const SYSTEM_GROUPS: [&str; 11] = [
    "DEFAULT_CONSUMER",
    "DEFAULT_PRODUCER",
    "TOOLS_CONSUMER",
    "SCHEDULE_CONSUMER",
    "FILTERSRV_CONSUMER",
    "__MONITOR_CONSUMER",
    "CLIENT_INNER_PRODUCER",
    "SELF_TEST_C_GROUP",
    "SELF_TEST_P_GROUP",
    "CID_ONS-HTTP-PROXY",
    "CID_RMQ_SYS_TRANS",
];

/// Why a name is refused. Its text is a sentence fit for a remark.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing but white space.
    #[error("the specified {what} is blank")]
    Blank {
        /// `topic` or `group`.
        what: &'static str,
    },
    /// Too long.
    #[error("the specified {what} is longer than {bytes_max} bytes")]
    TooLong {
        /// `topic` or `group`.
        what: &'static str,
        /// The most.
        bytes_max: usize,
    },
    /// A character is not allowed.
    #[error("the specified {what} contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$")]
    IllegalCharacter {
        /// `topic` or `group`.
        what: &'static str,
    },
}

/// Whether `topic` may be the name of a topic. Retry and dead-letter topics may be longer.
///
/// # Errors
/// [`NameError`].
pub fn check_topic(topic: &str) -> Result<(), NameError> {
    let derived = topic.starts_with(RETRY_PREFIX) || topic.starts_with(DLQ_PREFIX);
    check(
        "topic",
        topic,
        if derived {
            RETRY_TOPIC_BYTES_MAX
        } else {
            TOPIC_BYTES_MAX
        },
    )
}

/// Whether `group` may be the name of a producer or consumer group.
///
/// # Errors
/// [`NameError`].
pub fn check_group(group: &str) -> Result<(), NameError> {
    check("group", group, GROUP_BYTES_MAX)
}

fn check(what: &'static str, name: &str, bytes_max: usize) -> Result<(), NameError> {
    if name.trim().is_empty() {
        return Err(NameError::Blank { what });
    }
    let legal =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'%' | b'|' | b'_' | b'-');
    if !name.bytes().all(legal) {
        return Err(NameError::IllegalCharacter { what });
    }
    if name.len() > bytes_max {
        return Err(NameError::TooLong { what, bytes_max });
    }
    Ok(())
}

/// Whether `topic` belongs to the system: clients cannot create or delete it.
#[must_use]
pub fn is_system_topic(topic: &str) -> bool {
    SYSTEM_TOPICS.contains(&topic) || topic.starts_with(SYSTEM_TOPIC_PREFIX)
}

/// Names of the system topics every broker knows.
#[must_use]
pub fn system_topics() -> &'static [&'static str] {
    &SYSTEM_TOPICS
}

/// Whether clients are refused to send to `topic`.
#[must_use]
pub fn is_send_forbidden(topic: &str) -> bool {
    SEND_FORBIDDEN_TOPICS.contains(&topic)
}

/// Whether `group` belongs to the system: it needs no configuration and cannot be deleted.
#[must_use]
pub fn is_system_group(group: &str) -> bool {
    SYSTEM_GROUPS.contains(&group)
        || group.starts_with(SYSTEM_GROUP_PREFIX)
        || group.starts_with("CID_ONSAPI_")
}

/// Topic of messages that `group` gets again.
#[must_use]
pub fn retry_topic(group: &str) -> String {
    format!("{RETRY_PREFIX}{group}")
}

/// Topic of messages that `group` gave up on.
#[must_use]
pub fn dlq_topic(group: &str) -> String {
    format!("{DLQ_PREFIX}{group}")
}

/// Pop retry topic of `group` for `topic`, first naming.
#[must_use]
pub fn pop_retry_topic_v1(topic: &str, group: &str) -> String {
    format!("{RETRY_PREFIX}{group}_{topic}")
}

/// Pop retry topic of `group` for `topic`, second naming.
#[must_use]
pub fn pop_retry_topic_v2(topic: &str, group: &str) -> String {
    format!("{RETRY_PREFIX}{group}+{topic}")
}

/// Topic of replies in `cluster`.
#[must_use]
pub fn reply_topic(cluster: &str) -> String {
    format!("{cluster}_REPLY_TOPIC")
}

/// Whether `topic` is a retry topic.
#[must_use]
pub fn is_retry_topic(topic: &str) -> bool {
    topic.starts_with(RETRY_PREFIX)
}

/// Whether `topic` is a dead-letter topic.
#[must_use]
pub fn is_dlq_topic(topic: &str) -> bool {
    topic.starts_with(DLQ_PREFIX)
}

/// Group whose retry topic `topic` is.
#[must_use]
pub fn group_of_retry_topic(topic: &str) -> Option<&str> {
    topic
        .strip_prefix(RETRY_PREFIX)
        .filter(|group| !group.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_names_are_legal_and_lead_back_to_the_group() {
        let group = "g".repeat(GROUP_BYTES_MAX);
        assert_eq!(check_group(&group), Ok(()));
        assert_eq!(check_topic(&retry_topic(&group)), Ok(()));
        assert_eq!(check_topic(&dlq_topic(&group)), Ok(()));
        assert_eq!(
            group_of_retry_topic(&retry_topic(&group)),
            Some(group.as_str())
        );
        assert_eq!(group_of_retry_topic(&dlq_topic(&group)), None);
        assert_eq!(group_of_retry_topic(RETRY_PREFIX), None);
    }

    #[test]
    fn illegal_names_are_refused_with_a_reason() {
        assert_eq!(check_topic("a%b|c_d-9"), Ok(()));
        assert_eq!(check_topic(" "), Err(NameError::Blank { what: "topic" }));
        for bad in ["a b", "a.b", "a/b", "täg", "a\n", "a+b"] {
            assert_eq!(
                check_topic(bad),
                Err(NameError::IllegalCharacter { what: "topic" })
            );
        }
        assert!(matches!(
            check_topic(&"t".repeat(128)),
            Err(NameError::TooLong { .. })
        ));
        assert!(matches!(
            check_group(&"g".repeat(121)),
            Err(NameError::TooLong { .. })
        ));
    }

    #[test]
    fn system_names_are_known() {
        assert!(is_system_topic("TBW102") && is_system_topic("rmq_sys_REVIVE_LOG_C"));
        assert!(!is_system_topic("%RETRY%g") && !is_system_topic("T"));
        assert!(is_send_forbidden(SCHEDULE_TOPIC) && !is_send_forbidden(AUTO_CREATE_TOPIC));
        assert!(is_system_group("CID_RMQ_SYS_X") && !is_system_group("g"));
    }
}
