//! Clients and groups: 34 HEART_BEAT, 35 UNREGISTER_CLIENT, 38 GET_CONSUMER_LIST_BY_GROUP,
//! 46 CHECK_CLIENT_CONFIG, 203, 204 and 328 (connections), 307 and 309 (relayed to a client), and
//! 40 NOTIFY_CONSUMER_IDS_CHANGED towards clients.

use std::{sync::Arc, time::Duration};

use raftmq_remoting::{
    LanguageCode, RemotingCommand, RequestCode, ResponseCode,
    body::{
        self, CheckClientConfig, ConnectionInfo, ConsumerConnection, ConsumerListByGroup,
        HeartbeatData, ProducerConnection, ProducerInfo, ProducerTableInfo,
        SubscriptionGroupConfig, TopicConfig,
    },
    code::version,
    command::FLAG_RESPONSE,
    message_id, name,
};
use raftmq_state::Command;
use tokio::time::Instant;

use super::{
    Handled, Refusal, Request, message::find_old, propose, pull::check_expression_type, success,
};
use crate::{
    broker::Broker,
    session::{Changed, Client},
};

/// How long a client has to answer 307 and 309. Source: RocketMQ's `callClient`, 10 s.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a replica waits for the leader to create what a heartbeat needs.
const LEADER_TIMEOUT: Duration = Duration::from_secs(3);

/// A group's configuration; an unknown group is created if that is allowed. System groups need no
/// configuration.
pub(super) async fn find_or_create_group(
    broker: &Broker,
    group: &str,
) -> Result<SubscriptionGroupConfig, Refusal> {
    let known = broker.machine.state().group(group).cloned();
    if let Some(config) = known {
        return Ok(config);
    }
    let config = SubscriptionGroupConfig::new(group);
    if name::is_system_group(group) {
        return Ok(config);
    }
    let is_creatable = broker.config.auto_create_group && broker.is_serving();
    if !is_creatable || name::check_group(group).is_err() {
        return Err(Refusal::group_not_exist(group));
    }
    propose(
        broker,
        Command::PutGroup {
            config,
            only_if_absent: true,
        },
    )
    .await?;
    let created = broker.machine.state().group(group).cloned();
    created.ok_or_else(|| Refusal::group_not_exist(group))
}

/// Takes in what a client says about itself.
pub(super) async fn heartbeat(broker: &Arc<Broker>, request: &Request) -> Handled {
    let data: HeartbeatData = body::decode(&request.command.body)?;
    create_groups(broker, request, &data).await;
    // A heartbeat that a replica forwarded only creates groups: the session is the replica's.
    if let Some(connection) = &request.connection {
        let client = Client {
            client_id: data.client_id.clone(),
            connection: Arc::clone(connection),
            language: request.command.language.0,
            version: request.command.version,
            last_update_ms: broker.clock.now_ms(),
            seen: Instant::now(),
        };
        notify_changed(broker, broker.sessions.heartbeat(&data, &client));
        if connection.is_closed() {
            // It closed meanwhile, and its sessions may have been dropped before this one came.
            notify_changed(broker, broker.sessions.connection_closed(connection.id));
        }
    }
    // Without V2, clients send their subscriptions in every heartbeat.
    Ok(success(request)
        .with_ext("IS_SUPPORT_HEART_BEAT_V2", false)
        .with_ext("IS_SUB_CHANGE", true))
}

/// Creates the groups of a heartbeat and their retry topics, which clients look up right after it.
async fn create_groups(broker: &Broker, request: &Request, data: &HeartbeatData) {
    let missing: Vec<&str> = {
        let state = broker.machine.state();
        data.consumer_data_set
            .iter()
            .map(|consumer| consumer.group_name.as_str())
            .filter(|group| {
                state.group(group).is_none() || state.topic(&name::retry_topic(group)).is_none()
            })
            .collect()
    };
    if missing.is_empty() {
        return;
    }
    if !broker.is_serving() && request.connection.is_some() {
        let Some(consensus) = broker.consensus() else {
            return;
        };
        let deadline = Instant::now() + LEADER_TIMEOUT;
        let forwarded = consensus.forward(request.peer, &request.command, deadline);
        if forwarded.await.is_err() {
            tracing::debug!(peer = %request.peer, "no leader to create groups; the next heartbeat may");
        }
        return;
    }
    for group in missing {
        if let Err(refusal) = create_group(broker, group).await {
            tracing::debug!(
                group,
                remark = refusal.remark,
                "group of a heartbeat is not created"
            );
        }
    }
}

