//! What a broker is configured with: RocketMQ's `broker.conf`, parsed and checked.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use super::field::Field;
use super::peers::{self, is_host, is_host_port};
use super::{
    ConfigError, GroupFormation, Properties, RaftConfig, Report, Surroundings, Warning, keys,
};
use raftmq_host::budget::{BUDGET_BYTES_MAX, BUDGET_BYTES_MIN};

/// When a send is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlushDiskType {
    /// After a quorum has synced it to disk. The default here, unlike in RocketMQ.
    SyncFlush,
    /// After a quorum has written it; a power failure of all nodes may lose it.
    AsyncFlush,
}

/// `brokerRole`. Only masters exist in this version; with DLedger the key has no meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerRole {
    /// Commits alone.
    AsyncMaster,
    /// As `AsyncMaster` as long as there are no slaves.
    SyncMaster,
    /// Refused.
    Slave,
}

/// Everything `broker.conf` says, with defaults filled in. The key of each field stands in its
/// comment where the name alone does not tell; defaults are RocketMQ 5.5.0's unless noted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerConfig {
    /// `brokerClusterName`.
    pub cluster_name: String,
    /// `brokerName`; default the name of the machine.
    pub broker_name: String,
    /// `brokerId`. Not what is registered: that follows the Raft role, see [`super::RaftPeer::id`].
    pub broker_id: u64,
    /// `listenPort`: the remoting protocol.
    pub listen_port: u16,
    /// `bindAddress`: local address of the remoting listener.
    pub bind_address: IpAddr,
    /// `brokerIP1`: the host clients are told to connect to.
    pub broker_ip1: String,
    /// `leaderServiceAddress` (own key): `host:port` that always leads to the leader of the group;
    /// registered as broker id 0 instead of this broker's own address while it leads.
    pub leader_service_address: Option<String>,
    /// `namesrvAddr`: `host:port` each; empty when the file has none.
    pub namesrv_addrs: Vec<String>,
    /// `storePathRootDir`.
    pub store_root: PathBuf,
    /// `storePathCommitLog`; default `commitlog` in `store_root`.
    pub store_commitlog: PathBuf,
    /// `enableDLegerCommitLog`: a group of several brokers. Otherwise a group of one.
    pub enable_dledger_commit_log: bool,
    /// The Raft group.
    pub raft: RaftConfig,
    /// `brokerRole`.
    pub broker_role: BrokerRole,
    /// `flushDiskType`.
    pub flush: FlushDiskType,
    /// `flushIntervalCommitLog`: between syncs with `ASYNC_FLUSH`. Unit: ms.
    pub flush_interval_commit_log_ms: u64,
    /// `mappedFileSizeCommitLog`: size at which a segment file is closed. Unit: bytes.
    pub segment_bytes: u64,
    /// `commitLogPreallocateBytes` (own key): zero-filled ahead of the writes. Unit: bytes.
    pub preallocate_bytes: u64,
    /// `commitLogTailBytes` (own key): newest part of the log kept in memory. Unit: bytes.
    pub tail_bytes: u64,
    /// `deleteWhen`: hours of the day in which expired segments are deleted.
    pub delete_when_hours: Vec<u8>,
    /// `fileReservedTime`: age at which a segment expires. Unit: hours; 0 = as soon as it is full.
    pub file_reserved_hours: u64,
    /// `diskMaxUsedSpaceRatio`: expired segments are deleted at any hour above it. Unit: %.
    pub disk_max_used_ratio: u8,
    /// `diskSpaceWarningLevelRatio`: messages are refused above it. Unit: %.
    pub disk_warning_ratio: u8,
    /// `diskSpaceCleanForciblyRatio`: unexpired segments are deleted too above it. Unit: %.
    pub disk_clean_forcibly_ratio: u8,
    /// `cleanFileForciblyEnable`: whether unexpired segments may be deleted at all.
    pub clean_file_forcibly: bool,
    /// `autoCreateTopicEnable`.
    pub auto_create_topic: bool,
    /// `autoCreateSubscriptionGroup`.
    pub auto_create_group: bool,
    /// `defaultTopicQueueNums`: most queues of an automatically created topic.
    pub default_topic_queue_nums: u32,
    /// `brokerPermission`: 2 write, 4 read, or their sum.
    pub broker_permission: u32,
    /// `maxMessageSize`. Unit: bytes.
    pub max_message_size: u32,
    /// `longPollingEnable`: a pull that finds nothing waits for its suspend time.
    pub long_polling_enable: bool,
    /// `shortPollingTimeMills`: the wait when long polling is off. Unit: ms.
    pub short_polling_time_mills: u64,
    /// `messageDelayLevel`: delay of level 1, 2, ... Unit: ms.
    pub message_delay_levels: Vec<u64>,
    /// `traceTopicEnable`: the trace topic exists from the start.
    pub trace_topic_enable: bool,
    /// `msgTraceTopicName`.
    pub trace_topic_name: String,
    /// `slaveReadEnable`. Followers always answer pulls, from committed messages; the key only
    /// decides whether consumers are advised to ask one.
    pub slave_read_enable: bool,
    /// `registerNameServerPeriod`. Unit: ms.
    pub register_name_server_period_ms: u64,
    /// `maxTransferCountOnMessageInMemory`: most messages of one pull.
    pub max_transfer_count_on_message_in_memory: u32,
    /// `maxTransferBytesOnMessageInMemory`: most bytes of one pull.
    pub max_transfer_bytes_on_message_in_memory: u32,
    /// `notifyConsumerIdsChangedEnable`.
    pub notify_consumer_ids_changed_enable: bool,
    /// `configBlackList`: keys that the admin protocol may not change.
    pub config_black_list: Vec<String>,
    /// `httpPort` (own key): metrics, probes, status and the admin service. 0 = none.
    pub http_port: u16,
    /// `httpBindAddress` (own key); default `bindAddress`.
    pub http_bind_address: IpAddr,
    /// `embeddedNamesrvPort` (own key): a name server inside this process.
    pub namesrv_port: Option<u16>,
    /// `memoryBudgetBytes` (own key): memory that clients may hold together; default a quarter of
    /// what the process may use. Unit: bytes.
    pub memory_budget_bytes: Option<u64>,
    /// `raftPort` (own key): Raft listener of a group of one; default `listenPort` + 30000.
    pub raft_port: Option<u16>,
}

