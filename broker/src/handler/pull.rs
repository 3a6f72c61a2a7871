//! Pulls: 11 PULL_MESSAGE, 361 LITE_PULL_MESSAGE.
//!
//! The path of a pull: parse, check, find units in the consume queue, copy the records out of the
//! log and patch their two offsets. A pull that finds nothing parks until a message comes.
//!
//! Every replica serves pulls, since it has committed messages only. What a replica behind the
//! leader cannot know (a new topic, an offset beyond its end) it asks the leader for; it never
//! tells a consumer to move.

mod read;
mod units;

use std::{sync::Arc, time::Duration};

use raftmq_remoting::{
    ExtFields, RemotingCommand, ResponseCode,
    body::{SubscriptionData, SubscriptionGroupConfig, TopicConfig},
    sys_flag::{self, PULL_COMMIT_OFFSET, PULL_SUBSCRIPTION, PULL_SUSPEND},
    tags::{TagExpression, tags_code},
};
use raftmq_state::CommitMode;
use tokio::time::{Instant, sleep, timeout};

use self::read::{Found, Status, look};
pub(crate) use self::units::KeptUnits;
use super::{Handled, Refusal, Request, client::find_or_create_group};
use crate::{
    broker::Broker,
    budget::{Holder, Shown},
    framing::intake::REQUEST_COST_BYTES,
    long_poll::TagFilter,
    offset_commits::Commit,
};

/// Longest time a pull is parked. Clients ask for 15 to 20 s; a connection is dropped after 120 s.
const SUSPEND_MAX: Duration = Duration::from_secs(60);
/// A parked pull looks again after this time. Source: RocketMQ's hold service, 5 s.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long the leader's answer is waited for.
const LEADER_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause of a consumer that this replica cannot serve while no leader can be asked.
const NO_LEADER_PAUSE: Duration = Duration::from_millis(200);

/// Header of a pull.
#[derive(Debug)]
struct Pull<'a> {
    group: &'a str,
    topic: &'a str,
    queue_id: i32,
    offset: i64,
    messages_max: usize,
    bytes_max: usize,
    sys_flag: i32,
    commit_offset: i64,
    suspend: Duration,
    sub_version: i64,
}

/// The queue to read and who reads it.
#[derive(Debug)]
struct Target {
    queue: u32,
    topic: TopicConfig,
    group: SubscriptionGroupConfig,
    filter: TagFilter,
}

/// Handles a pull.
pub(super) async fn pull(broker: &Arc<Broker>, request: &Request) -> Handled {
    let fields = &request.command.ext_fields;
    let pull = Pull::parse(broker, fields)?;
    let target = match prepare(broker, request, &pull).await {
        Ok(target) => target,
        Err(refusal) => return ask_leader(broker, request, &pull).await.ok_or(refusal),
    };
    commit(broker, &pull);
    let mut found = look(broker, &pull, &target).await?;
    if found.may_wait(broker, &pull) && !pull.suspend.is_zero() {
        found = wait(broker, request, &pull, &target).await?;
    }
    if found.is_moved(&pull) && broker.serves_for_certain().await {
        found = look(broker, &pull, &target).await?;
    } else if found.is_moved(&pull) {
        if let Some(response) = ask_leader(broker, request, &pull).await {
            return Ok(response);
        }
        sleep(NO_LEADER_PAUSE).await;
        found.status = Status::OffsetOverflowOne;
        found.next = u64::try_from(pull.offset).unwrap_or(0);
    }
    if !found.chosen.is_empty() {
        // A client that does not read what it was sent makes nothing read from the log.
        request.room(broker, found.bytes()).await?;
        found.read(broker).await?;
    }
    broker
        .stats
        .messages_pulled(pull.group, pull.topic, found.messages, found.body.len());
    let metrics = &broker.metrics.requests;
    metrics.messages_pulled_total.inc_by(found.messages as u64);
    metrics
        .messages_pulled_bytes_total
        .inc_by(found.body.len() as u64);
    Ok(answer(broker, request, &pull, &target, found))
}