async fn create_group(broker: &Broker, group: &str) -> Result<(), Refusal> {
    let config = find_or_create_group(broker, group).await?;
    let topic = name::retry_topic(group);
    let is_missing = broker.machine.state().topic(&topic).is_none();
    let queues = u32::try_from(config.retry_queue_nums).unwrap_or(0);
    if is_missing && queues > 0 {
        let config = TopicConfig::new(topic, queues, 6);
        propose(
            broker,
            Command::PutTopic {
                config,
                only_if_absent: true,
            },
        )
        .await?;
    }
    Ok(())
}

/// Takes a client out of its groups.
pub(super) fn unregister(broker: &Broker, request: &Request) -> Handled {
    let fields = &request.command.ext_fields;
    let client_id = fields.required_str("clientID")?;
    let (producers, consumers) = (fields.get("producerGroup"), fields.get("consumerGroup"));
    notify_changed(
        broker,
        broker.sessions.unregister(client_id, producers, consumers),
    );
    Ok(success(request))
}

/// Tells the members of changed groups to rebalance.
pub(crate) fn notify_changed(broker: &Broker, changed: Changed) {
    if !broker.config.notify_consumer_ids_changed_enable {
        return;
    }
    for group in changed.groups {
        let is_wanted = broker
            .machine
            .state()
            .group(&group)
            .is_none_or(|config| config.notify_consumer_ids_changed_enable);
        let members = broker.sessions.consumer_group(&group).filter(|_| is_wanted);
        for client in members.iter().flat_map(|members| members.clients.values()) {
            let mut command = RemotingCommand::request(RequestCode::NOTIFY_CONSUMER_IDS_CHANGED)
                .with_ext("consumerGroup", &group);
            command.mark_oneway();
            client.connection.send(&command);
        }
    }
}

/// Client ids of a group; consumers divide the queues among them.
pub(super) fn consumer_list(broker: &Broker, request: &Request) -> Handled {
    let group = request.command.ext_fields.required_str("consumerGroup")?;
    let consumer_id_list = broker.sessions.consumer_ids(group);
    if consumer_id_list.is_empty() {
        let remark = format!("no consumer for this group, {group}");
        return Err(Refusal::new(ResponseCode::SYSTEM_ERROR, remark));
    }
    Ok(success(request).with_body(body::encode(&ConsumerListByGroup { consumer_id_list })))
}

/// Checks a subscription before its consumer starts.
pub(super) fn check_config(_broker: &Broker, request: &Request) -> Handled {
    if !request.command.body.is_empty() {
        let config: CheckClientConfig = body::decode(&request.command.body)?;
        check_expression_type(Some(&config.subscription_data.expression_type))?;
    }
    Ok(success(request))
}

/// Members of a consumer group.
pub(super) fn consumer_connections(broker: &Broker, request: &Request) -> Handled {
    let name = request.command.ext_fields.required_str("consumerGroup")?;
    let Some(group) = broker.sessions.consumer_group(name) else {
        let remark = format!("the consumer group[{name}] not online");
        return Err(Refusal::new(ResponseCode::CONSUMER_NOT_ONLINE, remark));
    };
    let answer = ConsumerConnection {
        connection_set: group.clients.values().map(connection_info).collect(),
        consume_from_where: group.consume_from_where,
        consume_type: group.consume_type,
        message_model: group.message_model,
        subscription_table: group.subscriptions,
    };
    Ok(success(request).with_body(body::encode(&answer)))
}