impl BrokerConfig {
    /// Distance of the default `raftPort` from `listenPort`: 10911 gives 40911, the port of
    /// RocketMQ's DLedger examples.
    pub const RAFT_PORT_STEP: u16 = 30_000;

    /// Reads and checks files, a later one on top of an earlier one, and `KEY=VALUE` arguments on
    /// top of all. The warnings are to be logged.
    pub fn load(
        paths: &[PathBuf],
        arguments: &[String],
    ) -> Result<(Self, Vec<Warning>), ConfigError> {
        let mut layers = Vec::new();
        for path in paths {
            let text = super::read(path)?;
            layers.push(Properties::parse(&text, &path.display().to_string())?);
        }
        for argument in arguments {
            layers.push(Properties::of_argument(argument)?);
        }
        let mut layers = layers.into_iter();
        let mut properties = match layers.next() {
            Some(first) => first,
            None => Properties::parse("", "no configuration file")?,
        };
        layers.for_each(|layer| properties.overlay(layer));
        Self::of(&properties, &Surroundings::of_this_machine())
    }

    /// Checks the text of a file called `file_name`.
    pub fn parse(text: &str, file_name: &str) -> Result<(Self, Vec<Warning>), ConfigError> {
        Self::parse_in(text, file_name, &Surroundings::of_this_machine())
    }

    /// As [`Self::parse`], with defaults taken from `surroundings`.
    pub fn parse_in(
        text: &str,
        file_name: &str,
        surroundings: &Surroundings,
    ) -> Result<(Self, Vec<Warning>), ConfigError> {
        Self::of(&Properties::parse(text, file_name)?, surroundings)
    }

    fn of(
        properties: &Properties,
        surroundings: &Surroundings,
    ) -> Result<(Self, Vec<Warning>), ConfigError> {
        let mut report = Report::new(properties);
        let mut config = Self::defaults(surroundings);
        super::apply(&mut config, &keys::BROKER, &mut report);
        config.resolve(&mut report);
        config.check(&mut report);
        report.finish().map(|warnings| (config, warnings))
    }

    /// `host:port` of this very broker, which clients are told to connect to while it follows.
    #[must_use]
    pub fn broker_address(&self) -> String {
        let (ip, port) = (&self.broker_ip1, self.listen_port);
        if ip.contains(':') {
            format!("[{ip}]:{port}")
        } else {
            format!("{ip}:{port}")
        }
    }