impl<'a> Pull<'a> {
    fn parse(broker: &Broker, fields: &'a ExtFields) -> Result<Self, Refusal> {
        let config = &broker.config;
        let messages_max = config.max_transfer_count_on_message_in_memory as usize;
        let bytes_max = config.max_transfer_bytes_on_message_in_memory as usize;
        let wanted_messages = fields.required_i32("maxMsgNums")?;
        let wanted_bytes = fields.optional_i32("maxMsgBytes")?.unwrap_or(i32::MAX);
        let sys_flag = fields.required_i32("sysFlag")?;
        let suspend_ms = fields.required_i64("suspendTimeoutMillis")?;
        let suspend = if !sys_flag::has(sys_flag, PULL_SUSPEND) {
            Duration::ZERO
        } else if config.long_polling_enable {
            Duration::from_millis(u64::try_from(suspend_ms).unwrap_or(0)).min(SUSPEND_MAX)
        } else {
            Duration::from_millis(config.short_polling_time_mills).min(SUSPEND_MAX)
        };
        Ok(Self {
            group: fields.required_str("consumerGroup")?,
            topic: fields.required_str("topic")?,
            queue_id: fields.required_i32("queueId")?,
            offset: fields.required_i64("queueOffset")?,
            // An answer always brings one message if there is one.
            messages_max: usize::try_from(wanted_messages)
                .unwrap_or(0)
                .clamp(1, messages_max.max(1)),
            bytes_max: usize::try_from(wanted_bytes).unwrap_or(0).min(bytes_max),
            sys_flag,
            commit_offset: fields.required_i64("commitOffset")?,
            suspend,
            sub_version: fields.required_i64("subVersion")?,
        })
    }
}

/// Checks in RocketMQ's order: broker, group, topic, queue, subscription.
async fn prepare(broker: &Broker, request: &Request, pull: &Pull<'_>) -> Result<Target, Refusal> {
    let forbidden = |remark: String| Refusal::new(ResponseCode::NO_PERMISSION, remark);
    if broker.config.broker_permission & 4 == 0 {
        let broker_ip = &broker.config.broker_ip1;
        return Err(forbidden(format!(
            "the broker[{broker_ip}] pulling message is forbidden"
        )));
    }
    let group = find_or_create_group(broker, pull.group).await?;
    if !group.consume_enable {
        return Err(forbidden(format!(
            "subscription group no permission, {}",
            pull.group
        )));
    }
    let topic = broker
        .machine
        .state()
        .topic(pull.topic)
        .map(|topic| topic.config.clone());
    let topic = topic.ok_or_else(|| Refusal::topic_not_exist(pull.topic))?;
    if topic.perm & 4 == 0 {
        return Err(forbidden(format!(
            "the topic[{}] pulling message is forbidden",
            pull.topic
        )));
    }
    let queue = u32::try_from(pull.queue_id)
        .ok()
        .filter(|queue_id| *queue_id < topic.read_queue_nums)
        .and_then(|id| Some(broker.machine.state().topic(pull.topic)?.queue(id)?.number));
    let Some(queue) = queue else {
        let remark = format!(
            "queueId[{}] is illegal, topic:[{}] topicConfig.readQueueNums:[{}] consumer:[{}]",
            pull.queue_id, pull.topic, topic.read_queue_nums, request.peer
        );
        return Err(Refusal::new(ResponseCode::INVALID_PARAMETER, remark));
    };
    let filter = if sys_flag::has(pull.sys_flag, PULL_SUBSCRIPTION) {
        filter_of_header(&request.command.ext_fields)?
    } else {
        filter_of_session(broker, pull, &group)?
    };
    Ok(Target {
        queue,
        topic,
        group,
        filter,
    })
}

fn filter_of_header(fields: &ExtFields) -> Result<TagFilter, Refusal> {
    check_expression_type(fields.get("expressionType"))?;
    let expression = TagExpression::parse(fields.get("subscription").unwrap_or_default());
    let expression = expression.map_err(|error| {
        let remark = format!("parse the consumer's subscription failed: {error}");
        Refusal::new(ResponseCode::SUBSCRIPTION_PARSE_FAILED, remark)
    })?;
    Ok(sorted(
        expression.tags().iter().map(|tag| tags_code(Some(tag))),
    ))
}

