//! `raftmq bench`: a load generator on the remoting protocol.
//!
//! ```text
//! args ─► run (threads, progress, end) ─► produce | consume (one task per connection)
//!                                             │ window: requests in flight
//!                                             │ template: a send, encoded once
//!                                             │ schedule: when a message is due (open loop)
//!                                             ▼
//!         report ◄─ stats ◄───────────── connection ◄─► broker,  route ◄─► name server
//! ```
//!
//! Closed loop: every connection keeps `--in-flight` requests outstanding, and the latency of one
//! counts from when it was sent. Open loop (`--rate`): every message has a due time and its
//! latency counts from there, whether or not the generator could send it then.

mod args;
mod connection;
mod consume;
mod message_log;
mod process;
mod produce;
mod report;
mod route;
mod run;
mod schedule;
mod stats;
mod template;
mod window;

use std::cell::RefCell;
use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::Notify;

pub use self::args::BenchCommand;
use self::args::{CommonArgs, ConsumeArgs, OutputFormat, ProduceArgs};
use self::consume::{Consumer, Reading};
use self::message_log::MessageLog;
use self::produce::{Load, Producer};
use self::report::{Consumed, Percentiles, Report, failures_by_name, millis, ratio, weak_by_name};
use self::route::{Access, Place, Router};
use self::run::{Measured, Run, connections_of, observe, on_thread};
use self::schedule::Schedule;
use self::stats::Tally;
use raftmq_host::clock::{Clock, SystemClock};
use raftmq_host::net::{Net, TcpNet};

/// Why a run could not start or finish. What brokers answer during a run is counted instead.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error("{address}: {source}")]
    Connection { address: String, source: io::Error },
    #[error("{address}: no answer to request {code} in {millis} ms")]
    NoAnswer {
        address: String,
        code: i32,
        millis: u128,
    },
    #[error("{address} answered {code}: {remark}")]
    Answer {
        address: String,
        code: i32,
        remark: String,
    },
    #[error("{address}: the answer makes no sense: {reason}")]
    BadAnswer { address: String, reason: String },
    #[error("no broker with a leader has topic {0}")]
    NoLeader(String),
    #[error("{}: {source}", path.display())]
    Log { path: PathBuf, source: io::Error },
    #[error("start a thread: {0}")]
    Thread(io::Error),
    #[error("a generator thread ended early")]
    ThreadDied,
    #[error("listen for Ctrl-C: {0}")]
    Signal(io::Error),
    #[error("write the report: {0}")]
    Report(#[from] serde_json::Error),
}