    /// `host:port` that clients are told to connect to while this broker leads.
    #[must_use]
    pub fn leader_address(&self) -> String {
        self.leader_service_address
            .clone()
            .unwrap_or_else(|| self.broker_address())
    }

    /// Every key with its value, defaults resolved; what `mqadmin getBrokerConfig` shows.
    #[must_use]
    pub fn entries(&self) -> Vec<(&'static str, String)> {
        keys::BROKER.show(&mut self.clone())
    }

    /// [`Self::entries`] as `key=value` lines; printed once at start.
    #[must_use]
    pub fn summary(&self) -> String {
        keys::text_of(&self.entries())
    }

    fn defaults(surroundings: &Surroundings) -> Self {
        Self {
            cluster_name: "DefaultCluster".to_owned(),
            broker_name: surroundings.host_name.clone(),
            broker_id: 0,
            listen_port: 10_911,
            bind_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            broker_ip1: surroundings.local_ip.clone(),
            leader_service_address: None,
            namesrv_addrs: Vec::new(),
            store_root: surroundings.home.join("store"),
            store_commitlog: PathBuf::new(),
            enable_dledger_commit_log: false,
            raft: RaftConfig {
                group: String::new(),
                self_id: 1,
                self_name: String::new(),
                peers: Vec::new(),
                bind_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                heartbeat_ms: 75,
                election_min_ms: 225,
                election_max_ms: 375,
                formation: GroupFormation::Peers,
            },
            broker_role: BrokerRole::AsyncMaster,
            flush: FlushDiskType::SyncFlush,
            flush_interval_commit_log_ms: 500,
            segment_bytes: 1 << 30,
            preallocate_bytes: 64 << 20,
            tail_bytes: 32 << 20,
            delete_when_hours: vec![4],
            file_reserved_hours: 72,
            disk_max_used_ratio: 75,
            disk_warning_ratio: 90,
            disk_clean_forcibly_ratio: 85,
            clean_file_forcibly: true,
            auto_create_topic: true,
            auto_create_group: true,
            default_topic_queue_nums: 8,
            broker_permission: 6,
            max_message_size: 4 << 20,
            long_polling_enable: true,
            short_polling_time_mills: 1_000,
            message_delay_levels: default_delay_levels(),
            trace_topic_enable: false,
            trace_topic_name: "RMQ_SYS_TRACE_TOPIC".to_owned(),
            slave_read_enable: false,
            register_name_server_period_ms: 30_000,
            max_transfer_count_on_message_in_memory: 32,
            max_transfer_bytes_on_message_in_memory: 256 << 10,
            notify_consumer_ids_changed_enable: true,
            config_black_list: vec!["configBlackList".to_owned(), "brokerConfigPath".to_owned()],
            http_port: 5_557,
            http_bind_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            namesrv_port: None,
            memory_budget_bytes: None,
            raft_port: None,
        }
    }

    fn resolve(&mut self, report: &mut Report<'_>) {
        if self.store_commitlog.as_os_str().is_empty() {
            self.store_commitlog = self.store_root.join("commitlog");
        }
        let bind_address = self.bind_address;
        for (key, field) in [
            ("raftBindAddress", &mut self.raft.bind_address),
            ("httpBindAddress", &mut self.http_bind_address),
        ] {
            if report.properties.get(key).is_none() {
                *field = bind_address;
            }
        }
        let raft_port = self.raft_port;
        peers::resolve(self, raft_port, report);
    }

    fn check(&self, report: &mut Report<'_>) {
        if self.broker_role == BrokerRole::Slave {
            report.problem("brokerRole", "brokerRole=SLAVE: slaves are not available in this version; use enableDLegerCommitLog=true for replicas");
        } else if self.broker_id != 0 && !self.enable_dledger_commit_log {
            report.problem("brokerId", "brokerId must be 0 without enableDLegerCommitLog: slaves are not available in this version");
        }
        for address in &self.namesrv_addrs {
            if !is_host_port(address) {
                let text = format!("namesrvAddr must be 'host:port;...', not '{address}'");
                report.problem("namesrvAddr", text);
            }
        }
        if !is_host(&self.broker_ip1) {
            let text = format!(
                "brokerIP1 must be an address or a name, not '{}'",
                self.broker_ip1
            );
            report.problem("brokerIP1", text);
        }
        if let Some(address) = &self.leader_service_address
            && !is_host_port(address)
        {
            let text = format!("leaderServiceAddress must be 'host:port', not '{address}'");
            report.problem("leaderServiceAddress", text);
        }
        self.check_store(report);
        self.check_serving(report);
        self.check_ports(report);
    }

