//! The broker itself: 28 runtime info, 26 and 25 configuration, 907 replicas, and the cleaning
//! requests 306, 316 and 329.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use prometheus::core::Collector;
use raftmq_remoting::{
    RequestCode, ResponseCode,
    body::{self, DataVersion, KvTable},
    name::SCHEDULE_TOPIC,
    version,
};
use raftmq_store::EntryKind;
use serde::Serialize;

use super::{Handled, Refusal, Request, send, success};
use crate::{
    broker::Broker,
    config::Properties,
    stats::{Rates, Summary},
    status::RaftStatus,
};

/// A replica that is not further behind counts as in sync. Unit: bytes. Source: RocketMQ
/// `haMaxGapNotInSync`, 256 MiB.
const IN_SYNC_GAP_MAX: u64 = 256 << 20;
/// Entries at the start of the log that are searched for the first message.
const EARLIEST_ENTRIES: u64 = 64;
const EARLIEST_BYTES: u64 = 64 << 10;

type Rows = BTreeMap<String, String>;

/// 28: the table that `mqadmin`, the dashboard and the exporter show. The exporter drops a broker
/// that leaves one of its keys out, so every key is there, also where nothing corresponds to it.
pub(super) fn runtime_info(broker: &Arc<Broker>, request: &Request) -> Handled {
    let mut rows = Rows::new();
    identity_rows(broker, &mut rows);
    counter_rows(broker, &mut rows);
    store_rows(broker, &mut rows);
    schedule_rows(broker, &mut rows);
    queue_rows(broker, &mut rows);
    Ok(success(request).with_body(body::encode(&KvTable { table: rows })))
}

/// 26: the configuration, defaults resolved, as properties text.
pub(super) fn config(broker: &Arc<Broker>, request: &Request) -> Handled {
    let version = DataVersion {
        timestamp: i64::try_from(broker.boot_timestamp_ms).unwrap_or(i64::MAX),
        ..DataVersion::default()
    };
    let version = body::encode(&version);
    Ok(success(request)
        .with_ext("version", String::from_utf8_lossy(&version))
        .with_body(broker.config.summary()))
}

/// 25: no key can change while the process runs; values that are in force already are fine.
pub(super) fn update_config(broker: &Arc<Broker>, request: &Request) -> Handled {
    let invalid = |remark: String| Refusal::new(ResponseCode::INVALID_PARAMETER, remark);
    let wanted = Properties::parse_request(&request.command.body)
        .map_err(invalid)?
        .entries;
    let black_list = &broker.config.config_black_list;
    if wanted.iter().any(|entry| black_list.contains(&entry.key)) {
        let remark = "Can not update config in black list.";
        return Err(Refusal::new(ResponseCode::NO_PERMISSION, remark));
    }
    let present: BTreeMap<&str, String> = broker.config.entries().into_iter().collect();
    let different: Vec<&str> = wanted
        .iter()
        .filter(|entry| present.get(entry.key.as_str()) != Some(&entry.value))
        .map(|entry| entry.key.as_str())
        .collect();
    if different.is_empty() {
        return Ok(success(request));
    }
    let remark = format!(
        "{} cannot change while the broker runs: edit the configuration file of each broker and \
         restart one after the other",
        different.join(", ")
    );
    Err(Refusal::new(ResponseCode::NO_PERMISSION, remark))
}

/// 907: how far the replicas are.
pub(super) fn ha_status(broker: &Arc<Broker>, request: &Request) -> Handled {
    let status = broker
        .consensus()
        .map(|consensus| consensus.status().borrow().clone());
    let Some(status) = status else {
        let remark = "the broker has not joined its group yet";
        return Err(Refusal::new(ResponseCode::SERVICE_NOT_AVAILABLE, remark));
    };
    Ok(success(request).with_body(body::encode(&ha_runtime_info(broker, &status))))
}

/// 306, 316, 329: the consume queue follows the log by itself, and so do unused topics; expired
/// segments go in the hours of `deleteWhen`, or, as in RocketMQ soon after the answer, when 329 asks
/// for it.
pub(super) fn clean(broker: &Arc<Broker>, request: &Request) -> Handled {
    if RequestCode(request.command.code) == RequestCode::DELETE_EXPIRED_COMMITLOG {
        broker.clean_asked.notify_one();
    }
    Ok(success(request))
}

