//! Topics: 17 and 18 create or change, 215 delete, 21, 351 and 305 read; creation on demand by
//! sends, and the system topics of a new group.

mod attributes;
mod system;

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use raftmq_remoting::{
    ExtFields, ResponseCode,
    body::{
        self, DataVersion, RegisterBrokerBody, TopicConfig, TopicConfigSerializeWrapper, TopicList,
    },
    name,
};
use raftmq_state::{Command, State, limits::QUEUES_PER_TOPIC_MAX};
use serde::Deserialize;

pub(super) use self::attributes::{marked, marked_change};
pub(crate) use self::system::create_system_topics;
use self::{
    attributes::{checked_changes, parse_change},
    system::{refuse_system_topic, system_topic_configs},
};
use super::{Handled, Refusal, Request, propose, success};
use crate::broker::Broker;

/// Read and write.
const PERM_READ_WRITE: i32 = 6;
/// Topics may be created after the model of this one.
const PERM_INHERIT: i32 = 1;
/// Every permission bit.
const PERM_ALL: i32 = PERM_READ_WRITE | PERM_INHERIT;
/// Topics that are read at a time for the name servers; entries of the log are applied in between.
const REGISTERED_TOPICS_STEP: usize = 512;
/// Rows of one page when a table is asked for in pages. Source: RocketMQ `splitMetadataSize`.
const PAGE_ROWS_MAX: usize = 2000;

/// Creates `topic` for a send, after the model of `default_topic`, if the rules allow it. Nothing
/// to do when it exists.
pub(crate) async fn ensure_topic_for_send(
    broker: &Broker,
    topic: &str,
    default_topic: &str,
    default_queue_nums: i32,
) -> Result<(), Refusal> {
    let config = {
        let state = broker.machine.state();
        if state.topic(topic).is_some() {
            return Ok(());
        }
        let auto_create = broker.config.auto_create_topic;
        on_demand(
            &state,
            topic,
            default_topic,
            default_queue_nums,
            auto_create,
        )
    };
    match config {
        Some(config) => ensure_topic(broker, config).await,
        None => Err(Refusal::topic_not_exist(topic)),
    }
}

/// Creates a topic unless one of its name exists.
pub(crate) async fn ensure_topic(broker: &Broker, config: TopicConfig) -> Result<(), Refusal> {
    if broker.machine.state().topic(&config.topic_name).is_some() {
        return Ok(());
    }
    propose(
        broker,
        Command::PutTopic {
            config,
            only_if_absent: true,
        },
    )
    .await
    .map(|_| ())
}

/// The topics as they are registered at the name servers. What changes while they are read may be
/// in it or not; the version is that of the beginning.
pub(crate) fn topics_wrapper(broker: &Broker) -> RegisterBrokerBody {
    let mut wrapper = TopicConfigSerializeWrapper {
        data_version: data_version(broker.machine.state().topic_version()),
        ..TopicConfigSerializeWrapper::default()
    };
    let table = &mut wrapper.topic_config_table;
    let mut last = String::new();
    loop {
        let before = table.len();
        let state = broker.machine.state();
        let topics = state.topics_after(&last).take(REGISTERED_TOPICS_STEP);
        table.extend(topics.map(|topic| {
            let config = registered_config(broker, &topic.config);
            (config.topic_name.clone(), config)
        }));
        drop(state);
        match table.last_key_value() {
            Some((name, _)) if table.len() > before => last.clone_from(name),
            _ => break,
        }
    }
    RegisterBrokerBody {
        filter_server_list: Vec::new(),
        topic_config_serialize_wrapper: wrapper,
    }
}

/// These topics as they are registered at the name servers; `None`: one of them does not exist.
pub(crate) fn registered_configs(
    broker: &Broker,
    names: &BTreeSet<String>,
) -> Option<Vec<TopicConfig>> {
    let state = broker.machine.state();
    let configs = names.iter().map(|name| {
        let topic = state.topic(name)?;
        Some(registered_config(broker, &topic.config))
    });
    configs.collect()
}

/// A topic that this broker may not serve fully is registered with less.
fn registered_config(broker: &Broker, config: &TopicConfig) -> TopicConfig {
    let allowed = i32::try_from(broker.config.broker_permission).unwrap_or(PERM_READ_WRITE);
    let mut config = config.clone();
    if allowed & PERM_READ_WRITE != PERM_READ_WRITE {
        config.perm &= allowed;
    }
    config
}