/// The subscription of the group's heartbeats. A consumer whose heartbeat has not reached this
/// node since a failover, but which has consumed the queue before, goes on at once without a
/// filter: clients compare the tags themselves, so it only costs bytes.
fn filter_of_session(
    broker: &Broker,
    pull: &Pull<'_>,
    group: &SubscriptionGroupConfig,
) -> Result<TagFilter, Refusal> {
    let has_consumed = || {
        let queue_id = u32::try_from(pull.queue_id).unwrap_or(u32::MAX);
        broker
            .machine
            .state()
            .consumer_offset(pull.group, pull.topic, queue_id)
            .is_some()
    };
    let (code, remark) = match broker.sessions.subscription(pull.group, pull.topic) {
        Some(subscription) if subscription.sub_version >= pull.sub_version => {
            check_expression_type(Some(&subscription.expression_type))?;
            if !group.consume_broadcast_enable && broker.sessions.is_broadcasting(pull.group) {
                let remark = format!(
                    "the consumer group[{}] can not consume by broadcast way",
                    pull.group
                );
                return Err(Refusal::new(ResponseCode::NO_PERMISSION, remark));
            }
            return Ok(filter_of(&subscription));
        }
        // The client's next heartbeat, up to 30 s away, will tell its new subscription. RocketMQ
        // refuses the pull until then; unfiltered messages are right too, since clients compare
        // tags themselves.
        Some(_) => return Ok(None),
        None if broker.sessions.has_consumers(pull.group) => (
            ResponseCode::SUBSCRIPTION_NOT_EXIST,
            "the consumer's subscription not exist",
        ),
        None => (
            ResponseCode::SUBSCRIPTION_NOT_EXIST,
            "the consumer's group info not exist",
        ),
    };
    if has_consumed() {
        Ok(None)
    } else {
        Err(Refusal::new(code, remark))
    }
}

/// Tag hashes a subscription wants.
pub(super) fn filter_of(subscription: &SubscriptionData) -> TagFilter {
    sorted(subscription.code_set.iter().map(|code| i64::from(*code)))
}

/// Refuses what is no tag expression: property filters are not served.
pub(super) fn check_expression_type(kind: Option<&str>) -> Result<(), Refusal> {
    match kind {
        None | Some("" | "TAG") => Ok(()),
        Some(kind) => Err(Refusal::new(
            ResponseCode::SYSTEM_ERROR,
            format!("The broker does not support consumer to filter message by {kind}"),
        )),
    }
}

fn sorted(codes: impl Iterator<Item = i64>) -> TagFilter {
    let mut codes: Vec<i64> = codes.collect();
    codes.sort_unstable();
    codes.dedup();
    (!codes.is_empty()).then(|| codes.into())
}

/// The offset that rides on a pull. Only the leader commits it, as in RocketMQ.
fn commit(broker: &Broker, pull: &Pull<'_>) {
    let (Ok(queue_id), Ok(offset)) = (
        u32::try_from(pull.queue_id),
        u64::try_from(pull.commit_offset),
    ) else {
        return;
    };
    if sys_flag::has(pull.sys_flag, PULL_COMMIT_OFFSET) {
        let commit = Commit {
            group: pull.group,
            topic: pull.topic,
            queue_id,
            offset,
            mode: CommitMode::Max,
        };
        broker.offset_commits.add(broker, &commit);
    }
}

/// Counts a pull as parked until it is dropped.
struct Parked<'a> {
    broker: &'a Broker,
    _shown: Shown,
}

impl<'a> Parked<'a> {
    fn new(broker: &'a Broker) -> Self {
        broker.metrics.requests.parked_pulls.inc();
        Self {
            broker,
            _shown: broker.budget.show(Holder::Parked, REQUEST_COST_BYTES),
        }
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.broker.metrics.requests.parked_pulls.dec();
    }
}