fn put(rows: &mut Rows, key: &str, value: impl ToString) {
    rows.insert(key.to_owned(), value.to_string());
}

fn identity_rows(broker: &Broker, rows: &mut Rows) {
    put(rows, "brokerVersionDesc", version::CURRENT_NAME);
    put(rows, "brokerVersion", version::CURRENT);
    put(rows, "bootTimestamp", broker.boot_timestamp_ms);
    put(
        rows,
        "runtime",
        run_time(Duration::from_millis(broker.uptime_ms())),
    );
    put(rows, "startAcceptSendRequestTimeStamp", 0);
    put(rows, "brokerActive", broker.is_serving());
}

fn counter_rows(broker: &Broker, rows: &mut Rows) {
    let Summary {
        put_messages,
        put_bytes,
        put_today_morning,
        put_yesterday_morning,
        get_messages,
        get_today_morning,
        get_yesterday_morning,
        put_rates,
        found_rates,
        missed_rates,
        pull_rates,
        transferred_rates,
    } = broker.stats.summary(broker.uptime_ms());
    put(rows, "msgPutTotalTodayNow", put_messages);
    put(rows, "msgPutTotalTodayMorning", put_today_morning);
    put(rows, "msgPutTotalYesterdayMorning", put_yesterday_morning);
    put(rows, "msgGetTotalTodayNow", get_messages);
    put(rows, "msgGetTotalTodayMorning", get_today_morning);
    put(rows, "msgGetTotalYesterdayMorning", get_yesterday_morning);
    put(rows, "putMessageTimesTotal", put_messages);
    put(rows, "putMessageFailedTimes", failed_sends(broker));
    put(rows, "putMessageSizeTotal", put_bytes);
    let average = if put_messages == 0 {
        0.0
    } else {
        put_bytes as f64 / put_messages as f64
    };
    put(rows, "putMessageAverageSize", format!("{average:.2}"));
    // Latencies are measured as histograms, see `/metrics`; `null` stands for no buckets.
    put(rows, "putMessageEntireTimeMax", 0);
    put(rows, "getMessageEntireTimeMax", 0);
    put(rows, "putMessageDistributeTime", "null");
    put(rows, "putTps", rates_text(put_rates));
    put(rows, "getFoundTps", rates_text(found_rates));
    put(rows, "getMissTps", rates_text(missed_rates));
    put(rows, "getTotalTps", rates_text(pull_rates));
    put(rows, "getTransferredTps", rates_text(transferred_rates));
    put(rows, "getTransferedTps", rates_text(transferred_rates));
}

fn store_rows(broker: &Broker, rows: &mut Rows) {
    let log = broker.machine.log();
    let space = log.look_at_space().unwrap_or_default();
    let used = f64::from(space.used_percent()) / 100.0;
    let end = log.max_physical();
    put(rows, "commitLogMinOffset", log.min_physical());
    put(rows, "commitLogMaxOffset", end);
    put(rows, "commitLogDiskRatio", format!("{used:.4}"));
    put(rows, "consumeQueueDiskRatio", format!("{used:.4}"));
    let capacity = format!(
        "Total : {}, Free : {}.",
        byte_count(space.total_bytes()),
        byte_count(space.available_bytes)
    );
    put(rows, "commitLogDirCapacity", capacity);
    let unflushed = end.saturating_sub(log.flushed_physical());
    put(rows, "remainHowManyDataToFlush", byte_count(unflushed));
    put(rows, "remainHowManyDataToCommit", byte_count(0));
    // There is no transient store pool that could run empty.
    put(rows, "remainTransientStoreBufferNumbs", i32::MAX);
    put(rows, "dispatchBehindBytes", 0);
    put(rows, "dispatchMaxBuffer", 0);
    put(rows, "pageCacheLockTimeMills", 0);
    put(
        rows,
        "earliestMessageTimeStamp",
        earliest_store_timestamp(broker).unwrap_or(-1),
    );
}

