//! Counters in RocketMQ's shape: what `mqadmin`, the dashboard and the exporter ask for.
//!
//! Counting is an addition to atomics behind a shared read lock; every rate is the difference
//! between now and a sample of the past. Samples are taken by [`Stats::run`]. Volatile: a restart
//! begins at zero, as in RocketMQ.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use raftmq_remoting::body::{BrokerStatsData, BrokerStatsItem};
use tokio::time::{MissedTickBehavior, interval};

use crate::broker::Broker;

/// Time between two samples of the broker's totals.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Samples of the totals that are kept: enough for the rate over ten minutes.
const TOTAL_SAMPLES: usize = 601;
/// Keys (topics, or topics of groups) that are counted on their own; beyond it, messages count in
/// the totals only. With its samples a key takes about 1.5 KiB.
const KEYS_MAX: usize = 20_000;
const MS_PER_DAY: u64 = 86_400_000;

/// Sampling of one key for one period. Source: RocketMQ `StatsItem`.
#[derive(Clone, Copy, Debug)]
struct Period {
    /// Time between samples. Unit: samples of the totals, that is seconds.
    every: u64,
    /// Samples kept; the oldest is one period ago.
    samples: usize,
}

const MINUTE: Period = Period {
    every: 10,
    samples: 7,
};
const HOUR: Period = Period {
    every: 600,
    samples: 7,
};
const DAY: Period = Period {
    every: 3600,
    samples: 25,
};
const PERIODS: [Period; 3] = [MINUTE, HOUR, DAY];

/// What a key counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    messages: u64,
    bytes: u64,
    /// Requests that stored or brought these messages.
    times: u64,
}

#[derive(Debug, Default)]
struct Counter {
    messages: AtomicU64,
    bytes: AtomicU64,
    times: AtomicU64,
}

