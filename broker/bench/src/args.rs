//! The flags of `raftmq bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use raftmq_remoting::SerializeType;

use super::route::Target;
use super::window::SLOTS_MAX;

/// Most connections of one run; each holds some 100 KB of buffers.
const CONNECTIONS_MAX: i64 = 10_000;

/// Largest body that a broker takes with its default settings. Source: RocketMQ's
/// `maxMessageSize`, 4 MiB.
const SIZE_MAX: i64 = 4 * 1024 * 1024;

/// Length of a run when neither `--seconds` nor `--messages` is given.
const SECONDS_DEFAULT: u64 = 10;

/// Requests in flight per connection of an open-loop run when `--in-flight` is not given: enough
/// that the schedule, not the window, decides when a message leaves.
const OPEN_LOOP_IN_FLIGHT: u32 = 1024;

/// Load generator on RocketMQ's remoting protocol; drives any RocketMQ broker.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Send messages and measure throughput and latency.
    Produce(ProduceArgs),
    /// Pull messages and measure throughput and end-to-end latency.
    Consume(ConsumeArgs),
}

/// Whom to load.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct TargetArgs {
    /// Name servers, separated by `;`; the leader is found through them.
    #[arg(short = 'n', long, value_name = "HOST:PORT;...")]
    namesrv: Option<String>,
    /// A broker; give all replicas of one broker name and a lost leader is looked for among them.
    #[arg(short = 'b', long, value_name = "HOST:PORT")]
    broker: Vec<String>,
}

impl TargetArgs {
    pub(crate) fn target(&self) -> Target {
        let list = |text: &str| {
            let parts = text.split([';', ',']).map(str::trim);
            let parts = parts.filter(|part| !part.is_empty());
            parts.map(str::to_owned).collect::<Vec<_>>()
        };
        match &self.namesrv {
            Some(text) => Target::NameServers(list(text)),
            None => Target::Brokers(self.broker.iter().flat_map(|text| list(text)).collect()),
        }
    }
}

/// What both kinds of run have.
#[derive(Debug, Args)]
pub struct CommonArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// Topic; created when it does not exist.
    #[arg(short, long, default_value = "BenchmarkTest")]
    pub topic: String,
    /// Queues that the topic is created with, per broker name.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub queues: u32,
    /// Connections.
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=CONNECTIONS_MAX))]
    pub connections: u32,
    /// Stop after this many seconds [default: 10, unless --messages is given].
    #[arg(short, long)]
    seconds: Option<u64>,
    /// Stop after this many messages.
    #[arg(short, long, value_parser = clap::value_parser!(u64).range(1..))]
    pub messages: Option<u64>,
    /// Seconds at the start that are not measured.
    #[arg(long, default_value_t = 0)]
    warmup: u64,
    /// Threads of the generator; connections are spread over them.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: u32,
    /// Header format of the requests.
    #[arg(long, value_enum, default_value_t = HeaderFormat::Json)]
    header: HeaderFormat,
    /// Form of the result, on standard output.
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    pub format: OutputFormat,
    /// Seconds between two progress lines on standard error; 0 for none.
    #[arg(long, default_value_t = 2)]
    pub interval: u64,
    /// Also report processor time and memory of this process, as PID or NAME=PID; repeatable.
    #[arg(long, value_name = "[NAME=]PID", value_parser = parse_process)]
    pub pid: Vec<WatchedProcess>,
}

impl CommonArgs {
    /// When the run ends by time, warm-up included.
    pub(crate) fn duration(&self) -> Option<Duration> {
        let seconds = match (self.seconds, self.messages) {
            (None, Some(_)) => return None,
            (seconds, _) => seconds.unwrap_or(SECONDS_DEFAULT),
        };
        Some(Duration::from_secs(seconds) + self.warmup())
    }

    pub(crate) fn warmup(&self) -> Duration {
        Duration::from_secs(self.warmup)
    }

    pub(crate) fn serialize(&self) -> SerializeType {
        match self.header {
            HeaderFormat::Json => SerializeType::Json,
            HeaderFormat::Rocketmq => SerializeType::RocketMq,
        }
    }
}

/// `raftmq bench produce`.
#[derive(Debug, Args)]
pub struct ProduceArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Messages in flight per connection; 1 is a synchronous sender [default: 1, open loop 1024].
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..=i64::from(SLOTS_MAX)))]
    in_flight: Option<u32>,
    /// Size of a message body. Unit: bytes.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=SIZE_MAX))]
    pub size: u32,
    /// Open loop: messages per second over all connections, whatever the broker does; latency
    /// counts from the moment a message was due.
    #[arg(short, long, value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// Give up waiting for an answer after this time. Unit: ms.
    #[arg(long, default_value_t = 3000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    timeout_ms: u64,
    /// Write a line `UNIQ_KEY QUEUE_ID QUEUE_OFFSET` for every acknowledged message to this file.
    #[arg(long, value_name = "FILE")]
    pub ack_log: Option<PathBuf>,
}

impl ProduceArgs {
    pub(crate) fn in_flight(&self) -> u32 {
        let default = if self.rate.is_some() {
            OPEN_LOOP_IN_FLIGHT
        } else {
            1
        };
        self.in_flight.unwrap_or(default)
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

/// `raftmq bench consume`.
#[derive(Debug, Args)]
pub struct ConsumeArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Consumer group.
    #[arg(short, long, default_value = "raftmq_bench")]
    pub group: String,
    /// Where to start in each queue.
    #[arg(long, value_enum, default_value_t = StartFrom::First)]
    pub from: StartFrom,
    /// Messages that one pull asks for.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub batch: u32,
    /// Stop once every queue has been read to its end.
    #[arg(long)]
    pub until_empty: bool,
    /// Do not commit offsets.
    #[arg(long)]
    pub no_commit: bool,
    /// Write a line `UNIQ_KEY QUEUE_ID QUEUE_OFFSET` for every received message to this file.
    #[arg(long, value_name = "FILE")]
    pub message_log: Option<PathBuf>,
}

/// The first offset of a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StartFrom {
    /// The oldest message.
    First,
    /// Only what comes from now on.
    Last,
    /// The committed offset of the group, else the oldest message.
    Committed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum HeaderFormat {
    /// As stock clients send by default.
    Json,
    /// RocketMQ's binary header.
    Rocketmq,
}

/// How the result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// A table.
    Text,
    /// One JSON object.
    Json,
}

/// A process whose use of the machine is reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedProcess {
    pub name: String,
    pub pid: u32,
}

fn parse_process(text: &str) -> Result<WatchedProcess, String> {
    let (name, pid) = text.split_once('=').unwrap_or((text, text));
    match pid.parse() {
        Ok(pid) => Ok(WatchedProcess {
            name: name.to_owned(),
            pid,
        }),
        Err(_) => Err(format!("'{pid}' is not a process id")),
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 && rate <= 1e8 => Ok(rate),
        _ => Err("a rate is a number above 0, in messages per second".to_owned()),
    }
}