fn schedule_rows(broker: &Broker, rows: &mut Rows) {
    let levels: Vec<(u32, u32, u64)> = {
        let state = broker.machine.state();
        let topic = state.topic(SCHEDULE_TOPIC);
        let queues = topic.map_or(&[][..], |topic| &topic.queues);
        let numbered = (1_u32..)
            .zip(queues)
            .take(broker.config.message_delay_levels.len());
        numbered
            .map(|(level, queue)| (level, queue.number, state.schedule_progress(level)))
            .collect()
    };
    for (level, queue, delivered) in levels {
        let (_, max) = broker.machine.index().bounds(queue);
        put(
            rows,
            &format!("scheduleMessageOffset_{level}"),
            format!("{delivered},{max}"),
        );
    }
}

/// Requests are not queued for thread pools here, so these are RocketMQ's capacities and zero. What
/// a send waits for is the disk.
fn queue_rows(broker: &Broker, rows: &mut Rows) {
    let disk_wait = broker
        .machine
        .log()
        .oldest_unflushed_since()
        .unwrap_or_default();
    let pools = [
        ("send", 10_000, disk_wait.as_millis()),
        ("pull", 100_000, 0),
        ("litePull", 100_000, 0),
        ("query", 20_000, 0),
        ("ack", 100_000, 0),
    ];
    for (pool, capacity, wait_ms) in pools {
        put(rows, &format!("{pool}ThreadPoolQueueSize"), 0);
        put(rows, &format!("{pool}ThreadPoolQueueCapacity"), capacity);
        put(
            rows,
            &format!("{pool}ThreadPoolQueueHeadWaitTimeMills"),
            wait_ms,
        );
    }
    put(rows, "EndTransactionQueueSize", 0);
    put(rows, "EndTransactionThreadPoolQueueCapacity", 100_000);
    for key in ["timerReadBehind", "timerOffsetBehind", "timerCongestNum"] {
        put(rows, key, 0);
    }
    for key in ["timerEnqueueTps", "timerDequeueTps"] {
        put(rows, key, "0.0");
    }
}

/// Sends that were not answered with success, out of the request metrics.
fn failed_sends(broker: &Broker) -> u64 {
    let is_send = |code: &str| {
        RequestCode::all().any(|known| send::is_send(known) && known.name() == Some(code))
    };
    let success = ResponseCode::SUCCESS.name().unwrap_or_default();
    let families = broker.metrics.requests.total.collect();
    let series = families.iter().flat_map(|family| family.get_metric());
    let failed = series.filter(|metric| {
        let label = |name| metric.get_label().iter().find(|label| label.name() == name);
        label("code").is_some_and(|code| is_send(code.value()))
            && label("result").is_some_and(|result| result.value() != success)
    });
    // Counters of the metrics crate are integers here, shown as floating point.
    failed
        .map(|metric| metric.get_counter().get_value() as u64)
        .sum()
}

/// Store time of the oldest commands in the log. Unit: ms since 1970.
fn earliest_store_timestamp(broker: &Broker) -> Option<i64> {
    let log = broker.machine.log();
    let first = log.first_index();
    // A purge may overtake the read; then there is no answer this time.
    let entries = log
        .read(first, first + EARLIEST_ENTRIES, EARLIEST_BYTES)
        .ok()?;
    let oldest = entries
        .iter()
        .find(|entry| entry.kind == EntryKind::Normal)?;
    let (store_timestamp_ms, _) = raftmq_state::decode_payload(&oldest.payload).ok()?;
    i64::try_from(store_timestamp_ms).ok()
}

/// Body of the answer to 907.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HaRuntimeInfo {
    ha_client_runtime_info: HaClientRuntimeInfo,
    ha_connection_info: Vec<HaConnectionRuntimeInfo>,
    in_sync_slave_nums: usize,
    master: bool,
    master_commit_log_max_offset: u64,
}

/// A follower as its leader sees it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HaConnectionRuntimeInfo {
    addr: String,
    diff: u64,
    in_sync: bool,
    slave_ack_offset: u64,
    transfer_from_where: u64,
    transferred_byte_in_second: u64,
}

