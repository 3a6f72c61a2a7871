//! The topics that every broker has: created by a new leader, not for clients to change.

use std::time::Duration;

use raftmq_remoting::{ResponseCode, body::TopicConfig, name};
use raftmq_state::{Command, limits::QUEUES_PER_TOPIC_MAX};
use tokio::time::sleep;

use super::{PERM_ALL, PERM_READ_WRITE};
use crate::{
    broker::Broker,
    handler::{Refusal, propose},
};

/// Delay levels of RocketMQ; the schedule topic has a queue for each.
const SCHEDULE_QUEUES: usize = 18;
/// Pause before the system topics are tried again.
const CREATE_RETRY: Duration = Duration::from_secs(1);

/// Creates the topics that every broker has, those that are absent. Called by a new leader; goes
/// on until they are there or this node does not lead any more.
pub(crate) async fn create_system_topics(broker: &Broker) {
    while broker.is_serving() {
        // Proposed together, so that they share an entry of the log.
        let proposals = missing_system_topics(broker).into_iter();
        let proposals = proposals.map(|command| propose(broker, command));
        match futures::future::try_join_all(proposals).await {
            Ok(_) => return,
            Err(refusal) => tracing::warn!(remark = refusal.remark, "create system topics"),
        }
        sleep(CREATE_RETRY).await;
    }
}

fn missing_system_topics(broker: &Broker) -> Vec<Command> {
    let state = broker.machine.state();
    let enough = |wanted: &TopicConfig| {
        state.topic(&wanted.topic_name).is_some_and(|topic| {
            // More delay levels than before need more queues; other topics stay as they are.
            wanted.topic_name != name::SCHEDULE_TOPIC
                || topic.queues.len() >= wanted.write_queue_nums as usize
        })
    };
    let missing = system_topic_configs(broker)
        .into_iter()
        .filter(|wanted| !enough(wanted));
    missing
        .map(|config| {
            let only_if_absent = config.topic_name != name::SCHEDULE_TOPIC;
            Command::PutTopic {
                config,
                only_if_absent,
            }
        })
        .collect()
}

/// The system topics of this broker with RocketMQ's queues and permissions.
pub(super) fn system_topic_configs(broker: &Broker) -> Vec<TopicConfig> {
    let config = &broker.config;
    let cluster = &config.cluster_name;
    let levels = config.message_delay_levels.len().max(SCHEDULE_QUEUES);
    let row = |topic: &str, queues| TopicConfig::new(topic, queues, PERM_READ_WRITE);
    let mut rows = vec![
        row(name::SELF_TEST_TOPIC, 1),
        row(name::BENCHMARK_TOPIC, 1024),
        TopicConfig {
            perm: PERM_ALL,
            ..row(cluster, 16)
        },
        TopicConfig {
            perm: PERM_ALL,
            ..row(&config.broker_name, 1)
        },
        row(name::OFFSET_MOVED_EVENT, 1),
        row(
            name::SCHEDULE_TOPIC,
            u32::try_from(levels).unwrap_or(QUEUES_PER_TOPIC_MAX),
        ),
        row(&name::reply_topic(cluster), 1),
        row(name::TRANSACTION_HALF_TOPIC, 1),
        row(name::TRANSACTION_OP_TOPIC, 1),
        row(name::TRANSACTION_CHECK_MAX_TOPIC, 1),
        row(name::CHECKPOINT_TOPIC, 1),
        row(name::TIMER_TOPIC, 1),
        row(
            &format!("{}REVIVE_LOG_{cluster}", name::SYSTEM_TOPIC_PREFIX),
            8,
        ),
    ];
    if config.auto_create_topic {
        let model = row(name::AUTO_CREATE_TOPIC, config.default_topic_queue_nums);
        rows.push(TopicConfig {
            perm: PERM_ALL,
            ..model
        });
    }
    if config.trace_topic_enable {
        rows.push(row(&config.trace_topic_name, 1));
    }
    rows
}

/// Refuses to change or delete a topic of the system.
pub(super) fn refuse_system_topic(broker: &Broker, topic: &str) -> Result<(), Refusal> {
    let config = &broker.config;
    let own = [
        &config.cluster_name,
        &config.broker_name,
        &config.trace_topic_name,
    ];
    let is_own = own.iter().any(|system| *system == topic)
        || *topic == name::reply_topic(&config.cluster_name);
    if is_own || name::is_system_topic(topic) {
        let remark = format!("The topic[{topic}] is conflict with system topic.");
        return Err(Refusal::new(ResponseCode::INVALID_PARAMETER, remark));
    }
    Ok(())
}
