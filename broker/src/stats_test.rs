//! Tests of the counters, with explicit times.

use super::*;

/// Samples each second from `from_ms` on, `seconds` times, on local day `day`.
fn run_for(stats: &Stats, from_ms: u64, seconds: u64, day: u64) -> u64 {
    for second in 1..=seconds {
        stats.sample(from_ms + second * 1000, day);
    }
    from_ms + seconds * 1000
}

#[test]
fn a_message_counts_for_its_topic_until_its_period_is_over() {
    let stats = Stats::new(0);
    stats.message_stored("T", 3, 300);
    stats.message_stored("T", 1, 100);
    let now = run_for(&stats, 0, 20, 0);
    let data = stats.view("TOPIC_PUT_NUMS", "T", now).unwrap();
    assert_eq!(
        data.stats_minute,
        BrokerStatsItem {
            avgpt: 2.0,
            sum: 4,
            tps: 0.2
        }
    );
    assert_eq!(
        stats
            .view("TOPIC_PUT_SIZE", "T", now)
            .unwrap()
            .stats_day
            .sum,
        400
    );
    let now = run_for(&stats, now, 120, 0);
    let data = stats.view("TOPIC_PUT_NUMS", "T", now).unwrap();
    assert_eq!((data.stats_minute.sum, data.stats_hour.sum), (0, 4));
    assert_eq!(stats.view("TOPIC_PUT_NUMS", "other", now), None);
    assert_eq!(stats.view("NO_SUCH", "T", now), None);
}

#[test]
fn a_pull_without_messages_is_a_miss() {
    let stats = Stats::new(0);
    stats.messages_pulled("g", "T", 10, 1000);
    stats.messages_pulled("g", "T", 0, 0);
    let summary = stats.summary(10_000);
    assert_eq!(summary.transferred_rates, [1.0; 3]);
    assert_eq!(summary.found_rates, [0.1; 3]);
    assert_eq!(summary.missed_rates, [0.1; 3]);
    assert_eq!(summary.pull_rates, [0.2; 3]);
    assert_eq!(
        stats
            .view("GROUP_GET_NUMS", "T@g", 10_000)
            .unwrap()
            .stats_minute
            .sum,
        10
    );
}

#[test]
fn rates_look_back_as_far_as_their_span() {
    let stats = Stats::new(0);
    stats.message_stored("T", 600, 600);
    let now = run_for(&stats, 0, 30, 0);
    assert_eq!(stats.summary(now).put_rates, [0.0, 20.0, 20.0]);
    let now = run_for(&stats, now, 570, 0);
    assert_eq!(stats.summary(now).put_rates, [0.0, 0.0, 1.0]);
}

#[test]
fn midnight_moves_the_morning_counters() {
    let stats = Stats::new(0);
    stats.message_stored("T", 5, 5);
    run_for(&stats, 0, 1, 1);
    stats.message_stored("T", 2, 2);
    run_for(&stats, 1000, 1, 2);
    stats.message_stored("T", 1, 1);
    let summary = stats.summary(3000);
    let counters = (
        summary.put_messages,
        summary.put_today_morning,
        summary.put_yesterday_morning,
    );
    assert_eq!(counters, (8, 7, 5));
}

#[test]
fn a_key_without_traffic_is_forgotten_after_a_day() {
    let stats = Stats::new(0);
    stats.message_stored("T", 1, 1);
    let now = run_for(&stats, 0, 24 * 3600, 0);
    assert!(stats.view("TOPIC_PUT_NUMS", "T", now).is_some());
    let now = run_for(&stats, now, 2 * 3600, 0);
    assert!(stats.view("TOPIC_PUT_NUMS", "T", now).is_none());
}