impl Counter {
    fn add(&self, messages: u64, bytes: u64) {
        self.messages.fetch_add(messages, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.times.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> Counts {
        Counts {
            messages: self.messages.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            times: self.times.load(Ordering::Relaxed),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at_ms: u64,
    counts: Counts,
}

/// One key with its past. The samples are touched by the sampler and by tools only.
#[derive(Debug)]
struct Item {
    counter: Counter,
    /// One ring for each of [`PERIODS`], never empty.
    past: Mutex<[VecDeque<Sample>; 3]>,
}

impl Item {
    fn new(now_ms: u64) -> Self {
        let birth = Sample {
            at_ms: now_ms,
            counts: Counts::default(),
        };
        let past = Mutex::new(std::array::from_fn(|_| VecDeque::from([birth])));
        Self {
            counter: Counter::default(),
            past,
        }
    }

    fn sample(&self, tick: u64, now_ms: u64) {
        let sample = Sample {
            at_ms: now_ms,
            counts: self.counter.read(),
        };
        for (ring, period) in lock(&self.past).iter_mut().zip(PERIODS) {
            if tick.is_multiple_of(period.every) {
                push(ring, period.samples, sample);
            }
        }
    }

    /// Whether nothing was counted for a whole day.
    fn is_idle(&self) -> bool {
        let past = lock(&self.past);
        let [.., day] = &*past;
        let now = self.counter.read();
        day.len() >= DAY.samples && day.front().is_some_and(|oldest| oldest.counts == now)
    }

    fn view(&self, now_ms: u64, of: impl Fn(&Counts) -> u64) -> BrokerStatsData {
        let now = self.counter.read();
        let past = lock(&self.past);
        let [minute, hour, day] = &*past;
        let over = |ring: &VecDeque<Sample>| {
            let Some(first) = ring.front() else {
                return BrokerStatsItem::default();
            };
            let sum = of(&now) - of(&first.counts);
            let times = now.times - first.counts.times;
            BrokerStatsItem {
                avgpt: ratio(sum, times),
                sum,
                tps: rate(sum, first.at_ms, now_ms),
            }
        };
        BrokerStatsData {
            stats_day: over(day),
            stats_hour: over(hour),
            stats_minute: over(minute),
        }
    }
}

/// Items by key. Its lock is written when a key appears or has been idle for a day.
#[derive(Debug, Default)]
struct Table {
    items: RwLock<BTreeMap<String, Box<Item>>>,
}

impl Table {
    fn add(&self, key: &str, messages: u64, bytes: u64, now_ms: u64) {
        {
            let items = self.items.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(item) = items.get(key) {
                item.counter.add(messages, bytes);
                return;
            }
            if items.len() >= KEYS_MAX {
                return;
            }
        }
        let mut items = self.items.write().unwrap_or_else(PoisonError::into_inner);
        items
            .entry(key.to_owned())
            .or_insert_with(|| Box::new(Item::new(now_ms)))
            .counter
            .add(messages, bytes);
    }

    fn view(&self, key: &str, now_ms: u64, of: impl Fn(&Counts) -> u64) -> Option<BrokerStatsData> {
        let items = self.items.read().unwrap_or_else(PoisonError::into_inner);
        items.get(key).map(|item| item.view(now_ms, of))
    }

    fn sample(&self, tick: u64, now_ms: u64) {
        {
            let items = self.items.read().unwrap_or_else(PoisonError::into_inner);
            for item in items.values() {
                item.sample(tick, now_ms);
            }
        }
        if tick.is_multiple_of(DAY.every) {
            let mut items = self.items.write().unwrap_or_else(PoisonError::into_inner);
            items.retain(|_, item| !item.is_idle());
        }
    }
}

/// The broker's totals at one time.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    at_ms: u64,
    put: u64,
    /// Pulls that brought messages.
    found: u64,
    /// Pulls that brought none.
    missed: u64,
    /// Messages that pulls brought.
    transferred: u64,
}

/// Totals of the past and at the last two midnights.
#[derive(Debug)]
struct Past {
    tick: u64,
    samples: VecDeque<Totals>,
    /// Local day of the last sample. Unit: days since 1970.
    day: u64,
    today_morning: Totals,
    yesterday_morning: Totals,
}

/// Rates over 10 s, 60 s and 600 s. Unit: 1/s.
pub(crate) type Rates = [f64; 3];

/// The broker's totals, for the runtime info.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    /// Messages stored since the start.
    pub put_messages: u64,
    /// Their records. Unit: bytes.
    pub put_bytes: u64,
    /// Messages stored until the last midnight.
    pub put_today_morning: u64,
    /// Messages stored until the midnight before.
    pub put_yesterday_morning: u64,
    /// Messages pulled since the start.
    pub get_messages: u64,
    /// Messages pulled until the last midnight.
    pub get_today_morning: u64,
    /// Messages pulled until the midnight before.
    pub get_yesterday_morning: u64,
    /// Messages stored.
    pub put_rates: Rates,
    /// Pulls that brought messages.
    pub found_rates: Rates,
    /// Pulls that brought none.
    pub missed_rates: Rates,
    /// All pulls.
    pub pull_rates: Rates,
    /// Messages pulled.
    pub transferred_rates: Rates,
}

/// The counters of one broker process.
#[derive(Debug)]
pub struct Stats {
    stored: Item,
    pulled: Item,
    missed_pulls: AtomicU64,
    stored_by_topic: Table,
    /// Keyed `topic@group`, as tools ask for it.
    pulled_by_group: Table,
    /// Time of the last sample, so that counting needs no clock. Unit: ms since the start, which
    /// nobody sets, as everywhere here.
    sampled_ms: AtomicU64,
    past: Mutex<Past>,
}

impl Stats {
    /// Counters at zero.
    #[must_use]
    pub fn new(now_ms: u64) -> Self {
        let birth = Totals {
            at_ms: now_ms,
            ..Totals::default()
        };
        Self {
            stored: Item::new(now_ms),
            pulled: Item::new(now_ms),
            missed_pulls: AtomicU64::new(0),
            stored_by_topic: Table::default(),
            pulled_by_group: Table::default(),
            sampled_ms: AtomicU64::new(now_ms),
            past: Mutex::new(Past {
                tick: 0,
                samples: VecDeque::from([birth]),
                day: now_ms / MS_PER_DAY,
                today_morning: birth,
                yesterday_morning: birth,
            }),
        }
    }

    /// Counts a request that stored `messages` messages of `bytes` bytes in `topic`.
    pub fn message_stored(&self, topic: &str, messages: usize, bytes: usize) {
        let (messages, bytes) = (messages as u64, bytes as u64);
        self.stored.counter.add(messages, bytes);
        let now_ms = self.sampled_ms.load(Ordering::Relaxed);
        self.stored_by_topic.add(topic, messages, bytes, now_ms);
    }

    /// Counts a pull of `group` that brought `messages` messages; none counts as a miss.
    pub fn messages_pulled(&self, group: &str, topic: &str, messages: usize, bytes: usize) {
        if messages == 0 {
            self.missed_pulls.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let (messages, bytes) = (messages as u64, bytes as u64);
        self.pulled.counter.add(messages, bytes);
        let now_ms = self.sampled_ms.load(Ordering::Relaxed);
        self.pulled_by_group
            .add(&group_key(group, topic), messages, bytes, now_ms);
    }

    /// The counter that tools call `name` for `key`; `None` when there is nothing of that kind.
    pub(crate) fn view(&self, name: &str, key: &str, now_ms: u64) -> Option<BrokerStatsData> {
        let messages = |counts: &Counts| counts.messages;
        let bytes = |counts: &Counts| counts.bytes;
        match name {
            "TOPIC_PUT_NUMS" => self.stored_by_topic.view(key, now_ms, messages),
            "TOPIC_PUT_SIZE" => self.stored_by_topic.view(key, now_ms, bytes),
            "GROUP_GET_NUMS" => self.pulled_by_group.view(key, now_ms, messages),
            "GROUP_GET_SIZE" => self.pulled_by_group.view(key, now_ms, bytes),
            "BROKER_PUT_NUMS" => Some(self.stored.view(now_ms, messages)),
            "BROKER_GET_NUMS" => Some(self.pulled.view(now_ms, messages)),
            _ => None,
        }
    }

    /// Messages per second stored in `topic` over the last minute.
    pub(crate) fn topic_put_tps(&self, topic: &str, now_ms: u64) -> f64 {
        self.view("TOPIC_PUT_NUMS", topic, now_ms)
            .map_or(0.0, |data| data.stats_minute.tps)
    }

    /// Messages per second that `group` pulled of `topic` over the last minute.
    pub(crate) fn group_get_tps(&self, group: &str, topic: &str, now_ms: u64) -> f64 {
        self.view("GROUP_GET_NUMS", &group_key(group, topic), now_ms)
            .map_or(0.0, |data| data.stats_minute.tps)
    }

    /// The totals.
    pub(crate) fn summary(&self, now_ms: u64) -> Summary {
        let now = self.totals(now_ms);
        let past = lock(&self.past);
        let rates = |of: fn(&Totals) -> u64| {
            [10_000, 60_000, 600_000].map(|span_ms| {
                let first = past.before(now_ms.saturating_sub(span_ms));
                rate(of(&now) - of(&first), first.at_ms, now_ms)
            })
        };
        Summary {
            put_messages: now.put,
            put_bytes: self.stored.counter.read().bytes,
            put_today_morning: past.today_morning.put,
            put_yesterday_morning: past.yesterday_morning.put,
            get_messages: now.transferred,
            get_today_morning: past.today_morning.transferred,
            get_yesterday_morning: past.yesterday_morning.transferred,
            put_rates: rates(|totals| totals.put),
            found_rates: rates(|totals| totals.found),
            missed_rates: rates(|totals| totals.missed),
            pull_rates: rates(|totals| totals.found + totals.missed),
            transferred_rates: rates(|totals| totals.transferred),
        }
    }

    /// Takes samples for as long as the process runs.
    pub(crate) async fn run(broker: Arc<Broker>) {
        let mut ticks = interval(SAMPLE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let local_ms = broker.clock.now_ms() + broker.clock.local_offset_ms();
            let day = local_ms / MS_PER_DAY;
            broker.stats.sample(broker.uptime_ms(), day);
        }
    }

    /// Takes the sample of one second. `day` counts local days.
    fn sample(&self, now_ms: u64, day: u64) {
        self.sampled_ms.store(now_ms, Ordering::Relaxed);
        let totals = self.totals(now_ms);
        let tick = {
            let mut past = lock(&self.past);
            past.tick += 1;
            push(&mut past.samples, TOTAL_SAMPLES, totals);
            if past.day != day {
                past.day = day;
                past.yesterday_morning = past.today_morning;
                past.today_morning = totals;
            }
            past.tick
        };
        if tick.is_multiple_of(MINUTE.every) {
            self.stored.sample(tick, now_ms);
            self.pulled.sample(tick, now_ms);
            self.stored_by_topic.sample(tick, now_ms);
            self.pulled_by_group.sample(tick, now_ms);
        }
    }

    fn totals(&self, at_ms: u64) -> Totals {
        let pulled = self.pulled.counter.read();
        Totals {
            at_ms,
            put: self.stored.counter.read().messages,
            found: pulled.times,
            missed: self.missed_pulls.load(Ordering::Relaxed),
            transferred: pulled.messages,
        }
    }
}

impl Past {
    /// The newest sample that is not younger than `at_ms`, else the oldest.
    fn before(&self, at_ms: u64) -> Totals {
        let after = self.samples.partition_point(|totals| totals.at_ms <= at_ms);
        self.samples
            .get(after.saturating_sub(1))
            .copied()
            .unwrap_or_default()
    }
}

/// Key of a group's progress on a topic.
fn group_key(group: &str, topic: &str) -> String {
    format!("{topic}@{group}")
}

fn push<T>(ring: &mut VecDeque<T>, most: usize, sample: T) {
    if ring.len() >= most {
        ring.pop_front();
    }
    ring.push_back(sample);
}

fn ratio(sum: u64, parts: u64) -> f64 {
    if parts == 0 {
        0.0
    } else {
        sum as f64 / parts as f64
    }
}

/// `sum` per second.
fn rate(sum: u64, from_ms: u64, to_ms: u64) -> f64 {
    ratio(sum.saturating_mul(1000), to_ms.saturating_sub(from_ms))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "stats_test.rs"]
mod tests;