impl BenchError {
    fn bad_answer(address: &str, reason: &dyn Display) -> Self {
        Self::BadAnswer {
            address: address.to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// Runs one benchmark and prints its report.
///
/// # Errors
/// Why it could not start or finish, for its user.
pub async fn run(command: &BenchCommand) -> Result<(), String> {
    let done = run_command(command).await;
    done.map_err(|error| error.to_string())
}

async fn run_command(command: &BenchCommand) -> Result<(), BenchError> {
    let net: Arc<dyn Net> = Arc::new(TcpNet);
    let (report, format) = match command {
        BenchCommand::Produce(args) => (produce(net, args).await?, args.common.format),
        BenchCommand::Consume(args) => (consume(net, args).await?, args.common.format),
    };
    match format {
        OutputFormat::Text => print!("{report}"),
        OutputFormat::Json => println!("{}", serde_json::to_string(&report)?),
    }
    Ok(())
}

async fn produce(net: Arc<dyn Net>, args: &ProduceArgs) -> Result<Report, BenchError> {
    let common = &args.common;
    let (_, router) = prepare(&net, common, Access::Write).await?;
    let connections = common.connections;
    let load = Load {
        topic: common.topic.clone(),
        serialize: common.serialize(),
        body: body(args.size),
        in_flight: args.in_flight(),
        timeout: args.timeout(),
        schedule: args.rate.map(|rate| Schedule {
            rate,
            connections: u64::from(connections),
        }),
        messages: common.messages,
        connections,
        key_prefix: SystemClock.now_ms() << 16,
    };
    let ack_log = MessageLog::open(args.ack_log.as_deref())?;
    let wakers: Vec<Arc<Notify>> = (0..connections).map(|_| Arc::default()).collect();
    let run = Arc::new(Run::start(net, common));
    if let Some(schedule) = load.schedule {
        run.start_pacer(schedule, wakers.clone())?;
    }
    let mut threads = Vec::new();
    for thread in 0..common.threads {
        let own = connections_of(thread, common.threads, connections);
        let (run, load, ack_log) = (run.clone(), load.clone(), ack_log.clone());
        let (router, wakers) = (router.clone(), wakers.clone());
        let producer = move |index: usize, tally: &Rc<RefCell<Tally>>| Producer {
            index,
            run: run.clone(),
            load: load.clone(),
            router: router.clone(),
            tally: tally.clone(),
            due: wakers[index].clone(),
            ack_log: ack_log.clone(),
        };
        threads.push(on_thread(move |tally| {
            let tasks = own.into_iter().map(|index| producer(index, &tally).drive());
            tasks.map(FutureExt::boxed_local).collect()
        })?);
    }
    let measured = observe(&run, common, threads).await?;
    if let Some(log) = &ack_log {
        log.finish()?;
    }
    let mut report = report("produce", common, &run, measured);
    report.size_bytes = args.size.into();
    report.in_flight = args.in_flight();
    report.rate = args.rate;
    Ok(report)
}

async fn consume(net: Arc<dyn Net>, args: &ConsumeArgs) -> Result<Report, BenchError> {
    let common = &args.common;
    let (places, router) = prepare(&net, common, Access::Read).await?;
    let reading = Reading {
        topic: common.topic.clone(),
        group: args.group.clone(),
        serialize: common.serialize(),
        from: args.from,
        batch: args.batch,
        until_empty: args.until_empty,
        commit: !args.no_commit,
        messages: common.messages,
    };
    let shares = shares(&places, common.connections);
    let message_log = MessageLog::open(args.message_log.as_deref())?;
    let run = Arc::new(Run::start(net, common));
    let mut threads = Vec::new();
    for thread in 0..common.threads {
        let connections = u32::try_from(shares.len()).unwrap_or(u32::MAX);
        let own = connections_of(thread, common.threads, connections);
        let own: Vec<_> = own.into_iter().map(|index| shares[index].clone()).collect();
        let (run, reading, message_log) = (run.clone(), reading.clone(), message_log.clone());
        let router = router.clone();
        let consumer = move |share: (String, Vec<u32>), tally: &Rc<RefCell<Tally>>| Consumer {
            run: run.clone(),
            reading: reading.clone(),
            router: router.clone(),
            tally: tally.clone(),
            message_log: message_log.clone(),
            broker_name: share.0,
            queue_ids: share.1,
        };
        threads.push(on_thread(move |tally| {
            let tasks = own.into_iter().map(|share| consumer(share, &tally).drive());
            tasks.map(FutureExt::boxed_local).collect()
        })?);
    }
    let measured = observe(&run, common, threads).await?;
    if let Some(log) = &message_log {
        log.finish()?;
    }
    let tally = &measured.tally;
    let consumed = Consumed {
        pulls: tally.succeeded,
        empty_pulls: tally.empty,
        messages_per_pull: ratio(tally.messages as f64, tally.succeeded as f64),
        offsets_missing: tally.offsets_missing,
        offsets_repeated: tally.offsets_repeated,
    };
    let mut report = report("consume", common, &run, measured);
    report.in_flight = shares
        .iter()
        .map(|share| share.1.len() as u32)
        .max()
        .unwrap_or(0);
    report.consumed = Some(consumed);
    Ok(report)
}

/// Finds the topic, or creates it.
async fn prepare(
    net: &Arc<dyn Net>,
    common: &CommonArgs,
    access: Access,
) -> Result<(Vec<Place>, Arc<Router>), BenchError> {
    let target = common.target.target();
    let mut router = Router::new(net.clone(), target, &common.topic, access, common.queues);
    let places = router.prepare().await?;
    Ok((places, Arc::new(router)))
}

/// The queues of every broker, dealt to the connections; a broker gets at least one of them.
fn shares(places: &[Place], connections: u32) -> Vec<(String, Vec<u32>)> {
    let mut shares = Vec::new();
    for (rank, place) in (0u32..).zip(places) {
        let brokers = u32::try_from(places.len()).unwrap_or(u32::MAX);
        let own = (connections / brokers + u32::from(rank < connections % brokers)).max(1);
        for first in 0..own.min(place.queues) {
            let queue_ids = (first..place.queues).step_by(own as usize);
            shares.push((place.broker_name.clone(), queue_ids.collect()));
        }
    }
    shares
}

/// What both kinds of run report.
fn report(command: &'static str, common: &CommonArgs, run: &Run, measured: Measured) -> Report {
    let Measured {
        tally,
        seconds,
        processes,
    } = measured;
    Report {
        command,
        topic: common.topic.clone(),
        connections: common.connections,
        in_flight: 0,
        size_bytes: tally.bytes.checked_div(tally.messages).unwrap_or(0),
        rate: None,
        threads: common.threads,
        seconds,
        messages: tally.messages,
        messages_per_second: ratio(tally.messages as f64, seconds),
        megabytes_per_second: ratio(tally.bytes as f64 / 1e6, seconds),
        latency_ms: Percentiles::of(&tally.latency),
        gap_max_ms: millis(run.live.gap_max_ns()),
        failed: tally.failed(),
        failures: failures_by_name(&tally),
        weak: weak_by_name(&tally),
        vain_attempts: tally.vain_attempts,
        unsent: tally.unsent,
        consumed: None,
        processes,
    }
}

/// A body of printable characters, the same in every run.
fn body(size: u32) -> Bytes {
    (b'a'..=b'z')
        .cycle()
        .take(size as usize)
        .collect::<Vec<u8>>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_queue_is_read_by_exactly_one_connection() {
        let place = |name: &str, queues| Place {
            broker_name: name.to_owned(),
            address: String::new(),
            queues,
        };
        let places = [place("a", 8), place("b", 3)];
        for connections in [1, 2, 5, 64] {
            let mut read: Vec<(String, u32)> = shares(&places, connections)
                .into_iter()
                .flat_map(|(name, ids)| ids.into_iter().map(move |id| (name.clone(), id)))
                .collect();
            read.sort();
            let all = [("a", 8), ("b", 3)];
            let all = all
                .iter()
                .flat_map(|(name, count)| (0..*count).map(move |id| ((*name).to_owned(), id)));
            assert_eq!(read, all.collect::<Vec<_>>());
        }
    }
}