/// 17: creates a topic or changes its configuration.
pub(super) async fn update(broker: &Arc<Broker>, request: &Request) -> Handled {
    let fields = &request.command.ext_fields;
    let topic = fields.required_str("topic")?;
    check_name(broker, topic)?;
    fields.required_str("defaultTopic")?;
    let attributes = fields.get("attributes").unwrap_or_default();
    let changes = attributes
        .split(',')
        .map(str::trim)
        .filter(|change| !change.is_empty());
    let changes = changes.map(parse_change).collect::<Result<Vec<_>, _>>()?;
    let config = TopicConfig {
        attributes: checked_changes(changes)?,
        order: fields.required_bool("order")?,
        perm: fields.required_i32("perm")?,
        read_queue_nums: queue_count(fields.required_i32("readQueueNums")?)?,
        topic_filter_type: fields.required_str("topicFilterType")?.to_owned(),
        topic_name: topic.to_owned(),
        topic_sys_flag: fields.optional_i32("topicSysFlag")?.unwrap_or(0),
        write_queue_nums: queue_count(fields.required_i32("writeQueueNums")?)?,
    };
    check_config(&config)?;
    change(broker, config).await?;
    Ok(success(request))
}

/// Body of 18.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TopicConfigList {
    topic_config_list: Vec<TopicConfig>,
}

/// 18: as 17 for many topics; all are checked before the first is changed.
pub(super) async fn update_list(broker: &Arc<Broker>, request: &Request) -> Handled {
    let list: TopicConfigList = body::decode(&request.command.body)?;
    let mut configs = Vec::with_capacity(list.topic_config_list.len());
    for mut config in list.topic_config_list {
        check_name(broker, &config.topic_name)?;
        let changes = std::mem::take(&mut config.attributes)
            .into_iter()
            .map(marked_change);
        config.attributes = checked_changes(changes.collect())?;
        queue_count(i32::try_from(config.read_queue_nums).unwrap_or(-1))?;
        queue_count(i32::try_from(config.write_queue_nums).unwrap_or(-1))?;
        check_config(&config)?;
        configs.push(config);
    }
    let proposals = configs.into_iter().map(|config| change(broker, config));
    futures::future::try_join_all(proposals).await?;
    Ok(success(request))
}

/// 215: deletes a topic with its messages, consumer offsets and pop retry topics.
pub(super) async fn delete(broker: &Arc<Broker>, request: &Request) -> Handled {
    let topic = request.command.ext_fields.required_str("topic")?;
    if topic.trim().is_empty() {
        return Err(Refusal::new(
            ResponseCode::SYSTEM_ERROR,
            "The specified topic is blank.",
        ));
    }
    refuse_system_topic(broker, topic)?;
    let doomed: Vec<String> = {
        let state = broker.machine.state();
        let of_groups = state.groups_of_topic(topic).flat_map(|group| {
            [
                name::pop_retry_topic_v1(topic, group),
                name::pop_retry_topic_v2(topic, group),
            ]
        });
        let retry = of_groups.filter(|retry| state.topic(retry).is_some());
        retry.chain([topic.to_owned()]).collect()
    };
    for topic in doomed {
        propose(broker, Command::DeleteTopic { topic }).await?;
    }
    Ok(success(request))
}

/// 21: the configuration of all topics, or of a page of them.
pub(super) fn all(broker: &Arc<Broker>, request: &Request) -> Handled {
    let state = broker.machine.state();
    let version = data_version(state.topic_version());
    let page = page(
        &request.command.ext_fields,
        "topicSeq",
        "maxTopicNum",
        &version,
    )?;
    let wrapper = wrapper_of(&state, page);
    let total = state.topics().count();
    drop(state);
    Ok(success(request)
        .with_ext("totalTopicNum", total)
        .with_body(body::encode(&wrapper)))
}

/// 351: the configuration of one topic.
pub(super) fn get(broker: &Arc<Broker>, request: &Request) -> Handled {
    let topic = request.command.ext_fields.required_str("topic")?;
    let config = broker
        .machine
        .state()
        .topic(topic)
        .map(|topic| topic.config.clone());
    let Some(config) = config else {
        let remark = format!("No topic in this broker. topic: {topic}");
        return Err(Refusal::new(ResponseCode::TOPIC_NOT_EXIST, remark));
    };
    Ok(success(request).with_body(body::encode(&config)))
}