/// Members of a producer group.
pub(super) fn producer_connections(broker: &Broker, request: &Request) -> Handled {
    let name = request.command.ext_fields.required_str("producerGroup")?;
    let clients = broker.sessions.producers(name);
    if clients.is_empty() {
        let remark = format!("the producer group[{name}] not exist");
        return Err(Refusal::new(ResponseCode::SYSTEM_ERROR, remark));
    }
    let connection_set = clients.iter().map(connection_info).collect();
    Ok(success(request).with_body(body::encode(&ProducerConnection { connection_set })))
}

/// Members of all producer groups.
pub(super) fn all_producers(broker: &Broker, request: &Request) -> Handled {
    let info = |client: Client| ProducerInfo {
        language: language(&client).to_owned(),
        last_update_timestamp: client.last_update_ms,
        remote_ip: client.connection.peer.to_string(),
        version: client.version,
        client_id: client.client_id,
    };
    let groups = broker.sessions.all_producers().into_iter();
    let data = groups
        .map(|(group, clients)| (group, clients.into_iter().map(info).collect()))
        .collect();
    Ok(success(request).with_body(body::encode(&ProducerTableInfo { data })))
}

fn connection_info(client: &Client) -> ConnectionInfo {
    ConnectionInfo {
        client_addr: client.connection.peer.to_string(),
        client_id: client.client_id.clone(),
        language: language(client).to_owned(),
        version: client.version,
    }
}

fn language(client: &Client) -> &'static str {
    LanguageCode(client.language).name()
}

/// Asks a consumer how it is.
pub(super) async fn running_info(broker: &Arc<Broker>, request: &Request) -> Handled {
    let mut command = RemotingCommand::request(RequestCode::GET_CONSUMER_RUNNING_INFO);
    command.ext_fields = request.command.ext_fields.clone();
    command.body = request.command.body.clone();
    call_consumer(broker, request, command).await
}

/// Has a consumer consume one message, named by its offset id, and tell how it went.
pub(super) async fn consume_directly(broker: &Arc<Broker>, request: &Request) -> Handled {
    let fields = &request.command.ext_fields;
    let id = fields.required_str("msgId")?;
    let failed = |remark: String| Refusal::new(ResponseCode::SYSTEM_ERROR, remark);
    let (_, offset) = message_id::decode(id).map_err(|error| failed(format!("{id}: {error}")))?;
    let offset = i64::try_from(offset).unwrap_or(i64::MAX);
    let message = find_old(broker, offset)
        .await?
        .ok_or_else(|| failed(format!("can not find message by the offset, {offset}")))?;
    let mut command =
        RemotingCommand::request(RequestCode::CONSUME_MESSAGE_DIRECTLY).with_body(message);
    command.ext_fields = fields.clone();
    command
        .ext_fields
        .insert("brokerName", &broker.config.broker_name);
    call_consumer(broker, request, command).await
}

/// Relays `command` to the client that `request` names, and its answer back.
async fn call_consumer(broker: &Broker, request: &Request, command: RemotingCommand) -> Handled {
    let fields = &request.command.ext_fields;
    let group = fields.required_str("consumerGroup")?;
    let client_id = fields.get("clientId").unwrap_or_default();
    let Some(client) = broker.sessions.consumer(group, client_id) else {
        let remark = format!("The Consumer <{group}> <{client_id}> not online");
        return Err(Refusal::new(ResponseCode::SYSTEM_ERROR, remark));
    };
    if client.version < version::V3_1_8_SNAPSHOT {
        let remark = format!(
            "The Consumer <{client_id}> Version <{}> too low to finish, please upgrade it to \
             V3_1_8_SNAPSHOT",
            client.version
        );
        return Err(Refusal::new(ResponseCode::SYSTEM_ERROR, remark));
    }
    let Some(mut answer) = client.connection.call(command, CALL_TIMEOUT).await else {
        let remark = format!("consumer <{group}> <{client_id}> Timeout: {CALL_TIMEOUT:?}");
        return Err(Refusal::new(ResponseCode::CONSUME_MSG_TIMEOUT, remark));
    };
    answer.opaque = request.command.opaque;
    answer.serialize = request.command.serialize;
    answer.flag = FLAG_RESPONSE;
    Ok(answer)
}