    fn check_store(&self, report: &mut Report<'_>) {
        report.check_range(
            "mappedFileSizeCommitLog",
            self.segment_bytes,
            1 << 20..=1 << 40,
        );
        report.check_range(
            "commitLogPreallocateBytes",
            self.preallocate_bytes,
            0..=4 << 30,
        );
        report.check_range("commitLogTailBytes", self.tail_bytes, 1 << 20..=64 << 30);
        report.check_range(
            "flushIntervalCommitLog",
            self.flush_interval_commit_log_ms,
            1..=60_000,
        );
        report.check_range("fileReservedTime", self.file_reserved_hours, 0..=876_000);
        let (used, forcibly, warning) = (
            self.disk_max_used_ratio,
            self.disk_clean_forcibly_ratio,
            self.disk_warning_ratio,
        );
        report.check_range("diskMaxUsedSpaceRatio", used.into(), 10..=99);
        report.check_range("diskSpaceCleanForciblyRatio", forcibly.into(), 10..=99);
        report.check_range("diskSpaceWarningLevelRatio", warning.into(), 10..=99);
        if !(used <= forcibly && forcibly <= warning) {
            let text = format!(
                "diskMaxUsedSpaceRatio {used} <= diskSpaceCleanForciblyRatio {forcibly} <= \
                 diskSpaceWarningLevelRatio {warning} does not hold"
            );
            report.problem("diskMaxUsedSpaceRatio", text);
        }
    }

    fn check_serving(&self, report: &mut Report<'_>) {
        let queue_nums = u64::from(self.default_topic_queue_nums);
        report.check_range("defaultTopicQueueNums", queue_nums, 1..=1024);
        report.check_range("maxMessageSize", self.max_message_size.into(), 1..=15 << 20);
        let pull = u64::from(self.max_transfer_bytes_on_message_in_memory);
        report.check_range("maxTransferBytesOnMessageInMemory", pull, 1024..=15 << 20);
        let count = u64::from(self.max_transfer_count_on_message_in_memory);
        report.check_range("maxTransferCountOnMessageInMemory", count, 1..=16_384);
        if let Some(bytes) = self.memory_budget_bytes {
            let range = BUDGET_BYTES_MIN..=BUDGET_BYTES_MAX;
            report.check_range("memoryBudgetBytes", bytes, range);
        }
        let period = self.register_name_server_period_ms;
        report.check_range("registerNameServerPeriod", period, 1_000..=60_000);
        if !matches!(self.broker_permission, 2 | 4 | 6) {
            let text = format!(
                "brokerPermission must be 2 (write), 4 (read) or 6 (both), not '{}'",
                self.broker_permission
            );
            report.problem("brokerPermission", text);
        }
    }

    /// Two listeners of one process cannot share a port.
    fn check_ports(&self, report: &mut Report<'_>) {
        report.check_range("listenPort", self.listen_port.into(), 1..=65_535);
        let raft_port = self.raft.self_peer().map_or(0, super::RaftPeer::port);
        let raft_key = if self.enable_dledger_commit_log {
            "dLegerPeers"
        } else {
            "raftPort"
        };
        let ports = [
            ("listenPort", self.listen_port),
            (raft_key, raft_port),
            ("httpPort", self.http_port),
            ("embeddedNamesrvPort", self.namesrv_port.unwrap_or(0)),
        ];
        for (at, (key, port)) in ports.iter().enumerate() {
            let taken = ports[..at]
                .iter()
                .find(|(_, other)| *port != 0 && other == port);
            if let Some((other, _)) = taken {
                report.problem(key, format_args!("{key} {port} is the port of {other} too"));
            }
        }
    }
}

fn default_delay_levels() -> Vec<u64> {
    let mut levels = Vec::new();
    Field::set(
        &mut levels,
        "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h",
    )
    .expect("the default reads");
    levels
}

#[cfg(test)]
#[path = "broker_test.rs"]
mod tests;