/// 305: names of the system topics.
pub(super) fn system_topics(broker: &Arc<Broker>, request: &Request) -> Handled {
    let mut topics: Vec<String> = system_topic_configs(broker)
        .into_iter()
        .map(|config| config.topic_name)
        .collect();
    topics.extend(
        name::system_topics()
            .iter()
            .map(|topic| (*topic).to_owned()),
    );
    topics.sort_unstable();
    topics.dedup();
    let list = TopicList {
        broker_addr: None,
        topic_list: topics,
    };
    Ok(success(request).with_body(body::encode(&list)))
}

/// The rows that a request for a table in pages wants; `None`: it wants the whole table. Begins
/// anew when the table has changed since the page before.
pub(super) fn page(
    fields: &ExtFields,
    begin: &str,
    most: &str,
    version: &DataVersion,
) -> Result<Option<Range<usize>>, Refusal> {
    let Some(begin) = fields.optional_i32(begin)? else {
        return Ok(None);
    };
    let seen = fields
        .get("dataVersion")
        .filter(|seen| !seen.trim().is_empty());
    let changed = match seen.map(|seen| body::decode::<DataVersion>(seen.as_bytes())) {
        Some(seen) => seen? != *version,
        None => false,
    };
    let begin = if changed {
        0
    } else {
        usize::try_from(begin).unwrap_or(0)
    };
    let rows = fields
        .optional_i32(most)?
        .and_then(|rows| usize::try_from(rows).ok());
    let rows = rows
        .filter(|rows| *rows > 0)
        .unwrap_or(PAGE_ROWS_MAX)
        .min(PAGE_ROWS_MAX);
    Ok(Some(begin..begin.saturating_add(rows)))
}

/// A version of the state as it goes over the wire.
pub(super) fn data_version(version: raftmq_state::DataVersion) -> DataVersion {
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    DataVersion {
        counter: signed(version.counter),
        state_version: signed(version.state_version),
        timestamp: signed(version.timestamp_ms),
    }
}

fn wrapper_of(state: &State, page: Option<Range<usize>>) -> TopicConfigSerializeWrapper {
    let page = page.unwrap_or(0..usize::MAX);
    let rows = state.topics().skip(page.start).take(page.len());
    TopicConfigSerializeWrapper {
        data_version: data_version(state.topic_version()),
        topic_config_table: rows
            .map(|topic| (topic.config.topic_name.clone(), topic.config.clone()))
            .collect(),
    }
}

/// Configuration of a topic that a send found missing; `None` when it may not be created.
fn on_demand(
    state: &State,
    topic: &str,
    default_topic: &str,
    default_queue_nums: i32,
    auto_create: bool,
) -> Option<TopicConfig> {
    if let Some(group) = name::group_of_retry_topic(topic) {
        let queues = state
            .group(group)
            .map_or(1, |group| group.retry_queue_nums.max(1));
        return Some(TopicConfig::new(
            topic,
            queues.unsigned_abs(),
            PERM_READ_WRITE,
        ));
    }
    if name::is_dlq_topic(topic) {
        return Some(TopicConfig::new(topic, 1, PERM_READ_WRITE));
    }
    if default_topic == name::AUTO_CREATE_TOPIC && !auto_create {
        return None;
    }
    let model = &state.topic(default_topic)?.config;
    if model.perm & PERM_INHERIT == 0 {
        return None;
    }
    let queues = u32::try_from(default_queue_nums)
        .unwrap_or(0)
        .min(model.write_queue_nums)
        .max(1);
    Some(TopicConfig {
        topic_filter_type: model.topic_filter_type.clone(),
        ..TopicConfig::new(topic, queues, model.perm & !PERM_INHERIT)
    })
}

fn check_name(broker: &Broker, topic: &str) -> Result<(), Refusal> {
    name::check_topic(topic)
        .map_err(|error| Refusal::new(ResponseCode::INVALID_PARAMETER, error.to_string()))?;
    refuse_system_topic(broker, topic)
}

fn check_config(config: &TopicConfig) -> Result<(), Refusal> {
    let invalid = |remark: String| Err(Refusal::new(ResponseCode::INVALID_PARAMETER, remark));
    if !(0..=PERM_ALL).contains(&config.perm) {
        return invalid(format!(
            "perm {} is not a sum of 4 read, 2 write, 1 inherit",
            config.perm
        ));
    }
    let filter = config.topic_filter_type.as_str();
    if !matches!(filter, "SINGLE_TAG" | "MULTI_TAG") {
        return invalid(format!(
            "topicFilterType must be SINGLE_TAG or MULTI_TAG, not '{filter}'"
        ));
    }
    Ok(())
}