/// Reads again whenever a message comes, until there is an answer or the time is up.
async fn wait(
    broker: &Broker,
    request: &Request,
    pull: &Pull<'_>,
    target: &Target,
) -> Result<Found, Refusal> {
    let deadline = Instant::now() + pull.suspend;
    let _parked = Parked::new(broker);
    loop {
        // Parked before the read, so that a message between the two wakes it.
        let mut ticket = broker.long_poll.park(target.queue, target.filter.clone());
        let found = look(broker, pull, target).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        let is_gone = request.connection.is_none() || request.is_abandoned();
        let stops = broker.long_poll.is_closed();
        if !found.may_wait(broker, pull) || left.is_zero() || is_gone || stops {
            return Ok(found);
        }
        // An elapsed time is a reason to look again, too.
        let _ = timeout(left.min(LOOK_AGAIN), ticket.woken()).await;
    }
}

fn answer(
    broker: &Broker,
    request: &Request,
    pull: &Pull<'_>,
    target: &Target,
    found: Found,
) -> RemotingCommand {
    RemotingCommand::response_to(&request.command, found.status.code(pull.offset))
        .with_remark(found.status.name())
        .with_ext(
            "suggestWhichBrokerId",
            suggested_broker(broker, target, &found),
        )
        .with_ext("nextBeginOffset", found.next)
        .with_ext("minOffset", found.min)
        .with_ext("maxOffset", found.max)
        .with_ext("topicSysFlag", target.topic.topic_sys_flag)
        .with_ext("groupSysFlag", target.group.group_sys_flag)
        .with_body(found.body)
}

/// Broker id the consumer should pull from next; consumers far behind may be sent to a replica.
fn suggested_broker(broker: &Broker, target: &Target, found: &Found) -> i64 {
    if !broker.config.slave_read_enable {
        return 0;
    }
    let behind = broker
        .machine
        .log()
        .max_physical()
        .saturating_sub(found.last_physical_offset);
    if found.messages > 0 && behind > broker.config.tail_bytes {
        target.group.which_broker_when_consume_slowly
    } else {
        target.group.broker_id
    }
}

/// The leader's answer to a pull that this replica cannot answer; `None` on the leader itself, for
/// a forwarded pull, and when there is no leader to ask.
async fn ask_leader(
    broker: &Broker,
    request: &Request,
    pull: &Pull<'_>,
) -> Option<RemotingCommand> {
    if broker.is_serving() || request.connection.is_none() {
        return None;
    }
    let mut command = request.command.clone();
    let mut flags = pull.sys_flag & !PULL_SUSPEND;
    // The leader may not know the consumer's session.
    if let Some(subscription) = broker.sessions.subscription(pull.group, pull.topic)
        && !sys_flag::has(flags, PULL_SUBSCRIPTION)
    {
        flags |= PULL_SUBSCRIPTION;
        command
            .ext_fields
            .insert("subscription", &subscription.sub_string);
        command
            .ext_fields
            .insert("expressionType", &subscription.expression_type);
    }
    command.ext_fields.insert("sysFlag", flags);
    let deadline = Instant::now() + LEADER_TIMEOUT;
    let forwarded = broker
        .consensus()?
        .forward(request.peer, &command, deadline);
    forwarded.await.ok()?
}

#[cfg(test)]
mod tests {
    use super::{read::wants, *};

    #[test]
    fn filters_match_the_hashes_they_name_and_nothing_else() {
        let subscription = SubscriptionData {
            code_set: vec![66, 65, 66],
            ..Default::default()
        };
        let filter = filter_of(&subscription);
        assert!(wants(&filter, 65) && wants(&filter, 66) && !wants(&filter, 0));
        assert!(wants(&filter_of(&SubscriptionData::default()), 0));
        let fields = ExtFields::from_iter([("subscription", "A || B")]);
        assert!(matches!(&filter_of_header(&fields), Ok(Some(codes)) if **codes == [65, 66]));
        let fields = ExtFields::from_iter([("subscription", "a > 1"), ("expressionType", "SQL92")]);
        assert!(filter_of_header(&fields).is_err());
    }
}