/// A follower as it sees itself.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct HaClientRuntimeInfo {
    activated: bool,
    last_read_timestamp: u64,
    last_write_timestamp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    master_addr: Option<String>,
    master_flush_offset: u64,
    max_offset: u64,
    transferred_byte_in_second: u64,
}

fn ha_runtime_info(broker: &Broker, status: &RaftStatus) -> HaRuntimeInfo {
    let log = broker.machine.log();
    let end = log.max_physical();
    let members = || status.voters.iter().chain(&status.learners);
    let address = |id: u64| {
        members()
            .find(|member| member.id == id)
            .map(|member| &member.address)
    };
    let connections: Vec<HaConnectionRuntimeInfo> = status
        .peers
        .iter()
        .map(|peer| {
            let position = peer
                .matched_index
                .and_then(|index| log.position_at(index).ok());
            let acknowledged = position.map_or(0, |position| position.end_physical);
            let diff = end.saturating_sub(acknowledged);
            HaConnectionRuntimeInfo {
                addr: address(peer.id).cloned().unwrap_or_default(),
                diff,
                in_sync: diff <= IN_SYNC_GAP_MAX,
                slave_ack_offset: acknowledged,
                transfer_from_where: acknowledged,
                transferred_byte_in_second: 0,
            }
        })
        .collect();
    let master = broker.is_serving();
    let client = if master {
        HaClientRuntimeInfo::default()
    } else {
        let newest = broker.machine.last_store_timestamp_ms();
        HaClientRuntimeInfo {
            activated: status.leader_id.is_some(),
            last_read_timestamp: newest,
            last_write_timestamp: newest,
            master_addr: status.leader_id.and_then(address).cloned(),
            master_flush_offset: log.flushed_physical(),
            max_offset: end,
            transferred_byte_in_second: 0,
        }
    };
    HaRuntimeInfo {
        ha_client_runtime_info: client,
        in_sync_slave_nums: connections
            .iter()
            .filter(|connection| connection.in_sync)
            .count(),
        ha_connection_info: connections,
        master,
        master_commit_log_max_offset: end,
    }
}

fn rates_text(rates: Rates) -> String {
    rates.map(|rate| format!("{rate:.2}")).join(" ")
}

/// `[ 0 days, 1 hours, 2 minutes, 3 seconds ]`.
fn run_time(up: Duration) -> String {
    let seconds = up.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    format!(
        "[ {days} days, {} hours, {} minutes, {} seconds ]",
        hours % 24,
        minutes % 60,
        seconds % 60
    )
}

/// `512 B`, `10.0 GiB`.
fn byte_count(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut scaled = bytes as f64 / 1024.0;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{scaled:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_the_form_that_tools_parse() {
        assert_eq!(rates_text([0.0, 12.345, 1e6]), "0.00 12.35 1000000.00");
        assert_eq!(
            run_time(Duration::from_secs(86_400 + 2 * 3600 + 3 * 60 + 4)),
            "[ 1 days, 2 hours, 3 minutes, 4 seconds ]"
        );
        let counts = [0, 1023, 1024, 10 << 30, u64::MAX].map(byte_count);
        assert_eq!(counts, ["0 B", "1023 B", "1.0 KiB", "10.0 GiB", "16.0 EiB"]);
    }

    #[test]
    fn replicas_are_told_as_rocketmq_tells_its_slaves() {
        let info = HaRuntimeInfo {
            ha_client_runtime_info: HaClientRuntimeInfo::default(),
            ha_connection_info: Vec::new(),
            in_sync_slave_nums: 0,
            master: true,
            master_commit_log_max_offset: 7,
        };
        let text = String::from_utf8_lossy(&body::encode(&info)).into_owned();
        assert!(
            text.contains(r#""haClientRuntimeInfo":{"activated":false,"#),
            "{text}"
        );
        assert!(
            text.contains(r#""haConnectionInfo":[],"inSyncSlaveNums":0,"master":true"#),
            "{text}"
        );
        assert!(text.ends_with(r#""masterCommitLogMaxOffset":7}"#), "{text}");
    }
}