fn queue_count(count: i32) -> Result<u32, Refusal> {
    u32::try_from(count)
        .ok()
        .filter(|count| *count <= QUEUES_PER_TOPIC_MAX)
        .ok_or_else(|| {
            let remark = format!("a topic has 0 to {QUEUES_PER_TOPIC_MAX} queues, not {count}");
            Refusal::new(ResponseCode::INVALID_PARAMETER, remark)
        })
}

/// Puts a checked configuration, its attributes as changes of those that are there when it is
/// applied. One that changes nothing costs no entry of the log.
async fn change(broker: &Broker, config: TopicConfig) -> Result<(), Refusal> {
    // Looked at again when the leadership is confirmed: until then another may have led, and have
    // made this true or false.
    let changes_nothing = || broker.machine.state().has_topic_as(&config);
    if changes_nothing() && broker.serves_for_certain().await && changes_nothing() {
        return Ok(());
    }
    let changed = propose(broker, Command::ChangeTopic { config }).await;
    changed.map(|_| ())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use raftmq_remoting::body::SubscriptionGroupConfig;
    use raftmq_state::{EntryPosition, Output, PayloadBuilder};

    use super::*;

    fn state_with(commands: &[Command]) -> State {
        let mut payload = PayloadBuilder::new(1);
        for command in commands {
            payload.push(&command.encode());
        }
        let mut state = State::new();
        let at = EntryPosition {
            index: 1,
            payload_physical_offset: 0,
        };
        let payload: Bytes = payload.finish();
        state.apply(at, &payload, &mut Output::default()).unwrap();
        state
    }

    fn topic(topic: &str, queues: u32, perm: i32) -> Command {
        let config = TopicConfig::new(topic, queues, perm);
        Command::PutTopic {
            config,
            only_if_absent: false,
        }
    }

    #[test]
    fn a_topic_is_created_after_its_model_only_when_allowed() {
        let state = state_with(&[topic("TBW102", 8, 7), topic("plain", 8, 6)]);
        let created = on_demand(&state, "T", "TBW102", 4, true).unwrap();
        assert_eq!(created, TopicConfig::new("T", 4, 6));
        let most = on_demand(&state, "T", "TBW102", 100, true).unwrap();
        assert_eq!(most.write_queue_nums, 8);
        assert_eq!(on_demand(&state, "T", "TBW102", 4, false), None);
        assert_eq!(on_demand(&state, "T", "plain", 4, true), None);
        assert_eq!(on_demand(&state, "T", "absent", 4, true), None);
    }

    #[test]
    fn retry_and_dead_letter_topics_need_no_model() {
        let config = SubscriptionGroupConfig {
            retry_queue_nums: 3,
            ..SubscriptionGroupConfig::new("g")
        };
        let state = state_with(&[Command::PutGroup {
            config,
            only_if_absent: false,
        }]);
        let retry = on_demand(&state, "%RETRY%g", "absent", 4, false).unwrap();
        assert_eq!(retry, TopicConfig::new("%RETRY%g", 3, 6));
        let dead = on_demand(&state, "%DLQ%g", "absent", 4, false).unwrap();
        assert_eq!(dead, TopicConfig::new("%DLQ%g", 1, 6));
    }

    #[test]
    fn a_page_begins_anew_when_the_table_changed() {
        let version = DataVersion {
            counter: 2,
            state_version: 0,
            timestamp: 5,
        };
        let mut fields = ExtFields::new();
        assert_eq!(
            page(&fields, "topicSeq", "maxTopicNum", &version).unwrap(),
            None
        );
        fields.insert("topicSeq", 2000);
        fields.insert("maxTopicNum", 500);
        fields.insert(
            "dataVersion",
            r#"{"counter":2,"stateVersion":0,"timestamp":5}"#,
        );
        assert_eq!(
            page(&fields, "topicSeq", "maxTopicNum", &version).unwrap(),
            Some(2000..2500)
        );
        fields.insert(
            "dataVersion",
            r#"{"counter":1,"stateVersion":0,"timestamp":5}"#,
        );
        assert_eq!(
            page(&fields, "topicSeq", "maxTopicNum", &version).unwrap(),
            Some(0..500)
        );
        fields.insert("maxTopicNum", -1);
        assert_eq!(
            page(&fields, "topicSeq", "maxTopicNum", &version).unwrap(),
            Some(0..2000)
        );
    }
}
