//! Subscription groups: 200 and 225 create or change, 207 delete, 201 and 352 read.

use std::sync::Arc;

use raftmq_remoting::{
    ResponseCode,
    body::{self, SubscriptionGroupConfig, SubscriptionGroupWrapper},
    name,
};
use raftmq_state::Command;
use serde::Deserialize;

use super::{
    Handled, Refusal, Request, propose, success,
    topic::{data_version, marked, marked_change, page},
};
use crate::broker::Broker;

/// 200: creates a group or changes its configuration.
pub(super) async fn update(broker: &Arc<Broker>, request: &Request) -> Handled {
    let config: SubscriptionGroupConfig = body::decode(&request.command.body)?;
    change(broker, checked(config)?).await?;
    Ok(success(request))
}

/// Body of 225.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SubscriptionGroupList {
    group_config_list: Vec<SubscriptionGroupConfig>,
}

/// 225: as 200 for many groups; all are checked before the first is changed.
pub(super) async fn update_list(broker: &Arc<Broker>, request: &Request) -> Handled {
    let list: SubscriptionGroupList = body::decode(&request.command.body)?;
    let configs = list.group_config_list.into_iter().map(checked);
    let configs = configs.collect::<Result<Vec<_>, _>>()?;
    let proposals = configs.into_iter().map(|config| change(broker, config));
    futures::future::try_join_all(proposals).await?;
    Ok(success(request))
}

/// 207: deletes a group and its retry topic, with `cleanOffset` its consumer offsets too.
pub(super) async fn delete(broker: &Arc<Broker>, request: &Request) -> Handled {
    let fields = &request.command.ext_fields;
    let group = fields.required_str("groupName")?;
    let clean_offset = fields.optional_bool("cleanOffset")?.unwrap_or(false);
    if name::is_system_group(group) {
        let remark = format!("The group[{group}] is a system group.");
        return Err(Refusal::new(ResponseCode::INVALID_PARAMETER, remark));
    }
    propose(
        broker,
        Command::DeleteGroup {
            group: group.to_owned(),
            clean_offset,
        },
    )
    .await?;
    let retry = name::retry_topic(group);
    if broker.machine.state().topic(&retry).is_some() {
        propose(broker, Command::DeleteTopic { topic: retry }).await?;
    }
    Ok(success(request))
}

/// 201: the configuration of all groups, or of a page of them.
pub(super) fn all(broker: &Arc<Broker>, request: &Request) -> Handled {
    let state = broker.machine.state();
    let version = data_version(state.group_version());
    let page = page(
        &request.command.ext_fields,
        "groupSeq",
        "maxGroupNum",
        &version,
    )?;
    let page = page.unwrap_or(0..usize::MAX);
    let rows = state.groups().skip(page.start).take(page.len());
    let wrapper = SubscriptionGroupWrapper {
        data_version: version,
        subscription_group_table: rows
            .map(|group| (group.group_name.clone(), group.clone()))
            .collect(),
        ..SubscriptionGroupWrapper::default()
    };
    let total = state.groups().count();
    drop(state);
    Ok(success(request)
        .with_ext("totalGroupNum", total)
        .with_body(body::encode(&wrapper)))
}

/// 352: the configuration of one group.
pub(super) fn get(broker: &Arc<Broker>, request: &Request) -> Handled {
    let group = request.command.ext_fields.required_str("group")?;
    let config = broker.machine.state().group(group).cloned();
    let Some(config) = config else {
        let remark = format!("No group in this broker. group: {group}");
        return Err(Refusal::new(
            ResponseCode::SUBSCRIPTION_GROUP_NOT_EXIST,
            remark,
        ));
    };
    Ok(success(request).with_body(body::encode(&config)))
}

/// The configuration as a command holds it: its attributes are changes.
fn checked(mut config: SubscriptionGroupConfig) -> Result<SubscriptionGroupConfig, Refusal> {
    name::check_group(&config.group_name)
        .map_err(|error| Refusal::new(ResponseCode::INVALID_PARAMETER, error.to_string()))?;
    config.attributes = marked(config.attributes.into_iter().map(marked_change));
    Ok(config)
}

async fn change(broker: &Broker, config: SubscriptionGroupConfig) -> Result<(), Refusal> {
    let changed = propose(broker, Command::ChangeGroup { config }).await;
    changed.map(|_| ())
}
